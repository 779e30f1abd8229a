"""The fast model proposes a token, and the policy accepts it or escalates."""

from __future__ import annotations

import dataclasses

from ..contracts.policy import REST, Decision
from ..records import FinishReason, Token
from ..rows.reading import Row
from ..rows.signals import make_signals
from .commands import Command
from .commit import piece, release
from .core import Core
from .drafts import check_of, may_cut, place
from .escalation import escalate
from .restart import begin_anew
from .spending import admitted
from .state import Proposal


def hand_over(core: Core) -> None:
    """Give the whole answer to the slow model, where nothing that the fast one says could change that."""
    state = core.state
    if not core.hands_over or state.span_left or state.degraded is not None:
        return
    if len(state.answer) == state.usage.forced:  # before any choice
        decision = admitted(core, Decision(True, REST, reason="handed over"))
        core.hands_over = decision.escalate
        if decision.escalate:
            core.state.usage.decisions += 1
            escalate(core, decision)


def ask(core: Core) -> list[Command]:
    """Let the fast model propose."""
    if core.busy("fast"):
        return []
    whole = core.state.degraded is None
    read = core.choice(
        "fast",
        len(core.state.answer),
        signals=True,
        full=whole and "fast" in core.whole_rows,
        hidden=whole and core.reads_hidden,
    )
    # A model that is in this seat alone, as in a baseline, writes all that follows.
    more = 0 if core.policy.asks else core.left(core.request.max_tokens)
    return [core.read("fast", read, "propose", more=more)]


def proposed(core: Core, row: Row) -> list[Command]:
    """Its row came: signals for the policy, whose decision says who writes this token."""
    state = core.state
    signals = make_signals(row, core.vocabulary.class_of(row.token))
    if state.degraded is not None:
        return fast_stands(core, Proposal(row, signals, Decision(False, reason="degraded")))
    state.policy, decision = core.policy.decide(state.policy, signals, core.context())
    in_text = decision.escalate and core.request.text is not None
    word_over = in_text and may_cut(core, row.token, piece(core, row.token))
    if in_text:
        declined = core.unready() if word_over or state.text.complete else "inside a character"
        if declined is not None:
            decision = dataclasses.replace(decision, escalate=False, reason=declined)
    decision = admitted(core, decision)
    proposal = Proposal(row, signals.without_hidden(), decision)
    state.usage.decisions += 1
    if not decision.escalate:
        return fast_stands(core, proposal)
    escalate(core, decision)
    if state.anew and core.request.text is None:
        state.proposal = proposal
        return begin_anew(core)
    if core.method.rule is not None:
        return fast_stands(core, proposal)
    state.proposal = proposal
    if "fast" in core.method.roles:
        state.rows["fast"] = row
    # Else what is held back of a word gives way to the slow model's first one.
    return release(core, 0) if word_over and not state.anew else []


def fast_stands(core: Core, proposal: Proposal) -> list[Command]:
    """The fast model's token becomes part of the answer."""
    core.state.proposal = None
    row = proposal.row
    record = Token(
        id=row.token,
        piece=piece(core, row.token),
        source="fast",
        logprob=row.logprob,
        signals=proposal.signals,
        decision=proposal.decision,
        fast_choice=row.argmax,
        slow_choice=None,
    )
    return place(core, record, check_of(core, record.id, row))


def hand_back(core: Core, finish: FinishReason) -> list[Command]:
    """The slow model stops in mid-span: the fast one's token stands, if nothing came in its place, and it goes on.

    ``finish`` is how an answer ends that the slow model was to write alone.
    """
    state = core.state
    state.span_left, state.escalation = 0, None
    state.rows.clear()
    if core.request.alone and state.degraded is not None:
        state.proposal, state.finish = None, state.finish or finish
    return release(core, 0) if state.proposal is None else fast_stands(core, state.proposal)
