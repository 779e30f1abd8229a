"""Model strings: ``backend:where``, with ``?option=value&option=value`` behind it where needed."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import parse_qsl

from .contracts.models import TokenModel
from .contracts.text_models import TextModel, reads_tokens
from .errors import ConfigurationError
from .records import Source


def _llama_cpp(where: str, options: dict[str, Any]) -> TokenModel:
    from .adapters.llama_cpp import LlamaCppModel

    return LlamaCppModel(where, **options)


def _reference(where: str, options: dict[str, Any]) -> TokenModel:
    from . import reference

    return reference.load(cast(Source, where), **options)  # which checks it


def _openai(where: str, options: dict[str, Any]) -> TextModel:
    from .adapters.openai import OpenAIModel

    return OpenAIModel(where, **options)


def _transformers(where: str, options: dict[str, Any]) -> TokenModel:
    from .adapters.transformers import TransformersModel

    return TransformersModel(where, **options)


def _tokens(where: str, options: dict[str, Any]) -> TokenModel:
    from .adapters.tokens import TokensModel

    return TokensModel(where, **options)


BACKENDS: dict[str, Callable[[str, dict[str, Any]], TokenModel | TextModel]] = {
    "llama_cpp": _llama_cpp,
    "openai": _openai,
    "reference": _reference,
    "tokens": _tokens,
    "transformers": _transformers,
}
EXAMPLES = (
    "llama_cpp:small.gguf",
    "llama_cpp:small.gguf?n_ctx=8192&n_seq=4",
    "llama_cpp:hf://owner/repo/file.gguf@revision",
    "llama_cpp:hf://Qwen/Qwen2.5-0.5B-Instruct-GGUF/qwen2.5-0.5b-instruct-q8_0.gguf",
    "openai:model-name@https://host/v1",
    "reference:fast",
    "reference:slow",
    "tokens:model-name@http://host:port",
    "transformers:folder",
    "transformers:owner/repo@revision?dtype=bfloat16&n_seq=4",
)


def make_model(model: TokenModel | TextModel | str) -> TokenModel | TextModel:
    """A model from an object or a string; :class:`ConfigurationError` lists what exists."""
    if not isinstance(model, str):
        if isinstance(model, type) or not (reads_tokens(model) or callable(getattr(model, "stream", None))):
            raise ConfigurationError(f"{model!r} is not a model", hint=f"pass a string like {EXAMPLES[0]!r}")
        return model
    backend, colon, rest = model.partition(":")
    if not colon or backend not in BACKENDS:
        close = difflib.get_close_matches(backend, BACKENDS, 1)
        raise ConfigurationError(
            f"unknown backend in model {model!r}",
            hint=(f"did you mean {close[0]!r}? " if close else "") + f"examples: {', '.join(EXAMPLES)}",
        )
    where, _, query = rest.partition("?")
    if not where:
        raise ConfigurationError(f"model {model!r} names no file or model", hint=f"examples: {', '.join(EXAMPLES)}")
    try:
        options = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=True)) if query else {}
    except ValueError:
        raise ConfigurationError(f"{query!r} in model {model!r} is not option=value&option=value") from None
    return BACKENDS[backend](where, options)
