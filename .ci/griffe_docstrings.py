"""Docstrings of this package as Markdown, for the reference pages of the documentation.

They are written for readers of the source, in reStructuredText: roles become links where their target has a public
name, and code behind ``::`` becomes a block. A field of a pydantic model has its description as its docstring.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from typing import Any, TypeAlias

import griffe

Thing: TypeAlias = griffe.Object | griffe.Alias

_ROLE = re.compile(r":(?:class|meth|func|attr|mod|data|exc):`~?(?P<name>[\w.]+)`")
_CODE = re.compile(r"^(?P<lead>.*?)::\n\n(?P<code>(?:(?: {4}.*)?\n)+)", re.MULTILINE)
_PUBLIC = (
    "fsgen_router",
    "fsgen_router.policies",
    "fsgen_router.methods",
    "fsgen_router.calibration",
    "fsgen_router.costs",
    "fsgen_router.evaluation",
)


class Docstrings(griffe.Extension):
    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        things = list(_inside(pkg))
        self._targets: dict[str, str] = {}
        for place in reversed(_PUBLIC):
            module = pkg if place == pkg.path else pkg.get_member(place.partition(".")[2])
            self._targets |= {str(name): f"{place}.{name}" for name in module.exports or ()}
        for thing in things:
            if thing.is_class and thing.name in self._targets:
                self._targets |= {
                    f"{thing.name}.{member}": f"{self._targets[thing.name]}.{member}" for member in thing.members
                }
        for thing in things:
            if thing.is_attribute and thing.docstring is None:
                _describe(thing)
            if thing.docstring is not None:
                thing.docstring.value = self._as_markdown(thing.docstring.value, thing)

    def _as_markdown(self, text: str, owner: Thing) -> str:
        cls = owner if owner.is_class else owner.parent

        def link(found: re.Match[str]) -> str:
            *_, above, name = ["", *found["name"].split(".")]
            for target in (f"{above}.{name}", f"{cls.name}.{name}" if cls is not None else "", name):
                if target in self._targets:
                    return f"[`{name}`][{self._targets[target]}]"
            return f"`{name}`"

        def block(found: re.Match[str]) -> str:
            lead = f"{found['lead']}:\n\n" if found["lead"].strip() else ""
            code = textwrap.dedent(found["code"]).strip("\n")
            return f"{lead}```{'python' if _is_python(code) else ''}\n{code}\n```\n\n"

        return _CODE.sub(block, _ROLE.sub(link, text) + "\n").rstrip()


def _inside(thing: Thing) -> Iterator[Thing]:
    yield thing
    for member in thing.members.values():
        if not member.is_alias:
            yield from _inside(member)


def _is_python(code: str) -> bool:
    try:
        compile(code, "docstring", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST)
    except SyntaxError:
        return False
    return True


def _describe(attribute: Thing) -> None:
    """``Field(default, description=...)``: the description is the docstring, and the default the value."""
    value = attribute.value
    if not (isinstance(value, griffe.ExprCall) and str(value.function) == "Field"):
        return
    keywords = {arg.name: arg.value for arg in value.arguments if isinstance(arg, griffe.ExprKeyword)}
    positional = [arg for arg in value.arguments if not isinstance(arg, griffe.ExprKeyword)]
    attribute.value = positional[0] if positional else keywords.get("default", keywords.get("default_factory"))
    if "description" in keywords:
        attribute.docstring = griffe.Docstring(_text(str(keywords["description"])), parent=attribute)


def _text(literal: str) -> str:
    """A string of the source; what an f-string fills in stays a name."""
    node = ast.parse(literal, mode="eval").body
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    return "".join(str(part.value) if isinstance(part, ast.Constant) else ast.unparse(part) for part in parts)
