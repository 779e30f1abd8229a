"""How well a score tells positions apart, and how well it is calibrated, with intervals by prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import ConfigurationError
from ..evaluation import Array, Estimate

Ints: TypeAlias = npt.NDArray[np.int64]

RESAMPLES = 500
BINS = 15
METRICS = ("auroc", "average_precision", "calibration_error")


def auroc(scores: Array, labels: Array, weights: Array) -> float:
    """The probability that a positive position scores above a negative one, ties counted half.

    ``labels`` in [0, 1] count as that share of a positive. NaN without positives or negatives.
    """
    positives, negatives = _by_score(scores, labels, weights)
    above = np.cumsum(negatives) - negatives
    pairs = positives.sum() * negatives.sum()
    return float((positives * (above + negatives / 2)).sum() / pairs) if pairs > 0 else float("nan")


def average_precision(scores: Array, labels: Array, weights: Array) -> float:
    """The mean precision over positives, walking down the score; tied scores are one step.

    As scikit-learn's ``average_precision_score``. NaN without positives.
    """
    positives, negatives = _by_score(scores, labels, weights)
    found = np.cumsum(positives[::-1])
    seen = found + np.cumsum(negatives[::-1])
    if not found[-1] > 0:
        return float("nan")
    precision = np.divide(found, seen, out=np.zeros_like(found), where=seen > 0)
    return float((positives[::-1] * precision).sum() / found[-1])


def _by_score(scores: Array, labels: Array, weights: Array) -> tuple[Array, Array]:
    """Weights of positives and negatives at each different score, ascending."""
    _, at = np.unique(scores, return_inverse=True)
    positives = np.bincount(at, weights * labels).astype(np.float64)
    negatives = np.bincount(at, weights * (1 - labels)).astype(np.float64)
    return positives, negatives


@dataclass(frozen=True, slots=True)
class Reliability:
    """Bins of about equal weight, shape (bins,): mean score, mean label, weight (sums to 1)."""

    score: Array
    label: Array
    weight: Array


def reliability(scores: Array, labels: Array, weights: Array, *, bins: int = BINS) -> Reliability:
    """What came true of what the score promised. Ties are never torn apart, so there may be fewer bins."""
    edges = np.unique(np.quantile(scores, np.linspace(0, 1, bins + 1)[1:-1]))
    at = np.searchsorted(edges, scores, side="right")
    size = len(edges) + 1
    mass = np.bincount(at, weights, minlength=size)
    kept = mass > 0
    score = np.bincount(at, weights * scores, minlength=size)[kept] / mass[kept]
    label = np.bincount(at, weights * labels, minlength=size)[kept] / mass[kept]
    return Reliability(score, label, mass[kept] / mass.sum())


def calibration_error(scores: Array, labels: Array, weights: Array, *, bins: int = BINS) -> float:
    """Expected calibration error: the mean over bins of |mean score - mean label|."""
    found = reliability(scores, labels, weights, bins=bins)
    return float((found.weight * np.abs(found.score - found.label)).sum())


_FUNCTIONS: Mapping[str, Callable[[Array, Array, Array], float]] = {
    "auroc": auroc,
    "average_precision": average_precision,
    "calibration_error": calibration_error,
}


def score_metrics(
    scores: Mapping[str, Array],
    labels: Array,
    weights: Array,
    prompts: Ints,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, dict[str, Estimate]]:
    """Every metric of every score, with its 95% interval by a bootstrap that draws prompts.

    ``scores`` are named arrays of shape (n,), as are ``labels``, ``weights`` and ``prompts`` (which
    prompt a position belongs to). All scores share their draws, so they are paired.
    """
    if not len(labels):
        raise ConfigurationError("no positions to measure a score on")
    _, of_prompt = np.unique(prompts, return_inverse=True)
    count = int(of_prompt.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    found: dict[str, dict[str, Estimate]] = {}
    for name, values in scores.items():
        draws = [_all_metrics(values, labels, weights * times[of_prompt]) for times in drawn]
        point = _all_metrics(values, labels, weights)
        columns = np.array(draws).T
        found[name] = {
            metric: _estimate(value, column) for metric, value, column in zip(METRICS, point, columns, strict=True)
        }
    return found


def _all_metrics(scores: Array, labels: Array, weights: Array) -> list[float]:
    return [_FUNCTIONS[metric](scores, labels, weights) for metric in METRICS]


def _estimate(value: float, draws: Array) -> Estimate:
    defined = draws[np.isfinite(draws)]
    if not np.isfinite(value) or len(defined) < 0.95 * len(draws):
        return Estimate(value if np.isfinite(value) else None)
    low, high = np.quantile(defined, (0.025, 0.975)).tolist()
    return Estimate(value, (low, high))


def metrics_record(found: Mapping[str, Mapping[str, Estimate]]) -> dict[str, Any]:
    """For JSON: each score's metrics, each with ``<name>_interval`` beside it."""
    return {
        name: {key: part for metric, estimate in metrics.items() for key, part in estimate.to_dict(metric).items()}
        for name, metrics in found.items()
    }
