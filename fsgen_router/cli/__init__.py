"""The command line: one module per command, what they share in ``terminal`` and ``options``.

Standard output carries the answer (or one JSON value with ``--json``), standard error everything
else. Exit codes: 0 done, 1 failed while running, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from .. import __version__
from . import calibrate, chat, complete, demo, doctor, evaluate, law, policy, recommend, serve, study, trace
from .terminal import Group

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    # A traceback with local variables would print prompts.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "A small model writes; a large one is called in only where the next tokens are uncertain.\n\n"
        "Every command runs on the embedded [bold]reference pair[/] until you name your own models with "
        "[cyan]--fast[/] and [cyan]--slow[/]. Start with [cyan]fsgen-router demo[/]."
    ),
    epilog=(
        "Answers go to standard output, messages and progress to standard error. "
        "Exit codes: 0 done, 1 failed while running, 2 wrong usage, 130 interrupted."
    ),
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fsgen-router {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    del version


def _add(name: str, command: Callable[..., Any]) -> None:
    app.command(name, help=_unwrapped(inspect.getdoc(command) or ""))(command)


def _unwrapped(text: str) -> str:
    """A docstring whose paragraphs are lines, for the terminal to wrap; the lines of the source fit no other width."""
    paragraphs = (part if part.startswith(" ") else part.replace("\n", " ") for part in text.split("\n\n"))
    return "\n\n".join(paragraphs)


_add("demo", demo.demo)
_add("complete", complete.complete)
_add("chat", chat.chat)
_add("serve", serve.serve)
_add("eval", evaluate.evaluate)
_add("trace", trace.trace)
_add("calibrate", calibrate.calibrate)
app.add_typer(policy.app, name="policy")
_add("recommend", recommend.recommend)
_add("study", study.study)
app.add_typer(law.app, name="law")
_add("doctor", doctor.doctor)


def main() -> None:
    """The ``fsgen-router`` command."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal in an old encoding shows "?" instead of ending the program.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    app(prog_name="fsgen-router")
