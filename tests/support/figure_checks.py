"""What a reader sees of a matplotlib figure's curves."""

from __future__ import annotations

from typing import Any

from fsgen_router.evaluation.plots import curve_style

MARKERS = {curve_style(number)["marker"] for number in range(20)}


def looks(axes: Any) -> list[tuple[str, str, str]]:
    """Colour, line and marker of every curve of a panel in order; levels and marks have no markers."""
    return [
        (str(line.get_color()), repr(line._dash_pattern), line.get_marker())
        for line in axes.get_lines()
        if line.get_marker() in MARKERS
    ]
