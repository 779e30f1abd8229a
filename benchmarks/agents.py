"""An agent with tools: success, slow forwards and malformed calls, by who writes.

The agent world and the pair of ``examples/agent_world.py``, on its held-out tasks: the ways of that program, and more.
Intervals by bootstrap over tasks; ratios and differences are of the same tasks.

    python benchmarks/agents.py [--count 200]
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

from fsgen_router import Policy, Router
from fsgen_router.evaluation.intervals import interval

from common import save

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from agent_world import KINDS, PAIR, WAYS, Outcome, Task, run, tasks

FURTHER: dict[str, tuple[Policy | str, str]] = {
    "routed, bookings not judged": ("entropy>0.3", "replace"),
    "routed, fewer escalations": ("entropy>0.8", "replace"),
    "the rest of a turn": ("entropy>0.3,span=rest", "replace"),
    "every token judged": ("every:8", "verify"),
}
COUNTS = ("turns", "slow_forwards", "said_forwards", "slow_tokens", "tokens")


def figures_of(found: list[Outcome], alone: list[Outcome], made: list[Task], policy: Policy | str) -> dict[str, Any]:
    """What one way did, beside the slow model alone on the same tasks."""

    def column(name: str, outcomes: list[Outcome] = found) -> np.ndarray:
        return np.array([getattr(one, name) for one in outcomes], float)

    won, steps = column("won"), column("slow_forwards")
    figures: dict[str, Any] = {"policy": policy if isinstance(policy, str) else policy.name}
    figures |= interval(won).to_dict("success")
    figures |= interval(won - column("won", alone)).to_dict("success_beyond_slow_alone")
    for name in COUNTS:
        figures |= interval(column(name)).to_dict(f"{name}_per_task")
    figures |= interval(steps, column("slow_forwards", alone)).to_dict("slow_forwards_to_slow_alone")
    figures["malformed_calls"] = int(column("malformed").sum())
    kinds = np.array([task.kind for task in made])
    figures["success_by_kind"] = {kind: float(won[kinds == kind].mean()) for kind in KINDS if kind in kinds}
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="tasks (default: %(default)s)")
    args = parser.parse_args()
    made, ways, found = tasks(args.count), WAYS | FURTHER, dict[str, list[Outcome]]()
    files = {name: PAIR / f"{name}.gguf" for name in ("fast", "slow")}
    with Router(*(f"llama_cpp:{path}" for path in files.values()), policy="never", method="replace") as router:
        for name, (policy, method) in ways.items():
            found[name] = [run(router, task, policy, method=method) for task in made]
            print(f"{name}: {np.mean([one.won for one in found[name]]):.3f}", file=sys.stderr, flush=True)
    figures: dict[str, Any] = {
        "n": len(made),
        "kinds": {kind: sum(task.kind == kind for task in made) for kind in KINDS},
        "sha256": {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()},
        "ways": {
            name: {"method": ways[name][1], **figures_of(outcomes, found["slow alone"], made, ways[name][0])}
            for name, outcomes in found.items()
        },
    }
    save("agents", figures)


if __name__ == "__main__":
    main()
