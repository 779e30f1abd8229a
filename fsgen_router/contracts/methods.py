"""The contract of a method: what the slow model's rows do at an escalation."""

from __future__ import annotations

from typing import Protocol

from ..rows.acceptance import Rule
from ..rows.reading import Row


class Method(Protocol):
    """Decides which token stands at an escalated position, and what becomes of drafts before it."""

    @property
    def name(self) -> str:
        """The short form that makes this method again, or a description."""

    @property
    def rule(self) -> Rule | None:
        """How the slow model's rows judge drafted tokens; None: they do not."""

    @property
    def draft_len(self) -> int:
        """Drafted tokens held back from the stream, which a rule may still take back; 0 without a rule."""

    def choose(self, draft: int | None, slow: Row) -> tuple[int, float]:
        """The token that the slow model writes, and its log-probability under it.

        ``draft`` is what the fast model would have written (None inside a span, where it was not
        asked, and behind drafts that were all accepted); its slow log-probability is then
        ``slow.id_logprobs[0]``.
        """
