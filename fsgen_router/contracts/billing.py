"""What an endpoint bills, by kind of token, and how an adapter tells of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypeAlias

from ..support.waiting import holding

Attempt: TypeAlias = Literal["call", "probe", "failed"]
"""A call of which something was heard; a probe of what the endpoint can do; a try that came to nothing, or was left."""


@dataclass(slots=True)
class Billed:
    """Tokens that an endpoint bills, by kind, and the requests that they are billed for.

    ``input`` leaves out what came from the endpoint's cache (``cached_input``) or was put there at a price of its own
    (``cache_write``), ``output`` leaves out ``reasoning``. ``estimated`` of all these tokens were counted on this side,
    because the endpoint did not say. Of the requests, ``calls`` were heard of, ``probes`` asked what the endpoint can
    do, and ``failed`` came to nothing or were left. ``by_model`` says what each of several endpoints bills of all that.
    """

    input: int = 0
    cached_input: int = 0
    cache_write: int = 0
    output: int = 0
    reasoning: int = 0
    estimated: int = 0
    calls: int = 0
    probes: int = 0
    failed: int = 0
    by_model: dict[str, Billed] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """All of them."""
        return self.input + self.cached_input + self.cache_write + self.output + self.reasoning

    @property
    def requests(self) -> int:
        return self.calls + self.probes + self.failed

    def add(self, other: Billed) -> None:
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for model, part in other.by_model.items():
            self.by_model.setdefault(model, Billed()).add(part)

    def copy(self) -> Billed:
        """Counts of their own."""
        copied = Billed()
        copied.add(self)
        return copied

    @property
    def parts(self) -> dict[str, Billed]:
        """What each model bills; under the empty name, what is not said to be one of several's."""
        rest = self.copy()
        for part in self.by_model.values():
            for name in _COUNTS:
                setattr(rest, name, getattr(rest, name) - getattr(part, name))
        rest.by_model = {}
        return {**self.by_model, **({"": rest} if rest.requests or not self.by_model else {})}

    def at(self, model: str) -> Billed:
        """The same, said to be billed by ``model`` of several."""
        return replace(self, by_model={model: self})

    def to_dict(self) -> dict[str, Any]:
        """For JSON; ``by_model`` where several endpoints may bill."""
        counts = {name: getattr(self, name) for name in _COUNTS}
        parts = {model: part.to_dict() for model, part in self.by_model.items()}
        return counts | ({"by_model": parts} if parts else {})

    @classmethod
    def of(
        cls,
        attempt: Attempt,
        *,
        prompt: int | None,
        written: int | None,
        cached: int | None = None,
        cache_write: int | None = None,
        reasoning: int | None = None,
        guessed_prompt: int = 0,
        guessed_written: int = 0,
    ) -> Billed:
        """One request, by the endpoint's own counts (None: unsaid), else by those guessed.

        Counts that contradict each other are cut to what they are parts of.
        """
        estimated = (guessed_prompt if prompt is None else 0) + (guessed_written if written is None else 0)
        prompt = guessed_prompt if prompt is None else prompt
        written = guessed_written if written is None else written
        found = min(cached or 0, prompt)
        put, thought = min(cache_write or 0, prompt - found), min(reasoning or 0, written)
        return cls(
            input=prompt - found - put,
            cached_input=found,
            cache_write=put,
            output=written - thought,
            reasoning=thought,
            estimated=estimated,
            calls=attempt == "call",
            probes=attempt == "probe",
            failed=attempt == "failed",
        )


_COUNTS = tuple(one.name for one in fields(Billed) if one.name != "by_model")


class Meter:
    """Where an adapter enters what it sends beside the call itself: tries that came to nothing.

    The call's own usage comes with its end. Safe from any thread, also after the request is over.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._entered = Billed()
        self._late: Callable[[Billed], None] | None = None

    def enter(self, billed: Billed) -> None:
        with holding(self._lock):
            late = self._late
            if late is None:
                self._entered.add(billed)
        if late is not None:
            late(billed)

    def at(self, model: str) -> Meter:
        """One whose entries come here, as those of ``model`` of several."""
        meter = Meter()
        meter.close(lambda billed: self.enter(billed.at(model)))
        return meter

    def taken(self) -> Billed:
        """What was entered since the last time."""
        with holding(self._lock):
            entered, self._entered = self._entered, Billed()
        return entered

    def close(self, late: Callable[[Billed], None]) -> Billed:
        """The last of it; ``late`` gets what comes after, which is billed all the same."""
        with holding(self._lock):
            self._late = late
            return self.taken()
