"""The answer, and the events of a stream that ends with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, overload

from .json_forms import AnswerJson, GenerationJson, dumps
from .records import Claim, FinishReason, ModelCard, Role, Selection, Span, Token, ToolCall, Usage
from .report import Report, make_report
from .text.messages import Message


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Generation:
    """A finished answer. ``tokens`` ends with the end-of-generation token where there was one."""

    text: str
    tokens: tuple[Token, ...]
    usage: Usage
    finish_reason: FinishReason
    seed: int
    policy: str
    method: str
    tool_calls: tuple[ToolCall, ...] = ()
    """Tools that the answer asks its reader to call; what it says beside them is ``text``."""
    degraded: str | None = None
    """Why the slow model was given up in mid-answer, or which cap kept it from being asked; None when all went well."""
    reasoning: str = ""
    """What the slow model thought before it wrote, as far as its endpoint shows that: no part of ``text``."""
    default_policy: bool = False
    """Whether the policy was the Router's own choice for a slow model behind an endpoint."""
    selection: Selection | None = None
    """What a verifier made of the fast model's answers, under a policy ``best_of``; None under any other."""
    claim: Claim | None = None
    """What a policy's certificate says of this answer; None without one.

    A cap, a held rate, drift or an outlier suspends it, and so does what calibration did not run: a prompt of
    another kind, sampling (temperature above 0), masks, an answer that was cut off, a slow model that failed."""
    baseline: Generation | None = None
    """The slow model's own answer to the same prompt, where it was asked for."""
    models: Mapping[Role, ModelCard] = field(default_factory=dict)
    parsed: Any = None
    """What the answer says, where ``response_format`` asked for JSON: the pydantic model's instance, or the JSON value.

    None where it was cut off, and where ``parse_error`` says why not."""
    parse_error: str | None = None
    """Why a whole answer says nothing all the same: a validator of the model refused it, or a stop string cut it."""
    request_id: str = ""
    """What log events call this request."""

    def __repr__(self) -> str:
        text = self.text if len(self.text) <= 60 else f"{self.text[:60]}..."
        wrote = f"{self.usage.slow_tokens} of {self.usage.tokens} tokens by the slow model"
        return f"Generation({text!r}, {wrote}, finish_reason={self.finish_reason!r})"

    @property
    def guarantee(self) -> str | None:
        """The claim in words: its population, its number, and why it is suspended, where it is."""
        return None if self.claim is None else str(self.claim)

    @property
    def message(self) -> Message:
        """The answer as a message, for the next turn of its conversation."""
        message: Message = {"role": "assistant", "content": self.text}
        if self.tool_calls:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in self.tool_calls
            ]
        return message

    @property
    def spans(self) -> tuple[Span, ...]:
        """Runs of tokens with one verdict, so by one model."""
        spans: list[Span] = []
        for index, token in enumerate(self.tokens):
            if spans and spans[-1].verdict == token.verdict:
                spans[-1] = Span(spans[-1].start, index + 1, token.source, token.verdict)
            else:
                spans.append(Span(index, index + 1, token.source, token.verdict))
        return tuple(spans)

    def report(self) -> Report:
        """What routing saved, against the slow model alone; prints as text, ``to_dict()`` for JSON."""
        # A baseline that the slow model did not bring to its end measures nothing.
        measured = self.baseline.usage if self.baseline and self.baseline.degraded is None else None
        return make_report(
            self.usage,
            self.tokens,
            self.models,
            measured=measured,
            policy=self.policy,
            method=self.method,
            finish_reason=self.finish_reason,
            degraded=self.degraded,
            claim=self.claim,
            selection=self.selection,
            default_policy=self.default_policy,
        )

    @overload
    def to_dict(self, *, tokens: Literal[True] = True) -> GenerationJson: ...

    @overload
    def to_dict(self, *, tokens: Literal[False]) -> AnswerJson: ...

    def to_dict(self, *, tokens: bool = True) -> GenerationJson | AnswerJson:
        """The answer for JSON, with its report; :mod:`fsgen_router.json_forms` has the schema.

        ``tokens=False`` leaves tokens, spans and the baseline out.
        """
        answer: AnswerJson = {
            "request_id": self.request_id,
            "text": self.text,
            "tool_calls": [call.to_dict() for call in self.tool_calls],
            "reasoning": self.reasoning,
            "finish_reason": self.finish_reason,
            "seed": self.seed,
            "policy": self.policy,
            "method": self.method,
            "degraded": self.degraded,
            "guarantee": self.guarantee,
            "default_policy": self.default_policy,
            "selection": None if self.selection is None else self.selection.to_dict(),
            "usage": self.usage.to_dict(),
            "report": self.report().to_dict(),
        }
        if not tokens:
            return answer
        return {
            **answer,
            "tokens": [token.to_dict() for token in self.tokens],
            "spans": [span.to_dict() for span in self.spans],
            "baseline": None if self.baseline is None else self.baseline.to_dict(tokens=False),
        }

    def to_json(self, *, tokens: bool = True, indent: int | None = None) -> str:
        """:meth:`to_dict` as a text."""
        return dumps(self.to_dict() if tokens else self.to_dict(tokens=False), indent=indent)


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A stream event: ``token`` was emitted, and ``text`` may now be shown (perhaps none yet)."""

    text: str
    token: Token | None


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """A stream event: the slow model thinks before it writes. ``text`` is no part of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A stream event: more of the answer's tool call number ``index``, from 0.

    A call's first one has its ``id`` and the tool's ``name``; each adds to the JSON text of its ``arguments``.
    """

    index: int
    id: str | None
    name: str | None
    arguments: str


@dataclass(frozen=True, slots=True)
class Restarted:
    """A stream event: the slow model begins the answer anew. The text so far does not stand, and has to be taken away.

    A policy with ``draft=show`` or ``draft=drop`` brings it, at a hand-over of the rest: once in an answer, unless
    a cap on slow tokens ended that early. So does a tool call that was made before: in an earlier message, and then no
    event has told of it, or in this very answer, and then what was told of its calls does not stand either.
    """


@dataclass(frozen=True, slots=True)
class Finished:
    """The last stream event."""

    generation: Generation


StreamEvent: TypeAlias = TextDelta | ToolCallDelta | ReasoningDelta | Restarted | Finished
