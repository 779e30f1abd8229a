"""Candidate policies: thresholds at quantiles of the fit prompts' scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ..evaluation import Array
from ..policies import Learned, SpanRule
from ..policies.scorers import Scorer

STEP = 7 / 8
"""Of the escalations of one candidate, the share that the next one keeps: what a step changes is what it costs."""

CANDIDATE_RATES = tuple(round(0.6 * STEP**k, 5) for k in range(41))
"""Shares of the fit prompts' positions that candidates would escalate, from 0.6 (the safest) to 0.003."""

Ints: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Span:
    """How drafted spans are judged besides single tokens: by a ``quantile`` of ``window`` tokens' scores."""

    window: int = 8
    quantile: float = 0.9


def policy_at(
    scorer: Scorer, scores: Array, answer: Ints, rate: float, *, extent: int = 1, span: Span | None = None
) -> Learned:
    """The policy that would escalate a share ``rate`` of ``scores``, shape (n,), if that changed no text.

    ``answer`` says which answer each score is of, so that no span reaches over two. A span's own
    threshold is the same quantile of the spans' scores.
    """
    threshold = float(np.quantile(scores, 1.0 - rate))
    if span is None:
        return Learned(scorer, threshold, extent)
    rule = SpanRule(span.window, span.quantile, 0.0)
    spans = _span_scores(rule, scores, answer)
    return Learned(scorer, threshold, extent, replace(rule, threshold=float(np.quantile(spans, 1.0 - rate))))


def _span_scores(rule: SpanRule, scores: Array, answer: Ints) -> Array:
    size = min(rule.window, len(scores))
    whole = answer[size - 1 :] == answer[: len(answer) - size + 1]
    windows = np.lib.stride_tricks.sliding_window_view(scores, size)[whole]
    return np.quantile(windows, rule.quantile, axis=1) if len(windows) else scores


def candidate_policies(
    scorer: Scorer,
    scores: Array,
    answer: Ints,
    *,
    rates: Sequence[float] = CANDIDATE_RATES,
    extent: int = 1,
    span: Span | None = None,
) -> list[Learned]:
    """Candidates from the safest (most escalation) on, without those that decide like the one before them.

    They come from the fit prompts' scores alone. Fixed-sequence testing holds its level only where neither the
    candidates nor their order depend on what certifies them: not on the calibration prompts' losses, and not on
    their scores or rates either, which go along with losses. How many there are costs no confidence.
    """

    def above(policy: Learned) -> tuple[int, ...]:
        """How many tokens and spans of the fit prompts it escalates."""
        found = [scores > policy.threshold]
        if policy.span is not None:
            found.append(_span_scores(policy.span, scores, answer) > policy.span.threshold)
        return tuple(int(flags.sum()) for flags in found)

    made = [policy_at(scorer, scores, answer, rate, extent=extent, span=span) for rate in sorted(rates, reverse=True)]
    return [policy for _, (policy, *_) in groupby(made, above)]
