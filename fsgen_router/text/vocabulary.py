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
    """How the vocabularies of two models, or three, relate whose ids mean the same bytes, as far as all have them.

    ``only_fast``, ``only_slow`` and ``only_tuned`` are ids that mean something to that model and not to every other:
    no answer holds them. ``retyped`` ids are control tokens to some alone, and are taken for some in all.
    """

    fast: Tokenizer
    """The fast model's, as this pair uses it."""
    slow: Tokenizer
    n_vocab: int
    """Rows of all models are read up to here."""
    only_fast: tuple[int, ...]
    only_slow: tuple[int, ...]
    retyped: tuple[int, ...]
    eog_ids: frozenset[int]
    special_ids: frozenset[int]
    fast_row: Alignment | None
    """What makes the fast model's rows ones that the slow one can write too; None: they are."""
    slow_row: Alignment | None
    tuned: Tokenizer | None = None
    """A third model's, where there is one."""
    only_tuned: tuple[int, ...] = ()
    tuned_row: Alignment | None = None

    @property
    def same(self) -> bool:
        return not (self.only_fast or self.only_slow or self.only_tuned or self.retyped)

    def describe(self, fast_name: str, slow_name: str, tuned_name: str = "") -> list[str]:
        """In sentences, what is not the same."""
        models = [(fast_name, self.fast, self.only_fast), (slow_name, self.slow, self.only_slow)]
        if self.tuned is not None:
            models.append((tuned_name, self.tuned, self.only_tuned))
        has, none = (
            ("alone has", "neither model") if len(models) == 2 else ("has, and not all others have,", "no model")
        )
        found = [f"{name} {has} {_named(words, ids)}, which {none} will write" for name, words, ids in models if ids]
        if self.retyped:
            named = _named(self.fast, self.retyped)
            names = " and ".join(name for name, _, _ in models)
            found.append(f"{names} disagree on whether {named} are control tokens: taken for some")
        return found


_SHOWN = 4


def _named(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    names = [f"{tokenizer.piece(token).decode(errors='replace')!r} (id {token})" for token in ids[:_SHOWN]]
    more = [f"{len(ids) - _SHOWN:,} more"] if len(ids) > _SHOWN else []
    return ", ".join([*names, *more])


def share_vocabulary(
    fast: Tokenizer,
    slow: Tokenizer,
    tuned: Tokenizer | None = None,
    *,
    fast_name: str,
    slow_name: str,
    tuned_name: str = "",
) -> SharedVocabulary:
    """What two vocabularies, or three, share. One may lack ids of another, at its end or in the middle.

    Raises :class:`VocabularyMismatch` where an id means other bytes, and where a model could not end an answer.
    """
    models = [(fast, fast_name), (slow, slow_name), *([] if tuned is None else [(tuned, tuned_name)])]
    known = [frozenset(range(tokenizer.n_vocab)) - tokenizer.unused_ids for tokenizer, _ in models]
    n_vocab, all_have = min(tokenizer.n_vocab for tokenizer, _ in models), frozenset.intersection(*known)
    for number, (tokenizer, name) in enumerate(models[1:], 1):
        _require_alike(fast, fast_name, tokenizer, name, known[0] & known[number])
    lone = frozenset.union(*known) - all_have
    eogs = [tokenizer.eog_ids for tokenizer, _ in models]
    eog_ids = frozenset.union(*eogs)
    # Rather an end to all than to one, and rather one that all know.
    places = (
        frozenset.intersection(*eogs) & all_have,
        eog_ids & all_have,
        {token for token in eog_ids if token < n_vocab},
    )
    end = next((min(place) for place in places if place), -1)
    if end < 0 and eog_ids:
        raise VocabularyMismatch(
            f"{' and '.join(name for _, name in models)} have no end of a generation in common: {sorted(eog_ids)} is "
            f"all there is, and they share the ids 0 to {n_vocab - 1}",
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

    specials = [tokenizer.special_ids for tokenizer, _ in models]
    special_ids = frozenset.union(*specials)
    retyped = (special_ids - frozenset.intersection(*specials)) & all_have
    return SharedVocabulary(
        fast=_Retyped.of(fast, retyped),
        slow=_Retyped.of(slow, retyped),
        n_vocab=n_vocab,
        only_fast=tuple(sorted(known[0] - all_have)),
        only_slow=tuple(sorted(known[1] - all_have)),
        retyped=tuple(sorted(retyped)),
        eog_ids=frozenset(token for token in eog_ids if token < n_vocab),
        special_ids=special_ids,
        fast_row=row(fast, known[0]),
        slow_row=row(slow, known[1]),
        tuned=None if tuned is None else _Retyped.of(tuned, retyped),
        only_tuned=() if tuned is None else tuple(sorted(known[2] - all_have)),
        tuned_row=None if tuned is None else row(tuned, known[2]),
    )


def _require_alike(one: Tokenizer, one_name: str, other: Tokenizer, other_name: str, both: frozenset[int]) -> None:
    """Raise :class:`VocabularyMismatch` for the first id of ``both`` that does not mean the same bytes."""
    for token in range(min(one.n_vocab, other.n_vocab)):
        if one.piece(token) != other.piece(token) and token in both:
            raise VocabularyMismatch(
                f"{one_name} and {other_name} have different vocabularies: id {token} is {one.piece(token)!r} in "
                f"{one_name} and {other.piece(token)!r} in {other_name}",
                hint="take two models of one family: token-level routing needs ids that mean the same bytes",
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
