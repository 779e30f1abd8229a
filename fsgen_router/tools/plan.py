"""What a request may call, in the format of its models: its grammar, its prompt, and what came of its answer."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..contracts.policy import InCall
from ..contracts.text_models import OfferedTools
from ..contracts.tokenizer import Tokenizer, Turn
from ..decode import Emit
from ..errors import BackendError
from ..generation import Generation, ReasoningDelta, Restarted, StreamEvent, TextDelta, ToolCallDelta
from ..records import ToolCall
from .definitions import Choice, Tool
from .formats import ToolFormat, arrange, format_of, grammar_of
from .reading import Argued, Began, CallReader, Ended, Said

_ID_LETTERS = string.ascii_letters + string.digits
_ID_SIZE = 9
"""Mistral's templates take no other."""


@dataclass(frozen=True)
class ToolPlan:
    """The tools of one request.

    ``marks`` has the ids of the format's markers that are one token, and ``shown`` those of them that are control
    tokens, which are to be seen in the text because calls are told by them.
    """

    tools: tuple[Tool, ...]
    choice: Choice
    parallel: bool
    form: ToolFormat
    marks: Mapping[str, int]
    shown: Mapping[int, bytes]
    piece: Callable[[int], bytes]
    answer: Mapping[str, Any] | None = None
    """The schema of an answer that calls nothing; None: any text."""
    earlier: frozenset[str] = frozenset()
    """Calls that were made since the user last spoke."""

    @classmethod
    def make(
        cls,
        tools: Sequence[Tool],
        choice: Choice,
        *,
        parallel: bool,
        template: str | None,
        tokenizer: Tokenizer,
        messages: Sequence[Turn],
        piece: Callable[[int], bytes],
        answer: Mapping[str, Any] | None = None,
    ) -> ToolPlan:
        form = format_of(template)
        marks = _marks(form, tokenizer)
        shown = {token: mark.encode() for mark, token in marks.items() if token in tokenizer.special_ids}
        earlier = frozenset(_since_the_user(messages))
        return cls(tuple(tools), choice, parallel, form, marks, shown, piece, answer, earlier)

    @cached_property
    def grammar(self) -> str:
        """What every answer is of, in Lark's notation as llguidance reads it."""
        return grammar_of(
            self.form, self.tools, self.choice, parallel=self.parallel, marks=self.marks, answer=self.answer
        )

    @cached_property
    def _tracker(self) -> _Tracker:
        return _Tracker(self.reader(), lambda token: self.shown.get(token) or self.piece(token))

    def reader(self) -> CallReader:
        """Of an answer that begins."""
        return CallReader(self.form, frozenset(tool.name for tool in self.tools))

    def place(self, answer: Sequence[int]) -> InCall | None:
        """Where in a call an answer of these ids stands."""
        return self._tracker.place(answer)

    @property
    def offered(self) -> OfferedTools | None:
        """As a slow model is told of them that gives text; None where none may be called."""
        choice: str | Mapping[str, Any] = self.choice.mode
        if choice == "none":
            return None
        if self.choice.name is not None:
            choice = {"type": "function", "function": {"name": self.choice.name}}
        return OfferedTools(
            tools=tuple(tool.to_dict() for tool in self.tools), choice=choice, parallel=self.parallel, write=self.write
        )

    def write(self, calls: Sequence[tuple[str, str]]) -> str:
        """Calls (name, JSON text of the arguments) in this format, as the grammar has them."""
        by_name = {tool.name: tool for tool in self.tools}
        written = []
        for name, arguments in calls:
            try:
                made = json.loads(arguments or "{}")
            except ValueError as error:
                raise BackendError(f"a call of {name!r} has arguments that are no JSON: {error}") from None
            tool = by_name.get(name)
            arranged = made if tool is None else arrange(made, tool.parameters)
            written.append((name, json.dumps(arranged, ensure_ascii=False)))
        return self.form.calls(written)

    def review(self, text: str) -> str | None:
        """What is wrong with an answer's calls; None: nothing.

        A call that was made before, with its result at hand, is a loop that a small model does not leave.
        """
        seen = set(self.earlier)
        for name, arguments in self.read(text)[1]:
            key = _key(name, arguments)
            if key in seen:
                return f"the same call again: {name}"
            seen.add(key)
        return None

    def read(self, text: str) -> tuple[str, list[tuple[str, str]]]:
        """What an answer says, and its whole calls (name, arguments)."""
        reader, said, calls = self.reader(), list[str](), list[tuple[str, str]]()
        for part in reader.push(text):
            if isinstance(part, Said):
                said.append(part.text)
            elif isinstance(part, Ended):
                calls.append((part.name, part.arguments))
        return "".join(said) + reader.flush(), calls

    def applied(self, answer: Generation, request: str) -> Generation:
        """The answer with its calls apart from what it says."""
        said, calls = self.read(answer.text)
        whole = answer.finish_reason in ("eog", "stop")
        if calls:  # the answer's form is that of one that calls nothing
            answer = dataclasses.replace(answer, parsed=None, parse_error=None)
        return dataclasses.replace(
            answer,
            text=said,
            tool_calls=tuple(ToolCall(call_id(request, at), *call) for at, call in enumerate(calls)),
            finish_reason="tool_calls" if calls and whole else answer.finish_reason,
        )

    def events(self, request: str) -> CallStream:
        return CallStream(self, request)


def call_id(request: str, number: int) -> str:
    """The name of a request's call, the same in its stream and in its answer."""
    digest = int.from_bytes(hashlib.blake2b(f"{request}/{number}".encode(), digest_size=8).digest(), "big")
    return "".join(_ID_LETTERS[digest // len(_ID_LETTERS) ** at % len(_ID_LETTERS)] for at in range(_ID_SIZE))


class _Tracker:
    """Where in a tool call each position of an answer is: a pure function of its ids, followed as they grow."""

    def __init__(self, reader: CallReader, piece: Callable[[int], bytes]) -> None:
        self._piece = piece
        self._ids: list[int] = []
        self._readers = [reader]

    def place(self, answer: Sequence[int]) -> InCall | None:
        ids = self._ids
        if ids != list(answer[: len(ids)]):
            common = next((at for at, pair in enumerate(zip(ids, answer, strict=False)) if pair[0] != pair[1]), None)
            size = min(len(ids), len(answer)) if common is None else common
            del ids[size:], self._readers[size + 1 :]
        for token in answer[len(ids) :]:
            reader = self._readers[-1].copy()
            # A byte a character: names and structure are ASCII, and a token may end inside of a character.
            for _ in reader.push(self._piece(token).decode("latin-1")):
                pass
            ids.append(token)
            self._readers.append(reader)
        return self._readers[len(answer)].place


class CallStream:
    """An answer's events, with calls apart from what is said. Every token comes with one :class:`TextDelta`."""

    def __init__(self, plan: ToolPlan, request: str) -> None:
        self._plan, self._request = plan, request
        self._begin()

    def _begin(self) -> None:
        self._reader, self._number, self._kept = self._plan.reader(), -1, list[ToolCallDelta]()

    def of(self, emit: Emit) -> Iterator[StreamEvent]:
        if emit.restarts:
            self._begin()
            yield Restarted()
            return
        if emit.reasoning:
            yield ReasoningDelta(emit.reasoning)
            return
        said, deltas = "", list[ToolCallDelta]()
        for part in self._reader.push(emit.text):
            match part:
                case Said(text):
                    said += text
                case Began(name):
                    self._number += 1
                    deltas.append(ToolCallDelta(self._number, call_id(self._request, self._number), name, ""))
                case Argued(text):
                    deltas.append(ToolCallDelta(self._number, None, None, text))
        yield TextDelta(said, emit.token)
        # Where one may be made for the second time and be taken back: a client that has heard of it may run it.
        self._kept += deltas
        if not self._plan.earlier:
            yield from self._take()

    def end(self) -> Iterator[StreamEvent]:
        if said := self._reader.flush():
            yield TextDelta(said, None)
        yield from self._take()

    def _take(self) -> list[ToolCallDelta]:
        kept, self._kept = self._kept, []
        return kept


def _marks(form: ToolFormat, tokenizer: Tokenizer) -> dict[str, int]:
    found = {}
    for mark in form.markers():
        ids = tokenizer.encode(mark, add_bos=False, parse_special=True)
        if len(ids) == 1:
            found[mark] = ids[0]
    return found


def _since_the_user(messages: Sequence[Turn]) -> Iterator[str]:
    for message in reversed(messages):
        if message["role"] == "user":
            return
        for call in message.get("tool_calls", ()):
            yield _key(call["function"]["name"], call["function"]["arguments"])


def _key(name: str, arguments: str | Mapping[str, Any]) -> str:
    made = json.loads(arguments) if isinstance(arguments, str) else arguments
    return f"{name} {json.dumps(made, sort_keys=True)}"
