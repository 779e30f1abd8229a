"""Measure what forwards of local models cost, by nothing but their contract."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from ..contracts.models import TokenModel, Work
from ..errors import BackendError, NoFreeSequence
from ..records import Role
from ..rows.acceptance import Check, Rule
from ..rows.reading import Read
from ..rows.signals import TOP_K
from .forward import ForwardCost, Point

Shape: TypeAlias = tuple[int, int, bool]
"""Tokens of each sequence, sequences, and whether every row is read or the last alone."""
Progress: TypeAlias = Callable[[int, int], None]
"""Called with the rounds that are done, and how many there will be."""

PREFIX = 64
"""Tokens that are in the KV cache before a forward that is measured, where the context has room for them."""
_LAST = (1, 4, 16, 32, 2, 8, 64, 6, 12, 24, 128)
_EVERY = (4, 6, 3, 5, 8, 2, 7, 12, 16, 24)
"""Sizes in the order of what they tell; a small budget ends the list early."""
_SEQUENCES = (2, 4, 8)
_LAST_REMOTE, _EVERY_REMOTE = (1, 16, 64), (17, 33, 25, 49)
"""Of a model behind a network, which is never asked for a few tokens."""
_WRITTEN = 16
_TRIES = 6
_ESSENTIAL: frozenset[Shape] = frozenset({(1, 1, False), (4, 1, False), (16, 1, False), (4, 1, True), (17, 1, True)})
"""What is measured whatever it takes: without them nothing could be said of a chunk, nor of judging drafts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How long may be measured: ``rounds`` over all shapes, ended by ``seconds`` after warming up; and up to which
    size."""

    rounds: int
    seconds: float
    largest: int = 128
    sequences: tuple[int, ...] = _SEQUENCES


QUICK = Effort(rounds=3, seconds=6.0, largest=32, sequences=())
"""For a Router that is being made: a few seconds."""
THOROUGH = Effort(rounds=5, seconds=60.0)


def measure_forwards(
    models: Mapping[Role, TokenModel],
    effort: Effort = QUICK,
    *,
    progress: Progress = lambda done, of: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Role, ForwardCost]:
    """Time forwards of each model in rounds: every shape of every model once, and again, so that a machine that gets
    faster or slower meanwhile does so for all of them.

    The few shapes that matter most come first, in all their rounds: once whatever that takes, then as far as the budget
    goes. What is left of it goes to the others, as many as fit. The sequences are closed again; a conversation that an
    idle one held is forgotten.
    Raises :class:`BackendError` (its subclass :class:`NoFreeSequence` where all sequences are in use).
    """
    benches: list[_Bench] = []
    try:
        for role, model in models.items():
            benches.append(_Bench(model, _reads(role), effort))
        began = clock()
        for essential in (True, False):
            for number in range(effort.rounds):
                for bench, shape in _alternating(benches):
                    if (shape in _ESSENTIAL) != essential:
                        continue
                    left = effort.seconds - (clock() - began)
                    if (essential and number == 0) or bench.expected(shape) <= left:
                        bench.run(shape, clock)
                progress(number + 1 + (not essential) * effort.rounds, 2 * effort.rounds)
        return {role: bench.cost() for role, bench in zip(models, benches, strict=True)}
    finally:
        for bench in benches:
            bench.close()


def measure_steps(model: TokenModel, count: int, clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """Seconds of ``count`` forwards with one new token, after one that warms up."""
    bench = _Bench(model, _reads("slow"), Effort(rounds=1, seconds=0.0, largest=1, sequences=()))
    try:
        for _ in range(count):
            bench.run((1, 1, False), clock)
        return bench.times[1, 1, False] if count else []
    finally:
        bench.close()


def measure_calls(model: TokenModel, clock: Callable[[], float] = time.perf_counter) -> tuple[float, float]:
    """Of a model behind a network: seconds of a call that writes one token, and of each further token of a call."""
    bench = _Bench(model, _reads("slow"), Effort(rounds=1, seconds=0.0, largest=1, sequences=()))
    try:
        for _ in range(2):
            bench.run((1, 1, False), clock)
        return min(bench.times[1, 1, False]), bench.written(clock)
    finally:
        bench.close()


def _reads(role: Role) -> Callable[[int | None], Read]:
    """How a model's rows are read in its seat; ``token`` stands behind, a draft where the row judges one."""
    if role == "fast":
        return lambda token: Read(signals=True, top_k=TOP_K)
    return lambda token: Read() if token is None else Read(ids=(token,), check=Check(token=token, rule=Rule()))


def _alternating(benches: Sequence[_Bench]) -> Iterator[tuple[_Bench, Shape]]:
    """All shapes of all models, the models by turns."""
    longest = max((len(bench.shapes) for bench in benches), default=0)
    for index in range(longest):
        for bench in benches:
            if index < len(bench.shapes):
                yield bench, bench.shapes[index]


@dataclass
class _Bench:
    """One model under measurement: its open sequences, how far each has read, and the times so far."""

    model: TokenModel
    read: Callable[[int | None], Read]
    effort: Effort
    sequences: list[int] = field(default_factory=list)
    times: dict[Shape, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ids = _plain_ids(self.model)
        self.prefix = min(PREFIX, self.model.n_ctx // 4)
        self.room = self.model.n_ctx - self.prefix - 1
        self.remote = self.model.capabilities.remote
        # Not the ids of the last time: a server's cache would hold them.
        self.shift = random.randrange(len(self.ids)) if self.remote else 0
        self.held: dict[int, int] = {}
        self.shapes = self._shapes()
        try:
            for _ in range(max(count for _, count, _ in self.shapes)):
                self._open()
        except BaseException:
            self.close()
            raise

    def _shapes(self) -> list[Shape]:
        last, every = (_LAST_REMOTE, _EVERY_REMOTE) if self.remote else (_LAST, _EVERY)
        most = min(max(self.effort.largest, max(every) if self.remote and self.effort.largest > 1 else 0), self.room)
        judged: dict[Shape, None] = {}
        for index in range(max(len(last), len(every))):
            if index < len(last):
                judged[last[index], 1, False] = None
            if index < len(every) and self.read(0).check is not None:
                judged[every[index], 1, True] = None
        many = [(1, count, False) for count in self.effort.sequences if count <= self.model.n_seq]
        return [shape for shape in judged if shape[0] <= max(most, 1)] + many

    def _open(self) -> None:
        """One sequence more, which has read the prefix; fewer than were wanted where the others are in use."""
        try:
            sequence = self.model.open([]).sequence
        except NoFreeSequence:
            if not self.sequences:
                raise
            count = len(self.sequences)
            self.shapes = [shape for shape in self.shapes if shape[1] <= count]
            return
        self.sequences.append(sequence)
        self._read_prefix(sequence)  # which warms up, too: a file that is mapped is read from the disk now

    def _read_prefix(self, sequence: int) -> None:
        size = max(self.prefix, 1)
        self.model.forward([Work(sequence, 0, self._some(0, size), [(size - 1, self.read(None))])])
        self.held[sequence] = size

    def _some(self, start: int, size: int) -> list[int]:
        return [self.ids[(self.shift + start + k) % len(self.ids)] for k in range(size)]

    def expected(self, shape: Shape) -> float:
        """Seconds that a shape will take: as before, or what the next smaller one took for its tokens."""
        if shape in self.times:
            return min(self.times[shape])
        known = {t * s: min(times) for (t, s, _), times in self.times.items()}
        size = shape[0] * shape[1]
        base = max((k for k in known if k <= size), default=min(known))
        return known[base] * max(size / base, 1.0)

    def run(self, shape: Shape, clock: Callable[[], float]) -> None:
        tokens, count, every = shape
        works = []
        for sequence in self.sequences[:count]:
            keep = max(self.prefix, 1)
            if not self.model.capabilities.rewind:  # going back would be measured too
                if self.held[sequence] + tokens > self.model.n_ctx - 1:
                    self._read_prefix(sequence)
                keep = self.held[sequence]
            self.shift += self.remote
            ids = self._some(keep, tokens)
            rows = range(tokens) if every else (tokens - 1,)
            behind = [*ids[1:], None]
            works.append(Work(sequence, keep, ids, [(at, self.read(behind[at])) for at in rows]))
            self.held[sequence] = keep + tokens
        began = clock()
        self.model.forward(works)
        self.times.setdefault(shape, []).append(clock() - began)

    def written(self, clock: Callable[[], float]) -> float:
        """Seconds of each further token that one call writes; where calls end at once, those of a call."""
        sequence, keep = self.sequences[0], max(self.prefix, 1)
        call, found = min(self.times[1, 1, False]), list[float]()
        for _ in range(_TRIES):
            self.shift += 1
            work = Work(sequence, keep, self._some(keep, 1), [(0, self.read(None))], more=_WRITTEN)
            began = clock()
            (rows,) = self.model.forward([work])
            seconds, count = clock() - began - call, getattr(rows, "written", 0) - 1
            if count >= _WRITTEN // 4:  # of fewer, an end having come before, it would be noise
                found.append(max(seconds, 1e-6) / count)
            if len(found) == 2:
                break
        return min(found, default=call)

    def cost(self) -> ForwardCost:
        points = [Point.of(shape, times) for shape, times in sorted(self.times.items())]
        if not all(point.seconds > 0 for point in points):
            raise BackendError(f"{self.model.name}: its forwards take no time that this clock can tell")
        further = self.written(time.perf_counter) if self.remote else None
        return ForwardCost(self.model.name, tuple(points), further)

    def close(self) -> None:
        sequences, self.sequences = self.sequences, []
        for sequence in sequences:
            self.model.close(sequence)


def _plain_ids(model: TokenModel) -> list[int]:
    """Ids of text from all over the vocabulary: which they are matters where experts are chosen by them."""
    tokenizer = model.tokenizer
    unread = {*tokenizer.special_ids, *tokenizer.eog_ids, *tokenizer.unused_ids}
    step = max(tokenizer.n_vocab // 257, 1)
    plain = [token for token in range(0, tokenizer.n_vocab, step) if token not in unread]
    return plain or [min(set(range(tokenizer.n_vocab)) - unread, default=0)]
