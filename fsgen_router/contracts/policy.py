"""The contract of a policy: when the slow model is asked, and for how much."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol, TypeAlias, TypeVar

from ..rows.signals import Signals
from ..support.waiting import holding
from .billing import Billed

T = TypeVar("T")

REST: Final = -1
"""Extent of an escalation that hands over the rest of the answer."""

CAP: Final = "cap on "
"""How the reason of a decision begins that a cap declined: the answer says so then (``degraded``)."""

FORCED: Final = "forced"
"""The reason of a decision that nobody took: a constraint left one choice."""

Until: TypeAlias = Literal["", "sentence", "line", "step"]
"""Where a span may end before its number of tokens: nowhere, or at the first such boundary in it."""

Draft: TypeAlias = Literal["keep", "show", "drop"]
"""What the slow model makes of the answer so far: goes on with it, judges it as a draft, or never sees it."""

PolicyState: TypeAlias = Any
"""An immutable value, kept per position: a rewind restores it by keeping the older one."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Accept the fast model's token, or escalate.

    ``extent`` is the number of tokens that the slow model then writes at most (``REST``: all that follow); with
    ``until`` it stops at the first such boundary. ``score`` and ``threshold`` are what was compared, in the policy's
    own unit. With ``draft`` other than ``keep`` the slow model begins the answer anew.
    """

    escalate: bool
    extent: int = 1
    score: float | None = None
    threshold: float | None = None
    reason: str = ""
    until: Until = ""
    draft: Draft = "keep"


@dataclass(frozen=True, slots=True)
class InCall:
    """A position in a tool call: in its ``name`` (``tool`` is not known before that is whole), or in its arguments."""

    tool: str | None
    part: Literal["name", "arguments"]


@dataclass(frozen=True, slots=True)
class Context:
    """What a policy may know beside the signals.

    ``position`` counts the answer's tokens from 0; ``since_escalation`` those since the slow model
    last wrote (or since the beginning); ``slow_calls`` and ``slow_tokens`` are this request's so far;
    ``uniform()`` is a number in [0, 1) that depends on seed, request and position alone; ``call`` says where in a tool
    call the position is, None outside of one.
    """

    position: int
    since_escalation: int
    slow_calls: int
    slow_tokens: int
    uniform: Callable[[], float]
    call: InCall | None = None


@dataclass(slots=True)
class Savings:
    """Requests that were answered twice, routed and by the slow model alone: what both cost, as measured.

    ``right`` and ``slow_right`` are sums of what a checker said of both answers (``checked`` pairs of them).
    """

    requests: int = 0
    usd: float = 0.0
    slow_usd: float = 0.0
    seconds: float = 0.0
    slow_seconds: float = 0.0
    same_text: int = 0
    checked: int = 0
    right: float = 0.0
    slow_right: float = 0.0

    @property
    def saving(self) -> float | None:
        """1 - routed / slow-only, in money: negative where routing cost more, None where nothing was priced."""
        return 1.0 - self.usd / self.slow_usd if self.slow_usd else None


@dataclass(slots=True)
class Ledger:
    """What is never rewound: a Router's running totals, and policies' memory across requests."""

    requests: int = 0
    audits: int = 0
    tokens: int = 0
    slow_tokens: int = 0
    decisions: int = 0
    escalations: int = 0
    declined: int = 0
    billed: Billed = field(default_factory=Billed)
    """What an endpoint bills for all of them, baselines included."""
    cost_usd: float | None = None
    """What that costs, at the prices of each request; None where none was priced."""
    savings: Savings = field(default_factory=Savings)
    """Of the requests that were also asked of the slow model whole."""
    memory: dict[str, Any] = field(default_factory=dict)
    # A stream may be collected, and so settled, in the middle of anything.
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    def bill(self, billed: Billed, usd: float | None) -> None:
        """Enter what an endpoint bills, and what that costs where somebody knows."""
        with holding(self.lock):
            self.billed.add(billed)
            if usd is not None:
                self.cost_usd = (self.cost_usd or 0.0) + usd

    def recall(self, key: str, default: T) -> T:
        with holding(self.lock):
            value: T = self.memory.get(key, default)
            return value

    def adjust(self, key: str, change: float, default: float) -> None:
        """Add to a remembered number. Sums commute, so concurrent requests lose nothing."""
        self.revise(key, lambda value: value + change, default)

    def revise(self, key: str, change: Callable[[T], T], default: T) -> T:
        """Replace a remembered, immutable value by ``change`` of it, and return the new one.

        ``change`` runs under the lock: it is short, and asks nothing of this ledger.
        """
        with holding(self.lock):
            value = self.memory[key] = change(self.memory.get(key, default))
            return value


class Policy(Protocol):
    """Maps (state, signals, context) to (state, decision); one object serves every request.

    A policy whose ``checks_end`` is true has drafts judged before they end an answer, where the method
    judges drafts at all (see :func:`checks_end`). One with a method ``rewound`` keeps a part of its state
    over a rewind (see :func:`rewound`). One whose ``reads_hidden`` is true finds the fast model's hidden state
    in ``Signals.hidden`` (see :func:`reads_hidden`). One whose ``hands_over`` is true gives every answer to the slow
    model from its first token on, whatever the fast one would say (see :func:`hands_over`).
    """

    @property
    def name(self) -> str:
        """The short form that makes this policy again, or a description."""

    @property
    def asks(self) -> bool:
        """False when it never escalates, so that no slow model is needed."""

    def begin(self, ledger: Ledger) -> PolicyState:
        """The state before a request's first token."""

    def decide(self, state: PolicyState, signals: Signals, context: Context) -> tuple[PolicyState, Decision]:
        """Called once for each position at which the fast model proposes a token."""

    def end(self, state: PolicyState, ledger: Ledger) -> None:
        """Called once with the last state when a request is over."""


def checks_end(policy: Policy, context: Context) -> bool:
    """Whether drafts are to be judged before they end an answer.

    What the policy's ``checks_end`` says: a bool, or a method of the context where that depends on what was
    spent so far.
    """
    own: bool | Callable[[Context], bool] = getattr(policy, "checks_end", False)
    return own(context) if callable(own) else own


def reads_hidden(policy: Policy) -> bool:
    """Whether the fast model's hidden state is to be read at every position for this policy."""
    return bool(getattr(policy, "reads_hidden", False))


def hands_over(policy: Policy) -> bool:
    """Whether every answer goes to the slow model whole, so that the fast one need not read the prompt to decide."""
    return bool(getattr(policy, "hands_over", False))


def limited(policy: Policy, decision: Decision, context: Context) -> Decision:
    """An escalation that is not the policy's own, as its caps let it stand."""
    own: Callable[[Decision, Context], Decision] | None = getattr(policy, "limit", None)
    return decision if own is None else own(decision, context)


def rewound(policy: Policy, older: PolicyState, newer: PolicyState) -> PolicyState:
    """The state to go on with when a rewind takes an answer with the state ``newer`` back to ``older``.

    That is ``older``, unless the policy's own ``rewound(older, newer)`` says otherwise: a rate controller
    has to count escalations also where what they led to was discarded.
    """
    own: Callable[[PolicyState, PolicyState], PolicyState] | None = getattr(policy, "rewound", None)
    return older if own is None else own(older, newer)
