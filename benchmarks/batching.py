"""Eight requests at once at a real size: 0.5B shape, 152k vocabulary, 8 bits, random weights.

Alternating blocks: the Router with eight coroutines and ``never`` (which still computes and records all
signals at every token), and a bare ctypes loop that decodes eight sequences in one batch and takes each
argmax. No prefill on either side: the prompts' KV caches are warm. Ratios of block times, paired; above 1
the Router is faster.

    python benchmarks/batching.py --blocks 12
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import os
from pathlib import Path

import numpy as np
from llama_cpp import llama_cpp as lib

from fsgen_router import Router
from fsgen_router.adapters.llama_cpp import LlamaCppModel

from common import HALF_BILLION, TENTH, block_ratio, random_model, save, timed

PROMPT_LETTERS = 32


class BareBatch:
    """llama.cpp through ctypes, ``count`` sequences a step, with nothing around it."""

    def __init__(self, path: Path, count: int, *, n_ctx: int, n_threads: int) -> None:
        self.count = count
        self._model = lib.llama_model_load_from_file(os.fsencode(path), lib.llama_model_default_params())
        options = lib.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch, options.n_seq_max = n_ctx * count, 512, 512, count
        options.n_threads = options.n_threads_batch = n_threads
        options.flash_attn_type, options.no_perf, options.kv_unified = 0, True, False
        self._context = lib.llama_init_from_model(self._model, options)
        self._memory = lib.llama_get_memory(self._context)
        self._vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._model))
        self._batch = lib.llama_batch_init(512, 0, 1)

    def rewind(self, keep: int) -> None:
        for sequence in range(self.count):
            lib.llama_memory_seq_rm(self._memory, sequence, keep, -1)

    def prefill(self, prompts: list[list[int]]) -> None:
        for sequence, ids in enumerate(prompts):
            self._decode([(sequence, position, token, False) for position, token in enumerate(ids)])

    def step(self, tokens: list[int], position: int) -> list[int]:
        self._decode([(sequence, position, token, True) for sequence, token in enumerate(tokens)])
        chosen = []
        for index in range(len(tokens)):
            pointer = lib.llama_get_logits_ith(self._context, index)
            row = np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), (self._vocabulary,))
            chosen.append(int(row.argmax()))
        return chosen

    def _decode(self, entries: list[tuple[int, int, int, bool]]) -> None:
        batch = self._batch
        for index, (sequence, position, token, wanted) in enumerate(entries):
            batch.token[index], batch.pos[index] = token, position
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
            batch.logits[index] = wanted
        batch.n_tokens = len(entries)
        if lib.llama_decode(self._context, batch):
            raise RuntimeError("llama_decode failed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=12, help="alternating blocks (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=32, help="tokens per request and block (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="the tenth-size shape, to try the script out")
    args = parser.parse_args()
    path = random_model(TENTH if args.quick else HALF_BILLION)
    options = {"n_ctx": 256, "n_threads": args.threads, "n_seq": args.requests}
    fast = LlamaCppModel(path, **options)
    slow = LlamaCppModel(random_model(TENTH), n_ctx=256, n_seq=args.requests, n_threads=1)
    router = Router(fast=fast, slow=slow, policy="never")
    bare = BareBatch(path, args.requests, n_ctx=256, n_threads=args.threads)
    # No letters merge in these models' vocabulary: one token each.
    prompts = [
        "".join(chr(97 + (7 * which + index) % 26) for index in range(PROMPT_LETTERS)) for which in range(args.requests)
    ]
    ids = [fast.tokenizer.encode(prompt, add_bos=True) for prompt in prompts]
    (length,) = {len(one) for one in ids}

    async def together() -> None:
        answers = await asyncio.gather(*(router.acomplete(prompt, max_tokens=args.tokens) for prompt in prompts))
        assert all(len(answer.tokens) == args.tokens for answer in answers)
        assert all(token.signals is not None for answer in answers for token in answer.tokens)

    def run_router() -> None:
        asyncio.run(together())

    def run_bare() -> None:
        bare.rewind(length - 1)
        tokens = [one[-1] for one in ids]
        for position in range(length - 1, length - 1 + args.tokens):
            tokens = bare.step(tokens, position)

    bare.prefill(ids)
    times: dict[str, list[float]] = {"router": [], "bare": []}
    for block in range(args.blocks + 1):
        for name, run in (("router", run_router), ("bare", run_bare)):
            seconds = timed(run)
            if block:  # the first one reads the prompts and warms up
                times[name].append(seconds)
    total = args.requests * args.tokens
    save(
        "batching",
        {
            "shape": (TENTH if args.quick else HALF_BILLION).name,
            "threads": args.threads,
            "requests": args.requests,
            "blocks": args.blocks,
            "tokens_per_request_and_block": args.tokens,
            "bare_over_router": block_ratio(times["bare"], times["router"]),
            "tokens_per_second": {n: round(total / sorted(t)[len(t) // 2], 1) for n, t in times.items()},
        },
    )


if __name__ == "__main__":
    main()
