"""Log events: through structlog as an application configured it, else through the standard library."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Iterator

import pytest
import scripted_pairs
import structlog

from fsgen_router import Router
from fsgen_router.support.logs import log, warn


@pytest.fixture
def configured() -> Iterator[list[structlog.typing.EventDict]]:
    """structlog as an application may have it, with its own processor and context."""
    structlog.reset_defaults()
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as events:
        structlog.configure()
        yield events
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def ask(**options: object) -> tuple[Router, str]:
    models = scripted_pairs.pair(3)
    with Router(models.fast, models.slow, policy="every:2") as router:
        return router, router.complete("a", max_tokens=8, **options).request_id


def test_events_are_fields_where_structlog_is_configured(configured: list[structlog.typing.EventDict]) -> None:
    structlog.contextvars.bind_contextvars(user="u-1")
    router, request_id = ask(request_id="req-1")
    (event,) = (event for event in configured if event["event"] == "answered")
    assert request_id == event["request_id"] == "req-1"
    assert (event["fast"], event["slow"]) == (router.fast.name, router.slow.name)
    assert (event["user"], event["log_level"]) == ("u-1", "info")
    assert isinstance(event["tokens"], int)


def test_structlog_may_be_configured_after_the_import() -> None:
    """By an application's own main(), in a process of its own; and its level is respected."""
    program = """
import logging, sys
from fsgen_router.support.logs import log
import structlog
log.info("answered", tokens=1)  # before: the standard library's, silent
structlog.configure(
    processors=[structlog.processors.add_log_level, structlog.processors.JSONRenderer()],
    wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
    logger_factory=structlog.WriteLoggerFactory(sys.stdout),
)
log.info("answered", tokens=2)
log.warning("policy_drift", alarm=True)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert json.loads(done.stdout) == {"event": "policy_drift", "alarm": True, "level": "warning"}


def test_a_structlog_over_the_standard_library_gets_the_loggers_name(caplog: pytest.LogCaptureFixture) -> None:
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, structlog.stdlib.render_to_log_kwargs],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    try:
        with caplog.at_level(logging.INFO, "fsgen_router"):
            log.info("answered", tokens=3)
    finally:
        structlog.reset_defaults()
    assert [(r.name, r.msg, r.tokens) for r in caplog.records] == [("fsgen_router", "answered", 3)]


def test_without_structlog_a_line_and_the_fields_of_the_record(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "fsgen_router"):
        _, request_id = ask()
    record = next(record for record in caplog.records if record.event == "answered")
    assert (record.request_id, record.levelname) == (request_id, "INFO")
    assert record.getMessage().startswith("event='answered' request_id=")


def test_nothing_is_said_where_nothing_is_configured() -> None:
    program = "from fsgen_router.support.logs import log; log.warning('degraded', reason='x'); log.info('answered')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_warning_points_at_the_line_outside_of_the_package(caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.WARNING, "fsgen_router"):
        warnings.simplefilter("always")
        warn(UserWarning, "look out", event="small_extent", extent=1)
    assert caught[0].filename == __file__
    assert caplog.records[0].extent == 1
