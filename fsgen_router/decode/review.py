"""A whole answer is looked at once more before it stands: one that fails is the slow model's to write."""

from __future__ import annotations

from ..contracts.policy import REST, Decision, limited
from .commands import Command
from .core import Core
from .escalation import escalate
from .restart import begin_anew, draft_of
from .spending import admitted


def judge(core: Core) -> list[Command]:
    """Where fault is found with the answer's tool calls, hand it over: the draft is dropped. Once."""
    state, calls = core.state, core.request.calls
    if calls is None or state.reviewed or state.degraded is not None or not core.policy.asks:
        return []
    state.reviewed = True
    fault = calls.review(draft_of(core))
    if fault is None:
        return []
    state.usage.decisions += 1
    decision = Decision(True, REST, reason=fault, draft="drop")
    decision = admitted(core, limited(core.policy, decision, core.context()))
    if not decision.escalate:
        return []
    state.finish = None
    escalate(core, decision)
    return begin_anew(core) if core.request.text is None else []
