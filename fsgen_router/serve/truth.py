"""What an answer says of itself: rates, corrections, certificate, and what routing saved or lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields

from ..generation import Generation
from ..json_forms import finite
from ..records import Token
from ..report import Comparison
from .dialect import Json, present

RATES = ("escalation_rate", "slow_token_share", "slow_position_share", "disagreement_rate")
_COUNTERS = ("slow_forwards", "escalations", "decisions", "corrections", "bonus_tokens", "slow_tokens", "forced")


def truth(answers: Sequence[Generation]) -> Json:
    """``usage.fsgen``: of one answer what is true of it, of several a list under ``answers``."""
    if len(answers) == 1:
        return _truth(answers[0])
    return {"answers": [_truth(answer) for answer in answers]}


def _truth(answer: Generation) -> Json:
    usage, report = answer.usage, answer.report()
    compared = {
        one.name: _compared(comparison)
        for one in fields(report)
        if isinstance(comparison := getattr(report, one.name), Comparison) and comparison.routed is not None
    }
    claim = answer.claim
    guarantee = None
    if claim is not None:
        guarantee = {"holds": claim.holds, "certified": claim.certified, "suspended_by": list(claim.reasons)}
    record = present(
        policy=answer.policy,
        method=answer.method,
        seed=answer.seed,
        **rates(answer),
        **{name: getattr(usage, name) for name in _COUNTERS},
        guarantee=guarantee,
        degraded=answer.degraded,
        compared=compared,
        losses=list(report.losses.values()) or None,
        seconds=round(usage.seconds, 6),
        first_token_seconds=None if usage.first_token_seconds is None else round(usage.first_token_seconds, 6),
    )
    made: Json = finite(record)
    return made


def cached(answer: Generation) -> int:
    """Tokens of the prompt that the fast model's cache held, which may have held some of the answer, too."""
    return min(answer.usage.fast.cached, answer.usage.prompt_tokens)


def rates(answer: Generation) -> dict[str, float]:
    """The four rates, as far as they are known."""
    found = {name: getattr(answer.usage, name) for name in RATES}
    return {name: rate for name, rate in found.items() if rate is not None}


def _compared(comparison: Comparison) -> Json:
    """``saving`` is 1 - routed / slow_only: negative where routing cost more."""
    return present(
        routed=comparison.routed,
        slow_only=comparison.slow_only,
        saving=comparison.saving,
        slow_only_is=comparison.baseline,
    )


def headers(answer: Generation) -> dict[str, str]:
    return {f"x-fsgen-{name.replace('_', '-')}": f"{rate:.6g}" for name, rate in rates(answer).items()}


def token_record(token: Token, text_of: Callable[[int], str]) -> Json:
    """Who wrote a token and why: its source, what the slow model made of it, score and threshold, both choices."""
    decision, signals = token.decision, token.signals

    def choice(one: int | None) -> Json | None:
        return None if one is None else {"id": one, "text": text_of(one)}

    record = present(
        id=token.id,
        text=token.text,
        bytes=token.piece.hex(),
        source=token.source,
        verdict=token.verdict,
        reason=None if decision is None or not decision.reason else decision.reason,
        escalated=None if decision is None else decision.escalate,
        score=None if decision is None else decision.score,
        threshold=None if decision is None else decision.threshold,
        logprob=token.logprob,
        entropy_nats=None if signals is None else signals.entropy_nats,
        fast_choice=choice(token.fast_choice),
        slow_choice=choice(token.slow_choice),
    )
    return {name: value for name, value in finite(record).items() if value is not None}


def token_records(tokens: Iterable[Token], text_of: Callable[[int], str]) -> list[Json]:
    return [token_record(token, text_of) for token in tokens]
