"""The report of one answer, and how it is made of the answer's parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from ..contracts.billing import Billed
from ..json_forms import BilledJson, FsgenJson, ReportJson, dumps
from ..money import PRICES_VARIABLE
from ..records import Claim, MachinePrice, ModelCard, ModelUsage, Prices, Role, Selection, Token, Usage
from .comparison import (
    Comparison,
    Kind,
    bill_of,
    compare_flops,
    compare_machines,
    compare_money,
    compare_seconds,
)
from .losses import degraded_words, explain_loss

UNKNOWN = Comparison(None, None, "unknown")
FSGEN_RATE = 0.2
FSGEN_SOURCE = "arXiv 2406.12295"
_AUDIT = "Router(audit=1.0), or --audit 1 on the command line, has the slow model read every answer afterwards"
_NO_AUDIT = "the slow model gives text and no logits, so its choices cannot be compared"


@dataclass(frozen=True, slots=True, repr=False)
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
    local_usd: Comparison = UNKNOWN
    """What the machines of the local models cost for their seconds, beside the bill."""
    local_joules: Comparison = UNKNOWN
    billed: Billed | None = None
    """Tokens that the slow model's prices apply to, by kind; None of a local one without prices."""
    prices: Prices | None = None
    slow_name: str = ""
    verified_tokens: int = 0
    """Emitted tokens of the fast model's that the slow one judged, and that stand."""
    claim: Claim | None = None
    """What the policy's certificate says: see :attr:`~fsgen_router.Generation.claim`."""
    selection: str | None = None
    """What a verifier made of the fast model's answers, in a sentence."""
    alone: ModelUsage | None = None
    """What the slow model does alone: counted where its answer was measured, else estimated."""
    fast_step_seconds: float | None = None
    """Measured time of one model's step of one token (median), where any was seen; the slow one's alike."""
    slow_step_seconds: float | None = None
    advice: str | None = None
    """What to do where the default policy never asked the slow model."""
    auditable: bool = True
    """Whether the slow model gives rows, from which an audit learns its choices; an endpoint gives text."""

    def __repr__(self) -> str:
        steps = f"{self.slow_forwards.routed} slow steps, alone {self.slow_forwards.slow_only}"
        return f"Report({self.policy!r}, {self.method!r}, {self.usage.tokens} tokens, {steps})"

    @property
    def comparisons(self) -> dict[str, Comparison]:
        """Steps, seconds, FLOPs and money against the slow model alone, by name."""
        return {
            "slow_forwards": self.slow_forwards,
            "seconds": self.seconds,
            "flops": self.flops,
            "money_usd": self.money_usd,
            "local_usd": self.local_usd,
            "local_joules": self.local_joules,
        }

    @property
    def losses(self) -> dict[str, str]:
        """By quantity, one sentence for each in which routing cost more: where it went, in measured figures."""
        if self.alone is None:
            return {}
        steps = self.fast_step_seconds, self.slow_step_seconds
        return {
            name: explain_loss(name, comparison, self.usage, self.alone, *steps)
            for name, comparison in self.comparisons.items()
            if comparison.lost and not name.startswith("local")
        }

    @property
    def fsgen(self) -> FsgenJson:
        """FS-GEN's finding beside the rate that compares to it, and what each of them is."""
        own = self.usage.disagreement_rate
        note = (
            f"FS-GEN's figure ({FSGEN_SOURCE}: under about 20% in most settings) is a disagreement rate, seen by "
            "asking the slow model at every token; it compares to disagreement_rate alone, not to escalation_rate "
            "or slow_token_share."
        )
        if own is None:
            note += f" This answer's is unknown: {_AUDIT if self.auditable else _NO_AUDIT}."
        return {"published_rate": FSGEN_RATE, "disagreement_rate": own, "source": FSGEN_SOURCE, "note": note}

    def to_dict(self) -> ReportJson:
        return {
            "slow_forwards": self.slow_forwards.to_dict(),
            "seconds": self.seconds.to_dict(),
            "flops": self.flops.to_dict(),
            "money_usd": self.money_usd.to_dict(),
            "local_usd": self.local_usd.to_dict(),
            "local_joules": self.local_joules.to_dict(),
            "billed": None if self.billed is None else cast(BilledJson, self.billed.to_dict()),
            "prices": None if self.prices is None else self.prices.to_dict(),
            "usage": self.usage.to_dict(),
            "losses": self.losses,
            "fsgen": self.fsgen,
            "policy": self.policy,
            "method": self.method,
            "finish_reason": self.finish_reason,
            "degraded": self.degraded,
            "verified_tokens": self.verified_tokens,
            "guarantee": None if self.claim is None else str(self.claim),
            "guarantee_holds": None if self.claim is None else self.claim.holds,
            "selection": self.selection,
            "advice": self.advice,
        }

    def _about_prices(self) -> str | None:
        """Where the prices come from; or that nobody knows any, in front of an endpoint."""
        if self.prices is not None and (self.prices.source or self.prices.date):
            return f"Prices of {self.slow_name}, {self.prices}."
        if self.prices is None and not self.auditable:
            return (
                f"No price known of {self.slow_name}, so its bill is unknown: give prices= (Prices, or a table), "
                f"or set {PRICES_VARIABLE}."
            )
        return None

    def to_json(self) -> str:
        return dumps(self.to_dict())

    def __str__(self) -> str:
        from .layout import as_text

        return as_text(self)

    def __rich_console__(self, console: Any, options: Any) -> Any:
        from .layout import page

        notes = [] if self.claim is None else [(f"Guarantee of the policy: {self.claim}.", "")]
        if self.selection is not None:
            notes.append((self.selection, ""))
        notes.append((self.fsgen["note"], "dim"))
        if self.advice is not None:
            notes.append((self.advice, "bold"))
        if self.degraded:
            notes.append((f"Degraded: {degraded_words(self.degraded)}.", "bold red"))
        yield page(
            head=(
                f"policy {self.policy}, method {self.method}",
                f"{self.usage.tokens:,} tokens, finish reason {self.finish_reason}",
            ),
            comparisons=self.comparisons,
            losses=self.losses.values(),
            usage=self.usage,
            bill=None if self.billed is None or not self.billed.requests else (self.billed, self.prices),
            prices=self._about_prices(),
            verified_tokens=self.verified_tokens,
            auditable=self.auditable,
            notes=notes,
        )


def make_report(
    usage: Usage,
    tokens: Sequence[Token],
    models: Mapping[Role, ModelCard],
    *,
    measured: Usage | None,
    policy: str,
    method: str,
    finish_reason: str,
    degraded: str | None,
    claim: Claim | None,
    default_policy: bool,
    selection: Selection | None = None,
) -> Report:
    """The report of an answer, against the slow model's own where that was ``measured``, else an estimate.

    Estimates: the slow model alone would take one step per token of this answer, each as long as its
    measured steps of one token, and would read the same positions once.
    """
    fast, slow = models.get("fast"), models.get("slow")
    kind: Kind = "measured" if measured else "estimated"
    # A baseline's only model is in its "fast" seat (it is the same engine, never escalating), or was
    # handed everything over.
    alone = (
        (measured.slow if measured.round_trips else measured.fast)
        if measured
        else ModelUsage(prefill=usage.prompt_tokens, decode=max(usage.tokens - 1, 0), forwards=usage.tokens)
    )
    return Report(
        usage=usage,
        slow_forwards=Comparison(usage.slow_forwards, alone.forwards, kind),
        seconds=compare_seconds(usage, measured, slow),
        flops=compare_flops(usage, alone, models, kind),
        money_usd=compare_money(usage, alone, measured, slow, kind),
        local_usd=compare_machines(usage, measured, models, MachinePrice.usd),
        local_joules=compare_machines(usage, measured, models, MachinePrice.joules),
        billed=bill_of(usage, slow),
        prices=None if slow is None else slow.prices,
        slow_name="" if slow is None else slow.name,
        policy=policy,
        method=method,
        finish_reason=finish_reason,
        degraded=degraded,
        verified_tokens=sum(token.verified for token in tokens),
        claim=claim,
        selection=None if selection is None else _selected(selection),
        alone=alone,
        fast_step_seconds=fast.step_seconds if fast else None,
        slow_step_seconds=slow.step_seconds if slow else None,
        advice=_advice(policy, tokens) if default_policy and not (usage.escalations or usage.declined) else None,
        auditable=slow is None or slow.gives_rows,
    )


def _selected(selection: Selection) -> str:
    """Which of the fast model's answers stands, or that none does, and by what scores."""
    count = len(selection.candidates)
    scores = ", ".join("none" if c.score is None else f"{c.score:.3g}" for c in selection.candidates)
    which = "None" if selection.chosen is None else f"Number {selection.chosen + 1}"
    return (
        f"{which} of the fast model's {count} answer{'s' * (count != 1)} stands: {selection.reason} (scores: {scores})."
    )


def _advice(policy: str, tokens: Sequence[Token]) -> str:
    """How to have the slow model asked, where the default policy did not."""
    scores = [(t.decision.score, t.decision.threshold) for t in tokens if t.decision is not None]
    score, threshold = max(((s, t) for s, t in scores if s is not None and t is not None), default=(0.0, 0.0))
    sooner = ""
    if score >= 0.01:  # a threshold below the highest score of this answer
        name = policy.replace(f">{threshold:g}", f">{0.9 * score:.2g}")
        sooner = f'policy="{name}" asks sooner, ' if name != policy else ""
    return (
        f"The default policy ({policy}) handed nothing over: the highest score of this answer was {score:.2g}. "
        f'Name a policy to have the slow model asked: {sooner}policy="always,span=rest" asks for everything.'
    )
