"""Answers of a Router to prompts, kept: texts, token ids, who wrote each token, counters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from ..evaluation import COLUMNS, Array, Item, Outcome, Run, ask, make_outcome
from ..policy import Policy
from ..records import Generation
from ..router import Router
from .store import Arrays, WorkDirectory, pack_ids, pack_texts, unpack_ids, unpack_texts

CHUNK = 50
"""Answers in one file: what a crash can cost."""

OnItems: TypeAlias = Callable[[int], None]
"""Hears how many prompts are done since it was last called."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers to a list of items, in their order.

    ``ids`` are each answer's tokens and ``by_slow`` 1 where the slow model wrote one; ``counters`` has
    shape (n, len(COLUMNS)). Whether an answer is right is not kept, so that a checker may change.
    """

    texts: list[str]
    ids: list[list[int]]
    by_slow: list[list[int]]
    counters: Array

    def run(self, items: Sequence[Item], policy: str) -> Run:
        """The answers as an evaluation's run, each judged by its item's ``check``."""
        outcomes = (
            replace(_outcome(row), right=item.check(text))
            for item, text, row in zip(items, self.texts, self.counters.tolist(), strict=True)
        )
        return Run(policy, tuple(outcomes))


def _outcome(row: Sequence[float]) -> Outcome:
    whole = Outcome(right=False)
    values = {
        name: type(getattr(whole, name))(value) for name, value in zip(COLUMNS, row, strict=True) if name != "right"
    }
    return replace(whole, **values)


def answer_items(
    router: Router,
    items: Sequence[Item],
    policy: Policy | str,
    *,
    work: WorkDirectory,
    name: str,
    method: str | None = None,
    on_items: OnItems | None = None,
    **options: Any,
) -> Answers:
    """Answer every item under ``policy``, or take the answers from ``work`` where they are under ``name``."""
    routed = router.with_policy(policy, method=method)

    def compute(chunk: Sequence[Item], _start: int) -> Arrays:
        answers = []
        for item in chunk:
            answers.append(ask(routed, item, **options))
            if on_items is not None:
                on_items(1)
        return _pack(answers)

    arrays = work.in_chunks(name, items, compute, size=CHUNK, on_items=on_items)
    sources = {"ids": arrays["by_slow"], "id_counts": arrays["id_counts"]}
    return Answers(unpack_texts(arrays), unpack_ids(arrays), unpack_ids(sources), arrays["counters"])


def _pack(answers: Sequence[Generation]) -> Arrays:
    unchecked = Item(id="", prompt="", check=lambda _text: False)
    counters = [list(asdict(make_outcome(unchecked, answer)).values()) for answer in answers]
    by_slow = [token.source == "slow" for answer in answers for token in answer.tokens]
    return {
        **pack_texts([answer.text for answer in answers]),
        **pack_ids([[token.id for token in answer.tokens] for answer in answers]),
        "by_slow": np.array(by_slow, np.int8),
        "counters": np.array(counters, np.float64),
    }
