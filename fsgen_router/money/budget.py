"""Caps on what the slow model may spend, shared by requests in any number of threads: reserved first, then settled."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, fields

from ..contracts.policy import CAP
from ..errors import ConfigurationError
from ..support.waiting import holding


@dataclass(frozen=True, slots=True)
class Spending:
    """What the slow model spends: US dollars, calls (escalations), tokens that it writes, seconds that it takes."""

    usd: float = 0.0
    slow_calls: int = 0
    slow_tokens: int = 0
    seconds: float = 0.0

    def __add__(self, other: Spending) -> Spending:
        return Spending(*(getattr(self, name) + getattr(other, name) for name in _KINDS))

    def __sub__(self, other: Spending) -> Spending:
        return Spending(*(getattr(self, name) - getattr(other, name) for name in _KINDS))


_KINDS = tuple(one.name for one in fields(Spending))
_NONE = Spending()


class Budget:
    """What the slow model may spend on all that shares this object: a Router's requests, or several Routers'.

    ``usd`` US dollars, ``slow_calls`` escalations, ``slow_tokens`` tokens that it writes and ``seconds`` that it takes;
    None: no cap, 0: it is never asked. Where a cap is reached answers go on: the fast model finishes them, and
    ``degraded`` says which cap it was.

    A call is decided before it is made, by the most that it may cost: that much is reserved, and what it did cost is
    entered behind it, so requests at the same time cannot spend one remainder twice. Safe from any thread.

    Raises :class:`ConfigurationError` for a cap that is negative or no number.
    """

    def __init__(
        self,
        *,
        usd: float | None = None,
        slow_calls: int | None = None,
        slow_tokens: int | None = None,
        seconds: float | None = None,
    ) -> None:
        self._caps: dict[str, float] = {}
        for name, cap in zip(_KINDS, (usd, slow_calls, slow_tokens, seconds), strict=True):
            whole = name in ("slow_calls", "slow_tokens")
            if cap is None:
                continue
            if isinstance(cap, bool) or not isinstance(cap, int if whole else int | float) or not 0 <= cap < math.inf:
                kind = "a whole number" if whole else "a number"
                raise ConfigurationError(f"a budget of {name}={cap!r}", hint=f"{kind}, at least 0, or None for no cap")
            self._caps[name] = cap
        self._lock = threading.RLock()
        self._spent = self._reserved = _NONE

    def __repr__(self) -> str:
        caps = ", ".join(f"{name}={cap:g}" for name, cap in self._caps.items())
        return f"Budget({caps})"

    def caps(self, kind: str) -> bool:
        """Whether there is a cap on this kind of spending."""
        return kind in self._caps

    @property
    def spent(self) -> Spending:
        """What was spent so far, by requests that are over or between two calls."""
        with holding(self._lock):
            return self._spent

    @property
    def reserved(self) -> Spending:
        """What calls under way may cost at most."""
        with holding(self._lock):
            return self._reserved

    def left(self, kind: str) -> float:
        """What is neither spent nor reserved; infinite where there is no cap."""
        with holding(self._lock):
            return self._left(kind)

    def _left(self, kind: str) -> float:
        taken: float = getattr(self._spent, kind) + getattr(self._reserved, kind)
        return self._caps.get(kind, math.inf) - taken

    def reserve(self, wanted: Spending) -> str | None:
        """Set so much aside; where a cap does not allow that, nothing, and the reason is returned."""
        with holding(self._lock):
            for kind, cap in self._caps.items():
                # A cap of 0 is reached by whoever asks, also where a call would cost nothing.
                if cap == 0 or getattr(wanted, kind) > self._left(kind) + 1e-12:
                    return self.reason(kind)
            self._reserved += wanted
            return None

    def reason(self, kind: str) -> str:
        """What an answer says that this cap has held back."""
        return f"{CAP}{_NAMES[kind]}: {self._caps[kind]:g}"

    def settle(self, reserved: Spending, spent: Spending) -> None:
        """Give a reservation back, and enter what was spent."""
        with holding(self._lock):
            self._reserved -= reserved
            self._spent += spent


_NAMES = {"usd": "US dollars", "slow_calls": "slow calls", "slow_tokens": "slow tokens", "seconds": "slow seconds"}


class Purse:
    """One request's hand in the budgets that it is under. One thread at a time."""

    def __init__(self, budgets: Sequence[Budget], *, holds: bool = True) -> None:
        self._budgets, self._holds = tuple(budgets), holds
        self._reserved = self._entered = _NONE

    def under(self, *budgets: Budget) -> Purse:
        """Another one, under these too."""
        return Purse((*self._budgets, *budgets))

    def open(self) -> Purse:
        """Another one, whose spending is entered and never refused."""
        return Purse(self._budgets, holds=False)

    @property
    def capped(self) -> bool:
        """Whether a call may be refused."""
        return self._holds and bool(self._budgets)

    @property
    def empty(self) -> bool:
        """Whether nothing is to be entered anywhere."""
        return not self._budgets

    @property
    def exhausted(self) -> bool:
        """Whether a cap leaves nothing."""
        return any(budget.left(kind) <= 0 for budget in self._budgets for kind in _KINDS)

    def caps(self, kind: str) -> bool:
        return any(budget.caps(kind) for budget in self._budgets)

    def left(self, kind: str) -> float:
        return min((budget.left(kind) for budget in self._budgets), default=math.inf)

    def granted(self, kind: str) -> float:
        """What a call under way may take of it: what is left, and what this request has set aside."""
        return self.left(kind) + float(getattr(self._reserved, kind))

    def reason(self, kind: str) -> str:
        """What an answer says that the cap with least left of it has held back."""
        capped = [budget for budget in self._budgets if budget.caps(kind)]
        return min(capped, key=lambda budget: budget.left(kind)).reason(kind)

    def reserve(self, wanted: Spending) -> str | None:
        """Set so much aside in all budgets, or in none: the reason why not."""
        taken: list[Budget] = []
        for budget in self._budgets:
            reason = budget.reserve(wanted)
            if reason is not None:
                for other in taken:
                    other.settle(wanted, _NONE)
                return reason
            taken.append(budget)
        self._reserved += wanted
        return None

    def settle(self, total: Spending) -> None:
        """Enter what the request has spent by now, and give back what was reserved for it."""
        reserved, spent = self._reserved, total - self._entered
        self._reserved, self._entered = _NONE, total
        for budget in self._budgets:
            budget.settle(reserved, spent)

    def enter(self, spent: Spending) -> None:
        """Enter what is heard of when the request is over."""
        for budget in self._budgets:
            budget.settle(_NONE, spent)
