"""The vocabulary and chat template of a GGUF file."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any

from llama_cpp import llama_cpp as lib

from fsgen_router.contracts.tokenizer import Turn

from ..chat_template import ChatTemplate, is_token, no_template
from .native import Native

_UNUSED, _CONTROL = 2, 8  # llama_token_attr


class LlamaCppTokenizer:
    """The vocabulary and chat template of a GGUF file.

    Padding behind the last token that means something is cut off: its rows are neither compared nor
    read, so models of one family that differ in it agree, and no model can write it.
    """

    def __init__(
        self, native: Native, name: str, *, template: str | None = None, variables: Mapping[str, Any] | None = None
    ) -> None:
        self._native, self._name = native, name
        self._wanted_template, self._variables = template, variables
        self._lock = native.vocabulary
        self.n_vocab: int = lib.llama_vocab_n_tokens(self._vocab)
        while self.n_vocab and lib.llama_vocab_get_attr(self._vocab, self.n_vocab - 1) & _UNUSED:
            self.n_vocab -= 1

    @property
    def _vocab(self) -> Any:
        return lib.llama_model_get_vocab(self._native.model)

    @cached_property
    def _pieces(self) -> list[bytes]:
        size = 256
        buffer = ctypes.create_string_buffer(size)
        pieces = []
        for token in range(self.n_vocab):
            count = lib.llama_token_to_piece(self._vocab, token, buffer, size, 0, True)
            if count < 0:
                size = -count
                buffer = ctypes.create_string_buffer(size)
                count = lib.llama_token_to_piece(self._vocab, token, buffer, size, 0, True)
            pieces.append(buffer.raw[:count])
        return pieces

    @cached_property
    def _attributes(self) -> list[int]:
        return [lib.llama_vocab_get_attr(self._vocab, token) for token in range(self.n_vocab)]

    @cached_property
    def eog_ids(self) -> frozenset[int]:
        return frozenset(t for t in range(self.n_vocab) if lib.llama_vocab_is_eog(self._vocab, t))

    @cached_property
    def special_ids(self) -> frozenset[int]:
        return frozenset(t for t, attributes in enumerate(self._attributes) if attributes & _CONTROL)

    @cached_property
    def unused_ids(self) -> frozenset[int]:
        return frozenset(t for t, attributes in enumerate(self._attributes) if attributes & _UNUSED)

    @property
    def pieces(self) -> Sequence[bytes]:
        return self._pieces

    def piece(self, token: int) -> bytes:
        return self._pieces[token]

    def encode(self, text: str, *, add_bos: bool, parse_special: bool = False) -> list[int]:
        data = text.encode()
        size = len(data) + 8
        while True:
            buffer = (lib.llama_token * size)()
            with self._lock:
                count = lib.llama_tokenize(self._vocab, data, len(data), buffer, size, add_bos, parse_special)
            if count >= 0:
                return list(buffer[:count])
            size = -count

    @cached_property
    def template(self) -> ChatTemplate:
        """The file's default chat template, or the one that was given instead."""
        with self._lock:
            vocab = self._vocab
            own = lib.llama_model_chat_template(self._native.model, None) or b""
            ids = {name: getattr(lib, f"llama_vocab_{name}")(vocab) for name in ("bos", "eos", "pad", "sep")}
        text = self._wanted_template or own.decode(errors="replace")
        if not text:
            raise no_template(self._name)
        names = {f"{name}_token": self._name_of(token) for name, token in ids.items() if 0 <= token < self.n_vocab}
        return ChatTemplate(text, self._name, tokens=names, is_token=partial(is_token, self), variables=self._variables)

    def _name_of(self, token: int) -> str:
        return self._pieces[token].decode(errors="replace")

    def encode_chat(self, messages: Sequence[Turn], chat_template_kwargs: Mapping[str, Any] | None = None) -> list[int]:
        """A user's text never becomes a control token, whatever it contains."""
        return self.template.encode(self, messages, chat_template_kwargs, bos=self._bos)

    @cached_property
    def _bos(self) -> int | None:
        """The token that every sequence begins with, if the vocabulary says so."""
        with self._lock:
            vocab = self._vocab
            return int(lib.llama_vocab_bos(vocab)) if lib.llama_vocab_get_add_bos(vocab) else None
