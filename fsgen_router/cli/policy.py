"""``fsgen-router policy``: what a policy file says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from ..contracts.policy import REST
from ..policies import load_policy
from . import options as o
from .terminal import out, write_json

app = typer.Typer(no_args_is_help=True, help="Look at policy files.")


@app.callback()
def _group() -> None:
    """Look at policy files."""


def _extent(tokens: int) -> str:
    """How much the slow model then writes."""
    if tokens == REST:
        return "the rest of the answer at once"
    return f"{tokens} token{'s' * (tokens != 1)} at a time"


@app.command()
def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A policy file, as calibrate writes it.")],
    as_json: o.Json = False,
) -> None:
    """Print what a policy file is for, how it was made, and what it guarantees."""
    policy, card = load_policy(file)
    if as_json:
        record = card.model_dump(mode="json")
        write_json({**record, "name": policy.name, "threshold": policy.threshold, "extent": policy.extent})
        return
    console = out()
    console.print(Text(policy.name, style="bold"))
    if card.guarantee is None:
        console.print(Text("No guarantee: nothing is certified of this policy.", style="yellow"))
    else:
        made = card.guarantee
        console.print(
            Text(
                f"Guarantee: {made.sentence}. On those prompts {made.certified_rate:.1%} of the decisions escalated "
                f"and {made.loss} was {made.risk:.1%}; method {made.method}."
            )
        )
    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    drift, inputs = policy.drift, policy.inputs
    held = "" if policy.hold is None else f", follows a rate of {policy.hold.rate:g}"
    rows = {
        "pair": f"{card.pair.fast} + {card.pair.slow}",
        "vocabulary": card.pair.vocabulary,
        "made": f"{card.created or 'on an unknown day'}, seed {card.seed}, format {card.format}",
        "escalates": f"where the score is above {policy.threshold:.6g}, {_extent(policy.extent)}{held}",
        "score": f"{policy.scorer.name}, predicts {card.label}",
        "signals": ", ".join(card.signals),
        "prompts": ", ".join(f"{count} {split}" for split, count in card.splits.items()),
        "data": card.data_hash,
        "other prompts": "not told apart: the guarantee is claimed for any" if inputs is None else str(inputs),
        "drift": "not watched" if drift is None else f"alarm above {drift.alarm:.3g} ({drift.measure})",
        "libraries": ", ".join(f"{name} {version}" for name, version in card.versions.items()),
    }
    for name, value in rows.items():
        table.add_row(name, Text(value))
    for note in card.notes:
        table.add_row("note", Text(note))
    console.print(table)
    if card.metrics:
        figures = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        figures.add_column("on the report prompts")
        figures.add_column("value", justify="right")
        figures.add_column("95% interval", justify="right")
        for name, metric in card.metrics.items():
            span = "" if metric.interval is None else "{:.3f} to {:.3f}".format(*metric.interval)
            figures.add_row(name, "-" if metric.value is None else f"{metric.value:.3f}", span)
        console.print(figures)
