"""CUDA graphs on a CPU, by torch's rules: a forward is recorded operation by operation, on the memory that it was
recorded on, and replayed.

What a recording may not do fails here too: values that Python looks at; a pool whose graphs have all ended while
something in it lives, be it a tensor of the program or what cuBLAS computes in on the stream (torch before 2.12).
"""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

LOOKS = {
    torch.ops.aten.item.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.equal.default,
}


class _Pool:
    def __init__(self) -> None:
        self.graphs: weakref.WeakSet[CudaGraph] = weakref.WeakSet()
        self.used, self.workspaces = False, 0
        self.tensors: list[weakref.ref[Tensor]] = []

    def begin(self) -> None:
        if self.used and not self.graphs and (self.workspaces or any(made() is not None for made in self.tensors)):
            raise RuntimeError("it->second->use_count > 0 INTERNAL ASSERT FAILED")
        self.used = True


class CudaGraph:
    def __init__(self) -> None:
        self.steps: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def replay(self) -> None:
        for operation, args, kwargs, outputs in self.steps:
            for held, new in zip(outputs, _tensors(operation(*args, **kwargs)), strict=True):
                if held.data_ptr() != new.data_ptr():  # neither a view nor in place
                    held.copy_(new)


class _Recorder(TorchDispatchMode):
    def __init__(self, graph: CudaGraph, pool: _Pool) -> None:
        super().__init__()
        self._graph, self._pool = graph, pool

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if operation in LOOKS:
            raise RuntimeError("operation not permitted when stream is capturing")
        outputs = operation(*args, **kwargs)
        self._pool.tensors += map(weakref.ref, _tensors(outputs))
        # The memory, and not the tensors: whoever holds those holds the pool's.
        args, kwargs = tree_map_only(Tensor, torch.Tensor.detach, (args, kwargs))
        self._graph.steps.append((operation, args, kwargs, [made.detach() for made in _tensors(outputs)]))
        return outputs


def _tensors(found: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]


class Stream:
    numbers = itertools.cycle(range(1, 33))

    def __init__(self, _device: object) -> None:
        self.cuda_stream = next(self.numbers)


def emulate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put them in the place of ``torch.cuda``'s."""
    pools: defaultdict[int, _Pool] = defaultdict(_Pool)
    handles, computed_on = itertools.count(1), set[int]()

    @contextlib.contextmanager
    def graph(recorded: CudaGraph, handle: int, stream: Stream, **_: object) -> Iterator[None]:
        pool = pools[handle]
        pool.begin()
        if stream.cuda_stream not in computed_on:
            computed_on.add(stream.cuda_stream)
            pool.workspaces += 1
        with _Recorder(recorded, pool):
            yield
        pool.graphs.add(recorded)

    for name, stand_in in {
        "Stream": Stream,
        "CUDAGraph": CudaGraph,
        "graph": graph,
        "graph_pool_handle": lambda: next(handles),
        "current_stream": lambda _device: None,
        "set_stream": lambda _stream: None,
        "device": contextlib.nullcontext,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
