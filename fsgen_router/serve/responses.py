"""``/v1/responses``: OpenAI's responses, without a memory of earlier ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import Discriminator, Field, Tag

from ..generation import Generation
from . import logprobs
from .body import Body, FsgenOptions, neutral, unsupported
from .chat_completions import Stop
from .dialect import Ask, Dialect, Facts, Json, Messages, Reply, event, options_of, present
from .errors import ApiError, openai_error
from .events import Heard, Reasoning, Text, ToolArguments
from .logprobs import MAX_TOP
from .truth import cached, token_record, token_records, truth

LOGPROBS: Final = "message.output_text.logprobs"


# --- in ------------------------------------------------------------------------------------------


class Part(Body):
    """A piece of a message. Which types there are, :func:`_text_of` says."""

    type: Literal["input_text", "output_text", "text", "reasoning_text", "summary_text"]
    text: str
    annotations: Annotated[Any, neutral([])] = unsupported([])
    logprobs: list[Any] | None = None


class Said(Body):
    """A message."""

    type: Literal["message"] = "message"
    role: str
    content: str | list[Part]
    id: str | None = None
    status: str | None = None
    phase: str | None = None


class Called(Body):
    """A tool call of an earlier turn."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: str | None = None


class Returned(Body):
    """What a tool said."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | list[Part]
    id: str | None = None
    status: str | None = None


class Thought(Body):
    """What was thought in an earlier turn."""

    type: Literal["reasoning"]
    id: str | None = None
    summary: list[Part] | None = None
    content: list[Part] | None = None
    encrypted_content: Annotated[Any, neutral()] = unsupported()
    status: str | None = None


def _type_of(item: Any) -> Any:
    return item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", None)


Item = Annotated[
    Annotated[Said, Tag("message")]
    | Annotated[Called, Tag("function_call")]
    | Annotated[Returned, Tag("function_call_output")]
    | Annotated[Thought, Tag("reasoning")],
    Discriminator(_type_of),
]


class TextSettings(Body):
    format: dict[str, Any] | None = None
    verbosity: Annotated[Any, neutral("medium")] = unsupported("medium")


class ReasoningSettings(Body):
    effort: Annotated[Any, neutral()] = unsupported()
    summary: Annotated[Any, neutral()] = unsupported()
    generate_summary: Annotated[Any, neutral()] = unsupported()


class StreamSettings(Body):
    include_obfuscation: Annotated[Any, neutral(False)] = unsupported(False)


class ResponseBody(Body):
    """A request for a response."""

    model: str | None = Field(default=None, description="one of /v1/models; left out: the Router's own policy")
    input: str | list[Item]
    instructions: str | None = None
    stream: bool | None = None
    stream_options: StreamSettings | None = None
    max_output_tokens: int | None = None
    temperature: float | None = Field(default=None, description="left out: 0, which is greedy")
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: Stop = None
    include: list[Literal["message.output_text.logprobs"]] | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP, description="the fast model's")
    text: TextSettings | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning: ReasoningSettings | None = None
    fsgen: FsgenOptions | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    store: Annotated[Any, neutral(False)] = unsupported(False)
    background: Annotated[Any, neutral(False)] = unsupported(False)
    service_tier: Annotated[Any, neutral("auto", "default")] = unsupported("auto", "default")
    truncation: Annotated[Any, neutral("disabled")] = unsupported("disabled")
    previous_response_id: Annotated[Any, neutral()] = unsupported()
    conversation: Annotated[Any, neutral()] = unsupported()
    prompt: Annotated[Any, neutral()] = unsupported()
    max_tool_calls: Annotated[Any, neutral()] = unsupported()


def _joined(content: str | list[Part] | None) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content or ())


def _turns(body: ResponseBody) -> Messages:
    """Items as the Router's messages: what the assistant thought, said and called in one turn is one message."""
    turns: Messages = [{"role": "system", "content": body.instructions}] if body.instructions else []
    if isinstance(body.input, str):
        return [*turns, {"role": "user", "content": body.input}]
    open_turn: Json | None = None
    for item in body.input:
        if isinstance(item, Returned):
            turns.append({"role": "tool", "tool_call_id": item.call_id, "content": _joined(item.output)})
        elif isinstance(item, Said) and item.role != "assistant":
            turns.append({"role": item.role, "content": _joined(item.content)})
        else:
            if open_turn is None:
                open_turn = {"role": "assistant", "content": ""}
                turns.append(open_turn)
            _add(open_turn, item)
            continue
        open_turn = None
    return turns


def _add(turn: Json, item: Said | Called | Thought) -> None:
    match item:
        case Said():
            turn["content"] += _joined(item.content)
        case Called():
            function = {"name": item.name, "arguments": item.arguments}
            turn.setdefault("tool_calls", []).append({"id": item.call_id, "type": "function", "function": function})
        case Thought() if item.content:
            turn["reasoning_content"] = turn.get("reasoning_content", "") + _joined(item.content)


def _constraints(body: ResponseBody) -> Json:
    """Format and tools in the words of the Router's options, which are those of chat completions."""
    options: Json = {}
    form = body.text.format if body.text is not None and body.text.format else {"type": "text"}
    if form.get("type") == "json_schema":
        options["response_format"] = {
            "type": "json_schema",
            "json_schema": {key: value for key, value in form.items() if key != "type"},
        }
    elif form.get("type") != "text":
        options["response_format"] = form
    if not body.tools:
        if body.tool_choice not in (None, "none", "auto"):
            raise ApiError(400, "invalid_request", "tool_choice without tools", param="tool_choice")
        return options
    options["tools"] = [_nested(tool) for tool in body.tools]
    if isinstance(body.tool_choice, dict):
        options["tool_choice"] = _nested(body.tool_choice)
    elif body.tool_choice is not None:
        options["tool_choice"] = body.tool_choice
    if body.parallel_tool_calls is not None:
        options["parallel_tool_calls"] = body.parallel_tool_calls
    return options


def _nested(tool: Json) -> Json:
    """A function tool as chat completions write it: what is flat here is under ``function`` there."""
    if tool.get("type") != "function":
        raise ApiError(400, "invalid_request", f"tools: no tools of type {tool.get('type')!r} here", param="tools")
    known = {key: value for key, value in tool.items() if key != "type" and value is not None}
    return {"type": "function", "function": known}


def ask(body: ResponseBody) -> Ask:
    options = options_of(
        body,
        *("temperature", "top_p", "top_k", "min_p", "seed", "stop", "chat_template_kwargs"),
        max_tokens="max_output_tokens",
    )
    return Ask(
        model=body.model,
        prompts=(_turns(body),),
        options=options | _constraints(body),
        stream=bool(body.stream),
        fsgen=body.fsgen or FsgenOptions(),
    )


# --- out -----------------------------------------------------------------------------------------


class _Reply(Reply):
    """Output items are numbered as they come: a thought, a message, function calls."""

    def __init__(self, body: ResponseBody, facts: Facts) -> None:
        self._body, self._facts = body, facts
        self._tokens = bool(body.fsgen and body.fsgen.tokens)
        self._top = (body.top_logprobs or 0) if LOGPROBS in (body.include or ()) else None
        self._number = 0
        self._items: list[Json] = []
        """Those that are done."""
        self._open: Json | None = None
        self._kind = ""
        self._text = ""
        self._logprobs: list[Json] = []

    def _response(self, status: str, output: list[Json], **more: Any) -> Json:
        body = self._body
        # null where the API's own shape has it
        return {
            "id": f"resp_{self._facts.request_id}",
            "object": "response",
            "created_at": self._facts.created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "model": self._facts.model,
            "output": output,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "tool_choice": body.tool_choice or "auto",
            "tools": body.tools or [],
            "temperature": body.temperature or 0.0,
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "max_output_tokens": body.max_output_tokens,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "text": {"format": (body.text and body.text.format) or {"type": "text"}},
            "truncation": "disabled",
            "metadata": body.metadata or {},
            **more,
        }

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._number += 1
        return event({"type": f"response.{kind}", "sequence_number": self._number - 1, **fields}, f"response.{kind}")

    # --- streamed ---

    def opening(self) -> Iterable[bytes]:
        yield self._event("created", response=self._response("in_progress", []))
        yield self._event("in_progress", response=self._response("in_progress", []))

    def heard(self, index: int, what: Heard) -> Iterable[bytes]:
        match what:
            case Text(text=text, token=token):
                more: Json = {"logprobs": []}
                if token is not None and self._tokens:
                    more["fsgen"] = {"tokens": [token_record(token, self._facts.text_of)]}
                if token is not None and token.piece and self._top is not None:
                    more["logprobs"] = [logprobs.entry(token, self._top, self._facts.text_of)]
                    self._logprobs += more["logprobs"]
                if text or more["logprobs"] or "fsgen" in more:
                    yield from self._in_item("message", self._message("", "in_progress", parts=False))
                    self._text += text
                    yield self._piece("output_text.delta", content_index=0, delta=text, **more)
            case Reasoning(text=text):
                yield from self._in_item("reasoning", self._thought("", "in_progress", parts=False))
                self._text += text
                yield self._piece("reasoning_text.delta", content_index=0, delta=text)
            case ToolArguments():
                call = self._call(what.id or "", what.name or "", "", "in_progress")
                yield from self._in_item(f"call {what.index}", call)
                self._text += what.arguments
                yield self._piece("function_call_arguments.delta", delta=what.arguments)

    def _piece(self, kind: str, **fields: Any) -> bytes:
        assert self._open is not None
        return self._event(kind, item_id=self._open["id"], output_index=len(self._items), **fields)

    def _in_item(self, kind: str, opened: Json) -> Iterable[bytes]:
        """Open an output item where another one, or none, is open."""
        if kind == self._kind:
            return
        yield from self._close_item()
        self._kind, self._open, self._text, self._logprobs = kind, opened, "", []
        yield self._event("output_item.added", output_index=len(self._items), item=opened)
        if kind in ("message", "reasoning"):
            yield self._piece("content_part.added", content_index=0, part=self._part(""))

    def _part(self, text: str) -> Json:
        if self._kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return self._output_text(text, self._logprobs if self._top is not None else None)

    def _close_item(self) -> Iterable[bytes]:
        if self._open is None:
            return
        if self._kind == "message":
            yield self._piece("output_text.done", content_index=0, text=self._text, logprobs=self._logprobs)
            done = self._message(self._text, "completed", self._logprobs if self._top is not None else None)
        elif self._kind == "reasoning":
            yield self._piece("reasoning_text.done", content_index=0, text=self._text)
            done = self._thought(self._text, "completed")
        else:
            name = self._open["name"]
            yield self._piece("function_call_arguments.done", name=name, arguments=self._text)
            done = self._call(self._open["call_id"], name, self._text, "completed")
        if self._kind in ("message", "reasoning"):
            yield self._piece("content_part.done", content_index=0, part=self._part(self._text))
        yield self._event("output_item.done", output_index=len(self._items), item=done)
        self._items.append(done)
        self._open, self._kind = None, ""

    def closing(self, answers: Sequence[Generation]) -> Iterable[bytes]:
        yield from self._close_item()
        response = self._ended_response(answers[0], self._items)
        kind = "completed" if response["status"] == "completed" else "incomplete"
        yield self._event(kind, response=response)

    def failed(self, error: ApiError) -> Iterable[bytes]:
        told = openai_error(error)["error"]
        said = {"code": told["code"] or told["type"], "message": told["message"]}
        yield self._event("failed", response=self._response("failed", self._items) | {"error": said})

    # --- whole ---

    def whole(self, answers: Sequence[Generation]) -> Json:
        (answer,) = answers
        output: list[Json] = []
        if answer.reasoning:
            output.append(self._thought(answer.reasoning, "completed"))
        calls = answer.tool_calls
        if answer.text or not calls:
            entries = None
            if self._top is not None:
                entries = logprobs.entries(logprobs.shown(answer), self._top, self._facts.text_of)
            output.append(self._message(answer.text, "completed", entries))
        output += [self._call(call.id, call.name, call.arguments, "completed") for call in calls]
        told = {"fsgen": {"tokens": token_records(answer.tokens, self._facts.text_of)}} if self._tokens else {}
        return self._ended_response(answer, output) | told

    def _ended_response(self, answer: Generation, output: list[Json]) -> Json:
        cut_off = answer.finish_reason in ("length", "context")
        usage = answer.usage
        response = self._response(
            "incomplete" if cut_off else "completed",
            output,
            usage={
                "input_tokens": usage.prompt_tokens,
                "input_tokens_details": {"cached_tokens": cached(answer)},
                "output_tokens": usage.tokens,
                "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
                "total_tokens": usage.prompt_tokens + usage.tokens,
                "fsgen": truth([answer]),
            },
        )
        return response | ({"incomplete_details": {"reason": "max_output_tokens"}} if cut_off else {})

    def _message(self, text: str, status: str, entries: list[Json] | None = None, *, parts: bool = True) -> Json:
        content = [self._output_text(text, entries)] if parts else []
        message = {"id": f"msg_{self._facts.request_id}", "type": "message", "role": "assistant"}
        return {**message, "status": status, "content": content}

    @staticmethod
    def _output_text(text: str, entries: list[Json] | None) -> Json:
        return present(type="output_text", text=text, annotations=[], logprobs=entries)

    def _thought(self, text: str, status: str, *, parts: bool = True) -> Json:
        content = [{"type": "reasoning_text", "text": text}] if parts else []
        thought: Json = {"id": f"rs_{self._facts.request_id}", "type": "reasoning", "summary": []}
        return {**thought, "status": status, "content": content}

    def _call(self, call_id: str, name: str, arguments: str, status: str) -> Json:
        called = {"id": f"fc_{call_id}", "type": "function_call", "call_id": call_id, "name": name}
        return {**called, "arguments": arguments, "status": status}


_FIELDS = ("id", "object", "created_at", "status", "model", "output", "usage")
RESPONSES = Dialect("responses", "chat", ResponseBody, ask, _Reply, openai_error, _FIELDS)
