"""The Python side must not grow with the prefix: time per token at 4,000 tokens against 100.

A scripted model that returns one fixed row makes everything but the engine free. Alternating blocks,
in each the same number of tokens after a prefix that is already held.

    python benchmarks/prefix_cost.py
"""

from __future__ import annotations

import argparse
import statistics
from collections import deque

import numpy as np

from fsgen_router import Router
from fsgen_router.adapters.scripted import ScriptedModel, ScriptedTokenizer

from common import block_ratio, save, timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=500, help="tokens per block (default: %(default)s)")
    args = parser.parse_args()
    tokenizer = ScriptedTokenizer([b"a", b"b", b"<end>"], eog=[2])
    row = np.array([1.0, 0.5, -9.0], np.float32)

    def make_router() -> Router:
        fast, slow = (ScriptedModel(lambda ids: row, tokenizer, name=n, n_ctx=8192) for n in ("fast", "slow"))
        return Router(fast=fast, slow=slow, policy="every:10")

    times: dict[int, list[float]] = {100: [], 4000: []}
    for block in range(args.blocks + 1):
        for size in times if block % 2 else reversed(times):
            router = make_router()
            prompt = "b" * size
            router.complete(prompt, max_tokens=20)  # both models hold the prefix now
            events = router.stream(prompt, max_tokens=args.tokens)
            next(events)  # the prompt's own cost (tokenising it, finding it in the cache) is not a token's
            seconds = timed(lambda e=events: deque(e, maxlen=0))
            if block:
                times[size].append(1e6 * seconds / args.tokens)
    differences = [long - short for long, short in zip(times[4000], times[100], strict=True)]
    save(
        "prefix_cost",
        {
            "blocks": args.blocks,
            "us_per_token": {str(size): round(statistics.median(t), 2) for size, t in times.items()},
            "median_difference_us": round(statistics.median(differences), 2),
            "ratio": block_ratio(times[4000], times[100]),
        },
    )


if __name__ == "__main__":
    main()
