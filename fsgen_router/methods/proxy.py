"""Proxy tuning: what tuning changed of a small model is added to the large one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..contracts.methods import Draw
from ..contracts.models import Role
from ..rows.acceptance import Rule
from ..rows.reading import FORBIDDEN, Floats, Row
from .whole import require_range, whole

DEFAULT_PROXY_ALPHA = 1.0


@dataclass(frozen=True, slots=True)
class Proxy:
    """The slow model's logits, moved by what tuning changed of the fast one: l + alpha (s_ft - s).

    Emulator or proxy tuning (arXiv 2310.12962, arXiv 2401.08565), with l, s and s_ft the logits of the slow model,
    the fast one and a third, ``tuned``, on the same vocabulary: the fast model after its tuning. ``alpha`` of at
    least 0 is how much of the change is added: 0 is the slow model alone.

    ``swapped`` (short form ``proxy:fsgen``) is for the seats that FS-GEN's code gives its models: the tuned one
    writes, and its uncertainty is what the policy sees, so it sits in the fast seat, and the one before tuning in
    the ``tuned`` seat. Asked at every token the text is the same.

    Every token is drawn from these logits as the request draws. The fast model's row is read whole at each of its
    steps, the other two at each escalation: 4 bytes for each token of the vocabulary.
    Raises :class:`ConfigurationError` for an alpha out of range.
    """

    alpha: float = DEFAULT_PROXY_ALPHA
    swapped: bool = False
    rule: ClassVar[Rule | None] = None
    draft_len: ClassVar[int] = 0
    roles: ClassVar[tuple[Role, ...]] = ("fast", "slow", "tuned")
    whole_rows: ClassVar[tuple[Role, ...]] = ("fast", "slow", "tuned")

    def __post_init__(self) -> None:
        require_range("alpha", self.alpha, 0.0)

    @property
    def name(self) -> str:
        return f"proxy:{'fsgen,' if self.swapped else ''}alpha={self.alpha:g}"

    def choose(self, draft: int | None, rows: Mapping[Role, Row], draw: Draw) -> tuple[int, float]:
        fast, slow, tuned = (whole(rows, role) for role in self.roles)
        return draw(self.logits(tuned, slow, fast) if self.swapped else self.logits(fast, slow, tuned))

    def logits(self, fast: Floats, slow: Floats, tuned: Floats) -> Floats:
        """Logits of all tokens, float32 of shape (n_vocab,) as the three rows.

        A token that any backend rules out (-inf) stays ruled out.
        """
        with np.errstate(invalid="ignore"):  # -inf less -inf
            made = np.subtract(tuned, fast, dtype=np.float32)
            made *= self.alpha
            made += slow
        np.copyto(made, FORBIDDEN, where=~np.isfinite(made))
        return made
