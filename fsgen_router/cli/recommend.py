"""``fsgen-router recommend``: which mode pays, on your prompts and this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from .. import recommend as rec
from ..calibration import CHECKERS
from ..errors import ConfigurationError
from ..evaluation import Estimate
from ..evaluation.intervals import RESAMPLES
from ..records import Prices
from ..report.numbers import si
from . import options as o
from .progress import stage_bars
from .terminal import out, say, show_table, write_json

_PROMPTS, _WISHES = "Prompts", "What matters"


def recommend(
    fast: o.Fast = None,
    slow: o.Slow = None,
    middle: Annotated[
        str | None,
        typer.Option(
            metavar="BACKEND:WHERE",
            help="A third model, of middle size: it is measured alone, and paired with each of the two.",
            show_default=False,
            rich_help_panel="Models",
        ),
    ] = None,
    tuned: o.Tuned = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.jsonl",
            help='{"prompt": ...} or {"messages": [...]} a line, with an "answer" where there is one. Needed for '
            "models of your own.",
            show_default="the reference pair's own problems",
            rich_help_panel=_PROMPTS,
        ),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="How many: the first of the file, or of the reference pair's problems.",
            show_default=f"all of the file; {rec.DEFAULT_COUNT} of the reference pair's",
            rich_help_panel=_PROMPTS,
        ),
    ] = None,
    check: Annotated[
        str | None,
        typer.Option(
            metavar="CHECKER",
            help=f"When an answer is right: {', '.join(CHECKERS)}. [cyan]python:[/] imports code that you name.",
            show_default="answer, or slow where answers are missing",
            rich_help_panel=_PROMPTS,
        ),
    ] = None,
    max_tokens: o.MaxTokens = o.MAX_TOKENS,
    stop: o.Stop = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="POLICY",
            help="Measure this one too, a short form or a policy file; may be repeated.",
            show_default=False,
            rich_help_panel="Routing",
        ),
    ] = None,
    quality_loss: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="How much accuracy may be lost against the slow model alone, as a share of the prompts.",
            rich_help_panel=_WISHES,
        ),
    ] = rec.DEFAULT_QUALITY_LOSS,
    prefer: Annotated[
        str, typer.Option(help=f"What is to be saved: {', '.join(rec.PREFERENCES)}.", rich_help_panel=_WISHES)
    ] = "seconds",
    input_price: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="US dollars per million tokens that the slow model reads.",
            show_default=False,
            rich_help_panel=_WISHES,
        ),
    ] = None,
    output_price: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="US dollars per million tokens that it writes.",
            show_default=False,
            rich_help_panel=_WISHES,
        ),
    ] = None,
    at_once: Annotated[
        int,
        typer.Option(
            min=1, help="Requests at a time, measured beside one; 1 leaves that out.", rich_help_panel=_WISHES
        ),
    ] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of turns and of intervals.")] = 0,
    resamples: Annotated[int, typer.Option(min=100, help="Bootstrap draws, by prompt.")] = RESAMPLES,
    work: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Keeps what is finished: the same command goes on after an interruption.",
            show_default="beside --report; without one, nothing is kept",
            rich_help_panel="Output",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", help="Write a page.", show_default=False, rich_help_panel="Output"),
    ] = None,
    as_json: o.Json = False,
) -> None:
    """Measure what a pair can do on your prompts, and say which of it to use.

    Each model alone, routing by token, speculative decoding, drafts judged loosely, handing over the rest of an answer,
    and one decision for a whole answer are measured in turns: quality, seconds, tokens per second, FLOPs and money,
    against the slow model alone. "Do not route", "the fast model is enough" and "plain speculative decoding" are
    answers too, and so is that the prompts were too few, with how many would do.

    Examples:

      fsgen-router recommend --count 16

      fsgen-router recommend --fast llama_cpp:a.gguf --slow llama_cpp:b.gguf \\
        --prompts problems.jsonl --check number --report result.html

      fsgen-router recommend --prefer money --input-price 0.5 --output-price 1.5
    """
    with stage_bars() as progress:
        found = rec.recommend(
            fast,
            slow,
            prompts,
            middle=middle,
            tuned=tuned,
            policies=tuple(policy or ()),
            check=check,
            count=count,
            quality_loss=quality_loss,
            prefer=prefer,
            prices=_prices(input_price, output_price),
            at_once=at_once,
            max_tokens=max_tokens,
            stop=tuple(stop or ()),
            seed=seed,
            resamples=resamples,
            work=work,
            report=report,
            progress=progress,
        )
    if as_json:
        write_json(found.to_dict())
    else:
        show(found)
    if report is not None:
        say(f"Report written to {report}")


def _prices(read: float | None, written: float | None) -> Prices | None:
    if (read is None) != (written is None):
        raise ConfigurationError("one price without the other", hint="give --input-price and --output-price")
    return None if read is None or written is None else Prices(read, written)


# --- results -------------------------------------------------------------------------------------


def show(found: rec.Recommendation) -> None:
    """The verdict, why, how to have it, and the table."""
    console = out()
    style = {"undecided": "bold yellow"}.get(found.advice.verdict, "bold green")
    console.print(Text(f"{rec.headline(found.advice)}.", style=style))
    for sentence in found.evidence:
        console.print(Text(sentence))
    console.print()
    console.print(Text(found.python), soft_wrap=True)
    if found.options:
        console.print(Text(f"fsgen-router complete {found.options}"), soft_wrap=True)
    show_table(modes_table(found))
    console.print(Text(_legend(found), style="dim"))
    for note in found.notes:
        say(note, "yellow")
    for one in found.figures:
        if one.truncated and not one.derived:
            say(f"{one.mode.name}: {one.truncated} answers met --max-tokens or the context", "yellow")


def modes_table(found: rec.Recommendation) -> Table:
    """A row a mode; below each figure its interval."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
    table.add_column("mode", overflow="fold", min_width=14)
    headings = ["right", "loss", "seconds", "FLOPs", "tok/s"]
    headings += [f"tok/s\n{found.at_once} at once"] if found.at_once > 1 else []
    headings += ["money"] if found.prices is not None else []
    alone = found.figures[0].expected_seconds
    headings += ["expected"] if alone else []
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for number, one in enumerate(found.figures):
        last_alone = number + 1 < len(found.figures) and _alone(one) and not _alone(found.figures[number + 1])
        cells = [
            _cell(one.accuracy, _percent, _whole),
            _cell(one.quality_loss, _percent, _whole),
            _cell(one.seconds_relative, _times),
            _cell(one.flops_relative, _times),
            _cell(one.tokens_per_second, _three),
        ]
        cells += [_cell(one.tokens_per_second_at_once, _three)] if found.at_once > 1 else []
        cells += [_cell(one.money_relative, _times)] if found.prices is not None else []
        if alone:
            cells.append(Text("-" if one.expected_seconds is None else _times(one.expected_seconds / alone)))
        chosen = one.mode.name == found.advice.mode
        table.add_row(Text(one.mode.name, style="bold" if chosen else ""), *cells, end_section=last_alone)
    return table


def _alone(one: rec.Figures) -> bool:
    return one.mode.kind in ("slow", "fast", "middle", "tuned")


def _legend(found: rec.Recommendation) -> str:
    slow = found.figures[0]
    seconds = "unknown" if slow.seconds.value is None else f"{slow.seconds.value:.3g} s"
    flops = "" if slow.flops.value is None else f", {si(slow.flops.value)}FLOPs"
    several = f"; {found.at_once} at once by blocks" if found.at_once > 1 else ""
    return (
        f"{found.n} prompts ({found.source}), checker {found.check}, in turns; below each figure its 95% interval "
        f"(bootstrap by prompt{several}). loss: of accuracy against the slow model alone; seconds, FLOPs, money: as a "
        f"share of its own ({seconds} an answer{flops}). at prompt, at answer: one decision for a whole answer, by "
        "what the fast model makes of the prompt, or behind its answer, and the share that goes to the slow "
        "model; made of both models' own answers."
        + (" expected: seconds, by what forwards cost and how often the models part." if slow.expected_seconds else "")
    )


def _cell(estimate: Estimate, form: Callable[[float], str], edge: Callable[[float], str] | None = None) -> Text:
    """A figure and, dim below it, its interval."""
    if estimate.value is None:
        return Text("-")
    text = Text(form(estimate.value))
    if estimate.interval and estimate.interval[0] != estimate.interval[1]:
        low, high = map(edge or form, estimate.interval)
        text.append(f"\n{low}–{high}" if not low.startswith("-") else f"\n{low} to {high}", style="dim")
    return text


def _percent(value: float) -> str:
    return f"{100 * value + 0.0:.1f}%".replace("100.0", "100")


def _whole(value: float) -> str:
    return f"{100 * value + 0.0:.0f}"


def _times(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}"


def _three(value: float) -> str:
    if value >= 995:
        return f"{value / 1000:.2g}k" if value < 9950 else f"{value / 1000:,.0f}k"
    return f"{value:.0f}" if value >= 99.5 else f"{value:.3g}"
