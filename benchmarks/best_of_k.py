"""Verified best of K beside token routing at equal slow work, on the reference pair.

Held-out problems; the fast model writes K whole answers (the first greedily, the others at temperature 0.8), a
verifier picks one or the slow model answers anew:

* ``score``: the slow model's mean log-probability per token, at thresholds that escalate about 10, 25 and 50% of
  the prompts (quantiles on the calibration split), and without one (``best_of:K``: the best always stands);
* ``vote``: the answer that more than a share of the K agree with;
* ``oracle``: the problem's own checker, which no application has: what any verifier could reach at most.

Each stands beside the entropy policy's curve at the same number of sequential slow steps (``slow_forwards``), found
anew in every bootstrap draw. ``slow_positions`` are per token that the slow model writes alone, prompts included, as
are the tokens that it reads to score. Last, Learn-then-Test on calibration prompts: the lowest threshold of
``best_of:4,score>t`` that is certified to turn no more than alpha of the slow model's right answers into wrong ones.

    python benchmarks/best_of_k.py --count 200
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from fsgen_router import Generation, Router
from fsgen_router.contracts.policy import Policy
from fsgen_router.evaluation import (
    Item,
    Run,
    ask,
    at_equal_work,
    interval,
    make_outcome,
    reference_items,
    run_baselines,
    run_items,
    signal_collector,
    sweep_policies,
)
from fsgen_router.policies import BestOf, Score, Vote
from fsgen_router.policies.certify import certify
from fsgen_router.reference import world

from common import save

KS = (1, 2, 4, 8)
ESCALATED = (0.1, 0.25, 0.5)
RATES = (0.02, 0.05, 0.08, 0.11, 0.14, 0.18, 0.23, 0.3, 0.4)
SEED = 0
ALPHA, DELTA = 0.1, 0.1
CERTIFIED_K = 4


def answered(router: Router, items: Sequence[Item], policy_of: Callable[[Item], Policy | str]) -> list[Generation]:
    """Answers under a policy that may depend on the problem, as an oracle's does."""
    return [ask(router, item, policy=policy_of(item), seed=SEED) for item in items]


def as_run(name: str, items: Sequence[Item], answers: Sequence[Generation]) -> Run:
    return Run(name, tuple(make_outcome(item, answer) for item, answer in zip(items, answers, strict=True)))


def best_scores(answers: Sequence[Generation]) -> list[float]:
    """Each prompt's best score; -inf where no answer of the fast model's could stand."""
    found = []
    for answer in answers:
        assert answer.selection is not None
        scores = [c.score for c in answer.selection.candidates if c.score is not None]
        found.append(max(scores, default=-math.inf))
    return found


def certified(items: Sequence[Item], picked: Run, slow: Run, scores: Sequence[float]) -> dict[str, Any]:
    """Thresholds tested on calibration prompts, the safest (highest) first, by what each would have answered.

    An answer is one decision: under every threshold it is the best candidate or the slow model's own, both known.
    """
    thresholds = np.round(np.linspace(0.0, -1.5, 31), 3)
    over = np.array(scores)[:, None] <= thresholds[None]
    right = np.where(over, slow.column("right")[:, None], picked.column("right")[:, None])
    losses = (slow.column("right")[:, None] > right).astype(float)
    tested = certify(losses, ALPHA, DELTA)
    record: dict[str, Any] = {"k": CERTIFIED_K, "alpha": ALPHA, "delta": DELTA, "n_prompts": len(items)}
    if tested.chosen is None:
        return record | {"threshold": None}
    at = tested.chosen
    return record | {
        "threshold": float(thresholds[at]),
        "risk": float(tested.risks[at]),
        "p_value": float(tested.p_values[at]),
        "escalated": float(over[:, at].mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="test problems (default: %(default)s)")
    parser.add_argument("--calibration", type=int, default=200, help="problems that thresholds are taken from")
    args = parser.parse_args()
    items, others = reference_items("test", args.count), reference_items("calibration", args.calibration)
    models = ("reference:fast?n_seq=8", "reference:slow?n_seq=8")
    with Router(*models, policy="never", method="replace", seed=SEED) as router:
        collect, entropies = signal_collector("entropy")
        _, slow_others = run_baselines(
            router, others, on_answer=lambda i, a: collect(i, a) if a.policy == "never" else None
        )
        fast, slow = run_baselines(router, items)
        sweep = [
            run_items(router, items, form)
            for form in tqdm(sweep_policies("entropy", np.array(entropies), rates=RATES), desc="entropy")
        ]
        runs: list[Run] = []
        guarantee: dict[str, Any] = {}
        for k in tqdm(KS, desc="best of K"):
            always = BestOf(k)
            calibration = answered(router, others, lambda _, policy=always: policy)
            scores = best_scores(calibration)
            if k == CERTIFIED_K:
                guarantee = certified(others, as_run("picked", others, calibration), slow_others, scores)
            limits = [None, *(round(float(np.quantile(scores, share)), 3) for share in ESCALATED)]
            policies: list[BestOf] = [BestOf(k, Score(limit)) for limit in limits]
            if k > 2:
                policies.append(BestOf(k, Vote(0.5)))
            if k == CERTIFIED_K and guarantee["threshold"] is not None:
                policies.append(BestOf(k, Score(guarantee["threshold"])))
            for policy in policies:
                runs.append(as_run(policy.name, items, answered(router, items, lambda _, policy=policy: policy)))
            oracle = answered(router, items, lambda item, k=k: BestOf(k, item.check))
            runs.append(as_run(f"best_of:{k},oracle", items, oracle))
        if guarantee["threshold"] is not None:
            name = BestOf(CERTIFIED_K, Score(guarantee["threshold"])).name
            (found,) = (run for run in runs if run.policy == name)
            regret = (slow.column("right") > found.column("right")).astype(float)
            guarantee |= {"policy": name} | interval(regret, seed=SEED).to_dict("regret_on_test")
    rows = [at_equal_work(run, fast, slow, sweep, seed=SEED) for run in (fast, slow, *sweep, *runs)]
    save(
        "best_of_k",
        {
            "world": world.VERSION,
            "world_sha256": world.fingerprint(),
            "seed": SEED,
            "n": len(items),
            "n_calibration": len(others),
            "mean_tokens": {"fast": fast.column("tokens").mean(), "slow": slow.column("tokens").mean()},
            "certified": guarantee,
            "rows": [
                row.to_dict()
                | {
                    "fast_tokens": float(
                        (run.column("tokens") + run.column("discarded_tokens") - run.column("slow_tokens")).mean()
                    )
                }
                for row, run in zip(rows, (fast, slow, *sweep, *runs), strict=True)
            ],
        },
    )


if __name__ == "__main__":
    main()
