"""Does the certificate of the reference pair's policy stand back where a prompt is of another kind?

``other_prompts.jsonl`` holds prompts of other kinds, written by hand: poems, German, code, sums in other words, long
contexts, chats. What suspends the certificate there, and how many prompts of calibration's own kind it suspends
wrongly: those that its limits were set on, and fresh ones. Beside it, each at the same share of the calibration
prompts: each limit alone, the outlier guard on the first tokens of the answer, and the pair saying so itself.

    python benchmarks/prompt_check.py [--gsm8k gsm8k_test.jsonl] [--write fsgen_router/reference/policy.safetensors]

``--write`` puts the check into a policy file that was calibrated on the same prompts; nothing else of it changes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest
from tqdm import tqdm

from fsgen_router import Router, reference
from fsgen_router.calibration import Prompts, make_inputs, reference_prompts
from fsgen_router.evaluation import Item, reference_items
from fsgen_router.policies import load_policy, save_policy
from fsgen_router.policies.features import answer_features
from fsgen_router.policies.guard import fit_guard
from fsgen_router.policies.prompt_check import SUSPENDED, PromptCheck, asked
from fsgen_router.reference import world

from common import save

SEED = 0
FIRST = 16
"""Tokens of an answer that the guard looks at, and that say whether the pair finds a prompt outside its world."""
OTHER = Path(__file__).with_name("other_prompts.jsonl")

Chat = Sequence[dict[str, str]]
Judge = Callable[[Chat], bool]


def share(flags: Iterable[bool]) -> dict[str, Any]:
    """How many, of how many, and the share with its exact 95% interval (Clopper-Pearson)."""
    found = list(flags)
    interval = binomtest(sum(found), len(found)).proportion_ci()
    return {
        "suspended": sum(found),
        "n": len(found),
        "share": sum(found) / len(found),
        "share_interval": [interval.low, interval.high],
    }


def chat(prompt: str) -> Chat:
    return [{"role": "user", "content": prompt}]


def messages(items: Iterable[Item]) -> list[Chat]:
    return [list(item.messages or ()) for item in items]


def below(statistic: Callable[[Chat], float], held: Sequence[Chat]) -> Judge:
    """Whether a prompt's statistic lies below all but a share ``SUSPENDED`` of the calibration prompts'."""
    values = sorted(statistic(prompt) for prompt in tqdm(held, leave=False))
    limit = values[max(int(SUSPENDED * (len(values) + 1)), 1) - 1]
    return lambda prompt: statistic(prompt) < limit


def single(check: PromptCheck, router: Router, held: Sequence[Chat]) -> dict[str, Judge]:
    """Each of the check's statistics alone."""
    tokenizer = router.fast.tokenizer

    def ids(prompt: Chat) -> Sequence[int]:
        return asked(tokenizer, messages=prompt).ids

    return {
        "mean log-probability": below(lambda prompt: check.likelihood(ids(prompt))[0], held),
        "lowest window": below(lambda prompt: check.likelihood(ids(prompt))[1], held),
        "length": below(lambda prompt: -len(ids(prompt)), held),
    }


def of_answers(router: Router, known: Sequence[Chat], held: Sequence[Chat]) -> dict[str, Judge]:
    """What only an answer tells: features of its first tokens, and what it says."""
    answers: dict[str, Any] = {}

    def answer(prompt: Chat) -> Any:
        key = json.dumps(prompt)
        if key not in answers:
            answers[key] = router.chat(prompt, max_tokens=FIRST)
        return answers[key]

    def features(prompt: Chat) -> np.ndarray:
        return answer_features(answer(prompt).tokens)[1]

    guard = fit_guard(np.concatenate([features(prompt) for prompt in tqdm(known, leave=False)]), widened=0.0, seed=SEED)
    opening = world.OUT_OF_WORLD.partition(",")[0]
    return {
        "outlier guard on the answer": below(lambda prompt: float(guard.log_density(features(prompt)).min()), held),
        "the answer says so": lambda prompt: opening in answer(prompt).text,
    }


def write_check(path: Path, prompts: Prompts, check: PromptCheck) -> None:
    policy, card = load_policy(path)
    if card.data_hash != prompts.sha256:
        raise SystemExit(f"{path} was calibrated on other prompts")
    after = replace(policy, inputs=check)
    assert after.guarantee() == policy.guarantee()  # the certificate is of what has not changed
    save_policy(path, after, card)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=3000, help="problems that the policy was calibrated with")
    parser.add_argument("--fresh", type=int, default=2000, help="fresh problems (default: %(default)s)")
    parser.add_argument("--shifted", type=int, default=1000, help="harder problems (default: %(default)s)")
    parser.add_argument("--gsm8k", type=Path, help="the test problems of GSM8K, as JSON lines")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the check into this policy file, and stop")
    args = parser.parse_args()
    began = time.perf_counter()
    prompts = reference_prompts(args.count)
    with Router(seed=SEED) as router:
        check = make_inputs(router.fast.tokenizer, prompts)
        if args.write is not None:
            write_check(args.write, prompts, check)
            return
        known, held = messages(prompts.fit), messages(prompts.calibration)
        rows = [json.loads(line) for line in OTHER.read_text(encoding="utf-8").splitlines()]
        rng = random.Random(SEED)
        groups: dict[str, list[Chat]] = {
            "calibration": held,
            "fresh": messages(reference_items("test", args.fresh)),
            "shifted": messages(reference_items("shifted", args.shifted)),
            "outside, by the world": [chat(world.out_of_world_prompt(rng)) for _ in range(500)],
            "other": [row["messages"] for row in rows],
        }
        if args.gsm8k is not None:
            lines = args.gsm8k.read_text(encoding="utf-8").splitlines()
            groups["gsm8k"] = [chat(json.loads(line)["question"]) for line in lines]
        shipped = load_policy(reference.policy_path())[0].inputs
        assert shipped is not None
        assert shipped.spec() == check.spec()

        def by_check(prompt: Chat) -> bool:
            return bool(check.reasons(asked(router.fast.tokenizer, messages=prompt)))

        # What only answers tell is measured on fewer prompts.
        ways = {"check": by_check, **single(check, router, held), **of_answers(router, known[:300], held[:600])}
        found = {
            way: {
                name: share(judge(p) for p in tqdm(group[: 600 if "answer" in way else None], desc=name, leave=False))
                for name, group in groups.items()
            }
            for way, judge in ways.items()
        }
        kinds = list(dict.fromkeys(row["kind"] for row in rows))
        by_kind = {kind: share(by_check(row["messages"]) for row in rows if row["kind"] == kind) for kind in kinds}
        missed = [row["messages"][-1]["content"] for row in rows if not by_check(row["messages"])]
    save(
        "prompt_check",
        {
            "world": world.VERSION,
            "policy_sha256": hashlib.sha256(reference.policy_path().read_bytes()).hexdigest(),
            "prompts_sha256": hashlib.sha256(OTHER.read_bytes()).hexdigest(),
            "seed": SEED,
            "allowed": SUSPENDED,
            "ways": found,
            "other_by_kind": by_kind,
            "other_missed": missed,
            "seconds_in_all": time.perf_counter() - began,
        },
    )


if __name__ == "__main__":
    main()
