"""Verified best of K on the reference pair, through the library and the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from fsgen_router import Router
from fsgen_router.calibration.traces import encode_item, read_answer
from fsgen_router.cli import app
from fsgen_router.contracts.models import TokenModel
from fsgen_router.evaluation import ask, reference_items
from fsgen_router.policies import BestOf, Score
from fsgen_router.rows.reading import Read


def test_scores_are_the_slow_models_own_and_drivers_agree(fast_model: TokenModel, slow_model: TokenModel) -> None:
    """Against a plain prefill of each answer; alone, and several answers in one forward."""
    items = reference_items("test", 4)
    chosen = set()
    with (
        Router(fast_model, slow_model, policy="never", method="replace") as alone,
        Router("reference:fast?n_seq=4", "reference:slow?n_seq=4", policy="never", method="replace") as several,
    ):
        for item in items:
            found = ask(alone, item, policy="best_of:3,score>-0.4", seed=1)
            beside = ask(several, item, policy="best_of:3,score>-0.4", seed=1)
            assert beside.text == found.text
            assert found.selection is not None
            assert beside.selection is not None
            assert [c.text for c in beside.selection.candidates] == [c.text for c in found.selection.candidates]
            assert beside.usage.slow_forwards == found.usage.slow_forwards
            assert found.selection.candidates[0].text == ask(alone, item, policy="never").text
            expected = (
                ask(alone, item, policy="always,span=rest").text if found.selection.chosen is None else found.text
            )
            assert found.text == expected
            chosen.add(found.selection.chosen)
            first = ask(alone, item, policy=BestOf(1, Score()), seed=1)
            ids = [token.id for token in first.tokens]
            prompt = encode_item(slow_model.tokenizer, item)
            rows = read_answer(slow_model, prompt, ids, lambda at, ids=ids: Read(ids=(ids[at],)))
            mean = float(np.mean([row.id_logprobs[0] for row in rows]))
            assert found.selection.candidates[0].score == pytest.approx(mean, abs=1e-4)
    assert len(chosen) > 1


def test_on_the_command_line() -> None:
    runner = CliRunner(env={"COLUMNS": "100"})
    question = "How many coins do 3 lamps and 4 ropes cost in Norvale?"
    done = runner.invoke(
        app, ["complete", "--chat", "--policy", "best_of:2,vote>0.5", "--json", "--seed", "1", question]
    )
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    assert len(record["selection"]["candidates"]) == 2
    assert record["policy"] == "best_of:2,vote>0.5"
    refused = runner.invoke(app, ["complete", "--policy", "best_of:0", question])
    assert refused.exit_code == 2
    assert "at least 1" in refused.stderr
    arguments = ["eval", "--policy", "best_of:2,score>-0.3", "--count", "3", "--max-tokens", "60", "--json"]
    done = runner.invoke(app, arguments)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert 0 <= found["escalation_rate"] <= 1  # of prompts
    assert found["slow_forwards"] >= 1
