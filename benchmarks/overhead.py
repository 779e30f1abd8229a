"""What the engine costs at a real size: 0.5B shape, 152k vocabulary, 8 bits, random weights.

Alternating blocks over the same context: the Router with ``never`` (which still computes and records
all signals at every token), a bare ctypes decode-and-argmax loop, the same loop with each row reduced to
all signals and nothing else around it, and llama-cpp-python's own ``create_completion`` at temperature 0.
Ratios of block times, paired; above 1 the Router is faster.

    python benchmarks/overhead.py --blocks 24
"""

from __future__ import annotations

import argparse
from typing import Any

import llama_cpp

from fsgen_router import Router
from fsgen_router.adapters.ggml import make_scratch
from fsgen_router.adapters.llama_cpp import LlamaCppModel
from fsgen_router.reading import Floats, Read, reduce_row
from fsgen_router.signals import TOP_K

from common import HALF_BILLION, TENTH, BareLoop, block_ratio, random_model, save, timed

PROMPT_TOKENS = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=24, help="alternating blocks (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=96, help="tokens per block (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="the tenth-size shape, to try the script out")
    args = parser.parse_args()
    shape = TENTH if args.quick else HALF_BILLION
    path = random_model(shape)
    options = {"n_ctx": 1024, "n_threads": args.threads}
    fast, slow = LlamaCppModel(path, **options), LlamaCppModel(random_model(TENTH), **options)
    router = Router(fast=fast, slow=slow, policy="never")
    bare = BareLoop(path, n_ctx=1024, n_threads=args.threads)
    high = llama_cpp.Llama(
        str(path), n_ctx=1024, n_threads=args.threads, n_threads_batch=args.threads, verbose=False, flash_attn=False
    )
    prompt = "".join(f" t{index}" for index in range(PROMPT_TOKENS))
    ids = fast.tokenizer.encode(prompt, add_bos=True)

    def run_router() -> None:
        answer = router.complete(prompt, max_tokens=args.tokens)
        assert len(answer.tokens) == args.tokens
        assert all(token.signals is not None for token in answer.tokens)

    def run_bare(**chosen: Any) -> None:
        bare.rewind(len(ids) - 1)
        token = bare.decode(ids[-1:], len(ids) - 1, **chosen)
        for position in range(len(ids), len(ids) + args.tokens - 1):
            token = bare.decode([token], position, **chosen)

    read, scratch = Read(signals=True, top_k=TOP_K), make_scratch(llama_cpp.llama_cpp._lib)

    def with_signals(row: Floats) -> int:
        return reduce_row(row, read, scratch).token

    def run_high() -> None:
        high.create_completion(ids, max_tokens=args.tokens, temperature=0.0)

    bare.decode(ids, 0)
    runs = {
        "router": run_router,
        "bare": run_bare,
        "bare_with_signals": lambda: run_bare(choose=with_signals),
        "create_completion": run_high,
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for block in range(args.blocks + 1):
        for name, run in runs.items():
            seconds = timed(run)
            if block:  # the first one reads the prompt and warms up
                times[name].append(seconds)
    save(
        "overhead",
        {
            "shape": shape.name,
            "threads": args.threads,
            "blocks": args.blocks,
            "tokens_per_block": args.tokens,
            "bare_over_router": block_ratio(times["bare"], times["router"]),
            "create_completion_over_router": block_ratio(times["create_completion"], times["router"]),
            "bare_over_bare_with_signals": block_ratio(times["bare"], times["bare_with_signals"]),
            "create_completion_over_bare_with_signals": block_ratio(
                times["create_completion"], times["bare_with_signals"]
            ),
            "ms_per_token": {n: round(1000 * sorted(t)[len(t) // 2] / args.tokens, 3) for n, t in times.items()},
        },
    )


if __name__ == "__main__":
    main()
