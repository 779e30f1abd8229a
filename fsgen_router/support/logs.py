"""Log events with stable names and fields, and the warnings that go with some of them.

Events: ``answered``, ``degraded``, ``context_beyond_training``, ``cuda_graphs_off``, ``endpoint_retry``,
``endpoint_parameter``, ``endpoint_rows`` (how a server is asked for rows), ``rows_cached`` (a server's cache held
rows that were wanted, which are asked for again), ``template_unchecked``, ``seam_repaired`` (what an endpoint said
again, put around its text or left out), ``breaker_opened``, ``breaker_closed`` (an endpoint is left alone, and asked
again), ``fallback_used`` (another one was asked instead), ``prices_unknown`` (of some of several),
``endpoint_probed``, ``prefill_probed``, ``completions_probed``, ``probe_unread``, ``probe_unkept`` (what an endpoint
can do, and the file of that), ``prompts_wrapped``, ``policy_pair``, ``policy_drift``, ``small_extent``,
``swapped_models``, ``system_merged``, ``default_mode`` and ``slow_alone`` (what a pair runs with where nothing was
named), ``costs_unmeasured``, ``costs_unsteady``, ``costs_unread``, ``costs_unkept``, ``vocabulary`` (ids that one
model lacks or types otherwise), ``reread`` (a method takes drafts back, a model cannot), ``rows_full`` (a trie of
rows has reached its limit and keeps no more), ``checker_failed`` (a caller's checker raised), ``served`` (a server's
request log), ``serve_failed`` (it could not answer, where that happened).

``answered`` and ``degraded`` have their request's ``request_id`` and the names of both models. Prompts and keys are
never in any event, ``served`` apart where a server was told to log prompts.
An application that configured structlog gets them through its own processors, as fields. Else they go to the
standard library's logger ``fsgen_router``, silent until that is configured: a line of text, and the fields as
attributes of the record.
"""

from __future__ import annotations

import functools
import logging
import sys
import warnings
from typing import Any

_standard = logging.getLogger("fsgen_router")
_standard.addHandler(logging.NullHandler())


@functools.cache
def _unconfigured() -> Any:
    """A logger on the standard library's: a line for people, and the fields on the record."""
    import structlog

    as_line = structlog.processors.KeyValueRenderer(key_order=["event"])

    def as_line_and_fields(logger: Any, method: str, event: Any) -> tuple[tuple[Any], dict[str, Any]]:
        return (as_line(logger, method, dict(event)),), {"extra": dict(event)}

    return structlog.wrap_logger(
        _standard,
        processors=[structlog.stdlib.filter_by_level, as_line_and_fields],
        wrapper_class=structlog.stdlib.BoundLogger,
        context_class=dict,
        cache_logger_on_first_use=True,
    )


class _Log:
    """structlog as it is configured at the moment of the event: an application may do that after its imports."""

    def info(self, event: str, **fields: Any) -> None:
        self._logger().info(event, **fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._logger().warning(event, **fields)

    @staticmethod
    def _logger() -> Any:
        import structlog  # not before there is something to say: it takes a while to load

        return structlog.get_logger("fsgen_router") if structlog.is_configured() else _unconfigured()


log = _Log()


def warn(category: type[Warning], message: str, *, event: str, **fields: Any) -> None:
    """Warn at the line outside of this package that led here, and log ``event``."""
    warnings.warn(message, category, stacklevel=_levels_inside())
    log.warning(event, **fields)


def _levels_inside() -> int:
    """How far up the stack :func:`warn`'s caller leaves this package."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "fsgen_router":
        level, frame = level + 1, frame.f_back
    return level
