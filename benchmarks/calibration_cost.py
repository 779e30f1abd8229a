"""What a calibration costs against running both models alone, with rows shared and without, curves apart.

Each way is a work directory of its own under ``--work``; the curves are run on top of the certified policy, in a second
process that finds the rest finished, so that each piece is short. ``compare`` needs the others and writes the result:
slow positions that were really read and seconds, as ratios to both models alone (prompts asked as many at once as the
models hold sequences), and whether certificates and answers are equal, token for token.

    for part in alone shared plain shared-curves plain-curves compare; do
        python benchmarks/calibration_cost.py --work DIR --part $part
    done
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from fsgen_router import calibration as cal
from fsgen_router import reference
from fsgen_router.calibration.bench import Bench
from fsgen_router.calibration.choosing import nominal_policy, watch
from fsgen_router.evaluation import COLUMNS, SLOW_ONLY, run_baselines
from fsgen_router.policies import Learned
from fsgen_router.reference import world

from common import save

SEED = 0
PARTS = ("alone", "shared", "plain", "shared-curves", "plain-curves", "compare")


def load_prompts(args: argparse.Namespace) -> cal.Prompts:
    if args.prompts is None:
        return cal.reference_prompts(args.count)
    lines = args.prompts.read_text().splitlines()[: args.count]
    path = args.work / "prompts.jsonl"
    with path.open("w") as file:
        for line in map(json.loads, lines):
            answer = line["answer"].split("####")[-1].strip()
            file.write(
                json.dumps({"messages": [{"role": "user", "content": line["question"]}], "answer": answer}) + "\n"
            )
    return cal.read_prompts(path)


def alone(args: argparse.Namespace, prompts: cal.Prompts) -> dict[str, Any]:
    with cal.open_pair(args.fast, args.slow, seed=SEED) as router:
        items = [item for _, part in prompts for item in part]
        concurrency = min(router.fast.n_seq, router.slow.n_seq)
        request = cal.make_options(max_tokens=args.max_tokens, seed=SEED).request
        began = time.perf_counter()
        fast, slow = run_baselines(router, items, concurrency=concurrency, **request)
        return {
            "seconds": time.perf_counter() - began,
            "slow_positions": int(slow.column("slow_positions").sum()),
            "tokens": int(fast.column("tokens").sum() + slow.column("tokens").sum()),
            "concurrency": concurrency,
        }


def calibrated(args: argparse.Namespace, prompts: cal.Prompts, way: str, *, curves: bool) -> dict[str, Any]:
    """All steps of ``calibrate`` but the file; without asking whether the pair has a gap."""
    target = cal.make_target(max_regret=args.max_regret) if args.max_regret else cal.make_target()
    options = {"max_tokens": args.max_tokens, "curves": curves, "seed": SEED}
    options |= {} if way == "shared" else {"row_memory": 0}
    with cal.open_pair(args.fast, args.slow, seed=SEED) as router:
        began, stages = time.perf_counter(), cal.Stages()
        work = args.work / way
        bench = cal.open_bench(router, prompts, work, stages=stages, check=args.check, **options)
        fitted = cal.collect_and_fit(bench, target)
        choice = cal.choose(bench, fitted, target)
        policy = choice.policy or nominal_policy(bench, fitted, target)
        if not choice.always:
            watch(bench, policy)
        held = cal.hold_out(bench, fitted, policy)
        seconds = time.perf_counter() - began
        return {
            "seconds": seconds,
            "stages": stages.seconds,
            "rows": bench.rows.to_dict(),
            "slow_positions": bench.rows.used["slow"].positions + _timed_positions(work, curves),
            "threshold": policy.threshold,
            "candidates": len(choice.tried),
            "reason": choice.reason,
            "guarantee": None if choice.guarantee is None else choice.guarantee.model_dump(),
            "answers": digests(bench, choice, policy),
            "curves": None if held.curves is None else sorted(held.curves),
        }


def _timed_positions(work: Path, curves: bool) -> int:
    """What the slow model read for answers that are timed, without a trie."""
    column = COLUMNS.index("slow_positions")
    files = work.glob("*-timed-*.npz") if curves else ()
    return int(sum(np.load(file)["counters"][:, column].sum() for file in files))


def digests(bench: Bench, choice: cal.Choice, policy: Learned) -> dict[str, list[str]]:
    """A hash of each answer's ids and of who wrote them, by what was run."""
    runners, method = bench.runners, bench.options.method
    wanted = {f"{name}, {split}": (split, name) for split in runners for name in ("never", SLOW_ONLY)}
    wanted |= {f"candidate {at}": ("calibration", one) for at, (one, _) in enumerate(choice.tried[1:])}
    wanted["routed, report"] = ("report", policy)
    found = {}
    for name, (split, one) in wanted.items():
        answers = runners[split].answers(one, "replace" if isinstance(one, str) else method)
        pairs = zip(answers.ids, answers.by_slow, strict=True)
        found[name] = [hashlib.blake2b(repr(pair).encode(), digest_size=6).hexdigest() for pair in pairs]
    return found


def compare(args: argparse.Namespace, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    both = found["alone"]
    record: dict[str, Any] = {"alone": both}
    for way in ("shared", "plain"):
        if way not in found:
            continue
        ways = [("certified", [found[way]])]
        if f"{way}-curves" in found:
            ways.append(("with_curves", [found[way], found[f"{way}-curves"]]))
        record[way] = {
            name: {
                "slow_positions_ratio": sum(part["slow_positions"] for part in parts) / both["slow_positions"],
                "seconds_ratio": sum(part["seconds"] for part in parts) / both["seconds"],
            }
            for name, parts in ways
        } | {name: found[way][name] for name in ("stages", "rows", "threshold", "candidates", "reason", "guarantee")}
    if "plain" in found:
        shared, plain = found["shared"], found["plain"]
        said = [(way["guarantee"] or {}) for way in (shared, plain)]
        pairs = [
            (ours, theirs)
            for name, several in shared["answers"].items()
            for ours, theirs in zip(several, plain["answers"].get(name, ()), strict=False)
        ]
        record["equal"] = {
            "certificate": all(
                said[0].get(name) == said[1].get(name)
                for name in ("alpha", "delta", "n_prompts", "n_thresholds", "risk", "p_value", "certified_rate")
            ),
            "threshold_difference": abs(shared["threshold"] - plain["threshold"]),
            "answers": len(pairs),
            "equal_token_for_token": sum(ours == theirs for ours, theirs in pairs),
        }
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where parts and work directories are kept")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this; may be repeated (default: all)")
    parser.add_argument("--count", type=int, default=400, help="prompts (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--max-regret", type=float, help="default: 0.05, certified if possible")
    parser.add_argument("--fast", help="a pair of your own; default: the reference pair")
    parser.add_argument("--slow")
    parser.add_argument("--prompts", type=Path, help="GSM8K's test problems, as JSON lines")
    parser.add_argument("--check", help="as in fsgen-router calibrate")
    parser.add_argument("--name", default="calibration_cost", help="of the result")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    prompts = load_prompts(args)
    for part in args.part or PARTS:
        if part == "compare":
            found = {path.stem: json.loads(path.read_text()) for path in args.work.glob("*.json")}
            about: dict[str, Any] = {"n": len(prompts), "max_tokens": args.max_tokens, "seed": SEED}
            if args.fast is None:
                weights = {w: hashlib.sha256(reference.path(w).read_bytes()).hexdigest() for w in ("fast", "slow")}
                about |= {"world": world.VERSION, "weights_sha256": weights}
            save(args.name, about | compare(args, found))
            continue
        way, _, curves = part.partition("-")
        made = alone(args, prompts) if part == "alone" else calibrated(args, prompts, way, curves=bool(curves))
        (args.work / f"{part}.json").write_text(json.dumps(made))
        print(part, json.dumps({name: made[name] for name in ("seconds", "slow_positions")}))


if __name__ == "__main__":
    main()
