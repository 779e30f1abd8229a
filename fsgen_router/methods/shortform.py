"""Methods from their short forms."""

from __future__ import annotations

import difflib

from ..contracts.methods import Method
from ..errors import ConfigurationError
from ..rows.acceptance import RULES, Rule
from .replace import Replace
from .verify import DEFAULT_DRAFT_LEN, Verify

SHORT_FORMS = ("replace", "verify", "verify:near_best=0.5", "verify:speculative,draft_len=8")

_PARTS = ("name", "roles", "whole_rows", "rule", "draft_len", "choose")


def make_method(method: Method | str) -> Method:
    """A method from an object or a short form: ``replace``, ``verify`` (the rule ``exact``), or
    ``verify:RULE[=TOLERANCE][,draft_len=N]`` with a rule of :mod:`fsgen_router.rows.acceptance`.

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
    if name == "verify" and (details or not colon):
        return _make_verify(method, details)
    if method != "replace":
        raise ConfigurationError(f"unknown method {method!r}", hint=f"examples: {', '.join(SHORT_FORMS)}")
    return Replace()


def _make_verify(method: str, details: str) -> Verify:
    rule, draft_len = Rule(), DEFAULT_DRAFT_LEN
    for part in filter(None, details.split(",")):
        name, _, value = part.partition("=")
        try:
            if name == "draft_len":
                draft_len = int(value)
            elif name in RULES:
                rule = Rule(name, float(value) if value else 0.0)
            else:
                close = difflib.get_close_matches(name, [*RULES, "draft_len"], 1)
                raise ConfigurationError(
                    f"unknown rule {name!r} in method {method!r}",
                    hint=(f"did you mean {close[0]!r}? " if close else "") + f"rules: {', '.join(RULES)}",
                )
        except ConfigurationError:
            raise
        except ValueError:
            raise ConfigurationError(f"{value!r} in method {method!r} is not a number") from None
    return Verify(rule, draft_len)
