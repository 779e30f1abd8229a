"""What a calibration found, and the header of its policy file."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..evaluation import Estimate, interval
from ..methods import make_method
from ..policies import Learned
from ..policies.cards import CurvePoint, Metric, Pair, PolicyCard, library_versions
from ..policies.features import hidden_names, hidden_size
from ..policies.scorers import Scorer
from .bench import Bench
from .fitting import Round
from .held_out import Held
from .metrics import metrics_record
from .options import CalibrationOptions
from .prompts import Prompts
from .target import Target
from .thresholds import Choice


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What :func:`calibrate` found. ``policy`` is None where no candidate meets the target."""

    policy: Learned | None
    card: PolicyCard | None
    target: Target
    choice: Choice
    prompts: Prompts
    pair: Pair
    options: CalibrationOptions
    gap: Estimate
    rounds: tuple[Round, ...]
    held: Held | None
    seconds: Mapping[str, float]
    rows: Mapping[str, Any]
    """By model, what it really read, and how many rows were known (:class:`~fsgen_router.adapters.row_trie.Used`)."""
    path: Path | None = None
    check: str = "answer"
    """The checker's name: what "right" means."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON: every figure with ``<name>_interval`` beside it."""
        certification = self.choice.certification
        record: dict[str, Any] = {
            "policy": None if self.path is None or self.policy is None else str(self.path),
            "threshold": None if self.policy is None else self.policy.threshold,
            "target": str(self.target),
            "check": self.check,
            "certified": self.choice.certified,
            "reason": self.choice.reason,
            "guarantee": None if self.choice.guarantee is None else self.choice.guarantee.model_dump(),
            "always_escalate": self.choice.always,
            "enough_prompts": self.choice.enough_prompts,
            "candidates": [
                {
                    "threshold": policy.threshold,
                    "escalation_rate": run.rate("escalation_rate"),
                    "accuracy": run.accuracy,
                    "risk": float(certification.risks[number]) if certification is not None else None,
                    "p_value": float(certification.p_values[number]) if certification is not None else None,
                }
                for number, (policy, run) in enumerate(self.choice.tried)
            ],
            "pair": self.pair.model_dump(),
            "prompts": self.prompts.to_dict(),
            "options": self.options.model_dump(),
            **self.gap.to_dict("gap"),
            "rounds": [one.to_dict() for one in self.rounds],
            "seconds": dict(self.seconds),
            "rows": dict(self.rows),
        }
        if self.held is not None:
            record["report"] = {
                "n": len(self.held.fast),
                "accuracy_fast": self.held.fast.accuracy,
                "accuracy_slow": self.held.slow.accuracy,
                **self.held.gap.to_dict("gap"),
                "metrics": metrics_record(self.held.metrics),
                "rounds": metrics_record(self.held.rounds),
                "curves": None
                if self.held.curves is None
                else {name: curve.to_dict() for name, curve in self.held.curves.items()},
            }
        return record


def make_card(bench: Bench, policy: Learned, choice: Choice, target: Target, held: Held) -> PolicyCard:
    """The header of the policy file."""
    metrics = {
        f"{name}_{metric}": Metric(value=estimate.value, interval=estimate.interval)
        for name, found in held.metrics.items()
        for metric, estimate in found.items()
    }
    if held.routed is not None:
        for name, estimate in (
            ("accuracy", interval(held.routed.column("right"))),
            ("accuracy_fast", interval(held.fast.column("right"))),
            ("accuracy_slow", interval(held.slow.column("right"))),
            ("escalation_rate", interval(held.routed.column("escalations"), held.routed.column("decisions"))),
        ):
            metrics[name] = Metric(value=estimate.value, interval=estimate.interval)
    return PolicyCard(
        created=datetime.date.today().isoformat(),
        pair=bench.pair,
        method=make_method(bench.options.method).name,
        label=bench.options.label,
        signals=scorer_signals(policy.scorer),
        data_hash=bench.prompts.sha256,
        splits={split: len(items) for split, items in bench.prompts},
        metrics=metrics,
        guarantee=policy.certificate,
        seed=bench.options.seed,
        versions=library_versions(),
        notes=(f"target: {target}", choice.reason),
    )


def make_curve(policy: Learned, choice: Choice) -> tuple[CurvePoint, ...]:
    """What the candidates did on the calibration prompts, as far as they are ``policy`` but for the threshold."""
    certification = choice.certification
    points = [
        CurvePoint(
            threshold=one.threshold,
            n_prompts=len(run),
            escalation_rate=run.rate("escalation_rate"),
            accuracy=run.accuracy,
            risk=None if certification is None else float(certification.risks[number]),
        )
        for number, (one, run) in enumerate(choice.tried)
        if one.span == policy.span
    ]
    return tuple(sorted(points, key=lambda point: point.threshold))


def scorer_signals(scorer: Scorer) -> tuple[str, ...]:
    """Names of what a scorer reads."""
    spec: Any = scorer.spec()
    size = hidden_size(spec)
    names: list[str] = []
    while isinstance(spec, dict):
        names += spec.get("features") or spec.get("classes") or filter(None, [spec.get("signal")])
        names += ["token_id"] if spec["kind"] == "token_prior" else []
        spec = spec.get("inner")
    states = set(hidden_names(size))
    return (*(name for name in names if name not in states), *([f"hidden state ({size} wide)"] if size else []))
