"""Prompts unlike those of calibration: what tells them, how often wrongly, and what becomes of the claim."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from learned_cases import asked_at_random, guarantee, logistic, prompt_check

from fsgen_router import ConfigurationError, Router, reference
from fsgen_router.calibration import make_inputs, reference_prompts
from fsgen_router.contracts.models import TokenModel
from fsgen_router.evaluation import reference_items
from fsgen_router.policies import Capped, Learned, Never, check_prompt, load_policy
from fsgen_router.policies.inputs import FEWEST, Asked, PromptCheck, asked, fit_inputs
from fsgen_router.reference import world

OTHER = Path(__file__).parents[2] / "benchmarks" / "other_prompts.jsonl"
ROWS = [json.loads(line) for line in OTHER.read_text(encoding="utf-8").splitlines()]


def chat(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


@pytest.fixture(scope="module")
def shipped(fast_model: TokenModel, slow_model: TokenModel) -> Iterator[Router]:
    """The pair with the policy that comes with it."""
    with Router(fast_model, slow_model, policy=reference.policy_path()) as made:
        yield made


@pytest.fixture
def router(shipped: Router) -> Iterator[Router]:
    """The same with a ledger of its own: many prompts of other kinds would let the scores drift."""
    with shipped.with_policy(shipped.policy, method=shipped.method) as twin:
        yield twin


# --- the reference pair's own ----------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["kind"])
def test_a_prompt_of_another_kind_suspends_the_certificate(router: Router, row: dict) -> None:
    """A poem, German, emoji, code, a long chat: answered at random there, and claimed until now."""
    answer = router.chat(row["messages"], max_tokens=1)
    reasons = set(answer.claim.reasons) - {"the answer was cut off"}
    assert reasons
    assert answer.guarantee.startswith("suspended: ")
    assert answer.guarantee.endswith(
        "(certified on prompts like the 1,199 of calibration: regret at most 5% at confidence 90%)"
    )


def test_there_are_fifty_prompts_of_many_kinds() -> None:
    assert len(ROWS) >= 50
    assert len({row["kind"] for row in ROWS}) >= 10


def test_few_prompts_of_calibrations_kind_are_suspended(router: Router) -> None:
    """At most 0.5% is what the limits are set for: more than 5 of 200 would come by chance once in 1,500 times."""
    check = router.policy.inputs
    unlike = [
        bool(check.reasons(asked(router.fast.tokenizer, messages=item.messages)))
        for item in reference_items("test", 200, 9000)
    ]
    assert sum(unlike) <= 5
    assert router.chat(reference_items("test", 1, 9000)[0].messages).claim.holds


def test_the_shipped_check_was_made_of_the_prompts_that_the_policy_was_calibrated_on(fast_model: TokenModel) -> None:
    policy, card = load_policy(reference.policy_path())
    prompts = reference_prompts(3000)
    assert card.data_hash == prompts.sha256
    made = make_inputs(fast_model.tokenizer, prompts)
    assert policy.inputs.spec() == made.spec()
    for name, part in made.to_tensors().items():
        assert np.array_equal(policy.inputs.to_tensors()[name], part), name
    assert policy.digest == policy.certificate.policy
    assert policy.threshold == policy.certificate.threshold


def test_another_form_of_asking_is_another_kind(router: Router) -> None:
    problem = world.problem("test", 9000)
    turns = [*chat(problem.prompt), {"role": "assistant", "content": problem.solution}, *chat(problem.prompt)]

    def reasons(answer) -> set[str]:
        return set(answer.claim.reasons) - {"the answer was cut off"}

    assert reasons(router.complete(problem.prompt)) == {"the prompt is raw text, calibration's were messages"}
    assert any("3 messages" in reason for reason in reasons(router.chat(turns)))
    system = [{"role": "system", "content": "Be kind."}, *chat(problem.prompt)]
    assert any("with a system message" in reason for reason in reasons(router.chat(system)))
    stopped = reasons(router.chat(chat(problem.prompt), stop=["\n"]))
    assert stopped == {"the answer ends at other stop strings than calibration's"}


async def _aclaim(router: Router, messages: list[dict[str, str]]):
    return (await router.achat(messages, max_tokens=1)).claim


def test_coroutines_and_streams_say_the_same(router: Router) -> None:
    import asyncio

    messages = ROWS[0]["messages"]
    said = router.chat(messages, max_tokens=1).claim
    assert asyncio.run(_aclaim(router, messages)) == said
    *_, last = router.stream_chat(messages, max_tokens=1)
    assert last.generation.claim == said
    # Of this request alone: the policy of the Router is as it was.
    assert router.policy.guarantee(router.ledger).holds


# --- the check itself ------------------------------------------------------------------------------


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


def test_only_a_certificate_is_suspended(fast_model: TokenModel) -> None:
    tokenizer = fast_model.tokenizer
    check = replace(prompt_check(), forms=("raw text",), messages=0)
    plain = Learned(logistic(), 0.5, inputs=check)
    certified = replace(plain.certified(guarantee()), inputs=check)
    without = replace(certified, inputs=None)
    for policy in (plain, without, Never(), Capped(plain, 3)):
        assert check_prompt(policy, tokenizer, messages=chat("x")) is policy
    suspended = check_prompt(certified, tokenizer, messages=chat("x"))
    assert "the prompt is messages, calibration's were raw text" in suspended.guarantee().reasons
    assert suspended.digest == certified.digest
    capped = check_prompt(Capped(certified, 3), tokenizer, messages=chat("x"))
    assert capped.inner.guarantee() == suspended.guarantee()
    assert isinstance(check, PromptCheck)
