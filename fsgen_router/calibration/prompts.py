"""Prompts, and which of them policies are fitted on, thresholds certified on, and figures reported on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from ..errors import ConfigurationError, InvalidRequest
from ..evaluation import Item, read_items, reference_items
from ..reference import world
from ..rows.reading import hashed_uniform

SplitName: TypeAlias = Literal["fit", "calibration", "report"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)
SHARES = (0.3, 0.4, 0.3)
"""Of the prompts, for fit, calibration and report. A certificate's strength is the calibration prompts'."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """Disjoint prompts: scorers are fitted on ``fit``, thresholds chosen and certified on
    ``calibration``, figures given on ``report``. ``repeated`` prompts were left out, because two
    copies of one prompt are not two observations.
    """

    fit: tuple[Item, ...]
    calibration: tuple[Item, ...]
    report: tuple[Item, ...]
    source: str
    repeated: int = 0

    def __getitem__(self, split: SplitName) -> tuple[Item, ...]:
        return {"fit": self.fit, "calibration": self.calibration, "report": self.report}[split]

    def __len__(self) -> int:
        return len(self.fit) + len(self.calibration) + len(self.report)

    def __iter__(self) -> Iterator[tuple[SplitName, tuple[Item, ...]]]:
        return ((split, self[split]) for split in SPLITS)

    @property
    def sha256(self) -> str:
        """Over every prompt, its expected answer and its split."""
        digest = hashlib.sha256()
        for split, items in self:
            for item in items:
                digest.update(f"{split}:{prompt_key(item)}:{item.answer}\n".encode())
        return digest.hexdigest()

    def to_dict(self) -> dict[str, object]:
        sizes = {split: len(items) for split, items in self}
        return {"source": self.source, "sha256": self.sha256, "repeated": self.repeated} | sizes


def prompt_key(item: Item) -> str:
    """What a prompt is told apart by: SHA-256 of its text or messages."""
    content = item.prompt if item.messages is None else [[m["role"], m["content"]] for m in item.messages]
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()


def split_of(item: Item, shares: Sequence[float] = SHARES) -> SplitName:
    """A prompt's split: by the hash of the prompt alone, so that it stays when other prompts come and go."""
    at = hashed_uniform(0, prompt_key(item), 0, "split") * sum(shares)
    return "fit" if at < shares[0] else "calibration" if at < shares[0] + shares[1] else "report"


def read_prompts(path: str | Path, *, shares: Sequence[float] = SHARES) -> Prompts:
    """Prompts from JSON lines as in :func:`~fsgen_router.evaluation.read_items`, the answer optional.

    Raises :class:`InvalidRequest` naming the line that is malformed, or where a split stays empty.
    """
    _check_shares(shares)
    return split_items(read_items(path, answers=False), source=str(path), shares=shares)


def split_items(items: Sequence[Item], *, source: str = "items", shares: Sequence[float] = SHARES) -> Prompts:
    """Prompts made of items, each in the split that its hash says."""
    _check_shares(shares)
    unique: dict[str, Item] = {}
    for item in items:
        unique.setdefault(prompt_key(item), item)
    parts: dict[SplitName, list[Item]] = {split: [] for split in SPLITS}
    for item in unique.values():
        parts[split_of(item, shares)].append(item)
    return _checked(
        Prompts(
            tuple(parts["fit"]),
            tuple(parts["calibration"]),
            tuple(parts["report"]),
            source,
            repeated=len(items) - len(unique),
        )
    )


def reference_prompts(count: int = 1000, *, shares: Sequence[float] = SHARES) -> Prompts:
    """Problems of the reference pair's world, ``count`` in all.

    Report problems come from the calibration split behind those that thresholds are chosen on, so that
    the test split stays unseen until a benchmark asks for it.
    """
    _check_shares(shares)
    fit, calibration, report = (max(round(count * share / sum(shares)), 1) for share in shares)
    pooled = reference_items("calibration", calibration + report)
    drawn: dict[SplitName, list[Item]] = {
        "fit": reference_items("fit", fit),
        "calibration": pooled[:calibration],
        "report": pooled[calibration:],
    }
    # A prompt that comes again keeps its first split.
    first = {prompt_key(item): split for split in reversed(SPLITS) for item in drawn[split]}
    parts = {
        split: {prompt_key(item): item for item in items if first[prompt_key(item)] == split}
        for split, items in drawn.items()
    }
    kept = {split: tuple(items.values()) for split, items in parts.items()}
    return _checked(
        Prompts(**kept, source=world.VERSION, repeated=fit + calibration + report - sum(map(len, kept.values())))
    )


def _check_shares(shares: Sequence[float]) -> None:
    if len(shares) != len(SPLITS) or any(not share > 0 for share in shares):
        raise ConfigurationError(f"shares {tuple(shares)}", hint=f"three numbers above 0, for {', '.join(SPLITS)}")


def _checked(prompts: Prompts) -> Prompts:
    empty = [split for split, items in prompts if not items]
    if empty:
        raise InvalidRequest(
            f"{len(prompts)} different prompts leave none to {empty[0]}", hint="give more prompts: hundreds at least"
        )
    return prompts
