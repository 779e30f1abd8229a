"""What the law expects of a pair, and whether to believe it or a probe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from ..errors import ConfigurationError
from .cells import CellFit
from .fitting import FormName, between
from .tables import size_text

Interval: TypeAlias = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Prediction:
    """The collaboration frequency that a cell's law expects of a pair.

    ``interval`` is the 95% band of the curve, where the mean of such pairs lies; ``pair_interval`` adds the
    scatter of pairs around it: where this one pair is expected. None where too few points determine them.
    ``outside``: the pair's sizes or their ratio lie outside of those that were measured; ``warnings`` say which.
    """

    method: str
    dataset: str
    form: FormName
    fast: float
    slow: float
    cof: float
    interval: Interval | None
    pair_interval: Interval | None
    outside: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def ratio(self) -> float:
        return self.slow / self.fast

    def to_dict(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "dataset": self.dataset,
            "form": self.form,
            "fast_params_b": self.fast,
            "slow_params_b": self.slow,
            "ratio": self.ratio,
            "cof": self.cof,
            "cof_interval": self.interval,
            "pair_interval": self.pair_interval,
            "outside": self.outside,
            "warnings": list(self.warnings),
        }


def check_sizes(fast: float, slow: float) -> None:
    """Raises :class:`ConfigurationError` unless both are finite sizes, the slow one larger."""
    for name, size in (("fast", fast), ("slow", slow)):
        if not np.isfinite(size) or size <= 0:
            raise ConfigurationError(f"{name}={size:g} is not a size", hint="billions of parameters, above 0")
    if slow <= fast:
        raise ConfigurationError(
            f"the slow model ({size_text(slow)}) is not larger than the fast one ({size_text(fast)})", hint="swap them"
        )


def predict(
    fit: CellFit, *, fast: float, slow: float, form: FormName = "power", extrapolate: bool = False, seed: int = 0
) -> Prediction:
    """The rate that ``fit`` expects of a pair with these sizes, in billions of parameters.

    Raises :class:`ConfigurationError` where the cell does not determine the form, and, unless ``extrapolate``,
    where the pair's ratio is above every one that was measured: nothing there says how the curve goes on.
    """
    check_sizes(fast, slow)
    cell = fit.cell
    where = f"{cell.method} on {cell.dataset}"
    if form not in fit.forms:
        raise ConfigurationError(f"{where}: no fit of {form}: {fit.errors[form]}", hint="take another cell or form")
    fitted, ratio = fit.forms[form], slow / fast
    warnings: list[str] = []
    if ratio > cell.ratio.max() * (1 + 1e-9):
        beyond = f"the ratio {ratio:.4g} is above the largest that was measured, {cell.ratio.max():.4g}"
        if not extrapolate:
            raise ConfigurationError(f"{where}: {beyond}", hint="--extrapolate shows what the curve would give there")
        warnings.append(f"extrapolated: {beyond}")
    if ratio < cell.ratio.min() * (1 - 1e-9):
        warnings.append(f"the ratio {ratio:.4g} is below the smallest that was measured, {cell.ratio.min():.4g}")
    for name, size, seen in (("fast", fast, cell.fast), ("slow", slow, cell.slow)):
        if not seen.min() * (1 - 1e-9) <= size <= seen.max() * (1 + 1e-9):
            measured = f"{size_text(float(seen.min()))} to {size_text(float(seen.max()))}"
            warnings.append(f"a {name} model of {size_text(size)} is outside of {measured}, as measured")
    outside = bool(warnings)
    warnings = [*(fit.warnings if form == "power" else cell.notes), *warnings]
    sizes = np.array([slow]), np.array([fast])
    curves = fitted.curves(*sizes)[:, 0]
    interval = pair_interval = None
    if len(curves):
        interval = _span(curves)
        # What the fit left of a point is smaller than what a new pair would show, by its degrees of freedom.
        scale = np.sqrt(len(cell) / (len(cell) - len(fitted.values)))
        scatter = np.random.default_rng(seed).choice(fitted.residuals * scale, len(curves))
        low, high = _span(curves + scatter)
        pair_interval = (max(low, 0.0), min(high, 1.0))
    return Prediction(
        cell.method,
        cell.dataset,
        form,
        fast,
        slow,
        float(fitted.curve(*sizes)[0]),
        interval,
        pair_interval,
        outside,
        tuple(warnings),
    )


def _span(values: np.ndarray[Any, np.dtype[np.float64]]) -> Interval:
    low, high = between(values[:, None])
    return float(low[0]), float(high[0])


@dataclass(frozen=True, slots=True)
class Trust:
    """Which figure to believe of a pair, and why."""

    which: Literal["law", "probe"]
    reason: str


def trust(law: Prediction | None, probe: float | None, interval: Interval | None) -> Trust:
    """The law's prediction or a probe's rate, with the probe's 95% interval.

    The narrower interval wins, unless the pair's sizes lie outside of those that the law was fitted to, or the two
    intervals do not meet: then this pair is not like those, and what was measured of it stands.
    """
    if law is None:
        return Trust("probe", "the law says nothing of this pair")
    if probe is None or interval is None:
        return Trust("law", "the probe has no interval: too few prompts")
    if law.pair_interval is None:
        return Trust("probe", "the law has no interval: too few points")
    (low, high), (law_low, law_high) = interval, law.pair_interval
    if law.outside:
        return Trust("probe", "this pair's sizes lie outside of those that the law was fitted to")
    if low > law_high or high < law_low:
        return Trust("probe", "the intervals do not meet: this pair is not like those of the law")
    if high - low <= law_high - law_low:
        return Trust("probe", "its interval is the narrower one, and it is of this pair")
    return Trust("law", "its interval for one pair is the narrower one; more prompts would narrow the probe's")
