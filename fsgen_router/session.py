"""A conversation, or an agent's run: one budget over all of its calls, one bill, both models' KV caches found again."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self, Unpack, cast

from .config import RequestKeywords, RequestOptions
from .errors import InvalidRequest, RouterClosed
from .generation import Finished, Generation, StreamEvent
from .money import Budget
from .records import Usage
from .report import Report, SessionReport
from .run.streams import AsyncStream, Stream
from .support.options import checked
from .support.waiting import holding
from .text.messages import Message


class Chats(Protocol):
    """What answers a session's calls: a :class:`~fsgen_router.Router`."""

    def stream_chat(self, messages: Sequence[Message], **options: Unpack[RequestKeywords]) -> Iterator[StreamEvent]: ...

    def astream_chat(
        self, messages: Sequence[Message], **options: Unpack[RequestKeywords]
    ) -> AsyncIterator[StreamEvent]: ...


class Session:
    """Calls that belong together, made by :meth:`Router.session`.

    ::

        from fsgen_router import Budget, Router

        with Router() as router, router.session(budget=Budget(slow_tokens=500)) as session:
            print(session.chat("How many coins do 3 lamps and 4 ropes cost in Norvale?").text)
            print(session.chat("How many coins do 2 lamps and 5 ropes cost in Norvale?").text)
            print(session.report())

    ``budget`` caps what the slow model spends on all of them; where it is used up the fast model goes on alone, and
    those answers say so (``degraded``). The Router's own budget holds beside it.

    A conversation's next turn finds what both models have read of it in their KV caches, for as long as their
    sequences (``n_seq``) suffice for all conversations under way. The one that was least recently used gives way to
    another, and is read again at its next turn: its text is the same.

    May be used from several threads, which share its budget and bill; its own conversation is one.
    """

    def __init__(self, router: Chats, **options: Unpack[RequestKeywords]) -> None:
        checked(RequestOptions, options, error=InvalidRequest)
        self.router = router
        self.budget: Budget | None = options.get("budget")
        self.messages: list[Message] = []
        """The conversation so far, the last answer included; it may be changed between two calls."""
        self._options: Mapping[str, Any] = options
        self._reports: list[Report] = []
        self._lock = threading.RLock()
        self._closed = False

    def chat(self, messages: str | Sequence[Message], **options: Unpack[RequestKeywords]) -> Generation:
        """Answer the user's next message (a text), or a whole conversation that takes the place of this one.

        ``options`` come before those that the session was made with. Raises what :meth:`Router.chat` raises.
        """
        for event in self.stream_chat(messages, **options):
            if isinstance(event, Finished):
                return event.generation
        raise AssertionError("a stream ends with Finished")

    def stream_chat(
        self, messages: str | Sequence[Message], **options: Unpack[RequestKeywords]
    ) -> Iterator[StreamEvent]:
        """Like :meth:`chat`, as events. What is given up half-way is no part of the conversation, but of the budget."""
        wanted = self._turn(messages)
        stream = cast(Stream, self.router.stream_chat(wanted, **self._with(options)))
        return stream.seen_by(partial(self._see, wanted))

    async def achat(self, messages: str | Sequence[Message], **options: Unpack[RequestKeywords]) -> Generation:
        """The asynchronous :meth:`chat`."""
        async for event in self.astream_chat(messages, **options):
            if isinstance(event, Finished):
                return event.generation
        raise AssertionError("a stream ends with Finished")

    def astream_chat(
        self, messages: str | Sequence[Message], **options: Unpack[RequestKeywords]
    ) -> AsyncIterator[StreamEvent]:
        """The asynchronous :meth:`stream_chat`."""
        wanted = self._turn(messages)
        stream = cast(AsyncStream, self.router.astream_chat(wanted, **self._with(options)))
        return stream.seen_by(partial(self._see, wanted))

    @property
    def usage(self) -> Usage:
        """Counters of all answers so far, added up."""
        return self.report().usage

    def report(self) -> SessionReport:
        """What routing saved over all answers so far; prints as text, ``to_dict()`` for JSON."""
        with holding(self._lock):
            return SessionReport(tuple(self._reports))

    def close(self) -> None:
        """No more calls. The Router stays open, and what was written stays readable."""
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        under = "" if self.budget is None else f", {self.budget!r}"
        return f"Session({len(self._reports)} answers{under}{', closed' if self._closed else ''})"

    def _turn(self, messages: str | Sequence[Message]) -> list[Message]:
        if self._closed:
            raise RouterClosed("the session was closed", hint="make a new one: router.session()")
        if isinstance(messages, str):
            return [*self.messages, {"role": "user", "content": messages}]
        return list(messages)

    def _with(self, options: Mapping[str, Any]) -> RequestKeywords:
        if "budget" in options and self.budget is not None:
            raise InvalidRequest(
                "budget= of a call in a session that has one", hint="cap the call alone with max_slow_tokens= or alike"
            )
        return cast(RequestKeywords, {**self._options, **options})

    def _see(self, messages: list[Message], event: StreamEvent) -> None:
        if isinstance(event, Finished):
            with holding(self._lock):
                self._reports.append(event.generation.report())
                self.messages = [*messages, event.generation.message]
