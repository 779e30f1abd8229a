"""The openai backend: against llama-cpp-python's real server, and against what no server should send."""

from __future__ import annotations

import gc
import json
import logging
import re
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import jinja2
import pytest
import tiny_gguf
from endpoints import (
    STREAM_HEAD,
    Asked,
    RealServer,
    Script,
    ScriptedServer,
    chat_chunk,
    delta_chunk,
    event,
    piece,
    real_server,
    reply,
    says,
    scripted_server,
    streamed,
    text_chunk,
)
from hypothesis import example, given
from hypothesis import strategies as st

from fsgen_router import BackendError, ConfigurationError, InvalidRequest, WrappedPromptWarning, reference
from fsgen_router.adapters.openai import DIALECTS, OpenAIModel, parse_endpoint
from fsgen_router.adapters.openai.requests import estimate_tokens
from fsgen_router.adapters.streaming import Increments, SurrogateJoiner, ThinkBlock
from fsgen_router.cli import doctor
from fsgen_router.contracts.models import TokenModel, Work
from fsgen_router.contracts.text_models import (
    Continuation,
    ReasoningChunk,
    TextCapabilities,
    TextChunk,
    TextEnd,
    TextEvent,
)
from fsgen_router.resolve import make_model
from fsgen_router.rows.reading import Read, Warp

KEY = "sk-do-not-write-this-down-0123456789"
HELLO = ({"role": "user", "content": "hello"},)
SAMPLED = Warp(temperature=1.5, top_p=0.95)


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def complete(model: OpenAIModel, prompt: str = "lamp", max_tokens: int = 16, **more: Any) -> tuple[str, TextEnd]:
    return whole(model.stream(Continuation(prompt=prompt, max_tokens=max_tokens, **more)))


def chat(model: OpenAIModel, answer: str = "", max_tokens: int = 16, **more: Any) -> tuple[str, TextEnd]:
    return whole(model.stream(Continuation(messages=HELLO, answer=answer, max_tokens=max_tokens, **more)))


def whole(events: Iterator[TextChunk | TextEnd]) -> tuple[str, TextEnd]:
    *chunks, end = events
    assert isinstance(end, TextEnd)
    assert all(isinstance(chunk, TextChunk) and chunk.text for chunk in chunks)
    return "".join(chunk.text for chunk in chunks), end


# --- model strings, options, keys ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "model", "url"),
    [
        ("gpt-x@https://host/v1", "gpt-x", "https://host/v1"),
        ("org/model:free@https://host.example/api/v1/", "org/model:free", "https://host.example/api/v1"),
        ("a@b@http://127.0.0.1:8000/v1", "a@b", "http://127.0.0.1:8000/v1"),
        ("a@http://one/v1@https://two/v1", "a@http://one/v1", "https://two/v1"),
        ("qwen2.5:7b@http://[::1]:11434/v1", "qwen2.5:7b", "http://[::1]:11434/v1"),
        ("gpt-x", "gpt-x", "https://api.openai.com/v1"),
        ("org@team/gpt-x", "org@team/gpt-x", "https://api.openai.com/v1"),
    ],
)
def test_model_strings(where: str, model: str, url: str) -> None:
    endpoint = parse_endpoint(where)
    assert (endpoint.model, endpoint.url) == (model, url)
    made = make_model(f"openai:{where}?allow_http=true&api_key_env=" if "http:" in where else f"openai:{where}")
    assert isinstance(made, OpenAIModel)
    assert made.name == endpoint.name == f"{model}@{url.split('/')[2]}"
    made.shutdown()


def test_the_base_url_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "https://elsewhere.example/v1/")
    assert parse_endpoint("gpt-x").url == "https://elsewhere.example/v1"
    assert parse_endpoint("gpt-x@https://host/v1").url == "https://host/v1"


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("m@https://", "no base URL.*openai:model-name@https"),
        ("m@localhost:8000/v1", "ends in an address without http"),
        ("m@htps://my-host/v1", "ends in an address without http"),
        ("m@my-host/v1", "ends in an address without http"),
        ("m@10.0.0.7", "ends in an address without http"),
        ("m@https://host:port/v1", "is none"),
        ("m@https://host:99999/v1", "is none"),
        ("m@https://[host/v1", "is none"),
        ("m@https://user:secret@host/v1", "holds a user name.*environment"),
        ("m@https://host/v1#x", "no base URL"),
        ("m@https://ho\nst/v1", "characters that no URL has"),
        ("m\n@https://host/v1", "is no name"),
        ("\ud800@https://host/v1", "is no name"),
        ("m@https://host/v1?api_key_env=\ud800", "api_key_env="),
        ("m@https://host/v1?api_key_env=A=B", "api_key_env='A=B'"),
        (f"m@https://{'x' * 70_000}/v1", "is none: URL too long"),
        ("@https://host/v1", "is no name"),
        (" @https://host/v1", "is no name"),
        ("m@https://host/v1/chat/completions", "leave out /chat/completions"),
        ("m@https://host/v1?n_ctx=2", "n_ctx='2'"),
        ("m@https://host/v1?deadline=5", "did you mean 'deadline_seconds'"),
        ("m@https://host/v1?api_key=sk-1", "did you mean 'api_key_env'"),
        ("m@https://host/v1?api=responses", "api='responses'"),
        ("m@https://host/v1?deadline_seconds=0", "deadline_seconds='0'"),
        ("m@https://host/v1?max_retries=", "max_retries=''"),
        ("", "names no file or model"),
    ],
)
def test_wrong_model_strings(where: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as raised:
        make_model(f"openai:{where}")
    assert "secret" not in str(raised.value)


def test_a_key_is_not_sent_in_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match=r"over http.*OPENAI_API_KEY.*https.*api_key_env=.*allow_http"):
        OpenAIModel("m@http://192.0.2.1:8000/v1")
    OpenAIModel("m@http://192.0.2.1:8000/v1", allow_http=True).shutdown()
    OpenAIModel("m@http://192.0.2.1:8000/v1", api_key_env="").shutdown()
    OpenAIModel("m@http://localhost:8000/v1").shutdown()
    OpenAIModel("m@http://127.0.0.9:8000/v1").shutdown()
    monkeypatch.delenv("OPENAI_API_KEY")
    OpenAIModel("m@http://192.0.2.1:8000/v1").shutdown()


def test_keys_that_are_missing_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="VENDOR_KEY is not set"):
        OpenAIModel("m@https://host/v1", api_key_env="VENDOR_KEY")
    with pytest.raises(ConfigurationError, match="api_key_env is empty"):
        OpenAIModel("gpt-x", api_key_env="")
    for broken in (f"{KEY}\n{KEY}", f"{KEY}é", f"{KEY}\x00"[:-1] + "\x7f"):
        monkeypatch.setenv("VENDOR_KEY", broken)
        with pytest.raises(ConfigurationError, match="characters that no key has") as raised:
            OpenAIModel("m@https://host/v1", api_key_env="VENDOR_KEY")
        assert KEY not in str(raised.value)
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ConfigurationError, match="OPENAI_API_KEY is not set"):
        OpenAIModel("gpt-x")


def test_the_key_goes_to_the_endpoint_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("VENDOR_KEY", f"  {KEY}\n")  # as it comes out of a file

    def script(asked: Asked) -> None:
        said = asked.headers["authorization"]
        asked.send(
            reply(500 if len(server.asked) < 2 else 401, {"error": {"message": f"{said!r} is wrong {'x' * 999}"}})
        )

    with caplog.at_level(logging.DEBUG), scripted_server(script) as server:
        model = OpenAIModel(f"m@{server.url}", api_key_env="VENDOR_KEY", max_retries=1)
        with pytest.raises(BackendError, match=r"401.*is the key in VENDOR_KEY right") as raised:
            complete(model, "a prompt that nobody logs")
    assert {asked.headers["authorization"] for asked in server.asked} == {f"Bearer {KEY}"}
    assert "***" in str(raised.value)
    assert "endpoint_retry" in caplog.text
    shown = [repr(model), str(model), repr(vars(model)), repr(raised.value), str(raised.value), repr(model.options)]
    for text in [*shown, caplog.text]:
        assert KEY not in text
    assert "nobody logs" not in caplog.text
    assert len(str(raised.value)) < 600


# --- the real server -----------------------------------------------------------------------------

# Leaves the assistant's last message open: a server that continues a partial answer.
OPEN_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}"
    "{% if not (loop.last and m['role'] == 'assistant') %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if messages[-1]['role'] != 'assistant' %}{{ '<|assistant|>' }}{% endif %}"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """The reference pair's slow model, and a random one that writes letters without end."""
    folder = tmp_path_factory.mktemp("server")
    endless = tiny_gguf.write(
        folder / "endless.gguf", ("lamp", "rope", "field"), template=OPEN_TEMPLATE, n_ctx=1024, seed=19
    )
    models = {"slow": reference.path("slow"), "endless": endless}
    with real_server(folder, models, interrupt_requests=False, api_key=KEY) as served:
        yield served


@pytest.fixture
def slow(server: RealServer) -> Iterator[OpenAIModel]:
    # This server penalises repetition unless told not to.
    model = make_model(f'openai:slow@{server.url}?max_retries=0&extra_body={{"repeat_penalty":1.0}}')
    assert isinstance(model, OpenAIModel)
    yield model
    model.shutdown()


@pytest.fixture
def endless(server: RealServer) -> Iterator[OpenAIModel]:
    model = OpenAIModel(f"endless@{server.url}", max_retries=0)
    yield model
    model.shutdown()


def greedy(model: TokenModel, ids: list[int], max_tokens: int) -> str:
    """The local model's own greedy text."""
    sequence, kept, data = model.open([]).sequence, 0, b""
    try:
        for _ in range(max_tokens):
            token = model.forward([Work(sequence, kept, ids, [(len(ids) - 1, Read())])])[0][0].token
            if token in model.tokenizer.eog_ids:
                break
            data += model.tokenizer.piece(token)
            kept, ids = kept + len(ids), [token]
    finally:
        model.close(sequence)
    return data.decode()


PROMPTS = ("How many lamps does", "The baker of Tarn", "hello", "Question: 3 + 4 = ", "Größe, 你好")


def test_completions_are_the_models_own_text(slow: OpenAIModel, slow_model: TokenModel) -> None:
    for prompt in PROMPTS:
        expected = greedy(slow_model, slow_model.tokenizer.encode(prompt, add_bos=True), 24)
        text, end = complete(slow, prompt, 24)
        assert text == expected
        assert end.finish_reason in ("stop", "length")
        # The rest of it, from a partial answer.
        half = expected[: len(expected) // 2].rpartition(" ")[0]
        assert half + complete(slow, prompt, 24, answer=half)[0][: len(expected) - len(half)] == expected


def test_chat_is_the_models_own_text(slow: OpenAIModel, slow_model: TokenModel) -> None:
    for prompt in PROMPTS:
        messages = ({"role": "user", "content": prompt},)
        expected = greedy(slow_model, slow_model.tokenizer.encode_chat(messages), 48)
        events = list(slow.stream(Continuation(messages=messages, max_tokens=48)))
        assert whole(iter(events))[0] == expected
        assert len(events) > len(expected.split()) // 2, "it came in one piece"


def test_how_an_answer_ends(slow: OpenAIModel) -> None:
    text, end = chat(slow, max_tokens=80)
    assert end.finish_reason == "stop"
    short, end = chat(slow, max_tokens=3)
    assert end.finish_reason == "length"
    assert text.startswith(short)


def test_a_seed_decides_what_is_sampled(slow: OpenAIModel) -> None:
    # This server's own min_p is 0.05: only what is asked for overrides it.
    warp = Warp(temperature=3.0, min_p=1e-6)

    def sampled(seed: int) -> str:
        return complete(slow, "Tell", 12, warp=warp, seed=seed)[0]

    texts = [sampled(seed) for seed in range(5)]
    assert texts == [sampled(seed) for seed in range(5)]
    assert len(set(texts)) > 1


def test_threads_side_by_side_keep_their_texts(slow: OpenAIModel) -> None:
    requests = [Continuation(prompt=prompt, max_tokens=12) for prompt in PROMPTS]
    alone = [whole(slow.stream(request)) for request in requests]
    with ThreadPoolExecutor(5) as pool:
        assert list(pool.map(lambda request: whole(slow.stream(request)), requests * 3)) == alone * 3


def wait_for(condition: Callable[[], bool]) -> None:
    """A test that waits in vain ends by pytest's timeout."""
    while not condition():
        time.sleep(0.01)


@pytest.mark.parametrize("how", ["closed", "dropped", "closed by another thread"])
def test_a_call_that_is_left_ends_on_the_server(server: RealServer, endless: OpenAIModel, how: str) -> None:
    before = server.log.read_text().count("Disconnected from client")
    call = endless.stream(Continuation(prompt="lamp", max_tokens=450))
    assert next(call)
    if how == "closed":
        call.close()
        assert list(call) == []
    elif how == "dropped":
        del call
        gc.collect()
    else:
        with ThreadPoolExecutor(1) as pool:
            read = pool.submit(list, call)
            call.close()
            assert not any(isinstance(item, TextEnd) for item in read.result())
    wait_for(lambda: server.log.read_text().count("Disconnected from client") > before)
    assert complete(endless, "lamp", 2)[1].finish_reason == "length"


def test_a_server_that_closes_the_answer_so_far_is_told_to_continue(slow: OpenAIModel) -> None:
    """The reference template ends every message; the server's own count of tokens shows it."""
    assert slow.capabilities.prefill is None
    full, _ = chat(slow, max_tokens=80)
    assert slow.capabilities.prefill is None
    text, _ = chat(slow, "That is", max_tokens=80)
    assert slow.capabilities.prefill is False
    # The reference model does not understand the instruction and begins anew: what is repeated is taken off.
    assert text == full.removeprefix("That is")


def test_a_server_that_leaves_it_open_continues(endless: OpenAIModel, caplog: pytest.LogCaptureFixture) -> None:
    rendered = "<|user|>hello<|end|><|assistant|>"  # control tokens: the server parses them in a raw prompt
    with caplog.at_level(logging.INFO, logger="fsgen_router"):
        for answer in ("lamp", "rope field"):
            assert chat(endless, answer)[0] == complete(endless, rendered, answer=answer)[0]
    assert endless.capabilities.prefill is True
    assert caplog.text.count("prefill_probed") == 1


def test_prefill_as_it_is_forced(server: RealServer) -> None:
    always = OpenAIModel(f"endless@{server.url}", prefill="always")
    never = OpenAIModel(f"endless@{server.url}", prefill="never")
    assert (always.capabilities.prefill, never.capabilities.prefill) == (True, False)
    assert chat(always, "lamp")[0] != chat(never, "lamp")[0]
    always.shutdown()
    never.shutdown()


def test_what_the_real_server_refuses(server: RealServer, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = OpenAIModel(f"slow@{server.url.replace('/v1', '/v9')}")
    with pytest.raises(BackendError, match=r"/completions with status 404.*takes no raw prompts"):
        complete(elsewhere)
    with pytest.raises(BackendError, match=r"/chat/completions with status 404.*check the model's name"):
        chat(elsewhere)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-another")
    with pytest.raises(BackendError, match=r"status 401: Invalid API key.*is the key in OPENAI_API_KEY right"):
        complete(OpenAIModel(f"slow@{server.url}"))
    with pytest.raises(BackendError, match=r"401.*no key was sent: set OPENAI_API_KEY"):
        complete(OpenAIModel(f"slow@{server.url}", api_key_env=""))


def test_a_prompt_beyond_the_servers_context(server: RealServer) -> None:
    """This server breaks the stream off, without a word."""
    model = OpenAIModel(f"slow@{server.url}", max_retries=1)
    with pytest.raises(BackendError, match=r"broke"):
        complete(model, "lamp " * 600)
    assert complete(model, "lamp", 2)


def test_doctor_asks_the_endpoint(server: RealServer) -> None:
    def endpoint(where: str) -> doctor.Check:
        return list(doctor._pair("reference:fast", f"openai:{where}", None))[-1]

    check = endpoint(f"endless@{server.url}")
    assert check.status == "ok"
    assert "answers, and continues a partial answer" in check.detail
    assert "has to be told to" in endpoint(f"slow@{server.url}").detail
    check = endpoint(f"slow@{server.url}?api_key_env=")
    assert check.status == "fail"
    assert "no key was sent" in (check.hint or "")


def test_a_server_that_drops_a_request_for_another(tmp_path: Path) -> None:
    """As llama-cpp-python's does by default: the stream ends as if it were whole, without a reason."""
    model_file = tiny_gguf.write(tmp_path / "endless.gguf", ("lamp", "rope", "field"), n_ctx=1024, seed=19)
    with real_server(tmp_path, {"endless": model_file}) as served:
        model = OpenAIModel(f"endless@{served.url}", max_retries=0)
        first = model.stream(Continuation(prompt="lamp", max_tokens=450))
        assert next(first)
        assert complete(model, "rope", 3)[1].finish_reason == "length"
        with pytest.raises(BackendError, match=r"broke off.*busy with another request"):
            list(first)
        model.shutdown()


def test_after_shutdown(server: RealServer) -> None:
    model = OpenAIModel(f"slow@{server.url}")
    complete(model, max_tokens=2)
    waiting = model.stream(Continuation(prompt="lamp", max_tokens=100))
    model.shutdown()
    model.shutdown()
    with pytest.raises(BackendError, match="was shut down"):
        list(waiting)
    with pytest.raises(BackendError, match="was shut down"):
        complete(model)
    raced = OpenAIModel(f"slow@{server.url}")
    raced._connection.close()  # as if shutdown() had come between two lines of stream()
    with pytest.raises(BackendError, match=r"request to .* failed"):
        complete(raced)


@pytest.mark.parametrize("status", [200, 400])
def test_a_connection_that_is_made_during_shutdown_is_closed(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stands when the others have been closed, and its reply is whole: what would be kept for the next call."""
    connecting, closed = threading.Event(), threading.Event()
    plain, left_open = socket.create_connection, []

    def slowly(*args: Any, **kwargs: Any) -> socket.socket:
        connecting.set()
        assert closed.wait(30)
        return plain(*args, **kwargs)

    monkeypatch.setattr(socket, "create_connection", slowly)
    monkeypatch.setattr(sys, "unraisablehook", lambda found: left_open.append(found.exc_value))
    body = {"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}]}
    with scripted_server(serving(reply(status, body))) as server:
        model = OpenAIModel(f"m@{server.url}")
        call = model.stream(Continuation(prompt="lamp", max_tokens=5))
        assert connecting.wait(30)
        model.shutdown()
        closed.set()
        for thread in [thread for thread in threading.enumerate() if thread.name == "fsgen-call"]:
            thread.join(30)
        assert len(server.asked) == 1
        del call, model  # which hold the connection, and would until the end of the session
        gc.collect()
    assert not left_open


# --- what is sent --------------------------------------------------------------------------------


def serving(*answers: bytes) -> Script:
    """The answers in their order, the last one from then on."""
    left = list(answers)
    lock = threading.Lock()

    def script(asked: Asked) -> None:
        with lock:
            answer = left.pop(0) if len(left) > 1 else left[0]
        asked.send(answer)

    return script


def test_what_a_request_says() -> None:
    with scripted_server(serving(says("x"))) as server:
        model = OpenAIModel(f"org/m:free@{server.url}", n_ctx=100)
        complete(model, "p" * 40, 16, answer="a" * 8)
        chat(model, warp=Warp(temperature=0.7, top_k=5, min_p=0.1), seed=2**40 + 3)
        chat(model, warp=Warp(temperature=0.7), max_tokens=1000)
        chat(OpenAIModel(f"m@{server.url}", sampling="server"))
        chat(OpenAIModel(f"m@{server.url}", sampling="server"), warp=SAMPLED, seed=1)
    probe, raw, sampled, plain, own_greedy, own = server.bodies
    streaming = {"stream": True, "stream_options": {"include_usage": True}}
    model_field = {"model": "org/m:free"}
    assert [asked.path for asked in server.asked] == [*["/v1/completions"] * 2, *["/v1/chat/completions"] * 4]
    assert probe == model_field | {"prompt": "a", "max_tokens": 1, "temperature": 0.0}
    assert raw == streaming | model_field | {
        "prompt": "p" * 40 + "a" * 8, "max_tokens": 16, "temperature": 0.0,
    }  # fmt: skip
    assert sampled == streaming | model_field | {
        "messages": list(HELLO), "max_tokens": 16, "temperature": 0.7, "top_p": 1.0, "top_k": 5, "min_p": 0.1,
        "seed": 3,
    }  # fmt: skip
    assert plain == streaming | model_field | {
        "messages": list(HELLO), "max_tokens": 98, "temperature": 0.7, "top_p": 1.0,
    }  # fmt: skip
    assert own_greedy == streaming | {"model": "m", "messages": list(HELLO), "max_tokens": 16}
    assert own == own_greedy | {"seed": 1}


def test_requests_that_cannot_be_served() -> None:
    model = OpenAIModel("m@https://host.invalid/v1")
    for wrong in (
        Continuation(max_tokens=1),
        Continuation(prompt="x", messages=HELLO, max_tokens=1),
        Continuation(prompt="x", max_tokens=0),
        Continuation(prompt="\ud800", max_tokens=1),
        Continuation(messages=({"role": "assistant", "content": "x"},), max_tokens=1),
        Continuation(messages=({"role": "tool", "content": "x"},), max_tokens=1),
    ):
        with pytest.raises(InvalidRequest):
            model.stream(wrong)
    with pytest.raises(ConfigurationError, match=r"api=chat, which takes no raw prompts.*use chat\(\)"):
        OpenAIModel("m@https://host.invalid/v1", api="chat").stream(Continuation(prompt="x", max_tokens=1))
    with pytest.raises(ConfigurationError, match=r"api=completions, which takes no messages.*use complete\(\)"):
        OpenAIModel("m@https://host.invalid/v1", api="completions").stream(Continuation(messages=HELLO, max_tokens=1))


def test_tokens_are_estimated_from_bytes() -> None:
    assert [estimate_tokens(text) for text in ("", "a", "abcd", "abcde", "你好")] == [0, 1, 1, 2, 2]


def refuses(parameter: str, message: str, status: int = 400, **fields: object) -> Script:
    """An endpoint that takes requests without ``parameter`` only."""

    def script(asked: Asked) -> None:
        wrong = parameter in asked.body
        asked.send(reply(status, {"error": {"message": message, **fields}}) if wrong else says("fine"))

    return script


@pytest.mark.parametrize(
    ("script", "gone", "instead"),
    [
        (
            refuses("max_tokens", "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."),
            "max_tokens",
            {"max_completion_tokens": 16},
        ),
        (refuses("stream_options", "Unrecognized request argument supplied: stream_options"), "stream_options", {}),
        (refuses("stream_options", "extra fields", 422, param="stream_options"), "stream_options", {}),
        (refuses("seed", "body.seed: extra inputs are not permitted", 422), "seed", {}),
    ],
)
def test_a_parameters_refusal_is_remembered(
    script: Script, gone: str, instead: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    with scripted_server(script) as server, caplog.at_level(logging.INFO, logger="fsgen_router"):
        model = OpenAIModel(f"m@{server.url}", max_retries=0)
        for _ in range(2):
            assert complete(model, warp=SAMPLED, seed=1)[0] == "fine"
    assert [gone in body for body in server.bodies] == [True, False, False]
    assert server.bodies[2].items() >= instead.items()
    assert caplog.text.count("endpoint_parameter") == 1


def test_a_refusal_of_sampling_says_the_way_out() -> None:
    message = "Unsupported value: 'temperature' does not support 0 with this model."
    with scripted_server(refuses("temperature", message)) as server:
        with pytest.raises(BackendError, match=r"400.*temperature.*sampling=server"):
            complete(OpenAIModel(f"m@{server.url}"))
        assert complete(OpenAIModel(f"m@{server.url}", sampling="server"))[0] == "fine"
    assert len(server.asked) == 2


# --- what comes back -----------------------------------------------------------------------------

USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 7}}
WORDS = [chat_chunk("Gr"), chat_chunk("ün 😀"), chat_chunk(None, "stop")]
HALVES = [b'{"choices":[{"delta":{"content":"\\ud83d"}}]}', b'{"choices":[{"delta":{"content":"\\ude00!"}}]}']
BOM_AND_CR = STREAM_HEAD + piece(b"".join(map(event, WORDS)).replace(b"\n", b"\r\n")) + piece(b"")


@pytest.mark.parametrize(
    ("answer", "text", "end"),
    [
        (streamed(*WORDS), "Grün 😀", TextEnd("stop")),
        (streamed(*WORDS, done=False), "Grün 😀", TextEnd("stop")),
        (BOM_AND_CR, "Grün 😀", TextEnd("stop")),
        (
            streamed({"choices": [], "prompt_filter_results": []}, *WORDS, {"choices": [], "usage": USAGE}),
            "Grün 😀",
            TextEnd("stop", 9, 7, 4),
        ),
        (
            streamed(*WORDS[:2], chat_chunk("", "length") | {"usage": {"prompt_cache_hit_tokens": 3}}),
            "Grün 😀",
            TextEnd("length", None, 3, None),
        ),
        (streamed(*WORDS, {"choices": None, "usage": {"prompt_tokens": "9", "completion_tokens": -1}}), "Grün 😀",
         TextEnd("stop")),
        (STREAM_HEAD + piece(b": keep-alive\n\n: OPENROUTER PROCESSING\n\n") + streamed(*WORDS)[len(STREAM_HEAD):],
         "Grün 😀", TextEnd("stop")),
        (streamed(chat_chunk(), {"choices": [{"delta": {}}]}, {"id": 1, "choices": [{}]}, *WORDS), "Grün 😀",
         TextEnd("stop")),
        (streamed(*HALVES, chat_chunk(None, "eos")), "😀!", TextEnd("stop")),
        (streamed(HALVES[0], chat_chunk("x"), chat_chunk(None, "stop")), "\ufffdx", TextEnd("stop")),
        (streamed(HALVES[0], chat_chunk(None, "stop")), "\ufffd", TextEnd("stop")),
        (streamed(b'{"choices":[{"text":"a\xff"}]}', text_chunk("", "stop")), "a\ufffd", TextEnd("stop")),
        (reply(200, {"choices": [{"message": {"content": "all"}, "finish_reason": "stop"}], "usage": USAGE}), "all",
         TextEnd("stop", 9, 7, 4)),
        (reply(200, {"choices": [{"text": "all", "finish_reason": "length"}]}), "all", TextEnd("length")),
        (streamed(chat_chunk(None, "stop")), "", TextEnd("stop")),
        # It breaks off behind its end.
        (STREAM_HEAD + piece(b"".join(map(event, WORDS))) + b"nonsense", "Grün 😀", TextEnd("stop")),
    ],
)  # fmt: skip
def test_dialects_of_real_servers(answer: bytes, text: str, end: TextEnd) -> None:
    with scripted_server(serving(answer)) as server:
        assert chat(OpenAIModel(f"m@{server.url}", max_retries=0, read_timeout_seconds=2)) == (text, end)


def thought_and_said(events: Iterator[TextEvent]) -> tuple[str, str, TextEnd]:
    """Reasoning, text and the end of a stream."""
    *chunks, end = events
    assert isinstance(end, TextEnd)
    thought = "".join(chunk.text for chunk in chunks if isinstance(chunk, ReasoningChunk))
    return thought, "".join(chunk.text for chunk in chunks if isinstance(chunk, TextChunk)), end


def billed(prompt: int, written: int, **more: object) -> dict[str, Any]:
    return {"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": written, **more}}


STOP = chat_chunk(None, "stop")
PARTS = [
    delta_chunk(content=[{"type": "thinking", "thinking": [{"type": "text", "text": "Let me "}]}]),
    delta_chunk(content=[{"type": "thinking", "thinking": "see."}]),
    delta_chunk(content=[{"type": "text", "text": "It "}, {"type": "text", "text": "is 4."}]),
    delta_chunk(content="", finish_reason="stop"),
]


@pytest.mark.parametrize(
    ("items", "end"),
    [
        (
            [delta_chunk(reasoning_content="Let me "), delta_chunk(reasoning_content="see."), chat_chunk("It is 4."),
             STOP, billed(9, 8, completion_tokens_details={"reasoning_tokens": 5})],
            TextEnd("stop", 9, None, 8, 5),
        ),
        ([delta_chunk(content="", reasoning="Let me "), delta_chunk(reasoning="see."), chat_chunk("It is 4.", "stop")],
         TextEnd("stop")),
        # In two fields at once, for clients that know the one or the other.
        ([delta_chunk(reasoning_content="Let me see.", reasoning="Let me see.", reasoning_details=[{"text": "Let"}]),
          chat_chunk("It is 4."), STOP], TextEnd("stop")),
        ([delta_chunk(thinking="Let me see."), chat_chunk("\n\nIt is 4."), STOP], TextEnd("stop")),
        ([delta_chunk(reasoning={"effort": "low"}, reasoning_text="Let me see."), chat_chunk("It is 4."), STOP],
         TextEnd("stop")),
        ([delta_chunk(reasoning_content="Let me see.", content="It is 4."), STOP], TextEnd("stop")),
        (PARTS, TextEnd("stop")),
        # In the text, between tags.
        ([chat_chunk("<think>\nLet me see."), chat_chunk("</think>\n\nIt is 4."), STOP], TextEnd("stop")),
        ([chat_chunk("\n<thi"), chat_chunk("nk>Let me see.</"), chat_chunk("think>"), chat_chunk("\n\nIt is 4."), STOP],
         TextEnd("stop")),
        ([chat_chunk("[THINK]Let me see.[/THINK]It is 4.", "stop")], TextEnd("stop")),
        # Said of it in usage: what is written without it, by a total, or beside all details.
        ([delta_chunk(reasoning_content="Let me see."), chat_chunk("It is 4."), STOP,
          billed(9, 3, total_tokens=17, completion_tokens_details={"reasoning_tokens": 5})],
         TextEnd("stop", 9, None, 8, 5)),
        ([delta_chunk(reasoning_content="Let me see."), chat_chunk("It is 4."), STOP,
          billed(9, 3, completion_tokens_details={"reasoning_tokens": 5})], TextEnd("stop", 9, None, 8, 5)),
        ([delta_chunk(reasoning_content="Let me see."), chat_chunk("It is 4."), STOP, billed(9, 3, total_tokens=17)],
         TextEnd("stop", 9, None, 8, 5)),
        ([delta_chunk(reasoning_content="Let me see."), chat_chunk("It is 4."), STOP, billed(9, 8, reasoning_tokens=5)],
         TextEnd("stop", 9, None, 8, 5)),
        ([delta_chunk(reasoning_content="Let me see."), chat_chunk("It is 4."), STOP,
          billed(9, 8, total_tokens=20, prompt_tokens_details={"cached_tokens": 3})], TextEnd("stop", 9, 3, 8)),
        # What deltas thought, repeated at the end.
        ([delta_chunk(reasoning_content="Let me see."), chat_chunk("It is 4."),
          {"choices": [{"delta": {}, "message": {"reasoning_content": "Let me see.", "content": "It is 4."},
                        "finish_reason": "stop"}]}], TextEnd("stop")),
    ],
)  # fmt: skip
def test_reasoning_is_told_from_text(items: list[object], end: TextEnd) -> None:
    with scripted_server(serving(streamed(*items))) as server:
        call = OpenAIModel(f"m@{server.url}").stream(Continuation(messages=HELLO, max_tokens=16))
        thought, said, told = thought_and_said(call)
    assert (thought.strip(), said, told) == ("Let me see.", "It is 4.", end)


def test_reasoning_in_a_reply_of_one_piece() -> None:
    message = {"content": "It is 4.", "reasoning_content": "Let me see."}
    answer = reply(200, {"choices": [{"message": message, "finish_reason": "STOP"}]})
    with scripted_server(serving(answer)) as server:
        call = OpenAIModel(f"m@{server.url}").stream(Continuation(messages=HELLO, max_tokens=16))
        assert thought_and_said(call) == ("Let me see.", "It is 4.", TextEnd("stop"))


def test_reasoning_without_end_ends() -> None:
    """Not by max_tokens, which leaves it out at some endpoints, but before memory is full."""
    much = [delta_chunk(reasoning="x" * 2**19)] * 9
    request = Continuation(messages=HELLO, max_tokens=16)
    with scripted_server(serving(streamed(*much[:4], STOP), streamed(*much, STOP))) as server:
        model = OpenAIModel(f"m@{server.url}", max_retries=0)
        assert len(thought_and_said(model.stream(request))[0]) == 2**21
        with pytest.raises(BackendError, match="beyond max_tokens=16"):
            list(model.stream(request))


def test_a_refusal_is_a_failure_with_its_words() -> None:
    items = [delta_chunk(refusal="I cannot "), delta_chunk(refusal="help."), STOP]
    with (
        scripted_server(serving(streamed(*items))) as server,
        pytest.raises(BackendError, match=r"refuses to answer: I cannot help\."),
    ):
        chat(OpenAIModel(f"m@{server.url}", max_retries=0))


@pytest.mark.parametrize(
    ("said", "thought", "text"),
    [
        ("<think>\nhm\n</think>\n\nyes", "\nhm\n", "yes"),
        ("<think></think>yes", "", "yes"),
        ("<think>a < b</thin</think>yes</think>", "a < b</thin", "yes</think>"),
        ("<think>hm", "hm", ""),
        ("<think>hm</thi", "hm</thi", ""),
        ("<think>a</think>\n<think>b</think>\n\nyes", "ab", "yes"),
        ("<thinks> so", "", "<thinks> so"),
        ("<th", "", "<th"),
        (" yes <think>no</think>", "", " yes <think>no</think>"),
        ("\n  ", "", "\n  "),
        ("<seed:think>hm</seed:think>yes", "hm", "yes"),
    ],
)
def test_a_block_of_reasoning_in_pieces_of_any_size(said: str, thought: str, text: str) -> None:
    for size in (1, 2, 3, 1000):
        think = ThinkBlock()
        events: list[TextEvent] = [TextChunk(said[at : at + size]) for at in range(0, len(said), size)]
        told = [part for item in [*events, TextEnd("stop")] for part in think.push(item)]
        assert thought_and_said(iter(told)) == (thought, text, TextEnd("stop"))


# Once, whatever shape chunks have.
PIECES = ["The ", "answer is ", "that it ", "is four."]
WHOLE = "".join(PIECES)
SO_FAR = ["".join(PIECES[: n + 1]) for n in range(len(PIECES))]


@pytest.mark.parametrize(
    "items",
    [
        [
            *map(chat_chunk, PIECES),
            {"choices": [{"delta": {}, "message": {"content": WHOLE}, "finish_reason": "stop"}]},
        ],
        [*map(chat_chunk, PIECES), {"choices": [{"message": {"content": WHOLE}, "finish_reason": "stop"}]}],
        [*map(chat_chunk, PIECES), {"choices": [{"message": {"content": WHOLE}}]}, STOP],
        [*map(chat_chunk, PIECES), {"choices": [{"text": WHOLE, "finish_reason": "stop"}]}],
        [*map(chat_chunk, PIECES), chat_chunk(WHOLE, "stop")],
        [*map(text_chunk, PIECES), {"choices": [{"message": {"content": WHOLE}, "finish_reason": "stop"}]}],
        [chat_chunk(WHOLE), {"choices": [{"delta": {}, "message": {"content": WHOLE}, "finish_reason": "stop"}]}],
        [delta_chunk(role="assistant"), {"choices": [{"message": {"content": WHOLE}, "finish_reason": "stop"}]}],
        [*map(chat_chunk, SO_FAR), STOP],
        [*map(text_chunk, SO_FAR), STOP],
        [*map(chat_chunk, SO_FAR), chat_chunk(WHOLE, "stop")],
        [chat_chunk(WHOLE[:16]), chat_chunk(WHOLE), STOP],
        [*[{"choices": [{"message": {"content": text}}]} for text in SO_FAR], STOP],
        [chat_chunk(""), *map(chat_chunk, ["", *SO_FAR, WHOLE]), STOP],
    ],
)
def test_a_text_is_said_once(items: list[object]) -> None:
    with scripted_server(serving(streamed(*items))) as server:
        assert chat(OpenAIModel(f"m@{server.url}"))[0] == WHOLE


@pytest.mark.parametrize(
    "pieces",
    [
        ["ha", " ha", " ha"],
        ["ha", "ha", "ha"],
        ["ha ", "ha ha ", "ha ha ha "],
        ["ha", "ha ha", "ha ha ha"],
        ["1", "11", "111"],
        ["=", "==", "====", "========"],
        ["a line again\n", "a line again\n", "a line again\n"],
        ["I shall not talk in class again.\n", "I shall not talk in class again.\nI shall not"],
        ["No", ", no", ", no, no"],
        ["\n", "\n\n", "Well"],
        ["the", " the", "the end"],
    ],
)
def test_a_text_that_repeats_itself_is_left_whole(pieces: list[str]) -> None:
    for end in ([STOP], []):
        items = [chat_chunk(text) for text in pieces]
        if not end:
            items[-1]["choices"][0]["finish_reason"] = "stop"
        with scripted_server(serving(streamed(*items, *end))) as server:
            assert chat(OpenAIModel(f"m@{server.url}"))[0] == "".join(pieces)


@given(st.lists(st.text("abc déf,.\n", min_size=1, max_size=9), min_size=4, max_size=12))
def test_pieces_that_repeat_everything_and_those_that_do_not(pieces: list[str]) -> None:
    def added(said: list[str]) -> str:
        increments = Increments()
        return "".join(map(increments.push, said)) + increments.flush()

    plain = ["x. ", *pieces]  # nothing goes on from such a beginning by chance
    assert added(plain) == "".join(plain)
    words = [f"w{n}{piece}" for n, piece in enumerate(pieces)]
    assert added(["".join(words[: n + 1]) for n in range(len(words))]) == "".join(words)


@pytest.mark.parametrize("size", [1, 2, 7])
def test_packets_that_end_anywhere(size: int) -> None:
    """In the middle of a character, of a line, of a chunk's length."""
    answer = streamed(*(json.dumps(chunk, ensure_ascii=False) for chunk in WORDS))

    def script(asked: Asked) -> None:
        for at in range(0, len(answer), size):
            asked.send(answer[at : at + size])
            time.sleep(0.0005)

    with scripted_server(script) as server:
        assert chat(OpenAIModel(f"m@{server.url}"))[0] == "Grün 😀"


HTML = reply(200, b"<html><body>Welcome</body></html>", kind="text/html")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (HTML, r"no usable event stream.*text/html.*does the URL point at an OpenAI-compatible API"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", r"no usable event stream"),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", r"connection to .* broke"),
        (b"", r"connection to .* broke|broke off"),
        (reply(200, b"not json"), r"sent no JSON: not json"),
        (reply(200, [1, 2]), r"sent a wrong reply: \[1, 2\]"),
        (reply(200, b"[" * 200_000), r"sent no JSON"),
        (reply(200, {"error": {"message": "out of memory"}}), r"failed: out of memory"),
        (reply(200, {"error": "model is loading"}), r"failed: model is loading"),
        (reply(400, b"[" * 9000), r"status 400: \[+\.\.\."),
        (reply(400, {"error": {"message": "\ud800 \x1b[31m\n\n red"}}), r"status 400: \ufffd \ufffd\[31m red"),
        (reply(400, {"detail": [{"loc": ["body", "x"], "msg": "wrong"}]}), r'status 400: .*"msg": "wrong"'),
        (reply(400, {"object": "error", "message": "too long"}), r"status 400: too long"),
        (reply(400, b""), r"status 400: no reason given"),
        (reply(400, b"x" * 10**6), r"status 400: x+\.\.\."),
        (reply(204, b""), r"status 204"),
        (reply(200, {"choices": []}), r"broke off"),
        (reply(200, {}), r"broke off"),
        (streamed("{nope"), r"sent no JSON: \{nope"),
        (streamed({"choices": 3}), r"sent a wrong choices: "),
        (streamed({"choices": [{"delta": {"content": 3}}]}), r"sent a wrong choices\.0\.delta\.content: "),
        (streamed(text_chunk(["x"])), r"sent a wrong choices\.0\.text"),
        (streamed(chat_chunk("x", 7)), r"sent a wrong choices\.0\.finish_reason"),
        (streamed(chat_chunk("x")), r"broke off in the middle.*no finish_reason"),
        (streamed(chat_chunk("x"), done=False), r"broke off in the middle"),
        (streamed(), r"broke off"),
        (STREAM_HEAD + piece(event(chat_chunk("x"))) + b"zz", r"connection to .* broke"),
        (streamed(chat_chunk("x"), {"error": {"message": "overloaded", "code": 529}}), r"failed: overloaded"),
        (streamed(chat_chunk("x"), {"object": "error", "message": "too long"}), r"failed: too long"),
        (STREAM_HEAD + piece(b'event: error\ndata: {"error": {"message": "boom"}}\n\n'), r"failed: boom"),
        (streamed(chat_chunk("x"), chat_chunk(None, "content_filter")), r"'content_filter'.*filter stopped it"),
        (streamed(chat_chunk(None, "tool_calls")), r"'tool_calls'.*none was offered"),
        (streamed(chat_chunk(None, "e" * 5000)), r"ended its answer with 'e+"),
        (streamed(*[chat_chunk("words " * 500)] * 9, chat_chunk(None, "stop")), r"beyond max_tokens=16"),
        (reply(200, {"choices": [{"text": "x" * 99_999, "finish_reason": "stop"}]}), r"beyond max_tokens=16"),
        (STREAM_HEAD + b"".join([piece(b"data: " + b"x" * 60_000)] * 40), r"no usable event stream.*limit"),
        (STREAM_HEAD + b"".join([piece(b"x" * 60_000)] * 40), r"no usable event stream.*limit"),
    ],
)
def test_nonsense(answer: bytes, words: str) -> None:
    """A clear error whatever comes, and the model works on."""

    def script(asked: Asked) -> None:
        if len(server.asked) > 1:
            asked.send(says("fine"))
            return
        asked.send(answer)
        if not (answer.endswith(piece(b"")) or b"Content-Length" in answer):
            raise ConnectionAbortedError  # hangs up

    with scripted_server(script) as server:
        model = OpenAIModel(f"m@{server.url}", max_retries=0)
        with pytest.raises(BackendError, match=words) as raised:
            chat(model)
        assert len(str(raised.value)) < 700
        assert chat(model)[0] == "fine"


def test_no_redirect_is_followed() -> None:
    with scripted_server(serving(says("stolen"))) as other:
        there = reply(307, b"", Location=f"{other.url}/chat/completions?token=1")
        words = rf"307.*redirects to {other.url}/chat/completions: name that URL"
        with scripted_server(serving(there)) as server, pytest.raises(BackendError, match=words):
            chat(OpenAIModel(f"m@{server.url}"))
    assert not other.asked
    assert len(server.asked) == 1
    with (
        scripted_server(serving(reply(308, b"", Location="/v2/chat/completions"))) as server,
        pytest.raises(BackendError, match=rf"308.*redirects to {server.url[:-3]}/v2/chat/completions: name"),
    ):
        chat(OpenAIModel(f"m@{server.url}"))


# --- retries, deadlines --------------------------------------------------------------------------


def failing(status: int, **headers: str) -> bytes:
    return reply(status, {"error": {"message": "try later"}}, **headers)


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503, 529])
def test_what_is_tried_again(status: int, caplog: pytest.LogCaptureFixture) -> None:
    with (
        scripted_server(serving(failing(status), says("fine"))) as server,
        caplog.at_level(logging.INFO, logger="fsgen_router"),
    ):
        assert chat(OpenAIModel(f"m@{server.url}", max_retries=1))[0] == "fine"
    assert len(server.asked) == 2
    assert "endpoint_retry" in caplog.text
    assert f"status={status}" in caplog.text


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 422, 302])
def test_what_is_not_tried_again(status: int) -> None:
    with (
        scripted_server(serving(failing(status), says("fine"))) as server,
        pytest.raises(BackendError, match=rf"status {status}: try later"),
    ):
        chat(OpenAIModel(f"m@{server.url}"))
    assert len(server.asked) == 1


def test_an_empty_account_is_not_tried_again() -> None:
    empty = reply(429, {"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}})
    with scripted_server(serving(empty)) as server, pytest.raises(BackendError, match=r"429.*quota.*account is empty"):
        chat(OpenAIModel(f"m@{server.url}"))
    assert len(server.asked) == 1


def test_retries_end() -> None:
    with (
        scripted_server(serving(failing(503, Retry_After="0"))) as server,
        pytest.raises(BackendError, match="status 503"),
    ):
        chat(OpenAIModel(f"m@{server.url}", max_retries=3))
    assert len(server.asked) == 4


IN_AN_HOUR = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)


@pytest.mark.parametrize("after", ["3600", IN_AN_HOUR], ids=["seconds", "date"])
def test_no_waiting_beyond_the_deadline(after: str) -> None:
    with (
        scripted_server(serving(failing(429, Retry_After=after), says("fine"))) as server,
        pytest.raises(BackendError, match="status 429"),
    ):
        chat(OpenAIModel(f"m@{server.url}", deadline_seconds=600))
    assert len(server.asked) == 1


@pytest.mark.parametrize("after", ["0", "Sat, 01 Jan 2000 00:00:00 GMT", "soon", "-1"])
def test_a_server_says_when_to_come_again(after: str) -> None:
    with scripted_server(serving(failing(429, Retry_After=after), says("fine"))) as server:
        assert chat(OpenAIModel(f"m@{server.url}", max_retries=1))[0] == "fine"


def test_retry_after_is_waited_for() -> None:
    times = []

    def script(asked: Asked) -> None:
        times.append(time.monotonic())
        asked.send(failing(429, Retry_After="1") if len(times) == 1 else says("fine"))

    with scripted_server(script) as server:
        assert chat(OpenAIModel(f"m@{server.url}"))[0] == "fine"
    assert times[1] - times[0] >= 1.0  # the least that was asked for; how much more it takes says nothing


@pytest.mark.parametrize(
    "broken", [b"", b"HTTP/1.1 200 OK\r\nContent-", STREAM_HEAD, STREAM_HEAD + piece(event(chat_chunk(""))), streamed()]
)
def test_a_drop_before_the_first_text_is_tried_again(broken: bytes) -> None:
    def script(asked: Asked) -> None:
        if len(server.asked) > 1:
            asked.send(says("fine"))
            return
        asked.send(broken)
        raise ConnectionAbortedError

    with scripted_server(script) as server:
        # Once more where the connection that it hung up on was still thought to be open.
        assert chat(OpenAIModel(f"m@{server.url}", max_retries=2))[0] == "fine"


def test_a_drop_behind_the_first_text_is_not_tried_again() -> None:
    def script(asked: Asked) -> None:
        asked.send(STREAM_HEAD + piece(event(chat_chunk("once"))))
        raise ConnectionAbortedError

    with scripted_server(script) as server:
        call = OpenAIModel(f"m@{server.url}").stream(Continuation(messages=HELLO, max_tokens=9))
        assert next(call) == TextChunk("once")
        with pytest.raises(BackendError, match=r"connection to .* broke"):
            next(call)
        assert list(call) == []
    assert len(server.asked) == 1


def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        model = OpenAIModel(f"m@http://127.0.0.1:{taken.getsockname()[1]}/v1", max_retries=1)
        with pytest.raises(BackendError, match=r"cannot be reached.*is the server up and the URL right"):
            chat(model)


def hang(server: ScriptedServer) -> None:
    server.stopping.wait()
    raise ConnectionAbortedError


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200", STREAM_HEAD, STREAM_HEAD + piece(event(chat_chunk("x"))[:9])])
def test_a_server_that_hangs(sent: bytes) -> None:
    def script(asked: Asked) -> None:
        asked.send(sent)
        hang(server)

    with scripted_server(script) as server:
        model = OpenAIModel(f"m@{server.url}", read_timeout_seconds=0.1, max_retries=1)
        with pytest.raises(BackendError, match=r"was silent for 0\.1 s.*raise read_timeout_seconds"):
            chat(model)
        wait_for(lambda: len(server.asked) == 2)
        with pytest.raises(BackendError, match=r"before the deadline.*raise deadline_seconds"):
            chat(OpenAIModel(f"m@{server.url}", deadline_seconds=0.2))


def drip(server: ScriptedServer, asked: Asked, data: bytes) -> None:
    """The same bytes again and again, faster than any read timeout, without end."""
    while not server.stopping.wait(0.02):
        asked.send(data)


@pytest.mark.parametrize(
    ("head", "drop"),
    [
        (b"HTTP/1.1 200 OK\r\n", b"X-Wait: 1\r\n"),
        (STREAM_HEAD, piece(b": keep-alive\n\n")),
        (STREAM_HEAD, piece(event(chat_chunk("x")))),
        (STREAM_HEAD, piece(event(chat_chunk("")))),
    ],
)
def test_a_slow_drip_ends_at_the_deadline(head: bytes, drop: bytes) -> None:
    def script(asked: Asked) -> None:
        asked.send(head)
        drip(server, asked, drop)

    with scripted_server(script) as server:
        model = OpenAIModel(f"m@{server.url}", deadline_seconds=0.4)
        with pytest.raises(BackendError, match="before the deadline"):
            chat(model, max_tokens=10_000)


def test_who_reads_slowly_ends_at_the_deadline_too() -> None:
    """There is always a chunk waiting, and yet it ends."""

    def script(asked: Asked) -> None:
        asked.send(STREAM_HEAD)
        drip(server, asked, piece(event(chat_chunk("x"))))

    with scripted_server(script) as server:
        call = OpenAIModel(f"m@{server.url}", deadline_seconds=0.3).stream(
            Continuation(messages=HELLO, max_tokens=10_000)
        )
        with pytest.raises(BackendError, match="before the deadline"):
            [time.sleep(0.05) for _ in call]


def test_who_waits_is_let_go() -> None:
    """Closing and shutting down end a wait, also where the server never says a word."""

    def script(asked: Asked) -> None:
        hang(server)

    with scripted_server(script) as server, ThreadPoolExecutor(2) as pool:
        model = OpenAIModel(f"m@{server.url}")
        calls = [model.stream(Continuation(messages=HELLO, max_tokens=9)) for _ in range(2)]
        waiting = [pool.submit(list, call) for call in calls]
        wait_for(lambda: len(server.asked) == 2)
        calls[0].close()
        assert waiting[0].result() == []
        model.shutdown()
        with pytest.raises(BackendError, match="was shut down"):
            waiting[1].result()


def test_a_silent_server_notices_that_a_call_was_left() -> None:
    noticed = threading.Event()

    def script(asked: Asked) -> None:
        asked.send(STREAM_HEAD + piece(event(chat_chunk("x"))))
        assert asked.hear() == b""
        noticed.set()

    with scripted_server(script) as server:
        model = OpenAIModel(f"m@{server.url}", read_timeout_seconds=3600, deadline_seconds=3600)
        call = model.stream(Continuation(messages=HELLO, max_tokens=9))
        assert next(call) == TextChunk("x")
        assert not noticed.is_set()
        call.close()
        noticed.wait()


def test_a_connection_serves_one_call_after_another() -> None:
    with scripted_server(serving(says("x"))) as server:
        model = OpenAIModel(f"m@{server.url}")
        before = set(threading.enumerate())
        for _ in range(4):
            assert chat(model)[0] == "x"
            wait_for(lambda: not any(t.name == "fsgen-call" for t in set(threading.enumerate()) - before))
    assert len(server.asked) == 4
    assert len({asked.connection for asked in server.asked}) == 1


# --- partial answers -----------------------------------------------------------------------------


def template_server(takes: Callable[[dict[str, Any]], object], opens: Callable[[dict[str, Any]], object]) -> Script:
    """A server whose template leaves a last message open where ``opens`` says so, and which counts its tokens."""

    def script(asked: Asked) -> None:
        body = asked.body
        if refused := takes(body):
            asked.send(reply(422, {"message": str(refused)}))
            return
        count = sum(4 + len(m["content"].split()) for m in body["messages"])
        continues = body["messages"][-1]["role"] == "assistant" and opens(body)
        count += -3 if continues else 3
        if body.get("stream"):
            asked.send(says(" more" if continues else "anew"))
        else:
            choice = {"message": {"content": "x"}, "finish_reason": "length"}
            asked.send(reply(200, {"choices": [choice], "usage": {"prompt_tokens": count + 40}}))

    return script


def unknown_fields(body: dict[str, Any], *known: str) -> set[str]:
    last = body["messages"][-1]
    return ({"continue_final_message", "add_generation_prompt"} & body.keys() | {"prefix"} & last.keys()) - set(known)


FLAGS = ("continue_final_message", "add_generation_prompt", "prefix")
SERVERS = {
    "vllm": (template_server(lambda b: None, lambda b: b.get("continue_final_message")), "flags", 2),
    "llama-server": (template_server(lambda b: None, lambda b: True), "flags", 2),
    "groq": (template_server(unknown_fields, lambda b: True), "last_message", 3),
    "mistral": (
        template_server(
            lambda b: (
                unknown_fields(b, "prefix")
                or (b["messages"][-1]["role"] == "assistant" and not b["messages"][-1].get("prefix") and "last role")
            ),
            lambda b: True,
        ),
        "prefix",
        4,
    ),
    "openai": (template_server(unknown_fields, lambda b: False), None, 4),
    "claude": (template_server(lambda b: b["messages"][-1]["role"] == "assistant", lambda b: False), None, 4),
    "ollama": (template_server(lambda b: None, lambda b: False), None, 3),
}


@pytest.mark.parametrize("name", SERVERS)
def test_how_servers_continue_is_found_once(name: str) -> None:
    script, dialect, probes = SERVERS[name]
    with scripted_server(script) as server:
        model = OpenAIModel(f"m@{server.url}")
        assert chat(model)[0] == "anew"
        assert len(server.asked) == 1, "nothing is probed for a whole answer"
        with ThreadPoolExecutor(3) as pool:
            texts = {text for text, _ in pool.map(lambda _: chat(model, "so far "), range(3))}
    assert len(server.asked) == 1 + probes + 3
    assert all(body["max_tokens"] == 1 for body in server.bodies[1 : 1 + probes])
    assert model.capabilities.prefill is (dialect is not None)
    last = server.bodies[-1]
    if dialect is None:
        assert texts == {"anew"}
        assert [m["role"] for m in last["messages"]] == ["user", "assistant", "user"]
        assert last["messages"][1]["content"] == "so far "
        assert "Continue it exactly" in last["messages"][2]["content"]
        assert not unknown_fields(last)
    else:
        # The space at the end is not sent, and comes back once.
        assert texts == {"more"}
        found = next(d for d in DIALECTS if d.name == dialect)
        assert last["messages"][-1] == {"role": "assistant", "content": "so far", **found.message}
        assert {name: last[name] for name in FLAGS if name in last} == found.body


# Chat templates, rendered as servers do.
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Qwen3's, for messages without tools: an empty block of reasoning before the assistant's last message.
QWEN3 = r"""
{%- set ns = namespace(looking=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.looking and message.role == "user" %}
        {%- set ns.looking = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "assistant" %}
        {%- set content = message.content %}
        {%- set reasoning_content = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}
            {{- '<|im_start|>assistant\n<think>\n' + reasoning_content + '\n</think>\n\n' + content }}
        {%- else %}
            {{- '<|im_start|>assistant\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}"""
# The block before it whatever the message holds; reasoning taken out of messages; the block before all of them.
PLAIN_BLOCK = CHATML.replace(
    "+ m.content", "+ (loop.last and m.role == 'assistant' and '<think>\n\n</think>\n\n' or '') + m.content"
)
STRIPPING = CHATML.replace("+ m.content", "+ m.content.split('</think>\n\n')[-1]")
ALL_BLOCKS = CHATML.replace(
    "+ m.content", "+ (m.role == 'assistant' and '<think></think>\n' or '') + m.content.split('</think>\n\n')[-1]"
)
# Another part of the template's before an assistant's last message, which no message can hold.
CHANNEL = CHATML.replace(
    "+ m.content", "+ (loop.last and m.role == 'assistant' and '<|channel|>final<|message|>' or '') + m.content"
)
NO_END = CHATML.replace("'<|im_end|>\n'", "(not (loop.last and m.role == 'assistant') and '<|im_end|>\n' or '')")
TEMPLATES = {
    name: globals()[name] for name in ("CHATML", "QWEN3", "PLAIN_BLOCK", "STRIPPING", "ALL_BLOCKS", "CHANNEL", "NO_END")
}
TOKENS = re.compile(r"<[|/\w]+>| ?\w+|\s+|.")


def render(template: str, messages: list[dict[str, str]], body: dict[str, Any], *, generation: bool) -> str:
    more = body.get("chat_template_kwargs", {})
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(messages=messages, add_generation_prompt=generation, **more)


def renders_cut(template: str, body: dict[str, Any]) -> str:
    """As transformers does where a last message is to be continued: what comes behind its content is cut off."""
    last = body["messages"][-1]["content"]
    whole = render(template, body["messages"], body, generation=False)
    return whole[: whole.rindex(last) + len(last)]


def is_partial(body: dict[str, Any]) -> bool:
    return bool(body["messages"][-1]["role"] == "assistant")


def vllm(template: str, body: dict[str, Any]) -> str:
    if body.get("continue_final_message"):
        return renders_cut(template, body)
    return render(template, body["messages"], body, generation=body.get("add_generation_prompt", True))


def sglang(template: str, body: dict[str, Any]) -> str:
    """Also llama-server's way: the text behind what begins an answer."""
    if is_partial(body):
        return render(template, body["messages"][:-1], body, generation=True) + body["messages"][-1]["content"]
    return render(template, body["messages"], body, generation=True)


def transformers(template: str, body: dict[str, Any]) -> str:
    """Knows no fields, and continues whatever ends in an assistant's message."""
    return (
        renders_cut(template, body) if is_partial(body) else render(template, body["messages"], body, generation=True)
    )


def half_way(template: str, body: dict[str, Any]) -> str:
    """Knows one of the two fields, and so leaves the message closed."""
    return render(template, body["messages"], body, generation=body.get("add_generation_prompt", True))


def closing(template: str, body: dict[str, Any]) -> str:
    return render(template, body["messages"], body, generation=True)


def rendering(template: str, how: Callable[[str, dict[str, Any]], str], *, streams_only: bool = False) -> Script:
    """A server with a chat template: it continues where the prompt so rendered ends in the answer so far."""

    def script(asked: Asked) -> None:
        body = asked.body
        prompt = how(template, body)
        usage = {"prompt_tokens": len(TOKENS.findall(prompt)), "completion_tokens": 1}
        more = " more" if is_partial(body) and prompt.endswith(body["messages"][-1]["content"]) else "anew"
        if body.get("stream"):
            asked.send(streamed(chat_chunk(more, "stop"), {"choices": [], "usage": usage}))
        elif streams_only:
            asked.send(reply(400, {"error": {"message": "this model only supports streaming"}}))
        else:
            asked.send(
                reply(200, {"choices": [{"message": {"content": more}, "finish_reason": "stop"}], "usage": usage})
            )

    return script


OPEN = {"vllm": vllm, "sglang": sglang, "transformers": transformers}
CLOSED = {"half_way": half_way, "closing": closing}


@pytest.mark.parametrize("thinking", [None, False])
@pytest.mark.parametrize("how", [*OPEN, *CLOSED])
@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_that_treat_a_last_message_of_the_assistants_apart(
    name: str, how: str, thinking: bool | None
) -> None:
    extra = {} if thinking is None else {"extra_body": {"chat_template_kwargs": {"enable_thinking": thinking}}}
    with scripted_server(rendering(TEMPLATES[name], (OPEN | CLOSED)[how])) as server:
        model = OpenAIModel(f"m@{server.url}", **extra)
        text, _ = chat(model, "so far")
    if how in CLOSED and (name, how) != ("NO_END", "half_way"):
        assert (text, model.capabilities.prefill) == ("anew", False)
        assert [message["role"] for message in server.bodies[-1]["messages"]] == ["user", "assistant", "user"]
    elif how == "transformers" and name in ("CHANNEL", "ALL_BLOCKS"):
        assert model.capabilities.prefill is False  # nothing shows it: in doubt it is told to go on
    else:
        assert (text, model.capabilities.prefill) == (" more", True)
    assert len(server.asked) <= 8


def test_a_probe_is_sent_as_the_real_call() -> None:
    extra = {"chat_template_kwargs": {"enable_thinking": False}, "top_k": 7, "logprobs": False}
    with scripted_server(rendering(QWEN3, sglang)) as server:
        model = OpenAIModel(f"m@{server.url}", extra_body=extra)
        chat(model, "so far", warp=Warp(temperature=0.7, top_p=0.9, top_k=3), seed=5)
    *probes, real = server.asked
    assert len(probes) == 2
    for probe in probes:
        assert probe.path == real.path
        assert {**real.body, "messages": 0} == {
            **probe.body, "messages": 0, "max_tokens": 16, "stream": True, "stream_options": {"include_usage": True},
            "continue_final_message": True, "add_generation_prompt": False,
        }  # fmt: skip


def test_a_probe_has_the_requests_own_variables_and_is_remembered_by_them() -> None:
    """A template may take a partial answer with reasoning off, and in another way with it on."""
    with scripted_server(rendering(QWEN3, sglang)) as server:
        model = OpenAIModel(f"m@{server.url}")
        for thinking in (False, True, False):
            call = model.stream(
                Continuation(
                    messages=HELLO,
                    answer="so far",
                    max_tokens=16,
                    chat_template_kwargs={"enable_thinking": thinking},
                )
            )
            whole(call)
    sent = [body["chat_template_kwargs"]["enable_thinking"] for body in server.bodies]
    assert sent == [*sorted(sent[:-1]), False]  # all of a probe are the request's; a third request needs none
    assert sent.count(True) > 1 < sent.count(False) - 1


def test_a_server_that_only_streams_is_probed_in_a_stream() -> None:
    with scripted_server(rendering(QWEN3, vllm, streams_only=True)) as server:
        model = OpenAIModel(f"m@{server.url}")
        assert chat(model, "so far")[0] == " more"
    assert [bool(body.get("stream")) for body in server.bodies] == [False, *[True] * (len(server.bodies) - 1)]


THINKING = ("<|im_start|>", "<|im_end|>", "<think>", "</think>")
# These vocabularies begin with a token that Qwen's has not.
LEFT_OPEN = "{{- bos_token }}" + QWEN3.replace(
    "        {{- '<|im_end|>\\n' }}\n", "        {%- if not loop.last %}{{- '<|im_end|>\\n' }}{% endif %}\n"
).replace("if add_generation_prompt", "if messages[-1].role != 'assistant'")


@pytest.fixture(scope="module")
def thinking_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """Random models with Qwen3's template, as it is and left open; ids of their own for its marks, and without."""
    folder, models = tmp_path_factory.mktemp("thinking"), {}
    for name, template in (("closed", QWEN3), ("open", LEFT_OPEN)):
        for marks, specials in (("ids", (*tiny_gguf.SPECIALS, *THINKING)), ("bytes", tiny_gguf.SPECIALS)):
            path = folder / f"{name}-{marks}.gguf"
            models[path.stem] = tiny_gguf.write(
                path, ("lamp", "rope"), template=template, specials=specials, n_ctx=1024, seed=19
            )
    with real_server(folder, models, interrupt_requests=False) as served:
        yield served


@pytest.mark.parametrize("marks", ["ids", "bytes"])
def test_a_thinking_template_on_a_real_server(thinking_server: RealServer, marks: str) -> None:
    rendered = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    opened = OpenAIModel(f"open-{marks}@{thinking_server.url}", max_retries=0)
    assert chat(opened, "lamp rope")[0] == complete(opened, rendered, answer="lamp rope")[0]
    assert opened.capabilities == TextCapabilities(prefill=True, raw=True)
    closed = OpenAIModel(f"closed-{marks}@{thinking_server.url}", max_retries=0)
    chat(closed, "lamp rope")
    assert closed.capabilities.prefill is False


# --- raw prompts ---------------------------------------------------------------------------------


def wrapping(
    template: str | None, bos: int = 1, count: Callable[[str], int] = lambda text: len(TOKENS.findall(text))
) -> Script:
    """A server whose ``/completions`` puts prompts into a chat template, or (None) goes on with them."""

    def script(asked: Asked) -> None:
        body, chats = asked.body, asked.path.endswith("/chat/completions")
        prompt = body.get("prompt", "")
        if chats or template:
            messages = body["messages"] if chats else [{"role": "user", "content": prompt}]
            prompt = render(template or CHATML, messages, {}, generation=True)
        usage = {"prompt_tokens": count(prompt) + bos}
        said = "anew" if chats or template else " more"
        if body.get("stream"):
            asked.send(streamed(chat_chunk(said) if chats else text_chunk(said), STOP, {"choices": [], "usage": usage}))
        else:
            asked.send(reply(200, {"choices": [{"text": said, "finish_reason": "length"}], "usage": usage}))

    return script


MISTRAL = (
    "{% for m in messages %}"
    "{{ m.role == 'user' and '<INST>' + m.content + '</INST>' or m.content + '</s>' }}{% endfor %}"
)


@pytest.mark.parametrize("template", [CHATML, QWEN3, MISTRAL])
def test_a_server_that_wraps_raw_prompts_is_told_apart(template: str, caplog: pytest.LogCaptureFixture) -> None:
    with scripted_server(wrapping(template)) as server, caplog.at_level(logging.INFO, logger="fsgen_router"):
        model = OpenAIModel(f"m@{server.url}")
        assert complete(model, "Who?")[0] == "anew"
        assert len(server.asked) == 1, "nothing is probed for a whole answer"
        assert model.capabilities.raw is None
        with pytest.warns(WrappedPromptWarning, match=r"m@.* puts raw prompts into its chat template.*api=completions"):
            assert complete(model, "Who?", answer="It was")[0] == "anew"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert complete(model, "Who?", answer="It was")[0] == "anew"
            complete(model, "Who?")
        assert model.capabilities == TextCapabilities(prefill=False, raw=False)
    assert caplog.text.count("prompts_wrapped") == caplog.text.count("completions_probed") == 1
    # As what it was made into there, and as a partial answer.
    assert [asked.path.rpartition("v1")[2] for asked in server.asked[:3]] == ["/completions"] * 3
    whole, partial = server.bodies[-1], server.bodies[-2]
    assert whole["messages"] == [{"role": "user", "content": "Who?"}]
    assert [message["content"] for message in partial["messages"][:2]] == ["Who?", "It was"]


@pytest.mark.parametrize(
    ("bos", "count"),
    [
        (0, lambda text: len(text.split())),
        (1, lambda text: len(text.split())),
        (2, lambda text: len(text.split())),
        (1, lambda text: len(text.encode())),
        (1, lambda text: len(text.replace(" ", "___").encode()) + 3),  # bytes, and a space before everything
        (-1, lambda text: 0),
    ],
)
def test_a_server_that_goes_on_with_raw_prompts(bos: int, count: Callable[[str], int]) -> None:
    with scripted_server(wrapping(None, bos, count)) as server, warnings.catch_warnings():
        warnings.simplefilter("error")
        model = OpenAIModel(f"m@{server.url}")
        assert complete(model, "Who?", answer="It was")[0] == " more"
        assert complete(model, "Who?", answer="It was not")[0] == " more"
        assert len(server.asked) <= 4
        assert (model.capabilities.raw, server.bodies[-1]["prompt"]) == (True, "Who?It was not")


def test_raw_prompts_as_they_are_forced() -> None:
    with scripted_server(wrapping(CHATML)) as server:
        model = OpenAIModel(f"m@{server.url}", api="completions")
        assert complete(model, "Who?", answer="It was")[0] == "anew"
    assert [asked.body["prompt"] for asked in server.asked] == ["Who?It was"]


def test_a_raw_probe_is_sent_as_the_real_call() -> None:
    with scripted_server(wrapping(None)) as server:
        model = OpenAIModel(f"m@{server.url}", extra_body={"raw": True})
        complete(model, "Who?", answer="It was", warp=SAMPLED, seed=3)
    probe, real = server.asked
    assert probe.path == real.path == "/v1/completions"
    assert {**probe.body, "prompt": 0} == {
        name: value for name, value in {**real.body, "prompt": 0, "max_tokens": 1}.items() if "stream" not in name
    }


def test_a_block_of_reasoning_begins_a_message_and_no_continuation() -> None:
    """Where a partial answer is left open, such a tag is a part of its text."""

    def script(asked: Asked) -> None:
        if asked.body["max_tokens"] == 1:
            asked.send(reply(200, {"choices": [], "usage": {"prompt_tokens": 9}}))
        else:
            asked.send(streamed(chat_chunk("<think>hm</think>\n\nyes"), STOP))

    with scripted_server(script) as server:
        for prefill, told in (("auto", ("", "<think>hm</think>\n\nyes")), ("never", ("hm", "yes"))):
            model = OpenAIModel(f"m@{server.url}", prefill=prefill)
            call = model.stream(Continuation(messages=HELLO, answer="The tag is", max_tokens=16))
            assert thought_and_said(call)[:2] == told
            assert thought_and_said(model.stream(Continuation(messages=HELLO, max_tokens=16)))[:2] == ("hm", "yes")


def test_white_space_alone_is_no_partial_answer() -> None:
    with scripted_server(serving(says("\n\nWell"))) as server:
        assert chat(OpenAIModel(f"m@{server.url}"), "\n")[0] == "\nWell"
    assert server.bodies[0]["messages"] == list(HELLO)
    assert len(server.asked) == 1


def test_a_server_that_does_not_count_is_told_to_continue() -> None:
    answers = [reply(200, {"choices": [], "usage": usage}) for usage in (None, {}, {"prompt_tokens": 0})]
    for answer in answers:
        with scripted_server(serving(answer, says("anew"))) as server:
            model = OpenAIModel(f"m@{server.url}")
            assert chat(model, "so far")[0] == "anew"
        assert len(server.asked) == 2
        assert model.capabilities.prefill is False


def test_a_probe_that_fails_is_made_again() -> None:
    with scripted_server(serving(failing(503), failing(401), says("x"))) as server:
        model = OpenAIModel(f"m@{server.url}", max_retries=0)
        for words in ("503", "401"):
            with pytest.raises(BackendError, match=words):
                chat(model, "so far")
            assert model.capabilities.prefill is None


def test_prefill_that_is_forced_and_refused() -> None:
    script, _, _ = SERVERS["claude"]
    with (
        scripted_server(script) as server,
        pytest.raises(BackendError, match=r"refuses partial answers.*leave out prefill"),
    ):
        chat(OpenAIModel(f"m@{server.url}", prefill="always"), "so far")


@given(st.text(max_size=20), st.data())
@example("😀", None)
def test_characters_that_come_in_halves(text: str, data: st.DataObject | None) -> None:
    units = text.encode("utf-16-le")
    pieces = [units[at : at + 2].decode("utf-16-le", "surrogatepass") for at in range(0, len(units), 2)]
    if data is not None and pieces and data.draw(st.booleans()):
        pieces.insert(data.draw(st.integers(0, len(pieces))), "")
    joiner = SurrogateJoiner()
    assert "".join(map(joiner.push, pieces)) + joiner.flush() == text
