"""Whole rows, as methods read them that combine several models' logits."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ..contracts.models import Role
from ..errors import ConfigurationError
from ..rows.reading import Floats, Row


def whole(rows: Mapping[Role, Row], role: Role) -> Floats:
    """A model's logits at this position, float32 of shape (n_vocab,): not to be changed, not to be kept."""
    logits = rows[role].logits
    assert logits is not None, f"{role} is not among the method's whole_rows"
    return logits


def require_range(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Raise :class:`ConfigurationError` for a number of a method's that is none, or beyond its range."""
    if not low <= value <= high or not math.isfinite(value):
        wanted = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
        raise ConfigurationError(f"{name}={value:g}", hint=wanted)
