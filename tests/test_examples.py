"""Every example runs as a user would start it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fsgen_router.reference import world

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments], cwd=EXAMPLES, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_quickstart_answers_and_reports() -> None:
    out = run("quickstart.py")
    assert out.partition("\n")[0].endswith("Answer: 63")
    assert "sequential slow steps" in out
    assert max(map(len, out.splitlines()[1:])) <= 80


def test_chat_backend_finds_its_caches_again() -> None:
    out = run("chat_backend.py")
    expected = [problem.answer for problem in world.problems("test", 8)]
    assert re.findall(r"Answer: (\w+)", out) == expected
    counts = [line for line in out.splitlines() if line.endswith(" cached")]
    assert len(counts) == 8
    # Each conversation's second turn begins with the tokens of its first.
    assert sum(int(line.split()[-2]) > 20 for line in counts) >= 4


def test_custom_policy_escalates_digits_only() -> None:
    out = run("custom_policy.py")
    assert out.count("tokens from the slow model") == 3
    assert re.findall(r"^(\w+), \d+ of", out, re.MULTILINE) == ["right"] * 3


def test_calibrate_goes_from_prompts_to_a_certified_policy() -> None:
    out = run("calibrate.py", "40")
    assert "round 1: " in out
    assert "expected regret of a prompt at most 0.2" in out
    assert "policy learned:logistic>" in out


@pytest.mark.parametrize("split", ["test", "shifted"])
def test_generate_writes_checkable_json_lines(split: str) -> None:
    items = [json.loads(line) for line in run("reference_pair/generate.py", split, "5").splitlines()]
    assert len(items) == 5
    assert all(item["solution"].endswith(f"Answer: {item['answer']}") for item in items)
