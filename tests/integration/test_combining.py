"""Contrast and proxy on real models: the reference pair on both backends, models of random weights, real files."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_gguf
from scripted_pairs import script, tokenizer
from typer.testing import CliRunner

from fsgen_router import Finished, Generation, Router, TextDelta, VocabularyMismatch, reference
from fsgen_router import calibration as cal
from fsgen_router.adapters.scripted import ScriptedModel
from fsgen_router.calibration.traces import read_answer
from fsgen_router.cli import app
from fsgen_router.contracts.models import Role, TokenModel
from fsgen_router.policies import PolicyPairWarning, fingerprint, load_policy
from fsgen_router.reference import world
from fsgen_router.rows.reading import Read

PROMPTS = [problem.prompt + "\n" for problem in world.problems("test", 4)]
LIMIT = 40
ROLES: tuple[Role, ...] = ("fast", "slow", "tuned")
# Two forwards of one text differ by no more, whatever else was in them.
KERNELS = 2e-3


def likely(scores: Callable[..., np.ndarray], alpha: float = 0.1) -> Callable[..., np.ndarray]:
    """Scores of the tokens that the slow model finds likely."""
    return lambda fast, slow, _: np.where(slow >= math.log(alpha) + slow.max(), scores(fast, slow), -np.inf)


FORMULAS: dict[str, Callable[..., np.ndarray]] = {
    "contrast": likely(lambda fast, slow: fast + 0.5 * (slow - fast)),
    "contrast:alpha=0.05,beta=1.5": likely(lambda fast, slow: fast + 1.5 * (slow - fast), 0.05),
    "contrast:li": likely(lambda fast, slow: slow - fast),
    "contrast:obrien,beta=0.5": likely(lambda fast, slow: 1.5 * slow - 0.5 * fast),
    "proxy": lambda fast, slow, tuned: slow + (tuned - fast),
    "proxy:alpha=0.5": lambda fast, slow, tuned: slow + 0.5 * (tuned - fast),
}


def choices(models: Mapping[Role, TokenModel], text: str, ids: Sequence[int]) -> dict[Role, np.ndarray]:
    """Each model's logits before every token of an answer, shape (n, n_vocab), by nothing but the adapter."""
    return {
        role: np.array([
            row.logits
            for row in read_answer(model, model.tokenizer.encode(text, add_bos=True), ids, lambda _: Read(full=True))
        ], np.float64)
        for role, model in models.items()
    }  # fmt: skip


def require_formula(
    answer: Generation,
    models: Mapping[Role, TokenModel],
    text: str,
    formula: Callable[..., np.ndarray],
    kernels: float = KERNELS,
) -> None:
    """Each token is the best by the formula where the slow model was asked, and the fast model's own elsewhere."""
    rows = choices(models, text, [token.id for token in answer.tokens])
    for at, token in enumerate(answer.tokens):
        fast, slow, tuned = (rows[role][at] if role in rows else None for role in ROLES)
        wanted = formula(fast, slow, tuned) if token.source == "slow" else fast
        assert wanted[token.id] >= wanted.max() - kernels, at


@pytest.fixture(scope="module", params=["llama_cpp", "transformers"])
def models(request: pytest.FixtureRequest) -> Iterator[dict[Role, TokenModel]]:
    """The reference pair, and as the tuned model its slow one once more: a better one on the same vocabulary."""
    if request.param == "llama_cpp":
        made = {role: reference.load("fast" if role == "fast" else "slow") for role in ROLES}
    else:
        adapter = pytest.importorskip("fsgen_router.adapters.transformers")
        made = {
            role: adapter.TransformersModel(str(reference.path("fast" if role == "fast" else "slow"))) for role in ROLES
        }
    yield made
    for model in made.values():
        model.shutdown()


@pytest.mark.parametrize("method", FORMULAS)
def test_a_step_on_the_reference_pair_is_what_the_formula_says(models: dict[Role, TokenModel], method: str) -> None:
    """Greedy; asked, streamed and batched alike; and sampled, one seed is one text in every setting."""
    texts = set()
    for policy in ("every:3,span=2", "always"):
        with Router(models["fast"], models["slow"], tuned=models["tuned"], policy=policy, method=method) as router:
            for prompt in PROMPTS[:2]:
                answer = router.complete(prompt, max_tokens=LIMIT)
                require_formula(answer, models, prompt, FORMULAS[method])
                events = list(router.stream(prompt, max_tokens=LIMIT))
                assert isinstance(events[-1], Finished)
                assert "".join(event.text for event in events if isinstance(event, TextDelta)) == answer.text
                texts.add(answer.text)
            sampled = [router.complete(prompt, max_tokens=LIMIT, temperature=0.8, seed=7).text for prompt in PROMPTS]
            with Router(
                models["fast"],
                models["slow"],
                tuned=models["tuned"],
                policy=policy,
                method=method,
                batching=False,
            ) as alone:
                again = [alone.complete(prompt, max_tokens=LIMIT, temperature=0.8, seed=7).text for prompt in PROMPTS]
            assert sampled == again
    assert len(texts) > 1


def test_a_third_model_that_changed_nothing_changes_nothing(fast_model: TokenModel, slow_model: TokenModel) -> None:
    """With the fast model itself as the tuned one proxy is the slow model; with the slow one it is a contrast."""
    same, other = reference.load("fast"), reference.load("slow")
    try:
        with Router(fast_model, slow_model, tuned=same, policy="always", method="proxy") as router:
            for prompt in PROMPTS:
                answer = router.complete(prompt, max_tokens=LIMIT, baseline=True)
                assert answer.baseline is not None
                assert answer.text == answer.baseline.text
                assert answer.usage.tuned_corrections == answer.usage.corrections
        with Router(fast_model, slow_model, tuned=other, policy="always", method="proxy") as router:
            for prompt in PROMPTS:
                answer = router.complete(prompt, max_tokens=LIMIT)
                twice = router.complete(prompt, max_tokens=LIMIT, method="contrast:obrien,alpha=0,beta=1")
                assert answer.text == twice.text
                assert [token.tuned_choice for token in answer.tokens] == [token.slow_choice for token in answer.tokens]
    finally:
        same.shutdown()
        other.shutdown()


def test_a_chat_is_answered_by_three_models(fast_model: TokenModel, slow_model: TokenModel) -> None:
    """Each in its own template; the next turn finds all three caches."""
    third = reference.load("slow")
    try:
        with Router(fast_model, slow_model, tuned=third, policy="every:4") as router:
            messages = [{"role": "user", "content": next(world.problems("test", 1)).prompt}]
            first = router.chat(messages, max_tokens=LIMIT)
            assert first.method == "proxy:alpha=1"
            messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "And 2 ropes?"}]
            usage = router.chat(messages, max_tokens=LIMIT).usage
            assert min(usage.fast.cached, usage.slow.cached, usage.tuned.cached) > 10
            report = router.chat(messages, max_tokens=LIMIT, baseline=True).report()
            assert "FLOPs, all models" in str(report)
            assert "tuned model" in str(report)
    finally:
        third.shutdown()


# --- models of random weights --------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[Role, str]:
    folder = tmp_path_factory.mktemp("three")
    return {role: f"llama_cpp:{tiny_gguf.write(folder / f'{role}.gguf', seed=n)}" for n, role in enumerate(ROLES)}


@pytest.mark.parametrize("mixed", [False, True], ids=["llama_cpp", "with-transformers"])
def test_three_files_are_loaded_by_their_strings(files: dict[Role, str], mixed: bool) -> None:
    if mixed:
        pytest.importorskip("fsgen_router.adapters.transformers")
        files = files | {"tuned": files["tuned"].replace("llama_cpp:", "transformers:")}
    with Router(files["fast"], files["slow"], tuned=files["tuned"], policy="every:2") as router:
        assert router.tuned is not None
        loaded: dict[Role, TokenModel] = {"fast": router.fast, "slow": router.slow, "tuned": router.tuned}
        answer = router.complete("lamp and rope", max_tokens=20)
        require_formula(answer, loaded, "lamp and rope", FORMULAS["proxy"])
        assert answer.usage.tuned.forwards == answer.usage.slow.forwards > 0
        assert set(answer.models) == {"fast", "slow", "tuned"}


def test_files_of_another_vocabulary_are_refused(files: dict[Role, str], tmp_path: Path) -> None:
    other = tiny_gguf.write(tmp_path / "other.gguf", words=("rope", "lamp"))
    with pytest.raises(VocabularyMismatch, match=r"fast.gguf and other.gguf have different vocabularies: id 261"):
        Router(files["fast"], files["slow"], tuned=f"llama_cpp:{other}")


# --- the command line ----------------------------------------------------------------------------


def invoke(*arguments: str) -> Any:
    return CliRunner(env={"COLUMNS": "120"}).invoke(app, arguments)


def test_the_command_line_takes_a_tuned_model(files: dict[Role, str]) -> None:
    pair = ["--fast", files["fast"], "--slow", files["slow"], "--tuned", files["tuned"]]
    done = invoke("complete", "lamp", *pair, "--policy", "every:2", "--max-tokens", "12", "--json", "--tokens")
    assert done.exit_code == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["method"] == "proxy:alpha=1"
    assert record["usage"]["tuned"]["forwards"] > 0
    written = [token for token in record["tokens"] if token["source"] == "slow"]
    assert all(token["tuned_choice"] is not None for token in written)
    traced = invoke("trace", "lamp", *pair, "--method", "contrast:li", "--policy", "always", "--max-tokens", "6")
    assert traced.exit_code == 0, traced.stderr
    assert {json.loads(line)["decision"] for line in traced.stdout.splitlines()} == {"escalate"}
    checked = invoke("doctor", *pair, "--json")
    assert checked.exit_code == 0, checked.stdout
    (found,) = [check for check in json.loads(checked.stdout)["checks"] if check["name"] == "pair"]
    assert "fast.gguf, slow.gguf and tuned.gguf load" in found["detail"]
    missing = invoke("complete", "lamp", *pair[:4], "--method", "proxy")
    assert missing.exit_code == 2
    assert "--tuned" in missing.stderr
    wrong = invoke("complete", "lamp", "--method", "contrast:alpha=7")
    assert wrong.exit_code == 2
    assert "between 0 and 1" in wrong.stderr


def test_an_evaluation_runs_every_method_and_fs_gens_routers() -> None:
    record = json.loads(
        invoke(
            *("eval", "--method", "contrast:alpha=0.1,beta=1.5", "--count", "6", "--max-tokens", "60", "--json"),
            *("--policy", "none", "--policy", "normal", "--policy", "threshold:0.5", "--policy", "delta:0.2"),
        ).stdout
    )
    assert record["method"] == "contrast:alpha=0.1,beta=1.5"
    found = {policy["policy"]: policy for policy in record["policies"]}
    assert {"never", "always", "max_prob<0.5", "delta<0.2"} <= set(found)
    rates = [found[name]["escalation_rate"] for name in ("never", "max_prob<0.5", "always")]
    assert rates == sorted(rates)
    assert (rates[0], rates[-1]) == (0.0, 1.0)
    assert found["always"]["corrections_per_answer"] > 0.0


# --- calibration ---------------------------------------------------------------------------------


def scripted(seed: int, name: str, own: float) -> ScriptedModel:
    return ScriptedModel(script(seed, shared=7, own=own, eog_bias=-2.0), tokenizer(), name=name, n_ctx=256)


def write_prompts(path: Path, count: int = 60) -> Path:
    letters = ("a", "b", " c", "7", ",")
    texts = ["".join(letters[(number // 5**place) % 5] for place in range(5)) for number in range(count)]
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return path


def test_a_policy_is_calibrated_for_contrast_and_for_proxy(tmp_path: Path) -> None:
    """The file names the method, and of proxy the third model; another one in its seat is warned of."""
    prompts = write_prompts(tmp_path / "p.jsonl")
    fast, slow, tuned = scripted(1, "small", 0.6), scripted(2, "large", 0.2), scripted(3, "third", 0.6)
    small = {"rounds": 1, "curves": False, "max_tokens": 16, "target_rate": 0.3}
    for method, third in (("contrast:alpha=0.1,beta=1.5", None), ("proxy:alpha=0.5", tuned)):
        out = tmp_path / f"{method.partition(':')[0]}.safetensors"
        found = cal.calibrate(fast, slow, prompts, tuned=third, out=out, method=method, **small)
        assert found.policy is not None
        policy, card = load_policy(out)
        assert policy.method == card.method == method
        assert card.pair.tuned == (None if third is None else "third")
        with Router(fast, slow, tuned=third, policy=out) as router:
            assert router.method.name == method
            assert router.complete("ab", max_tokens=12).method == method
    with pytest.warns(PolicyPairWarning, match="tuned is other.*not third"):
        Router(fast, slow, tuned=scripted(4, "other", 0.6), policy=out).close()


def test_a_pair_without_a_third_model_is_written_as_before() -> None:
    """Older versions read files of theirs still."""
    fast, slow, tuned = scripted(1, "small", 0.6), scripted(2, "large", 0.2), scripted(3, "third", 0.6)
    assert not any("tuned" in name for name in fingerprint(fast, slow).model_dump())
    assert fingerprint(fast, slow, tuned).model_dump()["tuned"] == "third"
    assert fingerprint(fast, slow, tuned).differences(fingerprint(fast, slow))


def test_always_is_no_safe_candidate_where_it_is_not_the_slow_model(tmp_path: Path) -> None:
    """What a method writes at every token has to be run before a regret of it is certified."""
    prompts = write_prompts(tmp_path / "p.jsonl", 120)
    fast, slow = scripted(1, "small", 0.6), scripted(2, "large", 0.2)
    options = {"rounds": 0, "curves": False, "max_tokens": 16, "max_regret": 0.3, "confidence": 0.8, "check": "slow"}
    replaced = cal.calibrate(fast, slow, prompts, out=tmp_path / "r.safetensors", **options)
    assert replaced.choice.certification is not None
    assert replaced.choice.certification.risks[0] == 0.0
    # The fast model's own logits, nearly: an answer is right where it is the slow model's.
    found = cal.calibrate(
        fast, slow, prompts, out=tmp_path / "c.safetensors", method="contrast:alpha=0,beta=0.01", **options
    )
    assert found.choice.certification is not None
    assert found.choice.certification.risks[0] > 0.3
    assert found.policy is None
    assert "even where the method writes every token" in found.choice.reason


def test_fs_gens_routers_are_on_the_curve(fast_model: TokenModel, slow_model: TokenModel, tmp_path: Path) -> None:
    """The SVM beside the learned score, entropy, margin (its delta) and max_prob (its threshold)."""
    found = cal.calibrate(
        fast_model,
        slow_model,
        cal.reference_prompts(40),
        out=tmp_path / "p.safetensors",
        target_rate=0.2,
        rounds=0,
        max_tokens=110,
        compare=("svm", "contrast"),
        curve_rates=(0.1, 0.3),
    )
    assert found.held is not None
    if found.held.curves is None:
        pytest.skip("40 prompts show no gap")
    assert {"learned", "entropy", "margin", "max_prob", "svm", "learned, contrast"} <= set(found.held.curves)
    assert len(found.held.curves["svm"].points) >= 1


# --- real files ----------------------------------------------------------------------------------


@pytest.mark.skipif("FSGEN_REAL_MODELS" not in os.environ, reason="FSGEN_REAL_MODELS names no folder of real models")
def test_real_files_are_contrasted_and_moved() -> None:
    """152k rows: a few tokens of two sizes of one family; the smaller one, again, as a tuned model that is none."""
    folder = Path(os.environ["FSGEN_REAL_MODELS"])
    small, large = (f"llama_cpp:{folder / name}?n_ctx=512" for name in ("qwen-0.5b.gguf", "qwen-1.5b.gguf"))
    question = [{"role": "user", "content": "Write a Python function that adds two numbers."}]
    with Router(small, large, tuned=small, policy="always", method="proxy") as router:
        assert router.tuned is not None
        assert isinstance(router.slow, type(router.fast))
        loaded: dict[Role, TokenModel] = {"fast": router.fast, "slow": router.slow, "tuned": router.tuned}
        for method in ("contrast:alpha=0.05,beta=1.5", "proxy"):
            answer = router.complete("def add(a, b):", max_tokens=8, method=method)
            # Quantised: many tokens and one take different kernels.
            require_formula(answer, loaded, "def add(a, b):", FORMULAS[method], 0.3)
        moved, alone = (router.chat(question, max_tokens=8, method=method) for method in ("proxy", "replace"))
        assert moved.text == alone.text
