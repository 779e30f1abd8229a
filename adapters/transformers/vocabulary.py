"""What the files of a model say of its vocabulary."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import gguf
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import cached_file

from .source import Source

# Pre-tokenizers, by their names in GGUF files, that take a word of the vocabulary whole, merges or not.
_WHOLE_WORDS = {"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken"}
_SAID = ("pre", "token_type", "bos_token_id", "add_space_prefix")


def fast_tokenizer(source: Source, config: Any) -> Any:
    """The tokenizer as its file has it: a class of transformers may put rules of its own in place of some."""
    if "gguf_file" not in source.arguments:
        with suppress(OSError):  # there is none: transformers makes one from what there is
            cached_file(source.where, "tokenizer.json", revision=source.arguments.get("revision"))
            return PreTrainedTokenizerFast.from_pretrained(source.where, **source.arguments)
    return AutoTokenizer.from_pretrained(source.where, config=config, **source.arguments)


def said_by_gguf(source: Source) -> dict[str, Any]:
    """What a GGUF file says of its vocabulary and transformers leaves out."""
    name = source.arguments.get("gguf_file")
    if name is None:
        return {}
    path = cached_file(source.where, name, revision=source.arguments.get("revision"))
    fields = gguf.GGUFReader(path).fields
    said = {key: fields[f"tokenizer.ggml.{key}"].contents() for key in _SAID if f"tokenizer.ggml.{key}" in fields}
    kinds = said.get("token_type", ())
    unused, control = (
        frozenset(token for token, kind in enumerate(kinds) if kind == wanted)
        for wanted in (gguf.TokenType.UNUSED, gguf.TokenType.CONTROL)
    )
    return {
        "whole_words": said.get("pre") in _WHOLE_WORDS,
        "unused_ids": unused,
        "control_ids": control,
        "bos_id": said.get("bos_token_id"),
        "space_prefix": said.get("add_space_prefix", True),
    }


def eog_ids(model: Any) -> set[int]:
    """Ids that end a generation, by the two configurations that may say so."""
    ids: set[int] = set()
    for config in (model.generation_config, model.config.get_text_config()):
        ends = getattr(config, "eos_token_id", None)
        ids |= {ends} if isinstance(ends, int) else set(ends or ())
    return ids
