"""Least squares for the forms of the law, for many weightings of the same points at once.

One function fits the points themselves (weights of 1), each point left out (one weight of 0) and bootstrap
draws (weights that count how often a point was drawn): all of them are weightings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float64]
FormName: TypeAlias = Literal["power", "log", "sizes"]
FORMS: tuple[FormName, ...] = get_args(FormName)

FLOOR = 0.05
"""The paper's lower bound of a, alpha and b."""
ALPHA_MAX = 10.0
"""Where the search for alpha ends: R^(-alpha) is then below 0.001 for every ratio above 2."""

_GRID = np.geomspace(FLOOR, ALPHA_MAX, 160)
_ROUNDS, _FINER = 6, 17


@dataclass(frozen=True, slots=True)
class Form:
    """One form of the law: its parameters, how they are fitted, and the curve that they give.

    ``fit(slow, fast, cof, weights)`` takes sizes and rates of shape (n,) and weights of shape (draws, n); it
    returns parameters of shape (draws, k), NaN where a draw does not determine them. ``curve(parameters, slow,
    fast)`` gives rates of shape (draws, m).
    """

    parameters: tuple[str, ...]
    formula: str
    fit: Callable[[Array, Array, Array, Array], Array]
    curve: Callable[[Array, Array, Array], Array]


def _power(ratio: Array, cof: Array, weights: Array) -> Array:
    """a, alpha and b of -a R^(-alpha) + b, shape (draws, 3).

    For a given alpha it is a linear problem in a and b with two bounds, which is solved exactly, so only alpha is
    searched: on a grid that holds every local minimum apart, then finer and finer around the best. No starting
    value, and no local optimum.
    """
    parameters, _ = _best(_GRID[None], ratio, cof, weights)
    at = np.searchsorted(_GRID, parameters[:, 1])
    low, high = _GRID[np.maximum(at - 1, 0)], _GRID[np.minimum(at + 1, len(_GRID) - 1)]
    for _ in range(_ROUNDS):
        finer = np.linspace(low, high, _FINER, axis=1)
        parameters, at = _best(finer, ratio, cof, weights)
        rows = np.arange(len(finer))
        low, high = finer[rows, np.maximum(at - 1, 0)], finer[rows, np.minimum(at + 1, _FINER - 1)]
    # Two ratios lie on many such curves.
    distinct = np.array([len(np.unique(ratio[row > 0])) for row in weights])
    parameters[distinct < 3] = np.nan
    return parameters


def _best(alphas: Array, ratio: Array, cof: Array, weights: Array) -> tuple[Array, npt.NDArray[np.intp]]:
    """The best parameters, shape (draws, 3), and which of the ``alphas``, shape (draws or 1, m), each has."""
    x = -(ratio[None, :, None] ** -alphas[:, None, :])
    # Around the mean rate, so that sums of squares do not drown in each other.
    centre = cof.mean()
    y = cof - centre

    def summed(values: Array) -> Array:
        return np.asarray((weights[:, None, :] @ values)[:, 0, :])

    n = weights.sum(axis=1, keepdims=True)
    sx, sxx, sxy = summed(x), summed(x * x), summed(x * y[None, :, None])
    sy, syy = weights @ y[:, None], weights @ (y * y)[:, None]
    floor = FLOOR - centre
    spread = sxx - sx * sx / n
    flat = spread <= 1e-12 * sxx  # one ratio, seen once or often, gives no slope
    a = np.where(flat, FLOOR, (sxy - sx * sy / n) / np.where(flat, 1.0, spread))
    b = (sy - a * sx) / n
    inside = (a >= FLOOR) & (b >= floor)
    # Where the best lies outside, it lies on a bound, a convex problem being what it is.
    a_at = np.full_like(sx, FLOOR)
    b_then = np.maximum((sy - FLOOR * sx) / n, floor)
    b_at = np.full_like(sx, floor)
    a_then = np.maximum((sxy - floor * sx) / sxx, FLOOR)
    choices = [(np.where(inside, a, FLOOR), np.where(inside, b, floor)), (a_at, b_then), (a_then, b_at)]
    losses = np.stack(
        [a * a * sxx + 2 * a * b * sx + b * b * n - 2 * a * sxy - 2 * b * sy + syy for a, b in choices], axis=1
    )
    which, at = np.unravel_index(losses.reshape(len(losses), -1).argmin(axis=1), losses.shape[1:])
    rows = np.arange(len(losses))
    chosen = np.stack([np.stack(pair) for pair in choices])[which, :, rows, at]
    found = np.broadcast_to(alphas, (len(losses), alphas.shape[1]))[rows, at]
    return np.stack([chosen[:, 0], found, chosen[:, 1] + centre], axis=1), np.asarray(at)


def _linear(design: Array, cof: Array, weights: Array) -> Array:
    """Coefficients for the columns of ``design``, shape (n, k): shape (draws, k), NaN where columns depend."""
    gram = np.einsum("dn,nk,nl->dkl", weights, design, design)
    target = np.einsum("dn,nk,n->dk", weights, design, cof)
    found = np.full(target.shape, np.nan)
    solvable = np.linalg.cond(gram) < 1e12
    found[solvable] = np.linalg.solve(gram[solvable], target[solvable][..., None])[..., 0]
    return found


def _log_design(slow: Array, fast: Array) -> Array:
    return np.stack([np.ones_like(slow), np.log(slow / fast)], axis=1)


def _sizes_design(slow: Array, fast: Array) -> Array:
    return np.stack([np.ones_like(slow), np.log(slow), np.log(fast)], axis=1)


FORM: Mapping[FormName, Form] = {
    "power": Form(
        ("a", "alpha", "b"),
        "-a R^(-alpha) + b",
        lambda slow, fast, cof, weights: _power(slow / fast, cof, weights),
        lambda p, slow, fast: -p[:, :1] * (slow / fast)[None] ** -p[:, 1:2] + p[:, 2:],
    ),
    "log": Form(
        ("c0", "c1"),
        "c0 + c1 ln R",
        lambda slow, fast, cof, weights: _linear(_log_design(slow, fast), cof, weights),
        lambda p, slow, fast: p @ _log_design(slow, fast).T,
    ),
    "sizes": Form(
        ("c0", "c1", "c2"),
        "c0 + c1 ln slow + c2 ln fast",
        lambda slow, fast, cof, weights: _linear(_sizes_design(slow, fast), cof, weights),
        lambda p, slow, fast: p @ _sizes_design(slow, fast).T,
    ),
}


@dataclass(frozen=True, slots=True)
class Fit:
    """One form fitted to one cell.

    ``values`` and ``intervals`` (95%, None where too few draws determine them) are by parameter; ``r2`` is None
    where all rates are the same, ``loo_r2`` (1 - the squared errors at points left out, over the same total) also
    where a point cannot be left out. ``at_bound`` names parameters that sit at a bound. ``identified`` is
    False where the interval of one reaches its bound, so that other values do about as well. ``draws``, shape
    (draws, k), are the bootstrap's parameters, ``residuals``, shape (n,), what the curve leaves.
    """

    form: FormName
    values: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float] | None]
    r2: float | None
    loo_r2: float | None
    at_bound: tuple[str, ...]
    identified: bool
    draws: Array = field(repr=False)
    residuals: Array = field(repr=False)

    @property
    def formula(self) -> str:
        return FORM[self.form].formula

    def curve(self, slow: Array, fast: Array) -> Array:
        """Expected rates for sizes of shape (m,): shape (m,)."""
        curve: Array = FORM[self.form].curve(np.array([list(self.values.values())]), slow, fast)[0]
        return curve

    def curves(self, slow: Array, fast: Array) -> Array:
        """The same for every bootstrap draw: shape (draws, m)."""
        return FORM[self.form].curve(self.draws, slow, fast)

    def band(self, slow: Array, fast: Array, confidence: float = 0.95) -> tuple[Array, Array] | None:
        """Where the curve lies at sizes of shape (m,), by the bootstrap; None where too few draws determine it."""
        return between(self.curves(slow, fast), confidence) if len(self.draws) else None

    def to_dict(self) -> dict[str, object]:
        """Flat, for JSON: each parameter with ``<name>_interval`` beside it."""
        record: dict[str, object] = {}
        for name, value in self.values.items():
            record |= {name: value, f"{name}_interval": self.intervals[name]}
        return record | {
            "r2": self.r2,
            "loo_r2": self.loo_r2,
            "at_bound": list(self.at_bound),
            "identified": self.identified,
        }


def between(values: Array, confidence: float = 0.95) -> tuple[Array, Array]:
    """The quantiles of ``values``, shape (draws, m), that hold ``confidence`` between them."""
    low, high = np.quantile(values, ((1 - confidence) / 2, (1 + confidence) / 2), axis=0)
    return low, high


def fit_form(
    name: FormName, slow: Array, fast: Array, cof: Array, *, seed: int = 0, resamples: int = 1000
) -> Fit | None:
    """One form fitted to points of shape (n,); None where they do not determine it.

    The bootstrap resamples points, which are pairs: pairs that share a model are not independent, so that
    its bands are rather too narrow.
    """
    form, n = FORM[name], len(cof)
    every = form.fit(slow, fast, cof, np.ones((1, n)))
    if not np.isfinite(every).all():
        return None
    values = dict(zip(form.parameters, every[0].tolist(), strict=True))
    residuals = cof - form.curve(every, slow, fast)[0]
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)
    draws = form.fit(slow, fast, cof, counts)
    draws = draws[np.isfinite(draws).all(axis=1)]
    if len(draws) < 0.95 * resamples or n <= len(values):
        draws = draws[:0]
    spans = between(draws) if len(draws) else None
    intervals = {
        name: None if spans is None else (float(spans[0][k]), float(spans[1][k])) for k, name in enumerate(values)
    }
    return Fit(
        name,
        values,
        intervals,
        *_r2(form, slow, fast, cof, residuals),
        at_bound=tuple(key for key, value in values.items() if reaches_bound(key, value, value)),
        identified=all(span is not None and not reaches_bound(key, *span) for key, span in intervals.items()),
        draws=draws,
        residuals=residuals,
    )


def reaches_bound(parameter: str, low: float, high: float) -> bool:
    """Whether an interval of a parameter of ``power`` reaches one of its bounds; the linear forms have none."""
    if parameter not in FORM["power"].parameters:
        return False
    return low <= FLOOR * (1 + 1e-6) or (parameter == "alpha" and high >= ALPHA_MAX * (1 - 1e-6))


def _r2(form: Form, slow: Array, fast: Array, cof: Array, residuals: Array) -> tuple[float | None, float | None]:
    total = float(((cof - cof.mean()) ** 2).sum())
    if total <= 1e-18:
        return None, None
    without = form.fit(slow, fast, cof, 1 - np.eye(len(cof)))
    errors = cof - np.diag(form.curve(without, slow, fast))
    loo = 1 - float((errors**2).sum()) / total
    return 1 - float((residuals**2).sum()) / total, loo if np.isfinite(loo) else None
