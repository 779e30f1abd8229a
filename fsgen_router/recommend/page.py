"""One self-contained HTML page about a recommendation."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

from ..calibration.report import check_report_path, html_environment
from ..calibration.store import write_file
from ..evaluation import Estimate
from ..evaluation.plots import (
    curve_style,
    draw_curve,
    figure_bytes,
    finish_figure,
    new_figure,
    percent_shown,
    plot_title,
)
from .result import Recommendation, machine
from .words import headline

_TEMPLATE = Path(__file__).with_name("page.html.j2")


def write_page(found: Recommendation, path: str | Path) -> Path:
    """Write the page, whole or not at all."""
    target = check_report_path(path)
    write_file(target, render_page(found).encode())
    return target


def render_page(found: Recommendation) -> str:
    """The page as text. Whatever a model, a file or a checker is called is escaped."""
    environment = html_environment()
    environment.filters |= {"share": _share, "number": _number, "file_name": lambda text: re.split(r"[\\/]", text)[-1]}
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return str(
        template.render(
            r=found,
            headline=headline(found.advice),
            pair=_pair(found),
            machine=machine(),
            image=base64.b64encode(figure_bytes(quality_figure(found))).decode(),
            alone=sum(one.mode.kind in ("slow", "fast", "middle", "tuned") for one in found.figures),
            expected=any(one.expected_seconds is not None for one in found.figures),
            total=sum(found.seconds.values()),
        )
    )


def quality_figure(found: Recommendation) -> Any:
    """Accuracy against what counts, a point a mode, with both intervals: a matplotlib figure."""
    figure = new_figure(9.5, 6.2)
    axes = figure.add_subplot()
    axes.axvline(1.0, color="0.35", linestyle=":", linewidth=1.1, label="as dear as the slow model alone", zorder=0)
    for number, one in enumerate(found.figures):
        style = curve_style(number) | {"markersize": 10 if one.mode.name == found.advice.mode else 6}
        draw_curve(axes, one.mode.name, [(one.cost(found.prefer), one.accuracy)], **style)
    axes.set_xlabel(f"{found.prefer}, against the slow model alone")
    axes.set_ylabel(f"accuracy over {found.n:,} prompts, 95% intervals")
    axes.set_xlim(left=0.0)
    axes.yaxis.set_major_formatter(percent_shown)
    axes.grid(alpha=0.25)
    finish_figure(figure, axes, plot_title("What each mode keeps and costs", pair=_pair(found), method=None, n=found.n))
    return figure


def _pair(found: Recommendation) -> str:
    return " + ".join(re.split(r"[\\/]", name)[-1] for name in found.models.values())


def _share(estimate: Estimate) -> Any:
    return _figure(estimate, "{:.1%}".format)


def _number(estimate: Estimate) -> Any:
    return _figure(estimate, lambda value: f"{value:,.0f}" if value >= 99.5 else f"{value:.3g}")


def _figure(estimate: Estimate, write: Any) -> Any:
    """A value, and its interval below it; a dash where it is undefined."""
    from markupsafe import Markup

    if estimate.value is None:
        return "–"
    if estimate.interval is None or estimate.interval[0] == estimate.interval[1]:
        return write(estimate.value)
    return Markup("{}<small>{}–{}</small>").format(write(estimate.value), *map(write, estimate.interval))
