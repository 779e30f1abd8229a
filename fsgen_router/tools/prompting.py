"""Tools in words, for a chat template that knows none."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..contracts.tokenizer import Turn
from .formats import GENERIC

_BEFORE = (
    "You may call tools. For each call write a JSON object with the tool's name and its arguments within <tool_call> "
    'tags:\n<tool_call>\n{{"name": <tool name>, "arguments": <arguments object>}}\n</tool_call>\n\nThe tools:\n{tools}'
)
_RESULT = "<tool_response>\n{content}\n</tool_response>"


def in_words(messages: Sequence[Turn], tools: Sequence[Mapping[str, Any]]) -> list[Turn]:
    """The conversation as texts alone: tools in a system message, results of calls as a user's messages."""
    shown: list[Turn] = []
    if tools:
        listed = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
        shown.append({"role": "system", "content": _BEFORE.format(tools=listed)})
    for message in messages:
        role, content = message["role"], message["content"]
        if role == "system" and shown and shown[0]["role"] == "system" and len(shown) == 1 and tools:
            shown[0] = {"role": "system", "content": f"{content}\n\n{shown[0]['content']}"}
            continue
        if role == "assistant" and message.get("tool_calls"):
            calls = [call["function"] for call in message["tool_calls"]]
            written = GENERIC.calls(
                [(call["name"], json.dumps(call["arguments"], ensure_ascii=False)) for call in calls]
            )
            content = f"{content}\n{written}" if content else written
        elif role == "tool":
            role, content = "user", _RESULT.format(content=content)
            if shown and shown[-1]["role"] == "user" and shown[-1]["content"].endswith("</tool_response>"):
                content = f"{shown.pop()['content']}\n{content}"  # many templates want turns to alternate
        shown.append({"role": role, "content": content})
    return shown
