"""Choosing a threshold: every candidate is run, because one that changes a token changes all that follows."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import ConfigurationError
from ..evaluation import Array, Estimate, Item, Run, interval
from ..policies import Learned, SpanRule
from ..policies.cards import Guarantee
from ..policies.certify import Bound, Certification, certify, make_guarantee
from ..policies.scorers import Scorer
from ..policy import Policy
from ..router import Router
from .answers import Answers, OnItems, answer_items
from .store import WorkDirectory

CANDIDATE_RATES = (
    0.6, 0.5, 0.42, 0.35, 0.3, 0.26, 0.23, 0.2, 0.175, 0.15, 0.13, 0.11, 0.095, 0.08, 0.065, 0.05, 0.04, 0.03, 0.02,
    0.01,
)  # fmt: skip
"""Shares of the fit prompts' positions that candidates would escalate, the safest first."""

ALWAYS = -1.0
"""A threshold below every score."""

Ints: TypeAlias = npt.NDArray[np.int64]

Loss: TypeAlias = Callable[[Run, Run], Array]
"""(routed, slow alone) -> each prompt's loss in [0, 1], shape (n,)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a threshold is chosen for; exactly one of the three.

    ``rate``: the escalation rate on the calibration prompts that it comes closest to from below.
    ``max_regret`` with ``confidence``: the least escalation whose expected regret is certified. ``max_cost``:
    the most escalation whose measured seconds, against the slow model alone, stay within it.
    """

    rate: float | None = None
    max_regret: float | None = None
    confidence: float = 0.9
    max_cost: float | None = None

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
            return f"escalation rate {self.rate:g}"
        if self.max_regret is not None:
            return f"regret at most {self.max_regret:g} with confidence {self.confidence:g}"
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
    """Candidates from the safest (most escalation) on, without repeats. They come from the fit prompts'
    scores, so that neither they nor their order depend on the prompts that certify them."""
    made = [policy_at(scorer, scores, answer, rate, extent=extent, span=span) for rate in sorted(rates, reverse=True)]
    return list({policy.digest: policy for policy in made}.values())


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
        return Choice(None, f"even the highest candidate escalates {least:.1%} of the calibration tokens", ran)
    reached = tried[chosen].rate("escalation_rate") or 0.0
    return Choice(
        candidates[chosen], f"escalates {reached:.1%} of the calibration tokens, {rate:.1%} were asked for", ran
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
            None, f"even the highest candidate costs {_figure(least)} of the slow model alone, in measured seconds", ran
        )
    cost = relative_cost(tried[chosen], slow)
    return Choice(candidates[chosen], f"costs {_figure(cost)} of the slow model alone, in measured seconds", ran)


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
) -> Choice:
    """The candidate with the least escalation whose risk is certified by Learn-then-Test (arXiv 2110.01052).

    Candidates are run from the safest on and testing stops at the first that fails (fixed sequence), so
    that those behind it need no run. The first of all is "always escalate", the slow model itself.
    """
    always = replace(candidates[0], threshold=ALWAYS, span=None)
    sequence = [always, *candidates]
    losses, runs = [np.zeros(len(slow))], [slow]
    tested = certify(np.stack(losses, 1), alpha, delta, bound=bound)
    for candidate in candidates:
        if tested.chosen != len(losses) - 1:
            break
        runs.append(runner.run(candidate, method))
        losses.append(loss(runs[-1], slow))
        tested = certify(np.stack(losses, 1), alpha, delta, bound=bound)
    tried = tuple(zip(sequence, runs, strict=False))
    if tested.chosen is None:
        return Choice(
            None,
            f"nothing can be certified with {tested.n_prompts} calibration prompts: not even a policy without any "
            f"{loss_name} could be, which takes {tested.enough_prompts}",
            tried,
            tested,
            enough_prompts=tested.enough_prompts,
        )
    rates = [1.0, *(run.rate("escalation_rate") or 0.0 for run in runs[1:])]
    guarantee = make_guarantee(tested, [policy.threshold for policy, _ in tried], rates, loss=loss_name, method=method)
    assert guarantee is not None
    return Choice(
        sequence[tested.chosen].certified(guarantee),
        'only "always escalate" was certified: nothing is saved' if tested.chosen == 0 else guarantee.sentence,
        tried,
        tested,
        guarantee,
        always=tested.chosen == 0,
        enough_prompts=tested.enough_prompts,
    )
