"""Prompts unlike those of calibration, asked of the reference pair and its shipped policy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from learned_cases import guarantee, logistic, prompt_check

from fsgen_router import Router, reference
from fsgen_router.calibration import make_inputs, reference_prompts
from fsgen_router.contracts.models import TokenModel
from fsgen_router.evaluation import reference_items
from fsgen_router.policies import Capped, Learned, Never, check_prompt, load_policy
from fsgen_router.policies.prompt_check import PromptCheck, asked
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


def test_an_answer_longer_than_calibrations_could_be_suspends_the_certificate(router: Router) -> None:
    """Of answers that calibration cut off, it knows nothing."""
    asked_ = reference_items("test", 1, 9000)[0].messages
    whole = router.chat(asked_)
    assert whole.claim.holds
    for longest, suspended in ((whole.usage.tokens, False), (whole.usage.tokens - 1, True)):
        policy = replace(router.policy, inputs=replace(router.policy.inputs, longest_answer=longest))
        answer = router.chat(asked_, policy=policy)
        assert answer.claim.holds is not suspended
        assert ("the answer is longer than calibration's could be" in answer.claim.reasons) is suspended


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
