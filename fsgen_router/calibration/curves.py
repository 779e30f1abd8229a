"""Quality against cost on prompts that nothing was fitted or chosen on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from ..contracts.methods import Draw
from ..contracts.models import Role
from ..evaluation import (
    Array,
    Estimate,
    Item,
    Outcome,
    Run,
    Summary,
    bootstrap,
    interval,
    make_outcome,
    rate_at_recovery,
    summarise,
    whole_query,
)
from ..evaluation.runs import rate_columns, require_paired
from ..evaluation.summaries import crossings, is_gap
from ..generation import Generation
from ..policies.scorers import Scorer
from ..rows.acceptance import Rule
from ..rows.reading import Row
from .answers import answer_items
from .candidates import Ints, Span, candidate_policies
from .runner import Runner

CURVE_RATES = (0.01, 0.02, 0.04, 0.07, 0.11, 0.16, 0.23, 0.35)
LEVELS = (0.5, 0.8, 0.95)
AREA_UP_TO = 0.2
TIMED = 12
"""Of the report prompts, those that are answered once more without the trie, one at a time, for the seconds that
serving takes: where rows are known, an answer takes no time that means anything."""
_ORACLE_NATS = (0.0, 1.0, 2.0, 4.0)
_WHOLE_SHARES = (0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)


@dataclass(frozen=True, slots=True)
class Point:
    """One policy on the report prompts: its summary, and its measured seconds against the slow model alone, where it
    was timed (:data:`TIMED`)."""

    summary: Summary
    cost: Estimate | None


@dataclass(frozen=True, slots=True)
class Curve:
    """A way of routing at several settings. ``area`` is that under the recovered gap over escalation
    rates from 0 to ``AREA_UP_TO``, divided by it; ``recovery`` the rates that recover each of ``LEVELS``."""

    points: tuple[Point, ...]
    recovery: Mapping[float, Estimate]
    area: Estimate

    def to_dict(self) -> dict[str, Any]:
        return {
            "points": [
                p.summary.to_dict() | (p.cost.to_dict("relative_seconds") if p.cost else {}) for p in self.points
            ],
            "rate_at_recovery": {f"{level:g}": rate.to_dict("rate") for level, rate in self.recovery.items()},
            **self.area.to_dict("recovered_area"),
        }


def make_curve(runs: Sequence[Run], fast: Run, slow: Run, *, timed: Sequence[Run] = (), seed: int = 0) -> Curve:
    """A curve of runs, paired with both models alone. ``timed`` are runs of the slow model alone, and then of the same
    policies, whose seconds are those of serving; without them no cost is given."""
    alone = timed[0].column("seconds") if timed else None
    costs = [None if alone is None else interval(run.column("seconds"), alone, seed=seed) for run in timed[1:]]
    costs = costs or [None] * len(runs)
    points = tuple(Point(summarise(run, fast, slow, seed=seed), cost) for run, cost in zip(runs, costs, strict=True))
    return Curve(
        points,
        rate_at_recovery(fast, slow, runs, levels=LEVELS, seed=seed),
        recovered_area(fast, slow, runs, seed=seed),
    )


def recovered_area(
    fast: Run,
    slow: Run,
    sweep: Sequence[Run],
    *,
    up_to: float = AREA_UP_TO,
    rate: str = "escalation_rate",
    seed: int = 0,
) -> Estimate:
    """The mean recovered gap over rates from 0 to ``up_to``: 0 is the fast model, 1 the slow one.

    The curve goes through both models alone (rate 0 and 1) and the sweep's runs, linear in between, and
    is drawn anew in every bootstrap draw. None where the gap's interval includes 0.
    """
    require_paired(fast, slow, *sweep)
    gap = interval(slow.column("right") - fast.column("right"), seed=seed)
    if not is_gap(gap):
        return Estimate(None)
    over, under = rate_columns(rate)
    columns = np.stack([run.column(name) for name in ("right", over, under) for run in (fast, *sweep, slow)], 1)
    size = len(sweep) + 2
    grid = np.linspace(0.0, up_to, 101)

    def statistic(means: Array) -> Array:
        recovered = (means[:, :size] - means[:, :1]) / (means[:, size - 1 : size] - means[:, :1])
        rates = means[:, size : 2 * size] / means[:, 2 * size :]
        areas = [_mean_height(x, y, grid) for x, y in zip(rates, recovered, strict=True)]
        return np.array(areas)[:, None]

    return bootstrap(statistic, columns, seed=seed)[0]


def ratio_at_recovery(
    fast: Run,
    slow: Run,
    sweep: Sequence[Run],
    other: Sequence[Run],
    *,
    level: float = 0.95,
    rate: str = "escalation_rate",
    seed: int = 0,
) -> Estimate:
    """The rate at which ``sweep`` recovers a share ``level`` of the gap, divided by that of ``other``.

    Paired by prompt: in every bootstrap draw both curves are drawn anew and both crossings found on them.
    None where the gap's interval includes 0.
    """
    require_paired(fast, slow, *sweep, *other)
    gap = interval(slow.column("right") - fast.column("right"), seed=seed)
    if not is_gap(gap):
        return Estimate(None)
    over, under = rate_columns(rate)
    runs = [fast, *sweep, slow, fast, *other, slow]
    columns = np.stack([run.column(name) for name in ("right", over, under) for run in runs], 1)
    size, split = len(runs), len(sweep) + 2

    def statistic(means: Array) -> Array:
        accuracies, rates = means[:, :size], means[:, size : 2 * size] / means[:, 2 * size :]
        found = [
            crossings(x[:split], y[:split], [level])[0] / crossings(x[split:], y[split:], [level])[0]
            for x, y in zip(rates, accuracies, strict=True)
        ]
        return np.array(found)[:, None]

    return bootstrap(statistic, columns, seed=seed)[0]


def _mean_height(rates: Array, heights: Array, grid: Array) -> float:
    order = np.argsort(rates, kind="stable")
    return float(np.trapezoid(np.interp(grid, rates[order], heights[order]), grid) / grid[-1])


# --- what curves are made of ---------------------------------------------------------------------


def threshold_runs(
    runner: Runner,
    scorer: Scorer,
    scores: Array,
    answer: Ints,
    *,
    rates: Sequence[float] = CURVE_RATES,
    extent: int = 1,
    span: Span | None = None,
    method: str = "replace",
) -> list[Run]:
    """Runs of a scorer at thresholds from quantiles of ``scores``, shape (n,), on the fit prompts."""
    policies = candidate_policies(scorer, scores, answer, rates=rates, extent=extent, span=span)
    return runner.runs(policies, method)


def random_runs(runner: Runner, *, rates: Sequence[float] = CURVE_RATES) -> list[Run]:
    """Escalation by chance."""
    return runner.runs([f"random:{rate:g}" for rate in rates])


def whole_query_runs(fast: Run, slow: Run) -> list[Run]:
    """Whole-query routing: the slow model answers those prompts anew whose mean entropy was highest.

    Its rate is the share of prompts.
    """
    order = np.argsort(-fast.column("mean_entropy_nats"), kind="stable")
    runs = []
    for share in _WHOLE_SHARES:
        to_slow = np.zeros(len(fast), np.bool_)
        to_slow[order[: round(share * len(fast))]] = True
        both = whole_query(fast, slow, to_slow, name=f"whole query {share:.0%}")
        # Who asks the slow model has run the fast one too.
        outcomes = (
            replace(mine, seconds=mine.seconds + first.seconds) if over else mine
            for mine, first, over in zip(both.outcomes, fast.outcomes, to_slow.tolist(), strict=True)
        )
        runs.append(Run(both.policy, tuple(outcomes)))
    return runs


@dataclass(frozen=True)
class Oracle:
    """The slow model is asked everywhere, and stands only where it finds the fast token worse by more than
    ``nats``: what routing could reach if it knew where to ask."""

    nats: float
    rule: Rule | None = None
    draft_len: int = 0
    roles: ClassVar[tuple[Role, ...]] = ("slow",)
    whole_rows: ClassVar[tuple[Role, ...]] = ()

    @property
    def name(self) -> str:
        return f"oracle>{self.nats:g}"

    def choose(self, draft: int | None, rows: Mapping[Role, Row], draw: Draw) -> tuple[int, float]:
        slow = rows["slow"]
        if draft is not None and slow.argmax_logprob - slow.id_logprobs[0] <= self.nats:
            return draft, slow.id_logprobs[0]
        return slow.argmax, slow.argmax_logprob


def oracle_runs(runner: Runner, *, nats: Sequence[float] = _ORACLE_NATS) -> list[Run]:
    """The oracle's runs. Its escalations and slow steps are its corrections; its seconds mean nothing."""
    runs = []
    for limit in nats:
        oracle = Oracle(limit)
        answers = answer_items(
            runner.router,
            runner.items,
            "always",
            work=runner.work,
            name=f"{runner.split}-{oracle.name}".replace(">", "_"),
            method=oracle,
            outcome=_corrections_only,
            concurrency=runner.concurrency,
            on_items=runner.on_items,
            **runner.options,
        )
        runs.append(answers.run(runner.items, oracle.name))
    return runs


def _corrections_only(item: Item, answer: Generation) -> Outcome:
    corrected = answer.usage.corrections
    return replace(make_outcome(item, answer), escalations=corrected, slow_tokens=corrected, slow_forwards=corrected)
