"""The contract of what reads tool calls in an answer, which a request may bring along."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from ..contracts.policy import InCall
from ..contracts.text_models import OfferedTools
from ..generation import Generation, StreamEvent
from .commands import Emit


class CallEvents(Protocol):
    """A stream's events where the answer may call tools: calls apart from what is said."""

    def of(self, emit: Emit) -> Iterable[StreamEvent]: ...

    def end(self) -> Iterable[StreamEvent]:
        """What was kept back until the answer stood."""


class Calls(Protocol):
    """The tool calls of one request."""

    @property
    def shown(self) -> Mapping[int, bytes]:
        """Control tokens that are a part of the text all the same, since calls are told by them, and their bytes."""

    def place(self, answer: Sequence[int]) -> InCall | None:
        """Where in a call an answer of these ids stands."""

    def review(self, text: str) -> str | None:
        """What is wrong with a whole answer, so that the slow model has to write it anew; None: nothing."""

    @property
    def offered(self) -> OfferedTools | None:
        """As a slow model is told of them that gives text; None where none may be called."""

    def events(self, request: str) -> CallEvents: ...

    def applied(self, answer: Generation, request: str) -> Generation:
        """The answer with its calls apart from what it says."""
