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
    from .grammars import Grammar
    from .library import llguidance

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
        with holding(self._lock):
            first = self._matchers.get(grammar)
            if first is None:
                first = self._matchers[grammar] = grammar.matcher(self.tree)
                if len(self._matchers) > _KEPT:
                    self._matchers.popitem(last=False)
            self._matchers.move_to_end(grammar)
            return first.deep_copy()

    @cached_property
    def tree(self) -> llguidance.LLTokenizer:
        """llguidance's tokenizer. Ids that no answer may hold have no bytes in it, and ends are no text."""
        from .library import llguidance

        pieces = [b"" if token in self._unused else self._tokenizer.piece(token) for token in range(self.n_vocab)]
        own = _Encoder(self._tokenizer, pieces, sorted({*self._special, *self.eog_ids} & set(range(self.n_vocab))))
        ends = sorted(self.eog_ids)
        made = llguidance.LLTokenizer(llguidance.TokenizerWrapper(own), n_vocab=self.n_vocab, eos_token=ends or None)
        own.tree = made
        return made


class _Encoder:
    """What llguidance asks of a tokenizer: its tokens, and how it cuts a text, by which forced text becomes tokens."""

    def __init__(self, tokenizer: Tokenizer, pieces: list[bytes], special_ids: list[int]) -> None:
        self.tokens, self.special_token_ids = pieces, special_ids
        self.eos_token_id, self.bos_token_id = 0, None
        self.tree: llguidance.LLTokenizer | None = None
        self._tokenizer = tokenizer

    def __call__(self, text: bytes) -> list[int]:
        try:
            ids = encode_within(self._tokenizer, text.decode())
        except FsgenError:
            ids = []  # a vocabulary that lacks a byte
        if b"".join(self.tokens[token] for token in ids if token < len(self.tokens)) == text or self.tree is None:
            return ids
        return self.tree.greedy_tokenize(text.decode())  # the tokenizer changes what it cuts
