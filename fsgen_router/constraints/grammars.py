"""Grammars of what was asked for, and why one is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ..errors import InvalidRequest
from .engine import gbnf_to_lark, llguidance
from .schemas import held

MAX_BYTES: Final = 1 << 18
"""Of a schema, a regular expression or a grammar."""

_LIMITS: Final = llguidance.LLParserLimits(
    initial_lexer_fuel=1_000_000,  # 20 ms
    step_lexer_fuel=200_000,  # 15 ms a mask
    step_max_items=50_000,
    max_lexer_states=50_000,  # up to 2 kB each
    verbose_errors=False,
)

# One line as models write it: most of what is not a value is forced, and no model can go on with white space for ever.
_LAYOUT: Final = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}

_ANY_LAYOUT: Final = {"whitespace_flexible": True, "whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,24}"}

_AHEAD: Final = 64
"""Tokens that a new grammar is tried on."""

_GBNF: Final = re.compile(r"^\s*[\w-]+\s*::=", re.MULTILINE)

_SMALLER: Final = "make it smaller: fewer alternatives, shorter repetitions, less nesting"
_HINTS: Final = (
    (r"unsatisfiable|no value fits", "nothing could be written: loosen it"),
    (r"oneOf", "say anyOf, or give each alternative a property with a const of its own"),
    (r"^Unimplemented keys|^Unknown format", "leave them out; json_schema's strict=False ignores what cannot be held"),
    (r"not present in a registry", "put what is referred to under $defs: nothing is fetched"),
    (r"look-around|backreference", "regular expressions are of Rust's syntax, which has neither"),
    (r"too (large|complex|many|deep|big)|limit|exceed|max is|fuel|Unable to determine", _SMALLER),
)
_OF_KIND: Final = {
    "response_format": "a JSON Schema of draft 2020-12 or older, as a dict",
    "regex": "it is of Rust's syntax (docs.rs/regex), and stands for the whole answer",
    "grammar": "Lark's notation with a rule named start, or GBNF with a rule named root",
    "tools": "parameters are a JSON Schema of draft 2020-12 or older, as a dict",
}


@dataclass(frozen=True, slots=True)
class Grammar:
    """A grammar in llguidance's form, and the request's option that gave it."""

    text: str
    option: str = field(compare=False)

    def matcher(self, tree: llguidance.LLTokenizer) -> llguidance.LLMatcher:
        """Its first matcher. Raises :class:`InvalidRequest` where it cannot be read or where nothing satisfies it."""
        matcher = llguidance.LLMatcher(tree, self.text, log_level=0, limits=_LIMITS)
        if not matcher.is_error():
            matcher.compute_bitmask()
        # Some that are too large show it only behind what everything begins with.
        ahead = matcher.deep_copy()
        if begins := ahead.compute_ff_tokens()[:_AHEAD]:
            ahead.consume_tokens(begins)
            ahead.compute_bitmask()
        for tried in (matcher, ahead):
            if tried.is_error():
                raise refused(self.option, tried.get_error())
        return matcher


def refused(option: str, reason: str) -> InvalidRequest:
    """The error of what cannot be served, by llguidance's reason for it."""
    reason = _in_short(reason)
    hint = next((hint for sign, hint in _HINTS if re.search(sign, reason, re.IGNORECASE)), _OF_KIND[option])
    return InvalidRequest(f"{option} cannot be used: {reason}", hint=hint)


def of_schema(schema: Mapping[str, Any], *, lenient: bool = False, any_layout: bool = False) -> Grammar:
    """A grammar of JSON of a schema, on one line: ``{"a": 1, "b": [2, 3]}``, properties in the schema's order.

    ``any_layout`` is for text that others write: white space, within bounds, wherever JSON has it.

    The schema's own ``x-guidance`` (llguidance's options) may say otherwise: ``{"whitespace_flexible": true}``.
    """
    try:
        text = json.dumps(held(schema), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise refused("response_format", f"the schema is no JSON: {error}") from None
    _require_size("response_format", text)
    options: Any = {**(_ANY_LAYOUT if any_layout else _LAYOUT), "lenient": lenient}
    try:
        made = llguidance.LLMatcher.grammar_from_json_schema(text, defaults=options)
    except ValueError as error:
        raise refused("response_format", str(error)) from None
    return Grammar(made, "response_format")


def of_regex(regex: str) -> Grammar:
    """A grammar of texts that a regular expression matches whole."""
    _require_size("regex", regex)
    return Grammar(llguidance.LLMatcher.grammar_from_regex(regex), "regex")


def of_calls(grammar: str) -> Grammar:
    """A grammar of answers that may call tools, in Lark's notation."""
    _require_size("tools", grammar)
    return Grammar(llguidance.LLMatcher.grammar_from_lark(grammar), "tools")


def of_text(grammar: str) -> Grammar:
    """A grammar in Lark's notation, or in GBNF, where a rule is written with ``::=``."""
    _require_size("grammar", grammar)
    if _GBNF.search(grammar):
        try:
            grammar = gbnf_to_lark(grammar)
        except Exception as error:  # of any kind: its parser is a small one
            raise refused("grammar", str(error)) from None
    return Grammar(llguidance.LLMatcher.grammar_from_lark(grammar), "grammar")


def _require_size(option: str, text: str) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidRequest(f"{option} holds half a surrogate pair, which is no text") from None
    if size > MAX_BYTES:
        raise InvalidRequest(f"{option} has {size:,} bytes, and at most {MAX_BYTES:,} are read", hint=_SMALLER)


def _in_short(reason: str) -> str:
    """What llguidance says, without the grammar around it and the matcher's state."""
    reason = reason.partition("<state>")[0].strip()
    if reason.startswith("NoExtension"):
        return "no value fits it"
    if reason.startswith("panic: assertion failed"):
        return "it is too large"
    if "ff_tokens" in reason:
        return "what has to follow has no end, so no value fits it"
    if lacking := re.search(r"no token begins b(['\"]).*?\1", reason):
        return f"the models cannot write it: {lacking[0]}"
    said = [line.removeprefix("error: ") for line in reason.splitlines() if line.startswith("error: ")]
    first = (said or reason.splitlines() or ["no reason was given"])[0]
    return first if len(first) <= 300 else f"{first[:200]}..."
