"""What a model remembers of its sequences between forwards: slots of keys and values, or transformers' own caches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from transformers import DynamicCache

from fsgen_router.contracts.models import Capabilities

from .batches import Part, Pending, plan_batches, within
from .slot_cache import Share, SlotCache


class Memory(Protocol):
    """What a model remembers of its sequences between forwards."""

    capabilities: Capabilities

    def rewind(self, sequence: int, keep: int) -> int:
        """Go back to ``keep`` tokens; how many of them are really still there."""

    def plan(self, pending: Sequence[Pending], *, n_batch: int, n_rows: int) -> Iterator[list[Part]]: ...

    def place(self, shares: Sequence[Share], device: torch.device) -> dict[str, Any]:
        """What the model's forward takes."""

    def forget(self, sequence: int) -> None: ...

    def spoil(self, sequence: int) -> None:
        """What its newest tokens left behind are no numbers, which no mask hides once they are taken back."""


class Slots:
    """Plain attention: every sequence in a slot, several in one batch."""

    capabilities = Capabilities(rewind=True)

    def __init__(self, probed: Any, *, n_seq: int, n_ctx: int) -> None:
        self.cache = SlotCache(probed, n_seq=n_seq, n_ctx=n_ctx)
        self.place = self.cache.place
        self._spoilt: set[int] = set()

    def rewind(self, sequence: int, keep: int) -> int:
        if sequence in self._spoilt:
            self.cache.clear(sequence, keep)
            if not keep:
                self._spoilt.remove(sequence)
        return keep

    def plan(self, pending: Sequence[Pending], *, n_batch: int, n_rows: int) -> Iterator[list[Part]]:
        lengths, wanted = [len(p.ids) for p in pending], [p.reads for p in pending]
        return plan_batches(lengths, wanted, n_batch=n_batch, n_rows=n_rows)

    def forget(self, sequence: int) -> None:
        return None

    def spoil(self, sequence: int) -> None:
        self._spoilt.add(sequence)


class Caches:
    """Anything else (recurrent, hybrid, compressed): transformers' own cache for each sequence.

    Most of these cannot go back, so that a rewind reads the prefix again; sequences are read one after
    the other. Some models of transformers go wrong when several tokens follow on a state:
    ``in_pieces`` tells whether this one does not.
    """

    capabilities = Capabilities(rewind=False)

    def __init__(self, config: Any, argument: str, *, in_pieces: bool) -> None:
        self._config, self._argument, self._in_pieces = config, argument, in_pieces
        self._caches: dict[int, Any] = {}
        self._held: dict[int, int] = {}

    def rewind(self, sequence: int, keep: int) -> int:
        if not keep or self._held.get(sequence) != keep:
            self.forget(sequence)
            return 0
        return keep

    def plan(self, pending: Sequence[Pending], *, n_batch: int, n_rows: int) -> Iterator[list[Part]]:
        for number, work in enumerate(pending):
            at = 0
            while at < len(work.ids):
                size = n_batch if self._in_pieces or not work.start + at else 1
                stop = within(work.reads, at, min(at + size, len(work.ids)), n_rows)
                yield [Part(number, at, stop)]
                at = stop

    def place(self, shares: Sequence[Share], device: torch.device) -> dict[str, Any]:
        (share,) = shares
        if share.slot not in self._caches:
            self._caches[share.slot] = DynamicCache(config=self._config)
        self._held[share.slot] = share.stop
        return {
            "input_ids": torch.tensor([share.ids], device=device),
            "position_ids": torch.arange(share.start, share.stop, device=device)[None],
            self._argument: self._caches[share.slot],
        }

    def forget(self, sequence: int) -> None:
        self._caches.pop(sequence, None)
        self._held.pop(sequence, None)

    def spoil(self, sequence: int) -> None:
        return None
