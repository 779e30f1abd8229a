"""A study's parts, on numbers that can be worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fsgen_router import ConfigurationError, InvalidRequest
from fsgen_router.adapters.scripted import ScriptedTokenizer
from fsgen_router.evaluation import Estimate
from fsgen_router.law import make_table, read_table
from fsgen_router.methods import make_method
from fsgen_router.study.config import StudyConfig, make_study, read_study
from fsgen_router.study.figures import kernel_density, study_figures
from fsgen_router.study.measures import CellResult, Found, Key, measure
from fsgen_router.study.positions import Positions, beginnings
from fsgen_router.study.report import fit_study, render_page, results_csv, results_record
from fsgen_router.study.running import Study, writes_the_slow_text

ROOT = Path(__file__).parents[2]
BASE: dict[str, Any] = {
    "pairs": [{"fast": "reference:fast", "slow": "reference:slow"}],
    "datasets": [{"split": "test"}],
}


# --- what is asked for ---------------------------------------------------------------------------


def test_models_by_size_make_all_their_pairs() -> None:
    models = [{"model": f"llama_cpp:{size}.gguf", "name": size, "size": int(size)} for size in "123"]
    models[0]["tuned"] = "llama_cpp:tuned.gguf"
    study = make_study({"models": models, "datasets": [{"split": "test"}]})
    assert [(pair.fast, pair.slow, pair.tuned) for pair in study.all_pairs()] == [
        ("1", "2", "llama_cpp:tuned.gguf"),
        ("1", "3", "llama_cpp:tuned.gguf"),
        ("2", "3", None),
    ]
    assert study.model("2").model == "llama_cpp:2.gguf"
    assert study.model("reference:fast").model == "reference:fast"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ["replaec"]}, "unknown method 'replaec'"),
        ({"method": ["replace"]}, "unknown option 'method'"),
        ({"methods": ["replace", "replace"]}, "two methods are 'replace'"),
        ({"datasets": [{"split": "test"}, {"split": "test"}]}, "two data sets are 'world-test'"),
        ({"datasets": [{"split": "nowhere"}]}, "unknown split 'nowhere'; available: "),
        ({"datasets": [{}]}, "either a file or a split"),
        ({"datasets": []}, "datasets"),
        ({"pairs": []}, "no pairs"),
        ({"pairs": [{"fast": "a:b"}]}, "pairs.0.slow"),
        ({"models": [{"model": "a:b", "size": "7B"}]}, "models.0.size='7B'"),
        ({"models": [{"model": "a:b", "size": float("inf")}]}, "models.0.size"),
        ({"n": 1}, "n=1"),
        ({"policies": ["best_of:0"]}, "best_of:0 (at least 1"),
        ({"policies": ["never", "never"]}, "two policies are 'never'"),
        ({"seeds": [-1]}, "seeds.0"),
        ({"seeds": []}, "seeds"),
        ({"datasets": [{"split": "test", "matches": "number"}]}, "datasets.0.matches"),
    ],
)
def test_studies_that_are_wrong(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        make_study(BASE | change)
    assert message in str(raised.value)


def test_files_that_are_no_study(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_study(path)
    path.write_text("methods = [")
    with pytest.raises(ConfigurationError, match="not valid TOML"):
        read_study(path)
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigurationError, match="not valid UTF-8 at byte 0"):
        read_study(path)


@pytest.mark.parametrize("name", ["study.toml", "study_real_pair.toml"])
def test_the_examples_are_studies(name: str) -> None:
    study = read_study(ROOT / "examples" / name)
    assert len(study.all_pairs()) == 1


def test_a_file_in_its_own_words_becomes_prompts(tmp_path: Path) -> None:
    """GSM8K's lines: a question, and an answer that ends in its number."""
    path = tmp_path / "gsm8k.jsonl"
    lines = [{"question": f"{k} and {k}?", "answer": f"{k} + {k} = {2 * k}\n#### {2 * k}"} for k in range(9)]
    path.write_text("\n".join(map(json.dumps, lines)))
    settings = {"prompt_key": "question", "match": "number", "chat": True, "instruction": "\nThink."}
    (dataset,) = make_study(BASE | {"datasets": [{"file": str(path), **settings}]}).datasets
    items = dataset.items(5, 0)
    assert len(items) == 5
    assert items[0].messages is not None
    content = items[0].messages[0]["content"]
    assert content.endswith("?\nThink.")
    twice = 2 * int(content.split()[0])
    assert items[0].check(f"It is {twice}.")
    assert not items[0].check(f"It is {twice + 1}.")
    # The same prompts for the same seed, others for another; all of them where there are no more.
    assert [i.messages for i in dataset.items(5, 0)] == [i.messages for i in items]
    assert [i.messages for i in dataset.items(5, 1)] != [i.messages for i in items]
    assert len(dataset.items(20, 0)) == 9
    path.write_text('{"question": 3}')
    with pytest.raises(InvalidRequest, match="line 1"):
        dataset.items(5, 0)


def test_seeds_take_other_problems() -> None:
    (dataset,) = make_study(BASE).datasets
    first, second = ({item.id for item in dataset.items(4, seed)} for seed in (0, 1))
    assert not first & second


@pytest.mark.parametrize(
    ("method", "same"),
    [("replace", True), ("verify", True), ("verify:speculative", True), ("verify:near_best=0.5", False)],
)
def test_methods_that_write_what_the_slow_model_writes(method: str, same: bool) -> None:
    assert writes_the_slow_text(make_method(method)) is same


WORDS = ScriptedTokenizer([bytes([k]) for k in range(128)], eog=[0])
"""Token k is the character with the code k."""


# --- what is measured ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([b"He", b" ran", b".", b" She", b" sat", b"."], [1, 0, 0, 1, 0, 0]),
        ([b"3", b".", b"5", b" apples"], [1, 0, 0, 0]),
        ([b"So", b":", b"\n", b"First", b"\n\n", b"Then"], [1, 0, 0, 1, 0, 1]),
        ([b"Why", b"?", b"\n", b"\n", b"Well"], [1, 0, 0, 0, 1]),
        ([b'"Go', b'."', b" Now"], [1, 0, 1]),
        ([b"caf\xc3", b"\xa9.", b" Yes"], [1, 0, 1]),
        ([], []),
    ],
)
def test_what_begins_a_sentence_or_a_line(pieces: list[bytes], expected: list[int]) -> None:
    assert beginnings(pieces) == expected


def positions_of(answers: list[list[tuple[int, int, float]]]) -> Positions:
    """Answers of (token, the fast model's choice, entropy)."""
    flat = [
        (number, place, len(answer), *one) for number, answer in enumerate(answers) for place, one in enumerate(answer)
    ]
    prompt, place, length, token, choice, entropy = (np.array(column) for column in zip(*flat, strict=True))
    return Positions(
        prompt=prompt,
        place=place,
        length=length,
        token=token,
        fast_choice=choice,
        tuned_choice=np.full(len(flat), -1),
        entropy_nats=entropy,
        max_prob=np.exp(-entropy),
        margin=np.exp(-entropy) / 2,
        token_class=np.full(len(flat), 1),
        begins=(place == 0).astype(np.int64),
    )


def hand_made(prompts: int = 40) -> Found:
    """Of each answer's ten tokens the first and the sixth differ, and only the first of them is uncertain."""
    answer = [(65 + k, 65 + k if k not in (0, 5) else 90, 2.0 if k == 0 else 0.5 + k / 100) for k in range(10)]
    right = np.array([1.0, 0.0] * (prompts // 2))
    quality = {"collaboration": right, "fast": right * 0, "slow": right * 0 + 1}
    return measure(positions_of([answer] * prompts), prompts, quality, WORDS, first_tokens=2)


def test_a_cells_figures_by_hand() -> None:
    found = hand_made()
    assert (found.n, found.tokens) == (40, 400)
    assert found.cof.value == pytest.approx(0.2)
    assert [tenth.value for tenth in found.tenths] == [1, 0, 0, 0, 0, 1, 0, 0, 0, 0]
    assert (found.first.value, found.later.value) == (pytest.approx(0.5), pytest.approx(1 / 8))
    assert (found.begins.value, found.within.value) == (1, pytest.approx(1 / 9))
    assert found.classes["word_start"].value == pytest.approx(0.2)
    assert (found.accuracy.value, found.accuracy_fast.value, found.accuracy_slow.value) == (0.5, 0, 1)
    assert found.gain.value == pytest.approx(-0.5)
    assert found.gain.interval is not None
    assert found.gain.interval[0] < -0.5 < found.gain.interval[1]
    # The first outranks all 8 matches, the sixth the four before it.
    for signal in ("entropy_nats", "max_prob", "margin"):
        assert found.auroc[signal].value == pytest.approx((8 + 4) / 16)
    assert found.cof_tuned.value is None
    assert found.places[:3].tolist() == [0.25, 0.25, 0.0]
    assert np.isnan(found.places[3:]).all()
    shown = found.examples[0]
    assert [(piece.text, piece.instead) for piece in shown] == [("A", "Z"), ("BCDE", None), ("F", "Z"), ("GHIJ", None)]


def test_the_tuned_model_has_a_rate_of_its_own() -> None:
    made = positions_of([[(65, 65, 0.1), (66, 66, 0.1), (67, 90, 1.0), (68, 68, 0.1)]] * 4)
    tuned = Positions(**{**made.to_arrays(), "tuned_choice": made.token + (made.place > 1)})
    found = measure(tuned, 4, {}, WORDS)
    assert found.cof.value == pytest.approx(0.25)
    assert found.cof_tuned.value == pytest.approx(0.5)
    assert found.accuracy.value is None
    assert found.gain.value is None


def test_a_cell_without_a_mismatch_has_rates_and_no_area() -> None:
    found = measure(positions_of([[(65, 65, 0.1), (66, 66, 0.2)]] * 5), 5, {}, WORDS)
    assert found.cof.value == 0
    assert found.auroc["margin"].value is None
    assert found.quartiles["margin"][1] == []
    json.dumps(found.to_dict())


def test_a_kernel_density_is_one() -> None:
    rng = np.random.default_rng(0)
    for values in (rng.beta(2, 8, 200), np.zeros(20), np.array([0.0, 1.0] * 10)):
        grid, density = kernel_density(values)
        assert np.trapezoid(density, grid) == pytest.approx(1, abs=0.01)


# --- what is written -----------------------------------------------------------------------------


def study_of(found: Found) -> Study:
    config = make_study(BASE | {"models": [], "name": "<b>name</b>"})
    keys = [
        Key(fast=f"f{fast}", slow=f"s{slow}", tuned=None, method="replace", dataset="d", seed=0,
            fast_params_b=fast, slow_params_b=slow)
        for fast, slow in ((1, 2), (1, 4), (2, 16), (1, 32))
    ]  # fmt: skip
    failed = CellResult(Key(fast="f", slow="s", tuned=None, method="replace", dataset="d", seed=0), error="no <file>")
    return Study(config, (*(CellResult(key, found) for key in keys), failed))


def test_tables_are_read_by_the_law(tmp_path: Path) -> None:
    study = study_of(hand_made())
    fits = fit_study(study)
    for name, text in (("a.csv", results_csv(study)), ("a.json", json.dumps(results_record(study, fits)))):
        path = tmp_path / name
        path.write_text(text)
        (cell,) = read_table(path).cells
        assert cell.cof.tolist() == pytest.approx([0.2] * 4)
        assert cell.ratio.tolist() == [2, 4, 8, 32]
        assert not cell.problems
        assert cell.notes == ("1 not measured (see their errors in the table)",)
    assert len(fits[0].cell) == 4
    head, row, *_ = results_csv(study).splitlines()
    columns = dict(zip(head.split(","), row.split(","), strict=True))
    assert float(columns["cof_low"]) <= 0.2 <= float(columns["cof_high"])
    assert float(columns["auroc_margin"]) == pytest.approx(0.75)
    # A study whose sizes are unknown says nothing of the law.
    assert make_table("x", []).cells == ()


def test_the_page_is_one_file_and_escapes_what_others_wrote() -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    study = study_of(hand_made())
    fits = fit_study(study)
    figures = study_figures(study.measured, fits)
    assert set(figures) == {"sizes", "ratio", "quality", "first", "places", "signals"}
    assert all(image.startswith(b"\x89PNG") for image in figures.values())
    page = render_page(study, fits, figures)
    assert "<b>name" not in page
    assert "&lt;b&gt;name" in page
    assert "no &lt;file&gt;" in page
    assert page.count("data:image/png;base64,") == 6
    assert "http://" not in page
    assert 'src="http' not in page
    assert "<mark>A<s> Z</s></mark>BCDE<mark>" in page
    assert study_figures([], []) == {}


def test_estimates_without_a_value_are_empty_in_the_table() -> None:
    study = study_of(hand_made())
    assert isinstance(study.config, StudyConfig)
    lines = results_csv(study).splitlines()
    assert lines[-1].endswith("no <file>")
    assert Estimate(None).to_dict("cof") == {"cof": None, "cof_interval": None}
