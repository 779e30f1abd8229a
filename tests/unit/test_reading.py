"""Reductions of a row against float64 and against transformers, and the random numbers."""

from __future__ import annotations

import collections
import ctypes
import importlib
import math
from types import ModuleType, SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from fsgen_router import Mask
from fsgen_router.rows import reading
from fsgen_router.rows.reading import (
    FORBIDDEN,
    Read,
    Row,
    Scratch,
    Warp,
    draw,
    hashed_uniform,
    reduce_row,
    top_ids_of,
    warped,
)
from fsgen_router.rows.signals import make_signals

SIGNALS = Read(signals=True, top_k=8, ids=(0, 1))


@pytest.fixture(params=["numpy", "ggml"], scope="module")
def scratch(request: pytest.FixtureRequest) -> Scratch:
    return Scratch() if request.param == "numpy" else ggml()


def ggml() -> Scratch:
    return in_ggml().make_scratch(pytest.importorskip("llama_cpp.llama_cpp")._lib)


def in_ggml() -> ModuleType:
    """The backend's part of reading, where the backend is installed."""
    pytest.importorskip("llama_cpp")
    return importlib.import_module("fsgen_router.adapters.llama_cpp.ggml")


def reduce(logits: np.ndarray, read: Read = SIGNALS, scratch: Scratch | None = None) -> Row:
    return reduce_row(logits, read, scratch or Scratch())


def assert_exact(row: Row, logits: np.ndarray) -> None:
    """Against the same numbers worked out in float64."""
    exact = np.asarray(logits, np.float64)
    logprobs = log_softmax(exact)
    with np.errstate(invalid="ignore"):
        terms = np.where(np.isneginf(logprobs), 0.0, np.exp(logprobs) * logprobs)
        squares = np.where(np.isneginf(logprobs), 0.0, np.exp(logprobs) * logprobs**2)
    entropy = -terms.sum()
    assert row.argmax == int(exact.argmax())
    assert row.argmax_logprob == pytest.approx(logprobs.max(), abs=1e-5)
    assert row.log_partition == pytest.approx(exact.max() - logprobs.max(), abs=1e-5, rel=1e-6)
    assert row.entropy == pytest.approx(entropy, abs=1e-5)
    assert row.varentropy == pytest.approx(squares.sum() - entropy**2, abs=1e-4)
    best = np.argsort(-exact, kind="stable")[:8]
    assert row.top_ids == tuple(best)
    np.testing.assert_allclose(row.top_logprobs, logprobs[best], atol=1e-5)


ROWS = {
    "normal": lambda rng: rng.normal(0, 3, 32_000),
    "152k": lambda rng: rng.normal(0, 2, 152_064),
    "sharp": lambda rng: np.where(np.arange(32_000) == 777, 60.0, rng.normal(0, 1, 32_000)),
    "flat": lambda rng: np.zeros(32_000),
    "nearly flat": lambda rng: rng.normal(0, 1e-4, 5_000),
    "ties": lambda rng: np.round(rng.normal(0, 2, 32_000)),
    "large": lambda rng: rng.normal(0, 3, 1000) + 5_000,
    "very negative": lambda rng: rng.normal(0, 3, 1000) - 5_000,
    "two tokens": lambda rng: np.array([0.5, 0.25]),
    "one token": lambda rng: np.array([3.0]),
    "nine tokens": lambda rng: rng.normal(0, 2, 9),
    "a block more": lambda rng: rng.normal(0, 2, 512 * 16 + 1),
    "a line more": lambda rng: rng.normal(0, 2, 3 * 4096 + 1),
    "sorted": lambda rng: np.linspace(-5, 5, 20_000),
    "the best in one block": lambda rng: np.where(np.arange(20_000) // 512 == 5, 9.0, 0.0) + rng.random(20_000),
}


@pytest.mark.parametrize("kind", ROWS)
def test_a_row_is_reduced_to_what_float64_gives(kind: str, scratch: Scratch) -> None:
    for seed in range(3):
        logits = np.asarray(ROWS[kind](np.random.default_rng(seed)), np.float32)
        before = logits.copy()
        assert_exact(reduce(logits, Read(signals=True, top_k=8), scratch), logits)
        assert np.array_equal(logits, before)


# In steps that survive centring: which of two logits 1e-7 apart comes first is rounding.
@given(st.lists(st.integers(-2560, 2560).map(lambda step: step / 64), min_size=2, max_size=300))
@settings(max_examples=300)
def test_any_row(values: list[float]) -> None:
    logits = np.array(values, np.float32)
    row = reduce(logits)
    assert_exact(row, logits)
    np.testing.assert_allclose(row.id_logprobs, log_softmax(logits.astype(float))[:2], atol=1e-4)


# A first line that foretells little of the rest: nothing, another mean, or what lies too far below the best.
FIRST_LINES = {
    "forbidden": -np.inf,
    "the lowest": np.finfo(np.float32).min,
    "far below": -200.0,
    "hardly a weight": -90.0,
    "below": -30.0,
    "as good": 4.0,
}


@pytest.mark.parametrize("first", FIRST_LINES.values(), ids=FIRST_LINES)
def test_whatever_the_first_line_holds(first: float, scratch: Scratch) -> None:
    for logits in (np.random.default_rng(0).normal(0, 2, 100_000).astype(np.float32), np.zeros(100_000, np.float32)):
        logits[:4096] = first
        assert_exact(reduce(logits, Read(signals=True, top_k=8), scratch), logits)


@pytest.mark.parametrize("signals", [True, False])
@pytest.mark.parametrize("at", [0, 777, 31_999])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_row_that_is_no_distribution(value: float, at: int, signals: bool, scratch: Scratch) -> None:
    logits = np.random.default_rng(0).normal(0, 3, 32_000).astype(np.float32)
    reduce(logits, scratch=scratch)
    logits[at] = value
    assert reduce(logits, Read(signals=signals, top_k=8), scratch) is reading.UNREADABLE
    assert reduce(logits, Read(signals=signals), scratch) is reading.UNREADABLE
    assert reduce(np.full_like(logits, -np.inf), Read(signals=signals, top_k=8), scratch) is reading.UNREADABLE


@pytest.mark.parametrize("masked", [-np.inf, np.finfo(np.float32).min])
def test_a_backends_own_mask(masked: float, scratch: Scratch) -> None:
    logits = np.random.default_rng(0).normal(0, 2, 3000).astype(np.float32)
    logits[::3] = masked
    row = reduce(logits, scratch=scratch)
    assert_exact(row, logits)
    assert row.id_logprobs[0] < -1e8
    assert math.isfinite(row.entropy)
    logits[5:] = masked  # fewer are left than the best that are wanted
    for _ in range(2):
        assert_exact(reduce(logits, scratch=scratch), logits)


def test_llama_cpp_shows_its_exponentials() -> None:
    assert isinstance(ggml(), in_ggml().GgmlScratch)


def doubled(size: int, out: int, values: int, shift: float) -> float:
    """What a build might have under the same name."""
    for at, value in ((out, 2.0), (values, 0.0)):
        (ctypes.c_float * size).from_address(at)[:] = [value] * size
    return 2.0 * size


@pytest.mark.parametrize("library", [SimpleNamespace(), SimpleNamespace(ggml_vec_soft_max_f32=doubled)])
def test_without_ggmls_exponentials_numpy_takes_them(library: SimpleNamespace) -> None:
    scratch = in_ggml().make_scratch(library)
    assert type(scratch) is Scratch
    logits = np.random.default_rng(0).normal(0, 2, 3000).astype(np.float32)
    assert_exact(reduce(logits, scratch=scratch), logits)


def test_a_flat_row_has_the_largest_entropy() -> None:
    row = reduce(np.full(4096, 7.0, np.float32))
    assert row.entropy == pytest.approx(math.log(4096), abs=1e-5)
    assert row.varentropy == pytest.approx(0.0, abs=1e-5)
    assert row.top_ids == tuple(range(8))


def test_scratch_is_used_again_and_again() -> None:
    rng, scratch = np.random.default_rng(1), Scratch()
    for _ in range(20):
        logits = rng.normal(0, 3, 500).astype(np.float32)
        assert_exact(reduce_row(logits, SIGNALS, scratch), logits)


@given(
    rows=st.lists(
        st.tuples(st.floats(-1e9, 1e9), st.floats(0.0, 1e3), st.sampled_from([0, 1, 8])), min_size=1, max_size=12
    ),
    k=st.integers(1, 20),
    seed=st.integers(0, 9),
)
@settings(max_examples=200)
def test_what_the_last_rows_foretold_changes_no_top_k(rows: list[tuple[float, float, int]], k: int, seed: int) -> None:
    rng, scratch = np.random.default_rng(seed), Scratch()
    for mean, spread, digits in rows:
        row = np.round(rng.normal(0.0, 1.0, 1500), digits) * spread + mean
        row = row.astype(np.float32)
        best = np.argsort(-row, kind="stable")[:k]
        assert scratch.best_of(row, k) == (best.tolist(), row[best].tolist())


def test_rows_alike_are_not_looked_through_again() -> None:
    rng, scratch = np.random.default_rng(0), Scratch()
    with mock.patch.object(reading, "top_ids_of", side_effect=top_ids_of) as look:
        for _ in range(100):
            scratch.best_of(rng.normal(0, 2, 32_000).astype(np.float32), 8)
    assert look.call_count < 20


@given(
    values=st.lists(st.integers(-6, 6), min_size=1, max_size=700),
    k=st.integers(1, 20),
    short=st.sampled_from([0, 1024]),
)
@settings(max_examples=400)
def test_top_k_with_ties_takes_the_lower_ids(values: list[int], k: int, short: int) -> None:
    row = np.array(values, np.float32)
    with mock.patch.object(reading, "_SHORT", short):
        found = top_ids_of(row, k)
    assert found.tolist() == sorted(range(len(row)), key=lambda i: (-row[i], i))[:k]


def test_masks() -> None:
    logits = np.arange(10, dtype=np.float32)
    allowed = np.ones(10, bool)
    allowed[[9, 7]] = False
    row = reduce(
        logits,
        Read(mask=Mask(ids=np.array([2]), bias=np.array([5.5], np.float32), allowed=allowed), full=True, top_k=3),
    )
    assert row.top_ids == (8, 2, 6)
    assert row.logits[[9, 7]].tolist() == [FORBIDDEN, FORBIDDEN]
    assert logits.tolist() == list(range(10))
    only = np.zeros(10, bool)
    only[4] = True
    row = reduce(logits, Read(mask=Mask(allowed=only), signals=True, top_k=2))
    assert (row.token, row.logprob, row.entropy) == (4, 0.0, 0.0)
    assert Mask(allowed=only).forced() == 4
    assert Mask(allowed=allowed).forced() is None
    assert Mask(ids=np.array([1]), bias=np.array([1.0])).forced() is None


def test_signals_are_what_the_row_says() -> None:
    logits = np.array([1.0, 3.0, 2.0, -1.0], np.float32)
    probabilities = np.exp(log_softmax(logits.astype(float)))
    signals = make_signals(reduce(logits, Read(signals=True, top_k=8)), 2)
    assert (signals.token_id, signals.argmax, signals.token_class) == (1, 1, 2)
    assert signals.max_prob == pytest.approx(probabilities[1], abs=1e-6)
    assert signals.margin == pytest.approx(probabilities[1] - probabilities[2], abs=1e-6)
    assert make_signals(reduce(np.array([2.0], np.float32), Read(signals=True, top_k=8)), 0).margin == pytest.approx(1)


# --- sampling ------------------------------------------------------------------------------------

WARPS = (
    Warp(temperature=0.7),
    Warp(temperature=1.0, top_k=5),
    Warp(temperature=1.0, top_p=0.8),
    Warp(temperature=1.0, min_p=0.1),
    Warp(temperature=1.7, top_k=40, top_p=0.9, min_p=0.02),
    Warp(temperature=0.5, top_k=3, top_p=0.3),
    Warp(temperature=2.0, top_p=1e-6),
)


@pytest.mark.parametrize("warp", WARPS, ids=str)
def test_warping_is_transformers_warping(warp: Warp) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    processors = [transformers.TemperatureLogitsWarper(warp.temperature)]
    processors += [transformers.TopKLogitsWarper(warp.top_k)] if warp.top_k else []
    processors += [transformers.TopPLogitsWarper(warp.top_p)] if warp.top_p < 1 else []
    processors += [transformers.MinPLogitsWarper(warp.min_p)] if warp.min_p else []
    for seed in range(20):
        logits = np.random.default_rng(seed).normal(0, 2.5, 300).astype(np.float32)
        scores = torch.tensor(logits, dtype=torch.float64)[None]
        for processor in processors:
            scores = processor(None, scores)
        expected = torch.softmax(scores, -1)[0].numpy()
        ids, probabilities = warped(logits, warp)
        found = np.zeros(300)
        found[ids] = probabilities
        np.testing.assert_allclose(found, expected, atol=1e-9)
        assert probabilities.sum() == pytest.approx(1)
        assert (np.diff(probabilities) <= 0).all()


def test_ties_at_the_edge_of_top_k_keep_k() -> None:
    ids, probabilities = warped(np.array([1, 5, 5, 5, 0], np.float32), Warp(temperature=1.0, top_k=2))
    assert ids.tolist() == [1, 2]
    assert probabilities.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("temperature", [1e-3, 1e-38, 1e-308, 5e-324])
def test_a_temperature_next_to_zero_is_greedy(temperature: float) -> None:
    logits = np.random.default_rng(0).normal(0, 2, 100).astype(np.float32)
    ids, probabilities = warped(logits, Warp(temperature=temperature))
    assert (int(ids[0]), probabilities[0]) == (int(logits.argmax()), pytest.approx(1.0))
    assert np.isfinite(probabilities).all()


def test_draws_follow_the_distribution() -> None:
    """Pearson's chi-square over 20,000 draws, at a level of about one in a million."""
    logits = np.random.default_rng(3).normal(0, 1.5, 12).astype(np.float32)
    ids, probabilities = warped(logits, Warp(temperature=1.2))
    count = 20_000
    seen = collections.Counter(draw(ids, probabilities, hashed_uniform(0, "r", n, "token")) for n in range(count))
    statistic = sum((seen[int(i)] - count * p) ** 2 / (count * p) for i, p in zip(ids, probabilities, strict=True))
    assert statistic < 50  # the 1 - 1e-6 quantile with 11 degrees of freedom is 48.6


def test_a_draw_is_the_inverse_cdf() -> None:
    ids, probabilities = np.array([7, 3, 9]), np.array([0.5, 0.25, 0.25])
    for uniform, token in ((0.0, 7), (0.49, 7), (0.5, 3), (0.74, 3), (0.75, 9), (1 - 2**-53, 9)):
        assert draw(ids, probabilities, uniform) == token


def test_a_token_of_probability_zero_is_never_drawn() -> None:
    """Rounding leaves the sum of probabilities below 1; the largest number still draws a real token."""
    largest = 1 - 2**-53
    for seed in range(300):
        logits = np.random.default_rng(seed).normal(0, 3, 50).astype(np.float32)
        logits[[3, 20, 49]] = FORBIDDEN
        ids, probabilities = warped(logits, Warp(temperature=1.0))
        assert draw(ids, probabilities, largest) not in (3, 20, 49)
        assert draw(ids, probabilities, 0.0) == int(logits.argmax())


def test_a_drawn_tokens_log_probability_is_before_temperature() -> None:
    logits = np.random.default_rng(5).normal(0, 2, 40).astype(np.float32)
    logprobs = log_softmax(logits.astype(float))
    for step in range(10):
        row = reduce(logits, Read(warp=Warp(temperature=3.0, top_k=20), uniform=step / 10))
        assert row.logprob == pytest.approx(logprobs[row.token], abs=1e-5)
        assert row.argmax == int(logits.argmax())


def test_random_numbers_are_a_hash_of_their_arguments() -> None:
    assert hashed_uniform(1, "a", 2, "token") == hashed_uniform(1, "a", 2, "token")
    others = {
        hashed_uniform(seed, request, position, purpose)
        for seed in (1, 12)
        for request in ("a", "b")
        for position in (2, 3)
        for purpose in ("token", "policy")
    }
    assert len(others) == 16
    # Golden: a seed that a user noted down has to give the same text in the next version.
    assert hashed_uniform(1, "a", 2, "token") == 0.4797583425630447
    numbers = np.array([hashed_uniform(0, "x", n, "token") for n in range(20_000)])
    assert ((numbers >= 0) & (numbers < 1)).all()
    counts, _ = np.histogram(numbers, 20, (0, 1))
    assert ((counts - 1000) ** 2 / 1000).sum() < 70  # 19 degrees of freedom, about one in ten million
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.05
