"""What every step works on: a pair, prompts that both models have answered alone, a work directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .._version import __version__
from ..contracts.models import TokenModel
from ..errors import ConfigurationError, NothingToGain
from ..evaluation import SLOW_ONLY, Estimate, Run, interval
from ..methods import make_method
from ..policies import Learned
from ..policies.cards import Pair, fingerprint
from ..router import Router
from .answers import Answers
from .checks import Judge, bind, make_checker
from .fit import SCORERS
from .options import CalibrationOptions, make_options
from .progress import Stages
from .prompts import Prompts, SplitName, read_prompts, reference_prompts
from .runner import Runner
from .store import WorkDirectory
from .traces import Traces, local_slow, trace_answers


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
        return _pair(self.router, self.options.method)

    def run(self, split: SplitName, policy: str) -> Run:
        return self.runners[split].run(policy)

    def route(self, split: SplitName, policy: Learned, stage: str) -> tuple[Answers, Run]:
        """The answers of a split's prompts under a policy, with their run, as a stage of its own."""
        runner = self.runners[split]
        with self.stages.stage(stage, len(runner.items)) as runner.on_items:
            answers = runner.answers(policy, self.options.method)
        runner.on_items = None
        return answers, answers.run(runner.items, policy.name)

    def trace(self, split: SplitName, answers: Answers, name: str, *, round: int = 0) -> Traces:
        """What both models say at every position of these answers."""
        items = self.runners[split].items
        with self.stages.stage("traces", len(items)) as on_items:
            return trace_answers(
                self.router,
                items,
                answers,
                work=self.work,
                name=name,
                round=round,
                own=name.endswith("-own"),
                hidden=self.options.hidden,
                on_items=on_items,
            )


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
    for method in (parsed.method, *(name for name in parsed.compare if name not in SCORERS)):
        router.with_policy("never", method=method)  # which refuses what the pair cannot do
    if parsed.hidden and router.fast.capabilities.hidden_size is None:
        raise ConfigurationError(f"{router.fast.name} gives no hidden states", hint="calibrate without --hidden")
    checker = make_checker(check, [item for _, items in prompts for item in items])
    pair = _pair(router, parsed.method)
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


def _pair(router: Router, method: str) -> Pair:
    """Which models a policy is made for: a third one only where its method reads it."""
    reads_tuned = "tuned" in make_method(method).roles
    return fingerprint(router.fast, local_slow(router), router.tuned if reads_tuned else None)


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


def open_pair(
    fast: TokenModel | str | None,
    slow: TokenModel | str | None,
    *,
    tuned: TokenModel | str | None = None,
    seed: int = 0,
) -> Router:
    """A Router over the pair, and a third model where a method reads one.

    Raises :class:`ConfigurationError` where the slow model gives only text: its choices at every position cannot be
    read then.
    """
    router = Router(fast, slow, tuned=tuned, policy="never", method="replace", seed=seed)
    try:
        local_slow(router)
    except ConfigurationError:
        router.close()
        raise
    return router


def work_directory(out: Path, work: str | Path | None) -> Path:
    """Where finished parts are kept: beside the policy file unless it is named."""
    return out.with_suffix(".work") if work is None else Path(work)
