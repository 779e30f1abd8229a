"""The finding on real models: what a pair makes of GSM8K, alone and routed.

* ``alone``: both models alone; FS-GEN's rate of disagreement on the fast model's answers and on the slow one's
  (every position read by both), and how well entropy, margin and maximum probability tell where they differ;
* ``curves``: quality against what the slow model writes and reads, on problems that nothing was fitted on: the
  learned score, entropy and margin token by token, each of them handing over the rest of the answer, and whole
  queries (the slow model answers anew where the fast one was least certain on average); the same threshold grid
  for all;
* ``drafts``: the default behind an endpoint, and one that hands over earlier: what is right where the slow model goes
  on with the draft, sees it, or does not, and what it bills (``drafts.py``), on all problems;
* ``default``: the local default without a calibration, ``budget:0.2``, on all problems;
* ``certified``: the threshold with the least escalation whose regret is certified, on problems of its own, and its
  regret, rate and quality on the report problems;
* ``resplits``: candidate thresholds run once on a pool; random halves of it certify, and the pool's own regret is
  the truth. Naive tuning (the least escalation whose regret on the half is at most alpha) stands beside it.

Answers, traces and rows are kept under ``--work``, so that an interrupted run goes on; each part says what both models
really read for it, over what they read alone (``positions_over_alone``), which holds where it was run in one piece.
Every problem is asked with the same words, greedy, and is right when its last number is the gold answer. GSM8K's test
problems are a JSON-lines file of ``question`` and ``answer``.

    python benchmarks/real_pair.py --fast llama_cpp:small.gguf --slow llama_cpp:large.gguf \\
        --problems gsm8k_test.jsonl --work /tmp/real_pair
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from calibration import Bars, resplit
from drafts import at_points, figures

from fsgen_router import REST, Router
from fsgen_router import calibration as cal
from fsgen_router.calibration.bench import Bench
from fsgen_router.calibration.candidates import CANDIDATE_RATES
from fsgen_router.calibration.choosing import choose
from fsgen_router.calibration.curves import whole_query_runs
from fsgen_router.calibration.fitting import Fitted
from fsgen_router.calibration.held_out import baseline_scorers
from fsgen_router.calibration.labels import disagreement
from fsgen_router.calibration.metrics import auroc
from fsgen_router.calibration.traces import Traces, join_traces
from fsgen_router.evaluation import SLOW_ONLY, Item, Run, interval, summarise
from fsgen_router.pairing import DEFAULT_POLICY, DEFAULT_REMOTE_POLICY
from fsgen_router.policies.scorers import Signal

from common import save

SEED = 0
ALPHA, DELTA = 0.05, 0.1
ALPHAS = (0.02, 0.05, 0.1, 0.15)
RESPLITS = 500
POOL_RATES = CANDIDATE_RATES[:17:4]  # 60 to 7%; down to 0.3% was planned, and cut for time: 20 minutes each
RATES = CANDIDATE_RATES[8:17:8]  # 20 and 7%: what the pool has run needs no run of its own
SIGNALS = ("entropy", "margin", "max_prob")
ASK = "\nThink step by step. End with the number alone."
ALONE = {"fast": "never", "slow": SLOW_ONLY}
SHARES = (0.25, 0.4, 0.35)
HAND_OVERS = (DEFAULT_REMOTE_POLICY.removesuffix(",span=rest"), "entropy>1,window=8")
PARTS = ("alone", "default", "drafts", "certified", "curves", "resplits")


def gsm8k(path: Path, count: int) -> list[Item]:
    """The first ``count`` problems, as chats; right is an answer whose last number is the one behind ``####``."""
    items = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()[:count], 1):
        record = json.loads(line)
        gold = record["answer"].rpartition("####")[2].strip()
        messages = ({"role": "user", "content": record["question"] + ASK},)
        items.append(Item(id=str(number), check=lambda text: False, messages=messages, answer=gold))
    return items


def pooled(bench: Bench, policy: str, splits: Sequence[str] = ("fit", "calibration", "report")) -> Run:
    return Run(policy, tuple(o for split in splits for o in bench.run(split, policy).outcomes))


def by_prompt(values: np.ndarray, prompt: np.ndarray) -> np.ndarray:
    return np.bincount(prompt, values)


def rate_of(traces: Traces, values: np.ndarray) -> dict[str, Any]:
    """The mean over positions, its interval by prompts."""
    ones = by_prompt(np.ones(len(traces)), traces.prompt)
    kept = ones > 0
    return interval(by_prompt(values, traces.prompt)[kept], ones[kept], seed=SEED).to_dict("rate")


def asked_for(scores: np.ndarray, differ: np.ndarray, share: float = 0.95) -> float:
    """The share of positions that a threshold asks at which catches ``share`` of the disagreements."""
    return float((scores >= np.quantile(scores[differ > 0], 1 - share)).mean())


def alone(bench: Bench) -> dict[str, Any]:
    fast, slow = pooled(bench, "never"), pooled(bench, SLOW_ONLY)
    record: dict[str, Any] = {
        "n": len(fast),
        **interval(fast.column("right"), seed=SEED).to_dict("accuracy_fast"),
        **interval(slow.column("right"), seed=SEED).to_dict("accuracy_slow"),
        **interval(slow.column("right") * (1 - fast.column("right")), seed=SEED).to_dict("regret_of_fast"),
        **interval(fast.column("right") * (1 - slow.column("right")), seed=SEED).to_dict("only_fast_right"),
    }
    for name, run in (("fast", fast), ("slow", slow)):
        record[f"tokens_{name}"] = float(run.column("tokens").mean())
        record[f"cut_off_{name}"] = float(run.column("truncated").mean())
    for path, policy in (("fast_path", "never"), ("slow_path", SLOW_ONLY)):
        found = [
            bench.trace(split, bench.runners[split].answers(policy), f"traces-{split}-{path}")  # type: ignore[index]
            for split in ("fit", "calibration", "report")
        ]
        before, parts = 0, []
        for traces in found:
            parts.append(traces.prompt + before)
            before += int(traces.prompt.max()) + 1
        traces = join_traces(found)
        prompt, differ = np.concatenate(parts), disagreement(traces).values
        features, weights = traces.features(), np.ones(len(traces))
        ones = by_prompt(weights, prompt)
        record[path] = {
            "positions": len(traces),
            **interval(by_prompt(differ, prompt), ones, seed=SEED).to_dict("cof"),
            "auroc": {name: auroc(Signal(name).score(features), differ, weights) for name in SIGNALS},
            "asked_to_catch_95": {name: asked_for(Signal(name).score(features), differ) for name in SIGNALS},
        }
    return record


def points(runs: Sequence[Run], fast: Run, slow: Run) -> list[dict[str, Any]]:
    """Each run's figures, with the positions that the slow model reads and its steps, against its own answers'."""
    return [
        summarise(run, fast, slow, seed=SEED).to_dict()
        | interval(cal.regret(run, slow), seed=SEED).to_dict("regret")
        | interval(run.column("slow_forwards"), slow.column("tokens"), seed=SEED).to_dict("slow_steps_per_slow_token")
        for run in runs
    ]


def curves(bench: Bench, fitted: Fitted) -> dict[str, Any]:
    runner = bench.runners["report"]
    fast, slow = runner.run("never"), runner.run(SLOW_ONLY)
    singles = baseline_scorers(bench, fitted, calibrated=False)
    scorers = {"learned": fitted.scorer, **{name: singles[name] for name in ("entropy", "margin")}}
    record: dict[str, Any] = {"n": len(fast), "accuracy_fast": fast.accuracy, "accuracy_slow": slow.accuracy}
    for name, scorer in scorers.items():
        for way, extent in (("token", 1), ("rest", REST)):
            runs = cal.threshold_runs(
                runner, scorer, fitted.scores(scorer), fitted.traces.answer, rates=RATES, extent=extent
            )
            record[f"{name}, {way}"] = points(runs, fast, slow)
    record["whole query"] = points(whole_query_runs(fast, slow), fast, slow)
    return record


def default(bench: Bench) -> dict[str, Any]:
    """All problems at the rate that a pair is run with where nobody has calibrated it."""
    fast, slow, run = (pooled(bench, policy) for policy in ("never", SLOW_ONLY, DEFAULT_POLICY))
    return {"n": len(run), "policy": DEFAULT_POLICY} | points([run], fast, slow)[0]


def drafts(bench: Bench) -> dict[str, Any]:
    """What the slow model makes of the drafts that it is handed; both vocabularies are one, so tokens are its own."""
    fast, slow = (pooled(bench, policy) for policy in ALONE.values())
    record = at_points(HAND_OVERS, lambda policy: pooled(bench, policy), fast, slow)
    return record | {"whole_query": {run.policy: figures(run, slow) for run in whole_query_runs(fast, slow)}}


def certified(bench: Bench, fitted: Fitted) -> dict[str, Any]:
    target = cal.make_target(max_regret=ALPHA, confidence=1 - DELTA)
    choice = choose(bench, fitted, target)
    record: dict[str, Any] = {"n": len(bench.prompts.calibration), "target": str(target), "verdict": choice.reason}
    record["certified"] = choice.certified
    if choice.policy is None:
        return record
    runner = bench.runners["report"]
    fast, slow = runner.run("never"), runner.run(SLOW_ONLY)
    record["report"] = points([runner.run(choice.policy, bench.options.method)], fast, slow)[0]
    return record


def resplits(bench: Bench, fitted: Fitted) -> dict[str, Any]:
    """Violations of the certificate, and of naive tuning, over re-splits of the problems that nothing was fitted on."""
    candidates = cal.candidate_policies(fitted.scorer, fitted.scores(), fitted.traces.answer, rates=POOL_RATES)
    splits = ("calibration", "report")
    slow = pooled(bench, SLOW_ONLY, splits)
    runs = [
        Run(policy.name, tuple(o for split in splits for o in bench.runners[split].run(policy).outcomes))  # type: ignore[index]
        for policy in candidates
    ]
    losses = np.stack([np.zeros(len(slow)), *(cal.regret(run, slow) for run in runs)], 1)
    truth = losses.mean(axis=0)
    rates = np.array([1.0, *(run.rate("escalation_rate") or 0.0 for run in runs)])
    rng, half = np.random.default_rng(SEED), len(slow) // 2
    draws = [rng.choice(len(slow), half, replace=False) for _ in range(RESPLITS)]
    return {
        "pool": len(slow),
        "half": half,
        "thresholds": len(candidates),
        "delta": DELTA,
        "resplits": RESPLITS,
        "allowed_violations": DELTA + 2 * (DELTA * (1 - DELTA) / RESPLITS) ** 0.5,
        "pool_regret": truth.tolist(),
        "pool_escalation_rate": rates.tolist(),
        "by_alpha": resplit(losses, rates, draws, ALPHAS),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", required=True, help="a model string")
    parser.add_argument("--slow", required=True, help="a model string")
    parser.add_argument("--problems", type=Path, required=True, help="GSM8K's test problems, JSON lines")
    parser.add_argument("--work", type=Path, required=True, help="where everything finished is kept")
    parser.add_argument("--count", type=int, default=400, help="problems (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=512, help="of an answer (default: %(default)s)")
    parser.add_argument("--at-once", type=int, default=8, help="problems asked at once (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=1, help="on-policy rounds (default: %(default)s)")
    parser.add_argument("--device", default="", help="the name of the device, for the record")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this; may be repeated (default: all)")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    prompts = cal.split_items(gsm8k(args.problems, args.count), source="GSM8K test", shares=SHARES)
    about = {
        "script": "benchmarks/real_pair.py",
        "seed": SEED,
        "problems": args.count,
        "max_tokens": args.max_tokens,
        "splits": {split: len(items) for split, items in prompts},
        "device": args.device,
    }

    before: dict[str, int] = {"fast": 0, "slow": 0}

    def finished(part: str, record: dict[str, Any], began: float) -> None:
        used = bench.rows.used
        positions = {role: one.positions - before[role] for role, one in used.items()}
        before.update({role: one.positions for role, one in used.items()})
        own = {role: pooled(bench, policy).column("positions").sum() for role, policy in ALONE.items()}
        record |= {
            "positions_read": positions,
            "positions_over_alone": {role: round(positions[role] / own[role], 3) for role in own},
            "seconds_in_all": round(time.perf_counter() - began, 1),
        }
        save(f"real_pair_{part}", about | record)

    with Router(args.fast, args.slow, policy="never", method="replace", seed=SEED) as router:
        began = time.perf_counter()
        about |= {"fast": router.fast.name, "slow": router.slow.name}
        bench = cal.open_bench(
            router,
            prompts,
            args.work,
            check="number",
            stages=cal.Stages(Bars()),
            max_tokens=args.max_tokens,
            concurrency=args.at_once,
            rounds=args.rounds,
            seed=SEED,
        )
        parts = args.part or PARTS
        unfitted = {"alone": lambda: alone(bench), "default": lambda: default(bench), "drafts": lambda: drafts(bench)}
        for part, measure in unfitted.items():
            if part in parts:
                finished(part, measure(), began)
                began = time.perf_counter()
        if set(parts) <= set(unfitted):
            return
        fitted = cal.collect_and_fit(bench, cal.make_target(max_regret=ALPHA, confidence=1 - DELTA))
        for part, measure in {
            "certified": lambda: certified(bench, fitted),
            "curves": lambda: curves(bench, fitted),
            "resplits": lambda: resplits(bench, fitted),
        }.items():
            if part in parts:
                finished(part, measure(), began)
                began = time.perf_counter()


if __name__ == "__main__":
    main()
