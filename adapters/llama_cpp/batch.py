"""The tokens of a decode, and the rows that are wanted of them."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from llama_cpp import llama_cpp as lib

from fsgen_router.contracts.models import Rows
from fsgen_router.rows.reading import Read

MAX_OUTPUTS = 64  # rows of logits held at once: 39 MB at a vocabulary of 152,000


class Wanted(NamedTuple):
    """A row to be read: behind which token, and where it goes."""

    at: int
    rows: Rows
    slot: int
    read: Read


@dataclass(slots=True)
class Segment:
    """Tokens of one sequence from position ``start`` on, and the rows wanted of them in ascending order."""

    sequence: int
    start: int
    ids: Sequence[int]
    wanted: list[Wanted]
    hidden: bool
    """Some rows are wanted with their hidden states."""


SPARE = 6
"""Up to so many spare tokens are taken for cheaper than a computation more. On two CPU cores it is 4 for 0.5B (whose
rows suit no fast kernel) and 12 for 1.5B; where reading the weights takes most of the time, far more."""


def neighbours(segments: Sequence[Segment]) -> Iterator[list[Segment]]:
    """Segments in the order of their sequences, apart where a gap between those is too wide to be filled."""
    group = [segments[0]]
    for segment in segments[1:]:
        if segment.sequence - group[-1].sequence > SPARE + 1:
            yield group
            group = []
        group.append(segment)
    yield group


def computations(segments: Sequence[Segment]) -> int:
    """How often llama.cpp goes through the model for a batch in the order of its sequences.

    It takes as many tokens of each as the shortest has left, of sequences whose numbers follow one another.
    """
    left = {segment.sequence: len(segment.ids) for segment in segments}
    count = 0
    while left:
        run = [first := next(iter(left))]
        while (following := first + len(run)) in left:
            run.append(following)
        taken = min(left[number] for number in run)
        for number in run:
            left[number] -= taken
            if not left[number]:
                del left[number]
        count += 1
    return count


class Batch:
    """A ``llama_batch`` whose arrays are numpy's, so that filling it is a few slice assignments."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._token, self._pos, self._seq = (np.zeros(size, np.int32) for _ in range(3))
        self._n_seq = np.ones(size, np.int32)
        self._logits = np.zeros(size, np.int8)
        self._seq_at = self._seq.ctypes.data + 4 * np.arange(size, dtype=np.uint64)
        fields = dict(lib.llama_batch._fields_)
        arrays: dict[str, Any] = {
            "token": self._token,
            "pos": self._pos,
            "n_seq_id": self._n_seq,
            "seq_id": self._seq_at,
            "logits": self._logits,
        }
        self.struct = lib.llama_batch(
            n_tokens=0, **{name: ctypes.cast(array.ctypes.data, fields[name]) for name, array in arrays.items()}
        )
        self.wanted: list[tuple[int, Wanted]] = []
        self.hidden = False
        """The next decode gives hidden states, so that every token of it is an output."""

    @property
    def room(self) -> int:
        size = min(self.size, MAX_OUTPUTS) if self.hidden else self.size
        return size - int(self.struct.n_tokens)

    def append(self, sequence: int, position: int, ids: Sequence[int]) -> int:
        """Add tokens of one sequence; returns the batch index of the first."""
        base = int(self.struct.n_tokens)
        end = base + len(ids)
        if len(ids) == 1:  # a decode step, where it counts: a slice takes four times as long
            self._token[base], self._pos[base] = ids[0], position
            self._seq[base], self._logits[base] = sequence, self.hidden
        else:
            self._token[base:end] = ids
            self._pos[base:end] = range(position, position + len(ids))
            self._seq[base:end] = sequence
            self._logits[base:end] = self.hidden
        self.struct.n_tokens = end
        return base

    def want(self, index: int, wish: Wanted) -> None:
        self._logits[index] = 1
        self.wanted.append((index, wish))

    def clear(self) -> None:
        self.struct.n_tokens = 0
        self.wanted.clear()
