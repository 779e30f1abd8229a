"""What a calibration will cost, before it runs."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from ..evaluation import SLOW_ONLY, Item, ask
from ..policies.certify import fewest_prompts
from ..router import Router
from .candidates import CANDIDATE_RATES
from .options import CalibrationOptions, make_options
from .prompts import Prompts
from .target import Target

SAMPLE = 3
"""Answers that the estimate is made from."""

_CURVES = 7  # learned, the four signals, masked entropy, random
_ORACLES = 4


@dataclass(frozen=True, slots=True)
class StageCost:
    """One stage: tokens that the slow model writes and reads, and seconds, if nothing is shared or found
    finished."""

    stage: str
    slow_tokens: int
    slow_positions: int
    seconds: float


def estimate_cost(
    router: Router, prompts: Prompts, target: Target, options: CalibrationOptions | None = None
) -> list[StageCost]:
    """An upper estimate by stage, from timing both models on the first few fit prompts."""
    options = options or make_options()
    sample = prompts.fit[:SAMPLE]
    slow_seconds, fast_seconds = (_timed(router, sample, policy, options) for policy in (SLOW_ONLY, "never"))
    answers = [ask(router.with_policy(SLOW_ONLY), item, **options.request) for item in sample]
    tokens = sum(answer.usage.tokens for answer in answers) / len(sample)
    length = tokens + sum(answer.usage.prompt_tokens for answer in answers) / len(sample)
    step = slow_seconds / max(tokens, 1)

    def answered(stage: str, count: int, rate: float) -> StageCost:
        """Routed answers; an escalation is one slow step, and the slow model reads everything."""
        steps = rate * tokens
        return StageCost(stage, round(count * steps), round(count * length), count * (fast_seconds + steps * step))

    fit, calibration, report = (len(items) for _, items in prompts)
    candidates = sorted(CANDIDATE_RATES, reverse=True)
    if target.max_regret is None:
        candidates = candidates[: 1 + math.ceil(math.log2(len(candidates)))]  # a bisection
    elif target.certain and calibration < fewest_prompts(target.max_regret, 1.0 - target.confidence):
        candidates = []
    traced = fit * (1 + options.rounds) + calibration + report
    stages = [
        StageCost(
            "both models alone",
            round(len(prompts) * tokens),
            round(len(prompts) * length),
            len(prompts) * (slow_seconds + fast_seconds),
        ),
        # A prefill reads many tokens in the time of a few steps; the answers' own time bounds it from above.
        StageCost("traces", 0, round(traced * length), traced * (slow_seconds + fast_seconds) / 2),
        answered("on-policy rounds", fit * options.rounds, target.nominal_rate),
    ]
    if options.label == "divergence":
        rollouts = round(1.5 * options.rollouts)
        stages.append(
            StageCost("rollouts", round(rollouts * tokens / 2), round(rollouts * length), rollouts * slow_seconds / 2)
        )
    stages.append(answered("candidates", calibration * len(candidates), sum(candidates) / max(len(candidates), 1)))
    if options.curves:
        runs = report * (_CURVES + len(options.compare)) * len(options.curve_rates)
        mean_rate = sum(options.curve_rates) / len(options.curve_rates)
        stages.append(answered("curves", runs, mean_rate))
        stages.append(answered("oracle", report * _ORACLES, 1.0))
    return stages


def _timed(router: Router, items: Sequence[Item], policy: str, options: CalibrationOptions) -> float:
    """Measured seconds of an answer."""
    routed = router.with_policy(policy)
    began = time.perf_counter()
    for item in items:
        ask(routed, item, **options.request)
    return (time.perf_counter() - began) / len(items)
