"""Learned policies: features, scorers, decisions, rates, drift, outliers, and a head that learns online."""

from __future__ import annotations

import logging
import math
import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from learned_cases import (
    PAIR,
    card,
    features,
    full_policy,
    guarantee,
    logistic,
    mlp,
    monitor,
    position,
    positions,
    scorers,
    svm,
)
from scripted_pairs import answer, finish, make_engine, pair, prompt

from fsgen_router import REST, ConfigurationError, Context, Ledger, Signals
from fsgen_router.contracts.tokenizer import TokenClass
from fsgen_router.policies import Budget, Learned, SpanRule, Threshold, load_policy, save_policy
from fsgen_router.policies.cards import CurvePoint
from fsgen_router.policies.drift import DriftMonitor, Window, ks, make_monitor, psi, widened_threshold
from fsgen_router.policies.features import (
    FEATURES,
    GAP_CAP,
    INDEX,
    NUMERIC,
    answer_features,
    feature_matrix,
    feature_row,
)
from fsgen_router.policies.guard import fit_guard, log_normaliser
from fsgen_router.policies.online import OnlineHead, Reservoir, keep_old, promote
from fsgen_router.policies.scorers import (
    Adapted,
    Isotonic,
    Logistic,
    MaskedEntropy,
    Mlp,
    Platt,
    Scorer,
    Signal,
    TokenPrior,
    logit,
    logits,
    sigmoid,
    sigmoids,
)
from fsgen_router.policies.thresholds import at_threshold, threshold_of

ROWS = features(500)
SIGNALS, CONTEXT = position(np.random.default_rng(0))


class Given:
    """A scorer that says what it is told: the proposed token's id, in hundredths."""

    name = "given"

    def score(self, features):
        return features[:, INDEX["token_id"]] / 100

    def score_one(self, row):
        return row[INDEX["token_id"]] / 100

    def spec(self):
        return {"kind": "given"}

    def to_tensors(self):
        return {}


def run(policy: Learned, scores: list[float], ledger: Ledger | None = None, *, end: bool = False):
    """A request in which positions have these scores; the decisions, and the last state."""
    ledger = ledger or Ledger()
    state, decisions = policy.begin(ledger), []
    for score in scores:
        state, decision = policy.decide(state, replace(SIGNALS, token_id=round(100 * score)), CONTEXT)
        decisions.append(decision)
    if end:
        policy.end(state, ledger)
    return decisions, state


# --- features ------------------------------------------------------------------------------------


def test_features_by_hand() -> None:
    signals = Signals(
        token_id=9,
        token_class=TokenClass.DIGIT,
        entropy_nats=0.9,
        varentropy=0.4,
        max_prob=0.5,
        margin=0.2,
        log_partition=3.0,
        top_ids=(9, 2, 5),
        top_logprobs=(math.log(0.5), math.log(0.3), math.log(1e-12)),
    )
    row = dict(zip(FEATURES, feature_row(signals, Context(7, 3, 0, 0, lambda: 0.0)), strict=True))
    assert (row["max_prob"], row["margin"], row["entropy_nats"], row["varentropy"]) == (0.5, 0.2, 0.9, 0.4)
    assert (row["log_partition"], row["token_id"]) == (3.0, 9.0)
    assert row["log_odds"] == pytest.approx(0.0)
    assert row["gap_2"] == pytest.approx(math.log(5 / 3))
    # Far behind, or not there at all.
    assert row["gap_3"] == row["gap_4"] == row["gap_8"] == GAP_CAP
    assert row["tail_mass"] == pytest.approx(0.2)
    assert (row["log_position"], row["log_since_escalation"]) == (math.log(8), math.log(4))
    assert {name for name in row if name.startswith("class_") and row[name]} == {"class_digit"}
    assert {name: row[name] for name in row if name.startswith("entropy_") and row[name]} == {
        "entropy_nats": 0.9,
        "entropy_digit": 0.9,
    }


def test_training_and_serving_see_the_same_bits() -> None:
    found = positions(300, seed=1)
    matrix = feature_matrix(found)
    assert matrix.shape == (300, len(FEATURES))
    assert matrix.dtype == np.float64
    for row, (signals, context) in zip(matrix, found, strict=True):
        assert row.tobytes() == np.array(feature_row(signals, context)).tobytes()
    assert np.isfinite(matrix).all()
    assert feature_matrix([]).shape == (0, len(FEATURES))


@pytest.mark.parametrize("policy", ["entropy>1.5", "every:3,span=2", "random:0.4"])
def test_an_answer_tells_what_its_policy_saw(policy: str) -> None:
    """Features made from the finished answer are those of serving, whatever the slow model wrote in between."""
    from fsgen_router.policies import make_policy

    class Spy:
        name, asks = "spy", True

        def __init__(self) -> None:
            self.inner, self.rows = make_policy(policy), []

        def begin(self, ledger):
            return self.inner.begin(ledger)

        def decide(self, state, signals, context):
            self.rows.append(feature_row(signals, context))
            return self.inner.decide(state, signals, context)

        def end(self, state, ledger):
            return None

    escalated = 0
    for case in range(40):
        spy = Spy()
        generation = answer(pair(case), spy, prompt(case), seed=case)
        at, rows = answer_features(generation.tokens)
        assert [tuple(row) for row in rows.tolist()] == spy.rows
        assert len(at) == generation.usage.decisions
        escalated += generation.usage.escalations
    assert escalated > 40


@pytest.mark.parametrize("method", ["replace", "verify", "verify:near_best=0.5,draft_len=4"])
def test_decisions_that_stand_carry_the_score_of_their_features(method: str) -> None:
    """Also where drafts in between were taken back."""
    policy, corrections = Learned(logistic(), 0.4, extent=2), 0
    for case in range(40):
        generation = answer(pair(case), policy, prompt(case), method=method)
        at, rows = answer_features(generation.tokens)
        decisions = [generation.tokens[i].decision for i in at]
        assert [d.score for d in decisions] == pytest.approx(policy.scorer.score(rows), abs=1e-12)
        corrections += generation.usage.corrections
    assert corrections > 20


def test_a_broken_row_is_no_crash() -> None:
    signals = replace(SIGNALS, top_logprobs=(math.nan,) * 8, entropy_nats=math.nan, log_partition=math.inf)
    for scorer in scorers().values():
        score = scorer.score_one(feature_row(signals, CONTEXT))
        assert math.isnan(score) or 0.0 <= score <= 1.0


# --- scorers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", scorers())
def test_one_row_and_many_score_alike(name: str) -> None:
    scorer = scorers()[name]
    assert isinstance(scorer, Scorer)
    scores = scorer.score(ROWS)
    assert scores.shape == (len(ROWS),)
    assert np.all((scores >= 0) & (scores <= 1))
    assert scorer.score(ROWS[:0]).shape == (0,)
    ones = [scorer.score_one(tuple(row)) for row in ROWS.tolist()]
    assert all(isinstance(score, float) for score in ones)
    assert np.abs(scores - ones).max() <= 1e-12


@pytest.mark.parametrize(("signal", "sign"), [("entropy", 1), ("varentropy", 1), ("max_prob", -1), ("margin", -1)])
def test_a_single_signal_keeps_its_order(signal: str, sign: int) -> None:
    value = sign * ROWS[:, INDEX["entropy_nats" if signal == "entropy" else signal]]
    assert np.array_equal(np.argsort(Signal(signal).score(ROWS), kind="stable"), np.argsort(value, kind="stable"))


def test_an_svm_scores_by_its_decision_function() -> None:
    """By hand, from the probabilities of the best tokens; the score is above 1/2 where its class is "ask"."""
    scorer = svm()
    for row in ROWS[:50].tolist():
        gaps = [0.0, *row[INDEX["gap_2"] : INDEX["gap_8"] + 1]]
        p = np.array([row[INDEX["max_prob"]] * math.exp(-gap) for gap in gaps])
        kernel = [math.exp(-scorer.gamma * float(((p - vector) ** 2).sum())) for vector in scorer.vectors]
        decision = float(np.dot(scorer.weights, kernel)) + scorer.intercept
        assert scorer.score_one(row) == pytest.approx(sigmoid(decision), abs=1e-9)
        assert (scorer.score_one(row) > 0.5) == (decision > 0)
    assert len({scorer.score_one(row) > 0.5 for row in ROWS[:50].tolist()}) == 2


def test_a_learned_signal_escalates_where_the_plain_threshold_does() -> None:
    """1 - exp(-entropy) above 1 - exp(-1.2), and entropy above 1.2, are one policy in every answer."""
    learned = Learned(Signal("entropy"), -math.expm1(-1.2), extent=2)
    for case in range(40):
        models = pair(case)
        plain, same = (answer(models, p, prompt(case)) for p in (Threshold("entropy", 1.2, True, 2), learned))
        assert plain.text == same.text
        assert plain.usage.escalations == same.usage.escalations


def test_entropy_is_masked_by_class() -> None:
    entropy, masked = Signal("entropy").score(ROWS), MaskedEntropy(("digit",)).score(ROWS)
    digit = ROWS[:, INDEX["class_digit"]] == 1
    assert np.array_equal(masked[digit], entropy[digit])
    assert not masked[~digit].any()
    assert digit.any()


def test_logistic_is_the_regression_on_standardised_features() -> None:
    scorer = logistic(names=("margin", "log_odds", "log_position"))
    columns = ROWS[:, [INDEX[name] for name in scorer.features]]
    expected = 1 / (1 + np.exp(-(((columns - scorer.mean) / scorer.scale) @ scorer.weights + scorer.intercept)))
    assert scorer.score(ROWS) == pytest.approx(expected, abs=1e-12)


def test_the_perceptron_is_torchs() -> None:
    torch = pytest.importorskip("torch")
    scorer = mlp()
    layers = []
    for weight, bias in zip(scorer.weights, scorer.biases, strict=True):
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(weight))
            linear.bias.copy_(torch.from_numpy(bias))
        layers += [linear, torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers[:-1], torch.nn.Sigmoid())
    inputs = (ROWS[:, [INDEX[name] for name in scorer.features]] - scorer.mean) / scorer.scale
    with torch.no_grad():
        expected = model(torch.from_numpy(inputs))[:, 0].numpy()
    assert scorer.score(ROWS) == pytest.approx(expected, abs=1e-12)


def test_what_is_put_on_top_by_hand() -> None:
    inner, row = Signal("max_prob"), list(ROWS[0])
    row[INDEX["max_prob"]], row[INDEX["token_id"]] = 0.75, 7.0
    odds = 0.25 / 0.75
    prior = TokenPrior(inner, np.array([7]), np.array([math.log(6)]))
    assert prior.score_one(row) == pytest.approx(6 * odds / (1 + 6 * odds))
    row[INDEX["token_id"]] = 8.0
    assert prior.score_one(row) == pytest.approx(0.25)
    assert Platt(inner, 2.0, math.log(3)).score_one(row) == pytest.approx(3 * odds**2 / (1 + 3 * odds**2))
    table = Isotonic(inner, np.array([0.2, 0.3]), np.array([0.4, 0.8]))
    assert table.score_one(row) == pytest.approx(0.6)
    row[INDEX["max_prob"]] = 0.1
    assert table.score_one(row) == 0.8
    none = Logistic(("margin",), np.zeros(1), np.ones(1), np.zeros(1), 0.0)
    assert Adapted(inner, none).score(ROWS) == pytest.approx(inner.score(ROWS), abs=1e-12)
    assert [s.name for s in (prior, Adapted(prior, none))] == ["max_prob+prior", "max_prob+prior+head"]


@given(st.floats(-700, 700))
def test_the_sigmoid_and_its_inverse(x: float) -> None:
    assert sigmoids(np.array([x]))[0] == pytest.approx(sigmoid(x), rel=1e-12)
    if abs(x) < 25:
        assert logit(sigmoid(x)) == pytest.approx(x, abs=1e-4)
    assert logits(np.array([sigmoid(x)]))[0] == pytest.approx(logit(sigmoid(x)), abs=1e-12)


ONE, TWO = np.ones(1), np.ones(2)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Signal("surprise"),
        lambda: MaskedEntropy(("verb",)),
        lambda: Logistic(("charm",), ONE, ONE, ONE, 0.0),
        lambda: Logistic(("margin",), TWO, ONE, ONE, 0.0),
        lambda: Logistic(("margin",), ONE, 0 * ONE, ONE, 0.0),
        lambda: Logistic(("margin",), ONE, ONE, ONE * math.nan, 0.0),
        lambda: Logistic(("margin",), ONE, ONE, ONE, math.inf),
        lambda: Mlp(("margin",), ONE, ONE, (np.ones((1, 2)),), (ONE,)),
        lambda: Mlp(("margin",), ONE, ONE, (np.ones((2, 1)),), (TWO,)),
        lambda: Mlp(("margin",), ONE, ONE, (np.ones((1, 1)),), ()),
        lambda: Mlp(("margin",), ONE, ONE, (np.full((1, 1), math.nan),), (ONE,)),
        lambda: TokenPrior(Signal("margin"), np.array([3, 1]), TWO),
        lambda: TokenPrior(Signal("margin"), np.array([3]), TWO),
        lambda: Platt(Signal("margin"), 0.0, 0.0),
        lambda: Isotonic(Signal("margin"), np.array([]), np.array([])),
        lambda: Isotonic(Signal("margin"), TWO, TWO),
        lambda: Isotonic(Signal("margin"), np.array([0.0, 1.0]), np.array([0.5, 0.4])),
        lambda: Isotonic(Signal("margin"), np.array([0.0, 1.0]), np.array([0.5, 1.4])),
        lambda: Mlp(("margin",), ONE * math.nan, ONE, (np.ones((1, 1)),), (ONE,)),
        lambda: TokenPrior(Signal("margin"), np.array([3]), ONE * math.inf),
        lambda: Platt(Signal("margin"), math.inf, 0.0),
        lambda: Learned(Signal("margin"), math.nan),
        lambda: Learned(Signal("margin"), math.inf),
        lambda: Learned(Signal("margin"), 0.5, extent=0),
        lambda: SpanRule(0, 0.5, 0.5),
        lambda: SpanRule(3, 1.5, 0.5),
        lambda: SpanRule(3, 0.5, math.nan),
        lambda: DriftMonitor((0.5,), (0.5, 0.5), 3, math.inf, 0.1),
        lambda: Learned(Signal("margin"), 0.5).holding(0.1, step=math.inf),
        lambda: DriftMonitor((0.5,), (1.0,), 3, 0.2, 0.1),
        lambda: DriftMonitor((0.5,), (1.0, 0.0), 3, 0.2, 0.1),
        lambda: DriftMonitor((0.5, 0.4), (0.3, 0.3, 0.4), 3, 0.2, 0.1),
        lambda: DriftMonitor((0.5,), (0.5, 0.5), 0, 0.2, 0.1),
        lambda: DriftMonitor((0.5,), (0.5, 0.5), 5, 0.2, 0.1, "chi2"),
        lambda: Learned(Signal("margin"), 0.5).certified(guarantee(0.4)),
        lambda: Learned(Signal("margin"), 0.5).holding(1.5),
        lambda: OnlineHead(Signal("margin"), mean=ONE, scale=ONE, names=("margin",), audit_rate=0.0),
    ],
)
def test_parts_that_do_not_fit(make) -> None:
    with pytest.raises(ConfigurationError):
        make()


# --- decisions -----------------------------------------------------------------------------------


def test_the_threshold_is_strict_and_the_decision_says_what_was_compared() -> None:
    decisions, _ = run(Learned(Given(), 0.5, extent=REST), [0.5, 0.51, 0.0])
    assert [(d.escalate, d.extent, d.score, d.threshold, d.reason) for d in decisions] == [
        (False, REST, 0.5, 0.5, "given"),
        (True, REST, 0.51, 0.5, "given"),
        (False, REST, 0.0, 0.5, "given"),
    ]
    policy = Learned(Given(), 0.5, extent=4)
    assert (policy.name, policy.asks) == ("learned:given>0.5,span=4", True)


def test_a_score_that_is_no_number_asks_the_slow_model() -> None:
    signals = replace(SIGNALS, entropy_nats=math.nan)
    policy = Learned(Signal("entropy"), 0.9, drift=monitor())
    state, decision = policy.decide(policy.begin(Ledger()), signals, CONTEXT)
    assert decision.escalate
    policy.end(state, Ledger())


@given(scores=st.lists(st.floats(0, 1), min_size=1, max_size=12), quantile=st.floats(0, 1))
def test_a_spans_score_is_the_quantile(scores: list[float], quantile: float) -> None:
    assert SpanRule(3, quantile, 0.5).score(scores) == pytest.approx(np.quantile(scores, quantile), abs=1e-12)


def test_a_span_is_judged_once_it_is_drafted_and_begins_anew() -> None:
    policy = Learned(Given(), 0.8, span=SpanRule(3, 0.5, 0.4))
    decisions, _ = run(policy, [0.5, 0.6, 0.1, 0.45, 0.5, 0.9, 0.5, 0.5, 0.3, 0.2, 0.2])
    reasons = [d.reason if d.escalate else "" for d in decisions]
    #        0.5 0.6 0.1: median 0.5      0.9 alone          0.5 0.5 0.3: median 0.5
    assert reasons == ["", "", "span", "", "", "given", "", "", "span", "", ""]
    assert (decisions[2].score, decisions[2].threshold) == (0.5, 0.4)


def test_a_state_is_a_value_that_a_rewind_can_restore() -> None:
    policy, found = full_policy(), positions(60, seed=2)
    state = policy.begin(Ledger())
    for signals, context in found:
        hash(state)
        later = policy.decide(state, signals, context)
        policy.decide(later[0], SIGNALS, CONTEXT)
        assert policy.decide(state, signals, context) == later
        state = later[0]


# --- a held rate ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "method"), [(0.05, "replace"), (0.3, "replace"), (0.1, "verify")])
def test_a_learned_score_holds_a_rate_over_requests(rate: float, method: str) -> None:
    """Also where drafts are taken back: what was asked of the slow model was asked."""
    policy, ledger = Learned(logistic(), 0.5, span=SpanRule(4, 0.5, 0.6)).holding(rate, step=0.1), Ledger()
    for case in range(300):
        models = pair(case)
        finish(make_engine(models, policy, prompt(case), ledger=ledger, method=method), models)
        moved = ledger.recall(policy.hold.key, policy.hold.start) - policy.hold.start
        found = ledger.escalations / ledger.decisions
        assert found - rate == pytest.approx(moved / (policy.hold.step * ledger.decisions), abs=1e-9)
    assert found == pytest.approx(rate, abs=0.03)


def test_a_held_rate_begins_at_the_threshold_and_suspends_the_claim() -> None:
    policy = Learned(Given(), 0.3).certified(guarantee(0.3))
    held = policy.holding(0.5, step=1.0)
    (first, second), _ = run(held, [0.2, 0.2])
    assert first.threshold == pytest.approx(0.3)
    assert second.threshold == pytest.approx(sigmoid(logit(0.3) - 0.5))
    assert (policy.guarantee().reasons, held.guarantee().reasons) == ((), ("a rate is held",))
    assert replace(held, certificate=None).guarantee() is None


def test_budgets_and_learned_rates_share_a_ledger() -> None:
    ledger, budget, held = Ledger(), Budget(0.2), Learned(Given(), 0.3).holding(0.2)
    run(held, [0.9] * 5, ledger, end=True)
    assert budget.begin(ledger) == (budget.start, 0.0)
    assert held.begin(ledger).shift == pytest.approx(0.2 * 0.8 * 5)


# --- the claim -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [{"threshold": 0.4}, {"extent": 2}, {"span": SpanRule(3, 0.5, 0.4)}, {"scorer": logistic(9)}],
    ids=lambda change: next(iter(change)),
)
def test_whatever_is_changed_suspends_the_claim(change: dict[str, object]) -> None:
    policy = Learned(logistic(), 0.5).certified(guarantee())
    assert policy.guarantee().holds
    assert replace(policy, drift=monitor(), pair=PAIR).guarantee().holds
    assert replace(policy, **change).guarantee().reasons == ("the policy is not the certified one",)


# --- drift ---------------------------------------------------------------------------------------


def test_measures_of_drift_by_hand() -> None:
    assert psi([500, 500], [0.5, 0.5]) == pytest.approx(0.0)
    p = (80.5 / 101, 20.5 / 101)
    expected = (p[0] - 0.5) * math.log(p[0] / 0.5) + (p[1] - 0.5) * math.log(p[1] / 0.5)
    assert psi([80, 20], [0.5, 0.5]) == pytest.approx(expected)
    assert math.isfinite(psi([100, 0], [0.5, 0.5]))
    # 10.5, 0.5 and 10.5 of 21.5.
    assert ks([10, 0, 10], [0.25, 0.5, 0.25]) == pytest.approx(10.5 / 21.5 - 0.25)
    assert ks([0, 0], [0.5, 0.5]) == 0.0
    assert psi([[80, 20], [500, 500]], [0.5, 0.5]) == pytest.approx([expected, 0.0])


def test_drift_widens_escalation_logs_once_and_suspends_for_good(caplog: pytest.LogCaptureFixture) -> None:
    alike = [0.1, 0.1, 0.1, 0.1, 0.3, 0.3, 0.3, 0.6, 0.6, 0.9]  # just the monitor's shares
    shifted = [0.6] * 10
    policy = Learned(Given(), 0.5, drift=monitor(window=3, alarm=0.5, widened=0.2)).certified(guarantee())
    ledger = Ledger()

    def request(scores: list[float]) -> tuple[float, str]:
        decisions, _ = run(policy, scores, ledger, end=True)
        return decisions[0].threshold, policy.guarantee(ledger).holds

    with caplog.at_level(logging.INFO, "fsgen_router"):
        assert [request(alike) for _ in range(4)] == [(0.5, True)] * 4
        assert "policy_drift" not in caplog.text
        assert [request(shifted)[0] for _ in range(5)] == [0.5, 0.5, 0.2, 0.2, 0.2]
        assert caplog.text.count("policy_drift") == 1
        assert "alarm=True" in caplog.text
        assert policy.guarantee(ledger).reasons == ("scores drifted from those of calibration",)
        assert [request(alike)[0] for _ in range(4)] == [0.2, 0.2, 0.5, 0.5]
    # Escalation comes back to the certified threshold; the claim does not.
    assert caplog.text.count("policy_drift") == 2
    assert "alarm=False" in caplog.text
    assert not policy.guarantee(ledger).holds
    assert policy.guarantee(Ledger()).holds


def test_an_alarm_never_narrows_escalation() -> None:
    policy, ledger = Learned(Given(), 0.05, drift=monitor(window=1, widened=0.4)), Ledger()
    run(policy, [0.9] * 20, ledger, end=True)
    assert policy.drift.state(ledger, policy.digest).alarm
    assert policy.begin(ledger).threshold == 0.05


def test_concurrent_requests_lose_no_scores() -> None:
    watch, ledger = monitor(window=400, alarm=9.0), Ledger()
    threads = [
        threading.Thread(target=lambda n=n: [watch.observe((n, 1, 0, 0), ledger) for _ in range(25)]) for n in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    requests = watch.state(ledger).requests
    assert len(requests) == 400
    assert sum(request[0] for request in requests) == 25 * sum(range(16))


def request_scores(rng: np.random.Generator, shift: float = 0.0) -> np.ndarray:
    """Scores of one request, which depend on each other: a level of its own."""
    return sigmoids(rng.normal(-2 + shift + rng.normal(), 1.0, size=rng.integers(10, 80)))


@pytest.mark.parametrize("measure", ["psi", "ks"])
def test_a_monitor_made_of_calibration_rarely_cries_wolf_and_sees_a_shift(measure: str) -> None:
    rng = np.random.default_rng(0)
    calibration = [request_scores(rng) for _ in range(400)]
    prompts = np.repeat(np.arange(400), [len(scores) for scores in calibration])
    scores = np.concatenate(calibration)
    watch = make_monitor(scores, prompts, 0.4, window=40, measure=measure, false_alarms=0.05, requests=200)
    assert sum(watch.shares) == pytest.approx(1.0)
    assert len(watch.shares) == 10

    def alarms(shift: float, requests: int, routers: int) -> float:
        raised = 0
        for _ in range(routers):
            ledger = Ledger()
            for _ in range(requests):
                counts = watch.empty
                for score in request_scores(rng, shift).tolist():
                    counts = watch.count(counts, score)
                watch.observe(counts, ledger)
            raised += watch.state(ledger).ever
        return raised / routers

    # 5% expected in as many requests; binomial standard deviation of 60 routers 2.8%.
    assert alarms(0.0, 200, 60) <= 0.05 + 3 * 0.028
    assert alarms(1.0, 60, 15) == 1.0


def test_the_widened_threshold_doubles_the_rate() -> None:
    scores = np.random.default_rng(0).random(10_001)
    assert np.mean(scores > widened_threshold(scores, 0.9)) == pytest.approx(2 * np.mean(scores > 0.9), abs=1e-3)
    assert widened_threshold(scores, 0.4) < 0
    assert widened_threshold(scores, 2.0) <= 2.0
    assert widened_threshold(np.full(10, 0.7), 0.5) < 0


def test_a_request_without_decisions_is_not_counted() -> None:
    policy, ledger = Learned(Given(), 0.5, drift=monitor()), Ledger()
    run(policy, [], ledger, end=True)
    assert policy.drift.state(ledger, policy.digest) == Window()


def test_a_ledger_revises_any_value_atomically() -> None:
    ledger = Ledger()
    threads = [
        threading.Thread(target=lambda: [ledger.revise("k", lambda value: (*value, 1), ()) for _ in range(50)])
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.recall("k", ()) == (1,) * 400


# --- outliers ------------------------------------------------------------------------------------


def test_the_density_on_the_sphere_integrates_to_one() -> None:
    """In three dimensions C(kappa) = kappa / (4 pi sinh kappa); in five, by drawing uniform directions."""
    for kappa in (0.5, 3.0, 20.0):
        expected = math.log(kappa / (4 * math.pi * math.sinh(kappa)))
        assert log_normaliser(np.array([kappa]), 3)[0] == pytest.approx(expected)
    vectors = np.random.default_rng(0).normal(size=(200_000, 5))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    area = 2 * math.pi ** (5 / 2) / math.gamma(5 / 2)
    density = np.exp(log_normaliser(np.array([4.0]), 5)[0] + 4.0 * vectors[:, 0])
    assert area * density.mean() == pytest.approx(1.0, abs=0.02)


def test_a_guard_finds_what_points_elsewhere() -> None:
    names, rng = ("margin", "log_odds", "gap_2", "tail_mass"), np.random.default_rng(1)
    columns = [INDEX[name] for name in names]
    rows = np.zeros((3000, len(FEATURES)))
    centres = np.array([[4.0, 0, 0, 0], [0, 4.0, 0, 0]])
    rows[:, columns] = centres[rng.integers(2, size=3000)] + rng.normal(0, 0.4, (3000, 4))
    guard = fit_guard(rows, widened=0.1, names=names, components=2, outliers=0.01)
    assert np.mean([guard.is_outlier(row) for row in rows.tolist()]) == pytest.approx(0.01, abs=0.003)
    strange = np.zeros(len(FEATURES))
    strange[columns] = [2.0, 2.0, 9.0, -9.0]
    assert guard.is_outlier(strange.tolist())
    strange[columns[0]] = math.nan
    assert guard.is_outlier(strange.tolist())


def test_an_outlier_widens_escalation_and_suspends_the_claim_of_its_request() -> None:
    class Odd:
        """A guard that minds one token."""

        widened = 0.2

        def is_outlier(self, row):
            return row[INDEX["token_id"]] == 33

        def spec(self):
            return {"kind": "odd"}

    policy = Learned(Given(), 0.5, guard=Odd()).certified(guarantee())
    ledger = Ledger()
    decisions, state = run(policy, [0.33, 0.34], ledger)
    assert [(d.escalate, d.threshold, d.reason) for d in decisions] == [(True, 0.2, "outlier"), (False, 0.5, "given")]
    assert policy.guarantee(ledger, state).reasons == ("1 positions unlike those of calibration",)
    assert policy.guarantee(ledger, run(policy, [0.34], ledger)[1]).holds


# --- the online head -----------------------------------------------------------------------------


def test_a_reservoir_is_a_uniform_sample() -> None:
    kept = np.zeros(60)
    for seed in range(800):
        reservoir = Reservoir(6, seed=seed)
        for number in range(60):
            reservoir.add(np.full(len(FEATURES), number), 0.0, 1.0)
        kept[reservoir.rows[:, 0].astype(int)] += 1
    assert len(reservoir) == 6
    # 80 expected; binomial standard deviation 8.5.
    assert np.abs(kept - 80).max() < 5 * 8.5


def online(audit: float, requests: int = 250) -> tuple[OnlineHead, np.ndarray, np.ndarray]:
    """A head that watched scripted answers; and fresh rows with their labels, all of them."""
    frozen = Signal("max_prob")
    rows = np.concatenate([answer_features(answer(pair(case), "never", prompt(case)).tokens)[1] for case in range(40)])
    columns = rows[:, [INDEX[name] for name in NUMERIC]]
    scale = columns.std(axis=0)
    names = tuple(name for name, wide in zip(NUMERIC, scale > 1e-9, strict=True) if wide)
    kept = scale > 1e-9
    head = OnlineHead(frozen, mean=columns.mean(axis=0)[kept], scale=scale[kept], names=names, audit_rate=audit or 1.0)
    rng = np.random.default_rng(5)
    policy = Learned(frozen, 0.75)
    for case in range(requests):
        head.observe(answer(pair(case), policy, prompt(case), audit=bool(rng.random() < audit)))
    fresh, labels = [], []
    for case in range(10_000, 10_120):
        tokens = answer(pair(case), "never", prompt(case), audit=True).tokens
        at, found = answer_features(tokens)
        fresh.append(found)
        labels += [tokens[i].fast_choice != tokens[i].slow_choice for i in at]
    return head, np.concatenate(fresh), np.array(labels, float)


def log_loss(scores: np.ndarray, labels: np.ndarray) -> float:
    kept = np.clip(scores, 1e-9, 1 - 1e-9)
    return float(-(labels * np.log(kept) + (1 - labels) * np.log(1 - kept)).mean())


def test_the_head_learns_from_escalations_and_audits() -> None:
    head, rows, labels = online(audit=0.3)
    candidate = head.scorer
    assert log_loss(candidate.score(rows), labels) < log_loss(head.inner.score(rows), labels) - 0.005
    # The frozen scorer is as it was, and what was handed out does not change with further learning.
    before = candidate.score(rows)
    head.observe(answer(pair(1), "always", prompt(1), audit=True))
    assert np.array_equal(candidate.score(rows), before)


def test_accepted_tokens_count_through_audits_alone() -> None:
    head, _, _ = online(audit=0.25, requests=120)
    reservoir = head.reservoir
    size = len(reservoir)
    assert set(np.unique(reservoir.weights[:size])) == {1.0, 4.0}
    scores = head.inner.score(reservoir.rows[:size])
    # Escalated ones are above the threshold, accepted ones below.
    assert np.array_equal(scores > 0.75, reservoir.weights[:size] == 1.0)
    assert head.observe(answer(pair(2), "never", prompt(2))) == 0


def test_a_moved_threshold_keeps_the_curve_and_suspends_the_certificate() -> None:
    points = (CurvePoint(threshold=0.5, n_prompts=7, escalation_rate=0.1, accuracy=1.0),)
    policy = Learned(logistic(), 0.5, curve=points).certified(guarantee())
    found = threshold_of(policy)
    assert (found.value, found.asks, found.unit, found.certified, found.curve) == (0.5, "above", "score", 0.5, points)
    moved = at_threshold(policy, 0.25)
    assert moved == replace(policy, threshold=0.25)
    assert threshold_of(moved) == replace(found, value=0.25)
    assert not moved.guarantee().holds
    assert at_threshold(moved, 0.5).guarantee().holds
    # A rate that is held moves the threshold itself.
    assert threshold_of(policy.holding(0.1)) is None


# --- promotion -----------------------------------------------------------------------------------


def test_a_candidate_is_promoted_only_with_a_certificate_and_the_old_file_is_kept(tmp_path) -> None:
    path = tmp_path / "policy.safetensors"
    old = Learned(logistic(), 0.5).certified(guarantee())
    save_policy(path, old, card())
    before = path.read_bytes()
    candidates = [Learned(Adapted(logistic(), logistic(1)), threshold) for threshold in (0.2, 0.4, 0.6)]
    losses = np.zeros((200, 3))
    losses[:, 2] = 1.0
    common = {"rates": (0.5, 0.3, 0.1), "alpha": 0.05, "loss": "regret"}

    assert promote(path, candidates, card(), losses=np.ones((200, 3)), delta=0.1, **common) is None
    assert path.read_bytes() == before
    # A fifth attempt has a thirtieth of delta, for which 200 prompts are too few at this alpha and delta.
    assert promote(path, candidates, card(), losses=losses, delta=0.001, attempt=5, **common) is None
    assert [p.name for p in tmp_path.iterdir()] == ["policy.safetensors"]

    promoted = promote(path, candidates, card(), losses=losses, delta=0.1, **common)
    assert promoted.threshold == 0.4
    assert promoted.guarantee().holds
    assert (promoted.certificate.delta, promoted.certificate.certified_rate) == (0.05, 0.3)
    loaded, read = load_policy(path)
    assert (loaded.digest, read.guarantee) == (promoted.digest, promoted.certificate)
    assert (tmp_path / "policy.1.safetensors").read_bytes() == before
    assert keep_old(path) == tmp_path / "policy.2.safetensors"
    assert keep_old(tmp_path / "other.safetensors") is None
    with pytest.raises(ConfigurationError, match="attempt 0"):
        promote(path, candidates, card(), losses=losses, delta=0.1, attempt=0, **common)
