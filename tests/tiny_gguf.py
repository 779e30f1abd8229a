"""GGUF files with random weights and a vocabulary of one's own choice, in milliseconds."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np
from tokenizers import pre_tokenizers

SPECIALS = ("<|bos|>", "<|end|>", "<|user|>", "<|assistant|>")
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
    shard: int = 0,
    change: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """A Qwen2 of one layer: ``specials``, 256 bytes, ``words``, and ``padding`` rows that mean nothing.

    ``change`` is added to weights of that name.
    With ``shard`` tensors in each, it is written in shards, and the first one's path is returned.
    With ``space_prefix`` True or False its vocabulary is SentencePiece's, with or without a space before every text.
    """
    rng, width, hidden = np.random.default_rng(seed), 16, 32
    meaning = [*specials, *ALPHABET, "ĠĠ", *words]
    kinds = [gguf.TokenType.CONTROL] * len(specials) + [gguf.TokenType.NORMAL] * (len(meaning) - len(specials))
    if space_prefix is not None:
        bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
        pieces = ["▁", *string.ascii_letters, "▁▁", *words]
        meaning = [*specials, *bytes_, *pieces]
        kinds = kinds[: len(specials)] + [gguf.TokenType.BYTE] * 256 + [gguf.TokenType.NORMAL] * len(pieces)
    vocabulary = [*meaning, *(f"[PAD{number}]" for number in range(padding))]
    writer = gguf.GGUFWriter(path, "qwen2" if space_prefix is None else "llama", split_max_tensors=shard)
    writer.add_context_length(n_ctx)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
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
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(True)
    if template is not None:
        writer.add_chat_template(template)

    def add(name: str, *shape: int) -> None:
        drawn = rng.normal(0, 0.3, shape) + (change or {}).get(name, 0.0)
        writer.add_tensor(name, drawn.astype(np.float32))

    add("token_embd.weight", len(vocabulary), width)
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    for name in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.0.{name}.weight", np.ones(width, np.float32))
    for name in ("attn_q", "attn_k", "attn_v"):
        add(f"blk.0.{name}.weight", width, width)
        if space_prefix is None:
            add(f"blk.0.{name}.bias", width)
    add("blk.0.attn_output.weight", width, width)
    add("blk.0.ffn_gate.weight", hidden, width)
    add("blk.0.ffn_up.weight", hidden, width)
    add("blk.0.ffn_down.weight", width, hidden)
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
