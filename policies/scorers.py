"""Scores: how much a position needs the slow model. Fitted in ``fsgen_router.calibration``, served here in numpy.

A scorer maps features (``features.FEATURES``, and perhaps the hidden state behind them) to numbers in
[0, 1], higher where escalating is worth more. Each is a frozen record of JSON values, arrays and other
scorers, and knows how to take itself apart into them and back; which features it reads is stored by name.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from fsgen_router.errors import ConfigurationError
from fsgen_router.rows.signals import TOP_K

from .basic import SIGNALS, SignalName
from .features import CLASSES, FEATURES, INDEX, Floats, columns_of
from .stored import Spec, Stored, Tensors, restore

_CLASS_COLUMNS = slice(INDEX[f"class_{CLASSES[0]}"], INDEX[f"class_{CLASSES[-1]}"] + 1)
_TOKEN = INDEX["token_id"]
_SMALLEST = 1e-12
_FEW = 100  # numbers that are weighed faster one by one than through an array


@runtime_checkable
class Scorer(Protocol):
    """Maps features to scores in [0, 1]; higher means: ask the slow model."""

    @property
    def name(self) -> str:
        """What it is, in a word or two."""

    def score(self, features: Floats) -> Floats:
        """Scores, shape (n,), of features, shape (n, F)."""

    def score_one(self, row: Sequence[float]) -> float:
        """The score of one row, equal to :meth:`score` up to 1e-12."""

    def spec(self) -> Spec:
        """The part that is JSON: ``kind``, and everything but arrays."""

    def to_tensors(self) -> Tensors:
        """The part that is arrays; :func:`make_scorer` puts both together again."""


def sigmoid(log_odds: float) -> float:
    """1 / (1 + exp(-x)) without overflow."""
    if log_odds >= 0.0:
        return 1.0 / (1.0 + math.exp(-log_odds))
    odds = math.exp(log_odds)
    return odds / (1.0 + odds)


def logit(probability: float) -> float:
    """log(p / (1 - p)), with p kept 1e-12 away from 0 and 1."""
    kept = min(max(probability, _SMALLEST), 1.0 - _SMALLEST)
    return math.log(kept) - math.log1p(-kept)


def sigmoids(log_odds: Floats) -> Floats:
    """:func:`sigmoid` of an array."""
    result: Floats = np.exp(-np.logaddexp(0.0, -log_odds))
    return result


def logits(probabilities: Floats) -> Floats:
    """:func:`logit` of an array."""
    kept = np.clip(probabilities, _SMALLEST, 1.0 - _SMALLEST)
    result: Floats = np.log(kept) - np.log1p(-kept)
    return result


def make_scorer(spec: Spec, tensors: Tensors) -> Scorer:
    """A scorer from its ``spec()`` and ``to_tensors()``.

    Raises :class:`ConfigurationError` for an unknown kind and for parts that are missing or do not fit.
    """
    scorer = restore(spec, tensors)
    if not isinstance(scorer, Scorer):
        raise ConfigurationError(f"{spec.get('kind')!r} is no scorer")
    return scorer


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise ConfigurationError(what)


# --- baselines -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Signal(Stored):
    """One signal, mapped to [0, 1] without changing its order.

    1 - max_prob; 1 - margin; 1 - exp(-entropy), which is 1 - 1 / perplexity; v / (1 + v) for the
    varentropy v.
    """

    kind: ClassVar[str] = "signal"
    signal: SignalName

    def __post_init__(self) -> None:
        _require(self.signal in SIGNALS, f"unknown signal {self.signal!r}")

    @property
    def name(self) -> str:
        return self.signal

    @cached_property
    def _column(self) -> int:
        return INDEX["entropy_nats" if self.signal == "entropy" else self.signal]

    def score(self, features: Floats) -> Floats:
        value: Floats = features[:, self._column]
        match self.signal:
            case "entropy":
                return -np.expm1(-value)
            case "varentropy":
                return value / (1.0 + value)
        return 1.0 - value

    def score_one(self, row: Sequence[float]) -> float:
        value = row[self._column]
        match self.signal:
            case "entropy":
                return -math.expm1(-value)
            case "varentropy":
                return value / (1.0 + value)
        return 1.0 - value


@dataclass(frozen=True, eq=False)
class MaskedEntropy(Stored):
    """1 - exp(-entropy) where the proposed token's class is one of ``classes``, 0 elsewhere.

    The plain remedy for classes of tokens at which models disagree without consequence: a mask by
    class and nothing else. Which classes matter is learned (``fsgen_router.calibration``).
    """

    kind: ClassVar[str] = "masked_entropy"
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        _require(set(self.classes) <= set(CLASSES), f"unknown token class among {self.classes}")

    @cached_property
    def _mask(self) -> Floats:
        return np.array([name in self.classes for name in CLASSES], np.float64)

    @cached_property
    def _masks(self) -> tuple[float, ...]:
        return tuple(self._mask.tolist())

    def score(self, features: Floats) -> Floats:
        matters: Floats = features[:, _CLASS_COLUMNS] @ self._mask
        return -np.expm1(-features[:, INDEX["entropy_nats"]]) * matters

    def score_one(self, row: Sequence[float]) -> float:
        matters = self._masks[row[_CLASS_COLUMNS].index(1.0)]
        return -math.expm1(-row[INDEX["entropy_nats"]]) * matters


# --- learned -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Logistic(Stored):
    """sigmoid(weights . (x - mean) / scale + intercept), over the named features.

    ``weights``, ``mean`` and ``scale`` have shape (k,), ``scale`` above 0.
    """

    kind: ClassVar[str] = "logistic"
    features: tuple[str, ...]
    mean: Floats
    scale: Floats
    weights: Floats
    intercept: float

    def __post_init__(self) -> None:
        columns_of(self.features)
        shape = (len(self.features),)
        _require(self.mean.shape == self.scale.shape == self.weights.shape == shape, f"{self.kind}: not of one shape")
        _require(bool(np.all(self.scale > 0)), f"{self.kind}: a scale is not above 0")
        _require(math.isfinite(self._offset) and all(map(math.isfinite, self._weights)), f"{self.kind}: not finite")

    @cached_property
    def _spread(self) -> Floats:
        # Standardisation folded in, and spread over all features: one product per feature and no look-ups.
        columns = columns_of(self.features)
        spread = np.zeros(max([len(FEATURES), *(column + 1 for column in columns)]))
        spread[columns] = self.weights.astype(np.float64) / self.scale
        return spread

    @cached_property
    def _weights(self) -> tuple[float, ...]:
        return tuple(self._spread.tolist())

    @cached_property
    def _offset(self) -> float:
        return self.intercept - float(np.sum(self.weights.astype(np.float64) * self.mean / self.scale))

    def log_odds(self, features: Floats) -> Floats:
        """What the sigmoid is taken of, shape (n,), of features, shape (n, F)."""
        result: Floats = features[:, : len(self._spread)] @ self._spread + self._offset
        return result

    def log_odds_one(self, row: Sequence[float]) -> float:
        """:meth:`log_odds` of one row."""
        if len(self._weights) <= _FEW:
            product: float = sum(map(operator.mul, row, self._weights))
            return product + self._offset
        return float(np.dot(row[: len(self._weights)], self._spread)) + self._offset

    def score(self, features: Floats) -> Floats:
        return sigmoids(self.log_odds(features))

    def score_one(self, row: Sequence[float]) -> float:
        return sigmoid(self.log_odds_one(row))


@dataclass(frozen=True, eq=False)
class Mlp(Stored):
    """A small multilayer perceptron with ReLU between its layers and a sigmoid behind the last.

    ``weights[i]`` has shape (out, in) and ``biases[i]`` (out,), as in torch; the last layer has one
    output. Inputs are standardised: (x - mean) / scale.
    """

    kind: ClassVar[str] = "mlp"
    features: tuple[str, ...]
    mean: Floats
    scale: Floats
    weights: tuple[Floats, ...]
    biases: tuple[Floats, ...]

    def __post_init__(self) -> None:
        columns_of(self.features)
        size = len(self.features)
        _require(self.mean.shape == self.scale.shape == (size,), "mlp: mean and scale are not of one shape")
        _require(bool(np.all(self.scale > 0)), "mlp: a scale is not above 0")
        _require(bool(np.isfinite(self.mean).all()), "mlp: a mean is not finite")
        _require(len(self.weights) == len(self.biases), "mlp: as many weights as biases")
        for weight, bias in zip(self.weights, self.biases, strict=True):
            _require(weight.ndim == 2 and weight.shape == (len(bias), size), f"mlp: a layer has shape {weight.shape}")
            _require(bool(np.isfinite(weight).all() and np.isfinite(bias).all()), "mlp: a weight is not finite")
            size = len(bias)
        _require(size == 1, f"mlp: {size} outputs")

    @cached_property
    def _layers(self) -> list[tuple[Floats, Floats]]:
        # Standardisation folded into the first layer.
        layers = [(w.astype(np.float64), b.astype(np.float64)) for w, b in zip(self.weights, self.biases, strict=True)]
        first, bias = layers[0]
        layers[0] = (first / self.scale, bias - first @ (self.mean / self.scale))
        return layers

    @cached_property
    def _where(self) -> list[int]:
        return columns_of(self.features)

    def score(self, features: Floats) -> Floats:
        hidden: Floats = features[:, self._where]
        for weight, bias in self._layers[:-1]:
            hidden = np.maximum(hidden @ weight.T + bias, 0.0)
        weight, bias = self._layers[-1]
        return sigmoids((hidden @ weight.T + bias)[:, 0])

    def score_one(self, row: Sequence[float]) -> float:
        hidden = np.array([row[column] for column in self._where])
        for weight, bias in self._layers[:-1]:
            hidden = np.maximum(weight @ hidden + bias, 0.0)
        weight, bias = self._layers[-1]
        return sigmoid(float(weight[0] @ hidden) + float(bias[0]))


@dataclass(frozen=True, eq=False)
class Svm(Stored):
    """FS-GEN's router (arXiv 2406.12295): a support vector machine with a Gaussian kernel on the best tokens'
    probabilities, p_1 to p_k.

    Its decision value d = sum_i weights_i exp(-gamma |p - vectors_i|^2) + intercept (Cortes and Vapnik, 1995) is
    above 0 where it would escalate; the score is sigmoid(d), which orders positions as d does. ``vectors`` have
    shape (m, k), k at most ``TOP_K``, ``weights`` (the dual coefficients, with their signs) shape (m,).
    """

    kind: ClassVar[str] = "svm"
    vectors: Floats
    weights: Floats
    intercept: float
    gamma: float

    def __post_init__(self) -> None:
        fits = self.vectors.ndim == 2 and self.weights.shape == self.vectors.shape[:1]
        _require(fits and 1 <= self.vectors.shape[1] <= TOP_K, f"svm: vectors of shape {self.vectors.shape}")
        finite = np.isfinite(self.vectors).all() and np.isfinite(self.weights).all()
        _require(bool(finite) and math.isfinite(self.intercept) and self.gamma > 0, "svm: not finite")

    @cached_property
    def _lengths(self) -> Floats:
        lengths: Floats = np.sum(self.vectors**2, axis=1)
        return lengths

    def _decide(self, probabilities: Floats) -> Floats:
        distances = np.sum(probabilities**2, axis=1)[:, None] + self._lengths - 2.0 * probabilities @ self.vectors.T
        result: Floats = np.exp(-self.gamma * np.maximum(distances, 0.0)) @ self.weights + self.intercept
        return result

    def score(self, features: Floats) -> Floats:
        probabilities = top_probabilities(features, self.vectors.shape[1])
        # Some thousand rows at a time, since each has a number for each support vector.
        parts = [self._decide(probabilities[at : at + _ROWS]) for at in range(0, len(probabilities), _ROWS)]
        return sigmoids(np.concatenate([*parts, np.empty(0)]))

    def score_one(self, row: Sequence[float]) -> float:
        columns = np.array([row[: len(FEATURES)]])
        return sigmoid(float(self._decide(top_probabilities(columns, self.vectors.shape[1]))[0]))


_ROWS = 2048


def top_probabilities(features: Floats, k: int) -> Floats:
    """The fast model's ``k`` best tokens' probabilities, shape (n, k), best first, of features, shape (n, F).

    One that is ``GAP_CAP`` nats or more behind the best counts as that far behind.
    """
    gaps = features[:, [INDEX[f"gap_{rank}"] for rank in range(2, k + 1)]]
    best = features[:, INDEX["max_prob"]][:, None]
    return np.concatenate([best, best * np.exp(-gaps)], axis=1)


# --- on top of another scorer --------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class TokenPrior(Stored):
    """Adds log-odds by the proposed token's id to another score; 0 for ids that are not listed.

    ``ids`` (int64, sorted) and ``log_odds`` have shape (m,). They are shrunk towards 0 where a token
    was seen seldom (``fsgen_router.calibration``), and mean nothing for another vocabulary.
    """

    kind: ClassVar[str] = "token_prior"
    inner: Scorer
    ids: npt.NDArray[np.int64]
    log_odds: Floats

    def __post_init__(self) -> None:
        _require(self.ids.ndim == 1 and self.ids.shape == self.log_odds.shape, "token_prior: not of one shape")
        _require(bool(np.all(np.diff(self.ids) > 0)), "token_prior: ids are not sorted")
        _require(bool(np.isfinite(self.log_odds).all()), "token_prior: not finite")

    @property
    def name(self) -> str:
        return f"{self.inner.name}+prior"

    @cached_property
    def _table(self) -> dict[int, float]:
        return dict(zip(self.ids.tolist(), self.log_odds.tolist(), strict=True))

    def score(self, features: Floats) -> Floats:
        prior = np.array([self._table.get(int(token), 0.0) for token in features[:, _TOKEN]])
        return sigmoids(logits(self.inner.score(features)) + prior)

    def score_one(self, row: Sequence[float]) -> float:
        return sigmoid(logit(self.inner.score_one(row)) + self._table.get(int(row[_TOKEN]), 0.0))


@dataclass(frozen=True, eq=False)
class Adapted(Stored):
    """A frozen score whose log-odds a small linear ``head`` corrects; see :class:`OnlineHead`."""

    kind: ClassVar[str] = "adapted"
    inner: Scorer
    head: Logistic

    @property
    def name(self) -> str:
        return f"{self.inner.name}+head"

    def score(self, features: Floats) -> Floats:
        return sigmoids(logits(self.inner.score(features)) + self.head.log_odds(features))

    def score_one(self, row: Sequence[float]) -> float:
        return sigmoid(logit(self.inner.score_one(row)) + self.head.log_odds_one(row))


@dataclass(frozen=True, eq=False)
class Platt(Stored):
    """A score made a probability: sigmoid(slope * logit(score) + intercept), slope above 0 (Platt, 1999)."""

    kind: ClassVar[str] = "platt"
    inner: Scorer
    slope: float
    intercept: float

    def __post_init__(self) -> None:
        _require(self.slope > 0, f"platt: a slope of {self.slope} changes the order of scores")
        _require(math.isfinite(self.slope) and math.isfinite(self.intercept), "platt: not finite")

    @property
    def name(self) -> str:
        return self.inner.name

    def score(self, features: Floats) -> Floats:
        return sigmoids(self.slope * logits(self.inner.score(features)) + self.intercept)

    def score_one(self, row: Sequence[float]) -> float:
        return sigmoid(self.slope * logit(self.inner.score_one(row)) + self.intercept)


@dataclass(frozen=True, eq=False)
class Isotonic(Stored):
    """A score made a probability by a non-decreasing table (Zadrozny and Elkan, 2002).

    ``scores`` (increasing) and ``probabilities`` (non-decreasing), shape (m,): linear in between,
    constant outside. Scores on a flat piece become ties.
    """

    kind: ClassVar[str] = "isotonic"
    inner: Scorer
    scores: Floats
    probabilities: Floats

    def __post_init__(self) -> None:
        _require(self.scores.ndim == 1 and len(self.scores) > 0, "isotonic: the table is empty")
        _require(self.scores.shape == self.probabilities.shape, "isotonic: not of one shape")
        _require(bool(np.all(np.diff(self.scores) > 0)), "isotonic: scores do not increase")
        _require(bool(np.all(np.diff(self.probabilities) >= 0)), "isotonic: probabilities decrease")
        inside = (self.probabilities >= 0) & (self.probabilities <= 1)
        _require(bool(np.all(inside)), "isotonic: a probability is outside [0, 1]")

    @property
    def name(self) -> str:
        return self.inner.name

    def score(self, features: Floats) -> Floats:
        result: Floats = np.interp(self.inner.score(features), self.scores, self.probabilities)
        return result

    def score_one(self, row: Sequence[float]) -> float:
        return float(np.interp(self.inner.score_one(row), self.scores, self.probabilities))
