"""What goes unseen: disagreements at tokens that nobody asked the slow model about, estimated from audits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeAlias

import numpy as np

from fsgen_router.errors import ConfigurationError
from fsgen_router.records import Token

from .certify import require_scipy_stats

Interval: TypeAlias = tuple[float, float]

FEWEST = 5
"""Audited requests with a missed disagreement from which on a normal interval is given."""


@dataclass(frozen=True, slots=True)
class Audit:
    """One audited answer: tokens that the fast model wrote and the slow one was not asked about while
    answering, and those of them that it would have chosen otherwise."""

    unseen: int
    missed: int


def audit_of(tokens: Iterable[Token]) -> Audit | None:
    """An answer's audit; None where it was not audited, so that some choices are unknown."""
    unseen = missed = 0
    for token in tokens:
        if token.source == "slow" or token.verified:
            continue
        if token.slow_choice is None or token.fast_choice is None:
            return None
        unseen += 1
        missed += token.slow_choice != token.fast_choice
    return Audit(unseen, missed)


@dataclass(frozen=True, slots=True)
class MissedEstimate:
    """Over all requests of a Router, audited or not.

    ``missed`` disagreements, their ``missed_share`` of the unseen tokens, and
    ``affected_requests``, which have at least one. Normal intervals are None with fewer than ``FEWEST``
    affected requests among the audited; that of ``affected_requests`` is exact.
    """

    missed: float
    missed_interval: Interval | None
    missed_share: float | None
    missed_share_interval: Interval | None
    affected_requests: float
    affected_requests_interval: Interval


def estimate_missed(
    audits: Sequence[Audit], *, audit_rate: float, requests: int, confidence: float = 0.95
) -> MissedEstimate:
    """Estimate from the audits of requests that were each audited with probability ``audit_rate``.

    Horvitz and Thompson (1952): a request that is seen with probability a stands for 1 / a requests.
    The variance is that of independent draws (Poisson sampling), that of the share linearised.
    ``requests`` is how many there were in all. Needs scipy (extra ``eval``).
    """
    if not 0.0 < audit_rate <= 1.0 or not 0.0 < confidence < 1.0:
        raise ConfigurationError(
            f"audit_rate={audit_rate}, confidence={confidence}", hint="both are above 0, at most 1"
        )
    if len(audits) > requests:
        raise ConfigurationError(f"{len(audits)} audits of {requests} requests")
    not_audited = 1.0 - audit_rate
    total, size = sum(audit.missed for audit in audits), sum(audit.unseen for audit in audits)
    affected = sum(audit.missed > 0 for audit in audits)
    missed = total / audit_rate
    spread = math.sqrt(not_audited * sum(audit.missed**2 for audit in audits)) / audit_rate
    share = total / size if size else None
    share_spread = 0.0
    if share is not None:
        share_spread = math.sqrt(not_audited * sum((a.missed - share * a.unseen) ** 2 for a in audits)) / size
    believable = affected >= FEWEST or audit_rate == 1.0
    return MissedEstimate(
        missed=missed,
        missed_interval=_normal(missed, spread, confidence) if believable else None,
        missed_share=share,
        missed_share_interval=None if share is None or not believable else _normal(share, share_spread, confidence),
        affected_requests=affected / audit_rate,
        affected_requests_interval=_affected(affected, audit_rate, len(audits), requests, confidence),
    )


def _normal(value: float, spread: float, confidence: float) -> Interval:
    reach = NormalDist().inv_cdf(0.5 + confidence / 2) * spread
    return max(value - reach, 0.0), value + reach


def _affected(seen: int, audit_rate: float, audits: int, requests: int, confidence: float) -> Interval:
    """Numbers K of affected requests that ``seen`` of them, drawn each with ``audit_rate``, do not speak against.

    Inverts both tails of Binomial(K, audit_rate); an affected request that was not seen was not audited.
    """
    binom, tail = require_scipy_stats().binom, (1.0 - confidence) / 2
    possible = np.arange(seen, seen + requests - audits + 1)
    likely = (binom.sf(seen - 1, possible, audit_rate) >= tail) & (binom.cdf(seen, possible, audit_rate) >= tail)
    # With nearly all requests audited against the odds, what is possible is all that is left.
    kept = possible[likely] if likely.any() else possible
    return float(kept.min()), float(kept.max())
