"""What a comparison of modes found, for people and for programs."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..records import Prices
from ..support.machine import usable_cores
from .decision import Advice
from .figures import Figures, find
from .modes import Seat
from .words import headline, table


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """What :func:`recommend` found. ``evidence`` are plain sentences, ``python`` and ``options`` how to have the
    recommended mode in Python and on the command line."""

    advice: Advice
    figures: tuple[Figures, ...]
    evidence: tuple[str, ...]
    python: str
    options: str
    models: Mapping[Seat, str]
    source: str
    check: str
    prefer: str
    quality_loss: float
    at_once: int
    max_tokens: int
    seed: int
    notes: tuple[str, ...] = ()
    prices: Prices | None = None
    seconds: Mapping[str, float]

    @property
    def n(self) -> int:
        """Prompts."""
        return self.figures[0].n

    def __str__(self) -> str:
        sentences = "\n".join((f"{headline(self.advice)}.", *self.evidence))
        return f"{sentences}\n\n{self.python}\n\n{table(self.figures, at_once=self.at_once)}"

    @property
    def recommended(self) -> Figures:
        """The figures of the mode that is recommended."""
        return find(self.figures, self.advice.mode)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: every figure with ``<name>_interval`` beside it."""
        prices = self.prices
        return {
            "verdict": self.advice.verdict,
            "mode": self.advice.mode,
            "evidence": list(self.evidence),
            "python": self.python,
            "options": self.options,
            "promising": list(self.advice.promising),
            "prompts_needed": self.advice.prompts_needed,
            "n": self.n,
            "problems": self.source,
            "check": self.check,
            "prefer": self.prefer,
            "quality_loss_allowed": self.quality_loss,
            "at_once": self.at_once,
            "max_tokens": self.max_tokens,
            "seed": self.seed,
            "models": dict(self.models),
            "prices": None
            if prices is None
            else {"input": prices.input, "output": prices.output, "cached_input": prices.cached_input},
            "machine": machine(),
            "notes": list(self.notes),
            "modes": [one.to_dict() for one in self.figures],
        }


def machine() -> str:
    """What seconds depend on."""
    return f"{platform.system()} {platform.machine()}, {usable_cores()} cores"
