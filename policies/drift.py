"""Does the score still look as it did at calibration? A sliding window over a Router's recent requests."""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from fsgen_router.contracts.policy import Ledger
from fsgen_router.errors import ConfigurationError
from fsgen_router.support.logs import log

from .features import Floats

Measure: TypeAlias = Literal["psi", "ks"]
Counts: TypeAlias = tuple[int, ...]


def psi(counts: npt.ArrayLike, shares: npt.ArrayLike) -> Floats:
    """Population stability index of binned scores, shape (..., bins), against ``shares``, shape (bins,).

    sum (p - q) log(p / q), the symmetric Kullback-Leibler divergence in nats. Half an observation is
    added to each bin, so that an empty one stays finite.
    """
    observed, expected = _shares(np.asarray(counts)), np.asarray(shares)
    result: Floats = ((observed - expected) * np.log(observed / expected)).sum(axis=-1)
    return result


def ks(counts: npt.ArrayLike, shares: npt.ArrayLike) -> Floats:
    """Kolmogorov-Smirnov distance at the edges of the bins: the largest gap between the two distributions.

    Smoothed and shaped as in :func:`psi`.
    """
    gaps = np.cumsum(_shares(np.asarray(counts)) - np.asarray(shares), axis=-1)
    result: Floats = np.abs(gaps).max(axis=-1)
    return result


def _shares(counts: npt.NDArray[Any]) -> Floats:
    """Shares of each bin, shape (..., bins), with half an observation more in each."""
    result: Floats = (counts + 0.5) / (counts.sum(axis=-1, keepdims=True) + 0.5 * counts.shape[-1])
    return result


MEASURES = {"psi": psi, "ks": ks}


@dataclass(frozen=True, slots=True)
class Window:
    """The requests that are looked at, oldest first, each as counts by bin; and what they say."""

    requests: tuple[Counts, ...] = ()
    value: float | None = None
    alarm: bool = False
    ever: bool = False
    turned: bool = False
    """The last request turned the alarm on or off."""


@dataclass(frozen=True)
class DriftMonitor:
    """Compares the scores of the last ``window`` requests with those of the calibration prompts.

    ``edges``, increasing, cut [0, 1] into bins (one more than edges) in which calibration had
    ``shares`` of the scores. Once ``window`` requests have been seen, a ``measure`` above ``alarm``
    raises the alarm: new requests then run with the threshold ``widened`` (see
    :func:`widened_threshold`) until the measure is below again. The claim does not come back with it: it
    was made for prompts like those of calibration, and some were not.

    Scores of one request depend on each other, and each request is looked at in ``window`` windows, so
    ``alarm`` comes from resampled sequences of requests (:func:`alarm_level`) and not from a table.
    """

    edges: tuple[float, ...]
    shares: tuple[float, ...]
    window: int
    alarm: float
    widened: float
    measure: Measure = "psi"

    def __post_init__(self) -> None:
        if len(self.shares) != len(self.edges) + 1 or list(self.edges) != sorted(set(self.edges)):
            raise ConfigurationError("a drift monitor's bins do not fit", hint="increasing edges, one more share")
        if min(self.shares) <= 0 or abs(math.fsum(self.shares) - 1) > 1e-6:
            raise ConfigurationError("a drift monitor's shares are not above 0 with a sum of 1")
        if not (math.isfinite(self.alarm) and math.isfinite(self.widened)):
            raise ConfigurationError(f"an alarm at {self.alarm}, widened to {self.widened}")
        if self.window < 1 or self.measure not in get_args(Measure):
            raise ConfigurationError(f"a window of {self.window} requests, measured by {self.measure!r}")

    @cached_property
    def empty(self) -> Counts:
        """Counts of no score."""
        return (0,) * len(self.shares)

    def count(self, counts: Counts, score: float) -> Counts:
        """``counts`` with one more score."""
        at = bisect_right(self.edges, score)
        return (*counts[:at], counts[at] + 1, *counts[at + 1 :])

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the settings."""
        return hashlib.sha256(repr(self).encode()).hexdigest()

    def _key(self, policy: str) -> str:
        # A Router's requests may run with several policies: the scores of one are no drift of another's.
        return f"learned/drift/{policy}/{self.digest}"

    def state(self, ledger: Ledger, policy: str = "") -> Window:
        """What the recent requests of a Router say, with the policy of that digest."""
        return ledger.recall(self._key(policy), Window())

    def observe(self, counts: Counts, ledger: Ledger, policy: str = "") -> Window:
        """Enter a finished request of a policy. Logs ``policy_drift`` when it turns the alarm on or off."""
        if not any(counts):
            return self.state(ledger, policy)
        after = ledger.revise(self._key(policy), lambda before: self._slid(before, counts), Window())
        if after.turned:
            level = log.warning if after.alarm else log.info
            level("policy_drift", alarm=after.alarm, measure=self.measure, value=after.value, level=self.alarm)
        return after

    def _slid(self, before: Window, counts: Counts) -> Window:
        requests = (*before.requests, counts)[-self.window :]
        if len(requests) < self.window:
            return Window(requests)
        value = float(MEASURES[self.measure](np.sum(requests, axis=0), self.shares))
        alarm = value > self.alarm
        return Window(requests, value, alarm, before.ever or alarm, alarm != before.alarm)


def make_monitor(
    scores: Floats,
    prompts: npt.NDArray[np.integer],
    threshold: float,
    *,
    window: int = 50,
    bins: int = 10,
    measure: Measure = "psi",
    factor: float = 2.0,
    false_alarms: float = 0.05,
    requests: int = 1000,
    seed: int = 0,
) -> DriftMonitor:
    """A monitor from calibration: ``scores``, shape (n,), of all decisions, and which of the ``prompts`` each is of.

    The scores have to be of answers routed with ``threshold``, as they will be in serving. Bins hold
    about equal shares. ``false_alarms`` is the probability of any alarm in so many ``requests`` with
    unchanged prompts; ``factor`` is how much more is escalated during an alarm.
    """
    edges = np.unique(np.quantile(scores, np.linspace(0, 1, bins + 1)[1:-1]))
    at = np.searchsorted(edges, scores, side="right")
    _, request = np.unique(prompts, return_inverse=True)
    counts = np.zeros((int(request.max()) + 1, len(edges) + 1), np.int64)
    np.add.at(counts, (request, at), 1)
    return DriftMonitor(
        edges=tuple(edges.tolist()),
        shares=tuple(_shares(counts.sum(axis=0)).tolist()),
        window=window,
        alarm=alarm_level(
            counts, window=window, measure=measure, false_alarms=false_alarms, requests=requests, seed=seed
        ),
        widened=widened_threshold(scores, threshold, factor),
        measure=measure,
    )


def alarm_level(
    counts: npt.NDArray[np.int64],
    *,
    window: int,
    measure: Measure = "psi",
    false_alarms: float = 0.05,
    requests: int = 1000,
    draws: int = 400,
    seed: int = 0,
) -> float:
    """The level that so many ``requests`` with unchanged prompts exceed anywhere with probability ``false_alarms``.

    From ``draws`` sequences of requests drawn with replacement from calibration's, ``counts`` of shape
    (calibration requests, bins), each against a reference that is drawn anew as well: it is an estimate
    too.
    """
    rng = np.random.default_rng(seed)
    highest = []
    for _ in range(draws):
        reference = _shares(counts[rng.integers(len(counts), size=len(counts))].sum(axis=0))
        drawn = counts[rng.integers(len(counts), size=max(requests, window))]
        windows = np.lib.stride_tricks.sliding_window_view(drawn, window, axis=0).sum(axis=-1)
        highest.append(float(MEASURES[measure](windows, reference).max()))
    return float(np.quantile(highest, 1.0 - false_alarms))


def widened_threshold(scores: Floats, threshold: float, factor: float = 2.0) -> float:
    """The threshold above which ``factor`` times as many of the calibration scores lie."""
    wanted = min(factor * float(np.mean(scores > threshold)), 1.0)
    if wanted == 1.0:
        return -1.0  # below every score
    return min(float(np.quantile(scores, 1.0 - wanted)), threshold)
