"""Slow models that you serve, asked in token ids over HTTP: vLLM, SGLang (extra ``openai``).

A :class:`~fsgen_router.contracts.models.TokenModel` whose rows come from an unmodified server: it takes ids, and tells
of each position the best tokens with their log-probabilities and that of the token which stands there. So it can judge
a draft in one call, audit answers and label them for calibration. It tells no whole row, no entropy of one and no
hidden state: what needs those is refused when a Router is built.

:mod:`.dialects` are the shapes of what servers are asked and answer, :mod:`.server` asks them and finds out which one a
server speaks, :mod:`.vocabulary` compares its ids with the fast model's, :mod:`.reading` makes rows of the best tokens,
:mod:`.options` say how it is asked, and :mod:`.model` puts them together. Connections, keys, deadlines and retries are
those of :mod:`fsgen_router.adapters.openai`.
"""

from ..openai import EndpointError  # which names the extra where it is missing
from .dialects import DIALECTS, Best, Dialect, Question, Reply
from .model import TokensModel
from .options import TokensKeywords, TokensOptions

__all__ = [
    "DIALECTS",
    "Best",
    "Dialect",
    "EndpointError",
    "Question",
    "Reply",
    "TokensKeywords",
    "TokensModel",
    "TokensOptions",
]
