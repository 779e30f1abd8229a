"""The report of a conversation, or of an agent's run: its answers' reports added up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..json_forms import SessionReportJson, dumps
from ..records import Usage, add_usages
from .comparison import Comparison, Kind
from .losses import degraded_words
from .report import Report


@dataclass(frozen=True, slots=True, repr=False)
class SessionReport:
    """What all answers of a session cost together. ``str()`` is text for a terminal, ``to_dict()`` is for JSON."""

    answers: tuple[Report, ...]

    @property
    def usage(self) -> Usage:
        """All answers' counters, added up."""
        return add_usages([report.usage for report in self.answers])

    @property
    def comparisons(self) -> dict[str, Comparison]:
        """Steps, seconds, FLOPs and money against the slow model alone: by quantity, all answers' together."""
        names = self.answers[0].comparisons if self.answers else {}
        return {name: _sum([report.comparisons[name] for report in self.answers]) for name in names}

    @property
    def degraded(self) -> dict[str, int]:
        """Why answers were degraded, and how many of them for that reason."""
        return dict(Counter(report.degraded for report in self.answers if report.degraded is not None))

    def __repr__(self) -> str:
        return f"SessionReport({len(self.answers)} answers, {self.usage.tokens} tokens)"

    def to_dict(self) -> SessionReportJson:
        comparisons = {name: comparison.to_dict() for name, comparison in self.comparisons.items()}
        return {
            "answers": len(self.answers),
            "usage": self.usage.to_dict(),
            "comparisons": comparisons,
            "degraded": self.degraded,
        }

    def to_json(self) -> str:
        return dumps(self.to_dict())

    def __str__(self) -> str:
        from .layout import as_text

        return as_text(self)

    def __rich_console__(self, console: Any, options: Any) -> Any:
        from .layout import page

        usage = self.usage
        yield page(
            head=(f"{len(self.answers):,} answers, {usage.tokens:,} tokens",),
            comparisons=self.comparisons,
            losses=(),
            usage=usage,
            bill=None,
            prices=None,
            verified_tokens=sum(report.verified_tokens for report in self.answers),
            auditable=all(report.auditable for report in self.answers),
            notes=[
                (f"Degraded, {count:,} of {len(self.answers):,} answers: {degraded_words(why)}.", "bold red")
                for why, count in self.degraded.items()
            ],
        )


def _sum(parts: Sequence[Comparison]) -> Comparison:
    """Of all answers; unknown where one of them is, and measured where all are."""
    kinds = {part.baseline for part in parts}
    kind: Kind = "unknown" if "unknown" in kinds else "estimated" if "estimated" in kinds else "measured"
    return Comparison(_total([part.routed for part in parts]), _total([part.slow_only for part in parts]), kind)


def _total(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
