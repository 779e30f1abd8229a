"""Tokens that a mask leaves no choice about."""

from __future__ import annotations

from ..contracts.policy import Decision
from ..records import Token
from .commands import Command
from .commit import at_the_end, piece
from .core import Core
from .drafts import place


def force(core: Core) -> list[Command]:
    """Place what a mask leaves no choice about: no model is asked, no policy."""
    state = core.state
    if any(purpose != "ahead" for _, purpose, _ in state.jobs.values()):
        return []  # what is under way is about this position, which is not forced then
    emitted: list[Command] = []
    while state.finish is None:
        if state.held and at_the_end(core):
            break  # what is held back has to be judged first
        mask = core.mask(len(state.answer))
        token = None if mask is None else mask.forced()
        if token is None:
            break
        record = Token(
            id=token,
            piece=piece(core, token),
            source="fast",
            logprob=None,
            signals=None,
            decision=Decision(False, reason="forced"),
            fast_choice=token,
            slow_choice=token,
        )
        emitted += place(core, record, None)
    return emitted
