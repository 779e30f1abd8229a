"""GGUF files with random weights and a vocabulary of one's own choice, in milliseconds."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import gguf
import numpy as np
from tokenizers import pre_tokenizers

SPECIALS = ("<|bos|>", "<|end|>", "<|user|>", "<|assistant|>")
_ARCHITECTURES = {"attention": "qwen2", "recurrent": "mamba", "hybrid": "lfm2", "window": "gemma3"}
_CONV, _STATE = 3, 4
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] | trim + '<|end|>' }}{% endfor %}"
    "<|assistant|>"
)


def write(
    path: Path,
    words: Sequence[str] = ("lamp", "rope"),
    *,
    padding: int = 0,
    template: str | Sequence[Mapping[str, str]] | None = _TEMPLATE,
    specials: Sequence[str] = SPECIALS,
    n_ctx: int = 128,
    seed: int = 0,
    space_prefix: bool | None = None,
    types: Mapping[str, gguf.TokenType] = MappingProxyType({}),
    eos: int = 1,
    loud: Sequence[str] = (),
    memory: str = "attention",
    shard: int = 0,
    change: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """A Qwen2 of one layer: ``specials``, 256 bytes, ``words``, and ``padding`` rows that mean nothing.

    ``change`` is added to weights of that name.
    With ``shard`` tensors in each, it is written in shards, and the first one's path is returned.
    With ``space_prefix`` True or False its vocabulary is SentencePiece's, with or without a space before every text.
    ``types`` are those of tokens that are not what their place says, ``loud`` ones win often. ``memory`` makes it
    another model: "recurrent" (a Mamba), "hybrid" (an LFM2, with one layer of each kind) or "window" (a Gemma 3).
    """
    rng, width, hidden = np.random.default_rng(seed), 16, 32
    meaning = [*specials, *ALPHABET, "ĠĠ", *words]
    kinds = [gguf.TokenType.CONTROL] * len(specials) + [gguf.TokenType.NORMAL] * (len(meaning) - len(specials))
    if space_prefix is not None:
        bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
        pieces = ["▁", *string.ascii_letters, "▁▁", *words]
        meaning = [*specials, *bytes_, *pieces]
        kinds = kinds[: len(specials)] + [gguf.TokenType.BYTE] * 256 + [gguf.TokenType.NORMAL] * len(pieces)
    kinds = [types.get(name, kind) for name, kind in zip(meaning, kinds, strict=True)]
    vocabulary = [*meaning, *(f"[PAD{number}]" for number in range(padding))]
    architecture = _ARCHITECTURES[memory]
    if space_prefix is not None:
        architecture = "llama"
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=shard)
    writer.add_context_length(n_ctx)
    writer.add_embedding_length(width)
    writer.add_block_count(2 if memory == "hybrid" else 1)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(2)
    writer.add_head_count_kv([0, 2] if memory == "hybrid" else 2)
    writer.add_layer_norm_rms_eps(1e-6)
    if memory == "recurrent":
        writer.add_ssm_conv_kernel(_CONV)
        writer.add_ssm_inner_size(hidden)
        writer.add_ssm_state_size(_STATE)
        writer.add_ssm_time_step_rank(2)
    elif memory == "hybrid":
        writer.add_shortconv_l_cache(_CONV)
    elif memory == "window":
        writer.add_sliding_window(8)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    if space_prefix is None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("llama-bpe")
        writer.add_token_merges(["Ġ Ġ"])
    else:
        writer.add_tokenizer_model("llama")
        # Letters last, so that words are made of them.
        writer.add_token_scores([-1000.0 if len(word) == 1 else -float(at) for at, word in enumerate(vocabulary)])
        writer.add_add_space_prefix(space_prefix)
        writer.add_rope_dimension_count(width // 2)
    writer.add_token_list(vocabulary)
    writer.add_token_types([*kinds, *[gguf.TokenType.UNUSED] * padding])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(eos)
    writer.add_add_bos_token(True)
    if template is not None:
        writer.add_chat_template(template)

    def add(name: str, *shape: int) -> None:
        drawn = rng.normal(0, 0.3, shape) + (change or {}).get(name, 0.0)
        writer.add_tensor(name, drawn.astype(np.float32))

    def norm(name: str, size: int = width) -> None:
        writer.add_tensor(name, np.ones(size, np.float32))

    def attention(layer: str, *, bias: bool) -> None:
        for name in ("attn_q", "attn_k", "attn_v"):
            add(f"{layer}.{name}.weight", width, width)
            if bias:
                add(f"{layer}.{name}.bias", width)
        add(f"{layer}.attn_output.weight", width, width)

    def feed_forward(layer: str) -> None:
        add(f"{layer}.ffn_gate.weight", hidden, width)
        add(f"{layer}.ffn_up.weight", hidden, width)
        add(f"{layer}.ffn_down.weight", width, hidden)

    embedding = rng.normal(0, 0.3, (len(vocabulary), width)).astype(np.float32)
    embedding[[vocabulary.index(name) for name in loud]] *= 5
    writer.add_tensor("token_embd.weight", embedding)
    norm("token_embd_norm.weight" if memory == "hybrid" else "output_norm.weight")
    norm("blk.0.attn_norm.weight")
    if memory == "recurrent":
        add("blk.0.ssm_in.weight", 2 * hidden, width)
        add("blk.0.ssm_conv1d.weight", hidden, _CONV)
        add("blk.0.ssm_conv1d.bias", hidden)
        add("blk.0.ssm_x.weight", 2 + 2 * _STATE, hidden)
        add("blk.0.ssm_dt.weight", hidden, 2)
        add("blk.0.ssm_dt.bias", hidden)
        writer.add_tensor("blk.0.ssm_a", -np.ones((hidden, _STATE), np.float32))
        norm("blk.0.ssm_d", hidden)
        add("blk.0.ssm_out.weight", width, hidden)
    if memory in ("attention", "window"):
        attention("blk.0", bias=architecture == "qwen2")
    if memory != "recurrent":
        norm("blk.0.ffn_norm.weight")
        feed_forward("blk.0")
    if memory == "window":
        norm("blk.0.post_attention_norm.weight")
        norm("blk.0.post_ffw_norm.weight")
        norm("blk.0.attn_q_norm.weight", width // 2)
        norm("blk.0.attn_k_norm.weight", width // 2)
    elif memory == "hybrid":
        add("blk.0.shortconv.in_proj.weight", 3 * width, width)
        add("blk.0.shortconv.conv.weight", width, _CONV)
        add("blk.0.shortconv.out_proj.weight", width, width)
        norm("blk.1.attn_norm.weight")
        norm("blk.1.ffn_norm.weight")
        feed_forward("blk.1")
        attention("blk.1", bias=False)
        norm("blk.1.attn_q_norm.weight", width // 2)
        norm("blk.1.attn_k_norm.weight", width // 2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return min(path.parent.glob(f"{path.stem}-00001-of-*.gguf")) if shard else path


def write_lora(
    path: Path, weights: Mapping[str, tuple[np.ndarray, np.ndarray]], *, alpha: float, architecture: str = "qwen2"
) -> Path:
    """A LoRA adapter: for each weight of a model its A, shape (rank, inputs), and B, shape (outputs, rank)."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    for name, (a, b) in weights.items():
        writer.add_tensor(f"{name}.lora_a", a.astype(np.float32))
        writer.add_tensor(f"{name}.lora_b", b.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
