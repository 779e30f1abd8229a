"""Answers of a Router to prompts, kept: texts, token ids, who wrote each token, counters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from itertools import repeat
from typing import Any, TypeAlias

import numpy as np

from ..adapters.row_trie import TrieModel
from ..contracts.methods import Method
from ..contracts.policy import Policy
from ..evaluation import COLUMNS, Array, Item, Outcome, Run, ask, make_outcome
from ..generation import Generation
from ..router import Router
from .store import Arrays, WorkDirectory, pack_ids, pack_texts, unpack_ids, unpack_texts

CHUNK = 50
"""Answers in one file: what a crash can cost."""

OnItems: TypeAlias = Callable[[int], None]
"""Hears how many prompts are done since it was last called."""

MakeOutcome: TypeAlias = Callable[[Item, Generation], Outcome]

Record: TypeAlias = Mapping[str, Any]
"""One answer, as it is packed: a field of :class:`Answers` each."""

Known: TypeAlias = Callable[[Policy | str, int, Mapping[str, Record]], Record | None]


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers to a list of items, in their order.

    ``ids`` are each answer's tokens and ``by_slow`` 1 where the slow model wrote one; ``counters`` has
    shape (n, len(COLUMNS)). Whether an answer is right is not kept, so that a checker may change.
    ``accepted`` is the highest score that was not escalated (-inf: none), ``escalated`` the lowest that
    was (inf: none), shape (n,) each: any threshold from the one up to the other writes the same answer.
    Seconds are NaN where rows came from a trie.
    """

    texts: list[str]
    ids: list[list[int]]
    by_slow: list[list[int]]
    counters: Array
    accepted: Array
    escalated: Array

    def __len__(self) -> int:
        return len(self.ids)

    def run(self, items: Sequence[Item], policy: str) -> Run:
        """The answers as an evaluation's run, each judged by its item's ``check``."""
        outcomes = (
            replace(_outcome(row), right=item.check(text))
            for item, text, row in zip(items, self.texts, self.counters.tolist(), strict=True)
        )
        return Run(policy, tuple(outcomes))

    def record(self, number: int) -> Record:
        """One answer, as it is packed."""
        return {field.name: getattr(self, field.name)[number] for field in fields(self)}


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
    method: Method | str = "replace",
    outcome: MakeOutcome = make_outcome,
    concurrency: int = 1,
    on_items: OnItems | None = None,
    **options: Any,
) -> Answers:
    """Answer every item under ``policy``, or take the answers from ``work`` where they are under ``name``.

    ``concurrency`` items are asked at once.
    """
    return answer_all(
        router,
        items,
        {name: policy},
        work=work,
        method=method,
        outcome=outcome,
        concurrency=concurrency,
        on_items=on_items,
        **options,
    )[0]


def answer_all(
    router: Router,
    items: Sequence[Item],
    policies: Mapping[str, Policy | str],
    *,
    work: WorkDirectory,
    method: Method | str = "replace",
    known: Known | None = None,
    behind: Callable[[Item, Record], None] | None = None,
    outcome: MakeOutcome = make_outcome,
    concurrency: int = 1,
    on_items: OnItems | None = None,
    chunk: int = CHUNK,
    **options: Any,
) -> list[Answers]:
    """Answer every item under each of several ``policies`` by name: an item's answers one after the other, while the
    models' memory still holds what they have in common.

    ``known(policy, i, before)`` may give the record that would be written again of the i-th item, from those just
    ``before`` it, by policy, or elsewhere. ``behind`` is called with each answer, while the memory still holds it.
    """
    routed = {name: router.with_policy(policy, method=method) for name, policy in policies.items()}
    timed = not isinstance(router.fast, TrieModel)

    def one(number: int, item: Item, names: Sequence[str]) -> list[Record]:
        written: dict[str, Record] = {}
        for name in names:
            record = None if known is None else known(policies[name], number, written)
            if record is None:
                record = _record(ask(routed[name], item, **options), outcome, timed=timed)
                if behind is not None:
                    behind(item, record)
            written[name] = record
            if on_items is not None:
                on_items(1)
        return list(written.values())

    def compute(chunk: Sequence[Item], start: int, names: Sequence[str]) -> list[Arrays]:
        numbers = range(start, start + len(chunk))
        if concurrency == 1:
            found = [one(number, item, names) for number, item in zip(numbers, chunk, strict=True)]
        else:
            pool = ThreadPoolExecutor(concurrency, "fsgen-calibrate")
            try:
                found = list(pool.map(one, numbers, chunk, repeat(names)))
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
        return [_pack(records) for records in zip(*found, strict=True)]

    parts = work.all_in_chunks(list(policies), items, compute, size=chunk, on_items=on_items)
    return [_unpack(arrays) for arrays in parts]


_UNCHECKED = Item(id="", prompt="", check=lambda _text: False)


def _record(answer: Generation, outcome: MakeOutcome, *, timed: bool) -> Record:
    found = outcome(_UNCHECKED, answer)
    if not timed:  # what a trie takes is not what serving takes
        found = replace(found, seconds=np.nan)
    scored = [t.decision for t in answer.tokens if t.decision is not None and t.decision.score is not None]
    return {
        "texts": answer.text,
        "ids": [token.id for token in answer.tokens],
        "by_slow": [int(token.source == "slow") for token in answer.tokens],
        "counters": [float(value) for value in asdict(found).values()],
        "accepted": max((d.score or 0.0 for d in scored if not d.escalate), default=-np.inf),
        "escalated": min((d.score or 0.0 for d in scored if d.escalate), default=np.inf),
    }


def _pack(records: Sequence[Record]) -> Arrays:
    return {
        **pack_texts([record["texts"] for record in records]),
        **pack_ids([record["ids"] for record in records]),
        "by_slow": np.array([flag for record in records for flag in record["by_slow"]], np.int8),
        **{name: np.array([r[name] for r in records], np.float64) for name in ("counters", "accepted", "escalated")},
    }


def _unpack(arrays: Arrays) -> Answers:
    return Answers(
        texts=unpack_texts(arrays),
        ids=unpack_ids(arrays),
        by_slow=unpack_ids({"ids": arrays["by_slow"], "id_counts": arrays["id_counts"]}),
        counters=arrays["counters"],
        accepted=arrays["accepted"],
        escalated=arrays["escalated"],
    )
