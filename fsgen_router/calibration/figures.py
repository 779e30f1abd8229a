"""Figures of a calibration: quality against three costs, and what the scores promised against what came true."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from ..evaluation import Estimate
from ..evaluation.plots import (
    curve_style,
    draw_curve,
    draw_levels,
    figure_bytes,
    finish_figure,
    new_figure,
    percent_shown,
    plot_title,
    rate_panels,
)
from .curves import Curve, Point
from .metrics import Reliability

Axis: TypeAlias = Callable[[Point], Estimate | None]

COSTS: Mapping[str, tuple[str, Axis]] = {
    "escalation": ("escalation rate (of decisions; of prompts for whole queries)", lambda p: p.summary.escalation_rate),
    "slow_forwards": (
        "sequential slow steps, against the slow model alone",
        lambda p: p.summary.slow_forwards_relative,
    ),
    "cost": ("measured seconds, against the slow model alone", lambda p: p.cost),
}

_RATES = ("escalation", "slow_forwards")
"""Costs that are shares of 1, most of whose interest is below a fifth."""


def quality_figures(curves: Mapping[str, Curve], *, pair: str, method: str) -> dict[str, bytes]:
    """Accuracy against each of :data:`COSTS`, as PNG files by name. Bands are 95% intervals."""
    return {name: figure_bytes(quality_figure(curves, name, pair=pair, method=method)) for name in COSTS}


def quality_figure(curves: Mapping[str, Curve], cost: str, *, pair: str, method: str) -> Any:
    """The matplotlib figure of one of :data:`COSTS`. A curve looks the same in all of them."""
    label, axis = COSTS[cost]
    summary = next(iter(curves.values())).points[0].summary
    y_label = f"accuracy over {summary.n:,} report prompts, 95% intervals"
    figure, panels = rate_panels(label, y_label) if cost in _RATES else _one_panel(label, y_label)
    for axes in panels:
        draw_levels(axes, summary)
        for number, (name, curve) in enumerate(curves.items()):
            points = [(x, p.summary.accuracy) for p in curve.points if (x := axis(p)) is not None]
            band = 0.15 if name.startswith("learned") else 0.05  # so many would cover each other
            draw_curve(axes, name, points, band=band, **curve_style(number), **_weight(name))
    finish_figure(
        figure, panels[-1], plot_title("Calibration: quality against cost", pair=pair, method=method, n=summary.n)
    )
    return figure


def _one_panel(x_label: str, y_label: str) -> tuple[Any, list[Any]]:
    figure = new_figure(9.5, 5.6)
    axes = figure.add_subplot()
    axes.axvline(1.0, color="0.35", linestyle=":", linewidth=1.1, label="as long as the slow model alone", zorder=0)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.yaxis.set_major_formatter(percent_shown)
    axes.grid(alpha=0.25)
    return figure, [axes]


def _weight(name: str) -> Mapping[str, Any]:
    """What the calibration is about stands out."""
    own = name.startswith("learned")
    return {"linewidth": 2.6, "markersize": 6, "zorder": 5} if own else {"linewidth": 1.1, "markersize": 4}


def reliability_figure(found: Mapping[str, Reliability], *, pair: str, method: str, n: int) -> Any:
    """Mean label against mean score in bins of equal weight, as far as they reach: a matplotlib figure."""
    figure = new_figure(7.0, 6.2)
    axes = figure.add_subplot()
    reach = max(float(max(bins.score.max(), bins.label.max())) for bins in found.values())
    axes.plot((0, reach), (0, reach), color="0.35", linestyle=":", linewidth=1.1, label="as the score promises")
    for number, (name, bins) in enumerate(found.items()):
        axes.plot(bins.score, bins.label, label=name, **curve_style(number), **_weight(name))
    axes.set_xlabel("mean score of a bin")
    axes.set_ylabel("mean label of a bin")
    axes.set_aspect("equal")
    axes.grid(alpha=0.25)
    finish_figure(figure, axes, plot_title("Calibration: what scores promise", pair=pair, method=method, n=n))
    return figure
