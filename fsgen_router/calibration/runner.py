"""Running policies over prompts: a policy that changes a token changes all that follows, so each is run."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ..contracts.policy import Policy
from ..evaluation import Item, Run
from ..policies import Learned
from ..router import Router
from .answers import Answers, OnItems, Record, answer_all
from .store import WorkDirectory


@dataclass
class Runner:
    """Runs policies over one list of items, each once; the answers are kept in the work directory.

    Runs of one scorer under ``replace`` share answers: an answer stays the same for every threshold
    between the highest score that it accepted and the lowest that it escalated. ``behind`` hears of each answer that
    was made where that was asked for (:meth:`answers`).
    """

    router: Router
    items: Sequence[Item]
    work: WorkDirectory
    split: str
    options: dict[str, Any]
    concurrency: int = 1
    on_items: OnItems | None = None
    behind: Callable[[Item, Record], None] | None = None

    def __post_init__(self) -> None:
        self._answers: dict[str, Answers] = {}
        self._alike: dict[str, list[Answers]] = {}

    def answers(self, policy: Policy | str, method: str = "replace", *, traced: bool = False) -> Answers:
        """The items' answers under a policy; ``traced`` ones are going to be read whole by both models."""
        return self._all([policy], method, traced=traced)[0]

    def run(self, policy: Policy | str, method: str = "replace") -> Run:
        """The same as an evaluation's run, judged by the items' ``check``."""
        return self.runs([policy], method)[0]

    def runs(self, policies: Sequence[Policy | str], method: str = "replace") -> list[Run]:
        """Runs of several policies, item by item: cheaper than one after the other."""
        found = self._all(policies, method)
        return [
            answers.run(self.items, policy if isinstance(policy, str) else policy.name)
            for policy, answers in zip(policies, found, strict=True)
        ]

    def _all(self, policies: Sequence[Policy | str], method: str, *, traced: bool = False) -> list[Answers]:
        names = [f"{self.split}-{_file_name(policy, method)}" for policy in policies]
        new = {name: p for name, p in zip(names, policies, strict=True) if name not in self._answers}
        if self.on_items is not None:
            self.on_items(len(self.items) * (len(policies) - len(new)))
        if new:
            keys = {_sharing_key(policy, method) for policy in new.values()}
            key = keys.pop() if len(keys) == 1 else None
            alike = self._alike.setdefault(key, []) if key else []
            made = answer_all(
                self.router,
                self.items,
                new,
                work=self.work,
                method=method,
                known=partial(_known, alike) if key else None,
                behind=self.behind if traced else None,
                concurrency=self.concurrency,
                on_items=self.on_items,
                **self.options,
            )
            alike += made
            self._answers |= dict(zip(new, made, strict=True))
        return [self._answers[name] for name in names]


def _known(alike: Sequence[Answers], policy: Policy | str, number: int, before: Mapping[str, Record]) -> Record | None:
    """An answer that a threshold of the same scorer wrote, where this one would write it again."""
    assert isinstance(policy, Learned)

    def same(accepted: float, escalated: float) -> bool:
        return accepted <= policy.threshold < escalated

    for record in before.values():
        if same(record["accepted"], record["escalated"]):
            return record
    return next((a.record(number) for a in alike if same(a.accepted[number], a.escalated[number])), None)


def _sharing_key(policy: Policy | str, method: str) -> str | None:
    """The same of policies that differ in their threshold alone, where that is all that decides."""
    if method != "replace" or not isinstance(policy, Learned) or not _by_threshold_alone(policy):
        return None
    return replace(policy, threshold=0.0).digest


def _by_threshold_alone(policy: Learned) -> bool:
    return policy.span is None and policy.hold is None and policy.drift is None and policy.guard is None


def _file_name(policy: Policy | str, method: str) -> str:
    form = policy if isinstance(policy, str) else policy.digest[:20] if isinstance(policy, Learned) else policy.name
    plain = re.sub(r"[^\w.-]", "_", f"{form}-{method}")
    return plain if len(plain) <= 60 else hashlib.sha256(plain.encode()).hexdigest()[:20]
