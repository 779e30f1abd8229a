"""Routed decode against the time model: a slow model ten times the fast, random weights, 8 bits.

Escalations come at fixed intervals so that 5, 10 and 20% of the tokens are the slow model's, as single
tokens and in spans of 8. The prediction is the sum, over the chunk sizes that each model really read,
of chunk times from a table measured by bare ctypes loops in the same run (a table a round, medians
over rounds). Reported: measured / predicted, and measured / slow-only.

    python benchmarks/routed_decode.py --rounds 12
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from fsgen_router import Router
from fsgen_router.adapters.llama_cpp import LlamaCppModel
from fsgen_router.policies import Every

from common import HALF_BILLION, TENTH, BareLoop, Recorder, block_ratio, random_model, save, timed

SIZES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 96, 128, 192)
SHARES = (0.05, 0.1, 0.2)
SPANS = (1, 8)
PROMPT = 64


def interval_for(share: float, span: int) -> int:
    """The interval at which spans of this length make up ``share`` of the tokens."""
    return round(span / share) - span + 1


def chunk_times(loop: BareLoop, sizes: tuple[int, ...]) -> dict[int, float]:
    """Seconds of one forward per chunk size, after ``PROMPT`` tokens."""
    times = {}
    for size in sizes:
        loop.rewind(PROMPT)
        times[size] = timed(lambda s=size: loop.decode(list(range(300, 300 + s)), PROMPT))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=320, help="tokens per answer (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    paths: dict[str, Path] = {"fast": random_model(TENTH), "slow": random_model(HALF_BILLION)}
    options = {"n_ctx": 1024, "n_threads": args.threads}
    models = {role: Recorder(LlamaCppModel(path, **options)) for role, path in paths.items()}
    loops = {role: BareLoop(path, n_ctx=1024, n_threads=args.threads) for role, path in paths.items()}
    for loop in loops.values():
        loop.decode(list(range(300, 300 + PROMPT)), 0)
    prompt = "".join(f" t{index}" for index in range(PROMPT))
    settings = [(share, span) for span in SPANS for share in SHARES]
    routers = {
        setting: Router(**models, policy=Every(interval_for(*setting), extent=setting[1]), method="replace")
        for setting in settings
    }
    alone = Router(fast=models["slow"], slow=models["fast"], policy="never")
    tables: dict[str, dict[int, list[float]]] = {role: {size: [] for size in SIZES} for role in loops}
    runs: dict[Any, list[float]] = {setting: [] for setting in settings}
    slow_only: list[float] = []
    chunks: dict[Any, dict[str, list[int]]] = {}
    shares: dict[Any, float] = {}
    for round_number in tqdm(range(args.rounds + 1), desc="rounds"):
        for role, loop in loops.items():
            for size, seconds in chunk_times(loop, SIZES).items():
                if round_number:
                    tables[role][size].append(seconds)
        for setting, router in routers.items():
            for model in models.values():
                model.sizes.clear()
            answer = router.complete(prompt, max_tokens=args.tokens)
            if round_number:  # the first round reads the prompt
                runs[setting].append(answer.usage.seconds)
                chunks[setting] = {role: list(model.sizes) for role, model in models.items()}
                shares[setting] = answer.usage.slow_token_share or 0.0
        seconds = alone.complete(prompt, max_tokens=args.tokens).usage.seconds
        if round_number:
            slow_only.append(seconds)
    medians = {role: [statistics.median(table[size]) for size in SIZES] for role, table in tables.items()}
    figures = []
    for setting in settings:
        predicted = sum(float(np.interp(chunks[setting][role], SIZES, medians[role]).sum()) for role in models)
        measured = statistics.median(runs[setting])
        figures.append(
            {
                "slow_share_wanted": setting[0],
                "span": setting[1],
                "slow_share": round(shares[setting], 4),
                "slow_forwards": len(chunks[setting]["slow"]),
                "seconds": round(measured, 4),
                "predicted_seconds": round(predicted, 4),
                "measured_over_predicted": round(measured / predicted, 4),
                "slow_only_over_routed": block_ratio(slow_only, runs[setting]),
            }
        )
    save(
        "routed_decode",
        {
            "shapes": {"fast": TENTH.name, "slow": HALF_BILLION.name},
            "threads": args.threads,
            "rounds": args.rounds,
            "tokens": args.tokens,
            "slow_only_seconds": round(statistics.median(slow_only), 4),
            "chunk_ms": {
                role: {str(size): round(1000 * m, 2) for size, m in zip(SIZES, medians[role], strict=True)}
                for role in medians
            },
            "settings": figures,
        },
    )


if __name__ == "__main__":
    main()
