"""Verified best of K: several whole answers of the fast model's, of which a verifier picks one, or escalates."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

from pydantic import BaseModel, ValidationError

from fsgen_router.contracts.policy import (
    REST,
    Context,
    Decision,
    Ledger,
    Policy,
    PolicyState,
    checks_end,
    hands_over,
    reads_hidden,
    rewound,
)
from fsgen_router.contracts.verifier import Draft, Verifier
from fsgen_router.errors import ConfigurationError
from fsgen_router.rows.signals import Signals

from .basic import Always

DEFAULT_TEMPERATURE = 0.8
_PARTS = ("name", "reads_slow", "one_by_one", "score", "passes")


@dataclass(frozen=True)
class Score:
    """The slow model's own score: its mean log-probability per token (nats) of an answer, by one forward over it.

    An answer passes with a score above ``threshold``; None: the best one always stands. Empty answers and those that
    were cut off are passed over: a loop without an end is most probable.
    """

    threshold: float | None = None
    reads_slow: ClassVar[bool] = True
    one_by_one: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise ConfigurationError(f"score>{self.threshold}", hint="a number of nats per token, below 0")

    @property
    def name(self) -> str:
        return "score" if self.threshold is None else f"score>{self.threshold:g}"

    def score(self, drafts: Sequence[Draft]) -> list[float | None]:
        return [sum(d.logprobs) / len(d.logprobs) if d.complete and d.logprobs else None for d in drafts]

    def passes(self, score: float) -> bool:
        return self.threshold is None or score > self.threshold


def final_answer(text: str) -> str:
    """What an answer comes to: what stands behind its last ``Answer:``, else its last number, else all of it."""
    _, found, behind = text.rpartition("Answer:")
    if found:
        return behind.strip()
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    return numbers[-1].replace(",", "") if numbers else text.strip()


@dataclass(frozen=True)
class Vote:
    """Self-consistency (Wang et al., arXiv 2203.11171): the answer stands that most others agree with.

    ``answer`` makes of a text what is compared (:func:`final_answer`). A score is the share of all answers, cut off
    or not, that come to the same; it passes above ``share``. The slow model reads nothing for it.
    """

    share: float = 0.5
    answer: Callable[[str], Any] = field(default=final_answer, repr=False)
    reads_slow: ClassVar[bool] = False
    one_by_one: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.share < 1.0:
            raise ConfigurationError(f"vote>{self.share:g}", hint="a share from 0 to below 1")

    @property
    def name(self) -> str:
        return f"vote>{self.share:g}"

    def score(self, drafts: Sequence[Draft]) -> list[float | None]:
        answers = [self.answer(draft.text) if draft.complete else None for draft in drafts]
        votes = Counter(answers)
        return [
            votes[answer] / len(drafts) if draft.complete else None
            for answer, draft in zip(answers, drafts, strict=True)
        ]

    def passes(self, score: float) -> bool:
        return score > self.share


@dataclass(frozen=True)
class Check:
    """A checker of one's own: ``check(text)`` says whether an answer stands. The first that does is taken.

    A pydantic model in its place checks that the text is JSON of its schema.
    """

    check: Callable[[str], bool] | type[BaseModel]
    reads_slow: ClassVar[bool] = False
    one_by_one: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return getattr(self.check, "__name__", type(self.check).__name__).strip("<>")

    def score(self, drafts: Sequence[Draft]) -> list[float | None]:
        return [float(self._stands(draft.text)) for draft in drafts]

    def _stands(self, text: str) -> bool:
        if not (isinstance(self.check, type) and issubclass(self.check, BaseModel)):
            return bool(cast(Callable[[str], object], self.check)(text))
        try:
            self.check.model_validate_json(text)
        except ValidationError:
            return False
        return True

    def passes(self, score: float) -> bool:
        return score > 0.0


@dataclass(frozen=True)
class BestOf:
    """The fast model writes ``k`` whole answers, a verifier picks the best one, or hands over to ``fallback``.

    Networks of Networks (Chen et al., arXiv 2407.16831) draws and verifies so. ``verifier`` is :class:`Score`,
    :class:`Vote`, :class:`Check`, or an object that keeps their contract; a function of a text or a pydantic model is
    a :class:`Check`. The first answer is drawn as the request says; the others at ``temperature``, where the request
    is greedy, each with random numbers of its own (a hash of seed, prompt and its number). ``fallback`` is any policy:
    the slow model's whole answer, unless another one is named, such as token routing.
    """

    k: int
    verifier: Verifier | Callable[[str], bool] | type[BaseModel] = field(default_factory=Score)
    temperature: float = DEFAULT_TEMPERATURE
    fallback: Policy = field(default_factory=lambda: Always(REST))

    def __post_init__(self) -> None:
        if not isinstance(self.k, int) or isinstance(self.k, bool) or self.k < 1:
            raise ConfigurationError(f"best_of:{self.k}", hint="at least 1 answer, a whole number")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ConfigurationError(
                f"best_of with temperature={self.temperature:g}", hint="above 0: greedy answers are all the same"
            )
        if isinstance(self.fallback, BestOf):
            raise ConfigurationError("best_of falls back on best_of", hint="raise k, or name another fallback")
        if not all(hasattr(self.verifier, part) for part in _PARTS):
            if not callable(self.verifier):
                raise ConfigurationError(
                    f"{self.verifier!r} is not a verifier",
                    hint="a function of a text that says True or False, a pydantic model, Score(...) or Vote(...)",
                )
            object.__setattr__(self, "verifier", Check(self.verifier))
        if self.judge.reads_slow and self.judge.one_by_one:
            raise ConfigurationError(
                f"the verifier {self.judge.name} has the slow model read answers and judges them one by one",
                hint="one of the two: an answer is read when all of them are written",
            )

    @property
    def judge(self) -> Verifier:
        """The verifier."""
        return cast(Verifier, self.verifier)

    @property
    def name(self) -> str:
        warmth = "" if self.temperature == DEFAULT_TEMPERATURE else f",temperature={self.temperature:g}"
        default = isinstance(self.fallback, Always) and self.fallback.extent == REST
        return f"best_of:{self.k},{self.judge.name}{warmth}" + ("" if default else f",else={self.fallback.name}")

    @property
    def method(self) -> str | None:
        """The method that the fallback was calibrated with; one that writes whole answers needs no drafts."""
        own: str | None = getattr(self.fallback, "method", None)
        return own or ("replace" if hands_over(self.fallback) else None)

    @property
    def asks(self) -> bool:
        return self.judge.reads_slow or self.fallback.asks

    # Behind its answers it is its fallback.

    @property
    def hands_over(self) -> bool:
        return hands_over(self.fallback)

    @property
    def reads_hidden(self) -> bool:
        return reads_hidden(self.fallback)

    def begin(self, ledger: Ledger) -> PolicyState:
        return self.fallback.begin(ledger)

    def decide(self, state: PolicyState, signals: Signals, context: Context) -> tuple[PolicyState, Decision]:
        return self.fallback.decide(state, signals, context)

    def checks_end(self, context: Context) -> bool:
        return checks_end(self.fallback, context)

    def rewound(self, older: PolicyState, newer: PolicyState) -> PolicyState:
        return rewound(self.fallback, older, newer)

    def end(self, state: PolicyState, ledger: Ledger) -> None:
        self.fallback.end(state, ledger)
