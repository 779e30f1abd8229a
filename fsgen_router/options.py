"""Checking options against a pydantic model, with errors that say what exists."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ValidationError

from .errors import ConfigurationError, InvalidRequest

_OURS = ("add_generation_prompt", "documents", "messages", "tools")


def _template_variables(value: object) -> object:
    """JSON text or a mapping as a plain dict: templates see data alone, no objects of ours."""
    try:
        made = json.loads(value if isinstance(value, str) else json.dumps(value))
    except (TypeError, ValueError) as error:
        raise ValueError(f"a JSON object of template variables is wanted: {error}") from None
    if not isinstance(made, dict):
        raise ValueError('a JSON object of template variables is wanted, like {"enable_thinking": false}')
    if taken := [name for name in _OURS if name in made]:
        raise ValueError(f"{taken[0]} cannot be set from outside")
    return made


TemplateVariables = Annotated[Mapping[str, Any], BeforeValidator(_template_variables)]
"""Variables for chat templates, by name: a mapping of JSON values, or the same as JSON text."""

T = TypeVar("T", bound=BaseModel)


def checked(model: type[T], options: Mapping[str, Any], *, error: type[ConfigurationError] | type[InvalidRequest]) -> T:
    """Validate options into ``model``, or say which one is wrong and what exists."""
    known = list(model.model_fields)
    for name in options:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            raise error(
                f"unknown option {name!r}",
                hint=(f"did you mean {close[0]!r}? " if close else "") + f"available: {', '.join(known)}",
            )
    try:
        return model(**options)
    except ValidationError as invalid:
        first = invalid.errors()[0]
        name = ".".join(map(str, first["loc"])) or "options"
        raise error(f"{name}={first['input']!r}: {first['msg']}") from None
