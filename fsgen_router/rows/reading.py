"""What is read of a row of logits, reduced where the logits live.

A row has one entry per token of the vocabulary (up to 152,000 and more). No such row leaves an
adapter unless asked for: :func:`reduce_row` turns it into a :class:`Row` of a few numbers. This is
the numpy reduction; adapters on other devices give the same numbers to 1e-5.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import ConfigurationError
from .acceptance import Check, judge

Floats: TypeAlias = npt.NDArray[np.floating]
Ints: TypeAlias = npt.NDArray[np.integer]

FORBIDDEN = np.float32(-1e9)
"""Logit of a token that a mask forbids. Finite, so that 0 * log 0 stays 0 in the entropy."""


@dataclass(frozen=True, slots=True)
class Mask:
    """Changes logits before anything is read of them.

    ``bias`` is added at ``ids``; where ``allowed`` (bool, shape (n_vocab,)) is False the token is
    forbidden.
    """

    ids: Ints | None = None
    bias: Floats | None = None
    allowed: npt.NDArray[np.bool_] | None = None

    def forced(self) -> int | None:
        """The only allowed token, if there is just one.

        Raises :class:`ConfigurationError` where none is.
        """
        if self.allowed is None:
            return None
        allowed = np.flatnonzero(self.allowed)
        if not len(allowed):
            raise ConfigurationError("a constraint allows no token", hint="allow an end of generation at least")
        return int(allowed[0]) if len(allowed) == 1 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Warp:
    """How a distribution is changed before a token is drawn from it.

    Applied in the order of transformers: temperature, top-k, top-p (Holtzman et al.,
    arXiv 1904.09751), min-p (arXiv 2407.01082). Temperature 0 is greedy.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0


GREEDY = Warp()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Alignment:
    """Makes a model's row one that both models of a pair can write, where their vocabularies differ by some ids.

    Only the first ``n_vocab`` ids are read; where that is all, it costs nothing. ``forbidden`` (shape (n,)) are ids
    below that one model lacks. The probability of ``ends`` (shape (n,)) goes to the token ``end``: ends of a
    generation that the other model lacks, so that an end is one token to both.
    """

    n_vocab: int
    forbidden: Ints
    ends: Ints
    end: int

    @property
    def only_cuts(self) -> bool:
        return not (len(self.forbidden) or len(self.ends))


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """What to read of one row.

    ``signals`` asks for entropy, varentropy and the ``top_k`` best; ``ids`` for the log-probabilities
    of given tokens; ``uniform`` in [0, 1) decides the draw when ``warp`` is not greedy; ``check`` has a
    drafted token judged; ``full`` for a copy of the masked logits; ``hidden`` for the hidden state that
    the row was made of, where the model's capabilities say that it can be read. With an ``alignment`` all of
    this, the mask included, is about the row that it makes.
    """

    signals: bool = False
    top_k: int = 0
    ids: tuple[int, ...] = ()
    warp: Warp = GREEDY
    uniform: float = 0.0
    mask: Mask | None = None
    check: Check | None = None
    full: bool = False
    hidden: bool = False
    alignment: Alignment | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """What was read of one row. Log-probabilities are natural, after masks, before temperature.

    ``token`` is what was drawn (the argmax when greedy), ``logprob`` its log-probability; where a draft
    was checked, ``accepted`` tells whether it stands, and ``token`` is what stands;
    ``top_ids`` and ``top_logprobs`` are sorted, best first, ties by lower id; entropy and varentropy
    (variance of -log p, in nats squared) are NaN unless signals were read. ``hidden`` is the output of the
    last layer after the final norm, which the LM head reads: float32, shape (n_embd,). Masks leave it as it is.
    """

    token: int
    logprob: float
    argmax: int
    argmax_logprob: float
    log_partition: float
    entropy: float = math.nan
    varentropy: float = math.nan
    top_ids: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()
    id_logprobs: tuple[float, ...] = ()
    accepted: bool | None = None
    logits: Floats | None = None
    hidden: npt.NDArray[np.float32] | None = None


UNREADABLE = Row(token=0, logprob=math.nan, argmax=0, argmax_logprob=math.nan, log_partition=math.nan)
"""Of a row with a NaN or +inf in it, or with nothing but -inf. It fails its own request, and no other of its batch."""

# A chunk of a row and what is made of it fit the second cache together. Dot products are taken by line: BLAS
# keeps to the calling thread below 10,000 elements, as the model's own threads need.
_LINE = 4096
_CHUNK = 8 * _LINE

_SHORT = 1024  # values that are sorted as fast as looked through


class Scratch:
    """What :func:`reduce_row` keeps between rows: buffers, so that a row costs no allocation, and a guess."""

    def __init__(self) -> None:
        self.centred = np.empty(_CHUNK, np.float32)
        self.weights = np.empty(_CHUNK, np.float32)
        self._bound = 0.0

    def sums(self, size: int, *, signals: bool) -> tuple[float, float, float]:
        """Sum of e = exp(c) over the first ``size`` values c of ``centred``, and with ``signals`` of ec and ecc.

        The second is NaN where a value is -inf.
        """
        weights = np.exp(self.centred[:size], out=self.weights[:size])
        total = float(np.add.reduce(weights))
        if not signals:
            return total, math.nan, math.nan
        shape = -(-size // _LINE), min(size, _LINE)
        padded = shape[0] * shape[1]
        self.centred[size:padded] = self.weights[size:padded] = 0.0
        centred, weights = self.centred[:padded].reshape(shape), self.weights[:padded].reshape(shape)
        with np.errstate(invalid="ignore"):
            first = float(np.add.reduce(np.vecdot(weights, centred)))
            np.multiply(weights, centred, out=weights)
            return total, first, float(np.add.reduce(np.vecdot(weights, centred)))

    def best_of(self, values: Floats, k: int) -> tuple[list[int], list[float]]:
        """Ids (:func:`top_ids_of`) and values of the ``k`` best; cheaper where the last rows foretell the k-th."""
        if k == 1 or len(values) <= _SHORT:
            best = top_ids_of(values, k)
            return best.tolist(), values[best].tolist()
        ids = (values >= np.float32(self._bound)).nonzero()[0]
        foretold = k <= len(ids) <= _SHORT
        best = _sorted(values, ids, k) if foretold else top_ids_of(values, k)
        found = values[best].tolist()
        peak, last = found[0], found[-1]
        if FORBIDDEN < last <= peak < math.inf:
            # Half as far again below the best, as the next row may lie lower.
            bound = last - (peak - last) / 2
            self._bound = self._bound + (bound - self._bound) / 8 if foretold else bound
        return best.tolist(), found


def reduce_row(logits: Floats, read: Read, scratch: Scratch, hidden: Floats | None = None) -> Row:
    """Read one row of shape (n_vocab,), and copy its hidden state, shape (n_embd,), where that was wanted.

    Neither is changed.
    """
    given = logits
    if read.alignment is not None or read.mask is not None:
        logits = _prepared(logits, read.alignment, read.mask)
    best, values = scratch.best_of(logits, max(read.top_k, 1))
    argmax, peak = best[0], values[0]
    if not math.isfinite(peak):
        return UNREADABLE
    log_partition, entropy, varentropy = _moments(logits, peak, scratch, signals=read.signals)
    if math.isnan(log_partition):
        return UNREADABLE
    token = argmax if read.warp.greedy else draw(*warped(logits, read.warp), read.uniform)
    accepted = None
    if read.check is not None:
        accepted, token = check_row(logits, read.check, read.warp, token, argmax, log_partition)
    return Row(
        token=token,
        logprob=float(logits[token]) - log_partition,
        argmax=argmax,
        argmax_logprob=peak - log_partition,
        log_partition=log_partition,
        entropy=entropy,
        varentropy=varentropy,
        top_ids=tuple(best[: read.top_k]),
        top_logprobs=tuple([value - log_partition for value in values[: read.top_k]]),
        id_logprobs=tuple([float(logits[i]) - log_partition for i in read.ids]),
        accepted=accepted,
        logits=_own(logits, given) if read.full else None,
        hidden=np.array(hidden, np.float32) if read.hidden and hidden is not None else None,
    )


def _own(logits: Floats, given: Floats) -> Floats:
    """A row that may be kept: a copy, unless preparing it made one."""
    return np.array(logits, np.float32) if np.may_share_memory(logits, given) else logits


def _moments(
    logits: Floats, peak: float, scratch: Scratch, *, signals: bool, floor: float | None = None
) -> tuple[float, float, float]:
    """Log-partition, entropy and varentropy (NaN without ``signals``).

    Single precision loses least in sums of values about their mean. The first line foretells that, unless what it
    says cannot be: no mean lies farther below the largest of n values than log n.
    """
    centre, total, first, second = peak, 0.0, 0.0, 0.0
    for start, stop in _chunks(len(logits)):
        size = stop - start
        centred = np.subtract(logits[start:stop], np.float32(centre), out=scratch.centred[:size])
        if floor is not None:
            np.maximum(centred, np.float32(floor), out=centred)
        e, ec, ecc = scratch.sums(size, signals=signals)
        total, first, second = total + e, first + ec, second + ecc
        if start == 0 and total > 0.0 and first >= -math.log(len(logits)) * total:
            centre = float(np.float32(peak + first / total))
            up = peak - centre
            scale = math.exp(up)
            second = scale * (second + up * (2 * first + up * total))
            first = scale * (first + up * total)
            total *= scale
    if signals and math.isnan(first) and floor is None:
        # -inf (a backend's own mask) times a weight of 0. Rare, and clipping every row would cost as much again.
        return _moments(logits, peak, scratch, signals=True, floor=float(FORBIDDEN))
    log_total, mean = math.log(total), first / total
    return centre + log_total, max(log_total - mean, 0.0), max(second / total - mean * mean, 0.0)


@functools.lru_cache(maxsize=32)
def _chunks(length: int) -> list[tuple[int, int]]:
    """A line, then chunks of a row."""
    return list(itertools.pairwise([0, *range(min(_LINE, length), length, _CHUNK), length]))


def _prepared(logits: Floats, alignment: Alignment | None, mask: Mask | None) -> Floats:
    """The row that is read: aligned, then masked. A copy, unless all that changes is where it ends."""
    if alignment is None:
        row = np.array(logits, np.float32)
    elif mask is None and alignment.only_cuts:
        return logits[: alignment.n_vocab]
    else:
        row = np.array(logits[: alignment.n_vocab], np.float32)
        if len(alignment.ends):
            row[alignment.end] = np.logaddexp.reduce(logits[alignment.ends])
    if mask is not None:
        _apply(mask, row)
    if alignment is not None:
        row[alignment.forbidden] = FORBIDDEN  # behind the mask, whose bias could lift them
    return row


def _apply(mask: Mask, logits: Floats) -> None:
    if mask.ids is not None and mask.bias is not None:
        logits[mask.ids] += mask.bias
    if mask.allowed is not None:
        if mask.allowed.shape != logits.shape:
            raise ConfigurationError(
                f"a constraint's allowed has shape {mask.allowed.shape}, the vocabulary {logits.shape}"
            )
        logits[~mask.allowed] = FORBIDDEN


def top_ids_of(values: Floats, k: int) -> Ints:
    """Ids of the ``k`` largest values, best first, ties by lower id.

    ``argpartition`` over a whole vocabulary costs as much as everything else together. The k-th
    largest of the maxima of blocks is a lower bound of the k-th largest value, so one vectorised
    maximum leaves a handful of blocks to look into.
    """
    k = min(k, len(values))
    if k == 1:
        return np.array([values.argmax()])
    starts, within = _blocks(len(values))
    if len(values) <= _SHORT or len(starts) <= k:
        ids = np.arange(len(values))
    else:
        maxima = np.maximum.reduceat(values, starts)
        bound = np.partition(maxima, -k)[-k]
        ids = np.add.outer(starts[maxima >= bound], within).ravel()
        # In ascending order, as ties want it; the last block may be cut short.
        ids = ids[: np.searchsorted(ids, len(values))]
        ids = ids[values[ids] >= bound]
    return _sorted(values, ids, k)


def _sorted(values: Floats, ids: Ints, k: int) -> Ints:
    """The ``k`` best of ascending ``ids``, best first, ties by lower id."""
    found = values[ids]
    return ids[(-found).argsort(kind="stable")[:k]]


@functools.lru_cache(maxsize=32)
def _blocks(length: int) -> tuple[Ints, Ints]:
    """Where the blocks start in which so many values are looked at, and the places within one."""
    size = max(length // 256, 8)
    return np.arange(0, length, size), np.arange(size)


def warped(logits: Floats, warp: Warp) -> tuple[Ints, Floats]:
    """The distribution that is sampled from: ids (best first) and probabilities that sum to 1."""
    scaled = np.asarray(logits, np.float64)
    # Centred first, so that a temperature next to 0 sends all but the best to -inf and not all to inf.
    with np.errstate(over="ignore"):
        scaled = (scaled - scaled.max()) / warp.temperature
    ids = top_ids_of(scaled, warp.top_k) if warp.top_k else np.argsort(-scaled, kind="stable")
    probabilities = np.exp(scaled[ids] - scaled[ids[0]])
    probabilities /= probabilities.sum()
    if warp.top_p < 1.0:
        before = np.cumsum(probabilities) - probabilities
        keep = before < warp.top_p
        ids, probabilities = ids[keep], probabilities[keep]
    if warp.min_p > 0.0:
        keep = probabilities >= warp.min_p * probabilities[0]
        ids, probabilities = ids[keep], probabilities[keep]
    return ids, probabilities / probabilities.sum()


def draw(ids: Ints, probabilities: Floats, uniform: float) -> int:
    """Inverse-CDF sampling with one uniform number in [0, 1)."""
    # Against the sum as it came out: rounded below 1, it would leave room for a token of probability 0.
    cumulative = np.cumsum(probabilities)
    at = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    return int(ids[min(at, len(ids) - 1)])


def choose_token(logits: Floats, warp: Warp, uniform: float) -> tuple[int, float]:
    """A token from logits of shape (n_vocab,), as :func:`reduce_row` takes it, and its log-probability.

    Raises :class:`ConfigurationError` where they are no distribution.
    """
    argmax = int(logits.argmax())
    peak = float(logits[argmax])
    if not math.isfinite(peak):
        raise ConfigurationError("a method made logits that are no distribution", hint="NaN, infinite, or all -inf")
    token = argmax if warp.greedy else draw(*warped(logits, warp), uniform)
    weights = np.subtract(logits, logits.dtype.type(peak))
    total = float(np.exp(weights, out=weights).sum(dtype=np.float64))
    return token, float(logits[token]) - peak - math.log(total)


def check_row(
    logits: Floats, check: Check, warp: Warp, drawn: int, argmax: int, log_partition: float
) -> tuple[bool, int]:
    """Judge a draft by a masked row: whether it stands, and the token that stands."""
    return judge(
        check,
        drawn=drawn,
        draft_logprob=float(logits[check.token]) - log_partition,
        best_logprob=float(logits[argmax]) - log_partition,
        redraw=lambda uniform: argmax if warp.greedy else draw(*warped(logits, warp), uniform),
        distributions=lambda fast: (softmax(logits), softmax(fast), dense(logits, warp), dense(fast, warp)),
    )


def softmax(logits: Floats) -> Floats:
    """Probabilities, float64 of shape (n_vocab,)."""
    weights = np.exp(np.asarray(logits, np.float64) - float(logits.max()))
    return np.asarray(weights / weights.sum())


def dense(logits: Floats, warp: Warp) -> Floats:
    """The distribution that is sampled from over the whole vocabulary; greedy is one-hot."""
    probabilities = np.zeros(len(logits))
    if warp.greedy:
        probabilities[int(logits.argmax())] = 1.0
    else:
        ids, values = warped(logits, warp)
        probabilities[ids] = values
    return probabilities


def hashed_uniform(seed: int, request: str, position: int, purpose: str) -> float:
    """A number in [0, 1) that depends on nothing but its arguments, so any driver draws the same."""
    digest = hashlib.blake2b(f"{seed}/{request}/{position}/{purpose}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53
