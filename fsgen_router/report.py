"""What routing saved, against the slow model alone: steps, seconds, FLOPs and money, kept apart.

A saving is 1 - routed / slow-only and is negative where routing cost more. Catch-up is counted: what
the slow model reads of the fast one's text is in its positions, FLOPs, seconds and input tokens.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from io import StringIO
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .records import Claim, Generation, ModelCard, ModelUsage, Prices, Usage

FSGEN_RATE = 0.2
FSGEN_SOURCE = "arXiv 2406.12295"


@dataclass(frozen=True, slots=True)
class Comparison:
    """One quantity, routed and slow-only. ``baseline`` says how the slow-only figure is known."""

    routed: float | None
    slow_only: float | None
    baseline: Literal["measured", "estimated", "unknown"]

    @property
    def saving(self) -> float | None:
        """1 - routed / slow-only; negative where routing cost more."""
        if self.routed is None or not self.slow_only:
            return None
        return 1 - self.routed / self.slow_only


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


@dataclass(frozen=True, slots=True)
class Report:
    """The report of one answer. ``str()`` is text for a terminal, ``to_dict()`` is for JSON."""

    usage: Usage
    slow_forwards: Comparison
    seconds: Comparison
    flops: Comparison
    money_usd: Comparison
    policy: str
    method: str
    finish_reason: str
    degraded: str | None
    verified_tokens: int = 0
    """Emitted tokens of the fast model's that the slow one judged, and that stand."""
    claim: Claim | None = None
    """What the policy's certificate says: see :attr:`~fsgen_router.Generation.claim`."""

    @property
    def fsgen(self) -> dict[str, Any]:
        """FS-GEN's finding beside the rate that compares to it, and what each of them is."""
        own = self.usage.disagreement_rate
        note = (
            f"FS-GEN's figure ({FSGEN_SOURCE}: under about 20% in most settings) is a disagreement rate, seen by "
            "asking the slow model at every token; it compares to disagreement_rate alone, not to escalation_rate "
            "or slow_token_share."
        )
        if own is None:
            note += " This answer's is unknown: audit it (audit=1.0) to see it."
        return {"published_rate": FSGEN_RATE, "disagreement_rate": own, "source": FSGEN_SOURCE, "note": note}

    def to_dict(self) -> dict[str, Any]:
        compared = {}
        for name in ("slow_forwards", "seconds", "flops", "money_usd"):
            comparison: Comparison = getattr(self, name)
            compared[name] = asdict(comparison) | {"saving": comparison.saving}
        return {
            **compared,
            "usage": self.usage.to_dict(),
            "fsgen": self.fsgen,
            "policy": self.policy,
            "method": self.method,
            "finish_reason": self.finish_reason,
            "degraded": self.degraded,
            "verified_tokens": self.verified_tokens,
            "guarantee": None if self.claim is None else str(self.claim),
            "guarantee_holds": None if self.claim is None else self.claim.holds,
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict())

    def __str__(self) -> str:
        out = StringIO()
        Console(file=out, width=100, color_system=None).print(self)
        return out.getvalue().rstrip()

    def __rich_console__(self, console: Console, options: Any) -> Any:
        yield self._savings()
        yield self._rates()
        if self.claim is not None:
            yield Text(f"Guarantee of the policy: {self.claim}.")
        yield Text(self.fsgen["note"], style="dim")
        if self.degraded:
            yield Text(f"Degraded: the slow model was given up ({self.degraded}).", style="bold red")

    def _savings(self) -> Table:
        table = Table(title=f"Against the slow model alone (policy {self.policy}, method {self.method})")
        for heading in ("", "routed", "slow only", "saved", "slow-only figure is"):
            table.add_column(heading, justify="left" if heading in ("", "slow-only figure is") else "right")
        rows = (
            ("sequential slow steps", self.slow_forwards, "{:,.0f}"),
            ("seconds", self.seconds, "{:.3f}"),
            ("FLOPs, both models", self.flops, "{:.3g}"),
            ("US dollars", self.money_usd, "{:.6f}"),
        )
        for label, comparison, form in rows:
            if comparison is self.money_usd and comparison.routed is None and comparison.slow_only is None:
                continue  # nobody named a price
            table.add_row(
                label,
                _show(comparison.routed, form),
                _show(comparison.slow_only, form),
                _show(comparison.saving, "{:.1%}"),
                comparison.baseline,
            )
        return table

    def _rates(self) -> Table:
        usage = self.usage
        table = Table(title=f"{usage.tokens} tokens, finished by {self.finish_reason}")
        for heading in ("rate or count", "value", "what it counts"):
            table.add_column(heading, justify="right" if heading == "value" else "left")
        written = f"{usage.slow_tokens} of {usage.tokens} tokens written by the slow model"
        if usage.round_trips:  # its tokens are its own: bytes compare
            written = f"{usage.slow_bytes} of {usage.text_bytes} UTF-8 bytes written by the slow model"
        for name, meaning in (
            ("escalation_rate", f"{usage.escalations} escalations in {usage.decisions} decisions"),
            ("slow_token_share", written),
            (
                "slow_position_share",
                f"the slow model read {usage.slow_positions} positions, {usage.slow.catchup} to catch up",
            ),
            ("disagreement_rate", "greedy choices that differ (FS-GEN's CoF); needs an audit"),
        ):
            table.add_row(name, _show(getattr(usage, name), "{:.1%}"), meaning)
        for name, count, meaning in self._counts():
            if count:
                table.add_row(name, f"{count:,}", meaning)
        return table

    def _counts(self) -> tuple[tuple[str, int, str], ...]:
        usage = self.usage
        return (
            ("round trips", usage.round_trips, "calls that the endpoint answered"),
            ("corrections", usage.corrections, "drafts replaced by the slow model's token"),
            ("verified tokens", self.verified_tokens, "drafts that it judged and let stand"),
            ("bonus tokens", usage.bonus_tokens, "its own, behind drafts that it let stand"),
            ("discarded drafts", usage.discarded_tokens, "corrected, or behind a correction"),
            ("read ahead", usage.slow.ahead, "tokens that it read while the fast one went on"),
        )


def _show(value: float | None, form: str) -> str:
    return "unknown" if value is None else form.format(value)


def make_report(answer: Generation) -> Report:
    """The report of an answer, against its measured baseline where it has one, else an estimate.

    Estimates: the slow model alone would take one step per token of this answer, each as long as its
    measured steps of one token, and would read the same positions once.
    """
    usage, fast, slow = answer.usage, answer.models.get("fast"), answer.models.get("slow")
    measured = answer.baseline.usage if answer.baseline else None
    kind: Literal["measured", "estimated"] = "measured" if measured else "estimated"
    # A baseline's only model is in its "fast" seat (it is the same engine, never escalating), or was
    # handed everything over.
    alone = (
        (measured.slow if measured.round_trips else measured.fast)
        if measured
        else ModelUsage(prefill=usage.prompt_tokens, decode=max(usage.tokens - 1, 0), forwards=usage.tokens)
    )
    written = measured.tokens if measured else usage.tokens
    return Report(
        usage=usage,
        slow_forwards=Comparison(usage.slow_forwards, alone.forwards, kind),
        seconds=_seconds(usage, measured, slow),
        flops=_flops(usage, alone, fast, slow, kind),
        money_usd=_money(usage, alone, written, slow, kind),
        policy=answer.policy,
        method=answer.method,
        finish_reason=answer.finish_reason,
        degraded=answer.degraded,
        verified_tokens=sum(token.verified for token in answer.tokens),
        claim=answer.claim,
    )


def _flops(
    usage: Usage,
    alone: ModelUsage,
    fast: ModelCard | None,
    slow: ModelCard | None,
    kind: Literal["measured", "estimated"],
) -> Comparison:
    if fast is None or slow is None or slow.n_params is None:
        return Comparison(None, None, "unknown")
    own, asked = flops(usage.fast, fast.n_params), flops(usage.slow, slow.n_params)
    routed = None if own is None or asked is None else own + asked
    return Comparison(routed, flops(alone, slow.n_params), kind)


def _seconds(usage: Usage, measured: Usage | None, slow: ModelCard | None) -> Comparison:
    if measured is not None:
        return Comparison(usage.seconds, measured.seconds, "measured")
    if slow is None or slow.step_seconds is None:
        return Comparison(usage.seconds, None, "unknown")
    return Comparison(usage.seconds, usage.tokens * slow.step_seconds, "estimated")


def _money(
    usage: Usage, alone: ModelUsage, written: int, slow: ModelCard | None, kind: Literal["measured", "estimated"]
) -> Comparison:
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
