"""Rows over HTTP from a real vLLM server: what it says is what the model in this process says.

``make test-vllm`` installs vLLM into an environment of its own, which ``FSGEN_VLLM`` names, and runs these.
"""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vllm_server import N_CTX, counters, make_pair, vllm_server

from fsgen_router import Router
from fsgen_router.adapters.tokens import TokensModel
from fsgen_router.adapters.transformers import TransformersModel
from fsgen_router.contracts.models import Work
from fsgen_router.rows.reading import Read

ENVIRONMENT = os.environ.get("FSGEN_VLLM")
pytestmark = [
    pytest.mark.skipif(not ENVIRONMENT, reason="FSGEN_VLLM names no environment with vLLM: make test-vllm"),
    pytest.mark.timeout(1200),
]
ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", "docs/pairs.md", "docs/faq.md", "docs/serving.md", "docs/policies.md")
JUDGED = {"policy": "every:16", "method": "verify:exact"}
APIS = ("generate", "completions")


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [(ROOT / page).read_text() for page in PAGES]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> tuple[Path, Path]:
    return make_pair(tmp_path_factory.mktemp("pair"), texts)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, folders: tuple[Path, Path]) -> Iterator[str]:
    assert ENVIRONMENT is not None
    with vllm_server(Path(ENVIRONMENT), folders[0], tmp_path_factory.mktemp("server") / "log") as url:
        yield url


@pytest.fixture(scope="module")
def fast(folders: tuple[Path, Path]) -> Iterator[TransformersModel]:
    model = TransformersModel(folders[1], n_ctx=N_CTX, n_seq=4, device="cpu")
    yield model
    model.shutdown()


@pytest.fixture(scope="module")
def here(folders: tuple[Path, Path]) -> Iterator[TransformersModel]:
    """The served model, in this process."""
    model = TransformersModel(folders[0], n_ctx=N_CTX, n_seq=4, device="cpu")
    yield model
    model.shutdown()


@pytest.fixture(params=APIS)
def slow(request: pytest.FixtureRequest, url: str) -> Iterator[TokensModel]:
    model = TokensModel(f"slow@{url}", api=request.param, n_seq=4)
    yield model
    model.shutdown()


def prompts(texts: list[str], count: int) -> list[str]:
    """Pieces of the pages, from 40 to 400 characters."""
    rng = np.random.default_rng(0)
    whole = "\n".join(texts)
    starts = rng.integers(0, len(whole) - 400, count)
    return [whole[start : start + size] for start, size in zip(starts, rng.integers(40, 400, count), strict=True)]


def test_rows_are_the_models_own(slow: TokensModel, here: TransformersModel, texts: list[str]) -> None:
    slow.take_vocabulary(here.tokenizer, here.name)
    assert slow.spoken.reports_cached
    assert (slow.n_ctx, slow.capabilities.top_k) == (N_CTX, 20)
    ids = here.tokenizer.encode(texts[0][:600], add_bos=True)[:90]
    rows = []
    for model in (slow, here):
        sequence = model.open([]).sequence
        # In two works, so that the second one's prefix is in a cache.
        for keep, stop in ((0, 70), (70, 90)):
            reads = [(at - keep, Read(top_k=8, ids=(7, ids[(at + 1) % 90]))) for at in range(max(keep, 1), stop)]
            rows.append(model.forward([Work(sequence, keep, ids[keep:stop], reads)])[0])
        model.close(sequence)
    for ours, theirs in zip([*rows[0], *rows[1]], [*rows[2], *rows[3]], strict=True):
        assert ours.argmax == theirs.argmax
        assert ours.top_ids == theirs.top_ids
        np.testing.assert_allclose(ours.top_logprobs, theirs.top_logprobs, atol=2e-4)
        np.testing.assert_allclose(ours.id_logprobs, theirs.id_logprobs, atol=2e-4)


def test_text_is_the_slow_models_own(slow: TokensModel, fast: TransformersModel, url: str, texts: list[str]) -> None:
    """Token for token what the server writes alone in one call, most of the prefix out of its cache."""
    with Router(fast, slow, **JUDGED) as router:
        before = counters(url)
        answers = [router.complete(prompt, max_tokens=64) for prompt in prompts(texts, 12)]
        now = counters(url)
        spent = {name: now[name] - before[name] for name in ("prompt_tokens_total", "prompt_tokens_cached_total")}
        assert all(answer.degraded is None for answer in answers)
        usages = [answer.usage.slow for answer in answers]
        read = sum(usage.positions for usage in usages)
        if slow.spoken.dialect.name == "generate":
            # Of a reply that the server refused to itself nobody knows how much it read for it.
            computed = spent["prompt_tokens_total"] - spent["prompt_tokens_cached_total"]
            assert 0.95 * computed <= read <= computed
            assert spent["prompt_tokens_cached_total"] > 0.3 * spent["prompt_tokens_total"]
        tokens, calls = sum(len(answer.tokens) for answer in answers), sum(usage.calls for usage in usages)
        assert tokens > 4 * calls
    for prompt, answer in zip(prompts(texts, 12), answers, strict=True):
        assert [token.id for token in answer.tokens] == own_text(url, fast.tokenizer.encode(prompt, add_bos=True))


def own_text(url: str, ids: list[int]) -> list[int]:
    sampling = {"max_tokens": 64, "temperature": 0}
    body = {"model": "slow", "token_ids": ids, "sampling_params": sampling, "cache_salt": "own"}
    request = urllib.request.Request(
        f"{url}/inference/v1/generate", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as response:
        found: list[int] = json.load(response)["choices"][0]["token_ids"]
    return found


@pytest.mark.parametrize(
    ("policy", "method", "options"),
    [
        ("every:16", "verify:token=0.4", {}),
        ("every:16", "verify:near_best=0.4", {}),
        ("entropy>1.5,span=16", "replace", {}),
        ("every:16", "verify:exact", {"temperature": 0.8, "top_k": 10, "seed": 3}),
    ],
    ids=lambda value: str(value),
)
def test_other_methods_write_as_beside_the_model_itself(
    policy: str,
    method: str,
    options: dict[str, Any],
    slow: TokensModel,
    fast: TransformersModel,
    here: TransformersModel,
    texts: list[str],
) -> None:
    with (
        Router(fast, slow, policy=policy, method=method) as served,
        Router(fast, here, policy=policy, method=method) as local,
    ):
        for prompt in prompts(texts, 4):
            ours, theirs = (router.complete(prompt, max_tokens=48, **options).text for router in (served, local))
            assert ours == theirs


def test_the_same_request_again_reads_no_row_out_of_the_cache(
    slow: TokensModel, fast: TransformersModel, texts: list[str]
) -> None:
    with Router(fast, slow, **JUDGED) as router:
        first, *others = (router.complete(prompts(texts, 1)[0], max_tokens=64) for _ in range(3))
        assert {answer.text for answer in others} == {first.text}
        assert all(answer.degraded is None for answer in (first, *others))


def test_conversations_share_the_servers_batches(slow: TokensModel, fast: TransformersModel, texts: list[str]) -> None:
    with Router(fast, slow, **JUDGED) as router:
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts(texts, 8)]
        alone = [router.chat(chat, max_tokens=32).text for chat in chats]
        with ThreadPoolExecutor(4) as pool:
            found = [*pool.map(lambda chat: router.chat(chat, max_tokens=32), chats)]
        assert [answer.degraded for answer in found] == [None] * len(chats)
        # A batch of another size may round otherwise, and ties fall otherwise then.
        assert sum(answer.text == text for answer, text in zip(found, alone, strict=True)) >= len(chats) - 1
