"""Models on one device take turns, and the requests of a pair are kept in step.

Two forwards that overlap on the same cores take twice as long each, or far longer: OpenMP lets the threads of a
parallel region wait actively only while there are no more of them than cores, and every thread that calls in has a
team of its own. So a process has one thread for the models that cannot run side by side on a device (``workers.py``),
and forwards from elsewhere (requests without batching) wait for their turn here.

Whose turn it is, is decided where the device falls free. All live requests then wait for one model or another, and a
forward costs a fixed part, however many share it, beside what its tokens cost. Let :math:`j` of :math:`B` requests
wait for the slow model, whose forwards have the fixed part :math:`a_s`, and the others for the fast one, :math:`a_f`.
A slow forward now wastes :math:`a_s (B - j)`: the others will need another. One more fast forward wastes
:math:`a_f j`, since those who wait need theirs later. Nobody knows when the others will come, so the slow model waits
until it has lost what it might save, :math:`\\sum a_f j \\ge a_s (B - j)`: the rule of ski rental, which pays at most
twice what a clairvoyant would. It needs no rate of escalation, brings requests into step that are out of it (with
``every:K`` for good), and bounds the wait. ``benchmarks/turns.py --simulate`` compares it to running whatever waits,
to waiting for all, and to the best threshold on :math:`j` at a known rate (TokenRouter, arXiv 2610.12242, derives
that from a Markov model).
"""

from __future__ import annotations

import os
import statistics
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import combinations

from ..contracts.models import TokenModel
from ..support.waiting import holding

_SLACK = 1e-6  # shares are fractions of cores


def fit_together(first: TokenModel, second: TokenModel) -> bool:
    """Whether forwards of both can run at once without taking each other's cores."""
    one, other = first.capabilities, second.capabilities
    return one.device is None or one.device != other.device or one.device_share + other.device_share <= 1 + _SLACK


# --- one device ----------------------------------------------------------------------------------


class _Ticket:
    """Someone's place in the queue for a share of a device."""

    def __init__(self, share: float) -> None:
        self.share = min(share, 1.0)
        self.granted = False
        self.come = threading.Lock()
        self.come.acquire()


class Device:
    """Lets forwards of this process in while their shares of the device fit, first come first served."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free = 1.0
        self._waiting: deque[_Ticket] = deque()

    @contextmanager
    def turn(self, share: float) -> Iterator[None]:
        """Wait until that share is free, and take it."""
        ticket = _Ticket(share)
        try:
            with holding(self._lock):
                self._waiting.append(ticket)
                self._hand_on()
            ticket.come.acquire()
            yield
        finally:
            self._leave(ticket)  # also where Ctrl-C came while it waited

    def _hand_on(self) -> None:
        while self._waiting and self._waiting[0].share <= self._free + _SLACK:
            ticket = self._waiting.popleft()
            self._free -= ticket.share
            ticket.granted = True
            ticket.come.release()

    def _leave(self, ticket: _Ticket) -> None:
        with holding(self._lock):
            if ticket.granted:
                self._free += ticket.share
            elif ticket in self._waiting:
                self._waiting.remove(ticket)
            self._hand_on()


_devices: dict[tuple[int, str], Device] = {}
"""By process, too: a forked child has its parent's turns, but not the threads that would end them."""


def turn_of(model: TokenModel) -> AbstractContextManager[None]:
    """A model's turn on its device, for one forward. Forwards of a model that names no device never wait."""
    name = model.capabilities.device
    if name is None:
        return nullcontext()
    key = os.getpid(), name
    device = _devices.get(key) or _devices.setdefault(key, Device())
    return device.turn(model.capabilities.device_share)


# --- what forwards take --------------------------------------------------------------------------

_KEPT = 32
_REFIT = 8


class StepTimes:
    """Seconds of a model's last forwards by their tokens, and what of it does not grow with these."""

    def __init__(self) -> None:
        self._seen: deque[tuple[int, float]] = deque(maxlen=_KEPT)
        self._fresh = 0
        self._fixed: float | None = None
        self._usual = 0.0

    def add(self, tokens: int, seconds: float) -> None:
        self._seen.append((tokens, seconds))
        self._fresh += 1

    @property
    def fixed(self) -> float | None:
        """Seconds of a forward that are the same however many share it; None before the first one."""
        self._refit()
        return self._fixed

    @property
    def usual(self) -> float:
        """Median seconds of a forward."""
        self._refit()
        return self._usual

    def _refit(self) -> None:
        # When it is asked for, and not at every forward: a small model's takes no longer than this.
        if self._fresh >= _REFIT or (self._fresh and len(self._seen) <= _REFIT):
            self._fresh = 0
            self._fixed = fixed_seconds(self._seen)
            self._usual = statistics.median(seconds for _, seconds in self._seen)


def fixed_seconds(seen: Sequence[tuple[int, float]]) -> float:
    """The intercept of seconds over tokens, by the medians of Theil and Sen: a forward that stalled moves nothing.

    Where all had as many tokens, it is what they took.
    """
    slopes = [(y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in combinations(seen, 2) if x1 != x2]
    slope = max(statistics.median(slopes), 0.0) if slopes else 0.0
    return max(statistics.median(y - slope * x for x, y in seen), 0.0)


# --- whose turn it is ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Line:
    """Requests that wait for one model, where the device falls free."""

    blocked: int
    """Requests that can go on with no other model."""
    fixed: float | None
    """Seconds of a forward that are the same however many share it; None: not known yet."""
    usual: float
    """Seconds of a forward."""
    lost: float
    """Fixed seconds of forwards since its own last one that the blocked had no part in, each counted."""
    waited: float
    """Seconds that the first of the blocked has waited."""


def next_turn(lines: Sequence[Line], live: int) -> int:
    """The index of the line to be served next, of ``live`` requests altogether.

    The one with the least fixed cost, until another has waited long enough for those who are not in it yet.
    """
    cheapest, *others = sorted(range(len(lines)), key=lambda index: lines[index].fixed or 0.0)
    for index in reversed(others):
        if _is_due(lines[index], live):
            return index
    return cheapest


def _is_due(line: Line, live: int) -> bool:
    missing = live - line.blocked
    if not line.blocked:
        return False  # it reads ahead for requests that go on meanwhile
    if line.fixed is None or line.lost >= line.fixed * missing:
        return True
    # Others' prompts may be long: never longer than as many forwards of its own would take.
    return line.waited >= line.usual * missing
