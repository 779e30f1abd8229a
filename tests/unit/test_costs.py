"""What forwards cost, and what an answer is expected to take: on models whose time is counted, not waited for."""

from __future__ import annotations

import itertools
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from counted import Clock, CountedModel, linear, prompts

from fsgen_router import (
    ConfigurationError,
    NoFreeSequence,
    Prices,
    Router,
    SlowAloneWarning,
    UnsteadyMachineWarning,
)
from fsgen_router.adapters.scripted import ScriptedTextModel
from fsgen_router.contracts.models import Rows, Work
from fsgen_router.costs import (
    CostStore,
    Effort,
    ForwardCost,
    Mode,
    PairCost,
    Point,
    Rates,
    assess,
    choose_mode,
    choosing,
    disagreement,
    measure_forwards,
)
from fsgen_router.costs.choosing import Candidate
from fsgen_router.costs.measuring import measure_calls
from fsgen_router.methods import make_method
from fsgen_router.pairing import Pairing
from fsgen_router.policies import make_policy
from fsgen_router.rows.reading import Row

FAST, SLOW = linear(1.0, 0.2), linear(3.0, 0.5, row=0.25, jumps={8: 2.0})
ALL = Effort(rounds=3, seconds=1e9)


def pair_of(
    parts: float = 0.1, *, clock: Clock | None = None, n_seq: int = 1, unsure: float = 0.0
) -> tuple[CountedModel, CountedModel]:
    clock = clock or Clock()
    return (
        CountedModel(0.0, FAST, clock, name="fast", n_seq=n_seq, n_params=1000, unsure=unsure),
        CountedModel(parts, SLOW, clock, name="slow", n_seq=n_seq, n_params=8000),
    )


def cost_of(cost: Any, name: str) -> ForwardCost:
    """A table without gaps, so that nothing is between its points."""
    sizes = range(1, 400)
    shapes = [(size, 1, False) for size in sizes] + [(size, 1, True) for size in sizes if size > 1]
    times = [cost(size, 1, size if every else 1) for size, _, every in shapes]
    return ForwardCost(name, tuple(Point.of(shape, [time]) for shape, time in zip(shapes, times, strict=True)))


EXACT = PairCost(fast=cost_of(FAST, "fast"), slow=cost_of(SLOW, "slow"))


def counted(pair: Pairing, clock: Clock, *, store: CostStore, again: bool = True) -> PairCost:
    return pair.measure(ALL, again=again, store=store, clock=clock)


# --- the table -----------------------------------------------------------------------------------


def test_what_is_measured_is_what_forwards_take() -> None:
    fast, slow = pair_of(n_seq=4)
    found = measure_forwards({"fast": fast, "slow": slow}, ALL, clock=fast.clock)
    for tokens in (1, 2, 4, 6, 8, 16, 64, 128):
        assert found["fast"].seconds(tokens) == pytest.approx(FAST(tokens, 1, 1))
        assert found["slow"].seconds(tokens) == pytest.approx(SLOW(tokens, 1, 1))
    for tokens in found["slow"].chunks:
        assert found["slow"].seconds(tokens, rows=tokens) == pytest.approx(SLOW(tokens, 1, tokens))
    for tokens in (4, 6, 8, 16):
        assert found["slow"].seconds(tokens, rows=2) == pytest.approx(SLOW(tokens, 1, 2))
    assert found["fast"].chunks == ()  # nobody reads more of its rows than the last
    for count in (2, 4):
        assert found["slow"].seconds(1, count) == pytest.approx(SLOW(1, count, 1))
    assert found["slow"].seconds(300) == pytest.approx(SLOW(300, 1, 1))  # beyond the largest
    assert found["slow"].seconds(30, rows=30) == pytest.approx(SLOW(30, 1, 30))
    assert found["slow"].seconds(0) == 0.0
    assert found["slow"].step == 3.0
    assert found["slow"].spread == pytest.approx(0.0, abs=1e-9)
    assert found["slow"].steady


def test_measuring_leaves_nothing_in_use() -> None:
    fast, slow = pair_of(n_seq=2)
    kept = slow.open([])
    found = measure_forwards({"fast": fast, "slow": slow}, ALL, clock=fast.clock)
    assert fast.all_closed
    assert {point.sequences for point in found["fast"].points} == {1, 2}
    assert {point.sequences for point in found["slow"].points} == {1}  # the other one was in use
    slow.close(kept.sequence)
    assert slow.all_closed
    busy = [fast.open([]), fast.open([])]
    with pytest.raises(NoFreeSequence):
        measure_forwards({"slow": slow, "fast": fast}, ALL, clock=fast.clock)
    assert slow.all_closed
    for one in busy:
        fast.close(one.sequence)
    slow._fail_after = slow.forwards + 3
    with pytest.raises(Exception, match="told to fail"):
        measure_forwards({"slow": slow, "fast": fast}, ALL, clock=fast.clock)
    assert slow.all_closed
    assert fast.all_closed


@pytest.mark.parametrize("seconds", [0.0, 40.0, 100.0, 1000.0])
def test_a_budget_is_kept_but_for_what_is_essential(seconds: float) -> None:
    warming_up = FAST(64, 1, 1) + SLOW(64, 1, 1)
    fast, slow = pair_of()
    measure_forwards({"fast": fast, "slow": slow}, Effort(rounds=3, seconds=0.0), clock=fast.clock)
    least = fast.clock.now - warming_up
    fast, slow = pair_of()
    found = measure_forwards({"fast": fast, "slow": slow}, Effort(rounds=3, seconds=seconds), clock=fast.clock)
    assert fast.clock.now - warming_up <= max(1.05 * seconds, least)  # what comes next is foretold, a jump is not
    counts = {(point.tokens, point.every_row): point.count for point in found["slow"].points}
    assert counts[1, False] == max(counts.values())  # what matters most is what is known best
    assert found["slow"].seconds(4, rows=4) == pytest.approx(SLOW(4, 1, 4))


def test_a_small_context_is_measured_as_far_as_it_goes() -> None:
    clock = Clock()
    model = CountedModel(0.0, SLOW, clock, name="slow", n_ctx=16)
    found = measure_forwards({"slow": model}, ALL, clock=clock)["slow"]
    assert max(point.tokens for point in found.points) == 8
    assert found.seconds(8) == pytest.approx(SLOW(8, 1, 1))


def test_a_model_that_cannot_go_back_is_measured_going_forward() -> None:
    clock = Clock()
    model = CountedModel(0.0, SLOW, clock, name="slow", n_ctx=200)
    model.capabilities = replace(model.capabilities, rewind=False)
    held = 0
    measure_forwards({"slow": model}, ALL, clock=clock)
    for work in model.works:
        assert work.keep in (held, 0)  # it goes on, or begins again
        held = work.keep + len(work.ids)
    assert model.all_closed


# --- expected against counted --------------------------------------------------------------------

MODES = [
    ("never", "replace"),
    ("random:0.2", "replace"),
    ("random:0.05", "replace"),
    ("random:0.1,span=4", "replace"),
    ("random:0.04,span=rest", "replace"),
    ("every:6", "replace"),
    ("every:5,span=3", "replace"),
    ("entropy>2", "replace"),
    ("entropy>2", "verify"),
    ("entropy>2", "verify:exact,draft_len=3"),
    ("entropy>2,span=3", "verify"),
    ("every:3", "verify"),
    ("every:8", "verify:exact,draft_len=8"),
    ("every:20", "verify:exact,draft_len=5"),
    ("always,span=rest", "replace"),
    ("random:0.6,at=prompt", "replace"),
]


@pytest.mark.parametrize(("policy", "method"), MODES)
def test_expected_seconds_are_what_the_engine_takes(policy: str, method: str) -> None:
    """The engine itself runs, on models that part at a tenth of the positions; its forwards' time is counted."""
    parts, length, n = 0.1, 60, 200
    clock = Clock()
    fast, slow = pair_of(parts, clock=clock, unsure=0.12)
    made = make_policy(policy)
    taken, answers = 0.0, []
    with Router(fast, slow, policy=made, method=method, batching=False) as router:
        for number, prompt in enumerate(prompts(n)):
            began = clock.now
            fast._pool.forget(0), slow._pool.forget(0)
            answers.append(router.complete(prompt, max_tokens=length, seed=number))
            taken += clock.now - began
    mode = Mode.of(made, make_method(method))
    seen = Rates.of(answers, mode)
    if mode.who == "every":  # whose drafts are all judged
        assert seen.acceptance == pytest.approx(1.0 - parts, abs=0.02) or not mode.draft_len
    rates = replace(seen, acceptance=1.0 - parts, acceptance_escalated=None)
    told = EXACT.seconds(mode, rates, prompt_tokens=10, answer_tokens=length)
    assert told == pytest.approx(taken / n, rel=0.03)


# --- kept in files -------------------------------------------------------------------------------

IDENTITY = {"files": "abc", "options": "n_threads=1"}


def test_costs_are_kept_by_model_options_seat_and_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, store = Clock(), CostStore(tmp_path)
    model = CountedModel(0.0, SLOW, clock, name="slow", identity=IDENTITY)
    cost = cost_of(SLOW, "slow")
    assert store.load("slow", model) is None
    store.save("slow", model, cost)
    assert store.load("slow", model) == cost
    assert store.load("fast", model) is None  # its rows are read otherwise there
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]  # written whole, nothing left beside it
    # The same file with other options is another model: neither writes over the other's.
    other = CountedModel(0.0, FAST, clock, name="slow", identity={**IDENTITY, "options": "n_threads=2"})
    assert store.load("slow", other) is None
    store.save("slow", other, cost_of(FAST, "slow"))
    assert store.load("slow", model) == cost
    # And the same model twice shares one.
    assert store.load("slow", CountedModel(0.0, SLOW, clock, name="twin", identity=dict(IDENTITY))) == cost
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # another machine, as far as times go
    assert store.load("slow", model) is None
    nameless = CountedModel(0.0, SLOW, clock, name="slow")
    store.save("slow", nameless, cost)
    assert store.path("slow", nameless) is None
    assert store.load("slow", nameless) is None


def test_a_file_that_says_something_else_counts_as_not_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store, model = CostStore(tmp_path), CountedModel(0.0, SLOW, Clock(), name="slow", identity=IDENTITY)
    store.save("slow", model, cost_of(SLOW, "slow"))
    path = store.path("slow", model)
    assert path is not None
    good = json.loads(path.read_text())
    spoiled = {
        "it is of another machine: Abacus, 1 cores": {**good, "machine": {"processor": "Abacus", "cores": "1"}},
        "it is of another model": {**good, "model": {"files": "xyz"}},
        "format 99": {**good, "format": 99},
        "lack a step of one token": {**good, "points": good["points"][1:]},
        "are no costs of a model": {**good, "points": [{"tokens": 1}]},
        "machine": {name: value for name, value in good.items() if name != "machine"},
        "points.1.tokens": {**good, "points": [good["points"][0], {**good["points"][1], "tokens": "many"}]},
        "not above 0": {**good, "points": [{**good["points"][0], "seconds": 0.0}]},
        "list": [],
    }
    for words, content in spoiled.items():
        caplog.clear()
        path.write_text(json.dumps(content))
        with caplog.at_level(logging.WARNING, logger="fsgen_router"):
            assert store.load("slow", model) is None, words
        assert "costs_unread" in caplog.text
        assert words in caplog.text
    path.write_text("{")
    assert store.load("slow", model) is None
    path.write_text(json.dumps(good))
    assert store.load("slow", model) is not None


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    model = CountedModel(0.0, SLOW, Clock(), name="slow", identity=IDENTITY)
    with caplog.at_level(logging.WARNING, logger="fsgen_router"):
        CostStore(tmp_path / "file").save("slow", model, cost_of(SLOW, "slow"))
    assert "costs_unkept" in caplog.text


def test_a_machine_that_changes_its_speed_keeps_the_older_figures(tmp_path: Path) -> None:
    clock, store = Clock(), CostStore(tmp_path)
    fast = CountedModel(0.0, FAST, clock, name="fast", identity={"files": "f"})
    slow = CountedModel(0.1, SLOW, clock, name="slow", identity={"files": "s"})
    pair = Pairing(fast, slow)
    first = counted(pair, clock, store=store)
    assert first.spread == pytest.approx(0.0, abs=1e-9)
    half = clock.now * 1.5
    clock.speed = lambda now: 1.0 if now < half else 3.0
    with pytest.warns(UnsteadyMachineWarning, match=r"differed by .*older figures of fast and slow are kept"):
        assert counted(pair, clock, store=store) == first
    assert store.load("slow", slow) == first.slow
    # Where there are none, the new ones serve, and are not kept for later.
    half = clock.now * 1.2
    empty, fresh = CostStore(tmp_path / "empty"), Pairing(fast, slow)
    with pytest.warns(UnsteadyMachineWarning, match="nothing is kept"):
        found = counted(fresh, clock, store=empty)
    assert found.spread > 0.35
    assert fresh.costs == found
    assert empty.load("slow", slow) is None
    # Of a pair both stay, also where only one of them was slowed down.
    times = itertools.cycle((1.0, 2.0, 3.0))
    slow.cost, fast.cost = linear(30.0, 1.0), (lambda *shape: FAST(*shape) * next(times))
    clock.speed = lambda now: 1.0
    with pytest.warns(UnsteadyMachineWarning, match="older figures of fast and slow are kept"):
        assert counted(pair, clock, store=store) == first
    assert store.load("slow", slow) == first.slow


def test_what_further_tokens_of_a_call_take_is_not_told_by_calls_that_end_at_once() -> None:
    """A call of 5 takes 5 ms and 2 ms more for each further token."""
    clock = Clock()

    class Served(CountedModel):
        ends: Iterator[int]

        def forward(self, works: Sequence[Work]) -> list[list[Row]]:
            rows = [Rows(found) for found in super().forward(works)]
            if works[0].more:
                rows[0].written = next(self.ends)
                self.clock.spend(0.002 * (rows[0].written - 1))
            return rows  # type: ignore[return-value]

    model = Served(0.0, lambda *_: 0.005, clock, name="served")
    for ends, further in (((1, 2, 16, 9), 0.002), ((1,) * 6, 0.005)):
        model.ends = iter(ends)
        found = measure_calls(model, clock)
        assert found == pytest.approx((0.005, further))
        assert next(model.ends, None) is None


def test_what_is_known_is_not_measured_again(tmp_path: Path) -> None:
    clock, store = Clock(), CostStore(tmp_path)
    fast = CountedModel(0.0, FAST, clock, name="fast", identity={"files": "f"})
    slow = CountedModel(0.1, SLOW, clock, name="slow")  # does not say what it is
    first = counted(Pairing(fast, slow), clock, store=store)
    ran = len(fast.shapes), len(slow.shapes)
    again = counted(Pairing(fast, slow), clock, store=store, again=False)
    assert len(fast.shapes) == ran[0]
    assert len(slow.shapes) > ran[1]
    assert again.fast == first.fast
    assert again.slow is not None
    assert again.slow.step == pytest.approx(3.0)


# --- the Router ----------------------------------------------------------------------------------


def test_an_expectation_needs_rates_and_lengths() -> None:
    unknown = Mode.of(make_policy("entropy>1"), make_method("verify"))
    with pytest.raises(ConfigurationError, match=r"how often the policy escalates .*Rates\.of"):
        EXACT.seconds(unknown, prompt_tokens=10, answer_tokens=10)
    with pytest.raises(ConfigurationError, match="at least one token"):
        EXACT.seconds(Mode(who="slow"), prompt_tokens=0, answer_tokens=10)
    with pytest.raises(ConfigurationError, match="not between 0 and 1"):
        Rates(escalation=1.2)


def test_requests_in_step_take_less_than_one_after_the_other() -> None:
    mode, rates = Mode(who="every", interval=3, draft_len=3), Rates(escalation=0.0, acceptance=0.9)
    one, four = (
        EXACT.seconds(mode, rates, prompt_tokens=10, answer_tokens=40, sequences=sequences) for sequences in (1, 4)
    )
    assert one < four < 4 * one


def test_a_router_measures_on_demand() -> None:
    fast, slow = pair_of(n_seq=2)
    with Router(fast, slow, policy="every:3") as router:
        assert router.costs is None
        rounds: list[tuple[int, int]] = []
        found = router.measure(watts=30.0, usd_per_hour=0.36, progress=lambda done, of: rounds.append((done, of)))
        assert router.costs is found
        assert rounds[-1][0] == rounds[-1][1]
        assert found.slow is not None
        assert found.slow.step > 0.0
        assert found.joules(2.0) == 60.0
        assert found.usd(10.0) == pytest.approx(0.001)
        assert router.complete("0102", max_tokens=4).report().seconds.baseline == "estimated"
        with router.with_policy("never") as twin:
            assert twin.costs is found
        assert router.measure().watts == 30.0  # it is this machine's still
    assert fast.all_closed
    assert slow.all_closed


def test_an_endpoint_is_not_measured() -> None:
    fast, _ = pair_of()
    with Router(fast, ScriptedTextModel(lambda request: ["01"])) as router:
        found = router.measure()
        assert found.slow is None
        assert found.seconds(Mode(who="fast"), prompt_tokens=10, answer_tokens=10) > 0
        with pytest.raises(ConfigurationError, match=r"behind an endpoint.*baseline=True"):
            found.seconds(Mode(who="slow"), prompt_tokens=10, answer_tokens=10)
        assert found.joules(1.0) is None
        assert found.usd(1.0) is None


# --- the default ---------------------------------------------------------------------------------


def table(name: str, last: dict[int, float], every: dict[int, float] | None = None) -> ForwardCost:
    """Milliseconds by chunk size."""
    points = [Point.of((size, 1, False), [ms / 1000]) for size, ms in last.items()]
    points += [Point.of((size, 1, True), [ms / 1000]) for size, ms in (every or {}).items()]
    return ForwardCost(name, tuple(points))


CPU = PairCost(
    fast=table("fast", {1: 29, 4: 55, 8: 115, 16: 150, 32: 280}),
    slow=table(
        "slow",
        {1: 77, 4: 153, 6: 190, 8: 341, 16: 457, 32: 818},
        {3: 135, 4: 160, 5: 180, 6: 200, 8: 355, 12: 425, 16: 490},
    ),
)
"""Qwen2.5-Coder 0.5B and 1.5B in 4 bits on two cores: reading is nearly as dear as writing, and jumps at 8."""
GPU = PairCost(
    fast=table("fast", {1: 8, 32: 8.5, 128: 10}),
    slow=table("slow", {1: 40, 32: 42, 128: 50}, {4: 40, 6: 40.5, 8: 41, 12: 41, 16: 41.5, 24: 42}),
)
FAR = PairCost(
    fast=table("fast", {1: 2, 4: 5, 16: 15, 64: 50}),
    slow=table("slow", {1: 77, 4: 100, 16: 200, 64: 700}, {3: 95, 4: 102, 6: 120, 8: 140, 16: 215}),
)
CHEAP = PairCost(fast=table("fast", {1: 1, 32: 2}), slow=GPU.slow)
EQUAL = PairCost(fast=CPU.slow, slow=CPU.slow)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("cost", "parts", "policy", "method"),
    [
        (CPU, 0.116, "always,span=rest", "replace"),
        (CPU, 0.02, "every:5", "verify:exact,draft_len=5"),  # and not 7 or more, where the chunk jumps
        (GPU, 0.125, "budget:0.2", "verify:exact,draft_len=16"),
        (CHEAP, 0.125, "every:15", "verify:exact,draft_len=15"),
        (FAR, 0.14, "budget:0.2", "replace"),
        (EQUAL, 0.05, "always,span=rest", "replace"),
    ],
    ids=[
        "a near pair on a CPU",
        "that hardly ever parts",
        "a GPU",
        "with cheap drafts",
        "a far pair on a CPU",
        "equal models",
    ],
)
def test_the_default_of_made_up_machines(cost: PairCost, parts: float, policy: str, method: str) -> None:
    """Golden."""
    choice = choose_mode(cost, parts=parts)
    assert (choice.chosen.mode.policy, choice.chosen.mode.method) == (policy, method)
    assert choice.chosen.over_slow <= 1.0
    assert choice.routes == (choice.chosen.over_slow <= 0.95)
    make_policy(policy), make_method(method)


@pytest.mark.parametrize("cost", [CPU, GPU, FAR, EQUAL], ids=["cpu", "gpu", "far", "equal"])
@pytest.mark.parametrize("parts", [0.0, 0.05, 0.1, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("judges", [True, False])
def test_no_default_is_expected_to_lose(cost: PairCost, parts: float, judges: bool) -> None:
    choice = choose_mode(cost, parts=parts, judges=judges)
    found = assess(cost, parts=parts, judges=judges)
    assert choice.chosen.over_slow <= 1.0
    assert choice.best.over_slow <= min(one.over_slow for one in found) + 0.02
    assert not (not judges and choice.chosen.mode.draft_len)
    assert {one.mode.who for one in found} >= {"rate", "prompt"}
    for one in found:
        assert Mode.of(make_policy(one.mode.policy), make_method(one.mode.method)) == one.mode


def test_published_rates_are_what_is_assumed() -> None:
    assert disagreement(1, 1) == pytest.approx(0.093)
    assert disagreement(500, 72_000) == pytest.approx(0.192, abs=0.001)
    assert disagreement(500, 100) == disagreement(None, 7) == pytest.approx(0.093)  # nothing is known below 1


def test_a_mode_that_gains_is_not_given_up_for_a_better_one_that_does_not() -> None:
    modes = [Mode(who="rate", rate=0.2), Mode(who="prompt", rate=0.9), Mode(who="rate", rate=0.2, draft_len=16)]
    found = [Candidate(mode, over, over) for mode, over in zip(modes, (0.943, 0.948, 0.951), strict=True)]
    assert choosing._choice(found, 1.0, "seconds").chosen == found[0]
    nothing = [Candidate(mode, over, over) for mode, over in zip(modes, (0.953, 0.958, 0.961), strict=True)]
    choice = choosing._choice(nothing, 1.0, "seconds")
    assert (choice.chosen.mode.who, choice.best) == ("slow", nothing[2])


def router_by_default(cost: Any, *, parts: float = 0.05, **options: Any) -> Router:
    """A Router whose models' costs are known already; what is measured in earnest depends on load."""
    clock = Clock()
    models = (
        CountedModel(0.0, FAST, clock, name="fast", identity={"files": f"{id(cost)}f"}),
        CountedModel(parts, SLOW, clock, name="slow", identity={"files": f"{id(cost)}s"}, n_params=8000),
    )
    for role, model in zip(("fast", "slow"), models, strict=True):
        CostStore().save(role, model, getattr(cost, role))  # type: ignore[arg-type]
    return Router(*models, **options)


def test_a_router_takes_the_mode_that_is_expected_to_gain(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="fsgen_router"), router_by_default(CHEAP) as router:
        assert (router.policy.name, router.method.name) == ("every:15", "verify:exact,draft_len=15")
        assert "default_mode" in caplog.text
        assert router.costs == CHEAP
        alone = router.with_policy("always,span=rest", method="replace")
        assert router.complete("0102", max_tokens=30).text == alone.complete("0102", max_tokens=30).text
    # Who names either has what a name meant before.
    with router_by_default(FAR, policy="every:4") as router:
        assert (router.policy.name, router.method.name) == ("every:4", "verify:exact")
        assert router.costs is None
    with router_by_default(FAR, method="replace") as router:
        assert (router.policy.name, router.method.name) == ("budget:0.2", "replace")


def test_where_nothing_gains_the_slow_model_writes_alone_and_the_router_says_so_once() -> None:
    with pytest.warns(
        SlowAloneWarning,
        match=r"no way of routing fast and slow is expected to gain 5% .*The best is policy='.*', method='.*', "
        r"which takes 1\.\d\d times the slow model's seconds: name a policy",
    ) as told:
        router = router_by_default(EQUAL)
    assert len(told) == 1
    assert told[0].filename == __file__
    with router, warnings.catch_warnings():
        warnings.simplefilter("error")
        answer = router.complete("0102", max_tokens=6)
        assert answer.usage.slow_tokens == answer.usage.tokens == 6
        assert answer.usage.fast.forwards == 0  # or it would take longer than the slow model alone
        assert answer.text == router.complete("0102", max_tokens=6, baseline=True).baseline.text  # type: ignore[union-attr]
        assert router.complete("0102", max_tokens=6, policy="never").usage.slow_tokens == 0


def test_models_that_cannot_be_measured_now_have_the_old_default(caplog: pytest.LogCaptureFixture) -> None:
    fast, slow = pair_of()
    fast.open([])  # by somebody else
    with caplog.at_level(logging.WARNING, logger="fsgen_router"), Router(fast, slow) as router:
        assert (router.policy.name, router.method.name) == ("budget:0.2", "verify:exact")
    assert "costs_unmeasured" in caplog.text
    assert "sequences of the model are in use" in caplog.text
    caplog.clear()
    fast, slow = pair_of()
    slow.script = lambda ids: [0.0]  # type: ignore[assignment,return-value]
    with caplog.at_level(logging.WARNING, logger="fsgen_router"), Router(fast, slow) as router:
        assert (router.policy.name, router.method.name) == ("budget:0.2", "verify:exact")
    assert "the script gave shape (1,)" in caplog.text
    assert fast.all_closed
    assert slow.all_closed


@pytest.mark.parametrize(
    ("prices", "policy"),
    [
        (None, "entropy>1.5,span=rest,window=8"),
        (Prices(input=0.2, output=1.0), "budget:0.9,at=prompt"),
        (Prices(input=0.0, output=1.0), "entropy>1.5,span=rest,window=8"),
        (Prices(input=0.0, output=0.0), "always,span=rest"),
    ],
)
def test_the_default_before_an_endpoint_follows_from_its_prices(prices: Prices | None, policy: str) -> None:
    fast, _ = pair_of()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SlowAloneWarning)
        router = Router(fast, ScriptedTextModel(lambda request: ["01", "02"]), prices=prices)
    with router:
        assert (router.policy.name, router.method.name) == (policy, "replace")
        answer = router.complete("0102", max_tokens=8)
        assert answer.tokens
        assert answer.default_policy
        assert answer.usage.round_trips <= 1
