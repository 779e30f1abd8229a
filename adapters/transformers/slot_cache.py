"""KV memory for models of transformers with plain attention: a block of slots per layer, used in place.

A sequence is a slot. Which of its positions count is known to the caller, so a rewind costs nothing,
and nothing grows or moves from one forward to the next. One sequence attends to a view of its slot.
Several become one batch, padded on the left as in ``generate``: the model makes its own masks (causal,
sliding window, chunked) and sees what it sees there. A slot holds a position's heads side by side, so that a
batch is gathered by whole positions, in one pass. One position more than the slots have takes what is to be kept
nowhere.

Layers with a sliding window keep every position too, and are rewound like the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DummyLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)

_PLAIN = (DynamicLayer, DynamicSlidingWindowLayer, DummyLayer)


@dataclass(frozen=True, slots=True)
class Share:
    """One sequence's part of a forward: ``ids`` (at least one) take the positions from ``start`` on."""

    slot: int
    start: int
    ids: Sequence[int]

    @property
    def stop(self) -> int:
        return self.start + len(self.ids)


def is_plain(probed: Cache) -> bool:
    """Whether slots can hold what this cache holds after a forward of one token."""
    return all(type(layer) in _PLAIN and _is_row(layer) for layer in probed.layers) and any(
        layer.keys is not None for layer in probed.layers
    )


def _is_row(layer: Any) -> bool:
    """Empty, or keys and values of shape (1, heads, 1, head_dim)."""
    return layer.keys is None or all(
        states.ndim == 4 and (states.shape[0], states.shape[2]) == (1, 1) for states in (layer.keys, layer.values)
    )


def bytes_per_token(probed: Cache) -> int:
    """What one token takes, by a cache that holds one."""
    return sum(
        states.numel() * states.element_size()
        for layer in probed.layers
        for states in (getattr(layer, "keys", None), getattr(layer, "values", None))
        if states is not None
    )


class SlotCache(Cache):  # type: ignore[misc]
    """``n_seq`` slots of ``n_ctx`` tokens, in the shapes of a probed cache that :func:`is_plain`."""

    def __init__(self, probed: Cache, *, n_seq: int, n_ctx: int) -> None:
        self.n_seq, self.n_ctx = n_seq, n_ctx
        self._now = _Now(_One(Share(0, 0, [0]), n_ctx))
        self.dtype = next(layer.keys.dtype for layer in probed.layers if layer.keys is not None)
        super().__init__(
            layers=[
                DummyLayer() if layer.keys is None else _SlotLayer(self._now, layer, n_seq, n_ctx)
                for layer in probed.layers
            ]
        )

    def place(self, shares: Sequence[Share], device: torch.device) -> dict[str, Any]:
        """What the model's forward takes to read ``shares``: their rows end in the last column."""
        one = len(shares) == 1
        return self.placed(_One(shares[0], self.n_ctx) if one else _Many(shares, self.n_ctx, device), device)

    def placed(self, placement: Placement, device: torch.device) -> dict[str, Any]:
        """The same for tokens that take their places in a way of their own."""
        self._now.placement = placement
        return {**placement.inputs(device), "past_key_values": self}

    def clear(self, slot: int, start: int) -> None:
        """Zeros from position ``start`` on."""
        for layer in self.layers:
            if isinstance(layer, _SlotLayer):
                for states in (layer.keys, layer.values):
                    states[slot * self.n_ctx + start : (slot + 1) * self.n_ctx] = 0


@dataclass(slots=True)
class _Now:
    """The forward under way, as all layers see it. (Not the cache: a circle would keep the slots alive.)"""

    placement: Placement


class _SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    is_sliding = False

    def __init__(self, now: _Now, probed: DynamicLayer, n_seq: int, n_ctx: int) -> None:
        super().__init__()
        self._now = now
        self.keys, self.values = (
            torch.zeros((n_seq * n_ctx + 1, states.shape[1], states.shape[3]), dtype=states.dtype, device=states.device)
            for states in (probed.keys, probed.values)
        )
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        return None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        placement = self._now.placement
        return placement.exchange(self.keys, key_states), placement.exchange(self.values, value_states)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._now.placement.past + query_length, 0

    def get_seq_length(self) -> int:
        return self._now.placement.past

    def get_max_length(self) -> int:
        return -1


class Placement(Protocol):
    """Where the tokens of one forward go, and what they attend to."""

    past: int
    """Columns that the model finds in its cache."""

    def inputs(self, device: torch.device) -> dict[str, Any]: ...

    def exchange(self, held: Tensor, new: Tensor) -> Tensor:
        """Store the new states, of shape (rows, heads, tokens, head_dim), among those of all slots, of shape (n_seq *
        n_ctx + 1, heads, head_dim); gives all that the rows attend to, shaped as the new ones."""


class _One:
    """A single sequence, which attends to a view of its slot."""

    def __init__(self, share: Share, n_ctx: int) -> None:
        self.past, self._share, self._first = share.start, share, share.slot * n_ctx

    def inputs(self, device: torch.device) -> dict[str, Any]:
        share = self._share
        return {
            "input_ids": torch.tensor([share.ids], device=device),
            "position_ids": torch.arange(share.start, share.stop, device=device)[None],
            "attention_mask": None,
        }

    def exchange(self, held: Tensor, new: Tensor) -> Tensor:
        share = self._share
        states = held[self._first : self._first + share.stop]
        states[share.start :] = new[0].transpose(0, 1)
        return states.transpose(0, 1)[None]


class _Many:
    """Several sequences of any lengths, all ending in the last column.

    A row has fewer tokens than columns where another is longer: those to the left of its first are
    masked. It has fewer new ones than columns of the query where another has more: those columns stand
    for tokens that its slot already holds, and what comes of them is neither stored nor read.
    """

    def __init__(self, shares: Sequence[Share], n_ctx: int, device: torch.device) -> None:
        counts = np.array([len(share.ids) for share in shares])
        lengths = np.array([share.stop for share in shares])
        count, width = int(counts.max()), int(lengths.max())
        self.past, self._shape = width - count, (len(shares), width)
        ids = np.zeros((len(shares), count), np.int64)
        for row, share in zip(ids, shares, strict=True):
            row[count - len(share.ids) :] = share.ids
        row_of, column_of = np.nonzero(np.arange(count) >= count - counts[:, None])
        starts = n_ctx * np.array([share.slot for share in shares])
        shift = width - lengths
        positions = np.arange(width) - shift[:, None]
        target = (starts - shift)[row_of] + self.past + column_of
        source = (starts[:, None] + positions.clip(0)).ravel()
        new = row_of * count + column_of
        self._ids, self._target, self._source, taken, shown = _to(device, ids, target, source, new, positions)
        self._new = taken if len(new) < ids.size else None
        self._mask = shown >= 0 if shift.any() else None
        self._positions = shown[:, self.past :].clamp(min=0)

    def inputs(self, device: torch.device) -> dict[str, Any]:
        return {"input_ids": self._ids, "position_ids": self._positions, "attention_mask": self._mask}

    def exchange(self, held: Tensor, new: Tensor) -> Tensor:
        states = new.transpose(1, 2).flatten(0, 1)
        held.index_copy_(0, self._target, states if self._new is None else states.index_select(0, self._new))
        return held.index_select(0, self._source).unflatten(0, self._shape).transpose(1, 2)


def _to(device: torch.device, *arrays: np.ndarray[Any, np.dtype[np.int64]]) -> list[Tensor]:
    """Arrays of integers on the device, in one transfer."""
    flat = torch.from_numpy(np.concatenate([array.ravel() for array in arrays])).to(device)
    parts = flat.split([array.size for array in arrays])
    return [part.reshape(array.shape) for part, array in zip(parts, arrays, strict=True)]
