"""``/v1/messages`` and its ``count_tokens``: Anthropic's messages."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from ..generation import Generation
from .body import Body, FsgenOptions, neutral, unsupported
from .dialect import MAX_STOPS, Ask, Dialect, Facts, Json, Messages, Reply, event, options_of, present, stopped_by
from .errors import ApiError, anthropic_error
from .events import Heard, Reasoning, Text, ToolArguments
from .truth import token_record, token_records, truth

STOP_REASONS: Final[dict[str, str]] = {
    "eog": "end_turn",
    "stop": "stop_sequence",
    "length": "max_tokens",
    "context": "model_context_window_exceeded",
    "tool_calls": "tool_use",
}


class CacheControl(Body):
    """What is read anyway: the beginnings of prompts stay in both models' caches."""

    type: Literal["ephemeral"]
    ttl: str | None = None


class TextBlock(Body):
    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None
    citations: Annotated[Any, neutral([])] = unsupported()


class ThinkingBlock(Body):
    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class ToolUseBlock(Body):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]
    cache_control: CacheControl | None = None


class ToolResultBlock(Body):
    type: Literal["tool_result"]
    tool_use_id: str
    content: str | list[TextBlock] | None = None
    is_error: bool | None = None
    cache_control: CacheControl | None = None


Block = Annotated[TextBlock | ThinkingBlock | ToolUseBlock | ToolResultBlock, Field(discriminator="type")]


class MessageParam(Body):
    role: Literal["user", "assistant"]
    content: str | list[Block]


class Tool(Body):
    name: str
    description: str | None = None
    input_schema: dict[str, Any]
    type: Literal["custom"] | None = None
    cache_control: CacheControl | None = None


class ToolChoice(Body):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class PromptBody(Body):
    """What the models read."""

    model: str | None = Field(default=None, description="one of /v1/models; left out: the Router's own policy")
    messages: list[MessageParam]
    system: str | list[TextBlock] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Annotated[Any, neutral({"type": "disabled"})] = unsupported({"type": "disabled"})


class CountBody(PromptBody):
    """A request to count a prompt's tokens."""


class MessagesBody(PromptBody):
    """A request for a message."""

    max_tokens: int
    stream: bool | None = None
    stop_sequences: Annotated[list[str], Field(max_length=MAX_STOPS)] | None = None
    temperature: float | None = Field(default=None, description="left out: 0, which is greedy")
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    metadata: dict[str, Any] | None = None
    fsgen: FsgenOptions | None = None
    service_tier: Annotated[Any, neutral("auto", "standard_only")] = unsupported("auto", "standard_only")
    container: Annotated[Any, neutral()] = unsupported()
    context_management: Annotated[Any, neutral()] = unsupported()
    mcp_servers: Annotated[Any, neutral([])] = unsupported([])


# --- in ------------------------------------------------------------------------------------------


def _joined(content: str | list[TextBlock] | None) -> str:
    return content if isinstance(content, str) else "".join(block.text for block in content or ())


def _turns(message: MessageParam) -> Messages:
    """A message as the Router takes it; results of tools are turns of their own, in front of what the user says."""
    blocks = [TextBlock(type="text", text=message.content)] if isinstance(message.content, str) else message.content
    turns: Messages = []
    text, thought, calls = [], "", []
    for number, block in enumerate(blocks):
        match block:
            case TextBlock():
                text.append(block.text)
            case ToolResultBlock() if message.role == "user":
                # Templates know no other way to say that a tool failed.
                said = ("Error: " if block.is_error else "") + _joined(block.content)
                turns.append({"role": "tool", "tool_call_id": block.tool_use_id, "content": said})
            case ToolUseBlock() if message.role == "assistant":
                function = {"name": block.name, "arguments": json.dumps(block.input, ensure_ascii=False)}
                calls.append({"id": block.id, "type": "function", "function": function})
            case ThinkingBlock() if message.role == "assistant":
                thought += block.thinking
            case _:
                raise ApiError(
                    400,
                    "invalid_request",
                    f"messages: block {number} of type {block.type} is not the {message.role}'s",
                    param="messages",
                )
    if text or calls or not turns:
        more = present(reasoning_content=thought or None, tool_calls=calls or None)
        turns.append({"role": message.role, "content": "".join(text), **more})
    return turns


def _prompt(body: PromptBody) -> Messages:
    system = _joined(body.system)
    opening: Messages = [{"role": "system", "content": system}] if system else []
    return opening + [turn for message in body.messages for turn in _turns(message)]


def _tools(body: PromptBody) -> Json:
    """Tools and how they are chosen, in the words of the Router's options."""
    choice = body.tool_choice
    if not body.tools:
        if choice is not None and choice.type in ("any", "tool"):
            raise ApiError(400, "invalid_request", "tool_choice without tools", param="tool_choice")
        return {}
    functions = [
        present(name=tool.name, description=tool.description, parameters=tool.input_schema) for tool in body.tools
    ]
    options: Json = {"tools": [{"type": "function", "function": function} for function in functions]}
    if choice is None:
        return options
    if choice.type == "tool":
        if choice.name is None:
            raise ApiError(400, "invalid_request", "tool_choice of type tool without a name", param="tool_choice")
        options["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
    else:
        options["tool_choice"] = {"any": "required"}.get(choice.type, choice.type)
    if choice.disable_parallel_tool_use:
        options["parallel_tool_calls"] = False
    return options


def ask(body: MessagesBody) -> Ask:
    options = options_of(
        body, "max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", stop="stop_sequences"
    ) | _tools(body)
    return Ask(
        model=body.model,
        prompts=(_prompt(body),),
        options=options,
        stream=bool(body.stream),
        fsgen=body.fsgen or FsgenOptions(),
        count_prompt=bool(body.stream),
    )


def ask_count(body: CountBody) -> Ask:
    return Ask(model=body.model, prompts=(_prompt(body),), options=_tools(body), n=0, count_prompt=True)


# --- out -----------------------------------------------------------------------------------------


def _usage(answer: Generation) -> Json:
    return {
        "input_tokens": answer.usage.prompt_tokens,
        "output_tokens": answer.usage.tokens,
        "fsgen": truth([answer]),
    }


class _Reply(Reply):
    def __init__(self, body: MessagesBody, facts: Facts) -> None:
        self._facts = facts
        self._tokens = bool(body.fsgen and body.fsgen.tokens)
        self._block = -1
        self._kind = ""
        """Of the content block that is open: a text, a thought or a tool's number."""
        self._head = {
            "id": f"msg_{facts.request_id}",
            "type": "message",
            "role": "assistant",
            "model": facts.model,
        }

    def opening(self) -> Iterable[bytes]:
        read = {"input_tokens": self._facts.prompt_tokens, "output_tokens": 0}
        # null: the API's own shape
        begun: Json = {**self._head, "content": [], "stop_reason": None, "stop_sequence": None, "usage": read}
        yield _event("message_start", message=begun)

    def heard(self, index: int, what: Heard) -> Iterable[bytes]:
        match what:
            case Text(text=text, token=token):
                told = self._tokens and token is not None
                if not (text or told):
                    return
                yield from self._in_block("text", {"type": "text", "text": ""})
                more = {"fsgen": {"tokens": [token_record(token, self._facts.text_of)]}} if told and token else {}
                yield self._delta({"type": "text_delta", "text": text}, **more)
            case Reasoning(text=text):
                yield from self._in_block("thinking", {"type": "thinking", "thinking": "", "signature": ""})
                yield self._delta({"type": "thinking_delta", "thinking": text})
            case ToolArguments():
                call: Json = {"type": "tool_use", "id": what.id, "name": what.name, "input": {}}
                yield from self._in_block(f"tool {what.index}", call)
                if what.arguments:
                    yield self._delta({"type": "input_json_delta", "partial_json": what.arguments})

    def _in_block(self, kind: str, opened: Json) -> Iterable[bytes]:
        """Open a content block where another kind, or none, is open."""
        if kind == self._kind:
            return
        yield from self._close_block()
        self._kind, self._block = kind, self._block + 1
        yield _event("content_block_start", index=self._block, content_block=opened)

    def _close_block(self) -> Iterable[bytes]:
        if self._kind:
            yield _event("content_block_stop", index=self._block)
        self._kind = ""

    def _delta(self, delta: Json, **more: Any) -> bytes:
        return _event("content_block_delta", index=self._block, delta=delta, **more)

    def closing(self, answers: Sequence[Generation]) -> Iterable[bytes]:
        yield from self._close_block()
        yield _event("message_delta", delta=self._stop(answers[0]), usage=_usage(answers[0]))
        yield _event("message_stop")

    def failed(self, error: ApiError) -> Iterable[bytes]:
        yield event(anthropic_error(error), "error")

    def _stop(self, answer: Generation) -> Json:
        # null where it was none: the API's own shape
        return {
            "stop_reason": STOP_REASONS[answer.finish_reason],
            "stop_sequence": stopped_by(answer, self._facts.stop),
        }

    def whole(self, answers: Sequence[Generation]) -> Json:
        (answer,) = answers
        content: list[Json] = []
        if answer.reasoning:
            content.append({"type": "thinking", "thinking": answer.reasoning, "signature": ""})
        if answer.text:
            content.append({"type": "text", "text": answer.text})
        content += [
            {"type": "tool_use", "id": call.id, "name": call.name, "input": json.loads(call.arguments or "{}")}
            for call in answer.tool_calls
        ]
        told = {"fsgen": {"tokens": token_records(answer.tokens, self._facts.text_of)}} if self._tokens else {}
        return {**self._head, "content": content, **self._stop(answer), "usage": _usage(answer), **told}


class _Count(Reply):
    """A number, and no answer."""

    def __init__(self, body: CountBody, facts: Facts) -> None:
        self._count = facts.prompt_tokens

    def whole(self, answers: Sequence[Generation]) -> Json:
        return {"input_tokens": self._count}


def _event(kind: str, **fields: Any) -> bytes:
    return event({"type": kind, **fields}, kind)


_PING = _event("ping")
_FIELDS = ("id", "type", "role", "model", "content", "stop_reason", "usage")
MESSAGES = Dialect("messages", "chat", MessagesBody, ask, _Reply, anthropic_error, _FIELDS, _PING)
COUNT_TOKENS = Dialect(
    "count_tokens", "count_tokens", CountBody, ask_count, _Count, anthropic_error, ("input_tokens",), _PING
)
