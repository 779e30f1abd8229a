"""What is sent to an endpoint: sampling, a limit, and an answer so far that is to be continued."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from fsgen_router.contracts.text_models import Continuation, OfferedTools
from fsgen_router.rows.reading import Warp

from ..seams import Seam
from .options import OpenAIOptions

Messages: TypeAlias = list[dict[str, Any]]

_MAX_SEED = 2**31 - 1  # what every endpoint's integer type holds


def estimate_tokens(text: str) -> int:
    """A quarter of the bytes: endpoints share no way to count."""
    return -(-len(text.encode()) // 4)


def fields(request: Continuation, options: OpenAIOptions) -> dict[str, Any]:
    """What a request and the probes for it say alike."""
    body = {**options.extra_body, **_sampling(request.warp, request.seed, options)}
    if request.chat_template_kwargs:
        body["chat_template_kwargs"] = {**(body.get("chat_template_kwargs") or {}), **request.chat_template_kwargs}
    return body


def max_tokens_of(request: Continuation, options: OpenAIOptions) -> int:
    """How long the continuation may get: what was asked for, as far as the context may hold it."""
    if options.n_ctx is None:
        return request.max_tokens
    texts = [request.prompt or "", request.answer, *(m["content"] for m in request.messages or ())]
    return max(min(request.max_tokens, options.n_ctx - sum(map(estimate_tokens, texts))), 1)


def _sampling(warp: Warp, seed: int | None, options: OpenAIOptions) -> dict[str, Any]:
    if warp.greedy:
        return {} if options.sampling == "server" else {"temperature": 0.0}
    said: dict[str, Any] = {} if seed is None else {"seed": seed & _MAX_SEED}
    if options.sampling == "server":
        return said
    # top_p is said even where it changes nothing, because endpoints have defaults of their own.
    said |= {"temperature": warp.temperature, "top_p": warp.top_p}
    # These are not OpenAI's, and refused there: only where they were asked for. Else the endpoint's defaults hold.
    beyond = {"top_k": warp.top_k, "min_p": warp.min_p}
    return said | {name: value for name, value in beyond.items() if value}


def messages_of(request: Continuation) -> Messages:
    """A raw prompt as a user's message, where there are no messages."""
    if request.messages is None:
        return [{"role": "user", "content": request.prompt or ""}]
    return [_message(message) for message in request.messages]


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as OpenAI has it: arguments of calls are JSON text, and a tool's result names its call alone."""
    said = {name: value for name, value in message.items() if name != "name"}
    if "tool_calls" in message:
        said["tool_calls"] = [
            {
                **call,
                "function": {
                    **call["function"],
                    "arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False),
                },
            }
            for call in message["tool_calls"]
        ]
    return said


def tools_of(offered: OfferedTools) -> dict[str, Any]:
    """Tools, and what is not OpenAI's default of them."""
    said: dict[str, Any] = {"tools": [dict(tool) for tool in offered.tools]}
    if offered.choice != "auto":
        said["tool_choice"] = offered.choice
    if not offered.parallel:
        said["parallel_tool_calls"] = False
    return said


# --- an answer so far ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Dialect:
    """A way to ask for the continuation of the last message: fields beside its content, and in the body."""

    name: str
    message: Mapping[str, Any]
    body: Mapping[str, Any]


NO_OTHER = {"add_generation_prompt": False}
DIALECTS = (
    # Endpoints either take these (vLLM, SGLang, llama-server, DeepSeek's beta), ignore or refuse them all.
    Dialect("flags", {"prefix": True}, {"continue_final_message": True, **NO_OTHER}),
    Dialect("last_message", {}, {}),
    Dialect("prefix", {"prefix": True}, {}),  # Mistral, which refuses the flags and an unmarked last message
)
_CONTINUE = (
    "Your last message was cut off. Continue it exactly where it stops, as if you had never stopped: write only what "
    "comes next, with a space first if a new word begins. Repeat nothing of it, and add no introduction or comment."
)


def add_answer(
    messages: Messages, body: dict[str, Any], answer: str, dialect: Dialect | None, *, gap: str = ""
) -> Seam:
    """Put the answer so far at the end of ``messages``; returns what joins its continuation to it."""
    if dialect is None:
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": _CONTINUE}]
        return Seam(answer, gap=gap)
    # Chat templates trim white space at the end (and some vendors refuse it): it is left out, and taken off
    # the continuation, which begins with it.
    kept = answer.rstrip()
    messages.append({"role": "assistant", "content": kept, **dialect.message})
    body |= dialect.body
    return Seam(answer, told=False)
