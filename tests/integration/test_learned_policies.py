"""A learned policy on the reference pair."""

from __future__ import annotations

from dataclasses import replace

import pytest
from learned_cases import guarantee, monitor

from fsgen_router import Router
from fsgen_router.policies import Learned
from fsgen_router.policies.features import answer_features
from fsgen_router.policies.scorers import Signal


def test_a_learned_policy_routes_real_models(fast_model, slow_model) -> None:
    """Never, sometimes, always: the threshold alone decides, and scores are those of training."""
    with Router(fast=fast_model, slow=slow_model, policy="never") as router:
        fast = router.complete("lamp", max_tokens=24)
        slow = router.with_policy("always").complete("lamp", max_tokens=24)
        policy = Learned(Signal("max_prob"), 1.0, drift=monitor())
        assert router.with_policy(policy).complete("lamp", max_tokens=24).text == fast.text
        assert router.with_policy(replace(policy, threshold=-1.0)).complete("lamp", max_tokens=24).text == slow.text
        middle = router.with_policy(replace(policy, threshold=0.3)).complete("lamp", max_tokens=24)
    at, rows = answer_features(middle.tokens)
    decisions = [middle.tokens[i].decision for i in at]
    assert [d.score for d in decisions] == pytest.approx(policy.scorer.score(rows), abs=1e-12)
    assert [d.escalate for d in decisions] == [d.score > 0.3 for d in decisions]


def test_policies_of_one_router_share_neither_a_window_nor_a_held_rate(fast_model, slow_model) -> None:
    """Not even with the same monitor, or at the same rate: the scores of one are no drift of another's."""
    watched = monitor(window=1, alarm=-1.0, widened=0.2)  # any request raises the alarm
    ran = Learned(Signal("max_prob"), 0.5, drift=watched).certified(guarantee())
    others = [
        Learned(Signal("max_prob"), 0.5, extent=2, drift=watched).certified(guarantee()),
        Learned(Signal("entropy"), 0.5, drift=watched).certified(guarantee()),
        Learned(Signal("max_prob"), 0.5, drift=replace(watched, edges=(0.2, 0.5, 0.7))).certified(guarantee()),
        Learned(Signal("max_prob"), 0.5, drift=monitor(window=2, alarm=-1.0)).certified(guarantee()),
    ]
    with Router(fast=fast_model, slow=slow_model, policy="never") as router:
        router.complete("lamp", max_tokens=8, policy=ran)
        router.complete("lamp", max_tokens=8, policy=ran.holding(0.1))
        ledger = router.ledger
    assert ran.begin(ledger).threshold == 0.2
    assert ran.guarantee(ledger).reasons == ("scores drifted from those of calibration",)
    assert ran.holding(0.1).begin(ledger).shift != 0.0
    for other in others:
        assert other.begin(ledger).threshold == 0.5
        assert other.guarantee(ledger).holds
    assert [other.holding(0.1).begin(ledger).shift for other in others[:2]] == [0.0, 0.0]
