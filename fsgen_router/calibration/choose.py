"""Choosing a threshold: every candidate is run, because one that changes a token changes all that follows."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..contracts.policy import Policy
from ..errors import ConfigurationError
from ..evaluation import Array, Estimate, Item, Run, interval
from ..policies import Learned, SpanRule
from ..policies.cards import Guarantee, percent
from ..policies.certify import Bound, Certification, certify, make_guarantee
from ..policies.scorers import Scorer
from ..router import Router
from .answers import Answers, OnItems, answer_items
from .store import WorkDirectory

STEP = 7 / 8
"""Of the escalations of one candidate, the share that the next one keeps: what a step changes is what it costs."""

CANDIDATE_RATES = tuple(round(0.6 * STEP**k, 5) for k in range(41))
"""Shares of the fit prompts' positions that candidates would escalate, from 0.6 (the safest) to 0.003."""

ALWAYS = -1.0
"""A threshold below every score."""

Ints: TypeAlias = npt.NDArray[np.int64]

Loss: TypeAlias = Callable[[Run, Run], Array]
"""(routed, slow alone) -> each prompt's loss in [0, 1], shape (n,)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a threshold is chosen for; exactly one of the three.

    ``rate``: the escalation rate on the calibration prompts that it comes closest to from below.
    ``max_regret`` with ``confidence``: the least escalation whose expected regret is certified; without
    ``certain``, where none is, the least whose regret seen on the calibration prompts is no higher, which proves
    nothing. ``max_cost``: the most escalation whose measured seconds, against the slow model alone, stay within it.
    """

    rate: float | None = None
    max_regret: float | None = None
    confidence: float = 0.9
    max_cost: float | None = None
    certain: bool = True

    def __post_init__(self) -> None:
        given = [name for name in ("rate", "max_regret", "max_cost") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ConfigurationError(
                f"{len(given)} targets", hint="give exactly one of target_rate, max_regret and max_cost"
            )
        if self.rate is not None and not 0.0 < self.rate < 1.0:
            raise ConfigurationError(f"a target rate of {self.rate}", hint="between 0 and 1")
        if self.max_regret is not None and not 0.0 < self.max_regret < 1.0:
            raise ConfigurationError(f"a regret of at most {self.max_regret}", hint="between 0 and 1")
        if not 0.0 < self.confidence < 1.0:
            raise ConfigurationError(f"a confidence of {self.confidence}", hint="between 0 and 1, like 0.9")
        if self.max_cost is not None and not self.max_cost > 0.0:
            raise ConfigurationError(f"a cost of at most {self.max_cost}", hint="a share of the slow model's, above 0")

    @property
    def nominal_rate(self) -> float:
        """What on-policy rounds run with before any threshold is chosen."""
        return 0.2 if self.rate is None else self.rate

    def __str__(self) -> str:
        if self.rate is not None:
            return f"escalation rate {percent(self.rate)}"
        if self.max_regret is not None:
            wanted = f"regret at most {percent(self.max_regret)} at confidence {percent(self.confidence)}"
            return f"the least escalation with {wanted}" + ("" if self.certain else ", certified if possible")
        return f"cost at most {self.max_cost:g} of the slow model alone"


# --- candidates ----------------------------------------------------------------------------------


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


# --- running them --------------------------------------------------------------------------------


@dataclass
class Runner:
    """Runs policies over one list of items, each once; the answers are kept in the work directory.

    Runs of one scorer under ``replace`` share answers: an answer stays the same for every threshold
    between the highest score that it accepted and the lowest that it escalated.
    """

    router: Router
    items: Sequence[Item]
    work: WorkDirectory
    split: str
    options: dict[str, Any]
    concurrency: int = 1
    on_items: OnItems | None = None

    def __post_init__(self) -> None:
        self._answers: dict[str, Answers] = {}
        self._alike: dict[str, list[Answers]] = {}

    def answers(self, policy: Policy | str, method: str = "replace") -> Answers:
        """The items' answers under a policy."""
        name = f"{self.split}-{_file_name(policy, method)}"
        if name not in self._answers:
            shareable = isinstance(policy, Learned) and _by_threshold_alone(policy) and method == "replace"
            alike = self._alike.setdefault(_scorer_key(policy), []) if shareable else []

            def known(number: int) -> Answers | None:
                threshold = policy.threshold if isinstance(policy, Learned) else 0.0
                return next((a for a in alike if a.accepted[number] <= threshold < a.escalated[number]), None)

            found = answer_items(
                self.router,
                self.items,
                policy,
                work=self.work,
                name=name,
                method=method,
                known=known if shareable else None,
                concurrency=self.concurrency,
                on_items=self.on_items,
                **self.options,
            )
            alike.append(found)
            self._answers[name] = found
        elif self.on_items is not None:
            self.on_items(len(self.items))
        return self._answers[name]

    def run(self, policy: Policy | str, method: str = "replace") -> Run:
        """The same as an evaluation's run, judged by the items' ``check``."""
        return self.answers(policy, method).run(self.items, policy if isinstance(policy, str) else policy.name)


def _by_threshold_alone(policy: Learned) -> bool:
    return policy.span is None and policy.hold is None and policy.drift is None and policy.guard is None


def _scorer_key(policy: Policy | str) -> str:
    return replace(policy, threshold=0.0).digest if isinstance(policy, Learned) else ""


def _file_name(policy: Policy | str, method: str) -> str:
    form = policy if isinstance(policy, str) else policy.digest[:20] if isinstance(policy, Learned) else policy.name
    plain = re.sub(r"[^\w.-]", "_", f"{form}-{method}")
    return plain if len(plain) <= 60 else hashlib.sha256(plain.encode()).hexdigest()[:20]


# --- choosing ------------------------------------------------------------------------------------


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
) -> Choice:
    """The candidate with the least escalation whose risk is certified by Learn-then-Test (arXiv 2110.01052).

    Candidates are run from the safest on and testing stops at the first that fails (fixed sequence), so
    that those behind it need no run. The first of all is "always escalate", the slow model itself. Where nothing
    that saves anything is certified and ``certain`` is False, the candidate with the least escalation whose mean
    loss on the calibration prompts is at most ``alpha`` is taken, without a certificate.
    """
    always = replace(candidates[0], threshold=ALWAYS, span=None)
    losses, runs = [np.zeros(len(slow))], [slow]

    def test() -> Certification:
        return certify(np.stack(losses, 1), alpha, delta, bound=bound)

    def add(candidate: Learned) -> None:
        runs.append(runner.run(candidate, method))
        losses.append(loss(runs[-1], slow))

    tested = test()
    for candidate in candidates:
        if tested.chosen != len(losses) - 1:
            break
        add(candidate)
        tested = test()
    saving = bool(tested.chosen)
    if not saving and not certain:
        for candidate in candidates[len(runs) - 1 :]:
            if losses[-1].mean() > alpha:
                break
            add(candidate)
        tested = test()
    tried = tuple(zip([always, *candidates], runs, strict=False))
    why, enough = _shortfall(tested, loss_name), tested.enough_prompts
    rates = [1.0, *(run.rate("escalation_rate") or 0.0 for run in runs[1:])]
    seen = int(np.flatnonzero(tested.risks <= alpha)[-1])
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


def _shortfall(tested: Certification, loss: str) -> str:
    """Why nothing that saves anything is certified, and what would probably help."""
    wanted = f"{loss} at most {percent(tested.alpha)} at confidence {percent(1 - tested.delta)}"
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
    return f"{tested.n_prompts} calibration prompts do not show {wanted} of the next candidate{first}; {help_}"
