"""Methods from their short forms."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

from ..contracts.methods import Method
from ..errors import ConfigurationError
from ..rows.acceptance import RULES, Rule, RuleName
from .contrast import DEFAULT_ALPHA, FORMS, Contrast
from .proxy import DEFAULT_PROXY_ALPHA, Proxy
from .replace import Replace
from .verify import DEFAULT_DRAFT_LEN, DEFAULT_WINDOW, Verify

Form = TypeVar("Form", bound=str)

SHORT_FORMS = (
    "replace",
    "verify",
    "verify:near_best=0.5",
    "verify:entropy_gate=0.5,window=6",
    "verify:speculative,draft_len=8",
    "contrast",
    "contrast:alpha=0.1,beta=1.5",
    "contrast:li,alpha=0.1",
    "contrast:obrien,beta=0.5",
    "proxy",
    "proxy:alpha=0.7",
)

_PARTS = ("name", "roles", "whole_rows", "rule", "draft_len", "choose")


def make_method(method: Method | str) -> Method:
    """A method from an object or a short form: ``replace``; ``verify`` (the rule ``exact``) or
    ``verify:RULE[=TOLERANCE][,window=W][,draft_len=N]`` with a rule of :mod:`fsgen_router.rows.acceptance`;
    ``contrast`` or ``contrast:[FORM][,alpha=A][,beta=B]`` with a form of :class:`Contrast`; ``proxy`` or
    ``proxy:[fsgen][,alpha=A]`` (:class:`Proxy`).

    Raises :class:`ConfigurationError`, which lists what exists.
    """
    if not isinstance(method, str):
        if isinstance(method, type) or not all(hasattr(method, part) for part in _PARTS):
            raise ConfigurationError(
                f"{method!r} is not a method",
                hint=f"pass a name or an object with {', '.join(_PARTS[:-1])} and {_PARTS[-1]}()",
            )
        return method
    name, colon, details = method.partition(":")
    make = _MAKERS.get(name.strip())
    if make is None or bool(colon) != bool(details) or (details and make is _make_replace):
        raise ConfigurationError(f"unknown method {method!r}", hint=f"examples: {', '.join(SHORT_FORMS)}")
    return make(method, [part.strip() for part in details.split(",") if part.strip()])


def _make_replace(_method: str, _parts: Sequence[str]) -> Replace:
    return Replace()


def _make_verify(method: str, parts: Sequence[str]) -> Verify:
    rule: RuleName = "exact"
    tolerance, window, draft_len = 0.0, None, DEFAULT_DRAFT_LEN
    for part in parts:
        name, _, value = part.partition("=")
        if name == "draft_len":
            draft_len = int(_number(method, value, int))
        elif name == "window":
            window = int(_number(method, value, int))
        elif name in RULES:
            rule, tolerance = name, _number(method, value) if value else 0.0
        else:
            raise _unknown("rule", name, method, RULES, ("draft_len", "window"))
    if window is None:
        window = DEFAULT_WINDOW if rule == "entropy_gate" else 0
    return Verify(Rule(rule, tolerance, window), draft_len)


def _make_contrast(method: str, parts: Sequence[str]) -> Contrast:
    form, numbers = _settings(method, parts, FORMS, ("alpha", "beta"))
    return Contrast(form or "fsgen", numbers.get("alpha", DEFAULT_ALPHA), numbers.get("beta"))


def _make_proxy(method: str, parts: Sequence[str]) -> Proxy:
    form, numbers = _settings(method, parts, (_SWAPPED,), ("alpha",))
    return Proxy(numbers.get("alpha", DEFAULT_PROXY_ALPHA), swapped=form is not None)


_SWAPPED: Literal["fsgen"] = "fsgen"
_MAKERS: dict[str, Callable[[str, Sequence[str]], Method]] = {
    "replace": _make_replace,
    "verify": _make_verify,
    "contrast": _make_contrast,
    "proxy": _make_proxy,
}


def _settings(
    method: str, parts: Sequence[str], forms: Sequence[Form], names: Sequence[str]
) -> tuple[Form | None, dict[str, float]]:
    """The form, where one is named, and the numbers of a method; each may be given once."""
    found: Form | None = None
    numbers: dict[str, float] = {}
    for part in parts:
        name, equals, value = part.partition("=")
        form = next((form for form in forms if form == part), None)
        if form is not None and found is None:
            found = form
        elif equals and name in names and name not in numbers:
            numbers[name] = _number(method, value)
        else:
            raise _unknown("part", part, method, forms, names)
    return found, numbers


def _number(method: str, value: str, kind: type[float] = float) -> float:
    try:
        return kind(value)
    except ValueError:
        raise ConfigurationError(f"{value!r} in method {method!r} is not a number") from None


def _unknown(kind: str, part: str, method: str, forms: Sequence[str], names: Sequence[str]) -> ConfigurationError:
    close = [name for name in difflib.get_close_matches(part, [*forms, *names], 1) if name != part]
    numbers = ", ".join(f"{name}=..." for name in names)
    return ConfigurationError(
        f"unknown {kind} {part!r} in method {method!r}",
        hint=(f"did you mean {close[0]!r}? " if close else "")
        + f"{'rules' if kind == 'rule' else 'forms'}: {', '.join(forms)}; each once: {numbers}",
    )
