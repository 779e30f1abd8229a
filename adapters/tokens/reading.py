"""Rows made of the best tokens of a row, as far as those tell what is asked."""

from __future__ import annotations

import math

import numpy as np

from fsgen_router.errors import BackendError
from fsgen_router.rows.acceptance import Check, judge
from fsgen_router.rows.reading import GREEDY, UNREADABLE, Alignment, Floats, Read, Row, dense, draw, softmax, warped

from .dialects import NO_LOGPROB, Best

_SPARE = 4


class Unknown(Exception):
    """The log-probability of a token that is not known."""

    def __init__(self, token: int) -> None:
        super().__init__(token)
        self.token = token


class TooFew(Exception):
    """Of the best tokens that are known too few may be written: none, or fewer than are drawn from."""


def best_needed(read: Read) -> int:
    """How many of a row's best tokens tell what a read asks: one where only its choice and the next token count.

    A few more where some of them may be none that both models have.
    """
    return max(read.top_k, read.warp.top_k, 1 if read.alignment is None else _SPARE)


def reduce_best(best: Best, read: Read, n_vocab: int) -> Row:
    """Read what is known of a row, as ``reduce_row`` reads a whole one.

    Its logits are taken to be the log-probabilities, so the log-partition is 0; the entropy is NaN. Raises
    :class:`Unknown` for a token that has to be asked for, :class:`TooFew` where more have to be, and
    :class:`BackendError` for what no server tells.
    """
    if read.full or read.hidden or read.mask is not None:
        raise BackendError(
            "a server tells the best tokens of a row: no whole row, no hidden state, none that is masked"
        )
    if not best.logprobs[0] > NO_LOGPROB:
        return UNREADABLE
    best = _aligned(best, read.alignment, n_vocab)
    argmax, peak = best.ids[0], best.logprobs[0]
    token = argmax if read.warp.greedy else _draw(best, read, read.uniform)
    accepted = None
    if read.check is not None:
        accepted, token = _check(best, read.check, read, token)
    return Row(
        token=token,
        logprob=_logprob(best, token),
        argmax=argmax,
        argmax_logprob=peak,
        log_partition=0.0,
        top_ids=best.ids[: read.top_k],
        top_logprobs=best.logprobs[: read.top_k],
        id_logprobs=tuple([_logprob(best, token) for token in read.ids]),
        accepted=accepted,
    )


def _logprob(best: Best, token: int) -> float:
    known = best.logprob(token)
    if known is None:
        raise Unknown(token)
    return known


def _aligned(best: Best, alignment: Alignment | None, n_vocab: int) -> Best:
    """The row without the tokens that are not written, whose probability goes to all others."""
    forbidden: set[int] = set()
    ends: set[int] = set()
    if alignment is not None:
        n_vocab = min(n_vocab, alignment.n_vocab)
        forbidden, ends = set(alignment.forbidden.tolist()), set(alignment.ends.tolist())
    told = {**dict(zip(best.ids, best.logprobs, strict=True)), **best.beside}
    if not ends.isdisjoint(told) and alignment is not None:
        told[alignment.end] = float(np.logaddexp.reduce([told[token] for token in ends if token in told]))
    kept = {token: logprob for token, logprob in told.items() if token < n_vocab and token not in forbidden}
    if len(kept) == len(told) and ends.isdisjoint(told):
        return best
    rest = 1.0 - sum(math.exp(told[token]) for token in told if token not in kept)
    count = sum(logprob >= best.logprobs[-1] for logprob in kept.values())  # no token that is not known is likelier
    if not count or rest <= 0.0:
        raise TooFew
    return Best.of([(token, logprob - math.log(rest)) for token, logprob in kept.items()], count)


def _draw(best: Best, read: Read, uniform: float) -> int:
    """A token from the ``top_k`` best. More of them would have to be known for another way to draw."""
    if not read.warp.top_k:
        raise BackendError("a server tells the best tokens of a row, and to draw needs it whole", hint="set top_k")
    if read.warp.top_k > len(best.ids):
        raise TooFew
    at, probabilities = warped(np.array(best.logprobs), read.warp)
    return best.ids[draw(at, probabilities, uniform)]


def _check(best: Best, check: Check, read: Read, drawn: int) -> tuple[bool, int]:
    greedy = read.warp.greedy
    if check.rule.needs_fast_row and not greedy:
        raise BackendError(f"the rule {check.rule} compares whole rows, and a server tells none", hint="temperature=0")
    draft = best.logprob(check.token)
    if draft is None and check.rule.name != "exact":
        raise Unknown(check.token)
    return judge(
        check,
        drawn=drawn,
        draft_logprob=-math.inf if draft is None else draft,
        best_logprob=best.logprobs[0],
        redraw=lambda uniform: drawn if greedy else _draw(best, read, uniform),
        distributions=lambda fast: _distributions(best, fast),
    )


def _distributions(best: Best, fast: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Both models' at temperature 0. Of the slow one's the best token and the draft have to be right, and are."""
    known = np.zeros(len(fast))
    known[list(best.ids)] = np.exp(best.logprobs)
    for token, logprob in best.beside.items():
        known[token] = math.exp(logprob)
    chosen = np.zeros(len(fast))
    chosen[best.ids[0]] = 1.0
    return known, softmax(fast), chosen, dense(fast, GREEDY)
