"""What is seen of requests: the log, metrics, spans."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from starlette.types import Scope

from ..generation import Generation
from .dialect import Ask, Dialect
from .errors import ApiError
from .events import Heard
from .named import Named


class Observer:
    """Sees every request of a server."""

    def __init__(self, *, log_prompts: bool = False) -> None:
        self.log_prompts = log_prompts

    def begin(self, dialect: Dialect[Any], scope: Scope) -> Request:
        return Request(self, dialect, scope)


class Request:
    """One request as it is seen, from its first byte to its last."""

    def __init__(self, observer: Observer, dialect: Dialect[Any], scope: Scope) -> None:
        self.id: str = scope["state"]["request_id"]
        self.started = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def understood(self, asked: Ask, named: Named) -> None: ...
    def heard(self, index: int, what: Heard) -> None: ...
    def answered(self, answers: Sequence[Generation]) -> None: ...
    def left(self, kind: str) -> None: ...
    def failed(self, error: ApiError, cause: Exception) -> None: ...
    def end(self) -> None: ...
