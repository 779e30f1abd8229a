"""Every example runs as a user would start it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments], cwd=EXAMPLES, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_quickstart_answers_and_reports() -> None:
    out = run("quickstart.py")
    assert "Answer:" in out
    assert "sequential slow steps" in out


def test_chat_backend_finds_its_caches_again() -> None:
    counts = [line for line in run("chat_backend.py").splitlines() if line.endswith(" cached")]
    assert len(counts) == 8
    # Each conversation's second turn begins with the tokens of its first.
    assert sum(int(line.split()[-2]) > 20 for line in counts) >= 4


def test_custom_policy_escalates_digits_only() -> None:
    out = run("custom_policy.py")
    assert out.count("tokens from the slow model") == 3


def test_calibrate_goes_from_prompts_to_a_certified_policy() -> None:
    out = run("calibrate.py", "40")
    assert "round 1: " in out
    assert "of calibration: regret at most 20% at confidence 90%" in out
    assert "policy learned:logistic>" in out


@pytest.mark.parametrize("split", ["test", "shifted"])
def test_generate_writes_checkable_json_lines(split: str) -> None:
    items = [json.loads(line) for line in run("reference_pair/generate.py", split, "5").splitlines()]
    assert len(items) == 5
    assert all(item["solution"].endswith(f"Answer: {item['answer']}") for item in items)
