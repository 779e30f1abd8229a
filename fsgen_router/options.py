"""Checking options against a pydantic model, with errors that say what exists."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from .errors import ConfigurationError, InvalidRequest

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
