"""The slow model reads what is held back, and a method's rule judges it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ..contracts.policy import rewound
from ..rows.acceptance import first_rejected
from ..rows.reading import Row
from .commands import Command
from .commit import at_the_end, commit
from .core import Core
from .drafts import take_back
from .escalation import stands


def ask(core: Core) -> list[Command]:
    """Let the slow model read all that it has not read, and judge what is held back."""
    if core.busy("slow"):
        return []
    state, reader = core.state, core.state.readers["slow"]
    if reader.sequence < 0:
        return [core.open("slow")]
    prompt, done = len(core.state.prompts["slow"]), len(state.tokens)
    # The row that judges a token is the one before it; nothing is read of the row behind the end.
    checks = [(done + k, held.check) for k, held in enumerate(state.held) if held.check]
    keep = min(reader.seen, prompt + (checks[0][0] if checks else len(state.answer)) - 1)
    ids = core.ids("slow", keep)
    reads = [
        (prompt + at - 1 - keep, core.choice("slow", at, signals=check.rule.gated, ids=(check.token,), check=check))
        for at, check in checks
    ]
    more = 0
    if at_the_end(core):
        ids = ids[:-1]
    else:
        reads.append((len(ids) - 1, core.choice("slow", len(state.answer))))
        more = core.left(state.span_left)
    return [core.work("slow", keep, ids, reads, "verify", more=more)]


def verified(core: Core, rows: Sequence[Row]) -> list[Command]:
    """Judge what is held back: the first rejected draft is replaced, what follows it is discarded."""
    state, judged = core.state, iter(rows)
    rejected = _rejected(core, rows)
    emitted: list[Command] = []
    while state.held:
        held = state.held[0]
        row = next(judged) if held.check else None
        if row is not None and row is rejected:
            state.usage.discarded_tokens += len(state.held)
            state.policy = rewound(core.policy, held.policy, state.policy)
            take_back(core, len(state.tokens))
            state.rows["slow"] = row
            emitted.append(stands(core, held.record.id, held.record))
            break
        state.held.pop(0)
        record = held.record
        if row is not None:
            record = dataclasses.replace(record, verified=True, slow_choice=row.argmax)
        emitted.append(commit(core, record))
    else:
        bonus = next(judged, None)
        if bonus is None:
            state.span_left = 0
        elif state.finish is None:
            state.usage.bonus_tokens += 1
            state.rows["slow"] = bonus
            emitted.append(stands(core, None, None))
    return emitted


def _rejected(core: Core, rows: Sequence[Row]) -> Row | None:
    """The row of the first draft that does not stand."""
    rule, count = core.method.rule, sum(held.check is not None for held in core.state.held)
    if rule is None:
        return None
    stand = first_rejected(rule, [bool(row.accepted) for row in rows[:count]], [row.entropy for row in rows[:count]])
    return rows[stand] if stand < count else None
