"""The forms of the law on one cell, and what is to be said about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .fitting import ALPHA_MAX, FLOOR, FORM, FORMS, Fit, FormName, fit_form, reaches_bound
from .tables import Cell

_NEEDED: Mapping[FormName, str] = {
    "power": "three parameters need at least 3 different ratios of sizes",
    "log": "two parameters need at least 2 different ratios of sizes",
    "sizes": "three parameters need at least 3 pairs whose two sizes vary independently",
}


@dataclass(frozen=True, slots=True)
class CellFit:
    """What a cell's points give: ``forms`` holds those that they determine, ``errors`` why the others are missing."""

    cell: Cell
    forms: Mapping[FormName, Fit]
    errors: Mapping[FormName, str]
    warnings: tuple[str, ...]

    @property
    def error(self) -> str | None:
        """Why there is no ``power``; None where there is one."""
        return self.errors.get("power")

    def to_dict(self) -> dict[str, Any]:
        """For JSON: FS-GEN's law at the top, ``log`` and ``sizes`` as objects; what is missing is null."""
        cell = self.cell
        ratio = cell.ratio if len(cell) else np.array([np.nan])
        return {
            "method": cell.method,
            "dataset": cell.dataset,
            "n": len(cell),
            **(self.forms["power"].to_dict() if "power" in self.forms else _nothing("power")),
            "min_ratio": float(ratio.min()),
            "max_ratio": float(ratio.max()),
            **{
                name: self.forms[name].to_dict()
                if name in self.forms
                else _nothing(name) | {"error": self.errors[name]}
                for name in FORMS[1:]
            },
            "warnings": list(self.warnings),
            "error": self.error,
        }


def _nothing(name: FormName) -> dict[str, Any]:
    names = FORM[name].parameters
    return dict.fromkeys([*names, *(f"{one}_interval" for one in names), "r2", "loo_r2", "at_bound", "identified"])


def fit_cell(cell: Cell, *, seed: int = 0, resamples: int = 1000) -> CellFit:
    """Every form that the cell's points determine. Never raises: what cannot be fitted says why in ``errors``."""
    if cell.problems:
        return CellFit(cell, {}, dict.fromkeys(FORMS, "; ".join(cell.problems)), cell.notes)
    forms: dict[FormName, Fit] = {}
    errors: dict[FormName, str] = {}
    for name in FORMS:
        fitted = fit_form(name, cell.slow, cell.fast, cell.cof, seed=seed, resamples=resamples) if len(cell) else None
        if fitted is None:
            has = f"{len(cell)} point{'s' * (len(cell) != 1)}, {len(np.unique(cell.ratio))} ratios"
            errors[name] = f"{_NEEDED[name]}; this cell has {has}"
        else:
            forms[name] = fitted
    return CellFit(cell, forms, errors, (*cell.notes, *_warnings(forms.get("power"), len(cell))))


def _warnings(power: Fit | None, n: int) -> list[str]:
    if power is None:
        return []
    warnings = []
    if n == len(power.values):
        return [f"{n} points for {n} parameters: the curve goes through all of them, and nothing tests it"]
    for name in power.at_bound:
        limit = FLOOR if power.values[name] < 2 * FLOOR else ALPHA_MAX
        warnings.append(f"{name} sits at its bound, {limit:g}")
    if not power.identified:
        reached = [name for name, span in power.intervals.items() if span and reaches_bound(name, *span)]
        why = f"the interval of {' and '.join(reached)} reaches a bound" if reached else "too few points for intervals"
        warnings.append(
            f"not identified: {why}, so other values of the three parameters do about as well; "
            "read the curve between the ratios that were measured, not the parameters"
        )
    if power.values and power.loo_r2 is not None and power.loo_r2 <= 0:
        warnings.append("at points left out it does no better than the mean rate (leave-one-out R2 is not above 0)")
    return warnings
