"""How a slow model's row judges a token that the fast model drafted.

p is the slow model's distribution, q the fast one's; a rule accepts the draft or puts another token in
its place. ``exact``, ``near_best`` and ``entropy_gate`` need p alone. The others draw the draft from q and the answer
from a target distribution t(p, q), by speculative sampling (Leviathan et al., arXiv 2211.17192): accept
a draft v with probability min(1, t(v) / q(v)), else draw from the positive part of t - q.

==================  ==============================================================================
exact               the token that the slow model writes itself, with the same random number
near_best=a         p(v) >= (1 - a) max p
entropy_gate=h      as exact, but a draft that it rejects stands where the entropy of p is above h nats and
                    none of the ``window`` drafts behind it is rejected
speculative         t = p: what the slow model alone would write, in distribution
chow=a              t = p where max q < 1 - a, else q (Chow's rule)
difference=a        t = p where max q < max p - a, else q
optimal=a           t = p where max q < max p - a TV(p, q), else q
token=a             t(v) = q(v) [v near best] + p(v) q(not near best)
==================  ==============================================================================

``entropy_gate`` is FLy's rule (arXiv 2511.22972): where many words would do, another one than the slow
model's is no error, if the slow model then goes on as the drafts do. A window that the drafts do not fill
forgives nothing. The last four are speculative cascades (Narasimhan et al., arXiv 2405.19261). They are decided on the
distributions after masks and before temperature; what is drawn is drawn from the warped ones, so at
temperature 0 a rule chooses between both models' best tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from ..errors import ConfigurationError

Floats: TypeAlias = npt.NDArray[np.floating]

RuleName: TypeAlias = Literal[
    "exact", "near_best", "entropy_gate", "speculative", "chow", "difference", "optimal", "token"
]
RULES: tuple[RuleName, ...] = get_args(RuleName)
_UNTUNED: tuple[RuleName, ...] = ("exact", "speculative")


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of the table above, with its ``tolerance`` a in [0, 1]; 0 for those without one.

    Of ``entropy_gate`` it is h, in nats, and ``window`` says how many drafts behind are looked at.
    """

    name: RuleName = "exact"
    tolerance: float = 0.0
    window: int = 0

    def __post_init__(self) -> None:
        if self.name not in RULES:
            raise ConfigurationError(f"unknown acceptance rule {self.name!r}", hint=f"available: {', '.join(RULES)}")
        if self.gated and not (self.tolerance >= 0.0 and math.isfinite(self.tolerance)):
            raise ConfigurationError(f"an entropy of {self.tolerance}", hint="in nats, at least 0")
        if not self.gated and not 0.0 <= self.tolerance <= 1.0:
            raise ConfigurationError(f"a tolerance of {self.tolerance}", hint="between 0 and 1")
        if (self.window >= 1) != self.gated or self.window < 0:
            hint = "at least 1 draft" if self.gated else "it goes with entropy_gate alone"
            raise ConfigurationError(f"a window of {self.window} for the rule {self.name}", hint=hint)
        if self.name in _UNTUNED and self.tolerance:
            raise ConfigurationError(f"the rule {self.name} takes no tolerance")

    def __str__(self) -> str:
        window = f",window={self.window}" if self.gated else ""
        return self.name if self.name in _UNTUNED else f"{self.name}={self.tolerance:g}{window}"

    @property
    def needs_fast_row(self) -> bool:
        """Whether the fast model's whole row is needed, and not just the drafted token."""
        return self.name not in ("exact", "near_best", "entropy_gate")

    @property
    def gated(self) -> bool:
        """Whether the entropy of the slow model's row, and the drafts behind, have a say in what stands."""
        return self.name == "entropy_gate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A drafted token for a slow row to judge.

    ``fast_logits`` is the masked row, of shape (n_vocab,), that the draft was drawn from, where the
    rule needs it. ``accept_uniform`` and ``residual_uniform`` in [0, 1) are its two draws.
    """

    token: int
    rule: Rule
    accept_uniform: float = 0.0
    residual_uniform: float = 0.0
    fast_logits: Floats | None = None


def judge(
    check: Check,
    *,
    drawn: int,
    draft_logprob: float,
    best_logprob: float,
    redraw: Callable[[float], int],
    distributions: Callable[[Floats], tuple[Floats, Floats, Floats, Floats]],
) -> tuple[bool, int]:
    """Whether the draft stands, and the token that stands.

    ``drawn`` is what the slow model draws itself, ``redraw(u)`` what it draws with another number;
    ``draft_logprob`` and ``best_logprob`` are its log-probabilities of the draft and of its best token.
    ``distributions`` makes (p, q, warped p, warped q) from the fast row: called only where needed, since
    it brings whole rows to the host.
    """
    rule = check.rule
    if rule.name in ("exact", "entropy_gate"):
        return drawn == check.token, drawn
    if rule.name == "near_best":
        if draft_logprob >= best_logprob + _log1m(rule.tolerance):
            return True, check.token
        # The draft was drawn with the number that ``drawn`` came from: given that it was rejected,
        # that number is no longer uniform.
        return False, redraw(check.residual_uniform)
    if check.fast_logits is None:
        raise ConfigurationError(f"the rule {rule} needs the fast model's row")
    p, q, warped_p, warped_q = distributions(check.fast_logits)
    wanted = target(rule, p, q, warped_p, warped_q)
    if check.accept_uniform * warped_q[check.token] < wanted[check.token]:
        return True, check.token
    residual = np.maximum(wanted - warped_q, 0.0)
    cumulative = np.cumsum(residual)
    if not cumulative[-1] > 0.0:  # both agree to the last digit
        return True, check.token
    return False, int(np.searchsorted(cumulative, check.residual_uniform * cumulative[-1], side="right"))


def first_rejected(rule: Rule, accepted: Sequence[bool], entropies: Sequence[float]) -> int:
    """How many drafts of a row stand: the index of the first that does not, or their number.

    ``accepted`` is what :func:`judge` says of each alone, ``entropies`` (nats) are of the slow model's rows, of the
    same length; they are looked at by a rule that is ``gated``.
    """
    for at, stands in enumerate(accepted):
        behind = accepted[at + 1 : at + 1 + rule.window]
        forgiven = rule.gated and len(behind) == rule.window and all(behind) and entropies[at] > rule.tolerance
        if not stands and not forgiven:
            return at
    return len(accepted)


def target(rule: Rule, p: Floats, q: Floats, warped_p: Floats, warped_q: Floats) -> Floats:
    """The distribution, of shape (n_vocab,), that an accepted or replaced token follows."""
    a = rule.tolerance
    if rule.name == "token":
        near = p >= (1.0 - a) * p.max()
        kept: Floats = np.where(near, warped_q, 0.0)
        return kept + warped_p * float(warped_q[~near].sum())
    bound = {
        "speculative": math.inf,
        "chow": 1.0 - a,
        "difference": float(p.max()) - a,
        "optimal": float(p.max()) - a * 0.5 * float(np.abs(p - q).sum()),
    }[rule.name]
    return warped_p if float(q.max()) < bound else warped_q


def _log1m(a: float) -> float:
    return math.log1p(-a) if a < 1.0 else -math.inf
