"""Modes measured in turns: a prompt is answered in every mode before the next one is, and so are blocks of prompts
that are answered several at a time.

What else the machine does then hits all modes alike, and no mode's prompts together. What is finished is kept.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np

from ..calibration import Answers, WorkDirectory
from ..calibration.answers import OnItems
from ..calibration.store import Arrays, join, pack_texts, unpack_texts
from ..costs import Judged
from ..errors import BackendError
from ..evaluation import Array, Item, Run, run_items
from ..generation import Generation
from ..records import Usage
from ..router import Router
from .models import Models
from .modes import REST_WINDOW, Mode

BLOCK = 8
"""About so many prompts are answered several at a time, before the next mode's turn; at least as many as there are to
be at once."""

Key: TypeAlias = tuple[str, int]
"""A mode's name, and how many requests at once."""

JUDGED = tuple(f"drafts_{field.name}" for field in fields(Judged))
EXTRAS = (
    "first_token_seconds",
    "first_entropy_nats",
    "peak_entropy_nats",
    "slow_read",
    "slow_cached",
    "slow_written",
    "slow_calls",
    "tuned_read",
    *JUDGED,
)
"""Of an answer, beside the columns of an :class:`~fsgen_router.evaluation.Outcome`: when its first token came and
how uncertain the fast model was there, its highest mean entropy over a few tokens, what the slow seat is billed, what
a tuned model read, and what became of the drafts."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Answers in one mode: n of them, in blocks.

    ``extras`` are arrays of shape (n,) by name of :data:`EXTRAS`; ``walls`` (seconds) and ``sizes`` (answers) are of
    the blocks.
    """

    answers: Answers
    extras: Mapping[str, Array]
    walls: Array
    sizes: Array

    def run(self, items: Sequence[Item], name: str) -> Run:
        """The answers judged by the items' ``check``."""
        return self.answers.run(items, name)


class Measurements:
    """What is measured so far of ``items``, by mode and by how many at once."""

    def __init__(
        self,
        models: Models,
        items: Sequence[Item],
        work: WorkDirectory,
        options: Mapping[str, Any],
        *,
        at_once: int = 1,
        seed: int = 0,
    ) -> None:
        self._models, self.items, self._work, self._options = models, items, work, options
        self._seed = seed
        count = max(min(math.ceil(len(items) / BLOCK), len(items) // at_once), 1)
        self._blocks = list(pairwise(len(items) * number // count for number in range(count + 1)))
        self.on_items: OnItems | None = None
        self._parts: dict[Key, list[Arrays]] = {}

    def warm_up(self) -> None:
        """Let every model answer once, so that the first measurement pays for no pages and no plans."""
        for seat in self._models.local:
            router = self._models.router((seat, "slow" if seat == "fast" else "fast"))
            run_items(router, self.items[:1], **{**self._options, "max_tokens": 2})

    def blocks(self, modes: Sequence[Mode]) -> Iterator[int]:
        """Measure, a block at a time; yields how many prompts are answered in all modes."""
        for number, (start, stop) in enumerate(self._blocks):
            for one in range(start, stop):
                for mode in self._in_turn(modes, one):
                    self.measure(mode, 1, one)
            for at_once in sorted({count for mode in modes for count in mode.at_once} - {1}):
                for mode in self._in_turn(modes, start):
                    if at_once in mode.at_once:
                        self.measure(mode, at_once, number)
            yield stop

    def _in_turn(self, modes: Sequence[Mode], number: int) -> list[Mode]:
        """In another order each time: what comes first finds another machine than what comes last."""
        return random.Random(f"{self._seed}/{number}").sample(modes, len(modes))

    def measure(self, mode: Mode, at_once: int, number: int) -> None:
        """A prompt, or a block of them ``at_once`` at a time, in one mode, unless it is done.

        Raises :class:`BackendError` where the slow model failed: what then stands there is no answer of the mode.
        """
        parts = self._parts.setdefault((mode.name, at_once), [])
        if len(parts) > number:
            return
        start, stop = (number, number + 1) if at_once == 1 else self._blocks[number]
        block = self.items[start:stop]
        name = f"{mode.file_name}-{at_once}-{start:06d}" + ("" if at_once == 1 else f"-{stop:06d}")
        router = self._models.routed(mode, at_once)
        arrays = self._work.load(name)
        if arrays is None:
            self._models.forget()
            arrays = dict(_answered(router, block, at_once, self._options))
            self._work.save(name, arrays)
        else:
            router.ledger.memory.update(json.loads(arrays["memory"].tobytes()))
        if self.on_items is not None:
            self.on_items(len(block))
        parts.append(arrays)

    def sample(self, mode: Mode, at_once: int = 1) -> Sample:
        """All that was measured of a mode."""
        parts = self._parts[mode.name, at_once]
        joined = join([{name: part[name] for name in part if name not in ("memory", "wall")} for part in parts])
        count = len(joined["counters"])
        nothing: list[list[int]] = [[]] * count
        answers = Answers(unpack_texts(joined), nothing, nothing, joined["counters"], np.zeros(count), np.zeros(count))
        walls = np.array([float(part["wall"]) for part in parts])
        sizes = np.array([len(part["counters"]) for part in parts], np.float64)
        return Sample(answers, {name: joined[name] for name in EXTRAS}, walls, sizes)


def _answered(router: Router, items: Sequence[Item], at_once: int, options: Mapping[str, Any]) -> Arrays:
    """Answers to a block, as arrays."""
    answers: dict[int, Generation] = {}
    began = time.perf_counter()
    run = run_items(
        router,
        items,
        concurrency=at_once,
        on_answer=lambda item, answer: answers.update({id(item): answer}),
        **options,
    )
    wall = time.perf_counter() - began
    written = [answers[id(item)] for item in items]
    for answer in written:
        if answer.degraded is not None:
            raise BackendError(
                f"the slow model failed: {answer.degraded}",
                hint="no figures are made of such answers; where there is a work directory, what is finished is kept, "
                "and the same command goes on from it",
            )
    extras = [_extras(answer) for answer in written]
    # A policy that holds a rate goes on from here after an interruption.
    memory = {key: value for key, value in router.ledger.memory.items() if isinstance(value, float)}
    return {
        **pack_texts([answer.text for answer in written]),
        "counters": np.array([[float(value) for value in asdict(outcome).values()] for outcome in run.outcomes]),
        **{name: np.array([extra[name] for extra in extras], np.float64) for name in EXTRAS},
        "wall": np.array(wall),
        "memory": np.frombuffer(json.dumps(memory).encode(), np.uint8),
    }


def _extras(answer: Generation) -> dict[str, float]:
    entropies = [token.signals.entropy_nats for token in answer.tokens if token.signals is not None]
    read, cached, written, calls = billed(answer.usage)
    return {
        "first_token_seconds": answer.usage.first_token_seconds or answer.usage.seconds,
        "first_entropy_nats": entropies[0] if entropies else 0.0,
        "peak_entropy_nats": peak_mean(entropies, REST_WINDOW),
        "slow_read": read,
        "slow_cached": cached,
        "slow_written": written,
        "slow_calls": calls,
        "tuned_read": answer.usage.tuned.positions + answer.usage.tuned.cached,
        **dict(zip(JUDGED, astuple(Judged.of(answer)), strict=True)),
    }


def billed(usage: Usage) -> tuple[int, int, int, int]:
    """What a slow model's prices apply to: tokens read, cached and written, and calls whose last token is not read
    again. An endpoint counts its own, with prompts as input and all that it wrote as output."""
    if usage.round_trips:
        return usage.slow.positions, usage.slow.cached, usage.slow.decode, 0
    return usage.slow.positions, usage.slow.cached, usage.slow_tokens, usage.escalations if usage.slow.forwards else 0


def peak_mean(values: Sequence[float], window: int) -> float:
    """The highest mean over the last ``window`` values, or as many as there are, as a policy sees it."""
    means = [float(np.mean(values[max(at - window, 0) : at])) for at in range(1, len(values) + 1)]
    return max(means, default=0.0)
