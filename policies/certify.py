"""Certifying a threshold: Learn-then-Test (Angelopoulos et al., arXiv 2110.01052).

The unit is the prompt. Each candidate threshold is *run* on every calibration prompt, since a token
replaced early changes all text behind it: losses of one run say nothing about another threshold, and
nothing makes them monotone, which conformal risk control would need. For candidate j the hypothesis
"its risk is above alpha" is tested with a p-value that is valid for any number of prompts; candidates
are tested in a fixed order, the safest first, each at level delta, until one is not rejected. Whatever
was rejected has a risk of at most alpha, all at once, with probability 1 - delta over the draw of the
calibration prompts, which have to be independent of those that scorer and candidates came from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from fsgen_router.errors import ConfigurationError
from fsgen_router.methods import make_method

from .cards import Guarantee
from .features import Floats

Bound: TypeAlias = Literal["binomial", "hoeffding_bentkus", "betting"]


def binomial_p_value(failures: npt.ArrayLike, n: int, alpha: float) -> Floats:
    """P(Binomial(n, alpha) <= failures): exact for losses of 0 or 1, of which ``failures`` were 1."""
    return np.asarray(require_scipy_stats().binom.cdf(np.asarray(failures), n, alpha), np.float64)


def hoeffding_bentkus_p_value(risk: npt.ArrayLike, n: int, alpha: float) -> Floats:
    """For losses in [0, 1] with mean ``risk`` over ``n`` prompts: the better of two tail bounds.

    min(exp(-n h(min(risk, alpha), alpha)), e P(Binomial(n, alpha) <= ceil(n risk))), where h(a, b) is
    the Kullback-Leibler divergence in nats of two Bernoulli distributions (arXiv 2110.01052, proposition 1).
    """
    risk = np.asarray(risk, np.float64)
    hoeffding = np.exp(-n * _divergence(np.minimum(risk, alpha), alpha))
    # n times a mean of n numbers is whole where they are 0 or 1, but for its last bits.
    bentkus = math.e * require_scipy_stats().binom.cdf(np.ceil(n * risk - 1e-9), n, alpha)
    return np.asarray(np.minimum(np.minimum(hoeffding, bentkus), 1.0), np.float64)


_STAKES, _NOTHING = 20, 1e-300


def betting_e_values(losses: npt.ArrayLike, alpha: float) -> Floats:
    """Evidence that the mean loss is below ``alpha``, after each prompt: shape (n,) or (n, k), as ``losses`` in [0, 1].

    What a gambler who began with 1 has made by betting that losses stay below ``alpha`` (Waudby-Smith and Ramdas,
    arXiv 2010.09686, section 4): prod_i (1 + s (alpha - x_i)), whose expectation never rises where the mean is
    ``alpha`` or more, for any stake s in [0, 1 / (1 - alpha)]. Here a mean over stakes
    s_m = (alpha - m) / (alpha (1 - alpha)), the best ones (Kelly's) for losses of 0 or 1 with mean m, for m from 0 up
    to ``alpha``, small m weighing more. By Ville's inequality it ever reaches 1 / delta with a probability of at most
    delta: one may stop at any time, and look as often as one likes.
    """
    table = np.asarray(losses, np.float64)
    _, logs = _log_capitals(table, alpha)
    peak = logs.max(axis=0)
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(np.exp(peak) * np.exp(logs - peak).sum(axis=0), np.float64)


def _log_capitals(losses: Floats, alpha: float) -> tuple[Floats, Floats]:
    """The stakes, shape (s,), and the logarithms of their weighted capitals after each prompt, (s, *losses.shape)."""
    stakes, weights = _stakes(alpha)
    shape = (-1,) + (1,) * losses.ndim
    # A loss of 1 takes all of the highest stake; in the logarithm, as good as that.
    factors = np.maximum(1.0 + stakes.reshape(shape) * (alpha - losses), _NOTHING)
    logs = np.log(factors).cumsum(axis=1) + np.log(weights).reshape(shape)
    return stakes, np.asarray(logs, np.float64)


def _stakes(alpha: float) -> tuple[Floats, Floats]:
    """The stakes, from the boldest on, and their weights."""
    means = alpha * np.arange(_STAKES) / _STAKES
    weights = _STAKES - np.arange(_STAKES, dtype=np.float64)
    return (alpha - means) / (alpha * (1.0 - alpha)), weights / weights.sum()


def _e_value(failures: int, n: int, alpha: float) -> float:
    """What so many losses of 1 among ``n`` of 0 or 1 come to, in whatever order."""
    stakes, weights = _stakes(alpha)
    lost = np.log(np.maximum(1.0 - stakes * (1.0 - alpha), _NOTHING))
    return float(np.exp(np.log(weights) + failures * lost + (n - failures) * np.log1p(stakes * alpha)).sum())


def betting_p_value(losses: npt.ArrayLike, alpha: float) -> Floats:
    """min(1, 1 / the largest e-value so far), for all prompts of ``losses``: a p-value however they were stopped."""
    return np.asarray(np.minimum(1.0, 1.0 / betting_e_values(losses, alpha).max(axis=0)), np.float64)


def hopeless(losses: npt.ArrayLike, n: int, alpha: float, delta: float) -> bool:
    """Whether betting cannot come to 1 / ``delta`` any more within ``n`` prompts, even if none of those left is lost.

    To stop then loses nothing, and needs no validity.
    """
    table = np.asarray(losses, np.float64)
    stakes, logs = _log_capitals(table, alpha)
    most = logs[:, -1] + (n - len(table)) * np.log1p(stakes * alpha)
    return bool(np.exp(most).sum() < 1.0 / delta)


def _divergence(a: Floats, b: float) -> Floats:
    from scipy.special import rel_entr

    return np.asarray(rel_entr(a, b) + rel_entr(1.0 - a, 1.0 - b), np.float64)


@dataclass(frozen=True)
class Certification:
    """What testing found for candidates in the order that they were tested, the safest first.

    ``chosen`` is the last one that was certified (None: not even the first), on ``n_prompts``; ``p_values`` and
    ``risks`` (mean losses) have shape (n_thresholds,). ``enough_prompts`` says, where nothing more was certified,
    how many calibration prompts would probably certify the candidate behind the chosen one, judged by
    its risk here; None where its risk is not below alpha, so that no number would.
    """

    alpha: float
    delta: float
    bound: Bound
    n_prompts: int
    chosen: int | None
    p_values: Floats
    risks: Floats
    enough_prompts: int | None
    counts: tuple[int, ...]
    """Prompts that each candidate was tested on."""


def certify(losses: npt.ArrayLike, alpha: float, delta: float, *, bound: Bound = "binomial") -> Certification:
    """Test candidates in the order of their columns, the safest first; ``losses`` has shape (n_prompts, n_thresholds).

    ``bound`` is ``"binomial"`` for a loss that can only be 0 or 1, else ``"hoeffding_bentkus"``, for
    losses in [0, 1]; it is told and not guessed, since a sample of zeros and ones proves nothing about
    the loss. ``"betting"``, for losses in [0, 1] too, takes prompts in the order of their rows, which must not depend
    on the losses either. The order must not depend on these losses (take the thresholds' own). Raises
    :class:`ConfigurationError` for losses that are no such table. Needs scipy (extra ``eval``).
    """
    table = np.asarray(losses, np.float64)
    if table.ndim != 2 or not table.size:
        raise ConfigurationError(f"losses of shape {table.shape}", hint="one row per prompt, one column per threshold")
    return certify_columns(list(table.T), alpha, delta, bound=bound)


def certify_columns(
    losses: Sequence[Floats], alpha: float, delta: float, *, bound: Bound = "binomial"
) -> Certification:
    """:func:`certify` for candidates whose ``losses``, shape (n,) each, are not of equally many prompts.

    Only with ``"betting"`` may how many there are have been decided by the losses themselves.
    """
    _require_levels(alpha, delta)
    if not all(bool(np.all((column >= 0.0) & (column <= 1.0))) for column in losses):
        raise ConfigurationError("a loss is outside [0, 1]", hint="divide by the largest loss that can occur")
    if bound == "binomial" and not all(bool(np.all((column == 0.0) | (column == 1.0))) for column in losses):
        raise ConfigurationError("a loss is neither 0 nor 1", hint='pass bound="hoeffding_bentkus"')
    risks = np.array([column.mean() for column in losses])
    p_values = np.array([_p_value(column, alpha, bound) for column in losses])
    passed = fixed_sequence(p_values, delta)
    behind = float(risks[passed]) if passed < len(risks) else None
    return Certification(
        alpha=alpha,
        delta=delta,
        bound=bound,
        n_prompts=len(losses[passed - 1 if passed else 0]),
        chosen=passed - 1 if passed else None,
        p_values=p_values,
        risks=risks,
        counts=tuple(map(len, losses)),
        enough_prompts=None if behind is None else prompts_needed(alpha, delta, risk=behind, bound=bound),
    )


def _p_value(losses: Floats, alpha: float, bound: Bound) -> float:
    n = len(losses)
    if bound == "binomial":
        return float(binomial_p_value(losses.sum(), n, alpha))
    return float(
        betting_p_value(losses, alpha) if bound == "betting" else hoeffding_bentkus_p_value(losses.mean(), n, alpha)
    )


def make_guarantee(
    tested: Certification, thresholds: Sequence[float], rates: Sequence[float], *, loss: str, method: str = "replace"
) -> Guarantee | None:
    """The claim about the candidate that was chosen, None where there is none.

    ``thresholds`` and ``rates`` (escalation rates on the calibration prompts) are the candidates', in
    the order of testing; ``method`` is the one that they were run with.
    """
    at = tested.chosen
    if at is None:
        return None
    return Guarantee(
        alpha=tested.alpha,
        delta=tested.delta,
        loss=loss,
        threshold=thresholds[at],
        n_prompts=tested.n_prompts,
        n_thresholds=len(thresholds),
        risk=float(tested.risks[at]),
        p_value=float(tested.p_values[at]),
        bound=tested.bound,
        certified_rate=rates[at],
        method=make_method(method).name,
    )


def fixed_sequence(p_values: Floats, delta: float) -> int:
    """How many hypotheses are rejected, tested in order at level ``delta`` up to the first that is not.

    Controls the family-wise error at ``delta`` however the p-values depend on each other.
    """
    kept = np.flatnonzero(~(p_values <= delta))
    return int(kept[0]) if len(kept) else len(p_values)


def fewest_prompts(alpha: float, delta: float, *, bound: Bound = "binomial") -> int:
    """With fewer calibration prompts nothing can be certified: without any loss the p-value is (1 - alpha)^n."""
    _require_levels(alpha, delta)
    if bound == "betting":
        return _smallest(lambda n: _e_value(0, n, alpha) >= 1.0 / delta, 1) or _MOST_PROMPTS
    return math.ceil(math.log(delta) / math.log1p(-alpha))


_MOST_PROMPTS = 10_000_000


def prompts_needed(
    alpha: float, delta: float, *, risk: float = 0.0, power: float = 0.8, bound: Bound = "binomial"
) -> int | None:
    """How many calibration prompts certify a candidate of this true ``risk`` with probability ``power``.

    For losses of 0 or 1, which of all losses in [0, 1] with one mean vary most. None where ``risk`` is
    not below ``alpha``, or where ten million would not do. To within the steps of the binomial.
    """
    least = fewest_prompts(alpha, delta, bound=bound)
    if not 0.0 <= risk < alpha:
        return None
    binom = require_scipy_stats().binom

    def enough(n: int) -> bool:
        if bound == "betting":
            return _e_value(int(binom.ppf(power, n, risk)), n, alpha) >= 1.0 / delta
        # The most failures that still pass, and the probability of no more than those.
        most = int(binom.ppf(delta, n, alpha))
        most -= bool(binom.cdf(most, n, alpha) > delta)
        return most >= 0 and bool(binom.cdf(most, n, risk) >= power)

    return _smallest(enough, least)


def _smallest(holds: Callable[[int], bool], least: int) -> int | None:
    """The smallest n from ``least`` on for which ``holds``, by doubling and halving."""
    high = least
    while not holds(high):
        if high > _MOST_PROMPTS:
            return None
        high *= 2
    low = max(high // 2, least - 1) if high > least else least - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _require_levels(alpha: float, delta: float) -> None:
    if not (0.0 < alpha < 1.0 and 0.0 < delta < 1.0):
        raise ConfigurationError(f"alpha={alpha}, delta={delta}", hint="both are between 0 and 1")


def require_scipy_stats() -> ModuleType:
    try:
        from scipy import stats
    except ImportError as error:
        raise ImportError("certifying needs the extra 'eval': pip install 'fsgen-router[eval]'") from error
    module: ModuleType = stats
    return module
