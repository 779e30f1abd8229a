"""Running what ``fsgen-router eval`` compares: both models alone, policies and sweeps, with a bar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.progress import Progress, TaskID

from .. import evaluation as ev
from ..contracts.policy import Policy
from ..generation import Generation
from ..policies.basic import THRESHOLDS
from ..router import Router
from .progress import progress_bars
from .terminal import say

_CALIBRATION = 100
_RECOVERY_RATES = ("escalation_rate", "slow_token_share")


@dataclass(frozen=True, slots=True)
class Results:
    """Everything that was run, and what it comes to."""

    fast: ev.Run
    slow: ev.Run
    runs: tuple[ev.Run, ...]
    sweeps: dict[str, tuple[ev.Run, ...]]
    summaries: tuple[ev.Summary, ...]
    recovery: dict[str, dict[str, dict[float, ev.Estimate]]]
    """By sweep, rate and share of the gap."""
    methods: dict[str, str]
    """By policy: a policy file brings its own."""

    @property
    def method(self) -> str:
        """All methods that were run."""
        return " and ".join(dict.fromkeys(self.methods.values()))

    def label(self, policy: str) -> str:
        """A policy's name, with its method where that is not everyone's."""
        several = len(set(self.methods.values())) > 1
        return f"{policy}, {self.methods[policy]}" if several and policy in self.methods else policy


class _Progress:
    """A bar over all answers on a terminal; a line per policy elsewhere."""

    def __init__(self, bars: Progress, task: TaskID) -> None:
        self._bars, self._task = bars, task

    def advance(self, _item: ev.Item, _answer: Generation) -> None:
        self._bars.advance(self._task)

    def begin(self, what: str) -> None:
        self._bars.update(self._task, description=what)

    def more(self, answers: int) -> None:
        self._bars.update(self._task, total=(self._bars.tasks[self._task].total or 0) + answers)

    def end(self, run: ev.Run) -> None:
        if not self._bars.console.is_terminal:
            say(f"{run.policy}: {run.accuracy:.1%} right of {len(run)}")


def run_all(
    router: Router,
    items: Sequence[ev.Item],
    policies: Sequence[Policy | None],
    signals: Sequence[tuple[str, str]],
    method: str | None,
    split: str | None,
    *,
    concurrency: int,
    seed: int,
    resamples: int,
    request: dict[str, Any],
) -> Results:
    """Each model alone, each policy (None: the Router's own), then sweeps of (signal, suffix).

    ``split`` is the reference world's, so that thresholds come from another one; None for problems of one's own.
    """
    collectors = {signal: ev.signal_collector(signal) for signal, _ in signals if signal in THRESHOLDS}
    swept = len(signals) * len(ev.SWEEP_RATES)
    with progress_bars(24) as bars:
        progress = _Progress(bars, bars.add_task("loading", total=len(items) * (2 + len(policies) + swept)))

        def advance(item: ev.Item, answer: Generation) -> None:
            progress.advance(item, answer)

        def collect(item: ev.Item, answer: Generation) -> None:
            progress.advance(item, answer)
            if answer.policy == "never":
                for add, _ in collectors.values():
                    add(item, answer)

        if collectors and split is not None:
            # Thresholds from problems that no result is reported on.
            progress.begin("thresholds")
            other = ev.reference_items("fit" if split == "calibration" else "calibration", _CALIBRATION)
            progress.more(len(other))
            ev.run_items(router, other, "never", on_answer=collect, concurrency=concurrency, **request)
        progress.begin("each model alone")
        fast, slow = ev.run_baselines(
            router, items, on_answer=advance if split else collect, concurrency=concurrency, **request
        )
        progress.end(fast)
        progress.end(slow)

        methods: dict[str, str] = {}

        def run(policy: Policy | str | None) -> ev.Run:
            routed = router if policy is None else router.with_policy(policy, method=method)
            progress.begin(routed.policy.name)
            done = ev.run_items(routed, items, on_answer=advance, concurrency=concurrency, **request)
            methods[done.policy] = routed.method.name
            progress.end(done)
            return done

        runs = [run(policy) for policy in policies]
        sweeps = {}
        for signal, suffix in signals:
            values = np.array(collectors[signal][1]) if signal in collectors else None
            forms = ev.sweep_policies(signal, values, suffix=suffix)
            progress.more((len(forms) - len(ev.SWEEP_RATES)) * len(items))
            sweeps[signal + suffix] = tuple(run(form) for form in forms)
        progress.begin("intervals")
        for swept_runs in sweeps.values():
            runs += swept_runs
        return Results(
            fast,
            slow,
            tuple(runs),
            sweeps,
            tuple(ev.summarise(r, fast, slow, seed=seed, resamples=resamples) for r in (*runs, fast, slow)),
            {
                name: {
                    rate: ev.rate_at_recovery(fast, slow, swept_runs, rate=rate, seed=seed, resamples=resamples)
                    for rate in _RECOVERY_RATES
                }
                for name, swept_runs in sweeps.items()
            },
            methods,
        )
