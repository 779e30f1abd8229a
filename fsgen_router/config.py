"""What a caller may set: small frozen models that reject unknown options."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypedDict

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from .constraints import AnswerFormat, GrammarVocabulary, make_constraint, read_format
from .contracts.methods import Method
from .contracts.policy import Policy
from .decode import Constraint, forced_by
from .errors import InvalidRequest
from .money import Budget
from .rows.reading import Mask, Warp
from .support.options import TemplateVariables
from .tools import Choice, Tool, make_choice, make_tools


class RequestKeywords(TypedDict, total=False):
    """The fields of :class:`RequestOptions` as keyword arguments: what ``**options`` of a request takes.

    A wrapper's own ``**options: Unpack[RequestKeywords]`` is checked like the Router's.
    """

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int | None
    stop: str | Sequence[str]
    stop_tokens: Sequence[int]
    logit_bias: Mapping[int, float]
    response_format: Mapping[str, Any] | type[BaseModel] | AnswerFormat | None
    regex: str | None
    grammar: str | None
    constraint: Constraint | None
    tools: Sequence[Tool | Mapping[str, Any] | type[BaseModel]]
    tool_choice: str | Mapping[str, Any] | Choice | None
    parallel_tool_calls: bool
    chat_template_kwargs: Mapping[str, Any]
    max_slow_calls: int | None
    max_slow_tokens: int | None
    max_cost_usd: float | None
    max_seconds: float | None
    budget: Budget | None
    baseline: bool
    policy: Policy | str | Path | None
    method: Method | str | None
    request_id: str | None


class RequestOptions(BaseModel):
    """Options of one request, for ``complete``, ``stream``, ``chat`` and their async twins."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    max_tokens: int = Field(default=256, ge=1, description="tokens to write at most")
    temperature: float = Field(default=0.0, ge=0.0, le=100.0, allow_inf_nan=False, description="0 is greedy")
    top_k: int = Field(default=0, ge=0, description="sample among the k best; 0: all")
    top_p: float = Field(default=1.0, gt=0.0, le=1.0, description="sample among the best that hold this probability")
    min_p: float = Field(default=0.0, ge=0.0, le=1.0, description="sample above this share of the best probability")
    seed: int | None = Field(
        default=None, description="same seed and prompt, same text; None: the Router's, or a new one"
    )
    stop: tuple[str, ...] = Field(default=(), description="end before any of these strings")
    stop_tokens: tuple[int, ...] = Field(default=(), description="end at any of these token ids")
    logit_bias: Mapping[int, float] = Field(default_factory=dict, description="token id to what is added to its logit")
    response_format: Any = Field(
        default=None, description="JSON of a schema: OpenAI's json_schema, json_object or text, or a pydantic model"
    )
    regex: str | None = Field(default=None, description="the answer matches this regular expression, whole")
    grammar: str | None = Field(default=None, description="the answer is of this grammar, in Lark's notation or GBNF")
    constraint: Any = Field(default=None, description="masks logits: an object with mask(answer_ids)")
    tools: Any = Field(
        default=(), description="functions that a chat's answer may call: OpenAI's form, or pydantic models"
    )
    tool_choice: Any = Field(default=None, description="auto, none, required, or the tool that has to be called")
    parallel_tool_calls: bool = Field(default=True, description="one answer may make several calls")
    chat_template_kwargs: TemplateVariables = Field(
        default_factory=dict, description="variables for the chat templates of both models, such as enable_thinking"
    )
    max_slow_calls: int | None = Field(default=None, ge=0, description="cap on escalations")
    max_slow_tokens: int | None = Field(default=None, ge=0, description="cap on tokens that the slow model writes")
    max_cost_usd: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="cap on what the slow model costs, by its known prices"
    )
    max_seconds: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="cap on seconds that the slow model takes"
    )
    budget: Any = Field(default=None, description="a Budget that this request shares with others, beside the Router's")
    baseline: bool = Field(default=False, description="also run the slow model alone, so that savings are measured")
    policy: Any = Field(default=None, description="for this request: an object, a short form or a file")
    method: Any = Field(default=None, description="for this request: an object or a short form")
    request_id: str | None = Field(
        default=None, pattern=r"^[\x21-\x7e]{1,128}$", description="its name in log events; None: a new one"
    )

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _no_empty_stop(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(value):
            raise ValueError("a stop string is empty")
        return value

    @field_validator("logit_bias")
    @classmethod
    def _usable_bias(cls, value: Mapping[int, float]) -> Mapping[int, float]:
        if not all(abs(bias) <= 1e9 or bias == -math.inf for bias in value.values()):
            raise ValueError("a bias is between -1e9 and 1e9, or -inf to forbid a token")
        return value

    @field_validator("budget")
    @classmethod
    def _a_budget(cls, value: object) -> object:
        if not isinstance(value, Budget | None):
            raise ValueError("a Budget object, or None")
        return value

    @model_validator(mode="after")
    def _known_tools(self) -> Self:
        # Their own errors say more than a validator's.
        object.__setattr__(self, "tools", make_tools(self.tools or ()))
        object.__setattr__(self, "tool_choice", make_choice(self.tool_choice, self.tools))
        return self

    @field_validator("response_format")
    @classmethod
    def _a_format(cls, value: object) -> AnswerFormat | None:
        return None if value is None else read_format(value)

    @property
    def parse(self) -> Callable[[str], tuple[Any, str | None]] | None:
        """What reads a whole answer, where that is to be JSON."""
        form: AnswerFormat | None = self.response_format
        return None if form is None or form.schema is None else form.parse

    @property
    def form(self) -> Mapping[str, Any] | None:
        """What an endpoint is told of it."""
        form: AnswerFormat | None = self.response_format
        return None if form is None or form.schema is None else form.to_dict()

    @property
    def masked_by(self) -> list[str]:
        """Options that change or forbid tokens of this request."""
        named = [name for name in ("logit_bias", "tools") if getattr(self, name)]
        return [*named, *self._grammars, *self._given("constraint")]

    @property
    def _grammars(self) -> list[str]:
        """Options that say what the answer has to be."""
        form = self.response_format
        return [*(["response_format"] if form and form.schema is not None else []), *self._given("regex", "grammar")]

    def _given(self, *names: str) -> list[str]:
        return [name for name in names if getattr(self, name) is not None]

    @property
    def warp(self) -> Warp:
        return Warp(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, min_p=self.min_p)

    def stop_ids(self, n_vocab: int) -> frozenset[int]:
        """Token ids to end at."""
        _require_ids("stop_tokens", self.stop_tokens, n_vocab)
        return frozenset(self.stop_tokens)

    def make_constraint(
        self, vocabulary: GrammarVocabulary, *, calls: str | None = None, any_layout: bool = False
    ) -> Constraint | None:
        """Logit bias, and the grammar (``calls``: that of tool calls) or the caller's constraint, as one.

        JSON of a schema on one line, or in ``any_layout``.
        """
        if self.constraint is not None and not callable(getattr(self.constraint, "mask", None)):
            raise InvalidRequest(f"constraint={self.constraint!r} has no mask()")
        given = [*self._grammars, *self._given("constraint")]
        if calls is not None:  # whose grammar holds answers that call nothing to a response_format
            given = ["tools", *(name for name in given if name != "response_format")]
        if len(given) > 1:
            raise InvalidRequest(f"{' and '.join(given)} at once", hint="an answer is held to one of them")
        constraint: Constraint | None = self.constraint
        if calls is not None:
            constraint = self._held_to_calls(vocabulary, calls)
        elif self._grammars:
            form: AnswerFormat | None = self.response_format
            constraint = make_constraint(
                vocabulary,
                schema=None if form is None else form.schema,
                regex=self.regex,
                grammar=self.grammar,
                lenient=form is not None and not form.strict,
                any_layout=any_layout,
            )
        if not self.logit_bias:
            return constraint
        _require_ids("logit_bias", self.logit_bias, vocabulary.n_vocab)
        return LogitBias(self.logit_bias, constraint)

    def _held_to_calls(self, vocabulary: GrammarVocabulary, calls: str) -> Constraint:
        try:
            return make_constraint(vocabulary, calls=calls)
        except InvalidRequest:
            for tool in self.tools:  # which of them it is
                try:
                    make_constraint(vocabulary, schema=tool.parameters)
                except InvalidRequest as error:
                    reason = error.message.removeprefix("response_format cannot be used: ")
                    raise InvalidRequest(
                        f"the parameters of tool {tool.name} cannot be used: {reason}", hint=error.hint
                    ) from None
            raise


def _require_ids(option: str, ids: Iterable[int], n_vocab: int) -> None:
    for token in ids:
        if not 0 <= token < n_vocab:
            raise InvalidRequest(
                f"{option} names token {token}, the vocabulary has 0 to {n_vocab - 1}", hint="use token ids"
            )


class LogitBias:
    """Adds a bias to chosen tokens' logits, on top of another constraint if there is one."""

    def __init__(self, bias: Mapping[int, float], inner: Constraint | None = None) -> None:
        self._ids = np.fromiter(bias.keys(), np.int64)
        self._bias = np.fromiter(bias.values(), np.float32)
        self._inner = inner

    def forced(self, answer: Sequence[int]) -> Sequence[int]:
        """What the other constraint forces: no bias makes a choice where there is none."""
        return forced_by(self._inner, answer)

    def mask(self, answer: Sequence[int]) -> Mask:
        inner = self._inner.mask(answer) if self._inner else None
        if inner is None:
            return Mask(ids=self._ids, bias=self._bias)
        if inner.ids is None:
            return Mask(ids=self._ids, bias=self._bias, allowed=inner.allowed)
        # One entry per id, because adding at a repeated index counts once.
        both = dict(zip(inner.ids.tolist(), inner.bias.tolist() if inner.bias is not None else [], strict=True))
        for token, value in zip(self._ids.tolist(), self._bias.tolist(), strict=True):
            both[token] = both.get(token, 0.0) + value
        return Mask(
            ids=np.fromiter(both.keys(), np.int64),
            bias=np.fromiter(both.values(), np.float32),
            allowed=inner.allowed,
        )
