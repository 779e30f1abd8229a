"""Prompts and messages as callers write them, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias, TypedDict, get_args

from ..errors import InvalidRequest

ChatRole: TypeAlias = Literal["system", "developer", "user", "assistant"]


class TextPart(TypedDict):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str


class Message(TypedDict):
    """One chat message. ``developer`` is the newer name of ``system``; parts of a content are joined as they are."""

    role: ChatRole
    content: str | Sequence[TextPart]


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


def require_messages(messages: object) -> list[dict[str, str]]:
    """A checked copy of chat messages as :data:`Turn`; :class:`InvalidRequest` names the one that is wrong."""
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence) or not messages:
        raise InvalidRequest("messages must be a non-empty list", hint='like [{"role": "user", "content": "..."}]')
    checked: list[dict[str, str]] = []
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise InvalidRequest(f"message {number} is {type(message).__name__}, not a mapping")
        if unknown := set(message) - {"role", "content"}:
            raise InvalidRequest(
                f"message {number} has unsupported fields: {', '.join(sorted(map(str, unknown)))}",
                hint="only role and content are supported; tools and images are not",
            )
        role = message.get("role")
        if role not in get_args(ChatRole):
            raise InvalidRequest(f"message {number} has role {role!r}, not one of {', '.join(get_args(ChatRole))}")
        # Few chat templates know the newer name.
        checked.append({"role": "system" if role == "developer" else str(role), "content": _content(message, number)})
    if checked[-1]["role"] == "assistant":
        raise InvalidRequest("the last message is the assistant's", hint="end with a user message")
    return checked


def _content(message: Mapping[str, object], number: int) -> str:
    content, what = message.get("content"), f"content of message {number}"
    if isinstance(content, Sequence) and not isinstance(content, (str, bytes)):
        content = "".join(_text_of(part, what) for part in content)
    # A model may have answered nothing; a user may not ask nothing.
    if content == "" and message["role"] == "assistant":
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
