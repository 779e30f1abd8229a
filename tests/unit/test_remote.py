"""A slow model that gives text: spans and the rest of an answer, failures, and a real server on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from endpoints import delta_chunk, scripted_server, streamed
from scripted_pairs import N_VOCAB, Vocabulary, pair, tokenizer

from fsgen_router import (
    BackendError,
    ConfigurationError,
    InvalidRequest,
    Prices,
    ReasoningDelta,
    Router,
    RouterClosed,
    SmallExtentWarning,
    TextDelta,
)
from fsgen_router.adapters.scripted import ScriptedModel, ScriptedTextModel, ScriptedTokenizer
from fsgen_router.contracts.policy import REST, Ledger
from fsgen_router.contracts.text_models import Continuation, ReasoningChunk, TextChunk, TextEnd, TextEvent
from fsgen_router.decode import Engine, Request, TextPrompt
from fsgen_router.methods import Replace
from fsgen_router.pairing import PairVocabulary
from fsgen_router.policies import Always, Capped
from fsgen_router.run import drivers

# Short spans are the harder case, though nobody should pay for them.
pytestmark = pytest.mark.filterwarnings("ignore::fsgen_router.SmallExtentWarning")


def fast_of(case: int, n_seq: int = 2) -> ScriptedModel:
    return pair(case, n_seq=n_seq).fast


def says(*pieces: str) -> ScriptedTextModel:
    return ScriptedTextModel(lambda request: pieces)


def remote(case: int, endpoint: ScriptedTextModel, policy: str = "every:3,span=rest", **options: Any) -> Router:
    return Router(fast_of(case), endpoint, policy=policy, **options)


def letters(ids: Sequence[int]) -> np.ndarray:
    """Writes a, b and c without end."""
    row = np.zeros(N_VOCAB, np.float32)
    row[(len(ids) + sum(ids[-3:])) % 3] = 5.0
    return row


ASKED = "ab7"


def test_the_rest_is_handed_over() -> None:
    endpoint = says("né", " c", "stop", "7")
    with remote(11, endpoint) as router:
        answer = router.complete(ASKED)
        alone = router.with_policy("never").complete(ASKED)
    (request,) = endpoint.requests
    assert (request.prompt, request.messages) == (ASKED, None)
    assert request.answer == alone.text[: len(request.answer)] == " cstop"
    assert answer.text == request.answer + "né cstop7"
    assert answer.finish_reason == "eog"
    assert [span.source for span in answer.spans] == ["fast", "slow"]
    assert b"".join(token.piece for token in answer.tokens).decode() == answer.text
    usage = answer.usage
    assert (usage.round_trips, usage.escalations, usage.slow_forwards) == (1, 1, 4)
    assert usage.slow_bytes == len("né cstop7".encode())
    assert usage.slow_token_share == usage.slow_bytes / usage.text_bytes
    assert usage.disagreement_rate is None
    assert answer.degraded is None


def test_a_span_is_written_and_the_fast_model_goes_on() -> None:
    """It reads what the endpoint wrote, in its own tokens, and continues from there."""
    endpoint = ScriptedTextModel(lambda request: ["b", " c", "7"] * 9)
    fast = fast_of(2)
    with Router(fast, endpoint, policy="every:3,span=2") as router:
        answer = router.complete(ASKED, max_tokens=9)
    assert {request.max_tokens for request in endpoint.requests} <= {1, 2}
    ids = fast.tokenizer.encode(ASKED, add_bos=True)
    for at, token in enumerate(answer.tokens):
        if token.source == "fast":
            row = fast.script([*ids, *(t.id for t in answer.tokens[:at])])
            assert token.id == int(row.argmax())
    # A word that its limit may have cut off is left to the fast model.
    assert [t.piece for t in answer.tokens if t.source == "slow"] == [b"b"] * len(endpoint.requests)
    for request in endpoint.requests:
        assert answer.text.startswith(request.answer)


def test_chat_sends_the_messages() -> None:
    endpoint = says("7")
    messages = [{"role": "user", "content": "ab"}]
    with remote(3, endpoint, policy="always,span=rest") as router:
        assert router.chat(messages).text == "7"
    (request,) = endpoint.requests
    assert request.messages == tuple(messages)
    assert (request.prompt, request.answer) == (None, "")


async def test_text_streams_as_it_arrives() -> None:
    """Each piece is shown before the next one is there."""
    arrived = threading.Semaphore(0)

    def slowly(request: Continuation) -> Iterator[str]:
        for piece in ("a", "b", "7"):
            yield piece
            assert arrived.acquire(timeout=30)

    for batching in (False, True):
        with remote(4, ScriptedTextModel(slowly), policy="always,span=rest", batching=batching) as router:
            shown = []
            for event in router.stream(ASKED):
                if isinstance(event, TextDelta) and event.text:
                    shown.append(event.text)
                    arrived.release()
            assert shown == ["a", "b", "7"]
            shown = []
            async for event in router.astream(ASKED):
                if isinstance(event, TextDelta) and event.text:
                    shown.append(event.text)
                    arrived.release()
            assert shown == ["a", "b", "7"]


@pytest.mark.parametrize("batching", [False, True])
def test_a_stop_string_ends_the_call(batching: bool) -> None:
    endpoint = ScriptedTextModel(lambda request: iter(["a", "st", "op", "b"] * 1000))
    with remote(5, endpoint, policy="always,span=rest", batching=batching) as router:
        answer = router.complete(ASKED, stop="stop", max_tokens=2000)
        assert (answer.text, answer.finish_reason) == ("a", "stop")
        assert router.complete(ASKED, stop="stop", max_tokens=2000).text == "a"
    assert endpoint.closed_early == 2


@pytest.mark.parametrize("batching", [False, True])
def test_a_stop_string_at_once_is_no_silence(batching: bool) -> None:
    """Were the endpoint told of stop strings, it would take this one off, and seem to have nothing to say."""
    with remote(5, says("stop", "b"), policy="always,span=rest", batching=batching) as router:
        answer = router.complete(ASKED, stop="stop")
    assert (answer.text, answer.finish_reason, answer.degraded) == ("", "stop", None)


@pytest.mark.parametrize("batching", [False, True])
def test_a_stop_string_that_the_fast_model_began_ends_the_call(batching: bool) -> None:
    endpoint = says("7", "b", "x")
    fast = ScriptedModel(letters, tokenizer())
    with Router(fast, endpoint, policy="every:3,span=rest", batching=batching) as router:
        begun = router.complete(ASKED, policy="never", max_tokens=2).text
        answer = router.complete(ASKED, stop=f"{begun[1]}7b")
    assert (answer.text, answer.finish_reason) == (begun[0], "stop")
    assert endpoint.closed_early == 1


def test_the_endpoint_stops_at_its_limit() -> None:
    with remote(6, ScriptedTextModel(lambda request: ["a"] * 100), policy="always,span=rest") as router:
        answer = router.complete(ASKED, max_tokens=7)
    assert (answer.text, answer.finish_reason) == ("a" * 7, "length")


# --- reasoning, and ends without a word ----------------------------------------------------------

THOUGHT = [ReasoningChunk("Let me "), ReasoningChunk("see."), ReasoningChunk(" Well.")]


def fast_without_end() -> ScriptedModel:
    return ScriptedModel(letters, tokenizer())


def alone(max_tokens: int) -> str:
    """What the fast model writes by itself."""
    with Router(fast_without_end(), says("a"), policy="never") as router:
        return router.complete(ASKED, max_tokens=max_tokens).text


@pytest.mark.parametrize("batching", [False, True])
async def test_reasoning_is_counted_and_given_and_no_text(batching: bool) -> None:
    endpoint = ScriptedTextModel(lambda request: [*THOUGHT, "b", " c"])
    prices = Prices(input=2.0, output=8.0)
    with Router(fast_without_end(), endpoint, policy="every:3,span=rest", batching=batching, prices=prices) as router:
        events = list(router.stream(ASKED, max_tokens=9))
        answer = events[-1].generation
        assert [event async for event in router.astream(ASKED, max_tokens=9)][:-1] == events[:-1]
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == answer.text
    assert answer.text == alone(2) + "b c"
    assert "".join(event.text for event in events if isinstance(event, ReasoningDelta)) == answer.reasoning
    assert answer.reasoning == "Let me see. Well."
    assert (answer.finish_reason, answer.degraded) == ("eog", None)
    usage = answer.usage
    assert (usage.reasoning_tokens, usage.slow.decode, usage.slow_forwards, usage.round_trips) == (3, 5, 5, 1)
    assert usage.slow_tokens == len(answer.tokens) - 2
    assert usage.to_dict()["reasoning_tokens"] == 3
    report = answer.report()
    assert report.money_usd.routed == pytest.approx((usage.slow.prefill * 2.0 + 5 * 8.0) / 1e6)
    assert "reasoning tokens" in str(report)
    assert "Let me" not in str(report)


def test_the_first_token_is_no_thought() -> None:
    def slowly(request: Continuation) -> Iterator[str | ReasoningChunk]:
        yield ReasoningChunk("hm")
        threading.Event().wait(0.05)
        yield "a"

    with remote(1, ScriptedTextModel(slowly), policy="always,span=rest") as router:
        assert router.complete(ASKED).usage.first_token_seconds > 0.05


class Uncounted(ScriptedTextModel):
    """Says what the script does, and nothing of its tokens."""

    def stream(self, request: Continuation) -> Generator[TextEvent, None, None]:
        for event in super().stream(request):
            yield TextEnd(event.finish_reason) if isinstance(event, TextEnd) else event


def test_reasoning_that_an_endpoint_does_not_count_is_estimated() -> None:
    with remote(
        1, Uncounted(lambda r: [ReasoningChunk("hm, "), ReasoningChunk("née"), "b"]), "always,span=rest"
    ) as router:
        usage = router.complete(ASKED).usage
    assert (usage.reasoning_tokens, usage.slow.decode) == (2, 3)


def test_thoughts_of_two_calls_are_two_paragraphs() -> None:
    endpoint = ScriptedTextModel(lambda request: [*THOUGHT, "b", "b"])
    with Router(fast_without_end(), endpoint, policy="every:3,span=4") as router:
        events = list(router.stream(ASKED, max_tokens=10, max_slow_calls=2))
    answer = events[-1].generation
    assert answer.reasoning == "Let me see. Well.\n\nLet me see. Well."
    assert (answer.usage.round_trips, answer.usage.reasoning_tokens) == (2, 6)
    assert "".join(event.text for event in events if isinstance(event, ReasoningDelta)) == answer.reasoning


@pytest.mark.parametrize("batching", [False, True])
@pytest.mark.parametrize("pieces", [[], THOUGHT, [" "], [*THOUGHT, "\n"]])
def test_a_rest_without_a_word_ends_no_answer(pieces: list[Any], batching: bool) -> None:
    """The fast model's token stands, and it goes on alone; what was said of the end is not believed."""
    endpoint = ScriptedTextModel(lambda request: pieces)
    with Router(fast_without_end(), endpoint, policy="every:3,span=rest", batching=batching) as router:
        answer = router.complete(ASKED, max_tokens=9)
    assert answer.text == alone(9)
    assert (len(answer.tokens), answer.finish_reason) == (9, "length")
    assert len(endpoint.requests) == answer.usage.round_trips == 1
    thought = len([piece for piece in pieces if isinstance(piece, ReasoningChunk)])
    assert (answer.usage.reasoning_tokens, answer.usage.slow.decode) == (thought, len(pieces))
    assert answer.degraded.startswith("it said nothing")
    assert ("reasoning (3 tokens)" in answer.degraded) == bool(thought)
    assert "given up (it said nothing" in str(answer.report()).replace("\n", " ")


def test_a_reasoning_model_behind_http_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it as reasoning, then ``stop`` with an empty text: as some servers take a continuation for."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    usage = {"prompt_tokens": 9, "completion_tokens": 2, "completion_tokens_details": {"reasoning_tokens": 2}}
    thinking = streamed(
        delta_chunk(role="assistant", content=""),
        delta_chunk(reasoning_content="Let me "),
        delta_chunk(reasoning_content="see."),
        delta_chunk(content="", finish_reason="stop"),
        {"choices": [], "usage": usage},
    )
    with (
        scripted_server(lambda asked: asked.send(thinking)) as server,
        Router(fast_without_end(), f"openai:m@{server.url}?probe=first", policy="every:3,span=rest") as router,
    ):
        answer = router.chat([{"role": "user", "content": "ab"}], max_tokens=9)
    assert (len(answer.tokens), answer.finish_reason, answer.reasoning) == (9, "length", "Let me see.")
    assert answer.degraded == ("it said nothing: all that it wrote was reasoning (2 tokens), which can be turned off")
    assert (answer.usage.reasoning_tokens, answer.usage.slow.decode, answer.usage.round_trips) == (2, 2, 1)


@pytest.mark.parametrize("batching", [False, True])
@pytest.mark.parametrize("policy", ["every:3,span=3", "always,span=3"])
def test_spans_without_a_word_are_asked_for_twice(policy: str, batching: bool) -> None:
    endpoint = ScriptedTextModel(lambda request: [])
    with Router(fast_without_end(), endpoint, policy=policy, batching=batching) as router:
        answer = router.complete(ASKED, max_tokens=12)
    assert (answer.text, answer.degraded) == (alone(12), "it said nothing")
    assert len(endpoint.requests) == answer.usage.round_trips == 2


@pytest.mark.parametrize("cap", [{"max_slow_calls": 1}, {"max_slow_tokens": 6, "max_slow_calls": 1}])
def test_an_endpoint_that_never_said_a_word_is_told_of(cap: dict[str, int]) -> None:
    """Also where a cap left it no second call."""
    for policy in ("every:3,span=2", "every:3,span=rest"):
        with Router(fast_without_end(), says(), policy=policy) as router:
            answer = router.complete(ASKED, max_tokens=12, **cap)
        assert (answer.text, answer.degraded, answer.usage.round_trips) == (alone(12), "it said nothing", 1)


def test_a_span_of_white_space_is_text() -> None:
    """Unless the endpoint ends there."""
    endpoint = ScriptedTextModel(lambda request: [" "] * 9)
    with Router(fast_without_end(), endpoint, policy="every:3,span=2") as router:
        answer = router.complete(ASKED, max_tokens=12)
    assert (answer.degraded, len(endpoint.requests)) == (None, 4)


def test_one_span_without_a_word_is_no_reason_to_give_up() -> None:
    endpoint = ScriptedTextModel(lambda request: [] if len(endpoint.requests) == 1 else ["b"])
    with Router(fast_without_end(), endpoint, policy="every:3,span=2") as router:
        answer = router.complete(ASKED, max_tokens=12)
    assert (answer.degraded, answer.finish_reason, len(endpoint.requests)) == (None, "eog", 2)
    assert answer.text.endswith("b")


@pytest.mark.parametrize(("policy", "limit"), [("every:3,span=rest", 7), ("every:3,span=2", 2)])
def test_a_limit_that_went_into_reasoning(policy: str, limit: int) -> None:
    endpoint = ScriptedTextModel(lambda request: [*THOUGHT * 9, "b"])
    with Router(fast_without_end(), endpoint, policy=policy) as router:
        answer = router.complete(ASKED, max_tokens=9)
    assert answer.text == alone(9)
    assert f"its limit of {limit} tokens went into reasoning. Ask for more, or turn that off" in answer.degraded
    assert answer.usage.reasoning_tokens == answer.usage.slow.decode == limit * len(endpoint.requests)


def test_an_end_without_a_word_where_the_fast_model_ends_too() -> None:
    """The two agree, and it was the fast model that ended the answer."""

    def ends(ids: Sequence[int]) -> np.ndarray:
        return np.eye(N_VOCAB, dtype=np.float32)[min(tokenizer().eog_ids)] * 9 if len(ids) > 7 else letters(ids)

    endpoint = ScriptedTextModel(lambda request: [])
    with Router(ScriptedModel(ends, tokenizer()), endpoint, policy="every:6,span=rest") as router:
        answer = router.complete(ASKED, max_tokens=30)
    assert (answer.finish_reason, answer.degraded, len(endpoint.requests)) == ("eog", None, 1)
    assert answer.tokens[-1].source == "fast"


def test_a_baseline_without_a_word_is_the_slow_models_own() -> None:
    """No other model's text stands for it, and it measures nothing."""
    for endpoint in (says(), ScriptedTextModel(lambda request: THOUGHT), _fails_after(), _fails_after("b")):
        with Router(fast_without_end(), endpoint, policy="never") as router:
            answer = router.complete(ASKED, max_tokens=9, baseline=True)
        assert (answer.text, answer.degraded) == (alone(9), None)
        assert answer.baseline.text in ("", "b")
        assert answer.baseline.degraded
        assert all(token.source == "slow" for token in answer.baseline.tokens)
        assert answer.report().slow_forwards.baseline == "estimated"


def test_a_call_that_fails_after_a_thought_is_counted() -> None:
    endpoint = _fails_after(*THOUGHT)
    with Router(fast_without_end(), endpoint, policy="every:3,span=rest") as router:
        answer = router.complete(ASKED, max_tokens=9)
    assert (answer.text, answer.reasoning) == (alone(9), "Let me see. Well.")
    assert "went away" in answer.degraded
    assert (answer.usage.round_trips, answer.usage.reasoning_tokens > 0) == (1, True)


def test_giving_up_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with Router(fast_without_end(), says(), policy="every:3,span=rest") as router, caplog.at_level("WARNING"):
        router.complete(ASKED, max_tokens=9)
        (event,) = [record for record in caplog.records if "event='degraded'" in record.getMessage()]
        assert "model='scripted-text' reason='it said nothing'" in event.getMessage()
        # The request's id is random and may contain what was asked.
        assert ASKED not in re.sub("request_id='[0-9a-f]+'", "", caplog.text)
        caplog.clear()
        router.with_policy("never").complete(ASKED, max_tokens=9)
        assert "degraded" not in caplog.text


# --- what the default did ------------------------------------------------------------------------


def test_a_default_that_handed_nothing_over_says_so() -> None:
    def unsure(ids: Sequence[int]) -> np.ndarray:
        return letters(ids) * 0.8  # 1.4 nats

    endpoint = says("b")
    with Router(ScriptedModel(unsure, tokenizer()), endpoint) as router:
        answer = router.complete(ASKED, max_tokens=9)
        assert router.policy.name == "entropy>1.5,span=rest,window=8"
        text = " ".join(str(answer.report()).split())
        advice = answer.report().to_dict()["advice"]
        assert advice in text
        assert advice.startswith(f"The default policy ({router.policy.name}) handed nothing over")
        # Each policy that it names works where it is put, and asks.
        named = re.findall(r'policy="([^"]+)"', advice)
        assert len(named) == 2
        for policy in named:
            assert router.with_policy(policy).complete(ASKED, max_tokens=9).usage.escalations == 1
        assert router.complete(ASKED, max_tokens=9, max_slow_calls=3).report().advice == advice
        # Not where a cap forbade it, the policy was named, or it asked.
        assert router.complete(ASKED, max_tokens=9, max_slow_calls=0).report().advice is None
        assert router.with_policy(router.policy.name).complete(ASKED, max_tokens=9).report().advice is None
    with Router(ScriptedModel(lambda ids: np.zeros(N_VOCAB, np.float32), tokenizer()), says("b")) as router:
        answer = router.complete(ASKED, max_tokens=9)
        assert (answer.usage.escalations, answer.report().advice) == (1, None)
    with Router(*[pair(1).fast, pair(1).slow]) as router:
        assert not router.complete(ASKED, max_tokens=9).default_policy


def test_the_default_on_a_fast_model_without_doubt() -> None:
    with Router(ScriptedModel(lambda ids: 99 * letters(ids), tokenizer()), says("b")) as router:
        advice = router.complete(ASKED, max_tokens=9).report().advice
    assert re.findall(r'policy="([^"]+)"', advice) == ["always,span=rest"]


def _fails_after(*pieces: str | ReasoningChunk) -> ScriptedTextModel:
    def script(request: Continuation) -> Iterator[str | ReasoningChunk]:
        yield from pieces
        raise BackendError("the endpoint went away")

    return ScriptedTextModel(script)


@pytest.mark.parametrize("batching", [False, True])
@pytest.mark.parametrize("pieces", [(), ("b", " c")])
def test_a_failing_endpoint_degrades_the_answer(pieces: tuple[str, ...], batching: bool) -> None:
    """What it had said stands, and the fast model goes on."""
    fast = ScriptedModel(letters, tokenizer())
    with Router(fast, _fails_after(*pieces), policy="every:3,span=rest", batching=batching) as router:
        answer = router.complete(ASKED, max_tokens=10)
        assert "went away" in answer.degraded
        assert "Degraded" in str(answer.report())
        assert [t.piece.decode() for t in answer.tokens if t.source == "slow"] == list(pieces)
        assert (answer.usage.tokens, answer.finish_reason) == (10, "length")
        again = router.complete(ASKED, max_tokens=10)
        assert again.text == answer.text


@pytest.mark.parametrize("batching", [False, True])
def test_an_endpoint_that_fails_behind_its_last_token(batching: bool) -> None:
    """The answer is whole: what could have been the beginning of a stop string is shown, and the policy hears of it."""
    ended = []

    class Ended(Always):
        def end(self, state: object, ledger: object) -> None:
            ended.append(1)

    fast = ScriptedModel(letters, tokenizer())
    with Router(fast, _fails_after("a", "b"), policy=Ended(REST), batching=batching) as router:
        answer = router.complete(ASKED, max_tokens=2, stop="abc")
    assert (answer.text, answer.finish_reason, ended) == ("ab", "length", [1])
    assert "went away" in answer.degraded


def test_a_call_that_failed_at_once_is_not_counted() -> None:
    fast = ScriptedModel(letters, tokenizer())
    with Router(fast, _fails_after(), policy="every:3,span=rest") as router:
        usage = router.complete(ASKED, max_tokens=6).usage
    assert (usage.escalations, usage.round_trips, usage.slow_positions) == (1, 0, 0)


@pytest.mark.parametrize("before", ["", "a", "a,", "7\n", "\N{REPLACEMENT CHARACTER}"])
@pytest.mark.parametrize("text", ["ab", " c7", "né", "\n\n", " "])
def test_a_vocabulary_that_puts_a_space_before_everything_adds_none_to_what_was_said(before: str, text: str) -> None:
    class Spaced(ScriptedTokenizer):
        def encode(self, text: str, *, add_bos: bool, parse_special: bool = False) -> list[int]:
            return super().encode(" " + text, add_bos=add_bos, parse_special=parse_special)

    words = tokenizer()
    spaced = Spaced(words.pieces, eog=words.eog_ids, special=words.special_ids)
    ids = PairVocabulary(spaced, None).encode_after(before, text)
    assert b"".join(map(spaced.piece, ids)).decode() == text


def test_an_endpoint_that_came_to_its_end_ends_the_answer() -> None:
    """Also where its text has more tokens in the fast model's vocabulary than were asked for."""
    with remote(1, says("ab7ab7"), policy="always,span=rest") as router:
        answer = router.complete(ASKED, max_tokens=3)
    assert (answer.text, answer.finish_reason, len(answer.tokens)) == ("ab7ab7", "eog", 6)


def test_an_endpoint_that_found_more_in_its_cache_than_it_read() -> None:
    class Boasting(ScriptedTextModel):
        def stream(self, request: Continuation) -> Generator[TextEvent, None, None]:
            yield TextChunk("ab")
            yield TextEnd("stop", prompt_tokens=5, cached_tokens=50, completion_tokens=2)

    with remote(1, Boasting(lambda request: ()), policy="always,span=rest") as router:
        slow = router.complete(ASKED).usage.slow
    assert (slow.cached, slow.prefill, slow.decode) == (5, 0, 2)


@pytest.mark.parametrize("batching", [False, True])
@pytest.mark.parametrize("stop", [(), (" a a",)])
def test_an_endpoint_that_cannot_be_left_cleanly(batching: bool, stop: tuple[str, ...]) -> None:
    class Stubborn(ScriptedTextModel):
        def stream(self, request: Continuation) -> Generator[TextEvent, None, None]:
            try:
                while True:
                    yield TextChunk(" a")
            finally:
                raise OSError("connection reset while closing")

    fast = fast_of(33, n_seq=1)
    with Router(fast, Stubborn(lambda r: ()), policy="always,span=rest", batching=batching) as router:
        if stop:
            assert router.complete(ASKED, stop=stop).finish_reason == "stop"
        else:
            stream = router.stream(ASKED)
            next(stream)
            stream.close()
        assert router.complete(ASKED, max_tokens=2, max_slow_calls=0).tokens


def test_a_baselines_call_that_hangs_is_left_when_the_router_closes() -> None:
    """Although the call before it, of the same request, is still being left."""
    second, hang = threading.Event(), threading.Event()

    class Hanging(ScriptedTextModel):
        def stream(self, request: Continuation) -> Generator[TextEvent, None, None]:
            self.requests.append(request)
            try:
                yield TextChunk("a")
                if len(self.requests) > 1:
                    second.set()
                    hang.wait(60)
                yield TextEnd("stop")
            finally:
                second.wait(30)

    router = remote(33, Hanging(lambda request: ()), policy="always,span=rest", batching=True)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(router.complete, ASKED, baseline=True)
        assert second.wait(30)
        threading.Event().wait(0.2)
        router.close()
        with pytest.raises(RouterClosed):
            asked.result(30)
        hang.set()


def test_a_call_that_thought_and_said_nothing_is_counted() -> None:
    """Its tokens are billed all the same."""

    class Thinking(ScriptedTextModel):
        def stream(self, request: Continuation) -> Generator[TextEvent, None, None]:
            yield TextEnd("length", prompt_tokens=50, cached_tokens=10, completion_tokens=request.max_tokens)

    fast = ScriptedModel(letters, tokenizer())
    prices = Prices(input=2.0, output=8.0, cached_input=1.0)
    with Router(
        fast, Thinking(lambda request: ()), policy="every:3,span=2", prices=prices, at_any_price=True
    ) as router:
        answer = router.complete(ASKED, max_tokens=6)
    usage = answer.usage
    assert (usage.escalations, usage.round_trips) == (2, 2)
    assert answer.report().money_usd.routed == pytest.approx((80 * 2.0 + 20 * 1.0 + 4 * 8.0) / 1e6)
    assert (usage.slow.prefill, usage.slow.cached, usage.slow.decode) == (80, 20, 4)


async def test_a_cancelled_request_leaves_the_endpoint_alone() -> None:
    """Even one that hangs: nobody waits for it."""
    release = threading.Event()

    def hangs(request: Continuation) -> Iterable[str]:
        yield "a"
        release.wait(30)

    fast = fast_of(9, n_seq=1)
    with Router(fast, ScriptedTextModel(hangs), policy="always,span=rest") as router:
        for _ in range(3):
            async with contextlib.aclosing(router.astream(ASKED)) as stream:
                async for event in stream:
                    if event.text:
                        break
            task = asyncio.create_task(router.acomplete(ASKED))
            await asyncio.sleep(0.02)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(task, 10)
        assert (await router.with_policy("never").acomplete(ASKED)).tokens
        # Nor does the interpreter at its end.
        assert all(thread.daemon for thread in threading.enumerate() if thread.name.startswith("fsgen-"))
        release.set()


@pytest.mark.parametrize("n_seq", [1, 2])
@pytest.mark.parametrize("said", [(), ("a",)])
async def test_closing_the_router_ends_the_wait_for_an_endpoint_that_hangs(said: tuple[str, ...], n_seq: int) -> None:
    asked, release = threading.Semaphore(0), threading.Event()

    def hangs(request: Continuation) -> Iterable[str]:
        yield from said
        asked.release()
        release.wait(30)

    routers = [Router(fast_of(9, n_seq), ScriptedTextModel(hangs), policy="always,span=rest") for _ in range(2)]
    with ThreadPoolExecutor(1) as thread:
        consumers = [
            asyncio.create_task(routers[0].acomplete(ASKED)),
            asyncio.wrap_future(thread.submit(routers[1].complete, ASKED)),
        ]
        for _ in consumers:
            assert await asyncio.to_thread(asked.acquire, timeout=30)
        for router in routers:
            router.close()
        try:
            for consumer in consumers:
                with pytest.raises(RouterClosed):
                    await asyncio.wait_for(consumer, 10)
        finally:
            release.set()


def test_half_a_surrogate_pair_is_no_text() -> None:
    """JSON can spell one; nothing behind the endpoint can hold it."""
    words = ScriptedTokenizer([b"a", b"b", b"?", b"7", b"<end>"], eog=[4])
    fast = ScriptedModel(lambda ids: np.eye(5, dtype=np.float32)[0], words)
    with Router(fast, says("b", "\ud83d", "7"), policy="always,span=rest") as router:
        assert router.complete(ASKED).text == "b?7"


def test_an_escalation_inside_a_character_waits_for_its_end() -> None:
    """An endpoint gets text, so it is not asked where the bytes so far are none."""
    for case in range(150):
        endpoint = says("7")
        with remote(case, endpoint, policy="random:0.5,span=1", seed=case) as router:
            answer = router.complete(ASKED, max_tokens=20)
        for request in endpoint.requests:
            assert "�" not in request.answer or "�" in answer.text
        assert len(endpoint.requests) == answer.usage.escalations


def test_what_it_costs() -> None:
    prices = Prices(input=2.0, output=8.0)
    with remote(10, says("a", "b"), policy="always,span=rest", prices=prices) as router:
        report = router.complete(ASKED, baseline=True).report()
    assert report.slow_forwards.routed == report.slow_forwards.slow_only == 2
    assert report.flops.routed is None  # nobody knows its size
    assert report.money_usd.routed == report.money_usd.slow_only > 0
    usage = report.usage.slow
    assert report.money_usd.routed == pytest.approx((usage.prefill * 2.0 + usage.decode * 8.0) / 1e6)
    failing = Router(fast_of(10), _fails_after(), policy="always,span=rest", prices=prices)
    assert failing.complete(ASKED).report().money_usd.routed == 0
    failing.close()


def test_what_such_a_pair_cannot_do_is_refused() -> None:
    fast, endpoint = fast_of(11), says("a")
    for options, words in (
        ({"method": "verify"}, "cannot judge drafts"),
        ({"audit": 0.1}, "cannot audit"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            Router(fast, endpoint, **options)
    with pytest.raises(ConfigurationError, match="cannot be the fast model"):
        Router(endpoint, fast)
    with Router(fast, endpoint) as router:
        assert router.method.name == "replace"
        assert "span=rest" in router.policy.name
        with pytest.raises(ConfigurationError, match="cannot judge drafts"):
            router.with_policy("never", method="verify:exact")
        for option in ({"logit_bias": {1: 2.0}}, {"constraint": object()}):
            with pytest.raises((InvalidRequest, ConfigurationError)):
                router.complete(ASKED, **option)
        with pytest.raises(ConfigurationError, match="no steps to time"):
            router.measure_steps()
        assert router.complete(ASKED).tokens


def test_asking_an_endpoint_for_a_few_tokens_is_warned_of() -> None:
    with pytest.warns(SmallExtentWarning, match=r"every:3 asks .* for 1 token at a time.*span=rest") as told:
        router = remote(12, says("a"), policy="every:3")
    assert told[0].filename == __file__  # the line that made the Router
    with pytest.warns(SmallExtentWarning, match="for 7 tokens"):
        router.with_policy("entropy>1,span=7")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for policy in ("never", "every:3,span=8", "entropy>1,span=rest"):
            router.with_policy(policy)


@pytest.mark.parametrize(("extent", "limit"), [(REST, 20), (REST, 7), (6, 12), (3, 12), (5, 3)])
def test_a_fork_in_the_middle_of_a_continuation_repeats_nothing(extent: int, limit: int) -> None:
    """What was said before it stands in both, and each goes on from there: to the same text, unless a span ends."""
    whole = "ab,b,,a7,b"
    endpoint = ScriptedTextModel(lambda request: whole[len(request.answer) :])
    models = {"fast": ScriptedModel(letters, tokenizer()), "slow": endpoint}

    def make() -> Engine:
        return Engine(
            Request(prompts={"fast": [0]}, text=TextPrompt(prompt="a"), key="", max_tokens=limit),
            policy=Capped(Always(extent), max_calls=1),
            method=Replace(),
            vocabulary=Vocabulary(),
            contexts={"fast": 4096},
            ledger=Ledger(),
        )

    expected = "".join(emit.text for emit in drivers.run(make(), models))
    original, twin, shown = make(), None, ""
    steps = drivers.run(original, models)
    for emit in steps:
        shown += emit.text
        if original.state.span_text == "ab,":
            twin = original.fork()
            assert shown + "".join(emit.text for emit in drivers.run(twin, models)) == twin.generation.text
            assert twin.generation.text == expected or extent != REST
    assert twin is not None
    assert shown == original.generation.text == expected
    assert endpoint.requests[2:] == [] or endpoint.requests[2].answer == "ab,"


def test_a_fork_in_the_middle_of_a_thought() -> None:
    """The call is counted in both, what it had thought is kept, and the twin asks again."""
    endpoint = ScriptedTextModel(lambda request: [*THOUGHT, "b"])
    models = {"fast": fast_without_end(), "slow": endpoint}
    original = Engine(
        Request(prompts={"fast": [0]}, text=TextPrompt(prompt="a"), key="", max_tokens=9),
        policy=Always(REST), method=Replace(), vocabulary=Vocabulary(), contexts={"fast": 4096}, ledger=Ledger(),
    )  # fmt: skip
    for emit in drivers.run(original, models):
        if emit.reasoning == "see.":
            twin = original.fork()
            list(drivers.run(twin, models))
    assert original.generation.text == twin.generation.text == "b"
    assert original.generation.reasoning == "Let me see. Well."
    assert twin.generation.reasoning == "Let me see.\n\nLet me see. Well."
    assert (original.generation.usage.round_trips, twin.generation.usage.round_trips) == (1, 2)


@pytest.mark.parametrize(
    ("said", "text", "repairs"),
    [
        ("more.", "ab more.", ["space"]),
        ("ab more.", "ab more.", ["restart"]),
        ("Sure, here is the continuation:\n\nab more.", "ab more.", ["introduction", "restart"]),
        (" more.", "ab more.", []),
    ],
)
def test_repairs_at_a_seam_are_counted_and_logged(
    said: str, text: str, repairs: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where an endpoint takes no partial answer, and was told to go on."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    words = ScriptedTokenizer(
        [*tokenizer().pieces, *(bytes([b]) for b in b"deghinorstu.S:m")], eog=[19, 20], special=[18]
    )

    def writes(ids: Sequence[int]) -> np.ndarray:
        return np.pad(letters(ids), (0, words.n_vocab - N_VOCAB))

    answering = streamed(*(delta_chunk(content=letter) for letter in said), delta_chunk(finish_reason="stop"))
    with (
        scripted_server(lambda asked: asked.send(answering)) as server,
        Router(
            ScriptedModel(writes, words), f"openai:m@{server.url}?prefill=never&probe=first", policy="every:3,span=rest"
        ) as router,
        caplog.at_level("INFO"),
    ):
        answer = router.chat([{"role": "user", "content": ASKED}], max_tokens=30)
    assert server.bodies[0]["messages"][1] == {"role": "assistant", "content": "ab"}
    assert (answer.text, answer.degraded) == (text, None)
    assert answer.usage.to_dict()["seam_repairs"] == len(repairs)
    assert ("seam repairs" in str(answer.report())) == bool(repairs)
    logged = [record.getMessage() for record in caplog.records if "seam_repaired" in record.getMessage()]
    assert len(logged) == bool(repairs)
    assert all(f"repairs={repairs}" in line and "more" not in line for line in logged)
