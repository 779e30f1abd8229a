"""Figures as text."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable


def shown(value: float | None, form: Callable[[float], str]) -> str:
    return "unknown" if value is None else form(value)


def percent(value: float) -> str:
    return f"{round(value, 3) + 0.0:.1%}"  # a zero without a sign


def si(value: float) -> str:
    """Three digits and a prefix: 125 M, 1.40 T."""
    prefixes = iter(("", " k", " M", " G", " T", " P", " E"))
    prefix = next(prefixes)
    while abs(value) >= 999.5 and (larger := next(prefixes, None)) is not None:
        value, prefix = value / 1000, larger
    places = 2 - bisect((9.995, 99.95), abs(value))
    return f"{value:.{places}f}{prefix}"


def seconds_of(value: float) -> str:
    return f"{value:.3f} s"
