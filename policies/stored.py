"""Taking a frozen record apart into JSON values and arrays, and putting it together again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from fsgen_router.errors import ConfigurationError

Tensors: TypeAlias = dict[str, npt.NDArray[Any]]
Spec: TypeAlias = dict[str, Any]

_KINDS: dict[str, type[Stored]] = {}


class Stored:
    """Base of dataclasses whose fields are JSON values, arrays, tuples of arrays, or such dataclasses.

    A subclass is found again by its ``kind``.
    """

    kind: ClassVar[str]

    @property
    def name(self) -> str:
        """What it is, in a word or two."""
        return self.kind

    def __init_subclass__(cls) -> None:
        _KINDS[cls.kind] = cls

    def spec(self) -> Spec:
        """The part that is JSON: ``kind``, and everything but arrays."""
        spec: Spec = {"kind": self.kind}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, Stored):
                spec[field.name] = value.spec()
            elif not _holds_arrays(value):
                spec[field.name] = list(value) if isinstance(value, tuple) else value
        return spec

    def to_tensors(self) -> Tensors:
        """The part that is arrays; :func:`restore` puts both together again."""
        tensors: Tensors = {}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, Stored):
                tensors |= {f"{field.name}.{name}": part for name, part in value.to_tensors().items()}
            elif isinstance(value, np.ndarray):
                tensors[field.name] = value
            elif _holds_arrays(value):
                tensors |= {f"{field.name}.{index}": part for index, part in enumerate(value)}
        return tensors


def restore(spec: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[Any]]) -> Any:
    """The record that ``spec()`` and ``to_tensors()`` came from.

    Raises :class:`ConfigurationError` for an unknown kind and for parts that are missing or do not fit.
    """
    kind = spec.get("kind")
    made = _KINDS.get(str(kind))
    if made is None:
        raise ConfigurationError(f"unknown kind {kind!r}", hint=f"this version knows {', '.join(sorted(_KINDS))}")
    parts = {
        field.name: _part(str(kind), field.name, spec, tensors)
        for field in fields(made)  # type: ignore[arg-type]
        if field.name in spec or field.default is MISSING  # one that came later has a default
    }
    try:
        return made(**parts)
    except (TypeError, AttributeError, IndexError) as error:  # a part of the wrong type
        raise ConfigurationError(f"{kind}: its parts do not fit: {error}") from error


def _part(kind: str, name: str, spec: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[Any]]) -> Any:
    inside = {key.removeprefix(f"{name}."): part for key, part in tensors.items() if key.startswith(f"{name}.")}
    if name in spec:
        value = spec[name]
        if isinstance(value, Mapping):
            return restore(value, inside)
        return tuple(value) if isinstance(value, list) else value
    if name in tensors:
        return tensors[name]
    if not inside or inside.keys() != {str(index) for index in range(len(inside))}:
        raise ConfigurationError(f"{kind} lacks {name!r}")
    return tuple(inside[str(index)] for index in range(len(inside)))


def _holds_arrays(value: object) -> bool:
    return isinstance(value, np.ndarray) or (
        isinstance(value, tuple) and bool(value) and isinstance(value[0], np.ndarray)
    )
