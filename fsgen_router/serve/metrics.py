"""Prometheus metrics of a server, in a registry of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ..errors import FsgenError
from ..generation import Generation
from ..run.slots import Load

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """Counters and histograms. ``load`` says how busy the models are."""

    def __init__(self, load: Callable[[], Load]) -> None:
        self._registry = own = CollectorRegistry()
        by_request = ("api", "model")
        self._requests = Counter(
            "fsgen_requests", "Requests that ended: ok, cancelled, or by the kind of error.", (*by_request, "outcome"),
            registry=own,
        )  # fmt: skip
        self._errors = Counter("fsgen_errors", "Requests that were refused or failed.", ("kind",), registry=own)
        self._cancelled = Counter("fsgen_cancelled", "Requests whose client left.", registry=own)
        self._prompt_tokens = Counter("fsgen_prompt_tokens", "Tokens of prompts.", by_request, registry=own)
        self._tokens = Counter(
            "fsgen_tokens", "Tokens of answers, by who wrote them.", ("model", "writer"), registry=own
        )
        self._slow_forwards = Counter(
            "fsgen_slow_forwards", "Sequential steps of the slow model.", ("model",), registry=own
        )
        self._decisions = Counter("fsgen_decisions", "Decisions of policies.", ("model",), registry=own)
        self._escalations = Counter("fsgen_escalations", "Those that asked the slow model.", ("model",), registry=own)
        self._corrections = Counter(
            "fsgen_corrections", "Positions at which another token stands than the fast model's.", ("model",),
            registry=own,
        )  # fmt: skip
        self._degraded = Counter(
            "fsgen_degraded", "Answers that the fast model finished, at a cap or without the slow one.", ("model",),
            registry=own,
        )  # fmt: skip
        self._first = Histogram(
            "fsgen_time_to_first_token_seconds", "From a request's first byte to its answer's first token.", by_request,
            buckets=_SECONDS, registry=own,
        )  # fmt: skip
        self._duration = Histogram(
            "fsgen_request_duration_seconds", "Of answered requests.", by_request, buckets=_SECONDS, registry=own
        )
        for name, about in (
            ("running", "Requests that are being answered."),
            ("waiting", "Requests that wait for a place."),
            ("places", "Requests that fit at once."),
        ):
            gauge = Gauge(f"fsgen_requests_{name}", about, registry=own)
            gauge.set_function(partial(_of, load, name))

    def enter(
        self, api: str, model: str, outcome: str, *, seconds: float, first: float | None, answers: Sequence[Generation]
    ) -> None:
        """One request that has ended."""
        self._requests.labels(api, model, outcome).inc()
        if outcome in ("cancelled", "slow_reader"):
            self._cancelled.inc()
        elif outcome != "ok":
            self._errors.labels(outcome).inc()
        if first is not None:
            self._first.labels(api, model).observe(first)
        if outcome == "ok":
            self._duration.labels(api, model).observe(seconds)
        for answer in answers:
            usage = answer.usage
            self._prompt_tokens.labels(api, model).inc(usage.prompt_tokens)
            self._tokens.labels(model, "slow").inc(usage.slow_tokens)
            self._tokens.labels(model, "fast").inc(usage.tokens - usage.slow_tokens)
            self._slow_forwards.labels(model).inc(usage.slow_forwards)
            self._decisions.labels(model).inc(usage.decisions)
            self._escalations.labels(model).inc(usage.escalations)
            self._corrections.labels(model).inc(usage.corrections)
            self._degraded.labels(model).inc(answer.degraded is not None)

    def page(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self._registry)


def _of(load: Callable[[], Load], name: str) -> float:
    try:
        return float(getattr(load(), name))
    except FsgenError:  # the Router was closed
        return 0.0
