"""The cost model against the clock, and the default against the slow model alone, on a real pair.

Each model's forwards are measured (``fsgen_router.costs``), several operating points answer the same prompts, and the
seconds that the cost model expects, given each run's own rates and lengths, are set against those that it took. The
points are interleaved prompt by prompt, and the table is measured again between prompts, so that a machine that
changes its speed does so for all of them; of each answer's repetitions the fastest counts, since what other work adds
is no part of it. With ``--default`` the pair's default is run against the slow model alone.

    python benchmarks/cost_model.py --fast llama_cpp:small.gguf --slow llama_cpp:large.gguf --problems gsm8k_test.jsonl
    python benchmarks/cost_model.py --random --problems gsm8k_test.jsonl --default

``--random`` takes a pair with more distance (0.5B over a tenth of it, random weights): how often its models part means
nothing, so only modes whose time does not depend on that are told by it.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from fsgen_router import Router
from fsgen_router.contracts.models import TokenModel, Work
from fsgen_router.costs import Effort, ForwardCost, Mode, PairCost, Point, Rates, measure_forwards
from fsgen_router.generation import Generation
from fsgen_router.methods import make_method
from fsgen_router.policies import make_policy
from fsgen_router.rows.reading import Read

from common import HALF_BILLION, TENTH, random_model, save

POINTS = (
    ("never", "replace"),
    ("budget:0.2", "replace"),
    ("budget:0.2", "verify"),
    ("every:3", "verify:exact,draft_len=3"),
    ("random:0.04,span=rest", "replace"),
)
SLOW_ALONE = ("always,span=rest", "replace")
PROMPTED = "\nThink step by step, briefly, and end with '#### ' and the number."


def pooled(rounds: Sequence[ForwardCost]) -> ForwardCost:
    """One table of several: medians of all medians."""
    times: dict[tuple[int, int, bool], list[float]] = defaultdict(list)
    for cost in rounds:
        for point in cost.points:
            times[point.tokens, point.sequences, point.every_row].append(point.seconds)
    return ForwardCost(rounds[0].name, tuple(Point.of(shape, found) for shape, found in times.items()))


def as_ms(cost: ForwardCost) -> dict[str, list[float]]:
    """Fastest, median and slowest milliseconds by chunk size."""
    return {
        f"{p.tokens}{', every row' if p.every_row else ''}": [round(1000 * s, 1) for s in (p.low, p.seconds, p.high)]
        for p in sorted(cost.points, key=lambda p: (p.every_row, p.tokens))
    }


def ratio(first: Sequence[float], second: Sequence[float], *, seed: int = 0) -> dict[str, float]:
    """Ratio of sums, with a 95% bootstrap interval over prompts."""
    a, b, rng = np.asarray(first), np.asarray(second), np.random.default_rng(seed)
    drawn = rng.integers(0, len(a), (9999, len(a)))
    low, high = np.quantile(a[drawn].sum(1) / b[drawn].sum(1), (0.025, 0.975))
    return {"ratio": round(float(a.sum() / b.sum()), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def mode_of(policy: str, method: str) -> Mode:
    return Mode.of(make_policy(policy), make_method(method))


def expected(cost: PairCost, policy: str, method: str, answers: Sequence[Generation]) -> float:
    """Seconds of these answers, by their own rates and lengths."""
    mode = mode_of(policy, method)
    rates = Rates.of(answers, mode)
    return sum(
        cost.seconds(mode, rates, prompt_tokens=a.usage.prompt_tokens, answer_tokens=a.usage.tokens) for a in answers
    )


def forget(model: TokenModel) -> None:
    """Have a model of one sequence hold no prompt."""
    sequence = model.open([]).sequence
    model.forward([Work(sequence, 0, [max(model.tokenizer.eog_ids)], [(0, Read())])])
    model.close(sequence)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast")
    parser.add_argument("--slow")
    parser.add_argument("--random", action="store_true", help="instead: random weights, 0.5B over a tenth of it")
    parser.add_argument("--threads", type=int, default=2, help="of each model (default: %(default)s)")
    parser.add_argument("--problems", type=Path, required=True, help="GSM8K's problems, as JSON lines")
    parser.add_argument("--prompts", type=int, default=6)
    parser.add_argument("--skip", type=int, default=0)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=2, help="of each answer, of which the fastest counts")
    parser.add_argument("--default", action="store_true", help="measure the default against the slow model alone")
    parser.add_argument("--name", default="cost_model", help="the result's file name (default: %(default)s)")
    args = parser.parse_args()
    lines = args.problems.read_text().splitlines()[args.skip : args.skip + args.prompts]
    problems = [json.loads(line)["question"] for line in lines]
    if args.random:
        args.fast, args.slow = (f"llama_cpp:{random_model(shape)}" for shape in (TENTH, HALF_BILLION))
    args.fast, args.slow = (f"{model}?n_ctx=1024&n_threads={args.threads}" for model in (args.fast, args.slow))
    base = Router(args.fast, args.slow) if args.default else Router(args.fast, args.slow, policy="never")
    points = [(base.policy.name, base.method.name)] if args.default else list(POINTS)
    routers = {point: base.with_policy(point[0], method=point[1]) for point in [SLOW_ALONE, *points]}
    answers: dict[tuple[str, str], list[Generation]] = defaultdict(list)
    tables: dict[str, list[ForwardCost]] = defaultdict(list)
    rng = random.Random(0)
    for number, problem in enumerate(tqdm(["Say hello.", *problems], desc="prompts")):
        runs: dict[tuple[str, str], list[Generation]] = defaultdict(list)
        for point in [point for _ in range(args.repeats) for point in rng.sample(list(routers), len(routers))]:
            forget(base.fast), forget(base.slow)
            router, text, options = routers[point], problem + PROMPTED, {"max_tokens": args.max_tokens, "seed": number}
            if args.random:  # which has no chat template
                runs[point].append(router.complete(text, **options))
            else:
                runs[point].append(router.chat([{"role": "user", "content": text}], **options))
        if number:  # the first one warms up
            for point, found in runs.items():
                answers[point].append(min(found, key=lambda answer: answer.usage.seconds))
        if not args.default:
            models = {"fast": base.fast, "slow": base.slow}
            for role, cost in measure_forwards(models, Effort(rounds=1, seconds=60.0, sequences=())).items():
                tables[role].append(cost)
    cost = base.costs or PairCost(fast=pooled(tables["fast"]), slow=pooled(tables["slow"]))
    alone = [answer.usage.seconds for answer in answers[SLOW_ALONE]]
    figures: list[dict[str, Any]] = []
    for point in sorted(answers):
        found = answers[point]
        taken, rates = [answer.usage.seconds for answer in found], Rates.of(found, mode_of(*point))
        told = expected(cost, *point, found)
        figures.append(
            {
                "policy": point[0],
                "method": point[1],
                "escalation": round(rates.escalation, 4),
                "acceptance": round(rates.acceptance, 4),
                "acceptance_escalated": rates.acceptance_escalated and round(rates.acceptance_escalated, 4),
                "tokens": sum(answer.usage.tokens for answer in found),
                "seconds": round(sum(taken), 3),
                "expected_seconds": round(told, 3),
                "expected_over_measured": round(told / sum(taken), 4),
                "over_slow_alone": ratio(taken, alone),
            }
        )
    save(
        args.name,
        {
            "pair": [base.fast.name, base.slow.name],
            "threads": args.threads,
            "prompts": len(problems),
            "repeats": args.repeats,
            "max_tokens": args.max_tokens,
            "prompt_tokens": round(float(np.mean([a.usage.prompt_tokens for a in answers[SLOW_ALONE]])), 1),
            "default": [base.policy.name, base.method.name] if args.default else None,
            "forward_ms": {"fast": as_ms(cost.fast), "slow": as_ms(cost.slow)},
            "points": figures,
        },
    )
    base.close()


if __name__ == "__main__":
    main()
