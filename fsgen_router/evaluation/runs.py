"""Asking a Router every item, and what became of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from ..contracts.policy import Policy
from ..errors import ConfigurationError, InvalidRequest
from ..generation import Generation
from ..router import Router
from ..text.messages import Message
from .items import Item

Array: TypeAlias = npt.NDArray[np.float64]

SLOW_ONLY = "always,span=rest"
"""The slow model alone, as a policy: one escalation that hands the whole answer over."""


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
    corrections: int = 0
    bonus_tokens: int = 0
    discarded_tokens: int = 0
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
        corrections=usage.corrections,
        bonus_tokens=usage.bonus_tokens,
        discarded_tokens=usage.discarded_tokens,
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

    def first(self, count: int) -> Run:
        """The run over the first ``count`` items."""
        return Run(self.policy, self.outcomes[:count])

    @property
    def accuracy(self) -> float:
        """Share of right answers, in [0, 1]."""
        return float(self.column("right").mean())

    def rate(self, name: str) -> float | None:
        """One of :data:`RATES` over all items together; None where nothing was counted."""
        over, under = rate_columns(name)
        total = float(self.column(under).sum())
        return float(self.column(over).sum()) / total if total else None

    def to_dict(self) -> dict[str, Any]:
        return {"policy": self.policy, "outcomes": [asdict(outcome) for outcome in self.outcomes]}


RATES: Mapping[str, tuple[str, str]] = {
    "escalation_rate": ("escalations", "decisions"),
    "slow_token_share": ("slow_tokens", "tokens"),
    "slow_position_share": ("slow_positions", "positions"),
    "disagreement_rate": ("disagreements", "compared"),
    "correction_share": ("corrections", "tokens"),
    "bonus_share": ("bonus_tokens", "tokens"),
    "slow_forwards_per_token": ("slow_forwards", "tokens"),
}
"""Rates over a run: sums of the first column over sums of the second."""


def rate_columns(name: str) -> tuple[str, str]:
    if name not in RATES:
        raise ConfigurationError(f"unknown rate {name!r}", hint=f"available: {', '.join(RATES)}")
    return RATES[name]


OnAnswer: TypeAlias = Callable[[Item, Generation], None]


def ask(router: Router, item: Item, **options: Any) -> Generation:
    """The answer to one item; errors about the prompt name the item."""
    try:
        if item.messages is not None:
            return router.chat(cast(Sequence[Message], item.messages), **options)
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
    caps = ("max_slow_calls", "max_slow_tokens", "max_cost_usd", "max_seconds", "budget")
    options = {name: value for name, value in options.items() if name not in caps}
    fast = run_items(router, items, "never", concurrency=concurrency, on_answer=on_answer, **options)
    alone = router.with_policy(SLOW_ONLY, method="replace")
    slow = run_items(alone, items, concurrency=concurrency, on_answer=on_answer, **options)
    return replace(fast, policy="fast alone"), replace(slow, policy="slow alone")


def whole_query(fast: Run, slow: Run, to_slow: npt.NDArray[np.bool_], *, name: str = "whole query") -> Run:
    """Whole-query routing: the slow model's outcome where ``to_slow`` (bool, shape (n,)), else the fast one's.

    One decision an item, so ``escalation_rate`` is the share of questions.
    """
    require_paired(fast, slow)
    if len(to_slow) != len(fast):
        raise ConfigurationError(f"to_slow has {len(to_slow)} entries for {len(fast)} items")
    chosen = (
        replace(theirs if over else ours, decisions=1, escalations=int(over))
        for ours, theirs, over in zip(fast.outcomes, slow.outcomes, to_slow.tolist(), strict=True)
    )
    return Run(name, tuple(chosen))


def require_paired(*runs: Run) -> None:
    if len({len(run) for run in runs}) != 1 or not len(runs[0]):
        raise ConfigurationError(f"runs over {', '.join(str(len(run)) for run in runs)} items", hint="the same items")
