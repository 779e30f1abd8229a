"""Bars on standard error, and one for commands that go through stages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .terminal import err, say


class StageBars:
    """A bar for the stage at hand on a terminal; a line per stage elsewhere."""

    def __init__(self, bars: Progress) -> None:
        self._bars, self._task = bars, bars.add_task("loading", total=None)

    def begin(self, stage: str, total: int) -> None:
        self._bars.reset(self._task, description=stage, total=total)
        if not self._bars.console.is_terminal:
            say(stage)

    def advance(self, count: int) -> None:
        self._bars.advance(self._task, count)


@contextmanager
def stage_bars() -> Iterator[StageBars]:
    """The bar, while a command runs."""
    with progress_bars(20) as bars:
        yield StageBars(bars)


@contextmanager
def progress_bars(width: int) -> Iterator[Progress]:
    """Bars where standard error is a terminal; descriptions take ``width`` columns."""
    console = err()
    columns = (
        TextColumn(f"{{task.description:<{width}.{width}}}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        yield bars
