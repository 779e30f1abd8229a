"""The learned policy of the reference pair: what it recovers, what is certified about it, and whether that holds.

* ``calibrate``: a certified policy for ``verify``, fitted on the fit split, its threshold certified on the
  calibration split;
* ``curves``: escalation rates that recover the gap on held-out test problems with ``replace``, the learned score
  against the best single signal (chosen on calibration problems) and against entropy masked by token class: the
  ratio of rates at 95%, paired, the crossing interpolated inside each bootstrap draw; by phrasing level;
* ``shifted``: regret and rate of the certified policy where problems are harder, and for which answers it is
  claimed, the drift monitor off and on;
* ``guarantee``: thresholds run once on a pool with ``replace``; random re-splits of it certify anew, and the
  pool's own regret is the truth. Naive tuning (the least escalation whose regret on the split is at most alpha)
  stands beside it.

Each part is a result of its own. Answers are kept under ``--work``, so an interrupted run goes on, and parts may
run side by side once ``calibrate`` is done.

    python benchmarks/calibration.py --work /tmp/calibration [--part curves]

``--curve FILE`` puts the candidates of the last ``calibrate`` into a policy file that was made before files held them.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from fsgen_router import Router, reference
from fsgen_router import calibration as cal
from fsgen_router.calibration.bench import Bench
from fsgen_router.calibration.fitting import Fitted
from fsgen_router.calibration.held_out import baseline_scorers
from fsgen_router.evaluation import SLOW_ONLY, Item, Run, interval, rate_at_recovery, reference_items
from fsgen_router.policies import Learned, load_policy, save_policy
from fsgen_router.policies.cards import CurvePoint
from fsgen_router.policies.certify import certify
from fsgen_router.policies.scorers import Scorer
from fsgen_router.reference import world

from common import RESULTS, save

SEED = 0
ALPHA, DELTA = 0.05, 0.1
ALPHAS = (0.01, 0.02, 0.03, 0.04, 0.05, 0.1)
"""What re-splits certify: where no threshold's regret lies just above alpha, tuning cannot go wrong either."""
CERTIFIED_WITH = 1000
RESPLITS = 500
RATES = (0.02, 0.035, 0.05, 0.07, 0.11, 0.14, 0.17)
SINGLE = ("entropy", "varentropy", "max_prob", "margin")


class Bars:
    """A bar per stage."""

    def __init__(self) -> None:
        self._bar: Any = None

    def begin(self, stage: str, total: int) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar = tqdm(total=total, desc=stage, leave=False)

    def advance(self, count: int) -> None:
        self._bar.update(count)


def make_runner(bench: Bench, split: str, items: list[Item]) -> cal.Runner:
    """Runs over other items than the bench's own, kept in the same work directory."""
    bars = bench.stages.progress
    bars.begin(split, 0)
    name = f"{split}{len(items)}"
    concurrency = bench.runners["fit"].concurrency
    return cal.Runner(bench.router, items, bench.work, name, bench.options.request, concurrency, bars.advance)


def sweeps(runner: cal.Runner, fitted: Fitted, scorers: dict[str, Scorer]) -> dict[str, list[Run]]:
    return {
        name: cal.threshold_runs(runner, scorer, fitted.scores(scorer), fitted.traces.answer, rates=RATES)
        for name, scorer in scorers.items()
    }


def curves(bench: Bench, fitted: Fitted, tests: int, chosen_on: int) -> dict[str, Any]:
    scorers = {"learned": fitted.scorer, **baseline_scorers(bench, fitted, calibrated=False)}
    tuning = make_runner(bench, "tuning", reference_items("calibration", chosen_on))
    singles = sweeps(tuning, fitted, {name: scorers[name] for name in SINGLE})
    alone = tuning.run("never"), tuning.run(SLOW_ONLY)
    reached = {name: rate_at_recovery(*alone, runs, seed=SEED)[0.95].value for name, runs in singles.items()}
    best = min(reached, key=lambda name: reached[name] or 1.0)
    scorers = {name: scorers[name] for name in ("learned", best, "masked_entropy")}
    items = reference_items("test", tests)
    runner = make_runner(bench, "test", items)
    fast, slow = runner.run("never"), runner.run(SLOW_ONLY)
    runs = sweeps(runner, fitted, scorers)
    record: dict[str, Any] = {"n": tests, "best_single_signal": best, "chosen_on": chosen_on, "chosen_by": reached}
    levels = np.array([item.level for item in items])
    for name, kept in {"all": levels >= 0, **{f"level {level}": levels == level for level in (0, 1, 2)}}.items():
        f, s = part(fast, kept), part(slow, kept)
        found = {way: [part(run, kept) for run in several] for way, several in runs.items()}
        record[name] = {
            "n": int(kept.sum()),
            **interval(f.column("right"), seed=SEED).to_dict("accuracy_fast"),
            **interval(s.column("right"), seed=SEED).to_dict("accuracy_slow"),
            "rate_at_recovery": {
                way: {
                    f"{level:g}": e.to_dict("rate") for level, e in rate_at_recovery(f, s, several, seed=SEED).items()
                }
                for way, several in found.items()
            },
            "area": {
                way: cal.recovered_area(f, s, several, seed=SEED).to_dict("area") for way, several in found.items()
            },
            **{
                f"ratio_to_{key}": cal.ratio_at_recovery(f, s, found["learned"], found[way], seed=SEED).to_dict("ratio")
                for key, way in (("best_single", best), ("masked_entropy", "masked_entropy"))
            },
        }
    return record


def part(run: Run, kept: np.ndarray) -> Run:
    return Run(run.policy, tuple(outcome for outcome, keep in zip(run.outcomes, kept.tolist(), strict=True) if keep))


def shifted(router: Router, policy: Learned, count: int) -> dict[str, Any]:
    """The certified policy on harder problems, its drift monitor off and on."""
    items = reference_items("shifted", count)
    request = cal.make_options(seed=SEED).request

    def answered(routed: Router, name: str) -> tuple[Run, np.ndarray]:
        """Not through a runner: the monitor's memory is the Router's, and goes from answer to answer."""
        answers = [routed.chat(item.messages or (), **request) for item in tqdm(items, desc=name, leave=False)]
        outcomes = tuple(cal.make_outcome(item, answer) for item, answer in zip(items, answers, strict=True))
        return Run(name, outcomes), np.array([answer.claim is not None and answer.claim.holds for answer in answers])

    slow, _ = answered(router.with_policy("always", method="replace"), SLOW_ONLY)
    record: dict[str, Any] = {"n": count, **interval(slow.column("right"), seed=SEED).to_dict("accuracy_slow")}
    for name, watched in (("drift off", dataclasses.replace(policy, drift=None)), ("drift on", policy)):
        run, claimed = answered(router.with_policy(watched, method=policy.method), name)
        regret, ones = cal.regret(run, slow), claimed.astype(float)
        record[name] = {
            **interval(regret, seed=SEED).to_dict("regret"),
            **interval(run.column("escalations"), run.column("decisions"), seed=SEED).to_dict("escalation_rate"),
            **interval(ones, seed=SEED).to_dict("claimed"),
            **interval(regret * ones, ones, seed=SEED).to_dict("regret_where_claimed"),
        }
    return record


def resplit(
    losses: np.ndarray, rates: np.ndarray, draws: Sequence[np.ndarray], alphas: Sequence[float]
) -> dict[str, Any]:
    """How often what re-splits of a pool certify, or tune, is worse on the whole pool than it says.

    ``losses`` has shape (prompts, thresholds), ``rates`` each threshold's escalation rate, ``draws`` the re-splits.
    """
    truth = losses.mean(axis=0)
    by_alpha: dict[str, Any] = {}
    for alpha in tqdm(alphas, desc="re-splits", leave=False):
        found: dict[str, list[int]] = {"certified": [], "naive": []}
        for drawn in draws:
            chosen = certify(losses[drawn], alpha, DELTA).chosen
            if chosen is not None:
                found["certified"].append(chosen)
            found["naive"].append(int(np.flatnonzero(losses[drawn].mean(axis=0) <= alpha)[-1]))
        by_alpha[f"{alpha:g}"] = {
            name: {
                "chosen": len(several),
                "violations": float(np.mean(truth[several] > alpha)) if several else None,
                "mean_escalation_rate": float(np.mean(rates[several])) if several else None,
            }
            for name, several in found.items()
        }
    return by_alpha


def guarantee(bench: Bench, fitted: Fitted, pool: int) -> dict[str, Any]:
    """Violations of the certificate, and of naive tuning, over re-splits of a pool that was run once."""
    runner = make_runner(bench, "pool", reference_items("calibration", pool))
    slow = runner.run(SLOW_ONLY)
    candidates = cal.candidate_policies(fitted.scorer, fitted.scores(), fitted.traces.answer)
    runs = [runner.run(policy) for policy in candidates]
    losses = np.stack([np.zeros(pool), *(cal.regret(run, slow) for run in runs)], 1)
    truth = losses.mean(axis=0)
    rates = np.array([1.0, *(run.rate("escalation_rate") or 0.0 for run in runs)])
    rng = np.random.default_rng(SEED)
    draws = [rng.choice(pool, CERTIFIED_WITH, replace=False) for _ in range(RESPLITS)]
    by_alpha = resplit(losses, rates, draws, ALPHAS)
    return {
        "pool": pool,
        "thresholds": len(candidates),
        "delta": DELTA,
        "calibration_prompts": CERTIFIED_WITH,
        "resplits": RESPLITS,
        "pool_regret": truth.tolist(),
        "pool_escalation_rate": rates.tolist(),
        "allowed_violations": DELTA + 2 * (DELTA * (1 - DELTA) / RESPLITS) ** 0.5,
        "by_alpha": by_alpha,
    }


def write_curve(path: Path) -> None:
    """Put what the candidates did in the last ``calibrate`` into the policy file that it made."""
    made = json.loads((RESULTS / "calibration_calibrate.json").read_text(encoding="utf-8"))
    policy, card = load_policy(path)
    if policy.threshold != made["threshold"] or card.data_hash != made["prompts"]["sha256"]:
        raise SystemExit(f"{path} is of another calibration")
    count = card.splits["calibration"]
    names = ("threshold", "escalation_rate", "accuracy", "risk")
    points = [CurvePoint(n_prompts=count, **{name: one[name] for name in names}) for one in made["candidates"]]
    after = dataclasses.replace(policy, curve=tuple(sorted(points, key=lambda point: point.threshold)))
    assert after.digest == policy.digest  # the certificate is of what has not changed
    save_policy(path, after, card)


PARTS = ("calibrate", "curves", "shifted", "guarantee")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="where answers and the policy are kept")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this; may be repeated (default: all)")
    parser.add_argument("--count", type=int, default=3000, help="problems to calibrate with (default: %(default)s)")
    parser.add_argument("--test", type=int, default=4000, help="test problems (default: %(default)s)")
    parser.add_argument("--tuning", type=int, default=400, help="problems to choose the best single signal on")
    parser.add_argument("--pool", type=int, default=4000, help="problems that are re-split (default: %(default)s)")
    parser.add_argument("--shifted", type=int, default=1000, help="harder problems (default: %(default)s)")
    parser.add_argument("--curve", type=Path, metavar="FILE", help="put the candidates into this policy file, and stop")
    args = parser.parse_args()
    if args.curve is not None:
        write_curve(args.curve)
        return
    if args.work is None:
        parser.error("--work is wanted")
    parts = args.part or PARTS
    args.work.mkdir(parents=True, exist_ok=True)
    prompts = cal.reference_prompts(args.count)
    out = args.work / "policy.safetensors"
    options = {"method": "verify", "seed": SEED, "curves": False, "concurrency": 8}
    about = {
        "script": "benchmarks/calibration.py",
        "world": world.VERSION,
        "world_sha256": world.fingerprint(),
        "weights_sha256": {w: hashlib.sha256(reference.path(w).read_bytes()).hexdigest() for w in ("fast", "slow")},
        "seed": SEED,
    }

    def finished(part: str, record: dict[str, Any], began: float) -> None:
        save(f"calibration_{part}", about | record | {"seconds_in_all": time.perf_counter() - began})

    if "calibrate" in parts:
        began = time.perf_counter()
        made = cal.calibrate(
            prompts=prompts, out=out, max_regret=ALPHA, confidence=1 - DELTA, report=args.work / "report.html",
            progress=Bars(), **options,
        )  # fmt: skip
        finished("calibrate", made.to_dict(), began)
    if "shifted" in parts:
        began = time.perf_counter()
        with Router(policy="never", seed=SEED) as router:
            finished("shifted", shifted(router, load_policy(out)[0], args.shifted), began)
    if not {"curves", "guarantee"} & set(parts):
        return
    with Router(policy="never", seed=SEED) as router:
        bench = cal.open_bench(router, prompts, args.work / "policy.work", stages=cal.Stages(Bars()), **options)
        fitted = cal.collect_and_fit(bench, cal.make_target(max_regret=ALPHA, confidence=1 - DELTA))
        for part, measure in {
            "curves": lambda: curves(bench, fitted, args.test, args.tuning),
            "guarantee": lambda: guarantee(bench, fitted, args.pool),
        }.items():
            if part in parts:
                began = time.perf_counter()
                finished(part, measure(), began)


if __name__ == "__main__":
    main()
