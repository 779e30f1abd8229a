"""Evaluation: items, outcomes, intervals by prompt, recovered gaps, sweeps, plots."""

from __future__ import annotations

import json
import math
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from figure_checks import looks

from fsgen_router import ConfigurationError, InvalidRequest
from fsgen_router import evaluation as ev
from fsgen_router.calibration.curves import make_curve
from fsgen_router.evaluation.plots import check_plot_path, curve_style, quality_figure, quality_plot, write_atomically


def made(policy: str, right: np.ndarray, rate: float, tokens: int = 100) -> ev.Run:
    """A run whose every item escalated the same share of its tokens."""
    escalated = round(rate * tokens)
    return ev.Run(
        policy,
        tuple(
            ev.Outcome(
                right=bool(x),
                tokens=tokens,
                positions=2 * tokens,
                decisions=tokens,
                escalations=escalated,
                slow_tokens=escalated,
                slow_positions=tokens + escalated,
                slow_forwards=escalated,
            )
            for x in right
        ),
    )


# --- items ---------------------------------------------------------------------------------------


def test_reference_items_are_the_split_in_order() -> None:
    items = ev.reference_items("test", 3, 5)
    assert [item.id for item in items] == ["test/5", "test/6", "test/7"]
    assert all(item.messages and item.messages[0]["role"] == "user" for item in items)
    assert all(item.check(f"So. Answer: {item.answer}") for item in items)
    assert not any(item.check("Answer: nothing") for item in items)


def test_an_item_needs_one_kind_of_prompt() -> None:
    with pytest.raises(ConfigurationError):
        ev.Item(id="x", check=bool)


@pytest.mark.parametrize(("split", "count", "start"), [("nope", 1, 0), ("test", 0, 0), ("test", 1, -1)])
def test_wrong_reference_items(split: str, count: int, start: int) -> None:
    with pytest.raises(ConfigurationError):
        ev.reference_items(split, count, start)  # type: ignore[arg-type]


def test_items_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text(
        '{"prompt": "1+1=", "answer": 2}\n\n'
        '{"messages": [{"role": "user", "content": "é?"}], "answer": "é", "id": "b"}\n',
        encoding="utf-8",
    )
    first, second = ev.read_items(path)
    assert (first.id, first.prompt, first.answer) == ("1", "1+1=", "2")
    assert first.check("2")
    assert first.check("well, Answer: 2.")
    assert not first.check("22")
    assert second.id == "b"
    assert second.messages is not None


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"{", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "not an object"),
        (b'{"prompt": "x"}', "answer"),
        (b'{"prompt": "x", "answer": " "}', "answer"),
        (b'{"prompt": "x", "answer": true}', "answer"),
        (b'{"answer": "x"}', "either prompt or messages"),
        (b'{"prompt": "x", "messages": [], "answer": "x"}', "either prompt or messages"),
        (b'{"prompt": "", "answer": "x"}', "empty"),
        (b'{"prompt": 3, "answer": "x"}', "str"),
        (b'{"messages": [], "answer": "x"}', "non-empty list"),
        (b'{"messages": [{"role": "me", "content": "x"}], "answer": "x"}', "role"),
        (b'{"prompt": "x", "answer": "x", "anwser": 1}', "'anwser'"),
        (b'{"prompt": "x", "answer": "x", "level": "high"}', "level"),
        (b'{"prompt": "\xff", "answer": "x"}', "UTF-8 at byte 12"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: bytes, complaint: str) -> None:
    path = tmp_path / "items.jsonl"
    path.write_bytes(b'{"prompt": "x", "answer": "x"}\n\n' + line + b"\n")
    with pytest.raises(InvalidRequest, match="line 3") as caught:
        ev.read_items(path)
    assert complaint in str(caught.value)


def test_files_without_items(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n \n")
    with pytest.raises(InvalidRequest, match="no items"):
        ev.read_items(tmp_path / "empty")
    with pytest.raises(InvalidRequest, match="cannot be read"):
        ev.read_items(tmp_path / "absent")
    with pytest.raises(ConfigurationError, match="unknown match"):
        ev.read_items(tmp_path / "empty", match="fuzzy")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "answer", "match", "expected"),
    [
        ("Answer: 3. Answer: 4", "4", "answer", True),
        (" 4 ", "4", "answer", True),
        ("it is 4", "4", "answer", False),
        ("it is 4", "4", "contains", True),
        ("Answer: 4", "4", "exact", False),
        ("3 and then 1,200.0 coins", "1200", "number", True),
        ("none", "1200", "number", False),
        ("-4", "4", "number", False),
    ],
)
def test_matches(text: str, answer: str, match: ev.Match, expected: bool) -> None:
    assert ev.matches(text, answer, match) is expected


# --- running -------------------------------------------------------------------------------------


def test_whole_query_takes_each_item_whole() -> None:
    fast, slow = made("never", np.array([0, 1, 0]), 0.0), made("slow", np.array([1, 1, 1]), 1.0)
    run = ev.whole_query(fast, slow, np.array([True, False, False]))
    assert run.column("right").tolist() == [1, 1, 0]
    assert run.rate("escalation_rate") == pytest.approx(1 / 3)
    assert run.rate("slow_token_share") == pytest.approx(1 / 3)
    with pytest.raises(ConfigurationError):
        ev.whole_query(fast, slow, np.array([True]))


# --- intervals -----------------------------------------------------------------------------------


def test_the_interval_of_a_mean_is_the_textbook_one() -> None:
    rng = np.random.default_rng(1)
    right = (rng.random(1000) < 0.7).astype(float)
    estimate = ev.interval(right, seed=3)
    assert estimate.value == right.mean()
    assert estimate.interval is not None
    half = 1.96 * math.sqrt(right.var() / len(right))
    assert estimate.interval[0] == pytest.approx(right.mean() - half, abs=0.004)
    assert estimate.interval[1] == pytest.approx(right.mean() + half, abs=0.004)
    assert ev.interval(right, seed=3) == estimate


def test_a_ratio_is_paired_by_prompt() -> None:
    """Long answers with proportionally many escalations: the ratio does not vary at all."""
    tokens = np.array([10.0, 200, 30, 400, 50])
    estimate = ev.interval(tokens / 10, tokens)
    assert estimate.value == pytest.approx(0.1)
    assert estimate.interval == pytest.approx((0.1, 0.1))


def test_intervals_cover() -> None:
    """Of 200 samples, about 95% of the intervals hold the true mean (binomial bounds at 1e-4)."""
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        found = ev.interval((rng.random(150) < 0.4).astype(float), seed=seed, resamples=400).interval
        assert found is not None
        hits += found[0] <= 0.4 <= found[1]
    assert 175 <= hits <= 199


def test_what_cannot_be_known_is_none() -> None:
    assert ev.interval(np.array([1.0])) == ev.Estimate(1.0, None)
    assert ev.interval(np.zeros(5), np.zeros(5)) == ev.Estimate(None, None)
    assert ev.Estimate(None).to_dict("x") == {"x": None, "x_interval": None}


def test_summaries_are_flat_and_paired() -> None:
    rng = np.random.default_rng(0)
    fast_right = rng.random(400) < 0.4
    slow_right = fast_right | (rng.random(400) < 0.8)
    half = np.where(rng.random(400) < 0.5, slow_right, fast_right)
    fast, slow = made("never", fast_right, 0.0), made("slow", slow_right, 1.0)
    summary = ev.summarise(made("half", half, 0.1), fast, slow)
    record = summary.to_dict()
    assert record["policy"] == "half"
    assert record["n"] == 400
    for name in ("accuracy", "accuracy_fast", "accuracy_slow", "escalation_rate", "recovered_gap", "slow_forwards"):
        low, high = record[f"{name}_interval"]
        assert low <= record[name] <= high, name
    expected = (half.mean() - fast_right.mean()) / (slow_right.mean() - fast_right.mean())
    assert record["recovered_gap"] == pytest.approx(expected)
    assert record["escalation_rate"] == pytest.approx(0.1)
    assert record["slow_forwards_relative"] == pytest.approx(0.1)
    assert record["disagreement_rate"] is None
    json.dumps(record, allow_nan=False)
    assert ev.recovered_gap(slow, fast, slow).value == pytest.approx(1.0)


def test_no_recovered_gap_without_a_gap() -> None:
    right = np.arange(50) % 2 == 0
    other = np.roll(right, 1)
    fast, slow = made("never", right, 0.0), made("slow", other, 1.0)
    assert ev.recovered_gap(made("x", right, 0.1), fast, slow) == ev.Estimate(None)
    assert ev.rate_at_recovery(fast, slow, [made("x", right, 0.1)])[0.5] == ev.Estimate(None)
    # A slow model that is worse: what is lost is nothing recovered.
    better, worse = np.arange(50) % 10 > 0, np.arange(50) % 10 > 5
    fast, slow = made("never", better, 0.0), made("slow", worse, 1.0)
    assert ev.recovered_gap(made("x", worse, 0.1), fast, slow) == ev.Estimate(None)
    assert ev.rate_at_recovery(fast, slow, [made("x", worse, 0.1)])[0.5] == ev.Estimate(None)
    assert make_curve([made("x", worse, 0.1)], fast, slow).area == ev.Estimate(None)
    fast, slow = made("never", right, 0.0), made("slow", right, 1.0)
    with pytest.raises(ConfigurationError, match="the same items"):
        ev.summarise(made("x", right[:10], 0.1), fast, slow)


def test_rate_at_recovery_finds_the_crossing() -> None:
    """Accuracy 0 at rate 0, 0.8 at 0.2, 1 at 1: 50% of the gap is met at 0.125, 95% at 0.8."""
    n = 1000
    fast, slow = made("never", np.zeros(n), 0.0), made("slow", np.ones(n), 1.0)
    middle = made("middle", np.arange(n) % 5 != 0, 0.2)
    found = ev.rate_at_recovery(fast, slow, [middle], levels=(0.5, 0.8, 0.95))
    assert found[0.5].value == pytest.approx(0.125)
    assert found[0.8].value == pytest.approx(0.2)
    assert found[0.95].value == pytest.approx(0.8)
    interval = found[0.95].interval
    assert interval is not None
    assert 0.7 < interval[0] < 0.8 < interval[1] < 0.9
    shares = ev.rate_at_recovery(fast, slow, [middle], levels=(0.5,), rate="slow_token_share")
    assert shares[0.5].value == pytest.approx(0.125)


def test_the_first_crossing_counts_in_any_order_of_the_sweep() -> None:
    n = 100
    fast, slow = made("never", np.zeros(n), 0.0), made("slow", np.ones(n), 1.0)
    good, worse = made("good", np.ones(n), 0.1), made("worse", np.arange(n) < 40, 0.4)
    for sweep in ([good, worse], [worse, good]):
        assert ev.rate_at_recovery(fast, slow, sweep)[0.5].value == pytest.approx(0.05)


# --- sweeps --------------------------------------------------------------------------------------


def test_equal_work_reads_the_sweep_at_the_policys_own_steps() -> None:
    """The fast model 0%, a sweep through (20 steps, 50%) and (60, 80%), the slow one (100, 100%); in any order."""
    n = 200

    def right(share: float) -> np.ndarray:
        return np.arange(n) < share * n

    fast, slow = made("fast", right(0.0), 0.0), made("slow", right(1.0), 1.0)
    sweep = [made("b", right(0.8), 0.6), made("a", right(0.5), 0.2)]
    found = ev.at_equal_work(made("mine", right(0.75), 0.4), fast, slow, sweep)
    assert (found.policy, found.n, found.accuracy.value) == ("mine", n, 0.75)
    assert found.slow_forwards.value == pytest.approx(0.4)
    assert found.slow_positions.value == pytest.approx(1.4)  # 100 read, and 40 written
    assert found.escalated.value == 1.0
    assert found.routed.value == pytest.approx(0.65)
    assert found.gain.value == pytest.approx(0.1)
    assert found.gain.interval is not None
    low, high = found.gain.interval
    assert low < 0.1 < high
    # Beyond the curve's ends it is read at the end, and a point of it has no gain.
    above = ev.at_equal_work(made("more", right(1.0), 1.5), fast, slow, sweep)
    assert above.routed.value == 1.0
    own = ev.at_equal_work(sweep[0], fast, slow, sweep)
    assert (own.gain.value, own.gain.interval) == (0.0, (0.0, 0.0))
    assert {"gain", "gain_interval", "routed", "policy"} <= set(own.to_dict())
    with pytest.raises(ConfigurationError, match="the same items"):
        ev.at_equal_work(made("short", right(1.0)[:5], 0.1), fast, slow, sweep)


def test_sweeps_are_policies_at_quantiles() -> None:
    from fsgen_router.policies import make_policy

    values = np.linspace(0, 1, 1001)
    assert ev.sweep_policies("entropy", values, rates=(0.1, 0.5)) == ["entropy>0.9", "entropy>0.5"]
    assert ev.sweep_policies("max_prob", values, rates=(0.1,), suffix=",span=8") == ["max_prob<0.1,span=8"]
    assert ev.sweep_policies("delta", values / 2, rates=(0.1,)) == ["delta<0.05"]  # FS-GEN's router
    for signal in ("entropy", "varentropy", "max_prob", "margin", "random", "budget", "every"):
        forms = ev.sweep_policies(signal, values)
        assert 5 <= len(forms) == len(set(forms)) <= len(ev.SWEEP_RATES)
        assert [make_policy(form).name for form in forms] == forms
    with pytest.raises(ConfigurationError, match="cannot be swept"):
        ev.sweep_policies("mood", values)
    with pytest.raises(ConfigurationError, match="values"):
        ev.sweep_policies("entropy")


# --- plots ---------------------------------------------------------------------------------------


def _summaries() -> list[ev.Summary]:
    right = np.arange(40) % 3 == 0
    fast, slow = made("never", right & False, 0.0), made("slow", right | True, 1.0)
    return [ev.summarise(made(f"x{rate}", right, rate), fast, slow, resamples=100) for rate in (0.1, 0.4)]


def test_the_plot_is_whole_and_the_same_every_time(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.svg"):
        quality_plot(tmp_path / name, {"entropy": _summaries()}, chords={"chord": ((0, 0), (1, 1))})
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png", "c.svg"]
    with pytest.raises(ConfigurationError):
        quality_plot(tmp_path / "d.png", {})
    with pytest.raises(ConfigurationError):
        quality_plot(tmp_path / "d.png", {"x": _summaries()}, rate="cof")


def test_every_curve_of_a_plot_looks_different() -> None:
    styles = [tuple(map(str, curve_style(number).values())) for number in range(420)]
    assert len(set(styles)) == 420
    # More curves than a report has: no two share a colour.
    assert len({curve_style(number)["color"] for number in range(12)}) == 12
    curves = {f"curve {number}": _summaries() for number in range(12)}
    figure = quality_figure(curves, rate="slow_token_share", title="x", chords={"chord": ((0, 0), (1, 1))})
    for axes in figure.axes:
        found = looks(axes)
        assert len(found) == len(set(found)) == 13
        assert len({colour for colour, *_ in found[:12]}) == 12
    levels = {line.get_color() for line in figure.axes[0].get_lines() if line.get_label().endswith("%")}
    assert len(levels) == 2
    assert not levels & {colour for colour, *_ in looks(figure.axes[0])}
    # In grey, curves that follow each other differ in marker and line.
    for (_, line, marker), (_, next_line, next_marker) in pairwise(looks(figure.axes[0])):
        assert line != next_line
        assert marker != next_marker


def test_a_plot_names_what_it_is_of() -> None:
    figure = quality_figure(
        {"entropy": _summaries()}, rate="slow_token_share", title="Quality", pair="small + large", method="verify:exact"
    )
    title = figure.get_suptitle()
    for words in ("Quality", "small + large", "verify:exact", "40 prompts"):
        assert words in title
    near, every = figure.axes
    assert "slow token share" in near.get_xlabel()
    assert "40 prompts" in near.get_ylabel()
    # What matters has most of the width, and FS-GEN's rate is marked in both panels.
    assert near.get_xlim()[1] == pytest.approx(0.21)
    assert every.get_xlim()[1] >= 1
    figure.draw_without_rendering()
    assert near.get_window_extent().width > every.get_window_extent().width
    for axes in figure.axes:
        assert [line for line in axes.get_lines() if "FS-GEN" in line.get_label() and line.get_xdata()[0] == 0.2]
    # The legend lies below the panels and their labels.
    (legend,) = figure.legends
    assert legend.get_window_extent().y1 <= min(axes.get_tightbbox().y0 for axes in figure.axes)
    assert {text.get_text() for text in legend.get_texts()} >= {"entropy"}


def test_intervals_are_bands_and_those_of_a_single_point_bars() -> None:
    figure = quality_figure({"sweep": _summaries(), "one": _summaries()[:1]}, rate="slow_token_share", title="x")
    bands = [part for part in figure.axes[0].collections if type(part).__name__ == "FillBetweenPolyCollection"]
    assert len(bands) == 1
    (low, high) = (np.array([s.accuracy.interval for s in _summaries()]).T).tolist()
    corners = bands[0].get_paths()[0].vertices[:, 1]
    assert corners.min() == pytest.approx(min(low))
    assert corners.max() == pytest.approx(max(high))
    assert len(figure.axes[0].containers) == 1


def test_where_no_plot_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    for path in (tmp_path / "x.txt", tmp_path / "absent" / "x.png", tmp_path / "folder.png"):
        with pytest.raises(ConfigurationError):
            check_plot_path(path)
    assert check_plot_path(tmp_path / "x.PNG") == tmp_path / "x.PNG"


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("package", ["scipy", "matplotlib.figure"])
def test_a_missing_extra_is_named(package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    needs_it = {
        "scipy": lambda: ev.interval(np.arange(5.0)),
        "matplotlib.figure": lambda: check_plot_path(tmp_path / "x.png"),
    }
    with pytest.raises(ImportError, match=r"fsgen-router\[eval\]"):
        needs_it[package]()
