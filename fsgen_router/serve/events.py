"""What is heard of an answer while it is written: the Router's events as every API's translation takes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from ..generation import ReasoningDelta, StreamEvent, TextDelta, ToolCallDelta
from ..records import Token


@dataclass(frozen=True, slots=True)
class Text:
    """``text`` of the answer (perhaps none yet), and the token that brought it, where there was one."""

    text: str
    token: Token | None


@dataclass(frozen=True, slots=True)
class Reasoning:
    text: str


@dataclass(frozen=True, slots=True)
class ToolArguments:
    """A piece of the arguments of the tool call number ``index``; ``id`` and ``name`` come with its first one."""

    index: int
    arguments: str
    id: str | None = None
    name: str | None = None


Heard: TypeAlias = Text | Reasoning | ToolArguments


def heard(event: StreamEvent) -> Heard | None:
    """A Router's event; None for one that no API has a word for."""
    match event:
        case TextDelta(text=text, token=token):
            return Text(text, token)
        case ToolCallDelta():
            return ToolArguments(event.index, event.arguments, event.id, event.name)
        case ReasoningDelta(text=text):
            return Reasoning(text)
    return None
