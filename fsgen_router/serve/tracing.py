"""OpenTelemetry spans by its conventions for generative AI, where its API is installed and configured.

One span for a request, under its client's where that sent a ``traceparent``; each escalation is an event of it. Prompts
and answers are never in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.types import Scope

from .. import __version__
from ..generation import Generation
from ..records import Token
from .dialect import Ask

PROVIDER = "fsgen_router"
MAX_EVENTS = 100
"""Escalations that a span shows: exporters drop events beyond 128."""
_SAME = ("temperature", "top_p", "top_k", "seed")


class Span:
    """A request's span; of a server without spans nothing happens here."""

    def asked(self, asked: Ask, model: str, request_id: str) -> None: ...
    def token(self, index: int, token: Token) -> None: ...
    def answered(self, answers: Sequence[Generation]) -> None: ...
    def failed(self, kind: str) -> None: ...
    def end(self) -> None: ...


class _Recorded(Span):
    def __init__(self, span: Any, operation: str) -> None:
        self._span, self._operation, self._events = span, operation, 0
        self._positions: dict[int, int] = {}

    def asked(self, asked: Ask, model: str, request_id: str) -> None:
        self._span.update_name(f"{self._operation} {model}")
        attributes: dict[str, Any] = {
            "gen_ai.request.model": asked.model or model,
            "gen_ai.response.model": model,
            "gen_ai.response.id": request_id,
        }
        attributes |= {f"gen_ai.request.{name}": asked.options[name] for name in _SAME if name in asked.options}
        if "max_tokens" in asked.options:
            attributes["gen_ai.request.max_tokens"] = asked.options["max_tokens"]
        if stop := asked.options.get("stop"):
            attributes["gen_ai.request.stop_sequences"] = [stop] if isinstance(stop, str) else list(stop)
        if asked.n > 1:
            attributes["gen_ai.request.choice.count"] = asked.n
        self._span.set_attributes(attributes)

    def token(self, index: int, token: Token) -> None:
        position = self._positions[index] = self._positions.get(index, -1) + 1
        decision = token.decision
        if decision is None or not decision.escalate or self._events >= MAX_EVENTS or token.signals is None:
            return
        self._events += 1
        attributes = {
            "fsgen.choice": index,
            "fsgen.position": position,
            "fsgen.reason": decision.reason,
            "fsgen.source": token.source,
        }
        scores = {"fsgen.score": decision.score, "fsgen.threshold": decision.threshold}
        attributes |= {name: value for name, value in scores.items() if value is not None}
        self._span.add_event("fsgen.escalation", attributes)

    def answered(self, answers: Sequence[Generation]) -> None:
        if not answers:
            return
        usages = [answer.usage for answer in answers]
        self._span.set_attributes(
            {
                "gen_ai.usage.input_tokens": sum(usage.prompt_tokens for usage in usages),
                "gen_ai.usage.output_tokens": sum(usage.tokens for usage in usages),
                "gen_ai.response.finish_reasons": [answer.finish_reason for answer in answers],
                "fsgen.policy": answers[0].policy,
                "fsgen.method": answers[0].method,
                "fsgen.slow_forwards": sum(usage.slow_forwards for usage in usages),
                "fsgen.slow_tokens": sum(usage.slow_tokens for usage in usages),
                "fsgen.escalations": sum(usage.escalations for usage in usages),
            }
        )

    def failed(self, kind: str) -> None:
        from opentelemetry.trace import StatusCode

        self._span.set_attribute("error.type", kind)
        self._span.set_status(StatusCode.ERROR)

    def end(self) -> None:
        self._span.end()


def start_span(operation: str, scope: Scope) -> Span:
    """A request's span; one that does nothing where nobody would see it."""
    try:
        from opentelemetry import propagate, trace
    except ImportError:
        return Span()
    sent = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
    attributes = {"gen_ai.operation.name": operation, "gen_ai.provider.name": PROVIDER}
    span = trace.get_tracer("fsgen_router.serve", __version__).start_span(
        operation, context=propagate.extract(sent), kind=trace.SpanKind.SERVER, attributes=attributes
    )
    return _Recorded(span, operation) if span.is_recording() else Span()
