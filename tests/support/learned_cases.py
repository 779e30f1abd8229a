"""Scorers of every kind, policies and cards for tests; random features as a real pair gives them."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from fsgen_router import Context, Signals
from fsgen_router.policies import Guarantee, Learned, Pair, PolicyCard, SpanRule
from fsgen_router.policies.budget import RateHold
from fsgen_router.policies.drift import DriftMonitor
from fsgen_router.policies.features import CLASSES, NUMERIC, feature_matrix
from fsgen_router.policies.guard import fit_guard
from fsgen_router.policies.prompt_check import Asked, PromptCheck, fit_inputs
from fsgen_router.policies.scorers import (
    Adapted,
    Isotonic,
    Logistic,
    MaskedEntropy,
    Mlp,
    Platt,
    Scorer,
    Signal,
    Svm,
    TokenPrior,
)
from fsgen_router.rows.signals import TOP_K

PAIR = Pair(vocabulary="abc", fast="small.gguf", slow="large.gguf", fast_params=1000, slow_params=10_000)


def position(rng: np.random.Generator, n_vocab: int = 40) -> tuple[Signals, Context]:
    """Signals of a random row of logits, and a context."""
    logits = rng.normal(size=n_vocab) * rng.choice([0.1, 1.0, 5.0, 20.0])
    partition = float(np.logaddexp.reduce(logits))
    order = np.argsort(-logits)[:TOP_K]
    logprobs = logits - partition
    p = np.exp(logprobs)
    entropy = max(float(-(p * logprobs).sum()), 0.0)
    best = [float(p[i]) for i in order[:2]]
    signals = Signals(
        token_id=int(order[0]),
        token_class=int(rng.integers(len(CLASSES))),
        entropy_nats=entropy,
        varentropy=float((p * logprobs**2).sum()) - entropy**2,
        max_prob=best[0],
        margin=best[0] - best[1],
        log_partition=partition,
        top_ids=tuple(order.tolist()),
        top_logprobs=tuple(logprobs[order].tolist()),
    )
    at = int(rng.integers(200))
    return signals, Context(at, int(rng.integers(at + 1)), 0, 0, lambda: 0.5)


def positions(count: int, seed: int = 0) -> list[tuple[Signals, Context]]:
    rng = np.random.default_rng(seed)
    return [position(rng) for _ in range(count)]


def features(count: int, seed: int = 0) -> np.ndarray:
    return feature_matrix(positions(count, seed))


def logistic(seed: int = 0, names: tuple[str, ...] = NUMERIC) -> Logistic:
    rng = np.random.default_rng(seed)
    size = len(names)
    return Logistic(names, rng.normal(size=size), rng.uniform(0.5, 2, size), rng.normal(size=size) / 3, -1.0)


def mlp(seed: int = 0, names: tuple[str, ...] = NUMERIC[:9], hidden: tuple[int, ...] = (16, 5)) -> Mlp:
    rng = np.random.default_rng(seed)
    sizes = [len(names), *hidden, 1]
    pairs = list(pairwise(sizes))
    return Mlp(
        names,
        rng.normal(size=len(names)),
        rng.uniform(0.5, 2, len(names)),
        tuple(rng.normal(size=(wide, narrow)).astype(np.float32) / np.float32(4) for narrow, wide in pairs),
        tuple(rng.normal(size=wide).astype(np.float32) for _, wide in pairs),
    )


def svm(seed: int = 0, count: int = 30, k: int = TOP_K) -> Svm:
    rng = np.random.default_rng(seed)
    vectors = -np.sort(-rng.dirichlet(np.ones(k + 1), count)[:, :k])
    signs = np.where(vectors[:, 0] > np.median(vectors[:, 0]), -1.0, 1.0)  # uncertain: ask
    return Svm(vectors, signs * rng.random(count), 0.0, 4.0)


def scorers() -> dict[str, Scorer]:
    """One of every kind, alone and on top of others."""
    found: dict[str, Scorer] = {name: Signal(name) for name in ("entropy", "varentropy", "max_prob", "margin")}
    found["masked_entropy"] = MaskedEntropy(("digit", "word_start"))
    found["logistic"] = logistic()
    found["one feature"] = logistic(names=("log_odds",))
    found["mlp"] = mlp()
    found["svm"] = svm()
    found["linear mlp"] = mlp(hidden=())
    found["prior"] = TokenPrior(logistic(1), np.array([0, 7, 12]), np.array([0.4, -1.3, 2.0]))
    found["platt"] = Platt(mlp(2), 1.7, -0.3)
    table = np.linspace(0, 1, 12)
    found["isotonic"] = Isotonic(logistic(3), table, np.sort(np.random.default_rng(4).random(12)))
    found["adapted"] = Adapted(Signal("entropy"), logistic(5))
    found["all"] = Isotonic(Platt(TokenPrior(mlp(6), np.array([3]), np.array([0.5])), 0.8, 0.1), table, table**2)
    return found


def monitor(window: int = 3, alarm: float = 0.5, widened: float = 0.1) -> DriftMonitor:
    return DriftMonitor((0.25, 0.5, 0.75), (0.4, 0.3, 0.2, 0.1), window, alarm, widened)


def guarantee(threshold: float = 0.5, **changes: object) -> Guarantee:
    return Guarantee(
        alpha=0.05,
        delta=0.1,
        loss="regret",
        threshold=threshold,
        n_prompts=400,
        n_thresholds=20,
        risk=0.01,
        p_value=0.03,
        bound="binomial",
        certified_rate=0.12,
    ).model_copy(update=changes)


def card(**changes: object) -> PolicyCard:
    return PolicyCard(
        created="2026-11-21",
        pair=PAIR,
        label="disagreement",
        signals=NUMERIC,
        data_hash="0" * 64,
        splits={"fit": 500, "calibrate": 400, "report": 300},
        metrics={"auroc": {"value": 0.9, "interval": (0.88, 0.92)}, "ece": {"value": None}},
        seed=7,
        versions={"numpy": "2.4"},
    ).model_copy(update=changes)


def asked_at_random(count: int, seed: int = 0) -> list[Asked]:
    """Prompts whose tokens follow each other by a rule, one time in four by chance, out of 50."""
    rng = np.random.default_rng(seed)
    made = []
    for length in rng.integers(5, 60, count).tolist():
        ids = [int(rng.integers(50))]
        while len(ids) < length:
            ids.append((7 * ids[-1] + 3) % 50 if rng.random() < 0.75 else int(rng.integers(50)))
        made.append(Asked("messages", 1, ids))
    return made


def prompt_check() -> PromptCheck:
    return fit_inputs(asked_at_random(200, 1), asked_at_random(300, 2), 60)


def full_policy() -> Learned:
    """Every part that a policy can have."""
    return Learned(
        scorer=scorers()["all"],
        threshold=math.pi / 10,
        extent=4,
        span=SpanRule(6, 0.8, 0.2),
        hold=RateHold(0.1, 0.2, 0.0, "learned/rate/0.1"),
        drift=monitor(),
        guard=fit_guard(features(400), widened=0.05),
        pair=PAIR,
        inputs=prompt_check(),
    )
