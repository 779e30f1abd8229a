"""What the engine costs at a real size: 0.5B shape, 152k vocabulary, 8 bits, random weights.

The Router with ``never`` (which still computes and records all signals at every token), a bare ctypes
decode-and-argmax loop, the same loop with each row reduced to all signals and nothing else around it, and
llama-cpp-python's own ``create_completion`` at temperature 0, each writing the same answer. A block is one
answer of each, written in turns of a few tokens, so that whatever else slows the machine for a second slows
all four. Ratios of a block's times, paired; above 1 the Router is faster.

    python benchmarks/overhead.py --blocks 24
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import greenlet
import llama_cpp

from fsgen_router import Router
from fsgen_router.adapters.llama_cpp import LlamaCppModel
from fsgen_router.adapters.llama_cpp.ggml import make_scratch
from fsgen_router.rows.reading import Floats, Read, reduce_row
from fsgen_router.rows.signals import TOP_K

from common import HALF_BILLION, TENTH, BareLoop, block_ratio, random_model, save

PROMPT_TOKENS = 100


class Turns:
    """Functions that take turns of so many calls of ``llama_decode``, wherever in them it is called."""

    def __init__(self, calls: int) -> None:
        self._calls, self._left, self._decode = calls, calls, llama_cpp.llama_cpp.llama_decode
        self._here = greenlet.getcurrent()
        llama_cpp.llama_cpp.llama_decode = self._counted

    def _counted(self, *arguments: Any) -> Any:
        if not self._left:
            self._here.switch()
            self._left = self._calls
        self._left -= 1
        return self._decode(*arguments)

    def run(self, functions: dict[str, Callable[[], None]]) -> dict[str, float]:
        """Seconds that each took."""
        seconds = dict.fromkeys(functions, 0.0)
        under_way = {name: greenlet.greenlet(function) for name, function in functions.items()}
        while under_way:
            for name, function in list(under_way.items()):
                self._left = self._calls
                began = time.perf_counter()
                function.switch()
                seconds[name] += time.perf_counter() - began
                if function.dead:
                    del under_way[name]
        return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=24, help="answers of each (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=96, help="tokens per answer (default: %(default)s)")
    parser.add_argument("--turn", type=int, default=8, help="tokens per turn (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="the tenth-size shape, to try the script out")
    args = parser.parse_args()
    shape = TENTH if args.quick else HALF_BILLION
    path = random_model(shape)
    options = {"n_ctx": 1024, "n_threads": args.threads}
    fast, slow = LlamaCppModel(path, **options), LlamaCppModel(random_model(TENTH), **options)
    router = Router(fast=fast, slow=slow, policy="never")
    bare, bare_with_signals = (BareLoop(path, n_ctx=1024, n_threads=args.threads) for _ in range(2))
    high = llama_cpp.Llama(
        str(path), n_ctx=1024, n_threads=args.threads, n_threads_batch=args.threads, verbose=False, flash_attn=False
    )
    prompt = "".join(f" t{index}" for index in range(PROMPT_TOKENS))
    ids = fast.tokenizer.encode(prompt, add_bos=True)

    def run_router() -> None:
        answer = router.complete(prompt, max_tokens=args.tokens)
        assert len(answer.tokens) == args.tokens
        assert all(token.signals is not None for token in answer.tokens)

    def run_bare(loop: BareLoop, **chosen: Any) -> None:
        loop.rewind(len(ids) - 1)
        token = loop.decode(ids[-1:], len(ids) - 1, **chosen)
        for position in range(len(ids), len(ids) + args.tokens - 1):
            token = loop.decode([token], position, **chosen)

    read, scratch = Read(signals=True, top_k=TOP_K), make_scratch(llama_cpp.llama_cpp._lib)

    def with_signals(row: Floats) -> int:
        return reduce_row(row, read, scratch).token

    def run_high() -> None:
        high.create_completion(ids, max_tokens=args.tokens, temperature=0.0)

    bare.decode(ids, 0)
    bare_with_signals.decode(ids, 0)
    runs = {
        "router": run_router,
        "bare": lambda: run_bare(bare),
        "bare_with_signals": lambda: run_bare(bare_with_signals, choose=with_signals),
        "create_completion": run_high,
    }
    turns, times = Turns(args.turn), {name: [] for name in runs}
    for block in range(args.blocks + 1):
        for name, seconds in turns.run(runs).items():
            if block:  # the first one reads the prompt and warms up
                times[name].append(seconds)
    save(
        "overhead",
        {
            "shape": shape.name,
            "threads": args.threads,
            "blocks": args.blocks,
            "tokens_per_block": args.tokens,
            "tokens_per_turn": args.turn,
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
