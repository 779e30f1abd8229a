"""Quality beside cost on problems with checkable answers, with intervals by prompt.

::

    from fsgen_router import Router
    from fsgen_router.evaluation import reference_items, run_baselines, run_items, summarise

    router, items = Router(), reference_items("test", 200)
    fast, slow = run_baselines(router, items)
    run = run_items(router, items, "entropy>0.7")
    print(summarise(run, fast, slow).to_dict())

A :class:`Run` holds one policy's outcomes, and ``run.column("right")`` is an array over the items in
their order, so runs over the same items are paired. Every interval is a percentile bootstrap
(Efron and Tibshirani, 1993, chapter 13) that resamples prompts, never tokens: the tokens of one
answer depend on each other. The same seed draws the same prompts for every run.

The statistics need the extra ``eval``; running items does not.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from .errors import ConfigurationError, InvalidRequest
from .policies.basic import SIGNALS, read_signal
from .policy import Policy
from .records import Generation
from .reference import world
from .router import Router
from .tokenizer import Message, require_messages, require_text

Array: TypeAlias = npt.NDArray[np.float64]
Interval: TypeAlias = tuple[float, float]

Match = Literal["answer", "exact", "contains", "number"]
MATCHES: tuple[Match, ...] = get_args(Match)

SLOW_ONLY = "always,span=rest"
"""The slow model alone, as a policy: one escalation that hands the whole answer over."""

_RESAMPLES = 2000
_BATCH_BYTES = 32_000_000

# --- items ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One question: a raw ``prompt`` or chat ``messages``, and ``check(text)``, True when right.

    ``answer`` is the expected answer as text; ``family`` and ``level`` are labels to group by.
    """

    id: str
    check: Callable[[str], bool]
    prompt: str | None = None
    messages: tuple[Message, ...] | None = None
    answer: str = ""
    family: str = ""
    level: int | None = None

    def __post_init__(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise ConfigurationError(f"item {self.id} needs either a prompt or messages")


def reference_items(split: world.Split = "test", count: int = 200, start: int = 0) -> list[Item]:
    """Problems ``start`` to ``start + count`` of a split of the reference pair's world, as chats."""
    if split not in world.SPLITS:
        raise ConfigurationError(f"unknown split {split!r}", hint=f"available: {', '.join(world.SPLITS)}")
    if count < 1 or start < 0:
        raise ConfigurationError(f"{count} problems from {start} on", hint="at least 1 problem, from 0 or later on")
    return [
        Item(
            id=problem.id,
            check=problem.check,
            messages=({"role": "user", "content": problem.prompt},),
            answer=problem.answer,
            family=problem.family,
            level=problem.level,
        )
        for problem in world.problems(split, count, start)
    ]


def read_items(path: str | Path, *, match: Match = "answer") -> list[Item]:
    """Items from JSON lines: ``{"prompt": ..., "answer": ...}`` or ``{"messages": [...], "answer": ...}``.

    ``id``, ``family`` and ``level`` may stand beside them; empty lines are skipped. ``match`` is as in
    :func:`matches`. Raises :class:`InvalidRequest` naming the line that is wrong.
    """
    if match not in MATCHES:
        raise ConfigurationError(f"unknown match {match!r}", hint=f"available: {', '.join(MATCHES)}")
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}", hint="check the path") from None
    items = [
        _item(f"{path}, line {number}", number, line, match)
        for number, line in enumerate(data.split(b"\n"), 1)
        if line.strip()
    ]
    if not items:
        raise InvalidRequest(f"{path} holds no items", hint='one {"prompt": "...", "answer": "..."} a line')
    return items


_ITEM_KEYS = {"prompt", "messages", "answer", "id", "family", "level"}


def _item(place: str, number: int, line: bytes, match: Match) -> Item:
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{place}: not valid UTF-8 at byte {error.start} of the line") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise InvalidRequest(f"{place}: not valid JSON: {error}") from None
    if not isinstance(record, dict):
        raise InvalidRequest(f"{place}: {type(record).__name__}, not an object")
    if unknown := set(record) - _ITEM_KEYS:
        raise InvalidRequest(
            f"{place}: unknown field {sorted(unknown)[0]!r}", hint=f"available: {', '.join(sorted(_ITEM_KEYS))}"
        )
    answer, level = record.get("answer"), record.get("level")
    if isinstance(answer, bool) or not isinstance(answer, (str, int, float)) or not str(answer).strip():
        raise InvalidRequest(f"{place}: answer must be a non-empty text or a number")
    if level is not None and (isinstance(level, bool) or not isinstance(level, int)):
        raise InvalidRequest(f"{place}: level must be a whole number")
    if ("prompt" in record) == ("messages" in record):
        raise InvalidRequest(f"{place}: needs either prompt or messages")
    expected = str(answer).strip()
    try:
        return Item(
            id=str(record.get("id", number)),
            check=lambda text: matches(text, expected, match),
            prompt=require_text(record["prompt"]) if "prompt" in record else None,
            messages=tuple(require_messages(record["messages"])) if "messages" in record else None,
            answer=expected,
            family=str(record.get("family", "")),
            level=level,
        )
    except InvalidRequest as error:
        raise InvalidRequest(f"{place}: {error.message}", hint=error.hint) from None


def matches(text: str, answer: str, match: Match = "answer") -> bool:
    """Whether ``text`` gives ``answer``.

    ``answer``: what stands behind the last ``Answer:``, or the whole text where there is none, is equal;
    ``exact``: the whole text is equal; ``contains``: it occurs; ``number``: the last number is equal.
    White space around both is ignored.
    """
    text, answer = text.strip(), answer.strip()
    if match == "exact":
        return text == answer
    if match == "contains":
        return answer in text
    if match == "number":
        found = _numbers(text)
        return bool(found) and found[-1:] == _numbers(answer)[-1:]
    extracted = world.extract_answer(text)
    return (text if extracted is None else extracted) == answer


def _numbers(text: str) -> list[float]:
    return [float(number.replace(",", "")) for number in re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)]


# --- outcomes ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one item under one policy; counts of this one answer.

    ``slow_positions`` and ``fast_positions`` include prompt tokens that were still in the KV cache: the
    same prompts run under every policy, and whoever comes later must not look cheaper. ``positions``
    is prompt and answer together. ``compared`` and ``disagreements`` are 0 unless every position is
    known. ``truncated`` says that the answer met ``max_tokens`` or the context; ``seconds`` is wall
    time, with whatever else ran.
    """

    right: bool
    prompt_tokens: int = 0
    tokens: int = 0
    positions: int = 0
    decisions: int = 0
    escalations: int = 0
    slow_tokens: int = 0
    slow_positions: int = 0
    slow_forwards: int = 0
    fast_positions: int = 0
    fast_forwards: int = 0
    compared: int = 0
    disagreements: int = 0
    truncated: bool = False
    degraded: bool = False
    seconds: float = 0.0
    mean_entropy_nats: float = 0.0
    """Mean over the positions at which the fast model was asked; what whole-query routing can score by."""


COLUMNS: tuple[str, ...] = tuple(field.name for field in fields(Outcome))


def make_outcome(item: Item, answer: Generation) -> Outcome:
    """The outcome of an answer to an item."""
    usage = answer.usage
    known = usage.disagreement_rate is not None
    entropies = [token.signals.entropy_nats for token in answer.tokens if token.signals is not None]
    return Outcome(
        right=item.check(answer.text),
        prompt_tokens=usage.prompt_tokens,
        tokens=usage.tokens,
        positions=usage.prompt_tokens + usage.tokens,
        decisions=usage.decisions,
        escalations=usage.escalations,
        slow_tokens=usage.slow_tokens,
        slow_positions=usage.slow.positions + usage.slow.cached,
        slow_forwards=usage.slow_forwards,
        fast_positions=usage.fast.positions + usage.fast.cached,
        fast_forwards=usage.fast.forwards,
        compared=usage.compared if known else 0,
        disagreements=usage.disagreements if known else 0,
        truncated=answer.finish_reason in ("length", "context"),
        degraded=answer.degraded is not None,
        seconds=usage.seconds,
        mean_entropy_nats=sum(entropies) / len(entropies) if entropies else 0.0,
    )


@dataclass(frozen=True, slots=True)
class Run:
    """One policy's outcomes over a list of items, in their order."""

    policy: str
    outcomes: tuple[Outcome, ...]

    def __len__(self) -> int:
        return len(self.outcomes)

    def column(self, name: str) -> Array:
        """float64 of shape (n,): one of :data:`COLUMNS` for every item."""
        if name not in COLUMNS:
            raise ConfigurationError(f"unknown column {name!r}", hint=f"available: {', '.join(COLUMNS)}")
        return np.array([getattr(outcome, name) for outcome in self.outcomes], np.float64)

    @property
    def accuracy(self) -> float:
        """Share of right answers, in [0, 1]."""
        return float(self.column("right").mean())

    def rate(self, name: str) -> float | None:
        """One of :data:`RATES` over all items together; None where nothing was counted."""
        over, under = _rate_columns(name)
        total = float(self.column(under).sum())
        return float(self.column(over).sum()) / total if total else None

    def to_dict(self) -> dict[str, Any]:
        return {"policy": self.policy, "outcomes": [asdict(outcome) for outcome in self.outcomes]}


RATES: Mapping[str, tuple[str, str]] = {
    "escalation_rate": ("escalations", "decisions"),
    "slow_token_share": ("slow_tokens", "tokens"),
    "slow_position_share": ("slow_positions", "positions"),
    "disagreement_rate": ("disagreements", "compared"),
}
"""Rates over a run: sums of the first column over sums of the second."""


def _rate_columns(name: str) -> tuple[str, str]:
    if name not in RATES:
        raise ConfigurationError(f"unknown rate {name!r}", hint=f"available: {', '.join(RATES)}")
    return RATES[name]


OnAnswer: TypeAlias = Callable[[Item, Generation], None]


def ask(router: Router, item: Item, **options: Any) -> Generation:
    """The answer to one item; errors about the prompt name the item."""
    try:
        if item.messages is not None:
            return router.chat(item.messages, **options)
        return router.complete(item.prompt or "", **options)
    except InvalidRequest as error:
        raise type(error)(f"item {item.id}: {error.message}", hint=error.hint) from None


def run_items(
    router: Router,
    items: Sequence[Item],
    policy: Policy | str | None = None,
    *,
    concurrency: int = 1,
    on_answer: OnAnswer | None = None,
    **options: Any,
) -> Run:
    """Answer every item under ``policy`` (None: the Router's own policy and its memory).

    ``options`` are :class:`~fsgen_router.RequestOptions`. With ``concurrency`` above 1, that many items
    are asked at once; the texts are the same, except under a policy that learns from earlier answers
    (``budget``), whose order then varies. ``on_answer`` sees each answer as it comes, from one thread
    at a time per item.
    """
    if concurrency < 1:
        raise ConfigurationError(f"concurrency={concurrency}", hint="at least 1")
    routed = router if policy is None else router.with_policy(policy)

    def one(item: Item) -> Outcome:
        answer = ask(routed, item, **options)
        if on_answer is not None:
            on_answer(item, answer)
        return make_outcome(item, answer)

    if concurrency == 1:
        return Run(routed.policy.name, tuple(map(one, items)))
    pool = ThreadPoolExecutor(concurrency, "fsgen-eval")
    try:
        return Run(routed.policy.name, tuple(pool.map(one, items)))
    finally:
        # After a failure or Ctrl-C, what has not begun is not begun any more.
        pool.shutdown(wait=True, cancel_futures=True)


def run_baselines(
    router: Router,
    items: Sequence[Item],
    *,
    concurrency: int = 1,
    on_answer: OnAnswer | None = None,
    **options: Any,
) -> tuple[Run, Run]:
    """Both models alone, (fast, slow): what every policy is compared to, run once."""
    # Caps bound a policy; the slow model alone knows none.
    options = {name: value for name, value in options.items() if name not in ("max_slow_calls", "max_slow_tokens")}
    fast = run_items(router, items, "never", concurrency=concurrency, on_answer=on_answer, **options)
    alone = router.with_policy(SLOW_ONLY, method="replace")
    slow = run_items(alone, items, concurrency=concurrency, on_answer=on_answer, **options)
    return replace(fast, policy="fast alone"), replace(slow, policy="slow alone")


def whole_query(fast: Run, slow: Run, to_slow: npt.NDArray[np.bool_], *, name: str = "whole query") -> Run:
    """Whole-query routing: the slow model's outcome where ``to_slow`` (bool, shape (n,)), else the fast one's.

    One decision an item, so ``escalation_rate`` is the share of questions.
    """
    _require_paired(fast, slow)
    if len(to_slow) != len(fast):
        raise ConfigurationError(f"to_slow has {len(to_slow)} entries for {len(fast)} items")
    chosen = (
        replace(theirs if over else ours, decisions=1, escalations=int(over))
        for ours, theirs, over in zip(fast.outcomes, slow.outcomes, to_slow.tolist(), strict=True)
    )
    return Run(name, tuple(chosen))


def _require_paired(*runs: Run) -> None:
    if len({len(run) for run in runs}) != 1 or not len(runs[0]):
        raise ConfigurationError(f"runs over {', '.join(str(len(run)) for run in runs)} items", hint="the same items")


# --- intervals -----------------------------------------------------------------------------------

Statistic: TypeAlias = Callable[[Array], Array]
"""Maps column means, shape (draws, k), to values, shape (draws, m); NaN where undefined."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its 95% interval. ``value`` is None where the figure is undefined, ``interval`` where
    there are too few prompts to draw from."""

    value: float | None
    interval: Interval | None = None

    def to_dict(self, name: str) -> dict[str, Any]:
        """``{name: value, name_interval: [low, high]}``."""
        return {name: self.value, f"{name}_interval": list(self.interval) if self.interval else None}


def bootstrap(
    statistic: Statistic, columns: Array, *, resamples: int = _RESAMPLES, seed: int = 0, confidence: float = 0.95
) -> list[Estimate]:
    """Estimates of functions of column means, resampling the rows (prompts) of ``columns``, shape (n, k).

    One row is one prompt, so that all columns of a draw are paired. An interval is None with fewer
    than two prompts, or where more than one draw in twenty leaves the figure undefined. A share that is
    0 or 1 in the sample has an interval of no width: take more prompts before believing it.
    """
    columns = np.asarray(columns, np.float64)
    n = len(columns)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = statistic(columns.mean(axis=0)[None])[0]
        draws = _draws(statistic, columns, resamples, seed) if n >= 2 else np.full((len(values), 1), np.nan)
    tail = (1 - confidence) / 2
    estimates = []
    for value, drawn in zip(values.tolist(), draws, strict=True):
        defined = drawn[np.isfinite(drawn)]
        interval = None
        if len(defined) >= 0.95 * len(drawn) and np.isfinite(value):
            low, high = np.quantile(defined, (tail, 1 - tail)).tolist()
            interval = (low, high)
        estimates.append(Estimate(value if np.isfinite(value) else None, interval))
    return estimates


def _draws(statistic: Statistic, columns: Array, resamples: int, seed: int) -> Array:
    try:
        from scipy import stats
    except ImportError as error:
        raise ImportError("intervals need the extra 'eval': pip install 'fsgen-router[eval]'") from error

    def over(rows: npt.NDArray[np.int64], axis: int) -> Array:
        means = columns[np.moveaxis(rows, axis, -1)].mean(axis=-2)
        return np.moveaxis(statistic(means.reshape(-1, columns.shape[1])), -1, 0)

    with warnings.catch_warnings():
        # Only the draws are taken; a draw in which a figure is undefined is dealt with by the caller.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        drawn = stats.bootstrap(
            (np.arange(len(columns)),),
            over,
            n_resamples=resamples,
            batch=max(1, _BATCH_BYTES // columns.nbytes),
            vectorized=True,
            method="percentile",
            rng=np.random.default_rng(seed),
        )
    return np.asarray(drawn.bootstrap_distribution, np.float64)


def interval(values: Array, per: Array | None = None, *, seed: int = 0, resamples: int = _RESAMPLES) -> Estimate:
    """The mean of ``values`` (shape (n,)), or the ratio of their sum to the sum of ``per``."""
    if per is None:
        return bootstrap(lambda means: means, np.stack([values], 1), seed=seed, resamples=resamples)[0]
    return bootstrap(lambda m: m[:, :1] / m[:, 1:], np.stack([values, per], 1), seed=seed, resamples=resamples)[0]


# --- summaries -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One policy's quality beside its cost, over ``n`` prompts.

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
    slow_forwards: Estimate
    slow_forwards_relative: Estimate
    truncated: int
    degraded: int

    def to_dict(self) -> dict[str, Any]:
        """Flat, for JSON: every figure with ``<name>_interval`` beside it."""
        record: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            record |= value.to_dict(field.name) if isinstance(value, Estimate) else {field.name: value}
        return record


def _excludes_zero(gap: Estimate) -> bool:
    return gap.interval is not None and not gap.interval[0] <= 0.0 <= gap.interval[1]


def summarise(run: Run, fast: Run, slow: Run, *, seed: int = 0, resamples: int = _RESAMPLES) -> Summary:
    """Accuracy, rates, slow steps and the recovered gap of ``run``, paired by prompt with both models alone."""
    _require_paired(run, fast, slow)
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
        recovered_gap=recovered if _excludes_zero(gap) else Estimate(None),
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
    resamples: int = _RESAMPLES,
) -> dict[float, Estimate]:
    """The rate at which a sweep recovers each share of the quality gap, with its interval.

    The curve goes through both models alone (rate 0 and 1) and the sweep's runs in order of their
    rates, linear in between; the smallest rate at which it reaches
    accuracy_fast + level * (accuracy_slow - accuracy_fast) counts. In every bootstrap draw the whole
    curve is drawn anew and the crossing found on it. None where the gap's interval includes 0.
    """
    _require_paired(fast, slow, *sweep)
    over, under = _rate_columns(rate)
    runs = [fast, *sweep, slow]
    columns = np.stack([run.column(name) for name in ("right", over, under) for run in runs], 1)
    size = len(runs)

    def statistic(m: Array) -> Array:
        accuracies, rates = m[:, :size], m[:, size : 2 * size] / m[:, 2 * size :]
        return np.array([_crossings(x, y, levels) for x, y in zip(rates, accuracies, strict=True)])

    gap = interval(slow.column("right") - fast.column("right"), seed=seed, resamples=resamples)
    if not _excludes_zero(gap):
        return {level: Estimate(None) for level in levels}
    found = bootstrap(statistic, columns, seed=seed, resamples=resamples)
    return dict(zip(levels, found, strict=True))


def _crossings(rates: Array, accuracies: Array, levels: Sequence[float]) -> list[float]:
    """Where a curve (first the fast model, last the slow one) first reaches each level of the gap."""
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


# --- sweeps --------------------------------------------------------------------------------------

SWEEP_RATES = (0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.17, 0.23, 0.3, 0.4, 0.55, 0.75)
"""Escalation rates that a threshold sweep aims at, if thresholds changed nothing else."""


def sweep_policies(
    signal: str, values: Array | None = None, *, rates: Sequence[float] = SWEEP_RATES, suffix: str = ""
) -> list[str]:
    """Short forms of a sweep: thresholds at quantiles of ``values``, a signal over the fast model's own text.

    ``signal`` is ``entropy``, ``varentropy``, ``max_prob`` or ``margin``, or one of ``random``, ``budget``
    and ``every``, which need no values. ``suffix`` is added to each (``",span=8"``).
    """
    if signal in ("random", "budget"):
        return [f"{signal}:{rate:g}{suffix}" for rate in rates]
    if signal == "every":
        return [f"every:{gap}{suffix}" for gap in sorted({max(round(1 / r), 1) for r in rates}, reverse=True)]
    if signal not in SIGNALS:
        available = ", ".join((*SIGNALS, "random", "budget", "every"))
        raise ConfigurationError(f"{signal!r} cannot be swept", hint=f"available: {available}")
    if values is None or not len(values):
        raise ConfigurationError(f"a sweep of {signal} needs the signal's values")
    above = signal in ("entropy", "varentropy")
    cuts = np.quantile(values, [1 - rate if above else rate for rate in rates])
    # Probabilities crowd below 1 and need more digits there to differ.
    written = [f"{cut:.6g}" if not above and cut > 0.99 else f"{cut:.4g}" for cut in cuts.tolist()]
    return list(dict.fromkeys(f"{signal}{'>' if above else '<'}{cut}{suffix}" for cut in written))


def signal_values(
    router: Router, items: Sequence[Item], signal: str, *, on_answer: OnAnswer | None = None, **options: Any
) -> Array:
    """A signal at every token of the fast model's own answers, shape (tokens,)."""
    collect, values = signal_collector(signal)

    def both(item: Item, answer: Generation) -> None:
        collect(item, answer)
        if on_answer is not None:
            on_answer(item, answer)

    run_items(router, items, "never", on_answer=both, **options)
    return np.array(values, np.float64)


def signal_collector(signal: str) -> tuple[OnAnswer, list[float]]:
    """An ``on_answer`` that appends a signal of every token to the list beside it."""
    name = next((known for known in SIGNALS if known == signal), None)
    if name is None:
        raise ConfigurationError(f"unknown signal {signal!r}", hint=f"available: {', '.join(SIGNALS)}")
    read = read_signal(name)
    values: list[float] = []

    def collect(_item: Item, answer: Generation) -> None:
        values.extend(read(token.signals) for token in answer.tokens if token.signals is not None)

    return collect, values
