"""Several streams as one, without waiting for who reads them: an answer's length bounds what is held."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Protocol, TypeAlias

from ..generation import StreamEvent


class Closable(Protocol):
    def __aiter__(self) -> AsyncIterator[StreamEvent]: ...
    async def aclose(self) -> None: ...


class Left:
    """The client has gone."""


LEFT = Left()
Item: TypeAlias = tuple[int, StreamEvent] | Exception | Left


class Merged:
    """The events of ``streams``, each with its stream's number, in the order in which they come."""

    def __init__(self, streams: Sequence[Closable]) -> None:
        self._items: asyncio.Queue[Item] = asyncio.Queue()
        self._tasks = [asyncio.create_task(self._pump(index, stream)) for index, stream in enumerate(streams)]

    async def _pump(self, index: int, stream: Closable) -> None:
        try:
            async for event in stream:
                self._items.put_nowait((index, event))
        except Exception as error:
            self._items.put_nowait(error)
        finally:
            await stream.aclose()

    def leave(self) -> None:
        """Tell who reads that the client has gone."""
        self._items.put_nowait(LEFT)

    async def next(self, seconds: float) -> list[Item]:
        """All that has come, at least one; nothing where nothing came for ``seconds``."""
        items: list[Item] = []
        if self._items.empty():
            try:
                async with asyncio.timeout(seconds):
                    items.append(await self._items.get())
            except TimeoutError:
                return []
        while not self._items.empty():
            items.append(self._items.get_nowait())
        return items

    async def aclose(self) -> None:
        """Give up what is under way, and wait until its places are free again."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
