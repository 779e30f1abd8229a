"""What the benchmarks share: models of real shapes with random weights, bare loops, and results on disk."""

from __future__ import annotations

import ctypes
import datetime
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import gguf
import numpy as np
from tokenizers import pre_tokenizers

from fsgen_router.contracts.models import Capabilities, Opened, TokenModel, Work
from fsgen_router.rows.reading import Floats, Row

RESULTS = Path(__file__).with_name("results")
CACHE = Path(os.environ.get("FSGEN_BENCH_CACHE", Path.home() / ".cache" / "fsgen-router" / "bench"))


@dataclass(frozen=True)
class Shape:
    """A Qwen2 shape: what timing depends on. Weights are random, so quality does not exist."""

    name: str
    width: int
    layers: int
    heads: int
    kv_heads: int
    feed_forward: int
    vocabulary: int = 151_936
    context: int = 4096


HALF_BILLION = Shape("h5", 896, 24, 14, 2, 4864)  # Qwen2.5-0.5B: 494M parameters
TENTH = Shape("h05", 256, 8, 4, 1, 1024)  # the same vocabulary, a tenth of the parameters
SHAPES = {
    "tenth": TENTH,
    "0.5b": HALF_BILLION,
    "1.5b": Shape("1.5b", 1536, 28, 12, 2, 8960),
    "7b": Shape("7b", 3584, 28, 28, 4, 18_944),
    "14b": Shape("14b", 5120, 48, 40, 8, 13_824),
}


def _names(shape: Shape) -> list[str]:
    """Its tokens: bytes, many that no text has, and an end."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    return [*letters, "ĠĠ", *(f"Ġt{index}" for index in range(shape.vocabulary - len(letters) - 2)), "<|end|>"]


def random_model(shape: Shape, *, seed: int = 1) -> Path:
    """A GGUF file of this shape in 8 bits with random weights, made once and cached."""
    path = CACHE / f"{shape.name}-q8_0-{seed}.gguf"
    if path.exists():
        return path
    CACHE.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".tmp")
    writer = gguf.GGUFWriter(partial, "qwen2")
    writer.add_name(f"random {shape.name}")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    names = _names(shape)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(names)
    writer.add_token_types([gguf.TokenType.NORMAL] * (len(names) - 1) + [gguf.TokenType.CONTROL])
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_eos_token_id(len(names) - 1)
    rng = np.random.default_rng(seed)

    def matrix(name: str, rows: int, columns: int) -> None:
        values = rng.standard_normal((rows, columns), np.float32) / np.float32(np.sqrt(columns))
        writer.add_tensor(
            name, gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0), raw_dtype=gguf.GGMLQuantizationType.Q8_0
        )

    def ones(name: str, size: int) -> None:
        writer.add_tensor(name, np.ones(size, np.float32))

    def zeros(name: str, size: int) -> None:
        writer.add_tensor(name, np.zeros(size, np.float32))

    head = shape.width // shape.heads
    matrix("token_embd.weight", shape.vocabulary, shape.width)
    ones("output_norm.weight", shape.width)
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        for part, size in (("q", shape.width), ("k", head * shape.kv_heads), ("v", head * shape.kv_heads)):
            matrix(f"{block}attn_{part}.weight", size, shape.width)
            zeros(f"{block}attn_{part}.bias", size)
        matrix(f"{block}attn_output.weight", shape.width, shape.width)
        matrix(f"{block}ffn_gate.weight", shape.feed_forward, shape.width)
        matrix(f"{block}ffn_up.weight", shape.feed_forward, shape.width)
        matrix(f"{block}ffn_down.weight", shape.width, shape.feed_forward)
        ones(f"{block}attn_norm.weight", shape.width)
        ones(f"{block}ffn_norm.weight", shape.width)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(partial, path)
    return path


def random_transformers(shape: Shape, tokenizer: Any = None, **options: Any) -> Any:
    """A TransformersModel of this shape, its random weights made on the device: tens of gigabytes that need not lie in
    a file. ``tokenizer`` is one of transformers; without it, text is read byte by byte."""
    import torch
    from tokenizers import Tokenizer, decoders, models
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config

    from fsgen_router.adapters.transformers import TransformersModel

    if tokenizer is None:
        vocabulary = {token: index for index, token in enumerate(_names(shape))}
        bytewise = Tokenizer(models.BPE(vocabulary, []))
        bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bytewise.decoder = decoders.ByteLevel()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytewise, eos_token="<|end|>")
    config = Qwen2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.feed_forward,
        max_position_embeddings=shape.context,
        eos_token_id=tokenizer.eos_token_id,
    )

    def load_model(_source: object, config: Any, device: Any, options: Any) -> Any:
        with device:
            return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, options.dtype, torch.bfloat16)).eval()

    with tempfile.TemporaryDirectory(prefix=f"random-{shape.name}-") as folder:
        tokenizer.save_pretrained(folder)
        config.save_pretrained(folder)
        with mock.patch("fsgen_router.adapters.transformers.model.load_model", load_model):
            return TransformersModel(folder, **options)


def _argmax(row: Floats) -> int:
    return int(row.argmax())


class BareLoop:
    """llama.cpp through ctypes with nothing around it: decode, look at the logits, argmax."""

    def __init__(self, path: Path, *, n_ctx: int, n_threads: int) -> None:
        from llama_cpp import llama_cpp as lib  # here: other benchmarks run where there is none

        self._lib = lib
        params = lib.llama_model_default_params()
        self._model = lib.llama_model_load_from_file(os.fsencode(path), params)
        options = lib.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = n_ctx, 512, 512
        options.n_threads = options.n_threads_batch = n_threads
        options.flash_attn_type, options.no_perf = 0, True
        self._context = lib.llama_init_from_model(self._model, options)
        self._memory = lib.llama_get_memory(self._context)
        self._vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._model))
        self._batch = lib.llama_batch_init(512, 0, 1)

    def rewind(self, keep: int) -> None:
        self._lib.llama_memory_seq_rm(self._memory, 0, keep, -1)

    def decode(self, ids: list[int], start: int, choose: Callable[[Floats], int] = _argmax) -> int:
        """Append ``ids`` at position ``start`` and return what is chosen by the last row."""
        batch = self._batch
        for index, token in enumerate(ids):
            batch.token[index], batch.pos[index] = token, start + index
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
            batch.logits[index] = index == len(ids) - 1
        batch.n_tokens = len(ids)
        if self._lib.llama_decode(self._context, batch):
            raise RuntimeError("llama_decode failed")
        pointer = self._lib.llama_get_logits_ith(self._context, len(ids) - 1)
        row = np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), (self._vocabulary,))
        return choose(row)

    def close(self) -> None:
        self._lib.llama_batch_free(self._batch)
        self._lib.llama_free(self._context)
        self._lib.llama_model_free(self._model)


class Recorder:
    """A model that notes how many tokens each forward read."""

    def __init__(self, model: TokenModel) -> None:
        self._model = model
        self.sizes: list[int] = []
        self.name, self.tokenizer, self.n_params = model.name, model.tokenizer, model.n_params
        self.n_ctx, self.n_seq = model.n_ctx, model.n_seq
        self.capabilities: Capabilities = model.capabilities

    def open(self, ids: Any) -> Opened:
        return self._model.open(ids)

    def forward(self, works: list[Work]) -> list[list[Row]]:
        self.sizes += [len(work.ids) for work in works]
        return self._model.forward(works)

    def close(self, sequence: int) -> None:
        self._model.close(sequence)

    def shutdown(self) -> None:
        self._model.shutdown()


def block_ratio(first: list[float], second: list[float], *, seed: int = 0) -> dict[str, float]:
    """Median of the paired ratios first / second over blocks, with its 95% bootstrap interval."""
    from scipy.stats import bootstrap

    ratios = np.asarray(first) / np.asarray(second)
    interval = bootstrap(
        (ratios,), np.median, n_resamples=9999, confidence_level=0.95, rng=np.random.default_rng(seed)
    ).confidence_interval
    return {"ratio": float(np.median(ratios)), "low": float(interval.low), "high": float(interval.high)}


def timed(function: Any) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def save(name: str, figures: dict[str, Any]) -> Path:
    """Write ``results/NAME.json`` atomically, with date and machine."""
    RESULTS.mkdir(exist_ok=True)
    about = {
        "script": f"benchmarks/{name}.py",
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
    }
    path = RESULTS / f"{name}.json"
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(about | figures, indent=1) + "\n")
    os.replace(partial, path)
    print(json.dumps(about | figures, indent=1))
    return path
