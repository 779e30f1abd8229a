"""What the files of a model say of its vocabulary."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import gguf
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import cached_file

from fsgen_router.errors import ModelLoadError, ModelNotFound

from .source import Source
from .tokenizer import TransformersTokenizer

# Pre-tokenizers, by their names in GGUF files, that take a word of the vocabulary whole, merges or not.
_WHOLE_WORDS = {"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken"}
_CONFIGS = ("config.json", "generation_config.json")
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


def tokenizer_in(folder: str) -> TransformersTokenizer:
    """The tokenizer of a model's files alone, without its weights: ``tokenizer.json`` and what stands beside it."""
    path = Path(folder).expanduser()
    if not (path / "tokenizer.json").is_file():
        raise ModelNotFound(f"there is no tokenizer.json in {folder!r}", hint="name the folder with the model's files")
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(path)
        said = [json.loads(file.read_text()) for name in _CONFIGS if (file := path / name).is_file()]
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"the tokenizer in {folder!r} cannot be read: {error}") from error
    ends: set[int] = set()
    for config in said:
        named = config.get("eos_token_id")
        ends |= {named} if isinstance(named, int) else set(named or ())
    width = max(tokenizer.backend_tokenizer.get_vocab().values()) + 1
    return TransformersTokenizer(tokenizer, path.resolve().name, width=width, eog_ids=ends)
