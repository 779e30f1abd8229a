"""Who may use the models now."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from ..errors import NoFreeSequence, QueueFull
from ..support.waiting import Home, holding

_CHECK_SECONDS = 1.0
"""How often who waits looks for slots that went to closed event loops: nobody is told of those."""


@dataclass(frozen=True, slots=True)
class Load:
    """How busy a Router's models are: requests that are being answered and that wait, and how many fit at once.

    ``room`` is how many more would be let in before :class:`~fsgen_router.QueueFull`.
    """

    running: int
    waiting: int
    places: int
    room: int


class Slots:
    """At most ``count`` requests at once, from threads and coroutines, first come first served.

    :meth:`admit` refuses (:class:`QueueFull`) where ``max_waiting`` more than those were admitted already.
    """

    def __init__(self, count: int, max_waiting: int) -> None:
        self._free = self._count = count
        self._room = count + max_waiting
        self._admitted = 0
        # A stream may be collected, and so give its place back, in the middle of anything.
        self._lock = threading.RLock()
        self._waiting: deque[Place] = deque()
        self._handed: dict[Place, None] = {}
        """Given a slot and not gone on yet: their event loops may be closed before."""
        self._threads: list[int] = []
        self._home = Home()

    def admit(self) -> Place:
        """A place in the queue, from the call of a request on. Raises :class:`QueueFull`; never waits."""
        with holding(self._lock):
            if self._admitted >= self._room:
                self._forget_closed_loops()
            if self._admitted >= self._room:
                running = self._count - self._free
                raise QueueFull(
                    f"{running} requests are being answered and {self._admitted - running} are waiting",
                    hint="try again later, or raise the Router's max_waiting or the models' n_seq",
                )
            self._admitted += 1
        return Place(self)

    @property
    def load(self) -> Load:
        with holding(self._lock):
            running = self._count - self._free
            # Those admitted who have not come to ask for their slot wait too; a request may hold several slots.
            waiting = max(self._admitted - running, len(self._waiting))
            return Load(running, waiting, self._count, self._room - self._admitted)

    def _hand_on(self) -> None:
        for place in [place for place in self._handed if place.lost]:
            place.leave()
        while self._free and self._waiting:
            place = self._waiting.popleft()
            # Who waited in a loop that was closed since would never give it back.
            if place.lost:
                place.leave()
            else:
                self._free -= 1
                self._handed[place] = None
                place.turn.set_result(None)

    def _forget_closed_loops(self) -> None:
        for place in [place for place in (*self._waiting, *self._handed) if place.lost]:
            place.leave()


class Place:
    """A request's place: one of those admitted, with a slot between :meth:`take` and :meth:`leave`.

    Collected, it is given back, so that a stream which nobody ever reads keeps none.
    """

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self.turn: Future[None] = Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked = self._holds = self._gone = False
        self._more = 0

    @property
    def lost(self) -> bool:
        """Who waits for the slot does so in an event loop that is closed, and never goes on."""
        return self._loop is not None and self._loop.is_closed()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Wait for a slot and keep it, for a request that only this thread moves on.

        Raises :class:`NoFreeSequence` where every slot is held by streams that this very thread has
        left open: it would wait for itself.
        """
        slots, thread = self._slots, threading.get_ident()
        try:
            with holding(slots._lock):
                if slots._threads.count(thread) == slots._count:
                    raise NoFreeSequence(
                        f"this thread has {slots._count} streams open, and the models hold no more sequences",
                        hint="finish or close one first, or load both models with a larger n_seq",
                    )
            self.take()
            slots._threads.append(thread)
            try:
                yield
            finally:
                slots._threads.remove(thread)
        finally:
            self.leave()

    def take(self) -> None:
        """Wait for a slot, which is kept until someone calls :meth:`leave`."""
        try:
            self._queue(None)
            while not self._has_slot():
                self._require_hope()
                with suppress(TimeoutError):
                    self.turn.result(_CHECK_SECONDS)
        except BaseException:
            self.leave()
            raise

    async def atake(self) -> None:
        """Like :meth:`take`, without blocking the event loop."""
        try:
            self._queue(asyncio.get_running_loop())
            future = asyncio.wrap_future(self.turn)
            while not self._has_slot():
                await asyncio.wait({future}, timeout=_CHECK_SECONDS)
        except BaseException:
            self.leave()
            raise

    def widen(self, count: int) -> int:
        """Up to ``count`` more slots that nobody uses or waits for: how many there were. Never waits."""
        slots = self._slots
        with holding(slots._lock):
            found = 0 if slots._waiting else min(count, slots._free)
            slots._free -= found
            self._more += found
        return found

    def narrow(self) -> None:
        """Give back what :meth:`widen` took."""
        if not self._more:
            return
        slots = self._slots
        with holding(slots._lock):
            slots._free, self._more = slots._free + self._more, 0
            slots._hand_on()

    def leave(self) -> None:
        """Give all of it back, on any thread: the slot to who has waited longest. Leaving twice is allowed."""
        slots = self._slots
        if slots._home.left:
            return
        with holding(slots._lock):
            if self._gone:
                return
            self._gone = True
            slots._admitted -= 1
            with suppress(ValueError):
                slots._waiting.remove(self)
            # Also where it gave up waiting, and was given a slot in that very moment.
            if slots._handed.pop(self, self) is None or self._holds:
                slots._free += 1 + self._more
                self._more = 0
                slots._hand_on()

    def leave_unread(self) -> None:
        """Give it back where no slot was ever asked for: nobody else will."""
        if not self._asked:
            self.leave()

    def __del__(self) -> None:
        self.leave()

    def _queue(self, loop: asyncio.AbstractEventLoop | None) -> None:
        slots = self._slots
        with holding(slots._lock):
            self._asked, self._loop = True, loop
            slots._waiting.append(self)
            slots._hand_on()

    def _has_slot(self) -> bool:
        """Whether its slot has come to who waits for it."""
        slots = self._slots
        with holding(slots._lock):
            slots._hand_on()
            if not self.turn.done():
                return False
            del slots._handed[self]
            self._holds = True
            return True

    def _require_hope(self) -> None:
        """The interpreter waits at its end for this thread, which must not wait for the one that has ended."""
        slots, main = self._slots, threading.main_thread()
        if not main.is_alive() and slots._threads.count(main.ident or 0) == slots._count:
            raise NoFreeSequence(
                f"the main thread has ended with {slots._count} streams open, and the models hold no more sequences",
                hint="close streams that are not read to their end",
            )
