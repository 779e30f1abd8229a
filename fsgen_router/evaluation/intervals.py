"""Bootstrap intervals by prompt."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .runs import Array

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Interval: TypeAlias = tuple[float, float]

RESAMPLES = 2000
_BATCH_BYTES = 32_000_000

Statistic: TypeAlias = Callable[[Array], Array]
"""Maps column means, shape (draws, k), to values, shape (draws, m); NaN where undefined."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its 95% interval. ``value`` is None where the figure is undefined, ``interval`` where
    there are too few prompts to draw from."""

    value: float | None
    interval: Interval | None = None

    def to_dict(self, name: str) -> dict[str, Any]:
        """``{name: value, name_interval: [low, high]}``."""
        return {name: self.value, f"{name}_interval": list(self.interval) if self.interval else None}


def flat(record: DataclassInstance) -> dict[str, Any]:
    """The fields of a dataclass for JSON: every figure with ``<name>_interval`` beside it."""
    found: dict[str, Any] = {}
    for field in fields(record):
        value = getattr(record, field.name)
        found |= value.to_dict(field.name) if isinstance(value, Estimate) else {field.name: value}
    return found


def bootstrap(
    statistic: Statistic, columns: Array, *, resamples: int = RESAMPLES, seed: int = 0, confidence: float = 0.95
) -> list[Estimate]:
    """Estimates of functions of column means, resampling the rows (prompts) of ``columns``, shape (n, k).

    One row is one prompt, so that all columns of a draw are paired. An interval is None with fewer
    than two prompts, or where more than one draw in twenty leaves the figure undefined. A share that is
    0 or 1 in the sample has an interval of no width: take more prompts before believing it.
    """
    columns = np.asarray(columns, np.float64)
    n = len(columns)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = statistic(columns.mean(axis=0)[None])[0]
        draws = _draws(statistic, columns, resamples, seed) if n >= 2 else np.full((len(values), 1), np.nan)
    tail = (1 - confidence) / 2
    estimates = []
    for value, drawn in zip(values.tolist(), draws, strict=True):
        defined = drawn[np.isfinite(drawn)]
        interval = None
        if len(defined) >= 0.95 * len(drawn) and np.isfinite(value):
            low, high = np.quantile(defined, (tail, 1 - tail)).tolist()
            interval = (low, high)
        estimates.append(Estimate(value if np.isfinite(value) else None, interval))
    return estimates


def _draws(statistic: Statistic, columns: Array, resamples: int, seed: int) -> Array:
    try:
        from scipy import stats
    except ImportError as error:
        raise ImportError("intervals need the extra 'eval': pip install 'fsgen-router[eval]'") from error

    def over(rows: npt.NDArray[np.int64], axis: int) -> Array:
        means = columns[np.moveaxis(rows, axis, -1)].mean(axis=-2)
        return np.moveaxis(statistic(means.reshape(-1, columns.shape[1])), -1, 0)

    with warnings.catch_warnings():
        # Only the draws are taken; a draw in which a figure is undefined is dealt with by the caller.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        drawn = stats.bootstrap(
            (np.arange(len(columns)),),
            over,
            n_resamples=resamples,
            batch=max(1, _BATCH_BYTES // columns.nbytes),
            vectorized=True,
            method="percentile",
            rng=np.random.default_rng(seed),
        )
    return np.asarray(drawn.bootstrap_distribution, np.float64)


def interval(values: Array, per: Array | None = None, *, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """The mean of ``values`` (shape (n,)), or the ratio of their sum to the sum of ``per``."""
    if per is None:
        return bootstrap(lambda means: means, np.stack([values], 1), seed=seed, resamples=resamples)[0]
    return bootstrap(lambda m: m[:, :1] / m[:, 1:], np.stack([values, per], 1), seed=seed, resamples=resamples)[0]
