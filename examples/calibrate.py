"""A policy for the reference pair, step by step: prompts, traces, a score, a threshold, the file.

python examples/calibrate.py            # a few minutes
python examples/calibrate.py 60         # fewer problems, for a look

``fsgen-router calibrate`` does the same, with a report.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from fsgen_router import Router
from fsgen_router.calibration import (
    choose,
    collect_and_fit,
    make_inputs,
    make_target,
    open_bench,
    open_pair,
    reference_prompts,
    require_gap,
)
from fsgen_router.policies import PolicyCard, save_policy

count = int(sys.argv[1]) if len(sys.argv) > 1 else 300
target = make_target(max_regret=0.2, confidence=0.9)

with tempfile.TemporaryDirectory() as folder, open_pair(None, None) as router:
    bench = open_bench(router, reference_prompts(count), Path(folder, "work"), rounds=1)
    gap = require_gap(bench)
    print(f"{len(bench.prompts)} prompts; the slow model is right on {gap.value:.0%} more of them")

    fitted = collect_and_fit(bench, target)
    for one in fitted.rounds:
        print(f"round {one.number}: {one.positions} positions, mean label {one.to_dict()['mean']:.1%}")

    choice = choose(bench, fitted, target)
    print(choice.reason)
    if choice.policy is not None:
        file = Path(folder, "policy.safetensors")
        card = PolicyCard(
            pair=bench.pair,
            label=bench.options.label,
            signals=(),
            data_hash=bench.prompts.sha256,
            splits={split: len(items) for split, items in bench.prompts},
        )
        # What tells prompts that the certificate says nothing of.
        inputs = make_inputs(router.fast.tokenizer, bench.prompts)
        save_policy(file, replace(choice.policy, inputs=inputs), card)
        with Router(router.fast, router.slow, policy=file) as routed:
            answer = routed.chat(bench.prompts.report[0].messages)
        print(answer.report())
