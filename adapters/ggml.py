"""Exponentials as llama.cpp takes them for its own softmax, three times as fast as numpy's on AVX2.

They are most of what :func:`fsgen_router.reading.reduce_row` costs. The function behind them is not among
llama.cpp's public ones: where a build does not show it, or it does something else there, numpy takes over.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from fsgen_router.reading import Scratch

SumExp: TypeAlias = Callable[[int, int, int, float], float]
"""(n, y, x, c): y[i] = exp(x[i] - c) for n floats at two addresses; returns their sum."""


class GgmlScratch(Scratch):
    """A row's buffers, with exponentials taken by ggml."""

    def __init__(self, sum_exp: SumExp) -> None:
        super().__init__()
        self._sum_exp = sum_exp
        self._centred_at, self._weights_at = self.centred.ctypes.data, self.weights.ctypes.data

    def weigh(self, size: int) -> float:
        return self._sum_exp(size, self._weights_at, self._centred_at, 0.0)


def make_scratch(library: Any) -> Scratch:
    """Buffers with the exponentials of ``library`` (llama.cpp's, loaded with ctypes), or numpy's."""
    sum_exp = getattr(library, "ggml_vec_soft_max_f32", None)
    if sum_exp is None:
        return Scratch()
    sum_exp.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_float]
    sum_exp.restype = ctypes.c_double
    scratch, usual = GgmlScratch(sum_exp), Scratch()
    size = 77  # longer than a vector of any machine, and not a multiple of one
    scratch.centred[:size] = usual.centred[:size] = np.linspace(-100.0, 0.0, size)
    sums = scratch.weigh(size), usual.weigh(size)
    same = np.isclose(*sums, rtol=1e-5) and np.allclose(scratch.weights[:size], usual.weights[:size], atol=1e-6)
    return scratch if same else usual
