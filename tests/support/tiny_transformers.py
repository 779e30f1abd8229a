"""Models of transformers with random weights, of several architectures, saved once for all tests."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

SPECIALS = ("<|bos|>", "<|end|>", "<|user|>", "<|assistant|>")
WORDS = ("lamp", "rope")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
N_VOCAB = len(SPECIALS) + 256 + len(WORDS)
PADDING = 10  # rows of logits that no token belongs to

_COMMON = {
    "vocab_size": N_VOCAB + PADDING,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
    "initializer_range": 0.3,
}
_WINDOWED = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "decoder_sparse_step": 1}
_LATENT = {
    "num_key_value_heads": 4,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 6,
}
_STATE = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
CONFIGS: dict[str, Any] = {
    "llama": lambda: transformers.LlamaConfig(**_COMMON),
    "qwen2": lambda: transformers.Qwen2Config(**_COMMON),
    "mistral": lambda: transformers.MistralConfig(**_COMMON, sliding_window=8),
    "gemma2": lambda: transformers.Gemma2Config(**_COMMON, **_WINDOWED, head_dim=8),
    "gpt2": lambda: transformers.GPT2Config(**{**_COMMON, **_GPT2}),
    "bloom": lambda: transformers.BloomConfig(**_COMMON, n_layer=2, n_head=4),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(**_COMMON, **_EXPERTS, head_dim=8),
    "deepseek_v3": lambda: transformers.DeepseekV3Config(**{**_COMMON, **_LATENT}),
    "lfm2": lambda: transformers.Lfm2Config(**_COMMON, layer_types=["conv", "full_attention"]),
    "falcon_h1": lambda: transformers.FalconH1Config(**_COMMON, **_STATE, mamba_chunk_size=8, head_dim=8),
    "mamba": lambda: transformers.MambaConfig(**_COMMON, state_size=4),
    "rwkv": lambda: transformers.RwkvConfig(**_COMMON),
}


def make_model(architecture: str) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[architecture]()).eval()


def byte_level(words: Sequence[str] = WORDS, *, template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """A byte-level BPE as tests/support/tiny_gguf.py writes it: ``SPECIALS``, 256 bytes, ``words``."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIALS, *alphabet, *words])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _finished(tokenizer, template)


def byte_fallback(*, template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """In the manner of SentencePiece: a mark for the space, bytes for what has no letter of its own."""
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz<>|", "▁a", "▁th", "th", "<|", "en", "end", "|>", "<|end"]
    plain = ["<unk>", *SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    vocabulary = {token: index for index, token in enumerate(plain)}
    merges = [("▁", "a"), ("t", "h"), ("▁", "th")]
    # ... of which some lead to a control token's name.
    merges += [("<", "|"), ("e", "n"), ("en", "d"), ("|", ">"), ("<|", "end"), ("<|end", "|>")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken("<unk>", special=True, normalized=False)])
    return _finished(tokenizer, template, unk_token="<unk>")


def unigram(*, template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """Metaspace and Unigram, as T5 and its kin."""
    pieces = [*SPECIALS, "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz", "▁lamp", "rope"]
    scores = [(piece, -2.0 if len(piece) == 1 else -0.5) for piece in pieces]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=len(SPECIALS), byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return _finished(tokenizer, template, unk_token="<unk>")


def _finished(tokenizer: Tokenizer, template: str | None, **named: str) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIALS])
    bos, end = SPECIALS[0], SPECIALS[1]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=end, **named)
    fast.chat_template = template
    return fast


@cache
def _root() -> Path:
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def saved(architecture: str) -> Path:
    """A folder with the model (F32 safetensors) and a byte-level tokenizer; not to be changed."""
    folder = _root() / architecture
    make_model(architecture).save_pretrained(folder)
    byte_level().save_pretrained(folder)
    return folder


@cache
def altered(architecture: str, noise: float) -> Path:
    """A model of :data:`CONFIGS` without padding rows that writes no control token, so that no answer ends early.

    With noise on its weights, relative to their size: a little of it mostly changes no choice.
    """
    folder = _root() / f"{architecture}-{noise:g}"
    config = CONFIGS[architecture]()
    config.vocab_size = N_VOCAB
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight += noise * weight.std().nan_to_num() * torch.randn_like(weight)
        model.get_output_embeddings().weight[: len(SPECIALS)] = 0.0
    model.save_pretrained(folder)
    byte_level().save_pretrained(folder)
    return folder
