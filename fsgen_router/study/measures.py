"""What a cell of a study comes to: rates and quality with intervals, where mismatches fall, and what tells them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..calibration.metrics import score_metrics
from ..contracts.tokenizer import TokenClass, Tokenizer
from ..evaluation import Array, Estimate, bootstrap, interval
from .positions import Positions

SIGNALS = ("entropy_nats", "max_prob", "margin")
_RESAMPLES = 1000
_DRAWS = 200
"""Bootstrap draws of the areas under curves, which sort every position anew."""
QUARTILES = (0.25, 0.5, 0.75)
PLACES, PER_BIN = 128, 4
"""The heat map: so many tokens of an answer from its beginning, in bins of so many."""
_SHOWN = 2
_SHOWN_TOKENS = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """Which cell this is; sizes in billions of parameters, None where the model could not be loaded."""

    fast: str
    slow: str
    tuned: str | None
    method: str
    dataset: str
    seed: int
    fast_params_b: float | None = None
    slow_params_b: float | None = None

    def to_dict(self) -> dict[str, Any]:
        names = ("method", "dataset", "fast", "slow", "tuned", "seed", "fast_params_b", "slow_params_b")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of an answer's text; ``instead`` is what the fast model would have written there, None where it agreed."""

    text: str
    instead: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The figures of a cell that was run. Every estimate has a 95% interval by a bootstrap over prompts.

    ``cof`` is the collaboration frequency against the fast model, ``cof_tuned`` against the tuned one. ``gain`` is the
    collaboration's accuracy less that of the better model alone. ``tenths`` are rates by tenth of an answer, ``first``
    and ``later`` those of its first tokens and the others, ``begins`` and ``within`` those of first tokens of sentences
    or lines and of the others, ``classes`` by class of the token. ``places`` are rates by bins of
    :data:`PER_BIN` tokens from the beginning (NaN where there are few), ``auroc`` how well a signal tells
    mismatches from matches, ``quartiles`` of each signal over (matches, mismatches). ``per_prompt`` are the two
    rates of ``first`` and ``later`` in each answer that has both, shape (n, 2); ``samples`` up to a thousand values
    of each signal, matches and mismatches.
    """

    n: int
    tokens: int
    truncated: int
    cof: Estimate
    cof_tuned: Estimate
    accuracy: Estimate
    accuracy_fast: Estimate
    accuracy_slow: Estimate
    accuracy_tuned: Estimate
    gain: Estimate
    tenths: tuple[Estimate, ...]
    first: Estimate
    later: Estimate
    begins: Estimate
    within: Estimate
    classes: Mapping[str, Estimate]
    places: Array
    auroc: Mapping[str, Estimate]
    quartiles: Mapping[str, tuple[list[float], list[float]]]
    per_prompt: Array
    samples: Mapping[str, tuple[Array, Array]]
    examples: tuple[tuple[Piece, ...], ...]

    def to_dict(self) -> dict[str, Any]:
        flat = (
            *("cof", "cof_tuned", "accuracy", "accuracy_fast", "accuracy_slow", "accuracy_tuned", "gain"),
            *("first", "later", "begins", "within"),
        )
        record: dict[str, Any] = {"n": self.n, "tokens": self.tokens, "truncated": self.truncated}
        for name in flat:
            record |= getattr(self, name).to_dict(name)
        for name, estimate in self.auroc.items():
            record |= estimate.to_dict(f"auroc_{name}")
        record["tenths"] = [estimate.to_dict("cof") for estimate in self.tenths]
        record["classes"] = {name: estimate.to_dict("cof") for name, estimate in self.classes.items()}
        record["quartiles"] = {
            name: {"match": match, "mismatch": mismatch} for name, (match, mismatch) in self.quartiles.items()
        }
        return record


@dataclass(frozen=True, slots=True)
class CellResult:
    """A cell: its figures, or why there are none."""

    key: Key
    found: Found | None = None
    error: str | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """For JSON, and for ``law --table``: rows of a study that was cut short have ``cof`` null and an ``error``."""
        record = self.key.to_dict() | {"cof": None}
        if self.found is not None:
            record |= self.found.to_dict()
        return record | {"notes": list(self.notes), "error": self.error}


_UNKNOWN = Estimate(None)


def measure(
    positions: Positions,
    n: int,
    quality: Mapping[str, Array],
    tokenizer: Tokenizer,
    *,
    truncated: int = 0,
    first_tokens: int = 10,
    seed: int = 0,
) -> Found:
    """The figures of ``n`` answers. ``quality`` holds 1 for right and 0 for wrong, shape (n,), of ``collaboration``,
    ``fast``, ``slow`` and, where it was run, ``tuned``; empty where no answers are expected."""
    wrong = positions.mismatch

    def rate(differs: npt.NDArray[np.bool_], among: npt.NDArray[np.bool_] | None = None) -> Estimate:
        among = np.ones(len(positions), np.bool_) if among is None else among
        counts = [np.bincount(positions.prompt[chosen], minlength=n) for chosen in (differs & among, among)]
        if not counts[1].any():
            return _UNKNOWN
        return interval(*(count.astype(np.float64) for count in counts), seed=seed, resamples=_RESAMPLES)

    early, begins = positions.place < first_tokens, positions.begins > 0
    tuned = positions.mismatch_tuned
    labels = wrong.astype(np.float64)
    scores = {name: (1 if name == "entropy_nats" else -1) * getattr(positions, name) for name in SIGNALS}
    metrics = score_metrics(scores, labels, np.ones(len(labels)), positions.prompt, resamples=_DRAWS, seed=seed)
    accuracies = {name: interval(right, seed=seed, resamples=_RESAMPLES) for name, right in quality.items()}
    present = [TokenClass(number) for number in np.unique(positions.token_class).tolist()]
    return Found(
        n=n,
        tokens=len(positions),
        truncated=truncated,
        cof=rate(wrong),
        cof_tuned=_UNKNOWN if tuned is None else rate(tuned),
        accuracy=accuracies.get("collaboration", _UNKNOWN),
        accuracy_fast=accuracies.get("fast", _UNKNOWN),
        accuracy_slow=accuracies.get("slow", _UNKNOWN),
        accuracy_tuned=accuracies.get("tuned", _UNKNOWN),
        gain=_gain(quality, seed),
        tenths=tuple(rate(wrong, positions.tenth == tenth) for tenth in range(10)),
        first=rate(wrong, early),
        later=rate(wrong, ~early),
        begins=rate(wrong, begins),
        within=rate(wrong, ~begins),
        classes={one.name.lower(): rate(wrong, positions.token_class == one) for one in present},
        places=_places(positions),
        auroc={name: found["auroc"] for name, found in metrics.items()},
        quartiles={name: _quartiles(getattr(positions, name), wrong) for name in SIGNALS},
        per_prompt=_per_prompt(positions, n, early),
        samples={name: _samples(getattr(positions, name), wrong, seed) for name in SIGNALS},
        examples=_examples(positions, tokenizer),
    )


def _gain(quality: Mapping[str, Array], seed: int) -> Estimate:
    """Accuracy of the collaboration less that of the better model alone, which is found anew in every draw."""
    if "collaboration" not in quality:
        return _UNKNOWN
    columns = np.stack(
        [quality["collaboration"], *(right for name, right in quality.items() if name != "collaboration")]
    )
    return bootstrap(
        lambda m: m[:, :1] - m[:, 1:].max(axis=1, keepdims=True), columns.T, seed=seed, resamples=_RESAMPLES
    )[0]


def _places(positions: Positions) -> Array:
    bins = PLACES // PER_BIN
    at = positions.place // PER_BIN
    inside = at < bins
    count = np.bincount(at[inside], minlength=bins)
    differing = np.bincount(at[inside], positions.mismatch[inside], minlength=bins)
    return np.where(count >= 10, differing / np.maximum(count, 1), np.nan)


def _quartiles(values: Array, wrong: npt.NDArray[np.bool_]) -> tuple[list[float], list[float]]:
    match, mismatch = (
        np.quantile(part, QUARTILES).tolist() if len(part) else [] for part in (values[~wrong], values[wrong])
    )
    return match, mismatch


def _per_prompt(positions: Positions, n: int, early: npt.NDArray[np.bool_]) -> Array:
    rates = []
    for among in (early, ~early):
        count = np.bincount(positions.prompt[among], minlength=n)
        differing = np.bincount(positions.prompt[among], positions.mismatch[among], minlength=n)
        rates.append(np.where(count > 0, differing / np.maximum(count, 1), np.nan))
    both = np.stack(rates, axis=1)
    return np.asarray(both[np.isfinite(both).all(axis=1)])


def _samples(values: Array, wrong: npt.NDArray[np.bool_], seed: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    match, mismatch = (rng.permutation(part)[:1000] for part in (values[~wrong], values[wrong]))
    return match, mismatch


def _examples(positions: Positions, tokenizer: Tokenizer) -> tuple[tuple[Piece, ...], ...]:
    """The beginnings of a few answers, mismatches apart: those with about as many as the others have."""
    share = np.bincount(positions.prompt, positions.mismatch) / np.maximum(np.bincount(positions.prompt), 1)
    usual = np.argsort(np.abs(share - positions.mismatch.mean()), kind="stable")[:_SHOWN]
    shown = []
    for number in usual.tolist():
        at = np.flatnonzero(positions.prompt == number)[:_SHOWN_TOKENS]
        shown.append(tuple(_pieces(positions.token[at].tolist(), positions.fast_choice[at].tolist(), tokenizer)))
    return tuple(shown)


def _pieces(tokens: Sequence[int], choices: Sequence[int], tokenizer: Tokenizer) -> list[Piece]:
    pieces: list[Piece] = []
    agreed = b""
    for token, choice in zip(tokens, choices, strict=True):
        if token == choice:
            agreed += tokenizer.piece(token)
            continue
        if agreed:
            pieces.append(Piece(agreed.decode(errors="replace")))
        pieces.append(Piece(*(tokenizer.piece(one).decode(errors="replace") for one in (token, choice))))
        agreed = b""
    return [*pieces, Piece(agreed.decode(errors="replace"))] if agreed else pieces
