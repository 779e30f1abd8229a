"""Checking options against a pydantic model, with errors that say what exists, and where."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, BeforeValidator, ValidationError

from ..errors import ConfigurationError, InvalidRequest

SET_BY_US: Final = ("add_generation_prompt", "documents", "messages", "tools")
"""Variables of chat templates that no caller sets."""


def _template_variables(value: object) -> object:
    """JSON text or a mapping as a plain dict: templates see data alone, no objects of ours."""
    try:
        made = json.loads(value if isinstance(value, str) else json.dumps(value))
    except (TypeError, ValueError) as error:
        raise ValueError(f"a JSON object of template variables is wanted: {error}") from None
    if not isinstance(made, dict):
        raise ValueError('a JSON object of template variables is wanted, like {"enable_thinking": false}')
    if taken := [name for name in SET_BY_US if name in made]:
        raise ValueError(f"{taken[0]} cannot be set from outside")
    return made


def as_text(value: object) -> object:
    """A path as the text that a model string would have."""
    return os.fspath(value) if isinstance(value, os.PathLike) else value


TemplateVariables = Annotated[Mapping[str, Any], BeforeValidator(_template_variables)]
"""Variables for chat templates, by name: a mapping of JSON values, or the same as JSON text."""

T = TypeVar("T", bound=BaseModel)

OF_ROUTER: Final = (
    "at_any_price", "audit", "baseline_share", "batching", "budget", "checker", "fast", "machine", "max_waiting",
    "method", "policy", "prices", "read_ahead", "slow", "tuned",
)  # fmt: skip
"""What is said once, to the Router, and by some to a request or a model."""
OF_REQUEST: Final = (
    "baseline", "chat_template_kwargs", "constraint", "grammar", "logit_bias", "max_cost_usd", "max_seconds",
    "max_slow_calls", "max_slow_tokens", "max_tokens", "min_p", "parallel_tool_calls", "regex", "request_id",
    "response_format", "seed", "stop", "stop_tokens", "temperature", "tool_choice", "tools", "top_k", "top_p",
)  # fmt: skip
OF_MODEL: Final = (
    "ahead", "allow_http", "allow_pickle", "api", "api_key_env", "attn_implementation", "breaker_failures",
    "breaker_seconds", "chat_template", "connect_timeout_seconds", "cuda_graphs", "deadline_seconds", "device",
    "dtype", "extra_body", "first_token_timeout_seconds", "flash_attn", "gguf_file", "lora", "main_gpu",
    "max_retries", "mmap", "n_batch", "n_best", "n_ctx", "n_gpu_layers", "n_params", "n_seq", "n_threads", "prefill",
    "prices", "probe", "quantization_config", "read_timeout_seconds", "rope_freq_base", "rope_freq_scale",
    "rope_scaling_type", "sampling", "split_mode", "tensor_split", "tokenizer", "trust_remote_code", "type_k",
    "type_v", "vocabulary", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow", "yarn_ext_factor",
    "yarn_orig_ctx",
)  # fmt: skip

_OWNERS: Final = (
    (OF_ROUTER, "the Router's: Router(..., {name}=...)"),
    (OF_REQUEST, "a request's: complete(..., {name}=...)"),
    (OF_MODEL, "a model's: 'backend:where?{name}=...'"),
)

# What other libraries call it. Near in meaning, and often near in letters to something else.
_ELSEWHERE: Final[Mapping[str, str]] = {
    "ctx_size": "n_ctx",
    "do_sample": "temperature",
    "guided_grammar": "grammar",
    "guided_json": "response_format",
    "guided_regex": "regex",
    "json_schema": "response_format",
    "logits_processor": "constraint",
    "max_completion_tokens": "max_tokens",
    "max_length": "max_tokens",
    "max_new_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "n_predict": "max_tokens",
    "ngl": "n_gpu_layers",
    "num_ctx": "n_ctx",
    "num_predict": "max_tokens",
    "random_seed": "seed",
    "response_model": "response_format",
    "schema": "response_format",
    "stop_sequences": "stop",
    "stop_strings": "stop",
    "stop_token_ids": "stop_tokens",
    "temp": "temperature",
    "threads": "n_threads",
    "torch_dtype": "dtype",
}


def checked(model: type[T], options: Mapping[str, Any], *, error: type[ConfigurationError] | type[InvalidRequest]) -> T:
    """Validate options into ``model``, or say which one is wrong and what exists."""
    known = list(model.model_fields)
    for name in options:
        if name not in known:
            raise error(f"unknown option {name!r}", hint=_way_out(name, known))
    try:
        return model(**options)
    except ValidationError as invalid:
        first = invalid.errors()[0]
        name = ".".join(map(str, first["loc"]))
        if not name:  # of several options together, which what is wrong names itself
            raise error(first["msg"].removeprefix("Value error, ")) from None
        raise error(f"{name}={_brief(first['input'])}: {first['msg']}") from None


def _brief(value: object) -> str:
    """A value as an error shows it: a schema may be a book, or nested without end."""
    try:
        shown = repr(value)
    except RecursionError:
        shown = f"a deeply nested {type(value).__name__}"
    return shown if len(shown) <= 200 else f"{shown[:160]}..."


def _way_out(name: str, known: Sequence[str]) -> str:
    """Which option may have been meant, or whose this one is; and what exists here."""
    available = f"available: {', '.join(known)}"
    meant = _ELSEWHERE.get(name, name)
    if meant in known:
        return f"did you mean {meant!r}? {available}"
    for names, place in _OWNERS:
        if meant in names:
            return f"it is {place.format(name=meant)}; {available}"
    close = difflib.get_close_matches(name, known, 1)
    return (f"did you mean {close[0]!r}? " if close else "") + available
