"""Things that somebody may hand over where something else is meant."""

from __future__ import annotations

from typing import Any

from fsgen_router import Router

THINGS: list[Any] = [
    None, True, False, 0, 1, -1, 7, 10**30, 0.0, 0.5, -2.5, 1e300, 1e-320, float("nan"), float("inf"), -float("inf"),
    "", "a", "x" * 300, "\ud800", "\x00", "7", b"", b"a", (), [], {}, [1], ["a"], ["a", ""], [None], {"a": 1}, {1: 1},
    {1: None}, {-1: 1.0}, {1: float("nan")}, {"1": "2"}, object(), int, Router, Ellipsis, 3j,
]  # fmt: skip
