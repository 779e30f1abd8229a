"""From a pair and prompts to a recommendation: all steps in their order."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .._version import __version__
from ..calibration import Stages, WorkDirectory, bind, make_checker
from ..calibration.checks import Checker, Judge
from ..calibration.progress import Progress, Silent
from ..calibration.prompts import prompt_key
from ..calibration.report import check_report_path
from ..calibration.store import check_folder
from ..costs import PairCost
from ..errors import CheckerFailed, ConfigurationError, InvalidRequest
from ..evaluation import Item, Run, read_items, reference_items
from ..evaluation.different import files_of
from ..evaluation.intervals import RESAMPLES
from ..policies import make_policy
from ..policies.cards import fingerprint
from ..records import Prices
from ..reference import policy_path
from ..run.workers import AnyModel
from .decision import Option, decide
from .expectation import expected_seconds, measured_costs
from .figures import PREFERENCES, Columns, Figures, columns_of, find, make_figures
from .measuring import BLOCK, EXTRAS, Measurements
from .models import Models, check_prompts, require_both
from .modes import DEFAULT, Mode, Seat, alone_modes, pair_modes
from .page import write_page
from .result import Recommendation, machine
from .whole_query import whole_queries
from .words import as_options, as_python, evidence

DEFAULT_QUALITY_LOSS = 0.02
DEFAULT_COUNT = 40
ENOUGH_TO_DOUBT = 16
"""Prompts after which a checker that found no right answer is taken for a wrong one."""


def recommend(
    fast: AnyModel | str | None = None,
    slow: AnyModel | str | None = None,
    prompts: str | Path | Sequence[Item] | None = None,
    *,
    middle: AnyModel | str | None = None,
    tuned: AnyModel | str | None = None,
    policies: Sequence[str] = (),
    check: str | Judge | None = None,
    count: int | None = None,
    quality_loss: float = DEFAULT_QUALITY_LOSS,
    prefer: str = "seconds",
    prices: Prices | None = None,
    at_once: int = 4,
    max_tokens: int = 256,
    stop: Sequence[str] = (),
    seed: int = 0,
    resamples: int = RESAMPLES,
    work: str | Path | None = None,
    report: str | Path | None = None,
    progress: Progress | None = None,
) -> Recommendation:
    """Measure what a pair can do on prompts, in turns, and say which of it to use.

    ::

        found = recommend("llama_cpp:small.gguf", "llama_cpp:large.gguf", "problems.jsonl", check="number")
        print(found.evidence, found.python)

    Without models: the reference pair and ``count`` problems of its own (40); of a file, its first ``count``, or all.
    ``tuned`` is the fast model after a tuning, for the method ``proxy``. ``policies`` are measured beside the modes
    that always are, each as a short form or a file. At most ``quality_loss`` of accuracy may be lost against the slow
    model alone; what is saved counts in ``prefer``: seconds, money (with ``prices`` of the slow model) or flops.
    ``at_once`` requests at a time are measured beside one; 1 leaves that out. ``work`` (default: beside ``report``)
    keeps what is finished. Beside a local pair's measured seconds stand those that its cost model expects. Answers are
    greedy.

    Raises :class:`ConfigurationError` for what does not go together (two models that are one file),
    :class:`InvalidRequest` for prompts that cannot be used (:class:`PromptTooLong` where one leaves no room for an
    answer), and :class:`CheckerFailed` where the checker raises or finds no answer of either model right.
    """
    _check_wishes(quality_loss, prefer, prices, at_once, max_tokens)
    require_both(fast, slow)
    if report is not None:
        check_report_path(report)
    for policy in policies:
        make_policy(policy)
    items, source = load_items(prompts, fast, slow, count=count)
    checker = make_checker(check, items)
    notes = []
    if at_once > len(items):
        notes.append(f"{at_once} at once were asked for, and there are {len(items)} prompts")
        at_once = len(items)
    stages = Stages(progress or Silent())
    with (
        _work_directory(work, report) as folder,
        Models(fast, slow, middle, tuned=tuned, at_once=at_once, seed=seed, prices=prices) as models,
    ):
        if prefer == "flops" and models.loaded["slow"].n_params is None:
            raise ConfigurationError(
                f"{models.loaded['slow'].name} does not say its size, so its FLOPs are unknown",
                hint="prefer seconds or money",
            )
        notes += check_prompts(models, items, max_tokens=max_tokens)
        if at_once > models.at_once:
            notes.append(f"{at_once} at once were asked for, and the models hold {models.at_once} (n_seq)")
            at_once = models.at_once
        names: dict[Seat, str] = {
            seat: model if isinstance(model, str) else model.name for seat, model in models.named.items()
        }
        options = {"max_tokens": max_tokens, "stop": tuple(stop), "seed": seed}
        directory = WorkDirectory(folder, _belongs_to(models, names, items, options))
        with stages.stage("what forwards cost", 1):
            costs, said = measured_costs(models, directory)
        notes += said
        measured, modes = _measure(
            models, items, directory, options, checker, stages, policies=policies, at_once=at_once, seed=seed
        )
        with stages.stage("intervals", 1):
            figures = _figures(models, measured, modes, checker, prices, at_once, seed, resamples, costs)
        is_reference = models.is_reference
    notes += [
        f"{one.mode.name}: {one.differ} of {one.n} texts are not the slow model's own, so its loss counts as any does "
        "(where several tokens are read at once, ties of quantised models may break otherwise)"
        for one in figures
        if one.mode.lossless and one.differ
    ]
    advice = decide(
        [_option(one, prefer) for one in figures if one.mode.kind != "slow"],
        slow=figures[0].mode.name,
        quality_loss=quality_loss,
    )
    chosen = find(figures, advice.mode)
    found = Recommendation(
        advice=advice,
        figures=tuple(figures),
        evidence=tuple(evidence(advice, figures, prefer=prefer, quality_loss=quality_loss)),
        python=as_python(chosen, names, reference=is_reference),
        options=as_options(chosen, names, reference=is_reference),
        models=names,
        source=source,
        check=checker.name,
        prefer=prefer,
        quality_loss=quality_loss,
        at_once=at_once,
        max_tokens=max_tokens,
        seed=seed,
        notes=tuple(notes),
        prices=prices,
        seconds=stages.seconds,
    )
    if report is not None:
        write_page(found, report)
    return found


def _check_wishes(quality_loss: float, prefer: str, prices: Prices | None, at_once: int, max_tokens: int) -> None:
    if not 0.0 <= quality_loss < 1.0:
        raise ConfigurationError(
            f"a quality loss of {quality_loss}", hint="a share of the prompts from 0 on, like 0.02"
        )
    if prefer not in PREFERENCES:
        raise ConfigurationError(f"unknown preference {prefer!r}", hint=f"available: {', '.join(PREFERENCES)}")
    if prefer == "money" and prices is None:
        raise ConfigurationError("money without prices", hint="give the slow model's prices per million tokens")
    for name, count in (("at_once", at_once), ("max_tokens", max_tokens)):
        if count < 1:
            raise ConfigurationError(f"{name}={count}", hint="at least 1")


def load_items(
    prompts: str | Path | Sequence[Item] | None, fast: object = None, slow: object = None, *, count: int | None = None
) -> tuple[list[Item], str]:
    """Different prompts, and where they are from; raises :class:`InvalidRequest` for fewer than two."""
    if count is not None and count < 2:
        raise ConfigurationError(f"{count} prompts", hint="at least 2: intervals are drawn from them")
    if prompts is None:
        if fast is not None or slow is not None:
            raise ConfigurationError("prompts are missing", hint="name a file of JSON lines for models of your own")
        count = count or DEFAULT_COUNT
        return reference_items("calibration", count), "the reference pair's own problems"
    items = read_items(prompts, answers=False) if isinstance(prompts, str | Path) else list(prompts)
    unique: dict[str, Item] = {}
    for item in items:
        unique.setdefault(prompt_key(item), item)
    kept = list(unique.values())[:count]
    if len(kept) < 2:
        raise InvalidRequest(f"{len(kept)} different prompts", hint="give two at least, better hundreds")
    return kept, str(prompts) if isinstance(prompts, str | Path) else "items"


def _work_directory(work: str | Path | None, report: str | Path | None) -> AbstractContextManager[str | Path]:
    if work is not None:
        return nullcontext(check_folder(work))
    if report is not None:
        return nullcontext(check_folder(Path(report).with_suffix(".work")))
    return tempfile.TemporaryDirectory(prefix="fsgen-recommend-")


def _belongs_to(
    models: Models, names: Mapping[Seat, str], items: Sequence[Item], options: Mapping[str, Any]
) -> dict[str, Any]:
    """What measurements depend on: also options of models, like their threads, and the machine."""
    router = models.router(("fast", "slow"))
    return {
        "version": __version__,
        "command": "recommend",
        "machine": machine(),
        "pair": fingerprint(router.fast, router.slow).model_dump(),
        "models": dict(names),
        "files": {seat: files_of(model) for seat, model in models.loaded.items()},
        "prompts": [prompt_key(item) for item in items],
        "options": {**options, "stop": list(options["stop"])},
        "extras": list(EXTRAS),
    }


def _measure(
    models: Models,
    items: Sequence[Item],
    work: WorkDirectory,
    options: Mapping[str, Any],
    checker: Checker,
    stages: Stages,
    *,
    policies: Sequence[str],
    at_once: int,
    seed: int,
) -> tuple[Measurements, list[Mode]]:
    """All modes on all prompts. Where handing over is worth a try is seen from the fast model's first answers."""
    measured = Measurements(models, items, work, options, at_once=at_once, seed=seed)
    measured.warm_up()
    local = "slow" in models.local
    several = (1, at_once) if at_once > 1 else (1,)
    alone = alone_modes(middle="middle" in models.named, tuned="tuned" in models.named, local=local)
    alone = [replace(mode, at_once=several) for mode in alone]
    # Of few prompts the slow model answers all before others take their turns: whether any answer is right shows now.
    few = len(items) <= BLOCK
    first = alone[:2] if few else alone[1:2]
    begun = len(first) * min(BLOCK, len(items))
    with stages.stage("both models alone" if few else "fast alone", begun) as on_items:
        measured.on_items = on_items
        for number in range(min(BLOCK, len(items))):
            for mode in first:
                measured.measure(mode, 1, number)
    if few:
        _require_right(measured, alone, checker, len(items))
    peaks = measured.sample(alone[1]).extras["peak_entropy_nats"]
    rest = float(f"{np.median(peaks):.3g}")
    modes = list(alone)
    for seats in _pairs(models):
        made = pair_modes(
            local=seats[1] in models.local, rest=rest, policies=policies, seats=seats, tuned="tuned" in models.named
        )
        if models.is_reference and seats == ("fast", "slow"):
            made.append(Mode(name=DEFAULT, kind="routed", policy=str(policy_path()), method=None))
        modes += [replace(mode, at_once=several) for mode in made]
    turns = sum(len(mode.at_once) for mode in modes)
    with stages.stage("all modes in turns", turns * len(items) - begun) as on_items:
        measured.on_items = on_items
        for done in measured.blocks(modes):
            if done >= ENOUGH_TO_DOUBT or done == len(items):
                _require_right(measured, alone, checker, done)
    return measured, modes


def _pairs(models: Models) -> list[tuple[Seat, Seat]]:
    pairs: list[tuple[Seat, Seat]] = [("fast", "slow")]
    if "middle" in models.named:
        pairs += [("fast", "middle"), ("middle", "slow")]
    return pairs


def _judged(measured: Measurements, modes: Sequence[Mode], checker: Checker, done: int) -> list[Run]:
    """Runs over the first ``done`` items, the slow model alone's first."""
    texts = measured.sample(modes[0]).answers.texts
    items = bind(checker, measured.items[:done], texts)
    return [measured.sample(mode).run(items, mode.name) for mode in modes]


def _require_right(measured: Measurements, alone: Sequence[Mode], checker: Checker, done: int) -> None:
    """Refuse to compare answers of which none is right: it would take the fastest for the best."""
    slow, fast, *_ = _judged(measured, alone[:2], checker, done)
    if slow.accuracy or fast.accuracy:
        return
    cut = int(slow.column("truncated").sum())
    longer = f" ({cut} answers of the slow model were cut off: more max_tokens?)" if cut else ""
    raise CheckerFailed(
        f"the checker {checker.name} finds no right answer of either model in {done} prompts{longer}",
        hint="look at an answer (fsgen-router complete) beside the expected one, and name another checker",
    )


def _figures(
    models: Models,
    measured: Measurements,
    modes: Sequence[Mode],
    checker: Checker,
    prices: Prices | None,
    at_once: int,
    seed: int,
    resamples: int,
    costs: PairCost | None,
) -> list[Figures]:
    runs = _judged(measured, modes, checker, len(measured.items))
    n_params = {seat: model.n_params for seat, model in models.loaded.items()}
    made: dict[str, Columns] = {}
    for mode, run in zip(modes, runs, strict=True):
        batch = measured.sample(mode, at_once) if at_once > 1 else None
        made[mode.name] = columns_of(mode, run, measured.sample(mode), batch, n_params=n_params, prices=prices)
    slow = made[modes[0].name]

    def figures(mode: Mode, columns: Columns, **known: Any) -> Figures:
        return make_figures(mode, columns, slow, seed=seed, resamples=resamples, **known)

    def expected(mode: Mode, run: Run) -> float | None:
        return None if costs is None else expected_seconds(costs, mode, models, run, measured.sample(mode))

    found = [
        figures(mode, made[mode.name], expected_seconds=expected(mode, run))
        for mode, run in zip(modes, runs, strict=True)
    ]
    alone, run = measured.sample(modes[1]), runs[1]
    for one in whole_queries(
        made[modes[1].name],
        slow,
        first_token_seconds=alone.extras["first_token_seconds"],
        prompt_flops=2.0 * (n_params["fast"] or 0) * run.column("prompt_tokens"),
        first_entropy=alone.extras["first_entropy_nats"],
        mean_entropy=run.column("mean_entropy_nats"),
        seats=("fast", "slow"),
    ):
        found.append(figures(one.mode, one.columns, derived=True, recipe=one.recipe))
    return found


def _option(one: Figures, prefer: str) -> Option:
    return Option(
        name=one.mode.name,
        kind=one.mode.kind,
        n=one.n,
        lost=one.lost,
        won=one.won,
        cost=one.cost(prefer),
        lossless=one.lossless,
    )
