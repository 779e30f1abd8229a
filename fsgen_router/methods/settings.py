"""FS-GEN's own settings, to repeat its figures with."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

FsgenMethod: TypeAlias = Literal["oracle", "contrastive", "speculative", "proxy"]

FSGEN_SETTINGS: Final[Mapping[FsgenMethod, tuple[str, str]]] = MappingProxyType(
    {
        "oracle": ("normal", "replace"),
        "contrastive": ("normal", "contrast:alpha=0.1,beta=0.5"),
        "speculative": ("every:5", "verify:exact,draft_len=5"),
        "proxy": ("normal", "proxy:alpha=1"),
    }
)
"""Its methods as (policy, method), with the numbers that its code runs with (arXiv 2406.12295, ``utils.py``).

All are greedy there. Its collaboration frequency (CoF) is ``usage.corrections / usage.tokens`` of each, and of proxy
against the tuned model ``usage.tuned_corrections / usage.tokens``.
"""
