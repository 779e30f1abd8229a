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
from ..methods import make_method
from ..policies import Learned
from ..router import Router
from .answers import CHUNK, Answers, OnItems, Record, answer_all
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
    chunk: int = CHUNK
    """Answers in one file, and the step in which :meth:`run` may be asked for the first ones."""

    def __post_init__(self) -> None:
        self._answers: dict[str, Answers] = {}
        self._alike: dict[str, list[Answers]] = {}

    def answers(self, policy: Policy | str, method: str = "replace", *, traced: bool = False) -> Answers:
        """The items' answers under a policy; ``traced`` ones are going to be read whole by both models."""
        return self._all([policy], method, traced=traced)[0]

    def run(self, policy: Policy | str, method: str = "replace", *, first: int | None = None) -> Run:
        """The same as an evaluation's run, judged by the items' ``check``; of the ``first`` items, or of all."""
        return self.runs([policy], method, first=first)[0]

    def runs(self, policies: Sequence[Policy | str], method: str = "replace", *, first: int | None = None) -> list[Run]:
        """Runs of several policies, item by item: cheaper than one after the other."""
        found = self._all(policies, method, first=first)
        return [
            answers.run(self.items[:first], policy if isinstance(policy, str) else policy.name)
            for policy, answers in zip(policies, found, strict=True)
        ]

    def _all(
        self, policies: Sequence[Policy | str], method: str, *, traced: bool = False, first: int | None = None
    ) -> list[Answers]:
        items = self.items[:first]
        names = [f"{self.split}-{_file_name(policy, method)}" for policy in policies]
        new = {
            name: policy
            for name, policy in zip(names, policies, strict=True)
            if name not in self._answers or len(self._answers[name]) != len(items)
        }
        if self.on_items is not None:
            self.on_items(len(items) * (len(policies) - len(new)))
        if new:
            keys = {_sharing_key(policy, method) for policy in new.values()}
            key = keys.pop() if len(keys) == 1 else None
            alike = self._alike.setdefault(key, []) if key else []
            made = answer_all(
                self.router,
                items,
                new,
                work=self.work,
                method=method,
                known=partial(_known, alike) if key else None,
                behind=self.behind if traced else None,
                concurrency=self.concurrency,
                on_items=self.on_items,
                chunk=self.chunk,
                **self.options,
            )
            alike += made
            self._answers |= dict(zip(new, made, strict=True))
        return [self._answers[name] for name in names]


def traced_name(policy: Learned, method: str) -> str:
    """What traces of its answers are called: they depend on the method too."""
    return hashlib.sha256(f"{policy.digest}-{make_method(method).name}".encode()).hexdigest()[:16]


def _known(alike: Sequence[Answers], policy: Policy | str, number: int, before: Mapping[str, Record]) -> Record | None:
    """An answer that a threshold of the same scorer wrote, where this one would write it again."""
    assert isinstance(policy, Learned)

    def same(accepted: float, escalated: float) -> bool:
        return accepted <= policy.threshold < escalated

    for record in before.values():
        if same(record["accepted"], record["escalated"]):
            return record
    for answers in alike:
        if number < len(answers) and same(answers.accepted[number], answers.escalated[number]):
            return answers.record(number)
    return None


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
