"""Fitting scorers: learned with scikit-learn or torch, served by ``fsgen_router.policies`` in numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain, combinations, pairwise
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from ..errors import CalibrationError, ConfigurationError
from ..evaluation import Array
from ..policies.basic import SIGNALS
from ..policies.features import CLASSES, FEATURES, INDEX, NUMERIC, columns_of, hidden_names
from ..policies.scorers import (
    Isotonic,
    Logistic,
    MaskedEntropy,
    Mlp,
    Platt,
    Scorer,
    Signal,
    Svm,
    TokenPrior,
    logits,
    top_probabilities,
)
from ..rows.signals import TOP_K
from .metrics import average_precision

Ints: TypeAlias = npt.NDArray[np.int64]
Fit: TypeAlias = Callable[[Array, Array, Array], Scorer]
"""(features, labels, weights) -> scorer"""

ScorerName: TypeAlias = Literal[
    "logistic", "mlp", "svm", "masked_entropy", "entropy", "varentropy", "max_prob", "margin"
]
SCORERS: tuple[ScorerName, ...] = get_args(ScorerName)
CalibrationName: TypeAlias = Literal["platt", "isotonic", "none"]
CALIBRATIONS: tuple[CalibrationName, ...] = get_args(CalibrationName)

_FOLDS = 5
_PENALTIES = {"logistic": (1.0, 10.0, 100.0, 1000.0, 10_000.0), "mlp": (0.01, 0.1, 1.0)}
"""The first, unless features include a hidden state, whose columns may be as many as the prompts: then the best."""
_SHRINKAGE = 20.0
"""Positions' worth of "as the score says" that a token's own record is mixed with."""
SVM_POSITIONS = 4000
_NEEDS_EXTRA = "calibration needs the extra 'calibrate': pip install 'fsgen-router[calibrate]'"


def fit_scorer(
    features: Array,
    labels: Array,
    weights: Array,
    prompts: Ints,
    *,
    scorer: str = "logistic",
    prior: bool = False,
    calibration: str = "platt",
    seed: int = 0,
) -> Scorer:
    """A scorer for ``labels`` in [0, 1], shape (n,), from ``features``, shape (n, F).

    Columns behind ``FEATURES`` are a hidden state, which logistic and mlp read where it is there: their
    penalty is then the best of a few on a fifth of the prompts.
    ``weights`` (0: left out) and ``prompts`` have shape (n,). ``prior`` adds log-odds by token id.
    ``calibration`` turns scores into probabilities by scores that were made without their own prompt
    (five folds, by prompt). Raises :class:`CalibrationError` where all labels are equal.
    """
    _check("scorer", scorer, SCORERS)
    _check("calibration", calibration, CALIBRATIONS)
    kept = weights > 0
    features, labels, weights, prompts = features[kept], labels[kept], weights[kept], prompts[kept]
    if not len(labels) or labels.min() == labels.max():
        raise CalibrationError(
            f"all {len(labels)} labels are {'equal' if len(labels) else 'missing'}, so there is nothing to learn",
            hint="give more prompts, or another --label",
        )
    penalties = _PENALTIES.get(scorer, (0.0,))[: None if features.shape[1] > len(FEATURES) else 1]
    fits = [_fitter(scorer, prior=prior, seed=seed, penalty=penalty) for penalty in penalties]
    fit = fits[0] if len(fits) == 1 else _best(fits, features, labels, weights, prompts)
    fitted = fit(features, labels, weights)
    if calibration == "none":
        return fitted
    held_out = _held_out_scores(fit, features, labels, weights, prompts)
    return _calibrated(fitted, held_out, labels, weights, isotonic=calibration == "isotonic")


def _check(what: str, name: str, available: tuple[str, ...]) -> None:
    if name not in available:
        raise ConfigurationError(f"unknown {what} {name!r}", hint=f"available: {', '.join(available)}")


def _fitter(scorer: str, *, prior: bool, seed: int, penalty: float) -> Fit:
    def fit(features: Array, labels: Array, weights: Array) -> Scorer:
        signal = next((name for name in SIGNALS if name == scorer), None)
        base: Scorer
        if signal is not None:
            base = Signal(signal)
        elif scorer == "masked_entropy":
            base = fit_masked_entropy(features, labels, weights)
        elif scorer == "svm":
            base = fit_svm(features, labels, weights, seed=seed)
        elif scorer == "mlp":
            base = fit_mlp(features, labels, weights, penalty=penalty, seed=seed)
        else:
            base = fit_logistic(features, labels, weights, penalty=penalty)
        return fit_prior(base, features, labels, weights) if prior else base

    return fit


# --- scorers -------------------------------------------------------------------------------------


def _best(fits: Sequence[Fit], features: Array, labels: Array, weights: Array, prompts: Ints) -> Fit:
    """The way of fitting with the smallest log loss on the prompts of one fold."""
    held = _folds(prompts) == 0
    kept = ~held
    if not kept.any() or labels[kept].min() == labels[kept].max():
        return fits[-1]

    def loss(fit: Fit) -> float:
        score = np.clip(fit(features[kept], labels[kept], weights[kept]).score(features[held]), 1e-12, 1 - 1e-12)
        losses = labels[held] * np.log(score) + (1 - labels[held]) * np.log1p(-score)
        return -float(np.average(losses, weights=weights[held]))

    return min(fits, key=loss)


def fit_logistic(features: Array, labels: Array, weights: Array, *, penalty: float = 1.0) -> Logistic:
    """Logistic regression on standardised features, with scikit-learn's L2 penalty (1 / C)."""
    names, mean, scale, inputs = _standardised(features, weights)
    model = _regression(C=1.0 / penalty).fit(*_doubled(inputs, labels, weights))
    return Logistic(names, mean, scale, np.asarray(model.coef_[0], np.float64), float(model.intercept_[0]))


def fit_masked_entropy(features: Array, labels: Array, weights: Array) -> MaskedEntropy:
    """Entropy in those token classes, 0 in others, that give the best average precision.

    All sets of classes that occur are tried: there are at most 127.
    """
    present = [name for name in CLASSES if features[:, INDEX[f"class_{name}"]].any()]
    sets = chain.from_iterable(combinations(present, size) for size in range(1, len(present) + 1))
    return max(
        map(MaskedEntropy, sets),
        key=lambda masked: average_precision(masked.score(features), labels, weights),
    )


def fit_mlp(
    features: Array,
    labels: Array,
    weights: Array,
    *,
    hidden: tuple[int, ...] = (32, 32),
    epochs: int = 30,
    penalty: float = 0.01,
    seed: int = 0,
) -> Mlp:
    """A small perceptron (ReLU, AdamW, cross-entropy) with torch; ``penalty`` is AdamW's weight decay."""
    try:
        import torch
    except ImportError as error:
        raise ImportError("the scorer 'mlp' needs torch: pip install 'fsgen-router[train]'") from error
    names, mean, scale, inputs = _standardised(features, weights)
    sizes = [len(names), *hidden, 1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [torch.nn.Linear(wide, narrow) for wide, narrow in pairwise(sizes)]
        stack = [part for layer in layers[:-1] for part in (layer, torch.nn.ReLU())]
        model = torch.nn.Sequential(*stack, layers[-1])
        x, y, w = (torch.as_tensor(array, dtype=torch.float32) for array in (inputs, labels, weights / weights.mean()))
        optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=penalty)
        for _ in range(epochs):
            order: Any = torch.randperm(len(y))
            for rows in order.split(1024):
                optimiser.zero_grad()
                losses: Any = torch.nn.functional.binary_cross_entropy_with_logits(
                    model(x[rows])[:, 0], y[rows], weight=w[rows]
                )
                losses.backward()
                optimiser.step()
    return Mlp(
        names,
        mean,
        scale,
        tuple(layer.weight.detach().numpy().astype(np.float64) for layer in layers),
        tuple(layer.bias.detach().numpy().astype(np.float64) for layer in layers),
    )


def fit_svm(
    features: Array, labels: Array, weights: Array, *, k: int = TOP_K, most: int = SVM_POSITIONS, seed: int = 0
) -> Svm:
    """FS-GEN's router (arXiv 2406.12295, ``SVMRouter`` of its code): scikit-learn's SVC with its defaults (a Gaussian
    kernel, C = 1) on the ``k`` best tokens' probabilities, and as many positions of either class, drawn with ``seed``.

    A class is which side of 1/2 a label is on, or of the middle where all are on one side. A fit takes the square of
    the positions: at most ``most`` are drawn.
    """
    try:
        from sklearn.svm import SVC
    except ImportError as error:
        raise ImportError(_NEEDS_EXTRA) from error
    low, high = float(labels.min()), float(labels.max())
    needs = labels > (0.5 if low <= 0.5 < high else (low + high) / 2)
    rng, classes = np.random.default_rng(seed), (np.flatnonzero(needs), np.flatnonzero(~needs))
    size = min(*map(len, classes), most // 2)
    drawn = np.concatenate([rng.choice(rows, size, replace=False) for rows in classes])
    inputs = top_probabilities(features[drawn], k)
    gamma = 1.0 / (k * max(float(inputs.var()), 1e-12))  # scikit-learn's "scale"
    model = SVC(kernel="rbf", C=1.0, gamma=gamma).fit(inputs, needs[drawn], sample_weight=weights[drawn])
    dual = np.asarray(model.dual_coef_[0], np.float64)
    return Svm(np.asarray(model.support_vectors_, np.float64), dual, float(model.intercept_[0]), gamma)


def fit_prior(inner: Scorer, features: Array, labels: Array, weights: Array) -> TokenPrior:
    """Log-odds by token id: what a token's labels say beyond the score, shrunk where it was seen seldom."""
    scores = inner.score(features)
    ids, at = np.unique(features[:, INDEX["token_id"]].astype(np.int64), return_inverse=True)
    count = np.bincount(at, weights)
    expected = np.bincount(at, weights * scores) / count
    observed = (np.bincount(at, weights * labels) + _SHRINKAGE * expected) / (count + _SHRINKAGE)
    return TokenPrior(inner, ids, logits(observed) - logits(expected))


def _standardised(features: Array, weights: Array) -> tuple[tuple[str, ...], Array, Array, Array]:
    """Names, means, scales and standardised values of the features that vary, and of all of a hidden state."""
    states = hidden_names(features.shape[1] - len(FEATURES))
    columns = features[:, columns_of((*NUMERIC, *states))]
    mean = np.average(columns, axis=0, weights=weights)
    scale = np.sqrt(np.average((columns - mean) ** 2, axis=0, weights=weights))
    varies = scale > 1e-9
    scale = np.where(varies, scale, 1.0)
    varies[len(NUMERIC) :] = True  # a hidden state is stored whole: its size is checked against the model's
    names = tuple(name for name, kept in zip((*NUMERIC, *states), varies.tolist(), strict=True) if kept)
    mean, scale = mean[varies], scale[varies]
    return names, mean, scale, (columns[:, varies] - mean) / scale


def _regression(C: float) -> Any:
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise ImportError(_NEEDS_EXTRA) from error
    return LogisticRegression(C=C, max_iter=5000)


def _doubled(inputs: Array, labels: Array, weights: Array) -> tuple[Array, Array, Array]:
    """Each row once as a positive and once as a negative, weighted by its label: soft labels for a classifier."""
    positive, negative = labels > 0, labels < 1
    return (
        np.concatenate([inputs[positive], inputs[negative]]),
        np.concatenate([np.ones(int(positive.sum())), np.zeros(int(negative.sum()))]),
        np.concatenate([(weights * labels)[positive], (weights * (1 - labels))[negative]]),
    )


# --- probabilities -------------------------------------------------------------------------------


def _folds(prompts: Ints) -> Ints:
    """Each position's fold, from 0: prompts are never torn apart."""
    _, of_prompt = np.unique(prompts, return_inverse=True)
    return of_prompt % min(_FOLDS, int(of_prompt.max()) + 1)


def _held_out_scores(fit: Fit, features: Array, labels: Array, weights: Array, prompts: Ints) -> Array:
    """Each position's score by a scorer that was fitted without its prompt."""
    fold = _folds(prompts)
    scores = np.empty(len(labels))
    for held in range(int(fold.max()) + 1):
        inside, outside = fold == held, fold != held
        if not outside.any() or labels[outside].min() == labels[outside].max():
            outside = np.ones_like(outside)  # too few prompts to hold any out
        scores[inside] = fit(features[outside], labels[outside], weights[outside]).score(features[inside])
    return scores


def _calibrated(fitted: Scorer, scores: Array, labels: Array, weights: Array, *, isotonic: bool) -> Scorer:
    if isotonic:
        try:
            from sklearn.isotonic import IsotonicRegression
        except ImportError as error:
            raise ImportError(_NEEDS_EXTRA) from error
        table = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(
            scores, labels, sample_weight=weights
        )
        x, y = np.asarray(table.X_thresholds_, np.float64), np.asarray(table.y_thresholds_, np.float64)
        return Isotonic(fitted, x, np.clip(np.maximum.accumulate(y), 0.0, 1.0))
    model = _regression(C=1e6).fit(*_doubled(logits(scores)[:, None], labels, weights))
    slope = float(model.coef_[0, 0])
    # A score that orders positions the wrong way round stays as it is: its metrics tell.
    return Platt(fitted, slope, float(model.intercept_[0])) if slope > 0 else fitted
