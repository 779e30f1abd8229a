"""FS-GEN's oracle decoding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ..contracts.methods import Draw
from ..contracts.models import Role
from ..rows.acceptance import Rule
from ..rows.reading import Row


@dataclass(frozen=True, slots=True)
class Replace:
    """The slow model's token stands: FS-GEN's oracle decoding (arXiv 2406.12295, section 3)."""

    name: str = "replace"
    rule: Rule | None = None
    draft_len: int = 0
    roles: ClassVar[tuple[Role, ...]] = ("slow",)
    whole_rows: ClassVar[tuple[Role, ...]] = ()

    def choose(self, draft: int | None, rows: Mapping[Role, Row], draw: Draw) -> tuple[int, float]:
        slow = rows["slow"]
        return slow.token, slow.logprob
