"""The vocabulary and chat template of a model of transformers, as llama.cpp sees the same vocabulary."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from functools import cached_property, partial
from typing import Any

from tokenizers import AddedToken, Tokenizer

from fsgen_router.contracts.tokenizer import Turn
from fsgen_router.errors import ConfigurationError

from ..chat_template import ChatTemplate, is_token, no_template

# Names of control tokens that some vocabularies list as ordinary added tokens. GGUF files have them as
# control tokens, and both must agree where one model of a pair comes from each.
_CONTROL = re.compile(r"<\|.*\|>|<｜.*｜>|<unused.*>|<pad>|<mask>", re.DOTALL)
# What a GGUF file calls a row that no token belongs to.
_PADDING = re.compile(r"\[PAD\d+\]")
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TransformersTokenizer:
    """A :class:`~fsgen_router.contracts.tokenizer.Tokenizer` on a fast tokenizer of transformers.

    ``width`` is the number of rows of logits: what the tokenizer holds beyond it cannot be read.
    ``eog_ids`` are those that the model's own configuration names; the tokenizer's is added.
    ``unused_ids`` have names and mean nothing. ``whole_words`` takes what is in the vocabulary without
    asking whether merges lead to it.
    """

    def __init__(
        self,
        tokenizer: Any,
        name: str,
        *,
        width: int,
        eog_ids: Iterable[int] = (),
        unused_ids: frozenset[int] = frozenset(),
        control_ids: frozenset[int] = frozenset(),
        bos_id: int | None = None,
        whole_words: bool = False,
        space_prefix: bool | None = None,
        template: str | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ConfigurationError(
                f"{name} has no fast tokenizer", hint="a tokenizer.json is needed: convert it with transformers"
            )
        self._tokenizer, self._name = tokenizer, name
        self._wanted_template, self._variables = template, variables
        vocabulary = {token: text for text, token in backend.get_vocab().items() if token < width}
        added = {token: entry for token, entry in backend.get_added_tokens_decoder().items() if token < width}
        meant = {token for token, text in vocabulary.items() if not _PADDING.fullmatch(text)} - unused_ids
        self.n_vocab = max(meant) + 1
        self.unused_ids = frozenset(range(self.n_vocab)) - meant
        self.special_ids = (frozenset(_control_tokens(added, tokenizer)) | control_ids) & meant
        self.eog_ids = (frozenset(eog_ids) | {tokenizer.eos_token_id}) & meant
        self._vocabulary, self._added = vocabulary, added
        made = _cleaned(backend, meant, self.special_ids, whole_words)
        if space_prefix is not None:
            _say_space_prefix(made, space_prefix)
        self._spell = _spelling(made)
        # Copies that nothing else changes: one reads control tokens in a text, one their names as text.
        self._with_special = Tokenizer.from_str(json.dumps(made))
        self._plain = Tokenizer.from_str(json.dumps(_renamed(made, self.special_ids)))
        # The token that every sequence begins with, if the vocabulary says so.
        bos = tokenizer.bos_token_id
        begins = backend.encode("").ids[:1] == [bos]
        if begins and bos not in meant:  # of transformers' own making; the model's file knows better
            bos = bos_id
        self._bos: int | None = bos if begins else None

    @cached_property
    def pieces(self) -> Sequence[bytes]:
        pieces = [b""] * self.n_vocab
        for token in set(range(self.n_vocab)) - self.unused_ids:
            entry = self._added.get(token)
            pieces[token] = self._spell(self._vocabulary[token]) if entry is None else entry.content.encode()
        return pieces

    def piece(self, token: int) -> bytes:
        return self.pieces[token]

    def encode(self, text: str, *, add_bos: bool, parse_special: bool = False) -> list[int]:
        encoder = self._with_special if parse_special else self._plain
        ids: list[int] = encoder.encode(text, add_special_tokens=False).ids
        return [self._bos, *ids] if add_bos and self._bos is not None else ids

    # --- chat ---

    @cached_property
    def template(self) -> ChatTemplate:
        """The model's default chat template, or the one that was given instead."""
        text = self._wanted_template or self._own_template()
        return ChatTemplate(
            text,
            self._name,
            tokens=self._tokenizer.special_tokens_map,
            is_token=partial(is_token, self),
            variables=self._variables,
        )

    def _own_template(self) -> str:
        own = self._tokenizer.chat_template
        if isinstance(own, dict) and own and "default" not in own:
            raise ConfigurationError(
                f"{self._name} has chat templates for {', '.join(sorted(own))}, and none that is the default",
                hint="load it with chat_template=file.jinja",
            )
        text = own.get("default") if isinstance(own, dict) else own
        if not text:
            raise no_template(self._name)
        return str(text)

    def encode_chat(self, messages: Sequence[Turn], chat_template_kwargs: Mapping[str, Any] | None = None) -> list[int]:
        """A user's text never becomes a control token, whatever it contains."""
        return self.template.encode(self, messages, chat_template_kwargs, bos=self._bos)


def _control_tokens(added: dict[int, AddedToken], tokenizer: Any) -> Iterator[int]:
    """What is no part of a text. The token for unknown text is one, unless it does another's work too."""
    named = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    for token, entry in added.items():
        control = entry.special or _CONTROL.fullmatch(entry.content)
        if token in named or (control and token != tokenizer.unk_token_id):
            yield token


def _cleaned(backend: Tokenizer, meant: Set[int], special_ids: Set[int], whole_words: bool) -> dict[str, Any]:
    """The tokenizer as JSON, with what the model knows and nothing that cuts or fills a text."""
    made: dict[str, Any] = json.loads(backend.to_str())
    made |= {"truncation": None, "padding": None}
    # transformers may add tokens that the model has no rows for.
    made["added_tokens"] = [
        {**entry, "special": entry["id"] in special_ids} for entry in made["added_tokens"] if entry["id"] in meant
    ]
    if whole_words and made["model"]["type"] == "BPE":
        made["model"]["ignore_merges"] = True
    return made


def _say_space_prefix(made: dict[str, Any], wanted: bool) -> None:
    """Let a SentencePiece vocabulary put a space before every text, as its file wants it, also before another space.

    transformers asks no file, and puts one only where none is.
    """
    if (made["pre_tokenizer"] or {}).get("type") != "Metaspace":
        return
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    prefix = [{"type": "Prepend", "prepend": "▁"}] if wanted else []
    made["normalizer"], made["pre_tokenizer"] = {"type": "Sequence", "normalizers": [*prefix, spaces]}, None


def _renamed(made: dict[str, Any], special_ids: Set[int]) -> dict[str, Any]:
    """``made`` with control tokens under names that no text holds, changed in place.

    To skip them as added tokens is not enough: the vocabulary behind would still match their names.
    """
    unheard_of = uuid.uuid4().hex
    for entry in made["added_tokens"]:
        if entry["id"] in special_ids:
            entry["content"] = f"{unheard_of}{entry['id']}"
    model = made["model"]
    if isinstance(model["vocab"], dict):
        named = {token: name for name, token in model["vocab"].items() if token in special_ids}
        for token, name in named.items():
            model["vocab"][f"{unheard_of}{token}"] = model["vocab"].pop(name)
            if model.get("unk_token") == name:
                model["unk_token"] = f"{unheard_of}{token}"
        names = set(named.values())
        if "merges" in model:
            model["merges"] = [pair for pair in model["merges"] if names.isdisjoint((*pair, "".join(pair)))]
    else:  # Unigram: a list of pieces and scores
        for token in special_ids & set(range(len(model["vocab"]))):
            model["vocab"][token][0] = f"{unheard_of}{token}"
    return made


# --- from a vocabulary's spelling to bytes -------------------------------------------------------


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's letters for bytes: printable ones stand for themselves, the others follow from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(others)}


def _spelling(tokenizer: dict[str, Any]) -> Callable[[str], bytes]:
    """The function from a token's spelling in this vocabulary to its bytes."""
    decoders = list(_parts(tokenizer.get("decoder"), "decoders"))
    kinds = {part["type"] for part in decoders}
    if "ByteLevel" in kinds:
        alphabet = _byte_alphabet()

        def from_letters(text: str) -> bytes:
            return b"".join(bytes([alphabet[c]]) if c in alphabet else c.encode() for c in text)

        return from_letters
    if "WordPiece" in kinds:
        return lambda text: text[2:].encode() if text.startswith("##") else b" " + text.encode()
    # SentencePiece and its kin: a mark for the space, and bytes by their numbers.
    marks = [part.get("replacement", "▁") for part in decoders if part["type"] == "Metaspace"] or ["▁"]
    suffix = tokenizer["model"].get("end_of_word_suffix")

    def from_marks(text: str) -> bytes:
        byte = _BYTE.fullmatch(text)
        if byte is not None:
            return bytes([int(byte[1], 16)])
        for mark in (*marks, *([suffix] if suffix else [])):
            text = text.replace(mark, " ")
        return text.encode()

    return from_marks


def _parts(node: dict[str, Any] | None, key: str) -> Iterator[dict[str, Any]]:
    if node is not None and node["type"] == "Sequence":
        for inner in node[key]:
            yield from _parts(inner, key)
    elif node is not None:
        yield node
