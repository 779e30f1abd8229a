"""Policies at many thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import ConfigurationError
from ..generation import Generation
from ..policies.basic import THRESHOLDS, read_signal
from ..router import Router
from .items import Item
from .runs import Array, OnAnswer, run_items

SWEEP_RATES = (0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.17, 0.23, 0.3, 0.4, 0.55, 0.75)
"""Escalation rates that a threshold sweep aims at, if thresholds changed nothing else."""


def sweep_policies(
    signal: str, values: Array | None = None, *, rates: Sequence[float] = SWEEP_RATES, suffix: str = ""
) -> list[str]:
    """Short forms of a sweep: thresholds at quantiles of ``values``, a signal over the fast model's own text.

    ``signal`` is ``entropy``, ``varentropy``, ``max_prob`` (FS-GEN's threshold router), ``margin`` or ``delta``
    (FS-GEN's, half the margin), or one of ``random``, ``budget`` and ``every``, which need no values. ``suffix`` is
    added to each (``",span=8"``).
    """
    if signal in ("random", "budget"):
        return [f"{signal}:{rate:g}{suffix}" for rate in rates]
    if signal == "every":
        return [f"every:{gap}{suffix}" for gap in sorted({max(round(1 / r), 1) for r in rates}, reverse=True)]
    if signal not in THRESHOLDS:
        available = ", ".join((*THRESHOLDS, "random", "budget", "every"))
        raise ConfigurationError(f"{signal!r} cannot be swept", hint=f"available: {available}")
    if values is None or not len(values):
        raise ConfigurationError(f"a sweep of {signal} needs the signal's values")
    above = signal in ("entropy", "varentropy")
    cuts = np.quantile(values, [1 - rate if above else rate for rate in rates])
    # Probabilities crowd below 1 and need more digits there to differ.
    written = [f"{cut:.6g}" if not above and cut > 0.99 else f"{cut:.4g}" for cut in cuts.tolist()]
    return list(dict.fromkeys(f"{signal}{'>' if above else '<'}{cut}{suffix}" for cut in written))


def signal_values(
    router: Router, items: Sequence[Item], signal: str, *, on_answer: OnAnswer | None = None, **options: Any
) -> Array:
    """A signal at every token of the fast model's own answers, shape (tokens,)."""
    collect, values = signal_collector(signal)

    def both(item: Item, answer: Generation) -> None:
        collect(item, answer)
        if on_answer is not None:
            on_answer(item, answer)

    run_items(router, items, "never", on_answer=both, **options)
    return np.array(values, np.float64)


def signal_collector(signal: str) -> tuple[OnAnswer, list[float]]:
    """An ``on_answer`` that appends a signal of every token to the list beside it."""
    name = next((known for known in THRESHOLDS if known == signal), None)
    if name is None:
        raise ConfigurationError(f"unknown signal {signal!r}", hint=f"available: {', '.join(THRESHOLDS)}")
    read = read_signal(name)
    values: list[float] = []

    def collect(_item: Item, answer: Generation) -> None:
        values.extend(read(token.signals) for token in answer.tokens if token.signals is not None)

    return collect, values
