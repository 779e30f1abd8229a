"""From a file and options to llama.cpp's model and context, with what went wrong as errors of this package."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
from llama_cpp import llama_cpp as lib

from fsgen_router.errors import ConfigurationError, ModelFileCorrupt, ModelLoadError, NotEnoughMemory
from fsgen_router.support.logs import log
from fsgen_router.support.machine import free_bytes, usable_physical_cores

from .native import errors_said, forget_errors, init_backend
from .options import ROPE_NUMBERS, LlamaCppOptions

_KV_TYPES = {"f32": 0, "f16": 1, "q8_0": 8}
_KV_BYTES = {"f32": 4.0, "f16": 2.0, "q8_0": 34 / 32}
_SMALL_MODEL = 50_000_000

_SPLIT_MODES = {"none": lib.LLAMA_SPLIT_MODE_NONE, "layer": lib.LLAMA_SPLIT_MODE_LAYER, "row": lib.LLAMA_SPLIT_MODE_ROW}
_ROPE_SCALING_TYPES = {
    "none": lib.LLAMA_ROPE_SCALING_TYPE_NONE,
    "linear": lib.LLAMA_ROPE_SCALING_TYPE_LINEAR,
    "yarn": lib.LLAMA_ROPE_SCALING_TYPE_YARN,
    "longrope": lib.LLAMA_ROPE_SCALING_TYPE_LONGROPE,
}


# --- the model -----------------------------------------------------------------------------------


def require_devices(options: LlamaCppOptions) -> None:
    """Options that choose among devices are no good where llama.cpp knows none."""
    chosen = [name for name in ("main_gpu", "split_mode", "tensor_split") if getattr(options, name) is not None]
    if chosen and not lib.llama_supports_gpu_offload():
        raise ConfigurationError(
            f"{chosen[0]} chooses among GPUs, and llama.cpp was built without them",
            hint="leave it out, or build llama.cpp for your GPU: fsgen-router doctor says how",
        )


def model_params(options: LlamaCppOptions) -> Any:
    """llama.cpp's parameters for loading a model."""
    params = lib.llama_model_default_params()
    params.n_gpu_layers = options.n_gpu_layers
    params.load_mode = lib.LLAMA_LOAD_MODE_MMAP if options.mmap else lib.LLAMA_LOAD_MODE_NONE
    if options.main_gpu is not None:
        params.main_gpu = options.main_gpu
    if options.split_mode is not None:
        params.split_mode = _SPLIT_MODES[options.split_mode]
    if options.tensor_split is not None:
        # llama.cpp reads one for every device there could be.
        shares = (ctypes.c_float * lib.llama_max_devices())(*options.tensor_split)
        params.tensor_split = ctypes.cast(shares, ctypes.POINTER(ctypes.c_float))
    return params


def load_model(path: Path, options: LlamaCppOptions) -> Any:
    """The weights and the vocabulary of a file."""
    init_backend()
    forget_errors()
    params = model_params(options)
    model = lib.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        said = errors_said()
        if "main_gpu" in said:
            raise ConfigurationError(f"main_gpu={options.main_gpu} is no device here: {said}")
        hint = "is the download complete?"
        if " split file " in said:
            hint = "it is one of several shards, which llama.cpp finds by the names they were published with"
        raise ModelFileCorrupt(f"llama.cpp cannot load {path}: {said}", hint=hint)
    return model


# --- its context ---------------------------------------------------------------------------------


def make_context(model: Any, name: str, options: LlamaCppOptions) -> tuple[Any, int]:
    """A context of ``n_seq`` sequences, and how many tokens each of them holds."""
    trained = lib.llama_model_n_ctx_train(model)
    n_ctx: int = options.n_ctx or min(trained, 4096)
    if n_ctx > trained and not options.scales_rope:
        log.warning("context_beyond_training", model=name, n_ctx=n_ctx, n_ctx_train=trained)
    _require_memory(model, name, options, n_ctx)
    params = lib.llama_context_default_params()
    params.n_ctx = n_ctx * options.n_seq
    params.n_seq_max = options.n_seq
    params.kv_unified = False
    # llama.cpp has room for an output of every sequence, or ends the process.
    params.n_batch = params.n_ubatch = max(options.n_batch, options.n_seq)
    params.n_threads = params.n_threads_batch = options.n_threads or default_threads(model)
    params.flash_attn_type = int(options.flash_attn)
    # Without it layers with a sliding window forget what a rewind goes back to.
    params.swa_full = True
    params.type_k, params.type_v = _KV_TYPES[options.type_k], _KV_TYPES[options.type_v]
    # A hidden state for every token, also of models that are made to pool them.
    params.pooling_type = lib.LLAMA_POOLING_TYPE_NONE
    params.no_perf = True
    if options.rope_scaling_type is not None:
        params.rope_scaling_type = _ROPE_SCALING_TYPES[options.rope_scaling_type]
    for field in ROPE_NUMBERS:
        if (value := getattr(options, field)) is not None:
            setattr(params, field, value)
    forget_errors()
    context = lib.llama_init_from_model(model, params)
    if not context:
        raise ModelLoadError(
            f"llama.cpp cannot make a context of {n_ctx} x {options.n_seq} tokens for {name}: {errors_said()}",
            hint="try a smaller n_ctx or n_seq, or f16 for type_k and type_v",
        )
    return context, n_ctx


def default_threads(model: Any) -> int:
    """How many threads a model is given that was not told a number."""
    # Two pools on the same cores are far slower than one: leave a core to the rest.
    if lib.llama_model_n_params(model) < _SMALL_MODEL:
        return 1
    usable = usable_physical_cores()
    return max(min(psutil.cpu_count(logical=False) or usable, usable) - 1, 1)


def device_of(context: Any, options: LlamaCppOptions) -> tuple[str, float]:
    """What a context's forwards run on, and how much of that they keep busy.

    Layers that stay on the CPU, and further GPUs that a model is spread over, are not counted: who waits for the main
    one waits for these, too.
    """
    if not options.n_gpu_layers or not lib.llama_supports_gpu_offload():
        return "cpu", lib.llama_n_threads(context) / usable_physical_cores()
    kinds = {b"CUDA": "cuda", b"MTL": "mps", b"Metal": "mps"}  # torch's names
    built = lib.llama_print_system_info()
    kind = next((name for mark, name in kinds.items() if mark in built), "gpu")
    return kind if kind == "mps" else f"{kind}:{options.main_gpu or 0}", 1.0


def _require_memory(model: Any, name: str, options: LlamaCppOptions, n_ctx: int) -> None:
    if options.n_gpu_layers:
        return  # the KV cache of those layers is not in this machine's memory
    width = lib.llama_model_n_embd(model) // max(lib.llama_model_n_head(model), 1) * lib.llama_model_n_head_kv(model)
    per_token = lib.llama_model_n_layer(model) * width * (_KV_BYTES[options.type_k] + _KV_BYTES[options.type_v])
    needed = per_token * n_ctx * options.n_seq
    available = free_bytes()
    if available is not None and needed > available:
        fits = int(available * 0.8 / per_token / options.n_seq) if per_token else 0
        raise NotEnoughMemory(
            f"the KV cache of {name} needs {needed / 2**30:.1f} GiB for {options.n_seq} x {n_ctx} tokens, "
            f"{available / 2**30:.1f} GiB are free",
            hint=f"n_ctx={fits} would fit, or lower n_seq",
        )


def add_lora(model: Any, context: Any, name: str, scales: Mapping[Path, float]) -> None:
    """Apply adapters to the context. They are freed with the model."""
    adapters = []
    for path in scales:
        forget_errors()
        adapter = lib.llama_adapter_lora_init(model, os.fsencode(path))
        if not adapter:
            raise ModelFileCorrupt(
                f"llama.cpp cannot apply the LoRA adapter {path} to {name}: {errors_said()}",
                hint="it has to be made for this model, and converted by llama.cpp's convert_lora_to_gguf",
            )
        if lib.llama_adapter_get_alora_n_invocation_tokens(adapter):
            raise ConfigurationError(
                f"{path} is an activated LoRA, which is on behind its invocation tokens alone",
                hint="merge it into the model, or take a plain LoRA",
            )
        adapters.append(ctypes.cast(adapter, ctypes.c_void_p).value)
    pointers = ctypes.cast(
        (ctypes.c_void_p * len(adapters))(*adapters), ctypes.POINTER(ctypes.POINTER(ctypes.c_void_p))
    )
    status = lib.llama_set_adapters_lora(
        context, pointers, len(adapters), (ctypes.c_float * len(adapters))(*scales.values())
    )
    if status:
        raise ModelLoadError(f"llama.cpp cannot apply {', '.join(map(str, scales))} to {name}")
