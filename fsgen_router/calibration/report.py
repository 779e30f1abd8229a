"""One self-contained HTML page about a calibration, and its figures as PNG files beside it."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigurationError
from ..evaluation import Estimate
from ..evaluation.plots import figure_bytes
from .curves import AREA_UP_TO, LEVELS, TIMED
from .figures import quality_figures, reliability_figure
from .result import Calibration
from .store import write_file

_TEMPLATE = Path(__file__).with_name("report.html.j2")


def check_report_path(path: str | Path) -> Path:
    """The path itself; :class:`ConfigurationError` where no report can be written there, before hours of work.

    Raises :class:`ImportError` naming the extra where something that draws it is missing.
    """
    target = Path(path)
    if target.suffix.lower() not in (".html", ".htm"):
        raise ConfigurationError(f"{target} is no report file", hint="end it with .html")
    if target.is_dir() or not target.parent.is_dir() or not os.access(target.parent, os.W_OK):
        raise ConfigurationError(f"{target} cannot be written", hint="name a file in a folder that you may write to")
    html_environment()
    return target


def write_report(calibration: Calibration, path: str | Path) -> list[Path]:
    """Write the page and its figures (``NAME-FIGURE.png``): the files' paths, the page first."""
    target = check_report_path(path)
    figures = report_figures(calibration)
    write_file(target, render_report(calibration, figures).encode())
    written = [target]
    for name, data in figures.items():
        written.append(target.with_name(f"{target.stem}-{name}.png"))
        write_file(written[-1], data)
    return written


def report_figures(calibration: Calibration) -> dict[str, bytes]:
    """PNG files by name; none of quality where the gap's interval on the report prompts includes 0."""
    held = calibration.held
    if held is None:
        return {}
    named = {"pair": f"{calibration.pair.fast} + {calibration.pair.slow}", "method": calibration.options.method}
    figures = {} if held.curves is None else quality_figures(held.curves, **named)
    reliability = reliability_figure(held.reliability, **named, n=len(held.fast))
    return figures | {"reliability": figure_bytes(reliability)}


def render_report(calibration: Calibration, figures: dict[str, bytes]) -> str:
    """The page as text. Everything that a model or a prompt wrote is escaped."""
    template = html_environment().from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return str(
        template.render(
            c=calibration,
            certified=_certified_rows(calibration),
            levels=LEVELS,
            up_to=AREA_UP_TO,
            timed=TIMED,
            images={name: base64.b64encode(data).decode() for name, data in figures.items()},
        )
    )


def _certified_rows(calibration: Calibration) -> Sequence[dict[str, Any]]:
    """Candidates as they were tried, and what became of each."""
    tested = calibration.choice.certification
    rows = []
    for number, (policy, run) in enumerate(calibration.choice.tried):
        passed = tested is not None and tested.chosen is not None and number <= tested.chosen
        rows.append(
            {
                "policy": "always escalate" if policy.threshold < 0 else f"score > {policy.threshold:.4g}",
                "n": len(run),
                "rate": 1.0 if policy.threshold < 0 else run.rate("escalation_rate"),
                "accuracy": run.accuracy,
                "risk": None if tested is None else float(tested.risks[number]),
                "p_value": None if tested is None else float(tested.p_values[number]),
                "passed": None if tested is None else passed,
            }
        )
    return rows


def html_environment() -> Any:
    """Templates whose values are escaped; raises :class:`ImportError` naming the extra."""
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise ImportError("reports need the extra 'calibrate': pip install 'fsgen-router[calibrate]'") from error
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = lambda value: "–" if value is None else f"{value:.1%}"
    environment.filters["figure"] = _figure
    environment.filters["share"] = lambda estimate: _figure(estimate, percent=True)
    environment.filters["shown"] = _shown
    return environment


def _figure(estimate: Estimate, *, percent: bool = False) -> str:
    """A value with its interval; a dash where it is undefined."""
    if estimate.value is None:
        return "–"
    write = "{:.1%}".format if percent else "{:.3f}".format
    if estimate.interval is None:
        return write(estimate.value)
    low, high = map(write, estimate.interval)
    return f"{write(estimate.value)} [{low}, {high}]"


def _shown(text: str) -> str:
    """A token's text with what cannot be seen made visible."""
    return text.replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥") or "∅"
