"""From a source and options to a model on its device."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, GgufConfig

from fsgen_router.errors import ConfigurationError, ModelFileCorrupt
from fsgen_router.support.logs import log

from .devices import require_memory, weight_bytes
from .options import TransformersOptions
from .probing import probe
from .slot_cache import bytes_per_token
from .source import Source

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def context_length(config: Any, name: str, options: TransformersOptions) -> int:
    """Tokens that a sequence holds."""
    trained = getattr(config, "max_position_embeddings", None)
    if not isinstance(trained, int):
        return options.n_ctx or 4096
    n_ctx = options.n_ctx or min(trained, 4096)
    if n_ctx > trained:
        if getattr(config, "rope_parameters", None) is None:
            raise ConfigurationError(f"{name} has {trained} positions, {n_ctx} do not fit", hint="lower n_ctx")
        log.warning("context_beyond_training", model=name, n_ctx=n_ctx, n_ctx_train=trained)
    return n_ctx


def require_memory_for_all(
    config: Any, name: str, device: torch.device, options: TransformersOptions, n_ctx: int
) -> None:
    """Before anything large is fetched or read: the model without its weights tells what it will take."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, dtype=_dtype(config, options), trust_remote_code=options.trust_remote_code
        )
        try:
            per_token = bytes_per_token(probe(model, "past_key_values", torch.device("meta"))[0])
        except Exception:  # whatever a forward cannot do without data: the weights count alone
            per_token = 0
    quantization = options.quantization_config or getattr(config, "quantization_config", None)
    weights = weight_bytes(model, quantization)
    require_memory(name, device, weights=weights, per_token=per_token, n_seq=options.n_seq, n_ctx=n_ctx)


def load_model(source: Source, config: Any, device: torch.device, options: TransformersOptions) -> Any:
    """The model with all of its weights."""
    chosen = {
        name: value
        for name in ("attn_implementation", "quantization_config")
        if (value := getattr(options, name)) is not None
    }
    if "gguf_file" in source.arguments:
        # Weights that stay packed are computed with by kernels that transformers fetches from the hub.
        chosen.setdefault("quantization_config", GgufConfig(dequantize=True))
    model, found = AutoModelForCausalLM.from_pretrained(
        source.where,
        config=config,
        dtype=_dtype(config, options),
        device_map={"": device},
        use_safetensors=None if options.allow_pickle else True,
        output_loading_info=True,
        **chosen,
        **source.arguments,
    )
    if missing := sorted(found["missing_keys"]):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelFileCorrupt(f"{source.name} has no weights for {missing[0]}{more}", hint="is it complete?")
    return model.eval()


def _dtype(config: Any, options: TransformersOptions) -> torch.dtype:
    if options.dtype != "auto":
        return _DTYPES[options.dtype]
    saved = getattr(config, "dtype", None)
    return saved if isinstance(saved, torch.dtype) else torch.float32
