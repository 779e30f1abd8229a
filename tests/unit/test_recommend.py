"""Which mode is recommended: the rule on made-up results, and how results become figures."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from counted import Clock, CountedModel, linear
from hypothesis import given
from hypothesis import strategies as st

from fsgen_router.evaluation import Estimate
from fsgen_router.evaluation.different import require_different, require_different_files
from fsgen_router.recommend import MOST_PROMPTS, Advice, Option, decide, headline, loss_bound
from fsgen_router.recommend.decision import loss_floor, prompts_needed
from fsgen_router.recommend.figures import Columns, make_figures
from fsgen_router.recommend.measuring import peak_mean
from fsgen_router.recommend.models import with_sequences
from fsgen_router.recommend.modes import ROUTED, Mode, alone_modes, pair_modes, rest_mode
from fsgen_router.recommend.whole_query import SHARES, whole_queries
from fsgen_router.recommend.words import as_options, as_python, evidence

# --- the rule ------------------------------------------------------------------------------------


def option(name: str, cost: tuple[float, float, float], *, lost: int = 0, won: int = 0, n: int = 400, **more) -> Option:
    low, value, high = cost
    return Option(name=name, **{"kind": "routed"} | more, n=n, lost=lost, won=won, cost=Estimate(value, (low, high)))


def lossless(cost: tuple[float, float, float], *, n: int = 400) -> Option:
    return option("speculative", cost, n=n, kind="speculative", lossless=True)


def fast(*, lost: int, won: int = 0, n: int = 400) -> Option:
    return option("fast alone", (0.35, 0.37, 0.4), lost=lost, won=won, n=n, kind="fast")


def advice(*options: Option, quality_loss: float = 0.02) -> Advice:
    return decide(options, slow="slow alone", quality_loss=quality_loss)


def test_speculation_that_saves_beyond_doubt_is_recommended() -> None:
    found = advice(fast(lost=120), lossless((0.75, 0.8, 0.85)), option("verify", (0.95, 1.0, 1.05)))
    assert (found.verdict, found.mode, found.promising) == ("speculative", "speculative", ())


def test_a_fast_model_as_good_as_the_slow_one_is_enough() -> None:
    found = advice(fast(lost=1), lossless((0.75, 0.8, 0.85)))
    assert (found.verdict, found.mode) == ("fast", "fast alone")
    assert advice(fast(lost=120, won=160)).verdict == "fast"


def test_routing_is_recommended_where_it_is_the_cheapest_that_keeps_quality() -> None:
    found = advice(
        fast(lost=120),
        lossless((0.75, 0.8, 0.85)),
        option("replace", (0.5, 0.55, 0.6), lost=2),
        option("x", (0.6, 0.7, 0.74)),
    )
    assert (found.verdict, found.mode) == ("routed", "replace")


def test_a_lossless_mode_goes_before_one_that_is_not_measurably_cheaper() -> None:
    found = advice(lossless((0.75, 0.8, 0.85)), option("replace", (0.7, 0.77, 0.84), lost=1))
    assert found.mode == "speculative"


def test_where_every_mode_loses_quality_or_seconds_nothing_is_routed() -> None:
    found = advice(fast(lost=120), lossless((1.1, 1.14, 1.2)), option("verify", (1.1, 1.15, 1.2), lost=4))
    assert found == Advice(verdict="slow", mode="slow alone")


def test_a_saving_too_small_to_matter_keeps_nothing_open() -> None:
    assert advice(lossless((0.96, 0.99, 1.02))).verdict == "slow"
    assert advice(lossless((0.9, 0.97, 1.04))).verdict == "undecided"
    assert advice(lossless((0.975, 0.98, 0.985))).verdict == "slow"  # beyond doubt, and too small all the same


def test_few_prompts_decide_nothing_and_the_number_that_would_is_said() -> None:
    """None lost of 8 is not "none lost": at most a third of them are."""
    found = advice(fast(lost=0, n=8), lossless((0.9, 1.1, 1.3), n=8))
    assert (found.verdict, found.mode, found.promising) == ("undecided", "slow alone", ("fast alone",))
    assert found.prompts_needed == 150
    assert advice(fast(lost=0, n=150)).verdict == "fast"
    assert "about 150 would do" in headline(found)


def test_a_mode_that_fewer_prompts_would_dismiss_does_not_lower_the_number() -> None:
    """Four would show that 0.99 saves nothing, and tell nothing of the other, which is open."""
    dismissed = option("verify (middle, slow)", (0.94, 0.99, 1.04), n=3)
    found = advice(option("verify", (0.55, 0.6, 0.65), n=3), dismissed)
    assert (found.verdict, found.promising) == ("undecided", ("verify", "verify (middle, slow)"))
    assert found.prompts_needed == 150
    # Alone, that is all there is to be known.
    assert advice(dismissed).prompts_needed < 150


def test_what_may_be_cheaper_still_is_said_beside_the_recommendation() -> None:
    found = advice(lossless((0.7, 0.75, 0.8), n=60), option("replace", (0.5, 0.55, 0.6), n=60))
    assert (found.verdict, found.mode, found.promising) == ("speculative", "speculative", ("replace",))
    assert 100 < found.prompts_needed <= 200


def test_no_quality_may_be_lost_at_all() -> None:
    found = advice(fast(lost=0, n=1000), lossless((0.75, 0.8, 0.85), n=1000), quality_loss=0.0)
    assert found.mode == "speculative"


def test_an_interval_of_few_prompts_is_taken_for_a_wider_one() -> None:
    """A bootstrap of eight is too narrow by a quarter: what it says saves 2% at least may save nothing."""
    assert advice(lossless((0.75, 0.85, 0.97), n=400)).verdict == "speculative"
    few = advice(lossless((0.75, 0.85, 0.97), n=8))
    assert (few.verdict, few.promising) == ("undecided", ("speculative",))
    assert 8 < few.prompts_needed < 20


def test_unknown_costs_are_never_recommended() -> None:
    unknown = Option(name="x", kind="routed", n=400, lost=0, won=0, cost=Estimate(None))
    assert advice(unknown).verdict == "slow"


COUNTS = st.tuples(st.integers(2, 500), st.floats(0, 0.5), st.floats(0, 0.5))


@given(
    rows=st.lists(
        st.tuples(COUNTS, st.floats(0.05, 2.0), st.floats(0.0, 0.5), st.floats(0.0, 0.5), st.booleans()), max_size=6
    ),
    allowed=st.floats(0, 0.3),
)
def test_what_is_recommended_keeps_quality_and_saves(rows: list, allowed: float) -> None:
    options = [
        option(
            str(at), (max(cost - below, 0.01), cost, cost + above), lost=int(n * a), won=int(n * b), n=n, lossless=exact
        )
        for at, ((n, a, b), cost, below, above, exact) in enumerate(rows)
    ]
    found = advice(*options, quality_loss=allowed)
    if found.verdict in ("slow", "undecided"):
        assert found.mode == "slow alone"
        assert (found.prompts_needed is None) == (found.verdict == "slow")
        return
    chosen = options[int(found.mode)]
    assert chosen.lossless or loss_bound(chosen.n, chosen.lost, chosen.won) <= allowed
    assert chosen.cost.interval[1] < 1.0
    assert found.prompts_needed is None or found.prompts_needed > 0


# --- how sure, and how many ----------------------------------------------------------------------


def test_the_bound_holds_as_often_as_it_says() -> None:
    """Simulated: the true loss lies above the bound in few draws, also where losses are rare."""
    rng = np.random.default_rng(0)
    for lose, win in ((0.02, 0.0), (0.05, 0.03), (0.3, 0.1), (0.1, 0.1)):
        for n in (20, 100, 400):
            counts = rng.multinomial(n, (lose, win, 1 - lose - win), size=4000)
            bounds = np.array([loss_bound(n, a, b) for a, b, _ in counts.tolist()])
            floors = np.array([loss_floor(n, a, b) for a, b, _ in counts.tolist()])
            assert (bounds < lose - win).mean() < 0.055, (lose, win, n)
            assert (floors > lose - win).mean() < 0.055, (lose, win, n)


def test_nothing_lost_bounds_the_loss_by_about_three_in_n() -> None:
    for n in (8, 40, 150, 1000):
        assert 2.5 / n < loss_bound(n, 0, 0) < 3.0 / n


@given(lost=st.integers(0, 5), won=st.integers(0, 5), allowed=st.sampled_from([0.01, 0.02, 0.1]))
def test_so_many_prompts_are_enough_and_fewer_are_not(lost: int, won: int, allowed: float) -> None:
    """If shares stay as they are: at the number that is given the mode qualifies, and not just below it."""
    seen = option("x", (0.4, 0.5, 0.6), lost=lost, won=won, n=50)
    needed = prompts_needed(seen, allowed)
    if seen.loss <= allowed and 51 < needed < MOST_PROMPTS:
        shares = lost / 50, won / 50
        assert loss_bound(needed, needed * shares[0], needed * shares[1]) <= allowed
        assert loss_bound(needed - 1, (needed - 1) * shares[0], (needed - 1) * shares[1]) > allowed
    assert needed <= MOST_PROMPTS


# --- figures -------------------------------------------------------------------------------------


def columns(
    right: list[int], seconds: list[float], *, tokens: float = 10.0, flops: float = 4.0, money: float = 1.0
) -> Columns:
    n = len(right)
    return Columns(
        right=np.array(right, float),
        seconds=np.array(seconds, float),
        tokens=np.full(n, tokens),
        flops=np.full(n, flops),
        money=np.full(n, money),
        slow_share=np.zeros(n),
        truncated=np.zeros(n),
        batch=np.array([[40.0, 2.0, n - n // 2], [40.0, 2.0, n // 2]]),
    )


def test_figures_are_paired_with_the_slow_model_alone() -> None:
    slow = columns([1, 1, 1, 0], [2.0, 4.0, 2.0, 4.0])
    mode = columns([1, 0, 1, 1], [1.0, 2.0, 1.0, 2.0], flops=1.0, money=0.0)
    found = make_figures(rest_mode(1.5), mode, slow)
    assert (found.accuracy.value, found.quality_loss.value, found.lost, found.won) == (0.75, 0.0, 1, 1)
    # Half of its seconds at every prompt: the ratio is known without doubt, whatever the prompts are.
    assert found.seconds_relative == Estimate(0.5, (0.5, 0.5))
    assert (found.flops_relative.value, found.money_relative.value) == (0.25, 0.0)
    assert found.tokens_per_second.value == pytest.approx(40 / 6)
    assert found.tokens_per_second_at_once == Estimate(20.0, (20.0, 20.0))
    assert found.expected_seconds is None
    record = found.to_dict()
    assert record["policy"] == "entropy>1.5,span=rest,window=8"
    assert set(record) >= {"accuracy", "accuracy_interval", "seconds_relative_interval", "expected_seconds"}
    assert record["tokens_per_second_at_once_interval"] == [20.0, 20.0]


def test_a_lossless_mode_whose_texts_differ_is_one_whose_loss_counts() -> None:
    spec = next(mode for mode in ROUTED if mode.lossless)
    slow = dataclasses.replace(columns([1, 1], [2.0, 2.0]), texts=("a", "b"))
    same = make_figures(spec, dataclasses.replace(columns([1, 1], [1.0, 1.0]), texts=("a", "b")), slow)
    other = make_figures(spec, dataclasses.replace(columns([1, 0], [1.0, 1.0]), texts=("a", "c")), slow)
    assert (same.differ, same.lossless, other.differ, other.lossless) == (0, True, 1, False)
    assert other.to_dict()["lossless"] is False
    # Of a mode made of others' answers no texts are kept.
    assert make_figures(rest_mode(1.0), columns([1, 1], [1.0, 1.0]), slow).differ is None


def test_unknown_sizes_and_prices_stay_unknown() -> None:
    slow = dataclasses.replace(
        columns([1, 0], [1, 1]), flops=np.full(2, math.nan), money=np.full(2, math.nan), batch=None
    )
    found = make_figures(rest_mode(1.0), slow, slow)
    for name in ("flops", "flops_relative", "money_usd", "money_relative", "tokens_per_second_at_once"):
        assert getattr(found, name) == Estimate(None)


def test_whole_queries_cost_what_their_parts_cost() -> None:
    n = 8
    fast, slow = columns([0] * n, [1.0] * n, flops=1.0, money=0.0), columns([1] * n, [4.0] * n, flops=8.0)
    made = whole_queries(
        fast,
        slow,
        first_token_seconds=np.full(n, 0.25),
        prompt_flops=np.full(n, 0.5),
        first_entropy=np.arange(n, dtype=float),
        mean_entropy=np.arange(n, dtype=float)[::-1],
        seats=("fast", "slow"),
    )
    assert len(made) == sum(map(len, SHARES.values()))
    for one in made:
        when, _, share = one.mode.policy.partition(":")
        over = one.columns.right == 1
        assert over.mean() == float(share)
        assert (one.columns.money == over).all()
        if when == "prompt":
            assert over[-1]
            assert not over[0]
            assert one.columns.seconds.tolist() == [4.25 if o else 1.0 for o in over]
            assert one.columns.flops.tolist() == [8.5 if o else 1.0 for o in over]
        else:
            assert over[0]
            assert one.columns.seconds.tolist() == [5.0 if o else 1.0 for o in over]
        compile(one.recipe, "recipe", "exec")


def test_the_peak_is_what_a_windowed_policy_would_see() -> None:
    assert peak_mean([], 8) == 0.0
    assert peak_mean([3.0, 0.0, 0.0], 2) == 3.0  # as many as there are
    assert peak_mean([0.0, 1.0, 2.0, 3.0], 2) == 2.5


# --- modes and words -----------------------------------------------------------------------------


def test_a_mode_is_one_record() -> None:
    local = pair_modes(local=True, rest=1.5, policies=["random:0.1"], seats=("fast", "slow"))
    assert [mode.name for mode in local] == [*(mode.name for mode in ROUTED), "rest", "own: random:0.1"]
    assert len({mode.file_name for mode in local}) == len(local)
    for policies, shown in (
        (["a/p.safetensors", "b/q.safetensors"], ["own: p.safetensors", "own: q.safetensors"]),
        (["a/p.safetensors", "b/p.safetensors"], ["own: a/p.safetensors", "own: b/p.safetensors"]),
        (["every:3", "every:3"], ["own: every:3"]),
    ):
        modes = pair_modes(local=True, rest=1.5, policies=policies, seats=("fast", "slow"))
        assert [mode.name for mode in modes if mode.name.startswith("own")] == shown
    # Behind an endpoint nobody judges drafts.
    remote = pair_modes(local=False, rest=1.5, policies=[], seats=("fast", "slow"))
    assert [mode.name for mode in remote] == ["rest"]
    between = pair_modes(local=True, rest=1.5, policies=[], seats=("fast", "middle"))
    assert not any(mode.lossless for mode in between)
    assert between[0].name == "replace (fast, middle)"


def test_another_policy_in_the_same_file_is_another_mode(tmp_path) -> None:
    file = tmp_path / "p.safetensors"
    mode = Mode(name="own", kind="routed", policy=str(file))
    file.write_bytes(b"one")
    before = mode.file_name
    assert mode.file_name == before
    file.write_bytes(b"two")
    assert mode.file_name != before


def test_the_slow_model_alone_is_read_by_no_other() -> None:
    slow, fast, middle = alone_modes(middle=True, local=True)
    assert (slow.seats[0], fast.seats[0], middle.seats[0]) == ("slow", "fast", "middle")
    assert {slow.policy, fast.policy, middle.policy} == {"never"}
    (endpoint, _) = alone_modes(middle=False, local=False)
    assert endpoint.policy == "always,span=rest"


def _figures(mode: Mode, right: list[int], seconds: list[float], slow: Columns, **more):
    return make_figures(mode, columns(right, seconds), slow, **more)


def test_a_recommendation_in_words() -> None:
    slow = columns([1] * 20, [2.0] * 20)
    alone, fast_mode = alone_modes(middle=False, local=True)
    spec = next(mode for mode in ROUTED if mode.kind == "speculative")
    figures = [
        _figures(alone, [1] * 20, [2.0] * 20, slow),
        _figures(fast_mode, [0] * 10 + [1] * 10, [0.5] * 20, slow),
        _figures(spec, [1] * 20, [1.0] * 20, slow),
    ]
    models = {"fast": "llama_cpp:a.gguf", "slow": "llama_cpp:b.gguf"}
    said = evidence(Advice(verdict="speculative", mode=spec.name), figures, prefer="seconds", quality_loss=0.02)
    assert said[0].startswith("On 20 prompts the slow model alone is right on 100.0%")
    assert "slow model's own text and takes 0.50" in said[1]
    assert as_python(figures[2], models, reference=False) == (
        'Router("llama_cpp:a.gguf", "llama_cpp:b.gguf", policy="every:4", method="verify:exact")'
    )
    assert as_python(figures[2], models, reference=True) == 'Router(policy="every:4", method="verify:exact")'
    assert as_options(figures[2], models, reference=False) == (
        "--fast llama_cpp:a.gguf --slow llama_cpp:b.gguf --policy every:4 --method verify:exact"
    )
    assert as_options(figures[0], models, reference=True) == "--policy always,span=rest --method replace"
    # What is not known is not "loses".
    free = evidence(Advice(verdict="slow", mode=alone.name), figures, prefer="money", quality_loss=0.02)
    assert "the cheapest is" in free[1]
    unpriced = [dataclasses.replace(one, money_relative=Estimate(None)) for one in figures]
    free = evidence(Advice(verdict="slow", mode=alone.name), unpriced, prefer="money", quality_loss=0.02)
    assert free[1] == "What the modes that lose no more than 2.0% of accuracy cost in money is not known."
    for verdict in ("slow", "undecided"):
        assert evidence(Advice(verdict=verdict, mode=alone.name), figures, prefer="seconds", quality_loss=0.02)[1:]


# --- models --------------------------------------------------------------------------------------


def test_models_are_loaded_with_room_for_requests_at_once() -> None:
    assert with_sequences("llama_cpp:a.gguf", 4) == "llama_cpp:a.gguf?n_seq=4"
    assert with_sequences("transformers:a?dtype=float32", 4) == "transformers:a?dtype=float32&n_seq=4"
    for kept in ("llama_cpp:a.gguf?n_seq=2", "openai:x@https://host/v1", "reference:fast"):
        assert with_sequences(kept, 4) == kept


def _loaded(files: str | None) -> CountedModel:
    return CountedModel(0.0, linear(1.0, 1.0), Clock(), name="m", identity=None if files is None else {"files": files})


def test_two_models_that_are_one_file_are_refused(tmp_path) -> None:
    file, link, other = tmp_path / "a.gguf", tmp_path / "b.gguf", tmp_path / "c.gguf"
    file.write_bytes(b"x")
    other.write_bytes(b"x")
    link.symlink_to(file)
    require_different([("fast", f"llama_cpp:{file}"), ("slow", f"llama_cpp:{other}")])
    with pytest.raises(ValueError, match="fast and slow are one model"):
        require_different_files([("fast", _loaded("xyz")), ("slow", _loaded("xyz"))])
    # What names no files, as models of the hub, or says nothing of itself, is no copy of another.
    for unknown in ("", None):
        require_different_files([("fast", _loaded(unknown)), ("slow", _loaded(unknown))])
    for slow in (f"llama_cpp:{file}?n_ctx=512", f"llama_cpp:{link}", f"transformers:{file}"):
        with pytest.raises(ValueError, match="fast and slow are one model"):
            require_different([("fast", f"llama_cpp:{file}"), ("slow", slow)])
    with pytest.raises(ValueError, match="slow and middle are one model"):
        require_different(
            [("fast", "reference:fast"), ("slow", "reference:slow"), ("middle", "reference:slow?n_ctx=512")]
        )
