"""Is this position like those of calibration at all? An experimental guard on directions of features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from fsgen_router.errors import ConfigurationError

from .features import FEATURES, INDEX, Floats
from .stored import Stored


@dataclass(frozen=True, eq=False)
class OutlierGuard(Stored):
    """A mixture of von Mises-Fisher distributions over unit vectors; what is improbable under it is an outlier.

    Interactive Continual Learning (Qi et al., arXiv 2403.02628) lets such a model of the fast system's
    hidden states say which inputs the fast system should not answer alone. Hidden states are not read
    from models yet: here the unit vectors are standardised features, normalised. Experimental.

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
        unknown = [name for name in self.features if name not in INDEX]
        size, count = len(self.features), len(self.directions)
        fits = (
            self.mean.shape == self.scale.shape == (size,)
            and self.directions.shape == (count, size)
            and self.concentrations.shape == self.offsets.shape == (count,)
        )
        if unknown or not fits or not count:
            raise ConfigurationError(f"vmf: the parts do not fit {unknown or ''}".rstrip())

    @cached_property
    def _columns(self) -> npt.NDArray[np.intp]:
        return np.array([INDEX[name] for name in self.features], np.intp)

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
    names: Sequence[str] = FEATURES[:-1],
    components: int = 8,
    outliers: float = 1e-3,
    rounds: int = 20,
    seed: int = 0,
) -> OutlierGuard:
    """A guard that calls a share ``outliers`` of these rows, shape (n, F), outliers.

    Spherical k-means with the concentrations of Banerjee et al. (2005). Needs scipy (extra ``eval``).
    """
    rows = features[:, [INDEX[name] for name in names]]
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


def log_normaliser(concentrations: Floats, dimensions: int) -> Floats:
    """log C_d(kappa), where the density on the unit sphere is C_d(kappa) exp(kappa mu . x), kappa above 0."""
    try:
        from scipy import special
    except ImportError as error:
        raise ImportError("fitting a guard needs the extra 'eval': pip install 'fsgen-router[eval]'") from error
    order = dimensions / 2 - 1
    log_bessel = np.log(special.ive(order, concentrations)) + concentrations
    result: Floats = order * np.log(concentrations) - dimensions / 2 * math.log(2 * math.pi) - log_bessel
    return result
