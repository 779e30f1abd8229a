"""``/v1/chat/completions``: OpenAI's chat completions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from ..generation import Generation
from . import logprobs
from .body import Body, FsgenOptions, neutral, unsupported
from .dialect import MAX_STOPS, Ask, Dialect, Facts, Json, Reply, event, finish, options_of, present
from .errors import ApiError, openai_error
from .events import Heard, Reasoning, Text, ToolArguments
from .logprobs import MAX_TOP
from .truth import cached, token_record, token_records, truth

FINISH: Final[dict[str, str]] = {"eog": "stop", "context": "length"}
"""Where the API has another word than the Router."""
Stop = str | Annotated[list[str], Field(max_length=MAX_STOPS)] | None


class FunctionCall(Body):
    name: str
    arguments: str


class CalledTool(Body):
    """A tool call of an earlier turn."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Body):
    """A message. What its role may be, and which parts its content may have, the Router says."""

    role: str
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[CalledTool] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: Annotated[Any, neutral("")] = unsupported()
    annotations: Annotated[Any, neutral([])] = unsupported()
    audio: Annotated[Any, neutral()] = unsupported()
    function_call: Annotated[Any, neutral()] = unsupported()


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: Annotated[Any, neutral(False)] = unsupported(False)


class ChatBody(Body):
    """A request for a chat completion."""

    model: str | None = Field(default=None, description="one of /v1/models; left out: the Router's own policy")
    messages: list[Message]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = Field(default=None, description="left out: 0, which is greedy")
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    n: int | None = Field(default=None, ge=1)
    stop: Stop = None
    logit_bias: dict[str, float] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP, description="the fast model's")
    response_format: dict[str, Any] | None = None
    regex: str | None = None
    grammar: str | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    fsgen: FsgenOptions | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    store: Annotated[Any, neutral(False)] = unsupported(False)
    service_tier: Annotated[Any, neutral("auto", "default")] = unsupported("auto", "default")
    presence_penalty: Annotated[Any, neutral(0, 0.0)] = unsupported(0)
    frequency_penalty: Annotated[Any, neutral(0, 0.0)] = unsupported(0)
    modalities: Annotated[Any, neutral(["text"])] = unsupported(["text"])
    reasoning_effort: Annotated[Any, neutral()] = unsupported()
    verbosity: Annotated[Any, neutral("medium")] = unsupported("medium")
    audio: Annotated[Any, neutral()] = unsupported()
    prediction: Annotated[Any, neutral()] = unsupported()
    web_search_options: Annotated[Any, neutral()] = unsupported()
    functions: Annotated[Any, neutral()] = unsupported()
    function_call: Annotated[Any, neutral()] = unsupported()


def turn(message: Message) -> Json:
    """A message as the Router takes it."""
    given = message.given("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content")
    if message.tool_calls:
        given.setdefault("content", "")
    return given


def ask(body: ChatBody) -> Ask:
    options = options_of(
        body,
        *("temperature", "top_p", "top_k", "min_p", "seed", "stop", "chat_template_kwargs", "regex", "grammar"),
        max_tokens="max_completion_tokens",
    )
    options |= options_of(body, max_tokens="max_tokens") if "max_tokens" not in options else {}
    options |= constraints(body)
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "invalid_request", "top_logprobs goes with logprobs: true", param="top_logprobs")
    if body.logit_bias:
        options["logit_bias"] = biases(body.logit_bias)
    return Ask(
        model=body.model,
        prompts=([turn(message) for message in body.messages],),
        options=options,
        n=body.n or 1,
        stream=bool(body.stream),
        fsgen=body.fsgen or FsgenOptions(),
    )


def constraints(body: ChatBody) -> Json:
    """What narrows an answer down: a format, and tools. What asks for nothing is left out."""
    options = body.given("response_format", "tools", "tool_choice", "parallel_tool_calls")
    if options.get("response_format") == {"type": "text"}:
        del options["response_format"]
    if not options.get("tools"):
        choice = options.get("tool_choice")
        if choice not in (None, "none", "auto"):
            raise ApiError(400, "invalid_request", "tool_choice without tools", param="tool_choice")
        for name in ("tools", "tool_choice", "parallel_tool_calls"):
            options.pop(name, None)
    return options


def biases(given: dict[str, float]) -> dict[int, float]:
    try:
        return {int(token): bias for token, bias in given.items()}
    except ValueError:
        raise ApiError(
            400, "invalid_request", "logit_bias: its keys are token ids, as text", param="logit_bias"
        ) from None


def usage(answers: Sequence[Generation], prompts: int = 1) -> Json:
    """Counts in OpenAI's words: a prompt counts once, however many answers it has."""
    each = len(answers) // prompts
    read = sum(answer.usage.prompt_tokens for answer in answers[::each])
    wrote = sum(answer.usage.tokens for answer in answers)
    return {
        "prompt_tokens": read,
        "completion_tokens": wrote,
        "total_tokens": read + wrote,
        "prompt_tokens_details": {"cached_tokens": sum(map(cached, answers[::each]))},
        "completion_tokens_details": {"reasoning_tokens": sum(a.usage.reasoning_tokens for a in answers)},
        "fsgen": truth(answers),
    }


def called(answer: Generation) -> list[Json] | None:
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in answer.tool_calls
    ]
    return calls or None


class _Reply(Reply):
    def __init__(self, body: ChatBody, facts: Facts) -> None:
        self._facts = facts
        self._tokens = bool(body.fsgen and body.fsgen.tokens)
        self._top = (body.top_logprobs or 0) if body.logprobs else None
        self._usage_apart = bool(body.stream_options and body.stream_options.include_usage)
        self._n = body.n or 1
        self._ended: list[Generation] = []
        self._head = {
            "id": f"chatcmpl-{facts.request_id}",
            "object": "chat.completion.chunk",
            "created": facts.created,
            "model": facts.model,
        }

    def _chunk(self, index: int, delta: Json, **more: Any) -> bytes:
        # null where nothing has ended yet: the API's own shape
        choice = {"index": index, "delta": delta, "finish_reason": None, **more}
        return event({**self._head, "choices": [choice]})

    def opening(self) -> Iterable[bytes]:
        for index in range(self._n):
            yield self._chunk(index, {"role": "assistant", "content": ""})

    def heard(self, index: int, what: Heard) -> Iterable[bytes]:
        match what:
            case Text(text=text, token=token):
                more: Json = {}
                if token is not None and self._tokens:
                    more["fsgen"] = {"tokens": [token_record(token, self._facts.text_of)]}
                if token is not None and token.piece and self._top is not None:
                    more["logprobs"] = {"content": [logprobs.entry(token, self._top, self._facts.text_of)]}
                if text or more:
                    yield self._chunk(index, {"content": text}, **more)
            case Reasoning(text=text):
                yield self._chunk(index, {"reasoning_content": text})
            case ToolArguments():
                function = present(name=what.name, arguments=what.arguments)
                call = present(index=what.index, id=what.id, type=what.id and "function", function=function)
                yield self._chunk(index, {"tool_calls": [call]})

    def ended(self, index: int, answer: Generation) -> Iterable[bytes]:
        self._ended.append(answer)
        last = len(self._ended) == self._n
        choice = {"index": index, "delta": {}, "finish_reason": finish(answer, FINISH)}
        chunk = {**self._head, "choices": [choice]}
        if not last or self._usage_apart:
            yield event(chunk)
        else:  # where usage was not asked for apart, it comes with the last chunk that has a choice
            yield event({**chunk, "usage": usage(self._ended)})

    def closing(self, answers: Sequence[Generation]) -> Iterable[bytes]:
        if self._usage_apart:
            yield event({**self._head, "choices": [], "usage": usage(answers)})
        yield b"data: [DONE]\n\n"

    def failed(self, error: ApiError) -> Iterable[bytes]:
        yield event(openai_error(error))
        yield b"data: [DONE]\n\n"

    def whole(self, answers: Sequence[Generation]) -> Json:
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [self._choice(index, answer) for index, answer in enumerate(answers)],
            "usage": usage(answers),
        }

    def _choice(self, index: int, answer: Generation) -> Json:
        calls = called(answer)
        message = present(
            role="assistant",
            content=answer.text,
            reasoning_content=answer.reasoning or None,
            tool_calls=calls,
        )
        if calls and not answer.text:
            message["content"] = None  # null, in the API's own shape
        choice: Json = {"index": index, "message": message, "finish_reason": finish(answer, FINISH)}
        if self._top is not None:
            entries = logprobs.entries(logprobs.shown(answer), self._top, self._facts.text_of)
            choice["logprobs"] = {"content": entries}
        if self._tokens:
            choice["fsgen"] = {"tokens": token_records(answer.tokens, self._facts.text_of)}
        return choice


_FIELDS = ("id", "object", "created", "model", "choices", "usage")
CHAT = Dialect("chat_completions", "chat", ChatBody, ask, _Reply, openai_error, _FIELDS)
