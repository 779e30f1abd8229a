"""One quantity, routed and slow-only: seconds, FLOPs and money, measured or estimated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ..json_forms import ComparisonJson
from ..records import ModelCard, ModelUsage, Prices, Role, Usage

Kind: TypeAlias = Literal["measured", "estimated", "unknown"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One quantity, routed and slow-only. ``baseline`` says how the slow-only figure is known."""

    routed: float | None
    slow_only: float | None
    baseline: Kind

    @property
    def saving(self) -> float | None:
        """1 - routed / slow-only; negative where routing cost more."""
        if self.routed is None or not self.slow_only:
            return None
        return 1 - self.routed / self.slow_only

    @property
    def lost(self) -> bool:
        """Whether routing cost more, by as much as is shown (a tenth of a percent)."""
        return self.saving is not None and round(self.saving, 3) < 0

    def to_dict(self) -> ComparisonJson:
        return {
            "routed": self.routed,
            "slow_only": self.slow_only,
            "baseline": self.baseline,
            "saving": self.saving,
        }


def flops(usage: ModelUsage, n_params: int | None) -> float | None:
    """2 x parameters x positions read: a forward's multiply-adds per token; None where the size is unknown.

    Kaplan et al., arXiv 2001.08361, section 2.1, without the attention term, which grows with the
    context and is small beside it for contexts below about 6 times the model's width.
    """
    return None if n_params is None else 2.0 * n_params * usage.positions


def cost_usd(usage: ModelUsage, *, written: int, calls: int, prices: Prices) -> float:
    """cached x P_cached + read x P_in + written x P_out, in US dollars.

    A call's own tokens, all but its last, are read on the way to the next one and are not billed as
    input: ``read`` is positions - (written - calls).
    """
    cached = prices.input if prices.cached_input is None else prices.cached_input
    read = usage.positions - (written - calls)
    return (usage.cached * cached + read * prices.input + written * prices.output) / 1e6


def compare_flops(usage: Usage, alone: ModelUsage, models: Mapping[Role, ModelCard], kind: Kind) -> Comparison:
    """All models' FLOPs against the slow one's ``alone``; unknown where it does not say its size."""
    slow = models.get("slow")
    if "fast" not in models or slow is None or slow.n_params is None:
        return Comparison(None, None, "unknown")
    parts = [flops(usage.of(role), card.n_params) for role, card in models.items()]
    known = [part for part in parts if part is not None]
    return Comparison(sum(known) if len(known) == len(parts) else None, flops(alone, slow.n_params), kind)


def compare_seconds(usage: Usage, measured: Usage | None, slow: ModelCard | None) -> Comparison:
    """Wall time against what the slow model alone took, or would at its measured time of a step."""
    if measured is not None:
        return Comparison(usage.seconds, measured.seconds, "measured")
    if slow is None or slow.step_seconds is None:
        return Comparison(usage.seconds, None, "unknown")
    return Comparison(usage.seconds, usage.tokens * slow.step_seconds, "estimated")


def compare_money(usage: Usage, alone: ModelUsage, written: int, slow: ModelCard | None, kind: Kind) -> Comparison:
    """US dollars for what the slow model read and wrote; ``written``: tokens of its own answer."""
    if slow is None or slow.prices is None:
        return Comparison(None, None, "unknown")
    routed, calls = usage.slow_tokens, usage.escalations if usage.slow.forwards else 0
    if usage.round_trips:  # an endpoint bills what it counted itself: prompts as input, all that it wrote as output
        routed, calls = usage.slow.decode, 0
    # The slow model's own answer, of one call: from an endpoint, too, in its own count.
    alone_is_remote = bool(usage.round_trips) and kind == "measured"
    return Comparison(
        cost_usd(usage.slow, written=routed, calls=calls, prices=slow.prices),
        cost_usd(
            alone,
            written=alone.decode if alone_is_remote else written,
            calls=0 if alone_is_remote else 1,
            prices=slow.prices,
        ),
        kind,
    )
