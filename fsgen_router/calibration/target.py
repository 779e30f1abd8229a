"""What a threshold is chosen for, and whether the prompts are enough to certify it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import ConfigurationError, InvalidRequest
from ..policies.cards import percent
from ..policies.certify import Bound, fewest_prompts
from .prompts import Prompts

DEFAULT_REGRET = 0.05
BOUNDS: tuple[Bound, ...] = ("binomial", "betting")
"""Tests of a regret, which is 0 or 1 of a prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a threshold is chosen for; exactly one of the three.

    ``rate``: the escalation rate on the calibration prompts that it comes closest to from below.
    ``max_regret`` with ``confidence``: the least escalation whose expected regret is certified; without
    ``certain``, where none is, the least whose regret seen on the calibration prompts is no higher, which proves
    nothing. ``bound`` is its test: ``"binomial"`` on all calibration prompts, or ``"betting"``, which stops at the
    prompt that settles it and certifies less with as many. ``max_cost``: the most escalation whose measured seconds,
    against the slow model alone, stay within it.
    """

    rate: float | None = None
    max_regret: float | None = None
    confidence: float = 0.9
    max_cost: float | None = None
    certain: bool = True
    bound: Bound = "binomial"

    def __post_init__(self) -> None:
        given = [name for name in ("rate", "max_regret", "max_cost") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ConfigurationError(
                f"{len(given)} targets", hint="give exactly one of target_rate, max_regret and max_cost"
            )
        if self.rate is not None and not 0.0 < self.rate < 1.0:
            raise ConfigurationError(f"a target rate of {self.rate}", hint="between 0 and 1")
        if self.max_regret is not None and not 0.0 < self.max_regret < 1.0:
            raise ConfigurationError(f"a regret of at most {self.max_regret}", hint="between 0 and 1")
        if self.bound not in BOUNDS:
            raise ConfigurationError(f"unknown test {self.bound!r}", hint=f"available: {', '.join(BOUNDS)}")
        if not 0.0 < self.confidence < 1.0:
            raise ConfigurationError(f"a confidence of {self.confidence}", hint="between 0 and 1, like 0.9")
        if self.max_cost is not None and not self.max_cost > 0.0:
            raise ConfigurationError(f"a cost of at most {self.max_cost}", hint="a share of the slow model's, above 0")

    @property
    def nominal_rate(self) -> float:
        """What on-policy rounds run with before any threshold is chosen."""
        return 0.2 if self.rate is None else self.rate

    def __str__(self) -> str:
        if self.rate is not None:
            return f"escalation rate {percent(self.rate)}"
        if self.max_regret is not None:
            wanted = f"regret at most {percent(self.max_regret)} at confidence {percent(self.confidence)}"
            return f"the least escalation with {wanted}" + ("" if self.certain else ", certified if possible")
        return f"cost at most {self.max_cost:g} of the slow model alone"


def make_target(
    *,
    target_rate: float | None = None,
    max_regret: float | None = None,
    confidence: float = 0.9,
    max_cost: float | None = None,
    bound: Bound = "binomial",
) -> Target:
    """The one target that was given. Where none was: the least escalation whose regret is certified to be at most
    ``DEFAULT_REGRET``, or, where nothing can be certified, the least whose regret seen is no higher."""
    if target_rate is None and max_regret is None and max_cost is None:
        return Target(max_regret=DEFAULT_REGRET, confidence=confidence, certain=False, bound=bound)
    return Target(rate=target_rate, max_regret=max_regret, confidence=confidence, max_cost=max_cost, bound=bound)


def require_enough_prompts(prompts: Prompts, target: Target) -> None:
    """Raise :class:`InvalidRequest` where a certificate is asked for and no result at all could be certified."""
    if target.max_regret is None or not target.certain:
        return
    least, given = (
        fewest_prompts(target.max_regret, 1.0 - target.confidence, bound=target.bound),
        len(prompts.calibration),
    )
    if given < least:
        whole = math.ceil(least * len(prompts) / given)
        raise InvalidRequest(
            f"{given} calibration prompts certify nothing: {target} takes at least {least}, even if no answer is wrong",
            hint=f"give about {whole} prompts, of which {given / len(prompts):.0%} are for calibration",
        )
