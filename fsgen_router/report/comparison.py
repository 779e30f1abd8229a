"""One quantity, routed and slow-only: seconds, FLOPs and money, measured or estimated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ..contracts.billing import Billed
from ..json_forms import ComparisonJson
from ..money import cost_of, local_bill
from ..records import MachinePrice, ModelCard, ModelUsage, Prices, Role, Usage

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
    """cached x P_cached + read x P_in + written x P_out, in US dollars (see :func:`~fsgen_router.money.local_bill`)."""
    return cost_of(local_bill(usage, written=written, calls=calls), prices)


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


def bill_of(usage: Usage, slow: ModelCard | None) -> Billed | None:
    """What the slow model's prices apply to: an endpoint's own bill, or what one for a local model would name."""
    if slow is None:
        return None
    if usage.billed.requests or not slow.gives_rows:
        return usage.billed
    if slow.prices is None:
        return None
    calls = usage.escalations if usage.slow.forwards else 0
    return local_bill(usage.slow, written=usage.slow_tokens, calls=calls)


def compare_money(
    usage: Usage, alone: ModelUsage, measured: Usage | None, slow: ModelCard | None, kind: Kind
) -> Comparison:
    """US dollars for what the slow model read and wrote; ``measured`` is what it used for its own answer.

    Unknown where nobody knows its prices: no price is not a price of 0.
    """
    billed = bill_of(usage, slow)
    if slow is None or slow.prices is None or billed is None:
        return Comparison(None, None, "unknown")
    # The slow model's own answer, of one call: from an endpoint in its own count.
    if measured is not None and measured.billed.requests:
        own = _first_alone(measured.billed, usage)
    else:
        own = local_bill(alone, written=usage.tokens if measured is None else measured.tokens, calls=1)
    return Comparison(cost_of(billed, slow.prices), cost_of(own, slow.prices), kind)


def _first_alone(billed: Billed, usage: Usage) -> Billed:
    """A baseline's bill without what its endpoint's cache holds only because the routed answer came before it."""
    left = max(billed.cached_input - usage.prompt_cached, 0) if usage.billed.calls else 0
    own = billed.copy()
    for one in (own, *list(own.by_model.values())[:1]):  # of several, the first that was asked
        one.cached_input -= left
        one.input += left
    return own


def compare_machines(
    usage: Usage,
    measured: Usage | None,
    models: Mapping[Role, ModelCard],
    value: Callable[[MachinePrice, float], float | None],
) -> Comparison:
    """What this side's machines cost, by a ``value`` of their seconds: of all local models, against the slow one's.

    Models whose machine has no price count nothing; where none has one, nothing is known. An endpoint is none of them.
    """
    parts = [
        value(card.machine, usage.of(role).seconds)
        for role, card in models.items()
        if card.machine is not None and card.gives_rows
    ]
    known = [part for part in parts if part is not None]
    slow = models.get("slow")
    if slow is None or not known:
        return Comparison(None, None, "unknown")
    routed = sum(known)
    if not slow.gives_rows:
        return Comparison(routed, 0.0, "measured")
    if slow.machine is None or (measured is None and slow.step_seconds is None):
        return Comparison(routed, None, "unknown")
    if measured is not None:  # its only model is in its "fast" seat
        return Comparison(routed, value(slow.machine, measured.fast.seconds), "measured")
    return Comparison(routed, value(slow.machine, usage.tokens * (slow.step_seconds or 0.0)), "estimated")
