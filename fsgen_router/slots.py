"""Who may use the models now."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager

from .errors import NoFreeSequence, QueueFull


class Slots:
    """At most ``count`` requests at once, from threads and coroutines, first come first served.

    Raises :class:`QueueFull` where ``max_waiting`` are waiting already.
    """

    def __init__(self, count: int, max_waiting: int) -> None:
        self._free = self._count = count
        self._max_waiting = max_waiting
        self._lock = threading.Lock()
        self._waiting: deque[Future[None]] = deque()
        self._threads: list[int] = []

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Wait for a slot and keep it.

        Raises :class:`NoFreeSequence` where every slot is held by streams that this very thread has
        left open: it would wait for itself.
        """
        thread = threading.get_ident()
        with self._lock:
            if self._threads.count(thread) == self._count:
                raise NoFreeSequence(
                    f"this thread has {self._count} streams open, and the models hold no more sequences",
                    hint="finish or close one first, or load both models with a larger n_seq",
                )
        turn = self._take()
        try:
            turn.result()
        except BaseException:
            self._withdraw(turn)
            raise
        self._threads.append(thread)
        try:
            yield
        finally:
            self._threads.remove(thread)
            self._give()

    @asynccontextmanager
    async def ahold(self) -> AsyncIterator[None]:
        """Like :meth:`hold`, without blocking the event loop."""
        turn = self._take()
        try:
            await asyncio.shield(asyncio.wrap_future(turn))
        except BaseException:
            self._withdraw(turn)
            raise
        try:
            yield
        finally:
            self._give()

    def _take(self) -> Future[None]:
        turn: Future[None] = Future()
        with self._lock:
            if self._free:
                self._free -= 1
                turn.set_result(None)
            elif len(self._waiting) < self._max_waiting:
                self._waiting.append(turn)
            else:
                raise QueueFull(
                    f"{self._count} requests are being answered and {len(self._waiting)} are waiting",
                    hint="try again later, or raise the Router's max_waiting or the models' n_seq",
                )
        return turn

    def _give(self) -> None:
        with self._lock:
            while self._waiting:
                turn = self._waiting.popleft()
                if turn.set_running_or_notify_cancel():
                    turn.set_result(None)
                    return
            self._free += 1

    def _withdraw(self, turn: Future[None]) -> None:
        # Cancelled while waiting; or given the turn in that very moment, which then goes on.
        with self._lock:
            waiting = turn.cancel()
            if waiting and turn in self._waiting:
                self._waiting.remove(turn)
        if not waiting:
            self._give()
