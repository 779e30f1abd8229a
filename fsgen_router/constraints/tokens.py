"""A pair's vocabulary as a matcher of llguidance reads it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from functools import cached_property
from typing import TYPE_CHECKING, Final

from ..contracts.tokenizer import Tokenizer
from ..errors import FsgenError
from ..support.waiting import holding
from ..text.conversation import encode_within
from ..text.vocabulary import SharedVocabulary

if TYPE_CHECKING:
    from .engine import llguidance
    from .grammars import Grammar

_KEPT: Final = 32
"""Grammars whose first matcher is kept: a request that brings one of them again copies it."""


class GrammarVocabulary:
    """The vocabulary that answers are written in: one model's, or what a pair shares.

    llguidance's own tree of it is made with the first grammar (half a second at 152,000 tokens) and kept, and so are
    the grammars that were used last.
    """

    def __init__(self, vocabulary: Tokenizer | SharedVocabulary) -> None:
        if isinstance(vocabulary, SharedVocabulary):
            self._tokenizer = vocabulary.fast
            lone = {*vocabulary.only_fast, *vocabulary.only_slow, *vocabulary.only_tuned}
        else:
            self._tokenizer, lone = vocabulary, set()
        self.n_vocab, self.eog_ids = vocabulary.n_vocab, vocabulary.eog_ids
        self._special = vocabulary.special_ids
        self._unused = lone | self._tokenizer.unused_ids
        self._matchers: OrderedDict[Grammar, llguidance.LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def end(self) -> int | None:
        """The token that ends an answer, rather one that all models know; None where there is none."""
        return min(self.eog_ids - self._unused or self.eog_ids, default=None)

    def writes(self, token: int) -> bool:
        """Whether an answer may hold a token: all models have it."""
        return 0 <= token < self.n_vocab and token not in self._unused

    def matcher(self, grammar: Grammar) -> llguidance.LLMatcher:
        """A matcher at the beginning of an answer. Raises :class:`~fsgen_router.errors.InvalidRequest`."""
        known = grammar in self._matchers
        made = None if known else grammar.matcher(self.tree)  # which may take a while, and nobody waits for it
        with holding(self._lock):
            first = self._matchers.get(grammar) or made or grammar.matcher(self.tree)
            self._matchers[grammar] = first
            self._matchers.move_to_end(grammar)
            if len(self._matchers) > _KEPT:
                self._matchers.popitem(last=False)
            return first.deep_copy()

    @cached_property
    def tree(self) -> llguidance.LLTokenizer:
        """llguidance's tokenizer. Ids that no answer may hold have no bytes in it, and ends are no text."""
        from .engine import llguidance

        pieces = [b"" if token in self._unused else self._tokenizer.piece(token) for token in range(self.n_vocab)]
        special = {*self._special, *self.eog_ids} & set(range(self.n_vocab))
        ends = sorted(self.eog_ids)
        if not ends:  # it wants one; behind the others, it is in no mask
            ends = [self.n_vocab]
            special.add(self.n_vocab)
            pieces.append(b"<end>")
        own = llguidance.TokenizerWrapper(_Encoder(self._tokenizer, pieces, sorted(special), ends[0]))
        return llguidance.LLTokenizer(own, n_vocab=len(pieces), eos_token=ends)


class _Encoder:
    """What llguidance asks of a tokenizer: its tokens, and how it cuts a text, by which forced text becomes tokens.

    It knows nothing of llguidance's object, which holds it: no collector would find that circle.
    """

    def __init__(self, tokenizer: Tokenizer, pieces: list[bytes], special_ids: list[int], end: int) -> None:
        self.tokens, self.special_token_ids = pieces, special_ids
        self.eos_token_id, self.bos_token_id = end, None
        self._tokenizer, self._special = tokenizer, frozenset(special_ids)

    def __call__(self, text: str) -> list[int]:
        """Tokens of this text's bytes and no others: llguidance takes them on trust. (It tries bytes once, in vain.)"""
        data = text.encode()
        try:
            ids = encode_within(self._tokenizer, text)
        except FsgenError:
            ids = []  # a vocabulary that lacks a character, perhaps in this cut alone
        ordinary = all(token < len(self.tokens) and token not in self._special for token in ids)
        if ordinary and b"".join(self.tokens[token] for token in ids) == data:
            return ids
        return self._longest(data)

    def _longest(self, data: bytes) -> list[int]:
        """The longest tokens, from the beginning on: for tokenizers that change what they cut."""
        ids, at = [], 0
        while at < len(data):
            sizes = range(min(self._most, len(data) - at), 0, -1)
            size = next((size for size in sizes if data[at : at + size] in self._ids), 0)
            if not size:
                raise ValueError(f"no token begins {data[at : at + 16]!r}")
            ids.append(self._ids[data[at : at + size]])
            at += size
        return ids

    @cached_property
    def _ids(self) -> dict[bytes, int]:
        return {piece: token for token, piece in enumerate(self.tokens) if piece and token not in self._special}

    @cached_property
    def _most(self) -> int:
        return max(map(len, self._ids), default=0)
