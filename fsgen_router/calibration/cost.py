"""What a calibration will cost, before it runs: what is expected where runs share rows, and the most."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

from ..evaluation import SLOW_ONLY, ask
from ..generation import Generation
from ..policies.certify import fewest_prompts
from ..records import Role
from ..router import Router
from ..rows.reading import Row
from .bench import require_feasible
from .candidates import CANDIDATE_RATES
from .curves import TIMED
from .options import CalibrationOptions, make_options
from .prompts import Prompts
from .target import Target
from .traces import local_slow, read_both

SAMPLE = 3
"""Answers that the estimate is made from."""
ASSUMED_AUROC = 0.9
"""How well the score tells where the models differ: what the expected cost rests on, beside how often they do."""

_CURVES = 7  # learned, the four signals, masked entropy, random
_ORACLES = (1.0, 0.2, 0.1, 0.05)
"""All of them ask everywhere; what they write is about what escalating so much writes."""


@dataclass(frozen=True, slots=True)
class StageCost:
    """One stage. ``slow_tokens`` and ``slow_positions`` (tokens that the slow model writes and reads) and ``seconds``
    are the most that it can come to: if nothing is shared. ``expected_positions`` and ``expected_seconds`` are what is
    left where the rows are known of all text that any run had before; nothing is taken as found finished."""

    stage: str
    slow_tokens: int
    slow_positions: int
    seconds: float
    expected_positions: int
    expected_seconds: float


@dataclass(frozen=True, slots=True)
class _Sample:
    """Means over a few answers: tokens, seconds of an answer and of reading one whole (with both models, and with the
    fast one), and the share of tokens at which the two models differ."""

    prompt: float
    tokens: float
    fast_seconds: float
    slow_seconds: float
    read_seconds: float
    fast_read: float
    differ: float

    @property
    def length(self) -> float:
        return self.prompt + self.tokens

    def new(self, rate: float, *, known: float | None) -> tuple[float, float]:
        """The probability that an answer at an escalation ``rate`` is not that at the rate ``known`` (None: the slow
        model's own), and the tokens behind where it departs: each difference that goes unescalated may begin another
        text."""
        missed = _missed(rate) - (0.0 if known is None else _missed(known))
        differences = max(missed, 0.0) * self.differ * self.tokens
        if differences < 1e-9:
            return 0.0, 0.0
        departs = 1.0 - math.exp(-differences)
        return departs, self.tokens * (1.0 - departs / differences)


def _missed(rate: float) -> float:
    """The share of differences that escalating ``rate`` of the tokens leaves: both scores normal, :data:`ASSUMED_AUROC`
    apart."""
    normal = NormalDist()
    apart = math.sqrt(2.0) * normal.inv_cdf(ASSUMED_AUROC)
    return 1.0 - normal.cdf(normal.inv_cdf(min(max(rate, 1e-6), 1.0 - 1e-6)) + apart)


def estimate_cost(
    router: Router, prompts: Prompts, target: Target, options: CalibrationOptions | None = None
) -> list[StageCost]:
    """Each stage's cost, from timing both models on the first few fit prompts, one at a time.

    Raises what the calibration itself would refuse before it runs.
    """
    options = options or make_options()
    require_feasible(router, prompts, options)
    one = _measure(router, prompts, options)
    step = one.slow_seconds / max(one.tokens, 1)
    shared = options.row_memory > 0

    def answered(
        stage: str, count: int, rates: Sequence[float], *, sharing: bool = shared, at_once: bool = False
    ) -> StageCost:
        """Answers to ``count`` prompts at each of the rates; an escalation is one slow step, and the slow model reads
        everything. Where the rows are shared, an answer costs what follows where it departs from the one at the rate
        before, and reading the text up to there again, unless all rates are asked of a prompt ``at_once``."""
        tokens = round(count * sum(rates) * one.tokens)
        seconds = [one.fast_seconds + rate * one.tokens * step for rate in rates]
        most = round(count * len(rates) * one.length), count * sum(seconds)
        if not sharing:
            return StageCost(stage, tokens, *most, *most)
        found = [one.new(rate, known=known) for rate, known in zip(rates, [None, *rates], strict=False)]
        begun = sum(departs for departs, _ in found)
        again = min(begun, 1.0) if at_once else begun
        written = [tail / one.tokens * whole for (_, tail), whole in zip(found, seconds, strict=True)]
        read = again * (one.length - one.tokens / 2) + sum(tail for _, tail in found)
        expected = round(min(count * read, most[0])), min(count * (sum(written) + again * one.read_seconds), most[1])
        return StageCost(stage, tokens, *most, *expected)

    fit, calibration, report = (len(items) for _, items in prompts)
    alone = len(prompts) * (one.slow_seconds + one.fast_seconds)
    # Both read the slow one's answers whole; what it wrote itself it knows.
    most_read, read = (len(prompts) * seconds if shared else 0.0 for seconds in (one.read_seconds, one.fast_read))
    positions = round(len(prompts) * one.length)
    # A prefill reads many tokens in the time of a few steps; the answers' own time bounds it from above.
    traced = (fit * (1 + options.rounds) + report) * one.length
    trace_seconds = traced / one.length * (one.slow_seconds + one.fast_seconds) / 2
    stages = [
        StageCost(
            "both models alone", round(len(prompts) * one.tokens), positions, alone + most_read, positions, alone + read
        ),
        # Read with the answers, so that their rows are known.
        StageCost("traces", 0, round(traced), trace_seconds, *((0, 0.0) if shared else (round(traced), trace_seconds))),
        answered("on-policy rounds", fit * options.rounds, [target.nominal_rate]),
    ]
    if options.label == "divergence":
        rollouts = round(1.5 * options.rollouts)
        cost = round(rollouts * one.length), rollouts * one.slow_seconds / 2
        stages.append(StageCost("rollouts", round(rollouts * one.tokens / 2), *cost, *cost))
    rates = _candidate_rates(target, calibration)
    candidates = answered("candidates", calibration, rates)
    if target.max_regret is not None:  # where testing is going to stop nobody knows
        likely = answered("candidates", calibration, [rate for rate in rates if rate >= target.nominal_rate])
        candidates = _likely(candidates, likely) if shared else candidates
    stages += [candidates, answered("report", report, [target.nominal_rate])]
    if options.draws_curves:
        sweep = sorted(options.curve_rates, reverse=True)
        stages.append(answered("curves", report * (_CURVES + len(options.compare)), sweep, at_once=True))
        oracle = answered("oracle", report * len(_ORACLES), [1.0])
        stages.append(_likely(oracle, answered("oracle", report, _ORACLES)) if shared else oracle)
        timed = min(TIMED, report) * (1 + len(options.compare))
        stages.append(answered("seconds", timed, [1.0, *sweep], sharing=False))
    return stages


def _likely(most: StageCost, like: StageCost) -> StageCost:
    """A stage that costs at most the one, and probably what is expected of the other."""
    return replace(most, expected_positions=like.expected_positions, expected_seconds=like.expected_seconds)


def _candidate_rates(target: Target, calibration: int) -> list[float]:
    """The candidates that may be run, the safest first."""
    rates = sorted(CANDIDATE_RATES, reverse=True)
    if target.max_regret is None:
        return rates[: 1 + math.ceil(math.log2(len(rates)))]  # a bisection
    enough = fewest_prompts(target.max_regret, 1.0 - target.confidence, bound=target.bound)
    return [] if target.certain and calibration < enough else rates


def _measure(router: Router, prompts: Prompts, options: CalibrationOptions) -> _Sample:
    sample = prompts.fit[:SAMPLE]

    def timed(policy: str) -> tuple[list[Generation], float]:
        routed, began = router.with_policy(policy), time.perf_counter()
        answers = [ask(routed, item, **options.request) for item in sample]
        return answers, (time.perf_counter() - began) / len(sample)

    answers, slow_seconds = timed(SLOW_ONLY)
    _, fast_seconds = timed("never")
    reading: dict[Role, float] = dict.fromkeys(("fast", "slow"), 0.0)

    def run(role: Role, function: Callable[[], list[Row]]) -> list[Row]:
        began = time.perf_counter()
        rows = function()
        reading[role] += time.perf_counter() - began
        return rows

    differ = 0
    for item, answer in zip(sample, answers, strict=True):
        ids = [token.id for token in answer.tokens]
        fast, slow = read_both(router.fast, local_slow(router), item, ids, shared=router.shared, run=run)
        differ += sum(ours.argmax != theirs.argmax for ours, theirs in zip(fast, slow, strict=True))
    tokens = sum(answer.usage.tokens for answer in answers)
    return _Sample(
        prompt=sum(answer.usage.prompt_tokens for answer in answers) / len(sample),
        tokens=tokens / len(sample),
        fast_seconds=fast_seconds,
        slow_seconds=slow_seconds,
        read_seconds=sum(reading.values()) / len(sample),
        fast_read=reading["fast"] / len(sample),
        differ=differ / max(tokens, 1),
    )
