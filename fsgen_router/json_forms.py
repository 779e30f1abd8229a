"""What answers look like as JSON: the types of every ``to_dict()``, whose keys are the schema.

A number that is not finite is null: the log-probability of a token that a mask forbids, say. Seconds and nats
are as in the records; ``bytes`` are hexadecimal, because a token may be a part of a character.
"""

from __future__ import annotations

import json
import math
from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict  # pydantic, and so FastAPI, takes no other before Python 3.12


class SignalsJson(TypedDict):
    """:class:`~fsgen_router.Signals`, without the hidden state."""

    token_id: int
    token_class: int
    entropy_nats: float | None
    varentropy: float | None
    max_prob: float | None
    margin: float | None
    log_partition: float | None
    top_ids: list[int]
    top_logprobs: list[float | None]


class DecisionJson(TypedDict):
    """:class:`~fsgen_router.Decision`; an ``extent`` of -1 is the rest of the answer, ``until`` mostly empty."""

    escalate: bool
    extent: int
    score: float | None
    threshold: float | None
    reason: str
    until: Literal["", "sentence", "line", "step"]
    draft: Literal["keep", "show", "drop"]


class TokenJson(TypedDict):
    """:class:`~fsgen_router.Token`."""

    id: int
    text: str
    bytes: str
    source: Literal["fast", "slow"]
    verdict: Literal["written", "accepted", "unchecked"]
    logprob: float | None
    signals: SignalsJson | None
    decision: DecisionJson | None
    fast_choice: int | None
    slow_choice: int | None
    tuned_choice: int | None


class ToolCallJson(TypedDict):
    """:class:`~fsgen_router.ToolCall`; ``arguments`` is JSON text."""

    id: str
    name: str
    arguments: str


class SpanJson(TypedDict):
    """:class:`~fsgen_router.Span`: tokens ``start`` to ``stop``, exclusive."""

    start: int
    stop: int
    source: Literal["fast", "slow"]
    verdict: Literal["written", "accepted", "unchecked"]


class CandidateJson(TypedDict):
    """:class:`~fsgen_router.Candidate`."""

    text: str
    tokens: int
    finish_reason: Literal["eog", "stop", "length", "context"]
    score: float | None


class SelectionJson(TypedDict):
    """:class:`~fsgen_router.Selection`."""

    candidates: list[CandidateJson]
    chosen: int | None
    reason: str


class ModelUsageJson(TypedDict):
    """One model's counters: tokens, but for ``forwards``, ``calls`` and ``seconds``."""

    prefill: int
    cached: int
    catchup: int
    decode: int
    ahead: int
    reread: int
    forwards: int
    calls: int
    seconds: float


class BilledJson(TypedDict):
    """What an endpoint bills: tokens by kind (``estimated`` of them counted here), and requests."""

    input: int
    cached_input: int
    cache_write: int
    output: int
    reasoning: int
    estimated: int
    calls: int
    probes: int
    failed: int
    by_model: NotRequired[dict[str, BilledJson]]


class PricesJson(TypedDict):
    """:class:`~fsgen_router.Prices`, in US dollars per million tokens; ``date`` as YYYY-MM-DD."""

    input: float
    cached_input: float | None
    cache_write: float | None
    output: float
    reasoning: float | None
    source: str
    date: str | None
    fallbacks: NotRequired[dict[str, PricesJson]]


class UsageJson(TypedDict):
    """:class:`~fsgen_router.Usage`: counters, and the rates made of them (null where undefined)."""

    fast: ModelUsageJson
    slow: ModelUsageJson
    tuned: ModelUsageJson
    prompt_tokens: int
    tokens: int
    slow_tokens: int
    text_bytes: int
    slow_bytes: int
    forced: int
    decisions: int
    escalations: int
    discarded_tokens: int
    corrections: int
    tuned_corrections: int
    bonus_tokens: int
    restarts: int
    seam_repairs: int
    reasoning_tokens: int
    round_trips: int
    billed: BilledJson
    prompt_cached: int
    declined: int
    audited: bool
    audit_positions: int
    audit_seconds: float
    compared: int
    disagreements: int
    seconds: float
    first_token_seconds: float | None
    slow_forwards: int
    slow_positions: int
    escalation_rate: float | None
    slow_token_share: float | None
    slow_position_share: float | None
    disagreement_rate: float | None


class ComparisonJson(TypedDict):
    """One quantity with and without routing; ``saving`` is 1 - routed / slow_only, and may be negative."""

    routed: float | None
    slow_only: float | None
    baseline: Literal["measured", "estimated", "unknown"]
    saving: float | None


class FsgenJson(TypedDict):
    """FS-GEN's published rate beside this answer's own."""

    published_rate: float
    disagreement_rate: float | None
    source: str
    note: str


class ReportJson(TypedDict):
    """``Generation.report()``: an answer against the slow model alone."""

    slow_forwards: ComparisonJson
    seconds: ComparisonJson
    flops: ComparisonJson
    money_usd: ComparisonJson
    local_usd: ComparisonJson
    local_joules: ComparisonJson
    billed: BilledJson | None
    """What the slow model's prices apply to; null where there is nothing to bill."""
    prices: PricesJson | None
    usage: UsageJson
    losses: dict[str, str]
    """One sentence for each of the four in which routing cost more."""
    fsgen: FsgenJson
    policy: str
    method: str
    finish_reason: str
    degraded: str | None
    verified_tokens: int
    guarantee: str | None
    guarantee_holds: bool | None
    selection: str | None
    advice: str | None


class SessionReportJson(TypedDict):
    """:class:`~fsgen_router.SessionReport`: all answers of a session together."""

    answers: int
    usage: UsageJson
    comparisons: dict[str, ComparisonJson]
    """Against the slow model alone: slow_forwards, seconds, flops, money_usd, local_usd, local_joules."""
    degraded: dict[str, int]
    """How many answers were degraded, by reason."""


class AnswerJson(TypedDict):
    """A :class:`~fsgen_router.Generation` without its tokens: ``to_dict(tokens=False)``."""

    request_id: str
    text: str
    tool_calls: list[ToolCallJson]
    reasoning: str
    finish_reason: Literal["eog", "stop", "length", "context", "tool_calls"]
    seed: int
    policy: str
    method: str
    degraded: str | None
    guarantee: str | None
    default_policy: bool
    selection: SelectionJson | None
    usage: UsageJson
    report: ReportJson


class GenerationJson(AnswerJson):
    """A :class:`~fsgen_router.Generation` with its tokens, the spans that they make, and its baseline."""

    tokens: list[TokenJson]
    spans: list[SpanJson]
    baseline: AnswerJson | None


def finite(value: Any) -> Any:
    """``value`` with tuples as lists and, for numbers that are not finite and have no JSON, None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    return value


def dumps(value: Any, *, indent: int | None = None) -> str:
    """One JSON value as every parser takes it: no NaN, no infinity."""
    return json.dumps(finite(value), ensure_ascii=False, allow_nan=False, indent=indent)
