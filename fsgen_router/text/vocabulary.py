"""What vocabularies hold: their hash, what two of them share, and what kind of text each token is."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np

from ..contracts.tokenizer import TokenClass, Tokenizer
from ..errors import VocabularyMismatch
from ..rows.reading import Alignment
from .conversation import encode_within

REASONING_MARKS: Final[Mapping[str, str]] = {
    "<think>": "</think>",
    "<seed:think>": "</seed:think>",
    "[THINK]": "[/THINK]",  # Magistral
    "<|START_THINKING|>": "<|END_THINKING|>",  # Command
    "<|inner_prefix|>": "<|inner_suffix|>",  # Apertus
    "<|channel>": "<channel|>",  # Gemma 4
}
"""What opens reasoning, and what closes it."""

# Where one is a control token it still is part of the text: without it, what was thought would read as the answer's
# beginning.
_THINKING = frozenset(mark.encode() for pair in REASONING_MARKS.items() for mark in pair)


def hidden_ids(tokenizer: Tokenizer, special_ids: frozenset[int] | None = None) -> frozenset[int]:
    """Control tokens (None: the tokenizer's own) that are not shown in a text: all but those around reasoning."""
    special = tokenizer.special_ids if special_ids is None else special_ids
    own = range(tokenizer.n_vocab)  # another model's may lie beyond
    return frozenset(token for token in special if token not in own or tokenizer.piece(token) not in _THINKING)


def vocabulary_hash(tokenizer: Tokenizer) -> str:
    """SHA-256 over id and bytes of every token that means something.

    Sizes are not compared: models of one family differ in padding rows.
    """
    digest = hashlib.sha256()
    skipped = tokenizer.unused_ids
    for token in range(tokenizer.n_vocab):
        if token not in skipped:
            piece = tokenizer.piece(token)
            digest.update(f"{token}:{len(piece)}:{token in tokenizer.special_ids}:".encode())
            digest.update(piece)
    return digest.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedVocabulary:
    """How the vocabularies of two models relate whose ids mean the same bytes, as far as both have them.

    ``only_fast`` and ``only_slow`` are ids that mean something to one model alone: no answer holds them.
    ``retyped`` ids are control tokens to one alone, and are taken for some in both.
    """

    fast: Tokenizer
    """The fast model's, as this pair uses it."""
    slow: Tokenizer
    n_vocab: int
    """Rows of both models are read up to here."""
    only_fast: tuple[int, ...]
    only_slow: tuple[int, ...]
    retyped: tuple[int, ...]
    eog_ids: frozenset[int]
    special_ids: frozenset[int]
    fast_row: Alignment | None
    """What makes the fast model's rows ones that the slow one can write too; None: they are."""
    slow_row: Alignment | None

    @property
    def same(self) -> bool:
        return not (self.only_fast or self.only_slow or self.retyped)

    def describe(self, fast_name: str, slow_name: str) -> list[str]:
        """In sentences, what is not the same."""
        found = []
        for name, tokenizer, ids in ((fast_name, self.fast, self.only_fast), (slow_name, self.slow, self.only_slow)):
            if ids:
                found.append(f"{name} alone has {_named(tokenizer, ids)}, which neither model will write")
        if self.retyped:
            named = _named(self.fast, self.retyped)
            found.append(f"{fast_name} and {slow_name} disagree on whether {named} are control tokens: taken for some")
        return found


_SHOWN = 4


def _named(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    names = [f"{tokenizer.piece(token).decode(errors='replace')!r} (id {token})" for token in ids[:_SHOWN]]
    more = [f"{len(ids) - _SHOWN:,} more"] if len(ids) > _SHOWN else []
    return ", ".join([*names, *more])


def share_vocabulary(fast: Tokenizer, slow: Tokenizer, *, fast_name: str, slow_name: str) -> SharedVocabulary:
    """What two vocabularies share. One may lack ids of the other, at its end or in the middle.

    Raises :class:`VocabularyMismatch` where an id means other bytes, and where a model could not end an answer.
    """
    n_vocab = min(fast.n_vocab, slow.n_vocab)
    known = [frozenset(range(tokenizer.n_vocab)) - tokenizer.unused_ids for tokenizer in (fast, slow)]
    both = known[0] & known[1]
    for token in range(n_vocab):
        if fast.piece(token) != slow.piece(token) and token in both:
            raise VocabularyMismatch(
                f"{fast_name} and {slow_name} have different vocabularies: id {token} is {fast.piece(token)!r} in "
                f"{fast_name} and {slow.piece(token)!r} in {slow_name}",
                hint="take two models of one family: token-level routing needs ids that mean the same bytes",
            )
    lone, eog_ids = known[0] ^ known[1], fast.eog_ids | slow.eog_ids
    # Rather an end to both than to one, and rather one that both know.
    places = (fast.eog_ids & slow.eog_ids & both, eog_ids & both, {token for token in eog_ids if token < n_vocab})
    end = next((min(place) for place in places if place), -1)
    if end < 0 and eog_ids:
        raise VocabularyMismatch(
            f"{fast_name} and {slow_name} have no end of a generation in common: {sorted(eog_ids)} is all there is, "
            f"and they share the ids 0 to {n_vocab - 1}",
            hint="take a file whose vocabulary says how an answer ends",
        )

    def row(tokenizer: Tokenizer, own: frozenset[int]) -> Alignment | None:
        moved = tokenizer.eog_ids & lone & own
        ends = sorted((moved | {end}) & own) if moved - {end} else []
        forbidden = sorted(token for token in lone if token < n_vocab and not (token == end and moved))
        if tokenizer.n_vocab == n_vocab and not forbidden and not ends:
            return None
        return Alignment(
            n_vocab=n_vocab, forbidden=np.array(forbidden, np.int64), ends=np.array(ends, np.int64), end=end
        )

    special_ids = fast.special_ids | slow.special_ids
    retyped = (fast.special_ids ^ slow.special_ids) & both
    return SharedVocabulary(
        fast=_Retyped.of(fast, retyped),
        slow=_Retyped.of(slow, retyped),
        n_vocab=n_vocab,
        only_fast=tuple(sorted(known[0] - known[1])),
        only_slow=tuple(sorted(known[1] - known[0])),
        retyped=tuple(sorted(retyped)),
        eog_ids=frozenset(token for token in eog_ids if token < n_vocab),
        special_ids=special_ids,
        fast_row=row(fast, known[0]),
        slow_row=row(slow, known[1]),
    )


class _Retyped:
    """A tokenizer with further control tokens, whose file has them as text: no text becomes one, and templates do.

    All else is the tokenizer's own.
    """

    def __init__(self, inner: Tokenizer, control_ids: frozenset[int]) -> None:
        self._inner = inner
        self.special_ids = inner.special_ids | control_ids
        further = {inner.piece(token).decode(errors="replace"): token for token in control_ids - inner.special_ids}
        self._ids = {name: token for name, token in further.items() if name}
        longest_first = sorted(self._ids, key=len, reverse=True)
        self._name = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    @classmethod
    def of(cls, tokenizer: Tokenizer, control_ids: frozenset[int]) -> Tokenizer:
        return cast(Tokenizer, cls(tokenizer, control_ids)) if control_ids - tokenizer.special_ids else tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def encode(self, text: str, *, add_bos: bool, parse_special: bool = False) -> list[int]:
        names = list(self._name.finditer(text))
        if parse_special and names:
            return self._around(names, text, add_bos=add_bos)
        ids = self._inner.encode(text, add_bos=add_bos, parse_special=parse_special)
        if not names or set(self._ids.values()).isdisjoint(ids):
            return ids
        # Cut within each name, which is then no token's.
        cuts = [0, *(name.start() + 1 for name in names), len(text)]
        first, *parts = (text[start:stop] for start, stop in itertools.pairwise(cuts))
        ids = self._inner.encode(first, add_bos=add_bos)
        for part in parts:
            ids += encode_within(self._inner, part)
        return ids

    def _around(self, names: Sequence[re.Match[str]], text: str, *, add_bos: bool) -> list[int]:
        ids, at = self._inner.encode("", add_bos=add_bos), 0
        for name in names:
            ids += [*self._part(text[at : name.start()]), self._ids[name[0]]]
            at = name.end()
        return ids + self._part(text[at:])

    def _part(self, text: str) -> list[int]:
        return self._inner.encode(text, add_bos=False, parse_special=True) if text else []

    def encode_chat(self, *arguments: Any, **options: Any) -> list[int]:
        """The tokenizer's own, which cuts texts by this one's :meth:`encode`."""
        ids: list[int] = type(self._inner).encode_chat(cast(Any, self), *arguments, **options)
        return ids


def token_classes(tokenizer: Tokenizer, special_ids: frozenset[int] = frozenset()) -> np.ndarray:
    """int8 of shape (n_vocab,): the :class:`TokenClass` of every id. ``special_ids`` are control tokens too."""
    classes = np.empty(tokenizer.n_vocab, np.int8)
    special, unused = tokenizer.special_ids | special_ids, tokenizer.unused_ids
    for token in range(tokenizer.n_vocab):
        classes[token] = (
            TokenClass.SPECIAL if token in special or token in unused else _class_of(tokenizer.piece(token))
        )
    return classes


def _class_of(piece: bytes) -> TokenClass:
    try:
        text = piece.decode()
    except UnicodeDecodeError:
        return TokenClass.BYTE
    stripped = text.strip()
    if not stripped:
        return TokenClass.SPACE
    if stripped.isnumeric():
        return TokenClass.DIGIT
    if not any(c.isalnum() for c in stripped):
        return TokenClass.PUNCTUATION
    return TokenClass.WORD_START if text[0].isspace() else TokenClass.WORD_INNER
