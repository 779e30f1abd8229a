"""A learned policy on the reference pair."""

from __future__ import annotations

from dataclasses import replace

import pytest
from learned_cases import monitor

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
