"""A report on a terminal: its tables and the lines around them. The one file of this folder that loads rich."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import StringIO

from rich import box
from rich.console import Console, Group, RenderableType
from rich.constrain import Constrain
from rich.table import Table
from rich.text import Text

from ..contracts.billing import Billed
from ..money import cost_of
from ..records import Prices, Usage
from .comparison import Comparison
from .numbers import percent, shown, si

COLUMNS, MAX_COLUMNS = 80, 100
"""How wide a report is where there is no terminal, and at most: longer lines are hard to read."""

_SAVINGS = {
    "slow_forwards": ("sequential slow steps", "{:,.0f}".format),
    "seconds": ("seconds", "{:.3f}".format),
    "flops": ("FLOPs, {models} models", si),
    "money_usd": ("US dollars", "{:.6f}".format),
    "local_usd": ("US dollars, local", "{:.6f}".format),
    "local_joules": ("joules, local", "{:,.1f}".format),
}


_PRICED = ("money_usd", "local_usd", "local_joules")


def page(
    *,
    head: Sequence[str],
    comparisons: Mapping[str, Comparison],
    losses: Iterable[str],
    usage: Usage,
    bill: tuple[Billed, Prices | None] | None,
    prices: str | None,
    verified_tokens: int,
    auditable: bool,
    notes: Sequence[tuple[str, str]],
) -> RenderableType:
    """All of a report; ``notes`` are (text, style) below the tables, ``prices`` a sentence about those."""

    def parts() -> Iterator[RenderableType]:
        yield from (Text(line, style="bold") for line in head)
        yield Text()
        yield savings_table(comparisons, models="all" if usage.tuned.positions else "both")
        yield Text()
        sentences = [Text(sentence) for sentence in losses]
        yield from sentences
        if sentences:
            yield Text()
        if bill is not None:
            yield bill_table(*bill)
            yield Text()
        if prices is not None:
            yield Text(prices)
            yield Text()
        yield rates_table(usage, verified_tokens=verified_tokens, auditable=auditable)
        yield Text()
        yield from (Text(text, style=style) for text, style in notes)

    return Constrain(Group(*parts()), MAX_COLUMNS)


def as_text(report: RenderableType) -> str:
    """What a terminal shows, without colours."""
    out = StringIO()
    Console(file=out, width=_columns(), color_system=None).print(report)
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())


def savings_table(comparisons: Mapping[str, Comparison], *, models: str = "both") -> Table:
    """Steps, seconds, FLOPs and money, routed and slow-only; ``models`` says whose."""
    table = _table(("against the slow model alone", "routed", "slow only", "saved", "slow-only figure"), numbers=3)
    for name, comparison in comparisons.items():
        if name in _PRICED and comparison.routed is None and comparison.slow_only is None:
            continue  # nobody named a price
        label, form = _SAVINGS[name]
        table.add_row(
            label.format(models=models),
            shown(comparison.routed, form),
            shown(comparison.slow_only, form),
            shown(comparison.saving, percent),
            comparison.baseline,
        )
    return table


def bill_table(billed: Billed, prices: Prices | None) -> Table:
    """Tokens that are billed, by kind, and what each kind costs where prices are known."""
    table = _table(("billed", "tokens", "$ a million", "US dollars", ""), numbers=3)
    elsewhere = {} if prices is None else prices.fallbacks
    for model, part in billed.parts.items():
        asked = elsewhere.get(model, prices)
        for name, at in (
            ("input", "input"),
            ("cached_input", "of_cached"),
            ("cache_write", "of_cache_write"),
            ("output", "output"),
            ("reasoning", "of_reasoning"),
        ):
            tokens: int = getattr(part, name)
            price: float | None = getattr(asked, at, None)
            if tokens:
                cost = None if price is None else tokens * price / 1e6
                cells = f"{tokens:,}", shown(price, "{:g}".format), shown(cost, "{:.6f}".format)
                table.add_row(name.replace("_", " "), *cells, model)
    sent = ((billed.calls, "call"), (billed.probes, "probe"), (billed.failed, "failed request"))
    said = ", ".join(f"{count:,} {name}{'s' * (count != 1)}" for count, name in sent if count)
    if billed.estimated:
        said += f"; {billed.estimated:,} tokens estimated"
    total = None if prices is None else cost_of(billed, prices)
    table.add_row("all", f"{billed.tokens:,}", "", shown(total, "{:.6f}".format), said)
    return table


def rates_table(usage: Usage, *, verified_tokens: int, auditable: bool) -> Table:
    """Every rate, and the counts that are not zero."""
    table = _table(("rate or count", "value", "what it counts"), numbers=1)
    written = f"{usage.slow_tokens:,} of {usage.tokens:,} tokens written by the slow model"
    if usage.round_trips:  # its tokens are its own: bytes compare
        written = f"{usage.slow_bytes:,} of {usage.text_bytes:,} UTF-8 bytes written by the slow model"
    differing = "where the greedy choices differ (FS-GEN's CoF)"
    if usage.disagreement_rate is None:
        differing = f"needs {'an audit' if auditable else 'logits'}: how often greedy choices differ"
    for name, meaning in (
        ("escalation_rate", f"{usage.escalations:,} escalations in {usage.decisions:,} decisions"),
        ("slow_token_share", written),
        ("slow_position_share", f"it read {usage.slow_positions:,} tokens, {usage.slow.catchup:,} to catch up"),
        ("disagreement_rate", differing),
    ):
        table.add_row(name, shown(getattr(usage, name), percent), meaning)
    again = "tokens, by the slow model, which cannot go back"
    if usage.slow.calls:
        again = "tokens, by the slow model, that its server's cache did not hold or did not tell of"
    for name, count, meaning in (
        ("round trips", usage.round_trips, "calls that the endpoint answered"),
        ("reasoning tokens", usage.reasoning_tokens, "written and billed, but no part of the answer"),
        ("corrections", usage.corrections, "drafts replaced by the slow model's token"),
        ("other than tuned", usage.tuned_corrections, "tokens there that are not the tuned model's own"),
        ("tuned model", usage.tuned.positions, "tokens that it read"),
        ("verified tokens", verified_tokens, "drafts that it judged and let stand"),
        ("bonus tokens", usage.bonus_tokens, "its own, behind drafts that it let stand"),
        ("forced", usage.forced, "tokens that the form of the answer left no choice about"),
        ("declined", usage.declined, "escalations that a cap or their price forbade"),
        ("discarded drafts", usage.discarded_tokens, "corrected, or behind a correction"),
        ("restarts", usage.restarts, "hand-overs at which it began the answer anew"),
        ("seam repairs", usage.seam_repairs, "of what it said again, put around its text or left out"),
        ("read ahead", usage.slow.ahead, "tokens that it read while the fast one went on"),
        ("calls", usage.slow.calls, "requests to the slow model's server"),
        ("read again", usage.slow.reread, again),
        ("read again, fast", usage.fast.reread, "tokens, by the fast model, which cannot go back"),
    ):
        if count:
            table.add_row(name, f"{count:,}", meaning)
    return table


def _table(headings: Sequence[str], *, numbers: int) -> Table:
    """A table whose columns behind the first are ``numbers``, then text."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for position, heading in enumerate(headings):
        number = 1 <= position <= numbers
        # Words may wrap, names and numbers never.
        last = position == len(headings) - 1
        table.add_column(heading, justify="right" if number else "left", no_wrap=not last)
    return table


def _columns() -> int:
    """The width of the terminal that text goes to, where it goes to one."""
    if sys.stdout is None or not sys.stdout.isatty():
        return COLUMNS
    return min(shutil.get_terminal_size((COLUMNS, 0)).columns, MAX_COLUMNS)
