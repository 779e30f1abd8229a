"""How models write tool calls: one table of formats, found by what a chat template says."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from .definitions import Choice, Tool


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """The text of calls: ``open``, ``head`` name ``middle`` arguments ``tail``, ``close``; ``between`` several.

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
        """Texts that are one token of many a vocabulary."""
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


MAX_CALLS: Final = 16
"""In one answer."""

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
        between="",
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
_COMPACT: Final[Mapping[str, Any]] = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# No model goes on with white space for ever.
_SPACE: Final = r"[\x20\x0A\x0D\x09]{0,16}"
_SPACED: Final[Mapping[str, Any]] = {"whitespace_pattern": _SPACE}
_ANY: Final = r"(.|\n)*"


def grammar_of(
    form: ToolFormat,
    tools: Sequence[Tool],
    choice: Choice,
    *,
    parallel: bool,
    marks: Mapping[str, int],
    answer: Mapping[str, Any] | None = None,
) -> str:
    """A Lark grammar of llguidance's for answers that may call ``tools``, or have to.

    What is written as a call is one: a known name, and arguments that keep to its schema. That holds also of an answer
    that is nothing but the JSON object of a call, fenced as code or not, which many models write in the place of their
    own format. ``marks`` has the ids of those of the format's markers that are one token. An answer that calls nothing
    is JSON of the schema ``answer``, where there is one, and nothing is said beside a call then.
    """

    def literal(text: str) -> str:
        for mark, token in marks.items():
            before, found, behind = text.partition(mark)
            if found:
                return " ".join(filter(None, (literal(before), f"<[{token}]>", literal(behind))))
        return json.dumps(text, ensure_ascii=False) if text else ""

    if answer is not None and choice.mode == "none":
        return f"start: {_json(answer, _COMPACT)}\n"
    unsaid = [_beginning("|".join(_regex(tool.name) for tool in tools)) + _ANY]
    if form.open:
        unsaid.append(f"{_ANY}{_regex(form.open.strip())}{_ANY}")
    rules = [f"SAID: /{_ANY}/ " + " ".join(f"& ~/{pattern}/" for pattern in unsaid)]
    if choice.mode == "none":
        return "\n".join(["start: SAID", *rules, ""])
    wanted = [tool for tool in tools if choice.name in (None, tool.name)]
    for number, tool in enumerate(wanted):
        head, behind = literal(form.head + tool.name + form.middle), literal(form.tail)
        rules.append(f"call_{number}: {head} {_arguments(tool, _COMPACT)} {behind}")
        key = rf"\"(arguments|parameters)\"{_SPACE}:{_SPACE}"
        rules.append(
            f"bare_{number}: /{_beginning(_regex(tool.name))}{_SPACE},{_SPACE}{key}/ "
            rf"{_arguments(tool, _SPACED)} /{_SPACE}\}}{{1,2}}({_SPACE}```)?/"
        )
    call = " | ".join(f"call_{number}" for number in range(len(wanted)))
    several = parallel and choice.name is None and form.between
    further = f"({literal(form.between)} call){{0,{MAX_CALLS - 1}}}" if several else ""
    rules += [f"call: {call}", f"calls: {literal(form.open)} call {further} {literal(form.close)}"]
    if choice.mode == "required":
        return "\n".join(["start: calls", *rules, ""])
    if answer is not None:
        return "\n".join([f"start: {_json(answer, _COMPACT)} | calls", *rules, ""])
    ways = ["SAID", *(f"bare_{number}" for number in range(len(wanted)))]
    if any(mark in form.open for mark in marks):
        ways.append("SAID calls")
    elif form.open:
        rules += [
            f"opened[lazy]: /{_ANY}{_regex(form.open)}/ & ~/{unsaid[0]}/",
            f"behind: call {further} {literal(form.close)}",
        ]
        ways.append("opened behind")
    return "\n".join([f"start: {' | '.join(ways)}", *rules, ""])


def _beginning(names: str) -> str:
    """How an answer begins that is the JSON object of a call to one of ``names``, as a regular expression.

    Braces may be doubled: Qwen2.5-Coder writes them so.
    """
    return rf"{_SPACE}(```(json)?{_SPACE})?\{{{{1,2}}{_SPACE}\"name\"{_SPACE}:{_SPACE}\"({names})\""


def _arguments(tool: Tool, layout: Mapping[str, Any]) -> str:
    # Who runs a tool can rarely do with arguments that it does not name.
    return _json({"additionalProperties": False, **tool.parameters}, layout)


def _json(schema: Mapping[str, Any], layout: Mapping[str, Any]) -> str:
    return "%json " + json.dumps({**schema, "x-guidance": layout})


def _regex(text: str) -> str:
    return re.sub(r"[\\.\[\]{}()*+?^$|/]", lambda found: "\\" + found[0], text)
