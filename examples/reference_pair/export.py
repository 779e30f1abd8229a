"""Write a trained model of the reference family as an F32 GGUF file, and prove that it is the same.

    python examples/reference_pair/export.py build/reference/fast/hf fsgen_router/reference/fast.gguf

The proof: over 50 solutions llama.cpp (F32 weights and KV cache) agrees with PyTorch on every logit within
1e-4, decoding token by token as it does when it answers and reading whole texts in one batch, which go
through different kernels; and both tokenizers cut the same texts into the same ids. PyTorch computes in
double precision: in single precision its own rounding, at logits of 40, is as large as the difference
looked for.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from fsgen_router.adapters.llama_cpp import LlamaCppModel
from fsgen_router.contracts.models import Work
from fsgen_router.reference import world
from fsgen_router.rows.reading import Read

TOLERANCE = 1e-4
TENSORS = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.q_proj.bias": "attn_q.bias",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.k_proj.bias": "attn_k.bias",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.v_proj.bias": "attn_v.bias",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}


WORLD = {"fsgen_router.world": world.VERSION, "fsgen_router.world_sha256": world.fingerprint()}
"""What the reference pair's files say of their data."""


def export(source: Path, target: Path, name: str, about: Mapping[str, str] = WORLD) -> None:
    """Write ``target`` (atomically) from a folder in transformers' format; ``about`` goes into its metadata."""
    model = Qwen2ForCausalLM.from_pretrained(source, dtype=torch.float32)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(source)
    config = model.config
    partial = target.with_suffix(".tmp")
    writer = gguf.GGUFWriter(partial, "qwen2")
    writer.add_name(name)
    writer.add_license("Apache-2.0")
    for key, value in about.items():
        writer.add_string(key, value)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    _add_tokenizer(writer, tokenizer)
    state = {name.removeprefix("model."): value.numpy() for name, value in model.state_dict().items()}
    writer.add_tensor("token_embd.weight", state["embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", state["norm.weight"])
    for layer in range(config.num_hidden_layers):
        for ours, theirs in TENSORS.items():
            writer.add_tensor(f"blk.{layer}.{theirs}", state[f"layers.{layer}.{ours}"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(partial, target)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerFast) -> None:
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types(
        [gguf.TokenType.CONTROL if index in special else gguf.TokenType.NORMAL for _, index in vocabulary]
    )
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template(tokenizer.chat_template)


def prove(
    source: Path, target: Path, texts: Sequence[str] | None = None, *, count: int = 50, tolerance: float = TOLERANCE
) -> tuple[float, float]:
    """The largest difference of any logit in decode and in prefill, over ``texts`` (default: ``count`` solutions).

    Exits with a message when one is over the tolerance or ids differ.
    """
    model = Qwen2ForCausalLM.from_pretrained(source, dtype=torch.float64).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(source)
    engine = LlamaCppModel(target, n_ctx=1024, type_k="f32", type_v="f32")
    decode = prefill = 0.0
    if texts is None:
        texts = [f"{item.prompt}\n{item.solution}" for item in world.problems("test", count)]
    for text in texts:
        ids = tokenizer.encode(text)
        if ids != engine.tokenizer.encode(text, add_bos=True, parse_special=True):
            raise SystemExit(f"the tokenizers differ on {text!r}")
        with torch.no_grad():
            expected = model(torch.tensor([ids])).logits[0].numpy()
        decode = max(decode, float(np.abs(expected - logits(engine, ids, 1)).max()))
        prefill = max(prefill, float(np.abs(expected - logits(engine, ids, len(ids))).max()))
    for what, found in (("decode", decode), ("prefill", prefill)):
        if found > tolerance:
            raise SystemExit(f"the logits differ by {found:.2g} in {what}, more than {tolerance:g}")
    return decode, prefill


def logits(engine: LlamaCppModel, ids: list[int], step: int) -> np.ndarray:
    """Every row of logits of a text, read ``step`` tokens at a time: shape (len(ids), n_vocab)."""
    sequence = engine.open([]).sequence
    rows = []
    for start in range(0, len(ids), step):
        chunk = ids[start : start + step]
        rows += engine.forward([Work(sequence, start, chunk, [(k, Read(full=True)) for k in range(len(chunk))])])[0]
    engine.close(sequence)
    return np.stack([row.logits for row in rows if row.logits is not None])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder in transformers' format")
    parser.add_argument("target", type=Path, help="the GGUF file to write")
    parser.add_argument("--name", help="the model's name (default: the file's)")
    args = parser.parse_args()
    export(args.source, args.target, args.name or args.target.stem)
    decode, prefill = prove(args.source, args.target)
    print(f"{args.target}: largest difference of a logit {decode:.2g} in decode, {prefill:.2g} in prefill")


if __name__ == "__main__":
    main()
