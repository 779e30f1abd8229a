"""Which mode to recommend: a rule over figures, and nothing else.

A mode qualifies where it loses no more quality than is allowed and saves cost against the slow model alone, both
beyond doubt: at the ends of the intervals that speak against it. The cheapest of those is recommended, and a lossless
one before another that is not measurably cheaper. Where none qualifies, either all are ruled out, or the prompts
were too few; how many would do follows from what was seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ..evaluation import Estimate
from .modes import Kind

Verdict: TypeAlias = Literal["routed", "whole_query", "speculative", "fast", "middle", "tuned", "slow", "undecided"]

WORTH = 0.05
"""A saving below which nothing is lost by not having it: modes that save less even at best are ruled out."""

MOST_PROMPTS = 2000
"""What so many prompts have not told apart lies too close together to matter."""

_Z = 1.96  # the 97.5% quantile of the normal distribution: intervals are 95%


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """What the rule looks at of a mode, over ``n`` prompts.

    ``lost``: prompts that only the slow model alone got right; ``won``: that only this mode did. ``cost`` is against
    the slow model alone (1 is as dear). ``lossless``: every text was the slow model's own, and has to be.
    """

    name: str
    kind: Kind
    n: int
    lost: int
    won: int
    cost: Estimate
    lossless: bool = False

    @property
    def loss(self) -> float:
        """Accuracy of the slow model alone less this mode's, on these prompts."""
        return (self.lost - self.won) / self.n


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """The rule's outcome. ``mode`` is what to use now: under ``undecided`` the slow model alone.

    ``promising`` are modes that would qualify if what was seen holds, cheapest first. ``prompts_needed``: with so many
    one of them would, or nothing would be open; where a mode is recommended, whether the first of them is better.
    """

    verdict: Verdict
    mode: str
    promising: tuple[str, ...] = ()
    prompts_needed: int | None = None


def decide(options: Sequence[Option], *, slow: str, quality_loss: float) -> Advice:
    """What to recommend among ``options``, in place of the mode named ``slow``.

    ``quality_loss``: how much accuracy may be lost against the slow model alone, as a share of the prompts.
    """
    possible = [option for option in options if not _ruled_out(option, quality_loss)]
    qualified = [option for option in possible if _keeps(option, quality_loss) and _high(option) < 1.0]
    open_ = [
        (option, needed)
        for option in possible
        if option not in qualified and option.n < (needed := prompts_needed(option, quality_loss))
    ]
    hopeful = sorted(
        ((option, needed) for option, needed in open_ if _promises(option, quality_loss)),
        key=lambda pair: _value(pair[0]),
    )
    if qualified:
        best = _cheapest(qualified)
        cheaper = [(option, needed) for option, needed in hopeful if _value(option) < _low(best)]
        return Advice(
            verdict=best.kind,
            mode=best.name,
            promising=tuple(option.name for option, _ in cheaper),
            prompts_needed=_rounded(cheaper[0][1]) if cheaper else None,
        )
    if not open_:
        return Advice(verdict="slow", mode=slow)
    enough = min([max(needed for _, needed in open_), *(_to_qualify(option, quality_loss) for option, _ in hopeful)])
    return Advice(
        verdict="undecided",
        mode=slow,
        promising=tuple(option.name for option, _ in hopeful),
        prompts_needed=_rounded(enough),
    )


def _cheapest(options: Sequence[Option]) -> Option:
    best = min(options, key=_value)
    exact = [option for option in options if option.lossless and _value(option) <= _high(best)]
    return min(exact, key=_value) if exact and not best.lossless else best


def _keeps(option: Option, allowed: float) -> bool:
    return option.lossless or loss_bound(option.n, option.lost, option.won) <= allowed


def _ruled_out(option: Option, allowed: float) -> bool:
    loses = not option.lossless and loss_floor(option.n, option.lost, option.won) > allowed
    return loses or option.cost.value is None or _low(option) > 1.0 - WORTH


def _promises(option: Option, allowed: float) -> bool:
    return (option.lossless or option.loss <= allowed) and _value(option) < 1.0


def _value(option: Option) -> float:
    return math.inf if option.cost.value is None else option.cost.value


def _low(option: Option) -> float:
    return _interval(option)[0]


def _high(option: Option) -> float:
    return _interval(option)[1]


def _interval(option: Option) -> tuple[float, float]:
    """The cost's interval as the rule takes it. A percentile bootstrap of few prompts is too narrow: by the factor
    sqrt((n - 1) / n), and by what Student's t is wider than a normal distribution (Hesterberg, arXiv 1411.5279)."""
    value, drawn, n = option.cost.value, option.cost.interval, option.n
    if value is None or drawn is None or n < 2:
        return -math.inf, math.inf
    wider = math.sqrt(n / (n - 1)) * (1.0 + (_Z**2 + 1.0) / (4.0 * (n - 1)))
    return value - wider * (value - drawn[0]), value + wider * (drawn[1] - value)


# --- how sure, and how many prompts would do -----------------------------------------------------


def loss_bound(n: float, lost: float, won: float) -> float:
    """What the true quality loss is at most: the upper end of its 95% interval (normal, paired), with one lost prompt
    added. Without it, what was not seen in a few prompts would pass for impossible: none lost of 8 means at most
    a third, of 150 at most 2%."""
    return min(_edge(n + 1, lost + 1, won, _Z), 1.0)


def loss_floor(n: float, lost: float, won: float) -> float:
    """What it is at least: the lower end, with one won prompt added."""
    return max(_edge(n + 1, lost, won + 1, -_Z), -1.0)


def _edge(n: float, lost: float, won: float, z: float) -> float:
    mean = (lost - won) / n
    return mean + z * math.sqrt(max((lost + won) / n - mean * mean, 0.0) / n)


def prompts_needed(option: Option, allowed: float) -> float:
    """How many prompts would settle a mode, one way or the other, if the shares and costs seen are the true ones; at
    most :data:`MOST_PROMPTS`."""
    lost, won = option.lost / option.n, option.won / option.n
    value, low = _value(option), _low(option)
    ways = [float(MOST_PROMPTS)]
    if _promises(option, allowed):
        ways.append(_to_qualify(option, allowed))
    if not option.lossless and option.loss > allowed:
        ways.append(_fewest(lambda n: loss_floor(n, n * lost, n * won) > allowed))
    if value > 1.0 - WORTH:
        ways.append(option.n * ((value - low) / (value - (1.0 - WORTH))) ** 2)
    return _more(option, min(ways))


def _to_qualify(option: Option, allowed: float) -> float:
    """How many prompts would let a mode through that :func:`_promises`."""
    lost, won, value = option.lost / option.n, option.won / option.n, _value(option)
    keeps = 1.0 if option.lossless else _fewest(lambda n: loss_bound(n, n * lost, n * won) <= allowed)
    return _more(option, max(keeps, option.n * ((_high(option) - value) / (1.0 - value)) ** 2))


def _more(option: Option, count: float) -> float:
    """What is not settled yet takes one more at least."""
    return min(max(count, option.n + 1), MOST_PROMPTS)


def _fewest(holds: Callable[[float], bool]) -> float:
    """The least number of prompts for which something holds that then holds for all larger ones."""
    high = 1
    while not holds(high) and high < MOST_PROMPTS:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _rounded(count: float) -> int:
    """Two digits are all that such an estimate is worth; rounded up."""
    step: int = 10 ** max(math.floor(math.log10(max(count, 1.0))) - 1, 0)
    return math.ceil(count / step) * step
