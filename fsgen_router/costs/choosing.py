"""The default of a pair: the mode with the best expected time at the quality asked for, or no routing at all.

Quality is counted in disagreements: the share of the positions at which the models part where the slow model has the
word. The level is that of ``budget:0.2``, FS-GEN's fifth of the tokens: asked at the most uncertain fifth, the slow
model decides about nine tenths of the disagreements (:data:`RECALL`; measured on Qwen2.5-Coder 0.5B and 1.5B over
GSM8K: to catch 95% of them takes 29% of the tokens). Whoever starts spans at the same places decides no fewer, and so
does who hands over the rest there. Whole queries are taken to be told apart no better than by chance, so nine tenths
of them go to the slow model. Judging every draft exactly decides all of them.

How often an unknown pair parts is taken from FS-GEN's published rates under oracle decoding (arXiv 2406.12295, 74
pairs and data sets): 0.093 + 0.020 ln(ratio of parameters), a least-squares line about which they scatter by 0.03.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ..contracts.policy import REST
from ..methods import DEFAULT_DRAFT_LEN
from ..records import Prices
from .expected import Mode, PairCost, Rates

RATE = 0.2
RECALL = 0.9
PROMPT_TOKENS = ANSWER_TOKENS = 128
"""The answer that modes are compared on. In a shorter one both prompts weigh more, in a longer one less."""
LEAST_GAIN = 0.05
"""What a mode has to save to be a default: expectations are that far from what is measured."""
AS_GOOD = 0.02
"""A mode that decides more of the disagreements is preferred to one that saves no more than this beyond it."""
_EXTENTS = (1, 2, 4, 8, REST)
LEAST_CALL = 16
"""Tokens that a slow model behind a network is to judge or to write in one call, at least."""
_LONG_EXTENTS = (16, 32, REST)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A mode, and its expected cost over that of the slow model alone: in seconds, or in money."""

    mode: Mode
    cost: float
    over_slow: float


@dataclass(frozen=True, slots=True)
class Choice:
    """What a pair is run with, and ``best``, the routed mode that costs least; the same where that gains."""

    chosen: Candidate
    best: Candidate
    unit: str

    @property
    def routes(self) -> bool:
        return self.chosen is self.best

    def __str__(self) -> str:
        return f"{self.best.mode}, which takes {self.best.over_slow:.2f} times the slow model's {self.unit}"


def disagreement(fast_params: int | None, slow_params: int | None) -> float:
    """How often two models' greedy choices are taken to differ, by the ratio of their parameters."""
    ratio = slow_params / fast_params if fast_params and slow_params else 1.0
    return 0.093 + 0.020 * math.log(max(ratio, 1.0))


def decided(mode: Mode) -> float:
    """The share of the disagreements that the slow model decides in a mode: at least that level, or more."""
    if mode.lossless:
        return 1.0
    # Where the policy escalates, drafts that it had let pass are judged too: all but the answer's last few.
    return (1.0 + RECALL) / 2 if mode.draft_len else RECALL


def assumed_rates(mode: Mode, parts: float) -> Rates:
    """A mode's rates on a pair that parts at a share ``parts`` of its positions."""
    if mode.who != "rate":
        return Rates(escalation=mode.rate, acceptance=1.0 - parts)
    rate = mode.rate
    caught = min(parts * RECALL, rate)
    return Rates(
        escalation=rate,
        acceptance=1.0 - (parts - caught) / (1.0 - rate) if rate < 1.0 else 1.0,
        acceptance_escalated=1.0 - caught / rate if rate else None,
    )


def candidates(cost: PairCost, *, judges: bool = True) -> Iterator[Mode]:
    """Modes at the quality asked for. ``judges``: whether drafts can be taken back.

    Drafts are judged in chunks of sizes that were measured alone: between two of them a jump may hide. Behind a network
    all that is judged or written in one call has :data:`LEAST_CALL` tokens or more.
    """
    remote = cost.slow is not None and cost.slow.further is not None
    for extent in _LONG_EXTENTS if remote else _EXTENTS:
        yield Mode(who="rate", rate=RATE, extent=extent)
    yield Mode(who="prompt", rate=RECALL)
    if judges and cost.slow is not None:
        if not remote:
            yield Mode(who="rate", rate=RATE, draft_len=DEFAULT_DRAFT_LEN)
        for chunk in cost.slow.chunks:
            if not remote or chunk > LEAST_CALL:
                yield Mode(who="every", interval=chunk - 1, draft_len=chunk - 1)


def assess(
    cost: PairCost,
    *,
    parts: float,
    judges: bool = True,
    prompt_tokens: int = PROMPT_TOKENS,
    answer_tokens: int = ANSWER_TOKENS,
) -> list[Candidate]:
    """Every mode with its expected seconds, the cheapest first. The slow model has to be measured."""

    def seconds(mode: Mode) -> float:
        rates = assumed_rates(mode, parts)
        return cost.seconds(mode, rates, prompt_tokens=prompt_tokens, answer_tokens=answer_tokens)

    alone = seconds(Mode(who="slow"))
    found = [(mode, seconds(mode)) for mode in candidates(cost, judges=judges)]
    return sorted((Candidate(mode, cost, cost / alone) for mode, cost in found), key=lambda one: one.cost)


def choose_mode(cost: PairCost, *, parts: float, judges: bool = True) -> Choice:
    """The default of a local pair: never one that is expected to take longer than the slow model alone."""
    found = assess(cost, parts=parts, judges=judges)
    alone = cost.seconds(Mode(who="slow"), prompt_tokens=PROMPT_TOKENS, answer_tokens=ANSWER_TOKENS)
    return _choice(found, alone, "seconds")


def choose_remote(prices: Prices) -> Choice:
    """The default in front of an endpoint, by its prices: one call at most, which the fast model's tokens precede.

    Where the rest of an answer is handed over once, the fast model has written a tenth of it (what the slow model
    does not decide), and that is read as a part of the prompt.
    """
    prompt, answer = PROMPT_TOKENS, ANSWER_TOKENS
    alone = prompt * prices.input + answer * prices.output
    written = (1.0 - RECALL) * answer
    rest = (prompt + written) * prices.input + (answer - written) * prices.output
    modes = {Mode(who="rate", rate=RATE, extent=REST): rest, Mode(who="prompt", rate=RECALL): RECALL * alone}
    over = (lambda usd: usd / alone) if alone > 0 else (lambda usd: 1.0)
    found = [Candidate(mode, usd / 1e6, over(usd)) for mode, usd in modes.items()]
    return _choice(sorted(found, key=lambda one: one.cost), alone / 1e6, "price")


def _choice(found: list[Candidate], alone: float, unit: str) -> Choice:
    least, enough = found[0].over_slow, 1.0 - LEAST_GAIN
    gains = least <= enough
    most = min(least + AS_GOOD, enough) if gains else least + AS_GOOD
    as_good = [one for one in found if one.over_slow <= most]
    best = max(as_good, key=lambda one: decided(one.mode))  # the cheapest of equals
    return Choice(best if gains else Candidate(Mode(who="slow"), alone, 1.0), best, unit)
