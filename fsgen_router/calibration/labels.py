"""Labels: at which positions the slow model was worth asking.

``disagreement``
    1 where the greedy choices differ: FS-GEN's place of collaboration (arXiv 2406.12295).
``soft``
    the slow probability that the fast choice loses, max p - p(fast choice), in [0, 1]; fitted as the
    probability of a 1.
``divergence``
    1 where the choices differ *and* it matters: the slow model goes on once behind its own choice and
    once behind the fast one, and only the first answer is right (R2R, arXiv 2505.21600). Differences
    that change nothing are neutral, 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from ..evaluation import SLOW_ONLY, Array, Item, ask
from ..router import Router
from ..rows.reading import Mask
from .answers import OnItems
from .store import Arrays, WorkDirectory, pack_texts, unpack_texts
from .traces import Traces

LabelName: TypeAlias = Literal["disagreement", "soft", "divergence"]
LABELS: tuple[LabelName, ...] = get_args(LabelName)

_CHUNK = 50


@dataclass(frozen=True, slots=True)
class Labels:
    """What a scorer is fitted to: ``values`` in [0, 1] and ``weights`` (0: left out), shape (n,) each."""

    name: LabelName
    values: Array
    weights: Array
    rollouts: int = 0
    neutral: int = 0
    divergent: int = 0

    def to_dict(self) -> dict[str, Any]:
        counted = self.weights > 0
        return {
            "label": self.name,
            "positions": int(counted.sum()),
            "mean": float(np.average(self.values, weights=self.weights)) if counted.any() else None,
            "rollouts": self.rollouts,
            "neutral": self.neutral,
            "divergent": self.divergent,
        }


def disagreement(traces: Traces) -> Labels:
    """1 where the two greedy choices differ."""
    return Labels("disagreement", (traces.fast_choice != traces.slow_choice).astype(np.float64), np.ones(len(traces)))


def soft(traces: Traces) -> Labels:
    """The slow probability that the fast choice loses: max p - p(fast choice)."""
    lost = np.exp(traces.slow_logprob) - np.exp(traces.slow_logprob_of_fast)
    return Labels("soft", np.clip(lost, 0.0, 1.0), np.ones(len(traces)))


def join_labels(parts: Sequence[Labels]) -> Labels:
    """Labels of traces one behind the other."""
    return Labels(
        parts[0].name,
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.weights for part in parts]),
        rollouts=sum(part.rollouts for part in parts),
        neutral=sum(part.neutral for part in parts),
        divergent=sum(part.divergent for part in parts),
    )


@dataclass(frozen=True)
class Prefix:
    """A constraint that lets an answer begin with ``ids`` and then leaves it free: a rollout's fork."""

    ids: tuple[int, ...]
    n_vocab: int

    def mask(self, answer: Sequence[int]) -> Mask | None:
        if len(answer) >= len(self.ids):
            return None
        allowed = np.zeros(self.n_vocab, np.bool_)
        allowed[self.ids[len(answer)]] = True
        return Mask(allowed=allowed)


def roll_out(router: Router, item: Item, prefix: Sequence[int], **options: Any) -> str:
    """The answer's text when it begins with ``prefix`` and the slow model goes on alone."""
    constraint = Prefix(tuple(prefix), (router.shared or router.fast.tokenizer).n_vocab)
    return ask(router.with_policy(SLOW_ONLY, method="replace"), item, constraint=constraint, **options).text


def divergence(
    router: Router,
    items: Sequence[Item],
    traces: Traces,
    *,
    budget: int,
    work: WorkDirectory,
    seed: int = 0,
    on_rollouts: OnItems | None = None,
    **options: Any,
) -> Labels:
    """Labels by rollouts, at most ``budget`` of them (two for each position that is looked into).

    ``items[traces.prompt]`` are the prompts, with the checker as their ``check``. Disagreements are
    drawn at random and each stands for those that were not, by its weight; a disagreement behind which
    the slow model itself goes wrong says nothing and is left out. Agreements are 0.
    """
    disagreeing = np.flatnonzero(traces.fast_choice != traces.slow_choice)
    drawn = np.sort(np.random.default_rng(seed).permutation(disagreeing)[: max(budget // 2, 0)])
    begins = np.flatnonzero(traces.position == 0)[traces.answer]

    def compute(chunk: Sequence[int], _start: int) -> Arrays:
        texts = []
        for at in chunk:
            before = traces.token[begins[at] : at].tolist()
            for choice in (int(traces.slow_choice[at]), int(traces.fast_choice[at])):
                texts.append(roll_out(router, items[traces.prompt[at]], [*before, choice], **options))
                if on_rollouts is not None:
                    on_rollouts(1)
        return pack_texts(texts)

    values, weights = np.zeros(len(traces)), np.ones(len(traces))
    weights[disagreeing] = 0.0
    if not len(drawn):
        return Labels("divergence", values, weights)
    name = f"rollouts-{traces.digest()}-{seed}-{len(drawn)}"
    known = None if on_rollouts is None else lambda positions: on_rollouts(2 * positions)
    texts = unpack_texts(work.in_chunks(name, drawn.tolist(), compute, size=_CHUNK, on_items=known))
    useful, harmful = _verdicts(items, traces.prompt[drawn], texts)
    values[drawn[harmful]] = 1.0
    weights[drawn[useful]] = len(disagreeing) / len(drawn)
    return Labels(
        "divergence",
        values,
        weights,
        rollouts=len(texts),
        neutral=int((useful & ~harmful).sum()),
        divergent=int(harmful.sum()),
    )


def _verdicts(
    items: Sequence[Item], prompts: npt.NDArray[np.int64], texts: Sequence[str]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Where the slow choice led to a right answer, and where, moreover, the fast one led to a wrong one."""
    pairs: Iterator[tuple[str, str]] = zip(texts[::2], texts[1::2], strict=True)
    verdicts = [
        (items[number].check(behind_slow), items[number].check(behind_fast))
        for number, (behind_slow, behind_fast) in zip(prompts.tolist(), pairs, strict=True)
    ]
    right, kept = np.array(verdicts, np.bool_).reshape(-1, 2).T
    return right, right & ~kept
