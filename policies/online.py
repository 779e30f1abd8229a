"""A small head that goes on learning while the router serves, and that serves only once it is certified.

The idea is DualNet's (Pham et al., arXiv 2110.00175): slow features stay as they are, a small fast head
adapts to what comes in, and a memory of earlier examples keeps it from forgetting. Here the frozen part
is a fitted scorer, the head a linear correction of its log-odds. Learning changes nothing that is served:
:meth:`OnlineHead.scorer` makes a candidate, and :func:`promote` puts it into the policy file after the
same test that the old policy passed, on fresh prompts.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fsgen_router.errors import ConfigurationError, PolicyFileError
from fsgen_router.generation import Generation

from .cards import PolicyCard
from .certify import Bound, certify, make_guarantee
from .features import FEATURES, INDEX, NUMERIC, Floats, answer_features, hidden_size
from .files import save_policy
from .learned import Learned
from .scorers import Adapted, Logistic, Scorer, logits, sigmoids


class Reservoir:
    """A uniform sample of all that was ever added (Vitter's algorithm R): rows, labels and weights."""

    def __init__(self, capacity: int, *, seed: int = 0) -> None:
        self.rows = np.empty((capacity, len(FEATURES)))
        self.labels, self.weights = np.empty(capacity), np.empty(capacity)
        self.seen = 0
        self._random = random.Random(seed)

    def __len__(self) -> int:
        return min(self.seen, len(self.rows))

    def add(self, row: Floats, label: float, weight: float) -> None:
        """Keep an example, in the place of another once the reservoir is full, or let it go."""
        at = self.seen if self.seen < len(self.rows) else self._random.randrange(self.seen + 1)
        self.seen += 1
        if at < len(self.rows):
            self.rows[at], self.labels[at], self.weights[at] = row, label, weight


class OnlineHead:
    """Learns from finished answers where the frozen ``scorer`` is wrong about disagreements.

    A position's label (do both models' choices differ?) is known where the policy escalated, and
    everywhere in audited answers, each of which stands for ``1 / audit_rate`` answers: positions that
    were accepted are weighted by that, escalated ones by 1, so that the head does not learn from
    escalated positions alone. Steps of gradient descent on the log loss draw from a reservoir in
    proportion to those weights; ``decay`` pulls the head towards 0, the frozen scorer. The scorer has to
    predict disagreement, since nothing else is seen while serving.

    ``mean`` and ``scale`` standardise the features ``names``, shape (k,) each. One thread at a time.
    """

    def __init__(
        self,
        scorer: Scorer,
        *,
        mean: Floats,
        scale: Floats,
        audit_rate: float,
        names: Sequence[str] = NUMERIC,
        capacity: int = 4096,
        step: float = 0.05,
        decay: float = 1e-3,
        batch: int = 64,
        seed: int = 0,
    ) -> None:
        if not 0.0 < audit_rate <= 1.0:
            raise ConfigurationError(f"an audit rate of {audit_rate}", hint="above 0: accepted tokens need audits")
        if hidden_size(scorer.spec()):
            raise ConfigurationError(
                f"{scorer.name} reads hidden states, which answers do not keep", hint="take a scorer without them"
            )
        self.inner, self.names, self.mean, self.scale = scorer, tuple(names), mean, scale
        self.audit_rate, self.step, self.decay, self.batch = audit_rate, step, decay, batch
        self.reservoir = Reservoir(capacity, seed=seed)
        self.weights, self.intercept = np.zeros(len(self.names)), 0.0
        self._columns = [INDEX[name] for name in self.names]
        self._rng = np.random.default_rng(seed)

    @property
    def scorer(self) -> Adapted:
        """The frozen scorer with the head as it is now: a candidate, which nothing serves yet."""
        return Adapted(self.inner, Logistic(self.names, self.mean, self.scale, self.weights.copy(), self.intercept))

    def observe(self, answer: Generation) -> int:
        """Take what a finished answer tells, and make one step per example. Returns how many there were."""
        taken = 0
        positions, rows = answer_features(answer.tokens)
        for position, row in zip(positions.tolist(), rows, strict=True):
            token = answer.tokens[position]
            escalated = token.decision is not None and token.decision.escalate
            known = token.fast_choice is not None and token.slow_choice is not None
            if known and (escalated or answer.usage.audited):
                weight = 1.0 if escalated else 1.0 / self.audit_rate
                self.reservoir.add(row, float(token.fast_choice != token.slow_choice), weight)
                taken += 1
        for _ in range(taken):
            self._descend()
        return taken

    def _descend(self) -> None:
        size = len(self.reservoir)
        weights = self.reservoir.weights[:size]
        drawn = self._rng.choice(size, self.batch, p=weights / weights.sum())
        rows, labels = self.reservoir.rows[drawn], self.reservoir.labels[drawn]
        inputs = (rows[:, self._columns] - self.mean) / self.scale
        log_odds = logits(self.inner.score(rows)) + inputs @ self.weights + self.intercept
        errors = sigmoids(log_odds) - labels
        self.weights -= self.step * (errors @ inputs / self.batch + self.decay * self.weights)
        self.intercept -= self.step * float(errors.mean())


def promote(
    path: str | os.PathLike[str],
    candidates: Sequence[Learned],
    card: PolicyCard,
    *,
    losses: npt.ArrayLike,
    rates: Sequence[float],
    alpha: float,
    delta: float,
    loss: str,
    bound: Bound = "binomial",
    method: str = "replace",
    attempt: int = 1,
) -> Learned | None:
    """Certify candidates on fresh prompts; put the chosen one into the policy file, or return None and change nothing.

    ``candidates`` share a new scorer and are ordered from the safest threshold on; ``losses`` has shape
    (n_prompts, n_candidates), from running each on prompts of which the head has seen none, and
    ``rates`` are their escalation rates there. ``attempt`` counts promotions tried so far, this one
    included: attempt k tests at delta / (k (k + 1)), which sums to delta, so that trying again and again
    does not wear the claim out. A candidate's drift monitor has to come from its own scores. The old
    file is kept beside the new one (:func:`keep_old`).
    """
    if attempt < 1:
        raise ConfigurationError(f"attempt {attempt}", hint="count from 1")
    tested = certify(losses, alpha, delta / (attempt * (attempt + 1)), bound=bound)
    thresholds = [candidate.threshold for candidate in candidates]
    guarantee = make_guarantee(tested, thresholds, rates, loss=loss, method=method)
    if guarantee is None or tested.chosen is None:
        return None
    promoted = replace(candidates[tested.chosen], suspended=()).certified(guarantee)
    keep_old(path)
    save_policy(path, promoted, card)
    return promoted


def keep_old(path: str | os.PathLike[str]) -> Path | None:
    """Copy a policy file to the next free ``NAME.1.safetensors``, ``NAME.2.safetensors``, ...; None without a file.

    Raises :class:`PolicyFileError` where that fails.
    """
    path = Path(path)
    if not path.exists():
        return None
    number = 1
    while (kept := path.with_name(f"{path.stem}.{number}{path.suffix}")).exists():
        number += 1
    try:
        shutil.copy2(path, kept)
    except OSError as error:
        kept.unlink(missing_ok=True)
        raise PolicyFileError(
            f"the old policy cannot be kept as {kept}: {error.strerror or error}", hint="make room in its folder"
        ) from error
    return kept
