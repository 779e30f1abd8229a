"""A finished answer is read back, so that both models' choices are known at every position."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ..contracts.models import Role, Work
from ..rows.reading import Read, Row
from .commands import Command, Start
from .core import Core


def ask(core: Core) -> list[Command]:
    """One forward over the finished answer by each model whose choices are not all known, the slow one first.

    Nothing where all are.
    """
    for role in ("slow", "fast"):
        choices = (t.slow_choice if role == "slow" else t.fast_choice for t in core.state.tokens)
        if any(choice is None for choice in choices):
            return [_read_back(core, role)]
    core.state.usage.audited = True
    return []


def audited(core: Core, role: Role, rows: Sequence[Row]) -> None:
    """Fill in what was not known of a model's choices."""
    tokens = core.state.tokens
    for index, row in enumerate(rows):
        token = tokens[index]
        if role == "slow" and token.slow_choice is None:
            tokens[index] = dataclasses.replace(token, slow_choice=row.argmax)
        elif role == "fast" and token.fast_choice is None:
            tokens[index] = dataclasses.replace(token, fast_choice=row.argmax)


def _read_back(core: Core, role: Role) -> Start:
    reader = core.state.readers[role]
    start = len(core.state.prompts[role]) - 1
    if reader.sequence < 0:
        return core.open(role)
    keep = min(reader.seen, start)
    ids = core.ids(role, keep)[:-1]
    alignment = core.alignments.get(role)
    reads = [(start - keep + k, Read(mask=core.mask(k), alignment=alignment)) for k in range(len(core.state.answer))]
    reader.seen = keep + len(ids)
    core.state.usage.audit_positions += len(ids)
    return core.begin(role, Work(reader.sequence, keep, ids, reads), "audit")
