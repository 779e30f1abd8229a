"""Endpoints that fail, and what an answer makes of it: breakers, fallbacks, deadlines, probes, cancellation."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
from endpoints import (
    STREAM_HEAD,
    Asked,
    black_hole,
    chat_chunk,
    event,
    piece,
    reply,
    says,
    scripted_server,
    streamed,
    text_chunk,
)

from fsgen_router import BackendError, ConfigurationError, Generation, Router, TextDelta
from fsgen_router.adapters.fallbacks import Fallbacks
from fsgen_router.adapters.openai import OpenAIModel
from fsgen_router.adapters.openai.record import FRESH
from fsgen_router.contracts.models import TokenModel
from fsgen_router.contracts.text_models import Continuation, TextChunk, TextEnd
from fsgen_router.resolve import make_model

pytestmark = pytest.mark.filterwarnings("ignore::fsgen_router.SmallExtentWarning")

PROMPT = "Ada has 3 shells."
HELLO = ({"role": "user", "content": "hello"},)


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def alone(fast: TokenModel, **options: Any) -> str:
    with Router(fast, make_model("reference:slow"), policy="never") as router:
        return router.complete(PROMPT, **options).text


def ask(model: OpenAIModel | Fallbacks, **more: Any) -> tuple[str, TextEnd]:
    *chunks, end = model.stream(Continuation(messages=HELLO, max_tokens=16, **more))
    assert isinstance(end, TextEnd)
    return "".join(chunk.text for chunk in chunks), end


def wait_for(condition: Callable[[], object]) -> None:
    """A test that waits in vain ends by pytest's timeout."""
    while not condition():
        time.sleep(0.005)


def failing(status: int, message: str = "try later", **headers: str) -> bytes:
    return reply(status, {"error": {"message": message}}, **headers)


def reasons(answer: Generation) -> set[str]:
    """Why escalations were declined, as the trace has it."""
    return {token.decision.reason for token in answer.tokens if token.decision is not None}


def is_probe(asked: Asked) -> bool:
    return asked.body.get("max_tokens") == 1 and not asked.body.get("stream")


# --- an endpoint that is down ---------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["every:2,span=rest", "entropy>0,span=4"])
def test_an_address_that_never_answers_delays_nothing(policy: str, fast_model: TokenModel) -> None:
    """Who waited for the connection would wait for an hour."""
    options = "connect_timeout_seconds=3600&deadline_seconds=3600"
    before = set(threading.enumerate())
    with black_hole() as url, Router(fast_model, f"openai:m@{url}?{options}", policy=policy) as router:
        for _ in range(3):
            answer = router.complete(PROMPT, max_tokens=12)
            assert answer.text == router.complete(PROMPT, max_tokens=12, policy="never").text
            assert reasons(answer) - {"every", "entropy"} == {"probing"}
            assert answer.degraded is None
        begun = set(threading.enumerate()) - before
        assert sum(thread.name == "fsgen-probe" for thread in begun) == 1


def test_an_endpoint_that_is_down_is_left_alone(fast_model: TokenModel) -> None:
    """And tried again beside what requests do; then it is asked again."""
    up = threading.Event()

    def script(asked: Asked) -> None:
        if not up.is_set():
            asked.send(failing(503))
        elif is_probe(asked):
            asked.send(reply(200, {"choices": [{"text": "a"}], "usage": {"prompt_tokens": 1}}))
        else:
            asked.send(says(" fine"))

    options = "max_retries=0&breaker_seconds=0.2"
    with (
        scripted_server(script) as server,
        Router(fast_model, f"openai:m@{server.url}?{options}", policy="every:2,span=rest") as router,
        Router(fast_model, f"openai:m@{server.url}?{options}", policy="every:2,span=rest") as other,
    ):
        router.complete(PROMPT, max_tokens=8)
        wait_for(lambda: router.slow.down)
        asked = len(server.asked)
        assert asked == 1, "the probe's one question"
        for answer in [which.complete(PROMPT, max_tokens=8) for which in (router, other) for _ in range(2)]:
            assert "is not asked, after it failed" in answer.degraded
            assert answer.usage.tokens == 8
        up.set()
        wait_for(lambda: router.complete(PROMPT, max_tokens=8).degraded is None and not router.slow.down)
        wait_for(lambda: " fine" in other.complete(PROMPT, max_tokens=8).text)


def test_after_a_long_retry_after_it_is_not_asked_again() -> None:
    """By nobody in this process."""
    with scripted_server(lambda asked: asked.send(failing(429, Retry_After="600"))) as server:
        with pytest.raises(BackendError, match="status 429"):
            ask(OpenAIModel(f"m@{server.url}", deadline_seconds=5))
        for _ in range(3):
            with pytest.raises(BackendError, match=r"is not asked.*status 429.*again in (600|5\d\d) s"):
                ask(OpenAIModel(f"m@{server.url}", max_retries=9))
        assert len(server.asked) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 429])
def test_what_a_request_is_refused_for_says_nothing_of_the_endpoint(status: int) -> None:
    with scripted_server(lambda asked: asked.send(failing(status))) as server:
        model = OpenAIModel(f"m@{server.url}", max_retries=0)
        for _ in range(9):
            with pytest.raises(BackendError, match=f"status {status}"):
                ask(model)
        assert len(server.asked) == 9


def test_who_leaves_a_call_blames_nobody() -> None:
    def script(asked: Asked) -> None:
        asked.send(STREAM_HEAD + piece(event(chat_chunk("x"))))
        asked.hear()

    with scripted_server(script) as server:
        model = OpenAIModel(f"m@{server.url}", max_retries=0)
        for _ in range(5):
            call = model.stream(Continuation(messages=HELLO, max_tokens=9))
            assert next(call) == TextChunk("x")
            call.close()
        wait_for(lambda: not [thread for thread in threading.enumerate() if thread.name == "fsgen-call"])
        assert not model.down


# --- others in its place --------------------------------------------------------------------------


@pytest.fixture
def fine() -> Iterator[Any]:
    with scripted_server(lambda asked: asked.send(says(" fine"))) as server:
        yield server


@pytest.mark.parametrize(
    "answer", [failing(503), failing(401), failing(404), b"", reply(200, b"Welcome"), STREAM_HEAD + piece(b"data: {")]
)
def test_the_next_endpoint_is_asked(answer: bytes, fine: Any, caplog: pytest.LogCaptureFixture) -> None:
    def script(asked: Asked) -> None:
        asked.send(answer)
        if b"Content-Length" not in answer:
            raise ConnectionAbortedError

    with scripted_server(script) as server, caplog.at_level("INFO", "fsgen_router"):
        strings = [f"openai:one@{server.url}?max_retries=0&breaker_failures=2", f"openai:two@{fine.url}"]
        model = make_model(strings)
        assert isinstance(model, Fallbacks)
        for _ in range(4):
            text, end = ask(model)
            assert (text, end.model) == (" fine", model.endpoints[1].name)
        down = answer not in (failing(401), failing(404))
        assert len(server.asked) == (2 if down else 4), "what is down is left alone"
        assert [record.instead for record in caplog.records if record.event == "fallback_used"] == [end.model] * 4
        model.shutdown()


def test_behind_the_first_text_no_other_is_asked(fast_model: TokenModel, fine: Any) -> None:
    """What was said stands, and the fast model goes on."""

    def script(asked: Asked) -> None:
        asked.send(STREAM_HEAD + piece(event(text_chunk(" once"))))
        raise ConnectionAbortedError

    with scripted_server(script) as server:
        slow = [f"openai:one@{server.url}?max_retries=0", f"openai:two@{fine.url}"]
        with Router(fast_model, slow, policy="always,span=rest") as router:
            answer = router.complete(PROMPT, max_tokens=9)
            assert answer.text.startswith(" once")
            assert "broke" in answer.degraded
            assert not fine.asked
            assert [span.source for span in answer.spans] == ["slow", "fast"]
            assert router.slow.name == ", else ".join(model.name for model in router.slow.endpoints)


def test_each_endpoint_bills_at_its_own_prices(fast_model: TokenModel, tmp_path: Path) -> None:
    """Tries of the first that were sent and never answered, and the answer of the one that stood in."""

    def silent(asked: Asked, server: Any) -> None:
        while not server.stopping.wait(0.02):
            pass

    ends = streamed(
        text_chunk(" fine"),
        text_chunk("", "stop"),
        {"choices": [], "usage": {"prompt_tokens": 50, "completion_tokens": 2}},
    )
    holder: list[Any] = []
    with (
        scripted_server(lambda asked: silent(asked, holder[0])) as server,
        scripted_server(lambda asked: asked.send(ends)) as fine,
    ):
        holder.append(server)
        names = [f"openai:one@{server.url}?first_token_timeout_seconds=0.2&max_retries=1", f"openai:two@{fine.url}"]
        table = tmp_path / "prices.toml"
        table.write_text(
            "date = 2026-11-26\n[models.one]\ninput = 1\noutput = 5\n[models.two]\ninput = 10\noutput = 50"
        )
        with Router(fast_model, names, policy="always,span=rest", prices=table, at_any_price=True) as router:
            assert router.prices is not None
            assert router.prices.dearest.output == 50
            answer = router.complete(PROMPT, max_tokens=9)
            one, two = (answer.usage.billed.by_model[model.name] for model in router.slow.endpoints)
            assert (one.failed, one.calls, one.estimated) == (2, 0, one.input)
            assert (two.failed, two.calls, two.input, two.output) == (0, 1, 50, 2)
            owed = (one.input * 1 + 50 * 10 + 2 * 50) / 1e6
            assert answer.report().money_usd.routed == pytest.approx(owed)
            assert router.ledger.cost_usd == pytest.approx(owed)
            shown = str(answer.report())
            assert "two@" in shown
            assert set(answer.to_dict()["usage"]["billed"]["by_model"]) == {one_.name for one_ in router.slow.endpoints}


def test_a_cap_on_seconds_ends_a_call_that_is_under_way(fast_model: TokenModel) -> None:
    """What came until then stands, the endpoint is not to blame, and no other is asked."""

    def trickle(asked: Asked) -> None:
        asked.send(STREAM_HEAD + piece(event(text_chunk(" once"))))
        for _ in range(1000):
            time.sleep(0.02)
            asked.send(piece(event(text_chunk(" more"))))

    with scripted_server(trickle) as server, scripted_server(trickle) as other:
        slow = [f"openai:one@{server.url}", f"openai:two@{other.url}"]
        with Router(fast_model, slow, policy="always,span=rest") as router:
            for _ in range(2):
                answer = router.complete(PROMPT, max_tokens=900, max_seconds=1.0)
                assert answer.degraded == "cap on slow seconds: 1"
                assert answer.text.startswith(" once more")
                assert {span.source for span in answer.spans} == {"slow", "fast"}
                assert 1 <= answer.usage.slow.seconds < 20
            assert not router.slow.endpoints[0].down
    assert (len(server.asked), len(other.asked)) == (2, 0)


def test_a_sum_with_an_unknown_price_is_unknown(fast_model: TokenModel, fine: Any) -> None:
    one = OpenAIModel(f"one@{fine.url}", prices={"input": 1, "output": 5})
    with Router(fast_model, [one, f"openai:two@{fine.url}"], policy="always,span=rest") as router:
        assert router.prices is None


def test_where_all_fail_the_answer_is_marked(fast_model: TokenModel) -> None:
    with scripted_server(lambda asked: asked.send(failing(500))) as server:
        slow = [f"openai:{name}@{server.url}?max_retries=0" for name in ("one", "two")]
        with Router(fast_model, slow, policy="always,span=rest") as router:
            answer = router.complete(PROMPT, max_tokens=9)
            assert answer.degraded.startswith("EndpointError: two@")
            assert answer.text == router.complete(PROMPT, max_tokens=9, policy="never").text
    assert [body["model"] for body in server.bodies] == ["one", "two"]


def test_lists_that_make_no_sense(fast_model: TokenModel) -> None:
    with pytest.raises(ConfigurationError, match=r"one of endpoints.*openai"):
        Router(fast_model, ["reference:slow", "openai:m@http://127.0.0.1:9/v1"])
    model = OpenAIModel("m@http://127.0.0.1:9/v1")
    for models in ([], [model, model]):
        with pytest.raises(ConfigurationError, match="two or more, each once"):
            make_model(models)
    with Router(fast_model, [model]) as router:
        assert router.slow is model
    assert not model._closed, "it was not the Router's to shut down"


# --- a wait for a token ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "option", "words"),
    [
        (b"", "first_token_timeout_seconds", r"gave no token for 0\.2 s.*raise first_token_timeout_seconds"),
        (piece(event(chat_chunk(""))), "first_token_timeout_seconds", r"gave no token for 0\.2 s"),
        (piece(event(chat_chunk("x"))), "read_timeout_seconds", r"was silent for 0\.2 s.*raise read_timeout_seconds"),
    ],
)
def test_comments_are_no_tokens(said: bytes, option: str, words: str) -> None:
    """A server that only keeps the connection alive is silent; each wait has a limit of its own."""

    def script(asked: Asked) -> None:
        asked.send(STREAM_HEAD + said)
        while not server.stopping.wait(0.02):
            asked.send(piece(b": still busy\n\n"))

    with scripted_server(script) as server:
        limits = {"first_token_timeout_seconds": 30.0, "read_timeout_seconds": 30.0, option: 0.2}
        with pytest.raises(BackendError, match=words):
            ask(OpenAIModel(f"m@{server.url}", max_retries=0, **limits))


def test_a_slow_first_token_is_waited_for_longer_than_the_next() -> None:
    def script(asked: Asked) -> None:
        time.sleep(0.3)
        asked.send(STREAM_HEAD)
        time.sleep(0.3)
        asked.send(streamed(chat_chunk("x"), chat_chunk(None, "stop"))[len(STREAM_HEAD) :])

    with scripted_server(script) as server:
        model = OpenAIModel(f"m@{server.url}", max_retries=0, first_token_timeout_seconds=60, read_timeout_seconds=0.1)
        assert ask(model)[0] == "x"


# --- leaving --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["closed", "task cancelled", "router closed"])
async def test_who_leaves_an_answer_ends_the_call_at_once(how: str, fast_model: TokenModel) -> None:
    """The server, which would be silent for an hour, hears of it."""
    begun, noticed = threading.Event(), threading.Event()

    def script(asked: Asked) -> None:
        asked.send(STREAM_HEAD + piece(event(text_chunk("x"))))
        begun.set()
        if asked.hear() == b"":
            noticed.set()

    with scripted_server(script) as server:
        model = OpenAIModel(f"m@{server.url}", read_timeout_seconds=3600, deadline_seconds=3600)
        router = Router(fast_model, model, policy="always,span=rest")
        if how == "closed":
            stream = router.stream(PROMPT)
            while not (isinstance(event_ := next(stream), TextDelta) and event_.text):
                pass
            stream.close()
        else:
            task = asyncio.create_task(router.acomplete(PROMPT))
            assert await asyncio.to_thread(begun.wait, 30)
            if how == "task cancelled":
                task.cancel()
            else:
                router.close()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task
        assert await asyncio.to_thread(noticed.wait, 30)
        router.close()


# --- finding out beside ---------------------------------------------------------------------------


def capable(asked: Asked) -> None:
    """An endpoint that goes on with raw prompts, counts, and has a cache."""
    tokens = len(str(asked.body.get("prompt", "")).split()) + 1
    usage = {"prompt_tokens": tokens, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 1}}
    if asked.body.get("stream"):
        asked.send(streamed(text_chunk(" more"), text_chunk("", "stop"), {"choices": [], "usage": usage}))
    else:
        asked.send(reply(200, {"choices": [{"text": "a", "finish_reason": "length"}], "usage": usage}))


def test_escalations_are_declined_until_the_probe_has_ended(fast_model: TokenModel) -> None:
    gate = threading.Event()

    def script(asked: Asked) -> None:
        assert gate.wait(30)
        capable(asked)

    with (
        scripted_server(script) as server,
        Router(
            fast_model, f'openai:m@{server.url}?extra_body={{"top_k":7}}', policy="every:4,span=rest", seed=1
        ) as router,
    ):
        first = router.complete(PROMPT, max_tokens=12)
        assert first.text == router.complete(PROMPT, max_tokens=12, policy="never").text
        assert (first.usage.escalations, first.usage.round_trips, first.degraded) == (0, 0, None)
        assert "probing" in reasons(first)
        wait_for(lambda: server.asked)
        router.complete(PROMPT, max_tokens=12)
        assert len(server.asked) == 1, "one probe for both"
        gate.set()
        wait_for(lambda: router.slow.unready(Continuation(prompt=PROMPT, max_tokens=1)) is None)
        probes = list(server.asked)
        answer = router.complete(PROMPT, max_tokens=12)
        assert (answer.text[-5:], answer.usage.round_trips, answer.degraded) == (" more", 1, None)
        (real,) = server.asked[len(probes) :]
        for probe in probes:
            assert is_probe(probe)
            assert {**probe.body, "prompt": 0}.items() >= {"top_k": 7, "temperature": 0.0, "model": "m"}.items()
        assert real.body["top_k"] == 7
        # Each of them is billed, once.
        assert (router.ledger.billed.probes, router.ledger.billed.calls) == (len(probes), 1)
        assert router.slow.take_probe_usage() == []


def test_what_was_found_is_kept_for_other_processes(
    caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FSGEN_CACHE", str(tmp_path))
    like = Continuation(prompt="Who?", max_tokens=1)
    with scripted_server(capable) as server:

        def another(**options: Any) -> OpenAIModel:
            return OpenAIModel(f"m@{server.url}", **options)

        found = another(extra_body={"user": "u-1"}).probe(like)
        assert (found.raw, found.usage, found.cached_tokens) == (True, True, True)
        (path,) = (tmp_path / "endpoints").glob("*.json")
        assert "u-1" not in path.read_text()
        asked = len(server.asked)
        assert another(extra_body={"user": "u-1"}).capabilities == found
        assert another(extra_body={"user": "u-1"}, max_retries=7).probe(like) == found
        assert len(server.asked) == asked
        assert another(extra_body={"user": "u-2"}).capabilities.raw is None, "another request may find another thing"
        assert another(extra_body={"user": "u-1"}).probe(like, again=True) == found
        assert len(server.asked) == 2 * asked
        # It is believed for a while, if it can be read.
        kept = json.loads(path.read_text())
        for days in (FRESH + timedelta(minutes=1), timedelta(days=-1)):
            kept["record"]["found"] = (datetime.now(UTC) - days).isoformat()
            path.write_text(json.dumps(kept))
            assert another(extra_body={"user": "u-1"}).capabilities.raw is None
        for broken in ("{", json.dumps(kept | {"format": 99}), json.dumps(kept | {"record": {"wraps": "no"}}), "[]"):
            path.write_text(broken)
            with caplog.at_level("WARNING", "fsgen_router"):
                assert another(extra_body={"user": "u-1"}).capabilities.raw is None
            assert caplog.records[-1].event == "probe_unread"
        shutil.rmtree(tmp_path / "endpoints")
        (tmp_path / "endpoints").write_text("in the way")
        assert another(extra_body={"user": "u-1"}).probe(like) == found
        assert "probe_unkept" in caplog.text


def test_an_endpoint_that_another_process_knows_is_reached_before_it_is_asked(fast_model: TokenModel) -> None:
    with scripted_server(capable) as server:
        OpenAIModel(f"m@{server.url}").probe(Continuation(prompt="Who?", max_tokens=1))
        from fsgen_router.adapters.openai import breaker

        for key in [key for key in breaker._breakers if key[1] == server.url]:  # as in a new process
            del breaker._breakers[key]
        asked = len(server.asked)
        with Router(fast_model, f"openai:m@{server.url}", policy="every:4,span=rest") as router:
            router.complete(PROMPT, max_tokens=3)
            wait_for(lambda: router.slow.unready(Continuation(prompt=PROMPT, max_tokens=1)) is None)
            assert len(server.asked) == asked + 1, "one question, whether it answers"
            assert router.complete(PROMPT, max_tokens=12).usage.round_trips == 1


def test_a_record_that_does_not_hold_any_more_is_thrown_away() -> None:
    """The server takes partial answers, then is set up anew and does not."""
    takes = [True]

    def script(asked: Asked) -> None:
        partial = asked.body["messages"][-1]["role"] == "assistant"
        if partial and not takes:
            asked.send(failing(400, "the last message must be the user's"))
        elif asked.body.get("stream"):
            asked.send(says(" more"))
        else:
            asked.send(reply(200, {"choices": [], "usage": {"prompt_tokens": 9 + partial}}))

    with scripted_server(script) as server:
        model = OpenAIModel(f"m@{server.url}", max_retries=0)
        assert ask(model, answer="so far")[0] == " more"
        takes.clear()
        with pytest.raises(BackendError, match="status 400"):
            ask(OpenAIModel(f"m@{server.url}", max_retries=0), answer="so far")
        again = OpenAIModel(f"m@{server.url}", max_retries=0)
        assert ask(again, answer="so far")[0] == " more", "told to go on"
        assert again.capabilities.prefill is False


def test_whole_answers_only(fast_model: TokenModel) -> None:
    with (
        scripted_server(capable) as server,
        Router(fast_model, f"openai:m@{server.url}?prefill=whole&probe=first", policy="every:4,span=rest") as router,
    ):
        answer = router.complete(PROMPT, max_tokens=12)
        assert (answer.usage.round_trips, "whole answers only" in reasons(answer)) == (0, True)
        assert router.complete(PROMPT, policy="always,span=rest").text == " more"


# --- what is wrong with an address ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "no key was sent: set OPENAI_API_KEY"),
        (404, "check the model's name, and the URL"),
        (429, "too many requests, or the account is empty"),
    ],
)
def test_a_wrong_key_a_wrong_name_and_too_many_requests_are_told_apart(
    status: int, words: str, fast_model: TokenModel
) -> None:
    """By an answer too, though the probe beside it met them first."""
    with (
        scripted_server(lambda asked: asked.send(failing(status, "no"))) as server,
        Router(fast_model, f"openai:m@{server.url}?max_retries=0", policy="every:2,span=4") as router,
    ):
        router.chat(HELLO, max_tokens=6)
        wait_for(lambda: router.chat(HELLO, max_tokens=6).degraded)
        assert f"status {status}" in router.chat(HELLO, max_tokens=6).degraded
        with pytest.raises(BackendError, match=words):
            ask(router.slow)


def test_a_certificate_that_nobody_vouches_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("a certificate is made by openssl, which is not installed")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-keyout", key, "-out", certificate, "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True,
        capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with scripted_server(lambda asked: asked.send(says(" fine")), context) as server:
        assert server.url.startswith("https://")
        model = OpenAIModel(f"m@{server.url}", max_retries=9)
        with pytest.raises(BackendError, match=r"certificate of .* is not trusted: self.signed.*SSL_CERT_FILE"):
            ask(model)
        assert not server.asked
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert ask(OpenAIModel(f"m@{server.url}"))[0] == " fine"
    with (
        scripted_server(lambda asked: asked.send(says(" fine"))) as plain,
        pytest.raises(BackendError, match=r"cannot be reached.*does it speak https, and not http"),
    ):
        ask(OpenAIModel(f"m@{plain.url.replace('http:', 'https:')}", max_retries=9))


def test_a_stream_that_never_ends_but_repeats_itself(fast_model: TokenModel) -> None:
    """What was asked for is kept, and no more."""

    def script(asked: Asked) -> None:
        asked.send(STREAM_HEAD)
        while not server.stopping.is_set():
            asked.send(piece(event(text_chunk(" and so on"))))

    with (
        scripted_server(script) as server,
        Router(fast_model, f"openai:m@{server.url}", policy="always,span=rest") as router,
    ):
        answer = router.complete(PROMPT, max_tokens=20)
        assert answer.text.startswith(" and so on" * 20)
        assert set(answer.text.split(" and so on")) == {""}
        assert (answer.finish_reason, "beyond max_tokens=20" in answer.degraded) == ("length", True)


# --- what is counted and logged -------------------------------------------------------------------


def test_what_a_broken_stream_had_counted_is_kept(fast_model: TokenModel) -> None:
    """As of a server that counts in each chunk."""
    usage = {"prompt_tokens": 77, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 70}}

    def script(asked: Asked) -> None:
        asked.send(STREAM_HEAD + piece(event(text_chunk(" once") | {"usage": usage})))
        raise ConnectionAbortedError

    with (
        scripted_server(script) as server,
        Router(fast_model, f"openai:m@{server.url}", policy="always,span=rest") as router,
    ):
        slow = router.complete(PROMPT, max_tokens=9).usage.slow
    assert (slow.prefill, slow.cached, slow.decode) == (7, 70, 3)


def test_no_event_holds_a_prompt_or_a_key(fast_model: TokenModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though endpoints say both in what they complain of."""
    monkeypatch.setenv("OPENAI_API_KEY", key := "sk-do-not-write-this-down")
    secret = "The password is swordfish."

    def complains(asked: Asked) -> None:
        told = f"bad request {asked.headers['authorization']}: {secret}"
        if asked.body["model"] == "stream":
            asked.send(streamed(text_chunk(" x"), {"error": {"message": told}}))
        else:
            asked.send(failing(int(asked.body["model"]), told))

    structlog.reset_defaults()
    with structlog.testing.capture_logs() as logged, scripted_server(complains) as server:
        structlog.configure()
        for name in ("500", "401", "429", "stream"):
            tries = int(name == "500")  # each pauses
            slow = [f"openai:{model}@{server.url}?max_retries={tries}&probe=first" for model in (name, "503")]
            with Router(fast_model, slow, policy="every:2,span=4") as router:
                for prompt in (router.complete, lambda text, **more: router.chat(
                    [{"role": "user", "content": text}], **more)):  # fmt: skip
                    assert prompt(secret, max_tokens=6).degraded
    structlog.reset_defaults()
    names = {event["event"] for event in logged}
    assert names >= {"answered", "degraded", "endpoint_retry", "breaker_opened", "fallback_used"}
    said = json.dumps(logged)
    assert "swordfish" not in said
    assert key not in said
    assert logging.getLogger("fsgen_router").handlers
