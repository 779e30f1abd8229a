"""The contract of a local model, and the bookkeeping that every adapter shares."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from .errors import BackendError, NoFreeSequence
from .reading import Read, Row
from .tokenizer import Tokenizer
from .waiting import Home, holding


@dataclass(frozen=True, slots=True)
class Work:
    """One sequence's share of a forward.

    Keep the first ``keep`` tokens that the sequence holds (fewer than it holds is a rewind), append
    ``ids`` (at least one), and read the rows named in ``reads``: pairs of an index into ``ids`` and
    what to read of the row behind that token.
    """

    sequence: int
    keep: int
    ids: Sequence[int]
    reads: Sequence[tuple[int, Read]]


class Rows(list[Row]):
    """A work's rows, in the order of its reads.

    ``reread``: tokens of its kept prefix that were read again for it, since the model's memory could not go back.
    """

    def __init__(self, rows: Iterable[Row] = (), *, reread: int = 0) -> None:
        super().__init__(rows)
        self.reread = reread


@dataclass(frozen=True, slots=True)
class Opened:
    """A sequence that was opened, and how many tokens of the wanted prefix it still holds, to go on from."""

    sequence: int
    kept: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a model can do beyond the contract."""

    rewind: bool = True
    """A rewind costs nothing. Without it (recurrent memory), the kept prefix is read again: see :class:`Rows`."""
    hidden_size: int | None = None
    """Width of the hidden state that ``Read(hidden=True)`` brings; None where it cannot be read."""


class TokenModel(Protocol):
    """A local model that reads token ids and gives reduced rows of logits.

    Calls are safe from several threads; a model serialises its own forwards. After a fork, :meth:`open` and
    :meth:`forward` raise :class:`~fsgen_router.errors.ForkedProcess` in the child, and :meth:`close` and
    :meth:`shutdown` do nothing. A model that is dropped frees its memory like one that is shut down.
    """

    @property
    def name(self) -> str: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def n_params(self) -> int: ...

    @property
    def n_ctx(self) -> int:
        """Tokens that one sequence can hold."""

    @property
    def n_seq(self) -> int:
        """Sequences that can be open at once."""

    @property
    def capabilities(self) -> Capabilities: ...

    def open(self, ids: Sequence[int]) -> Opened:
        """Start a sequence on the longest prefix of ``ids`` that an idle one still holds.

        Without ``capabilities.rewind`` that is all that a sequence holds, and less than ``ids``, or nothing.
        Raises :class:`NoFreeSequence` when ``n_seq`` are open.
        """

    def forward(self, works: Sequence[Work]) -> list[list[Row]]:
        """Run a batch: for each work its rows, in the order of its ``reads``.

        A call costs what the new tokens cost, however long the prefix; where more had to be read, the rows are
        :class:`Rows` that say so. After a
        :class:`BackendError` the sequences named in it are empty and may be used again.
        """

    def close(self, sequence: int) -> None:
        """Give a sequence back. Its KV cache stays for a later ``open`` with the same beginning."""

    def shutdown(self) -> None:
        """Free the model. Closing twice is allowed."""


# --- shared by adapters --------------------------------------------------------------------------


@dataclass(slots=True)
class _Slot:
    ids: list[int] = field(default_factory=list)
    open: bool = False
    last_used: int = 0


class SequencePool:
    """Which tokens each of a model's ``n_seq`` sequences holds: prefix reuse, rewind, eviction.

    :meth:`open` and :meth:`close` are safe beside a forward of other sequences: who is done with one does
    not wait for those.
    """

    def __init__(self, n_seq: int, n_ctx: int, n_vocab: int, *, rewinds: bool = True) -> None:
        self._rewinds = rewinds
        self._slots = [_Slot() for _ in range(n_seq)]
        self._n_ctx, self._n_vocab = n_ctx, n_vocab
        self._clock = 0
        self._lock = threading.RLock()  # a stream may be collected, and so closed, in the middle of anything
        self._home = Home()

    def open(self, ids: Sequence[int]) -> Opened:
        """The idle slot that holds the longest prefix of ``ids``; the least recently used of equals."""
        with holding(self._lock):
            idle = [index for index, slot in enumerate(self._slots) if not slot.open]
            if not idle:
                raise NoFreeSequence(
                    f"all {len(self._slots)} sequences of the model are in use", hint="load it with a larger n_seq"
                )
            kept = {index: self._kept(self._slots[index].ids, ids) for index in idle}
            best = max(idle, key=lambda index: (kept[index], -self._slots[index].last_used))
            self._slots[best].open = True
        return Opened(best, kept[best])

    def _kept(self, held: Sequence[int], wanted: Sequence[int]) -> int:
        common = _common_prefix(held, wanted)
        # One token at least has to be read behind it, for a row.
        return common if self._rewinds or common == len(held) < len(wanted) else 0

    def begin(self, work: Work) -> bool:
        """Check a work against what its sequence holds and rewind the record of it; False where nothing goes."""
        if not (self._exists(work.sequence) and self._slots[work.sequence].open):
            raise BackendError(f"sequence {work.sequence} is not open")
        slot = self._slots[work.sequence]
        if not 0 <= work.keep <= len(slot.ids):
            raise BackendError(f"sequence {work.sequence} holds {len(slot.ids)} tokens, {work.keep} cannot be kept")
        if not work.ids:
            raise BackendError("a work has no new tokens")
        for token in (min(work.ids), max(work.ids)):
            if not 0 <= token < self._n_vocab:
                raise BackendError(f"token {token} is not in the vocabulary of {self._n_vocab}")
        for index, _ in work.reads:
            if not 0 <= index < len(work.ids):
                raise BackendError(f"row {index} cannot be read, the work has {len(work.ids)} tokens")
        if work.keep + len(work.ids) > self._n_ctx:
            raise BackendError(
                f"{work.keep + len(work.ids)} tokens do not fit the context of {self._n_ctx}",
                hint="load the model with a larger n_ctx",
            )
        rewound = work.keep < len(slot.ids)
        del slot.ids[work.keep :]
        return rewound

    def held(self, sequence: int) -> list[int]:
        """The tokens of a sequence, not to be changed."""
        return self._slots[sequence].ids

    def extend(self, sequence: int, ids: Sequence[int]) -> None:
        self._slots[sequence].ids.extend(ids)

    def forget(self, sequence: int) -> bool:
        """After a failure: nothing is known to be held. False where there is no such sequence."""
        if not self._exists(sequence):
            return False
        self._slots[sequence].ids.clear()
        return True

    def _exists(self, sequence: int) -> bool:
        return 0 <= sequence < len(self._slots)

    def close(self, sequence: int) -> None:
        if self._home.left:
            return
        slot = self._slots[sequence]
        with holding(self._lock):
            slot.open = False
            self._clock += 1
            slot.last_used = self._clock


def _common_prefix(held: Sequence[int], wanted: Sequence[int]) -> int:
    size = min(len(held), len(wanted))
    for index in range(size):
        if held[index] != wanted[index]:
            return index
    return size
