"""The fast model's tokens that a rule may still take back are held back from the stream."""

from __future__ import annotations

from ..contracts.policy import Decision, checks_end
from ..records import Token
from ..rows.acceptance import Check
from ..rows.reading import Row
from .commands import Command
from .commit import at_the_end, commit, release
from .core import Core
from .escalation import escalate
from .spending import admitted
from .state import Held


def check_of(core: Core, draft: int, row: Row) -> Check | None:
    """What the slow model's row is to be asked about a draft that the fast one's row gave."""
    rule, position = core.method.rule, len(core.state.answer)
    if rule is None:
        return None
    greedy = core.request.warp.greedy
    return Check(
        token=draft,
        rule=rule,
        accept_uniform=0.0 if greedy else core.uniform(position, "accept"),
        residual_uniform=0.0 if greedy else core.uniform(position, "residual"),
        fast_logits=row.logits,
    )


def place(core: Core, record: Token, check: Check | None) -> list[Command]:
    """Put a token behind those that stand, for good or held back."""
    state = core.state
    state.answer.append(record.id)
    if core.method.rule is None or state.degraded is not None:
        return [*release(core, 0), commit(core, record)]
    if check is None and not state.held:  # there is nothing to judge, and nothing before it to be taken back
        return [commit(core, record)]
    state.held.append(Held(record, state.policy, check))
    if state.span_left > 0:
        return []
    if not at_the_end(core):
        return release(core, core.method.draft_len)
    if any(held.check for held in state.held) and checks_end(core.policy, core.context()):
        decision = admitted(core, Decision(True, reason="end of the answer"))
        if decision.escalate:
            escalate(core, decision)
            return []
    return release(core, 0)
