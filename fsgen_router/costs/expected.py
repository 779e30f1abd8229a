"""Expected seconds of an answer: what the engine does, taken over how often its models agree.

The engine's own path (``decode/engine.py``), forward by forward. After a token of the slow model's the fast one
writes until the policy escalates at the g-th of its decisions (g is geometric for a rate, fixed for an interval):

- the fast model reads g times: first what was written without it (of an extent n: n tokens), then single tokens;
- under ``replace`` the slow model catches up with g tokens in one forward, and its row gives the token there;
- under ``verify`` it reads g + 1, and up to ``draft_len + 1`` drafts are judged by a row each. The first that is
  rejected is replaced, and what follows it was written in vain; where all stand comes a bonus token;
- it goes on for the rest of the extent, token by token.

Both prompts are read in the first of these forwards, the slow model's only where one comes. Escalations and
rejections are taken as independent of each other; the expectation over all of them up to the answer's last token is
exact then, by recursion over the tokens that are left (the renewal equation of such a walk).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from ..contracts.methods import Method
from ..contracts.policy import REST, Policy, hands_over
from ..errors import ConfigurationError
from ..generation import Generation
from .forward import ForwardCost

Floats: TypeAlias = npt.NDArray[np.float64]
Who: TypeAlias = Literal["slow", "fast", "prompt", "rate", "every"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """A way to answer, as far as its time depends on it.

    ``who`` decides: ``slow`` or ``fast`` writes alone; ``prompt``: at the first token the answer goes to the one or
    the other; ``rate``: a policy escalates at a share of the decisions; ``every``: at an ``interval``. An escalation is
    for ``extent`` tokens. ``draft_len`` drafts at most are judged (0: the method ``replace``). ``rate`` is the share
    that is held, of decisions or of prompts; 0 where the policy has another form.
    """

    who: Who
    rate: float = 0.0
    interval: int = 0
    extent: int = 1
    draft_len: int = 0

    @classmethod
    def of(cls, policy: Policy, method: Method) -> Mode:
        """The mode that a policy and a method make, on a pair of local models."""
        from ..policies import Always, AtPrompt, Budget, Capped, Every, Extended, Never

        while isinstance(policy, Capped):
            policy = policy.inner
        extent, judged = int(getattr(policy, "extent", 1)), 0 if method.rule is None else method.draft_len
        if isinstance(policy, Extended):
            policy = policy.inner
        if isinstance(policy, Never) or not policy.asks:
            return cls(who="fast")
        if isinstance(policy, AtPrompt):
            return cls(who="prompt", rate=float(getattr(policy.inner, "rate", 0.0)))
        if hands_over(policy) and not judged:
            return cls(who="slow")
        if isinstance(policy, Always | Every):
            interval = policy.interval if isinstance(policy, Every) else 1
            return cls(who="every", interval=interval, extent=extent, draft_len=judged)
        rate = policy.rate if isinstance(policy, Budget) else 0.0
        return cls(who="rate", rate=rate, extent=extent, draft_len=judged)

    @property
    def policy(self) -> str:
        """A short form that makes this mode; of ``rate`` the budget that holds it."""
        span = "" if self.extent == 1 else f",span={'rest' if self.extent == REST else self.extent}"
        match self.who:
            case "slow":
                return "always,span=rest"
            case "fast":
                return "never"
            case "prompt":
                return f"budget:{self.rate:g},at=prompt"
            case "every":
                return f"every:{self.interval}{span}"
        return f"budget:{self.rate:g}{span}"

    @property
    def method(self) -> str:
        """The method's short form, with the rule ``exact`` where drafts are judged."""
        return f"verify:exact,draft_len={self.draft_len}" if self.draft_len else "replace"

    @property
    def lossless(self) -> bool:
        """Whether the slow model's own text comes out, with that method."""
        return self.who == "slow" or (self.who == "every" and 0 < self.interval <= self.draft_len)

    def __str__(self) -> str:
        match self.who:
            case "slow":
                return "the slow model alone"
            case "fast":
                return "the fast model alone"
        return f"policy={self.policy!r}, method={self.method!r}"


@dataclass(frozen=True, slots=True)
class Judged:
    """Drafts that the slow model's rows judged, and how many of them stood: those that the policy had let pass
    (``plain``), and those at which it escalated."""

    plain: int = 0
    stood: int = 0
    escalated: int = 0
    stood_escalated: int = 0

    @classmethod
    def of(cls, answer: Generation) -> Judged:
        """Those of an answer."""
        plain = stood = escalated = stood_escalated = 0
        for token in answer.tokens:
            rejected = token.source == "slow" and token.signals is not None and token.fast_choice is not None
            if not (token.verified or rejected):
                continue
            if token.decision is not None and token.decision.escalate:
                escalated, stood_escalated = escalated + 1, stood_escalated + token.verified
            else:
                plain, stood = plain + 1, stood + token.verified
        return cls(plain, stood, escalated, stood_escalated)

    def __add__(self, other: Judged) -> Judged:
        return Judged(*(ours + theirs for ours, theirs in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """How often the models part, in a mode: measured (:meth:`of`), or assumed for a pair.

    ``escalation``: of the fast model's decisions (of prompts, where the prompt decides), the share that escalates.
    ``acceptance``: the share of drafts that the slow model's row accepts, each judged by itself; of those drafts at
    which a policy escalated it is ``acceptance_escalated`` (None: the same).
    """

    escalation: float
    acceptance: float = 1.0
    acceptance_escalated: float | None = None

    def __post_init__(self) -> None:
        shares = (
            self.escalation,
            self.acceptance,
            1.0 if self.acceptance_escalated is None else self.acceptance_escalated,
        )
        if not all(0.0 <= share <= 1.0 for share in shares):
            raise ConfigurationError(f"{self} holds a share that is not between 0 and 1")

    @classmethod
    def of(cls, answers: Iterable[Generation], mode: Mode | None = None) -> Rates:
        """What was seen in answers of one mode. Drafts that nobody judged tell nothing of acceptance.

        Where the ``mode`` decides at the prompt, answers are counted, and not their tokens.
        """
        by_prompt = mode is not None and mode.who == "prompt"
        decisions = escalations = 0
        judged = Judged()
        for answer in answers:
            decisions += 1 if by_prompt else answer.usage.decisions
            escalations += answer.usage.escalations
            judged += Judged.of(answer)
        return cls.counted(decisions, escalations, judged)

    @classmethod
    def counted(cls, decisions: int, escalations: int, judged: Judged) -> Rates:
        """The rates of so many of each."""
        return cls(
            escalation=escalations / decisions if decisions else 0.0,
            acceptance=judged.stood / judged.plain if judged.plain else 1.0,
            acceptance_escalated=judged.stood_escalated / judged.escalated if judged.escalated else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PairCost:
    """What two models' forwards cost. ``slow`` is None where that cannot be measured: behind an endpoint.

    ``watts`` (of the machine while it works) and ``usd_per_hour`` turn seconds into energy and money, where given.
    """

    fast: ForwardCost
    slow: ForwardCost | None = None
    watts: float | None = None
    usd_per_hour: float | None = None

    def seconds(
        self, mode: Mode, rates: Rates | None = None, *, prompt_tokens: int, answer_tokens: int, sequences: int = 1
    ) -> float:
        """Expected seconds of an answer of so many tokens. ``rates`` default to the mode's own without rejections.

        With ``sequences`` > 1 that many are answered in step, each forward for all of them, and the seconds are those
        of all together. Raises :class:`ConfigurationError` where the slow model was not measured, and where neither
        ``rates`` nor the mode say how often a policy escalates.
        """
        if mode.who != "fast" and self.slow is None:
            raise ConfigurationError(
                "the slow model's forwards cannot be measured: it is behind an endpoint",
                hint="measure answers instead: complete(..., baseline=True); what they cost follows from prices",
            )
        if rates is None and mode.who in ("rate", "prompt") and not mode.rate:
            raise ConfigurationError(
                "nobody said how often the policy escalates", hint="pass rates: Rates.of(answers) of some answers"
            )
        if prompt_tokens < 1 or answer_tokens < 1:
            raise ConfigurationError("a prompt and an answer have at least one token")
        walk = _Walk(self, mode, rates or Rates(escalation=mode.rate), prompt_tokens, answer_tokens, sequences)
        return walk.seconds()

    @property
    def spread(self) -> float:
        """The larger one of both models' (see :attr:`ForwardCost.spread`)."""
        return max(cost.spread for cost in (self.fast, self.slow) if cost is not None)

    def joules(self, seconds: float) -> float | None:
        """Energy of so many seconds; None where no power was given."""
        return None if self.watts is None else self.watts * seconds

    def usd(self, seconds: float) -> float | None:
        """Money for so many seconds of this machine; None where no price was given."""
        return None if self.usd_per_hour is None else self.usd_per_hour * seconds / 3600.0


class _Walk:
    """The expectation over one answer, by tokens that are left."""

    def __init__(self, cost: PairCost, mode: Mode, rates: Rates, prompt: int, answer: int, sequences: int) -> None:
        self._cost, self._mode, self._rates = cost, mode, rates
        self._prompt, self._answer, self._sequences = prompt, answer, sequences
        self._judged = mode.draft_len + 1 if mode.draft_len else 0
        """Drafts that are judged at most: those held back, and the one at which the policy escalated."""

    def seconds(self) -> float:
        rate = self._rates.escalation
        match self._mode.who:
            case "slow":
                return self._alone(self._slow)
            case "prompt":
                to_slow = self._fast(self._prompt) + self._alone(self._slow)
                return rate * to_slow + (1.0 - rate) * self._alone(self._cost.fast)
            case "every":
                return self._routed()
            case "rate" if rate > 0.0:
                return self._routed()
        return self._alone(self._cost.fast)

    # --- forwards ---

    @property
    def _slow(self) -> ForwardCost:
        assert self._cost.slow is not None
        return self._cost.slow

    def _fast(self, tokens: int) -> float:
        return self._cost.fast.seconds(tokens, self._sequences)

    def _alone(self, model: ForwardCost) -> float:
        first = model.seconds(self._prompt, self._sequences)
        return first + (self._answer - 1) * model.span_step(self._sequences)

    def _asked(self, gap: int, unread: int) -> float:
        """The slow model's forward at an escalation, behind ``unread`` tokens and ``gap`` of the fast model's."""
        judged = self._judged
        if not judged:
            return self._slow.seconds(unread + gap - 1, self._sequences)
        return self._slow.seconds(unread + gap, self._sequences, rows=min(gap, judged) + 1)

    def _at_the_end(self, drafts: int, unread: int) -> float:
        """An interval's drafts are judged before they end an answer; other policies let them stand."""
        if self._mode.who != "every" or not self._judged:
            return 0.0
        return self._slow.seconds(unread + drafts - 1, self._sequences, rows=min(drafts, self._judged))

    # --- the walk ---

    def _chance(self, gap: int) -> float:
        """How likely the gap-th decision is the first that escalates."""
        if self._mode.who == "every":
            return float(gap == self._mode.interval)
        rate = self._rates.escalation
        return rate * (1.0 - rate) ** (gap - 1)

    def _outcomes(self, gap: int) -> tuple[Floats, float]:
        """How likely the slow model's token stands at each of the ``gap`` positions, and how likely behind them."""
        stops = np.zeros(gap)
        if not self._judged:
            stops[-1] = 1.0
            return stops, 0.0
        escalated = self._rates.acceptance_escalated
        accepted = np.full(min(gap, self._judged), self._rates.acceptance)
        accepted[-1] = accepted[-1] if escalated is None else escalated
        reached = np.cumprod(accepted)
        stops[gap - len(accepted) :] = np.concatenate(([1.0], reached[:-1])) * (1.0 - accepted)
        return stops, float(reached[-1])

    def _routed(self) -> float:
        """E[seconds], by recursion over the tokens that are left, from the end of the answer to its beginning."""
        length, step, slow_step = self._answer, self._fast(1), self._slow.span_step(self._sequences)
        extent = length if self._mode.extent == REST else self._mode.extent
        # Of m tokens left behind one of the slow model's, with the fast model's next read taken as a step.
        values = np.zeros(length + 1)
        # What follows with m tokens left behind a correction, or behind a bonus token, which the fast model reads
        # with the draft before it.
        corrected, bonus = np.zeros(length + 1), np.zeros(length + 1)
        stops, stands = np.zeros(length), np.zeros(length + 1)
        forwards = first = 0.0
        beyond = 1.0
        for m in range(1, length + 1):
            chance = self._chance(m)
            at, behind = self._outcomes(m)
            stops[:m] += chance * at
            stands[m] += chance * behind
            beyond -= chance
            forwards += chance * (m * step + self._asked(m, 1))
            first += chance * (m * step + self._asked(m, self._prompt))
            follows = float(stops[:m] @ corrected[m - 1 :: -1][:m] + stands[:m] @ bonus[m - 1 :: -1][:m])
            values[m] = forwards + follows + beyond * (m * step + self._at_the_end(m, 1))
            more = min(extent - 1, m)
            going_on = 0.0 if more == m else values[m - more] - step
            corrected[m] = more * slow_step + going_on + (self._fast(1 + more) if more < m else 0.0)
            bonus[m] = more * slow_step + going_on + (self._fast(2 + more) if more < m else 0.0)
        alone = beyond * (length * step + self._at_the_end(length, self._prompt))
        return first + follows + alone + self._fast(self._prompt) - step
