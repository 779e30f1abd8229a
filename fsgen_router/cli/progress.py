"""A bar on standard error for commands that go through stages."""

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
    console = err()
    columns = (
        TextColumn("{task.description:<20.20}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        yield StageBars(bars)
