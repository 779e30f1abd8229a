"""Studies of the reference pair, through the library and the command line."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from fsgen_router import Router, reference
from fsgen_router.cli import app
from fsgen_router.contracts.models import TokenModel
from fsgen_router.errors import CalibrationError, ConfigurationError
from fsgen_router.evaluation import reference_items, run_baselines, run_items
from fsgen_router.law import read_table
from fsgen_router.study import probe_pair, run_study, running
from fsgen_router.study.config import make_study

PAIR = {"fast": "reference:fast", "slow": "reference:slow"}
N, MAX_TOKENS = 12, 64


def config(**changes: Any) -> Any:
    base = {"pairs": [PAIR], "datasets": [{"split": "test"}], "n": N, "max_tokens": MAX_TOKENS, "concurrency": 4}
    return make_study(base | changes)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


def test_rates_and_quality_are_the_routers_own(work: Path, fast_model: TokenModel, slow_model: TokenModel) -> None:
    """What a study reads behind finished answers is what decoding sees token by token, also where both write."""
    methods = ("replace", "verify", "verify:speculative", "verify:near_best=0.5")
    study = run_study(config(methods=methods), work=work)
    cells = {cell.key.method: cell.found for cell in study.cells}
    items = reference_items("test", N)
    with Router(fast_model, slow_model, policy="always", method="replace") as router:
        fast, slow = run_baselines(router, items, max_tokens=MAX_TOKENS)
        for method in methods:
            found = cells[method]
            assert found is not None
            run = run_items(router.with_policy("always", method=method), items, max_tokens=MAX_TOKENS)
            assert found.tokens == run.column("tokens").sum()
            assert found.accuracy.value == run.accuracy
            assert (found.accuracy_fast.value, found.accuracy_slow.value) == (fast.accuracy, slow.accuracy)
            if method == "replace":
                assert found.cof.value == pytest.approx(run.rate("disagreement_rate"), abs=1e-12)
        oracle, judged = cells["replace"], cells["verify:near_best=0.5"]
        assert oracle is not None
        assert judged is not None
        assert judged.cof.value is not None
        assert oracle.cof.value is not None
        assert 0 < judged.cof.value < oracle.cof.value
        assert oracle.auroc["entropy_nats"].value is not None
        assert oracle.auroc["entropy_nats"].value > 0.7
        probed = probe_pair(router, items, max_tokens=MAX_TOKENS)
        assert probed.value == pytest.approx(oracle.cof.value)
        assert probed.interval is not None


class Stops:
    """A progress that stops a study like Ctrl-C, after so many prompts."""

    def __init__(self, after: int | None = None) -> None:
        self.after, self.done, self.stages = after, 0, []  # type: ignore[var-annotated]

    def begin(self, stage: str, total: int) -> None:
        self.stages.append((stage, total))

    def advance(self, count: int) -> None:
        self.done += count
        if self.after is not None and self.done >= self.after:
            raise KeyboardInterrupt


def test_a_study_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    methods = ("verify:near_best=0.5",)
    whole = run_study(config(methods=methods), work=tmp_path / "whole")
    # Three stages of 12: stopped in the third, when both models alone are done.
    with pytest.raises(KeyboardInterrupt):
        run_study(config(methods=methods), work=tmp_path / "stopped", progress=Stops(2 * N + 3))
    asked: list[object] = []
    own = Router.chat

    def counted(self: Router, *args: Any, **options: Any) -> Any:
        asked.append(self.policy.name)
        return own(self, *args, **options)

    monkeypatch.setattr(Router, "chat", counted)
    again = run_study(config(methods=methods), work=tmp_path / "stopped")
    assert asked == ["always"] * N
    assert [cell.to_dict() for cell in again.cells] == [cell.to_dict() for cell in whole.cells]
    asked.clear()
    progress = Stops()
    run_study(config(methods=methods), work=tmp_path / "stopped", progress=progress)
    assert asked == []
    assert progress.done == sum(total for _, total in progress.stages)
    # Another method and another data set find what both models wrote alone.
    run_study(config(methods=("replace", *methods)), work=tmp_path / "stopped")
    assert asked == []


POLICIES = ("best_of:2,score>-0.3", "best_of:3,vote>0.5")


def test_policies_stand_beside_token_routing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At equal slow steps, with what the Router itself measures; another time nothing is asked again."""
    sweep = ("entropy>0.2", "entropy>1")
    monkeypatch.setattr(running, "SWEEP", sweep)
    prompts = tmp_path / "open.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": f"lamp {k}"}) for k in range(3)))
    datasets = [{"split": "test"}, {"name": "open", "file": str(prompts)}]
    pairs = [PAIR, {"fast": "llama_cpp:nowhere.gguf", "slow": "reference:slow"}]
    settings: dict[str, Any] = {"pairs": pairs, "datasets": datasets, "policies": POLICIES, "min_tokens": 20}
    settings |= {"n": 6, "concurrency": 1}
    study = run_study(config(**settings), work=tmp_path / "work")
    assert [row.key.method for row in study.policies] == [*POLICIES] * 4
    assert all("expected answer" in (row.error or "") for row in study.policies[2:4])
    assert all("nowhere.gguf" in (row.error or "") for row in study.policies[4:])
    items = reference_items("test", 6)
    with Router(policy="always", method="replace") as router:
        fast, slow = run_baselines(router, items, max_tokens=MAX_TOKENS, seed=0)
        curve = [run_items(router, items, policy, max_tokens=MAX_TOKENS, seed=0) for policy in sweep]
        works = [run.column("slow_forwards").sum() for run in (fast, *curve, slow)]
        heights = [run.accuracy for run in (fast, *curve, slow)]
        order = np.argsort(works, kind="stable")
        for row in study.policies[:2]:
            assert row.found is not None, row.error
            run = run_items(router, items, row.key.method, max_tokens=MAX_TOKENS, seed=0)
            work = run.column("slow_forwards").sum()
            assert row.found.accuracy.value == run.accuracy
            assert row.found.slow_forwards.value == pytest.approx(work / slow.column("tokens").sum())
            assert row.found.escalated.value == (run.column("escalations") > 0).mean()
            routed = np.interp(work, np.array(works)[order], np.array(heights)[order])
            assert row.found.routed.value == pytest.approx(routed)
            assert row.found.gain.value == pytest.approx(run.accuracy - routed)
    asked: list[object] = []
    monkeypatch.setattr(Router, "chat", lambda *args, **options: asked.append(args))
    again = run_study(config(**settings), work=tmp_path / "work")
    assert asked == []
    assert [row.to_dict() for row in again.policies] == [row.to_dict() for row in study.policies]


def test_cells_that_fail_fail_alone(work: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "open.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": f"lamp {k}"}) for k in range(6)))
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": 3}')
    datasets = [
        {"split": "test"},
        {"name": "open", "file": str(prompts)},
        {"name": "broken", "file": str(broken)},
        {"name": "missing", "file": str(tmp_path / "nowhere.jsonl")},
        {"name": "short", "split": "test", "n": 2, "max_tokens": 3},
    ]
    pairs = [{"fast": "llama_cpp:nowhere.gguf", "slow": "reference:slow"}, PAIR]
    study = run_study(config(pairs=pairs, datasets=datasets, min_tokens=20), work=work)
    lost, kept = study.cells[:5], study.cells[5:]
    assert all("nowhere.gguf" in (cell.error or "") for cell in lost)
    by_name = {cell.key.dataset: cell for cell in kept}
    assert by_name["world-test"].found is not None
    without = by_name["open"]
    assert without.found is not None
    assert without.found.accuracy.value is None
    assert without.found.cof.value is not None
    assert "no quality: the data set has prompts without an expected answer" in without.notes
    assert "the data set has 6 prompts, not 12" in without.notes
    assert "line 1" in (by_name["broken"].error or "")
    assert "nowhere.jsonl cannot be read" in (by_name["missing"].error or "")
    assert "6 tokens in 2 answers are too few for a rate (min_tokens = 20)" in (by_name["short"].error or "")
    # In processes of their own the pairs come to the same.
    progress = Stops()
    beside = run_study(study.config, work=tmp_path / "beside", jobs=2, progress=progress)
    assert [cell.to_dict() for cell in beside.cells] == [cell.to_dict() for cell in study.cells]
    assert (progress.stages, progress.done) == ([("2 pairs, 2 at a time", 2)], 2)
    # What cannot be kept ends all of them, with the reason.
    with pytest.raises(CalibrationError, match="/proc/fsgen"):
        run_study(study.config, work="/proc/fsgen", jobs=2)
    with pytest.raises(ConfigurationError, match="0 jobs"):
        run_study(study.config, work=work, jobs=0)


def test_the_command_writes_a_table_and_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [
        'name = "Mine"',
        f"n = {N}",
        f"max_tokens = {MAX_TOKENS}",
        "min_tokens = 50",
        'policies = ["best_of:1,score>-0.4"]',
        "[[pairs]]",
        'fast = "reference:fast"',
        'slow = "reference:slow"',
        "[[pairs]]",
        'fast = "llama_cpp:nowhere.gguf"',
        'slow = "reference:slow"',
        "[[datasets]]",
        'split = "test"',
    ]
    Path("mine.toml").write_text("\n".join(lines))
    runner = CliRunner(env={"COLUMNS": "100"})
    done = runner.invoke(app, ["study", "mine.toml"])
    assert done.exit_code == 0, done.output
    assert "nowhere.gguf" in done.stderr
    folder = tmp_path / "mine-results"
    beside = list(csv.DictReader((folder / "policies.csv").read_text().splitlines()))
    assert [row["policy"] for row in beside] == ["best_of:1,score>-0.4"] * 2
    assert f"{float(beside[0]['accuracy']):.1%}" in done.stdout
    assert float(beside[0]["slow_forwards"]) > 0
    assert "nowhere.gguf" in beside[1]["error"]
    rows = list(csv.DictReader((folder / "results.csv").read_text().splitlines()))
    assert len(rows) == 2
    assert rows[1]["cof"] == ""
    assert "nowhere.gguf" in rows[1]["error"]
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 6
    assert "1 cells were not measured" in page
    assert "best_of:1,score&gt;-0.4" in page
    (cell,) = read_table(folder / "results.csv").cells
    assert len(cell) == 1
    as_json = runner.invoke(app, ["study", "mine.toml", "--json"])
    assert as_json.exit_code == 0
    record = json.loads(as_json.stdout)
    assert record == json.loads((folder / "results.json").read_text())
    assert record["policies"][0]["accuracy"] == float(beside[0]["accuracy"])
    measured = record["cells"][0]
    assert measured["cof"] == pytest.approx(float(rows[0]["cof"]))
    assert measured["cof_interval"][0] <= measured["cof"] <= measured["cof_interval"][1]
    assert {"accuracy", "accuracy_fast", "accuracy_slow", "tenths", "classes", "auroc_margin"} <= set(measured)
    law = runner.invoke(app, ["law", "--table", str(folder / "results.csv")])
    assert "three parameters need at least 3 different ratios" in law.stderr


def test_what_was_asked_wrongly_is_said_before_anything_runs(tmp_path: Path) -> None:
    runner = CliRunner(env={"COLUMNS": "100"})
    path = tmp_path / "study.toml"
    path.write_text('methods = ["repalce"]\n[[pairs]]\nfast="a"\nslow="b"\n[[datasets]]\nsplit="test"\n')
    done = runner.invoke(app, ["study", str(path), "--out", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert "unknown method 'repalce'" in done.stderr
    assert not (tmp_path / "out").exists()
    path.write_text('[[pairs]]\nfast="reference:fast"\nslow="reference:slow"\n[[datasets]]\nsplit="test"\n')
    (tmp_path / "file").touch()
    assert runner.invoke(app, ["study", str(path), "--out", str(tmp_path / "file")]).exit_code == 2


def test_a_probe_is_set_against_the_law() -> None:
    runner = CliRunner(env={"COLUMNS": "100"})
    arguments = [
        "law",
        "predict",
        "--fast",
        PAIR["fast"],
        "--slow",
        PAIR["slow"],
        "--probe",
        "10",
        "--max-tokens",
        "40",
    ]
    done = runner.invoke(app, [*arguments, "--dataset", "gsm8k", "--json"])
    assert done.exit_code == 0, done.output
    (found,) = json.loads(done.stdout)
    assert (found["method"], found["dataset"]) == ("oracle", "gsm8k")
    low, high = found["probe"]["cof_interval"]
    assert low <= found["probe"]["cof"] <= high
    assert found["outside"]
    assert found["trust"] == "probe"
    assert any("fast model of 43k is outside of 0.5B to 14B" in warning for warning in found["warnings"])
    shown = runner.invoke(app, arguments)
    assert "Probe of 10 prompts" in shown.stdout
    assert shown.stdout.count("trust the") == 4
    for wrong, message in (
        (["law", "predict", "--fast", "1", "--slow", "2", "--probe", "5"], "a probe runs the models"),
        (["law", "predict", "--fast", PAIR["fast"], "--slow", "2"], "one size and one model"),
        ([*arguments, "--method", "proxy"], "a probe measures the oracle"),
    ):
        refused = runner.invoke(app, wrong)
        assert refused.exit_code == 2
        assert message in refused.stderr


def test_a_model_file_that_changed_is_run_again(tmp_path: Path) -> None:
    """Its name says nothing: two folders may hold two models of one name, and a file may be written anew."""
    path = tmp_path / "model.gguf"
    pair = {"fast": f"llama_cpp:{path}?n_ctx=1024&type_k=f32&type_v=f32&n_threads=1", "slow": PAIR["slow"]}

    def rate() -> float:
        (cell,) = run_study(config(pairs=[pair], n=4, min_tokens=20), work=tmp_path / "work").cells
        assert cell.found is not None, cell.error
        assert cell.found.cof.value is not None
        return cell.found.cof.value

    shutil.copy(reference.path("fast"), path)
    assert rate() > 0
    shutil.copy(reference.path("slow"), path)
    assert rate() == 0


def test_only_what_reads_a_tuned_model_needs_one(tmp_path: Path) -> None:
    pytest.importorskip("fsgen_router.methods.proxy", reason="this version has no method that reads a tuned model")
    tuned = tmp_path / "tuned.gguf"
    shutil.copy(reference.path("fast"), tuned)
    string = f"llama_cpp:{tuned}?n_ctx=1024&type_k=f32&type_v=f32&n_threads=1"
    pairs = [PAIR, PAIR | {"tuned": "llama_cpp:nowhere.gguf"}, PAIR | {"tuned": string}]
    study = run_study(
        config(pairs=pairs, methods=("replace", "proxy", "contrast"), n=4, min_tokens=20), work=tmp_path / "work"
    )
    found = {(number, cell.key.method): cell for number, cell in enumerate(study.cells)}
    for (number, method), cell in found.items():
        if method == "proxy" and number < 6:
            assert ("reads a tuned model" if number < 3 else "nowhere.gguf") in (cell.error or "")
        else:
            assert cell.error is None
    # Tuning changed nothing of this one, so that proxy tuning is the slow model alone.
    oracle, proxy, _ = (cell.found for cell in study.cells[6:])
    assert oracle is not None
    assert proxy is not None
    assert proxy.cof.value == proxy.cof_tuned.value == pytest.approx(oracle.cof.value)
    assert proxy.accuracy_tuned.value == proxy.accuracy_fast.value
    assert oracle.cof_tuned.value is None
