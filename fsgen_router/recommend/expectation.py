"""What the cost model says that the modes take, beside what they took: each at its own rates and lengths."""

from __future__ import annotations

import json
import warnings

import numpy as np

from ..calibration import WorkDirectory
from ..costs import ForwardCost, Judged, PairCost, Rates
from ..costs import Mode as CostMode
from ..errors import BackendError
from ..evaluation import Run
from ..pairing import UnsteadyMachineWarning
from ..policies import BestOf, Capped
from .measuring import JUDGED, Sample
from .models import Models
from .modes import Mode

_KEPT = "costs"
SECONDS = 20.0
"""Spent on timing forwards, at most (see :meth:`~fsgen_router.Router.measure`)."""


def measured_costs(models: Models, work: WorkDirectory) -> tuple[PairCost | None, list[str]]:
    """What forwards of a local pair cost, kept in ``work``, and what is to be said of it; None where it has none."""
    if not {"fast", "slow"} <= models.local.keys():
        return None, []
    kept = work.load(_KEPT)
    if kept is None:
        found, said = _measure(models)
        tables = {} if found is None or found.slow is None else {"fast": found.fast, "slow": found.slow}
        whole = {"said": said} | {role: table.to_dict() for role, table in tables.items()}
        kept = {"json": np.frombuffer(json.dumps(whole).encode(), np.uint8)}
        work.save(_KEPT, kept)
    whole = json.loads(kept["json"].tobytes())
    if "fast" not in whole:
        return None, whole["said"]
    cost = PairCost(fast=ForwardCost.from_dict(whole["fast"]), slow=ForwardCost.from_dict(whole["slow"]))
    return cost, whole["said"]


def _measure(models: Models) -> tuple[PairCost | None, list[str]]:
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
    policy = router.policy
    while isinstance(policy, Capped):
        policy = policy.inner
    if "tuned" in router.method.roles or isinstance(policy, BestOf):
        return None
    return CostMode.of(router.policy, router.method)
