"""A row's sums by functions that llama.cpp has for its own use: exponentials at half of numpy's price on AVX2.

The sums are most of what :func:`fsgen_router.rows.reading.reduce_row` costs. Those functions are not among
llama.cpp's public ones: where a build does not show them, or they do something else there, numpy takes over.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from fsgen_router.rows.reading import Scratch

SumExp: TypeAlias = Callable[[int, int, int, float], float]
"""(n, y, x, c): y[i] = exp(x[i] - c) for n floats at two addresses; returns their sum."""
Dot: TypeAlias = Callable[[int, int, int, int, int, int, int, int], None]
"""(n, s, 0, x, 0, y, 0, 1): s[0] = the sum of x[i] * y[i] for n floats at two addresses."""


class GgmlScratch(Scratch):
    """A row's buffers, with the sums over them taken by ggml."""

    def __init__(self, sum_exp: SumExp, dot: Dot) -> None:
        super().__init__()
        self._sum_exp, self._dot = sum_exp, dot
        self._product = ctypes.c_float()
        self._centred_at, self._weights_at = self.centred.ctypes.data, self.weights.ctypes.data
        self._product_at = ctypes.addressof(self._product)

    def sums(self, size: int, *, signals: bool) -> tuple[float, float, float]:
        total = self._sum_exp(size, self._weights_at, self._centred_at, 0.0)
        if not signals:
            return total, math.nan, math.nan
        product, arguments = self._product, (size, self._product_at, 0, self._weights_at, 0, self._centred_at, 0, 1)
        self._dot(*arguments)
        first = product.value
        if math.isnan(first):  # numpy would warn of 0 times -inf
            return total, first, first
        weights = self.weights[:size]
        np.multiply(weights, self.centred[:size], out=weights)
        self._dot(*arguments)
        return total, first, product.value


def devices(library: Any) -> list[str]:
    """The names of the devices that llama.cpp can use; none where a build does not show them."""
    count, get, name = (getattr(library, f"ggml_backend_dev_{part}", None) for part in ("count", "get", "description"))
    if count is None or get is None or name is None:
        return []
    count.argtypes, count.restype = [], ctypes.c_size_t
    get.argtypes, get.restype = [ctypes.c_size_t], ctypes.c_void_p
    name.argtypes, name.restype = [ctypes.c_void_p], ctypes.c_char_p
    return [name(get(index)).decode(errors="replace") for index in range(count())]


def make_scratch(library: Any) -> Scratch:
    """Buffers with the sums of ``library`` (llama.cpp's, loaded with ctypes), or numpy's."""
    sum_exp, dot = (getattr(library, name, None) for name in ("ggml_vec_soft_max_f32", "ggml_vec_dot_f32"))
    if sum_exp is None or dot is None:
        return Scratch()
    at, n = ctypes.c_void_p, ctypes.c_size_t
    sum_exp.argtypes, sum_exp.restype = [ctypes.c_int, at, at, ctypes.c_float], ctypes.c_double
    dot.argtypes, dot.restype = [ctypes.c_int, at, n, at, n, at, n, ctypes.c_int], None
    scratch, usual = GgmlScratch(sum_exp, dot), Scratch()
    size = 77  # longer than a vector of any machine, and not a multiple of one
    scratch.centred[:size] = usual.centred[:size] = np.linspace(-100.0, 0.0, size)
    same = np.allclose(scratch.sums(size, signals=True), usual.sums(size, signals=True), rtol=1e-5)
    return scratch if same else usual
