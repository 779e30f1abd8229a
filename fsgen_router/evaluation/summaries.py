"""One policy's figures with their intervals, and the rate at which a sweep recovers the gap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .intervals import RESAMPLES, Estimate, bootstrap, flat, interval
from .runs import RATES, Array, Run, rate_columns, require_paired


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One policy's quality beside its cost, over ``n`` prompts.

    ``correction_share`` and ``bonus_share``: per emitted token, the slow model's corrections of drafts
    and the tokens that it wrote behind drafts it had accepted.

    ``slow_forwards``: sequential slow steps per answer; ``slow_forwards_relative``: against the slow
    model alone (1 is no saving); ``gap``: accuracy_slow - accuracy_fast; ``recovered_gap``:
    (accuracy - accuracy_fast) / gap, None where the gap's interval includes 0.
    """

    policy: str
    n: int
    accuracy: Estimate
    accuracy_fast: Estimate
    accuracy_slow: Estimate
    gap: Estimate
    recovered_gap: Estimate
    escalation_rate: Estimate
    slow_token_share: Estimate
    slow_position_share: Estimate
    disagreement_rate: Estimate
    correction_share: Estimate
    bonus_share: Estimate
    slow_forwards_per_token: Estimate
    slow_forwards: Estimate
    slow_forwards_relative: Estimate
    truncated: int
    degraded: int

    def to_dict(self) -> dict[str, Any]:
        """Flat, for JSON: every figure with ``<name>_interval`` beside it."""
        return flat(self)


def is_gap(gap: Estimate) -> bool:
    """Whether the slow model is measurably better: only then is there something to recover."""
    return gap.interval is not None and gap.interval[0] > 0.0


def summarise(run: Run, fast: Run, slow: Run, *, seed: int = 0, resamples: int = RESAMPLES) -> Summary:
    """Accuracy, rates, slow steps and the recovered gap of ``run``, paired by prompt with both models alone."""
    require_paired(run, fast, slow)
    columns = [run.column("right"), fast.column("right"), slow.column("right")]
    columns += [run.column("slow_forwards"), slow.column("slow_forwards")]
    for over, under in RATES.values():
        columns += [run.column(over), run.column(under)]

    def statistic(m: Array) -> Array:
        right, right_fast, right_slow, steps, steps_slow = (m[:, i] for i in range(5))
        gap = right_slow - right_fast
        rates = [m[:, i] / m[:, i + 1] for i in range(5, m.shape[1], 2)]
        recovered = (right - right_fast) / gap
        return np.stack([right, right_fast, right_slow, gap, recovered, steps, steps / steps_slow, *rates], axis=1)

    found = bootstrap(statistic, np.stack(columns, 1), seed=seed, resamples=resamples)
    accuracy, accuracy_fast, accuracy_slow, gap, recovered, steps, relative, *rates = found
    return Summary(
        policy=run.policy,
        n=len(run),
        accuracy=accuracy,
        accuracy_fast=accuracy_fast,
        accuracy_slow=accuracy_slow,
        gap=gap,
        recovered_gap=recovered if is_gap(gap) else Estimate(None),
        slow_forwards=steps,
        slow_forwards_relative=relative,
        truncated=int(run.column("truncated").sum()),
        degraded=int(run.column("degraded").sum()),
        **dict(zip(RATES, rates, strict=True)),
    )


def recovered_gap(run: Run, fast: Run, slow: Run, *, seed: int = 0) -> Estimate:
    """(accuracy - accuracy_fast) / (accuracy_slow - accuracy_fast); None where that gap may be 0."""
    return summarise(run, fast, slow, seed=seed).recovered_gap


def rate_at_recovery(
    fast: Run,
    slow: Run,
    sweep: Sequence[Run],
    *,
    levels: Sequence[float] = (0.5, 0.8, 0.95),
    rate: str = "escalation_rate",
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[float, Estimate]:
    """The rate at which a sweep recovers each share of the quality gap, with its interval.

    The curve goes through both models alone (rate 0 and 1) and the sweep's runs in order of their
    rates, linear in between; the smallest rate at which it reaches
    accuracy_fast + level * (accuracy_slow - accuracy_fast) counts. In every bootstrap draw the whole
    curve is drawn anew and the crossing found on it. None where the gap's interval includes 0.
    """
    require_paired(fast, slow, *sweep)
    over, under = rate_columns(rate)
    runs = [fast, *sweep, slow]
    columns = np.stack([run.column(name) for name in ("right", over, under) for run in runs], 1)
    size = len(runs)

    def statistic(m: Array) -> Array:
        accuracies, rates = m[:, :size], m[:, size : 2 * size] / m[:, 2 * size :]
        return np.array([crossings(x, y, levels) for x, y in zip(rates, accuracies, strict=True)])

    gap = interval(slow.column("right") - fast.column("right"), seed=seed, resamples=resamples)
    if not is_gap(gap):
        return {level: Estimate(None) for level in levels}
    found = bootstrap(statistic, columns, seed=seed, resamples=resamples)
    return dict(zip(levels, found, strict=True))


def crossings(rates: Array, accuracies: Array, levels: Sequence[float]) -> list[float]:
    """The rates, shape (k,), at which a curve with heights ``accuracies``, shape (k,), first reaches each level
    of the gap; its first point is the fast model and its last the slow one. NaN where there is no gap."""
    first, last = float(accuracies[0]), float(accuracies[-1])
    if last <= first:
        return [np.nan] * len(levels)
    order = np.argsort(rates, kind="stable")
    x, y = rates[order].tolist(), accuracies[order].tolist()
    return [_first_reach(x, y, first + level * (last - first)) for level in levels]


def _first_reach(x: Sequence[float], y: Sequence[float], target: float) -> float:
    for index, height in enumerate(y):
        # Sums of shares do not land on the target bit for bit.
        if height >= target - 1e-12:
            if index == 0 or height - y[index - 1] < 1e-12:
                return x[index]
            share = (target - y[index - 1]) / (height - y[index - 1])
            return x[index - 1] + max(share, 0.0) * (x[index] - x[index - 1])
    return float("nan")
