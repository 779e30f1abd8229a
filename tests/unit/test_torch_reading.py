"""Reductions with torch against those with numpy: the same numbers, the same tokens."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")
import torch

from fsgen_router import ConfigurationError, Mask
from fsgen_router.adapters.transformers import reading
from fsgen_router.adapters.transformers.reading import reduce_rows
from fsgen_router.rows.acceptance import RULES, Check, Rule
from fsgen_router.rows.reading import GREEDY, Read, Row, Scratch, Warp, reduce_row

CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))

ROWS = {
    "normal": lambda rng: rng.normal(0, 3, 4000),
    "152k": lambda rng: rng.normal(0, 2, 152_064),
    "peaked": lambda rng: np.where(np.arange(4000) == 777, 60.0, rng.normal(0, 1, 4000)),
    "flat": lambda rng: np.zeros(4000),
    "nearly flat": lambda rng: rng.normal(0, 1e-4, 4000),
    "ties": lambda rng: np.round(rng.normal(0, 2, 4000)),
    "zeros of both signs": lambda rng: np.where(rng.random(4000) < 0.5, 0.0, -0.0),
    "large": lambda rng: rng.normal(0, 3, 1000) + 5_000,
    "very negative": lambda rng: rng.normal(0, 3, 1000) - 5_000,
    "a backend's own minus infinity": lambda rng: np.where(np.arange(4000) % 3, rng.normal(0, 2, 4000), -np.inf),
    "few": lambda rng: rng.normal(0, 2, 9),
    "one": lambda rng: np.array([3.0]),
}
WARPS = (
    GREEDY,
    Warp(temperature=1.0),
    Warp(temperature=0.7, top_k=5),
    Warp(temperature=1.3, top_p=0.8),
    Warp(temperature=2.0, min_p=0.05),
    Warp(temperature=1.5, top_k=40, top_p=0.9, min_p=0.02),
    Warp(temperature=1e-320),
    Warp(temperature=1e300),
)


def assert_same(found: Row, expected: Row) -> None:
    for field in fields(Row):
        ours, theirs = getattr(found, field.name), getattr(expected, field.name)
        if field.name in ("token", "argmax", "top_ids", "accepted"):
            assert ours == theirs, field.name
        elif field.name == "logits" and theirs is not None:
            np.testing.assert_array_equal(ours, theirs)
            assert ours.flags.writeable
        elif theirs is not None:
            # The variance sums squares of up to 100, of which single precision keeps five digits.
            tolerance = 1e-4 if field.name == "varentropy" else 1e-5
            np.testing.assert_allclose(ours, theirs, atol=tolerance, rtol=1e-6, err_msg=field.name)


def compare(rows: np.ndarray, reads: list[tuple[int, Read]], device: str = "cpu") -> list[Row]:
    rows = np.asarray(rows, np.float32)
    found = reduce_rows(torch.from_numpy(rows.copy()).to(device), reads)
    for row, (index, read) in zip(found, reads, strict=True):
        assert_same(row, reduce_row(rows[index], read, Scratch()))
    return found


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("kind", ROWS)
def test_the_numbers_are_those_of_numpy(kind: str, device: str) -> None:
    rows = np.stack([ROWS[kind](np.random.default_rng(seed)) for seed in range(2)])
    ids = (0, rows.shape[1] - 1)
    reads = [Read(), Read(signals=True, top_k=8, ids=ids), Read(top_k=1, full=True), Read(ids=ids[:1])]
    compare(rows, [(index, read) for read in reads for index in (1, 0, 1)], device)


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("warp", WARPS, ids=str)
def test_the_same_random_number_draws_the_same_token(warp: Warp, device: str) -> None:
    numbers = [*np.random.default_rng(0).random(12).tolist(), 0.0, 1 - 2**-53]
    for kind in ("normal", "peaked", "flat", "ties", "a backend's own minus infinity", "few", "one"):
        rows = np.stack([ROWS[kind](np.random.default_rng(seed)) for seed in range(2)])
        compare(rows, [(row, Read(warp=warp, uniform=u)) for u in numbers for row in (0, 1)], device)


@given(
    rows=st.integers(1, 40).flatmap(
        lambda size: st.lists(st.lists(st.integers(-4, 4), min_size=size, max_size=size), min_size=1, max_size=4)
    ),
    warp=st.sampled_from(WARPS),
    top_k=st.integers(0, 12),
    uniform=st.floats(0, 1, exclude_max=True),
)
@settings(max_examples=200)
def test_any_rows_with_ties(rows: list[list[int]], warp: Warp, top_k: int, uniform: float) -> None:
    reads = [Read(warp=warp, uniform=uniform, top_k=top_k, signals=True), Read(warp=warp, uniform=uniform / 2)]
    compare(np.array(rows) / 2, [(row, read) for row in range(len(rows)) for read in reads])


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_masks(device: str) -> None:
    rng = np.random.default_rng(3)
    rows = rng.normal(0, 2, (3, 300))
    allowed, few = rng.random(300) < 0.5, np.zeros(300, bool)
    few[[4, 200]] = True
    bias = Mask(ids=np.array([7, 2]), bias=np.array([30.0, -2.5]))
    masks = [None, bias, Mask(allowed=allowed), Mask(allowed=few), replace(bias, allowed=allowed)]
    reads = [
        Read(mask=mask, signals=True, top_k=4, full=True, warp=warp, uniform=0.4)
        for mask in masks
        for warp in (GREEDY, Warp(temperature=1.5))
    ]
    compare(rows, [(row, read) for read in reads for row in range(3)], device)
    with pytest.raises(ConfigurationError, match=r"allowed has shape \(4,\)"):
        reduce_rows(torch.zeros(1, 300, device=device), [(0, Read(mask=Mask(allowed=np.ones(4, bool))))])


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("rule", RULES)
def test_drafts_are_judged_alike(rule: str, device: str) -> None:
    rng = np.random.default_rng(4)
    rows, fast = rng.normal(0, 3, (4, 200)), rng.normal(0, 2, 200).astype(np.float32)
    tolerance = 0.0 if rule in ("exact", "speculative") else 0.05
    reads = []
    for index, row in enumerate(rows):
        for token in (int(row.argmax()), int(np.argsort(row)[-2]), 5):
            for warp in (GREEDY, Warp(temperature=1.5, top_k=50)):
                first, second, third = rng.random(3)
                check = Check(
                    token=token,
                    rule=Rule(rule, tolerance, window=6 if rule == "entropy_gate" else 0),
                    accept_uniform=first,
                    residual_uniform=second,
                    fast_logits=fast,
                )
                reads.append((index, Read(check=check, warp=warp, uniform=third, signals=True)))
    found = compare(rows, reads, device)
    assert {row.accepted for row in found} == {True, False}


def test_half_precision_rows_are_reduced_in_single_precision() -> None:
    rows = torch.from_numpy(np.random.default_rng(5).normal(0, 3, (2, 5000)).astype(np.float32)).bfloat16()
    read = Read(signals=True, top_k=5)
    for index, row in enumerate(reduce_rows(rows, [(0, read), (1, read)])):
        assert_same(row, reduce_row(rows[index].float().numpy(), read, Scratch()))


def test_rows_are_not_changed() -> None:
    rows = torch.randn(2, 50)
    before = rows.clone()
    mask = Mask(ids=np.array([3]), bias=np.array([9.0]), allowed=np.arange(50) < 10)
    reduce_rows(rows, [(0, Read(mask=mask, signals=True)), (1, Read(warp=Warp(temperature=2.0), full=True))])
    assert torch.equal(rows, before)


def test_more_rows_than_are_reduced_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_ELEMENTS", 700)
    rows = np.random.default_rng(6).normal(0, 2, (5, 300))
    compare(rows, [(at % 5, Read(signals=True, top_k=at % 2, uniform=at / 20)) for at in range(20)])


def test_all_that_is_read_reaches_the_host_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device every transfer waits for it."""
    transfers = []
    plain = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: transfers.append(tensor.numel()) or plain(tensor))
    reads = [Read(), Read(signals=True, top_k=8), Read(warp=Warp(temperature=1.0)), Read(ids=(1, 2)), Read(full=True)]
    reduce_rows(torch.randn(3, 1000), [(row, read) for row in range(3) for read in reads])
    assert len(transfers) == 1
    # Ten numbers a row and what was asked for: no row that was not.
    assert transfers[0] == 3 * (5 * 10 + 2 * 8 + 2 + 1000)
    transfers.clear()
    assert reduce_rows(torch.randn(3, 1000), []) == []
    assert transfers == []


def test_a_read_without_signals_has_none() -> None:
    (row,) = reduce_rows(torch.randn(1, 50), [(0, Read())])
    assert math.isnan(row.entropy)
    assert math.isnan(row.varentropy)
    assert (row.top_ids, row.id_logprobs, row.accepted, row.logits) == ((), (), None, None)
