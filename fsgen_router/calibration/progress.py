"""How calibration goes on: its stages, timed and told to who listens."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from .answers import OnItems


class Progress(Protocol):
    """Hears how calibration goes on."""

    def begin(self, stage: str, total: int) -> None:
        """A stage begins that has so many prompts, or rollouts, to go through."""

    def advance(self, count: int) -> None:
        """So many more of them are done."""


class Silent:
    """No progress shown."""

    def begin(self, stage: str, total: int) -> None:
        return None

    def advance(self, count: int) -> None:
        return None


@dataclass
class Stages:
    """Times stages and tells a :class:`Progress`."""

    progress: Progress = field(default_factory=Silent)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[OnItems]:
        """A stage over ``total`` prompts or rollouts; what it yields is told of each."""
        self.progress.begin(name, total)
        began = time.perf_counter()
        try:
            yield self.progress.advance
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
