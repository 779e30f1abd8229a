"""What a method's step costs on top of the models' forwards: rows of logits read, and a token made of them.

Rows are random, of Qwen2.5's 151,936 tokens, since only their width matters here. Each block times for every method
in turn what an escalation reads (each model's row, with the fast model's signals) and the choice; and beside it the
fast model's row read alone with its signals, as at every step, with and without a copy of the whole row. The figure is
the median over blocks with its 95% bootstrap interval.

    python benchmarks/method_step.py --blocks 40
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

import numpy as np
from policy_cost import median

from fsgen_router.contracts.models import Role
from fsgen_router.methods import make_method
from fsgen_router.rows.reading import GREEDY, Read, Row, Scratch, Warp, choose_token, reduce_row
from fsgen_router.rows.signals import TOP_K

from common import save, timed

METHODS = ("replace", "contrast", "contrast:beta=1.5", "contrast:li", "proxy")
ROLES: tuple[Role, ...] = ("fast", "slow", "tuned")
SAMPLED = Warp(temperature=0.8, top_k=50)


def steps(n_vocab: int, rng: np.random.Generator) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    shared = rng.normal(0, 3, n_vocab)
    logits = {role: (shared + rng.normal(0, 1.5, n_vocab)).astype(np.float32) for role in ROLES}
    scratch = Scratch()

    def read(role: Role, *, full: bool) -> Row:
        signals = role == "fast"
        return reduce_row(logits[role], Read(signals=signals, top_k=TOP_K * signals, full=full), scratch)

    def step(name: str, warp: Warp) -> Callable[[], object]:
        method = make_method(name)

        def one() -> object:
            rows = {role: read(role, full=role in method.whole_rows) for role in ("fast", *method.roles)}
            return method.choose(0, rows, lambda made: choose_token(made, warp, 0.5))

        return one

    found: dict[str, Callable[[], object]] = {
        "fast row": lambda: read("fast", full=False),
        "fast row, whole": lambda: read("fast", full=True),
    }
    for name in METHODS:
        found[name] = step(name, GREEDY)
        if name != "replace":  # whose token is drawn where the row is read
            found[f"{name}, sampled"] = step(name, SAMPLED)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=40, help="timed rounds over all methods (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="steps per block (default: %(default)s)")
    parser.add_argument("--n-vocab", type=int, default=151_936, help="tokens in a row (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dry", action="store_true", help="print the figures and write nothing")
    args = parser.parse_args()
    tried = steps(args.n_vocab, np.random.default_rng(args.seed))
    times: dict[str, list[float]] = {name: [] for name in tried}
    for block in range(args.blocks + 1):
        for name, one in tried.items():
            seconds = timed(lambda one=one: [one() for _ in range(args.steps)])
            if block:  # the first one warms up
                times[name].append(1e6 * seconds / args.steps)
    figures = {
        "blocks": args.blocks,
        "steps": args.steps,
        "n_vocab": args.n_vocab,
        "seed": args.seed,
        "us_per_step": {name: median(values, args.seed) for name, values in times.items()},
    }
    if args.dry:
        print(json.dumps(figures, indent=1))
    else:
        save("method_step", figures)


if __name__ == "__main__":
    main()
