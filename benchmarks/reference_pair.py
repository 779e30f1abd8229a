"""Quality against escalation on the reference pair, for signals, random, whole queries and an oracle.

Held-out problems, temperature 0, method ``replace``. The x-axis is the share of tokens that the slow
model wrote, which means the same for every way of routing:

* thresholds on entropy, maximum probability and margin, at quantiles taken on the calibration split;
* random escalation;
* whole queries: the fast model answers first; the slow one answers those again whose mean entropy was
  highest;
* the oracle: the slow model is asked at every token, and its token stands only where it finds the fast
  one's worse by more than t nats. Its rate counts corrections, which no router can know in advance.

    python benchmarks/reference_pair.py --count 1000
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from fsgen_router import Router
from fsgen_router.evaluation import (
    Item,
    Outcome,
    Run,
    ask,
    interval,
    make_outcome,
    rate_at_recovery,
    reference_items,
    run_baselines,
    run_items,
    signal_collector,
    summarise,
    sweep_policies,
    whole_query,
)
from fsgen_router.plots import quality_plot
from fsgen_router.reading import Row
from fsgen_router.reference import world

from common import RESULTS, save

SIGNALS = ("entropy", "max_prob", "margin")
ORACLE_NATS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
LEVELS = (0.5, 0.8, 0.95)
SEED = 0


@dataclass(frozen=True)
class Oracle:
    """The slow model's token stands where it finds the fast one's worse by more than ``nats``."""

    nats: float
    name: str = "oracle"

    def choose(self, draft: int | None, slow: Row) -> tuple[int, float]:
        if draft is not None and slow.argmax_logprob - slow.id_logprobs[0] <= self.nats:
            return draft, slow.id_logprobs[0]
        return slow.argmax, slow.argmax_logprob


def run_oracle(router: Router, items: Sequence[Item], nats: float) -> Run:
    asked = router.with_policy("always", method=Oracle(nats))
    outcomes: list[Outcome] = []
    for item in items:
        answer = ask(asked, item)
        corrected = answer.usage.corrections
        outcomes.append(replace(make_outcome(item, answer), escalations=corrected, slow_tokens=corrected))
    return Run(f"oracle>{nats:g} nats", tuple(outcomes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="test problems (default: %(default)s)")
    parser.add_argument("--calibration", type=int, default=300, help="problems that thresholds are taken from")
    args = parser.parse_args()
    items = reference_items("test", args.count)
    with Router(policy="never", seed=SEED) as router:
        progress = tqdm(total=2 + (len(SIGNALS) + 1) * 12 + len(ORACLE_NATS), desc="policies")
        fast, slow = run_baselines(router, items)
        progress.update(2)
        curves: dict[str, list[Run]] = {}
        for signal in SIGNALS:
            collect, values = signal_collector(signal)
            run_items(router, reference_items("calibration", args.calibration), "never", on_answer=collect)
            curves[signal] = []
            for policy in sweep_policies(signal, np.array(values)):
                curves[signal].append(run_items(router, items, policy))
                progress.update()
        curves["random"] = []
        for policy in sweep_policies("random"):
            curves["random"].append(run_items(router, items, policy))
            progress.update()
        order = np.argsort(-fast.column("mean_entropy_nats"), kind="stable")
        curves["whole query"] = []
        for share in SHARES:
            to_slow = np.zeros(len(items), bool)
            to_slow[order[: round(share * len(items))]] = True
            curves["whole query"].append(whole_query(fast, slow, to_slow, name=f"whole query {share:.0%}"))
        curves["oracle"] = []
        for nats in ORACLE_NATS:
            curves["oracle"].append(run_oracle(router, items, nats))
            progress.update()
        progress.close()
        parameters = {role: model.n_params for role, model in (("fast", router.fast), ("slow", router.slow))}
    summaries = {name: [summarise(run, fast, slow, seed=SEED) for run in runs] for name, runs in curves.items()}
    recovery = {
        name: rate_at_recovery(fast, slow, runs, levels=LEVELS, rate="slow_token_share", seed=SEED)
        for name, runs in curves.items()
    }
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
            "curves": {name: [summary.to_dict() for summary in found] for name, found in summaries.items()},
        },
    )
    quality_plot(
        RESULTS / "reference_pair.png",
        summaries,
        rate="slow_token_share",
        title=f"The reference pair, {len(items)} held-out problems",
    )


if __name__ == "__main__":
    main()
