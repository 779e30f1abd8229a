"""Running a study's cells, each once: what is finished lies in its work directory, and what fails fails alone."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import re
import signal
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from .. import __version__
from ..calibration.answers import CHUNK, Answers, answer_items
from ..calibration.progress import Progress, Silent
from ..calibration.store import Arrays, WorkDirectory
from ..contracts.methods import Method
from ..contracts.models import TokenModel
from ..contracts.text_models import reads_tokens
from ..errors import CalibrationError, ConfigurationError, FsgenError
from ..evaluation import SLOW_ONLY, EqualWork, Estimate, Item, at_equal_work, interval, run_items
from ..generation import Generation
from ..methods import Replace, Verify, make_method
from ..policies import make_policy
from ..resolve import make_model
from ..router import Router
from ..run.workers import AnyModel
from ..text.vocabulary import vocabulary_hash
from .config import DatasetSpec, ModelSpec, PairSpec, StudyConfig
from .measures import CellResult, Key, measure
from .policies import SWEEP, PolicyResult
from .positions import Positions, read_positions

_BATCHED = ("llama_cpp", "reference", "transformers")
"""Backends whose models hold several sequences (``n_seq``)."""


@dataclass(frozen=True, slots=True)
class Study:
    """A study that was run: its cells in the order of pairs, data sets, seeds and methods."""

    config: StudyConfig
    cells: tuple[CellResult, ...]
    policies: tuple[PolicyResult, ...] = ()
    """Policies beside token routing, in the order of pairs, data sets, seeds and policies."""

    @property
    def measured(self) -> list[CellResult]:
        return [cell for cell in self.cells if cell.found is not None]


class _Models:
    """The models that are loaded: those of the pair at hand, each once."""

    def __init__(self, concurrency: int) -> None:
        self._concurrency = concurrency
        self._loaded: dict[str, TokenModel] = {}
        self._failed: dict[str, Exception] = {}

    def keep(self, wanted: Sequence[str]) -> None:
        """Free every other model."""
        for string in [string for string in self._loaded if string not in wanted]:
            self._loaded.pop(string).shutdown()

    def get(self, string: str) -> TokenModel:
        """A model, loaded where it is not. One that could not be loaded is not tried again."""
        if string in self._failed:
            raise self._failed[string]
        if string not in self._loaded:
            try:
                model = make_model(self._with_sequences(string))
                if not reads_tokens(model):
                    raise ConfigurationError(
                        f"{string} gives text, no logits, so its tokens cannot be compared", hint="take a local model"
                    )
            except (FsgenError, ImportError) as error:
                self._failed[string] = error
                raise
            self._loaded[string] = model
        return self._loaded[string]

    def _with_sequences(self, string: str) -> str:
        backend, _, rest = string.partition(":")
        if backend not in _BATCHED or re.search(r"[?&]n_seq=", rest):
            return string
        return f"{string}{'&' if '?' in rest else '?'}n_seq={self._concurrency}"


def run_study(config: StudyConfig, *, work: str | Path, jobs: int = 1, progress: Progress | None = None) -> Study:
    """Run every cell, or read from the folder ``work`` what an earlier run finished.

    ``jobs`` pairs run side by side, each in a process of its own with its own models: for small models, which this
    package's own work in one thread holds up. (A script that asks for several needs Python's usual guard,
    ``if __name__ == "__main__"``.) A cell that fails says why in its ``error``, and the others go on: a
    missing model, a file of prompts that is wrong, too few tokens. Raises :class:`CalibrationError` where ``work``
    cannot be written, and :class:`ConfigurationError` for less than one job.
    """
    pairs = config.all_pairs()
    if jobs < 1:
        raise ConfigurationError(f"{jobs} jobs", hint="at least 1: pairs that run side by side")
    progress = progress or Silent()
    if min(jobs, len(pairs)) > 1:
        found = _side_by_side(config, len(pairs), Path(work), jobs, progress)
    else:
        found = _one_by_one(config, pairs, Path(work), progress)
    return Study(
        config, tuple(c for cells, _ in found for c in cells), tuple(p for _, policies in found for p in policies)
    )


_Found: TypeAlias = tuple[list[CellResult], list[PolicyResult]]
"""What came of one pair."""


def _one_by_one(config: StudyConfig, pairs: Sequence[PairSpec], work: Path, progress: Progress) -> list[_Found]:
    models = _Models(config.concurrency)
    try:
        runners = (
            _PairRunner(config, pair, models, work, progress, f"pair {number}/{len(pairs)}")
            for number, pair in enumerate(pairs, 1)
        )
        return [(runner.run(), runner.policies) for runner in runners]
    finally:
        models.keep([])


def _side_by_side(config: StudyConfig, pairs: int, work: Path, jobs: int, progress: Progress) -> list[_Found]:
    """The same from processes. An interruption ends them; what is finished is kept."""
    # A process that was forked would have its parent's threads' locks and none of their threads.
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=_leave_interrupts_to_the_parent)
    try:
        progress.begin(f"{pairs} pairs, {jobs} at a time", pairs)
        running = [pool.submit(_one_pair, config, number, work) for number in range(pairs)]
        for _ in as_completed(running):
            progress.advance(1)
        found = [pair.result() for pair in running]
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    pool.shutdown()
    return found


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _one_pair(config: StudyConfig, number: int, work: Path) -> _Found:
    (found,) = _one_by_one(config, config.all_pairs()[number : number + 1], work, Silent())
    return found


class _PairRunner:
    """One pair's cells."""

    def __init__(
        self,
        config: StudyConfig,
        pair: PairSpec,
        models: _Models,
        work: Path,
        progress: Progress,
        title: str,
    ) -> None:
        self.config, self.pair = config, pair
        self.named = [config.model(label) for label in (pair.fast, pair.slow, *([pair.tuned] if pair.tuned else []))]
        self._models, self._work, self._progress, self._title = models, work, progress, title
        self._without: Exception | None = None  # why the tuned model is missing
        self.policies: list[PolicyResult] = []

    def run(self) -> list[CellResult]:
        config = self.config
        where = [(dataset, seed) for dataset in config.datasets for seed in config.seeds]
        self._models.keep([spec.model for spec in self.named])
        try:
            fast, slow = (self._models.get(spec.model) for spec in self.named[:2])
            router = _open(fast, slow, self._tuned(), batching=config.concurrency > 1)
        except (FsgenError, ImportError) as error:
            return [cell for dataset, seed in where for cell in self._all_failed(dataset, seed, error)]
        with router:
            return [cell for dataset, seed in where for cell in self._on(router, dataset, seed)]

    def _tuned(self) -> TokenModel | None:
        """The tuned model; without it only the methods that read one cannot run."""
        try:
            return self._models.get(self.named[2].model) if len(self.named) > 2 else None
        except (FsgenError, ImportError) as error:
            self._without = error
            return None

    def _key(self, dataset: DatasetSpec, seed: int, method: str, router: Router | None = None) -> Key:
        sizes: list[float | None] = [spec.size for spec in self.named[:2]]
        if router is not None:
            models = (router.fast, router.slow)
            sizes = [
                size or (model.n_params / 1e9 if model.n_params else None)
                for size, model in zip(sizes, models, strict=True)
            ]
        return Key(
            fast=self.pair.fast,
            slow=self.pair.slow,
            tuned=self.pair.tuned,
            method=method,
            dataset=dataset.label,
            seed=seed,
            fast_params_b=sizes[0],
            slow_params_b=sizes[1],
        )

    def _failed(
        self, dataset: DatasetSpec, seed: int, method: str, error: Exception, router: Router | None = None
    ) -> CellResult:
        return CellResult(self._key(dataset, seed, method, router), error=str(error))

    def _all_failed(
        self, dataset: DatasetSpec, seed: int, error: Exception, router: Router | None = None
    ) -> list[CellResult]:
        """Nothing on this data set can be measured."""
        for policy in self.config.policies:
            self.policies.append(PolicyResult(self._key(dataset, seed, policy, router), error=str(error)))
        return [self._failed(dataset, seed, method, error, router) for method in self.config.methods]

    def _on(self, router: Router, dataset: DatasetSpec, seed: int) -> list[CellResult]:
        """All methods on one data set."""
        config = self.config
        try:
            items = dataset.items(dataset.n or config.n, seed)
            runner = _Runner(router, self.named, items, dataset, config, self._work, self._progress)
            self._progress.begin(f"{self._title}, {dataset.label}, alone", runner.roles * len(items))
            alone = runner.alone()
        except CalibrationError:
            raise  # nothing can be kept
        except FsgenError as error:
            return self._all_failed(dataset, seed, error, router)
        results = []
        for method in config.methods:
            key = self._key(dataset, seed, method, router)
            self._progress.begin(f"{self._title}, {dataset.label}, {method}", len(items))
            try:
                if self._without is not None and "tuned" in make_method(method).roles:
                    raise self._without
                results.append(runner.cell(key, alone, seed))
            except CalibrationError:
                raise
            except (FsgenError, ImportError) as error:
                results.append(CellResult(key, error=str(error)))
        if config.policies:
            self.policies += self._beside(runner, alone, [self._key(dataset, seed, p, router) for p in config.policies])
        return results

    def _beside(self, runner: _Runner, alone: Mapping[str, Answers], keys: Sequence[Key]) -> list[PolicyResult]:
        """The policies on one data set, beside token routing."""
        title = f"{self._title}, {keys[0].dataset}"

        def answers(policy: str) -> Answers:
            self._progress.begin(f"{title}, {policy}", runner.count)
            return runner.policy(policy)

        try:
            runner.require_answers()
            sweep = [answers(policy) for policy in SWEEP]
        except CalibrationError:
            raise
        except FsgenError as error:
            return [PolicyResult(key, error=str(error)) for key in keys]
        results = []
        for key in keys:
            try:
                found = runner.at_equal_work(key, answers(key.method), alone, sweep)
                results.append(PolicyResult(key, found))
            except CalibrationError:
                raise
            except FsgenError as error:
                results.append(PolicyResult(key, error=str(error)))
        return results


def _open(fast: AnyModel, slow: AnyModel, tuned: AnyModel | None = None, *, batching: bool) -> Router:
    third: dict[str, Any] = {} if tuned is None else {"tuned": tuned}
    return Router(fast, slow, policy="always", method="replace", batching=batching or None, **third)


class _Runner:
    """One pair on one data set: both models alone, and each method."""

    def __init__(
        self,
        router: Router,
        named: Sequence[ModelSpec],
        items: Sequence[Item],
        dataset: DatasetSpec,
        config: StudyConfig,
        work: Path,
        progress: Progress,
    ) -> None:
        self._router, self._items, self._dataset, self._config = router, items, dataset, config
        models = (router.fast, router.slow, self._tuned)
        # The third is missing where it could not be loaded.
        self._identities = [_identity(*pair) for pair in zip(models, named, strict=False) if pair[0] is not None]
        self._work, self._progress = work, progress
        self._options: dict[str, Any] = {
            "max_tokens": dataset.max_tokens or config.max_tokens,
            "stop": config.stop,
            "seed": 0,
        }

    def alone(self) -> dict[str, Answers]:
        """What each model writes alone, greedily: ``fast``, ``slow`` and ``tuned`` where there is one."""
        router = self._router
        found = {
            "fast": self._alone(router, self._identities[0], "never"),
            "slow": self._alone(router, self._identities[1], SLOW_ONLY),
        }
        tuned = self._tuned
        if tuned is not None:
            with _open(tuned, router.slow, batching=router.batching) as beside:
                found["tuned"] = self._alone(beside, self._identities[2], "never")
        return found

    @property
    def roles(self) -> int:
        """How many models write alone."""
        return 2 if self._tuned is None else 3

    @property
    def _tuned(self) -> TokenModel | None:
        return getattr(self._router, "tuned", None)

    def _alone(self, router: Router, identity: Mapping[str, Any], policy: str) -> Answers:
        # A model writes the same in every pair whose two vocabularies are one.
        shared = router.shared
        beside = None if shared is None or shared.same else [router.fast.name, router.slow.name]
        directory = self._directory("alone", {"model": identity, "beside": beside})
        return self._answers(router, policy, "replace", directory)

    def _answers(self, router: Router, policy: str, method: str, directory: WorkDirectory) -> Answers:
        return answer_items(
            router,
            self._items,
            policy,
            work=directory,
            name="answers",
            method=method,
            concurrency=self._config.concurrency,
            on_items=self._progress.advance,
            **self._options,
        )

    def _directory(self, what: str, belongs: Mapping[str, Any]) -> WorkDirectory:
        digest = hashlib.sha256(repr([(i.prompt, i.messages) for i in self._items]).encode()).hexdigest()
        whole = {
            "version": __version__,
            "what": what,
            **belongs,
            "dataset": self._dataset.label,
            "prompts": digest,
            "options": {**self._options, "stop": list(self._options["stop"])},
        }
        name = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]
        return WorkDirectory(self._work / f"{what}-{name}", whole)

    @property
    def count(self) -> int:
        """How many prompts there are."""
        return len(self._items)

    def require_answers(self) -> None:
        """Refuse what has no quality."""
        if not all(item.answer for item in self._items):
            raise ConfigurationError(
                "no quality: the data set has prompts without an expected answer",
                hint="policies are set beside token routing by their quality",
            )

    def policy(self, policy: str) -> Answers:
        """Answers under a policy."""
        directory = self._directory("policy", {"models": self._identities[:2], "policy": make_policy(policy).name})
        return self._answers(self._router, policy, "replace", directory)

    def at_equal_work(
        self, key: Key, answers: Answers, alone: Mapping[str, Answers], sweep: Sequence[Answers]
    ) -> EqualWork:
        """A policy's figures beside token routing's."""
        items = self._items
        fast, slow = (alone[role].run(items, role) for role in ("fast", "slow"))
        routed = [one.run(items, policy) for one, policy in zip(sweep, SWEEP, strict=True)]
        return at_equal_work(answers.run(items, key.method), fast, slow, routed, seed=key.seed)

    def cell(self, key: Key, alone: Mapping[str, Answers], seed: int) -> CellResult:
        """One method's cell. Raises what makes it fail."""
        router, items, config = self._router, self._items, self._config
        method = make_method(key.method)
        reads_tuned = "tuned" in method.roles
        if reads_tuned and self._tuned is None:
            raise ConfigurationError(
                f"{key.method} reads a tuned model, and this pair has none", hint="name it: tuned = ..."
            )
        identities = self._identities[: 3 if reads_tuned else 2]
        directory = self._directory("cell", {"models": identities, "method": method.name})
        if writes_the_slow_text(method):
            answers = alone["slow"]
            self._progress.advance(len(items))
        else:
            answers = self._answers(router, "always", key.method, directory)
        tuned = self._tuned if reads_tuned else None

        def compute(chunk: Sequence[Item], start: int) -> Arrays:
            return read_positions(router, chunk, answers.ids[start : start + len(chunk)], start, tuned)

        positions = Positions(**directory.in_chunks("positions", items, compute, size=CHUNK))
        if len(positions) < config.min_tokens:
            few = f"{len(positions)} tokens in {len(items)} answers are too few for a rate"
            return CellResult(
                key, error=f"{few} (min_tokens = {config.min_tokens}): take more prompts, or longer answers"
            )
        judged = all(item.answer for item in items)
        notes = [] if judged else ["no quality: the data set has prompts without an expected answer"]
        wanted = self._dataset.n or config.n
        if len(items) < wanted:
            notes.append(f"the data set has {len(items)} prompts, not {wanted}")
        texts = {"collaboration": answers, **alone} if judged else {}
        found = measure(
            positions,
            len(items),
            {name: one.run(items, name).column("right") for name, one in texts.items()},
            router.fast.tokenizer,
            truncated=int(answers.run(items, key.method).column("truncated").sum()),
            first_tokens=config.first_tokens,
            seed=seed,
        )
        return CellResult(key, found, notes=tuple(notes))


def writes_the_slow_text(method: Method) -> bool:
    """Whether a method that is asked at every token writes what the slow model writes alone, greedily.

    Then its answers are known, and only the fast model has to read them: the oracle (``replace``) and exact
    verification, which is to say speculative decoding.
    """
    if isinstance(method, Verify):
        return method.rule.name in ("exact", "speculative")
    return isinstance(method, Replace)


def _identity(model: Any, spec: ModelSpec) -> dict[str, Any]:
    """What tells a model from another one, also of the same name, and a file from what it was before."""
    where = Path(spec.model.partition(":")[2].partition("?")[0])
    stat = where.stat() if where.is_file() else None
    return {
        "model": spec.model,
        "file": None if stat is None else [stat.st_size, stat.st_mtime_ns],
        "params": model.n_params,
        "vocabulary": vocabulary_hash(model.tokenizer),
        "template": getattr(model, "template_digest", None),
    }


def probe_pair(
    router: Router, items: Sequence[Item], *, concurrency: int = 1, seed: int = 0, **options: Any
) -> Estimate:
    """A pair's collaboration frequency on a few prompts, with its interval: the oracle's, as in a study.

    ``options`` are :class:`~fsgen_router.RequestOptions`. Nothing is kept.
    """
    written: dict[int, list[int]] = {}

    def keep(item: Item, answer: Generation) -> None:
        written[id(item)] = [token.id for token in answer.tokens]

    alone = router.with_policy(SLOW_ONLY, method="replace")
    run_items(alone, items, concurrency=concurrency, on_answer=keep, **options)
    positions = Positions(**read_positions(router, items, [written[id(item)] for item in items], 0))
    tokens = np.bincount(positions.prompt, minlength=len(items)).astype(np.float64)
    differing = np.bincount(positions.prompt, positions.mismatch, minlength=len(items)).astype(np.float64)
    return interval(differing, tokens, seed=seed) if tokens.any() else Estimate(None)
