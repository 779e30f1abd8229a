"""Traces, labels and a scorer: on the slow model's own answers, then in on-policy rounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..evaluation import SLOW_ONLY, Array, Run
from ..policies.scorers import Scorer
from .bench import Bench
from .candidates import policy_at
from .fit import fit_scorer
from .labels import Labels, disagreement, divergence, join_labels, soft
from .prompts import SplitName
from .runner import traced_name
from .target import Target
from .traces import Traces, join_traces


@dataclass(frozen=True, slots=True)
class Round:
    """What one round of collecting brought, and the scorer fitted to all rounds so far.

    Round 0 are the slow model's own answers; ``routed`` is the run on the fit prompts that a later
    round's positions come from.
    """

    number: int
    positions: int
    labels: Labels
    scorer: Scorer
    routed: Run | None = None

    def to_dict(self) -> dict[str, Any]:
        record: dict[str, Any] = {"round": self.number, "positions": self.positions, **self.labels.to_dict()}
        if self.routed is not None:
            record |= {"accuracy": self.routed.accuracy, "escalation_rate": self.routed.rate("escalation_rate")}
        return record


@dataclass(frozen=True, slots=True)
class Fitted:
    """Traces of the fit prompts with their labels, and the scorer fitted to them."""

    traces: Traces
    features: Array
    labels: Labels
    scorer: Scorer
    rounds: tuple[Round, ...]

    def scores(self, scorer: Scorer | None = None) -> Array:
        return (scorer or self.scorer).score(self.features)


def make_labels(bench: Bench, traces: Traces, split: SplitName = "fit", *, rollouts: int | None = None) -> Labels:
    """Labels of the kind that the options name."""
    match bench.options.label:
        case "disagreement":
            return disagreement(traces)
        case "soft":
            return soft(traces)
    budget = bench.options.rollouts if rollouts is None else rollouts
    with bench.stages.stage("rollouts", budget) as on_items:
        return divergence(
            bench.router,
            bench.runners[split].items,
            traces,
            budget=budget,
            work=bench.work,
            on_rollouts=on_items,
            **bench.options.request,
        )


def collect_and_fit(bench: Bench, target: Target) -> Fitted:
    """Round 0 on the slow model's own answers, then on-policy rounds: the Router answers the fit prompts
    with the policy so far, both models read the result, everything is fitted anew (dataset aggregation,
    Ross et al., arXiv 1011.0686)."""
    options, runner = bench.options, bench.runners["fit"]
    budget = options.rollouts // (options.rounds + 1)
    rounds: list[Round] = []
    traces: list[Traces] = []
    features: list[Array] = []
    labels: list[Labels] = []
    routed: Run | None = None
    for number in range(options.rounds + 1):
        if number == 0:
            answers, name = runner.answers(SLOW_ONLY), "traces-fit-own"
        else:
            policy = policy_at(
                rounds[-1].scorer,
                rounds[-1].scorer.score(np.concatenate(features)),
                join_traces(traces).answer,
                target.nominal_rate,
                extent=options.extent,
                span=options.span,
            )
            answers, routed = bench.route("fit", policy, "on-policy rounds")
            name = f"traces-fit-{number}-{traced_name(policy, options.method)}"
        traces.append(bench.trace("fit", answers, name, round=number))
        labels.append(make_labels(bench, traces[-1], rollouts=budget))
        features.append(traces[-1].features())  # dear: each position's once
        together, joined = join_traces(traces), join_labels(labels)
        with bench.stages.stage("fit", 1):
            scorer = fit_scorer(
                np.concatenate(features),
                joined.values,
                joined.weights,
                together.prompt,
                scorer=options.scorer,
                prior=options.prior,
                calibration=options.probabilities,
                seed=options.seed,
            )
        rounds.append(Round(number, len(traces[-1]), labels[-1], scorer, routed))
    return Fitted(together, np.concatenate(features), joined, scorer, tuple(rounds))
