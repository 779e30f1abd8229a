"""Prompts and messages as callers write them, checked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NotRequired, TypeAlias, get_args

from typing_extensions import TypedDict  # pydantic takes no other before Python 3.12

from ..errors import InvalidRequest

ChatRole: TypeAlias = Literal["system", "developer", "user", "assistant", "tool"]


class TextPart(TypedDict):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str


class CalledFunction(TypedDict):
    """Which function a tool call names, and its arguments as JSON text."""

    name: str
    arguments: str


class CallMessage(TypedDict):
    """A tool call in an assistant's message."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class Message(TypedDict):
    """One chat message. ``developer`` is the newer name of ``system``; parts of a content are joined as they are.

    An assistant's may have ``tool_calls``, and then no content, and what it thought (``reasoning_content``). Each call
    is answered by a message with the role ``tool`` and the call's id.
    """

    role: ChatRole
    content: str | Sequence[TextPart] | None
    tool_calls: NotRequired[Sequence[CallMessage]]
    tool_call_id: NotRequired[str]
    reasoning_content: NotRequired[str]


_FIELDS: Mapping[str, frozenset[str]] = {
    "assistant": frozenset({"role", "content", "tool_calls", "reasoning_content"}),
    "tool": frozenset({"role", "content", "tool_call_id", "name"}),
}
_CALL = '{"id": ..., "type": "function", "function": {"name": ..., "arguments": "JSON text"}}'


def require_text(text: object, what: str = "prompt") -> str:
    """``text`` itself, or :class:`InvalidRequest` when it is no valid, non-empty text."""
    if not isinstance(text, str):
        raise InvalidRequest(f"the {what} must be a str, not {type(text).__name__}", hint="decode bytes first")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"the {what} is not valid text: character {error.start} is a lone surrogate, which UTF-8 cannot hold",
            hint="read the input as UTF-8 with errors='strict' or 'replace'",
        ) from None
    if not text:
        raise InvalidRequest(f"the {what} is empty", hint="give at least one character")
    return text


def require_messages(messages: object) -> list[dict[str, Any]]:
    """A checked copy of chat messages as :data:`Turn`; :class:`InvalidRequest` names the one that is wrong."""
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence) or not messages:
        raise InvalidRequest("messages must be a non-empty list", hint='like [{"role": "user", "content": "..."}]')
    checked: list[dict[str, Any]] = []
    called: dict[str, str] = {}
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise InvalidRequest(f"message {number} is {type(message).__name__}, not a mapping")
        role = message.get("role")
        if role not in get_args(ChatRole):
            raise InvalidRequest(f"message {number} has role {role!r}, not one of {', '.join(get_args(ChatRole))}")
        known = _FIELDS.get(str(role), frozenset({"role", "content"}))
        if unknown := {name for name, value in message.items() if value is not None} - known:
            raise InvalidRequest(
                f"message {number} has unsupported fields: {', '.join(sorted(map(str, unknown)))}",
                hint=f"the role {role} has {', '.join(sorted(known))}; images are not supported",
            )
        # Few chat templates know the newer name.
        turn = {"role": "system" if role == "developer" else str(role), "content": _content(message, number)}
        if role == "assistant":
            turn |= _assistant(message, number, called)
        elif role == "tool":
            turn |= _tool(message, number, called)
        checked.append(turn)
    if checked[-1]["role"] == "assistant":
        raise InvalidRequest("the last message is the assistant's", hint="end with a user message")
    return checked


def _content(message: Mapping[str, object], number: int) -> str:
    content, what = message.get("content"), f"content of message {number}"
    if content is None and message["role"] == "assistant" and message.get("tool_calls"):
        return ""
    if isinstance(content, Sequence) and not isinstance(content, (str, bytes)):
        content = "".join(_text_of(part, what) for part in content)
    # A model may have answered nothing, and a tool found nothing; a user may not ask nothing.
    if content == "" and message["role"] in ("assistant", "tool"):
        return ""
    return require_text(content, what)


def _text_of(part: object, what: str) -> str:
    if not isinstance(part, Mapping):
        raise InvalidRequest(
            f"the {what} holds a {type(part).__name__}", hint='parts are {"type": "text", "text": ...}'
        )
    if part.get("type") != "text":
        raise InvalidRequest(
            f"the {what} has a part of type {part.get('type')!r}", hint="only text is supported; images are not"
        )
    text = part.get("text")
    if not isinstance(text, str):
        raise InvalidRequest(f"the {what} has a part whose text is {type(text).__name__}", hint="a str")
    return text


def _assistant(message: Mapping[str, Any], number: int, called: dict[str, str]) -> dict[str, Any]:
    turn: dict[str, Any] = {}
    if message.get("reasoning_content"):
        turn["reasoning_content"] = require_text(message["reasoning_content"], f"reasoning_content of message {number}")
    calls = message.get("tool_calls")
    if not calls:
        return turn
    if isinstance(calls, str | bytes | Mapping) or not isinstance(calls, Sequence):
        raise InvalidRequest(f"tool_calls of message {number} is a {type(calls).__name__}", hint=f"a list of {_CALL}")
    turn["tool_calls"] = [_call(call, f"tool call {at} of message {number}", called) for at, call in enumerate(calls)]
    return turn


def _call(call: object, what: str, called: dict[str, str]) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping):
        raise InvalidRequest(f"{what} has no function", hint=_CALL)
    name = require_text(function.get("name"), f"name of {what}")
    arguments = function.get("arguments")
    try:
        made = json.loads(arguments or "{}") if isinstance(arguments, str | None) else arguments
    except ValueError as error:
        raise InvalidRequest(f"the arguments of {what} are no JSON: {error}", hint="JSON text of an object") from None
    if not isinstance(made, Mapping):
        raise InvalidRequest(f"the arguments of {what} are no object", hint="JSON text of an object")
    require_text(json.dumps(made, ensure_ascii=False), f"arguments of {what}")
    identity = call.get("id")
    if not isinstance(identity, str) or not identity:
        raise InvalidRequest(f"{what} has no id", hint=_CALL)
    if identity in called:
        raise InvalidRequest(f"{what} has an id that an earlier call has: {identity!r}", hint="each call has its own")
    called[identity] = name
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": dict(made)}}


def _tool(message: Mapping[str, Any], number: int, called: Mapping[str, str]) -> dict[str, Any]:
    identity = message.get("tool_call_id")
    if identity not in called:
        raise InvalidRequest(
            f"message {number} is the result of a tool call that no message before it has: {identity!r}",
            hint="the assistant's message with tool_calls comes first, and tool_call_id is its call's id",
        )
    return {"tool_call_id": identity, "name": called[str(identity)]}
