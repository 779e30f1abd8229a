"""Verified best of K beside token routing at equal slow work, on the reference pair.

Held-out problems; the fast model writes K whole answers (the first greedily, the others at temperature 0.8), a
verifier picks one or the slow model answers anew:

* ``score``: the slow model's mean log-probability per token, at thresholds that escalate about 10, 25 and 50% of
  the prompts with K = 4 (quantiles on the calibration split), and without one (the best always stands);
* ``vote``: the answer that more than half of the K agree with;
* ``oracle``: the problem's own checker, which no application has: what any verifier could reach at most.

Answers are the same whatever becomes of them, and a verdict is one decision, so each K is run once, with ``best_of:K``,
and what another threshold or verifier would have answered is put together of that and of the slow model's own answers;
the first problems are run with the real policies too, and have to come to the same.

Each policy stands beside the entropy policy's curve at the same number of sequential slow steps (``slow_forwards``),
found anew in every bootstrap draw. ``slow_positions`` are per token that the slow model writes alone, prompts included,
as are the tokens that it reads to score. Last, Learn-then-Test on calibration prompts: the lowest threshold of
``best_of:4,score>t`` that is certified to turn no more than alpha of the slow model's right answers into wrong ones.

    python benchmarks/best_of_k.py --count 200
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from tqdm import tqdm

from fsgen_router import Draft, Generation, Router, Selection
from fsgen_router.evaluation import (
    Item,
    Outcome,
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
RATES = (0.02, 0.05, 0.08, 0.14, 0.23, 0.4)
SEED = 0
ALPHA, DELTA = 0.1, 0.1
CERTIFIED_K = 4
CHECKED = 8
"""Problems that are also run with the real policies."""


def answered(router: Router, items: Sequence[Item], policy: BestOf) -> list[Generation]:
    return [ask(router, item, policy=policy, seed=SEED) for item in items]


def selection_of(answer: Generation) -> Selection:
    assert answer.selection is not None
    return answer.selection


def best_score(answer: Generation) -> float:
    """-inf where no answer of the fast model's could stand."""
    return max((c.score for c in selection_of(answer).candidates if c.score is not None), default=-math.inf)


def scored(answer: Generation, item: Item, slow: Outcome, threshold: float | None) -> tuple[Outcome, int]:
    """What ``best_of:K,score>threshold`` comes to, and the fast model's tokens, from what ``best_of:K`` did."""
    outcome, candidates = make_outcome(item, answer), selection_of(answer).candidates
    written = sum(candidate.tokens for candidate in candidates)
    if answer.selection is None or answer.selection.chosen is None:
        return outcome, written  # nothing was scored, and the slow model wrote
    if threshold is None or best_score(answer) > threshold:
        return outcome, written
    # Behind what it read to score, the slow model reads the prompt's last token again and writes.
    read = outcome.slow_positions + slow.slow_positions - (slow.prompt_tokens - 1)
    return replace(slow, slow_forwards=outcome.slow_forwards + slow.slow_forwards, slow_positions=read), written


def unread(answer: Generation, item: Item, slow: Outcome, chosen: int | None, first: int) -> tuple[Outcome, int]:
    """What a verifier comes to for which the slow model reads nothing, when ``first`` answers were written."""
    candidates = selection_of(answer).candidates
    written = sum(candidate.tokens for candidate in candidates[:first])
    if chosen is None:
        return slow, written
    right = item.check(candidates[chosen].text)
    return Outcome(
        right=right, prompt_tokens=slow.prompt_tokens, tokens=candidates[chosen].tokens, decisions=1
    ), written


def voted(answer: Generation, item: Item, slow: Outcome) -> tuple[Outcome, int]:
    candidates, vote = selection_of(answer).candidates, Vote(0.5)
    drafts = [Draft(text=c.text, finished=c.finish_reason in ("eog", "stop")) for c in candidates]
    passing = [number for number, score in enumerate(vote.score(drafts)) if score is not None and vote.passes(score)]
    return unread(answer, item, slow, next(iter(passing), None), len(candidates))


def checked(answer: Generation, item: Item, slow: Outcome) -> tuple[Outcome, int]:
    candidates = selection_of(answer).candidates
    chosen = next((number for number, c in enumerate(candidates) if item.check(c.text)), None)
    return unread(answer, item, slow, chosen, len(candidates) if chosen is None else chosen + 1)


def certified(picked: Run, slow: Run, scores: Sequence[float]) -> dict[str, Any]:
    """Thresholds tested on calibration prompts, the safest (highest) first, by what each would have answered."""
    thresholds = np.round(np.linspace(0.0, -1.5, 31), 3)
    over = np.array(scores)[:, None] <= thresholds[None]
    right = np.where(over, slow.column("right")[:, None], picked.column("right")[:, None])
    losses = (slow.column("right")[:, None] > right).astype(float)
    tested = certify(losses, ALPHA, DELTA)
    record: dict[str, Any] = {"k": CERTIFIED_K, "alpha": ALPHA, "delta": DELTA, "n_prompts": len(picked)}
    if tested.chosen is None:
        return record | {"threshold": None}
    at = tested.chosen
    figures = {"risk": tested.risks[at], "p_value": tested.p_values[at], "escalated": over[:, at].mean()}
    return record | {"threshold": float(thresholds[at])} | {name: float(value) for name, value in figures.items()}


def require_same(router: Router, policy: BestOf, items: Sequence[Item], outcomes: Sequence[Outcome]) -> None:
    """The real policy comes to what was put together."""
    for item, expected in zip(items, outcomes, strict=True):
        found = make_outcome(item, ask(router, item, policy=policy, seed=SEED))
        names = ("right", "tokens", "slow_tokens", "slow_forwards", "slow_positions", "escalations")
        assert all(getattr(found, name) == getattr(expected, name) for name in names), (policy.name, item.id)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="test problems (default: %(default)s)")
    parser.add_argument("--calibration", type=int, default=200, help="problems that thresholds are taken from")
    args = parser.parse_args()
    items, others = reference_items("test", args.count), reference_items("calibration", args.calibration)
    models = ("reference:fast?n_seq=8", "reference:slow?n_seq=8")
    runs: list[Run] = []
    fast_tokens: list[float] = []

    def add(name: str, found: Sequence[tuple[Outcome, int]]) -> Run:
        runs.append(Run(name, tuple(outcome for outcome, _ in found)))
        fast_tokens.append(float(np.mean([written for _, written in found])))
        return runs[-1]

    with Router(*models, policy="never", method="replace", seed=SEED) as router:
        collect, entropies = signal_collector("entropy")
        _, slow_others = run_baselines(
            router, others, on_answer=lambda item, answer: collect(item, answer) if answer.policy == "never" else None
        )
        fast, slow = run_baselines(router, items)
        forms = sweep_policies("entropy", np.array(entropies), rates=RATES)
        sweep = [run_items(router, items, form) for form in tqdm(forms, desc="entropy")]
        for run in (fast, slow, *sweep):
            written = run.column("tokens") + run.column("discarded_tokens") - run.column("slow_tokens")
            add(run.policy, list(zip(run.outcomes, written.astype(int).tolist(), strict=True)))
        calibration = answered(router, others, BestOf(CERTIFIED_K))
        scores = [best_score(answer) for answer in calibration]
        picked = Run("picked", tuple(make_outcome(i, a) for i, a in zip(others, calibration, strict=True)))
        guarantee = certified(picked, slow_others, scores)
        limits = [None, *(round(float(np.quantile(scores, share)), 3) for share in ESCALATED)]
        for k in tqdm(KS, desc="best of K"):
            answers = list(zip(answered(router, items, BestOf(k)), items, slow.outcomes, strict=True))
            wanted = {*limits, *([guarantee["threshold"]] if k == CERTIFIED_K else [])}
            for limit in sorted(wanted, key=lambda one: -math.inf if one is None else one):
                policy = BestOf(k, Score(limit))
                run = add(policy.name, [scored(*answer, limit) for answer in answers])
                require_same(router, policy, items[:CHECKED], run.outcomes[:CHECKED])
                if k == CERTIFIED_K and limit is not None and limit == guarantee["threshold"]:
                    regret = (slow.column("right") > run.column("right")).astype(float)
                    guarantee |= {"policy": policy.name} | interval(regret, seed=SEED).to_dict("regret_on_test")
            if k > 2:
                run = add(BestOf(k, Vote(0.5)).name, [voted(*answer) for answer in answers])
                require_same(router, BestOf(k, Vote(0.5)), items[:CHECKED], run.outcomes[:CHECKED])
            add(f"best_of:{k},oracle", [checked(*answer) for answer in answers])
    rows = [at_equal_work(run, fast, slow, sweep, seed=SEED).to_dict() for run in runs]
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
            "rows": [row | {"fast_tokens": count} for row, count in zip(rows, fast_tokens, strict=True)],
        },
    )


if __name__ == "__main__":
    main()
