"""Who may use the models now."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import TypeAlias

from .errors import NoFreeSequence, QueueFull
from .waiting import holding

_Turn: TypeAlias = tuple[Future[None], asyncio.AbstractEventLoop | None]
_CHECK_SECONDS = 1.0
"""How often who waits looks for slots that went to closed event loops: nobody is told of those."""


class Slots:
    """At most ``count`` requests at once, from threads and coroutines, first come first served.

    Raises :class:`QueueFull` where ``max_waiting`` are waiting already.
    """

    def __init__(self, count: int, max_waiting: int) -> None:
        self._free = self._count = count
        self._max_waiting = max_waiting
        # A stream may be collected, and so give its slot back, in the middle of anything.
        self._lock = threading.RLock()
        self._waiting: deque[_Turn] = deque()
        self._handed: dict[Future[None], asyncio.AbstractEventLoop | None] = {}
        """Given to who has not gone on yet, and whose event loop may be closed before."""
        self._threads: list[int] = []

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Wait for a slot and keep it, for a request that only this thread moves on.

        Raises :class:`NoFreeSequence` where every slot is held by streams that this very thread has
        left open: it would wait for itself.
        """
        thread = threading.get_ident()
        with holding(self._lock):
            if self._threads.count(thread) == self._count:
                raise NoFreeSequence(
                    f"this thread has {self._count} streams open, and the models hold no more sequences",
                    hint="finish or close one first, or load both models with a larger n_seq",
                )
        self.take()
        self._threads.append(thread)
        try:
            yield
        finally:
            self._threads.remove(thread)
            self.give()

    def take(self) -> None:
        """Wait for a slot, which is kept until someone calls :meth:`give`."""
        turn = self._queue(None)
        try:
            while not self._has(turn):
                with suppress(TimeoutError):
                    turn[0].result(_CHECK_SECONDS)
        except BaseException:
            self._withdraw(turn)
            raise

    async def atake(self) -> None:
        """Like :meth:`take`, without blocking the event loop."""
        turn = self._queue(asyncio.get_running_loop())
        try:
            future = asyncio.wrap_future(turn[0])
            while not self._has(turn):
                await asyncio.wait({future}, timeout=_CHECK_SECONDS)
        except BaseException:
            self._withdraw(turn)
            raise

    def give(self) -> None:
        """Give a slot back, on any thread: to who has waited longest."""
        with holding(self._lock):
            self._free += 1
            self._hand_on()

    def _queue(self, loop: asyncio.AbstractEventLoop | None) -> _Turn:
        turn: _Turn = Future(), loop
        with holding(self._lock):
            self._hand_on()
            if not self._free and len(self._waiting) >= self._max_waiting:
                raise QueueFull(
                    f"{self._count} requests are being answered and {len(self._waiting)} are waiting",
                    hint="try again later, or raise the Router's max_waiting or the models' n_seq",
                )
            self._waiting.append(turn)
            self._hand_on()
        return turn

    def _has(self, turn: _Turn) -> bool:
        """Whether its slot has come to who waits for it."""
        with holding(self._lock):
            self._hand_on()
            if not turn[0].done():
                return False
            del self._handed[turn[0]]
            return True

    def _hand_on(self) -> None:
        for future, loop in list(self._handed.items()):
            if loop is not None and loop.is_closed() and self._handed.pop(future, self) is not self:
                self._free += 1
        while self._free and self._waiting:
            self._free -= 1
            future, loop = self._waiting.popleft()
            # Who waited in a loop that was closed since would never give it back.
            if (loop is None or not loop.is_closed()) and future.set_running_or_notify_cancel():
                self._handed[future] = loop
                future.set_result(None)
            else:
                self._free += 1

    def _withdraw(self, turn: _Turn) -> None:
        # Cancelled while waiting; or given the turn in that very moment, which then goes on.
        with holding(self._lock):
            if turn[0].cancel():
                with suppress(ValueError):
                    self._waiting.remove(turn)
            elif self._handed.pop(turn[0], self) is not self:
                self._free += 1
                self._hand_on()
