"""The contract of a verifier: which of several answers of the fast model's stands, if any does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from .policy import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """An answer of the fast model's, as a verifier sees it.

    ``finished``: the model ended it, or a stop string did; False where it was cut off. ``logprobs`` are the slow
    model's log-probabilities (nats) of its tokens, after masks and before temperature; empty where it has not read
    them: the verifier does not ask for that, or the answer is empty or was cut off.
    """

    text: str
    finished: bool
    logprobs: tuple[float, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether this is an answer at all: some text, that was not cut off."""
        return self.finished and bool(self.text.strip())


class Verifier(Protocol):
    """Scores answers, the best of which stands where it passes. One object serves every request."""

    @property
    def name(self) -> str:
        """The short form that makes this verifier again, or a description."""

    @property
    def reads_slow(self) -> bool:
        """Whether the slow model reads the answers first, a forward each."""

    @property
    def one_by_one(self) -> bool:
        """Whether it scores each answer by itself as soon as it is written, and the first that passes is enough.

        Not beside ``reads_slow``."""

    def score(self, drafts: Sequence[Draft]) -> Sequence[float | None]:
        """A score for each answer, the higher the better; None for one that cannot stand.

        May take long: with batching it runs in a thread of its own. What it raises fails the request
        (:class:`~fsgen_router.errors.VerifierFailed`).
        """

    def passes(self, score: float) -> bool:
        """Whether the answer with the best score, and this one, stands."""


class Selecting(Protocol):
    """A policy that first lets the fast model write ``k`` whole answers, of which ``judge`` picks one.

    Where none passes, ``fallback`` says who writes what. The first answer is drawn as the request says; the others
    with ``temperature``, where the request is greedy.
    """

    @property
    def name(self) -> str: ...

    @property
    def k(self) -> int: ...

    @property
    def judge(self) -> Verifier: ...

    @property
    def temperature(self) -> float: ...

    @property
    def fallback(self) -> Policy: ...
