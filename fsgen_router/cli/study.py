"""``fsgen-router study``: FS-GEN's study on one's own models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from .. import study as st
from ..evaluation import Estimate
from ..study.report import check_folder, fit_study, results_record
from . import options as o
from .evaluate_show import folded
from .progress import stage_bars
from .terminal import EXIT_FAILED, out, say, write_json

R = TypeVar("R", st.CellResult, st.PolicyResult)


def study(
    file: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="What to run: pairs, methods, data sets.")],
    folder: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FOLDER",
            help="Where results.csv, results.json, report.html and the work directory go.",
            show_default="NAME-results, beside you",
            rich_help_panel="Output",
        ),
    ] = None,
    jobs: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            help="Pairs that run side by side, each in a process of its own: for small models, on several cores.",
        ),
    ] = 1,
    as_json: o.Json = False,
) -> None:
    """Measure how often a slow model changes a fast one's tokens, where, and what that is worth.

    Every pair runs with every method on every data set, the slow model asked at every token. A cell reports the
    collaboration frequency with the quality of both models and of the collaboration beside it, where mismatches fall,
    and how well the fast model's uncertainty tells them, each with its 95% interval by prompt.

    Run it again to go on where it was stopped: what is finished is kept. A cell that fails says why, and the others
    go on. Then look at report.html, and fit the law: fsgen-router law --table FOLDER/results.csv.

    Examples:

      fsgen-router study examples/study.toml

      fsgen-router study study.toml --out results --json

      fsgen-router study examples/study_family.toml --jobs 2
    """
    config = st.read_study(file)
    target = check_folder(folder if folder is not None else Path(f"{file.stem}-results"))
    with stage_bars() as bars:
        done = st.run_study(config, work=target / "work", jobs=jobs, progress=bars)
        bars.begin("results", 1)
        written = st.write_results(done, target)
    if as_json:
        write_json(results_record(done, fit_study(done)))
    else:
        _show(done)
        if any(policy.found is not None for policy in done.policies):
            _show_policies(done)
    by_error: dict[tuple[str, str], list[st.CellResult]] = {}
    for cell in done.cells:
        if cell.error is not None:
            by_error.setdefault((_pair(cell), cell.error), []).append(cell)
    for (pair, error), cells in by_error.items():
        which = f", {cells[0].key.method}, {cells[0].key.dataset}" if len(cells) == 1 else f", {len(cells)} cells"
        say(f"{pair}{which}: {error}", "bold red")
    for policy in done.policies:
        if policy.error is not None:
            say(f"{_pair(policy)}, {policy.key.method}, {policy.key.dataset}: {policy.error}", "bold red")
    say(f"Written: {', '.join(map(str, written))}")
    if not done.measured:
        raise typer.Exit(EXIT_FAILED)


def _pair(cell: st.CellResult | st.PolicyResult) -> str:
    return f"{cell.key.fast} + {cell.key.slow}"


def _show(done: st.Study) -> None:
    """A table for each pair that has figures."""

    def row(cell: st.CellResult) -> list[Text]:
        found = cell.found
        assert found is not None
        shares = (found.cof, found.accuracy_fast, found.accuracy, found.accuracy_slow)
        return [*map(_share, shares), _number(found.auroc["entropy_nats"])]

    headings = ("CoF", "fast\nright", "both\nright", "slow\nright", "AUROC\nentropy")
    _tables(done, done.measured, row, ("method", 12), headings)
    _legend(
        "CoF: share of tokens at which the collaboration's is not the fast model's own, the slow model asked at every "
        "one. Percentages; below each its 95% interval by prompt."
    )


def _show_policies(done: st.Study) -> None:
    """A table for each pair whose policies have figures."""

    def row(policy: st.PolicyResult) -> list[Text]:
        found = policy.found
        assert found is not None
        figures = [*map(_share, (found.accuracy, found.routed, found.escalated))]
        return [*figures, *map(_ratio, (found.slow_forwards, found.slow_positions))]

    headings = ("right", "token\nrouting", "escalated", "slow\nsteps", "slow\nreads")
    measured = [policy for policy in done.policies if policy.found is not None]
    _tables(done, measured, row, ("policy", 16), headings)
    _legend(
        "Token routing: what entropy thresholds reach at as many sequential slow steps. Escalated: share of prompts. "
        "Slow steps, and tokens that the slow model reads (prompts included), per token that it writes alone."
    )


def _tables(
    done: st.Study,
    results: Sequence[R],
    row: Callable[[R], list[Text]],
    named: tuple[str, int],
    headings: Sequence[str],
) -> None:
    """A table for each pair; ``named`` is what the first column holds, and its width."""
    for pair, group in groupby(results, _pair):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title=pair, title_justify="left")
        table.add_column(named[0], overflow="fold")
        table.add_column("data set", overflow="fold")
        for heading in headings:
            table.add_column(heading, justify="right", no_wrap=True)
        for one in group:
            seed = f", seed {one.key.seed}" if len(done.config.seeds) > 1 else ""
            table.add_row(Text(folded(one.key.method, named[1])), Text(f"{one.key.dataset}{seed}"), *row(one))
        out().print(table)


def _legend(text: str) -> None:
    out().print(Text(text, style="dim"))


def _share(estimate: Estimate) -> Text:
    return _cell(estimate, "{:.1%}", lambda edge: f"{100 * edge:.1f}".replace("100.0", "100"))


def _ratio(estimate: Estimate) -> Text:
    return _cell(estimate, "{:.2f}", "{:.2f}".format)


def _number(estimate: Estimate) -> Text:
    return _cell(estimate, "{:.3f}", lambda edge: f"{edge:.3f}".removeprefix("0"))


def _cell(estimate: Estimate, form: str, edge: Callable[[float], str]) -> Text:
    if estimate.value is None:
        return Text("-")
    text = Text(form.format(estimate.value))
    if estimate.interval is not None:
        text.append("\n" + "–".join(map(edge, estimate.interval)), style="dim")
    return text
