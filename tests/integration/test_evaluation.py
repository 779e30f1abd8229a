"""Evaluation on the reference pair: outcomes, order, concurrency, caps, audits."""

from __future__ import annotations

import pytest

from fsgen_router import ConfigurationError, PromptTooLong, Router
from fsgen_router import evaluation as ev
from fsgen_router.contracts.models import TokenModel


@pytest.fixture(scope="module")
def router(fast_model: TokenModel, slow_model: TokenModel) -> Router:
    return Router(fast_model, slow_model, policy="entropy>0.5")


def test_outcomes_add_up(router: Router) -> None:
    items = ev.reference_items("test", 4)
    seen: list[str] = []
    fast, slow = ev.run_baselines(router, items, on_answer=lambda item, _: seen.append(item.id))
    assert seen == 2 * [item.id for item in items]
    assert (fast.policy, slow.policy) == ("fast alone", "slow alone")
    assert fast.rate("escalation_rate") == 0.0
    assert fast.column("slow_positions").sum() == 0
    assert slow.rate("escalation_rate") == slow.rate("slow_token_share") == 1.0
    # One sequential step a token, whatever was still in the KV cache.
    assert (slow.column("slow_forwards") == slow.column("tokens")).all()
    run = ev.run_items(router, items)
    assert run.policy == "entropy>0.5"
    assert (run.column("positions") == run.column("prompt_tokens") + run.column("tokens")).all()
    # A draft that is taken back was read for nothing.
    assert (run.column("slow_positions") <= run.column("positions") + run.column("discarded_tokens")).all()
    assert run.column("right").shape == (4,)


def test_the_order_of_policies_changes_no_figure(router: Router) -> None:
    """Prompts that the slow model still holds count as read: a later policy does not look cheaper."""
    items = ev.reference_items("test", 3, 40)
    first = ev.run_items(router, items, "entropy>0.5")
    ev.run_items(router, items, ev.SLOW_ONLY)
    again = ev.run_items(router, items, "entropy>0.5")
    for name in set(ev.COLUMNS) - {"seconds"}:
        # What is left in a KV cache says in which chunks a prompt is read, and kernels of chunks round differently.
        assert first.column(name).tolist() == pytest.approx(again.column(name).tolist(), rel=1e-6), name


def test_concurrency_changes_no_outcome(router: Router) -> None:
    items = ev.reference_items("test", 6)
    alone = ev.run_items(router, items, "entropy>0.5")
    together = ev.run_items(router, items, "entropy>0.5", concurrency=3)
    for name in ("right", "tokens", "escalations", "slow_forwards"):
        assert alone.column(name).tolist() == together.column(name).tolist()
    with pytest.raises(ConfigurationError):
        ev.run_items(router, items, concurrency=0)


def test_caps_do_not_bind_the_baselines(router: Router) -> None:
    items = ev.reference_items("test", 2)
    _, slow = ev.run_baselines(router, items, max_slow_tokens=1)
    assert slow.rate("slow_token_share") == 1.0
    capped = ev.run_items(router, items, "always", max_slow_tokens=1)
    assert capped.column("slow_tokens").tolist() == [1, 1]


def test_an_error_names_the_item(router: Router) -> None:
    item = ev.Item(id="long", check=bool, prompt="word " * 5000)
    with pytest.raises(PromptTooLong, match="item long"):
        ev.run_items(router, [item])


def test_with_policy_shares_models_and_nothing_else(router: Router) -> None:
    twin = router.with_policy("never")
    assert twin.fast is router.fast
    assert (twin.policy.name, router.policy.name) == ("never", "entropy>0.5")
    before = router.ledger.requests
    twin.complete("Who?", max_tokens=3)
    assert (twin.ledger.requests, router.ledger.requests) == (1, before)
    twin.close()
    assert router.complete("Who?", max_tokens=3).text


def test_audited_runs_know_the_disagreement_rate(fast_model: TokenModel, slow_model: TokenModel) -> None:
    items = ev.reference_items("test", 3)
    with Router(fast_model, slow_model, audit=1.0) as audited:
        run = ev.run_items(audited, items, "random:0.2", seed=0)
    assert (run.column("compared") == run.column("tokens")).all()
    assert 0 <= (run.rate("disagreement_rate") or 0.0) <= 1
    with pytest.raises(ConfigurationError, match="unknown column"):
        run.column("rihgt")
    with pytest.raises(ConfigurationError, match="unknown rate"):
        run.rate("cof")


def test_signal_values_are_the_fast_models_own(router: Router) -> None:
    items = ev.reference_items("calibration", 2)
    values = ev.signal_values(router, items, "entropy")
    fast = ev.run_items(router, items, "never")
    assert len(values) == fast.column("tokens").sum()
    assert (values >= 0).all()
    with pytest.raises(ConfigurationError):
        ev.signal_collector("mood")
