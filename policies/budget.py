"""Hold an escalation rate over a Router's requests."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from fsgen_router.contracts.policy import Context, Decision, Ledger, PolicyState
from fsgen_router.errors import ConfigurationError
from fsgen_router.rows.signals import Signals

from .basic import SignalName, _check_extent, _suffix, read_signal


@dataclass(frozen=True)
class RateHold:
    """Online quantile tracking: a threshold that moves so that the share ``rate`` of scores lies above it.

    The threshold q follows the (1 - rate) quantile of the score: after each decision
    ``q += step * (escalated - rate)``, the adaptive conformal update of Gibbs and Candes
    (arXiv 2106.00170) in the quantile form of Angelopoulos et al. (arXiv 2307.16895). Summing it up,
    the rate over T decisions differs from ``rate`` by |q_T - q_0| / (step * T), whatever the texts
    are, as long as nothing else (a cap, a failure) overrules the policy.

    Each request works on its own copy of q and adds its change to the Router's when it ends, so
    concurrent requests are independent of each other's timing. One short answer may be far from the
    rate; that is what caps are for.

    ``step`` and ``start`` (q before the first decision) are in the score's unit; ``key`` names q in
    the ledger.
    """

    rate: float
    step: float
    start: float
    key: str

    def __post_init__(self) -> None:
        if not 0.0 <= self.rate <= 1.0:
            raise ConfigurationError(f"a rate of {self.rate}", hint="the rate is between 0 and 1")
        if not (self.step > 0 and math.isfinite(self.step) and math.isfinite(self.start)):
            raise ConfigurationError(f"a step of {self.step} from {self.start}", hint="above 0, in the score's unit")

    def begin(self, ledger: Ledger) -> float:
        """q at the beginning of a request."""
        return ledger.recall(self.key, self.start)

    def change(self, escalated: bool) -> float:
        """What a decision adds to q."""
        return self.step * (escalated - self.rate)

    def end(self, change: float, ledger: Ledger) -> None:
        """Enter a request's total change."""
        ledger.adjust(self.key, change, self.start)


@dataclass(frozen=True)
class Budget:
    """Escalate the most uncertain share ``rate`` of decisions; see :class:`RateHold`.

    ``scope`` names what kind of decisions these are, where they are not those at every token: such rates are held
    apart.
    """

    rate: float
    signal: SignalName = "entropy"
    step: float = 0.05
    start: float = 0.5
    extent: int = 1
    scope: str = ""

    def __post_init__(self) -> None:
        _check_extent(self.extent)
        if not 0.0 <= self.rate <= 1.0:
            raise ConfigurationError(f"budget:{self.rate}", hint="the rate is between 0 and 1")
        if self.signal not in ("entropy", "varentropy"):
            raise ConfigurationError(f"a budget cannot follow {self.signal!r}", hint="entropy or varentropy")
        if self.step <= 0:
            raise ConfigurationError(f"a step of {self.step}", hint="above 0, in the signal's unit")

    @property
    def name(self) -> str:
        return f"budget:{self.rate:g}" + _suffix(self.extent)

    @property
    def asks(self) -> bool:
        return True

    @cached_property
    def _hold(self) -> RateHold:
        return RateHold(self.rate, self.step, self.start, self._key)

    @property
    def _key(self) -> str:
        return f"budget/{self.signal}/{self.rate:g}" + (f"/{self.scope}" if self.scope else "")

    def begin(self, ledger: Ledger) -> PolicyState:
        return (self._hold.begin(ledger), 0.0)

    def decide(self, state: PolicyState, signals: Signals, context: Context) -> tuple[PolicyState, Decision]:
        first, change = state
        score, threshold = read_signal(self.signal)(signals), first + change
        escalate = score > threshold
        change += self._hold.change(escalate)
        return (first, change), Decision(escalate, self.extent, score, threshold, "budget")

    def rewound(self, older: PolicyState, newer: PolicyState) -> PolicyState:
        """Escalations count, whatever became of them."""
        return (older[0], newer[1])

    def end(self, state: PolicyState, ledger: Ledger) -> None:
        self._hold.end(state[1], ledger)
