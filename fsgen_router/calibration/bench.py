"""What every step works on: a pair, prompts that both models have answered alone, a work directory."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .._version import __version__
from ..contracts.models import TokenModel
from ..costs.machine import machine
from ..errors import ConfigurationError, InvalidRequest, NothingToGain, PromptTooLong
from ..evaluation import SLOW_ONLY, Estimate, Item, Run, interval
from ..evaluation.different import require_different, require_different_files
from ..methods import make_method
from ..policies import Learned
from ..policies.cards import Pair, fingerprint
from ..router import Router
from ..run.workers import AnyModel
from .answers import Answers
from .checks import Judge, bind, make_checker
from .fit import SCORERS
from .options import CalibrationOptions, make_options
from .progress import Stages
from .prompts import Prompts, SplitName, read_prompts, reference_prompts
from .rows import SharedRows
from .runner import Runner
from .store import WorkDirectory
from .traces import Traces, encode_item, local_slow, trace_answers


@dataclass
class Bench:
    """A pair, prompts and a work directory: what every step needs. Made by :func:`open_bench`."""

    router: Router
    """The pair with a trie in front of each model: what any run has read is read once."""
    prompts: Prompts
    work: WorkDirectory
    options: CalibrationOptions
    stages: Stages
    runners: dict[SplitName, Runner]
    rows: SharedRows
    plain: Router
    """The pair itself, for what is timed."""
    check: str = "answer"
    """The checker's name."""

    @property
    def pair(self) -> Pair:
        return _pair(self.router, self.options.method)

    def run(self, split: SplitName, policy: str) -> Run:
        return self.runners[split].run(policy)

    def timed(self, split: SplitName, count: int | None = None) -> Runner:
        """A runner over a split's first ``count`` prompts (None: all) whose seconds are those of serving: no row comes
        from a trie. A few are asked one at a time."""
        runner = self.runners[split]
        concurrency = runner.concurrency if count is None else 1
        # Seconds are of a machine, and of how many were asked at once.
        taken = [getattr(model, "identity", None) for model in (self.plain.fast, self.plain.slow, self.plain.tuned)]
        where = hashlib.sha256(repr((machine(), taken, concurrency)).encode()).hexdigest()[:8]
        name = f"{split}-timed-{where}"
        return Runner(self.plain, runner.items[:count], self.work, name, runner.options, concurrency)

    def route(self, split: SplitName, policy: Learned, stage: str) -> tuple[Answers, Run]:
        """The answers of a split's prompts under a policy, to be traced, with their run, as a stage of its own."""
        runner = self.runners[split]
        with self.stages.stage(stage, len(runner.items)) as runner.on_items:
            answers = runner.answers(policy, self.options.method, traced=True)
        runner.on_items = None
        return answers, answers.run(runner.items, policy.name)

    def trace(self, split: SplitName, answers: Answers, name: str, *, round: int = 0, asks_slow: bool = True) -> Traces:
        """What both models say at every position of these answers, or the fast one alone."""
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
                asks_slow=asks_slow,
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
    to another pair, file or options, and :class:`PromptTooLong`, before anything runs, naming a prompt that fits no
    context, or fills more than half of one and leaves no room for ``max_tokens``.
    """
    parsed = make_options(**options)
    stages = stages or Stages()
    require_feasible(router, prompts, parsed)
    checker = make_checker(check, [item for _, items in prompts for item in items])
    pair = _pair(router, parsed.method)
    directory = WorkDirectory(
        work,
        {
            "version": __version__,
            "pair": pair.model_dump(),
            "models": [_written_by(model) for model in (router.fast, router.slow, router.tuned) if model is not None],
            "prompts": prompts.sha256,
            "options": {**parsed.request, "stop": list(parsed.stop)},
        },
    )
    rows = SharedRows(router, directory, limit_bytes=parsed.row_memory, hidden=parsed.hidden)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said of this pair above
        _try_methods(rows.router, parsed)
    directory.before_chunk = rows.save
    concurrency = parsed.concurrency or min(router.fast.n_seq, local_slow(router).n_seq)
    behind = rows.read_both if parsed.row_memory else None
    with stages.stage("both models alone", 2 * len(prompts)) as on_items:
        runners: dict[SplitName, Runner] = {}
        for split, items in prompts:
            runner = Runner(rows.router, items, directory, split, parsed.request, concurrency, on_items, behind)
            # Answers near the slow model's own are what safe policies write: both read it whole, in one piece.
            slow = runner.answers(SLOW_ONLY, traced=True)
            runner.answers("never")
            runner.items = bind(checker, items, slow.texts)
            runner.on_items = None
            runners[split] = runner
    return Bench(rows.router, prompts, directory, parsed, stages, runners, rows, router, checker.name)


def _written_by(model: AnyModel) -> dict[str, str]:
    """What a model's answers depend on, beside its name: its files, and the options that it was loaded with."""
    identity: dict[str, str] = getattr(model, "identity", None) or {}
    return {part: identity[part] for part in ("files", "config", "parameters", "options") if part in identity}


def require_feasible(router: Router, prompts: Prompts, options: CalibrationOptions) -> None:
    """Refuse what the pair cannot do, and prompts that leave no room, before anything runs."""
    _try_methods(router, options)
    if options.hidden and router.fast.capabilities.hidden_size is None:
        raise ConfigurationError(f"{router.fast.name} gives no hidden states", hint="calibrate without --hidden")
    _require_room(router, prompts, options.max_tokens)


def _try_methods(router: Router, options: CalibrationOptions) -> None:
    """Refuse methods that the pair cannot do, and warn of what it does badly."""
    for method in (options.method, *(name for name in options.compare if name not in SCORERS)):
        router.with_policy(f"entropy>1,span={options.extent}", method=method)  # a threshold, as those to come


def _require_room(router: Router, prompts: Prompts, max_tokens: int) -> None:
    """Raise :class:`PromptTooLong` for prompts whose answers the context would cut off."""
    for model in (router.fast, local_slow(router)):
        sizes = [(_tokens(model, item), item) for _, items in prompts for item in items]
        long = [(n, item) for n, item in sizes if n > model.n_ctx / 2 and n + max_tokens > model.n_ctx]
        if long:
            size, item = max(long, key=lambda one: one[0])
            where = f" ({item.place})" if item.place else ""
            more = f" (and so have {len(long) - 1} more)" if len(long) > 1 else ""
            raise PromptTooLong(
                f"item {item.id}{where} has {size} tokens, more than half of the {model.n_ctx} that the context of "
                f"{model.name} holds, which leaves no room for answers of {max_tokens}{more}",
                hint="load the model with a larger n_ctx, ask for a smaller max_tokens, or leave these prompts out",
            )


def _tokens(model: TokenModel, item: Item) -> int:
    try:
        return len(encode_item(model.tokenizer, item))
    except InvalidRequest as error:
        raise type(error)(f"item {item.id}: {error.message}", hint=error.hint) from None


def _pair(router: Router, method: str) -> Pair:
    """Which models a policy is made for: a third one only where its method reads it."""
    reads_tuned = "tuned" in make_method(method).roles
    return fingerprint(router.fast, local_slow(router), router.tuned if reads_tuned else None)


def require_gap(bench: Bench) -> Estimate:
    """accuracy_slow - accuracy_fast on the fit and calibration prompts.

    Raises :class:`NothingToGain` where its 95% interval does not lie above 0, and where neither is ever right.
    """
    splits: tuple[SplitName, ...] = ("fit", "calibration")
    fast, slow = (
        np.concatenate([bench.run(split, policy).column("right") for split in splits])
        for policy in ("never", SLOW_ONLY)
    )
    gap = interval(slow - fast, seed=bench.options.seed)
    if not (fast.any() or slow.any()):
        cut = np.concatenate([bench.run(split, SLOW_ONLY).column("truncated") for split in splits]).mean()
        raise NothingToGain(
            f"the checker {bench.check} finds no right answer of either model to {len(slow)} prompts",
            hint="look at what they answer and at what is expected (--check says how they are compared); "
            f"{cut:.0%} of the slow model's answers were cut off at {bench.options.max_tokens} tokens or the context",
        )
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

    Raises :class:`ConfigurationError` where both are one file, and where the slow model gives only text: its choices at
    every position cannot be read then.
    """
    require_different((seat, model) for seat, model in (("fast", fast), ("slow", slow)) if model is not None)
    router = Router(fast, slow, tuned=tuned, policy="never", method="replace", seed=seed)
    try:
        require_different_files((("fast", router.fast), ("slow", local_slow(router))))
    except ConfigurationError:
        router.close()
        raise
    return router


def work_directory(out: Path, work: str | Path | None) -> Path:
    """Where finished parts are kept: beside the policy file unless it is named."""
    return out.with_suffix(".work") if work is None else Path(work)
