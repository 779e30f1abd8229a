"""Hidden states on the reference pair: served as they were trained on, kept apart, calibrated with."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scripted_pairs
from learned_cases import PAIR, logistic, positions
from typer.testing import CliRunner

from fsgen_router import ConfigurationError, Router
from fsgen_router import calibration as cal
from fsgen_router.calibration.fit import fit_logistic
from fsgen_router.calibration.metrics import average_precision
from fsgen_router.cli import app
from fsgen_router.contracts.models import TokenModel
from fsgen_router.evaluation import reference_items
from fsgen_router.policies import Capped, Learned, fingerprint, load_policy
from fsgen_router.policies.features import FEATURES, NUMERIC, feature_matrix, hidden_names, hidden_size
from fsgen_router.policies.scorers import Platt, Scorer
from fsgen_router.text.vocabulary import token_classes


def test_hidden_states_of_another_model_are_refused(fast_model: TokenModel, slow_model: TokenModel) -> None:
    size = fast_model.capabilities.hidden_size
    assert size is not None
    own = Learned(logistic(names=hidden_names(size)), 0.5, pair=fingerprint(fast_model, slow_model))
    Router(fast_model, slow_model, policy=own).close()
    other_slow = replace(own, pair=own.pair.model_copy(update={"slow": "larger.gguf"}))
    with pytest.warns(UserWarning, match="another pair"):
        Router(fast_model, slow_model, policy=other_slow).close()
    for changed, said in (
        (replace(own, pair=own.pair.model_copy(update={"fast": "smaller.gguf"})), "fast is fast.gguf"),
        (Capped(replace(own, pair=PAIR)), "another vocabulary"),
        (replace(own, scorer=logistic(names=hidden_names(size - 1))), f"{size} wide, not {size - 1}"),
    ):
        with pytest.raises(ConfigurationError, match=f"another model's hidden states.*{said}"):
            Router(fast_model, slow_model, policy=changed)


@pytest.fixture(scope="module")
def router(fast_model: TokenModel, slow_model: TokenModel) -> Router:
    return Router(fast_model, slow_model, policy="never", seed=0)


@pytest.fixture(scope="module")
def policy(router: Router) -> Learned:
    """Weighs everything, and escalates some of the tokens."""
    size = router.fast.capabilities.hidden_size
    assert size is not None
    scorer = replace(logistic(3, (*NUMERIC, *hidden_names(size))), intercept=-20.0)
    return Learned(Platt(scorer, 0.05, 0.0), 0.5, pair=fingerprint(router.fast, router.slow))


@pytest.mark.parametrize("method", ["replace", "verify"])
@pytest.mark.parametrize("batching", [False, True])
def test_serving_equals_training(router: Router, policy: Learned, method: str, batching: bool) -> None:
    """The score at each position of routed answers, and from the traces of their text."""
    items = reference_items("fit", 6)
    with Router(router.fast, router.slow, policy=policy, method=method, seed=0, batching=batching) as routed:
        with ThreadPoolExecutor(3) as pool:
            answers = list(pool.map(lambda item: routed.chat(item.messages or (), max_tokens=60), items))
        shares = [answer.usage.escalation_rate or 0.0 for answer in answers]
        assert 0.02 < np.mean(shares) < 0.9
        assert method == "replace" or sum(answer.usage.discarded_tokens for answer in answers) > 0
        classes = token_classes(router.fast.tokenizer)
        checked = 0
        for item, answer in zip(items, answers, strict=True):
            ids, by_slow = zip(*((token.id, token.source == "slow") for token in answer.tokens), strict=True)
            found = cal.trace_answer(router.fast, router.slow, item, ids, by_slow, classes=classes, hidden=True)
            scores = policy.scorer.score(found.features()).tolist()
            for token, score in zip(answer.tokens, scores, strict=True):
                if token.signals is not None and token.decision is not None and token.decision.score is not None:
                    assert token.decision.score == pytest.approx(score, abs=2e-5)
                    checked += 1
        assert checked > 100


def test_traces_with_and_without_hidden_states_are_kept_apart(router: Router, tmp_path: Path) -> None:
    work = cal.WorkDirectory(tmp_path / "work", {"test": 1})
    items = reference_items("fit", 2)
    answers = cal.answer_items(router, items, "never", work=work, name="a", max_tokens=20)
    plain, seen, again = (
        cal.trace_answers(router, items, answers, work=work, name="t", hidden=hidden) for hidden in (False, True, True)
    )
    assert plain.hidden is None
    assert seen.hidden is not None
    assert again.hidden is not None
    assert seen.hidden.shape == (len(seen), router.fast.capabilities.hidden_size)
    assert seen.hidden.dtype == np.float32
    assert (again.hidden == seen.hidden).all()
    assert (plain.features() == seen.features()[:, : len(FEATURES)]).all()
    assert plain.digest() == seen.digest()  # rollouts are shared


def test_calibrating_with_hidden_states(tmp_path: Path) -> None:
    path = tmp_path / "policy.safetensors"
    small = {"rounds": 1, "curves": False, "max_tokens": 96}
    page = tmp_path / "report.html"
    found = cal.calibrate(count=120, out=path, target_rate=0.1, report=page, hidden=True, **small)
    assert found.policy is not None
    assert found.held is not None
    assert {"learned", "without hidden"} <= set(found.held.metrics)
    assert "without hidden" in page.read_text()
    policy, header = load_policy(path)
    assert policy.reads_hidden
    assert header.signals[-1] == f"hidden state ({policy.hidden_size} wide)"
    with Router(policy=path) as router:
        answer = router.chat(reference_items("fit", 1)[0].messages or ())
    assert all(token.signals is None or token.signals.hidden is None for token in answer.tokens)
    shown = CliRunner().invoke(app, ["policy", "show", str(path)])
    assert f"hidden state ({policy.hidden_size} wide)" in shown.output


def test_what_cannot_be_calibrated_with_hidden_states(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="entropy reads no hidden states"):
        cal.make_options(hidden=True, scorer="entropy")
    models = scripted_pairs.pair(1)
    prompts = cal.reference_prompts(20)
    router = Router(models.fast, models.slow, policy="never", seed=0)
    with pytest.raises(ConfigurationError, match="fast gives no hidden states"):
        cal.open_bench(router, prompts, tmp_path / "work", hidden=True)


# --- fitting -------------------------------------------------------------------------------------

SIZE = 5


def seen_positions(count: int, seed: int = 0):
    """Positions whose signals hold a hidden state of shape (SIZE,)."""
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(count, SIZE)).astype(np.float32)
    return [
        (replace(signals, hidden=state), context)
        for (signals, context), state in zip(positions(count, seed), states, strict=True)
    ]


def test_the_penalty_holds_where_columns_say_nothing() -> None:
    """As many columns of noise as positions: without a penalty they would be learned by heart."""
    rng = np.random.default_rng(5)
    rows, fresh = np.zeros((2, 600, len(FEATURES) + 400))
    for half in (rows, fresh):
        half[:, : len(FEATURES)] = feature_matrix(positions(600, seed=int(rng.integers(1000))))
        half[:, len(FEATURES) :] = rng.normal(size=(600, 400))
    labels, expected = ((rng.random(600) > half[:, 0]).astype(float) for half in (rows, fresh))
    weights, prompts = np.ones(600), np.arange(600) // 10

    def precision(scorer: Scorer) -> float:
        return average_precision(scorer.score(fresh), expected, weights)

    fitted = cal.fit_scorer(rows, labels, weights, prompts)
    plain = cal.fit_scorer(rows[:, : len(FEATURES)], labels, weights, prompts)
    by_heart = fit_logistic(rows, labels, weights)
    assert precision(fitted) > precision(by_heart) + 0.02
    assert precision(fitted) > precision(plain) - 0.05


def test_a_hidden_state_that_tells_is_learned() -> None:
    seen = seen_positions(2000)
    rows = feature_matrix(seen)
    labels = (rows[:, -2] > 0.3).astype(float)
    for scorer in ("logistic", "mlp"):
        fitted = cal.fit_scorer(rows[:1000], labels[:1000], np.ones(1000), np.arange(1000) // 10, scorer=scorer)
        assert hidden_size(fitted.spec()) == SIZE
        assert average_precision(fitted.score(rows[1000:]), labels[1000:], np.ones(1000)) > 0.9
