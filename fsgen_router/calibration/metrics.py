"""How well a score tells positions apart, and how well it is calibrated, with intervals by prompt."""

from __future__ import annotations

from collections.abc import Mapping
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
    return _auroc(*_by_score(_ranks(scores), labels, weights))


def average_precision(scores: Array, labels: Array, weights: Array) -> float:
    """The mean precision over positives, walking down the score; tied scores are one step.

    As scikit-learn's ``average_precision_score``. NaN without positives.
    """
    return _average_precision(*_by_score(_ranks(scores), labels, weights))


def _ranks(scores: Array) -> Ints:
    """0 for the lowest score, equal for ties."""
    return np.unique(scores, return_inverse=True)[1]


def _by_score(ranks: Ints, labels: Array, weights: Array) -> tuple[Array, Array]:
    """Weights of positives and negatives at each different score, ascending."""
    positives = np.bincount(ranks, weights * labels).astype(np.float64)
    negatives = np.bincount(ranks, weights * (1 - labels)).astype(np.float64)
    return positives, negatives


def _auroc(positives: Array, negatives: Array) -> float:
    below = np.cumsum(negatives) - negatives
    pairs = positives.sum() * negatives.sum()
    return float((positives * (below + negatives / 2)).sum() / pairs) if pairs > 0 else float("nan")


def _average_precision(positives: Array, negatives: Array) -> float:
    found = np.cumsum(positives[::-1])
    seen = found + np.cumsum(negatives[::-1])
    if not found[-1] > 0:
        return float("nan")
    precision = np.divide(found, seen, out=np.zeros_like(found), where=seen > 0)
    return float((positives[::-1] * precision).sum() / found[-1])


@dataclass(frozen=True, slots=True)
class Reliability:
    """Bins of about equal weight, shape (bins,): mean score, mean label, weight (sums to 1)."""

    score: Array
    label: Array
    weight: Array


def reliability(scores: Array, labels: Array, weights: Array, *, bins: int = BINS) -> Reliability:
    """What came true of what the score promised. Ties are never torn apart, so there may be fewer bins."""
    return _reliability(_bins(scores, bins), scores, labels, weights)


def _bins(scores: Array, bins: int) -> Ints:
    edges = np.unique(np.quantile(scores, np.linspace(0, 1, bins + 1)[1:-1]))
    return np.searchsorted(edges, scores, side="right")


def _reliability(at: Ints, scores: Array, labels: Array, weights: Array) -> Reliability:
    mass = np.bincount(at, weights)
    kept = mass > 0
    score = np.bincount(at, weights * scores)[kept] / mass[kept]
    label = np.bincount(at, weights * labels)[kept] / mass[kept]
    return Reliability(score, label, mass[kept] / mass.sum())


def calibration_error(scores: Array, labels: Array, weights: Array, *, bins: int = BINS) -> float:
    """Expected calibration error: the mean over bins of |mean score - mean label|."""
    return _error(reliability(scores, labels, weights, bins=bins))


def _error(found: Reliability) -> float:
    return float((found.weight * np.abs(found.score - found.label)).sum())


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
        ranks, bins = _ranks(values), _bins(values, BINS)
        draws = [_all_metrics(values, ranks, bins, labels, weights * times[of_prompt]) for times in drawn]
        point = _all_metrics(values, ranks, bins, labels, weights)
        columns = np.array(draws).T
        found[name] = {
            metric: _estimate(value, column) for metric, value, column in zip(METRICS, point, columns, strict=True)
        }
    return found


def _all_metrics(scores: Array, ranks: Ints, bins: Ints, labels: Array, weights: Array) -> list[float]:
    positives, negatives = _by_score(ranks, labels, weights)
    error = _error(_reliability(bins, scores, labels, weights))
    return [_auroc(positives, negatives), _average_precision(positives, negatives), error]


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
