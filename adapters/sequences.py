"""The bookkeeping that every local adapter shares: which tokens each sequence holds."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from fsgen_router.contracts.models import Opened, Work
from fsgen_router.errors import BackendError, NoFreeSequence
from fsgen_router.support.waiting import Home, holding

_DRAFTS = 16
"""Tokens of an answer that may stand behind a prompt where a model is first asked."""


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
        """The idle slot whose conversation goes on: most of what it holds is a prefix of ``ids``, or it was asked the
        same and its answer is no longer than that. The longest such prefix wins.

        Where none goes on, the least recently used: two conversations that begin with the same words are not one, and
        those words are cheaper to read again than all that one of them says behind them.
        """
        with holding(self._lock):
            idle = [index for index, slot in enumerate(self._slots) if not slot.open]
            if not idle:
                raise NoFreeSequence(
                    f"all {len(self._slots)} sequences of the model are in use", hint="load it with a larger n_seq"
                )
            kept = {index: self._kept(self._slots[index].ids, ids) for index in idle}

            def worth(index: int) -> tuple[int, int]:
                common, lost = kept[index], len(self._slots[index].ids) - kept[index]
                asked_again = len(ids) - common <= _DRAFTS and lost <= 2 * common
                goes_on = common > lost or common == len(ids) or asked_again
                return common if goes_on else 0, -self._slots[index].last_used

            best = max(idle, key=worth)
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
