"""Small forwards on a GPU, recorded as CUDA graphs and replayed.

A step through 28 layers is some five hundred kernels, which Python takes far longer to launch than the GPU to run, be
it for one token or for sixteen. A graph launches them all at once. What is recorded is fixed, so a forward is given
a shape out of few: rows, columns and attended positions are rounded up to powers of two. What is too many of these is
written where no slot is, and is not read. A shape is recorded when it is wanted for the first time, in about the time
of three forwards.

This is for plain full attention by torch's own kernel, whose models take a mask and positions as they are given, and
for models that transformers compiles whole: others may look at values on the way, and a recording that fails leaves
torch's memory and random numbers in disorder. Whether a model comes out the same is seen by reading a few tokens both
ways.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from fsgen_router.support.logs import log
from fsgen_router.support.waiting import holding

from .slot_cache import Share, SlotCache

_MOST_TOKENS = 128  # of a recorded forward, rows times columns: their logits take 39 MB at a vocabulary of 152,000
_LEAST_WIDTH = 256  # attended positions that cost no more than fewer
# Rows times attended positions, which are gathered: at last that takes longer than launching. By the bandwidth of a GPU
# (7B: 1 GB, read and written), not measured.
_MOST_ATTENDED = 16_384
_ONE_AT_A_TIME = threading.Lock()  # torch records one graph at a time in a process
_STREAMS = 32  # of a device, which torch gives out in turn


class _Shape(NamedTuple):
    rows: int
    columns: int
    width: int
    """Positions that are attended to, those of the new tokens included."""


# By their streams: where a graph ends, torch may free what the others of its stream compute in (pytorch#193402).
_recording: WeakValueDictionary[int, Graphs] = WeakValueDictionary()


class Graphs:
    """A model's recorded forwards. Their results lie in memory that the next one writes to again."""

    def __init__(self, model: Any, head: Any, cache: SlotCache, device: torch.device, name: str) -> None:
        self._model, self._head, self._cache, self._device, self._name = model, head, cache, device, name
        self._results: tuple[Tensor, ...] = ()
        self._recorded: dict[_Shape, tuple[_Fixed, Callable[[], object]]] = {}
        self._stream: Any = None
        self._pool: Any = None
        self._works = True

    @classmethod
    def of(cls, model: Any, head: Any, cache: SlotCache, probed: Any, device: torch.device, name: str) -> Graphs | None:
        """Those of a model whose cache :func:`slot_cache.is_plain`, or None where it has to be called as ever."""
        full = all(type(layer) is DynamicLayer for layer in probed.layers)
        plain = getattr(model.config.get_text_config(), "_attn_implementation", None) == "sdpa"
        if not (full and plain) or _looks_at_values(model):
            return None
        graphs = cls(model, head, cache, device, name)
        return graphs if graphs._agrees() else None

    def read(self, shares: Sequence[Share]) -> tuple[Tensor, ...] | None:
        """Logits, of shape (len(shares), columns, width of a row), and what the LM head read for them, where that is
        known; all end in the last column. None: call the model."""
        shape = self._shape(shares)
        if shape.rows * shape.columns > _MOST_TOKENS or shape.rows * shape.width > _MOST_ATTENDED or not self._works:
            return None
        if shape not in self._recorded and not self._record(shape, shares):
            return None
        fixed, replay = self._recorded[shape]
        fixed.fill(shares)
        replay()
        return self._results_of(shape, shares)

    def _shape(self, shares: Sequence[Share]) -> _Shape:
        width = max(_power_of_two(max(share.stop for share in shares)), _LEAST_WIDTH)
        columns = max(len(share.ids) for share in shares)
        return _Shape(_power_of_two(len(shares)), _power_of_two(columns), min(width, self._cache.n_ctx))

    def _results_of(self, shape: _Shape, shares: Sequence[Share]) -> tuple[Tensor, ...]:
        first, count = shape.columns - max(len(share.ids) for share in shares), shape.rows * shape.columns
        grids = (held[:count].unflatten(0, (shape.rows, shape.columns)) for held in self._results)
        return tuple(grid[: len(shares), first:] for grid in grids)

    def forget(self) -> None:
        """Free what is recorded; it is recorded again when it is wanted."""
        self._recorded.clear()

    def _record(self, shape: _Shape, shares: Sequence[Share]) -> bool:
        fixed = _Fixed(shape, self._cache, self._device)
        fixed.fill(shares)
        try:
            self._forward(fixed)  # libraries and kernels are loaded now: recording cannot
        except torch.OutOfMemoryError:
            return False  # of this forward, which may be small enough without
        try:
            self._recorded[shape] = fixed, self._graph(lambda: self._forward(fixed))
        except Exception as error:  # a model that looks at values on the way, memory that ran out
            return self._stop(error.__context__ or error)
        return True

    def _graph(self, forward: Callable[[], None]) -> Callable[[], object]:
        """``forward``, recorded. It computes nothing meanwhile."""
        before = torch.cuda.current_stream(self._device)
        with holding(_ONE_AT_A_TIME), torch.cuda.device(self._device):
            if self._stream is None:
                self._stream = self._own_stream()
            if not self._recorded:
                self._pool = torch.cuda.graph_pool_handle()  # one ends with the last of its graphs
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                    forward()
            finally:
                torch.cuda.set_stream(before)  # which torch leaves at the other if recording fails
        replay: Callable[[], object] = graph.replay
        return replay

    def _own_stream(self) -> Any:
        """Torch's own is one for the process, and on the first device that it recorded on."""
        for _ in range(_STREAMS):
            stream = torch.cuda.Stream(self._device)
            if stream.cuda_stream not in _recording:
                break
        _recording[stream.cuda_stream] = self
        return stream

    def _forward(self, fixed: _Fixed) -> None:
        with head_inputs(self._head) as states:
            logits = self._model(**self._cache.placed(fixed, self._device), use_cache=True).logits
        found = [logits, *states[-1:]]
        if not self._results:
            self._results = tuple(part.new_empty((_MOST_TOKENS, part.shape[-1])) for part in found)
        for held, part in zip(self._results, found, strict=True):
            held[: fixed.count] = part.flatten(0, 1)

    def _agrees(self) -> bool:
        """Whether replayed forwards come out as when the model is called as ever: several tokens, one behind them, and
        two sequences where there is room for them."""
        ids = [(37 * number + 1) % self._model.config.get_text_config().vocab_size for number in range(16)]
        cases = [[Share(0, 0, ids[:7])], [Share(0, 7, ids[7:8])]]
        if self._cache.n_seq > 1:
            cases.append([Share(0, 8, ids[8:9]), Share(1, 0, ids[9:12])])
        with torch.inference_mode():
            for shares in cases:
                expected = self._model(**self._cache.place(shares, self._device), use_cache=True).logits
                try:
                    if not self._record(shape := self._shape(shares), shares):
                        return False
                    for held in self._results:
                        held.fill_(math.nan)
                    found = self.read(shares)
                except Exception as error:  # whatever a model says to a mask that it does not expect
                    return self._stop(error)
                last = expected[:, -1].float()
                # Root mean squares: the largest of 152,000 differences in bfloat16 is no small one.
                off = float((found[0][:, -1] - last).square().mean().sqrt() / last.std()) if found else math.nan
                if not off < 0.1:  # NaN is no agreement
                    return self._stop(f"with a mask of its own it reads otherwise: off by {off:.2g} of their spread")
                del self._recorded[shape]
        return True

    def _stop(self, why: object) -> bool:
        self._works = False
        self._recorded.clear()
        said = str(why).strip().partition("\n")[0]
        log.warning("cuda_graphs_off", model=self._name, why=said or type(why).__name__)
        return False


class _Fixed:
    """Tokens of a fixed shape, each row in its slot: columns too many come first, rows too many last."""

    past = 0

    def __init__(self, shape: _Shape, cache: SlotCache, device: torch.device) -> None:
        self._shape, self._n_seq, self._n_ctx = shape, cache.n_seq, cache.n_ctx
        self.count = shape.rows * shape.columns
        self._numbers = torch.zeros(3 * self.count + shape.rows, dtype=torch.int64, device=device)
        ids, positions, self._target, self._slots = self._numbers.split([self.count] * 3 + [shape.rows])
        self._ids, self._positions = (part.unflatten(0, shape[:2]) for part in (ids, positions))
        self._attended = torch.arange(shape.width, device=device)
        self._open, self._masked = torch.tensor([0.0, -math.inf], dtype=cache.dtype, device=device)

    def fill(self, shares: Sequence[Share]) -> None:
        rows, columns, _ = self._shape
        ids, positions = np.zeros((2, rows, columns), np.int64)
        target = np.full((rows, columns), self._n_seq * self._n_ctx)  # the place that no slot has
        slots = np.zeros(rows, np.int64)
        for row, share in enumerate(shares):
            new = slice(columns - len(share.ids), columns)
            ids[row, new] = share.ids
            positions[row, new] = np.arange(share.start, share.stop)
            target[row, new] = share.slot * self._n_ctx + positions[row, new]
            slots[row] = share.slot
        parts = [part.ravel() for part in (ids, positions, target, slots)]
        self._numbers.copy_(torch.from_numpy(np.concatenate(parts)))

    def inputs(self, device: torch.device) -> dict[str, Any]:
        # To be added, as every layer would make it of one of truths.
        seen = self._attended <= self._positions[:, None, :, None]
        mask = torch.where(seen, self._open, self._masked)
        return {"input_ids": self._ids, "position_ids": self._positions, "attention_mask": mask}

    def exchange(self, held: Tensor, new: Tensor) -> Tensor:
        held.index_copy_(0, self._target, new.transpose(1, 2).flatten(0, 1))
        slots = held[:-1].unflatten(0, (self._n_seq, self._n_ctx))[:, : self._shape.width]
        return slots.index_select(0, self._slots).transpose(1, 2)


@contextmanager
def head_inputs(head: Any) -> Iterator[list[Tensor]]:
    """What the LM head reads in a forward: hidden states of the rows of logits, and of no others."""
    seen: list[Tensor] = []
    if head is None:
        yield seen
        return
    hook = head.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        hook.remove()


def _looks_at_values(model: Any) -> bool:
    """Whether Python decides by what is computed, as far as transformers says."""
    whole = getattr(model, "_can_compile_fullgraph", False)
    return not whole or any("dynamic" in str(getattr(module, "rope_type", "")) for module in model.modules())


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
