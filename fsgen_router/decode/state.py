"""What an engine knows of a request: one record, which a fork copies."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from ..contracts.models import Role
from ..contracts.policy import Decision, PolicyState
from ..records import FinishReason, Selection, Token, Usage
from ..rows.acceptance import Check
from ..rows.reading import Row
from ..rows.signals import Signals
from ..text.stream import TextStream


@dataclass(slots=True)
class Reader:
    """How far one model has read: ``seen`` of (prompt + answer) tokens are in its KV cache."""

    sequence: int = -1
    seen: int = 0
    found: int = 0
    """Tokens that the KV cache still held when the sequence was opened."""
    first_job: int = -1
    """The job that first read, on top of those."""


@dataclass(slots=True)
class Proposal:
    """The fast model's token at the position under decision."""

    row: Row
    signals: Signals
    decision: Decision


@dataclass(slots=True)
class Held:
    """A drafted token that models read as part of the answer, and that is not streamed yet.

    ``policy`` is the policy's state behind it, for a rewind to here. Without a ``check`` there is
    nothing to judge: a mask left one choice.
    """

    record: Token
    policy: PolicyState
    check: Check | None


Purpose: TypeAlias = Literal["open", "propose", "answer", "verify", "text", "ahead", "audit", "draft", "score", "judge"]


@dataclass(slots=True)
class EngineState:
    """All that an engine knows of a request. Tokens and records in it are immutable."""

    policy: PolicyState
    prompts: dict[Role, Sequence[int]]
    """As each model reads them; the slow one's holds a draft that it was shown."""
    text: TextStream
    readers: dict[Role, Reader]
    step_seconds: dict[Role, list[float]]
    """Times of the forwards that read one new token of each request in them: what a slow-only baseline is
    estimated from, whose steps would be shared alike. Those that also read chunks tell nothing of a step."""
    answer: list[int] = field(default_factory=list)
    """Ids that stand, those held back included."""
    tokens: list[Token] = field(default_factory=list)
    """Those that cannot be taken back."""
    held: list[Held] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
    jobs: dict[int, tuple[Role, Purpose, int]] = field(default_factory=dict)
    next_job: int = 0
    proposal: Proposal | None = None
    rows: dict[Role, Row] = field(default_factory=dict)
    """What the method has of this position so far."""
    escalation: Decision | None = None
    span_left: int = 0
    """Tokens that the slow model is still to write; above 0, it has the word."""
    span_start: int = -1
    """Where a local slow model's span began; below 0 until it has written."""
    anew: bool = False
    """The slow model begins the answer anew with its first word, which takes the place of the draft."""
    span_text: str = ""
    """What an endpoint has said of its span, of which ``span_shown`` characters are shown."""
    span_shown: int = 0
    call_seconds: float | None = None
    """What is counted by now of the time of its call; None where there is no endpoint."""
    span_fit: int = 0
    """Characters of it that are known to be of the form that the answer has to have, as the tokens ``span_ids``."""
    span_ids: list[int] = field(default_factory=list)
    span_reasoning: str = ""
    reasoning: list[str] = field(default_factory=list)
    silences: list[str] = field(default_factory=list)
    """Of each call of an endpoint that ended without text, why."""
    last_escalation: int = -1
    last_call: tuple[int, int] = (0, 0)
    """Tokens that an endpoint read and wrote in its last call, in its own count."""
    limited: str | None = None
    """The cap that first declined an escalation."""
    finish: FinishReason | None = None
    reviewed: bool = False
    closed: bool = False
    """Whether the answer's text and the policy are done with: what is left then changes neither."""
    degraded: str | None = None
    fault: str | None = None
    """Why, in words that may be logged."""
    selection: Selection | None = None
    """What came of the fast model's answers, where a verifier chose among several."""
    usage: Usage = field(default_factory=Usage)

    def took(self, role: Role, seconds: float) -> None:
        """Count the time of a job; of an endpoint's call, which is heard of as it goes on, what is new of it."""
        if role == "slow" and self.call_seconds is not None:
            seconds, self.call_seconds = seconds - self.call_seconds, seconds
        self.usage.of(role).seconds += seconds

    def copy(self) -> EngineState:
        return dataclasses.replace(
            self,
            prompts=dict(self.prompts),
            text=self.text.copy(),
            answer=list(self.answer),
            tokens=list(self.tokens),
            held=list(self.held),
            shown=list(self.shown),
            span_ids=list(self.span_ids),
            reasoning=list(self.reasoning),
            silences=list(self.silences),
            readers={role: dataclasses.replace(reader) for role, reader in self.readers.items()},
            jobs=dict(self.jobs),
            rows=dict(self.rows),
            step_seconds={role: list(times) for role, times in self.step_seconds.items()},
            usage=self.usage.copy(),
        )
