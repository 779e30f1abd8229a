"""Prompts unlike those of calibration: what tells them, how often wrongly, and what becomes of the claim."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from learned_cases import asked_at_random, prompt_check

from fsgen_router import ConfigurationError
from fsgen_router.policies.prompt_check import FEWEST, Asked, fit_inputs


def test_a_fresh_prompt_of_the_same_source_is_suspended_as_rarely_as_was_said() -> None:
    """Over many draws of everything: on average at most the share, and not far below it."""
    rates = []
    for seed in range(20):
        check = fit_inputs(asked_at_random(150, 3 * seed), asked_at_random(199, 3 * seed + 1), 60, suspended=0.08)
        fresh = asked_at_random(300, 3 * seed + 2)
        rates.append(np.mean([bool(check.reasons(one)) for one in fresh]))
    assert 0.02 < np.mean(rates) <= 0.08


def test_other_words_and_other_orders_are_told() -> None:
    check = prompt_check()
    known = asked_at_random(1, 9)[0]
    assert check.reasons(known) == ()
    never_seen = Asked("messages", 1, [55] * 20)
    backwards = Asked("messages", 1, [known.ids[-1]] * 30)
    inside = Asked("messages", 1, [*known.ids[:10], *[55] * 16, *known.ids[10:]])
    for other in (never_seen, backwards, inside):
        assert "words unlike those of calibration's prompts" in check.reasons(other)
    assert check.reasons(Asked("messages", 1, known.ids[:1]))[0].startswith("a prompt of 1 tokens")
    assert check.reasons(Asked("messages", 2, known.ids)) == (
        "a conversation of 2 messages, calibration's had at most 1",
    )
    assert check.reasons(Asked("messages", 1, []))


def test_probabilities_behind_any_token_sum_to_one() -> None:
    check = prompt_check()
    for before in (-1, 0, 7, 49, 55):
        assert math.fsum(math.exp(check._logprob(before, token)) for token in range(-1, 60)) == pytest.approx(
            1.0, abs=1 / 60
        )


def test_likelihood_is_a_mean_and_the_worst_window() -> None:
    check = prompt_check()
    ids = asked_at_random(1, 4)[0].ids * 2
    each = [check._logprob(before, token) for before, token in zip([-1, *ids], ids, strict=False)]
    windows = [np.mean(each[at : at + check.window]) for at in range(len(each) - check.window + 1)]
    assert check.likelihood(ids) == pytest.approx((np.mean(each), min(windows)))


def test_what_few_prompts_hold_is_not_kept() -> None:
    """A file must not tell what a single user wrote."""
    secret = [Asked("messages", 1, [1, 2, 3])] * 10 + [Asked("messages", 1, [1, 40, 41, 40, 41, 2])] * (FEWEST - 1)
    check = fit_inputs(secret, secret, 50)
    assert set(check.tokens.tolist()) == {-1, 1, 2, 3}
    assert check.pairs.tolist() == [[-1, 1], [1, 2], [2, 3]]
    assert check.total == 10 * 4 + (FEWEST - 1) * 7


def test_a_check_needs_prompts_and_parts_that_fit() -> None:
    with pytest.raises(ConfigurationError, match="no prompts"):
        fit_inputs([], asked_at_random(5), 60)
    with pytest.raises(ConfigurationError, match="do not fit"):
        replace(prompt_check(), seen=np.zeros(2, np.int64))
