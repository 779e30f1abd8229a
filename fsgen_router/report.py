"""What routing saved, against the slow model alone: steps, seconds, FLOPs and money, kept apart.

A saving is 1 - routed / slow-only and is negative where routing cost more. Catch-up is counted: what
the slow model reads of the fast one's text is in its positions, FLOPs, seconds and input tokens.
"""

from __future__ import annotations

import shutil
import sys
from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any, Literal

from rich import box
from rich.console import Console, Group, RenderableType
from rich.constrain import Constrain
from rich.table import Table
from rich.text import Text

from .json_forms import ComparisonJson, FsgenJson, ReportJson, dumps
from .records import Claim, Generation, ModelCard, ModelUsage, Prices, Usage

FSGEN_RATE = 0.2
FSGEN_SOURCE = "arXiv 2406.12295"
COLUMNS, MAX_COLUMNS = 80, 100
"""How wide a report is where there is no terminal, and at most: longer lines are hard to read."""
_AUDIT = "Router(audit=1.0), or --audit 1 on the command line, has the slow model read every answer afterwards"
_NO_AUDIT = "the slow model gives text and no logits, so its choices cannot be compared"


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
    verified_tokens: int = 0
    """Emitted tokens of the fast model's that the slow one judged, and that stand."""
    claim: Claim | None = None
    """What the policy's certificate says: see :attr:`~fsgen_router.Generation.claim`."""
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
    def losses(self) -> dict[str, str]:
        """By quantity, one sentence for each in which routing cost more: where it went, in measured figures."""
        compared = {
            "slow_forwards": (self.slow_forwards, self._lost_steps),
            "seconds": (self.seconds, self._lost_seconds),
            "flops": (self.flops, self._lost_flops),
            "money_usd": (self.money_usd, self._lost_money),
        }
        return {
            name: explain(self.alone, comparison.routed, comparison.slow_only)
            for name, (comparison, explain) in compared.items()
            if comparison.lost
            and self.alone is not None
            and comparison.routed is not None
            and comparison.slow_only is not None
        }

    def _lost_steps(self, alone: ModelUsage, routed: float, slow_only: float) -> str:
        return (
            f"Slow steps were lost: this answer took {routed:,.0f} of them for {self.usage.tokens:,} tokens, the slow "
            f"model's own answer {slow_only:,.0f}."
        )

    def _lost_seconds(self, alone: ModelUsage, routed: float, slow_only: float) -> str:
        fast, slow = self.usage.fast.seconds, self.usage.slow.seconds
        if slow >= slow_only:  # however slow its steps were, they would be slow in both
            return (
                f"Seconds were lost: the slow model alone needs {_seconds_of(slow_only)}, and here it was busy for "
                f"{_seconds_of(slow)}: {self.usage.slow.forwards:,} steps, in which it read "
                f"{self.usage.slow_positions:,} tokens."
            )
        around = routed - slow - fast  # below zero where both worked at the same time
        also = f" and what lies around both (Python, waiting) {_seconds_of(around)}" if around > 0 else ""
        step = ""
        if self.fast_step_seconds and self.slow_step_seconds:
            times = self.slow_step_seconds / self.fast_step_seconds
            step = (
                f" (a step takes it {1000 * self.slow_step_seconds:.3g} ms, {times:.1f} times as long as the fast one)"
            )
        # Its own time grows with its slowness in both: even where fast + around = (slow_only - slow) * slower.
        slower = (routed - slow) / (slow_only - slow)
        return (
            f"Seconds were lost: the slow model was spared {_seconds_of(slow_only - slow)}{step}, but the fast one "
            f"took {_seconds_of(fast)}{also}; only a slow model about {slower:.1f} times as slow would break even."
        )

    def _lost_flops(self, alone: ModelUsage, routed: float, slow_only: float) -> str:
        read = self.usage.slow_positions
        fast = routed - slow_only * read / alone.positions
        return (
            f"FLOPs were lost: the slow model read {read:,} tokens, {self.usage.slow.catchup:,} of them to catch up "
            f"with the fast one, and alone it reads {alone.positions:,}; the fast model's {_si(fast)} come on top."
        )

    def _lost_money(self, alone: ModelUsage, routed: float, slow_only: float) -> str:
        usage = self.usage
        calls = usage.round_trips or usage.escalations
        again = "; every call pays for the text so far" if usage.round_trips > 1 else ""
        return (
            f"Dollars were lost: in {calls:,} call{'s' * (calls != 1)} the slow model read "
            f"{usage.slow_positions + usage.slow.cached:,} tokens ({usage.slow.cached:,} of them cached), and alone it "
            f"reads {alone.positions + alone.cached:,}{again}."
        )

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
            "advice": self.advice,
        }

    def to_json(self) -> str:
        return dumps(self.to_dict())

    def __str__(self) -> str:
        out = StringIO()
        Console(file=out, width=_columns(), color_system=None).print(self)
        return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())

    def __rich_console__(self, console: Console, options: Any) -> Any:
        yield Constrain(Group(*self._parts()), MAX_COLUMNS)

    def _parts(self) -> Iterator[RenderableType]:
        yield Text(f"policy {self.policy}, method {self.method}", style="bold")
        yield Text(f"{self.usage.tokens:,} tokens, finish reason {self.finish_reason}", style="bold")
        yield Text()
        yield self._savings()
        yield Text()
        for sentence in self.losses.values():
            yield Text(sentence)
        if self.losses:
            yield Text()
        yield self._rates()
        yield Text()
        if self.claim is not None:
            yield Text(f"Guarantee of the policy: {self.claim}.")
        yield Text(self.fsgen["note"], style="dim")
        if self.advice is not None:
            yield Text(self.advice, style="bold")
        if self.degraded:
            yield Text(f"Degraded: the slow model was given up ({self.degraded}).", style="bold red")

    def _savings(self) -> Table:
        table = _table(("against the slow model alone", "routed", "slow only", "saved", "slow-only figure"), numbers=3)
        rows = (
            ("sequential slow steps", self.slow_forwards, "{:,.0f}".format),
            ("seconds", self.seconds, "{:.3f}".format),
            ("FLOPs, both models", self.flops, _si),
            ("US dollars", self.money_usd, "{:.6f}".format),
        )
        for label, comparison, show in rows:
            if comparison is self.money_usd and comparison.routed is None and comparison.slow_only is None:
                continue  # nobody named a price
            table.add_row(
                label,
                _show(comparison.routed, show),
                _show(comparison.slow_only, show),
                _show(comparison.saving, _percent),
                comparison.baseline,
            )
        return table

    def _rates(self) -> Table:
        usage = self.usage
        table = _table(("rate or count", "value", "what it counts"), numbers=1)
        written = f"{usage.slow_tokens:,} of {usage.tokens:,} tokens written by the slow model"
        if usage.round_trips:  # its tokens are its own: bytes compare
            written = f"{usage.slow_bytes:,} of {usage.text_bytes:,} UTF-8 bytes written by the slow model"
        for name, meaning in (
            ("escalation_rate", f"{usage.escalations:,} escalations in {usage.decisions:,} decisions"),
            ("slow_token_share", written),
            ("slow_position_share", f"it read {usage.slow_positions:,} tokens, {usage.slow.catchup:,} to catch up"),
            ("disagreement_rate", self._disagreement()),
        ):
            table.add_row(name, _show(getattr(usage, name), _percent), meaning)
        for name, count, meaning in self._counts():
            if count:
                table.add_row(name, f"{count:,}", meaning)
        return table

    def _disagreement(self) -> str:
        if self.usage.disagreement_rate is not None:
            return "where the greedy choices differ (FS-GEN's CoF)"
        return f"needs {'an audit' if self.auditable else 'logits'}: how often greedy choices differ"

    def _counts(self) -> tuple[tuple[str, int, str], ...]:
        usage = self.usage
        return (
            ("round trips", usage.round_trips, "calls that the endpoint answered"),
            ("reasoning tokens", usage.reasoning_tokens, "written and billed, but no part of the answer"),
            ("corrections", usage.corrections, "drafts replaced by the slow model's token"),
            ("verified tokens", self.verified_tokens, "drafts that it judged and let stand"),
            ("bonus tokens", usage.bonus_tokens, "its own, behind drafts that it let stand"),
            ("discarded drafts", usage.discarded_tokens, "corrected, or behind a correction"),
            ("read ahead", usage.slow.ahead, "tokens that it read while the fast one went on"),
            ("read again", usage.slow.reread, "tokens, by the slow model, which cannot go back"),
            ("read again, fast", usage.fast.reread, "tokens, by the fast model, which cannot go back"),
        )


def _columns() -> int:
    """The width of the terminal that text goes to, where it goes to one."""
    if sys.stdout is None or not sys.stdout.isatty():
        return COLUMNS
    return min(shutil.get_terminal_size((COLUMNS, 0)).columns, MAX_COLUMNS)


def _table(headings: Sequence[str], *, numbers: int) -> Table:
    """A table whose columns behind the first are ``numbers``, then text."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for position, heading in enumerate(headings):
        number = 1 <= position <= numbers
        # Words may wrap, names and numbers never.
        last = position == len(headings) - 1
        table.add_column(heading, justify="right" if number else "left", no_wrap=not last)
    return table


def _show(value: float | None, form: Callable[[float], str]) -> str:
    return "unknown" if value is None else form(value)


def _percent(value: float) -> str:
    return f"{round(value, 3) + 0.0:.1%}"  # a zero without a sign


def _si(value: float) -> str:
    """Three digits and a prefix: 125 M, 1.40 T."""
    prefixes = iter(("", " k", " M", " G", " T", " P", " E"))
    prefix = next(prefixes)
    while abs(value) >= 999.5 and (larger := next(prefixes, None)) is not None:
        value, prefix = value / 1000, larger
    places = 2 - bisect((9.995, 99.95), abs(value))
    return f"{value:.{places}f}{prefix}"


def _seconds_of(value: float) -> str:
    return f"{value:.3f} s"


def make_report(answer: Generation) -> Report:
    """The report of an answer, against its measured baseline where it has one, else an estimate.

    Estimates: the slow model alone would take one step per token of this answer, each as long as its
    measured steps of one token, and would read the same positions once.
    """
    usage, fast, slow = answer.usage, answer.models.get("fast"), answer.models.get("slow")
    # A baseline that the slow model did not bring to its end measures nothing.
    measured = answer.baseline.usage if answer.baseline and answer.baseline.degraded is None else None
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
        alone=alone,
        fast_step_seconds=fast.step_seconds if fast else None,
        slow_step_seconds=slow.step_seconds if slow else None,
        advice=_advice(answer),
        auditable=slow is None or slow.gives_rows,
    )


def _advice(answer: Generation) -> str | None:
    """How to have the slow model asked, where the default policy did not."""
    if not answer.default_policy or answer.usage.escalations:
        return None
    scores = [(t.decision.score, t.decision.threshold) for t in answer.tokens if t.decision is not None]
    score, threshold = max(((s, t) for s, t in scores if s is not None and t is not None), default=(0.0, 0.0))
    sooner = ""
    if score >= 0.01:  # a threshold below the highest score of this answer
        name = answer.policy.replace(f">{threshold:g}", f">{0.9 * score:.2g}")
        sooner = f'policy="{name}" asks sooner, ' if name != answer.policy else ""
    return (
        f"The default policy ({answer.policy}) handed nothing over: the highest score of this answer was {score:.2g}. "
        f'Name a policy to have the slow model asked: {sooner}policy="always,span=rest" asks for everything.'
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
