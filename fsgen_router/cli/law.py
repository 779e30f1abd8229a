"""``fsgen-router law``: how often pairs disagree, against the sizes of their models."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer
from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from .. import law
from ..errors import ConfigurationError
from ..evaluation import Estimate, read_items, reference_items
from ..evaluation.plots import check_plot_path
from ..law.plots import fits_plot
from ..router import Router
from ..study import probe_pair
from . import options as o
from .terminal import EXIT_FAILED, out, say, write_json

_LAW, _PROBE = "Law", "Probe"

app = typer.Typer(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Fit FS-GEN's law, CoF = -a R^(-alpha) + b, and two simpler forms to each method and data set of a table.\n\n"
        "CoF is the collaboration frequency: the share of tokens at which a method's token is not the fast model's own "
        "best one, with the slow model asked everywhere. R is the ratio of the two models' sizes. Left out, the table "
        "is the one that FS-GEN published."
    ),
)

TableFile: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--table",
        metavar="FILE",
        help=f"A study's results.csv or results.json, or your own table with {', '.join(law.COLUMNS)}.",
        show_default="the published one",
        rich_help_panel=_LAW,
    ),
]
CellMethod: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--method",
        metavar="METHOD",
        help="Only this method of the table; replace finds the paper's oracle.",
        show_default="all",
        rich_help_panel=_LAW,
    ),
]
Dataset: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Only this data set of the table.", show_default="all", rich_help_panel=_LAW),
]
Resamples: TypeAlias = Annotated[int, typer.Option(min=100, help="Bootstrap draws, by pair.", rich_help_panel=_LAW)]
Seed: TypeAlias = Annotated[int, typer.Option(help="Of the bootstrap.", rich_help_panel=_LAW)]


@app.callback()
def fits(
    context: typer.Context,
    table: TableFile = None,
    method: CellMethod = None,
    dataset: Dataset = None,
    resamples: Resamples = 1000,
    seed: Seed = 0,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png",
            help="Plot rates against the ratio of sizes, with the law and its band.",
            show_default=False,
            rich_help_panel="Output",
        ),
    ] = None,
    as_json: o.Json = False,
) -> None:
    """The fits of a table, one line a cell."""
    if context.invoked_subcommand is not None:
        given = [name for name in ("table", "method", "dataset", "plot", "as_json") if context.params[name]]
        if given:
            option = f"--{given[0].removeprefix('as_')}"
            raise ConfigurationError(
                f"{option} stands before {context.invoked_subcommand!r}",
                hint=f"write it behind: law {context.invoked_subcommand} {option}",
            )
        return
    if plot is not None:
        check_plot_path(plot)
    read = _read(table)
    fitted = [law.fit_cell(cell, seed=seed, resamples=resamples) for cell in read.select(method, dataset)]
    if as_json:
        write_json([fit.to_dict() for fit in fitted])
    else:
        _show(read, fitted)
    for fit in fitted:
        if fit.error is not None:
            say(f"{fit.cell.method} on {fit.cell.dataset}: {fit.error}", "yellow")
    if plot is not None and any(fit.forms for fit in fitted):
        fits_plot(plot, [fit for fit in fitted if fit.forms], title=f"CoF = -a R^(-α) + b, {read.source}")
        say(f"Plot written to {plot}")
    if not any(fit.forms for fit in fitted):
        raise typer.Exit(EXIT_FAILED)


def _read(path: Path | None) -> law.Table:
    return law.published_table() if path is None else law.read_table(path)


def _show(read: law.Table, fitted: list[law.CellFit]) -> None:
    console = out()
    console.print(Text(f"CoF = -a R^(-alpha) + b, by cell of {read.source}", style="bold"))
    table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("method")
    table.add_column("data set")
    for heading in ("n", "a", "alpha", "b", "R2/LOO", "ln R\nR2/LOO", "sizes\nR2/LOO"):
        table.add_column(heading, justify="right", no_wrap=True)
    for fit in fitted:
        table.add_row(Text(fit.cell.method), Text(fit.cell.dataset), str(len(fit.cell)), *_numbers(fit))
    console.print(table)
    console.print(
        Text(
            "R2 in sample, LOO at pairs left out. ln R: c0 + c1 ln R; sizes: c0 + c1 ln slow + c2 ln fast. "
            "* at its bound; ? not identified: other values do about as well, read the curve and not the parameters. "
            "--json has all parameters and their bootstrap intervals.",
            style="dim",
        )
    )
    for fit in fitted:
        for warning in fit.warnings:
            if not warning.startswith(("not identified", "alpha sits", "a sits", "b sits")):  # the table marks them
                console.print(Text(f"{fit.cell.method} on {fit.cell.dataset}: {warning}", style="yellow"))


def _numbers(fit: law.CellFit) -> list[str]:
    power = fit.forms.get("power")
    cells = ["-"] * 3
    if power is not None:
        cells = [f"{value:.3f}{'*' * (name in power.at_bound)}" for name, value in power.values.items()]
        if not power.identified:
            cells[1] += "?"
    for name in law.FORMS:
        one = fit.forms.get(name)
        cells.append(f"{_rounded(one.r2 if one else None)}/{_rounded(one.loo_r2 if one else None)}")
    return cells


def _rounded(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}".replace("0.", ".", 1)


@app.command()
def predict(
    fast: Annotated[
        str,
        typer.Option(
            metavar="SIZE",
            help="The small model: its parameters in billions (0.5), or a model string.",
            show_default=False,
        ),
    ],
    slow: Annotated[
        str,
        typer.Option(
            metavar="SIZE",
            help="The large model: its parameters in billions (7), or a model string.",
            show_default=False,
        ),
    ],
    table: TableFile = None,
    method: CellMethod = None,
    dataset: Dataset = None,
    form: Annotated[
        str,
        typer.Option(
            help="Which form: power (FS-GEN's law), log (c0 + c1 ln R), sizes (c0 + c1 ln slow + c2 ln fast).",
            rich_help_panel=_LAW,
        ),
    ] = "power",
    extrapolate: Annotated[
        bool,
        typer.Option("--extrapolate", help="Also above the largest ratio that was measured.", rich_help_panel=_LAW),
    ] = False,
    probe: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            help="Run the two models (given as model strings) on N prompts, 50 say, and tell which figure to trust.",
            rich_help_panel=_PROBE,
        ),
    ] = 0,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.jsonl",
            help="The probe's prompts: the first N lines of such a file as eval takes; answers may be missing.",
            show_default="the reference world's",
            rich_help_panel=_PROBE,
        ),
    ] = None,
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of the probe's answers at most.", rich_help_panel=_PROBE)
    ] = o.MAX_TOKENS,
    resamples: Resamples = 1000,
    seed: Seed = 0,
    as_json: o.Json = False,
) -> None:
    """The collaboration frequency that the law expects of a pair, with its band.

    A line for each method and data set of the table. The band is where the mean of such pairs lies (95%, bootstrap by
    pair); "one pair" adds the scatter of pairs around it. With --probe the pair itself is asked a few prompts, and what
    comes out is set against the law of the oracle (replace).

    Examples:

      fsgen-router law predict --fast 0.5 --slow 7 --method oracle --dataset gsm8k

      fsgen-router law predict --fast 0.5 --slow 7 --table results/results.csv

      fsgen-router law predict --fast llama_cpp:a.gguf --slow llama_cpp:b.gguf --probe 50 --prompts mine.jsonl
    """
    known = next((name for name in law.FORMS if name == form), None)
    if known is None:
        close = difflib.get_close_matches(form, law.FORMS, 1)
        hint = (f"did you mean {close[0]!r}? " if close else "") + f"available: {', '.join(law.FORMS)}"
        raise ConfigurationError(f"unknown form {form!r}", hint=hint)
    if probe:
        method = _probed_method(method)
    cells = _read(table).select(method, dataset)
    sizes, measured = _pair({"--fast": fast, "--slow": slow}, probe, prompts, max_tokens, seed)
    law.check_sizes(**sizes)
    found: list[tuple[law.Cell, law.Prediction | ConfigurationError]] = []
    for cell in cells:
        fit = law.fit_cell(cell, seed=seed, resamples=resamples)
        try:
            found.append((cell, law.predict(fit, **sizes, form=known, extrapolate=extrapolate, seed=seed)))
        except ConfigurationError as error:
            found.append((cell, error))
    refused = [one for _, one in found if isinstance(one, ConfigurationError)]
    if len(refused) == len(found) and measured is None:
        raise refused[0]
    predictions = [one for _, one in found if isinstance(one, law.Prediction)]
    if as_json:
        write_json([_record(cell, one, measured) for cell, one in found])
    else:
        if predictions:
            _show_predictions(predictions)
        if measured is not None:
            _show_probe(measured, probe, found)
    for refusal in refused:
        say(str(refusal), "yellow")


def _probed_method(method: str | None) -> str:
    """The probe measures the oracle, and can be set against nothing else."""
    if method is not None and method.casefold() not in ("oracle", "replace"):
        raise ConfigurationError(
            f"a probe measures the oracle (replace), not {method}", hint="leave --method out, or leave --probe out"
        )
    return method or "replace"


def _pair(
    given: dict[str, str], probe: int, prompts: Path | None, max_tokens: int, seed: int
) -> tuple[dict[str, float], Estimate | None]:
    """Both sizes in billions, and the probe's rate where it was asked for."""
    names = [option.removeprefix("--") for option in given]
    strings = {option: text for option, text in given.items() if ":" in text}
    if not strings:
        if probe:
            raise ConfigurationError("a probe runs the models", hint="name both as model strings, backend:where")
        return {name: _size(*item) for name, item in zip(names, given.items(), strict=True)}, None
    if len(strings) < len(given):
        raise ConfigurationError("one size and one model", hint="give two sizes, or two model strings")
    with Router(*given.values(), policy="always", method="replace") as router:
        sizes = {}
        for option, name, model in zip(given, names, (router.fast, router.slow), strict=True):
            if not model.n_params:
                raise ConfigurationError(f"{model.name} does not say its size", hint=f"give {option} as a number")
            sizes[name] = model.n_params / 1e9
        if not probe:
            return sizes, None
        items = reference_items("test", probe) if prompts is None else read_items(prompts, answers=False)[:probe]
        say(f"probing with {len(items)} prompts")
        return sizes, probe_pair(router, items, seed=seed, max_tokens=max_tokens, concurrency=8)


def _record(cell: law.Cell, found: law.Prediction | ConfigurationError, measured: Estimate | None) -> dict[str, Any]:
    record: dict[str, Any]
    if isinstance(found, law.Prediction):
        record = {**found.to_dict(), "error": None}
    else:
        record = {"method": cell.method, "dataset": cell.dataset, "cof": None, "cof_interval": None}
        record["error"] = found.message
    if measured is not None:
        believed = _trust(found, measured)
        record |= {"probe": measured.to_dict("cof"), "trust": believed.which, "reason": believed.reason}
    return record


def _trust(found: law.Prediction | ConfigurationError, measured: Estimate) -> law.Trust:
    return law.trust(found if isinstance(found, law.Prediction) else None, measured.value, measured.interval)


def _show_probe(
    measured: Estimate, count: int, found: list[tuple[law.Cell, law.Prediction | ConfigurationError]]
) -> None:
    console = out()
    value = "unknown" if measured.value is None else f"{measured.value:.1%}"
    console.print(Text(f"Probe of {count} prompts: {value} ({_span(measured.interval)})", style="bold"))
    for cell, one in found:
        believed = _trust(one, measured)
        console.print(Text(f"{cell.method} on {cell.dataset}: trust the {believed.which}: {believed.reason}"))


def _size(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigurationError(
            f"{option} {text!r} is not a number", hint="billions of parameters: 7 for a model of 7B"
        ) from None


def _show_predictions(found: list[law.Prediction]) -> None:
    console = out()
    first = found[0]
    pair = f"{law.size_text(first.fast)} + {law.size_text(first.slow)} (R = {first.ratio:.4g})"
    console.print(Text(f"Expected CoF of {pair}, by {first.form}", style="bold"))
    table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("method", overflow="fold")
    table.add_column("data set", overflow="fold")
    for heading in ("CoF", "95% band", "95% of one pair"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in found:
        spans = (_span(one.interval), _span(one.pair_interval))
        table.add_row(Text(one.method), Text(one.dataset), f"{one.cof:.1%}", *spans)
    console.print(table)
    # Said once for all cells that share it.
    by_warning: dict[str, list[str]] = {}
    for one in found:
        for warning in one.warnings:
            by_warning.setdefault(warning, []).append(f"{one.method} on {one.dataset}")
    for warning, cells in by_warning.items():
        where = "all of them" if len(cells) == len(found) > 1 else ", ".join(cells)
        console.print(Text(f"{where}: {warning}", style="yellow"))


def _span(interval: tuple[float, float] | None) -> str:
    return "-" if interval is None else f"{interval[0]:.1%} to {interval[1]:.1%}"
