"""Figures of a calibration: quality against three costs, and what the scores promised against what came true."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from ..evaluation import Estimate
from ..plots import draw_curve, draw_levels, figure_bytes, new_figure
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

_FAINT: Mapping[str, Any] = {"marker": ".", "linewidth": 0.9, "elinewidth": 0.5, "alpha": 0.65}
# Without the learned curve's own red.
_COLOURS = [f"tab:{colour}" for colour in ("blue", "orange", "green", "purple", "brown", "pink", "olive")]
_STYLES: Mapping[str, Mapping[str, Any]] = {
    "learned": {"linewidth": 2.4, "color": "tab:red", "zorder": 5},
    "oracle": {"linestyle": "--"},
}


def quality_figures(curves: Mapping[str, Curve]) -> dict[str, bytes]:
    """Accuracy against each of :data:`COSTS`, as PNG files by name. Bars are 95% intervals."""
    return {name: _quality(curves, label, axis) for name, (label, axis) in COSTS.items()}


def _quality(curves: Mapping[str, Curve], label: str, axis: Axis) -> bytes:
    figure = new_figure(8.5, 5.5)
    axes = figure.add_subplot()
    axes.set_prop_cycle(color=_COLOURS)
    draw_levels(axes, next(iter(curves.values())).points[0].summary)
    for name, curve in curves.items():
        points = [(x, p.summary.accuracy) for p in curve.points if (x := axis(p)) is not None]
        if points:
            own = name.startswith("learned") or name == "oracle"
            draw_curve(axes, name, points, **({} if own else _FAINT), **_STYLES.get(name, {}))
    axes.set_xlabel(label)
    axes.set_ylabel(f"accuracy over {next(iter(curves.values())).points[0].summary.n} prompts, 95% intervals")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.25)
    axes.legend(loc="best", fontsize="small")
    return figure_bytes(figure)


def reliability_figure(found: Mapping[str, Reliability]) -> bytes:
    """Mean label against mean score in bins of equal weight, as a PNG file."""
    figure = new_figure(5.5, 5.5)
    axes = figure.add_subplot()
    axes.set_prop_cycle(color=_COLOURS)
    axes.plot((0, 1), (0, 1), color="black", linestyle=":", linewidth=1)
    for name, bins in found.items():
        style = _STYLES.get(name, {"linewidth": 0.9})
        axes.plot(bins.score, bins.label, marker="o", markersize=4, label=name, **style)
    axes.set_xlabel("mean score of a bin")
    axes.set_ylabel("mean label of a bin")
    axes.grid(alpha=0.25)
    axes.legend(loc="best", fontsize="small")
    return figure_bytes(figure)
