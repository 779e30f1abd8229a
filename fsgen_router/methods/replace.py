"""FS-GEN's oracle decoding."""

from __future__ import annotations

from dataclasses import dataclass

from ..rows.acceptance import Rule
from ..rows.reading import Row


@dataclass(frozen=True, slots=True)
class Replace:
    """The slow model's token stands: FS-GEN's oracle decoding (arXiv 2406.12295, section 3)."""

    name: str = "replace"
    rule: Rule | None = None
    draft_len: int = 0

    def choose(self, draft: int | None, slow: Row) -> tuple[int, float]:
        return slow.token, slow.logprob
