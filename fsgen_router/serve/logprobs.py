"""Log-probabilities of tokens, in nats, and whose they are.

A token's own is under the model that wrote it; the best others at its place are the fast model's, whose row is read
anyway, and known only where it was asked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ..generation import Generation
from ..records import Token
from ..rows.signals import TOP_K
from .dialect import Json

UNKNOWN = -9999.0
"""Of a token that no row gave: what other servers say, too."""
MAX_TOP = TOP_K


def shown(answer: Generation) -> list[Token]:
    """The tokens whose text is part of the answer: not its end, and nothing from a stop string on."""
    tokens, size, left = [], 0, len(answer.text.encode())
    for token in answer.tokens:
        if not token.piece or size >= left:
            continue
        tokens.append(token)
        size += len(token.piece)
    return tokens


def known(value: float | None) -> float:
    return value if value is not None and math.isfinite(value) else UNKNOWN


def entry(token: Token, top: int, text_of: Callable[[int], str]) -> Json:
    """A token as chat completions and responses have it, with whose log-probabilities are told."""
    return {
        "token": token.text,
        "logprob": known(token.logprob),
        "bytes": list(token.piece),
        "top_logprobs": [
            {"token": text, "logprob": value, "bytes": list(text.encode())} for text, value in best(token, top, text_of)
        ],
        "fsgen": {"logprob_of": token.source, "top_logprobs_of": "fast"},
    }


def best(token: Token, top: int, text_of: Callable[[int], str]) -> list[tuple[str, float]]:
    """The fast model's best tokens at a token's place."""
    if token.signals is None:
        return []
    pairs = zip(token.signals.top_ids, token.signals.top_logprobs, strict=True)
    return [(text_of(one), known(value)) for one, value in list(pairs)[:top]]


def entries(tokens: Sequence[Token], top: int, text_of: Callable[[int], str]) -> list[Json]:
    return [entry(token, top, text_of) for token in tokens]
