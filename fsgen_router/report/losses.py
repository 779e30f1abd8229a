"""Where routing cost more: one sentence for each quantity, in measured figures."""

from __future__ import annotations

from ..contracts.policy import CAP
from ..records import ModelUsage, Usage
from .comparison import Comparison
from .numbers import seconds_of, si


def explain_loss(
    quantity: str,
    comparison: Comparison,
    usage: Usage,
    alone: ModelUsage,
    fast_step_seconds: float | None,
    slow_step_seconds: float | None,
) -> str:
    """Where a ``quantity`` that was lost went; ``alone`` is what the slow model does alone."""
    routed, slow_only = comparison.routed, comparison.slow_only
    assert routed is not None
    assert slow_only is not None
    match quantity:
        case "slow_forwards":
            return _lost_steps(usage, routed, slow_only)
        case "seconds":
            return _lost_seconds(usage, routed, slow_only, fast_step_seconds, slow_step_seconds)
        case "flops":
            return _lost_flops(usage, alone, routed, slow_only)
    return _lost_money(usage, alone)


def degraded_words(reason: str) -> str:
    """Why an answer was finished by the fast model, in a sentence: a cap kept the slow one, or it failed."""
    if reason.startswith(CAP):
        return f"the fast model finished the answer ({reason})"
    return f"the slow model was given up ({reason})"


def _lost_steps(usage: Usage, routed: float, slow_only: float) -> str:
    return (
        f"Slow steps were lost: this answer took {routed:,.0f} of them for {usage.tokens:,} tokens, the slow "
        f"model's own answer {slow_only:,.0f}."
    )


def _lost_seconds(
    usage: Usage, routed: float, slow_only: float, fast_step_seconds: float | None, slow_step_seconds: float | None
) -> str:
    fast, slow = usage.fast.seconds, usage.slow.seconds
    if slow >= slow_only:  # however slow its steps were, they would be slow in both
        return (
            f"Seconds were lost: the slow model alone needs {seconds_of(slow_only)}, and here it was busy for "
            f"{seconds_of(slow)}: {usage.slow.forwards:,} steps, in which it read "
            f"{usage.slow_positions:,} tokens."
        )
    third = usage.tuned.seconds
    around = routed - slow - fast - third  # below zero where several worked at the same time
    also = f" and what lies around both (Python, waiting) {seconds_of(around)}" if around > 0 else ""
    tuned = f", the tuned one {seconds_of(third)}" if third else ""
    step = ""
    if fast_step_seconds and slow_step_seconds:
        times = slow_step_seconds / fast_step_seconds
        step = f" (a step takes it {1000 * slow_step_seconds:.3g} ms, {times:.1f} times as long as the fast one)"
    # Its own time grows with its slowness in both: even where fast + around = (slow_only - slow) * slower.
    slower = (routed - slow) / (slow_only - slow)
    return (
        f"Seconds were lost: the slow model was spared {seconds_of(slow_only - slow)}{step}, but the fast one "
        f"took {seconds_of(fast)}{tuned}{also}; only a slow model about {slower:.1f} times as slow would break even."
    )


def _lost_flops(usage: Usage, alone: ModelUsage, routed: float, slow_only: float) -> str:
    read = usage.slow_positions
    others = routed - slow_only * read / alone.positions
    whose = "the other models'" if usage.tuned.positions else "the fast model's"
    return (
        f"FLOPs were lost: the slow model read {read:,} tokens, {usage.slow.catchup:,} of them to catch up "
        f"with the fast one, and alone it reads {alone.positions:,}; {whose} {si(others)} come on top."
    )


def _lost_money(usage: Usage, alone: ModelUsage) -> str:
    calls = usage.round_trips or usage.escalations
    again = "; every call pays for the text so far" if usage.round_trips > 1 else ""
    if extra := usage.billed.probes + usage.billed.failed:
        again += f"; {extra:,} of its requests were probes or failed"
    return (
        f"Dollars were lost: in {calls:,} call{'s' * (calls != 1)} the slow model read "
        f"{usage.slow_positions + usage.slow.cached:,} tokens ({usage.slow.cached:,} of them cached), and alone it "
        f"reads {alone.positions + alone.cached:,}{again}."
    )
