"""Hidden states from the model to the score: what is asked for, stored and refused, on scripted models."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scripted_pairs
from learned_cases import card, guarantee, logistic, mlp, positions
from scipy import special

from fsgen_router import ConfigurationError, Decision, Ledger, Router
from fsgen_router.adapters.scripted import ScriptedModel
from fsgen_router.contracts.policy import reads_hidden
from fsgen_router.policies import Capped, Learned, load_policy, save_policy
from fsgen_router.policies.features import FEATURES, NUMERIC, feature_matrix, feature_row, hidden_names, hidden_size
from fsgen_router.policies.guard import fit_guard, log_normaliser
from fsgen_router.policies.online import OnlineHead
from fsgen_router.policies.scorers import Adapted, Platt, Scorer, Signal

SIZE = 5


NAMES = (*NUMERIC, *hidden_names(SIZE))


def seen_positions(count: int, seed: int = 0):
    """Positions whose signals hold a hidden state of shape (SIZE,)."""
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(count, SIZE)).astype(np.float32)
    return [
        (replace(signals, hidden=state), context)
        for (signals, context), state in zip(positions(count, seed), states, strict=True)
    ]


def test_a_hidden_state_stands_behind_the_features() -> None:
    for signals, context in seen_positions(20):
        row = feature_row(signals, context)
        assert row[: len(FEATURES)] == feature_row(signals.without_hidden(), context)
        assert row[len(FEATURES) :] == tuple(signals.hidden.tolist())
    assert feature_matrix(seen_positions(20)).shape == (20, len(FEATURES) + SIZE)


@pytest.mark.parametrize(
    "scorer", [logistic(names=NAMES), mlp(names=NAMES), Platt(logistic(names=NAMES[-3:]), 1.3, -0.2), logistic()]
)
def test_scores_of_rows_with_hidden_states_one_by_one_and_together(scorer: Scorer) -> None:
    seen = seen_positions(200)
    rows = feature_matrix(seen)
    one_by_one = [scorer.score_one(feature_row(*position)) for position in seen]
    np.testing.assert_allclose(scorer.score(rows), one_by_one, atol=1e-12)
    other = rows.copy()
    other[:, -SIZE:] += 1.0
    reads = hidden_size(scorer.spec()) > 0
    assert bool((scorer.score(other) != scorer.score(rows)).any()) == reads


def test_what_a_scorer_reads_is_found_however_deep() -> None:
    assert hidden_size(logistic().spec()) == 0
    deep = Platt(Adapted(Signal("entropy"), logistic(names=NAMES)), 1.0, 0.0)
    assert hidden_size(deep.spec()) == SIZE
    assert not reads_hidden(Learned(logistic(), 0.5))
    assert reads_hidden(Capped(Learned(deep, 0.5), max_calls=1))
    guard = fit_guard(feature_matrix(seen_positions(300)), widened=0.1)
    assert Learned(logistic(), 0.5, guard=guard).hidden_size == SIZE


@pytest.mark.parametrize("name", ["hidden_", "hidden_x", "hidden_-1", "hidden"])
def test_a_column_that_nothing_makes(name: str) -> None:
    with pytest.raises(ConfigurationError, match="unknown feature"):
        logistic(names=(name,))


def test_a_policy_that_is_handed_no_hidden_state_says_so() -> None:
    policy = Learned(logistic(names=NAMES), 0.5)
    ((signals, context),) = positions(1)
    with pytest.raises(ConfigurationError, match="reads_hidden"):
        policy.decide(policy.begin(Ledger()), signals, context)


def test_an_online_head_takes_no_scorer_that_reads_hidden_states() -> None:
    with pytest.raises(ConfigurationError, match="answers do not keep"):
        OnlineHead(logistic(names=NAMES), mean=np.zeros(1), scale=np.ones(1), audit_rate=0.1)


def test_the_guard_knows_directions_of_hidden_states() -> None:
    rng = np.random.default_rng(3)
    rows = np.zeros((2000, len(FEATURES) + 64))
    centres = rng.normal(size=(3, 64))
    rows[:, len(FEATURES) :] = centres[rng.integers(3, size=2000)] + 0.3 * rng.normal(size=(2000, 64))
    guard = fit_guard(rows, widened=0.1, components=3)
    assert guard.features == hidden_names(64)
    assert np.mean([guard.is_outlier(row.tolist()) for row in rows]) == pytest.approx(1e-3, abs=1e-3)
    strange = rows[:50].copy()
    strange[:, len(FEATURES) :] = rng.normal(size=(50, 64))
    assert np.mean([guard.is_outlier(row.tolist()) for row in strange]) > 0.9


@pytest.mark.parametrize("size", [110, 256])
def test_the_normaliser_of_many_dimensions(size: int) -> None:
    concentrations = np.array([2.0, 40.0, 300.0])
    order = size / 2 - 1
    log_bessel = np.log(special.ive(order, concentrations)) + concentrations
    expected = order * np.log(concentrations) - size / 2 * math.log(2 * math.pi) - log_bessel
    np.testing.assert_allclose(log_normaliser(concentrations, size), expected, atol=1e-6)
    assert np.isfinite(log_normaliser(concentrations, 4096)).all()  # where the function itself is 0


class ByState:
    """Escalates by the first number of the hidden state, and says it as its score."""

    name, asks, reads_hidden = "by_state", True, True

    def begin(self, ledger):
        return None

    def decide(self, state, signals, context):
        assert signals.hidden.shape == (scripted_pairs.HIDDEN,)
        score = float(signals.hidden[0])
        return state, Decision(score > 1.5, score=score)

    def end(self, state, ledger):
        return None


def with_hidden(case: int) -> scripted_pairs.Pair:
    """A scripted pair whose fast model gives hidden states."""
    made = scripted_pairs.pair(case, n_seq=3)
    state, size = scripted_pairs.hidden(case), scripted_pairs.HIDDEN
    words = scripted_pairs.tokenizer()
    return scripted_pairs.Pair(
        ScriptedModel(made.fast.script, words, name="fast", n_seq=3, hidden=state, hidden_size=size), made.slow
    )


@pytest.mark.parametrize("method", ["replace", "verify", "verify:exact"])
@pytest.mark.parametrize("driver", [{"batching": False}, {"batching": True}, {"read_ahead": 2}])
def test_a_policy_sees_the_state_of_each_position_and_no_record_keeps_it(method: str, driver: dict) -> None:
    checked = 0
    for case in range(12):
        models, prompt = with_hidden(case), "ab c"
        ids = models.fast.tokenizer.encode(prompt, add_bos=True)
        with Router(models.fast, models.slow, policy=ByState(), method=method, seed=case, **driver) as router:
            answer = router.complete(prompt, max_tokens=24, max_slow_tokens=16)
        for at, token in enumerate(answer.tokens):
            if token.signals is not None and token.decision is not None and token.decision.score is not None:
                before = [*ids, *scripted_pairs.ids_of(answer)[:at]]
                assert token.decision.score == float(models.fast.hidden(before)[0])
                assert token.signals.hidden is None
                checked += 1
        assert not any(read.hidden for work in models.slow.works for _, read in work.reads)
    assert checked > 50


def test_nobody_asks_for_hidden_states_unless_the_policy_does() -> None:
    models = with_hidden(3)
    with Router(models.fast, models.slow, policy="entropy>0.5", seed=0) as router:
        router.complete("ab", max_tokens=8)
    assert not any(read.hidden for work in models.fast.works for _, read in work.reads)


def test_a_model_without_hidden_states_is_refused() -> None:
    models = scripted_pairs.pair(1)
    for policy in (ByState(), Capped(ByState(), max_calls=3), Learned(logistic(names=NAMES), 0.5)):
        with pytest.raises(ConfigurationError, match="which fast does not give") as found:
            Router(models.fast, models.slow, policy=policy)
        assert "without --hidden" in (found.value.hint or "")


def test_a_file_holds_a_policy_that_reads_hidden_states(tmp_path: Path) -> None:
    guard = fit_guard(feature_matrix(seen_positions(300)), widened=0.1)
    policy = Learned(Platt(logistic(names=NAMES), 1.1, 0.2), 0.5, guard=guard).certified(guarantee())
    path = tmp_path / "policy.safetensors"
    save_policy(path, policy, card())
    loaded, _ = load_policy(path)
    assert loaded.hidden_size == SIZE
    assert loaded.digest == policy.digest
    rows = feature_matrix(seen_positions(100, seed=1))
    assert (loaded.scorer.score(rows) == policy.scorer.score(rows)).all()
    assert (loaded.guard.log_density(rows) == guard.log_density(rows)).all()
