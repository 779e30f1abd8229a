"""Which tokens a score sends to the slow model, and which it leaves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..contracts.tokenizer import Tokenizer
from ..evaluation import Array
from .traces import Traces

_OFTEN = 5
_CONTEXT = 12


@dataclass(frozen=True, slots=True)
class TokenUse:
    """A token that the fast model proposes, over all places where it does.

    ``escalated`` and ``disagreeing`` are shares of its ``count`` places; the example is the place with
    the highest score: the text before it, and what the slow model would write there.
    """

    text: str
    count: int
    mean_score: float
    escalated: float
    disagreeing: float
    before: str
    slow_text: str


def token_uses(
    traces: Traces, scores: Array, threshold: float, tokenizer: Tokenizer, *, shown: int = 15
) -> tuple[tuple[TokenUse, ...], tuple[TokenUse, ...]]:
    """The most and the least escalated of the tokens that are proposed at least five times."""
    ids, at, counts = np.unique(traces.fast_choice, return_inverse=True, return_counts=True)
    means = np.bincount(at, scores) / counts
    often = np.flatnonzero(counts >= min(_OFTEN, counts.max()))
    order = often[np.argsort(-means[often], kind="stable")]
    begins = np.flatnonzero(traces.position == 0)[traces.answer]

    def use(number: int) -> TokenUse:
        places = np.flatnonzero(at == number)
        example = int(places[np.argmax(scores[places])])
        start = max(int(begins[example]), example - _CONTEXT)
        return TokenUse(
            text=_text(tokenizer, [int(ids[number])]),
            count=len(places),
            mean_score=float(means[number]),
            escalated=float(np.mean(scores[places] > threshold)),
            disagreeing=float(np.mean(traces.fast_choice[places] != traces.slow_choice[places])),
            before=_text(tokenizer, traces.token[start:example].tolist()),
            slow_text=_text(tokenizer, [int(traces.slow_choice[example])]),
        )

    return tuple(map(use, order[:shown].tolist())), tuple(map(use, order[::-1][:shown].tolist()))


def _text(tokenizer: Tokenizer, ids: list[int]) -> str:
    return b"".join(tokenizer.piece(token) for token in ids).decode(errors="replace")
