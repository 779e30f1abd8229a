"""What ``fsgen-router eval`` found: as tables, as JSON, as a plot."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from .. import evaluation as ev
from .evaluate_run import Results
from .terminal import out, percent, say

_ALONE = ("accuracy_fast", "accuracy_slow", "gap")
_COUNTS = ("corrections", "bonus_tokens", "discarded_tokens")


def record(results: Results, *, single: bool) -> dict[str, Any]:
    """For JSON; ``single``: one policy's figures stand at the top, not in a list."""
    *summaries, _, slow = results.summaries
    policies = [_summary(run, summary) for run, summary in zip(results.runs, summaries, strict=True)]
    common = {name: value for key in _ALONE for name, value in getattr(slow, key).to_dict(key).items()}
    common |= slow.slow_forwards.to_dict("slow_forwards_slow_only")
    note = _gap_note(slow)
    if single:
        return {**common, **policies[0], "note": note}
    several: dict[str, Any] = {**common, "policies": policies, "note": note}
    if results.recovery:
        several["rate_at_recovery"] = {name: _recovery(rates) for name, rates in results.recovery.items()}
    return several


def _summary(run: ev.Run, summary: ev.Summary) -> dict[str, Any]:
    """A policy's figures, and per answer what became of drafts (``slow_forwards`` is per answer already)."""
    return summary.to_dict() | {f"{name}_per_answer": float(run.column(name).mean()) for name in _COUNTS}


def _recovery(rates: dict[str, dict[float, ev.Estimate]]) -> dict[str, dict[str, Any]]:
    by_level: dict[str, dict[str, Any]] = {}
    for rate, levels in rates.items():
        for level, estimate in levels.items():
            by_level.setdefault(f"{level:g}", {}).update(estimate.to_dict(rate))
    return by_level


def _gap_note(summary: ev.Summary) -> str | None:
    if summary.recovered_gap.value is not None:
        return None
    return (
        f"accuracy_slow - accuracy_fast is {percent(summary.gap)}: its interval does not lie above 0, so no recovered "
        "gap is given. Take more prompts, or a pair that differs."
    )


def show(head: dict[str, Any], results: Results) -> None:
    """Tables on standard output, warnings beside them."""
    console = out()
    *policies, fast, slow = results.summaries
    console.print(
        Text(
            f"{head['n']} problems ({head['problems']}); {head['pair']['fast']} + {head['pair']['slow']}; "
            f"method {results.method}",
            style="bold",
        )
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
    table.add_column("policy", overflow="fold")
    for heading in ("right", "gap\nrecovered", "escalated", "slow\ntokens", "slow\nreads", "slow\nsteps"):
        # An interval is the widest cell: on 80 columns the policy's name is what folds, where it may.
        table.add_column(heading, justify="right", min_width=9, no_wrap=True)
    table.add_row(*_row(fast, alone=True), end_section=True)
    for number, summary in enumerate(policies, 1):
        table.add_row(*_row(summary, results.label(summary.policy)), end_section=number == len(policies))
    table.add_row(*_row(slow, alone=True))
    console.print(table)
    console.print(Text(_legend(head, slow), style="dim"))
    if results.recovery and slow.recovered_gap.value is not None:
        console.print(_recovery_table(results))
    if results.method != "replace":
        console.print(_drafts_table(results))
    if note := _gap_note(slow):
        console.print(Text(note, style="yellow"))
    for summary in results.summaries:
        if summary.truncated:
            say(f"{summary.policy}: {summary.truncated} answers met --max-tokens or the context", "yellow")
        if summary.degraded:
            say(f"{summary.policy}: in {summary.degraded} answers the slow model failed or met a cap", "bold red")


def _recovery_table(results: Results) -> Table:
    title = "share of the tokens that the slow model writes, where this much of the gap is recovered"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left", title_style="dim")
    table.add_column("sweep of", no_wrap=True)
    levels = next(iter(results.recovery.values()))["slow_token_share"]
    for level in levels:
        table.add_column(f"{level:.0%}", justify="right", no_wrap=True)
    for name, rates in results.recovery.items():
        table.add_row(Text(folded(name)), *(_cell(estimate) for estimate in rates["slow_token_share"].values()))
    return table


def _drafts_table(results: Results) -> Table:
    """What became of drafts, where the method judges them."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="per answer", title_justify="left", title_style="dim")
    table.add_column("policy", overflow="fold")
    for name in _COUNTS:
        table.add_column(name.replace("_", " "), justify="right", no_wrap=True)
    for run in results.runs:
        table.add_row(Text(folded(run.policy, 26)), *(f"{run.column(name).mean():.2f}" for name in _COUNTS))
    return table


def _legend(head: dict[str, Any], slow: ev.Summary) -> str:
    return (
        "Percentages; below each its 95% interval "
        f"(bootstrap by prompt, {head['resamples']} draws, seed {head['seed']}). gap recovered: (right - fast alone) / "
        "(slow alone - fast alone); escalated: share of decisions; slow tokens: share of what was written; slow reads: "
        "share of prompt and answer positions that the slow model read (above 100% where it read drafts that were "
        "discarded); slow steps: sequential ones, as a share of the slow model's alone "
        f"({slow.slow_forwards.value:.1f} an answer)."
    )


def _row(summary: ev.Summary, label: str | None = None, *, alone: bool = False) -> list[str | Text]:
    rates = ("escalation_rate", "slow_token_share", "slow_position_share", "slow_forwards_relative")
    recovered = Text("") if alone else _cell(summary.recovered_gap)
    return [
        Text(folded(label or summary.policy)),
        _cell(summary.accuracy),
        recovered,
        *(_cell(getattr(summary, rate)) for rate in rates),
    ]


def _cell(estimate: ev.Estimate) -> Text:
    """A percentage and, dim below it, its interval."""
    if estimate.value is None:
        return Text("-")
    text = Text(f"{estimate.value:.1%}")
    # An interval of no width says nothing: the figure is fixed by what the policy is.
    if estimate.interval and estimate.interval[0] != estimate.interval[1]:
        text.append(
            "\n{}–{}".format(*(f"{100 * edge:.1f}".replace("100.0", "100") for edge in estimate.interval)), style="dim"
        )
    return text


def folded(name: str, width: int = 18) -> str:
    """A policy's name on several lines where it is longer than ``width``, never broken within a word or a number."""
    lines = [""]
    for part in re.split(r"(?=[:<>,])", name):
        if lines[-1] and len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def show_plot(path: Path, results: Results, *, pair: str) -> None:
    """Write the plot: accuracy against the share of tokens that the slow model wrote."""
    from ..evaluation.plots import quality_plot

    by_name = {summary.policy: summary for summary in results.summaries}
    in_sweep = {run.policy for runs in results.sweeps.values() for run in runs}
    single = {results.label(run.policy): [by_name[run.policy]] for run in results.runs if run.policy not in in_sweep}
    curves = {name: [by_name[run.policy] for run in runs] for name, runs in results.sweeps.items()}
    # What the slow model wrote means the same for every method; escalations do not.
    quality_plot(
        path,
        curves | single,
        rate="slow_token_share",
        title="Quality against the slow model's share",
        pair=pair,
        method=results.method,
    )
    say(f"Plot written to {path}")
