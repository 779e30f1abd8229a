"""The circuit breaker of an endpoint, on a clock that the test sets."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from fsgen_router.adapters.openai import OpenAIModel
from fsgen_router.adapters.openai.breaker import MAX_HOLD_SECONDS, Breaker, breaker_of
from fsgen_router.adapters.openai.endpoint import parse_endpoint
from fsgen_router.adapters.openai.errors import EndpointError


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def down(**more: object) -> EndpointError:
    return EndpointError("it is down", said="what was asked", retryable=True, status=503, **more)


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.event for record in caplog.records]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock, caplog: pytest.LogCaptureFixture) -> Breaker:
    caplog.set_level("INFO", "fsgen_router")
    return Breaker("m@host", clock=clock)


def test_failures_in_a_row_open_it(breaker: Breaker, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        breaker.fail(down(), limit=3, seconds=30)
        breaker.fail(down(), limit=3, seconds=30)
        assert breaker.refusal() is None
        breaker.succeed()
    for _ in range(3):
        breaker.fail(down(), limit=3, seconds=30)
    refused = breaker.refusal()
    assert refused is not None
    assert "m@host is not asked, after it failed: it is down (it is tried again in 30 s" in str(refused)
    assert not refused.retryable
    assert not refused.fault
    assert events(caplog) == ["breaker_opened"]
    assert "what was asked" not in caplog.text


def test_it_can_be_turned_off(breaker: Breaker) -> None:
    for _ in range(99):
        breaker.fail(down(), limit=0, seconds=30)
    assert breaker.refusal() is None


def test_one_trial_at_a_time_opens_or_closes_it(
    breaker: Breaker, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    assert not breaker.begin_trial(), "there is nothing to try"
    breaker.fail(down(), limit=1, seconds=30)
    clock.now += 29.9
    assert not breaker.begin_trial()
    clock.now += 0.2
    assert breaker.refusal() is not None, "no request is a trial"
    gate = threading.Barrier(4)

    def begin() -> bool:
        gate.wait()
        return breaker.begin_trial()

    with ThreadPoolExecutor(4) as pool:
        assert sorted(future.result() for future in [pool.submit(begin) for _ in range(4)]) == [False] * 3 + [True]
    breaker.fail(down(), limit=3, seconds=30)  # one failure is enough
    breaker.end_trial()
    assert not breaker.begin_trial()
    clock.now += 30
    assert breaker.begin_trial()
    breaker.succeed()
    breaker.end_trial()
    assert breaker.refusal() is None
    assert events(caplog) == ["breaker_opened", "breaker_closed"]
    assert caplog.records[-1].open_seconds == 60.1


def test_an_endpoint_that_says_when_to_come_again_is_left_alone_until_then(breaker: Breaker, clock: Clock) -> None:
    breaker.hold(down(retry_after_seconds=600.0))
    clock.now += 599
    assert not breaker.begin_trial()
    clock.now += 1
    assert breaker.begin_trial()
    breaker.succeed()
    breaker.end_trial()
    breaker.hold(down(retry_after_seconds=1e9))
    clock.now += MAX_HOLD_SECONDS
    assert breaker.begin_trial()


def test_models_of_one_endpoint_share_it() -> None:
    models = [
        OpenAIModel(f"{name}@http://127.0.0.1:9/{path}", api_key_env="", max_retries=tries)
        for name, path, tries in (("a", "v1", 0), ("a", "v1", 3), ("b", "v1", 0), ("a", "v2", 0))
    ]
    breaker_of(parse_endpoint("a@http://127.0.0.1:9/v1")).fail(down(), limit=1, seconds=3600)
    assert [model.down for model in models] == [True, True, False, False]
    breaker_of(parse_endpoint("a@http://127.0.0.1:9/v1")).succeed()
