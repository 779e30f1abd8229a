"""``fsgen-router law`` as people and programs use it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fsgen_router.cli import app

HEAD = "method,dataset,slow_params_b,fast_params_b,cof"


def invoke(*arguments: str) -> Any:
    return CliRunner(env={"COLUMNS": "100"}).invoke(app, ["law", *arguments])


def test_the_published_fits_as_json() -> None:
    done = invoke("--json", "--resamples", "100")
    assert done.exit_code == 0, done.output
    cells = json.loads(done.stdout)
    assert len(cells) == 12
    (oracle,) = [cell for cell in cells if (cell["method"], cell["dataset"]) == ("oracle", "gsm8k")]
    assert oracle["n"] == 20
    assert [round(oracle[name], 3) for name in ("a", "alpha", "b")] == [0.315, 0.061, 0.380]
    for cell in cells:
        assert {"method", "dataset", "n", "a", "alpha", "b", "r2", "loo_r2", "log", "sizes"} <= set(cell)
        assert cell["loo_r2"] < cell["r2"] <= 1
        assert cell["error"] is None
        low, high = cell["alpha_interval"]
        assert low <= cell["alpha"] <= high


def test_the_published_fits_as_a_table() -> None:
    done = invoke("--method", "contrastive")
    assert "contrastive  MBPP       10  0.337  0.050*?  0.378" in done.stdout
    assert "oracle" not in done.stdout


def test_a_prediction_and_its_band() -> None:
    done = invoke("predict", "--fast", "0.5", "--slow", "7", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert len(found) == 12
    for one in found:
        low, high = one["cof_interval"]
        assert low < one["cof"] < high
        assert one["ratio"] == 14
    shown = invoke("predict", "--fast", "0.5", "--slow", "7", "--method", "oracle", "--dataset", "gsm8k").stdout
    assert "R = 14" in shown
    assert f"{found[0]['cof']:.1%}" in shown
    assert "not identified" in shown


def test_cells_that_refuse_let_the_others_finish() -> None:
    """A ratio of 100 lies beyond what was measured for the contrastive cells, and within it for the oracle's."""
    done = invoke("predict", "--fast", "0.6", "--slow", "60", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert {one["method"] for one in found if one["cof"] is not None} == {"oracle"}
    assert all("above the largest" in one["error"] for one in found if one["cof"] is None)
    assert "--extrapolate" in done.stderr
    forced = json.loads(invoke("predict", "--fast", "0.6", "--slow", "60", "--json", "--extrapolate").stdout)
    assert all(one["cof"] is not None for one in forced)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("predict", "--fast", "small", "--slow", "7"), "--fast 'small' is not a number"),
        (("predict", "--fast", "7", "--slow", "0.5"), "is not larger than the fast one"),
        (("predict", "--fast", "nan", "--slow", "0.5"), "is not a size"),
        (("predict", "--fast", "1", "--slow", "500"), "above the largest that was measured"),
        (("predict", "--fast", "1", "--slow", "2", "--form", "lgo"), "did you mean 'log'"),
        (("predict", "--fast", "1", "--slow", "2", "--dataset", "gsm"), "did you mean 'gsm8k'"),
        (("--method", "oracel"), "did you mean 'oracle'"),
        (("--json", "predict", "--fast", "1", "--slow", "2"), "law predict --json"),
        (("--table", "nowhere.csv"), "cannot be read"),
    ],
)
def test_what_was_asked_wrongly(arguments: tuple[str, ...], message: str) -> None:
    done = invoke(*arguments)
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.split())
    assert done.stdout == ""


def test_a_table_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    good = [f"mine,d,{slow},1,{0.2 - 0.1 * slow**-0.5}" for slow in (2, 4, 8, 16, 32)]
    path.write_text("\n".join([HEAD, *good, "other,d,2,1,0.1", "other,d,4,1,0.2", "third,d,7B,1,0.2"]) + "\n")
    done = invoke("--table", str(path), "--json")
    assert done.exit_code == 0, done.output
    mine, other, third = json.loads(done.stdout)
    assert mine["alpha"] == pytest.approx(0.5, abs=1e-3)
    assert "at least 3 different ratios" in other["error"]
    assert other["log"]["c1"] is not None
    assert "'7B', not a number" in third["error"]
    assert "other on d: three parameters need" in done.stderr
    assert "mine" in invoke("--table", str(path)).stdout
    # Nothing at all comes out: that is a failure.
    path.write_text(f"{HEAD}\nthird,d,7B,1,0.2\n")
    assert invoke("--table", str(path)).exit_code == 1


def test_a_plot_of_the_fits(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "law.png"
    done = invoke("--plot", str(path), "--resamples", "100", "--method", "oracle", "--dataset", "gsm8k")
    assert done.exit_code == 0, done.output
    assert path.read_bytes().startswith(b"\x89PNG")
    assert invoke("--plot", str(tmp_path / "law.txt")).exit_code == 2
