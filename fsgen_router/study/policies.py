"""Policies beside token routing at equal slow work: what each reaches, and what entropy routing would for as much."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..evaluation import EqualWork
from .measures import Key

SWEEP = ("entropy>0.05", "entropy>0.2", "entropy>0.5", "entropy>1", "entropy>1.5", "entropy>2.2")
"""Token routing from nearly always to seldom; fixed, so that no threshold is taken from the prompts it is judged on."""


@dataclass(frozen=True, slots=True)
class PolicyResult:
    """A policy on one pair and data set (``key.method`` is its name): its figures, or why there are none."""

    key: Key
    found: EqualWork | None = None
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Flat, for JSON and CSV."""
        record = self.key.to_dict()
        record["policy"] = record.pop("method")
        if self.found is not None:
            record |= self.found.to_dict() | {"policy": record["policy"]}
        return record | {"error": self.error}
