"""What can be assigned to a Router works or raises; models in the wrong seats are said so."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from scripted_pairs import EOG, Pair, pair

from fsgen_router import ConfigurationError, Prices, Router, SwappedModelsWarning
from fsgen_router.adapters.scripted import ScriptedModel, ScriptedTextModel
from fsgen_router.contracts.policy import Ledger


@pytest.fixture
def router() -> Iterator[Router]:
    models = pair(3)
    with Router(models.fast, models.slow, policy="every:2", batching=True) as router:
        yield router


def tokens_of(router: Router, **options: Any) -> list[tuple[int, str]]:
    return [(token.id, token.source) for token in router.complete("ab", max_tokens=12, **options).tokens]


@pytest.mark.parametrize(
    ("name", "value", "way_out"),
    [
        ("policy", "always", r"with_policy\(\.\.\.\)"),
        ("method", "replace", r"with_policy\(router\.policy, method=\.\.\.\)"),
        ("ledger", Ledger(), r"with_policy\(router\.policy\)"),
        ("fast", None, "make another Router"),
        ("slow", "reference:slow", "make another Router"),
        ("batching", False, "make another Router"),
        ("max_waiting", 3, "make another Router"),
    ],
)
def test_what_is_fixed_cannot_be_assigned(router: Router, name: str, value: object, way_out: str) -> None:
    before, expected = getattr(router, name), tokens_of(router, seed=0)
    with pytest.raises(AttributeError, match=rf"^{name} of a Router is fixed when it is made \(.*{way_out}"):
        setattr(router, name, value)
    assert getattr(router, name) is before
    assert tokens_of(router, seed=0) == expected


def test_the_way_out_that_is_named_works(router: Router) -> None:
    assert router.complete("ab", policy="never", method="replace", max_tokens=3).policy == "never"
    assert router.with_policy("never").policy.name == "never"
    assert router.with_policy(router.policy, method="replace").method.name == "replace"
    assert router.with_policy(router.policy).ledger is not router.ledger


def test_every_option_of_a_router_can_be_read(router: Router) -> None:
    assert (router.batching, router.max_waiting, router.read_ahead) == (True, 1024, 0)
    assert (router.audit, router.prices, router.seed) == (0.0, None, None)
    assert (router.fast.name, router.slow.name) == ("fast", "slow")
    assert copy.copy(router).policy is router.policy


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("audit", [1.5, -0.1, "0.5", None, float("nan")]),
        ("prices", [3.0, {"input": 1.0}, "free"]),
        ("seed", ["7", 1.5]),
        ("read_ahead", [-1, True, 1.5, "8", None]),
    ],
)
def test_what_may_be_changed_is_checked_like_at_the_beginning(router: Router, name: str, values: list[object]) -> None:
    before = getattr(router, name)
    for value in values:
        with pytest.raises(ConfigurationError, match=name):
            setattr(router, name, value)
        models = pair(3)
        with pytest.raises(ConfigurationError, match=name):
            Router(models.fast, models.slow, **{name: value})
    assert getattr(router, name) == before


def test_what_is_changed_works(router: Router) -> None:
    plain = router.fast.script  # type: ignore[attr-defined]
    router.complete("ab", max_tokens=5)
    assert router.ledger.audits == 0
    router.audit = 1
    router.complete("ab", max_tokens=5)
    assert router.ledger.audits == 1
    router.prices = Prices(input=3.0, output=15.0)
    assert router.complete("ab", max_tokens=5).report().money_usd.routed
    router.seed = 7
    assert tokens_of(router, temperature=1.0) == tokens_of(router, temperature=1.0, seed=7)
    router.seed, router.read_ahead = None, 1

    def dawdling(ids: Sequence[int]) -> np.ndarray:  # so that the slow model gets ahead
        time.sleep(0.002)
        row = plain(ids)
        row[list(EOG)] = -100.0
        return row

    router.fast.script = dawdling  # type: ignore[attr-defined]
    assert router.with_policy("every:20").complete("ab", max_tokens=60).usage.slow.ahead


def test_what_the_pair_cannot_do_is_refused_later_too() -> None:
    models = pair(3)
    with Router(models.fast, models.slow, batching=False) as alone:
        with pytest.raises(ConfigurationError, match="batching=True"):
            alone.read_ahead = 4
        assert (alone.read_ahead, alone.batching) == (0, False)
    with Router(models.fast, ScriptedTextModel(lambda request: ["a"])) as remote:
        with pytest.raises(ConfigurationError, match="cannot audit"):
            remote.audit = 0.5
        assert remote.audit == 0.0


def test_a_change_to_a_twin_is_its_own(router: Router) -> None:
    twin = router.with_policy("never")
    twin.audit, twin.seed = 1.0, 3
    assert (router.audit, router.seed) == (0.0, None)


# --- models in the wrong seats -------------------------------------------------------------------


def sized(fast: int, slow: int | None) -> Pair:
    models = pair(3)
    models.fast.n_params, models.slow.n_params = fast, slow  # type: ignore[assignment]
    return models


def test_a_slow_model_smaller_than_the_fast_one_is_warned_of_once_at_the_callers_line() -> None:
    models = sized(1000, 899)
    with pytest.warns(SwappedModelsWarning, match=r"slow has 899 parameters.*fast 1,000: are they swapped") as said:
        router = Router(models.fast, models.slow, policy="every:4")
    assert [warning.filename for warning in said] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert router.complete("ab", max_tokens=3).tokens
        router.with_policy("never")
    router.close()


def test_it_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    models = sized(1000, 899)
    with caplog.at_level("WARNING", "fsgen_router"), pytest.warns(SwappedModelsWarning):
        Router(models.fast, models.slow, policy="every:4").close()
    assert [(record.event, record.fast, record.slow) for record in caplog.records] == [  # type: ignore[attr-defined]
        ("swapped_models", "fast", "slow")
    ]


@pytest.mark.parametrize(("fast", "slow"), [(1000, 1000), (1000, 1001), (1000, 950), (1000, None)])
def test_sizes_that_say_nothing_are_not_warned_of(fast: int, slow: int | None) -> None:
    models = sized(fast, slow)
    other = models.slow if slow is not None else ScriptedTextModel(lambda request: ["a"])
    Router(models.fast, other).close()


def test_an_endpoint_whose_size_is_known_is_compared_too() -> None:
    models = pair(3)
    small = ScriptedTextModel(lambda request: ["a"], n_params=10)
    with pytest.warns(SwappedModelsWarning):
        Router(models.fast, small).close()


def test_scripted_models_of_one_size_are_no_swap() -> None:
    models = pair(3)
    twin = ScriptedModel(models.fast.script, models.fast.tokenizer, name="other", n_params=models.fast.n_params)
    Router(models.fast, twin).close()
