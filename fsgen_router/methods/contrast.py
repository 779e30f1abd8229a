"""Contrastive decoding: what the slow model likes, and more so where it likes it better than the fast one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias, get_args

import numpy as np

from ..contracts.methods import Draw
from ..contracts.models import Role
from ..errors import ConfigurationError
from ..rows.acceptance import Rule
from ..rows.reading import Floats, Row
from .whole import require_range, whole

FormName: TypeAlias = Literal["fsgen", "li", "obrien"]
FORMS: tuple[FormName, ...] = get_args(FormName)

DEFAULT_ALPHA, DEFAULT_BETA = 0.1, 0.5
"""FS-GEN's own: what its code (``utils.py`` of its repository) runs with."""


@dataclass(frozen=True, slots=True)
class Contrast:
    """The token is one of the slow model's likely ones, by a score made of both models' logits.

    With l and s the logits of slow and fast, the likely tokens v are those with l_v >= log(alpha) + max l, that is
    with at least ``alpha`` times the best one's probability. Their scores, by ``form``:

    - ``fsgen``: s + beta (l - s) (FS-GEN, arXiv 2406.12295). At 0 that is the fast model, of the likely tokens, at 1
      the slow one, and in between their average; above 1 the fast one counts against a token.
    - ``li``: log p_slow - log p_fast (Li et al., arXiv 2210.15097), without beta.
    - ``obrien``: (1 + beta) l - beta s (O'Brien and Lewis, arXiv 2309.09117). At 0 that is the slow model; it is
      ``fsgen`` with a beta greater by 1.

    ``alpha`` in [0, 1] says how implausible a token may be to the slow model: at 0 none is left out, at 1 all but
    its best. ``beta`` of at least 0 says how much the two are set against each other; 0.5 where it is
    left out. FS-GEN's beta of 0.5 makes an average and no contrast.

    Every token is drawn from these scores as the request draws, the best one when greedy. The fast model's row is
    read whole at each of its steps, the slow one's at each escalation: 4 bytes for each token of the vocabulary.
    Raises :class:`ConfigurationError` for numbers out of range.
    """

    form: FormName = "fsgen"
    alpha: float = DEFAULT_ALPHA
    beta: float | None = None
    rule: ClassVar[Rule | None] = None
    draft_len: ClassVar[int] = 0
    roles: ClassVar[tuple[Role, ...]] = ("fast", "slow")
    whole_rows: ClassVar[tuple[Role, ...]] = ("fast", "slow")

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ConfigurationError(f"unknown form {self.form!r} of contrast", hint=f"forms: {', '.join(FORMS)}")
        require_range("alpha", self.alpha, 0.0, 1.0)
        if self.form == "li":
            if self.beta is not None:
                raise ConfigurationError("beta with the form li of contrast", hint="fsgen and obrien have one")
            return
        if self.beta is None:
            object.__setattr__(self, "beta", DEFAULT_BETA)
        require_range("beta", self._beta, 0.0)

    @property
    def _beta(self) -> float:
        return DEFAULT_BETA if self.beta is None else self.beta

    @property
    def name(self) -> str:
        form = "" if self.form == "fsgen" else f"{self.form},"
        beta = "" if self.beta is None else f",beta={self.beta:g}"
        return f"contrast:{form}alpha={self.alpha:g}{beta}"

    def choose(self, draft: int | None, rows: Mapping[Role, Row], draw: Draw) -> tuple[int, float]:
        return draw(self.scores(whole(rows, "fast"), whole(rows, "slow")))

    def scores(self, fast: Floats, slow: Floats) -> Floats:
        """Scores of all tokens, float32 of shape (n_vocab,) as both rows of logits; -inf but for the likely ones.

        A token that the fast model's own backend rules out (-inf) is none of them.
        """
        writable = np.isfinite(fast)
        if not writable.all():
            slow = np.where(writable, slow, -np.inf)
        least = float(slow.max()) + (math.log(self.alpha) if self.alpha else -math.inf)
        # A handful of tokens, mostly: the sums below cost nothing beside looking through the row.
        likely = np.flatnonzero((slow >= least) & np.isfinite(slow))
        large, small = slow[likely], fast[likely]
        scores = np.full(len(slow), -np.inf, np.float32)
        match self.form:
            case "fsgen":
                scores[likely] = small + self._beta * (large - small)
            case "li":  # of softmaxes only the difference counts: log-partitions are the same for all tokens
                scores[likely] = large - small
            case "obrien":
                scores[likely] = (1 + self._beta) * large - self._beta * small
        return scores
