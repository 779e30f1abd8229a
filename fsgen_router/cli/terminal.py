"""Consoles, JSON output, reading prompts, and errors as exit codes."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from ..errors import ConfigurationError, FsgenError, InvalidRequest
from ..evaluation import Estimate
from ..json_forms import dumps
from ..report.layout import MAX_COLUMNS

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
_EXIT_BROKEN_PIPE = 141  # as if SIGPIPE had ended the program, which is what a shell expects


_LEAST_COLUMNS = 80  # which tables of figures are made for


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # one place for it: Group


def out() -> Console:
    """Standard output, for people."""
    return _console(stderr=False)


def err() -> Console:
    """Standard error: messages, progress, reports."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    console = _Console(stderr=stderr, highlight=False)
    if console.width > MAX_COLUMNS:  # longer lines are hard to read
        console.width = MAX_COLUMNS
    return console


def say(message: str, style: str = "dim") -> None:
    """One message on standard error."""
    err().print(Text(message, style=style))


def show_table(table: Table) -> None:
    """A table of figures. On a narrow terminal its lines go on beyond the edge, rather than lose figures."""
    console = out()
    console.width = max(console.width, _LEAST_COLUMNS)
    console.print(table)


def write(text: str) -> None:
    """Text as it is on standard output, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def write_json(value: Any, *, indent: int | None = None) -> None:
    """One JSON value on a line of its own; numbers that are not finite become null."""
    write(dumps(value, indent=indent) + "\n")


def percent(estimate: Estimate, unknown: str = "unknown") -> str:
    """A share and its interval, or ``unknown``."""
    if estimate.value is None:
        return unknown
    span = f" [{estimate.interval[0]:.1%}, {estimate.interval[1]:.1%}]" if estimate.interval else ""
    return f"{estimate.value:.1%}{span}"


def show_error(error: FsgenError) -> None:
    """Message and way out on standard error."""
    console = err()
    console.print(Text.assemble(("Error: ", "bold red"), error.message), soft_wrap=True)
    if error.hint:
        console.print(Text.assemble(("Hint: ", "bold"), error.hint), soft_wrap=True)


def exit_code(error: FsgenError) -> int:
    """2 for what was asked wrongly, 1 for what failed."""
    return EXIT_USAGE if isinstance(error, (ConfigurationError, InvalidRequest)) else EXIT_FAILED


class Group(TyperGroup):
    """The one place where errors become exit codes."""

    def invoke(self, ctx: Any) -> Any:
        if sys.stdout is None:
            say("Error: there is no standard output to write to", style="bold red")
            raise typer.Exit(EXIT_FAILED)
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except FsgenError as error:
            show_error(error)
            raise typer.Exit(exit_code(error)) from None
        except ImportError as error:
            if "fsgen-router[" not in str(error):
                raise  # a bug, not a missing extra
            err().print(Text.assemble(("Error: ", "bold red"), str(error)), soft_wrap=True)
            raise typer.Exit(EXIT_FAILED) from None
        except KeyboardInterrupt:
            say("\nInterrupted.")
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except BrokenPipeError:
            _drop_output()  # whoever read it has seen enough
            raise typer.Exit(_EXIT_BROKEN_PIPE) from None
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
                raise
            _drop_output()
            say(f"Error: the output cannot be written: {error.strerror}", style="bold red")
            raise typer.Exit(EXIT_FAILED) from None
        except Exception as error:
            _list_what_exists(error)
            raise
        return result


def _drop_output() -> None:
    """Leave nothing that Python would flush at its end, into what takes no more."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _list_what_exists(error: Any) -> None:
    """An unknown option far from any other: let the message list those that there are."""
    # By its attributes, because the class is typer's own or click's, depending on typer's version.
    context = getattr(error, "ctx", None)
    if hasattr(error, "option_name") and not getattr(error, "possibilities", True) and context is not None:
        error.possibilities = [
            name for parameter in context.command.params for name in parameter.opts if name[:2] == "--"
        ]


# --- prompts -------------------------------------------------------------------------------------


def decode(data: bytes, what: str = "standard input") -> str:
    """UTF-8 bytes as text; :class:`InvalidRequest` names the first byte that is wrong."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"{what} is not valid UTF-8: byte 0x{data[error.start]:02x} at offset {error.start} ({error.reason})",
            hint="convert it first, for example with iconv -f LATIN1 -t UTF-8",
        ) from None


def read_prompt(prompt: str | None) -> str:
    """The prompt of the command line, or of standard input (for ``-``, or when it is piped)."""
    if prompt is not None and prompt != "-":
        return prompt
    if prompt is None and sys.stdin.isatty():
        raise InvalidRequest("no prompt was given", hint="write it behind the command, or pipe it in")
    text = decode(sys.stdin.buffer.read())
    # The newline that echo and editors add is not part of the prompt.
    return text.removesuffix("\n").removesuffix("\r")
