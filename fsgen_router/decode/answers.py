"""Whole answers of the fast model's that a verifier judges: what is known of each, and what the slow model makes of it.

It reads them one after the other in one sequence, a forward each: the prompt once, what two of them in a row begin
with once, equal answers once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..contracts.verifier import Draft, Verifier
from ..errors import FsgenError, VerifierFailed
from ..records import Candidate
from ..rows.reading import Read, Row
from .commands import Emit, Start
from .core import Core
from .engine import Engine


@dataclass(slots=True)
class Answer:
    """One answer: the engine that writes it, what it would have shown, and what was made of it so far."""

    engine: Engine
    emits: list[Emit] = field(default_factory=list)
    asked: bool = False
    judged: bool = False
    score: float | None = None
    read: bool = False
    logprobs: list[float] = field(default_factory=list)
    """The slow model's, of each token that it has read."""
    choices: list[int] = field(default_factory=list)
    """Its own greedy choices there."""

    @property
    def written(self) -> bool:
        return self.engine.generation is not None

    @property
    def ids(self) -> list[int]:
        return self.engine.state.answer

    @property
    def draft(self) -> Draft:
        """The answer as a verifier sees it."""
        generation = self.engine.generation
        assert generation is not None
        finished = generation.finish_reason in ("eog", "stop")
        return Draft(text=generation.text, finished=finished, logprobs=tuple(self.logprobs))

    @property
    def candidate(self) -> Candidate:
        """The answer as the request's record keeps it."""
        generation = self.engine.generation
        assert generation is not None
        return Candidate(
            text=generation.text,
            tokens=len(generation.tokens),
            finish_reason=generation.finish_reason,
            score=self.score,
        )


class Reading:
    """How far the slow model has read answers; the last one is in its sequence, behind the prompt."""

    def __init__(self) -> None:
        self._last: Answer | None = None
        self._next: tuple[Answer, int] | None = None
        """The answer under way, and from which token on it is read."""

    def ask(self, core: Core, answers: Sequence[Answer]) -> Start | None:
        """The next piece of work; None where all is read. Empty answers, and those cut off, are not."""
        for answer in answers:
            if answer.read or not answer.draft.complete:
                continue
            if core.state.readers["slow"].sequence < 0:
                return core.open("slow", "score")
            before = [other for other in answers if other.read and other.ids[: len(answer.ids)] == answer.ids]
            if not before:
                return self._read(core, answer)
            self._enter(answer, before[0], len(answer.ids), [])
        return None

    def _read(self, core: Core, answer: Answer) -> Start:
        prompt = core.request.prompts["slow"]
        known = 0 if self._last is None else _common(self._last.ids, answer.ids)
        keep = min(core.state.readers["slow"].seen, len(prompt) + known - 1)
        # The row that judges a token is the one before it; nothing is read of the row behind the last.
        ids = [*prompt, *answer.ids[:-1]][keep:]
        reads = [(len(prompt) + at - 1 - keep, self._of(core, answer, at)) for at in range(known, len(answer.ids))]
        self._next = answer, known
        return core.work("slow", keep, ids, reads, "score")

    def _of(self, core: Core, answer: Answer, at: int) -> Read:
        return Read(ids=(answer.ids[at],), mask=answer.engine.mask(at), alignment=core.alignments.get("slow"))

    def scored(self, rows: Sequence[Row]) -> None:
        """The rows of an answer came."""
        assert self._next is not None
        answer, known = self._next
        self._enter(answer, self._last, known, rows)
        self._last = answer

    def _enter(self, answer: Answer, before: Answer | None, known: int, rows: Sequence[Row]) -> None:
        if before is not None:
            answer.logprobs, answer.choices = before.logprobs[:known], before.choices[:known]
        answer.logprobs += [row.id_logprobs[0] for row in rows]
        answer.choices += [row.argmax for row in rows]
        answer.read = True


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the longest common beginning."""
    size = min(len(one), len(other))
    return next((at for at in range(size) if one[at] != other[at]), size)


def scores_of(judge: Verifier, drafts: tuple[Draft, ...]) -> list[float | None]:
    """A verifier's scores; :class:`VerifierFailed` where it has none to give."""
    texts = tuple(draft.text for draft in drafts)
    try:
        scores = list(judge.score(drafts))
    except FsgenError:
        raise
    except Exception as error:
        raise VerifierFailed(
            f"the verifier {judge.name} raised {type(error).__name__}: {error}",
            hint="let it return False for a text that it cannot read; the answers are in this error's candidates",
            candidates=texts,
        ) from error
    usable = len(scores) == len(drafts) and all(
        score is None or (isinstance(score, int | float) and not math.isnan(score)) for score in scores
    )
    if not usable:
        raise VerifierFailed(
            f"the verifier {judge.name} gave {scores!r} for {len(drafts)} answers",
            hint="score() gives a number or None for each",
            candidates=texts,
        )
    return scores
