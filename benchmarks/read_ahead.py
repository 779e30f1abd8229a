"""What read-ahead brings where both models run on the same cores: 0.5B and a tenth of it, random weights, 8 bits.

The slow model writes every twentieth token (``replace``). With read-ahead it catches up on its own thread
whenever eight tokens wait for it, while the fast one goes on. Alternating blocks, one request at a time:

* ``on``: one thread per model, so that both can run at once;
* ``off, one thread``: the same without read-ahead;
* ``off, all threads``: without read-ahead each model may use all cores in its turn.

Ratios of block times, paired; above 1 read-ahead is faster.

    python benchmarks/read_ahead.py --blocks 12
"""

from __future__ import annotations

import argparse
import os

from fsgen_router import Router
from fsgen_router.adapters.llama_cpp import LlamaCppModel

from common import HALF_BILLION, TENTH, block_ratio, random_model, save, timed

INTERVAL, AHEAD, PROMPT = 20, 8, 64


def make_router(threads: int, read_ahead: int) -> Router:
    options = {"n_ctx": 512, "n_threads": threads}
    return Router(
        LlamaCppModel(random_model(TENTH), **options),
        LlamaCppModel(random_model(HALF_BILLION), **options),
        policy=f"every:{INTERVAL}",
        method="replace",
        batching=True,
        read_ahead=read_ahead,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=12, help="alternating blocks (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=120, help="tokens per block (default: %(default)s)")
    args = parser.parse_args()
    cores = os.cpu_count() or 1
    routers = {
        "on": make_router(1, AHEAD),
        "off, one thread": make_router(1, 0),
        "off, all threads": make_router(cores, 0),
    }
    prompt = "".join(f" t{index}" for index in range(PROMPT))
    times: dict[str, list[float]] = {name: [] for name in routers}
    texts: dict[str, str] = {}
    ahead = 0
    for block in range(args.blocks + 1):
        for name, router in routers.items():

            def run(name: str = name, router: Router = router) -> None:
                nonlocal ahead
                answer = router.complete(prompt, max_tokens=args.tokens)
                texts[name] = answer.text
                ahead = max(ahead, answer.usage.slow.ahead)

            seconds = timed(run)
            if block:  # the first one reads the prompt
                times[name].append(seconds)
    save(
        "read_ahead",
        {
            "shapes": {"fast": TENTH.name, "slow": HALF_BILLION.name},
            "interval": INTERVAL,
            "read_ahead": AHEAD,
            "blocks": args.blocks,
            "tokens_per_block": args.tokens,
            "tokens_read_ahead": ahead,
            "same_text": len(set(texts.values())) == 1,
            "off_one_thread_over_on": block_ratio(times["off, one thread"], times["on"]),
            "off_all_threads_over_on": block_ratio(times["off, all threads"], times["on"]),
        },
    )
    for router in routers.values():
        router.close()


if __name__ == "__main__":
    main()
