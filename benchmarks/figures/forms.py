"""How a result file is read, and how its figures are written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"


def load(name: str) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return figures


def percent(record: dict[str, Any], name: str) -> str:
    """``value [low, high]`` in percent."""
    value, interval = record[name], record[f"{name}_interval"]
    if value is None:
        return "not reached"
    inside = f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else ""
    return f"{100 * value:.1f}%{inside}"


def number(record: dict[str, Any], name: str) -> str:
    """``value [low, high]``."""
    value, interval = record[name], record[f"{name}_interval"]
    return "not reached" if value is None else f"{value:.2f} [{interval[0]:.2f}, {interval[1]:.2f}]"


def ratio(record: dict[str, float]) -> str:
    return f"{record['ratio']:.3f} [{record['low']:.3f}, {record['high']:.3f}]"


def outcome(found: dict[str, Any]) -> str:
    if not found["chosen"]:
        return "none certified | "
    return f"{found['violations']:.1%} of {found['chosen']} | {found['mean_escalation_rate']:.1%}"
