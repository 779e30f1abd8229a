"""``recommend`` on real models: what it measures, that it goes on after an interruption, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fsgen_router import (
    BackendError,
    ConfigurationError,
    InvalidRequest,
    Prices,
    PromptTooLong,
    Router,
    reference,
)
from fsgen_router.adapters.llama_cpp import LlamaCppModel
from fsgen_router.adapters.scripted import ScriptedTextModel
from fsgen_router.calibration.bench import open_pair
from fsgen_router.cli import app
from fsgen_router.contracts.models import TokenModel
from fsgen_router.errors import CalibrationError, CheckerFailed
from fsgen_router.evaluation import ask, reference_items, run_baselines
from fsgen_router.recommend import Recommendation, recommend
from fsgen_router.recommend import measuring as measuring_module
from fsgen_router.recommend.models import Models
from fsgen_router.recommend.page import render_page
from fsgen_router.recommend.words import as_python

COUNT = 10
FSGEN = [sys.executable, "-c", "from fsgen_router.cli import main; main()"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80", "NO_COLOR": "1"}


@pytest.fixture(scope="module")
def items() -> list[Any]:
    return reference_items("calibration", COUNT)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recommend") / "work"


@pytest.fixture(scope="module")
def found(fast_model: TokenModel, slow_model: TokenModel, items: list[Any], work: Path) -> Recommendation:
    return recommend(
        fast_model,
        slow_model,
        items,
        policies=["random:0.3"],
        prices=Prices(1.0, 2.0),
        at_once=2,
        max_tokens=96,
        resamples=200,
        work=work,
    )


def by_name(found: Recommendation) -> dict[str, Any]:
    return {one.mode.name: one for one in found.figures}


# --- what is measured ----------------------------------------------------------------------------


def test_both_models_alone_are_what_an_evaluation_finds(
    found: Recommendation, fast_model: TokenModel, slow_model: TokenModel, items: list[Any]
) -> None:
    with Router(fast_model, slow_model) as router:
        fast, slow = run_baselines(router, items, max_tokens=96)
    figures = by_name(found)
    assert figures["fast alone"].accuracy.value == fast.accuracy
    assert figures["slow alone"].accuracy.value == slow.accuracy
    assert figures["slow alone"].seconds_relative.value == figures["slow alone"].flops_relative.value == 1.0
    # The slow model alone is alone: what a policy's hand-over has the fast one read is not counted as its cost.
    read = slow.column("slow_positions").sum()
    assert figures["slow alone"].flops.value == pytest.approx(2 * slow_model.n_params * read / COUNT)


def test_lossless_modes_lose_nothing(found: Recommendation) -> None:
    exact = [one for one in found.figures if one.mode.lossless]
    assert len(exact) == 3
    for one in exact:
        assert (one.lost, one.won, one.quality_loss.value) == (0, 0, 0.0)
        assert one.quality_loss_bound > 0.2  # of ten prompts


def test_every_mode_has_all_figures(found: Recommendation) -> None:
    names = list(by_name(found))
    assert names[:2] == ["slow alone", "fast alone"]
    assert {"replace", "verify", "speculative 4", "entropy gate", "rest", "own: random:0.3", "at prompt 50%"} < set(
        names
    )
    for one in found.figures:
        for figure in ("accuracy", "seconds", "tokens_per_second", "tokens_per_second_at_once", "flops", "money_usd"):
            estimate = getattr(one, figure)
            assert estimate.value is not None, (one.mode.name, figure)
            assert estimate.interval is not None, (one.mode.name, figure)
    figures = by_name(found)
    assert figures["fast alone"].money_usd.value == 0.0
    assert figures["replace"].money_relative.value > 0.0
    assert figures["fast alone"].slow_share.value == 0.0
    assert figures["slow alone"].slow_share.value == 1.0
    expected = {name: one.expected_seconds for name, one in figures.items()}
    assert all((told is None) == figures[name].derived for name, told in expected.items())
    assert min(told for told in expected.values() if told is not None) > 0.0
    assert expected["speculative 4"] != expected["speculative 8"]


def test_modes_find_nothing_that_others_have_read(found: Recommendation, work: Path) -> None:
    """Prompts come again in every mode; a cache that held them would make all but the first look fast."""
    import numpy as np

    from fsgen_router.evaluation import COLUMNS

    counted = 0
    for path in work.glob("*-*.npz"):
        with np.load(path) as arrays:
            slow_read, cached = arrays["slow_read"], arrays["slow_cached"]
            prompt = arrays["counters"][:, COLUMNS.index("prompt_tokens")]
            asked = (slow_read + cached) > 0
            # A template's beginning is alike in all prompts of a block, and is found again in every mode.
            assert (cached[asked] < 0.5 * prompt[asked]).all(), path.name
            assert len(cached) > 1 or not cached.any()
            counted += int(asked.sum())
    assert counted > 100


def test_caches_are_emptied_where_forwards_run(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: set[str] = set()
    forward = LlamaCppModel.forward

    def spy(self: LlamaCppModel, works: Any) -> Any:
        threads.add(threading.current_thread().name)
        return forward(self, works)

    monkeypatch.setattr(LlamaCppModel, "forward", spy)
    with Models("reference:fast?n_seq=2", "reference:slow?n_seq=2") as models:
        models.forget()
    assert threads
    assert all(name.startswith("fsgen-") for name in threads)


def test_of_drafts_of_whole_answers_no_seconds_are_expected(
    fast_model: TokenModel, slow_model: TokenModel, items: list[Any]
) -> None:
    found = recommend(
        fast_model, slow_model, items[:2], policies=["best_of:2,vote>0.5"], check="slow", at_once=1, max_tokens=4,
        resamples=100,
    )  # fmt: skip
    figures = by_name(found)
    assert figures["replace"].expected_seconds
    assert figures["own: best_of:2,vote>0.5"].expected_seconds is None


def test_a_rate_is_held_over_all_blocks(found: Recommendation) -> None:
    """A mode's Router stays the same from block to block, so that its controller learns."""
    assert 0.05 < by_name(found)["replace"].slow_share.value < 0.6


def test_json_has_every_figure_with_its_interval(found: Recommendation) -> None:
    record = json.loads(json.dumps(found.to_dict()))
    assert record["verdict"] in ("routed", "whole_query", "speculative", "fast", "slow", "undecided")
    assert record["n"] == COUNT
    assert 2 <= len(record["evidence"]) <= 3
    assert len(record["modes"]) == len(found.figures)
    for mode in record["modes"]:
        for name in [name for name in mode if name.endswith("_interval")]:
            assert name.removesuffix("_interval") in mode


# --- interruptions -------------------------------------------------------------------------------


class _Interrupt:
    """A progress that is interrupted after so many answers."""

    def __init__(self, after: int) -> None:
        self.left = after

    def begin(self, stage: str, total: int) -> None:
        return None

    def advance(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise KeyboardInterrupt


def test_what_is_finished_is_kept(
    fast_model: TokenModel, slow_model: TokenModel, items: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments: dict[str, Any] = {"at_once": 1, "max_tokens": 96, "resamples": 100, "work": tmp_path / "work"}
    with pytest.raises(KeyboardInterrupt):
        recommend(fast_model, slow_model, items, progress=_Interrupt(40), **arguments)
    kept = {path.name: path.read_bytes() for path in (tmp_path / "work").iterdir()}
    assert len(kept) > 3
    assert all(name == "manifest.json" or name.endswith(".npz") for name in kept)
    whole = recommend(fast_model, slow_model, items, **arguments)
    for name, data in kept.items():
        assert (tmp_path / "work" / name).read_bytes() == data
    # With everything there, no model is asked again but to warm up.
    asked: list[int] = []
    answered = measuring_module._answered
    monkeypatch.setattr(measuring_module, "_answered", lambda *given: asked.append(1) or answered(*given))
    again = recommend(fast_model, slow_model, items, **arguments)
    assert asked == []
    assert again.to_dict() == whole.to_dict()


def test_a_work_directory_of_other_prompts_is_refused(
    found: Recommendation, fast_model: TokenModel, slow_model: TokenModel, items: list[Any], work: Path
) -> None:
    with pytest.raises(ConfigurationError, match="prompts"):
        recommend(fast_model, slow_model, items[:4], at_once=2, max_tokens=96, work=work)


def test_a_work_directory_of_another_model_in_the_same_file_is_refused(items: list[Any], tmp_path: Path) -> None:
    slow = tmp_path / "slow.gguf"
    shutil.copy(reference.path("slow"), slow)
    arguments: dict[str, Any] = {"check": "slow", "at_once": 1, "max_tokens": 2, "resamples": 100}
    pair = ("reference:fast", f"llama_cpp:{slow}", items[:2])
    recommend(*pair, work=tmp_path / "work", **arguments)
    recommend(*pair, work=tmp_path / "work", **arguments)
    with slow.open("ab") as file:
        file.write(b"trained")
    with pytest.raises(ConfigurationError, match="its files differ"):
        recommend(*pair, work=tmp_path / "work", **arguments)


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_ends_without_a_trace_and_the_same_command_goes_on(tmp_path: Path) -> None:
    command = [*FSGEN, "recommend", "--count", "24", "--at-once", "1", "--work", "work", "--report", "page.html"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env=ENVIRONMENT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        while b"all modes" not in (line := process.stderr.readline()):
            assert line, "it ended by itself"
        while len(list((tmp_path / "work").glob("*.npz"))) < 3:
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        said = process.stderr.read()
        assert b"Interrupted" in said
        assert b"Traceback" not in said
        assert process.stdout.read() == b""
    assert not (tmp_path / "page.html").exists()
    assert not [path for path in (tmp_path / "work").iterdir() if path.suffix == ".tmp"]


# --- bad input -----------------------------------------------------------------------------------


def test_a_prompt_that_leaves_no_room_is_named_before_anything_runs(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    lines = [{"prompt": "lamp", "answer": "x"}, {"prompt": "How many lamps? " * 100, "answer": "7"}]
    path.write_text("\n".join(map(json.dumps, lines)))
    models = {"fast": "reference:fast?n_ctx=512", "slow": "reference:slow?n_ctx=512"}
    with pytest.raises(PromptTooLong, match=r"long\.jsonl, line 2 has \d+ tokens, and 256 more do not fit"):
        recommend(**models, prompts=path)


def test_prompts_longer_than_half_the_context_are_measured_and_noted(tmp_path: Path) -> None:
    """Reading them is most of the cost, which says little of shorter ones."""
    path = tmp_path / "long.jsonl"
    lines = [{"prompt": f"{number} lamps and ropes? " * 40, "answer": "7"} for number in range(2)]
    lines.append(
        {"messages": [{"role": "user", "content": "How many coins do 3 lamps cost in Saltby?"}], "answer": "9"}
    )
    path.write_text("\n".join(map(json.dumps, lines)))
    with Models() as models:
        longest = len(models.local["fast"].tokenizer.encode(lines[0]["prompt"], add_bos=True))
    context = 16 * (int(1.6 * longest) // 16)
    found = recommend(
        f"reference:fast?n_ctx={context}",
        f"reference:slow?n_ctx={context}",
        path,
        check="slow",
        at_once=1,
        max_tokens=8,
        resamples=100,
    )
    # A busy machine has a note of its own behind them.
    assert all(note.startswith("2 of 3 prompts are longer than half of the context") for note in found.notes[:2])


def test_models_that_hold_fewer_requests_are_measured_with_those(items: list[Any]) -> None:
    found = recommend(
        "reference:fast?n_seq=1", "reference:slow?n_seq=1", items[:4], check="slow", max_tokens=4, resamples=100
    )
    assert found.at_once == 1
    assert found.notes[0] == "4 at once were asked for, and the models hold 1 (n_seq)"
    assert found.figures[0].tokens_per_second_at_once.value is None


def test_as_many_run_at_once_as_is_said(items: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    several: list[tuple[int, int]] = []
    answered = measuring_module._answered

    def spy(router: Router, block: list[Any], at_once: int, options: dict[str, Any]) -> Any:
        several.append((len(block), at_once))
        return answered(router, block, at_once, options)

    monkeypatch.setattr(measuring_module, "_answered", spy)
    models = ("reference:fast?n_seq=10", "reference:slow?n_seq=10")
    many = reference_items("calibration", 21)
    found = recommend(*models, many, check="slow", at_once=10, max_tokens=2, resamples=100)
    assert found.at_once == 10
    assert {pair for pair in several if pair[1] > 1} == {(10, 10), (11, 10)}
    found = recommend(*models, many[:3], check="slow", at_once=10, max_tokens=2, resamples=100)
    assert found.at_once == 3
    assert found.notes[0] == "10 at once were asked for, and there are 3 prompts"


def test_an_answer_in_which_the_slow_model_failed_is_no_figure(
    fast_model: TokenModel, items: list[Any], tmp_path: Path
) -> None:
    """The fast model's text stands there, and would be taken for the slow one's."""
    broken: list[int] = []

    def says(request: Any) -> list[str]:
        broken.append(1)
        if len(broken) == 4:
            raise BackendError("it went away")
        return [" Answer: 7"]

    slow = ScriptedTextModel(says, name="endpoint")
    arguments: dict[str, Any] = {"check": "slow", "at_once": 1, "max_tokens": 8, "resamples": 100, "work": tmp_path}
    with pytest.raises(BackendError, match=r"the slow model failed.*it went away.*goes on from it"):
        recommend(fast_model, slow, items[:6], **arguments)
    assert len(list(tmp_path.glob("slow_alone*.npz"))) == 3
    assert recommend(fast_model, slow, items[:6], **arguments).figures[0].slow_share.value == 1.0


def test_a_copy_of_the_other_model_is_refused(items: list[Any], tmp_path: Path) -> None:
    copy = shutil.copy(reference.path("slow"), tmp_path / "copy.gguf")
    with pytest.raises(ConfigurationError, match="fast and slow are one model"):
        recommend(f"llama_cpp:{reference.path('slow')}", f"llama_cpp:{copy}", items)
    with (
        pytest.raises(ConfigurationError, match="fast and slow are one model"),
        open_pair(f"llama_cpp:{reference.path('slow')}", f"llama_cpp:{copy}"),
    ):
        pass


def test_a_place_that_cannot_be_written_to_is_told_of_before_models_load(items: list[Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CalibrationError, match=r"cannot be written: Not a directory.*name another place"):
        recommend("llama_cpp:none.gguf", "llama_cpp:nor_that.gguf", items, work=tmp_path / "file" / "work")


def test_a_checker_that_finds_nothing_right_is_doubted(
    fast_model: TokenModel, slow_model: TokenModel, items: list[Any], tmp_path: Path
) -> None:
    with pytest.raises(CheckerFailed, match=r"exact finds no right answer of either model in 4 prompts") as caught:
        recommend(fast_model, slow_model, items[:4], check="exact", at_once=1, max_tokens=96, work=tmp_path)
    assert "another checker" in caught.value.hint
    measured = {path.name.partition("-")[0] for path in tmp_path.glob("*-000000.npz")}
    assert measured == {"slow_alone", "fast_alone"}  # and no other mode before that
    with pytest.raises(CheckerFailed, match=r"\(4 answers of the slow model were cut off: more max_tokens\?\)"):
        recommend(fast_model, slow_model, items[:4], at_once=1, max_tokens=2)


def test_a_checker_is_doubted_after_a_few_prompts_and_not_after_all(
    fast_model: TokenModel, slow_model: TokenModel, tmp_path: Path
) -> None:
    many = reference_items("calibration", 64)
    with pytest.raises(CheckerFailed, match="in 16 prompts"):
        recommend(fast_model, slow_model, many, check="exact", at_once=1, max_tokens=4, work=tmp_path)


@pytest.mark.parametrize(
    ("wishes", "said"),
    [
        ({"quality_loss": 1.0}, "a quality loss of 1.0"),
        ({"quality_loss": -0.1}, "a quality loss of -0.1"),
        ({"prefer": "speed"}, "available: seconds, money, flops"),
        ({"prefer": "money"}, "money without prices"),
        ({"at_once": 0}, "at_once=0"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"count": 1}, "at least 2"),
        ({"policies": ["entropee>1"]}, "entropee"),
        ({"fast": "reference:fast"}, "slow is missing"),
        ({"fast": "reference:fast", "slow": "reference:slow"}, "prompts are missing"),
        ({"fast": "reference:slow", "slow": "reference:slow?n_ctx=512", "prompts": "p.jsonl"}, "are one model"),
        ({"report": "page.pdf"}, "end it with .html"),
    ],
)
def test_wishes_that_cannot_be_met_are_refused(
    wishes: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.jsonl").write_text('{"prompt": "a", "answer": "b"}\n{"prompt": "c", "answer": "d"}\n')
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        recommend(**wishes)


def test_one_prompt_is_too_few(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    path.write_text('{"prompt": "a", "answer": "b"}\n{"prompt": "a", "answer": "b"}\n')
    with pytest.raises(InvalidRequest, match="1 different prompts"):
        recommend(prompts=path)


# --- three models, and an endpoint ---------------------------------------------------------------


def test_a_middle_model_is_paired_with_both(fast_model: TokenModel, slow_model: TokenModel, items: list[Any]) -> None:
    middle = reference.load("slow")
    try:
        found = recommend(
            fast_model, slow_model, items[:3], middle=middle, at_once=1, max_tokens=24, check="slow", resamples=100
        )
    finally:
        middle.shutdown()
    figures = by_name(found)
    # It is the slow model once more, so that what the two do together is known.
    assert figures["middle alone"].accuracy.value == 1.0
    assert figures["middle alone"].flops_relative.value == 1.0
    assert figures["replace (middle, slow)"].quality_loss.value == 0.0
    assert figures["speculative 4 (middle, slow)"].mode.lossless
    assert not figures["speculative 4 (fast, middle)"].mode.lossless
    assert figures["speculative 4 (fast, middle)"].quality_loss.value == 0.0
    assert figures["middle alone"].slow_share.value == 0.0
    assert figures["replace"].expected_seconds > 0.0
    assert figures["replace (middle, slow)"].expected_seconds is None  # of a pair that was not measured


def test_a_tuned_model_is_measured_alone_and_in_proxy(
    fast_model: TokenModel, slow_model: TokenModel, items: list[Any]
) -> None:
    tuned = reference.load("slow")  # a tuning that taught the fast model all that the slow one knows
    try:
        found = recommend(
            fast_model, slow_model, items[:3], tuned=tuned, at_once=1, max_tokens=24, check="slow", resamples=100
        )
    finally:
        tuned.shutdown()
    figures = by_name(found)
    assert figures["tuned alone"].accuracy.value == 1.0
    assert figures["tuned alone"].flops_relative.value == 1.0
    # What it reads is paid for: twice the slow model's part beside one fast model's.
    replace, proxy = (figures[name].flops.value for name in ("replace", "proxy"))
    assert proxy > 1.5 * replace
    assert figures["proxy"].expected_seconds is None
    assert found.to_dict()["models"]["tuned"] == tuned.name
    python = as_python(figures["proxy"], found.models, reference=True)
    assert python == f'Router(tuned="{tuned.name}", policy="budget:0.2", method="proxy")'


@pytest.mark.filterwarnings("ignore::fsgen_router.pairing.SmallExtentWarning")
def test_an_endpoint_has_the_modes_that_it_can_do(fast_model: TokenModel, items: list[Any]) -> None:
    answers = {item.messages[0]["content"]: f" Answer: {item.answer}" for item in items}
    slow = ScriptedTextModel(lambda request: [answers[request.messages[0]["content"]]], name="endpoint")
    found = recommend(
        fast_model, slow, items, prefer="money", prices=Prices(1.0, 2.0), at_once=2, max_tokens=64, resamples=200
    )
    figures = by_name(found)
    assert set(figures) == {
        "slow alone", "fast alone", "rest", "at prompt 25%", "at prompt 50%", "at prompt 75%", "at answer 25%",
        "at answer 50%",
    }  # fmt: skip
    assert figures["slow alone"].accuracy.value == 1.0
    assert figures["slow alone"].money_usd.value > 0.0
    assert figures["fast alone"].money_relative.value == 0.0
    assert figures["slow alone"].flops.value is None  # its size is unknown
    assert all(one.expected_seconds is None for one in found.figures)
    with pytest.raises(ConfigurationError, match="does not say its size"):
        recommend(fast_model, slow, items, prefer="flops")


def test_what_is_recommended_runs_as_it_is_printed(
    found: Recommendation, fast_model: TokenModel, slow_model: TokenModel, items: list[Any]
) -> None:
    for one in found.figures:
        if one.derived:
            continue
        with Router(fast_model, slow_model) as router:
            policy, method = (
                ("always,span=rest", "replace") if one.mode.kind == "slow" else (one.mode.policy, one.mode.method)
            )
            assert ask(router.with_policy(policy, method=method), items[0], max_tokens=4).usage.tokens <= 4


# --- how it is shown -----------------------------------------------------------------------------


def test_the_page_holds_all_and_loads_nothing(found: Recommendation) -> None:
    page = render_page(replace(found, source="<script>alert(1)</script>"))
    assert "<script" not in page
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
    for one in found.figures:
        assert one.mode.name in page
    assert "data:image/png;base64," in page


def test_the_command_line(tmp_path: Path) -> None:
    done = CliRunner(env={"COLUMNS": "80"}).invoke(
        app,
        ["recommend", "--count", "9", "--at-once", "2", "--max-tokens", "64", "--report", str(tmp_path / "page.html"),
         "--input-price", "1", "--output-price", "3"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert max(map(len, done.stdout.splitlines())) <= 80
    narrow = CliRunner(env={"COLUMNS": "40"}).invoke(
        app,
        ["recommend", "--count", "9", "--at-once", "2", "--max-tokens", "64", "--work", str(tmp_path / "page.work")],
    )
    assert all(name in narrow.stdout for name in ("slow alone", "speculative 8", "at answer 50%"))
    for words in ("slow alone", "at prompt 75%", "speculative 4", "fsgen-router complete", "Router("):
        assert words in done.stdout
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    # Everything is there already: the same command, for programs.
    options = ["--count", "9", "--at-once", "2", "--max-tokens", "64", "--work", str(tmp_path / "page.work")]
    again = CliRunner().invoke(app, ["recommend", *options, "--json"])
    record = json.loads(again.stdout)
    assert record["n"] == 9
    assert record["prices"] is None
    assert {mode["name"] for mode in record["modes"]} >= {"slow alone", "fast alone"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--prefer", "money"), "prices"),
        (("--input-price", "1"), "one price without the other"),
        (("--fast", "reference:slow", "--slow", "reference:slow", "--prompts", "none.jsonl"), "none.jsonl"),
        (("--check", "guess"), "unknown checker"),
    ],
)
def test_wrong_usage_is_2(arguments: tuple[str, ...], said: str) -> None:
    done = CliRunner().invoke(app, ["recommend", *arguments])
    assert done.exit_code == 2
    assert said in done.output


# --- real files ----------------------------------------------------------------------------------


@pytest.mark.skipif("FSGEN_REAL_MODELS" not in os.environ, reason="FSGEN_REAL_MODELS names no folder of real models")
def test_the_real_pair_example() -> None:
    example = Path(__file__).parents[2] / "examples" / "real_pair.py"
    arguments = ["--models", os.environ["FSGEN_REAL_MODELS"], "--count", "2"]
    done = subprocess.run(
        [sys.executable, str(example), *arguments], capture_output=True, text=True, timeout=1200, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr
    for words in ("by the slow model", "sequential slow steps", "slow alone", "A quick look"):
        assert words in done.stdout
