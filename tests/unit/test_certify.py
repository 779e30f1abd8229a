"""Certificates: p-values by enumeration and by simulation, testing in order, what naive tuning does instead."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scripted_pairs import answer, pair, prompt

from fsgen_router import ConfigurationError
from fsgen_router.policies.audits import Audit, audit_of, estimate_missed
from fsgen_router.policies.certify import (
    Certification,
    betting_e_values,
    betting_p_value,
    binomial_p_value,
    certify,
    certify_columns,
    fewest_prompts,
    fixed_sequence,
    hoeffding_bentkus_p_value,
    hopeless,
    make_guarantee,
    prompts_needed,
)

# --- p-values ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "alpha"), [(1, 0.3), (4, 0.1), (7, 0.25)])
def test_the_binomial_p_value_by_enumerating_all_outcomes(n: int, alpha: float) -> None:
    """Every sequence of losses, weighted by its probability at a risk of just alpha."""
    for failures in range(n + 1):
        tail = math.fsum(
            alpha ** sum(losses) * (1 - alpha) ** (n - sum(losses))
            for losses in itertools.product((0, 1), repeat=n)
            if sum(losses) <= failures
        )
        assert binomial_p_value(failures, n, alpha) == pytest.approx(tail)


@pytest.mark.parametrize("n", [3, 20, 57])
@pytest.mark.parametrize("alpha", [0.05, 0.2])
@pytest.mark.parametrize("excess", [0.0, 0.01, 0.2])
def test_p_values_are_valid_exactly(n: int, alpha: float, excess: float) -> None:
    """P(p <= u) <= u at every risk of alpha and above, summed over all counts of failures."""
    failures = np.arange(n + 1)
    probability = stats.binom.pmf(failures, n, alpha + excess)
    for p_values in (binomial_p_value(failures, n, alpha), hoeffding_bentkus_p_value(failures / n, n, alpha)):
        for level in (0.001, 0.01, 0.05, 0.1, 0.5):
            assert probability[p_values <= level].sum() <= level + 1e-12


def test_hoeffding_bentkus_by_hand_and_against_the_exact_value() -> None:
    # n = 50, mean 0.02, alpha 0.1: h(0.02, 0.1) = 0.02 ln 0.2 + 0.98 ln(0.98 / 0.9).
    divergence = 0.02 * math.log(0.2) + 0.98 * math.log(0.98 / 0.9)
    bentkus = math.e * stats.binom.cdf(1, 50, 0.1)
    assert hoeffding_bentkus_p_value(0.02, 50, 0.1) == pytest.approx(min(math.exp(-50 * divergence), bentkus))
    # A bound for more losses than the exact value is for cannot be below it.
    failures = np.arange(51)
    assert np.all(hoeffding_bentkus_p_value(failures / 50, 50, 0.1) >= binomial_p_value(failures, 50, 0.1) - 1e-12)
    assert hoeffding_bentkus_p_value(0.5, 50, 0.1) == 1.0


@given(
    n=st.integers(1, 500), share=st.floats(0, 1), more=st.floats(0, 1), alpha=st.floats(0.01, 0.5), up=st.floats(0, 0.4)
)
def test_more_loss_is_more_doubt_and_a_weaker_claim_less(
    n: int, share: float, more: float, alpha: float, up: float
) -> None:
    low, high = sorted((share, more))
    for p_value in (hoeffding_bentkus_p_value, lambda risk, n, a: binomial_p_value(math.floor(risk * n), n, a)):
        assert 0.0 <= p_value(low, n, alpha) <= p_value(high, n, alpha) + 1e-12 <= 1.0 + 1e-12
        assert p_value(low, n, alpha + up) <= p_value(low, n, alpha) + 1e-12


def test_bounded_losses_are_valid_by_simulation() -> None:
    rng, draws, n, alpha, delta = np.random.default_rng(0), 4000, 60, 0.2, 0.1
    for sample in (
        rng.uniform(0, 2 * alpha, (draws, n)),
        rng.beta(0.2, 0.8, (draws, n)),
        (rng.random((draws, n)) < 2 * alpha) * 0.5,
    ):
        rejected = np.mean([hoeffding_bentkus_p_value(losses.mean(), n, alpha) <= delta for losses in sample])
        assert rejected <= delta + 2 * math.sqrt(delta * (1 - delta) / draws)


# --- betting: a test that is valid at any time ---------------------------------------------------


def test_e_values_by_hand() -> None:
    """What a mean over stakes has made: each stake is the best one for a mean of m, below alpha."""
    alpha, losses = 0.1, [0.0, 0.0, 1.0, 0.5, 0.0]
    weights = np.arange(20, 0, -1) / 210
    capital, expected = weights.copy(), []
    for loss in losses:
        for k in range(20):
            stake = (alpha - alpha * k / 20) / (alpha * (1 - alpha))
            capital[k] *= 1 + stake * (alpha - loss)
        expected.append(capital.sum())
    np.testing.assert_allclose(betting_e_values(losses, alpha), expected)
    assert betting_p_value(losses, alpha) == pytest.approx(1 / max(expected))
    both = betting_e_values(np.array([losses, [1.0] * 5]).T, alpha)
    np.testing.assert_allclose(both[:, 0], expected)
    assert (np.diff(both[:, 1]) < 0).all()


@pytest.mark.parametrize(("alpha", "delta", "n"), [(0.05, 0.1, 400), (0.2, 0.05, 200)])
def test_stopping_at_any_time_certifies_too_much_in_at_most_delta_of_the_streams(
    alpha: float, delta: float, n: int
) -> None:
    """At a risk of just alpha, looked at after every prompt, in 5,000 streams; and for losses between 0 and 1."""
    rng = np.random.default_rng(0)
    binary = (rng.random((n, 5_000)) < alpha).astype(float)
    between = rng.beta(0.5 * alpha, 0.5 * (1 - alpha), (n, 5_000))
    for losses in (binary, between):
        reached = (betting_e_values(losses, alpha).max(axis=0) >= 1 / delta).mean()
        assert reached <= delta + 3 * math.sqrt(delta * (1 - delta) / 5_000)
        assert reached > delta / 5, "not so careful that it is of no use"
    # A test for one look at all prompts does not bear looking after every tenth.
    counts = np.cumsum(binary, axis=0)
    looks = np.arange(99, n, 10)
    p_values = np.array([binomial_p_value(counts[at], at + 1, alpha) for at in looks])
    assert (p_values.min(axis=0) <= delta).mean() > 1.5 * delta


def test_betting_stops_early_where_the_risk_is_low_and_needs_more_prompts_where_it_is_near() -> None:
    """Against the test on all 160 prompts: what is saved, and what that costs."""
    rng, alpha, delta, n = np.random.default_rng(1), 0.05, 0.1, 160
    looked, power, fixed = {}, {}, {}
    for risk in (0.0, 0.005, 0.02):
        losses = (rng.random((n, 4000)) < risk).astype(float)
        won = betting_e_values(losses, alpha) >= 1 / delta
        looked[risk] = np.where(won.any(axis=0), won.argmax(axis=0) + 1, n).mean()
        power[risk] = won.any(axis=0).mean()
        fixed[risk] = (binomial_p_value(losses.sum(axis=0), n, alpha) <= delta).mean()
    assert looked[0.0] == fewest_prompts(alpha, delta, bound="betting") < n / 2
    assert looked[0.005] < 0.6 * n
    assert fixed[0.0] == power[0.0] == 1.0
    assert fixed[0.02] > power[0.02] + 0.05


def test_hopeless_is_what_not_even_a_stream_without_another_loss_would_save() -> None:
    alpha, delta, n = 0.05, 0.1, 120
    rng = np.random.default_rng(2)
    for risk in (0.01, 0.05, 0.2):
        losses = (rng.random(n) < risk).astype(float)
        for seen in (1, 10, 60, 119):
            best = np.concatenate([losses[:seen], np.zeros(n - seen)])
            assert hopeless(losses[:seen], n, alpha, delta) == (betting_e_values(best, alpha)[-1] < 1 / delta)


def test_candidates_that_stopped_at_different_prompts_are_tested_in_order() -> None:
    clean, lossy = np.zeros(80), np.concatenate([np.ones(6), np.zeros(14)])
    found = certify_columns([clean, clean[:70], lossy, clean], 0.05, 0.1, bound="betting")
    assert (found.chosen, found.n_prompts, found.bound) == (1, 70, "betting")
    assert found.risks.tolist() == [0.0, 0.0, 0.3, 0.0]
    assert found.enough_prompts is None
    at_once = certify(np.zeros((80, 2)), 0.05, 0.1, bound="betting")
    assert at_once.p_values.tolist() == [betting_p_value(clean, 0.05)] * 2
    assert fewest_prompts(0.05, 0.1) < (fewest := fewest_prompts(0.05, 0.1, bound="betting")) <= 70
    assert betting_p_value(np.zeros(fewest), 0.05) <= 0.1 < betting_p_value(np.zeros(fewest - 1), 0.05)
    needed = prompts_needed(0.05, 0.1, risk=0.01, bound="betting")
    assert needed is not None
    assert needed > (prompts_needed(0.05, 0.1, risk=0.01) or 0)


# --- testing in order ----------------------------------------------------------------------------


def test_testing_stops_at_the_first_that_is_not_rejected() -> None:
    assert fixed_sequence(np.array([0.01, 0.1, 0.1001, 0.0]), 0.1) == 2
    assert fixed_sequence(np.array([0.2, 0.0]), 0.1) == 0
    assert fixed_sequence(np.array([0.0, 0.0]), 0.1) == 2
    assert fixed_sequence(np.array([0.0, math.nan, 0.0]), 0.1) == 1


# Risk and losses of a threshold that escalates less and less: the pool is the truth.
THRESHOLDS = np.linspace(0.0, 1.0, 21)


def pool_of_losses(n: int = 4000, *, seed: int = 0) -> np.ndarray:
    """A prompt fails once the threshold is above what it can take; a few fail here and there at random,
    since another threshold is another text, and losses need not be monotone."""
    rng = np.random.default_rng(seed)
    tolerance = rng.beta(3, 1.2, n)
    fails = THRESHOLDS[None] > tolerance[:, None] + 0.25
    flipped = rng.random(fails.shape) < 0.02 * (THRESHOLDS > 0)
    return (fails ^ flipped).astype(float)


def tuned_naively(losses: np.ndarray, alpha: float) -> int:
    """The most daring candidate whose loss on the calibration prompts looks small enough."""
    passing = np.flatnonzero(losses.mean(axis=0) <= alpha)
    return int(passing[-1])


@pytest.mark.parametrize("delta", [0.1, 0.2])
def test_violations_stay_below_delta_where_naive_tuning_violates_often(delta: float) -> None:
    """500 splits of one pool, whose own risk is the truth."""
    pool, alpha, splits, n = pool_of_losses(), 0.05, 500, 400
    truth, rng = pool.mean(axis=0), np.random.default_rng(1)
    certified = naive = 0
    chosen = []
    for _ in range(splits):
        sample = pool[rng.permutation(len(pool))[:n]]
        result = certify(sample, alpha, delta)
        assert result.chosen is not None
        chosen.append(result.chosen)
        certified += truth[result.chosen] > alpha
        naive += truth[tuned_naively(sample, alpha)] > alpha
    assert certified / splits <= delta + 2 * math.sqrt(delta * (1 - delta) / splits)
    assert naive / splits > 0.25
    # No empty success: what is certified is far from "always escalate".
    assert np.median(chosen) >= 8


def test_violations_of_independent_draws_at_the_boundary() -> None:
    """All candidates but the first violate by next to nothing: the hardest case there is."""
    rng, alpha, delta, draws = np.random.default_rng(2), 0.1, 0.1, 3000
    failures = rng.binomial(150, alpha + 1e-6, (draws, 5))
    violations = np.mean([fixed_sequence(binomial_p_value(row, 150, alpha), delta) > 0 for row in failures])
    assert violations <= delta + 2 * math.sqrt(delta * (1 - delta) / draws)
    # Discrete, so below delta, but not far below: the test does not owe its validity to doing nothing.
    assert violations > delta / 3


def test_a_certification_by_hand() -> None:
    losses = np.zeros((60, 3))
    losses[:3, 1] = 1.0
    losses[:, 2] = 1.0
    result = certify(losses, 0.1, 0.2)
    assert result.risks.tolist() == [0.0, 0.05, 1.0]
    assert result.p_values.tolist() == pytest.approx([0.9**60, stats.binom.cdf(3, 60, 0.1), 1.0])
    assert (result.chosen, result.n_prompts, result.bound, result.enough_prompts) == (1, 60, "binomial", None)


def test_nothing_certified_says_how_many_prompts_would_do() -> None:
    losses = np.zeros((40, 2))
    losses[0] = 1.0
    result = certify(losses, 0.05, 0.1)
    assert result.chosen is None
    assert result.enough_prompts == prompts_needed(0.05, 0.1, risk=1 / 40)
    assert result.enough_prompts > 40
    assert certify(np.ones((40, 2)), 0.05, 0.1).enough_prompts is None
    assert certify(np.zeros((100, 2)), 0.05, 0.1).chosen == 1


@pytest.mark.parametrize(("alpha", "delta"), [(0.05, 0.1), (0.01, 0.05), (0.3, 0.5)])
def test_the_fewest_prompts_that_could_do(alpha: float, delta: float) -> None:
    n = fewest_prompts(alpha, delta)
    assert binomial_p_value(0, n, alpha) <= delta < binomial_p_value(0, n - 1, alpha)
    assert prompts_needed(alpha, delta) == n
    assert certify(np.zeros((n, 1)), alpha, delta).chosen == 0
    assert certify(np.zeros((n - 1, 1)), alpha, delta).chosen is None


@pytest.mark.parametrize("risk", [0.01, 0.03, 0.045])
def test_the_prompts_that_are_said_to_do_mostly_do(risk: float) -> None:
    alpha, delta = 0.05, 0.1
    n = prompts_needed(alpha, delta, risk=risk)
    failures = np.arange(n + 1)
    passes = binomial_p_value(failures, n, alpha) <= delta
    assert stats.binom.pmf(failures, n, risk)[passes].sum() >= 0.8
    # And not many fewer would.
    fewer = int(0.8 * n)
    passes = binomial_p_value(np.arange(fewer + 1), fewer, alpha) <= delta
    assert stats.binom.pmf(np.arange(fewer + 1), fewer, risk)[passes].sum() < 0.8


def test_no_number_of_prompts_certifies_too_high_a_risk() -> None:
    assert prompts_needed(0.05, 0.1, risk=0.05) is None
    assert prompts_needed(0.05, 0.1, risk=0.2) is None
    assert prompts_needed(0.05, 0.1, risk=0.05 - 1e-7) is None


def test_the_claim_about_the_chosen_candidate() -> None:
    losses = np.zeros((100, 3))
    losses[:2, 1] = 1.0
    losses[:, 2] = 1.0
    tested = certify(losses, 0.1, 0.1)
    claim = make_guarantee(tested, (0.1, 0.4, 0.9), (1.0, 0.3, 0.0), loss="regret", method="verify")
    assert claim is not None
    assert (claim.threshold, claim.certified_rate, claim.risk, claim.n_prompts) == (0.4, 0.3, 0.02, 100)
    assert (claim.n_thresholds, claim.bound, claim.method) == (3, "binomial", "verify:exact")
    assert claim.sentence == "certified on prompts like the 100 of calibration: regret at most 10% at confidence 90%"
    assert make_guarantee(certify(np.ones((100, 1)), 0.1, 0.1), (0.1,), (0.2,), loss="regret") is None


@pytest.mark.parametrize(
    ("losses", "alpha", "delta", "message"),
    [
        ([], 0.1, 0.1, "shape"),
        ([0.0, 1.0], 0.1, 0.1, "shape"),
        ([[0.0, 2.0]], 0.1, 0.1, r"outside \[0, 1\]"),
        ([[-0.1]], 0.1, 0.1, r"outside \[0, 1\]"),
        ([[math.nan]], 0.1, 0.1, r"outside \[0, 1\]"),
        ([[0.5]], 0.1, 0.1, "neither 0 nor 1"),
        ([[0.0]], 0.0, 0.1, "between 0 and 1"),
        ([[0.0]], 0.1, 1.0, "between 0 and 1"),
    ],
)
def test_what_cannot_be_certified_is_refused(
    losses: list[list[float]], alpha: float, delta: float, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        certify(losses, alpha, delta)


def test_bounded_losses_are_certified_when_told_so() -> None:
    result = certify(np.full((300, 2), 0.01), 0.05, 0.1, bound="hoeffding_bentkus")
    assert isinstance(result, Certification)
    assert (result.chosen, result.bound) == (1, "hoeffding_bentkus")


# --- audits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.1, 0.4])
def test_missed_disagreements_are_estimated_without_bias_and_intervals_cover(rate: float) -> None:
    rng, requests, draws = np.random.default_rng(3), 800, 400
    lengths = rng.integers(5, 60, requests)
    missed = rng.binomial(lengths, rng.beta(1, 20, requests))
    answers = [Audit(int(length), int(m)) for length, m in zip(lengths, missed, strict=True)]
    total, share, affected = missed.sum(), missed.sum() / lengths.sum(), (missed > 0).sum()
    estimates = []
    for _ in range(draws):
        drawn = [answer for answer, kept in zip(answers, rng.random(requests) < rate, strict=True) if kept]
        estimates.append(estimate_missed(drawn, audit_rate=rate, requests=requests))
    mean = np.mean([estimate.missed for estimate in estimates])
    assert mean == pytest.approx(total, abs=4 * np.std([e.missed for e in estimates]) / math.sqrt(draws))
    for name, truth in (("missed", total), ("missed_share", share), ("affected_requests", affected)):
        covered = [low <= truth <= high for low, high in (getattr(e, f"{name}_interval") for e in estimates)]
        assert np.mean(covered) > 0.95 - 4 * math.sqrt(0.05 * 0.95 / draws), name


def test_a_census_leaves_no_doubt() -> None:
    estimate = estimate_missed([Audit(10, 2), Audit(10, 0)], audit_rate=1.0, requests=2)
    assert (estimate.missed, estimate.missed_interval, estimate.missed_share) == (2.0, (2.0, 2.0), 0.1)
    assert estimate.affected_requests_interval == (1.0, 1.0)


def test_no_missed_disagreement_in_a_few_audits_is_no_proof_of_none() -> None:
    estimate = estimate_missed([Audit(30, 0)] * 10, audit_rate=0.1, requests=100)
    assert (estimate.missed, estimate.missed_interval, estimate.missed_share_interval) == (0.0, None, None)
    low, high = estimate.affected_requests_interval
    # The largest K of which none is seen with probability 0.9^K of at least 0.025.
    assert (low, high) == (0.0, math.floor(math.log(0.025) / math.log(0.9)))


def test_no_audit_says_nothing_but_how_many_requests_there_were() -> None:
    estimate = estimate_missed([], audit_rate=0.01, requests=50)
    assert estimate.missed_share is None
    assert estimate.affected_requests_interval == (0.0, 50.0)


def test_audits_that_cannot_be() -> None:
    with pytest.raises(ConfigurationError, match="audit_rate"):
        estimate_missed([], audit_rate=0.0, requests=5)
    with pytest.raises(ConfigurationError, match="2 audits of 1 requests"):
        estimate_missed([Audit(1, 0)] * 2, audit_rate=0.5, requests=1)


@pytest.mark.parametrize("method", ["replace", "verify:near_best=0.5"])
def test_an_audit_is_read_off_an_answer(method: str) -> None:
    verified = 0
    for case in range(30):
        generation = answer(pair(case), "entropy>1.5", prompt(case), audit=True, method=method)
        audit = audit_of(generation.tokens)
        unseen = [token for token in generation.tokens if token.source == "fast" and not token.verified]
        assert audit == Audit(len(unseen), sum(t.fast_choice != t.slow_choice for t in unseen))
        assert generation.usage.disagreements >= audit.missed
        verified += sum(token.verified for token in generation.tokens)
    assert bool(verified) == method.startswith("verify")
    assert audit_of(answer(pair(3), "never", prompt(3)).tokens) is None
