"""What an API's module gives the runner: what is asked of the Router, and how its events and answers are told."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar

from ..generation import Generation
from .body import Body, FsgenOptions
from .errors import ApiError
from .events import Heard

Json: TypeAlias = dict[str, Any]
Messages: TypeAlias = list[Json]
Prompt: TypeAlias = str | tuple[int, ...] | Messages
MAX_STOPS = 16
B = TypeVar("B", bound=Body)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What one HTTP request asks of the Router: ``n`` answers to each prompt, with one set of options.

    A prompt is a text, its token ids, or messages.
    """

    model: str | None
    prompts: tuple[Prompt, ...]
    options: Json
    """As :class:`~fsgen_router.RequestOptions` names them, given ones alone."""
    n: int = 1
    stream: bool = False
    fsgen: FsgenOptions = field(default_factory=FsgenOptions)
    count_prompt: bool = False
    """Whether the first prompt's tokens have to be known before its answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of a request before its answer."""

    request_id: str
    created: int
    model: str
    """The name under which it was asked."""
    text_of: Callable[[int], str]
    """What a token id is written as."""
    stop: tuple[str, ...] = ()
    prompt_tokens: int = 0
    """Where ``Ask.count_prompt`` asked for it."""


class Reply(ABC):
    """One request's answers in its API's words. A stream has the methods called in this order; ``failed`` breaks it."""

    def opening(self) -> Iterable[bytes]:
        """What a stream begins with."""
        return ()

    def heard(self, index: int, what: Heard) -> Iterable[bytes]:
        """What is sent for an event of answer number ``index``."""
        return ()

    def ended(self, index: int, answer: Generation) -> Iterable[bytes]:
        """What is sent when answer number ``index`` is finished."""
        return ()

    def closing(self, answers: Sequence[Generation]) -> Iterable[bytes]:
        """What a stream ends with."""
        return ()

    def failed(self, error: ApiError) -> Iterable[bytes]:
        """What a stream ends with that broke."""
        return ()

    @abstractmethod
    def whole(self, answers: Sequence[Generation]) -> Json:
        """The body of an answer that is not streamed."""


@dataclass(frozen=True, slots=True)
class Dialect(Generic[B]):
    """One API: its name and its operation by OpenTelemetry's GenAI conventions, its body, its translations."""

    name: str
    operation: str
    body: type[B]
    ask: Callable[[B], Ask]
    reply: Callable[[B, Facts], Reply]
    error: Callable[[ApiError], Json]
    fields: tuple[str, ...]
    """What an answer that is not streamed has in any case."""
    sign_of_life: bytes = b": still here\n\n"
    """Sent where nothing else was for a while: a comment, which clients skip."""


def event(data: Mapping[str, Any], name: str | None = None) -> bytes:
    """A server-sent event."""
    head = b"" if name is None else f"event: {name}\n".encode()
    return head + b"data: " + to_json(data) + b"\n\n"


def to_json(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def present(**fields: Any) -> Json:
    """The fields that there are: absent ones are left out, never null."""
    return {name: value for name, value in fields.items() if value is not None}


def options_of(body: Body, *same: str, **renamed: str) -> Json:
    """Options of a request that were given: those called alike (``same``), and ``option=field`` where they are not."""
    options = body.given(*same)
    fields = body.given(*renamed.values())
    for option, name in renamed.items():
        if name in fields and option not in options:
            options[option] = fields[name]
    return options


def finish(answer: Generation, words: Mapping[str, str]) -> str:
    """An API's word for why an answer ended."""
    return words.get(answer.finish_reason, answer.finish_reason)


def stopped_by(answer: Generation, stop: Sequence[str]) -> str | None:
    """The stop string that ended an answer."""
    if answer.finish_reason != "stop":
        return None
    behind = b"".join(token.piece for token in answer.tokens).decode(errors="replace")[len(answer.text) :]
    return next((word for word in sorted(stop, key=len, reverse=True) if behind.startswith(word)), None)
