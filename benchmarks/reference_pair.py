"""Quality against escalation on the reference pair, for signals, random, whole queries and an oracle.

Held-out problems, temperature 0, method ``replace``. The x-axis is the share of tokens that the slow
model wrote, which means the same for every way of routing:

* thresholds on entropy, maximum probability and margin, at quantiles taken on the calibration split;
* random escalation;
* whole queries: the fast model answers first; the slow one answers those again whose mean entropy was
  highest;
* the oracle: the slow model is asked at every token, and its token stands only where it finds the fast
  one's worse by more than t nats. Its rate counts corrections, which no router can know in advance.

Then the same thresholds with drafts verified (``verify``, exact and near best), and the slow model reading
every draft in groups of 16 (``every:16``) at several tolerances, where the x-axis of interest is the share of
corrections. Ratios are taken where 95% of the gap is recovered, paired by prompt, with the crossing found
inside each bootstrap draw.

    python benchmarks/reference_pair.py --count 1000
    python benchmarks/reference_pair.py --draw          # the plot alone, from the stored results
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields, replace
from typing import Any

import numpy as np
from tqdm import tqdm

from fsgen_router import Router, reference
from fsgen_router.calibration import ratio_at_recovery
from fsgen_router.calibration.curves import Oracle
from fsgen_router.evaluation import (
    SLOW_ONLY,
    Estimate,
    Item,
    Outcome,
    Run,
    Summary,
    ask,
    interval,
    make_outcome,
    rate_at_recovery,
    reference_items,
    run_items,
    signal_collector,
    summarise,
    sweep_policies,
    whole_query,
)
from fsgen_router.evaluation.plots import quality_plot
from fsgen_router.reference import world

from common import RESULTS, save

SIGNALS = ("entropy", "max_prob", "margin")
RATES = (0.02, 0.05, 0.08, 0.11, 0.14, 0.18, 0.23, 0.3, 0.4)
ORACLE_NATS = (0.0, 0.5, 1.0, 2.0, 3.0, 4.0)
VERIFIED = ("verify:exact", "verify:near_best=0.9")
TOLERANCES = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98)
SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
LEVELS = (0.5, 0.8, 0.95)
SEED = 0


_worker: tuple[Router, list[Item]]


def start_worker(count: int) -> None:
    """Each process has the pair to itself."""
    global _worker
    _worker = Router(policy="never", method="replace", seed=SEED, batching=False), reference_items("test", count)


def run_policy(task: tuple[str, str]) -> Run:
    """All items under a (method, policy); the oracle's method is its tolerance in nats."""
    method, policy = task
    router, items = _worker
    if not method.startswith("oracle"):
        run = run_items(router.with_policy(policy, method=method), items)
        return run if method == "replace" else replace(run, policy=f"{policy} {method}")
    asked = router.with_policy(policy, method=Oracle(float(method.removeprefix("oracle>"))))
    outcomes: list[Outcome] = []
    for item in items:
        answer = ask(asked, item)
        corrected = answer.usage.corrections
        outcomes.append(replace(make_outcome(item, answer), escalations=corrected, slow_tokens=corrected))
    return Run(f"{method} nats", tuple(outcomes))


def thresholds(count: int) -> dict[str, list[str]]:
    """Each signal's policies, at quantiles of it over the fast model's own calibration answers."""
    found = {}
    with Router(policy="never", method="replace", seed=SEED, batching=False) as router:
        for signal in SIGNALS:
            collect, values = signal_collector(signal)
            run_items(router, reference_items("calibration", count), on_answer=collect)
            found[signal] = sweep_policies(signal, np.array(values), rates=RATES)
    return found


def verify_figures(
    fast: Run, slow: Run, replaced: dict[str, list[Run]], drafted: dict[str, list[Run]]
) -> dict[str, Any]:
    """What verification costs at 95% of the gap, and against ``replace`` with the signals' thresholds."""
    read = [summarise(run, fast, slow, seed=SEED) for run in drafted["every:16"]]
    enough = [s for s in read if (s.recovered_gap.value or 0.0) >= 0.95]
    fewest = min(enough, key=lambda s: s.correction_share.value or 0.0, default=None)
    return {
        "fewest_corrections_at_95": None if fewest is None else fewest.to_dict(),
        "slow_forwards_per_token_at_95": {
            f"{method} {signal}": rate_at_recovery(
                fast, slow, runs, levels=(0.95,), rate="slow_forwards_per_token", seed=SEED
            )[0.95].to_dict("rate")
            for method, signal, runs in (
                *(("replace", signal, replaced[signal]) for signal in SIGNALS),
                *((method, "entropy", drafted[method]) for method in VERIFIED),
            )
        },
        "slow_forwards_ratio_to_replace": {
            method: ratio_at_recovery(
                fast, slow, drafted[method], replaced["entropy"], rate="slow_forwards_per_token", seed=SEED
            ).to_dict("ratio")
            for method in VERIFIED
        },
        "curves": {
            name: [
                summarise(run, fast, slow, seed=SEED).to_dict()
                | {
                    "discarded_per_answer": run.column("discarded_tokens").mean(),
                    "slow_positions_per_answer": run.column("slow_positions").mean(),
                }
                for run in runs
            ]
            for name, runs in drafted.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="test problems (default: %(default)s)")
    parser.add_argument("--calibration", type=int, default=300, help="problems that thresholds are taken from")
    parser.add_argument("--jobs", type=int, default=2, help="processes; nothing here is timed")
    parser.add_argument("--draw", action="store_true", help="only draw the plot again, from the stored results")
    args = parser.parse_args()
    if args.draw:
        draw(stored_curves())
        return
    items = reference_items("test", args.count)
    swept = thresholds(args.calibration)
    tasks = {
        "fast": [("replace", "never")],
        "slow": [("replace", SLOW_ONLY)],
        **{signal: [("replace", policy) for policy in policies] for signal, policies in swept.items()},
        "random": [("replace", policy) for policy in sweep_policies("random", rates=(0.05, 0.2, 0.4, 0.6, 0.8, 0.9))],
        "oracle": [(f"oracle>{nats:g}", "always") for nats in ORACLE_NATS],
        **{method: [(method, policy) for policy in swept["entropy"]] for method in VERIFIED},
        "every:16": [(f"verify:near_best={tolerance}", "every:16") for tolerance in TOLERANCES],
    }
    with ProcessPoolExecutor(args.jobs, initializer=start_worker, initargs=(args.count,)) as pool:
        flat = [task for group in tasks.values() for task in group]
        done = iter(list(tqdm(pool.map(run_policy, flat), total=len(flat), desc="policies")))
    runs = {name: [next(done) for _ in group] for name, group in tasks.items()}
    (fast,), (slow,) = runs.pop("fast"), runs.pop("slow")
    drafted = {name: runs.pop(name) for name in (*VERIFIED, "every:16")}
    curves = runs
    order = np.argsort(-fast.column("mean_entropy_nats"), kind="stable")
    curves["whole query"] = []
    for share in SHARES:
        to_slow = np.zeros(len(items), bool)
        to_slow[order[: round(share * len(items))]] = True
        curves["whole query"].append(whole_query(fast, slow, to_slow, name=f"whole query {share:.0%}"))
    parameters = {which: reference.load(which).n_params for which in ("fast", "slow")}
    summaries = {name: [summarise(run, fast, slow, seed=SEED) for run in runs] for name, runs in curves.items()}
    recovery = {
        name: rate_at_recovery(fast, slow, runs, levels=LEVELS, rate="slow_token_share", seed=SEED)
        for name, runs in curves.items()
    }
    verification = verify_figures(fast, slow, curves, drafted)
    best = summaries["entropy"][0]
    by = {}
    for what in ("level", "family"):
        for label in sorted({getattr(item, what) for item in items}):
            chosen = np.array([getattr(item, what) == label for item in items])
            by[f"{what} {label}"] = {
                model: interval(run.column("right")[chosen], seed=SEED).to_dict("accuracy")
                for model, run in (("fast", fast), ("slow", slow))
            }
    disagreement = curves["oracle"][0].rate("slow_token_share")
    save(
        "reference_pair",
        {
            "world": world.VERSION,
            "world_sha256": world.fingerprint(),
            "seed": SEED,
            "n": len(items),
            "parameters": parameters,
            "accuracy_fast": best.accuracy_fast.to_dict("accuracy"),
            "accuracy_slow": best.accuracy_slow.to_dict("accuracy"),
            "gap": best.gap.to_dict("gap"),
            "disagreement_rate": disagreement,
            "mean_tokens": {"fast": fast.column("tokens").mean(), "slow": slow.column("tokens").mean()},
            "slow_token_share_at_recovery": {
                name: {str(level): estimate.to_dict("share") for level, estimate in found.items()}
                for name, found in recovery.items()
            },
            "by": by,
            "verify": verification,
            "curves": {name: [summary.to_dict() for summary in found] for name, found in summaries.items()},
        },
    )
    draw(summaries)


def draw(curves: dict[str, list[Summary]]) -> None:
    quality_plot(
        RESULTS / "reference_pair.png",
        curves,
        rate="slow_token_share",
        title="Held-out problems: quality against the share of tokens that the slow model wrote",
        pair="reference:fast + reference:slow",
        method="replace",
    )


def stored_curves() -> dict[str, list[Summary]]:
    """The curves of the last measurement, from its results."""
    results = json.loads((RESULTS / "reference_pair.json").read_text())
    return {name: [summary_of(record) for record in records] for name, records in results["curves"].items()}


def summary_of(record: dict[str, Any]) -> Summary:
    """What :meth:`Summary.to_dict` wrote."""

    def estimate(name: str) -> Estimate:
        interval = record[f"{name}_interval"]
        return Estimate(record[name], tuple(interval) if interval else None)

    names = [field.name for field in fields(Summary)]
    return Summary(**{name: estimate(name) if f"{name}_interval" in record else record[name] for name in names})


if __name__ == "__main__":
    main()
