"""Another policy within the calls of some tools: what writes is looked at, what reads is not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

from fsgen_router.contracts.policy import (
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

VERIFY: Final = "verify"
OTHERS: Final = "*"
_EVERY = 8
"""Tokens of a call that are judged together."""


@dataclass(frozen=True, slots=True)
class _State:
    own: Mapping[str, PolicyState]
    """By tool; under an empty name the state of the policy outside."""
    unjudged: int = 0
    """Tokens of a call that has to be judged, since it was last."""


@dataclass(frozen=True)
class ByTool:
    """``inner``, and within calls of a tool the policy that ``tools`` has for it (``*``: for all that are not named).

    ``{"delete_file": "verify", "read_file": "never"}``: a policy, or ``"verify"``, which has the slow model judge the
    whole call, the tool's name included, several tokens at a time. That takes the method ``verify``: any other has the
    slow model write some of its tokens. Which tool is called is written under ``inner``.
    """

    inner: Policy | str
    tools: Mapping[str, Policy | str]

    def __post_init__(self) -> None:
        if not isinstance(self.tools, Mapping) or not self.tools:
            raise ConfigurationError(f"tools={self.tools!r}", hint='policies by tool: {"delete_file": "verify"}')
        for tool, policy in self._policies.items():
            if tool and hands_over(policy):
                raise ConfigurationError(
                    f"the policy {policy.name} of the tool {tool} hands whole answers over",
                    hint='"always" has the slow model write the call',
                )

    @cached_property
    def _policies(self) -> Mapping[str, Policy]:
        from .shortform import make_policy

        inside = {tool: make_policy(policy) for tool, policy in self.tools.items() if policy != VERIFY}
        return {"": make_policy(self.inner), **inside}

    @property
    def name(self) -> str:
        rules = [f"{tool}={VERIFY if tool not in self._policies else self._policies[tool].name}" for tool in self.tools]
        return f"{self._policies[''].name}; {'; '.join(rules)}"

    @property
    def asks(self) -> bool:
        return VERIFY in self.tools.values() or any(policy.asks for policy in self._policies.values())

    @property
    def reads_hidden(self) -> bool:
        return any(reads_hidden(policy) for policy in self._policies.values())

    def checks_end(self, context: Context) -> bool:
        return VERIFY in self.tools.values() or any(checks_end(one, context) for one in self._policies.values())

    def begin(self, ledger: Ledger) -> PolicyState:
        return _State({tool: policy.begin(ledger) for tool, policy in self._policies.items()})

    def decide(self, state: _State, signals: Signals, context: Context) -> tuple[_State, Decision]:
        tool = "" if context.call is None or context.call.tool is None else context.call.tool
        if tool and tool not in self.tools:
            tool = OTHERS if OTHERS in self.tools else ""
        if self.tools.get(tool) == VERIFY:
            due = state.unjudged % _EVERY == 0  # the first judges the tool's name too
            return replace(state, unjudged=state.unjudged + 1), Decision(due, reason=VERIFY)
        if state.unjudged:  # the call is over
            return replace(state, unjudged=0), Decision(True, reason=VERIFY)
        own, decision = self._policies[tool].decide(state.own[tool], signals, context)
        return replace(state, own={**state.own, tool: own}), decision

    def rewound(self, older: _State, newer: _State) -> _State:
        own = {tool: rewound(policy, older.own[tool], newer.own[tool]) for tool, policy in self._policies.items()}
        return replace(older, own=own)

    def end(self, state: _State, ledger: Ledger) -> None:
        for tool, policy in self._policies.items():
            policy.end(state.own[tool], ledger)
