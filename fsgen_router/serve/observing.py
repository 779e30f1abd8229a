"""What is seen of requests: the log, metrics, spans."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from starlette.types import Scope

from ..generation import Generation
from ..support.logs import log
from .dialect import Ask, Dialect
from .errors import ApiError
from .events import Heard, Text
from .metrics import Metrics
from .named import Named
from .tracing import Span, start_span


class Observer:
    """Sees every request of a server."""

    def __init__(self, metrics: Metrics, *, log_prompts: bool = False) -> None:
        self.metrics, self.log_prompts = metrics, log_prompts

    def begin(self, dialect: Dialect[Any], scope: Scope) -> Request:
        return Request(self, dialect, scope)


class Request:
    """One request as it is seen, from its first byte to its last."""

    def __init__(self, observer: Observer, dialect: Dialect[Any], scope: Scope) -> None:
        self.id: str = scope["state"]["request_id"]
        self._observer, self._dialect = observer, dialect
        self._key: str = scope["state"]["key"]
        self._started = time.perf_counter()
        self._first: float | None = None
        self._model = ""
        self._outcome, self._status = "cancelled", 0
        self._asked: Ask | None = None
        self._answers: Sequence[Generation] = ()
        self._span: Span = start_span(dialect.operation, scope)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._started

    def understood(self, asked: Ask, named: Named) -> None:
        self._asked, self._model = asked, named.name
        self._span.asked(asked, named.name, self.id)

    def heard(self, index: int, what: Heard) -> None:
        if self._first is None:
            self._first = self.seconds
        if isinstance(what, Text) and what.token is not None:
            self._span.token(index, what.token)

    def answered(self, answers: Sequence[Generation]) -> None:
        self._answers, self._outcome, self._status = answers, "ok", 200
        self._span.answered(answers)

    def left(self, kind: str) -> None:
        self._outcome = kind
        self._span.failed(kind)

    def failed(self, error: ApiError) -> None:
        self._outcome, self._status = error.kind, error.status
        self._span.failed(error.kind)

    def end(self) -> None:
        """The last of it: counted, logged, its span ended."""
        seconds, answers = self.seconds, self._answers
        self._observer.metrics.enter(
            self._dialect.name, self._model, self._outcome, seconds=seconds, first=self._first, answers=answers
        )
        log.info(
            "served",
            request_id=self.id,
            api=self._dialect.name,
            model=self._model,
            key=self._key,
            outcome=self._outcome,
            status=self._status,
            seconds=round(seconds, 4),
            first_token_seconds=None if self._first is None else round(self._first, 4),
            prompt_tokens=sum(answer.usage.prompt_tokens for answer in answers),
            tokens=sum(answer.usage.tokens for answer in answers),
            finish_reasons=[answer.finish_reason for answer in answers],
            **self._texts(),
        )
        self._span.end()

    def _texts(self) -> dict[str, Any]:
        """Prompts and answers, for a log that was told to have them."""
        if not self._observer.log_prompts or self._asked is None:
            return {}
        return {"prompts": list(self._asked.prompts), "texts": [answer.text for answer in self._answers]}
