"""Costs of real models: the reference pair's, and those of larger ones where they are at hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fsgen_router import Router, SlowAloneWarning, reference
from fsgen_router.contracts.models import TokenModel
from fsgen_router.costs import CostStore, ForwardCost, PairCost, Point, choose_mode, disagreement
from fsgen_router.methods import make_method

PROMPT = "How many coins do 3 lamps and 4 ropes cost in Norvale?"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FSGEN_CACHE", str(tmp_path))
    return tmp_path / "costs"


def test_the_reference_pair_is_measured_and_kept(folder: Path) -> None:
    with Router("reference:fast", "reference:slow?n_seq=2", policy="every:4") as router:
        before = router.complete(PROMPT, max_tokens=20)
        found = router.measure(seconds=3.0)
        assert found.slow is not None
        assert {point.sequences for point in found.slow.points} == {1, 2}
        assert 0 < found.slow.step < found.slow.seconds(128)
        assert found.fast.seconds(64) < found.slow.seconds(64)
        assert found.slow.seconds(8, rows=8) > 0
        # What it reads with afterwards is what it read with before.
        assert router.complete(PROMPT, max_tokens=20).text == before.text
        assert router.fast.open([]).kept == 0
        # What other work slowed down meanwhile is not kept.
        for role, cost in (("fast", found.fast), ("slow", found.slow)):
            assert CostStore().load(role, getattr(router, role)) == (cost if cost.steady else None)
    # There is no folder where none was steady.
    assert len(list(folder.glob("*"))) == found.fast.steady + found.slow.steady


def test_a_default_is_measured_once_and_works(fast_model: TokenModel, slow_model: TokenModel, folder: Path) -> None:
    with Router(fast_model, slow_model) as router:
        measured = router.costs
        assert measured is not None
        assert measured.slow is not None
        choice = choose_mode(measured, parts=disagreement(fast_model.n_params, slow_model.n_params))
        assert router.policy.name == choice.chosen.mode.policy
        assert router.method == make_method(choice.chosen.mode.method)
        assert router.complete(PROMPT, max_tokens=20).tokens
    if measured.fast.steady and measured.slow.steady:
        with Router(fast_model, slow_model) as again:
            assert again.costs == measured


def test_one_file_with_other_options_is_another_model(folder: Path) -> None:
    models = [reference.load("fast", n_seq=1), reference.load("fast", n_seq=1), reference.load("fast", n_seq=2)]
    store = CostStore()
    paths = [store.path("fast", model) for model in models]
    assert paths[0] == paths[1] != paths[2]
    assert store.path("slow", models[0]) != paths[0]
    assert models[0].identity["files"] == models[2].identity["files"]  # type: ignore[attr-defined]
    templated = reference.load("fast", n_seq=1, chat_template="{{ messages[0].content }}")
    assert store.path("fast", templated) == paths[0]  # which changes no time
    for model in [*models, templated]:
        model.shutdown()


def test_the_two_seats_of_one_file_are_two_measurements(folder: Path) -> None:
    """A pair of one file: nothing wins there, and neither model's costs are written over the other's."""
    model = reference.load("fast", n_seq=1)
    fast, slow = (
        ForwardCost("fast", tuple(Point.of((n, 1, False), [n * each]) for n in (1, 8, 64))) for each in (1.0, 1.001)
    )
    CostStore().save("fast", model, fast)
    CostStore().save("slow", model, slow)
    model.shutdown()
    with pytest.warns(SlowAloneWarning) as told:
        router = Router("reference:fast?n_seq=1", "reference:fast?n_seq=1")
    with router:
        assert router.policy.name == "always,span=rest"
        assert router.costs == PairCost(fast=fast, slow=slow)
    assert len([one for one in told if one.category is SlowAloneWarning]) == 1


@pytest.mark.skipif("FSGEN_REAL_MODELS" not in os.environ, reason="FSGEN_REAL_MODELS names no folder of real models")
def test_a_real_pair_has_a_default_that_is_not_expected_to_lose() -> None:
    folder = Path(os.environ["FSGEN_REAL_MODELS"])
    pair = (f"llama_cpp:{folder / f'qwen-{size}b.gguf'}?n_ctx=512" for size in ("0.5", "1.5"))
    with Router(*pair) as router:
        assert router.costs is not None
        assert router.costs.slow is not None
        assert router.costs.slow.step > router.costs.fast.step
        choice = choose_mode(router.costs, parts=disagreement(router.fast.n_params, router.slow.n_params))
        assert choice.chosen.over_slow <= 1.0
        assert router.chat([{"role": "user", "content": "What is 2 + 3?"}], max_tokens=12).tokens
