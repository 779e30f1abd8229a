"""What an endpoint sends: the shapes of chunks and replies, and its counts of tokens."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, model_validator

from fsgen_router.contracts.text_models import TextEnd

# DeepSeek's, vLLM's older and SGLang's; vLLM's newer, Ollama's, OpenRouter's and Groq's; those of proxies.
_REASONING = ("reasoning_content", "reasoning", "thinking", "reasoning_text")


class _Delta(BaseModel):
    content: str | None = None
    tool_calls: Any = None
    refusal: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    thinking: Any = None
    reasoning_text: Any = None

    @model_validator(mode="before")
    @classmethod
    def _from_parts(cls, value: object) -> object:
        """Content in parts (Mistral's reasoning models) as text and reasoning."""
        parts = value.get("content") if isinstance(value, dict) else None
        if not isinstance(parts, list):
            return value
        told = {"content": _text_of(parts, "text"), "reasoning": _text_of(parts, "thinking")}
        return {**value, **told} if isinstance(value, dict) else value


def _text_of(parts: object, kind: str) -> str:
    """The text of the parts of one kind, which may hold parts themselves."""
    if not isinstance(parts, list):
        return parts if isinstance(parts, str) else ""
    inner = (
        part[kind] for part in parts if isinstance(part, dict) and part.get("type", "text") == kind and kind in part
    )
    return "".join(_text_of(item, "text") for item in inner)


class _Choice(BaseModel):
    delta: _Delta | None = None
    message: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: Any = None

    @property
    def _parts(self) -> dict[str, _Delta]:
        """``message`` belongs to replies that are not streamed; after a stream of deltas it repeats them."""
        return {name: part for name in ("delta", "message") if (part := getattr(self, name)) is not None}

    @property
    def words(self) -> dict[str, str]:
        """What is said, by the place where it stands."""
        return {name: part.content or "" for name, part in self._parts.items()} | {"text": self.text or ""}

    @property
    def reasoning(self) -> dict[str, str]:
        """What is thought, by the place where it stands."""
        return {
            f"{name}.{field}": text
            for name, part in self._parts.items()
            for field in _REASONING
            if isinstance(text := getattr(part, field), str)
        }

    @property
    def tool_calls(self) -> list[Any]:
        """Pieces of calls to tools: of a message that is not streamed, or of a delta."""
        part = self.delta or self.message
        return part.tool_calls if part is not None and isinstance(part.tool_calls, list) else []

    @property
    def refusal(self) -> dict[str, str]:
        return {name: part.refusal for name, part in self._parts.items() if isinstance(part.refusal, str)}


class Reply(BaseModel):
    """A chunk of a stream, or a whole reply; all that is not read of it is let through."""

    choices: list[_Choice] | None = None
    usage: Any = None
    error: Any = None
    object: Any = None
    message: Any = None

    @property
    def failure(self) -> object:
        """What the endpoint says went wrong, if this is such a message."""
        return self.error or (self.message or self.object if self.object == "error" else None)


class Calls:
    """Calls to tools, out of the pieces in which they come: a name first, and then the text of its arguments."""

    def __init__(self) -> None:
        self._calls: dict[int, list[str]] = {}

    def push(self, pieces: list[Any]) -> None:
        for at, piece in enumerate(pieces):
            function = piece.get("function") if isinstance(piece, dict) else None
            if not isinstance(function, dict):
                continue
            index = piece.get("index")
            call = self._calls.setdefault(index if isinstance(index, int) else at, ["", ""])
            name, arguments = function.get("name"), function.get("arguments")
            call[0] = call[0] or (name if isinstance(name, str) else "")
            # Some send an object, which is whole.
            call[1] += arguments if isinstance(arguments, str) else json.dumps(arguments) if arguments else ""

    @property
    def made(self) -> list[tuple[str, str]]:
        return [(name, arguments) for _, (name, arguments) in sorted(self._calls.items())]


FINISH: dict[str, Literal["stop", "length"]] = {
    "stop": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "end_turn": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "max_tokens": "length",
    "model_length": "length",
}


UNFINISHED = {
    "content_filter": "the endpoint's filter stopped it",
    "tool_calls": "it wants to call a tool, and none was offered",
    "function_call": "it wants to call a function, and none was offered",
}


def count_of(usage: object, *path: str) -> int | None:
    for name in path:
        usage = usage.get(name) if isinstance(usage, dict) else None
    return usage if isinstance(usage, int) and not isinstance(usage, bool) and usage >= 0 else None


def text_end(reason: Literal["stop", "length"], usage: object) -> TextEnd:
    prompt, written = count_of(usage, "prompt_tokens"), count_of(usage, "completion_tokens")
    cached = cached_of(usage)
    # OpenRouter's and newer ones of OpenAI's kind; Anthropic's own name, which proxies keep.
    put = _first_count(usage, ("prompt_tokens_details", "cache_write_tokens"), ("cache_creation_input_tokens",))
    thought = _first_count(usage, ("completion_tokens_details", "reasoning_tokens"), ("reasoning_tokens",))
    if prompt is not None and written is not None:
        # Some vendors leave reasoning out of what was written, and count it in the total alone.
        beyond = (count_of(usage, "total_tokens") or 0) - prompt - written
        if beyond > 0 and beyond == (thought or (0 if beyond == cached else beyond)):
            written, thought = written + beyond, beyond
        elif thought is not None and thought > written:
            written += thought
    return TextEnd(reason, prompt, cached, written, thought, cache_write_tokens=put)


def cached_of(usage: object) -> int | None:
    return _first_count(usage, ("prompt_tokens_details", "cached_tokens"), ("prompt_cache_hit_tokens",))


def _first_count(usage: object, *paths: tuple[str, ...]) -> int | None:
    return next((count for path in paths if (count := count_of(usage, *path)) is not None), None)
