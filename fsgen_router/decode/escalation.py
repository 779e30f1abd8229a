"""The slow model has the word: the method's rows of a position are gathered, and its token stands."""

from __future__ import annotations

from ..contracts.models import Role
from ..contracts.policy import REST, Decision, Until
from ..errors import ConfigurationError
from ..records import Token
from ..rows.reading import Row
from ..text.boundaries import end_of
from .commands import Command, Emit
from .commit import commit, piece
from .core import Core
from .state import Proposal


def escalate(core: Core, decision: Decision) -> None:
    """Give the slow model the word, for the decision's extent."""
    if decision.extent < 1 and decision.extent != REST:
        raise ConfigurationError(
            f"the policy {core.policy.name} escalates for {decision.extent} tokens", hint="at least 1, or REST"
        )
    core.state.usage.escalations += 1
    core.state.escalation, core.state.span_start = decision, -1
    core.state.anew = decision.draft != "keep" and bool(core.state.answer)
    core.state.span_left = core.room if decision.extent == REST else decision.extent


def ask(core: Core) -> list[Command]:
    """Start what the method reads of this position and has not got: works of several models at once."""
    state, position = core.state, len(core.state.answer)
    draft = () if state.proposal is None else (state.proposal.row.token,)
    return [
        core.read(
            role,
            core.choice(role, position, ids=draft, full=role in core.whole_rows),
            "answer",
            more=core.left(state.span_left) if core.method.roles == ("slow",) else 0,
        )
        for role in core.method.roles
        if role not in state.rows and not core.busy(role)
    ]


def answered(core: Core, role: Role, row: Row) -> list[Command]:
    """A row of this position came; with the last of them its token stands."""
    state = core.state
    if state.degraded is not None:
        return []  # the span was given up while this was read
    state.rows[role] = row
    if len(state.rows) < len(core.method.roles):
        return []
    proposal, state.proposal = state.proposal, None
    return [stands(core, proposal.row.token if proposal else None, proposal)]


def stands(core: Core, draft: int | None, fast: Proposal | Token | None) -> Emit:
    """The method's token of the rows becomes part of the answer; ``fast`` is what is known of the position."""
    state, rows = core.state, core.state.rows
    token, logprob = core.method.choose(draft, rows, core.draw)
    slow_row, fast_row = rows.get("slow"), fast.row if isinstance(fast, Proposal) else rows.get("fast")
    tuned_row = rows.get("tuned")
    rows.clear()
    if draft is not None:
        state.usage.corrections += token != draft
        state.usage.tuned_corrections += tuned_row is not None and token != tuned_row.token
    if isinstance(fast, Proposal):
        state.usage.discarded_tokens += token != draft
    state.span_left -= 1
    state.last_escalation = len(state.answer)
    if state.span_start < 0:
        state.span_start = len(state.answer)
    state.answer.append(token)
    emit = commit(
        core,
        Token(
            id=token,
            piece=piece(core, token),
            source="slow",
            logprob=logprob,
            signals=fast.signals if fast else None,
            decision=fast.decision if isinstance(fast, Token) else state.escalation,
            fast_choice=fast.fast_choice if isinstance(fast, Token) else fast_row.argmax if fast_row else None,
            slow_choice=slow_row.argmax if slow_row else None,
            tuned_choice=tuned_row.argmax if tuned_row else None,
        ),
    )
    if state.escalation is not None and state.escalation.until and _ended(core, state.escalation.until):
        state.span_left = 0
    return emit


def _ended(core: Core, until: Until) -> bool:
    """Whether the span has come to its boundary; the token that shows it stands."""
    span = core.state.tokens[core.state.span_start :]
    return end_of(b"".join(token.piece for token in span).decode(errors="ignore"), until) is not None
