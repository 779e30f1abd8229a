"""Who may use the models now."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from .errors import NoFreeSequence, QueueFull


class Slots:
    """At most ``count`` requests at once, from threads and coroutines, first come first served.

    Raises :class:`QueueFull` where ``max_waiting`` are waiting already.
    """

    def __init__(self, count: int, max_waiting: int) -> None:
        self._free = self._count = count
        self._max_waiting = max_waiting
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Future[None], asyncio.AbstractEventLoop | None]] = deque()
        self._threads: list[int] = []

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Wait for a slot and keep it, for a request that only this thread moves on.

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
            turn.result()
        except BaseException:
            self._withdraw(turn)
            raise

    async def atake(self) -> None:
        """Like :meth:`take`, without blocking the event loop."""
        turn = self._queue(asyncio.get_running_loop())
        try:
            await asyncio.shield(asyncio.wrap_future(turn))
        except BaseException:
            self._withdraw(turn)
            raise

    def give(self) -> None:
        """Give a slot back, on any thread: to who has waited longest."""
        with self._lock:
            while self._waiting:
                turn, loop = self._waiting.popleft()
                # Who waited in a loop that was closed since would never give it back.
                if (loop is None or not loop.is_closed()) and turn.set_running_or_notify_cancel():
                    turn.set_result(None)
                    return
            self._free += 1

    def _queue(self, loop: asyncio.AbstractEventLoop | None) -> Future[None]:
        turn: Future[None] = Future()
        with self._lock:
            if self._free:
                self._free -= 1
                turn.set_result(None)
            elif len(self._waiting) < self._max_waiting:
                self._waiting.append((turn, loop))
            else:
                raise QueueFull(
                    f"{self._count} requests are being answered and {len(self._waiting)} are waiting",
                    hint="try again later, or raise the Router's max_waiting or the models' n_seq",
                )
        return turn

    def _withdraw(self, turn: Future[None]) -> None:
        # Cancelled while waiting; or given the turn in that very moment, which then goes on.
        with self._lock:
            waiting = turn.cancel()
            if waiting:
                self._waiting = deque(other for other in self._waiting if other[0] is not turn)
        if not waiting:
            self.give()
