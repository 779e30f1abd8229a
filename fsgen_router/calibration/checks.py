"""When an answer is right: the checkers of calibration."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

from ..errors import CheckerFailed, ConfigurationError, InvalidRequest
from ..evaluation import MATCHES, Item, matches
from ..reference import world

Judge: TypeAlias = Callable[[str, Item], bool]
"""``judge(text, item)``: whether ``text`` answers ``item``."""

CHECKERS = (*MATCHES, "regex:PATTERN", "slow", "python:MODULE:FUNCTION")


@dataclass(frozen=True, slots=True)
class Checker:
    """A way to tell right answers from wrong ones.

    ``expected(item, slow_text)`` makes the expected answer of the slow model's text, for agreement with
    the slow model; None: the item's own answer.
    """

    name: str
    judge: Judge
    expected: Callable[[Item, str], str] | None = None


def make_checker(form: str | Judge | None, items: Sequence[Item]) -> Checker:
    """A checker from a callable ``(text, item) -> bool`` or a form:

    ``answer``, ``exact``, ``contains``, ``number``
        the item's expected answer, compared as in :func:`~fsgen_router.evaluation.matches`;
    ``regex:PATTERN``
        the last match (its first group, if it has one) equals the expected answer, or what the slow
        model's answer yields where none is expected;
    ``slow``
        the answer equals the slow model's, behind ``Answer:`` where both have it;
    ``python:MODULE:FUNCTION``
        a function ``(text, item) -> bool``, imported only when it is named here.

    None: the items' own ``check`` where all have an expected answer, else ``slow``.
    """
    if callable(form):
        return Checker(getattr(form, "__name__", type(form).__name__), form)
    complete = all(item.answer for item in items)
    if form is None:
        return Checker("answer", lambda text, item: item.check(text)) if complete else _slow_checker()
    if form == "slow":
        return _slow_checker()
    if form.startswith("regex:"):
        return _regex(form)
    if form.startswith("python:"):
        return Checker(form, _imported(form))
    match = next((known for known in MATCHES if known == form), None)
    if match is None:
        raise ConfigurationError(f"unknown checker {form!r}", hint=f"available: {', '.join(CHECKERS)}")
    without = next((item for item in items if not item.answer), None)
    if without is not None:
        raise InvalidRequest(
            f"{without.place or without.id} has no answer to check against", hint="add answers, or use --check slow"
        )
    return Checker(form, lambda text, item: matches(text, item.answer, match))


def _slow_checker() -> Checker:
    return Checker("slow", lambda text, item: matches(text, item.answer), lambda _, slow_text: _given(slow_text))


def _given(text: str) -> str:
    return (world.extract_answer(text) or text).strip()


def _regex(form: str) -> Checker:
    try:
        pattern = re.compile(form.removeprefix("regex:"))
    except re.error as error:
        raise ConfigurationError(f"{form!r} is no regular expression: {error}") from None

    def found(text: str) -> str:
        hits = list(pattern.finditer(text))
        return str((hits[-1].group(1) if pattern.groups else hits[-1].group()) or "").strip() if hits else ""

    # No match is no answer, also where the slow model has none either.
    return Checker(
        form,
        lambda text, item: found(text) == item.answer != "",
        lambda item, slow_text: item.answer or found(slow_text),
    )


def _imported(form: str) -> Judge:
    module, _, function = form.removeprefix("python:").partition(":")
    hint = "write python:MODULE:FUNCTION, importable from where you are (PYTHONPATH)"
    if not module or not function:
        raise ConfigurationError(f"{form!r} names no function", hint=hint)
    try:
        judge = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"checker {form!r} cannot be imported: {error}", hint=hint) from None
    if not callable(judge):
        raise ConfigurationError(f"{function} of {module} is not callable", hint=hint)
    checked: Judge = judge
    return checked


def bind(checker: Checker, items: Sequence[Item], slow_texts: Sequence[str]) -> list[Item]:
    """The items with the checker as their ``check``, so that evaluation can run on them.

    ``slow_texts`` are the slow model's own answers, which agreement is measured against. A checker that
    raises ends in :class:`CheckerFailed`, which names the prompt.
    """
    bound = []
    for item, slow_text in zip(items, slow_texts, strict=True):
        expected = replace(item, answer=checker.expected(item, slow_text)) if checker.expected else item
        bound.append(replace(expected, check=partial(_check, checker, expected)))
    return bound


def _check(checker: Checker, item: Item, text: str) -> bool:
    try:
        return bool(checker.judge(text, item))
    except Exception as error:  # whatever a caller's function raises
        raise CheckerFailed(
            f"checker {checker.name} failed on {item.place or item.id}: {type(error).__name__}: {error}",
            hint="mend the checker and run the same command again: what is finished is kept",
        ) from error
