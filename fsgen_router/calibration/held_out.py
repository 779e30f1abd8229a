"""What the report prompts, which nothing was fitted or chosen on, say about scores and policies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..evaluation import SLOW_ONLY, Estimate, Run, interval
from ..policies import Learned
from ..policies.basic import SIGNALS
from ..policies.features import FEATURES
from ..policies.scorers import Scorer, Signal
from .bench import Bench
from .curves import TIMED, Curve, make_curve, oracle_runs, random_runs, threshold_runs, whole_query_runs
from .fit import SCORERS, fit_scorer
from .fitting import Fitted, make_labels
from .metrics import Reliability, reliability, score_metrics
from .options import CalibrationOptions
from .runner import Runner, traced_name
from .tokens import TokenUse, token_uses


@dataclass(frozen=True, slots=True)
class Held:
    """What the report prompts, which nothing was fitted or chosen on, say about scores and policies.

    ``metrics``: each score's AUROC, average precision and calibration error; ``rounds`` the same of each
    round's scorer. ``curves`` is None where the gap's interval on these prompts includes 0.
    """

    fast: Run
    slow: Run
    gap: Estimate
    metrics: Mapping[str, Mapping[str, Estimate]]
    rounds: Mapping[str, Mapping[str, Estimate]]
    reliability: Mapping[str, Reliability]
    most: tuple[TokenUse, ...]
    least: tuple[TokenUse, ...]
    routed: Run | None
    curves: Mapping[str, Curve] | None


_SINGLE = tuple(SIGNALS)


def baseline_scorers(bench: Bench, fitted: Fitted, *, calibrated: bool) -> dict[str, Scorer]:
    """Each single signal, and entropy masked by token class, fitted on the same labels."""
    names = (*_SINGLE, "masked_entropy")
    with bench.stages.stage("fit", 1):
        return {
            name: Signal(name) if name in _SINGLE and not calibrated else _fit_as(name, fitted, calibrated=calibrated)
            for name in names
        }


def _fit_as(name: str, fitted: Fitted, *, calibrated: bool, seed: int = 0) -> Scorer:
    return fit_scorer(
        fitted.features,
        fitted.labels.values,
        fitted.labels.weights,
        fitted.traces.prompt,
        scorer=name,
        calibration="platt" if calibrated else "none",
        seed=seed,
    )


def _without_hidden(bench: Bench, fitted: Fitted) -> Scorer:
    """What the hidden state is held against: the same scorer without it."""
    options = bench.options
    with bench.stages.stage("fit", 1):
        return fit_scorer(
            fitted.features[:, : len(FEATURES)],
            fitted.labels.values,
            fitted.labels.weights,
            fitted.traces.prompt,
            scorer=options.scorer,
            prior=options.prior,
            calibration=options.probabilities,
            seed=options.seed,
        )


def hold_out(bench: Bench, fitted: Fitted, policy: Learned) -> Held:
    """Scores and policies on the report prompts."""
    options, runner = bench.options, bench.runners["report"]
    fast, slow = runner.run("never"), runner.run(SLOW_ONLY)
    answers, routed = bench.route("report", replace(policy, drift=None, hold=None), "report")
    traces = bench.trace("report", answers, f"traces-report-{traced_name(policy, options.method)}")
    labels = make_labels(bench, traces, "report", rollouts=options.rollouts // 2)
    features, kept = traces.features(), labels.weights > 0
    scorers = {"learned": fitted.scorer, **baseline_scorers(bench, fitted, calibrated=True)}
    if options.hidden:
        scorers["without hidden"] = _without_hidden(bench, fitted)
    by_round = {f"round {r.number}": r.scorer for r in fitted.rounds}
    with bench.stages.stage("metrics", 1):
        found = score_metrics(
            {name: scorer.score(features[kept]) for name, scorer in (scorers | by_round).items()},
            labels.values[kept],
            labels.weights[kept],
            traces.prompt[kept],
            seed=options.seed,
        )
        curve = {
            name: reliability(scorer.score(features[kept]), labels.values[kept], labels.weights[kept])
            for name, scorer in scorers.items()
        }
        most, least = token_uses(traces, fitted.scorer.score(features), policy.threshold, bench.router.fast.tokenizer)
    return Held(
        fast=fast,
        slow=slow,
        gap=interval(slow.column("right") - fast.column("right"), seed=options.seed),
        metrics={name: found[name] for name in scorers},
        rounds={name: found[name] for name in by_round},
        reliability=curve,
        most=most,
        least=least,
        routed=routed,
        curves=_curves(bench, fitted, fast, slow) if options.draws_curves else None,
    )


def _curves(bench: Bench, fitted: Fitted, fast: Run, slow: Run) -> dict[str, Curve] | None:
    options, runner = bench.options, bench.runners["report"]
    gap = interval(slow.column("right") - fast.column("right"), seed=options.seed)
    if gap.interval is None or gap.interval[0] <= 0.0:
        return None
    scorers = {"learned": fitted.scorer, **baseline_scorers(bench, fitted, calibrated=False)}
    compared = [name for name in options.compare if name in SCORERS and name not in scorers]
    with bench.stages.stage("fit", 1):
        scorers |= {name: _fit_as(name, fitted, calibrated=False, seed=options.seed) for name in compared}
    methods = [name for name in options.compare if name not in SCORERS]
    sweeps = len(scorers) + 1 + len(methods)
    with bench.stages.stage("curves", sweeps * len(options.curve_rates) * len(fast) + 4 * len(fast)) as runner.on_items:
        runs = {name: _sweep(runner, fitted, scorer, options, options.method) for name, scorer in scorers.items()}
        for method in methods:
            runs[f"learned, {method}"] = _sweep(runner, fitted, fitted.scorer, options, method)
        runs["random"] = random_runs(runner, rates=options.curve_rates)
        runs["oracle"] = oracle_runs(runner)
        runs["whole query"] = whole_query_runs(fast, slow)
    runner.on_items = None
    timed = _timed(bench, fitted)
    with bench.stages.stage("intervals", len(runs)) as on_items:
        curves = {}
        for name, found in runs.items():
            curves[name] = make_curve(found, fast, slow, timed=timed.get(name, ()), seed=options.seed)
            on_items(1)
    return curves


def _timed(bench: Bench, fitted: Fitted) -> dict[str, list[Run]]:
    """By the name of a curve, the slow model alone and then the curve's policies on a few prompts, timed: what this
    calibration is about, and whole queries, whose seconds are both models' own."""
    options, runner = bench.options, bench.timed("report", TIMED)
    methods = [name for name in options.compare if name not in SCORERS]
    total = len(runner.items) * (2 + len(options.curve_rates) * (1 + len(methods)))
    with bench.stages.stage("seconds", total) as runner.on_items:
        slow, fast = runner.run(SLOW_ONLY), runner.run("never")
        return {
            "learned": [slow, *_sweep(runner, fitted, fitted.scorer, options, options.method)],
            "whole query": [slow, *whole_query_runs(fast, slow)],
            **{f"learned, {m}": [slow, *_sweep(runner, fitted, fitted.scorer, options, m)] for m in methods},
        }


def _sweep(runner: Runner, fitted: Fitted, scorer: Scorer, options: CalibrationOptions, method: str) -> list[Run]:
    """A curve's runs of a scorer; spans are judged with the method that is calibrated."""
    return threshold_runs(
        runner,
        scorer,
        fitted.scores(scorer),
        fitted.traces.answer,
        rates=options.curve_rates,
        extent=options.extent,
        span=options.span if method == options.method else None,
        method=method,
    )
