"""A study's results: a table as CSV and JSON, and one self-contained page with figures and examples."""

from __future__ import annotations

import base64
import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import law
from ..calibration.report import html_environment
from ..calibration.store import write_file
from ..contracts.tokenizer import TokenClass
from ..errors import ConfigurationError
from ..evaluation import Estimate
from ..json_forms import dumps
from .figures import study_figures
from .measures import SIGNALS, CellResult
from .policies import SWEEP
from .running import Study

_TEMPLATE = Path(__file__).with_name("report.html.j2")
TABLE, RECORD, PAGE, POLICIES = "results.csv", "results.json", "report.html", "policies.csv"
_EXAMPLES = 8
_FIGURES: Mapping[str, str] = {
    "quality": "The collaboration beside both models alone.",
    "ratio": "The law, -a R^(-alpha) + b, and its 95% band (bootstrap by pair), where more than three pairs are.",
    "sizes": "Bars are 95% intervals by prompt.",
    "first": "First tokens are the first {first} of an answer; a line is the density over answers, a mark its mean.",
    "places": "Each line is a cell.",
    "signals": "Up to 1,000 positions of each kind and pair.",
}


def check_folder(path: str | Path) -> Path:
    """The folder itself, made where it is missing; :class:`ConfigurationError` where no results can lie there.

    Raises :class:`ImportError` naming the extra where something that draws them is missing.
    """
    folder = Path(path)
    html_environment()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be made: {error.strerror}", hint="name another folder") from None
    if not os.access(folder, os.W_OK):
        raise ConfigurationError(f"{folder} cannot be written", hint="name a folder that you may write to")
    return folder


def write_results(study: Study, folder: str | Path) -> list[Path]:
    """Write ``results.csv``, ``results.json``, ``report.html`` and, where policies were studied, ``policies.csv`` into
    a folder: the files' paths."""
    target = check_folder(folder)
    fits = fit_study(study)
    files = {
        TABLE: results_csv(study),
        RECORD: dumps(results_record(study, fits), indent=1) + "\n",
        PAGE: render_page(study, fits, study_figures(study.measured, fits)),
    }
    if study.policies:
        files[POLICIES] = _csv([policy.to_dict() for policy in study.policies])
    for name, text in files.items():
        write_file(target / name, text.encode())
    return [target / name for name in files]


def fit_study(study: Study) -> list[law.CellFit]:
    """The law on every method and data set of a study whose models' sizes are known."""
    rows = [
        (f"{cell.key.fast} + {cell.key.slow}", cell.to_dict())
        for cell in study.cells
        if cell.found is None or (cell.key.fast_params_b and cell.key.slow_params_b)
    ]
    return [law.fit_cell(cell) for cell in law.make_table(study.config.name, rows).cells]


def results_record(study: Study, fits: Sequence[law.CellFit]) -> dict[str, Any]:
    """For JSON; ``law --table`` reads it."""
    return {
        "study": study.config.model_dump(mode="json"),
        "cells": [cell.to_dict() for cell in study.cells],
        "law": [fit.to_dict() for fit in fits],
        "policies": [policy.to_dict() for policy in study.policies],
    }


def results_csv(study: Study) -> str:
    """A line a cell; intervals as ``<name>_low`` and ``<name>_high``. ``law --table`` reads it."""
    return _csv([cell.to_dict() for cell in study.cells])


def _csv(records: Sequence[Mapping[str, Any]]) -> str:
    rows = [_flat(record) for record in records]
    columns = list(dict.fromkeys(name for row in sorted(rows, key=len, reverse=True) for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in record.items():
        if name.endswith("_interval"):
            base = name.removesuffix("_interval")
            flat[f"{base}_low"], flat[f"{base}_high"] = value or ("", "")
        elif name == "notes":
            flat[name] = "; ".join(value)
        elif not isinstance(value, dict | list):
            flat[name] = "" if value is None else value
    return flat


def render_page(study: Study, fits: Sequence[law.CellFit], figures: Mapping[str, bytes]) -> str:
    """The page as text. Everything that a model or a prompt wrote is escaped."""
    measured = study.measured
    present = {name for cell in measured for name in (cell.found.classes if cell.found else ())}
    return str(
        html_environment()
        .from_string(_TEMPLATE.read_text(encoding="utf-8"))
        .render(
            study=study,
            config=study.config,
            measured=measured,
            failed=[cell for cell in study.cells if cell.found is None],
            tuned=any(cell.found and cell.found.cof_tuned.value is not None for cell in measured),
            fits=[fit for fit in fits if len(fit.cell)],
            signals=SIGNALS,
            sweep=SWEEP,
            classes=[one.name.lower() for one in TokenClass if one.name.lower() in present],
            unknown=Estimate(None),
            figures={
                name: (text.format(first=study.config.first_tokens), base64.b64encode(figures[name]).decode())
                for name, text in _FIGURES.items()
                if name in figures
            },
            examples=_examples(measured),
        )
    )


def _examples(cells: Sequence[CellResult]) -> list[CellResult]:
    """One cell of each method and data set, as far as there is room."""
    first: dict[tuple[str, str], CellResult] = {}
    for cell in cells:
        first.setdefault((cell.key.method, cell.key.dataset), cell)
    return list(first.values())[:_EXAMPLES]
