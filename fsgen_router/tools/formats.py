"""How models write tool calls: one table of formats, found by what a chat template says."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from .definitions import Choice, Tool


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """The text of calls: ``open``, then ``head`` name ``middle`` arguments ``tail``, more of these ``between``, ``close``.

    ``sign``: what a chat template holds that has models write this. An empty ``open`` means that a call is the whole
    answer.
    """

    name: str
    sign: str
    open: str
    head: str
    middle: str
    tail: str
    between: str
    close: str

    def markers(self) -> tuple[str, ...]:
        """Texts that may be control tokens of a vocabulary."""
        return tuple(mark for mark in ("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]") if mark in self.written)

    @property
    def written(self) -> str:
        return "".join((self.open, self.head, self.middle, self.tail, self.between, self.close))

    def call(self, name: str, arguments: str) -> str:
        """One call as text, without what stands around all of them."""
        return f"{self.head}{name}{self.middle}{arguments}{self.tail}"

    def calls(self, calls: Sequence[tuple[str, str]]) -> str:
        """Calls (name, arguments) as a model writes them."""
        return self.open + self.between.join(self.call(*one) for one in calls) + self.close


FORMATS: Final = (
    ToolFormat(
        name="mistral",
        sign="[ARGS]",
        open="[TOOL_CALLS]",
        head="",
        middle="[ARGS]",
        tail="",
        between="[TOOL_CALLS]",
        close="",
    ),
    ToolFormat(
        name="mistral-json",
        sign="[TOOL_CALLS]",
        open="[TOOL_CALLS][",
        head='{"name": "',
        middle='", "arguments": ',
        tail="}",
        between=", ",
        close="]",
    ),
    ToolFormat(
        name="hermes",  # Hermes, Qwen 2.5 and 3, and many others
        sign="<tool_call>",
        open="<tool_call>\n",
        head='{"name": "',
        middle='", "arguments": ',
        tail="}",
        between="\n</tool_call>\n<tool_call>\n",
        close="\n</tool_call>",
    ),
    ToolFormat(
        name="llama3",
        sign='"parameters": ',
        open="",
        head='{"name": "',
        middle='", "parameters": ',
        tail="}",
        between="; ",
        close="",
    ),
)
GENERIC: Final = FORMATS[2]
"""What a model is asked for in words whose template knows no tools."""


def format_of(template: str | None) -> ToolFormat:
    """The format that a chat template has models write; the generic one where it knows no tools."""
    if template is None or "tools" not in template:
        return GENERIC
    return next((one for one in FORMATS if one.sign in template), GENERIC)


# Between a key and its value, and between two values, as Python's own json writes them and models learnt it.
_JSON: Final[Mapping[str, Any]] = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def grammar_of(
    form: ToolFormat, tools: Sequence[Tool], choice: Choice, *, parallel: bool, control: Mapping[str, int]
) -> str:
    """A Lark grammar of llguidance's for answers that may call ``tools``, or have to.

    What is written as a call is one: a known name, and arguments that keep to its schema. ``control`` has the ids of
    those of the format's markers that are control tokens.
    """
    said = r"(.|\n)*"

    def literal(text: str) -> str:
        for mark, token in control.items():
            before, found, behind = text.partition(mark)
            if found:
                return " ".join(filter(None, (literal(before), f"<[{token}]>", literal(behind))))
        return json.dumps(text, ensure_ascii=False) if text else ""

    if choice.mode == "none":
        if not form.open:
            return f"start: /[^{{]{said}/\n"
        if control:
            return f"start: /{said}/\n"  # no text is a control token
        return f"start: TEXT\nTEXT: /{said}/ & ~/{said}{_regex(form.open.strip())}{said}/\n"
    wanted = [tool for tool in tools if choice.name in (None, tool.name)]
    options = [
        f"call_{number}: "
        + " ".join(
            filter(
                None,
                (
                    literal(form.head + tool.name + form.middle),
                    "%json " + json.dumps({**tool.parameters, "x-guidance": _JSON}),
                    literal(form.tail),
                ),
            )
        )
        for number, tool in enumerate(wanted)
    ]
    several = f"({literal(form.between)} call)*" if parallel and choice.name is None else ""
    rules = [
        f"calls: call {several} {literal(form.close)}",
        "call: " + " | ".join(f"call_{number}" for number in range(len(wanted))),
        *options,
    ]
    if choice.mode == "required":
        start = f"start: {literal(form.open)} calls"
    elif not form.open:
        start = f"start: calls | said\nsaid: /([^{{]{said})?/"
    elif control:
        start = f"start: said | said {literal(form.open)} calls\nsaid: /{said}/"
    else:
        start = f"start: said | opened calls\nopened[lazy]: /{said}/ {literal(form.open)}\nsaid: /{said}/"
    return "\n".join([start, *rules, ""])


def _regex(text: str) -> str:
    return "".join(f"\\{c}" if c in r"\.[]{}()<>*+-?^$|/" else c for c in text)
