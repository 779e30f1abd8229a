"""Whatever is typed at it: only errors of this package's own tree come out, and it goes on working."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_pairs import pair
from things import THINGS

from fsgen_router import FsgenError, RequestOptions, Router
from fsgen_router.policies import make_policy

ANYTHING = st.sampled_from(THINGS)
NESTED = st.recursive(
    ANYTHING, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)


@pytest.fixture(scope="module")
def router() -> Router:
    models = pair(40, n_ctx=48)
    return Router(models.fast, models.slow, policy="every:3")


def works(router: Router) -> bool:
    return router.complete("a", max_tokens=3, seed=0).usage.tokens > 0


@given(ANYTHING | st.text(max_size=80))
@settings(max_examples=400)
def test_prompts(router: Router, prompt: Any) -> None:
    for call in (router.complete, router.stream, router.astream):
        with suppress(FsgenError):
            call(prompt)
    assert works(router)


@given(
    NESTED
    | st.lists(
        st.dictionaries(st.sampled_from(["role", "content", "name"]), st.sampled_from(["user", "a", *THINGS])),
        max_size=4,
    )
)
@settings(max_examples=350)
def test_messages(router: Router, messages: Any) -> None:
    with suppress(FsgenError):
        router.chat(messages, max_tokens=2)
    assert works(router)


@given(st.dictionaries(st.sampled_from([*RequestOptions.model_fields, "tools", "n", "Max_tokens"]), NESTED, max_size=3))
@settings(max_examples=700)
def test_options(router: Router, options: dict[str, Any]) -> None:
    with suppress(FsgenError):
        router.complete("a", **options)
    assert works(router)


POLICY_PARTS = [
    "never", "always", "every", "random", "entropy", "varentropy", "max_prob", "margin", "budget", ":", "<", ">", "=",
    ",", "span", "window", "rest", "0", "1", "8", "-1", "0.2", "1e9", "1e999", "nan", "inf", "0x1", "1_0", "٣", " ",
    "\n", "é", "9" * 5000,
]  # fmt: skip


@given(st.text(max_size=20) | st.lists(st.sampled_from(POLICY_PARTS), max_size=9).map("".join) | ANYTHING)
@settings(max_examples=700)
def test_policies(form: Any) -> None:
    policy = None
    with suppress(FsgenError):
        policy = make_policy(form)
    if policy is not None:  # what is accepted works
        models = pair(41)
        with Router(models.fast, models.slow, policy=policy) as router:
            assert works(router)


@pytest.mark.parametrize("name", ["fast", "slow", "policy", "method", "audit", "prices", "seed"])
def test_parts_of_a_router(name: str) -> None:
    for thing in THINGS:
        models = pair(42)
        parts = {"fast": models.fast, "slow": models.slow, name: thing}
        made = None
        with suppress(FsgenError):
            made = Router(**parts)
        if made is not None:  # what is accepted works
            assert works(made)
            assert made.complete("a", max_tokens=3).report().to_dict()
