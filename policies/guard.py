"""Is this position like those of calibration at all? An experimental guard on directions of hidden states."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from fsgen_router.errors import ConfigurationError

from .features import FEATURES, Floats, columns_of, hidden_names
from .stored import Stored


@dataclass(frozen=True, eq=False)
class OutlierGuard(Stored):
    """A mixture of von Mises-Fisher distributions over unit vectors; what is improbable under it is an outlier.

    Interactive Continual Learning (Qi et al., arXiv 2403.02628) lets such a model of the fast system's
    hidden states say which inputs the fast system should not answer alone. Here the unit vectors are the
    standardised ``features``, normalised: the columns of the hidden state, or, for a policy without it,
    the other ones. Experimental.

    ``directions`` has shape (m, k), rows of length 1; ``concentrations`` and ``offsets`` (log weight
    plus log normaliser) have shape (m,). A position with a log-density below ``cut`` is an outlier,
    and is decided with the threshold ``widened``.
    """

    kind: ClassVar[str] = "vmf"
    features: tuple[str, ...]
    mean: Floats
    scale: Floats
    directions: Floats
    concentrations: Floats
    offsets: Floats
    cut: float
    widened: float

    def __post_init__(self) -> None:
        columns_of(self.features)
        size, count = len(self.features), len(self.directions)
        fits = (
            self.mean.shape == self.scale.shape == (size,)
            and self.directions.shape == (count, size)
            and self.concentrations.shape == self.offsets.shape == (count,)
        )
        if not fits or not count:
            raise ConfigurationError("vmf: the parts do not fit")

    @cached_property
    def _columns(self) -> npt.NDArray[np.intp]:
        return np.array(columns_of(self.features), np.intp)

    def log_density(self, features: Floats) -> Floats:
        """Log-density on the unit sphere, shape (n,), of feature rows, shape (n, F)."""
        vectors = unit(features[:, self._columns], self.mean, self.scale)
        result: Floats = np.logaddexp.reduce(self.offsets + (vectors @ self.directions.T) * self.concentrations, axis=1)
        return result

    def is_outlier(self, row: Sequence[float]) -> bool:
        """Whether this row is less probable than the cut (or no row of numbers at all)."""
        features = np.array([row])
        return not np.isfinite(features).all() or float(self.log_density(features)[0]) < self.cut


def unit(rows: Floats, mean: Floats, scale: Floats) -> Floats:
    """Standardised rows, shape (n, k), divided by their length."""
    centred = (rows - mean) / scale
    result: Floats = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    return result


def fit_guard(
    features: Floats,
    *,
    widened: float,
    names: Sequence[str] | None = None,
    components: int = 8,
    outliers: float = 1e-3,
    rounds: int = 20,
    seed: int = 0,
) -> OutlierGuard:
    """A guard that calls a share ``outliers`` of these rows, shape (n, F), outliers.

    It looks at the features ``names``; None: at the hidden state, or, where the rows have none, at all
    features but the token's identity. Spherical k-means with the concentrations of Banerjee et al. (2005).
    Needs scipy (extra ``eval``).
    """
    if names is None:
        names = hidden_names(features.shape[1] - len(FEATURES)) or FEATURES[:-1]
    rows = features[:, columns_of(names)]
    mean, scale = rows.mean(axis=0), rows.std(axis=0)
    # A constant feature says nothing here, and a tiny divisor would make it everything elsewhere.
    kept = scale > 1e-9
    names, rows, mean, scale = tuple(np.array(names)[kept].tolist()), rows[:, kept], mean[kept], scale[kept]
    vectors = unit(rows, mean, scale)
    rng = np.random.default_rng(seed)
    directions = vectors[rng.choice(len(vectors), min(components, len(vectors)), replace=False)]
    for _ in range(rounds):
        nearest = (vectors @ directions.T).argmax(axis=1)
        sums = np.stack([vectors[nearest == index].sum(axis=0) for index in range(len(directions))])
        lengths = np.linalg.norm(sums, axis=1)
        sizes = np.bincount(nearest, minlength=len(directions))
        # One vector alone has no spread to estimate a concentration from.
        alive = (sizes > 1) & (lengths > 1e-9)
        directions, sizes, lengths = sums[alive] / lengths[alive, None], sizes[alive], lengths[alive]
    resultant = np.minimum(lengths / sizes, 1 - 1e-6)
    size = rows.shape[1]
    concentrations = resultant * (size - resultant**2) / (1 - resultant**2)
    offsets = np.log(sizes / sizes.sum()) + log_normaliser(concentrations, size)
    guard = OutlierGuard(names, mean, scale, directions, concentrations, offsets, -math.inf, widened)
    cut = float(np.quantile(guard.log_density(features), outliers))
    return OutlierGuard(names, mean, scale, directions, concentrations, offsets, cut, widened)


# From here on the first terms of the expansion are good to 1e-7, while the function itself soon underflows.
_LARGE_ORDER = 50.0


def log_normaliser(concentrations: Floats, dimensions: int) -> Floats:
    """log C_d(kappa), where the density on the unit sphere is C_d(kappa) exp(kappa mu . x), kappa above 0."""
    try:
        from scipy import special
    except ImportError as error:
        raise ImportError("fitting a guard needs the extra 'eval': pip install 'fsgen-router[eval]'") from error
    order = dimensions / 2 - 1
    if order < _LARGE_ORDER:
        log_bessel = np.log(special.ive(order, concentrations)) + concentrations
    else:
        log_bessel = _log_bessel_of_large_order(order, concentrations)
    result: Floats = order * np.log(concentrations) - dimensions / 2 * math.log(2 * math.pi) - log_bessel
    return result


def _log_bessel_of_large_order(order: float, argument: Floats) -> Floats:
    """log I_v(x), uniformly in x, by the expansion for large v (DLMF 10.41.3, its first two corrections)."""
    ratio = argument / order
    root = np.sqrt(1.0 + ratio**2)
    p = 1.0 / root
    exponent = root + np.log(ratio / (1.0 + root))
    first = (3 * p - 5 * p**3) / 24
    second = (81 * p**2 - 462 * p**4 + 385 * p**6) / 1152
    correction = np.log1p(first / order + second / order**2)
    result: Floats = order * exponent - 0.5 * np.log(2 * math.pi * order * root) + correction
    return result
