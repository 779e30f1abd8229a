"""What the slow model makes of a draft that it is handed: goes on with it, judges it, or never sees it.

The fast model writes until a policy hands the rest over; at the very same points the draft is kept (the slow model
continues it), shown (it has the draft in its prompt, and writes the answer anew) or dropped (it answers from the prompt
alone). For each: accuracy, with its interval by prompts, and how it differs from ``keep`` on the same problems; tokens
that the slow model reads and writes; the bill at prices of 1 : 0.05 : 5 for input, cached input and output, against the
slow model alone, with the prompt uncached and with the prompt in the endpoint's cache.

The reference pair by default. Other pairs are asked GSM8K's problems, JSON lines of ``question`` and ``answer``;
finished runs are kept under ``--work``, so that an interrupted one goes on.

    python benchmarks/drafts.py --fast llama_cpp:small.gguf --slow llama_cpp:large.gguf \\
        --problems gsm8k_test.jsonl --work /tmp/drafts --count 300 --max-tokens 400
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from fsgen_router import Generation, Router
from fsgen_router.contracts.policy import Draft
from fsgen_router.evaluation import SLOW_ONLY, Array, Item, ask, interval, matches, reference_items

from common import save

SEED = 0
INPUT, CACHED, OUTPUT = 1.0, 0.05, 5.0
POINTS = ("entropy>0.5", "entropy>1", "entropy>0.3,window=8", "every:16", "every:32", "every:48")
DRAFTS = get_args(Draft)
Rows = list[dict[str, float]]


def row_of(item: Item, answer: Generation, *, by_number: bool) -> dict[str, float]:
    usage = answer.usage
    slow = usage.slow
    right = matches(answer.text, item.answer, "number") if by_number else item.check(answer.text)
    return {
        "right": float(right),
        "handed_over": float(usage.escalations > 0),
        "tokens": float(usage.tokens),
        "draft_tokens": float(usage.discarded_tokens if usage.restarts else usage.tokens - usage.slow_tokens),
        # An answer's last token is written and never read.
        "slow_reads": float(slow.prefill + slow.cached + slow.catchup) if usage.escalations else 0.0,
        "slow_writes": float(usage.slow_tokens),
        "prompt": float(usage.prompt_tokens),
        "cut_off": float(answer.finish_reason in ("length", "context")),
        "degraded": float(answer.degraded is not None),
    }


def run(router: Router, items: Sequence[Item], policy: str, work: Path | None, **options: Any) -> Rows:
    """A policy's row for each item; those under ``work`` are not asked again."""
    by_number = options.pop("by_number")
    path = None if work is None else work / f"{policy.replace('>', '_').replace(':', '_')}.jsonl"
    rows: Rows = []
    if path is not None and path.exists():
        rows = [json.loads(line) for line in path.read_text().splitlines()][: len(items)]
    routed = router.with_policy(policy)
    for item in items[len(rows) :]:
        rows.append(row_of(item, ask(routed, item, **options), by_number=by_number))
        if path is not None:
            with path.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    print(f"{policy}: {np.mean([row['right'] for row in rows]):.3f} right", flush=True)
    return rows


def column(rows: Rows, name: str) -> Array:
    return np.array([row[name] for row in rows])


def bill(rows: Rows, *, cached: bool) -> Array:
    """In units of an input token; the slow model's own tokenizer counts."""
    reads, prompt = column(rows, "slow_reads"), column(rows, "prompt") * column(rows, "handed_over")
    inputs = reads - np.minimum(prompt, reads) * (1 - CACHED if cached else 0.0)
    return inputs * INPUT + column(rows, "slow_writes") * OUTPUT


def figures(rows: Rows, slow: Rows, keep: Rows | None = None) -> dict[str, Any]:
    record = {
        **interval(column(rows, "right"), seed=SEED).to_dict("accuracy"),
        "handed_over": float(column(rows, "handed_over").mean()),
        "draft_tokens": float(column(rows, "draft_tokens").mean()),
        "slow_reads": float(column(rows, "slow_reads").mean()),
        "slow_writes": float(column(rows, "slow_writes").mean()),
        "cut_off": float(column(rows, "cut_off").mean()),
        "degraded": float(column(rows, "degraded").mean()),
        **interval(bill(rows, cached=False), bill(slow, cached=False), seed=SEED).to_dict("bill"),
        **interval(bill(rows, cached=True), bill(slow, cached=True), seed=SEED).to_dict("bill_cached_prompt"),
    }
    if keep is not None:
        gain = column(rows, "right") - column(keep, "right")
        record |= interval(gain, seed=SEED).to_dict("accuracy_above_keep")
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", default="reference:fast", help="a model string")
    parser.add_argument("--slow", default="reference:slow", help="a model string")
    parser.add_argument(
        "--problems", type=Path, help="GSM8K's test problems, JSON lines (default: the reference world)"
    )
    parser.add_argument("--count", type=int, default=400, help="problems (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=200, help="of an answer (default: %(default)s)")
    parser.add_argument("--points", nargs="+", default=POINTS, help="policies that say when to hand over")
    parser.add_argument("--work", type=Path, help="where finished answers are kept")
    parser.add_argument("--name", default="drafts", help="of the result (default: %(default)s)")
    args = parser.parse_args()
    if args.work is not None:
        args.work.mkdir(parents=True, exist_ok=True)
    if args.problems is None:
        items: Sequence[Item] = reference_items("test", args.count)
    else:
        from real_pair import gsm8k

        items = gsm8k(args.problems, args.count)
    options: dict[str, Any] = {"max_tokens": args.max_tokens, "by_number": args.problems is not None}
    with Router(args.fast, args.slow, policy="never", method="replace", seed=SEED) as router:
        fast, slow = (run(router, items, policy, args.work, **options) for policy in ("never", SLOW_ONLY))
        record: dict[str, Any] = {
            "fast": router.fast.name,
            "slow": router.slow.name,
            "problems": str(args.problems.name) if args.problems else "reference world, test",
            "n": len(items),
            "seed": SEED,
            "max_tokens": args.max_tokens,
            "points": list(args.points),
            "prices": {"input": INPUT, "cached_input": CACHED, "output": OUTPUT},
            "fast_alone": figures(fast, slow),
            "slow_alone": figures(slow, slow),
        }
        for point in args.points:
            runs = {d: run(router, items, f"{point},span=rest,draft={d}", args.work, **options) for d in DRAFTS}
            record[point] = {draft: figures(rows, slow, runs["keep"]) for draft, rows in runs.items()}
    save(args.name, record)


if __name__ == "__main__":
    main()
