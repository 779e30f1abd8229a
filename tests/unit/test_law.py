"""The law of sizes: fits that can be checked by hand or against the paper, tables that are wrong, predictions."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from fsgen_router import ConfigurationError
from fsgen_router.law import (
    ALPHA_MAX,
    FLOOR,
    FORMS,
    SOURCE,
    Cell,
    Prediction,
    fit_cell,
    predict,
    published_table,
    read_table,
    size_text,
    trust,
)

SIZES = (0.5, 1.8, 4.0, 7.0, 14.0, 32.0, 72.0)


def cell_of(points: Sequence[tuple[float, float, float]]) -> Cell:
    slow, fast, cof = np.array(points, np.float64).T
    return Cell("replace", "sums", slow, fast, cof)


def on_curve(a: float, alpha: float, b: float, noise: float = 0.0) -> Cell:
    """A rate for all 21 pairs of the paper's sizes."""
    rng = np.random.default_rng(5)
    pairs = [(slow, fast) for fast, slow in combinations(SIZES, 2)]
    return cell_of([(s, f, -a * (s / f) ** -alpha + b + noise * rng.normal()) for s, f in pairs])


def test_the_published_table_gives_the_papers_fit() -> None:
    """The oracle's GSM8K cell as the paper gives it: a = .315, alpha = .061, b = .380, R2 = .84."""
    table = published_table()
    assert sum(len(cell) for cell in table.cells) == 168
    assert "2406.12295" in SOURCE
    fit = fit_cell(table.cell("oracle", "gsm8k")).forms["power"]
    assert {name: round(value, 3) for name, value in fit.values.items()} == {"a": 0.315, "alpha": 0.061, "b": 0.380}
    assert fit.r2 == pytest.approx(0.84, abs=0.005)


@pytest.mark.parametrize("number", range(12))
def test_every_published_cell_is_fitted_as_well_as_a_general_optimiser_does(number: int) -> None:
    """Against scipy from many starting values: none finds a better curve within the bounds."""
    optimize = pytest.importorskip("scipy.optimize")
    cell = published_table().cells[number]
    fit = fit_cell(cell).forms["power"]
    ours = float((fit.residuals**2).sum())
    rng = np.random.default_rng(number)
    limits = (np.full(3, FLOOR), np.array([np.inf, ALPHA_MAX, np.inf]))
    theirs = min(
        2 * optimize.least_squares(
            lambda p: -p[0] * cell.ratio ** -p[1] + p[2] - cell.cof,
            np.exp(rng.uniform(np.log(0.06), np.log(3.0), 3)),
            bounds=limits,
            xtol=1e-12,
            ftol=1e-12,
        ).cost
        for _ in range(12)
    )  # fmt: skip
    assert ours <= theirs * (1 + 1e-6)
    assert all(value >= FLOOR for value in fit.values.values())
    assert fit.values["alpha"] <= ALPHA_MAX


def test_what_the_documentation_says_of_the_published_cells() -> None:
    """docs/study.md counts them."""
    fits = [fit_cell(cell).forms for cell in published_table().cells]
    loo = [{name: form.loo_r2 or 0.0 for name, form in forms.items()} for forms in fits]
    assert not any(forms["power"].identified for forms in fits)
    assert sum(one["log"] > one["power"] for one in loo) == 11
    assert sum(one["sizes"] > one["power"] for one in loo) == 9


def test_a_curve_without_noise_is_found_again() -> None:
    fit = fit_cell(on_curve(0.3, 0.4, 0.36))
    power = fit.forms["power"]
    assert list(power.values.values()) == pytest.approx([0.3, 0.4, 0.36], abs=1e-4)
    assert power.r2 == pytest.approx(1.0)
    assert power.loo_r2 == pytest.approx(1.0)
    assert power.identified
    assert not power.at_bound
    assert not fit.warnings


def test_the_linear_forms_are_ordinary_least_squares() -> None:
    cell = on_curve(0.2, 0.3, 0.3, noise=0.01)
    fit = fit_cell(cell)
    for name, columns in (("log", [np.log(cell.ratio)]), ("sizes", [np.log(cell.slow), np.log(cell.fast)])):
        design = np.stack([np.ones(len(cell)), *columns], 1)
        expected, *_ = np.linalg.lstsq(design, cell.cof)
        form = fit.forms[name]  # type: ignore[index]
        assert list(form.values.values()) == pytest.approx(expected.tolist())
        # Leaving out is done by hand here.
        errors = []
        for out in range(len(cell)):
            kept = np.arange(len(cell)) != out
            errors.append(cell.cof[out] - design[out] @ np.linalg.lstsq(design[kept], cell.cof[kept])[0])
        total = ((cell.cof - cell.cof.mean()) ** 2).sum()
        assert form.loo_r2 == pytest.approx(1 - np.square(errors).sum() / total)


def test_bootstrap_intervals_hold_what_the_points_were_made_of() -> None:
    """In about 95 of 100 cells with noise of their own, the band at a ratio holds the true curve there."""
    held = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        clean = on_curve(0.3, 0.3, 0.4)
        noisy = Cell("m", "d", clean.slow, clean.fast, clean.cof + rng.normal(0, 0.01, len(clean)))
        found = predict(fit_cell(noisy, resamples=300), fast=0.5, slow=7)
        assert found.interval is not None
        assert found.pair_interval is not None
        assert found.pair_interval[1] - found.pair_interval[0] > found.interval[1] - found.interval[0]
        held += found.interval[0] <= -0.3 * 14**-0.3 + 0.4 <= found.interval[1]
    assert held >= 50


def test_a_law_that_is_not_identified_says_so() -> None:
    """A straight line in ln R is the limit of alpha going to 0: any small alpha does, so it sits at its bound."""
    points = [(s, f, 0.05 + 0.02 * np.log(s / f)) for f, s in combinations(SIZES, 2)]
    fit = fit_cell(cell_of(points))
    assert fit.forms["power"].at_bound == ("alpha",)
    assert not fit.forms["power"].identified
    assert any("alpha sits at its bound, 0.05" in warning for warning in fit.warnings)
    assert any("not identified" in warning for warning in fit.warnings)
    assert fit.forms["log"].identified
    assert fit.to_dict()["at_bound"] == ["alpha"]


def test_too_few_points_fail_alone() -> None:
    """Two points give the form with two parameters, and say what the others lack."""
    fit = fit_cell(cell_of([(7, 0.5, 0.12), (14, 0.5, 0.13)]))
    assert set(fit.forms) == {"log"}
    assert fit.error == "three parameters need at least 3 different ratios of sizes; this cell has 2 points, 2 ratios"
    record = fit.to_dict()
    assert record["alpha"] is None
    assert record["log"]["c1"] == pytest.approx(0.01 / np.log(2))
    assert record["log"]["c1_interval"] is None
    # Five points at two ratios are no more.
    assert "5 points, 2 ratios" in (
        fit_cell(cell_of([(2, 1, 0.1), (4, 2, 0.11), (8, 4, 0.1), (3, 1, 0.2), (6, 2, 0.2)])).error or ""
    )


def test_as_many_points_as_parameters_are_no_test() -> None:
    fit = fit_cell(cell_of([(2, 1, 0.1), (4, 1, 0.15), (16, 1, 0.18)]))
    assert fit.forms["power"].r2 == pytest.approx(1.0)
    assert fit.forms["power"].loo_r2 is None
    assert fit.forms["power"].intervals["a"] is None
    assert not fit.forms["power"].identified
    assert "nothing tests it" in fit.warnings[0]


def test_equal_rates_have_no_r2() -> None:
    fit = fit_cell(cell_of([(s, 1, 0.1) for s in (2, 4, 8, 16)]))
    assert fit.forms["power"].r2 is None
    assert fit.forms["log"].values["c1"] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("b,d,7B,0.5,0.1", "line 6: slow_params_b is '7B', not a number, in billions of parameters: 7 for 7B"),
        ("b,d,7,0.5,nan", "line 6: cof is nan, not a finite number"),
        ("b,d,inf,0.5,0.1", "line 6: slow_params_b is inf, not a size above 0"),
        ("b,d,7,-1,0.1", "line 6: fast_params_b is -1, not a size above 0"),
        ("b,d,7,0.5,12", "line 6: cof is 12, not a share between 0 and 1"),
        ("b,d,7,0.5,", "line 6: cof is '', not a number"),
        ("b,d,7", "line 6: fast_params_b is None, not a number"),
    ],
)
def test_a_row_that_is_wrong_spoils_its_own_cell(tmp_path: Path, row: str, problem: str) -> None:
    good = [f"a,d,{slow},{fast},{0.1 + 0.01 * slow}" for slow, fast in ((2, 1), (4, 1), (6, 2), (8, 1))]
    path = tmp_path / "table.csv"
    path.write_text("\n".join(["method,dataset,slow_params_b,fast_params_b,cof", *good, row]) + "\n")
    whole, broken = map(fit_cell, read_table(path).cells)
    assert whole.error is None
    assert set(whole.forms) == set(FORMS)
    assert broken.error is not None
    assert broken.error.startswith(problem)
    assert not broken.forms


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method,dataset,slow_params_b,fast_params_b\na,d,2,1\n", "no column 'cof'"),
        ("method,dataset,slow_params_b,fast_params_b,cof\n", "holds no rows"),
        ("method,dataset,slow_params_b,fast_params_b,cof\n,d,2,1,0.1\n", "line 2: method and dataset must be named"),
        ('{"cells": 3}', "holds no list of cells"),
        ("[1, 2", "not valid JSON"),
        ("", "no column 'method'"),
    ],
)
def test_files_that_are_no_tables(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "table"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        read_table(path)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_table(tmp_path / "nowhere.csv")
    path.write_bytes(b"method\xff")
    with pytest.raises(ConfigurationError, match="not valid UTF-8 at byte 6"):
        read_table(path)


def test_pairs_that_a_study_could_not_measure_are_left_out(tmp_path: Path) -> None:
    rows = [
        {"method": "replace", "dataset": "d", "slow_params_b": s, "fast_params_b": 1, "cof": 0.1 + s / 100}
        for s in (2, 4, 8)
    ]
    failed = {"method": "replace", "dataset": "d", "slow_params_b": None, "cof": None, "error": "no such file"}
    same = {"method": "replace", "dataset": "d", "slow_params_b": 1, "fast_params_b": 1, "cof": 0.2}
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"cells": [*rows, failed, same]}))
    (cell,) = read_table(path).cells
    assert cell.slow.tolist() == [2, 4, 8]
    assert cell.notes == (
        "1 not measured (see their errors in the table)",
        "1 left out: the slow model is not larger than the fast one",
    )


def test_cells_are_found_by_the_papers_names_and_by_ours() -> None:
    table = published_table()
    assert table.cell("replace", "GSM8K") == table.cell("oracle", "gsm8k")
    assert table.cell("contrast:beta=0.5", "mbpp").method == "contrastive"
    assert len(table.select(method="proxy")) == 4
    with pytest.raises(ConfigurationError, match="did you mean 'oracle'"):
        table.select(method="oracel")
    with pytest.raises(ConfigurationError, match="available: gsm8k, MMLU_STEM"):
        table.select(dataset="sums")


def test_predictions_stay_where_was_measured() -> None:
    fit = fit_cell(published_table().cell("oracle", "gsm8k"))
    found = predict(fit, fast=0.5, slow=7)
    assert found.cof == pytest.approx(-0.31486 * 14**-0.061273 + 0.380196, abs=1e-4)
    assert found.interval is not None
    assert found.interval[0] < found.cof < found.interval[1]
    assert predict(fit, fast=0.5, slow=7, form="log").cof == pytest.approx(found.cof, abs=0.002)
    with pytest.raises(ConfigurationError, match="1400 is above the largest that was measured, 144"):
        predict(fit, fast=0.5, slow=700)
    assert not found.outside
    forced = predict(fit, fast=0.5, slow=700, extrapolate=True)
    assert forced.outside
    assert any("extrapolated" in warning for warning in forced.warnings)
    assert any("below the smallest" in warning for warning in predict(fit, fast=4, slow=5).warnings)
    assert any(
        "fast model of 0.1B is outside of 0.5B to 14B" in warning for warning in predict(fit, fast=0.1, slow=4).warnings
    )


@pytest.mark.parametrize(
    ("billions", "text"), [(7, "7B"), (0.5, "0.5B"), (0.0135, "13.5M"), (43_040e-9, "43k"), (5e-8, "50 parameters")]
)
def test_sizes_as_people_say_them(billions: float, text: str) -> None:
    assert size_text(billions) == text


@pytest.mark.parametrize(("fast", "slow"), [(7, 0.5), (1, 1), (0, 1), (float("nan"), 1), (1, float("inf"))])
def test_sizes_that_are_no_pair(fast: float, slow: float) -> None:
    with pytest.raises(ConfigurationError):
        predict(fit_cell(published_table().cells[0]), fast=fast, slow=slow)


def test_law_and_probe_are_weighed_by_their_intervals() -> None:
    def law(low: float, high: float) -> Prediction:
        return Prediction("oracle", "gsm8k", "power", 0.5, 7.0, (low + high) / 2, (low, high), (low, high))

    assert trust(law(0.10, 0.12), 0.12, (0.05, 0.19)).which == "law"
    assert trust(law(0.05, 0.19), 0.11, (0.10, 0.12)).which == "probe"
    # Far away: whatever the widths, this pair is another kind of pair.
    far = trust(law(0.10, 0.12), 0.3, (0.2, 0.4))
    assert (far.which, "do not meet" in far.reason) == ("probe", True)
    elsewhere = trust(dataclasses.replace(law(0.10, 0.12), outside=True), 0.12, (0.05, 0.19))
    assert (elsewhere.which, "lie outside" in elsewhere.reason) == ("probe", True)
    assert trust(None, 0.1, (0.05, 0.2)).which == "probe"
    assert trust(law(0.1, 0.2), 0.1, None).which == "law"
