"""The contract of a method: how a token is made where the slow model is asked, and of whose rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias

from ..rows.acceptance import Rule
from ..rows.reading import Floats, Row
from .models import Role

Draw: TypeAlias = Callable[[Floats], tuple[int, float]]
"""A token from logits of shape (n_vocab,), and its log-probability under them.

It is drawn as the request draws (temperature, top-k, ...), with the random number that belongs to the
position: the best one when greedy. What a mask forbids stays forbidden. ``Row.token`` was drawn from its
row with the same number.
"""


class Method(Protocol):
    """Decides which token stands at an escalated position, and what becomes of drafts before it."""

    @property
    def name(self) -> str:
        """The short form that makes this method again, or a description."""

    @property
    def roles(self) -> tuple[Role, ...]:
        """Whose rows :meth:`choose` gets, at every position that an escalation covers; ``("slow",)`` with a rule."""

    @property
    def whole_rows(self) -> tuple[Role, ...]:
        """Those of them whose whole row is read, as ``Row.logits``; of the others come a few numbers."""

    @property
    def rule(self) -> Rule | None:
        """How the slow model's rows judge drafted tokens; None: they do not."""

    @property
    def draft_len(self) -> int:
        """Drafted tokens held back from the stream, which a rule may still take back; 0 without a rule."""

    def choose(self, draft: int | None, rows: Mapping[Role, Row], draw: Draw) -> tuple[int, float]:
        """The token that is written, and its log-probability.

        ``draft`` is what the fast model would have written (None inside a span, where it was not
        asked, and behind drafts that were all accepted); its log-probability under another model is then
        ``rows[role].id_logprobs[0]``. ``rows`` holds ``roles`` and is not to be kept.
        """
