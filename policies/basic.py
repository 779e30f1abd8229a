"""Policies that need no training."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeAlias, get_args

from fsgen_router.contracts.policy import (
    CAP,
    REST,
    Context,
    Decision,
    Ledger,
    Policy,
    PolicyState,
    checks_end,
    hands_over,
    reads_hidden,
    rewound,
)
from fsgen_router.errors import ConfigurationError
from fsgen_router.rows.signals import Signals

SignalName: TypeAlias = Literal["entropy", "varentropy", "max_prob", "margin", "delta"]
THRESHOLDS: tuple[SignalName, ...] = get_args(SignalName)
"""Signals that a threshold may be set on. ``delta``, (p1 - p2) / 2, is FS-GEN's: half the margin."""
SIGNALS: tuple[SignalName, ...] = tuple(name for name in THRESHOLDS if name != "delta")
"""Those that order positions differently."""

_READERS: dict[SignalName, Callable[[Signals], float]] = {
    "entropy": operator.attrgetter("entropy_nats"),
    "varentropy": operator.attrgetter("varentropy"),
    "max_prob": operator.attrgetter("max_prob"),
    "margin": operator.attrgetter("margin"),
    "delta": lambda signals: signals.margin / 2,
}


def read_signal(name: SignalName) -> Callable[[Signals], float]:
    """The function that reads one signal: entropy (nats), varentropy, max_prob, margin or delta."""
    if name not in _READERS:
        raise ConfigurationError(f"unknown signal {name!r}", hint=f"available: {', '.join(THRESHOLDS)}")
    return _READERS[name]


def _check_extent(extent: int) -> None:
    if extent < 1 and extent != REST:
        raise ConfigurationError(f"an extent of {extent} tokens", hint="at least 1, or REST")


def _suffix(extent: int, window: int = 1) -> str:
    span = "" if extent == 1 else f",span={'rest' if extent == REST else extent}"
    return span + (f",window={window}" if window > 1 else "")


class _Stateless:
    """A policy that remembers nothing."""

    asks = True

    def begin(self, ledger: Ledger) -> PolicyState:
        return None

    def end(self, state: PolicyState, ledger: Ledger) -> None:
        return None


@dataclass(frozen=True)
class Never(_Stateless):
    """The fast model alone."""

    asks = False

    @property
    def name(self) -> str:
        return "never"

    def decide(self, state: PolicyState, signals: Signals, context: Context) -> tuple[PolicyState, Decision]:
        return state, _ACCEPT_NEVER


_ACCEPT_NEVER = Decision(False, reason="never")


@dataclass(frozen=True)
class Always(_Stateless):
    """The slow model at every token; ``extent=REST`` hands the whole answer over."""

    extent: int = 1

    def __post_init__(self) -> None:
        _check_extent(self.extent)

    @property
    def name(self) -> str:
        return "always" + _suffix(self.extent)

    @property
    def hands_over(self) -> bool:
        return self.extent == REST

    def decide(self, state: PolicyState, signals: Signals, context: Context) -> tuple[PolicyState, Decision]:
        return state, Decision(True, self.extent, reason="always")


@dataclass(frozen=True)
class Every(_Stateless):
    """Escalate after every ``interval - 1`` tokens of the fast model.

    With a method that judges drafts, also at the end of the answer, so that none is left unjudged: with
    ``verify:exact`` this is speculative decoding (Leviathan et al., arXiv 2211.17192).
    """

    interval: int
    extent: int = 1
    checks_end: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_extent(self.extent)
        if self.interval < 1:
            raise ConfigurationError(f"every:{self.interval}", hint="the interval is at least 1")

    @property
    def name(self) -> str:
        return f"every:{self.interval}" + _suffix(self.extent)

    def decide(self, state: PolicyState, signals: Signals, context: Context) -> tuple[PolicyState, Decision]:
        due = context.since_escalation + 1 >= self.interval
        return state, Decision(due, self.extent, context.since_escalation + 1, self.interval, "every")


@dataclass(frozen=True)
class Random(_Stateless):
    """Escalate with a fixed probability: the baseline that any signal has to beat."""

    rate: float
    extent: int = 1

    def __post_init__(self) -> None:
        _check_extent(self.extent)
        if not 0.0 <= self.rate <= 1.0:
            raise ConfigurationError(f"random:{self.rate}", hint="the rate is between 0 and 1")

    @property
    def name(self) -> str:
        return f"random:{self.rate:g}" + _suffix(self.extent)

    def decide(self, state: PolicyState, signals: Signals, context: Context) -> tuple[PolicyState, Decision]:
        drawn = context.uniform()
        return state, Decision(drawn < self.rate, self.extent, drawn, self.rate, "random")


@dataclass(frozen=True)
class Threshold(_Stateless):
    """Escalate where a signal, averaged over the last ``window`` tokens, is beyond a threshold.

    ``above`` says on which side: entropy and varentropy are uncertain above, ``max_prob`` and
    ``margin`` (and ``delta``) below. With ``window`` > 1 the mean over a span of the fast model's own tokens is
    compared; an escalation begins a new span.
    """

    signal: SignalName
    value: float
    above: bool
    extent: int = 1
    window: int = 1

    def __post_init__(self) -> None:
        _check_extent(self.extent)
        if self.window < 1:
            raise ConfigurationError(f"a window of {self.window} tokens", hint="at least 1")
        read_signal(self.signal)

    @property
    def name(self) -> str:
        return f"{self.signal}{'>' if self.above else '<'}{self.value:g}" + _suffix(self.extent, self.window)

    def begin(self, ledger: Ledger) -> PolicyState:
        return ()

    def decide(self, state: PolicyState, signals: Signals, context: Context) -> tuple[PolicyState, Decision]:
        score = _READERS[self.signal](signals)
        if self.window > 1:
            state = (*state, score)[-self.window :]
            score = sum(state) / len(state)
        beyond = score > self.value if self.above else score < self.value
        return (() if beyond else state), Decision(beyond, self.extent, score, self.value, self.signal)

    def rewound(self, older: PolicyState, newer: PolicyState) -> PolicyState:
        """A new span: what was rejected is the slow model's token now, and an escalation led to it."""
        return ()


@dataclass(frozen=True)
class AtPrompt:
    """Decide once, at the first token, which model writes the whole answer: routing of queries.

    ``inner`` decides by the fast model's uncertainty about how the answer begins. Where it escalates, the slow
    model writes all of it (whatever the extent of ``inner``); otherwise it is never asked.
    """

    inner: Policy

    @property
    def name(self) -> str:
        return f"{self.inner.name},at=prompt"

    @property
    def asks(self) -> bool:
        return self.inner.asks

    @property
    def reads_hidden(self) -> bool:
        return reads_hidden(self.inner)

    def begin(self, ledger: Ledger) -> PolicyState:
        return False, self.inner.begin(ledger)

    def decide(self, state: PolicyState, signals: Signals, context: Context) -> tuple[PolicyState, Decision]:
        decided, inner = state
        if decided:
            return state, _ACCEPT_BEHIND_PROMPT
        # The first token that is one's own choice: what a mask forces says nothing.
        inner, decision = self.inner.decide(inner, signals, context)
        return (True, inner), replace(decision, extent=REST) if decision.escalate else decision

    def end(self, state: PolicyState, ledger: Ledger) -> None:
        self.inner.end(state[1], ledger)


_ACCEPT_BEHIND_PROMPT = Decision(False, reason="decided at the prompt")


@dataclass(frozen=True)
class Capped:
    """A guard around any policy: at most so many escalations and slow tokens in one request."""

    inner: Policy
    max_calls: int | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        for limit in (self.max_calls, self.max_tokens):
            if limit is not None and limit < 0:
                raise ConfigurationError(f"a cap of {limit}", hint="at least 0, or None for no cap")

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def asks(self) -> bool:
        return self.inner.asks

    @property
    def reads_hidden(self) -> bool:
        return reads_hidden(self.inner)

    @property
    def hands_over(self) -> bool:
        return self.max_calls != 0 and self.max_tokens is None and hands_over(self.inner)

    @property
    def method(self) -> str | None:
        """The method that the policy inside was calibrated with, where it knows one."""
        method: str | None = getattr(self.inner, "method", None)
        return method

    def begin(self, ledger: Ledger) -> PolicyState:
        return self.inner.begin(ledger)

    def decide(self, state: PolicyState, signals: Signals, context: Context) -> tuple[PolicyState, Decision]:
        state, decision = self.inner.decide(state, signals, context)
        return state, self.limit(decision, context)

    def limit(self, decision: Decision, context: Context) -> Decision:
        """An escalation, whoever wants it, as the caps let it stand."""
        if not decision.escalate:
            return decision
        if reached := self._reached(context):
            return Decision(False, 1, decision.score, decision.threshold, reached)
        if self.max_tokens is None:
            return decision
        left = self.max_tokens - context.slow_tokens
        return replace(decision, extent=left if decision.extent == REST else min(decision.extent, left))

    def _reached(self, context: Context) -> str:
        """The cap that leaves no further escalation; empty where none does."""
        if self.max_calls is not None and context.slow_calls >= self.max_calls:
            return f"{CAP}slow calls"
        if self.max_tokens is not None and context.slow_tokens >= self.max_tokens:
            return f"{CAP}slow tokens"
        return ""

    def checks_end(self, context: Context) -> bool:
        return not self._reached(context) and checks_end(self.inner, context)

    def rewound(self, older: PolicyState, newer: PolicyState) -> PolicyState:
        return rewound(self.inner, older, newer)

    def end(self, state: PolicyState, ledger: Ledger) -> None:
        self.inner.end(state, ledger)
