"""From a pair and prompts to a policy: each step on its own, and all of them as :func:`calibrate`."""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from .._version import __version__
from ..contracts.models import TokenModel
from ..contracts.tokenizer import Tokenizer
from ..errors import ConfigurationError, InvalidRequest, NothingToGain
from ..evaluation import SLOW_ONLY, Array, Estimate, Run, interval
from ..methods import make_method
from ..policies import Learned, save_policy
from ..policies.basic import SIGNALS
from ..policies.cards import Metric, Pair, PolicyCard, fingerprint, library_versions
from ..policies.certify import fewest_prompts
from ..policies.drift import make_monitor
from ..policies.features import FEATURES, hidden_names, hidden_size
from ..policies.inputs import PromptCheck, asked, fit_inputs
from ..policies.scorers import Scorer, Signal
from ..router import Router
from ..support.options import checked
from .answers import Answers, OnItems
from .checks import Judge, bind, make_checker
from .choose import (
    Choice,
    Runner,
    Span,
    Target,
    candidate_policies,
    choose_certified,
    choose_cost,
    choose_rate,
    policy_at,
)
from .curves import CURVE_RATES, Curve, make_curve, oracle_runs, random_runs, threshold_runs, whole_query_runs
from .fit import CALIBRATIONS, SCORERS, fit_scorer
from .labels import LABELS, LabelName, Labels, disagreement, divergence, join_labels, soft
from .metrics import Reliability, metrics_record, reliability, score_metrics
from .prompts import Prompts, SplitName, read_prompts, reference_prompts
from .store import WorkDirectory
from .tokens import TokenUse, token_uses
from .traces import Traces, join_traces, local_slow, trace_answers

DEFAULT_REGRET = 0.05


class CalibrationOptions(BaseModel):
    """How a policy is made. Answers are greedy: temperature 0."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: LabelName = Field("soft", description=f"what the score predicts: {', '.join(LABELS)}")
    scorer: str = Field("logistic", description=f"what is fitted: {', '.join(SCORERS)}")
    prior: bool = Field(False, description="add log-odds by token id")
    hidden: bool = Field(False, description="let logistic or mlp read the fast model's last hidden state too")
    probabilities: str = Field("platt", description=f"how scores become probabilities: {', '.join(CALIBRATIONS)}")
    rounds: int = Field(2, ge=0, le=10, description="on-policy rounds behind the slow model's own answers")
    rollouts: int = Field(2000, ge=0, description="budget of the label divergence, in continuations by the slow model")
    extent: int = Field(1, ge=1, description="tokens that the slow model writes at an escalation")
    span_window: int | None = Field(None, ge=1, description="also judge spans of so many drafted tokens")
    span_quantile: float = Field(0.9, ge=0.0, le=1.0, description="of a span's scores")
    method: str = Field("replace", description="what the slow model's rows do")
    compare: tuple[str, ...] = Field((), description="other methods to draw the learned policy's curve with")
    hold: bool = Field(False, description="let the threshold follow the target rate at run time")
    curves: bool = Field(True, description="run everything that the report compares the policy to")
    curve_rates: tuple[float, ...] = Field(CURVE_RATES, min_length=1, description="nominal rates of a curve's points")
    max_tokens: int = Field(256, ge=1, description="tokens of an answer at most")
    stop: tuple[str, ...] = Field((), description="end answers before any of these")
    concurrency: int = Field(1, ge=1, description="prompts asked at once, where both models hold several sequences")
    seed: int = Field(0, ge=0, description="of the fit, of rollouts and of every interval")

    @field_validator("scorer")
    @classmethod
    def _known_scorer(cls, value: str) -> str:
        return _one_of(value, SCORERS)

    @field_validator("probabilities")
    @classmethod
    def _known_calibration(cls, value: str) -> str:
        return _one_of(value, CALIBRATIONS)

    @field_validator("curve_rates")
    @classmethod
    def _shares(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0.0 < rate < 1.0 for rate in value):
            raise ValueError("rates are between 0 and 1")
        return value

    @model_validator(mode="after")
    def _reads_hidden(self) -> Self:
        if self.hidden and self.scorer not in ("logistic", "mlp"):
            raise ValueError(f"hidden: {self.scorer} reads no hidden states, logistic and mlp do")
        return self

    @property
    def span(self) -> Span | None:
        return None if self.span_window is None else Span(self.span_window, self.span_quantile)

    @property
    def request(self) -> dict[str, Any]:
        """Options of every request."""
        return {"max_tokens": self.max_tokens, "stop": self.stop, "seed": self.seed}


def make_options(**options: Any) -> CalibrationOptions:
    """Checked options; :class:`ConfigurationError` says what exists."""
    return checked(CalibrationOptions, options, error=ConfigurationError)


def make_target(
    *,
    target_rate: float | None = None,
    max_regret: float | None = None,
    confidence: float = 0.9,
    max_cost: float | None = None,
) -> Target:
    """The one target that was given. Where none was: the least escalation whose regret is certified to be at most
    ``DEFAULT_REGRET``, or, where nothing can be certified, the least whose regret seen is no higher."""
    if target_rate is None and max_regret is None and max_cost is None:
        return Target(max_regret=DEFAULT_REGRET, confidence=confidence, certain=False)
    return Target(rate=target_rate, max_regret=max_regret, confidence=confidence, max_cost=max_cost)


def _one_of(value: str, available: Sequence[str]) -> str:
    if value not in available:
        raise ValueError(f"available: {', '.join(available)}")
    return value


class Progress(Protocol):
    """Hears how calibration goes on."""

    def begin(self, stage: str, total: int) -> None:
        """A stage begins that has so many prompts, or rollouts, to go through."""

    def advance(self, count: int) -> None:
        """So many more of them are done."""


class Silent:
    """No progress shown."""

    def begin(self, stage: str, total: int) -> None:
        return None

    def advance(self, count: int) -> None:
        return None


@dataclass
class Stages:
    """Times stages and tells a :class:`Progress`."""

    progress: Progress = field(default_factory=Silent)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[OnItems]:
        """A stage over ``total`` prompts or rollouts; what it yields is told of each."""
        self.progress.begin(name, total)
        began = time.perf_counter()
        try:
            yield self.progress.advance
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


# --- the bench that all steps work on ------------------------------------------------------------


@dataclass
class Bench:
    """A pair, prompts and a work directory: what every step needs. Made by :func:`open_bench`."""

    router: Router
    prompts: Prompts
    work: WorkDirectory
    options: CalibrationOptions
    stages: Stages
    runners: dict[SplitName, Runner]
    check: str = "answer"
    """The checker's name."""

    @property
    def pair(self) -> Pair:
        return fingerprint(self.router.fast, local_slow(self.router))

    def run(self, split: SplitName, policy: str) -> Run:
        return self.runners[split].run(policy)


def open_bench(
    router: Router,
    prompts: Prompts,
    work: str | Path,
    *,
    check: str | Judge | None = None,
    stages: Stages | None = None,
    **options: Any,
) -> Bench:
    """Lets both models answer every prompt alone, and judges by ``check`` (see
    :func:`~fsgen_router.calibration.make_checker`).

    ``options`` are :class:`CalibrationOptions`. Raises :class:`ConfigurationError` where ``work`` belongs
    to another pair, file or options, and :class:`PromptTooLong` naming the prompt.
    """
    parsed = make_options(**options)
    stages = stages or Stages()
    for method in (parsed.method, *parsed.compare):
        make_method(method)
    if parsed.hidden and router.fast.capabilities.hidden_size is None:
        raise ConfigurationError(f"{router.fast.name} gives no hidden states", hint="calibrate without --hidden")
    checker = make_checker(check, [item for _, items in prompts for item in items])
    pair = fingerprint(router.fast, local_slow(router))
    directory = WorkDirectory(
        work,
        {
            "version": __version__,
            "pair": pair.model_dump(),
            "prompts": prompts.sha256,
            "options": {**parsed.request, "stop": list(parsed.stop)},
        },
    )
    with stages.stage("both models alone", 2 * len(prompts)) as on_items:
        runners: dict[SplitName, Runner] = {}
        for split, items in prompts:
            runner = Runner(router, items, directory, split, parsed.request, parsed.concurrency, on_items)
            slow = runner.answers(SLOW_ONLY)
            runner.answers("never")
            runner.items = bind(checker, items, slow.texts)
            runner.on_items = None
            runners[split] = runner
    return Bench(router, prompts, directory, parsed, stages, runners, checker.name)


def require_gap(bench: Bench) -> Estimate:
    """accuracy_slow - accuracy_fast on the fit and calibration prompts.

    Raises :class:`NothingToGain` where its 95% interval does not lie above 0.
    """
    splits: tuple[SplitName, ...] = ("fit", "calibration")
    fast, slow = (
        np.concatenate([bench.run(split, policy).column("right") for split in splits])
        for policy in ("never", SLOW_ONLY)
    )
    gap = interval(slow - fast, seed=bench.options.seed)
    if gap.interval is None or gap.interval[0] <= 0.0:
        span = "" if gap.interval is None else f", 95% interval [{gap.interval[0]:.1%}, {gap.interval[1]:.1%}]"
        raise NothingToGain(
            f"the slow model is right on {slow.mean():.1%} and the fast one on {fast.mean():.1%} of {len(slow)} "
            f"prompts: a gap of {slow.mean() - fast.mean():.1%}{span}, so there may be nothing to gain",
            hint="give more prompts, or take a pair that differs",
        )
    return gap


# --- traces, labels, fit -------------------------------------------------------------------------


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
    labels: list[Labels] = []
    routed: Run | None = None
    for number in range(options.rounds + 1):
        if number == 0:
            answers, name = runner.answers(SLOW_ONLY), "traces-fit-own"
        else:
            fitted = join_traces(traces)
            policy = policy_at(
                rounds[-1].scorer,
                rounds[-1].scorer.score(fitted.features()),
                fitted.answer,
                target.nominal_rate,
                extent=options.extent,
                span=options.span,
            )
            answers, routed = _routed(bench, "fit", policy, "on-policy rounds")
            name = f"traces-fit-{number}-{policy.digest[:16]}"
        traces.append(_traced(bench, "fit", answers, name, round=number))
        labels.append(make_labels(bench, traces[-1], rollouts=budget))
        together, joined = join_traces(traces), join_labels(labels)
        with bench.stages.stage("fit", 1):
            scorer = fit_scorer(
                together.features(),
                joined.values,
                joined.weights,
                together.prompt,
                scorer=options.scorer,
                prior=options.prior,
                calibration=options.probabilities,
                seed=options.seed,
            )
        rounds.append(Round(number, len(traces[-1]), labels[-1], scorer, routed))
    return Fitted(together, together.features(), joined, scorer, tuple(rounds))


def _routed(bench: Bench, split: SplitName, policy: Learned, stage: str) -> tuple[Answers, Run]:
    runner = bench.runners[split]
    with bench.stages.stage(stage, len(runner.items)) as runner.on_items:
        answers = runner.answers(policy, bench.options.method)
    runner.on_items = None
    return answers, answers.run(runner.items, policy.name)


def _traced(bench: Bench, split: SplitName, answers: Answers, name: str, *, round: int = 0) -> Traces:
    items = bench.runners[split].items
    with bench.stages.stage("traces", len(items)) as on_items:
        return trace_answers(
            bench.router,
            items,
            answers,
            work=bench.work,
            name=name,
            round=round,
            own=name.endswith("-own"),
            hidden=bench.options.hidden,
            on_items=on_items,
        )


def choose(bench: Bench, fitted: Fitted, target: Target) -> Choice:
    """A threshold for the target, every candidate run on the calibration prompts."""
    options, runner = bench.options, bench.runners["calibration"]
    candidates = candidate_policies(
        fitted.scorer, fitted.scores(), fitted.traces.answer, extent=options.extent, span=options.span
    )
    slow = runner.run(SLOW_ONLY)
    with bench.stages.stage("candidates", len(candidates) * len(slow)) as runner.on_items:
        if target.rate is not None:
            choice = choose_rate(runner, candidates, target.rate, method=options.method)
        elif target.max_cost is not None:
            choice = choose_cost(runner, candidates, target.max_cost, slow, method=options.method)
        else:
            assert target.max_regret is not None
            choice = choose_certified(
                runner,
                candidates,
                slow,
                alpha=target.max_regret,
                delta=1.0 - target.confidence,
                method=options.method,
                certain=target.certain,
            )
    runner.on_items = None
    return choice


def watch(bench: Bench, policy: Learned) -> Learned:
    """The policy with a drift monitor made of the calibration prompts, routed as in serving."""
    answers = bench.runners["calibration"].answers(policy, bench.options.method)
    traces = _traced(bench, "calibration", answers, f"traces-calibration-{policy.digest[:16]}")
    scores = policy.scorer.score(traces.features())
    monitor = make_monitor(scores, traces.prompt, policy.threshold, seed=bench.options.seed)
    return replace(policy, drift=monitor)


def make_inputs(tokenizer: Tokenizer, prompts: Prompts, *, stop: Sequence[str] = ()) -> PromptCheck:
    """What tells prompts of another kind: counted on the fit prompts, its limits set on the calibration prompts."""
    known, held = (
        [asked(tokenizer, prompt=item.prompt, messages=item.messages) for item in items]
        for items in (prompts.fit, prompts.calibration)
    )
    return fit_inputs(known, held, tokenizer.n_vocab, stop=stop)


# --- figures on the report prompts ---------------------------------------------------------------


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
            name: Signal(name)
            if name in _SINGLE and not calibrated
            else fit_scorer(
                fitted.features,
                fitted.labels.values,
                fitted.labels.weights,
                fitted.traces.prompt,
                scorer=name,
                calibration="platt" if calibrated else "none",
            )
            for name in names
        }


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
    answers, routed = _routed(bench, "report", replace(policy, drift=None, hold=None), "report")
    traces = _traced(bench, "report", answers, f"traces-report-{policy.digest[:16]}")
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
        curves=_curves(bench, fitted, fast, slow) if options.curves else None,
    )


def _curves(bench: Bench, fitted: Fitted, fast: Run, slow: Run) -> dict[str, Curve] | None:
    options, runner = bench.options, bench.runners["report"]
    gap = interval(slow.column("right") - fast.column("right"), seed=options.seed)
    if gap.interval is None or gap.interval[0] <= 0.0:
        return None
    scorers = {"learned": fitted.scorer, **baseline_scorers(bench, fitted, calibrated=False)}
    sweeps = len(scorers) + 1 + len(options.compare)
    with bench.stages.stage("curves", sweeps * len(options.curve_rates) * len(fast) + 4 * len(fast)) as runner.on_items:
        runs = {
            name: threshold_runs(
                runner,
                scorer,
                fitted.scores(scorer),
                fitted.traces.answer,
                rates=options.curve_rates,
                extent=options.extent,
                span=options.span,
                method=options.method,
            )
            for name, scorer in scorers.items()
        }
        for method in options.compare:
            runs[f"learned, {method}"] = threshold_runs(
                runner,
                fitted.scorer,
                fitted.scores(),
                fitted.traces.answer,
                rates=options.curve_rates,
                extent=options.extent,
                method=method,
            )
        runs["random"] = random_runs(runner, rates=options.curve_rates)
        runs["oracle"] = oracle_runs(runner)
        runs["whole query"] = whole_query_runs(fast, slow)
    runner.on_items = None
    with bench.stages.stage("intervals", len(runs)) as on_items:
        curves = {}
        for name, found in runs.items():
            curves[name] = make_curve(found, fast, slow, costs=name != "oracle", seed=options.seed)
            on_items(1)
    return curves


# --- all of it -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What :func:`calibrate` found. ``policy`` is None where no candidate meets the target."""

    policy: Learned | None
    card: PolicyCard | None
    target: Target
    choice: Choice
    prompts: Prompts
    pair: Pair
    options: CalibrationOptions
    gap: Estimate
    rounds: tuple[Round, ...]
    held: Held | None
    seconds: Mapping[str, float]
    path: Path | None = None
    check: str = "answer"
    """The checker's name: what "right" means."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON: every figure with ``<name>_interval`` beside it."""
        certification = self.choice.certification
        record: dict[str, Any] = {
            "policy": None if self.path is None or self.policy is None else str(self.path),
            "threshold": None if self.policy is None else self.policy.threshold,
            "target": str(self.target),
            "check": self.check,
            "certified": self.choice.certified,
            "reason": self.choice.reason,
            "guarantee": None if self.choice.guarantee is None else self.choice.guarantee.model_dump(),
            "always_escalate": self.choice.always,
            "enough_prompts": self.choice.enough_prompts,
            "candidates": [
                {
                    "threshold": policy.threshold,
                    "escalation_rate": run.rate("escalation_rate"),
                    "accuracy": run.accuracy,
                    "risk": float(certification.risks[number]) if certification is not None else None,
                    "p_value": float(certification.p_values[number]) if certification is not None else None,
                }
                for number, (policy, run) in enumerate(self.choice.tried)
            ],
            "pair": self.pair.model_dump(),
            "prompts": self.prompts.to_dict(),
            "options": self.options.model_dump(),
            **self.gap.to_dict("gap"),
            "rounds": [one.to_dict() for one in self.rounds],
            "seconds": dict(self.seconds),
        }
        if self.held is not None:
            record["report"] = {
                "n": len(self.held.fast),
                "accuracy_fast": self.held.fast.accuracy,
                "accuracy_slow": self.held.slow.accuracy,
                **self.held.gap.to_dict("gap"),
                "metrics": metrics_record(self.held.metrics),
                "rounds": metrics_record(self.held.rounds),
                "curves": None
                if self.held.curves is None
                else {name: curve.to_dict() for name, curve in self.held.curves.items()},
            }
        return record


def calibrate(
    fast: TokenModel | str | None = None,
    slow: TokenModel | str | None = None,
    prompts: str | Path | Prompts | None = None,
    *,
    out: str | Path,
    target_rate: float | None = None,
    max_regret: float | None = None,
    confidence: float = 0.9,
    max_cost: float | None = None,
    check: str | Judge | None = None,
    count: int = 1000,
    work: str | Path | None = None,
    report: str | Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Calibration:
    """Make a policy file for a pair from prompts, with a stated and tested target.

    ::

        calibrate("llama_cpp:small.gguf", "llama_cpp:large.gguf", "prompts.jsonl",
                  out="policy.safetensors", max_regret=0.05, confidence=0.9)

    Without models: the reference pair and ``count`` problems of its own. One of ``target_rate``,
    ``max_regret`` with ``confidence``, and ``max_cost`` (measured seconds against the slow model alone); see
    :class:`Target`. The default is the least escalation with a regret of at most 0.05, certified if possible,
    and ``choice.reason`` says whether it is. ``check`` says when an answer is right. ``work`` (default: beside
    ``out``) keeps what is finished, so that an interrupted calibration goes on where it stopped, and
    another target costs no new traces. ``report`` is an HTML file. ``options`` are
    :class:`CalibrationOptions`.

    Nothing is written to ``out`` where no candidate meets the target. Raises :class:`NothingToGain`
    where the slow model is not measurably better, :class:`InvalidRequest` for a file that cannot be used
    or too few prompts for the certificate, :class:`CheckerFailed`, and :class:`CalibrationError` where
    results cannot be written.
    """
    parsed = make_options(**options)
    target = make_target(target_rate=target_rate, max_regret=max_regret, confidence=confidence, max_cost=max_cost)
    require_rate_to_hold(parsed, target)
    loaded = load_prompts(prompts, fast, slow, count=count)
    require_enough_prompts(loaded, target)
    path = check_output(out)
    if report is not None:
        from .report import check_report_path

        check_report_path(report)
    stages = Stages(progress or Silent())
    with open_pair(fast, slow, seed=parsed.seed) as router:
        bench = open_bench(
            router,
            loaded,
            work_directory(path, work),
            check=check,
            stages=stages,
            **parsed.model_dump(exclude_unset=True),
        )
        gap = require_gap(bench)
        fitted = collect_and_fit(bench, target)
        choice = choose(bench, fitted, target)
        policy = choice.policy
        shown = policy if policy is not None else _nominal(bench, fitted, target)
        held = hold_out(bench, fitted, shown)
        if policy is not None and not choice.always:
            policy = watch(bench, policy)
        if policy is not None:
            inputs = make_inputs(router.fast.tokenizer, loaded, stop=parsed.stop)
            policy = replace(policy, pair=bench.pair, method=make_method(parsed.method).name, inputs=inputs)
            if parsed.hold:
                assert target.rate is not None
                policy = policy.holding(target.rate)
        card = None if policy is None else make_card(bench, policy, choice, target, held)
        pair = bench.pair
    if policy is not None and card is not None:
        save_policy(path, policy, card)
    calibration = Calibration(
        policy=policy,
        card=card,
        target=target,
        choice=choice,
        prompts=loaded,
        pair=pair,
        options=parsed,
        gap=gap,
        rounds=fitted.rounds,
        held=held,
        seconds=stages.seconds,
        path=path,
        check=bench.check,
    )
    if report is not None:
        from .report import write_report

        write_report(calibration, report)
    return calibration


def _nominal(bench: Bench, fitted: Fitted, target: Target) -> Learned:
    """What figures are given of where no candidate met the target."""
    options = bench.options
    return policy_at(
        fitted.scorer,
        fitted.scores(),
        fitted.traces.answer,
        target.nominal_rate,
        extent=options.extent,
        span=options.span,
    )


def load_prompts(
    prompts: str | Path | Prompts | None, fast: object = None, slow: object = None, *, count: int = 1000
) -> Prompts:
    """Prompts as they are, from a file, or the reference pair's own."""
    if isinstance(prompts, Prompts):
        return prompts
    if prompts is not None:
        return read_prompts(prompts)
    if fast is not None or slow is not None:
        raise ConfigurationError("prompts are missing", hint="name a file of JSON lines for models of your own")
    return reference_prompts(count)


def open_pair(fast: TokenModel | str | None, slow: TokenModel | str | None, *, seed: int = 0) -> Router:
    """A Router over the pair. Raises :class:`ConfigurationError` where the slow model gives only text: its
    choices at every position cannot be read then."""
    router = Router(fast, slow, policy="never", method="replace", seed=seed)
    try:
        local_slow(router)
    except ConfigurationError:
        router.close()
        raise
    return router


def work_directory(out: Path, work: str | Path | None) -> Path:
    """Where finished parts are kept: beside the policy file unless it is named."""
    return out.with_suffix(".work") if work is None else Path(work)


def check_output(out: str | Path) -> Path:
    """The path of the policy file, checked before hours of work and not after."""
    path = Path(out)
    if path.suffix != ".safetensors":
        raise ConfigurationError(f"{path} is no policy file", hint="end it with .safetensors")
    if not path.parent.is_dir():
        raise ConfigurationError(f"there is no folder {path.parent}", hint="make it first")
    return path


def require_rate_to_hold(options: CalibrationOptions, target: Target) -> None:
    """Raise :class:`ConfigurationError` for a threshold that should follow a rate, where none is the target."""
    if options.hold and target.rate is None:
        raise ConfigurationError("hold without a target rate", hint="add --target-rate, which it follows")


def require_enough_prompts(prompts: Prompts, target: Target) -> None:
    """Raise :class:`InvalidRequest` where a certificate is asked for and no result at all could be certified."""
    if target.max_regret is None or not target.certain:
        return
    least, given = fewest_prompts(target.max_regret, 1.0 - target.confidence), len(prompts.calibration)
    if given < least:
        whole = math.ceil(least * len(prompts) / given)
        raise InvalidRequest(
            f"{given} calibration prompts certify nothing: {target} takes at least {least}, even if no answer is wrong",
            hint=f"give about {whole} prompts, of which {given / len(prompts):.0%} are for calibration",
        )


def make_card(bench: Bench, policy: Learned, choice: Choice, target: Target, held: Held) -> PolicyCard:
    """The header of the policy file."""
    metrics = {
        f"{name}_{metric}": Metric(value=estimate.value, interval=estimate.interval)
        for name, found in held.metrics.items()
        for metric, estimate in found.items()
    }
    if held.routed is not None:
        for name, estimate in (
            ("accuracy", interval(held.routed.column("right"))),
            ("accuracy_fast", interval(held.fast.column("right"))),
            ("accuracy_slow", interval(held.slow.column("right"))),
            ("escalation_rate", interval(held.routed.column("escalations"), held.routed.column("decisions"))),
        ):
            metrics[name] = Metric(value=estimate.value, interval=estimate.interval)
    return PolicyCard(
        created=datetime.date.today().isoformat(),
        pair=bench.pair,
        method=make_method(bench.options.method).name,
        label=bench.options.label,
        signals=scorer_signals(policy.scorer),
        data_hash=bench.prompts.sha256,
        splits={split: len(items) for split, items in bench.prompts},
        metrics=metrics,
        guarantee=policy.certificate,
        seed=bench.options.seed,
        versions=library_versions(),
        notes=(f"target: {target}", choice.reason),
    )


def scorer_signals(scorer: Scorer) -> tuple[str, ...]:
    """Names of what a scorer reads."""
    spec: Any = scorer.spec()
    size = hidden_size(spec)
    names: list[str] = []
    while isinstance(spec, dict):
        names += spec.get("features") or spec.get("classes") or filter(None, [spec.get("signal")])
        names += ["token_id"] if spec["kind"] == "token_prior" else []
        spec = spec.get("inner")
    states = set(hidden_names(size))
    return (*(name for name in names if name not in states), *([f"hidden state ({size} wide)"] if size else []))
