"""Questions with checkable answers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from ..contracts.tokenizer import Turn
from ..errors import ConfigurationError, InvalidRequest
from ..reference import world
from ..text.messages import require_messages, require_text

Match = Literal["answer", "exact", "contains", "number"]
MATCHES: tuple[Match, ...] = get_args(Match)
Convert: TypeAlias = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One question: a raw ``prompt`` or chat ``messages``, and ``check(text)``, True when right.

    ``answer`` is the expected answer as text; ``family`` and ``level`` are labels to group by;
    ``place`` says where it was read, for messages.
    """

    id: str
    check: Callable[[str], bool]
    prompt: str | None = None
    messages: tuple[Turn, ...] | None = None
    answer: str = ""
    family: str = ""
    level: int | None = None
    place: str = ""

    def __post_init__(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise ConfigurationError(f"item {self.id} needs either a prompt or messages")


def reference_items(split: world.Split = "test", count: int = 200, start: int = 0) -> list[Item]:
    """Problems ``start`` to ``start + count`` of a split of the reference pair's world, as chats."""
    if split not in world.SPLITS:
        raise ConfigurationError(f"unknown split {split!r}", hint=f"available: {', '.join(world.SPLITS)}")
    if count < 1 or start < 0:
        raise ConfigurationError(f"{count} problems from {start} on", hint="at least 1 problem, from 0 or later on")
    return [
        Item(
            id=problem.id,
            check=problem.check,
            messages=({"role": "user", "content": problem.prompt},),
            answer=problem.answer,
            family=problem.family,
            level=problem.level,
            place=f"problem {problem.id}",
        )
        for problem in world.problems(split, count, start)
    ]


def read_items(
    path: str | Path, *, match: Match = "answer", answers: bool = True, convert: Convert | None = None
) -> list[Item]:
    """Items from JSON lines: ``{"prompt": ..., "answer": ...}`` or ``{"messages": [...], "answer": ...}``.

    ``id``, ``family`` and ``level`` may stand beside them; empty lines are skipped. ``match`` is as in
    :func:`matches`. With ``answers=False`` the answer may be left out; no text is then right. ``convert``
    makes such an object of a line's own. Raises :class:`InvalidRequest` naming the line that is wrong.
    """
    if match not in MATCHES:
        raise ConfigurationError(f"unknown match {match!r}", hint=f"available: {', '.join(MATCHES)}")
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}", hint="check the path") from None
    items = [
        _item(f"{path}, line {number}", number, line, match, answers, convert)
        for number, line in enumerate(data.split(b"\n"), 1)
        if line.strip()
    ]
    if not items:
        raise InvalidRequest(f"{path} holds no items", hint='one {"prompt": "...", "answer": "..."} a line')
    return items


_ITEM_KEYS = {"prompt", "messages", "answer", "id", "family", "level"}


def _item(place: str, number: int, line: bytes, match: Match, answers: bool, convert: Convert | None) -> Item:
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{place}: not valid UTF-8 at byte {error.start} of the line") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise InvalidRequest(f"{place}: not valid JSON: {error}") from None
    if not isinstance(record, dict):
        raise InvalidRequest(f"{place}: {type(record).__name__}, not an object")
    if convert is not None:
        record = convert(record)
    if unknown := set(record) - _ITEM_KEYS:
        raise InvalidRequest(
            f"{place}: unknown field {sorted(unknown)[0]!r}", hint=f"available: {', '.join(sorted(_ITEM_KEYS))}"
        )
    answer, level = record.get("answer"), record.get("level")
    left_out = not answers and "answer" not in record
    if not left_out and (
        isinstance(answer, bool) or not isinstance(answer, (str, int, float)) or not str(answer).strip()
    ):
        raise InvalidRequest(f"{place}: answer must be a non-empty text or a number")
    if level is not None and (isinstance(level, bool) or not isinstance(level, int)):
        raise InvalidRequest(f"{place}: level must be a whole number")
    if ("prompt" in record) == ("messages" in record):
        raise InvalidRequest(f"{place}: needs either prompt or messages")
    expected = "" if left_out else str(answer).strip()
    try:
        return Item(
            id=str(record.get("id", number)),
            check=lambda text: not left_out and matches(text, expected, match),
            prompt=require_text(record["prompt"]) if "prompt" in record else None,
            messages=tuple(require_messages(record["messages"])) if "messages" in record else None,
            answer=expected,
            family=str(record.get("family", "")),
            level=level,
            place=place,
        )
    except InvalidRequest as error:
        raise InvalidRequest(f"{place}: {error.message}", hint=error.hint) from None


def matches(text: str, answer: str, match: Match = "answer") -> bool:
    """Whether ``text`` gives ``answer``.

    ``answer``: what stands behind the last ``Answer:``, or the whole text where there is none, is equal;
    ``exact``: the whole text is equal; ``contains``: it occurs; ``number``: the last number is equal.
    White space around both is ignored.
    """
    text, answer = text.strip(), answer.strip()
    if match == "exact":
        return text == answer
    if match == "contains":
        return answer in text
    if match == "number":
        found = _numbers(text)
        return bool(found) and found[-1:] == _numbers(answer)[-1:]
    extracted = world.extract_answer(text)
    return (text if extracted is None else extracted) == answer


def _numbers(text: str) -> list[float]:
    return [float(number.replace(",", "")) for number in re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)]
