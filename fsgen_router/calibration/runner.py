"""Running policies over prompts: a policy that changes a token changes all that follows, so each is run."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..contracts.policy import Policy
from ..evaluation import Item, Run
from ..policies import Learned
from ..router import Router
from .answers import Answers, OnItems, answer_items
from .store import WorkDirectory


@dataclass
class Runner:
    """Runs policies over one list of items, each once; the answers are kept in the work directory.

    Runs of one scorer under ``replace`` share answers: an answer stays the same for every threshold
    between the highest score that it accepted and the lowest that it escalated.
    """

    router: Router
    items: Sequence[Item]
    work: WorkDirectory
    split: str
    options: dict[str, Any]
    concurrency: int = 1
    on_items: OnItems | None = None

    def __post_init__(self) -> None:
        self._answers: dict[str, Answers] = {}
        self._alike: dict[str, list[Answers]] = {}

    def answers(self, policy: Policy | str, method: str = "replace") -> Answers:
        """The items' answers under a policy."""
        name = f"{self.split}-{_file_name(policy, method)}"
        if name not in self._answers:
            shareable = isinstance(policy, Learned) and _by_threshold_alone(policy) and method == "replace"
            alike = self._alike.setdefault(_scorer_key(policy), []) if shareable else []

            def known(number: int) -> Answers | None:
                threshold = policy.threshold if isinstance(policy, Learned) else 0.0
                return next((a for a in alike if a.accepted[number] <= threshold < a.escalated[number]), None)

            found = answer_items(
                self.router,
                self.items,
                policy,
                work=self.work,
                name=name,
                method=method,
                known=known if shareable else None,
                concurrency=self.concurrency,
                on_items=self.on_items,
                **self.options,
            )
            alike.append(found)
            self._answers[name] = found
        elif self.on_items is not None:
            self.on_items(len(self.items))
        return self._answers[name]

    def run(self, policy: Policy | str, method: str = "replace") -> Run:
        """The same as an evaluation's run, judged by the items' ``check``."""
        return self.answers(policy, method).run(self.items, policy if isinstance(policy, str) else policy.name)


def _by_threshold_alone(policy: Learned) -> bool:
    return policy.span is None and policy.hold is None and policy.drift is None and policy.guard is None


def _scorer_key(policy: Policy | str) -> str:
    return replace(policy, threshold=0.0).digest if isinstance(policy, Learned) else ""


def _file_name(policy: Policy | str, method: str) -> str:
    form = policy if isinstance(policy, str) else policy.digest[:20] if isinstance(policy, Learned) else policy.name
    plain = re.sub(r"[^\w.-]", "_", f"{form}-{method}")
    return plain if len(plain) <= 60 else hashlib.sha256(plain.encode()).hexdigest()[:20]
