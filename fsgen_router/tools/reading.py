"""Tool calls in a text that grows: what is said, what is called, and where in a call the text stands."""

from __future__ import annotations

import copy
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
_Where: TypeAlias = Literal["said", "name", "arguments", "after", "end"]


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


@dataclass(slots=True)
class CallReader:
    """Reads an answer in one format as it grows. What might be the beginning of a call is kept back until that is clear."""

    form: ToolFormat
    where: _Where = "said"
    name: str = ""
    _held: str = ""
    _arguments: str = ""
    _json: _Json = field(default_factory=_Json)
    _spoke: bool = False

    def copy(self) -> CallReader:
        twin = copy.copy(self)
        twin._json = copy.copy(self._json)
        return twin

    def push(self, text: str) -> Iterator[Part]:
        """The parts that ``text`` makes known."""
        self._held += text
        step = {"said": self._say, "name": self._name, "arguments": self._argue, "after": self._after}
        while self._held and self.where != "end":
            before = self.where
            yield from step[before]()
            if self.where == before:
                return

    def flush(self) -> str:
        """What was kept back of what is said, when the answer has ended."""
        held, self._held = self._held, ""
        return held if self.where == "said" else ""

    @property
    def place(self) -> InCall | None:
        """Where in a call the text stands; None outside of calls."""
        if self.where in ("said", "end"):
            return None
        return InCall(self.name or None, "name" if self.where == "name" else "arguments")

    def _say(self) -> Iterator[Part]:
        if not self.form.open:
            yield from self._say_or_call()
            return
        opening = self.form.open
        at = self._held.find(opening)
        if at < 0:
            keep = next(n for n in range(min(len(opening) - 1, len(self._held)), -1, -1) if _ends(self._held, opening, n))
            said, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        else:
            said, self._held, self.where = self._held[:at], self._held[at + len(opening) :], "name"
        if said:
            yield Said(said)

    def _say_or_call(self) -> Iterator[Part]:
        """Where nothing opens a call, an answer that begins like one is one."""
        if not self._spoke and self._held.startswith(self.form.head):
            self.where = "name"
        elif self._spoke or not self.form.head.startswith(self._held):
            self._spoke = True
            said, self._held = self._held, ""
            yield Said(said)

    def _name(self) -> Iterator[Part]:
        self.name = ""
        start = len(self.form.head)
        at = self._held.find(self.form.middle, start)
        if at >= 0:
            self.name, self._held = self._held[start:at], self._held[at + len(self.form.middle) :]
            self.where, self._arguments, self._json = "arguments", "", _Json()
            yield Began(self.name)

    def _argue(self) -> Iterator[Part]:
        end = self._json.end_of(self._held)
        part, self._held = (self._held, "") if end is None else (self._held[:end], self._held[end:])
        self._arguments += part
        yield Argued(part)
        if end is not None:
            self.where = "after"
            yield Ended(self.name, self._arguments)

    def _after(self) -> Iterator[Part]:
        """Behind the arguments: another call, or the end."""
        more = self.form.tail + self.form.between
        if self._held.startswith(more):
            self._held, self.where = self._held[len(more) :], "name"
        elif not more.startswith(self._held):
            self._held, self.where = "", "end"
        yield from ()


def _ends(text: str, word: str, size: int) -> bool:
    return size == 0 or text.endswith(word[:size])
