"""Policy files of the reference pair."""

from __future__ import annotations

from pathlib import Path

from learned_cases import card, logistic

from fsgen_router import Router
from fsgen_router.policies import Learned, fingerprint, save_policy


def saved(path: Path, policy: Learned | None = None, **changes: object) -> Path:
    save_policy(path, policy or Learned(logistic(), 0.5), card(**changes))
    return path


def test_a_router_takes_a_file(tmp_path: Path, fast_model, slow_model) -> None:
    path = saved(
        tmp_path / "calibrated.safetensors", Learned(logistic(), 0.3), pair=fingerprint(fast_model, slow_model)
    )
    with Router(policy=str(path)) as router:
        answer = router.complete("lamp", max_tokens=12)
    assert answer.policy == Learned(logistic(), 0.3).name
    scored = [token.decision.score for token in answer.tokens if token.signals is not None]
    assert scored
    assert all(0 <= score <= 1 for score in scored)


def test_a_fingerprint_is_of_both_models(fast_model, slow_model) -> None:
    found = fingerprint(fast_model, slow_model)
    assert found == fingerprint(fast_model, slow_model)
    assert (found.fast_params, found.slow_params) == (fast_model.n_params, slow_model.n_params)
    assert found.differences(fingerprint(slow_model, fast_model))
    assert not found.differences(found)
