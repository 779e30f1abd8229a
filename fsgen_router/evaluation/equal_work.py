"""Two ways of routing at equal slow work: what one of them reaches, and what the other one would for as much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .intervals import RESAMPLES, Estimate, bootstrap, flat
from .runs import Array, Run, require_paired


@dataclass(frozen=True, slots=True, kw_only=True)
class EqualWork:
    """A policy beside a sweep of token routing, over ``n`` prompts; every figure with its 95% interval by prompt.

    ``escalated`` is the share of prompts for which the slow model wrote anything, ``slow_forwards`` and
    ``slow_positions`` are its sequential steps and the tokens that it read, each per token that it writes alone.
    ``routed`` is the accuracy of the sweep at equal ``slow_forwards``, linear between its points and both models
    alone, and ``gain`` the policy's less that.
    """

    policy: str
    n: int
    accuracy: Estimate
    escalated: Estimate
    slow_forwards: Estimate
    slow_positions: Estimate
    routed: Estimate
    gain: Estimate

    def to_dict(self) -> dict[str, Any]:
        """Flat, for JSON: every figure with ``<name>_interval`` beside it."""
        return flat(self)


def at_equal_work(
    run: Run, fast: Run, slow: Run, sweep: Sequence[Run], *, seed: int = 0, resamples: int = RESAMPLES
) -> EqualWork:
    """``run`` beside the runs of ``sweep``, all over the same prompts as both models alone.

    In every bootstrap draw the sweep's whole curve is drawn anew, and read at the drawn work of ``run``.
    """
    require_paired(run, fast, slow, *sweep)
    curve = [fast, *sweep, slow]
    columns = [run.column("right"), run.column("escalations") > 0, run.column("slow_positions"), slow.column("tokens")]
    columns += [one.column(name) for name in ("right", "slow_forwards") for one in (run, *curve)]
    size = len(curve)

    def statistic(m: Array) -> Array:
        right, escalated, positions, tokens = m[:, :4].T
        rights, works = m[:, 5 : 5 + size], m[:, 5 + size :] / tokens[:, None]
        routed = np.array([_read_at(x[0], x[1:], y) for x, y in zip(works, rights, strict=True)])
        return np.stack([right, escalated, works[:, 0], positions / tokens, routed, right - routed], axis=1)

    found = bootstrap(statistic, np.stack(columns, axis=1), seed=seed, resamples=resamples)
    names = ("accuracy", "escalated", "slow_forwards", "slow_positions", "routed", "gain")
    return EqualWork(policy=run.policy, n=len(run), **dict(zip(names, found, strict=True)))


def _read_at(work: float, works: Array, rights: Array) -> float:
    """The height of a curve at ``work``; beyond its ends, that of the end."""
    order = np.argsort(works, kind="stable")
    return float(np.interp(work, works[order], rights[order]))
