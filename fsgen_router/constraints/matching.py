"""The constraint of a request: masks, and what is forced, by a matcher that follows the answer."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from ..errors import InvalidRequest
from ..rows.reading import Mask
from ..support.waiting import holding
from .grammars import Grammar, refused
from .tokens import GrammarVocabulary

if TYPE_CHECKING:
    from .engine import llguidance

_STRIDE: Final = 16
"""Tokens between two copies of a matcher: so many are read again at most where an answer is taken back."""


class GrammarConstraint:
    """Keeps an answer to a grammar: a :class:`~fsgen_router.Constraint` whose masks depend on the answer's ids alone.

    A matcher follows the answer. Where the answer was taken back, a copy that was kept of it goes on from before that:
    llguidance's own ``rollback`` was seen to leave matchers that allow what a fresh one forbids (1.9.1, across the end
    of a JSON value), and behind an error a matcher is of no more use.
    """

    def __init__(self, vocabulary: GrammarVocabulary, grammar: Grammar) -> None:
        self._vocabulary, self._grammar = vocabulary, grammar
        self._matcher, self._read = vocabulary.matcher(grammar), list[int]()
        self._kept: list[tuple[int, llguidance.LLMatcher]] = []
        """Matchers behind so many tokens, of which copies are made."""
        self._mask: Mask | None = None
        """Of what was read."""
        self._lock = threading.Lock()

    def mask(self, answer: Sequence[int]) -> Mask:
        """Which tokens may follow: bool of shape (n_vocab,). Ends of a generation where the grammar may end.

        Raises :class:`~fsgen_router.errors.InvalidRequest` where none may, or a limit was met.
        """
        with holding(self._lock):
            self._follow(answer)
            if self._mask is None:
                self._mask = Mask(allowed=self._allowed())
            return self._mask

    def forced(self, answer: Sequence[int]) -> Sequence[int]:
        """The tokens that have to follow, cut as the tokenizer cuts their text: an end where nothing else may."""
        with holding(self._lock):
            self._follow(answer)
            if self._matcher.is_stopped() and self._matcher.is_accepting():
                end = self._vocabulary.end
                return () if end is None else (end,)
            forced = self._matcher.compute_ff_tokens()
            if self._matcher.is_error():
                raise self._failed(len(self._read))
            usable = next((at for at, token in enumerate(forced) if not self._vocabulary.writes(token)), len(forced))
            return forced[:usable]

    def accepted(self, answer: Sequence[int], following: Sequence[int]) -> int:
        """How many of the tokens ``following`` may stand behind the answer, however their text is cut."""
        with holding(self._lock):
            self._follow(answer)
            return self._matcher.validate_tokens(list(following))

    def _allowed(self) -> npt.NDArray[np.bool_]:
        bytes_ = self._matcher.compute_logit_bias()
        if self._matcher.is_error():
            raise self._failed(len(self._read))
        known = np.frombuffer(bytes_, np.uint8)[: self._vocabulary.n_vocab] != 0
        allowed = np.zeros(self._vocabulary.n_vocab, np.bool_)
        allowed[: len(known)] = known
        return allowed

    def _follow(self, answer: Sequence[int]) -> None:
        """Bring the matcher behind the answer, which an end of the generation is no part of."""
        if answer and answer[-1] in self._vocabulary.eog_ids:
            answer = answer[:-1]
        read = self._read
        common = len(read) if read == list(answer[: len(read)]) else _common(read, answer)
        if common == len(read) == len(answer):
            return
        self._mask = None
        if common < len(read):
            self._go_back(common)
        for start in range(len(read), len(answer), _STRIDE):
            new = list(answer[start : start + _STRIDE])
            if not self._matcher.consume_tokens(new):
                raise self._failed(len(answer))
            read += new
            if len(read) - (self._kept[-1][0] if self._kept else 0) >= _STRIDE:
                self._kept.append((len(read), self._matcher.deep_copy()))

    def _go_back(self, length: int) -> None:
        """Take the matcher back to at most so many tokens."""
        while self._kept and self._kept[-1][0] > length:
            self._kept.pop()
        if not self._kept:
            self._begin()
            return
        del self._read[self._kept[-1][0] :]
        self._matcher = self._kept[-1][1].deep_copy()

    def _begin(self) -> None:
        self._matcher, self._mask = self._vocabulary.matcher(self._grammar), None
        self._read.clear()
        self._kept.clear()

    def _failed(self, position: int) -> InvalidRequest:
        """The error of a matcher that goes no further; another one stands in its place."""
        error = refused(self._grammar.option, self._matcher.get_error())
        self._begin()
        return InvalidRequest(f"{error.message}, behind {position} tokens of the answer", hint=error.hint)


class AnyLayout:
    """Keeps an answer to a form that others may write in a looser layout than a local model is left to.

    That keeps to ``strict`` as far as the text before it does: where white space may stand, small models go on with it.
    """

    def __init__(self, strict: GrammarConstraint, loose: GrammarConstraint) -> None:
        self._strict, self._loose = strict, loose

    def mask(self, answer: Sequence[int]) -> Mask:
        try:
            return self._strict.mask(answer)
        except InvalidRequest:
            return self._loose.mask(answer)

    def forced(self, answer: Sequence[int]) -> Sequence[int]:
        try:
            return self._strict.forced(answer)
        except InvalidRequest:
            return self._loose.forced(answer)

    def accepted(self, answer: Sequence[int], following: Sequence[int]) -> int:
        return self._loose.accepted(answer, following)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the longest common beginning."""
    size = min(len(one), len(other))
    return next((at for at in range(size) if one[at] != other[at]), size)
