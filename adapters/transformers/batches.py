"""What one forward takes: several sequences' tokens as a batch, cut where too much would be read at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from fsgen_router.rows.reading import Read

# A forward costs about as much as this many tokens more in another one: what padding may cost to save it.
_PADDING = 64


@dataclass(slots=True)
class Pending:
    """A work that is being read: its ids from position ``start`` on, and the reads of each of them."""

    sequence: int
    start: int
    ids: Sequence[int]
    reads: dict[int, list[tuple[int, Read]]] = field(default_factory=dict)
    """Index into ``ids`` -> (number of the read in the work, the read)."""


@dataclass(frozen=True, slots=True)
class Part:
    """Tokens of a pending work that are read in one step."""

    pending: int
    start: int
    stop: int


def plan_batches(
    lengths: Sequence[int], wanted: Sequence[Iterable[int]], *, n_batch: int, n_rows: int
) -> Iterator[list[Part]]:
    """Steps that read ``lengths`` tokens, each a batch whose parts end in its last column.

    All end together. Where a shorter one would be padded by much, the longer ones go ahead in a step of
    their own. A step has at most ``n_batch`` columns times rows, and ``n_rows`` rows of logits: in each
    column that a work wants there is one for every part.
    """
    if not lengths:
        return
    width = max(lengths)
    joins = [width - length for length in lengths]
    columns = {join + index for join, indices in zip(joins, wanted, strict=True) for index in indices}
    for begin, end in _segments(joins, width):
        rows = [number for number, join in enumerate(joins) if join < end]
        at = begin
        while at < end:
            stop = within(columns, at, min(at + max(n_batch // len(rows), 1), end), max(n_rows // len(rows), 1))
            yield [Part(n, max(at - joins[n], 0), stop - joins[n]) for n in rows if joins[n] < stop]
            at = stop


def within(wanted: Iterable[int], at: int, stop: int, most: int) -> int:
    """Where to stop, so that at most ``most`` of the wanted columns are read."""
    read = sorted(column for column in wanted if at <= column < stop)
    return read[most] if len(read) > most else stop


def _segments(joins: Sequence[int], width: int) -> Iterator[tuple[int, int]]:
    begin = 0
    for join in sorted(set(joins)):
        later = sum(other >= join for other in joins)
        if (join - begin) * later > _PADDING:
            yield begin, join
            begin = join
    yield begin, width
