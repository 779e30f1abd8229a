"""Calibration: prompts, work directory, traces, labels, scorers, thresholds, the whole pipeline and its report."""

from __future__ import annotations

import dataclasses
import json
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from figure_checks import looks
from scripted_pairs import EOG, Script, script, tokenizer
from sklearn import metrics as reference_metrics
from sklearn.svm import SVC
from typer.testing import CliRunner

from fsgen_router import (
    CalibrationError,
    CheckerFailed,
    ConfigurationError,
    InvalidRequest,
    NothingToGain,
    PromptTooLong,
    Router,
)
from fsgen_router import calibration as cal
from fsgen_router.adapters.scripted import ScriptedModel
from fsgen_router.calibration import store, traces
from fsgen_router.calibration.candidates import policy_at
from fsgen_router.calibration.figures import COSTS, quality_figure, reliability_figure
from fsgen_router.calibration.fit import fit_svm
from fsgen_router.calibration.prompts import split_of
from fsgen_router.calibration.report import html_environment, render_report, report_figures
from fsgen_router.calibration.runner import traced_name
from fsgen_router.calibration.target import require_enough_prompts
from fsgen_router.cli import app
from fsgen_router.contracts.models import TokenModel, Work
from fsgen_router.contracts.policy import REST
from fsgen_router.evaluation import SLOW_ONLY, Item, Outcome, Run, reference_items
from fsgen_router.policies import Learned, SpanRule, load_policy
from fsgen_router.policies.features import FEATURES, answer_features
from fsgen_router.policies.scorers import Logistic, Platt, Signal, logits, top_probabilities
from fsgen_router.rows.reading import Row
from fsgen_router.rows.signals import TOP_K

SMALL = {"rounds": 1, "max_tokens": 16}


@pytest.fixture(scope="module")
def router(fast_model: TokenModel, slow_model: TokenModel) -> Router:
    return Router(fast_model, slow_model, policy="never", seed=0)


@pytest.fixture
def work(tmp_path: Path) -> cal.WorkDirectory:
    return cal.WorkDirectory(tmp_path / "work", {"test": 1})


def model(seed: int, name: str, *, own: float = 1.0, n_ctx: int = 256) -> ScriptedModel:
    """Models with one ``shared`` seed often agree; the smaller ``own``, the more often."""
    logits: Script = script(seed, shared=7, own=own, eog_bias=-2.0)
    return ScriptedModel(logits, tokenizer(), name=name, n_ctx=n_ctx)


def scripted() -> Router:
    return Router(model(1, "small", own=0.6), model(2, "large", own=0.2), policy="never", seed=0)


class Watched(ScriptedModel):
    """Notes the threads that call in."""

    def forward(self, works: Sequence[Work]) -> list[list[Row]]:
        self.threads = {*getattr(self, "threads", set()), threading.current_thread().name}
        return super().forward(works)


def texts(count: int) -> list[str]:
    """Different prompts that the scripted vocabulary can write."""
    letters = ("a", "b", " c", "7", ",")
    return ["".join(letters[(number // 5**place) % 5] for place in range(5)) for number in range(count)]


def items(count: int) -> list[Item]:
    return [
        Item(id=str(number), check=lambda _: False, prompt=text, place=f"file, line {number + 1}")
        for number, text in enumerate(texts(count))
    ]


def write_prompts(path: Path, count: int = 60) -> Path:
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts(count)))
    return path


# --- prompts -------------------------------------------------------------------------------------


def test_splits_are_disjoint_and_stay_when_prompts_come_and_go() -> None:
    few, many = cal.split_items(items(300)), cal.split_items(items(900))
    sizes = [len(part) for _, part in many]
    assert sum(sizes) == 900
    assert [round(size / 900, 1) for size in sizes] == [0.3, 0.4, 0.3]
    for split, part in few:
        assert {item.prompt for item in part} <= {item.prompt for item in many[split]}
    assert split_of(items(1)[0], (1, 1e-9, 1e-9)) == "fit"


def test_a_prompt_that_is_repeated_counts_once() -> None:
    prompts = cal.split_items([*items(50), *items(20)])
    assert (len(prompts), prompts.repeated) == (50, 20)
    assert prompts.sha256 == cal.split_items(items(50)).sha256


def test_reference_prompts_share_no_prompt() -> None:
    prompts = cal.reference_prompts(100)
    keys = [{str(item.messages) for item in part} for _, part in prompts]
    assert [len(part) for part in keys] == [30, 40, 30]
    assert len(set().union(*keys)) == 100
    # The test split is for benchmarks.
    assert {item.id.split("/")[0] for _, part in prompts for item in part} == {"fit", "calibration"}


def test_prompts_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    chat = {"messages": [{"role": "user", "content": "é"}], "answer": 3}
    path.write_text("".join(json.dumps(line) + "\n" for line in (*({"prompt": t} for t in texts(30)), chat)))
    prompts = cal.read_prompts(path)
    assert len(prompts) == 31
    (with_answer,) = [item for _, part in prompts for item in part if item.messages]
    assert (with_answer.answer, with_answer.place) == ("3", f"{path}, line 31")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [("{", "line 2: not valid JSON"), ('{"prompt": ""}', "line 2"), ('{"prompt": "a", "answer": []}', "line 2")],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, complaint: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n' + line + "\n")
    with pytest.raises(InvalidRequest, match=complaint):
        cal.read_prompts(path)


def test_files_that_hold_too_little(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n")
    with pytest.raises(InvalidRequest, match="no items"):
        cal.read_prompts(path)
    path.write_text('{"prompt": "a"}\n')
    with pytest.raises(InvalidRequest, match="leave none to"):
        cal.read_prompts(path)
    with pytest.raises(ConfigurationError, match="shares"):
        cal.read_prompts(path, shares=(1, 0, 1))


def test_too_few_prompts_for_any_certificate_says_how_many() -> None:
    prompts = cal.split_items(items(60))
    require_enough_prompts(prompts, cal.make_target(max_regret=0.2))
    # Without a single loss, (1 - 0.05)^n <= 0.1 takes n = 45.
    with pytest.raises(InvalidRequest, match=r"calibration prompts certify nothing.*at least 45") as caught:
        require_enough_prompts(prompts, cal.make_target(max_regret=0.05))
    assert re.search(r"about 1\d\d prompts", str(caught.value))


# --- checkers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "text", "answer", "slow", "right"),
    [
        (None, "Answer: 4", "4", "", True),
        ("number", "it is 4 or 5", "5", "", True),
        ("exact", "Answer: 4", "4", "", False),
        ("slow", "so Answer: 4", "", "well, Answer: 4", True),
        ("slow", "so Answer: 5", "", "well, Answer: 4", False),
        (None, "same", "", "same ", True),
        (r"regex:is (\d+)", "is 3, is 4", "4", "", True),
        (r"regex:is (\d+)", "is 4", "", "here it is 4", True),
        (r"regex:is (\d+)", "nothing", "", "nothing", False),
        ("python:operator:contains", "x", "x", "", False),
    ],
)
def test_checkers(form: str | None, text: str, answer: str, slow: str, right: bool) -> None:
    item = Item(id="1", check=lambda given: given.removeprefix("Answer: ") == answer, prompt="p", answer=answer)
    if form == "python:operator:contains":
        with pytest.raises(CheckerFailed, match="TypeError"):
            cal.bind(cal.make_checker(form, [item]), [item], [slow])[0].check(text)
        return
    assert cal.bind(cal.make_checker(form, [item]), [item], [slow])[0].check(text) is right


@pytest.mark.parametrize(
    ("form", "complaint"),
    [
        ("fuzzy", "unknown checker"),
        ("regex:(", "no regular expression"),
        ("python:json", "names no function"),
        ("python:json:absent", "cannot be imported"),
        ("python:absent_module:f", "cannot be imported"),
        ("python:json:__name__", "not callable"),
    ],
)
def test_checkers_that_do_not_exist(form: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        cal.make_checker(form, items(1))


def test_a_checker_that_needs_answers_names_the_line_without() -> None:
    with pytest.raises(InvalidRequest, match="file, line 1 has no answer"):
        cal.make_checker("number", items(2))


def test_a_checker_that_raises_stops_cleanly_and_names_the_line(tmp_path: Path) -> None:
    def failing(text: str, item: Item) -> bool:
        if item.prompt == texts(4)[3]:
            raise RuntimeError("no verdict")
        return True

    path = write_prompts(tmp_path / "prompts.jsonl")
    pair = scripted()
    with pytest.raises(CheckerFailed, match=r"prompts\.jsonl, line 4: RuntimeError: no verdict"):
        cal.calibrate(pair.fast, pair.slow, path, out=tmp_path / "p.safetensors", check=failing, **SMALL)
    assert not (tmp_path / "p.safetensors").exists()
    assert list((tmp_path / "p.work").glob("*.npz")), "what is finished is kept"


# --- the work directory --------------------------------------------------------------------------


def test_chunks_are_computed_once_and_joined(work: cal.WorkDirectory) -> None:
    calls: list[int] = []

    def compute(chunk: Sequence[int], start: int) -> dict[str, np.ndarray]:
        calls.append(start)
        return {"squares": np.array(chunk) ** 2, **store.pack_texts([f"é{n}" for n in chunk])}

    told: list[int] = []
    first = work.in_chunks("x", range(7), compute, size=3)
    again = work.in_chunks("x", range(7), compute, size=3, on_items=told.append)
    assert calls == [0, 3, 6]
    assert told == [3, 3, 1]
    assert again["squares"].tolist() == first["squares"].tolist() == [n * n for n in range(7)]
    assert store.unpack_texts(again) == [f"é{n}" for n in range(7)]
    rows = [[1, 2], [], [3]]
    assert store.unpack_ids(store.pack_ids(rows)) == rows


def test_a_damaged_chunk_is_made_again(work: cal.WorkDirectory) -> None:
    work.save("x-000000", {"n": np.arange(3)})
    path = work.path / "x-000000.npz"
    path.write_bytes(path.read_bytes()[:-30])
    found = work.in_chunks("x", range(3), lambda chunk, _: {"n": np.array(chunk) + 1}, size=3)
    assert found["n"].tolist() == [1, 2, 3]
    assert work.load("x-000000") is not None


def test_no_pickle_is_written_or_read(work: cal.WorkDirectory) -> None:
    with pytest.raises(ValueError, match="allow_pickle"):
        work.save("objects", {"x": np.array([{}], object)})
    np.savez(work.path / "objects.npz", x=np.array([{}], object))
    assert work.load("objects") is None


def test_a_directory_of_something_else_is_refused(work: cal.WorkDirectory, tmp_path: Path) -> None:
    assert cal.WorkDirectory(work.path, {"test": 1}).path == work.path
    with pytest.raises(ConfigurationError, match="its test differ"):
        cal.WorkDirectory(work.path, {"test": 2})
    (work.path / "manifest.json").write_text("{")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        cal.WorkDirectory(work.path, {"test": 1})
    stray = tmp_path / "stray"
    stray.mkdir()
    (stray / "x.npz").touch()
    with pytest.raises(ConfigurationError, match="no manifest"):
        cal.WorkDirectory(stray, {"test": 1})
    with pytest.raises(ConfigurationError, match="cannot be read"):
        cal.WorkDirectory(stray / "x.npz" / "inside", {"test": 1})


@contextmanager
def full_disk() -> Iterator[None]:
    """Writes fail in the operating system once a file has 2,000 bytes.

    Not a fixture: pytest writes a test's dot before it tears fixtures down, and its own output may be a long file.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    heeded = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, heeded)


def test_a_full_disk_is_a_clear_error_and_leaves_nothing_half_written(work: cal.WorkDirectory) -> None:
    with full_disk():
        work.save("small", {"n": np.arange(3)})
        with pytest.raises(CalibrationError, match=r"large\.npz cannot be written") as caught:
            work.save("large", {"n": np.random.default_rng(0).random(10_000)})
    assert "what is finished is kept" in str(caught.value)
    assert sorted(path.name for path in work.path.iterdir()) == ["manifest.json", "small.npz"]


# --- traces --------------------------------------------------------------------------------------


@pytest.mark.parametrize("extent", [1, 4, 8, REST])
@pytest.mark.parametrize("span", [None, SpanRule(window=4, quantile=0.5, threshold=0.4)])
def test_where_a_policy_decides_is_where_it_did(
    router: Router, work: cal.WorkDirectory, extent: int, span: SpanRule | None
) -> None:
    """Not within the spans that the slow model wrote: a drift monitor counts decisions."""
    policy, asked = Learned(Signal("entropy"), 0.35, extent=extent, span=span), reference_items("fit", 6)
    answers = cal.answer_items(router, asked, policy, work=work, name="a", max_tokens=60)
    found = cal.trace_answers(router, asked, answers, work=work, name="t")
    decided = policy.decided(found.features(), found.prompt)
    run = answers.run(asked, "x")
    for number in range(len(asked)):
        assert decided[found.prompt == number].sum() == run.column("decisions")[number]
    assert decided.all() == (extent == 1)


def test_traces_are_of_one_method() -> None:
    policy = Learned(Signal("entropy"), 0.5)
    assert traced_name(policy, "replace") != traced_name(policy, "verify:near_best=0.9")


def test_a_work_directory_is_of_models_as_they_were_loaded(tmp_path: Path) -> None:
    prompts = cal.reference_prompts(20)
    for n_ctx, same in ((512, True), (512, True), (640, False)):
        with Router("reference:fast", f"reference:slow?n_ctx={n_ctx}", policy="never") as router:
            if same:
                cal.open_bench(router, prompts, tmp_path, max_tokens=2)
                continue
            with pytest.raises(ConfigurationError, match="its models differ"):
                cal.open_bench(router, prompts, tmp_path, max_tokens=2)


@pytest.mark.parametrize("chunk", [3, 256])
def test_a_prefill_sees_what_stepping_saw(
    router: Router, work: cal.WorkDirectory, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    """Signals, choices and features of a routed answer, from the Router's own records."""
    monkeypatch.setattr(traces, "_FORWARD", chunk)
    asked = reference_items("fit", 3)
    answers = cal.answer_items(router, asked, "entropy>0.3", work=work, name="a", max_tokens=40)
    found = cal.trace_answers(router, asked, answers, work=work, name="t")
    audited = router.with_policy("entropy>0.3", method="replace")
    audited.audit = 1.0
    at = 0
    for number, item in enumerate(asked):
        answer = audited.chat(item.messages or (), max_tokens=40)
        rows = found.select(slice(at, at + len(answer.tokens)))  # type: ignore[arg-type]
        assert rows.token.tolist() == [token.id for token in answer.tokens]
        assert rows.fast_choice.tolist() == [token.fast_choice for token in answer.tokens]
        assert rows.slow_choice.tolist() == [token.slow_choice for token in answer.tokens]
        assert set(rows.prompt.tolist()) == {number}
        np.testing.assert_allclose(rows.features(), answer_features(answer.tokens)[1], atol=2e-4)
        at += len(answer.tokens)
    assert at == len(found)
    agree = found.fast_choice == found.slow_choice
    np.testing.assert_allclose(found.slow_logprob[agree], found.slow_logprob_of_fast[agree], atol=1e-5)
    assert bool((found.slow_logprob >= found.slow_logprob_of_fast - 1e-6).all())


def test_the_slow_models_own_answer_is_what_an_oracle_writes(router: Router, work: cal.WorkDirectory) -> None:
    asked = reference_items("fit", 2)
    answers = cal.answer_items(router, asked, SLOW_ONLY, work=work, name="a", max_tokens=40)
    found = cal.trace_answers(router, asked, answers, work=work, name="t", own=True)
    assert found.token.tolist() == found.slow_choice.tolist()
    since = -1
    for position, count, differ in zip(
        found.position.tolist(),
        found.since_escalation.tolist(),
        (found.fast_choice != found.token).tolist(),
        strict=True,
    ):
        since = 0 if position == 0 else since + 1
        assert count == since
        since = -1 if differ else since


def test_traces_survive_a_restart_bit_for_bit(router: Router, work: cal.WorkDirectory) -> None:
    asked = reference_items("fit", 2)
    answers = cal.answer_items(router, asked, SLOW_ONLY, work=work, name="a", max_tokens=20)
    first = cal.trace_answers(router, asked, answers, work=work, name="t", own=True)
    again = cal.trace_answers(router, asked, answers, work=cal.WorkDirectory(work.path, {"test": 1}), name="t")
    assert first.digest() == again.digest()
    assert np.array_equal(first.features(), again.features())


def test_models_with_tiny_vocabularies_are_traced(work: cal.WorkDirectory) -> None:
    """Fewer tokens than signals list."""
    from fsgen_router.adapters.scripted import ScriptedTokenizer

    words = ScriptedTokenizer([b"a", b"b", b"<end>"], eog=[2])

    def logits(ids: Sequence[int]) -> np.ndarray:
        return np.array([len(ids) % 3, 1.5, len(ids) / 4 - 1], np.float32)

    pair = Router(ScriptedModel(logits, words, name="f"), ScriptedModel(logits, words, name="s"), policy="never")
    asked = [Item(id="1", check=bool, prompt="ab")]
    answers = cal.answer_items(pair, asked, "never", work=work, name="a", max_tokens=20)
    found = cal.trace_answers(pair, asked, answers, work=work, name="t")
    assert found.features().shape == (len(found), len(FEATURES))


# --- labels --------------------------------------------------------------------------------------


def test_divergence_tells_neutral_from_divergent(work: cal.WorkDirectory) -> None:
    """Each verdict checked against the slow model's plain greedy loop behind both choices."""
    pair = scripted()
    bound = [Item(id=str(n), check=lambda text: len(text) % 2 == 0, prompt=text) for n, text in enumerate(texts(8))]
    answers = cal.answer_items(pair, bound, SLOW_ONLY, work=work, name="a", max_tokens=16)
    found = cal.trace_answers(pair, bound, answers, work=work, name="t", own=True)
    labels = cal.divergence(pair, bound, found, budget=40, work=work, max_tokens=16)
    assert 0 < labels.rollouts <= 40
    assert labels.neutral + labels.divergent <= labels.rollouts // 2
    assert {labels.neutral > 0, labels.divergent > 0} == {True}
    slow = pair.slow
    assert isinstance(slow, ScriptedModel)
    differ = found.fast_choice != found.slow_choice
    begins = np.flatnonzero(found.position == 0)[found.answer]
    for at in np.flatnonzero(differ & (labels.weights > 0)).tolist():
        prompt = slow.tokenizer.encode(bound[found.prompt[at]].prompt or "", add_bos=True)
        before = found.token[begins[at] : at].tolist()
        right = []
        for choice in (found.slow_choice[at], found.fast_choice[at]):
            written = [*before, int(choice)]
            while len(written) < 16 and written[-1] not in EOG:
                written.append(int(np.argmax(slow.script([*prompt, *written]))))
            pieces = [slow.tokenizer.piece(t) for t in written if t not in slow.tokenizer.special_ids]
            right.append(bound[found.prompt[at]].check(b"".join(pieces).decode(errors="replace")))
        assert right[0]
        assert labels.values[at] == (not right[1])
    assert bool((labels.values[~differ] == 0).all())
    # The same again from disk, and none without a budget.
    again = cal.divergence(pair, bound, found, budget=40, work=work, max_tokens=16)
    assert np.array_equal(again.values, labels.values)
    assert cal.divergence(pair, bound, found, budget=0, work=work).weights[differ].sum() == 0


def test_soft_labels_are_lost_probability(router: Router, work: cal.WorkDirectory) -> None:
    asked = reference_items("fit", 2)
    answers = cal.answer_items(router, asked, "never", work=work, name="a", max_tokens=20)
    found = cal.trace_answers(router, asked, answers, work=work, name="t")
    soft, hard = cal.soft(found), cal.disagreement(found)
    assert bool(((soft.values >= 0) & (soft.values <= 1)).all())
    assert bool((soft.values[hard.values == 0] < 1e-6).all())
    assert bool((soft.values[hard.values == 1] > 0).any())


# --- metrics and fits ----------------------------------------------------------------------------


def test_metrics_agree_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random(500) < 0.2).astype(float)
    scores = np.round(rng.random(500) * 0.5 + labels * 0.2, 2)
    weights = rng.integers(0, 3, 500).astype(float)
    expected = reference_metrics.roc_auc_score(labels, scores, sample_weight=weights)
    assert cal.auroc(scores, labels, weights) == pytest.approx(expected)
    expected = reference_metrics.average_precision_score(labels, scores, sample_weight=weights)
    assert cal.average_precision(scores, labels, weights) == pytest.approx(expected)
    assert np.isnan(cal.auroc(scores, np.zeros(500), weights))


def test_calibration_error_of_known_scores() -> None:
    labels = np.array([0.0, 0.0, 1.0, 1.0])
    ones = np.ones(4)
    assert cal.calibration_error(np.array([0.5, 0.5, 0.5, 0.5]), labels, ones) == pytest.approx(0.0)
    assert cal.calibration_error(np.array([0.2, 0.2, 0.7, 0.7]), labels, ones) == pytest.approx(0.25)


def test_intervals_draw_prompts_and_hold_the_value() -> None:
    rng = np.random.default_rng(1)
    prompts = np.repeat(np.arange(40), 20)
    labels = (rng.random(800) < np.repeat(rng.random(40), 20)).astype(float)
    scores = 0.3 * labels + rng.random(800)
    found = cal.score_metrics({"a": scores, "b": scores / 2}, labels, np.ones(800), prompts, resamples=100)
    low, high = found["a"]["auroc"].interval or (1.0, 0.0)
    assert low < (found["a"]["auroc"].value or 0) < high
    # Paired: a score in the same order has the same interval.
    assert found["a"]["auroc"] == found["b"]["auroc"]
    alone = cal.score_metrics({"a": scores}, labels, np.ones(800), np.zeros(800, int), resamples=20)
    assert alone["a"]["auroc"].interval == (alone["a"]["auroc"].value,) * 2


@pytest.fixture(scope="module")
def positions() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features with a known law: log-odds 3 (max_prob - 0.5) + 2 where the class is digit."""
    rng = np.random.default_rng(2)
    features = np.zeros((2000, len(FEATURES)))
    names = {name: index for index, name in enumerate(FEATURES)}
    features[:, names["max_prob"]] = rng.random(2000)
    features[:, names["entropy_nats"]] = 1 - features[:, names["max_prob"]]
    digit = rng.random(2000) < 0.3
    features[:, names["class_digit"]] = digit
    features[:, names["class_space"]] = ~digit
    features[:, names["token_id"]] = rng.integers(0, 5, 2000)
    odds = 3 * (features[:, names["entropy_nats"]] - 0.5) + 2 * digit - 1
    labels = (rng.random(2000) < 1 / (1 + np.exp(-odds))).astype(float)
    return features, labels, np.arange(2000) // 20


@pytest.mark.parametrize("scorer", cal.SCORERS)
def test_every_scorer_is_fitted_and_serves(scorer: str, positions: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    features, labels, prompts = positions
    fitted = cal.fit_scorer(features, labels, np.ones(len(labels)), prompts, scorer=scorer, seed=3)
    scores = fitted.score(features)
    assert bool(((scores >= 0) & (scores <= 1)).all())
    assert fitted.score_one(tuple(features[5].tolist())) == pytest.approx(scores[5])
    again = cal.fit_scorer(features, labels, np.ones(len(labels)), prompts, scorer=scorer, seed=3)
    assert np.array_equal(again.score(features), scores), "a fit repeats, or a resumed calibration would not"
    if scorer in ("logistic", "mlp"):
        assert cal.auroc(scores, labels, np.ones(len(labels))) > 0.75
        assert cal.calibration_error(scores, labels, np.ones(len(labels))) < 0.05


def test_an_svm_is_scikit_learns_on_as_many_of_either_class() -> None:
    """FS-GEN's router: its decision, and its order, with a score; a file brings it back."""
    rng, names = np.random.default_rng(5), {name: index for index, name in enumerate(FEATURES)}
    features = np.zeros((600, len(FEATURES)))
    best = rng.uniform(0.2, 1.0, 600)
    features[:, names["max_prob"]] = best
    gaps = np.sort(rng.uniform(0.1, 6.0, (600, TOP_K - 1)), axis=1)
    features[:, [names[f"gap_{rank}"] for rank in range(2, TOP_K + 1)]] = gaps
    labels = np.zeros(600)
    labels[np.argsort(best + 0.2 * rng.normal(size=600))[:300]] = 0.9  # soft labels: which side of 1/2 counts
    fitted = fit_svm(features, labels, np.ones(600), seed=1)
    inputs = best[:, None] * np.exp(-np.concatenate([np.zeros((600, 1)), gaps], axis=1))
    assert inputs == pytest.approx(top_probabilities(features, TOP_K))
    machine = SVC(kernel="rbf", gamma="scale").fit(inputs, labels > 0.5)
    scores, decisions = fitted.score(features), machine.decision_function(inputs)
    assert logits(scores) == pytest.approx(decisions, abs=0.02)  # its solver's own tolerance
    clear = np.abs(decisions) > 0.02
    assert np.array_equal((scores > 0.5)[clear], machine.predict(inputs)[clear])
    few = fit_svm(features, labels, np.ones(600), most=100, seed=1)
    assert len(few.vectors) <= 100
    lone = labels.copy()
    lone[labels > 0] = rng.uniform(0.1, 0.4, 300)  # none above 1/2: the middle tells them apart
    assert len(fit_svm(features, lone, np.ones(600)).vectors) > 0


def test_logistic_regression_finds_the_law(positions: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    features, labels, prompts = positions
    fitted = cal.fit_scorer(features, labels, np.ones(len(labels)), prompts, calibration="none")
    assert isinstance(fitted, Logistic)
    even = dict.fromkeys(FEATURES, 0.0) | {"class_space": 1.0, "max_prob": 0.5, "entropy_nats": 0.5}
    digit = even | {"class_space": 0.0, "class_digit": 1.0}
    assert fitted.score_one(tuple(even.values())) == pytest.approx(1 / (1 + np.e), abs=0.05)
    assert fitted.score_one(tuple(digit.values())) == pytest.approx(1 / (1 + np.exp(-1)), abs=0.05)


def test_soft_labels_fit_like_the_coins_they_stand_for(positions: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    features, _, prompts = positions
    chance = np.where(features[:, FEATURES.index("class_digit")] > 0, 0.8, 0.1)
    fitted = cal.fit_scorer(features, chance, np.ones(len(chance)), prompts)
    np.testing.assert_allclose(fitted.score(features), chance, atol=0.05)


def test_weights_of_zero_leave_positions_out(positions: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    features, labels, prompts = positions
    kept = np.arange(len(labels)) % 2 == 0
    spoilt = np.where(kept, labels, 1 - labels)
    whole = cal.fit_scorer(features, spoilt, kept.astype(float), prompts)
    part = cal.fit_scorer(features[kept], labels[kept], np.ones(kept.sum()), prompts[kept])
    np.testing.assert_allclose(whole.score(features), part.score(features), atol=1e-6)


def test_probabilities_and_priors(positions: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    features, labels, prompts = positions
    tilted = np.where(features[:, FEATURES.index("token_id")] == 2, 1.0, labels)
    ones = np.ones(len(labels))
    plain = cal.fit_scorer(features, tilted, ones, prompts, calibration="isotonic")
    prior = cal.fit_scorer(features, tilted, ones, prompts, calibration="isotonic", prior=True)
    assert cal.auroc(prior.score(features), tilted, ones) > cal.auroc(plain.score(features), tilted, ones) + 0.05
    signal = cal.fit_scorer(features, labels, ones, prompts, scorer="entropy", calibration="platt")
    assert isinstance(signal, Platt)
    assert isinstance(signal.inner, Signal)


def test_what_cannot_be_fitted(positions: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    features, labels, prompts = positions
    with pytest.raises(CalibrationError, match="nothing to learn"):
        cal.fit_scorer(features, np.zeros(len(labels)), np.ones(len(labels)), prompts)
    with pytest.raises(ConfigurationError, match="available: logistic"):
        cal.fit_scorer(features, labels, np.ones(len(labels)), prompts, scorer="forest")


# --- thresholds ----------------------------------------------------------------------------------


def runner_for(router: Router, work: cal.WorkDirectory, count: int = 12, split: str = "x") -> cal.Runner:
    return cal.Runner(router, reference_items("calibration", count), work, split, {"max_tokens": 80, "seed": 0})


def test_answers_that_thresholds_share_are_the_answers_that_are_written(
    router: Router, work: cal.WorkDirectory
) -> None:
    shared = runner_for(router, work)
    asked = 0
    for threshold in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6):
        policy = Learned(Signal("entropy"), threshold)
        before = router.fast
        found = shared.answers(policy)
        alone = cal.answer_items(
            router, shared.items, policy, work=work, name=f"alone-{threshold}", max_tokens=80, seed=0
        )
        assert found.ids == alone.ids
        without_seconds = [name for name in range(found.counters.shape[1]) if name != seconds_column()]
        # Scores depend in their last bits on how much was read at once.
        np.testing.assert_allclose(found.counters[:, without_seconds], alone.counters[:, without_seconds], rtol=1e-6)
        asked += found.counters[:, seconds_column()].tolist() != alone.counters[:, seconds_column()].tolist()
        assert before is router.fast


def test_rows_that_were_kept_are_put_back_as_far_as_there_is_room(router: Router, work: cal.WorkDirectory) -> None:
    rows = cal.SharedRows(router, work)
    rows.router.complete("How many coins do 3 lamps cost in Saltby?", max_tokens=8)
    rows.save()
    rows.router.close()
    for limit, some in ((1 << 20, True), (0, False)):
        again = cal.SharedRows(router, work, limit_bytes=limit)
        assert (len(again.models["fast"].trie) > 1) is some
        again.router.close()


def test_answers_are_read_whole_where_live_forwards_run(work: cal.WorkDirectory) -> None:
    """Beside them, on the same cores, both would take far longer."""
    fast, slow = (
        Watched(script(seed, shared=7, eog_bias=-2.0), tokenizer(), name=str(seed), n_ctx=256) for seed in (1, 2)
    )
    with Router(fast, slow, policy="never", seed=0, batching=True) as router:
        rows = cal.SharedRows(router, work)
        runner = cal.Runner(rows.router, items(8), work, "x", {"max_tokens": 20}, concurrency=4, behind=rows.read_both)
        runner.answers(SLOW_ONLY, traced=True)
        assert rows.used["fast"].positions
        assert rows.used["slow"].positions
        assert fast.threads == {"fsgen-fast"}
        assert slow.threads == {"fsgen-slow"}
        rows.router.close()


def seconds_column() -> int:
    return list(Outcome.__dataclass_fields__).index("seconds")


def outcomes(right: Sequence[int], escalations: int = 10) -> Run:
    return Run(
        "made", tuple(Outcome(right=bool(r), decisions=100, escalations=escalations, seconds=1.0) for r in right)
    )


class Canned:
    """Runs of candidates that are given and not run: how many answers each loses."""

    def __init__(self, losses: Sequence[int], n: int, rates: Sequence[int] | None = None) -> None:
        self.n, self.ran = n, 0
        self.candidates = [Learned(Signal("entropy"), 0.1 * (k + 1)) for k in range(len(losses))]
        rates = rates or [60 - 10 * k for k in range(len(losses))]
        self.results = {
            policy.threshold: outcomes([0] * lost + [1] * (n - lost), rate)
            for policy, lost, rate in zip(self.candidates, losses, rates, strict=True)
        }

    def run(self, policy: Learned, method: str = "replace") -> Run:
        self.ran += 1
        return self.results[policy.threshold]

    def shuffled(self) -> Canned:
        """With the lost answers spread out, for a test that stops early."""
        for threshold, run in self.results.items():
            order = np.random.default_rng(0).permutation(self.n)
            self.results[threshold] = Run(run.policy, tuple(run.outcomes[at] for at in order))
        return self


class Stopping(Canned):
    """The same, and how many prompts of each candidate were looked at."""

    def __init__(self, losses: Sequence[int], n: int) -> None:
        super().__init__(losses, n)
        self.seen: dict[float, int] = {}

    def run(self, policy: Learned, method: str = "replace", *, first: int | None = None) -> Run:
        self.seen[policy.threshold] = first or self.n
        return super().run(policy, method).first(first or self.n)


def test_testing_stops_at_the_first_candidate_that_fails() -> None:
    canned = Canned([0, 1, 30, 0], 200)
    choice = cal.choose_certified(canned, canned.candidates, outcomes([1] * 200), alpha=0.05, delta=0.1)  # type: ignore[arg-type]
    assert canned.ran == 3, "the one behind the failure needs no run"
    assert choice.policy is not None
    assert choice.policy.threshold == canned.candidates[1].threshold
    assert choice.policy.guarantee().holds
    assert choice.certified
    assert choice.reason.startswith("Certified on prompts like the 200 of calibration: regret at most 5%")
    assert choice.guarantee is not None
    assert (choice.guarantee.risk, choice.guarantee.certified_rate) == (1 / 200, 0.5)
    assert not choice.always


def test_testing_by_bets_stops_within_a_candidate_too() -> None:
    canned = Stopping([0, 2, 60, 0], 200).shuffled()
    assert isinstance(canned, Stopping)
    bets = {"alpha": 0.05, "delta": 0.1, "bound": "betting"}
    choice = cal.choose_certified(canned, canned.candidates, outcomes([1] * 200), **bets)  # type: ignore[arg-type]
    clean, second, lossy = (canned.seen[policy.threshold] for policy in canned.candidates[:3])
    assert clean == 60, "where nothing is lost, 59 prompts do"
    assert 60 < second < 200
    assert lossy < 100, "what cannot be certified any more is given up"
    assert len(canned.seen) == 3
    assert choice.policy is not None
    assert choice.policy.threshold == canned.candidates[1].threshold
    assert choice.guarantee is not None
    assert (choice.guarantee.bound, choice.guarantee.n_prompts) == ("betting", second)
    assert choice.guarantee.p_value <= 0.1
    assert choice.reason.startswith(f"Certified on prompts like the {second} of calibration: regret at most 5%")
    # Where nothing is certified, what is chosen by is seen on all prompts.
    canned = Stopping([3, 5, 60], 60)
    choice = cal.choose_certified(canned, canned.candidates, outcomes([1] * 60), certain=False, **bets)  # type: ignore[arg-type]
    assert not choice.certified
    assert [len(run) for _, run in choice.tried] == [60] * len(choice.tried)


def test_nothing_but_always_escalating_says_so() -> None:
    canned = Canned([4, 0], 100)
    choice = cal.choose_certified(canned, canned.candidates, outcomes([1] * 100), alpha=0.05, delta=0.1)  # type: ignore[arg-type]
    assert choice.always
    assert choice.policy is not None
    assert choice.policy.threshold < 0
    assert choice.guarantee is not None
    assert choice.guarantee.certified_rate == 1.0
    assert "saves nothing" in choice.reason
    assert not choice.certified
    assert choice.enough_prompts is not None
    assert choice.enough_prompts > 100


def test_nothing_at_all_can_be_certified() -> None:
    canned = Canned([0], 20)
    choice = cal.choose_certified(canned, canned.candidates, outcomes([1] * 20), alpha=0.05, delta=0.1)  # type: ignore[arg-type]
    assert (choice.policy, choice.guarantee, canned.ran) == (None, None, 0)
    assert choice.enough_prompts is not None
    assert choice.enough_prompts >= 45
    assert choice.reason.startswith("Nothing is certified: 20 calibration prompts are too few")
    assert not choice.certified


def test_without_a_target_the_least_escalation_is_looked_for_and_certified_if_possible() -> None:
    """It was an escalation rate of 20% until now, whatever less would have done."""
    target = cal.make_target()
    assert (target.rate, target.max_cost, target.max_regret, target.confidence) == (None, None, 0.05, 0.9)
    assert str(target) == "the least escalation with regret at most 5% at confidence 90%, certified if possible"
    assert str(cal.make_target(max_regret=0.025, confidence=0.95)).endswith("regret at most 2.5% at confidence 95%")
    canned = Canned([0, 1, 30, 0], 200)
    found = [
        cal.choose_certified(canned, canned.candidates, outcomes([1] * 200), alpha=0.05, delta=0.1, certain=certain)  # type: ignore[arg-type]
        for certain in (True, False)
    ]
    assert found[0].reason == found[1].reason
    assert found[0].policy == found[1].policy


@pytest.mark.parametrize(
    ("lost", "n", "chosen", "why"),
    [
        ([0, 1, 1, 9], 20, 2, "20 calibration prompts are too few for regret at most 5% at confidence 90%"),
        ([4, 5, 9], 100, 1, r"do not show regret at most 5% at confidence 90% of the next candidate \(here 4.0%\)"),
    ],
)
def test_what_cannot_be_certified_is_chosen_by_what_was_seen_and_says_so_first(
    lost: list[int], n: int, chosen: int, why: str
) -> None:
    canned = Canned(lost, n)
    certify = {"alpha": 0.05, "delta": 0.1, "certain": False}
    choice = cal.choose_certified(canned, canned.candidates, outcomes([1] * n), **certify)  # type: ignore[arg-type]
    assert choice.policy is not None
    assert choice.policy.threshold == canned.candidates[chosen].threshold
    assert choice.policy.guarantee() is choice.guarantee is None
    assert not choice.certified
    assert re.match(rf"Not certified: .*{why}", choice.reason)
    assert choice.reason.endswith("That is no bound for other prompts")
    assert canned.ran == len(lost), "the first that is beyond the limit ends it"


def test_where_nothing_saves_anything_always_escalating_is_left() -> None:
    canned = Canned([30, 0], 100)
    certify = {"alpha": 0.05, "delta": 0.1, "certain": False}
    choice = cal.choose_certified(canned, canned.candidates, outcomes([1] * 100), **certify)  # type: ignore[arg-type]
    assert choice.always
    assert choice.reason.endswith("more prompts would probably not help")
    few = Canned([9], 20)
    choice = cal.choose_certified(few, few.candidates, outcomes([1] * 20), **certify)  # type: ignore[arg-type]
    assert choice.policy is None


def test_a_verdict_on_a_rate_or_a_cost_claims_nothing_and_does_not_read_as_what_is_needed() -> None:
    canned = Canned([0] * 6, 10, rates=[60, 50, 40, 30, 20, 10])
    slow = outcomes([1] * 10)
    by_rate = cal.choose_rate(canned, canned.candidates, 0.35)  # type: ignore[arg-type]
    by_cost = cal.choose_cost(canned, canned.candidates, 1.0, slow)  # type: ignore[arg-type]
    for choice in (by_rate, by_cost):
        assert choice.reason.startswith("Not certified: nothing is claimed about quality. The target was ")
    assert "The target was an escalation rate, 35%," in by_rate.reason
    assert "escalates most: 30.0% of the decisions" in by_rate.reason


def test_candidates_are_spaced_by_the_decisions_that_they_change() -> None:
    """Each keeps about 7/8 of the escalations of the one before, down to a few in a thousand."""
    rng = np.random.default_rng(0)
    scores, answer = rng.beta(0.05, 2, 20_000), np.arange(20_000) // 40
    made = cal.candidate_policies(Signal("entropy"), scores, answer)
    rates = np.array([(scores > policy.threshold).mean() for policy in made])
    assert rates[0] == pytest.approx(0.6, abs=0.001)
    assert rates[-1] < 0.004
    assert (rates[1:] / rates[:-1]).min() > 0.85
    # Where many scores are equal, no threshold lies between: one candidate on either side, and none twice.
    level = np.where(np.arange(20_000) < 3000, 0.5, 0.1)
    level[:100] = 0.9
    counts = [
        int((level > policy.threshold).sum()) for policy in cal.candidate_policies(Signal("entropy"), level, answer)
    ]
    assert counts == [3000, 100, 0]


def test_regret_counts_what_the_slow_model_had_right() -> None:
    assert cal.regret(outcomes([1, 0, 1, 0]), outcomes([1, 1, 0, 0])).tolist() == [0, 1, 0, 0]


def test_a_rate_is_met_from_below_by_bisection() -> None:
    canned = Canned([0] * 6, 10, rates=[60, 50, 40, 30, 20, 10])
    choice = cal.choose_rate(canned, canned.candidates, 0.35)  # type: ignore[arg-type]
    assert choice.policy is not None
    assert choice.policy.threshold == canned.candidates[3].threshold
    assert canned.ran <= 4
    assert cal.choose_rate(canned, canned.candidates, 0.05).policy is None  # type: ignore[arg-type]


def test_a_cost_is_met_in_measured_seconds() -> None:
    canned = Canned([0] * 3, 10)
    choice = cal.choose_cost(canned, canned.candidates, 1.0, outcomes([1] * 10))  # type: ignore[arg-type]
    assert choice.policy is not None
    assert choice.policy.threshold == canned.candidates[0].threshold
    assert cal.choose_cost(canned, canned.candidates, 0.5, outcomes([1] * 10)).policy is None  # type: ignore[arg-type]


def test_a_threshold_that_follows_a_rate_needs_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"hold without a target rate.*--target-rate"):
        cal.calibrate(out=tmp_path / "p.safetensors", hold=True, count=20)


@pytest.mark.parametrize("target", [{"target_rate": 0}, {"target_rate": 0.1, "max_cost": 1}, {"max_cost": 0}])
def test_targets_that_make_no_sense(target: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError):
        cal.make_target(**target)


def test_spans_have_their_own_threshold() -> None:
    scores, answer = np.linspace(0, 1, 200), np.arange(200) // 20
    policy = policy_at(Signal("entropy"), scores, answer, 0.25, extent=4, span=cal.Span(8, 0.5))
    assert policy.span is not None
    assert (policy.extent, policy.span.window) == (4, 8)
    # No window reaches over two answers, or the jump between them would be in it.
    jumps = np.where(answer % 2 == 0, 0.0, 1.0)
    highest = policy_at(Signal("entropy"), jumps, answer, 0.5, span=cal.Span(2, 0.5)).span
    assert highest is not None
    assert highest.threshold in (0.0, 0.5, 1.0)
    assert policy.threshold == pytest.approx(0.75)
    assert policy.span.threshold == pytest.approx(0.75, abs=0.02)


# --- all of it -----------------------------------------------------------------------------------


def test_a_policy_from_prompts_to_the_router(tmp_path: Path, fast_model: TokenModel, slow_model: TokenModel) -> None:
    out, page = tmp_path / "policy.safetensors", tmp_path / "report.html"
    found = cal.calibrate(
        fast_model,
        slow_model,
        cal.reference_prompts(44, shares=(1, 1, 2)),
        out=out,
        max_regret=0.3,
        report=page,
        rounds=1,
        max_tokens=100,
        curves=True,
        curve_rates=(0.1,),
    )
    assert found.policy is not None
    assert found.choice.guarantee is not None
    policy, card = load_policy(out)
    assert policy.guarantee().holds
    assert policy.inputs is not None
    assert policy.inputs.forms == ("messages",)
    assert policy.drift is not None
    # What other thresholds did on the same prompts goes with it.
    assert [point.threshold for point in policy.curve] == sorted(one.threshold for one, _ in found.choice.tried)
    own = next(point for point in policy.curve if point.threshold == policy.threshold)
    assert (own.n_prompts, own.risk) == (11, found.choice.guarantee.risk)
    assert own.escalation_rate == found.choice.guarantee.certified_rate
    assert card.splits == {"fit": 11, "calibration": 11, "report": 22}
    assert card.data_hash == found.prompts.sha256
    assert card.guarantee is not None
    assert (card.guarantee.alpha, card.guarantee.n_prompts) == (0.3, 11)
    assert card.metrics["learned_auroc"].value is not None
    assert {"learned_auroc", "max_prob_auroc", "masked_entropy_auroc"} <= set(card.metrics)
    with Router(fast_model, slow_model, policy=policy) as routed:
        assert routed.chat([{"role": "user", "content": "How many coins are 2 and 3?"}], max_tokens=10).tokens
    record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert {"gap", "gap_interval", "rounds", "candidates", "report", "seconds"} <= set(record)
    assert [one["round"] for one in record["rounds"]] == [0, 1]
    text = page.read_text()
    assert "Certified on prompts like the 11 of calibration: regret at most 30%" in text
    assert not re.search(r"(?:src|href)=\"(?!data:)", text), "self-contained"
    assert text.count("data:image/png;base64,") == 4
    for name in ("escalation", "slow_forwards", "cost", "reliability"):
        assert (tmp_path / f"report-{name}.png").read_bytes().startswith(b"\x89PNG")
    ways = {"learned", "entropy", "masked_entropy", "random", "oracle", "whole query"}
    assert ways <= set(record["report"]["curves"])
    assert found.held is not None
    assert found.held.curves is not None
    for cost in COSTS:
        figure = quality_figure(found.held.curves, cost, pair="small + large", method="replace")
        assert all(words in figure.get_suptitle() for words in ("small + large", "replace", "22 prompts"))
        for axes in figure.axes:
            shown = looks(axes)
            assert len(shown) == len({colour for colour, *_ in shown}) == len(figure.legends[0].get_texts()) - 3
    figure = reliability_figure(found.held.reliability, pair="small + large", method="replace", n=22)
    assert all(words in figure.get_suptitle() for words in ("small + large", "replace", "22 prompts"))
    shown = looks(figure.axes[0])
    assert len(shown) == len(set(shown)) == len(found.held.reliability)
    # Another target over the same work directory reads all traces that it can.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "policy.work").glob("traces-fit*")}
    cal.calibrate(
        fast_model,
        slow_model,
        cal.reference_prompts(44, shares=(1, 1, 2)),
        out=out,
        target_rate=0.2,
        rounds=1,
        max_tokens=100,
        hold=True,
    )
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert load_policy(out)[0].hold is not None


def used(bench: cal.Bench) -> int:
    return bench.rows.used["slow"].positions + bench.rows.used["fast"].positions


@pytest.mark.parametrize("method", ["replace", "verify"])
def test_rows_are_shared_and_nobody_can_tell(tmp_path: Path, method: str) -> None:
    """Every answer token for token, every counter and the certificate, with the trie and without."""
    prompts, target = cal.split_items(items(60)), cal.make_target(max_regret=0.2)
    benches, choices = [], []
    for memory in (1 << 20, 0):
        bench = cal.open_bench(
            scripted(), prompts, tmp_path / str(memory), max_tokens=16, rounds=1, row_memory=memory, method=method
        )
        fitted = cal.collect_and_fit(bench, target)
        choices.append(cal.choose(bench, fitted, target))
        assert choices[-1].policy is not None
        cal.hold_out(bench, fitted, choices[-1].policy)
        benches.append(bench)
    shared, plain = benches
    assert shared.runners["fit"].concurrency == 4, "as many at once as both models hold"
    assert choices[0].guarantee == choices[1].guarantee
    assert choices[0].guarantee is not None
    assert choices[0].reason == choices[1].reason
    names = sorted(path.name for path in plain.work.path.glob("*.npz"))
    assert names == sorted(path.name for path in shared.work.path.glob("*.npz") if not path.name.startswith("rows-"))
    for name in (name for name in names if not name.startswith("traces")):
        ours, theirs = (np.load(bench.work.path / name) for bench in benches)
        assert ours["ids"].tolist() == theirs["ids"].tolist()
        assert ours["by_slow"].tolist() == theirs["by_slow"].tolist()
        np.testing.assert_array_equal(ours["counters"], theirs["counters"])
    assert used(shared) < 0.9 * used(plain)


def test_an_answer_out_of_a_trie_has_no_seconds_and_a_cost_is_measured_without(tmp_path: Path) -> None:
    pair = scripted()
    bench = cal.open_bench(pair, cal.split_items(items(60)), tmp_path / "work", max_tokens=16, rounds=0)
    assert np.isnan(bench.run("report", SLOW_ONLY).column("seconds")).all()
    assert isinstance(pair.slow, ScriptedModel)
    before = pair.slow.forwards
    timed = bench.timed("report", 5)
    assert (timed.run(SLOW_ONLY).column("seconds") > 0).all()
    assert pair.slow.forwards > before
    assert len(timed.items) == 5
    target = cal.make_target(max_cost=1000.0)
    choice = cal.choose(bench, cal.collect_and_fit(bench, target), target)
    assert choice.policy is not None
    assert all((run.column("seconds") > 0).all() for _, run in choice.tried)


def test_rows_are_found_again_by_who_goes_on(tmp_path: Path) -> None:
    prompts, target = cal.split_items(items(60)), cal.make_target(max_regret=0.2)
    options = {"max_tokens": 16, "rounds": 1}
    first = cal.open_bench(scripted(), prompts, tmp_path / "work", **options)
    cal.collect_and_fit(first, target)
    again = cal.open_bench(scripted(), prompts, tmp_path / "work", **options)
    assert [len(again.rows.models[role].trie) for role in ("fast", "slow")] == [
        len(first.rows.models[role].trie) for role in ("fast", "slow")
    ]
    # What is answered is found, and what else is asked of the same text is known.
    cal.collect_and_fit(again, target)
    for path in first.work.path.glob("traces-*.npz"):
        path.unlink()
    cal.collect_and_fit(again, target)
    assert used(again) == 0
    # A damaged chunk ends what is taken: the rest is read again.
    chunk = sorted(first.work.path.glob("rows-slow-*.npz"))[1]
    chunk.write_bytes(chunk.read_bytes()[:100])
    third = cal.open_bench(scripted(), prompts, tmp_path / "work", **options)
    assert 0 < len(third.rows.models["slow"].trie) < len(first.rows.models["slow"].trie)


def test_a_certificate_by_bets_from_prompts_to_the_file(
    tmp_path: Path, fast_model: TokenModel, slow_model: TokenModel
) -> None:
    prompts = cal.reference_prompts(44, shares=(1, 2, 1))
    out = tmp_path / "p.safetensors"
    options = {"max_regret": 0.5, "bound": "betting", "rounds": 0, "max_tokens": 100}
    found = cal.calibrate(fast_model, slow_model, prompts, out=out, **options)  # type: ignore[arg-type]
    assert found.choice.certified
    _, card = load_policy(out)
    assert card.guarantee is not None
    assert card.guarantee.bound == "betting"
    assert card.guarantee.n_prompts < len(found.prompts.calibration)
    path, pair = write_prompts(tmp_path / "prompts.jsonl", 80), scripted()
    with pytest.raises(ConfigurationError, match="available: binomial, betting"):
        cal.calibrate(pair.fast, pair.slow, path, out=out, max_regret=0.3, bound="bayes", **SMALL)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="takes at least"):
        require_enough_prompts(cal.split_items(items(120)), cal.make_target(max_regret=0.05, bound="betting"))


def test_scripted_pairs_calibrate_by_agreement_and_escape_what_models_write(tmp_path: Path) -> None:
    """No answers in the file; tokens like <control> appear in the page only escaped."""
    path, pair = write_prompts(tmp_path / "prompts.jsonl", 40), scripted()
    page = tmp_path / "report.html"
    found = cal.calibrate(
        pair.fast, pair.slow, path, out=tmp_path / "p.safetensors", target_rate=0.4, report=page, label="disagreement",
        **SMALL,
    )  # fmt: skip
    assert found.held is not None
    assert found.held.slow.accuracy == 1.0
    assert found.policy is not None
    text = page.read_text()
    assert "<control>" not in text
    assert "<end>" not in text
    assert "&lt;" in text


def test_a_target_that_no_candidate_meets_writes_no_policy(tmp_path: Path) -> None:
    path, pair = write_prompts(tmp_path / "prompts.jsonl", 40), scripted()
    out, page = tmp_path / "p.safetensors", tmp_path / "report.html"
    found = cal.calibrate(pair.fast, pair.slow, path, out=out, target_rate=1e-6, report=page, **SMALL)
    assert (found.policy, found.card, found.to_dict()["policy"]) == (None, None, None)
    assert not out.exists()
    assert "No threshold was chosen: even the highest candidate escalates" in page.read_text()


def test_the_page_says_what_is_not_certified(tmp_path: Path) -> None:
    path, pair = write_prompts(tmp_path / "prompts.jsonl", 40), scripted()
    found = cal.calibrate(pair.fast, pair.slow, path, out=tmp_path / "p.safetensors", target_rate=0.4, **SMALL)
    figures = report_figures(found)
    assert set(figures) == {"reliability"}
    certify = {"alpha": 0.05, "delta": 0.1}
    slow, target = outcomes([1] * 100), cal.make_target(max_regret=0.05)
    lossy, few = Canned([4, 0], 100), Canned([0], 20)
    always = cal.choose_certified(lossy, lossy.candidates, slow, **certify)  # type: ignore[arg-type]
    nothing = cal.choose_certified(few, few.candidates, outcomes([1] * 20), **certify)  # type: ignore[arg-type]
    page = render_report(dataclasses.replace(found, choice=always, target=target), figures)
    assert "Only “always escalate” is certified" in page
    assert f"about {always.enough_prompts} calibration prompts" in page
    page = render_report(dataclasses.replace(found, choice=nothing, target=target, policy=None), figures)
    assert "Nothing is certified: 20 calibration prompts are too few" in page
    assert "No policy was written." in page


def test_markup_that_a_model_writes_stays_text(tmp_path: Path) -> None:
    template = html_environment().from_string("<td>{{ text|shown }}</td>")
    assert template.render(text="<script>alert(1)</script>") == "<td>&lt;script&gt;alert(1)&lt;/script&gt;</td>"


def test_a_pair_without_a_gap_stops_and_says_so(tmp_path: Path) -> None:
    path = write_prompts(tmp_path / "prompts.jsonl", 40)
    with pytest.raises(NothingToGain, match="nothing to gain"):
        cal.calibrate(model(1, "one"), model(1, "twin"), path, out=tmp_path / "p.safetensors", **SMALL)
    assert not (tmp_path / "p.safetensors").exists()


def test_another_pair_or_another_file_is_refused(tmp_path: Path) -> None:
    prompts = cal.split_items(items(40))
    pair = scripted()
    cal.open_bench(pair, prompts, tmp_path / "work", max_tokens=8)
    cal.open_bench(pair, prompts, tmp_path / "work", max_tokens=8, scorer="mlp")
    other = Router(model(1, "small"), model(3, "larger"), policy="never")
    with pytest.raises(ConfigurationError, match="its pair differ"):
        cal.open_bench(other, prompts, tmp_path / "work", max_tokens=8)
    with pytest.raises(ConfigurationError, match="its prompts differ"):
        cal.open_bench(pair, cal.split_items(items(41)), tmp_path / "work", max_tokens=8)
    with pytest.raises(ConfigurationError, match="its options differ"):
        cal.open_bench(pair, prompts, tmp_path / "work", max_tokens=9)


def test_a_prompt_over_the_context_is_named(tmp_path: Path) -> None:
    long = Item(id="17", check=bool, prompt="a" * 300)
    with pytest.raises(PromptTooLong, match="item 17"):
        cal.open_bench(scripted(), cal.split_items([*items(40), long]), tmp_path / "work", max_tokens=8)


def test_prompts_without_room_for_an_answer_are_told_before_anything_runs(tmp_path: Path) -> None:
    """More than half of the context, and answers would be cut off; with room for the answers nobody complains."""
    pair = scripted()
    long = Item(id="17", check=bool, prompt="a" * 240, place="prompts.jsonl, line 17")
    prompts = cal.split_items([*items(40), long])
    with pytest.raises(PromptTooLong, match=r"item 17 \(prompts.jsonl, line 17\) has 240 tokens, more than half of"):
        cal.open_bench(pair, prompts, tmp_path / "work", max_tokens=32)
    assert isinstance(pair.slow, ScriptedModel)
    assert not pair.slow.works
    cal.open_bench(pair, prompts, tmp_path / "work", max_tokens=16)


def test_a_checker_that_finds_no_right_answer_of_either_model(tmp_path: Path) -> None:
    pair = scripted()
    bench = cal.open_bench(
        pair, cal.split_items(items(40)), tmp_path / "work", check=lambda text, item: False, max_tokens=8
    )
    with pytest.raises(NothingToGain, match=r"finds no right answer of either model to \d+ prompts") as error:
        cal.require_gap(bench)
    assert "cut off at 8 tokens" in str(error.value)
    assert "--check" in str(error.value)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"out": "policy.bin"}, "end it with .safetensors"),
        ({"out": "absent/p.safetensors"}, "no folder"),
        ({"report": "r.txt"}, "end it with .html"),
        ({"label": "guess"}, "label"),
        ({"scorer": "forest"}, "available: logistic"),
        ({"shape": 3}, "unknown option 'shape'"),
        ({"method": "vote"}, "unknown method"),
        ({"target_rate": 0.1, "max_regret": 0.1}, "exactly one"),
    ],
)
def test_wrong_options_are_told_before_anything_runs(
    tmp_path: Path, options: dict[str, object], complaint: str
) -> None:
    path, pair = write_prompts(tmp_path / "prompts.jsonl"), scripted()
    for name in ("out", "report"):
        if name in options:
            options = {**options, name: tmp_path / str(options[name])}
    with pytest.raises(ConfigurationError, match=complaint):
        cal.calibrate(pair.fast, pair.slow, path, **{"out": tmp_path / "p.safetensors", **options})  # type: ignore[arg-type]
    assert isinstance(pair.slow, ScriptedModel)
    assert not pair.slow.works


class Interrupting(cal.Silent):
    """Ctrl-C after so many prompts."""

    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, count: int) -> None:
        self.left -= count
        if self.left <= 0:
            raise KeyboardInterrupt


def test_an_interrupted_calibration_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path, out, whole = write_prompts(tmp_path / "p.jsonl", 40), tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    stopped = 0
    for after in (50, 90, 130):
        pair = scripted()
        try:
            cal.calibrate(pair.fast, pair.slow, path, out=out, target_rate=0.2, progress=Interrupting(after), **SMALL)
        except KeyboardInterrupt:
            stopped += 1
    assert stopped == 3
    assert not out.exists()
    finished, fresh = scripted(), scripted()
    cal.calibrate(finished.fast, finished.slow, path, out=out, target_rate=0.2, **SMALL)
    cal.calibrate(fresh.fast, fresh.slow, path, out=whole, target_rate=0.2, **SMALL)
    assert load_policy(out)[0].digest == load_policy(whole)[0].digest
    assert isinstance(finished.slow, ScriptedModel)
    assert isinstance(fresh.slow, ScriptedModel)
    assert len(finished.slow.works) < len(fresh.slow.works) / 2


def test_a_killed_calibration_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """kill -9 in the middle of a run of the command, then the same command again."""
    command = [sys.executable, "-c", "from fsgen_router.cli import main; main()", "calibrate"]
    options = ["--count", "20", "--rounds", "1", "--max-tokens", "100", "--json"]
    out, work = tmp_path / "p.safetensors", tmp_path / "p.work"
    process = subprocess.Popen(
        [*command, "--out", str(out), *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while len(list(work.glob("*.npz"))) < 4 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not out.exists()
    kept = {path: path.stat().st_mtime_ns for path in work.glob("*.npz")}
    assert len(kept) >= 4
    done = subprocess.run([*command, "--out", str(out), *options], capture_output=True, text=True, check=True)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert json.loads(done.stdout)["policy"] == str(out)
    assert load_policy(out)[1].splits["fit"] == 6


def test_other_ways_to_make_a_policy(tmp_path: Path) -> None:
    """Divergence labels, spans, verify as method and as comparison, several prompts at once."""
    path, pair = write_prompts(tmp_path / "prompts.jsonl", 40), scripted()
    found = cal.calibrate(
        pair.fast,
        pair.slow,
        path,
        out=tmp_path / "p.safetensors",
        target_rate=0.4,
        label="divergence",
        rollouts=60,
        extent=2,
        span_window=4,
        method="verify",
        concurrency=2,
        **SMALL,
    )
    assert sum(one.labels.rollouts for one in found.rounds) <= 60
    assert found.policy is not None
    assert found.policy.span is not None
    compared = cal.calibrate(
        pair.fast,
        pair.slow,
        path,
        out=tmp_path / "q.safetensors",
        compare=("verify",),
        curve_rates=(0.3,),
        **SMALL,
    )
    assert compared.held is not None
    assert compared.held.curves is not None
    assert "learned, verify" in compared.held.curves


# --- the command line ----------------------------------------------------------------------------


def invoke(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return done.exit_code, done.stdout, done.stderr


def test_a_dry_run_says_what_it_will_cost_and_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "p.safetensors"
    code, text, _ = invoke("calibrate", "--out", out, "--count", 20, "--max-tokens", 40, "--dry-run", "--json")
    record = json.loads(text)
    assert code == 0
    assert record["slow_tokens"] > 20 * 10
    assert record["seconds"] > 0
    stages = {stage["stage"]: stage for stage in record["stages"]}
    assert {"both models alone", "traces", "candidates", "report"} == stages.keys() - {"on-policy rounds"}
    assert not list(tmp_path.iterdir())
    # What is expected is less than the most, wherever runs share what they read.
    alone = stages["both models alone"]
    assert alone["expected_positions"] == alone["slow_positions"]
    assert stages["traces"]["expected_positions"] == 0 < stages["traces"]["slow_positions"]
    for name in ("on-policy rounds", "candidates", "report"):
        assert 0 < stages[name]["expected_positions"] < stages[name]["slow_positions"]
    assert record["expected_seconds"] < record["seconds"]
    assert all(stage["expected_seconds"] <= stage["seconds"] for stage in record["stages"])
    code, text, _ = invoke("calibrate", "--out", out, "--count", 20, "--max-tokens", 40, "--dry-run", "--curves")
    assert code == 0
    assert all(word in text for word in ("expected", "at most", "of both models alone", "oracle", "seconds"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--method", "nope"), "unknown method"),
        (("--compare", "nope"), "unknown method"),
        (("--check", "nope"), "unknown checker"),
        (
            ("--fast", "reference:fast?n_ctx=64", "--slow", "reference:slow?n_ctx=64", "--prompts", "p"),
            "leaves no room",
        ),
    ],
)
def test_a_dry_run_refuses_what_the_calibration_would(
    options: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = ({"prompt": f"{number} lamps and ropes? " * 9, "answer": "7"} for number in range(20))
    (tmp_path / "p").write_text("\n".join(map(json.dumps, lines)))
    code, _, text = invoke("calibrate", "--out", "p.safetensors", "--dry-run", *options)
    assert code == 2
    assert said in " ".join(text.split())


def test_what_is_expected_falls_with_the_rate_and_is_the_most_without_shared_rows(router: Router) -> None:
    prompts = cal.reference_prompts(100)
    costs = {
        (memory, regret): {
            stage.stage: stage
            for stage in cal.estimate_cost(
                router,
                prompts,
                cal.make_target(max_regret=regret) if regret else cal.make_target(target_rate=0.02),
                cal.make_options(max_tokens=40, row_memory=memory),
            )
        }
        for memory, regret in ((1 << 20, 0.2), (0, 0.2), (1 << 20, None))
    }
    for stage in costs[0, 0.2].values():
        assert (stage.expected_positions, stage.expected_seconds) == (stage.slow_positions, stage.seconds)
    often, seldom = (costs[1 << 20, regret]["report"].expected_positions for regret in (0.2, None))
    assert often < seldom, "where little is escalated, more text is another one"


def test_the_command_and_the_file_it_wrote(tmp_path: Path) -> None:
    out = tmp_path / "p.safetensors"
    code, text, _ = invoke(
        "calibrate",
        "--out",
        out,
        "--count",
        20,
        "--rounds",
        0,
        "--max-tokens",
        100,
        "--target-rate",
        0.2,
    )
    assert code == 0
    assert "Not certified: nothing is claimed about quality." in " ".join(text.split())
    code, text, _ = invoke("policy", "show", out)
    assert code == 0
    assert "No guarantee" in text
    code, text, _ = invoke("policy", "show", out, "--json")
    assert json.loads(text)["splits"]["fit"] == 6


def test_too_few_prompts_without_a_target_give_a_policy_and_say_that_nothing_is_certified(tmp_path: Path) -> None:
    out = tmp_path / "p.safetensors"
    code, text, _ = invoke("calibrate", "--out", out, "--count", 20, "--rounds", 0, "--max-tokens", 100)
    text = " ".join(text.split())
    assert code == 0
    assert "certified if possible. Not certified: 8 calibration prompts are too few" in text
    policy, card = load_policy(out)
    assert policy.guarantee() is None
    assert any(note.startswith("Not certified") for note in card.notes)


def test_nothing_certified_writes_no_policy(tmp_path: Path) -> None:
    out = tmp_path / "p.safetensors"
    code, _, errors = invoke("calibrate", "--out", out, "--count", 30, "--max-regret", 0.01)
    assert code == 2
    assert "at least 230" in errors
    assert not out.exists()


@pytest.mark.parametrize(
    ("content", "complaint"), [("", "no items"), ('{"prompt": "a"}\n[]\n', "line 2"), (None, "cannot be read")]
)
def test_bad_files_on_the_command_line(tmp_path: Path, content: str | None, complaint: str) -> None:
    path = tmp_path / "prompts.jsonl"
    if content is not None:
        path.write_text(content)
    code, _, errors = invoke("calibrate", "--out", tmp_path / "p.safetensors", "--prompts", path)
    assert code == 2
    assert complaint in " ".join(errors.split())


def test_files_that_are_no_policy(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    path.write_bytes(b"nothing")
    code, _, errors = invoke("policy", "show", path)
    assert code == 1
    assert "cut off" in " ".join(errors.split())
    assert invoke("policy", "show", tmp_path / "absent")[0] == 1
