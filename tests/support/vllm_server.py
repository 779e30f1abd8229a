"""A real vLLM server on loopback, out of an environment of its own, and tiny models that it can serve."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from ports import free_port
from tiny_transformers import SPECIALS, TEMPLATE
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

N_CTX = 512
BLOCK = 32
"""Tokens of a block of the prefix cache: the least that vLLM's kernels for CPUs like. Its default there is 128."""
_READY_SECONDS = 600.0


@contextlib.contextmanager
def vllm_server(environment: Path, folder: Path, log: Path, *arguments: str) -> Iterator[str]:
    """Serve a folder as ``slow``; the URL of it. Takes one to two minutes to be up."""
    port = free_port()
    command = [
        *(str(environment / "bin" / "vllm"), "serve", str(folder), "--served-model-name", "slow"),
        *("--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"),
        *("--max-model-len", str(N_CTX + 1), "--max-num-seqs", "8", "--block-size", str(BLOCK)),
        *("--enable-scale-out", "--enable-prompt-tokens-details", *arguments),
    ]
    settings = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    with log.open("w") as file:
        # A session of its own: its workers are processes, and end with it.
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **settings}, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + _READY_SECONDS
        while True:
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the server did not start:\n{log.read_text()[-4000:]}")
            with contextlib.suppress(OSError, urllib.error.URLError):
                urllib.request.urlopen(f"{url}/health", timeout=5).close()
                break
            time.sleep(0.2)
        yield url
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def counters(url: str) -> dict[str, float]:
    """The server's own counters, summed over its engines, by their names without ``vllm:``."""
    with urllib.request.urlopen(f"{url}/metrics") as response:
        lines = response.read().decode().splitlines()
    found: dict[str, float] = {}
    for line in lines:
        name, _, value = line.rpartition(" ")
        if name.startswith("vllm:"):
            short = name.removeprefix("vllm:").partition("{")[0]
            found[short] = found.get(short, 0.0) + float(value)
    return found


def make_pair(folder: Path, texts: list[str], *, noise: float = 0.01) -> tuple[Path, Path]:
    """A slow model of random weights (heads of 64 dimensions, which vLLM's kernels for CPUs want) and a fast one that
    is the same with noise on them, with a BPE of 2,048 tokens that is trained on ``texts``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        special_tokens=[AddedToken(name, special=True, normalized=False) for name in SPECIALS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    bos, end = SPECIALS[0], SPECIALS[1]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, 0)])
    fast_tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=end)
    fast_tokenizer.chat_template = TEMPLATE
    config = transformers.LlamaConfig(
        vocab_size=2048,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=2 * N_CTX,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=None,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    saved = []
    for name, added in (("slow", 0.0), ("fast", noise)):
        with torch.no_grad():
            for weight in model.parameters():
                weight += added * weight.std().nan_to_num() * torch.randn_like(weight)
        model.save_pretrained(folder / name)
        fast_tokenizer.save_pretrained(folder / name)
        saved.append(folder / name)
    return saved[0], saved[1]
