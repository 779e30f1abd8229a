"""Answers that keep to a JSON Schema, a regular expression or a grammar, by `llguidance` (extra ``constrain``).

::

    constraint = make_constraint(vocabulary, schema={"type": "object", "properties": {"n": {"type": "integer"}}})
    constraint = make_constraint(vocabulary, regex="[0-9]{3}-[a-z]+")
    constraint = make_constraint(vocabulary, grammar='start: "call " NAME %json {"type": "object"}\nNAME: /[a-z]+/')

:mod:`.formats` says what a request may ask for, and reads what came of it; :mod:`.schemas` and :mod:`.grammars` make a
grammar of it, or refuse it; :mod:`.tokens` has the vocabulary as a matcher reads it, and :mod:`.matching` masks.
llguidance is imported when the first grammar is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .formats import AnswerFormat, read_format
from .tokens import GrammarVocabulary

if TYPE_CHECKING:
    from .matching import AnyLayout, GrammarConstraint


def make_constraint(
    vocabulary: GrammarVocabulary,
    *,
    schema: Mapping[str, Any] | None = None,
    regex: str | None = None,
    grammar: str | None = None,
    calls: str | None = None,
    lenient: bool = False,
    any_layout: bool = False,
) -> GrammarConstraint | AnyLayout:
    """What masks answers in this vocabulary, so that they are of ``schema``, ``regex`` or ``grammar``: one of them.

    ``schema`` is a JSON Schema, of which JSON is written on one line; ``lenient`` ignores those of its keywords that no
    grammar can hold, and ``any_layout`` accepts any white space in what an endpoint writes. ``regex`` is of Rust's
    syntax and stands for the whole answer. ``grammar`` is in Lark's notation as llguidance reads it, where
    ``%json {...}`` embeds a schema and ``<|name|>`` a control token; or in GBNF, llama.cpp's, told by its ``::=``.

    Raises :class:`~fsgen_router.errors.InvalidRequest` for one that cannot be read, that nothing satisfies, or that
    is too large, and ``ImportError`` without the extra ``constrain``.
    """
    from . import grammars
    from .matching import AnyLayout, GrammarConstraint

    if schema is not None:
        made = grammars.of_schema(schema, lenient=lenient)
        if any_layout:
            loose = grammars.of_schema(schema, lenient=lenient, any_layout=True)
            return AnyLayout(GrammarConstraint(vocabulary, made), GrammarConstraint(vocabulary, loose))
    elif regex is not None:
        made = grammars.of_regex(regex)
    elif calls is not None:
        made = grammars.of_calls(calls)
    else:
        assert grammar is not None, "one of schema, regex, grammar and calls"
        made = grammars.of_text(grammar)
    return GrammarConstraint(vocabulary, made)


__all__ = ["AnswerFormat", "GrammarVocabulary", "make_constraint", "read_format"]
