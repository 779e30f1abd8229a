"""What prices make of tokens: the bill, one more call, and a whole answer by small calls."""

from __future__ import annotations

from dataclasses import dataclass

from ..contracts.billing import Billed
from ..records import ModelUsage, Prices


def cost_of(billed: Billed, prices: Prices) -> float:
    """US dollars for what was billed: a fallback's part at its own prices."""
    return sum(_at(part, prices.fallbacks.get(model, prices)) for model, part in billed.parts.items())


def _at(billed: Billed, prices: Prices) -> float:
    return (
        billed.input * prices.input
        + billed.cached_input * prices.of_cached
        + billed.cache_write * prices.of_cache_write
        + billed.output * prices.output
        + billed.reasoning * prices.of_reasoning
    ) / 1e6


def local_bill(usage: ModelUsage, *, written: int, calls: int) -> Billed:
    """What a bill for a local model's work would name: ``written`` tokens in so many ``calls``.

    A call's own tokens, all but its last, are read on the way to the next one and are not billed as input: positions -
    (written - calls) are.
    """
    read = usage.positions - (written - calls)
    return Billed(input=read, cached_input=usage.cached, output=written, calls=calls)


def margin_usd(prices: Prices, *, fresh: int, sent: int, written: int, found: float = 1.0) -> float:
    """What one more call saves on the slow model alone, in US dollars; negative where it does not pay.

    The fast model wrote ``fresh`` tokens since the last call, which the slow model alone would have written itself:
    g P_out. For them it reads again what was ``sent`` to the last call (its cache holds the share ``found`` of it),
    and for the first time what it has ``written`` there and the fresh tokens: p P_cached + (g + m) P_write. Before the
    first call nothing was sent; its prompt is read by the slow model alone, too, and is no cost of routing.
    """
    again = found * prices.of_cached + (1.0 - found) * prices.input
    return (fresh * prices.output - sent * again - (fresh + written) * prices.of_cache_write) / 1e6


LEAST_CACHED = 1024
"""Tokens: the shortest prefix that most vendors cache."""


@dataclass(frozen=True, slots=True)
class CallCost:
    """What a call may cost at most, in tokens: a prompt of which no cache holds anything, and an output to its end."""

    prompt: int
    prices: Prices

    @property
    def read_usd(self) -> float:
        return self.prompt * max(self.prices.input, self.prices.of_cache_write) / 1e6

    @property
    def token_usd(self) -> float:
        """For one token that it writes, or thinks."""
        return max(self.prices.output, self.prices.of_reasoning) / 1e6

    def usd(self, tokens: int) -> float:
        return self.read_usd + tokens * self.token_usd

    def affords(self, usd: float) -> int:
        """How many tokens may be written for so much."""
        left = usd - self.read_usd
        return int(left / self.token_usd + 1e-9) if self.token_usd else (1 << 30 if left >= 0 else 0)


@dataclass(frozen=True, slots=True)
class SmallCalls:
    """An answer by many small calls against the slow model's own: tokens that all calls read, and what both cost."""

    calls: float
    read: float
    written: float
    read_usd: float
    usd: float
    alone_usd: float

    @property
    def over_slow_only(self) -> float:
        return self.usd / self.alone_usd if self.alone_usd else 1.0


def small_calls(
    prices: Prices, *, rate: float, extent: int, prompt: int, answer: int, max_calls: int | None = None
) -> SmallCalls:
    """What it is expected to cost to ask for ``extent`` tokens at a share ``rate`` of the fast model's decisions.

    Escalations come after (1 - rate) / rate tokens of the fast model on average, and each call reads the whole text so
    far: at the price of cached input what an earlier one has read or written, where that is long enough for a vendor's
    cache (:data:`LEAST_CACHED`), and else at the full one.
    """
    cycle = (1.0 - rate) / rate + extent
    calls = answer / cycle if max_calls is None else min(answer / cycle, max_calls)
    again = max(calls - 1.0, 0.0) * prompt + calls * max(calls - 1.0, 0.0) / 2.0 * cycle
    fresh = prompt + calls * (cycle - extent)
    cached = prompt + answer >= LEAST_CACHED
    read_usd = fresh * prices.of_cache_write + again * prices.of_cached if cached else (fresh + again) * prices.input
    written = calls * extent
    return SmallCalls(
        calls=calls,
        read=fresh + again,
        written=written,
        read_usd=read_usd / 1e6,
        usd=(read_usd + written * prices.output) / 1e6,
        alone_usd=(prompt * prices.input + answer * prices.output) / 1e6,
    )
