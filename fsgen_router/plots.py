"""Plots of quality against cost (extra ``eval``)."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from .errors import ConfigurationError
from .evaluation import RATES, Estimate, Summary

FORMATS = ("png", "svg", "pdf")

_AXES = {
    "escalation_rate": "escalation rate (share of the policy's decisions)",
    "slow_token_share": "slow token share (of the tokens written)",
    "slow_position_share": "slow position share (of prompt and answer, read by the slow model)",
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
    chords: Mapping[str, tuple[tuple[float, float], tuple[float, float]]] | None = None,
) -> None:
    """Accuracy against a rate, one line per entry of ``curves``, both models alone as levels.

    Bars and bands are the summaries' 95% intervals. ``chords`` adds straight lines between two points
    (rate, accuracy). The file is written whole or not at all.
    """
    if rate not in RATES:
        raise ConfigurationError(f"unknown rate {rate!r}", hint=f"available: {', '.join(RATES)}")
    first = next((summary for curve in curves.values() for summary in curve), None)
    if first is None:
        raise ConfigurationError("nothing to plot", hint="give at least one summary")
    figure = new_figure()
    axes = figure.add_subplot()
    draw_levels(axes, first)
    for name, curve in curves.items():
        draw_curve(axes, name, [(getattr(summary, rate), summary.accuracy) for summary in curve])
    for name, ((x0, y0), (x1, y1)) in (chords or {}).items():
        axes.plot((x0, x1), (y0, y1), linestyle=":", linewidth=1.2, label=name)
    axes.set_xlabel(_AXES.get(rate, rate))
    axes.set_ylabel(f"accuracy over {first.n} prompts, 95% intervals")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(_percent)
    axes.yaxis.set_major_formatter(_percent)
    axes.grid(alpha=0.25)
    axes.set_title(title)
    axes.legend(loc="best", fontsize="small")
    target = Path(path)
    write_atomically(target, figure_bytes(figure, target.suffix[1:].lower()))


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
    for level, label, colour in (
        (summary.accuracy_slow, "slow alone", "black"),
        (summary.accuracy_fast, "fast alone", "tab:gray"),
    ):
        _level(axes, level, label, colour)


def _percent(value: float, _position: object) -> str:
    return f"{100 * value:.3g}%"


def _level(axes: Any, level: Estimate, label: str, colour: str) -> None:
    if level.value is None:
        return
    axes.axhline(level.value, color=colour, linestyle="--", linewidth=1.2, label=f"{label}: {level.value:.1%}")
    if level.interval is not None:
        axes.axhspan(*level.interval, color=colour, alpha=0.1, linewidth=0)


def draw_curve(axes: Any, name: str, curve: Sequence[tuple[Estimate, Estimate]], **style: Any) -> None:
    """Points (x, y) with their intervals as bars, joined in the order of x; undefined ones are left out."""
    points = sorted(
        ((x.value, y.value, x, y) for x, y in curve if x.value is not None and y.value is not None),
        key=lambda point: point[0],
    )
    if not points:
        return
    bars = [[_arms(estimate) for *_, estimate in points], [_arms(estimate) for _, _, estimate, _ in points]]
    axes.errorbar(
        [x for x, *_ in points],
        [y for _, y, *_ in points],
        yerr=list(zip(*bars[0], strict=True)),
        xerr=list(zip(*bars[1], strict=True)),
        label=name,
        **{"marker": "o", "markersize": 4, "linewidth": 1.4, "elinewidth": 0.8, "capsize": 2} | style,
    )


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
