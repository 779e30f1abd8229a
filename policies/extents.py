"""What the slow model is asked for at an escalation, beyond a number of tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import get_args

from fsgen_router.contracts.policy import (
    REST,
    Context,
    Decision,
    Draft,
    Ledger,
    Policy,
    PolicyState,
    Until,
    checks_end,
    reads_hidden,
    rewound,
)
from fsgen_router.errors import ConfigurationError
from fsgen_router.rows.signals import Signals

from .basic import _check_extent

BOUNDARIES: tuple[Until, ...] = tuple(name for name in get_args(Until) if name)
DRAFTS: tuple[Draft, ...] = get_args(Draft)
MAX_SPAN = 64
"""Tokens: the most that a span to a boundary has where nothing else is said."""


@dataclass(frozen=True)
class Extended:
    """Any policy, with another extent of its escalations: ``inner`` says when, this says for how much.

    ``until`` ends a span at the first such boundary in it, after ``extent`` tokens at the latest. ``draft`` is what the
    slow model makes of the answer so far, where it is handed the rest: ``keep`` goes on with it; ``show`` and ``drop``
    begin the answer anew, with it in view as a draft to be judged, or without it.
    """

    inner: Policy
    extent: int = REST
    until: Until = ""
    draft: Draft = "keep"

    def __post_init__(self) -> None:
        _check_extent(self.extent)
        if self.until and self.until not in BOUNDARIES:
            raise ConfigurationError(
                f"unknown boundary {self.until!r} of a span",
                hint=f"available: {', '.join(BOUNDARIES)}, a number of tokens, or rest",
            )
        if self.draft not in DRAFTS:
            raise ConfigurationError(f"unknown draft={self.draft}", hint=f"available: {', '.join(DRAFTS)}")
        if self.draft != "keep" and (self.extent != REST or self.until):
            raise ConfigurationError(
                f"draft={self.draft} begins the answer anew, and a span is a part of it", hint="add span=rest"
            )

    @property
    def name(self) -> str:
        tokens = "rest" if self.extent == REST else self.extent
        span = f",span={self.until},max={tokens}" if self.until else f",span={tokens}"
        return self.inner.name + span + ("" if self.draft == "keep" else f",draft={self.draft}")

    @property
    def asks(self) -> bool:
        return self.inner.asks

    @property
    def reads_hidden(self) -> bool:
        return reads_hidden(self.inner)

    def begin(self, ledger: Ledger) -> PolicyState:
        return self.inner.begin(ledger)

    def decide(self, state: PolicyState, signals: Signals, context: Context) -> tuple[PolicyState, Decision]:
        state, decision = self.inner.decide(state, signals, context)
        if not decision.escalate:
            return state, decision
        return state, replace(decision, extent=self.extent, until=self.until, draft=self.draft)

    def checks_end(self, context: Context) -> bool:
        return checks_end(self.inner, context)

    def rewound(self, older: PolicyState, newer: PolicyState) -> PolicyState:
        return rewound(self.inner, older, newer)

    def end(self, state: PolicyState, ledger: Ledger) -> None:
        self.inner.end(state, ledger)
