"""Tokens that a constraint leaves no choice about."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from ..contracts.policy import FORCED, Decision
from ..records import Token
from .commands import Command
from .commit import at_the_end, piece
from .core import Core
from .drafts import place
from .request import check_forced, forced_by


def force(core: Core) -> list[Command]:
    """Place what a constraint leaves no choice about: no model is asked, no policy."""
    state = core.state
    handed_over = core.hands_over and not state.answer and state.degraded is None
    if core.request.text is not None and (state.span_left or handed_over):
        return []  # an endpoint writes this, and rather a whole answer than the rest of one
    if any(purpose != "ahead" for _, purpose, _ in state.jobs.values()):
        return []  # what is under way is about this position, which is not forced then
    emitted: list[Command] = []
    while not _over(core) and (run := _next(core)):
        for token in itertools.takewhile(lambda _: not _over(core), run):
            record = Token(
                id=token,
                piece=piece(core, token),
                source="fast",
                logprob=None,
                signals=None,
                decision=Decision(False, reason=FORCED),
                fast_choice=token,
                slow_choice=token,
            )
            emitted += place(core, record, None)
    return emitted


def _next(core: Core) -> Sequence[int]:
    """Tokens that the constraint leaves no choice about, from the next position on."""
    if ahead := forced_by(core.request.constraint, core.state.answer):
        check_forced(ahead, core.vocabulary.n_vocab)
        return ahead
    mask = core.mask(len(core.state.answer))
    token = None if mask is None else mask.forced()
    return () if token is None else (token,)


def _over(core: Core) -> bool:
    """Whether nothing can be placed: the answer has ended, or what is held back has to be judged first."""
    state = core.state
    return state.finish is not None or (bool(state.held) and at_the_end(core))
