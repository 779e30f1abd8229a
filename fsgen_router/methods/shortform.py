"""Methods from their short forms."""

from __future__ import annotations

import difflib

from ..contracts.methods import Method
from ..errors import ConfigurationError
from ..rows.acceptance import RULES, Rule, RuleName
from .replace import Replace
from .verify import DEFAULT_DRAFT_LEN, DEFAULT_WINDOW, Verify

SHORT_FORMS = (
    "replace",
    "verify",
    "verify:near_best=0.5",
    "verify:entropy_gate=0.5,window=6",
    "verify:speculative,draft_len=8",
)

_PARTS = ("name", "roles", "whole_rows", "rule", "draft_len", "choose")


def make_method(method: Method | str) -> Method:
    """A method from an object or a short form: ``replace``, ``verify`` (the rule ``exact``), or
    ``verify:RULE[=TOLERANCE][,window=W][,draft_len=N]`` with a rule of :mod:`fsgen_router.rows.acceptance`.

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
    rule: RuleName = "exact"
    tolerance, window, draft_len = 0.0, None, DEFAULT_DRAFT_LEN
    for part in filter(None, details.split(",")):
        name, _, value = part.partition("=")
        known = next((known for known in RULES if known == name), None)
        try:
            if name == "draft_len":
                draft_len = int(value)
            elif name == "window":
                window = int(value)
            elif known is not None:
                rule, tolerance = known, float(value) if value else 0.0
            else:
                close = difflib.get_close_matches(name, [*RULES, "draft_len", "window"], 1)
                raise ConfigurationError(
                    f"unknown rule {name!r} in method {method!r}",
                    hint=(f"did you mean {close[0]!r}? " if close else "") + f"rules: {', '.join(RULES)}",
                )
        except ConfigurationError:
            raise
        except ValueError:
            raise ConfigurationError(f"{value!r} in method {method!r} is not a number") from None
    if window is None:
        window = DEFAULT_WINDOW if rule == "entropy_gate" else 0
    return Verify(Rule(rule, tolerance, window), draft_len)
