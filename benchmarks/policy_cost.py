"""What a learned policy costs per token: the time of one decision, features included, by scorer.

The scorers have random weights of usual sizes, since only their shapes matter here. Each block times the
same decisions for every policy in turn; the figure is the median over blocks of the mean per decision,
with its 95% bootstrap interval, beside a plain threshold on entropy.

    python benchmarks/policy_cost.py --blocks 40
"""

from __future__ import annotations

import argparse
import json
from itertools import pairwise

import numpy as np
from scipy.stats import bootstrap

from fsgen_router.contracts.policy import Context, Ledger, Policy
from fsgen_router.policies import Learned, SpanRule, Threshold
from fsgen_router.policies.drift import DriftMonitor
from fsgen_router.policies.features import CLASSES, NUMERIC, feature_matrix
from fsgen_router.policies.guard import fit_guard
from fsgen_router.policies.scorers import Isotonic, Logistic, Mlp, Platt, Signal, TokenPrior
from fsgen_router.rows.signals import TOP_K, Signals

from common import save, timed

Positions = list[tuple[Signals, Context]]


def random_positions(count: int, rng: np.random.Generator) -> Positions:
    """Signals as of a model that is sure at some tokens and not at others."""
    positions = []
    for index in range(count):
        logits = rng.normal(size=64) * rng.choice([1.0, 4.0, 12.0])
        logprobs = np.sort(logits - np.logaddexp.reduce(logits))[::-1]
        p = np.exp(logprobs)
        entropy = float(-(p * logprobs).sum())
        signals = Signals(
            token_id=int(rng.integers(150_000)),
            token_class=int(rng.integers(len(CLASSES))),
            entropy_nats=entropy,
            varentropy=float((p * logprobs**2).sum()) - entropy**2,
            max_prob=float(p[0]),
            margin=float(p[0] - p[1]),
            log_partition=20.0,
            top_ids=tuple(range(TOP_K)),
            top_logprobs=tuple(logprobs[:TOP_K].tolist()),
        )
        positions.append((signals, Context(index % 200, index % 17, 0, 0, lambda: 0.5)))
    return positions


def policies(positions: Positions, rng: np.random.Generator) -> dict[str, Policy]:
    """A plain threshold, each kind of scorer, and everything at once."""
    size = len(NUMERIC)
    mean, scale = np.zeros(size), np.ones(size)
    logistic = Logistic(NUMERIC, mean, scale, rng.normal(size=size) / 10, 0.0)
    widths = [size, 32, 32, 1]
    layers = [(rng.normal(size=(b, a)) / 6, rng.normal(size=b)) for a, b in pairwise(widths)]
    mlp = Mlp(NUMERIC, mean, scale, tuple(w for w, _ in layers), tuple(b for _, b in layers))
    ids = np.arange(0, 150_000, 50)
    prior = TokenPrior(logistic, ids, rng.normal(size=len(ids)))
    table = np.linspace(0, 1, 50)
    monitor = DriftMonitor(tuple(np.linspace(0, 1, 11)[1:-1].tolist()), (0.1,) * 10, 50, 0.2, 0.1)
    guard = fit_guard(feature_matrix(positions), widened=0.1)
    return {
        "entropy>1.2": Threshold("entropy", 1.2, True),
        "learned entropy": Learned(Signal("entropy"), 0.5),
        "logistic": Learned(logistic, 0.5),
        "logistic, Platt": Learned(Platt(logistic, 1.0, 0.0), 0.5),
        "logistic, isotonic": Learned(Isotonic(logistic, table, table), 0.5),
        "logistic, token prior": Learned(prior, 0.5),
        "perceptron, 2 x 32": Learned(mlp, 0.5),
        "logistic, span, drift": Learned(logistic, 0.5, span=SpanRule(8, 0.8, 0.5), drift=monitor),
        "logistic, span, drift, guard": Learned(
            logistic, 0.5, span=SpanRule(8, 0.8, 0.5), drift=monitor, guard=guard
        ),
    }  # fmt: skip


def decide_all(policy: Policy, positions: Positions) -> None:
    """One request over all positions."""
    ledger = Ledger()
    state = policy.begin(ledger)
    for signals, context in positions:
        state, _ = policy.decide(state, signals, context)
    policy.end(state, ledger)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=40, help="timed rounds over all policies (default: %(default)s)")
    parser.add_argument("--decisions", type=int, default=1000, help="decisions per block (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dry", action="store_true", help="print the figures and write nothing")
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    positions = random_positions(args.decisions, rng)
    tried = policies(positions, rng)
    times: dict[str, list[float]] = {name: [] for name in tried}
    for block in range(args.blocks + 1):
        for name, policy in tried.items():
            seconds = timed(lambda policy=policy: decide_all(policy, positions))
            if block:  # the first one warms up
                times[name].append(1e6 * seconds / args.decisions)
    figures = {
        "blocks": args.blocks,
        "decisions": args.decisions,
        "seed": args.seed,
        "us_per_decision": {name: median(values, args.seed) for name, values in times.items()},
    }
    if args.dry:
        print(json.dumps(figures, indent=1))
    else:
        save("policy_cost", figures)


def median(values: list[float], seed: int) -> dict[str, float]:
    """The median and its 95% bootstrap interval."""
    interval = bootstrap((values,), np.median, rng=np.random.default_rng(seed)).confidence_interval
    return {"median": float(np.median(values)), "low": float(interval.low), "high": float(interval.high)}


if __name__ == "__main__":
    main()
