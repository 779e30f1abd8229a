"""A learned score against a threshold, and whether what was certified about it still holds."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from fsgen_router.contracts.policy import REST, Context, Decision, Ledger, Policy, PolicyState
from fsgen_router.contracts.tokenizer import Tokenizer, Turn
from fsgen_router.errors import ConfigurationError
from fsgen_router.records import Claim
from fsgen_router.rows.signals import Signals

from .basic import Capped, _check_extent, _suffix
from .budget import RateHold
from .cards import CurvePoint, Guarantee, Pair
from .drift import Counts, DriftMonitor
from .features import feature_row, hidden_size
from .guard import OutlierGuard
from .prompt_check import PromptCheck, asked
from .scorers import Scorer, logit, sigmoid

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SpanRule:
    """Judges the last ``window`` drafted tokens together, by a quantile of their scores.

    Sums and means favour short or long spans, where a quantile looks at the few tokens that matter
    (Gupta et al., arXiv 2404.10136). ``quantile`` 1 is the largest score, 0.5 the median. Judged as
    soon as ``window`` tokens have been drafted since the slow model last wrote; above ``threshold``
    the slow model is asked.
    """

    window: int
    quantile: float
    threshold: float

    def __post_init__(self) -> None:
        if self.window < 1 or not 0.0 <= self.quantile <= 1.0 or not math.isfinite(self.threshold):
            raise ConfigurationError(
                f"a span of {self.window} tokens, quantile {self.quantile}, threshold {self.threshold}"
            )

    def score(self, scores: Sequence[float]) -> float:
        """The quantile of some tokens' scores, linear between neighbours."""
        ordered = sorted(scores)
        place = self.quantile * (len(ordered) - 1)
        low = math.floor(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])


class _State(NamedTuple):
    """One request's part. ``shift`` and ``moved`` are what thresholds were shifted by to hold a rate, in
    log-odds: before this request, and in it."""

    threshold: float
    shift: float = 0.0
    moved: float = 0.0
    recent: tuple[float, ...] = ()
    counts: Counts = ()
    outliers: int = 0


@dataclass(frozen=True)
class Learned:
    """Escalate where ``scorer`` gives more than ``threshold``; ``extent`` tokens at a time.

    ``span`` adds a judgement of whole drafted spans. ``hold`` lets thresholds follow a rate (see
    :meth:`holding`), ``drift`` watches the scores over a Router's requests, ``guard`` single positions
    (experimental). ``certificate`` is what was certified about scorer, threshold, extent and span; it
    is suspended by whatever moves the threshold away from the certified one, and for prompts that are not of
    the kind that ``inputs`` tells. ``pair`` and ``method`` are what the policy was made for, None where that is
    not known. ``suspended`` are reasons from outside. ``curve`` is what other thresholds did on the calibration
    prompts, by rising threshold; empty where nobody ran them.
    """

    scorer: Scorer
    threshold: float
    extent: int = 1
    span: SpanRule | None = None
    hold: RateHold | None = None
    drift: DriftMonitor | None = None
    guard: OutlierGuard | None = None
    certificate: Guarantee | None = None
    pair: Pair | None = None
    method: str | None = None
    suspended: tuple[str, ...] = ()
    inputs: PromptCheck | None = None
    curve: tuple[CurvePoint, ...] = ()

    def __post_init__(self) -> None:
        _check_extent(self.extent)
        if not math.isfinite(self.threshold):
            raise ConfigurationError(f"a threshold of {self.threshold}", hint="scores are in [0, 1]")

    @property
    def name(self) -> str:
        held = f",rate={self.hold.rate:g}" if self.hold else ""
        return f"learned:{self.scorer.name}>{self.threshold:.6g}" + _suffix(self.extent) + held

    @property
    def asks(self) -> bool:
        return True

    @cached_property
    def hidden_size(self) -> int:
        """Width of the fast model's hidden state, which scorer or guard read; 0 where neither does."""
        return max(hidden_size(part.spec()) for part in (self.scorer, self.guard) if part is not None)

    @property
    def reads_hidden(self) -> bool:
        return self.hidden_size > 0

    # --- the contract of a policy ---

    def begin(self, ledger: Ledger) -> PolicyState:
        threshold, shift = self.threshold, 0.0
        counts: Counts = () if self.drift is None else self.drift.empty
        if self.hold is not None:
            shift = self.hold.begin(ledger)
        elif self.drift is not None and self.drift.state(ledger, self.digest).alarm:
            threshold = min(threshold, self.drift.widened)
        return _State(threshold, shift, counts=counts)

    def decide(self, state: PolicyState, signals: Signals, context: Context) -> tuple[PolicyState, Decision]:
        threshold, shift, moved, recent, counts, outliers = state
        if self.hidden_size and signals.hidden is None:
            raise ConfigurationError(
                f"{self.name} reads hidden states and was given none",
                hint="a policy around it has to hand its reads_hidden on",
            )
        row = feature_row(signals, context)
        score = self.scorer.score_one(row)
        if self.drift is not None:
            counts = self.drift.count(counts, score)
        outlier = self._is_outlier(row)
        decision, recent = self._decision(score, recent, outlier, threshold, shift + moved)
        if self.hold is not None:
            moved += self.hold.change(decision.escalate)
        return _State(threshold, shift, moved, recent, counts, outliers + outlier), decision

    def _is_outlier(self, row: Sequence[float]) -> bool:
        return self.guard is not None and self.guard.is_outlier(row)

    def _decision(
        self, score: float, recent: tuple[float, ...], outlier: bool, threshold: float, shift: float
    ) -> tuple[Decision, tuple[float, ...]]:
        """What is decided by a score and the ``recent`` ones since the last escalation; and these from here on."""
        compared, reason = self._held(threshold, shift), self.scorer.name
        if outlier:
            assert self.guard is not None
            compared, reason = min(compared, self.guard.widened), "outlier"
        # A score that is no number is no reason to be sure.
        escalate = not score <= compared
        if self.span is not None:
            recent = (*recent, score)[-self.span.window :]
            if not escalate and len(recent) == self.span.window:
                over_span, limit = self.span.score(recent), self._held(self.span.threshold, shift)
                if over_span > limit:
                    escalate, score, compared, reason = True, over_span, limit, "span"
        return Decision(escalate, self.extent, score, compared, reason), () if escalate else recent

    def decided(self, features: Floats, answer: Ints) -> npt.NDArray[np.bool_]:
        """Where it decides in whole answers, one behind the other: not within the spans that it hands over.

        ``features`` has shape (n, n_features), ``answer``, shape (n,), says which answer a position is of.
        """
        found, scores, at = np.zeros(len(features), np.bool_), self.scorer.score(features), 0
        recent: tuple[float, ...] = ()
        ends = np.searchsorted(answer, answer, side="right")
        while at < len(found):
            found[at], end = True, int(ends[at])
            outlier = self._is_outlier(features[at].tolist())
            decision, recent = self._decision(float(scores[at]), recent, outlier, self.threshold, 0.0)
            step = self.extent if decision.escalate else 1
            at = end if step == REST else min(at + step, end)
            recent = recent if at < end else ()
        return found

    def _held(self, threshold: float, shift: float) -> float:
        """A threshold as it is while a rate is held."""
        return threshold if self.hold is None else sigmoid(logit(threshold) + shift)

    def rewound(self, older: PolicyState, newer: PolicyState) -> PolicyState:
        """What a rate was held with, and outliers, are not undone; scores count where they stand."""
        return older._replace(moved=newer.moved, outliers=newer.outliers)

    def end(self, state: PolicyState, ledger: Ledger) -> None:
        if self.hold is not None:
            self.hold.end(state.moved, ledger)
        # What is known to be of another kind, and claims nothing, is no drift of the rest.
        if self.drift is not None and not self.suspended:
            self.drift.observe(state.counts, ledger, self.digest)

    # --- variants ---

    def holding(self, rate: float, *, step: float = 0.2) -> Learned:
        """This policy with thresholds that are shifted so that a rate is held; ``step`` is in log-odds.

        Those of tokens and of spans are shifted alike. While a rate is held nothing is certified, and an
        alarm of drift widens nothing.
        """
        return replace(self, hold=RateHold(rate, step, 0.0, f"learned/rate/{rate:g}/{self.digest}"))

    def certified(self, guarantee: Guarantee) -> Learned:
        """This policy with its certificate; changing scorer, threshold, extent or span suspends it."""
        if guarantee.threshold != self.threshold:
            raise ConfigurationError(
                f"certified for the threshold {guarantee.threshold}, the policy's is {self.threshold}"
            )
        certificate = guarantee.model_copy(update={"policy": self.digest})
        return replace(self, certificate=certificate, method=guarantee.method)

    # --- the claim ---

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what is certified: scorer, threshold, extent and span."""
        span = None if self.span is None else asdict(self.span)
        settings = [self.scorer.spec(), self.threshold, self.extent, span]
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for name, tensor in sorted(self.scorer.to_tensors().items()):
            digest.update(f"{name}:{tensor.dtype}:{tensor.shape}:".encode())
            digest.update(np.ascontiguousarray(tensor).tobytes())
        return digest.hexdigest()

    def guarantee(self, ledger: Ledger | None = None, state: PolicyState | None = None) -> Claim | None:
        """What the certificate says, and whether that holds; None without one.

        With a Router's ``ledger``, for its requests so far; with a request's last ``state``, for that
        request.
        """
        if self.certificate is None:
            return None
        reasons = list(self.suspended)
        if self.digest != self.certificate.policy:
            reasons.append("the policy is not the certified one")
        if self.hold is not None:
            reasons.append("a rate is held")
        if self.drift is not None and ledger is not None and self.drift.state(ledger, self.digest).ever:
            reasons.append("scores drifted from those of calibration")
        if state is not None and state.outliers:
            reasons.append(f"{state.outliers} positions unlike those of calibration")
        return Claim(self.certificate.sentence, tuple(reasons))


def guarantee_of(policy: Policy, ledger: Ledger | None = None, state: PolicyState | None = None) -> Claim | None:
    """What is certified about any policy, and whether that holds; None where nothing is.

    ``ledger`` is the Router's and ``state`` the request's last one, where there are any. A cap may keep
    escalations from happening that the certificate counts on.
    """
    if isinstance(policy, Capped):
        inner = guarantee_of(policy.inner, ledger, state)
        return None if inner is None else inner.but("a cap")
    return policy.guarantee(ledger, state) if isinstance(policy, Learned) else None


def longest_answer(policy: Policy) -> int | None:
    """Tokens after which a calibrated policy's answers were cut off in calibration; None where nothing is known."""
    if isinstance(policy, Capped):
        return longest_answer(policy.inner)
    return policy.inputs.longest_answer if isinstance(policy, Learned) and policy.inputs is not None else None


def check_prompt(
    policy: Policy,
    tokenizer: Tokenizer,
    *,
    prompt: str | None = None,
    messages: Sequence[Turn] | None = None,
    stop: Sequence[str] = (),
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> Policy:
    """The policy to use for one prompt, raw or messages: itself, or with its certificate suspended, because what is
    asked is not of the kind that it was calibrated on. ``tokenizer`` is the fast model's."""
    if isinstance(policy, Capped):
        inner = check_prompt(
            policy.inner,
            tokenizer,
            prompt=prompt,
            messages=messages,
            stop=stop,
            chat_template_kwargs=chat_template_kwargs,
        )
        return policy if inner is policy.inner else replace(policy, inner=inner)
    if not isinstance(policy, Learned) or policy.certificate is None:
        return policy
    reasons: tuple[str, ...] = ()
    if policy.inputs is not None:
        reasons = policy.inputs.reasons(asked(tokenizer, prompt=prompt, messages=messages), stop=stop)
    if chat_template_kwargs:
        reasons += ("variables of the chat template were set",)
    return replace(policy, suspended=policy.suspended + reasons) if reasons else policy
