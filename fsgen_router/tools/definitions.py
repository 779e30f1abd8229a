"""Tools as callers write them, checked: what a model may call, and whether it has to."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from pydantic import BaseModel

from ..errors import InvalidRequest

MAX_TOOLS: Final = 128
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_SHAPE = '{"type": "function", "function": {"name": ..., "description": ..., "parameters": {JSON schema}}}'


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a model may ask its caller to run. ``parameters`` is the JSON schema of its arguments."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})

    def to_dict(self) -> dict[str, Any]:
        """The form that chat templates read, which is OpenAI's."""
        function = {"name": self.name, "description": self.description, "parameters": copy.deepcopy(self.parameters)}
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class Choice:
    """Whether a tool is to be called: as the model likes (``auto``), none, or one (``required``), maybe this one."""

    mode: Literal["auto", "none", "required"] = "auto"
    name: str | None = None


ToolLike: TypeAlias = Tool | Mapping[str, Any] | type[BaseModel]


def make_tools(tools: object) -> tuple[Tool, ...]:
    """Tools from :class:`Tool` objects, OpenAI's dictionaries, or pydantic models (the docstring describes them).

    Raises :class:`InvalidRequest` for what is none, naming it, and for two of one name.
    """
    if isinstance(tools, str | bytes | Mapping) or not isinstance(tools, Sequence):
        raise InvalidRequest(f"tools is a {type(tools).__name__}", hint=f"a list of {_SHAPE}")
    if len(tools) > MAX_TOOLS:
        raise InvalidRequest(f"{len(tools)} tools", hint=f"at most {MAX_TOOLS}: fewer are also told apart better")
    made = tuple(_make(tool, number) for number, tool in enumerate(tools))
    names = [tool.name for tool in made]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidRequest(f"two tools have the name {twice[0]!r}", hint="give each its own")
    return made


def _make(tool: object, number: int) -> Tool:
    if isinstance(tool, type) and issubclass(tool, BaseModel):
        schema = tool.model_json_schema()
        return _checked(tool.__name__, schema.pop("description", ""), schema, number)
    if isinstance(tool, Tool):
        return _checked(tool.name, tool.description, tool.parameters, number)
    if not isinstance(tool, Mapping):
        raise InvalidRequest(f"tool {number} is a {type(tool).__name__}", hint=_SHAPE)
    if tool.get("type", "function") != "function" or not isinstance(tool.get("function"), Mapping):
        raise InvalidRequest(f"tool {number} is no function (type {tool.get('type')!r})", hint=_SHAPE)
    function = tool["function"]
    if unknown := set(function) - {"name", "description", "parameters", "strict"}:
        raise InvalidRequest(f"tool {number} has unknown fields: {', '.join(sorted(map(str, unknown)))}", hint=_SHAPE)
    return _checked(function.get("name"), function.get("description") or "", function.get("parameters"), number)


def _checked(name: object, description: object, parameters: object, number: int) -> Tool:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"tool {number} has the name {name!r}", hint="1 to 64 letters, digits, underscores, dashes and dots"
        )
    if not isinstance(description, str):
        raise InvalidRequest(f"the description of tool {name} is a {type(description).__name__}", hint="a str")
    if parameters is None:  # a tool without any
        return Tool(name, description)
    if not isinstance(parameters, Mapping):
        raise InvalidRequest(f"the parameters of tool {name} are a {type(parameters).__name__}", hint="a JSON schema")
    try:
        schema = json.loads(json.dumps(parameters))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"the parameters of tool {name} are no JSON: {error}", hint="a JSON schema") from None
    if schema.setdefault("type", "object") != "object":
        raise InvalidRequest(
            f"the parameters of tool {name} are of type {schema['type']!r}", hint="arguments are an object by name"
        )
    schema.setdefault("properties", {})
    return Tool(name, description, schema)


def make_choice(choice: object, tools: Sequence[Tool]) -> Choice:
    """OpenAI's ``tool_choice``. Raises :class:`InvalidRequest` for another, and for a tool that is not there."""
    name: object = None
    match choice:
        case None:
            return Choice()
        case Choice():
            mode, name = choice.mode, choice.name
        case "auto" | "none" | "required":
            mode = choice
        case {"type": "function", "function": {"name": name}} | {"name": name}:
            mode = "required"
        case _:
            raise InvalidRequest(
                f"tool_choice={choice!r}",
                hint='"auto", "none", "required" or {"type": "function", "function": {"name": ...}}',
            )
    names = [tool.name for tool in tools]
    if name is not None and name not in names:
        raise InvalidRequest(f"tool_choice names {name!r}", hint=f"the tools are {', '.join(names) or 'none'}")
    if mode == "required" and not names:
        raise InvalidRequest("tool_choice='required' without tools", hint="give tools=")
    return Choice(mode, None if name is None else str(name))
