"""Scripted models whose forwards take made-up time on a clock of their own: nothing waits, nothing depends on load."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from fsgen_router.adapters.scripted import ScriptedModel, ScriptedTokenizer
from fsgen_router.contracts.models import Work
from fsgen_router.rows.reading import Row

N_VOCAB = 40
EOG = N_VOCAB - 1
PIECES = [f"{number:02d}".encode() for number in range(N_VOCAB - 1)] + [b"<end>"]

Cost = Callable[[int, int, int], float]
"""Seconds of a forward: tokens of one sequence, sequences, rows read of one."""


@dataclass
class Clock:
    """Seconds that forwards have taken. ``speed`` slows them down from some moment on."""

    now: float = 0.0
    speed: Callable[[float], float] = field(default=lambda now: 1.0)

    def __call__(self) -> float:
        return self.now

    def spend(self, seconds: float) -> None:
        self.now += seconds * self.speed(self.now)


class CountedModel(ScriptedModel):
    """A scripted model that spends ``cost`` on a clock in each forward, and may say what it is."""

    def __init__(
        self, parts: float, cost: Cost, clock: Clock, *, name: str, identity: dict[str, str] | None = None,
        n_seq: int = 1, n_ctx: int = 1024, n_params: int = 1000, unsure: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(writes(parts, unsure), tokenizer(), name=name, n_seq=n_seq, n_ctx=n_ctx, n_params=n_params)
        self.cost, self.clock, self.identity, self.shapes = cost, clock, identity, []
        self.shapes: list[tuple[int, int, int]]

    def forward(self, works: Sequence[Work]) -> list[list[Row]]:
        rows = super().forward(works)
        shape = max(len(work.ids) for work in works), len(works), max(len(work.reads) for work in works)
        self.shapes.append(shape)
        self.clock.spend(self.cost(*shape))
        return rows

    @property
    def all_closed(self) -> bool:
        return not any(slot.open for slot in self._pool._slots)


def tokenizer() -> ScriptedTokenizer:
    return ScriptedTokenizer(PIECES, eog=[EOG])


def writes(parts: float, unsure: float = 0.0) -> Callable[[Sequence[int]], np.ndarray]:
    """A model that never ends an answer, and parts with ``writes(0)`` at a share ``parts`` of all positions.

    At a share ``unsure`` its entropy is above 3 nats, elsewhere below 1.
    """

    def logits(ids: Sequence[int]) -> np.ndarray:
        digest = hashlib.blake2b(array("H", ids).tobytes(), digest_size=8).digest()
        token = digest[0] % (N_VOCAB - 2)
        if int.from_bytes(digest[1:4], "big") < parts * 2**24:
            token += 1
        certain = int.from_bytes(digest[4:8], "big") >= unsure * 2**32
        return (8.0 if certain else 1.0) * np.eye(N_VOCAB, dtype=np.float32)[token]

    return logits


def linear(first: float, more: float, *, row: float = 0.0, jumps: dict[int, float] | None = None) -> Cost:
    """``first`` and ``more`` for every further token, ``row`` for every further row; from the size of a jump on, that
    much dearer."""

    def cost(tokens: int, sequences: int, rows: int) -> float:
        total = tokens * sequences
        dearer = sum(extra for size, extra in (jumps or {}).items() if total >= size)
        return first + more * (total - 1) + row * (rows * sequences - 1) + dearer

    return cost


def prompts(count: int) -> Iterator[str]:
    for number in range(count):
        yield "".join(f"{(number * 7 + k * (number + 3)) % (N_VOCAB - 1):02d}" for k in range(10))
