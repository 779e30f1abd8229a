"""Models behind a server that takes token ids: real HTTP on loopback, rows of a real tiny model.

``tests/vllm`` has the same against a real vLLM server.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import endpoints
import numpy as np
import pytest
import tiny_transformers
from token_server import Refused, TokenServer, token_server

from fsgen_router import (
    BackendError,
    ConfigurationError,
    InvalidRequest,
    Router,
    SmallExtentWarning,
    VocabularyMismatch,
    VocabularyWarning,
    reference,
)
from fsgen_router import calibration as cal
from fsgen_router.adapters.scripted import ScriptedModel, ScriptedTokenizer
from fsgen_router.adapters.tokens import EndpointError, TokensModel, TokensOptions
from fsgen_router.adapters.tokens import vocabulary as vocabularies
from fsgen_router.adapters.transformers import TransformersModel
from fsgen_router.calibration.traces import read_answer
from fsgen_router.cli.doctor import _served
from fsgen_router.contracts.models import Work
from fsgen_router.costs import Effort, ForwardCost, Mode, PairCost, Rates, choose_mode, measure_forwards
from fsgen_router.costs.choosing import LEAST_CALL
from fsgen_router.costs.forward import Point
from fsgen_router.rows.reading import Read
from fsgen_router.text.vocabulary import vocabulary_hash

PROMPTS = ("a lamp and a rope", "the rope of the lamp", "lamp lamp rope 12", "Größe ☕")
JUDGED = {"policy": "every:16", "method": "verify:exact"}
APIS = ("generate", "completions", "sglang")
PATHS = (*TokenServer.paths, "/generate")


@pytest.fixture(scope="module")
def fast() -> Iterator[TransformersModel]:
    """The served model with noise on its weights: it chooses the same mostly."""
    model = TransformersModel(tiny_transformers.altered("llama", 0.02), n_ctx=160, n_seq=4, device="cpu")
    yield model
    model.shutdown()


@pytest.fixture(scope="module")
def here() -> Iterator[TransformersModel]:
    """The served model, in this process."""
    model = TransformersModel(tiny_transformers.altered("llama", 0.0), n_ctx=160, n_seq=4, device="cpu")
    yield model
    model.shutdown()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., TokenServer]]:
    """Starts servers; each ends with the test."""
    monkeypatch.setattr(vocabularies, "_compared", {})  # another test's server may have had the port of this one's
    running = []

    def start(**settings: Any) -> TokenServer:
        running.append(token_server(tiny_transformers.altered("llama", 0.0), **settings))
        return running[-1].__enter__()

    yield start
    for one in running:
        one.__exit__(None, None, None)


def model_of(server: TokenServer, **options: Any) -> TokensModel:
    return TokensModel(f"slow@{server.url}", **options)


def texts(router: Router, **options: Any) -> list[list[int]]:
    """Tokens of two answers that cross blocks of the server's cache."""
    return [[token.id for token in router.complete(prompt, max_tokens=36, **options).tokens] for prompt in PROMPTS[::3]]


# --- what it answers is what the model in this process answers -----------------------------------

RULES = (
    ("every:16", "verify:exact"),
    ("every:16", "verify:near_best=0.4"),
    ("every:16", "verify:token=0.4"),
    ("every:16", "verify:speculative"),
    ("every:16", "verify:chow=0.3"),
    ("every:16", "verify:difference=0.2"),
    ("entropy>1.5,span=16", "replace"),
    ("always,span=rest", "replace"),
)


@pytest.mark.parametrize("api", APIS)
def test_every_method_writes_as_beside_the_model_itself(
    api: str, fast: TransformersModel, here: TransformersModel, serve: Callable[..., TokenServer]
) -> None:
    """Also where a server's prefix cache holds rows that are needed, and what it says of those is garbage."""
    server = serve(paths=PATHS)
    slow = model_of(server, api=api)
    with Router(fast, slow, **JUDGED) as served, Router(fast, here, **JUDGED) as local:
        alone = texts(local, policy="always,span=rest", method="replace")
        for policy, method in RULES if api == "generate" else RULES[::6]:  # one of each sort elsewhere
            wanted = texts(local, policy=policy, method=method)
            assert texts(served, policy=policy, method=method) == wanted, (policy, method)
            if method in ("verify:exact", "verify:speculative"):
                assert wanted == alone
        assert texts(served, temperature=0.9, top_k=8, seed=5) == texts(local, temperature=0.9, top_k=8, seed=5)
    assert {path for path, _ in server.asked} >= {slow.spoken.dialect.path}
    slow.shutdown()


@pytest.mark.parametrize("breaks", [False, True], ids=["garbage", "refused"])
def test_rows_inside_a_cache_hit_are_asked_for_again(
    breaks: bool, fast: TransformersModel, serve: Callable[..., TokenServer]
) -> None:
    """The same request twice: of the second one all blocks are in the cache, the drafts to be judged too."""
    server = serve(breaks_on_garbage=breaks)
    slow = model_of(server)
    with Router(fast, slow, **JUDGED) as router:
        first, second = (router.complete(PROMPTS[0], max_tokens=48) for _ in range(2))
        assert first.text == second.text
        assert first.degraded is second.degraded is None
        assert second.usage.slow.calls > first.usage.slow.calls
        asked = [body["sampling_params"]["skip_reading_prefix_cache"] for body in server.of("/inference/v1/generate")]
        assert any(asked[1:])
    slow.shutdown()


def test_without_a_count_of_what_was_cached_the_cache_is_not_read(
    fast: TransformersModel, here: TransformersModel, serve: Callable[..., TokenServer]
) -> None:
    server = serve(reports_cached=False)
    slow = model_of(server)
    assert not slow.spoken.reports_cached
    with Router(fast, slow, **JUDGED) as served, Router(fast, here, **JUDGED) as local:
        assert texts(served) == texts(served) == texts(local)
    bodies = server.of("/inference/v1/generate")
    assert all(body["sampling_params"]["skip_reading_prefix_cache"] for body in bodies)
    slow.shutdown()


@pytest.mark.parametrize("api", APIS)
def test_a_token_outside_the_best_is_asked_for(
    api: str, fast: TransformersModel, here: TransformersModel, serve: Callable[..., TokenServer]
) -> None:
    """Traces of calibration want the log-probability of the fast model's choice, wherever it ranks."""
    slow = model_of(serve(paths=PATHS, max_logprobs=5), api=api)
    assert slow.capabilities.top_k == 5
    slow.take_vocabulary(fast.tokenizer, fast.name)
    prompt, answer = fast.tokenizer.encode(PROMPTS[0], add_bos=True), [30, 40, 50, 60, 70]

    def read(position: int) -> Read:
        return Read(ids=(20 + position,))

    ours, theirs = (read_answer(model, prompt, answer, read) for model in (slow, here))
    assert [row.argmax for row in ours] == [row.argmax for row in theirs]
    np.testing.assert_allclose([r.id_logprobs for r in ours], [r.id_logprobs for r in theirs], atol=1e-4)
    slow.shutdown()


def test_answers_are_audited(
    fast: TransformersModel, here: TransformersModel, serve: Callable[..., TokenServer]
) -> None:
    slow = model_of(serve())
    mode = {"policy": "entropy>1.5,span=16", "method": "replace", "audit": 1.0}
    with Router(fast, slow, **mode) as served, Router(fast, here, **mode) as local:
        for prompt in PROMPTS:
            ours, theirs = (router.complete(prompt, max_tokens=40).usage for router in (served, local))
            assert ours.disagreement_rate == theirs.disagreement_rate is not None
    slow.shutdown()


def test_a_policy_calibrated_over_the_server_is_the_one_calibrated_beside_the_model(
    fast: TransformersModel, here: TransformersModel, serve: Callable[..., TokenServer], tmp_path: Path
) -> None:
    """From the prompts to the file: the same traces, certificate and threshold, and it serves."""
    prompts = tmp_path / "prompts.jsonl"
    words = ("a lamp", "the rope", "of the lamp", "12 ropes", "and")
    texts = [" ".join(words[number // 5**place % 5] for place in range(3)) for number in range(60)]
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    options: dict[str, Any] = {"max_regret": 0.3, "confidence": 0.8, "check": "slow", "rounds": 1, "max_tokens": 24}
    options["extent"] = 16
    served = model_of(serve(), n_seq=4)
    made = [
        cal.calibrate(fast, slow, prompts, out=tmp_path / f"{name}.safetensors", **options)
        for name, slow in (("served", served), ("here", here))
    ]
    ours, theirs = (one.choice for one in made)
    assert ours.certified
    assert ours.certification is not None
    assert theirs.certification is not None
    np.testing.assert_allclose(ours.certification.risks, theirs.certification.risks)
    assert ours.policy is not None
    assert theirs.policy is not None
    assert ours.policy.threshold == pytest.approx(theirs.policy.threshold, rel=1e-4)
    with Router(fast, served, policy=tmp_path / "served.safetensors", method="replace") as router:
        answer = router.complete(texts[0], max_tokens=24)
        assert answer.degraded is None
        assert answer.guarantee is not None
    served.shutdown()


def test_calibrating_one_token_at_a_time_is_warned_of_once(
    fast: TransformersModel, serve: Callable[..., TokenServer], tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"a lamp {number}"}) + "\n" for number in range(40)))
    slow, out = model_of(serve()), tmp_path / "p.safetensors"

    options: dict[str, Any] = {"target_rate": 0.5, "check": "slow", "rounds": 1, "max_tokens": 6}
    with pytest.warns(SmallExtentWarning, match=f"or --extent {LEAST_CALL} of calibrate") as said:
        cal.calibrate(fast, slow, prompts, out=out, **options)
    assert [one.category for one in said] == [SmallExtentWarning]
    slow.shutdown()


# --- calls ---------------------------------------------------------------------------------------


def test_a_span_is_one_call_and_drafts_are_one_call(fast: TransformersModel, serve: Callable[..., TokenServer]) -> None:
    server = serve()
    slow = model_of(server)
    with Router(fast, slow, **JUDGED) as router:
        before = len(server.of("/inference/v1/generate"))
        answer = router.complete(PROMPTS[1], policy="always,span=16", method="replace", max_tokens=48)
        assert answer.usage.slow_tokens == 48
        assert answer.usage.slow.calls == len(server.of("/inference/v1/generate")) - before == 3
        answer = router.complete(PROMPTS[2], max_tokens=64, baseline=True)
        calls = answer.usage.corrections + answer.usage.bonus_tokens + 2  # the end's, and one inside a hit
        assert 64 / 17 <= answer.usage.slow.calls <= calls
        assert answer.baseline is not None
        assert answer.baseline.text == answer.text
        assert answer.baseline.usage.fast.calls <= 3  # 32 tokens ahead
    slow.shutdown()


def test_usage_adds_up_to_what_the_server_counted(fast: TransformersModel, serve: Callable[..., TokenServer]) -> None:
    """Read is what its cache did not hold; tokens that it wrote and nobody took are no reading."""
    server = serve()
    slow = model_of(server)
    with Router(fast, slow, **JUDGED) as router:
        computed = server.computed_tokens
        calls = len(server.of("/inference/v1/generate"))
        for prompt in PROMPTS[:2]:
            usage = router.complete(prompt, max_tokens=32).usage
            now, made = server.computed_tokens, len(server.of("/inference/v1/generate"))
            assert usage.slow.calls == made - calls
            assert usage.slow.positions == now - computed
            assert usage.round_trips == 0  # an endpoint's that gives text
            computed, calls = now, made
        assert "calls" in str(router.complete(PROMPTS[3], max_tokens=8).report())
    slow.shutdown()


def test_conversations_are_under_way_at_once(fast: TransformersModel, serve: Callable[..., TokenServer]) -> None:
    """Each in a call of its own, over one pool of connections: the server puts them into its batches."""
    server = serve()
    slow = model_of(server, n_seq=4)
    together = threading.Barrier(3)

    def wait(path: str, body: dict[str, Any]) -> None:
        if len(server.asked) <= first + 3:
            together.wait(30)  # breaks, and hangs up, if they come one after the other

    with Router(fast, slow, **JUDGED) as router:
        alone = [router.complete(prompt, max_tokens=32).text for prompt in PROMPTS[:3]]
        first, server.before, server.most_at_once = len(server.asked), wait, 0
        with ThreadPoolExecutor(3) as pool:
            found = [*pool.map(lambda prompt: router.complete(prompt, max_tokens=12), PROMPTS[:3])]
        assert [answer.degraded for answer in found] == [None] * 3
        assert all(whole.startswith(answer.text) for whole, answer in zip(alone, found, strict=True))
        assert server.most_at_once == 3
        server.before = lambda path, body: None
        # Works of one forward, too.
        first, server.before, server.most_at_once = len(server.asked), wait, 0
        opened = [slow.open([]).sequence for _ in range(3)]
        rows = slow.forward([Work(sequence, 0, [10, 11, 12 + sequence], [(2, Read())]) for sequence in opened])
        assert len(rows) == server.most_at_once == 3
    slow.shutdown()


async def test_coroutines_and_reading_ahead_change_no_text(
    fast: TransformersModel, serve: Callable[..., TokenServer]
) -> None:
    server = serve()
    slow = model_of(server)
    with Router(fast, slow, policy="every:16,span=16", method="replace") as router:
        expected = [router.complete(prompt, max_tokens=32).text for prompt in PROMPTS]
        found = await asyncio.gather(*(router.acomplete(prompt, max_tokens=32) for prompt in PROMPTS))
        assert [answer.text for answer in found] == expected
        router.read_ahead = 6
        found = [router.complete(prompt, max_tokens=32) for prompt in PROMPTS]
        assert [answer.text for answer in found] == expected
        assert sum(answer.usage.slow.ahead for answer in found) > 0
    slow.shutdown()


def test_calls_of_a_token_are_warned_of_with_what_they_cost(
    fast: TransformersModel, serve: Callable[..., TokenServer]
) -> None:
    slow = model_of(serve())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Router(fast, slow, **JUDGED).close()
        Router(fast, slow, policy="entropy>1,span=16", method="replace").close()
        with Router(fast, slow, method="verify:exact,draft_len=24") as router:
            assert router.policy.name == "every:24"
    with pytest.warns(SmallExtentWarning, match=r"1 token in a call .* takes [\d.e+]+ ms here and each further"):
        Router(fast, slow, policy="budget:0.2", method="replace").close()
    with pytest.warns(SmallExtentWarning, match=r"5 tokens in a call"):
        Router(fast, slow, policy="every:4", method="verify:exact,draft_len=4").close()
    with Router(fast, slow, **JUDGED) as router, pytest.warns(SmallExtentWarning) as said:
        router.complete(PROMPTS[0], max_tokens=1, policy="budget:0.2")
    assert "ms here" not in str(said[0].message)  # a request is not kept waiting by calls that are timed
    slow.shutdown()


def test_the_cost_model_decides_how_long_drafts_are(fast: TransformersModel, serve: Callable[..., TokenServer]) -> None:
    """From forwards that are timed through the network, none of which judges fewer than 16 drafts."""
    server = serve()
    slow = model_of(server)
    slow.take_vocabulary(fast.tokenizer, fast.name)
    costs = measure_forwards({"slow": slow}, Effort(rounds=2, seconds=5.0))["slow"]
    assert costs.further is not None
    assert costs.span_step() == costs.further
    assert {17, 33} <= set(costs.chunks)
    assert min(costs.chunks) == 17
    # A fast model that takes nothing and is mostly right: judging long drafts is what pays.

    def flat(name: str, seconds: float, further: float | None = None) -> ForwardCost:
        shapes = [(1, 1, False), *((size, 1, True) for size in (17, 33))]
        return ForwardCost(name, tuple(Point(*shape, seconds, seconds, seconds, 1) for shape in shapes), further)

    pair = PairCost(fast=flat("fast", 1e-5), slow=flat("slow", 0.05, 0.04))
    chosen = choose_mode(pair, parts=0.02).chosen.mode
    assert chosen.who == "every"
    assert chosen.interval in (16, 32)
    # A span is one call: its tokens cost less than as many calls.
    spans = Mode(who="every", interval=16, extent=16)
    one_by_one = PairCost(fast=flat("fast", 1e-5), slow=flat("slow", 0.05))
    rates = Rates(escalation=0.0)
    assert pair.seconds(spans, rates, prompt_tokens=64, answer_tokens=64) < one_by_one.seconds(
        spans, rates, prompt_tokens=64, answer_tokens=64
    )
    slow.shutdown()


# --- what no server tells is refused -------------------------------------------------------------


@pytest.mark.parametrize("method", ["verify:entropy_gate=0.5", "verify:optimal=0.1", "contrast", "contrast:li"])
def test_methods_that_need_whole_rows_are_refused_when_the_router_is_made(
    method: str, fast: TransformersModel, serve: Callable[..., TokenServer]
) -> None:
    slow = model_of(serve())
    with pytest.raises(ConfigurationError, match=r"20 best tokens of a row.*use replace, or verify with"):
        Router(fast, slow, policy="every:16", method=method)
    slow.shutdown()


def test_a_request_that_needs_whole_rows_is_refused(fast: TransformersModel, serve: Callable[..., TokenServer]) -> None:
    slow = model_of(serve())
    with Router(fast, slow, **JUDGED) as router:
        for options in ({"logit_bias": {20: 1.0}}, {"temperature": 0.7}, {"temperature": 0.7, "top_k": 21}):
            with pytest.raises(InvalidRequest, match="20 best tokens"):
                router.complete("lamp", **options)
        with pytest.raises(InvalidRequest, match="compares whole rows"):
            router.complete("lamp", temperature=0.7, top_k=5, method="verify:speculative")
        assert router.complete("lamp", max_tokens=8).degraded is None
    with pytest.raises(ConfigurationError, match="asked over a network for each token"):
        Router(slow, fast)
    with pytest.raises(BackendError, match="no whole row"):
        slow.forward([Work(slow.open([]).sequence, 0, [5], [(0, Read(full=True))])])
    slow.shutdown()


# --- one vocabulary ------------------------------------------------------------------------------


def test_the_vocabulary_is_compared_in_a_few_requests_and_once(
    fast: TransformersModel, serve: Callable[..., TokenServer]
) -> None:
    server = serve()
    for _ in range(2):
        slow = model_of(server)
        Router(fast, slow, **JUDGED).close()
        assert vocabulary_hash(slow.tokenizer) == vocabulary_hash(fast.tokenizer)
        slow.shutdown()
    told = [token for body in server.of("/detokenize") for token in body["tokens"]]
    assert set(told) >= set(range(tiny_transformers.N_VOCAB))
    assert len(server.of("/detokenize")) <= 4
    assert len(server.of("/tokenize")) == len(vocabularies._TEXTS)


def test_ids_that_mean_something_else_are_named(serve: Callable[..., TokenServer]) -> None:
    slow = model_of(serve())
    pieces = [name.encode() for name in tiny_transformers.SPECIALS] + [b"x"] * 258
    other = ScriptedModel(lambda ids: np.zeros(262), ScriptedTokenizer(pieces, eog=[1], special=[0]), name="other")
    with pytest.raises(
        VocabularyMismatch, match=r"other and slow@.* have different vocabularies: id 4 is 'x' in other"
    ):
        Router(other, slow)
    slow.shutdown()


def test_ids_that_the_server_lacks_are_never_written(
    fast: TransformersModel, serve: Callable[..., TokenServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server's tokenizer tells no text of them."""
    monkeypatch.setattr(vocabularies, "_compared", {})
    server = serve()
    decode = server.tokenizer.decode
    lost = {260, 261}  # the two words, which the texts that are compared do not hold
    server.tokenizer.decode = lambda ids, **options: decode([i for i in ids if i not in lost], **options)
    slow = model_of(server)
    with pytest.warns(VocabularyWarning, match="alone has 'lamp'"):
        router = Router(fast, slow, **JUDGED)
    with router:
        assert router.shared is not None
        assert set(router.shared.only_fast) == lost
        assert lost.isdisjoint({token for found in texts(router) for token in found})
    slow.shutdown()


def test_where_ids_cannot_be_compared_that_is_said(
    fast: TransformersModel, serve: Callable[..., TokenServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabularies, "_compared", {})
    server = serve(paths=("/inference/v1/generate", "/v1/models"))
    slow = model_of(server)
    with pytest.raises(ConfigurationError, match=r"no tokenizer endpoints.*vocabulary=trusted"):
        Router(fast, slow, **JUDGED)
    slow.shutdown()
    folder = str(tiny_transformers.altered("llama", 0.0))
    for options in ({"vocabulary": "trusted"}, {"tokenizer": folder}):
        slow = model_of(server, **options)
        with Router(fast, slow, **JUDGED) as router:
            assert router.complete("lamp", max_tokens=8).degraded is None
        slow.shutdown()
    with pytest.raises(ConfigurationError, match="no tokenizer of its own"):
        _ = model_of(server).tokenizer


def test_a_chat_is_in_the_servers_own_template_or_refused(
    fast: TransformersModel, here: TransformersModel, serve: Callable[..., TokenServer]
) -> None:
    server = serve()
    messages = [{"role": "user", "content": "a lamp <|end|> and"}]  # which is no control token
    slow = model_of(server)
    with Router(fast, slow, **JUDGED) as served, Router(fast, here, **JUDGED) as local:
        assert served.chat(messages, max_tokens=24).text == local.chat(messages, max_tokens=24).text
    slow.shutdown()
    server.tokenizer.chat_template = tiny_transformers.TEMPLATE.replace("<|end|>", "<|end|> ")
    slow = model_of(server)
    with Router(fast, slow, **JUDGED) as router, pytest.raises(ConfigurationError, match="another chat template"):
        router.chat(messages)
    slow.shutdown()


# --- failures ------------------------------------------------------------------------------------


def test_a_server_that_dies_in_mid_answer_costs_the_slow_model_and_no_text(
    fast: TransformersModel, serve: Callable[..., TokenServer]
) -> None:
    server = serve()
    slow = model_of(server, max_retries=1)
    seen = 0

    def die(path: str, body: dict[str, Any]) -> None:
        nonlocal seen
        seen += path == "/inference/v1/generate"
        if seen > 2:
            raise ConnectionError

    with Router(fast, slow, **JUDGED) as router:
        whole = router.complete(PROMPTS[0], max_tokens=64)
        server.before = die
        answer = router.complete(PROMPTS[0] + " ", max_tokens=64)
        assert answer.degraded is not None
        assert "EndpointError" in answer.degraded
        assert answer.usage.tokens == 64 or answer.finish_reason == "eog"
        assert any(token.verified or token.source == "slow" for token in answer.tokens)
        server.before = lambda path, body: None
        again = router.complete(PROMPTS[0], max_tokens=64)
        assert (again.text, again.degraded) == (whole.text, None)
    slow.shutdown()


def test_a_busy_server_is_asked_again_and_a_silent_one_given_up(
    fast: TransformersModel, serve: Callable[..., TokenServer]
) -> None:
    server = serve()
    slow = model_of(server)
    asked = 0

    def busy(path: str, body: dict[str, Any]) -> None:
        # More often than a breaker allows in a row, with calls between them that are answered.
        nonlocal asked
        asked += 1
        if (status := {1: 503, 2: 429, 5: 503, 9: 503}.get(asked)) is not None:
            raise Refused(status, "busy")

    with Router(fast, slow, **JUDGED) as router:
        expected = router.complete(PROMPTS[0], max_tokens=32).text
        server.before = busy
        while asked < 9:
            answer = router.complete(PROMPTS[0], max_tokens=32)
            assert (answer.text, answer.degraded) == (expected, None)
    slow.shutdown()
    slow, release = model_of(server, deadline_seconds=1.5), threading.Event()
    with Router(fast, slow, **JUDGED) as router:
        server.before = lambda path, body: release.wait(30) and None
        answer = router.complete(PROMPTS[1], max_tokens=24)
        release.set()
        assert answer.degraded is not None
        assert answer.usage.tokens == 24 or answer.finish_reason == "eog"
    slow.shutdown()


def test_shutdown_ends_a_call_that_is_under_way(fast: TransformersModel, serve: Callable[..., TokenServer]) -> None:
    server = serve()
    slow = model_of(server)
    slow.take_vocabulary(fast.tokenizer, fast.name)
    entered, release = threading.Event(), threading.Event()

    def hang(path: str, body: dict[str, Any]) -> None:
        entered.set()
        release.wait(30)

    server.before = hang
    failed: list[BaseException] = []

    def ask() -> None:
        try:
            slow.forward([Work(slow.open([]).sequence, 0, [5, 6], [(1, Read())])])
        except BackendError as error:
            failed.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    entered.wait(30)
    slow.shutdown()
    thread.join(30)
    release.set()
    assert "was shut down" in str(failed[0])
    with pytest.raises(BackendError, match="was shut down"):
        slow.forward([Work(slow.open([]).sequence, 0, [5], [(0, Read())])])


# --- what is no such server ----------------------------------------------------------------------


def test_servers_of_text_are_told_apart(tmp_path: Path) -> None:
    """llama.cpp's takes ids and leaves out rows without a word: it is for ``openai:``."""
    with (
        endpoints.real_server(tmp_path, {"slow": reference.path("slow")}) as server,
        pytest.raises(ConfigurationError, match=r"gives no rows for token ids.*use openai:slow@http://.*/v1"),
    ):
        TokensModel(f"slow@{server.url}", max_retries=0)


def test_wrong_servers_names_and_keys(serve: Callable[..., TokenServer], monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(key="sesame")
    with pytest.raises(EndpointError, match=r"status 401.*set OPENAI_API_KEY"):
        model_of(server)
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    assert model_of(server).n_ctx == 160
    with pytest.raises(ConfigurationError, match=r"serves no 'other'.*it serves slow"):
        TokensModel(f"other@{server.url}/v1")
    with pytest.raises(ConfigurationError, match="tokens:model-name@http://host:port"):
        TokensModel("slow")
    with pytest.raises(ConfigurationError, match="n_ctx=160 at most"):
        model_of(server, n_ctx=200)
    began = time.monotonic()
    with pytest.raises(EndpointError, match="cannot be reached"):
        TokensModel("slow@http://127.0.0.1:9", max_retries=0)
    assert time.monotonic() - began < 30
    with (
        endpoints.scripted_server(lambda asked: asked.send(endpoints.reply(200, b"<html>", kind="text/html"))) as other,
        pytest.raises(EndpointError, match="sent no JSON"),
    ):
        TokensModel(f"slow@{other.url}", max_retries=0)
    with pytest.raises(ConfigurationError, match="did you mean 'n_ctx'"):
        model_of(server, n_cxt=64)
    assert TokensOptions().connection.read_timeout_seconds == TokensOptions().deadline_seconds


def test_doctor_says_how_it_is_asked(serve: Callable[..., TokenServer]) -> None:
    for reports, status in ((True, "ok"), (False, "note")):
        slow = model_of(serve(reports_cached=reports))
        (found,) = _served(slow)
        assert found.status == status
        assert "/inference/v1/generate" in found.detail
        slow.shutdown()
    assert not [*_served(object())]


def test_a_pair_is_made_by_a_model_string(fast: TransformersModel, serve: Callable[..., TokenServer]) -> None:
    server = serve()
    with Router(fast, f"tokens:slow@{server.url}?n_params=50000&ahead=8", **JUDGED) as router:
        assert router.batching
        assert router.slow.n_params == 50_000
        assert isinstance(router.slow, TokensModel)
        assert router.complete("lamp", max_tokens=4).models["slow"].gives_rows
