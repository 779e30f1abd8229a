"""What a forward of one model costs on this machine: a measured table, and what lies between its points."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ..errors import ConfigurationError

STEADY = 0.35
"""Largest spread at which a machine is taken to have kept its speed while it was measured."""


@dataclass(frozen=True, slots=True)
class Point:
    """Forwards of one shape: ``tokens`` new ones of each of ``sequences``, of which each row was read, or the last.

    ``seconds`` is the median of ``count`` repetitions (of two the faster: other work only adds), ``low`` and ``high``
    are the fastest and the slowest.
    """

    tokens: int
    sequences: int
    every_row: bool
    seconds: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, shape: tuple[int, int, bool], times: Sequence[float]) -> Point:
        middle = statistics.median(times) if len(times) > 2 else min(times)
        return cls(*shape, middle, min(times), max(times), len(times))


_POINTS = TypeAdapter(list[Point])


@dataclass(frozen=True)
class ForwardCost:
    """Seconds of one model's forwards by number of new tokens and of sequences.

    Between measured sizes it is linear; beyond the largest the slope is that from a quarter of it on. Whole
    forwards are measured, as a caller waits for them: what is read of the rows is in them.
    ``further``: seconds of each token behind the first that a model writes in one call, where it is asked over a
    network; None: it takes a step for each.
    """

    name: str
    points: tuple[Point, ...]
    further: float | None = None

    def __post_init__(self) -> None:
        if not any(point.tokens == point.sequences == 1 for point in self.points):
            raise ConfigurationError(f"the costs of {self.name} lack a step of one token", hint="measure it again")
        if not all(point.seconds > 0 for point in self.points):
            raise ConfigurationError(f"the costs of {self.name} hold times that are not above 0")

    def seconds(self, new_tokens: int, sequences: int = 1, *, rows: int = 1) -> float:
        """Expected seconds of a forward with ``new_tokens`` of each of ``sequences``.

        ``rows`` of each sequence are read: the last alone, or more, as where drafts are judged. Several sequences
        cost what one costs with all of their tokens, times what was measured for steps of several.
        """
        if new_tokens < 1 or sequences < 1:
            return 0.0
        one = self._one(new_tokens * sequences, max(min(rows, new_tokens), 1) * sequences)
        if sequences == 1:
            return one
        return one * _between(self._shared, sequences)

    @property
    def step(self) -> float:
        """Seconds of a forward with one new token of one sequence."""
        return self._last[1]

    def span_step(self, sequences: int = 1) -> float:
        """Seconds of each token of a span behind its first."""
        return self.seconds(1, sequences) if self.further is None else self.further

    @property
    def spread(self) -> float:
        """Range over median of the repetitions, the median over all shapes; 0 where each was seen once."""
        ranges = [(point.high - point.low) / point.seconds for point in self.points if point.count > 1]
        return statistics.median(ranges) if ranges else 0.0

    @property
    def steady(self) -> bool:
        """Whether the machine kept its speed meanwhile."""
        return self.spread <= STEADY

    @property
    def chunks(self) -> tuple[int, ...]:
        """Sizes of chunks that were measured with every row read: what lies between may hide a jump."""
        return tuple(size for size in sorted(self._every) if size > 1)

    # --- between the points ---

    @functools.cached_property
    def _last(self) -> dict[int, float]:
        return {p.tokens: p.seconds for p in self.points if p.sequences == 1 and (p.tokens == 1 or not p.every_row)}

    @functools.cached_property
    def _every(self) -> dict[int, float]:
        return {1: self._last[1]} | {p.tokens: p.seconds for p in self.points if p.sequences == 1 and p.every_row}

    @functools.cached_property
    def _shared(self) -> dict[int, float]:
        """How much longer a step of so many sequences takes than one sequence's chunk of as many tokens."""
        steps = {p.sequences: p.seconds for p in self.points if p.tokens == 1}
        return {count: seconds / self._one(count, count) for count, seconds in steps.items()}

    def _one(self, tokens: int, rows: int) -> float:
        last = _between(self._last, tokens)
        if rows == 1 or len(self._every) == 1:
            return last
        largest = max(self._every)
        if tokens <= largest:
            return last + (_between(self._every, tokens) - last) * (rows - 1) / (tokens - 1)
        per_row = (self._every[largest] - _between(self._last, largest)) / (largest - 1)
        return last + max(per_row, 0.0) * (rows - 1)

    # --- as JSON ---

    def to_dict(self) -> dict[str, Any]:
        names = Point.__slots__
        points = [{name: getattr(point, name) for name in names} for point in self.points]
        return {"name": self.name, "points": points, "further": self.further}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> ForwardCost:
        """What :meth:`to_dict` gave. Raises :class:`ConfigurationError` where it is something else."""
        try:
            points = _POINTS.validate_python(found["points"])
            further = found.get("further")
            return cls(str(found["name"]), tuple(points), None if further is None else float(further))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ConfigurationError(f"these are no costs of a model: points.{where}: {first['msg']}") from None
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigurationError(f"these are no costs of a model: {error}") from None


def _between(table: Mapping[int, float], size: int) -> float:
    """The value at ``size`` of a table that is linear between its points."""
    if size in table:
        return table[size]
    sizes = sorted(table)
    if size < sizes[0] or len(sizes) == 1:
        return table[sizes[0]]
    for low, high in pairwise(sizes):
        if low < size < high:
            return table[low] + (table[high] - table[low]) * (size - low) / (high - low)
    last = sizes[-1]
    base = max((s for s in sizes if s <= last / 4), default=sizes[0])
    return table[last] + max(table[last] - table[base], 0.0) * (size - last) / (last - base)
