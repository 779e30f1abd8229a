"""The openai backend: against llama-cpp-python's real server, and against what no server should send."""

from __future__ import annotations

import gc
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import tiny_gguf
from endpoints import (
    STREAM_HEAD,
    Asked,
    RealServer,
    Script,
    ScriptedServer,
    chat_chunk,
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

from fsgen_router import BackendError, ConfigurationError, InvalidRequest, reference
from fsgen_router.adapters.openai import DIALECTS, OpenAIModel, parse_endpoint
from fsgen_router.adapters.streaming import SurrogateJoiner, Unrepeat
from fsgen_router.cli import doctor
from fsgen_router.models import TokenModel, Work
from fsgen_router.reading import Read, Warp
from fsgen_router.resolve import make_model
from fsgen_router.text_models import Continuation, TextChunk, TextEnd

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
    word = text.split()[4]
    stopped, end = chat(slow, max_tokens=80, stop=("never", word))
    assert end.finish_reason == "stop"
    assert stopped == text[: text.index(word)]


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
        return list(doctor._pair("reference:fast", f"openai:{where}"))[-1]

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
    raced._client.close()  # as if shutdown() had come between two lines of stream()
    with pytest.raises(BackendError, match=r"request to .* failed"):
        complete(raced)


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
        complete(model, "p" * 40, 16, answer="a" * 8, stop=("1", "1", "2", "3", "4", "5"))
        chat(model, warp=Warp(temperature=0.7, top_k=5, min_p=0.1), seed=2**40 + 3)
        chat(model, warp=Warp(temperature=0.7), max_tokens=1000)
        chat(OpenAIModel(f"m@{server.url}", sampling="server"))
        chat(OpenAIModel(f"m@{server.url}", sampling="server"), warp=SAMPLED, seed=1)
    raw, sampled, plain, own_greedy, own = server.bodies
    streaming = {"stream": True, "stream_options": {"include_usage": True}}
    model_field = {"model": "org/m:free"}
    assert [asked.path for asked in server.asked] == ["/v1/completions", *["/v1/chat/completions"] * 4]
    assert raw == streaming | model_field | {
        "prompt": "p" * 40 + "a" * 8, "max_tokens": 16, "temperature": 0.0, "stop": ["1", "2", "3", "4"],
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
    model = OpenAIModel("m@https://host/v1")
    assert [model.count_tokens(text) for text in ("", "a", "abcd", "abcde", "你好")] == [0, 1, 1, 2, 2]


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
        (streamed({"choices": [{"delta": {"content": None, "reasoning_content": "hm"}}]}, *WORDS), "Grün 😀",
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
        assert chat(OpenAIModel(f"m@{server.url}", max_retries=0, read_timeout_seconds=0.5)) == (text, end)


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


@pytest.mark.parametrize("after", ["3600", format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)])
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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    model = OpenAIModel(f"m@http://127.0.0.1:{port}/v1", max_retries=1)
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
    "openai": (template_server(unknown_fields, lambda b: False), None, 3),
    "claude": (template_server(lambda b: b["messages"][-1]["role"] == "assistant", lambda b: False), None, 4),
    "ollama": (template_server(lambda b: None, lambda b: False), None, 2),
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


@pytest.mark.parametrize(
    ("answer", "said", "added"),
    [
        ("The answer is 4, because", " two and two", " two and two"),
        ("The answer is 4, because", "The answer is 4, because two", " two"),
        ("The answer is 4, because", "\n\nThe answer is 4, because two", " two"),
        ("First of all, the answer is 4", "the answer is 42", "2"),
        ("First of all, the answer is 4", "4 is even", "4 is even"),
        ("The answer is 4", "The answer differs", "The answer differs"),
        ("It", "It rains", " rains"),
        ("It", "Italy", "Italy"),
        ("1", "12", "12"),
        ("I had", " had enough", " had enough"),
        ("so far", "so far", ""),
        ("so far", " ", " "),
        ("so far ", "so far and on", "and on"),
        ("ha ha ha ha ha ha", "ha ha ha ha ha ha!", "!"),
    ],
)
def test_a_repetition_is_taken_off(answer: str, said: str, added: str) -> None:
    for size in (1, 3, 1000):
        unrepeat = Unrepeat(answer)
        text = "".join(unrepeat.push(said[at : at + size]) for at in range(0, len(said), size))
        assert text + unrepeat.flush() == added


TEXTS = st.text("ab \n", max_size=30)


@given(TEXTS, TEXTS, st.integers(1, 6))
def test_what_is_taken_off_was_written(answer: str, said: str, size: int) -> None:
    """However it is cut into pieces: nothing is taken but white space and an end of what was written."""
    unrepeat, pieces = Unrepeat(answer), [said[at : at + size] for at in range(0, len(said), size)]
    text = "".join(map(unrepeat.push, pieces)) + unrepeat.flush()
    assert said.endswith(text)
    taken = said[: len(said) - len(text)]
    assert answer.endswith(taken.lstrip()) if taken else True
    if said and said[0] == "a" and "a" not in answer:
        assert text == said


@given(st.text("ab é\n", min_size=12, max_size=40).map(lambda text: f"a{text}b"), st.text(max_size=20))
def test_a_whole_repetition_is_always_taken_off(answer: str, new: str) -> None:
    unrepeat = Unrepeat(answer)
    said = unrepeat.push(answer + new) + unrepeat.flush()
    assert len(said) <= len(new)
    assert new.endswith(said)


@given(st.text(max_size=20), st.data())
@example("😀", None)
def test_characters_that_come_in_halves(text: str, data: st.DataObject | None) -> None:
    units = text.encode("utf-16-le")
    pieces = [units[at : at + 2].decode("utf-16-le", "surrogatepass") for at in range(0, len(units), 2)]
    if data is not None and pieces and data.draw(st.booleans()):
        pieces.insert(data.draw(st.integers(0, len(pieces))), "")
    joiner = SurrogateJoiner()
    assert "".join(map(joiner.push, pieces)) + joiner.flush() == text
