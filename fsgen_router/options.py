"""Checking options against a pydantic model, with errors that say what exists, and where."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from .errors import ConfigurationError, InvalidRequest

T = TypeVar("T", bound=BaseModel)

OF_ROUTER: Final = ("audit", "batching", "fast", "max_waiting", "method", "policy", "prices", "read_ahead", "slow")
"""What is said once, to the Router, and by some to a request or a model."""
OF_REQUEST: Final = (
    "baseline", "constraint", "logit_bias", "max_slow_calls", "max_slow_tokens", "max_tokens", "min_p", "seed", "stop",
    "stop_tokens", "temperature", "top_k", "top_p",
)  # fmt: skip
OF_MODEL: Final = (
    "api_key_env", "attn_implementation", "device", "dtype", "extra_body", "flash_attn", "n_batch", "n_ctx",
    "n_gpu_layers", "n_seq", "n_threads", "quantization_config", "sampling", "type_k", "type_v",
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
    "grammar": "constraint",
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
        name = ".".join(map(str, first["loc"])) or "options"
        raise error(f"{name}={first['input']!r}: {first['msg']}") from None


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
