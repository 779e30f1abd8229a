"""Plots of quality against cost (extra ``eval``)."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import ConfigurationError
from ..report import FSGEN_RATE
from . import RATES, Estimate, Summary

FORMATS = ("png", "svg", "pdf")

_AXES = {
    "escalation_rate": "escalation rate (share of the policy's decisions)",
    "slow_token_share": "slow token share (of the tokens written)",
    "slow_position_share": "slow position share (of prompt and answer, read by the slow model)",
}
# Colours of Okabe and Ito, then of Tol's muted scheme, which the colour-blind can tell apart. With 7 markers and 5
# lines no two of the first 420 curves look alike, and no two neighbours do in grey.
_COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9"),
    *("#332288", "#882255", "#999933", "#44AA99", "#661100", "#AA4499"),
)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LINES = ("-", "--", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
NEAR = 0.2
"""How far the first panel of a plot of rates goes: what is worth having lies there."""


def curve_style(number: int) -> dict[str, Any]:
    """Colour, marker and line of a plot's ``number``-th curve, different for each."""
    return {
        "color": _COLOURS[number % len(_COLOURS)],
        "marker": _MARKERS[number % len(_MARKERS)],
        "linestyle": _LINES[number % len(_LINES)],
    }


def check_plot_path(path: str | Path) -> Path:
    """The path itself; :class:`ConfigurationError` where no plot can be written there.

    Raises :class:`ImportError` naming the extra where matplotlib is missing. Called before hours of
    evaluation, not after.
    """
    target = Path(path)
    if target.suffix[1:].lower() not in FORMATS:
        raise ConfigurationError(f"{target} is no plot file", hint=f"end it with .{', .'.join(FORMATS)}")
    if not target.parent.is_dir():
        raise ConfigurationError(f"there is no folder {target.parent}", hint="make it first")
    if target.is_dir() or not os.access(target.parent, os.W_OK):
        raise ConfigurationError(f"{target} cannot be written", hint="name a file in a folder that you may write to")
    _figure()
    return target


def quality_plot(
    path: str | Path,
    curves: Mapping[str, Sequence[Summary]],
    *,
    rate: str = "escalation_rate",
    title: str = "Quality against escalation",
    pair: str | None = None,
    method: str | None = None,
    chords: Mapping[str, tuple[tuple[float, float], tuple[float, float]]] | None = None,
) -> None:
    """Accuracy against a rate, one line per entry of ``curves``, both models alone as levels.

    ``pair`` and ``method`` are named in the title, with the number of prompts. Bands, and bars of single points,
    are the summaries' 95% intervals. ``chords`` adds straight lines between two points (rate, accuracy). The file
    is written whole or not at all.
    """
    target = Path(path)
    figure = quality_figure(curves, rate=rate, title=title, pair=pair, method=method, chords=chords)
    write_atomically(target, figure_bytes(figure, target.suffix[1:].lower()))


def quality_figure(
    curves: Mapping[str, Sequence[Summary]],
    *,
    rate: str,
    title: str,
    pair: str | None = None,
    method: str | None = None,
    chords: Mapping[str, tuple[tuple[float, float], tuple[float, float]]] | None = None,
) -> Any:
    """The matplotlib figure of :func:`quality_plot`: one panel from 0 to :data:`NEAR`, one of all rates."""
    if rate not in RATES:
        raise ConfigurationError(f"unknown rate {rate!r}", hint=f"available: {', '.join(RATES)}")
    first = next((summary for curve in curves.values() for summary in curve), None)
    if first is None:
        raise ConfigurationError("nothing to plot", hint="give at least one summary")
    figure, panels = rate_panels(_AXES.get(rate, rate), f"accuracy over {first.n:,} prompts, 95% intervals")
    for axes in panels:
        draw_levels(axes, first)
        for number, (name, curve) in enumerate(curves.items()):
            points = [(getattr(summary, rate), summary.accuracy) for summary in curve]
            draw_curve(axes, name, points, **curve_style(number))
        for number, (name, ((x0, y0), (x1, y1))) in enumerate((chords or {}).items(), len(curves)):
            axes.plot((x0, x1), (y0, y1), linewidth=1.2, label=name, **curve_style(number))
    finish_figure(figure, panels[-1], plot_title(title, pair=pair, method=method, n=first.n))
    return figure


def plot_title(title: str, *, pair: str | None, method: str | None, n: int) -> str:
    """What a plot shows, and of what: pair, method and number of prompts."""
    of = [f"pair {pair}"] * (pair is not None) + [f"method {method}"] * (method is not None) + [f"{n:,} prompts"]
    return f"{title}\n{', '.join(of)}"


def rate_panels(x_label: str, y_label: str) -> tuple[Any, list[Any]]:
    """A figure with two panels that share their height: rates from 0 to :data:`NEAR`, and all of them."""
    figure = new_figure(9.5, 5.6)
    near, all_rates = figure.subplots(1, 2, sharey=True, gridspec_kw={"width_ratios": (3, 2)})
    # A little further than the limit, so that what lies on it can be seen.
    near.set_xlim(-0.002, 1.05 * NEAR)
    all_rates.set_xlim(-0.01, 1.02)
    near.set_xticks([0.0, 0.05, 0.1, 0.15, NEAR])
    near.set_ylabel(y_label)
    near.set_xlabel(x_label)
    all_rates.set_xlabel("the same, 0 to 100%")
    for axes in (near, all_rates):
        axes.axvline(
            FSGEN_RATE, color="0.35", linestyle=":", linewidth=1.1, label="FS-GEN's 20% (of disagreement)", zorder=0
        )
        axes.xaxis.set_major_formatter(percent_shown)
        axes.yaxis.set_major_formatter(percent_shown)
        axes.grid(alpha=0.25)
    return figure, [near, all_rates]


def finish_figure(figure: Any, axes: Any, title: str) -> None:
    """Title, and a legend below the panels, where it covers no curve."""
    figure.suptitle(title, fontsize="medium")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small", frameon=False)


def new_figure(width: float = 7.5, height: float = 5.0) -> Any:
    """An empty matplotlib figure, ``width`` by ``height`` inches, that belongs to no window."""
    return _figure()(figsize=(width, height), dpi=150, layout="constrained")


def figure_bytes(figure: Any, kind: str = "png") -> bytes:
    """A figure as a file of one of :data:`FORMATS`. No dates or versions: the same figures give the same file."""
    buffer = io.BytesIO()
    stamp = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    figure.savefig(buffer, format=kind, metadata=stamp.get(kind))
    return buffer.getvalue()


def draw_levels(axes: Any, summary: Summary) -> None:
    """Both models alone as lines across, their intervals as bands."""
    _level(axes, summary.accuracy_slow, "slow alone", color="black", linestyle="-")
    _level(axes, summary.accuracy_fast, "fast alone", color="0.45", linestyle="--")


def percent_shown(value: float, _position: object) -> str:
    """A tick's label."""
    return f"{100 * value:.3g}%"


def _level(axes: Any, level: Estimate, label: str, **style: Any) -> None:
    if level.value is None:
        return
    axes.axhline(level.value, linewidth=1.2, label=f"{label}: {level.value:.1%}", zorder=1, **style)
    if level.interval is not None:
        axes.axhspan(*level.interval, color=style["color"], alpha=0.1, linewidth=0)


def draw_curve(
    axes: Any, name: str, curve: Sequence[tuple[Estimate, Estimate]], *, band: float = 0.13, **style: Any
) -> None:
    """Points (x, y) joined in the order of x, y's intervals as a band; of a single point, both as bars.

    ``band`` is its opacity. Undefined points are left out.
    """
    points = sorted(
        ((x.value, y.value, x, y) for x, y in curve if x.value is not None and y.value is not None),
        key=lambda point: point[0],
    )
    if not points:
        return
    xs, ys = [x for x, *_ in points], [y for _, y, *_ in points]
    look = {"marker": "o", "markersize": 5, "linewidth": 1.4} | style
    if len(points) > 1:
        axes.plot(xs, ys, label=name, **look)
        reach = [estimate.interval or (estimate.value, estimate.value) for *_, estimate in points]
        axes.fill_between(xs, *zip(*reach, strict=True), color=look.get("color"), alpha=band, linewidth=0)
        return
    (_, _, x, y) = points[0]
    bars = {"xerr": [[arm] for arm in _arms(x)], "yerr": [[arm] for arm in _arms(y)]}
    axes.errorbar(xs, ys, label=name, **bars, **{"elinewidth": 0.9, "capsize": 2} | look)


def _arms(estimate: Estimate) -> tuple[float, float]:
    """How far an interval reaches below and above its value."""
    if estimate.interval is None or estimate.value is None:
        return 0.0, 0.0
    return max(estimate.value - estimate.interval[0], 0.0), max(estimate.interval[1] - estimate.value, 0.0)


def _figure() -> Any:
    # Figure itself, not pyplot: no global state, and no window system is looked for.
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need the extra 'eval': pip install 'fsgen-router[eval]'") from error
    return Figure


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: a reader, or a crash, never sees half of it."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        # mkstemp makes it private; a new file has the permissions that the user's umask says.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)
        os.replace(name, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(name)
        raise
