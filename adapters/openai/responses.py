"""Responses of an endpoint, read into events: a stream of server-sent chunks, or a whole reply."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

import httpx2
from pydantic import SecretStr, ValidationError

from fsgen_router.contracts.text_models import ReasoningChunk, TextChunk, TextEnd, TextEvent

from ..streaming import Channel
from .errors import NOT_AN_API, EndpointError, body_of, message_in, quoted, with_end
from .replies import FINISH, UNFINISHED, Calls, Reply, text_end

_MAX_EVENT_BYTES = 2**20
_MAX_BODY_BYTES = 2**23
_CHARS_PER_TOKEN = 64  # no vocabulary reaches this on average
_SPARE_CHARS = 1024
_MAX_REASONING_CHARS = 2**22  # its tokens count against max_tokens at some endpoints only


class Reader:
    """Reads what the endpoint called ``name`` answers; ``key`` is what it must not be quoted with."""

    def __init__(self, name: str, key: SecretStr | None) -> None:
        self._name, self._key = name, key

    def events(
        self,
        response: httpx2.Response,
        max_tokens: int,
        write_calls: Callable[[Sequence[tuple[str, str]]], str] | None = None,
    ) -> Generator[TextEvent]:
        """Chunks and the end of them, out of an event stream or (some know no streams) a whole reply.

        Where tools were offered, ``write_calls`` makes the text of their calls, which comes in one piece at the end.
        """
        finish: str | None = None
        usage: object = None
        room, spare = max_tokens * _CHARS_PER_TOKEN + _SPARE_CHARS, _MAX_REASONING_CHARS
        words, reasoning, refusal = Channel(), Channel(), Channel()
        said, refused, calls = False, "", Calls()
        replies = self._replies(response)
        while True:
            try:
                reply = next(replies, None)
            except (EndpointError, httpx2.HTTPError) as error:
                if finish is None:
                    with_end(error, _counted(usage))
                    raise
                reply = None  # it broke off after it had ended
            if reply is None:
                break
            usage = reply.usage or usage
            for choice in (reply.choices or ())[:1]:
                finish, last = choice.finish_reason or finish, bool(choice.finish_reason)
                thought, text = reasoning.push(choice.reasoning, last=last), words.push(choice.words, last=last)
                refused += refusal.push(choice.refusal, last=last)
                calls.push(choice.tool_calls)
                room, spare = room - len(text), spare - len(thought)
                if room < 0 or spare < 0:
                    raise EndpointError(
                        f"{self._name} writes on beyond max_tokens={max_tokens}", hint="the endpoint ignores the limit"
                    )
                said = said or bool(text.strip())
                if thought:
                    yield ReasoningChunk(thought)
                if text:
                    yield TextChunk(text)
        if thought := reasoning.flush():
            yield ReasoningChunk(thought)
        if text := words.flush():
            yield TextChunk(text)
        refused += refusal.flush()
        if refused and not (said or text):
            refuses = EndpointError(f"{self._name} refuses to answer", said=quoted(refused, self._key))
            raise with_end(refuses, _counted(usage))
        if calls.made and write_calls is not None:
            yield TextChunk(write_calls(calls.made))
            finish = "stop" if finish in ("tool_calls", "function_call") else finish
        yield self._end(finish, usage)
        next(replies, None)  # what closes the stream, so that the connection can be used again

    def _end(self, finish: str | None, usage: object) -> TextEnd:
        if finish is not None and finish.lower() in FINISH:
            return text_end(FINISH[finish.lower()], usage)
        if finish is None:
            error = EndpointError(
                f"{self._name} broke off in the middle of an answer",
                hint="it sent no finish_reason: was it stopped, or busy with another request?",
                retryable=True,
            )
        else:
            error = EndpointError(f"{self._name} ended its answer with {finish!r:.80}", hint=UNFINISHED.get(finish))
        raise with_end(error, _counted(usage))

    def _replies(self, response: httpx2.Response) -> Generator[Reply | None]:
        """Parsed messages; None at ``[DONE]``."""
        if _kind(response) == "application/json":
            yield self._parse(body_of(response, _MAX_BODY_BYTES))
            return
        response.encoding = "utf-8"  # as event streams are, whatever the header says
        for event in httpx2.EventSource(response, max_event_size=_MAX_EVENT_BYTES):
            if event.data.strip() == "[DONE]":
                yield None
            elif event.event == "error":
                raise self._failure(message_in(event.data)[0])
            elif event.data:
                yield self._parse(event.data)

    def _parse(self, data: str) -> Reply:
        try:
            reply = Reply.model_validate(json.loads(data))
        except (ValueError, RecursionError) as error:
            what = "no JSON"
            if isinstance(error, ValidationError):
                what = f"a wrong {'.'.join(map(str, error.errors()[0]['loc'])) or 'reply'}"
            raise EndpointError(
                f"{self._name} sent {what}", said=quoted(data, self._key), hint=NOT_AN_API, fault=True
            ) from None
        if reply.failure:
            failure = reply.failure
            raise self._failure(message_in(failure if isinstance(failure, str) else json.dumps(failure))[0])
        return reply

    def _failure(self, message: str) -> EndpointError:
        return EndpointError(f"{self._name} failed", said=quoted(message, self._key), retryable=True)

    def reply(self, response: httpx2.Response) -> Iterator[Mapping[str, Any]]:
        """A whole reply as it came; of a stream its count of tokens and its log-probabilities, as such a reply."""
        if _kind(response) != "text/event-stream":
            body = body_of(response, _MAX_BODY_BYTES)
            self._parse(body)
            yield json.loads(body)
            return
        usage, logprobs = None, None
        for reply in filter(None, self._replies(response)):
            usage = reply.usage or usage
            logprobs = logprobs or next((choice.logprobs for choice in reply.choices or ()), None)
        yield {"usage": usage, "choices": [{"logprobs": logprobs}]}


def _counted(usage: object) -> TextEnd | None:
    """What a stream had said of its tokens when it failed."""
    return text_end("stop", usage) if usage else None


def _kind(response: httpx2.Response) -> str:
    return response.headers.get("content-type", "").partition(";")[0].strip().lower()
