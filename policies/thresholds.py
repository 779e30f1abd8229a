"""The threshold of a policy that has one, wherever it sits inside others: to be shown, and moved."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from fsgen_router.contracts.policy import Policy
from fsgen_router.errors import ConfigurationError

from .basic import AtPrompt, Capped, SignalName, Threshold
from .cards import CurvePoint
from .extents import Extended
from .learned import Learned

Unit: TypeAlias = Literal["nats", "probability", "score"]
_RANGES: dict[SignalName, tuple[Unit, float]] = {
    "entropy": ("nats", 4.0),
    "varentropy": ("nats", 6.0),
    "max_prob": ("probability", 1.0),
    "margin": ("probability", 1.0),
    "delta": ("probability", 0.5),
}
"""Of each signal its unit (varentropy: nats squared) and a value that few positions are above."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThresholdOf:
    """A policy's threshold: ``value`` of what ``compared`` names, and on which side of it the slow model is asked.

    ``low`` and ``high`` are about where it makes a difference. ``curve`` is what other thresholds did on the
    calibration prompts, and ``certified`` the one that a certificate is of; both only where the policy was calibrated.
    """

    value: float
    compared: str
    unit: Unit
    asks: Literal["above", "below"]
    low: float
    high: float
    curve: tuple[CurvePoint, ...] = ()
    certified: float | None = None


def threshold_of(policy: Policy) -> ThresholdOf | None:
    """The threshold of a policy, or of the one inside it; None where it has none, or moves it itself."""
    match policy:
        case Capped() | Extended() | AtPrompt():
            return threshold_of(policy.inner)
        case Threshold():
            unit, high = _RANGES[policy.signal]
            return ThresholdOf(
                value=policy.value,
                compared=policy.signal,
                unit=unit,
                asks="above" if policy.above else "below",
                low=0.0,
                high=max(high, policy.value),
            )
        case Learned() if policy.hold is None:
            return ThresholdOf(
                value=policy.threshold,
                compared=f"learned:{policy.scorer.name}",
                unit="score",
                asks="above",
                low=0.0,
                high=1.0,
                curve=policy.curve,
                certified=None if policy.certificate is None else policy.certificate.threshold,
            )
    return None


def at_threshold(policy: Policy, value: float) -> Policy:
    """The same policy with another threshold. A certificate is of the old one, and suspended with another.

    Raises :class:`~fsgen_router.ConfigurationError` for a value that is no number, and for policies without a threshold
    (see :func:`threshold_of`).
    """
    if not math.isfinite(value):
        raise ConfigurationError(f"threshold={value} is no number", hint="a finite one")
    match policy:
        case Capped() | Extended() | AtPrompt():
            return replace(policy, inner=at_threshold(policy.inner, value))
        case Threshold():
            return replace(policy, value=value)
        case Learned() if policy.hold is None:
            return replace(policy, threshold=value)
    raise ConfigurationError(
        f"threshold={value:g}: the policy {policy.name} has none to set",
        hint="learned ones have, and signals against a number, like entropy>0.8",
    )
