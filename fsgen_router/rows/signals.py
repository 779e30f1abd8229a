"""What a policy looks at. One function makes it, in training and in serving."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import cast

import numpy as np
import numpy.typing as npt

from ..json_forms import SignalsJson, finite
from .reading import Row

TOP_K = 8
"""How many of the best tokens signals hold."""


@dataclass(frozen=True, slots=True)
class Signals:
    """The fast model's view of one next token: after masks, before temperature.

    Probabilities are in [0, 1], entropy in nats, varentropy in nats squared; ``top_ids`` and
    ``top_logprobs`` are the ``TOP_K`` best, best first. ``token_id`` is the token that the fast model
    would write and ``token_class`` its :class:`~fsgen_router.contracts.tokenizer.TokenClass`. ``hidden`` is the fast
    model's last hidden state, float32 of shape (n_embd,), where the policy reads it; records of tokens leave
    it out.
    """

    token_id: int
    token_class: int
    entropy_nats: float
    varentropy: float
    max_prob: float
    margin: float
    log_partition: float
    top_ids: tuple[int, ...]
    top_logprobs: tuple[float, ...]
    hidden: npt.NDArray[np.float32] | None = field(default=None, repr=False, compare=False)

    @property
    def argmax(self) -> int:
        return self.top_ids[0]

    def to_dict(self) -> SignalsJson:
        """For JSON, without the hidden state."""
        record = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "hidden"}
        return cast(SignalsJson, finite(record))

    def without_hidden(self) -> Signals:
        """These signals as a record keeps them: n_embd numbers for every token of every answer are too many."""
        return self if self.hidden is None else replace(self, hidden=None)


def make_signals(row: Row, token_class: int) -> Signals:
    """Signals of a row that was read with ``signals=True`` and ``top_k=TOP_K``.

    ``margin`` is the probability of the best token minus that of the second.
    """
    best = math.exp(row.top_logprobs[0])
    second = math.exp(row.top_logprobs[1]) if len(row.top_logprobs) > 1 else 0.0
    return Signals(
        token_id=row.token,
        token_class=token_class,
        entropy_nats=row.entropy,
        varentropy=row.varentropy,
        max_prob=best,
        margin=best - second,
        log_partition=row.log_partition,
        top_ids=row.top_ids,
        top_logprobs=row.top_logprobs,
        hidden=row.hidden,
    )
