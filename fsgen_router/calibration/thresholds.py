"""Which of the candidates meets the target: by escalation rate, by cost, or by certified risk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from ..evaluation import Array, Estimate, Run, interval
from ..methods import Replace, make_method
from ..policies import Learned
from ..policies.cards import Guarantee, percent
from ..policies.certify import (
    Bound,
    Certification,
    betting_p_value,
    certify_columns,
    hopeless,
    make_guarantee,
)
from .runner import Runner

BATCH = 10
"""Prompts between two looks at a candidate that may stop early."""

ALWAYS = -1.0
"""A threshold below every score."""

Loss: TypeAlias = Callable[[Run, Run], Array]
"""(routed, slow alone) -> each prompt's loss in [0, 1], shape (n,)"""


@dataclass(frozen=True, slots=True)
class Choice:
    """The policy that was chosen, None where no candidate meets the target, and what that rests on.

    ``reason`` is the verdict, in sentences that stand alone: whether anything is certified comes first.
    ``tried`` are the candidates that were run on the calibration prompts, with their runs. ``always``
    says that nothing but "always escalate" was certified. ``enough_prompts`` is how many calibration
    prompts would probably certify the next candidate; None: no number would, or nothing was certified.
    """

    policy: Learned | None
    reason: str
    tried: tuple[tuple[Learned, Run], ...] = ()
    certification: Certification | None = None
    guarantee: Guarantee | None = None
    always: bool = False
    enough_prompts: int | None = None

    @property
    def certified(self) -> bool:
        """Whether a policy that saves anything was certified."""
        return self.guarantee is not None and not self.always


_NO_CLAIM = "Not certified: nothing is claimed about quality"


def regret(routed: Run, slow: Run) -> Array:
    """1 for prompts that the slow model alone gets right and the routed answer wrong, else 0."""
    return slow.column("right") * (1.0 - routed.column("right"))


def choose_rate(runner: Runner, candidates: Sequence[Learned], rate: float, *, method: str = "replace") -> Choice:
    """The candidate with the highest escalation rate that is at most ``rate``, by bisection: a higher
    threshold escalates less but for chance."""
    tried: dict[int, Run] = {}

    def within(at: int) -> bool:
        tried[at] = runner.run(candidates[at], method)
        return (tried[at].rate("escalation_rate") or 0.0) <= rate

    chosen = _first_that(within, len(candidates))
    ran = tuple((candidates[at], tried[at]) for at in sorted(tried))
    if chosen is None:
        least = tried[len(candidates) - 1].rate("escalation_rate") or 0.0
        return Choice(
            None,
            f"No threshold was chosen: even the highest candidate escalates {least:.1%} of the decisions on the "
            f"calibration prompts, where at most {percent(rate)} was asked for",
            ran,
        )
    reached = tried[chosen].rate("escalation_rate") or 0.0
    return Choice(
        candidates[chosen],
        f"{_NO_CLAIM}. The target was an escalation rate, {percent(rate)}, and of the candidates up to it this one "
        f"escalates most: {reached:.1%} of the decisions on the calibration prompts. Whether fewer would do is not "
        "asked; without a target the least is looked for",
        ran,
    )


def choose_cost(
    runner: Runner, candidates: Sequence[Learned], max_cost: float, slow: Run, *, method: str = "replace"
) -> Choice:
    """The candidate with the most escalation whose measured seconds are at most ``max_cost`` of the slow
    model's alone, by bisection."""
    tried: dict[int, Run] = {}

    def within(at: int) -> bool:
        tried[at] = runner.run(candidates[at], method)
        cost = relative_cost(tried[at], slow).value
        return cost is not None and cost <= max_cost

    chosen = _first_that(within, len(candidates))
    ran = tuple((candidates[at], tried[at]) for at in sorted(tried))
    if chosen is None:
        least = relative_cost(tried[len(candidates) - 1], slow)
        return Choice(
            None,
            f"No threshold was chosen: even the highest candidate takes {_figure(least)} of the slow model's own "
            f"seconds on the calibration prompts, where at most {max_cost:g} was asked for",
            ran,
        )
    cost = relative_cost(tried[chosen], slow)
    return Choice(
        candidates[chosen],
        f"{_NO_CLAIM}. The target was a cost, at most {max_cost:g} of the slow model's own seconds, and of the "
        f"candidates within it this one escalates most: it takes {_figure(cost)} on the calibration prompts",
        ran,
    )


def _first_that(holds: Callable[[int], bool], count: int) -> int | None:
    """The smallest index that ``holds``, as if all behind it did too; None where the last does not."""
    low, high = 0, count - 1
    if not holds(high):
        return None
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low


def relative_cost(run: Run, slow: Run) -> Estimate:
    """Measured seconds per prompt, against the slow model alone's on the same prompts."""
    return interval(run.column("seconds"), slow.column("seconds"))


def _figure(estimate: Estimate) -> str:
    if estimate.value is None:
        return "an unknown share"
    span = "" if estimate.interval is None else " [{:.2f}, {:.2f}]".format(*estimate.interval)
    return f"{estimate.value:.2f}{span}"


def choose_certified(
    runner: Runner,
    candidates: Sequence[Learned],
    slow: Run,
    *,
    alpha: float,
    delta: float,
    method: str = "replace",
    loss: Loss = regret,
    loss_name: str = "regret",
    bound: Bound = "binomial",
    certain: bool = True,
    batch: int = BATCH,
) -> Choice:
    """The candidate with the least escalation whose risk is certified by Learn-then-Test (arXiv 2110.01052).

    Candidates are run from the safest on and testing stops at the first that fails (fixed sequence), so
    that those behind it need no run. The first of all is "always escalate": the slow model itself,
    unless ``method`` writes something else there, and then it is run like the others. With the bound
    ``"betting"`` a candidate's run stops too, looked at after every ``batch`` prompts, when it is certified or cannot
    be any more; the order of the prompts must not depend on the losses. Where nothing that saves anything is
    certified and ``certain`` is False, the candidate with the least escalation whose mean loss on the calibration
    prompts is at most ``alpha`` is taken, without a certificate.
    """
    always = replace(candidates[0], threshold=ALWAYS, span=None)
    losses: list[Array] = []
    runs: list[Run] = []

    def test() -> Certification:
        return certify_columns(losses, alpha, delta, bound=bound)

    def add(candidate: Learned, *, to_the_end: bool = False) -> None:
        if bound != "betting" or to_the_end:
            runs.append(runner.run(candidate, method))
            losses.append(loss(runs[-1], slow))
            return
        for first in (*range(batch, len(slow), batch), len(slow)):
            run = runner.run(candidate, method, first=first)
            found = loss(run, slow.first(first))
            if betting_p_value(found, alpha) <= delta or hopeless(found, len(slow), alpha, delta):
                break
        runs.append(run)
        losses.append(found)

    if _writes_slow_text(method):
        runs.append(slow)
        losses.append(loss(slow, slow))
    else:
        add(always, to_the_end=True)
    tested = test()
    for candidate in candidates:
        if tested.chosen != len(losses) - 1:
            break
        add(candidate)
        tested = test()
    saving = bool(tested.chosen)
    if not saving and not certain:
        if bound == "betting":  # a run that was given up is no mean over prompts
            del losses[1:], runs[1:]
        for candidate in candidates[len(runs) - 1 :]:
            if losses[-1].mean() > alpha:
                break
            add(candidate, to_the_end=True)
        tested = test()
    tried = tuple(zip([always, *candidates], runs, strict=False))
    why, enough = _shortfall(tested, loss_name), tested.enough_prompts
    rates = [1.0, *(run.rate("escalation_rate") or 0.0 for run in runs[1:])]
    seen = int(max(np.flatnonzero(tested.risks <= alpha), default=0))
    if not saving and not certain and seen:
        reason = (
            f"Not certified: {why}. Of the candidates whose {loss_name} on these prompts is at most {percent(alpha)}, "
            f"this one escalates least: {rates[seen]:.1%} of the decisions, at a {loss_name} of "
            f"{tested.risks[seen]:.1%}. That is no bound for other prompts"
        )
        return Choice(tried[seen][0], reason, tried, tested, enough_prompts=enough)
    if tested.chosen is None:
        return Choice(None, f"Nothing is certified: {why}", tried, tested, enough_prompts=enough)
    guarantee = make_guarantee(tested, [policy.threshold for policy, _ in tried], rates, loss=loss_name, method=method)
    assert guarantee is not None
    reason = f"Only “always escalate” is certified, which saves nothing: {why}"
    if saving:
        reason = (
            f"{guarantee.sentence[0].upper()}{guarantee.sentence[1:]}. Of the candidates for which that is certain, "
            f"this one escalates least: {rates[tested.chosen]:.1%} of the decisions on those prompts, at a {loss_name} "
            f"of {tested.risks[tested.chosen]:.1%}"
        )
    policy = tried[tested.chosen][0].certified(guarantee)
    return Choice(policy, reason, tried, tested, guarantee, always=not saving, enough_prompts=enough)


def _writes_slow_text(method: str) -> bool:
    """Whether a method that is asked at every token writes what the slow model writes alone, at temperature 0."""
    made = make_method(method)
    rule = made.rule
    return isinstance(made, Replace) or (rule is not None and rule.name in ("exact", "speculative"))


def _shortfall(tested: Certification, loss: str) -> str:
    """Why nothing that saves anything is certified, and what would probably help."""
    wanted = f"{loss} at most {percent(tested.alpha)} at confidence {percent(1 - tested.delta)}"
    if tested.chosen is None and tested.risks[0] > 0.0:
        return (
            f"{tested.n_prompts} calibration prompts do not show {wanted} even where the method writes every token "
            f"(here {tested.risks[0]:.1%})"
        )
    if tested.chosen is None:
        return (
            f"{tested.n_prompts} calibration prompts are too few for {wanted}, even if no answer were wrong; about "
            f"{tested.enough_prompts} would probably do"
        )
    if tested.enough_prompts is None:
        help_ = "more prompts would probably not help"
    else:
        help_ = f"about {tested.enough_prompts} calibration prompts would probably certify it"
    first = "" if len(tested.risks) < 2 else f" (here {tested.risks[1]:.1%})"
    count = tested.n_prompts if len(tested.counts) < 2 else tested.counts[1]
    return f"{count} calibration prompts do not show {wanted} of the next candidate{first}; {help_}"
