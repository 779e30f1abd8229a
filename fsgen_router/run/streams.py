"""What a Router's streams are: events of one answer, and a place in the queue from the call on."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import aclosing, closing
from typing import Any

from ..generation import StreamEvent
from ..support.waiting import Home
from .slots import Place


class Stream(Generator[StreamEvent, None, None]):
    """Events as they come. Closing it, or dropping it, read or not, gives up the request and its place."""

    def __init__(self, events: Generator[StreamEvent, None, None], place: Place) -> None:
        self._events, self._place, self._home = events, place, Home()

    def seen_by(self, see: Callable[[StreamEvent], None]) -> Stream:
        """This stream, of which ``see`` is shown every event first."""

        def shown() -> Generator[StreamEvent, None, None]:
            with closing(self._events) as events:
                for event in events:
                    see(event)
                    yield event

        return Stream(shown(), self._place)

    def __next__(self) -> StreamEvent:
        self._home.require("the Router of this stream")
        return next(self._events)

    def send(self, value: None, /) -> StreamEvent:
        return next(self)

    def throw(self, *error: Any) -> StreamEvent:
        self._home.require("the Router of this stream")
        try:
            return self._events.throw(*error)
        finally:
            self._place.leave_unread()

    def close(self) -> None:
        if not self._home.forked:
            self._events.close()
            self._place.leave_unread()


class AsyncStream(AsyncGenerator[StreamEvent, None]):
    """:class:`Stream` for coroutines, of whichever event loop first reads it."""

    def __init__(self, events: AsyncGenerator[StreamEvent, None], place: Place) -> None:
        self._events, self._place, self._home = events, place, Home()

    def seen_by(self, see: Callable[[StreamEvent], None]) -> AsyncStream:
        """This stream, of which ``see`` is shown every event first."""

        async def shown() -> AsyncGenerator[StreamEvent, None]:
            async with aclosing(self._events) as events:
                async for event in events:
                    see(event)
                    yield event

        return AsyncStream(shown(), self._place)

    def __anext__(self) -> Coroutine[Any, Any, StreamEvent]:
        self._home.require("the Router of this stream")
        return self._events.__anext__()

    def asend(self, value: None, /) -> Coroutine[Any, Any, StreamEvent]:
        return self.__anext__()

    async def athrow(self, *error: Any) -> StreamEvent:
        self._home.require("the Router of this stream")
        try:
            return await self._events.athrow(*error)
        finally:
            self._place.leave_unread()

    async def aclose(self) -> None:
        if not self._home.forked:
            await self._events.aclose()
            self._place.leave_unread()
