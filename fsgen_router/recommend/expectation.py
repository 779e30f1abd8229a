"""What the cost model says that the modes take, beside what they took: each at its own rates and lengths."""

from __future__ import annotations

import warnings

from ..costs import Judged, PairCost, Rates
from ..costs import Mode as CostMode
from ..errors import BackendError
from ..evaluation import Run
from ..pairing import UnsteadyMachineWarning
from .measuring import JUDGED, Sample
from .models import Models
from .modes import Mode

SECONDS = 20.0
"""Spent on timing forwards, at most (see :meth:`~fsgen_router.Router.measure`)."""


def measure_pair(models: Models) -> tuple[PairCost | None, list[str]]:
    """What forwards of a local pair cost, and what is to be said of that; None where it cannot be measured."""
    if not {"fast", "slow"} <= models.local.keys():
        return None, []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UnsteadyMachineWarning)
        try:
            cost = models.router(("fast", "slow")).measure(seconds=SECONDS)
        except BackendError as error:
            return None, [f"no seconds are expected: {error}"]
    return cost, [str(one.message) for one in caught if issubclass(one.category, UnsteadyMachineWarning)]


def expected_seconds(cost: PairCost, mode: Mode, models: Models, run: Run, sample: Sample) -> float | None:
    """Mean seconds of an answer, as expected of answers that part and are as long as these; None for other pairs."""
    if (form := _form(mode, models)) is None:
        return None
    judged = Judged(*(int(sample.extras[name].sum()) for name in JUDGED))
    decided = len(run) if form.who == "prompt" else int(run.column("decisions").sum())
    rates = Rates.counted(decided, int(run.column("escalations").sum()), judged)
    prompts, answers = run.column("prompt_tokens").tolist(), run.column("tokens").tolist()
    lengths = [(max(int(prompt), 1), max(int(answer), 1)) for prompt, answer in zip(prompts, answers, strict=True)]
    return sum(cost.seconds(form, rates, prompt_tokens=p, answer_tokens=a) for p, a in lengths) / len(lengths)


def _form(mode: Mode, models: Models) -> CostMode | None:
    if mode.kind in ("fast", "slow"):
        return CostMode(who=mode.kind)
    if mode.seats != ("fast", "slow"):
        return None
    router = models.routed(mode, 1)
    return CostMode.of(router.policy, router.method)
