"""How much of what an endpoint says is of the form that the answer has to have."""

from __future__ import annotations

from .core import Core
from .request import accepted_by

_TOKEN = 32
"""Characters of a token, about: of one that does not fit, a beginning may."""


def fitting(core: Core) -> int:
    """Characters of what was said that may stand, by the request's constraint. No answer begins with white space."""
    state, constraint = core.state, core.request.constraint
    if constraint is None:
        return len(state.span_text)
    standing = [] if state.anew else state.tokens
    if not standing and not state.span_fit:
        state.span_text = state.span_text.lstrip()
    ids, heard, known = [token.id for token in standing], state.span_text, state.span_fit
    before = b"".join(token.piece for token in standing).decode(errors="replace") + heard[:known]

    def fits(stop: int) -> tuple[list[int], int]:
        """The tokens up to there of what is new, and how many of them fit."""
        new = core.vocabulary.encode_after(before, heard[known:stop])
        return new, accepted_by(constraint, [*ids, *state.span_ids], new)

    stop = len(heard)
    new, count = fits(stop)
    if count < len(new):
        whole = b"".join(map(core.vocabulary.piece, new[:count])).decode(errors="ignore")
        stop, (new, count) = min(known + len(whole) + _TOKEN, stop), ([], -1)
        while stop > known and count < len(new):
            stop -= 1
            new, count = fits(stop) if stop > known else ([], 0)
    state.span_ids += new
    state.span_fit = stop
    return stop


def may_end(core: Core) -> bool:
    """Whether the answer may end where it stands."""
    mask = core.mask(len(core.state.answer))
    return mask is None or mask.allowed is None or bool(mask.allowed[[*core.vocabulary.eog_ids]].any())
