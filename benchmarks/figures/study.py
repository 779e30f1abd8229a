"""Studies of disagreement, beside the paper's own table."""

from __future__ import annotations

import csv
from pathlib import Path

from .forms import RESULTS

PAPER = Path(__file__).parents[2] / "fsgen_router" / "law" / "fsgen_cof.csv"
NEAREST = {"dataset": "gsm8k", "fast_params_b": "0.5", "slow_params_b": "1.8"}
METHODS = {"replace": "oracle", "contrast": "contrastive"}
"""Each method's name in the paper."""


def real_pair() -> str:
    """The real pair's rates and qualities, and the paper's cell of the nearest ratio."""
    published = {row["method"]: float(row["cof"]) for row in _rows(PAPER) if NEAREST.items() <= row.items()}
    lines = [
        "| method | CoF | the paper's | fast right | both | slow right | AUROC of entropy |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in _rows(RESULTS / "study_real_pair.csv"):
        oracle = " (oracle)" if row["method"] == "replace" else ""
        rights = " | ".join(f"{float(row[name]):.1%}" for name in ("accuracy_fast", "accuracy", "accuracy_slow"))
        auroc, low, high = (f"{float(row['auroc_entropy_nats' + end]):.3f}"[1:] for end in ("", "_low", "_high"))
        lines.append(
            f"| `{row['method']}`{oracle} | {_percent(row, 'cof')} | {published[METHODS[row['method']]]:.1%} | "
            f"{rights} | {auroc} [{low}, {high}] |"
        )
    return "\n".join(lines)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _percent(row: dict[str, str], name: str) -> str:
    value, low, high = (100 * float(row[name + end]) for end in ("", "_low", "_high"))
    return f"{value:.1f}% [{low:.1f}, {high:.1f}]"
