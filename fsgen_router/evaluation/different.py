"""Which models are one: in two seats one would be compared with itself, and behind one name another may lie later."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import TypeVar

from ..errors import ConfigurationError
from ..run.workers import AnyModel

M = TypeVar("M", bound=AnyModel | str)


def require_different(seats: Iterable[tuple[str, AnyModel | str]]) -> None:
    """Raise :class:`ConfigurationError` for one model in two seats, by its name or file."""
    _refuse_twice(seats, _where)


def require_different_files(seats: Iterable[tuple[str, AnyModel]]) -> None:
    """The same for loaded models, by what their files hold: a copy is no other model."""
    _refuse_twice(seats, files_of)


def files_of(model: AnyModel) -> str | None:
    """A digest of what a model's files hold; None where it has none of its own (the hub's), or does not say."""
    found: str | None = (getattr(model, "identity", None) or {}).get("files")
    return found or None


def _refuse_twice(seats: Iterable[tuple[str, M]], key: Callable[[M], Hashable]) -> None:
    seen: dict[Hashable, str] = {}
    for seat, model in seats:
        found = key(model)
        if found is not None and found in seen:
            named = model if isinstance(model, str) else model.name
            raise ConfigurationError(
                f"{seen[found]} and {seat} are one model: {named}",
                hint="name two that differ: compared with itself, a model neither gains nor loses",
            )
        seen[found] = seat


def _where(model: AnyModel | str) -> Hashable:
    """What two models have in common that are one: the file, wherever links lead, or what a string names."""
    if not isinstance(model, str):
        return id(model)
    backend, _, rest = model.partition(":")
    where = rest.partition("?")[0]
    if backend == "reference" or not Path(where).exists():
        return backend, where
    found = os.stat(where)
    return found.st_dev, found.st_ino
