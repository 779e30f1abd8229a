"""Plots of rates against the ratio of sizes, with the law and its band (extra ``eval``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..evaluation.plots import (
    curve_style,
    figure_bytes,
    new_figure,
    percent_shown,
    write_atomically,
)
from .cells import CellFit
from .fitting import Array


def fits_plot(path: str | Path, fits: Sequence[CellFit], *, title: str) -> None:
    """Write :func:`fits_figure` to a file, whole or not at all."""
    target = Path(path)
    write_atomically(target, figure_bytes(fits_figure(fits, title=title), target.suffix[1:].lower()))


def fits_figure(fits: Sequence[CellFit], *, title: str) -> Any:
    """Every cell's points with its law: a panel a data set, a colour a method. A matplotlib figure."""
    datasets = list(dict.fromkeys(fit.cell.dataset for fit in fits))
    methods = list(dict.fromkeys(fit.cell.method for fit in fits))
    figure, panels = ratio_panels(
        {name: [fit.cell.ratio for fit in fits if fit.cell.dataset == name] for name in datasets}
    )
    for fit in fits:
        style = curve_style(methods.index(fit.cell.method))
        axes = panels[datasets.index(fit.cell.dataset)]
        axes.plot(
            fit.cell.ratio, fit.cell.cof, linestyle="", marker=style["marker"], markersize=4, color=style["color"]
        )
        draw_fit(axes, fit, style["color"])
    # Room for the legend above the points.
    top = max(float(fit.cell.cof.max()) for fit in fits) * (1.1 + 0.06 * len(methods))
    for axes in panels:
        axes.legend(fontsize="x-small", frameon=False, loc="upper left")
        axes.set_ylim(0, top)
    panels[0].set_ylabel("CoF")
    figure.suptitle(title, fontsize="medium")
    return figure


def draw_fit(axes: Any, fit: CellFit, colour: str) -> None:
    """The law and its 95% band over the ratios that were measured, where there are more points than parameters."""
    power = fit.forms.get("power")
    if power is None or len(fit.cell) <= len(power.values):
        return
    ratios = np.geomspace(fit.cell.ratio.min(), fit.cell.ratio.max(), 100)
    one = np.ones_like(ratios)
    values = ", ".join(f"{value:.3g}" for value in power.values.values())
    fitted = "" if power.r2 is None else f"; R² {power.r2:.2f}"
    label = f"{fit.cell.method}: a, α, b = {values}{fitted}"
    axes.plot(ratios, power.curve(ratios, one), color=colour, linewidth=1.3, label=label)
    band = power.band(ratios, one)
    if band is not None:
        axes.fill_between(ratios, *band, color=colour, alpha=0.12, linewidth=0)


def ratio_panels(datasets: Mapping[str, Sequence[Array]]) -> tuple[Any, list[Any]]:
    """A panel for each data set over a logarithmic axis that holds its ratios; panels share their height."""
    rows = -(-len(datasets) // 2)
    figure = new_figure(7.5 if len(datasets) == 1 else 11.0, 4.6 * rows)
    columns = min(len(datasets), 2)
    panels = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
    for axes in panels[len(datasets) :]:
        axes.remove()
    panels = panels[: len(datasets)]
    for axes, (dataset, ratios) in zip(panels, datasets.items(), strict=True):
        axes.set_xscale("log")
        together = np.concatenate(ratios)
        axes.set_xlim(together.min() / 1.25, together.max() * 1.25)  # a single ratio has room, too
        axes.set_title(dataset, fontsize="medium")
        axes.set_xlabel("R = slow / fast, in parameters")
        axes.xaxis.set_major_formatter(lambda value, _position: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda value, _position: f"{value:g}" if f"{value:g}"[0] in "25" else "")
        axes.yaxis.set_major_formatter(percent_shown)
        axes.grid(alpha=0.25)
    return figure, panels
