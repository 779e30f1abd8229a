"""Several requests at once where both models run on the same cores: a real pair, or any two models of one vocabulary.

Eight prompts by ``every:6`` and by ``budget:0.2`` with ``verify``: one after the other, four at once, eight at once, in
alternating blocks on one Router. Ratios of tokens per second, paired by round; above 1 many at once are faster.
``--before PYTHON`` names the interpreter of an environment with another version of this package: single requests by
both versions then run in turn, in processes of their own.

    python benchmarks/turns.py --models DIR --before ../main/.venv/bin/python

``--simulate`` needs no models: it compares rules for whose turn it is, by the same function that decides in a Router,
at step times of a CPU (this pair's, two cores) and of a GPU where reading is nearly free.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fsgen_router import Router
from fsgen_router.adapters.llama_cpp import LlamaCppModel

from common import block_ratio, save

POLICIES = ("every:6", "budget:0.2")
AT_ONCE = (1, 4, 8)
PROMPTS = (
    "def fibonacci(n):\n    ",
    "# Read a CSV file and print the sum of its second column\nimport csv\n",
    "class Stack:\n    def __init__(self):\n        ",
    "def is_prime(n: int) -> bool:\n    ",
    "# Binary search in a sorted list\ndef search(items, wanted):\n    ",
    "Question: Tom has 3 boxes of 12 pens and gives away 7. How many are left?\nAnswer: ",
    "def word_count(path):\n    counts = {}\n    ",
    "SELECT name, COUNT(*) FROM orders ",
)


class Counted(LlamaCppModel):
    """Notes how many sequences and tokens each forward read."""

    def forward(self, works: Any) -> Any:
        self.seen.append((len(works), sum(len(work.ids) for work in works)))
        return super().forward(works)

    seen: list[tuple[int, int]]


def load(args: argparse.Namespace, n_seq: int) -> Router:
    models = []
    for name in (args.fast, args.slow):
        model = Counted(Path(args.models) / name, n_ctx=256, n_seq=n_seq, n_threads=args.threads)
        model.seen = []
        models.append(model)
    return Router(*models, policy="every:6", method="verify")


async def ask(router: Router, at_once: int, tokens: int) -> int:
    """The tokens that all prompts were answered with, so many requests at a time."""
    places = asyncio.Semaphore(at_once)

    async def one(prompt: str) -> int:
        async with places:
            return (await router.acomplete(prompt, max_tokens=tokens)).usage.tokens

    return sum(await asyncio.gather(*map(one, PROMPTS)))


def many(args: argparse.Namespace) -> dict[str, Any]:
    router = load(args, max(AT_ONCE))
    found: dict[str, Any] = {}
    twins = {policy: router.with_policy(policy, method="verify") for policy in POLICIES}
    for twin in twins.values():
        asyncio.run(ask(twin, max(AT_ONCE), 8))  # warms up
    speeds: dict[str, dict[int, list[float]]] = {policy: {count: [] for count in AT_ONCE} for policy in POLICIES}
    sizes: dict[tuple[str, int], dict[str, list[int]]] = {
        (policy, count): {"fast": [], "slow": []} for policy in POLICIES for count in AT_ONCE
    }
    for number in range(args.rounds):
        for policy, twin in twins.items():
            for count in AT_ONCE if number % 2 else AT_ONCE[::-1]:
                router.fast.seen.clear(), router.slow.seen.clear()
                began = time.perf_counter()
                tokens = asyncio.run(ask(twin, count, args.tokens))
                speeds[policy][count].append(tokens / (time.perf_counter() - began))
                sizes[policy, count]["fast"] += [of for of, _ in router.fast.seen]
                sizes[policy, count]["slow"] += [of for of, _ in router.slow.seen]
                print(policy, count, round(speeds[policy][count][-1], 2), file=sys.stderr, flush=True)
    for policy, by_count in speeds.items():
        found[policy] = {
            f"{count}_at_once": {
                "tokens_per_second": round(float(np.median(speed)), 2),
                **({"over_one_by_one": block_ratio(speed, by_count[1])} if count > 1 else {}),
                "sequences_per_forward": {m: round(float(np.mean(s)), 2) for m, s in sizes[policy, count].items()},
            }
            for count, speed in by_count.items()
        }
    for one in (*twins.values(), router):
        one.close()
    return found


def single(args: argparse.Namespace) -> list[float]:
    """Seconds of each prompt's answer, one at a time."""
    router = load(args, 4)
    router.complete(PROMPTS[0], max_tokens=8)
    times = []
    for prompt in PROMPTS[: args.singles]:
        began = time.perf_counter()
        router.complete(prompt, max_tokens=args.tokens)
        times.append(time.perf_counter() - began)
    router.close()
    return times


def against_before(args: argparse.Namespace) -> dict[str, Any]:
    times: dict[str, list[float]] = {args.before: [], sys.executable: []}
    command = [os.path.abspath(__file__), "--child", *sys.argv[1:]]
    for number in range(args.rounds):
        for python in (list(times), list(times)[::-1])[number % 2]:
            times[python] += json.loads(subprocess.run([python, *command], check=True, stdout=subprocess.PIPE).stdout)
    ratio = block_ratio(times[sys.executable], times[args.before])
    return {
        "seconds_over_before": ratio,
        "median_seconds": {
            "now": float(np.median(times[sys.executable])),
            "before": float(np.median(times[args.before])),
        },
    }


# --- the simulation ------------------------------------------------------------------------------

Rule = Callable[[int, int, float, float, float], bool]
"""(waiting for the slow model, all, its fixed seconds, those of the fast one, lost since) -> the slow model's turn."""
MACHINES = {
    "cpu": ((0.020, 0.0095), (0.100, 0.0130)),  # (fixed, per token) of the fast model and of the slow one
    "gpu": ((0.010, 0.0001), (0.025, 0.0001)),
}
RULES: dict[str, Rule] = {
    "whatever waits": lambda waiting, live, slow, fast, lost: True,
    "all": lambda waiting, live, slow, fast, lost: waiting == live,
}


def ours(waiting: int, live: int, slow: float, fast: float, lost: float) -> bool:
    from fsgen_router.run.turns import Line, next_turn

    lines = [Line(live - waiting, fast, fast, 0.0, 0.0), Line(waiting, slow, slow, lost, 0.0)]
    return waiting == live or next_turn(lines, live) == 1


def speed(rule: Rule, live: int, kind: str, machine: str, *, seed: int, turns: int = 4000) -> tuple[float, float]:
    """Tokens per second of ``live`` requests that never end, and the 99th percentile of a wait for the slow model."""
    rng = np.random.default_rng(seed)
    (fast, fast_token), (slow, slow_token) = MACHINES[machine]
    waits, clock, tokens, lost, seen = np.zeros(live, bool), 0.0, 0.0, 0.0, []
    unread, position, since = np.ones(live, int), rng.integers(0, 6, live), np.zeros(live)
    for _ in range(turns):
        waiting = int(waits.sum())
        if waiting and (waiting == live or rule(waiting, live, slow, fast, lost)):
            seen += list(clock - since[waits])
            clock += slow + slow_token * int(unread[waits].sum())
            tokens += waiting
            unread[waits], position[waits], lost = 1, 0, 0.0
            waits[:] = False
            continue
        clock += fast + fast_token * (live - waiting)
        lost += fast * waiting
        going = ~waits
        unread[going] += 1
        position[going] += 1
        stops = going & (position >= 6 if kind == "every:6" else rng.random(live) < float(kind))
        tokens += 0.85 * float(unread[stops].sum() - 2 * stops.sum())  # so many drafts are accepted
        since[stops], waits = clock, waits | stops
    return tokens / clock, float(np.quantile(seen, 0.99))


def simulate(seed: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for machine in MACHINES:
        for kind in ("every:6", "0.05", "0.2"):
            alone = speed(RULES["all"], 1, kind, machine, seed=seed)[0]
            for live in (2, 4, 8, 16):
                by_rule = {name: speed(rule, live, kind, machine, seed=seed) for name, rule in RULES.items()}
                by_rule["ours"] = speed(ours, live, kind, machine, seed=seed)
                thresholds = [
                    speed(lambda waiting, *_, most=most: waiting >= most, live, kind, machine, seed=seed)
                    for most in range(1, live + 1)
                ]
                by_rule["best threshold"] = max(thresholds)
                found[f"{machine}, {kind}, {live} at once"] = {
                    name: {"over_one_by_one": round(tokens / alone, 2), "wait_p99_seconds": round(wait, 2)}
                    for name, (tokens, wait) in by_rule.items()
                }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", help="the folder of the GGUF files")
    parser.add_argument("--fast", default="qwen-0.5b.gguf")
    parser.add_argument("--slow", default="qwen-1.5b.gguf")
    parser.add_argument("--rounds", type=int, default=3, help="alternating blocks (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=32, help="per request (default: %(default)s)")
    parser.add_argument("--singles", type=int, default=4, help="single requests per process (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--before", help="a Python that has another version of this package")
    parser.add_argument("--simulate", action="store_true")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(single(args)))
        return
    if args.simulate:
        save("turns_simulated", {"script": "benchmarks/turns.py --simulate", "seed": 0, "rules": simulate()})
        return
    if args.models is None:
        parser.error("--models DIR is needed, or --simulate")
    about = {"pair": {"fast": args.fast, "slow": args.slow}, "threads": args.threads, "rounds": args.rounds}
    if args.before:
        save("turns_single", {"script": "benchmarks/turns.py --before", **about, **against_before(args)})
    else:
        save(
            "turns",
            {**about, "policies": POLICIES, "tokens_per_request": args.tokens, "prompts": len(PROMPTS), **many(args)},
        )


if __name__ == "__main__":
    main()
