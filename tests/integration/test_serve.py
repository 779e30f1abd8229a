"""The server on the reference pair, as clients meet it: in process, on a port, and as a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import anthropic
import httpx2
import openai
import pydantic
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from serving import serving, until

from fsgen_router import ConfigurationError, Finished, Restarted, Router, TextDelta
from fsgen_router.contracts.models import TokenModel
from fsgen_router.serve import ServeOptions, make_app
from fsgen_router.serve.options import digest

QUESTION = "How many coins do 3 lamps and 4 ropes cost in Norvale?"
MESSAGES: Any = [{"role": "user", "content": QUESTION}]
KEY, OTHER_KEY = "a-key-of-the-tests", "another-key-of-the-tests"
APIS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/completions": {"prompt": QUESTION, "max_tokens": 100},
    "/v1/responses": {"input": QUESTION},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 100},
}


@pytest.fixture(scope="module")
def router(fast_model: TokenModel, slow_model: TokenModel) -> Iterator[Router]:
    with Router(fast_model, slow_model, policy="entropy>0.5", method="verify") as made:
        yield made


def client_of(router: Router, **options: Any) -> httpx2.AsyncClient:
    """A client of the application itself, without a socket."""
    transport = httpx2.ASGITransport(app=make_app(router, ServeOptions(**options)))
    return httpx2.AsyncClient(transport=transport, base_url="http://localhost")


@pytest.fixture
async def client(router: Router) -> AsyncIterator[httpx2.AsyncClient]:
    async with client_of(router, models={"mine": "every:4"}) as made:
        yield made


@pytest.fixture(scope="module")
def url(router: Router) -> Iterator[str]:
    with serving(router, keys=frozenset({digest(KEY), digest(OTHER_KEY)}), max_concurrent=2) as made:
        yield made


def events(text: str) -> list[dict[str, Any]]:
    """What a stream holds."""
    lines = [line[6:] for line in text.split("\n") if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def text_of(path: str, body: dict[str, Any]) -> str:
    """The text of an answer that is not streamed."""
    if path == "/v1/responses":
        return str(body["output"][0]["content"][0]["text"])
    if path == "/v1/messages":
        return str(body["content"][0]["text"])
    choice = body["choices"][0]
    return str(choice["text"] if "text" in choice else choice["message"]["content"])


def text_of_stream(path: str, sent: list[dict[str, Any]]) -> str:
    if path == "/v1/responses":
        return "".join(event["delta"] for event in sent if event["type"] == "response.output_text.delta")
    if path == "/v1/messages":
        return "".join(event["delta"]["text"] for event in sent if event["type"] == "content_block_delta")
    choices = [choice for event in sent for choice in event["choices"]]
    return "".join(choice["text"] if "text" in choice else choice["delta"].get("content", "") for choice in choices)


# --- answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", APIS)
async def test_an_answer_is_the_routers_streamed_or_not(path: str, router: Router, client: httpx2.AsyncClient) -> None:
    raw = path == "/v1/completions"
    own = router.complete(QUESTION, max_tokens=100) if raw else router.chat(MESSAGES, max_tokens=100)
    whole = await client.post(path, json=APIS[path])
    sent = events((await client.post(path, json=APIS[path] | {"stream": True})).text)
    assert text_of(path, whole.json()) == text_of_stream(path, sent) == own.text
    # null stands only where the API's own shape has it
    allowed = {
        *("finish_reason", "error", "incomplete_details", "instructions", "max_output_tokens", "effort", "summary"),
        *("previous_response_id", "stop_sequence", "stop_reason"),
    }
    if path == "/v1/responses":
        assert [event["sequence_number"] for event in sent] == list(range(len(sent)))
    for body in (whole.json(), *sent):
        assert nulls(body) <= allowed
    last = whole.json()["usage"]["fsgen"]
    streamed = [found for event in sent for found in [usage_of(event)] if found is not None]
    rates = ("escalation_rate", "slow_token_share", "slow_position_share", "corrections", "slow_forwards")
    assert {name: streamed[-1]["fsgen"][name] for name in rates[:2]} == {name: last[name] for name in rates[:2]}
    assert last["escalation_rate"] == own.usage.escalation_rate
    assert last["corrections"] == own.usage.corrections > 0
    assert last["compared"]["slow_forwards"]["saving"] == own.report().slow_forwards.saving
    assert float(whole.headers["x-fsgen-escalation-rate"]) == pytest.approx(last["escalation_rate"], rel=1e-4)
    assert whole.headers["x-fsgen-model"] == "local/router"
    assert whole.headers["x-fsgen-policy"] == "entropy>0.5"


def nulls(value: Any, name: str = "") -> set[str]:
    """The names of fields that are null."""
    if isinstance(value, dict):
        return set().union(*(nulls(inner, key) for key, inner in value.items()), set())
    if isinstance(value, list):
        return set().union(*(nulls(inner, name) for inner in value), set())
    return {name} if value is None else set()


def usage_of(event: dict[str, Any]) -> dict[str, Any] | None:
    """Of the event that has the last usage."""
    found = event.get("usage") or event.get("response", {}).get("usage")
    return found if found and "fsgen" in found else None


async def test_model_names_are_policies(router: Router, client: httpx2.AsyncClient) -> None:
    listed = (await client.get("/v1/models")).json()["data"]
    assert [model["id"] for model in listed] == ["local/router", "local/fast", "local/slow", "mine"]
    assert (await client.get("/v1/models/local/slow")).json() == listed[2]
    for name, options in {
        "local/fast": {"policy": "never"},
        "local/slow": {"policy": "always,span=rest", "method": "replace"},
        "mine": {"policy": "every:4"},
    }.items():
        body = (await client.post("/v1/chat/completions", json={"model": name, "messages": MESSAGES})).json()
        own = router.chat(MESSAGES, max_tokens=1024, **options)
        assert body["model"] == name
        assert text_of("/v1/chat/completions", body) == own.text
        assert body["usage"]["fsgen"]["slow_token_share"] == own.usage.slow_token_share
    for path in APIS:
        refused = await client.post(path, json=APIS[path] | {"model": "gpt"})
        assert refused.status_code == 404
        assert "gpt" in refused.json()["error"]["message"]


async def test_the_reference_pairs_certificate_is_told() -> None:
    async with Router() as own, client_of(own) as client:
        assert "local/certified" in (await client.get("/v1/models")).text
        body = {"model": "local/certified", "messages": MESSAGES}
        certain = (await client.post("/v1/chat/completions", json=body)).json()["usage"]["fsgen"]["guarantee"]
        assert certain["holds"]
        assert "1,199" in certain["certified"]
        sampled = await client.post("/v1/chat/completions", json=body | {"temperature": 0.5})
        suspended = sampled.json()["usage"]["fsgen"]["guarantee"]
        assert not suspended["holds"]
        assert "sampled" in suspended["suspended_by"][0]


async def test_one_request_says_how_it_is_routed(router: Router, client: httpx2.AsyncClient) -> None:
    body = {"messages": MESSAGES, "fsgen": {"policy": "every:8", "method": "replace", "max_slow_calls": 2}}
    told = (await client.post("/v1/chat/completions", json=body)).json()["usage"]["fsgen"]
    assert (told["escalations"], told["method"]) == (2, "replace")
    assert told["degraded"].startswith("cap on")
    for field, value in (
        ("policy", "/etc/secret.safetensors"),
        ("policy", "best_of:2,else=x.safetensors"),
        ("policy", "best_of:1000"),
        ("policy", "nonsense"),
        ("policy", "never\r\nx-evil: 1"),
        ("method", "nonsense"),
        ("max_slow_calls", -1),
        ("best", 1),
    ):
        refused = await client.post("/v1/chat/completions", json={"messages": MESSAGES, "fsgen": {field: value}})
        assert refused.status_code == 400, field
        assert "secret" not in refused.text
        assert "x-evil" not in refused.headers
    spaced = await client.post("/v1/chat/completions", json={"messages": MESSAGES, "fsgen": {"policy": "never\r\n"}})
    assert (spaced.status_code, spaced.headers["x-fsgen-policy"]) == (200, "never")


@pytest.mark.parametrize("path", APIS)
async def test_who_wrote_what_is_told_where_it_is_asked_for(
    path: str, router: Router, client: httpx2.AsyncClient
) -> None:
    body = APIS[path] | {"fsgen": {"tokens": True}}
    whole = (await client.post(path, json=body)).json()
    told = (whole["choices"][0] if "choices" in whole else whole)["fsgen"]["tokens"]
    sent = events((await client.post(path, json=body | {"stream": True})).text)
    parts = [part for event in sent for part in (event, *event.get("choices", ()))]
    streamed = [token for part in parts for token in part.get("fsgen", {}).get("tokens", ())]
    stable = ("text", "source", "verdict", "reason")
    assert [[token.get(name) for name in stable] for token in streamed] == [
        [token.get(name) for name in stable] for token in told
    ]
    assert {token["source"] for token in told} == {"fast", "slow"}
    corrected = [token for token in told if token["source"] == "slow" and "fast_choice" in token]
    assert any(token["slow_choice"]["text"] == token["text"] != token["fast_choice"]["text"] for token in corrected)
    assert all("score" in token and token["threshold"] == 0.5 for token in told if token["source"] == "fast")


async def test_several_answers_have_seeds_in_a_row(router: Router, client: httpx2.AsyncClient) -> None:
    body = {"messages": MESSAGES, "n": 3, "seed": 5, "temperature": 1.5, "max_tokens": 12}
    whole = (await client.post("/v1/chat/completions", json=body)).json()
    own = [router.chat(MESSAGES, seed=5 + n, temperature=1.5, max_tokens=12).text for n in range(3)]
    assert [choice["message"]["content"] for choice in whole["choices"]] == own
    assert len(set(own)) > 1
    assert [one["seed"] for one in whole["usage"]["fsgen"]["answers"]] == [5, 6, 7]
    sent = events((await client.post("/v1/chat/completions", json=body | {"stream": True})).text)
    parts = [(c["index"], c["delta"].get("content", "")) for event in sent for c in event["choices"]]
    assert ["".join(text for index, text in parts if index == n) for n in range(3)] == own
    assert sent[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"] == 36
    assert whole["usage"]["prompt_tokens"] == router.count_tokens(MESSAGES)


async def test_usage_comes_apart_where_it_is_asked_for(client: httpx2.AsyncClient) -> None:
    body = {"messages": MESSAGES, "stream": True, "max_tokens": 3}
    *chunks, last = events((await client.post("/v1/chat/completions", json=body)).text)
    assert last["usage"]["completion_tokens"] == 3
    assert last["choices"][0]["finish_reason"] == "length"
    apart = body | {"stream_options": {"include_usage": True}}
    *chunks, last = events((await client.post("/v1/chat/completions", json=apart)).text)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 3
    assert not any("usage" in chunk for chunk in chunks)


async def test_log_probabilities_say_whose_they_are(router: Router, client: httpx2.AsyncClient) -> None:
    own = router.chat(MESSAGES, stop="The sum", max_tokens=100)
    body = {"messages": MESSAGES, "stop": "The sum", "logprobs": True, "top_logprobs": 2}
    (choice,) = (await client.post("/v1/chat/completions", json=body)).json()["choices"]
    told = choice["logprobs"]["content"]
    # The text ends before the stop string, and so do its tokens.
    assert "".join(entry["token"] for entry in told).startswith(own.text.rstrip())
    assert len(told) < len(own.tokens)
    for entry, token in zip(told, own.tokens, strict=False):
        assert entry["logprob"] == pytest.approx(token.logprob, abs=1e-3)
        assert entry["fsgen"] == {"logprob_of": token.source, "top_logprobs_of": "fast"}
        assert bytes(entry["bytes"]) == token.piece
        if token.signals is not None:
            assert entry["top_logprobs"][0]["token"] == router.fast.tokenizer.piece(token.signals.argmax).decode()
            assert len(entry["top_logprobs"]) == 2
    refused = await client.post("/v1/chat/completions", json=body | {"top_logprobs": 20})
    assert refused.json()["error"]["param"] == "top_logprobs"


async def test_prompts_may_be_several_and_token_ids(router: Router, client: httpx2.AsyncClient) -> None:
    ids = router.fast.tokenizer.encode(QUESTION, add_bos=True)
    prompts: list[Any] = [QUESTION, [QUESTION, "A lamp"], ids, [ids, ids[:5]]]
    bodies = [(await client.post("/v1/completions", json={"prompt": prompt})).json() for prompt in prompts]
    texts = [[choice["text"] for choice in body["choices"]] for body in bodies]
    assert [len(one) for one in texts] == [1, 2, 1, 2]
    assert texts[0][0] == texts[1][0] == texts[2][0] == texts[3][0] == router.complete(QUESTION, max_tokens=16).text
    for prompt in ([], [10**9], [-1], "", [""], [[]]):
        refused = await client.post("/v1/completions", json={"prompt": prompt})
        assert refused.status_code == 400, prompt


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*APIS, "/v1/messages/count_tokens"])
async def test_bad_input_is_refused_in_the_apis_own_shape(path: str, client: httpx2.AsyncClient) -> None:
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]
    body = APIS.get(path, {"messages": MESSAGES})
    pictured = body | ({"input": image} if path == "/v1/responses" else {"messages": image})
    json_type = {"content-type": "application/json"}
    for status, request in (
        (400, {"content": b"{", "headers": json_type}),
        (400, {"content": b'{"a": "\xff"}', "headers": json_type}),
        (400, {"json": {}}),
        (400, {"json": body | {"tools_": []}}),
        (400, {"json": pictured}),
        (404, {"json": body | {"model": "none"}}),
        (413, {"content": b" " * 10_000_000, "headers": json_type}),
        (415, {"content": json.dumps(body).encode()}),
    ):
        answer = await client.post(path, **request)  # type: ignore[arg-type]
        assert answer.status_code == status, answer.text
        error = answer.json()["error"]
        if path.startswith("/v1/messages"):
            assert answer.json()["type"] == "error"
            assert set(error) == {"type", "message"}
        else:
            assert set(error) == {"message", "type", "param", "code"}
    wrong = await client.get(path)
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert "error" in wrong.json()


async def test_what_is_long_or_not_there_is_told(client: httpx2.AsyncClient, router: Router) -> None:
    long = [{"role": "user", "content": "lamp " * 3000}]
    refused = await client.post("/v1/chat/completions", json={"messages": long})
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    assert "1024" in refused.text
    embeddings = await client.post("/v1/embeddings", json={"model": "x", "input": "y"})
    assert (embeddings.status_code, "no embeddings" in embeddings.text) == (404, True)
    assert (await client.get("/nowhere")).status_code == 404
    async with client_of(router, max_prompt_tokens=10, max_new_tokens=5, max_choices=2) as small:
        for body, word in (
            ({"messages": MESSAGES}, "at most 10"),
            ({"messages": MESSAGES, "max_tokens": 6}, "at most 5"),
            ({"messages": MESSAGES, "n": 3}, "at most 2"),
        ):
            refused = await small.post("/v1/chat/completions", json=body)
            assert (refused.status_code, word in refused.text) == (400, True)
        short = {"messages": [{"role": "user", "content": "lamp"}]}
        answer = await small.post("/v1/chat/completions", json=short)
        assert answer.json()["usage"]["completion_tokens"] == 5


async def test_pages_of_other_origins_are_kept_out(router: Router) -> None:
    origin = {"origin": "https://example.org"}
    async with client_of(router) as client:
        assert "access-control-allow-origin" not in (await client.get("/health", headers=origin)).headers
        rebound = await client.get("/v1/models", headers={"host": "evil.example"})
        assert rebound.status_code == 403
        for host in ("localhost:8000", "127.0.0.1", "[::1]:80"):
            assert (await client.get("/v1/models", headers={"host": host})).status_code == 200
    async with client_of(router, cors=("https://example.org",), keys=frozenset({digest(KEY)})) as client:
        asked = {**origin, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
        preflight = await client.options("/v1/chat/completions", headers=asked)
        assert preflight.headers["access-control-allow-origin"] == "https://example.org"
        other = await client.get("/health", headers={"origin": "https://other.example"})
        assert "access-control-allow-origin" not in other.headers


def test_policies_that_do_not_go_with_the_pair_are_refused_at_the_start(router: Router) -> None:
    for models, word in (({"x": "nonsense"}, "unknown policy"), ({"local/fast": "never"}, "is taken")):
        with pytest.raises(ConfigurationError, match=word):
            make_app(router, ServeOptions(models=models))


FUZZED = settings(
    max_examples=5,
    database=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def test_schemathesis_finds_no_server_error(router: Router) -> None:
    app = make_app(router, ServeOptions(max_new_tokens=4, host="0.0.0.0", no_keys=True))
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    operations = [operation.ok() for operation in schema.get_all_operations()]
    assert {operation.path for operation in operations} >= {*APIS, "/v1/models", "/health", "/ready", "/metrics"}
    for operation in operations:
        if operation.method.upper() != "POST":
            continue

        @FUZZED
        @given(case=operation.as_strategy())
        def no_server_error(case: Any) -> None:
            assert case.call().status_code < 500

        no_server_error()


class Held:
    """A request's constraint that keeps it where it is until it is let go."""

    def __init__(self) -> None:
        self.go_on = threading.Event()

    def mask(self, answer: Any) -> None:
        assert self.go_on.wait(30)


@contextlib.contextmanager
def one_place(**options: Any) -> Iterator[tuple[Router, Held]]:
    """A Router whose one place is taken until it is let go."""
    held = Held()
    with Router("reference:fast?n_seq=1", "reference:slow?n_seq=1", policy="never", batching=True, **options) as router:
        thread = threading.Thread(target=router.complete, args=("a",), kwargs={"constraint": held, "max_tokens": 2})
        thread.start()
        try:
            until(lambda: router.load.running == 1)
            yield router, held
        finally:
            held.go_on.set()
            thread.join()


class Breaking:
    """A model whose forwards fail once it is told after how many."""

    def __init__(self, model: TokenModel) -> None:
        self._model = model
        self.left: int | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def forward(self, works: Any) -> Any:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise RuntimeError("the weights of " + QUESTION)
        return self._model.forward(works)


@pytest.mark.parametrize("path", APIS)
async def test_a_model_that_fails_is_told_in_the_apis_own_words(
    path: str, fast_model: TokenModel, slow_model: TokenModel
) -> None:
    breaking: Any = Breaking(fast_model)
    async with Router(breaking, slow_model, policy="never") as router, client_of(router) as client:
        good = text_of(path, (await client.post(path, json=APIS[path])).json())
        for after, streamed in ((0, True), (0, False), (20, False)):
            breaking.left = after
            failed = await client.post(path, json=APIS[path] | {"stream": streamed})
            assert failed.status_code == 500
            assert "Norvale" not in failed.text
        breaking.left = 20
        cut = await client.post(path, json=APIS[path] | {"stream": True})
        assert cut.status_code == 200
        last = [event for event in events(cut.text) if event][-1]
        error = last["response"]["error"] if path == "/v1/responses" else last["error"]
        assert "failed" in error["message"]
        assert "Norvale" not in str(error)
        text = text_of_stream(path, [event for event in events(cut.text) if "error" not in event])
        assert good.startswith(text) != (text == "")
        # Nothing is lost for others.
        breaking.left = None
        assert text_of(path, (await client.post(path, json=APIS[path])).json()) == good
        assert router.load.running == 0


async def test_text_that_does_not_stand_is_not_streamed(router: Router, client: httpx2.AsyncClient) -> None:
    """No API can take text back: where the slow model may begin an answer anew, it comes at its end."""
    policy = "every:20,span=rest,draft=drop"
    own = list(router.stream_chat(MESSAGES, policy=policy, method="replace", max_tokens=100))
    shown = "".join(event.text for event in own if isinstance(event, TextDelta))
    assert any(isinstance(event, Restarted) for event in own)
    assert isinstance(own[-1], Finished)
    assert shown != own[-1].generation.text
    for path in APIS:
        if path == "/v1/completions":
            continue
        body = APIS[path] | {"stream": True, "fsgen": {"policy": policy, "method": "replace"}}
        sent = events((await client.post(path, json=body)).text)
        assert text_of_stream(path, sent) == own[-1].generation.text
        if path == "/v1/responses":
            assert [event["sequence_number"] for event in sent] == list(range(len(sent)))
            assert sent[-1]["response"]["output"][0]["content"][0]["text"] == own[-1].generation.text


# --- keys, queues, leaving -----------------------------------------------------------------------

AUTHORIZED = {"authorization": f"Bearer {KEY}"}


def test_every_route_but_health_wants_a_key(url: str) -> None:
    with httpx2.Client(base_url=url) as client:
        _wants_a_key(client)


def _wants_a_key(client: httpx2.Client) -> None:
    for method, path in [
        *(("POST", path) for path in [*APIS, "/v1/messages/count_tokens", "/v1/embeddings"]),
        *(("GET", path) for path in ["/v1/models", "/v1/models/local/fast", "/ready", "/metrics", "/openapi.json"]),
        ("GET", "/nowhere"),
    ]:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"x-api-key": KEY[:-1]}, {"authorization": KEY}):
            refused = client.request(method, path, headers=headers)
            assert refused.status_code == 401, (path, headers)
            assert "error" in refused.json()
            assert KEY not in refused.text
    assert client.get("/health").json() == {"status": "ok"}
    for shown in (AUTHORIZED, {"x-api-key": OTHER_KEY}):
        assert client.get("/v1/models", headers=shown).status_code == 200


def endless(router: Router, **more: Any) -> dict[str, Any]:
    """A request whose answer goes on until the context is full."""
    bias = {str(token): -1e9 for token in router.fast.tokenizer.eog_ids}
    return {"messages": MESSAGES, "model": "local/fast", "stream": True, "logit_bias": bias, **more}


def figure(url: str, name: str) -> float:
    """A metric's value, summed over its labels."""
    text = httpx2.get(url + "/metrics", headers=AUTHORIZED).text
    return sum(float(line.rpartition(" ")[2]) for line in text.split("\n") if re.match(rf"{name}[ {{]", line))


def test_who_leaves_frees_its_place_at_once(url: str, router: Router) -> None:
    tokens, cancelled = router.ledger.tokens, figure(url, "fsgen_cancelled_total")
    for path in ("/v1/chat/completions", "/v1/messages"):
        body = endless(router) if path == "/v1/chat/completions" else {**APIS[path], "stream": True, "max_tokens": 900}
        with httpx2.stream("POST", url + path, json=body, headers=AUTHORIZED) as stream:
            assert next(stream.iter_text()).startswith(("data: ", "event: "))
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.post(url + "/v1/chat/completions", json=endless(router, stream=False), headers=AUTHORIZED, timeout=0.05)
    until(lambda: router.load.running == 0)
    until(lambda: figure(url, "fsgen_cancelled_total") == cancelled + 3)
    assert router.ledger.tokens - tokens < 900


async def test_a_client_that_does_not_read_is_left(router: Router) -> None:
    """It keeps neither a place nor what was written for it: the server hears of nothing but a ``send`` that hangs."""
    app = make_app(router, ServeOptions(send_seconds=0.1))
    body = json.dumps(endless(router)).encode()
    read, sent = asyncio.Event(), []

    async def receive() -> dict[str, Any]:
        if not read.is_set():
            read.set()
            return {"type": "http.request", "body": body}
        return await asyncio.Future()

    async def send(message: Any) -> None:
        sent.append(message)
        if len(sent) > 3:
            await asyncio.Future()

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers, "query_string": b""}
    await app(scope, receive, send)
    assert router.load.running == 0
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://localhost") as client:
        assert 'outcome="slow_reader"} 1.0' in (await client.get("/metrics")).text


def test_a_key_has_only_so_many_requests_at_once(url: str, router: Router) -> None:
    with contextlib.ExitStack() as open_ones:
        for _ in range(2):
            stream = httpx2.stream("POST", url + "/v1/chat/completions", json=endless(router), headers=AUTHORIZED)
            assert open_ones.enter_context(stream).status_code == 200
        refused = httpx2.post(url + "/v1/chat/completions", json=APIS["/v1/chat/completions"], headers=AUTHORIZED)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "too_many_requests"
        other = {"x-api-key": OTHER_KEY}
        assert httpx2.post(url + "/v1/messages", json=APIS["/v1/messages"], headers=other).status_code == 200
    until(lambda: router.load.running == 0)
    answered = httpx2.post(url + "/v1/chat/completions", json=APIS["/v1/chat/completions"], headers=AUTHORIZED)
    assert answered.status_code == 200


async def test_a_full_queue_refuses_before_anything_is_streamed() -> None:
    with one_place(max_waiting=1) as (router, held):
        async with client_of(router) as client:
            load = {"running": 1, "waiting": 0, "places": 1, "room": 1}
            assert (await client.get("/ready")).json() == {"status": "ready", **load}
            # Of several answers either all are let in or none.
            two = await client.post("/v1/chat/completions", json={"messages": MESSAGES, "n": 2})
            assert two.status_code == 429
            assert router.load.room == 1
            waiting = asyncio.create_task(client.post("/v1/chat/completions", json={"messages": MESSAGES}))
            while router.load.room:
                await asyncio.sleep(0)
            assert (await client.get("/ready")).status_code == 503
            for path, body in APIS.items():
                refused = await client.post(path, json=body | {"stream": True})
                assert refused.status_code == 429
                assert int(refused.headers["retry-after"]) >= 1
                assert refused.json()["error"]["type"] == "rate_limit_error"
            held.go_on.set()
            assert (await waiting).status_code == 200
            assert router.load.room == 2


def test_answers_at_the_same_time_are_not_mixed_up(router: Router) -> None:
    """Half of the clients leave in the middle, others send nonsense: the rest have their own texts."""
    questions = [QUESTION.replace("3", str(count)) for count in range(2, 10)]
    own = {q: router.chat([{"role": "user", "content": q}], max_tokens=200).text for q in questions}
    with serving(router) as url:

        def one(number: int) -> bool:
            question = questions[number % len(questions)]
            body: dict[str, Any] = {"messages": [{"role": "user", "content": question}], "stream": True}
            if number % 4 == 1:
                return httpx2.post(url + "/v1/chat/completions", json=body | {"temperature": -1}).status_code == 400
            with httpx2.stream("POST", url + "/v1/chat/completions", json=body, timeout=60) as stream:
                if number % 4 == 3:
                    next(stream.iter_text())
                    return True
                sent = events("".join(stream.iter_text()))
            return text_of_stream("/v1/chat/completions", sent) == own[question]

        with ThreadPoolExecutor(16) as pool:
            assert all(pool.map(one, range(24)))
    until(lambda: router.load.running == 0)


def test_requests_in_one_piece_are_answered_in_order(url: str) -> None:
    """Pipelined, one of them malformed in its body."""
    bodies = [b'{"prompt": "A lamp", "max_tokens": 1}', b"{", b'{"prompt": "A rope", "max_tokens": 2}']
    head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nx-api-key: %s\r\n"
    address = url.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1]))) as connection:
        for body in bodies:
            connection.sendall(head % KEY.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        file = connection.makefile("rb")
        found = []
        for _ in bodies:
            status = int(file.readline().split()[1])
            length = int(http.client.parse_headers(file)["content-length"])
            found.append((status, json.loads(file.read(length)).get("usage", {}).get("completion_tokens")))
    assert found == [(200, 1), (400, None), (200, 2)]


def test_a_body_that_does_not_come_is_given_up(router: Router) -> None:
    with serving(router, body_seconds=0.2) as url:
        address = url.removeprefix("http://").split(":")
        with socket.create_connection((address[0], int(address[1]))) as connection:
            head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            connection.sendall(head + b'Content-Length: 100\r\n\r\n{"prompt": ')
            assert b" 408 " in connection.recv(4096).split(b"\r\n")[0]


async def test_a_sign_of_life_is_sent_while_nothing_else_is() -> None:
    with one_place() as (router, held):
        async with client_of(router, idle_seconds=0.05) as client:
            asked = [
                asyncio.create_task(client.post(path, json=APIS[path] | {"stream": True}))
                for path in ("/v1/chat/completions", "/v1/messages")
            ]
            await asyncio.sleep(0.2)
            held.go_on.set()
            chat, message = [(await one).text for one in asked]
    assert ": still here\n\n" in chat
    assert events(chat)[-1]["choices"][0]["finish_reason"] == "stop"
    assert "event: ping\n" in message


# --- what is seen --------------------------------------------------------------------------------


def test_metrics_count_tokens_by_writer(router: Router) -> None:
    with serving(router) as url:
        before = httpx2.post(url + "/v1/chat/completions", json={"messages": MESSAGES}).json()["usage"]
        httpx2.post(url + "/v1/chat/completions", json={"messages": []})
        text = httpx2.get(url + "/metrics").text
    told = before["fsgen"]
    for line in (
        'fsgen_requests_total{api="chat_completions",model="local/router",outcome="ok"} 1.0',
        'fsgen_errors_total{kind="invalid_request"} 1.0',
        f'fsgen_tokens_total{{model="local/router",writer="slow"}} {float(told["slow_tokens"])}',
        f'fsgen_slow_forwards_total{{model="local/router"}} {float(told["slow_forwards"])}',
        f'fsgen_escalations_total{{model="local/router"}} {float(told["escalations"])}',
        'fsgen_time_to_first_token_seconds_count{api="chat_completions",model="local/router"} 1.0',
        "fsgen_requests_running 0.0",
        "fsgen_requests_places 8.0",
    ):
        assert line in text, line


async def test_the_request_log_has_prompts_only_where_it_was_told_to(
    router: Router, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="fsgen_router")
    headers = {"x-request-id": "mine-7", "x-api-key": KEY}
    async with client_of(router, keys=frozenset({digest(KEY)})) as client:
        answer = await client.post("/v1/chat/completions", json=APIS["/v1/chat/completions"], headers=headers)
    assert answer.headers["x-request-id"] == answer.headers["x-fsgen-request-id"] == "mine-7"
    assert answer.json()["id"] == "chatcmpl-mine-7"
    (served,) = [record for record in caplog.records if getattr(record, "event", "") == "served"]
    assert (served.request_id, served.outcome, served.api) == ("mine-7", "ok", "chat_completions")  # type: ignore[attr-defined]
    assert all(word not in str(vars(record)) for record in caplog.records for word in (QUESTION, KEY, "Norvale"))
    caplog.clear()
    async with client_of(router, log_prompts=True) as client:
        await client.post("/v1/chat/completions", json=APIS["/v1/chat/completions"])
    assert any(QUESTION in str(vars(record)) and "Answer: " in str(vars(record)) for record in caplog.records)


def test_spans_have_escalations_as_events() -> None:
    """In a process of its own: an application configures OpenTelemetry once."""
    program = """
import asyncio, httpx2
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from fsgen_router import Router
from fsgen_router.serve import make_app
seen = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(seen))
trace.set_tracer_provider(provider)
async def main():
    async with Router(policy="entropy>0.5", method="replace") as router:
        transport = httpx2.ASGITransport(app=make_app(router))
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            body = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0.0, "max_tokens": 90}
            parent = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
            told = (await client.post("/v1/chat/completions", json=body, headers=parent)).json()["usage"]
            await client.post("/v1/chat/completions", json=body | {"model": "none"})
    answered, refused = seen.get_finished_spans()
    assert answered.name == "chat local/router"
    assert f"{answered.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
    attributes = dict(answered.attributes)
    assert attributes["gen_ai.operation.name"] == "chat"
    assert attributes["gen_ai.request.max_tokens"] == 90
    assert attributes["gen_ai.usage.output_tokens"] == told["completion_tokens"]
    assert attributes["gen_ai.response.finish_reasons"] == ("eog",)
    events = [event for event in answered.events if event.name == "fsgen.escalation"]
    assert len(events) == told["fsgen"]["escalations"] > 0
    assert all(event.attributes["fsgen.score"] > 0.5 for event in events)
    assert refused.attributes["error.type"] == "not_found"
    assert "Norvale" not in str([span.to_json() for span in seen.get_finished_spans()])
    print("seen")
asyncio.run(main())
"""
    program = f"QUESTION = {QUESTION!r}\n{program}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "seen\n", done.stderr


# --- the vendors' own clients --------------------------------------------------------------------


def test_the_openai_client_works(url: str, router: Router) -> None:
    own = router.chat(MESSAGES, max_tokens=200).text
    with openai.OpenAI(base_url=url + "/v1", api_key=KEY, max_retries=0) as client:
        assert {model.id for model in client.models.list()} >= {"local/router", "local/fast"}
        plain = client.chat.completions.create(model="local/router", messages=MESSAGES)
        assert plain.choices[0].message.content == own
        assert plain._request_id == plain.id.removeprefix("chatcmpl-")
        with client.chat.completions.stream(model="local/router", messages=MESSAGES, logprobs=True) as stream:
            deltas = [event.delta for event in stream if event.type == "content.delta"]
            final = stream.get_final_completion()
        assert "".join(deltas) == final.choices[0].message.content == own
        assert final.usage is not None
        assert final.usage.model_extra is not None
        assert final.usage.model_extra["fsgen"]["corrections"] > 0
        extra = {"fsgen": {"policy": "never"}}
        never = client.chat.completions.create(model="local/router", messages=MESSAGES, extra_body=extra)
        assert never.choices[0].message.content == router.chat(MESSAGES, policy="never", max_tokens=200).text
        response = client.responses.create(model="local/router", input=QUESTION)
        assert (response.output_text, response.status) == (own, "completed")
        with client.responses.stream(model="local/router", input=MESSAGES) as events:
            text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
            assert text == events.get_final_response().output_text == own
        completion = client.completions.create(model="local/fast", prompt=QUESTION, max_tokens=5, logprobs=1)
        assert completion.choices[0].logprobs is not None
        assert completion.choices[0].logprobs.tokens is not None
        assert "".join(completion.choices[0].logprobs.tokens) == completion.choices[0].text
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            client.chat.completions.create(model="gpt", messages=MESSAGES)
        with pytest.raises(openai.NotFoundError, match="no embeddings"):
            client.embeddings.create(model="local/fast", input="a")
        with pytest.raises(openai.BadRequestError, match="previous_response_id"):
            client.responses.create(model="local/router", input="a", previous_response_id="resp_1")
    with (
        openai.OpenAI(base_url=url + "/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()


async def test_the_anthropic_client_works(url: str, router: Router) -> None:
    own = router.chat([{"role": "system", "content": "s"}, *MESSAGES], max_tokens=200)
    asked: Any = {"model": "local/router", "messages": MESSAGES, "system": "s"}
    async with anthropic.AsyncAnthropic(base_url=url, api_key=KEY, max_retries=0) as client:
        message = await client.messages.create(max_tokens=200, **asked)
        assert message.content[0].text == own.text  # type: ignore[union-attr]
        assert (message.stop_reason, message.usage.output_tokens) == ("end_turn", own.usage.tokens)
        async with client.messages.stream(max_tokens=200, **asked) as stream:
            text = "".join([part async for part in stream.text_stream])
            final = await stream.get_final_message()
        assert text == own.text
        counted = await client.messages.count_tokens(**asked)
        assert final.usage.input_tokens == counted.input_tokens == own.usage.prompt_tokens
        ended = await client.messages.create(max_tokens=200, stop_sequences=["zz", own.text[5:9]], **asked)
        assert (ended.stop_reason, ended.stop_sequence) == ("stop_sequence", own.text[5:9])
        with pytest.raises(anthropic.NotFoundError, match="does not exist"):
            await client.messages.create(max_tokens=1, model="none", messages=MESSAGES)
        thinking: Any = {"type": "enabled", "budget_tokens": 1024}
        with pytest.raises(anthropic.BadRequestError, match="thinking"):
            await client.messages.create(max_tokens=2000, thinking=thinking, **asked)


PARAMETERS: Any = {
    "type": "object",
    "properties": {"of": {"type": "string", "enum": ["lamp", "rope"]}},
    "required": ["of"],
    "additionalProperties": False,
}
CALL = {"of": "lamp"}, {"of": "rope"}


def test_the_openai_client_calls_tools(url: str) -> None:
    tools: Any = [{"type": "function", "function": {"name": "price", "parameters": PARAMETERS}}]
    asked: Any = {"model": "local/router", "tools": tools, "tool_choice": "required", "parallel_tool_calls": False}
    with openai.OpenAI(base_url=url + "/v1", api_key=KEY, max_retries=0) as client:
        choice = client.chat.completions.create(messages=MESSAGES, **asked).choices[0]
        (call,) = choice.message.tool_calls or ()
        assert (choice.finish_reason, call.function.name) == ("tool_calls", "price")  # type: ignore[union-attr]
        assert json.loads(call.function.arguments) in CALL  # type: ignore[union-attr]
        with client.chat.completions.stream(messages=MESSAGES, **asked) as stream:
            names = [event.name for event in stream if event.type == "tool_calls.function.arguments.delta"]
            (streamed,) = stream.get_final_completion().choices[0].message.tool_calls or ()
        assert len(names) > 1
        assert json.loads(streamed.function.arguments) in CALL
        # Where a call may be made twice in one answer it comes when that stands, and the stream does not break.
        many = {**asked, "parallel_tool_calls": True, "max_tokens": 150}
        chunks = list(client.chat.completions.create(messages=MESSAGES, stream=True, **many))
        assert any(chunk.choices[0].delta.tool_calls for chunk in chunks)
        turns: Any = [*MESSAGES, choice.message.model_dump(exclude_none=True)]
        turns.append({"role": "tool", "tool_call_id": call.id, "content": "9"})
        told = client.chat.completions.create(messages=turns, **{**asked, "tool_choice": "none"}, max_tokens=5)
        assert told.choices[0].message.content
        own: Any = [{"type": "function", "name": "price", "parameters": PARAMETERS}]
        response = client.responses.create(**{**asked, "tools": own}, input=QUESTION)
        item: Any = response.output[0]
        assert (item.type, json.loads(item.arguments) in CALL) == ("function_call", True)
        with client.responses.stream(**{**asked, "tools": own}, input=QUESTION) as events_:
            kinds = {event.type for event in events_}
            last: Any = events_.get_final_response().output[0]
        assert "response.function_call_arguments.done" in kinds
        assert json.loads(last.arguments) in CALL
        returned: Any = {"type": "function_call_output", "call_id": item.call_id, "output": "9"}
        again: Any = [{"role": "user", "content": QUESTION}, item.model_dump(exclude_none=True), returned]
        assert client.responses.create(model="local/router", input=again, max_output_tokens=5).output_text
        for broken in ([*tools, *tools], [{"type": "function", "function": {"name": "a b"}}]):
            with pytest.raises(openai.BadRequestError, match="name"):
                client.chat.completions.create(messages=MESSAGES, model="local/router", tools=broken)


def test_the_anthropic_client_calls_tools(url: str) -> None:
    tools: Any = [{"name": "price", "input_schema": PARAMETERS}]
    asked: Any = {"model": "local/router", "tools": tools, "max_tokens": 200}
    choice: Any = {"type": "tool", "name": "price", "disable_parallel_tool_use": True}
    with anthropic.Anthropic(base_url=url, api_key=KEY, max_retries=0) as client:
        message = client.messages.create(messages=MESSAGES, tool_choice=choice, **asked)
        (block,) = message.content
        assert (message.stop_reason, block.type, block.input in CALL) == ("tool_use", "tool_use", True)  # type: ignore[union-attr]
        with client.messages.stream(messages=MESSAGES, tool_choice=choice, **asked) as stream:
            (streamed,) = stream.get_final_message().content
        assert streamed.input in CALL  # type: ignore[union-attr]
        result: Any = {"type": "tool_result", "tool_use_id": block.id, "content": "9"}  # type: ignore[union-attr]
        turns: Any = [*MESSAGES, {"role": "assistant", "content": [block]}, {"role": "user", "content": [result]}]
        assert client.messages.create(messages=turns, model="local/router", max_tokens=5).content
        counted = client.messages.count_tokens(messages=MESSAGES, model="local/router", tools=tools)
        assert counted.input_tokens == message.usage.input_tokens


class Count(pydantic.BaseModel):
    unit: Literal["coins", "bells"]


def test_answers_have_the_form_that_is_asked_for(url: str) -> None:
    with openai.OpenAI(base_url=url + "/v1", api_key=KEY, max_retries=0) as client:
        parsed = client.chat.completions.parse(model="local/router", messages=MESSAGES, response_format=Count)
        assert isinstance(parsed.choices[0].message.parsed, Count)
        assert isinstance(
            client.responses.parse(model="local/router", input=QUESTION, text_format=Count).output_parsed, Count
        )
        for extra in ({"regex": "[a-c]{3}"}, {"grammar": "start: /[a-c]{3}/"}):
            answer = client.chat.completions.create(model="local/router", messages=MESSAGES, extra_body=extra)
            assert re.fullmatch("[a-c]{3}", answer.choices[0].message.content or "")
        form: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "nope"}}}
        with pytest.raises(openai.BadRequestError, match="response_format"):
            client.chat.completions.create(model="local/router", messages=MESSAGES, response_format=form)


# --- a process -----------------------------------------------------------------------------------


def test_the_command_serves_and_finishes_answers_at_its_end(tmp_path: Path, router: Router) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"sha256:{digest(KEY)}\n")
    program = "from fsgen_router.cli import main; main()"
    options = ["--port", "0", "--keys", str(keys), "--model", "x=every:9"]
    command = [sys.executable, "-c", program, "serve", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    log = tmp_path / "log"
    with log.open("w") as file:
        server = subprocess.Popen(command, stderr=file, stdout=file, env=environment)
    try:
        until(lambda: "Listening on" in log.read_text() or server.poll() is not None)
        found = re.search(r"Listening on (http://[\d.:]+)", log.read_text())
        assert found, log.read_text()
        asked = httpx2.stream(
            "POST", found[1] + "/v1/chat/completions", json=endless(router), headers=AUTHORIZED, timeout=60
        )
        with asked as stream:
            parts = stream.iter_text()
            first = next(parts)
            server.send_signal(signal.SIGTERM)
            sent = events(first + "".join(parts))
        # Nobody new is let in, and the answer under way came to its own end.
        assert sent[-1]["choices"][0]["finish_reason"] == "length"
        assert sent[-1]["usage"]["total_tokens"] >= 1024
        assert server.wait(30) == 0
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(found[1] + "/health")
    finally:
        server.kill()
        server.wait()
    said = log.read_text()
    assert said.endswith("Stopped.\n")
    assert "event='served'" in said
    assert KEY not in said
    assert "Norvale" not in said
