"""What the slow model makes of a draft that it is handed: goes on with it, judges it, or never sees it.

The fast model writes until a policy hands the rest over; at the very same points the draft is kept (the slow model
continues it), shown (it has the draft in its prompt, and writes the answer anew) or dropped (it answers from the prompt
alone). For each: accuracy, with its interval by prompts, and how it differs from ``keep`` on the same problems; tokens
that the slow model reads and writes; the bill at prices of 1 : 0.05 : 5 for input, cached input and output, against the
slow model alone, with the prompt uncached and with the prompt in the endpoint's cache.

This is the reference pair's; ``real_pair.py --part drafts`` measures others.

    python benchmarks/drafts.py --count 400
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, get_args

import numpy as np

from fsgen_router import Router
from fsgen_router.contracts.policy import Draft
from fsgen_router.evaluation import Array, Run, interval, reference_items, run_baselines, run_items

from common import save

SEED = 0
INPUT, CACHED, OUTPUT = 1.0, 0.05, 5.0
POINTS = ("entropy>0.5", "entropy>1", "entropy>0.3,window=8", "every:16", "every:32", "every:48")
DRAFTS: tuple[Draft, ...] = get_args(Draft)


def bill(run: Run, *, cached: bool) -> Array:
    """In units of an input token; the slow model's own tokenizer counts."""
    inputs, prompt = slow_reads(run), run.column("prompt_tokens")
    inputs = inputs - np.minimum(prompt, inputs) * (1 - CACHED if cached else 0.0)
    return inputs * INPUT + run.column("slow_tokens") * OUTPUT


def slow_reads(run: Run) -> Array:
    """Tokens that the slow model did not write itself; its last one is written and never read."""
    written = run.column("slow_tokens")
    return np.where(written > 0, run.column("slow_positions") - (written - 1), 0.0)


def figures(run: Run, slow: Run, keep: Run | None = None) -> dict[str, Any]:
    """A run's quality, work and bill beside the slow model alone, and beside the same points with the draft kept.

    ``draft_tokens`` are the fast model's that stand.
    """
    record = {
        **interval(run.column("right"), seed=SEED).to_dict("accuracy"),
        "handed_over": float((run.column("escalations") > 0).mean()),
        "draft_tokens": float((run.column("tokens") - run.column("slow_tokens")).mean()),
        "slow_reads": float(slow_reads(run).mean()),
        "slow_writes": float(run.column("slow_tokens").mean()),
        "cut_off": float(run.column("truncated").mean()),
        "degraded": float(run.column("degraded").mean()),
        **interval(bill(run, cached=False), bill(slow, cached=False), seed=SEED).to_dict("bill"),
        **interval(bill(run, cached=True), bill(slow, cached=True), seed=SEED).to_dict("bill_cached_prompt"),
    }
    if keep is not None:
        record |= interval(run.column("right") - keep.column("right"), seed=SEED).to_dict("accuracy_above_keep")
    return record


def at_points(points: Sequence[str], run: Callable[[str], Run], fast: Run, slow: Run) -> dict[str, Any]:
    """The figures of both models alone, and of every draft at every point; ``run`` gives a policy's run."""
    record: dict[str, Any] = {
        "n": len(slow),
        "points": list(points),
        "prices": {"input": INPUT, "cached_input": CACHED, "output": OUTPUT},
        "fast_alone": figures(fast, slow),
        "slow_alone": figures(slow, slow),
    }
    for point in points:
        runs = {draft: run(f"{point},span=rest,draft={draft}") for draft in DRAFTS}
        record[point] = {draft: figures(one, slow, runs["keep"]) for draft, one in runs.items()}
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=400, help="problems (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=200, help="of an answer (default: %(default)s)")
    args = parser.parse_args()
    items, at_once = reference_items("test", args.count), {"concurrency": 8, "max_tokens": args.max_tokens}
    with Router("reference:fast", "reference:slow", policy="never", method="replace", seed=SEED) as router:
        fast, slow = run_baselines(router, items, **at_once)
        record = {"fast": router.fast.name, "slow": router.slow.name, "seed": SEED, "max_tokens": args.max_tokens}
        record |= at_points(POINTS, lambda policy: run_items(router, items, policy, **at_once), fast, slow)
    save("drafts", record)


if __name__ == "__main__":
    main()
