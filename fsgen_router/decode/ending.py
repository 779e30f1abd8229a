"""The answer ends: what is left of its text is shown, it may be audited, its record is made."""

from __future__ import annotations

from ..generation import Generation
from ..support.waiting import holding
from . import audit, spending
from .commands import Command, Emit
from .core import Core


def end(core: Core) -> list[Command]:
    """What is left to do when the answer stands; its record, when nothing is."""
    state = core.state
    emitted = [] if state.closed else _close(core)
    if state.jobs:
        return emitted  # reading ahead: a sequence is not given back under a forward
    if core.request.audit and state.degraded is None and core.generation is None:
        emitted += audit.ask(core)
    if not state.jobs:
        conclude(core)
    return emitted


def _close(core: Core) -> list[Command]:
    state = core.state
    tail = state.text.flush()
    state.shown.append(tail)
    core.policy.end(state.policy, core.ledger)
    state.closed = True
    return [Emit(tail, None)] if tail else []


def conclude(core: Core) -> None:
    """Make the answer's record, once."""
    state, usage = core.state, core.state.usage
    if core.generation is not None:
        return
    assert state.finish is not None
    if state.silences and not usage.slow_tokens:  # no call was left for a word of it
        state.degraded = state.degraded or state.silences[-1]
    known = [t for t in state.tokens if t.fast_choice is not None and t.slow_choice is not None]
    usage.compared = len(known)
    usage.disagreements = sum(t.fast_choice != t.slow_choice for t in known)
    _enter_in_ledger(core)
    text = "".join(state.shown)
    parse = core.request.parse if state.finish in ("eog", "stop") else None  # what was cut off may read as another
    parsed, parse_error = (None, None) if parse is None else parse(text)
    core.generation = Generation(
        text=text,
        tokens=tuple(state.tokens),
        usage=usage,
        finish_reason=state.finish,
        seed=core.request.seed,
        policy=core.policy.name,
        method=core.method.name,
        degraded=state.degraded or state.limited,
        reasoning="".join(state.reasoning),
        selection=state.selection,
        parsed=parsed,
        parse_error=parse_error,
    )


def settle(core: Core) -> None:
    """Enter in the ledger what a request that was given up, or failed, has spent all the same."""
    if core.generation is not None or not core.state.usage.decisions:
        return
    spending.count_left(core)
    if core.state.finish is None:
        core.policy.end(core.state.policy, core.ledger)
    _enter_in_ledger(core)


def _enter_in_ledger(core: Core) -> None:
    usage, ledger = core.state.usage, core.ledger
    spending.close(core)
    with holding(ledger.lock):
        ledger.requests += 1
        ledger.audits += usage.audited
        ledger.tokens += usage.tokens
        ledger.slow_tokens += usage.slow_tokens
        ledger.decisions += usage.decisions
        ledger.escalations += usage.escalations
        ledger.declined += usage.declined
