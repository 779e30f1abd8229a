"""Tool calls in a text that grows: what is said, what is called, and where in a call the text stands."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from ..contracts.policy import InCall
from .formats import ToolFormat


@dataclass(frozen=True, slots=True)
class Said:
    """Text that is no call."""

    text: str


@dataclass(frozen=True, slots=True)
class Began:
    """A call to the tool ``name`` begins."""

    name: str


@dataclass(frozen=True, slots=True)
class Argued:
    """More of the JSON text of the call's arguments."""

    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The call is whole."""

    name: str
    arguments: str


Part: TypeAlias = Said | Began | Argued | Ended
_Where: TypeAlias = Literal["begin", "said", "name", "arguments", "after", "end"]


@dataclass(slots=True)
class _Json:
    """How deep in a JSON value its text stands."""

    depth: int = 0
    in_string: bool = False
    escaped: bool = False

    def end_of(self, text: str) -> int | None:
        """How much of ``text`` belongs to the value, where it ends in it."""
        for at, character in enumerate(text):
            if self.escaped:
                self.escaped = False
            elif self.in_string:
                self.escaped, self.in_string = character == "\\", character != '"'
            elif character == '"':
                self.in_string = True
            elif character in "{[":
                self.depth += 1
            elif character in "}]":
                self.depth -= 1
                if self.depth == 0:
                    return at + 1
        return None


_FENCE = "```json"
_BARE = re.compile(r'\s*(?:```(?:json)?\s*)?\{{1,2}\s*"name"\s*:\s*"([^"]*)"\s*,\s*"(?:arguments|parameters)"\s*:\s*')


@dataclass(slots=True)
class CallReader:
    """Reads an answer in one format as it grows, by the ``names`` of the tools that there are.

    What might be the beginning of a call is kept back until that is clear.
    """

    form: ToolFormat
    names: frozenset[str]
    where: _Where = "begin"
    name: str = ""
    _held: str = ""
    _bare: bool = False
    """The whole answer is a call, as a JSON object."""
    _arguments: str = ""
    _json: _Json = field(default_factory=_Json)

    def copy(self) -> CallReader:
        twin = copy.copy(self)
        twin._json = copy.copy(self._json)
        return twin

    def push(self, text: str) -> Iterator[Part]:
        """The parts that ``text`` makes known."""
        self._held += text
        steps = {
            "begin": self._begin,
            "said": self._say,
            "name": self._read_name,
            "arguments": self._argue,
            "after": self._after,
        }
        while self._held and self.where != "end":
            before = self.where
            yield from steps[before]()
            if self.where == before:
                return

    def flush(self) -> str:
        """What was kept back of what is said, when the answer has ended."""
        held, self._held = self._held, ""
        return held if self.where in ("begin", "said") else ""

    @property
    def place(self) -> InCall | None:
        """Where in a call the text stands; None outside of calls."""
        if self.where == "begin":
            return InCall(None, "name") if '"name"' in self._held else None
        if self.where in ("said", "end"):
            return None
        return InCall(self.name or None, "name" if self.where == "name" else "arguments")

    def _begin(self) -> Iterator[Part]:
        """An answer that begins like a call's JSON object is one."""
        found = _BARE.match(self._held)
        if found and found[1] in self.names:
            self._held, self._bare = self._held[found.end() :], True
            yield self._call(found[1])
        elif found or not self._may_be_bare():
            self.where = "said"

    def _may_be_bare(self) -> bool:
        """Whether the text so far begins a call's object, white space aside: names have none."""
        text = "".join(self._held.split())
        for fence, brace in itertools.product(("", "```", _FENCE), ("{", "{{")):
            head = f'{fence}{brace}"name":"'
            if head.startswith(text):
                return True
            if text.startswith(head):
                name, closed, behind = text[len(head) :].partition('"')
                if not closed:
                    return any(known.startswith(name) for known in self.names)
                return name in self.names and any(key.startswith(behind) for key in (',"arguments":', ',"parameters":'))
        return False

    def _call(self, name: str) -> Began:
        self.name, self.where, self._arguments, self._json = name, "arguments", "", _Json()
        return Began(name)

    def _say(self) -> Iterator[Part]:
        opening = self.form.open
        at = self._held.find(opening) if opening else -1
        if at < 0:
            most = min(len(opening) - 1, len(self._held))
            keep = next((size for size in range(most, 0, -1) if self._held.endswith(opening[:size])), 0)
            said, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        else:
            said, self._held, self.where = self._held[:at], self._held[at + len(opening) :], "name"
        if said:
            yield Said(said)

    def _read_name(self) -> Iterator[Part]:
        self.name, start = "", len(self.form.head)
        at = self._held.find(self.form.middle, start)
        if at >= 0:
            name, self._held = self._held[start:at], self._held[at + len(self.form.middle) :]
            yield self._call(name)

    def _argue(self) -> Iterator[Part]:
        end = self._json.end_of(self._held)
        part, self._held = (self._held, "") if end is None else (self._held[:end], self._held[end:])
        part = part if self._arguments else part.lstrip()
        self._arguments += part
        if part:
            yield Argued(part)
        if end is not None:
            self.where = "after"
            yield Ended(self.name, self._arguments)

    def _after(self) -> Iterator[Part]:
        """Behind the arguments: another call, or the end."""
        more = "" if self._bare else self.form.tail + self.form.between
        if more and self.form.between and self._held.startswith(more):
            self._held, self.where = self._held[len(more) :], "name"
        elif not more.startswith(self._held):
            self._held, self.where = "", "end"
        yield from ()
