"""What a learned policy reads of a position: one vector, made by one function in training and in serving."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from fsgen_router.contracts.policy import Context
from fsgen_router.contracts.tokenizer import TokenClass
from fsgen_router.errors import ConfigurationError
from fsgen_router.records import Token
from fsgen_router.rows.signals import TOP_K, Signals

Floats: TypeAlias = npt.NDArray[np.float64]

CLASSES: Final = tuple(member.name.lower() for member in TokenClass)
"""Names of the token classes; a class is its index."""

NUMERIC: Final[tuple[str, ...]] = (
    "max_prob",
    "margin",
    "entropy_nats",
    "varentropy",
    "log_partition",
    "log_odds",
    *(f"gap_{rank}" for rank in range(2, TOP_K + 1)),
    "tail_mass",
    "log_position",
    "log_since_escalation",
    *(f"class_{name}" for name in CLASSES),
    *(f"entropy_{name}" for name in CLASSES),
)
"""Features that a model may weigh: everything but the token's identity.

``log_odds`` are the best token's, ``log(p / (1 - p))``; ``gap_k`` is by how many nats the k-th best
token is behind the best, at most ``GAP_CAP``, which is also what stands for a token that does not
exist; ``tail_mass`` is the probability outside the ``TOP_K`` best; ``log_position`` and
``log_since_escalation`` are log(1 + tokens); ``class_c`` is 1 for the proposed token's class and
``entropy_c`` the entropy in nats there, 0 elsewhere, so that a linear model can weigh uncertainty by
the kind of token.
"""

FEATURES: Final[tuple[str, ...]] = (*NUMERIC, "token_id")
"""All columns of a row. ``token_id`` is an index and not a quantity: only a prior by token reads it."""

INDEX: Final[dict[str, int]] = {name: index for index, name in enumerate(FEATURES)}

_HIDDEN: Final = "hidden_"


def hidden_names(size: int) -> tuple[str, ...]:
    """Names of the columns behind ``FEATURES`` that hold a hidden state of shape (size,), where it was read."""
    return tuple(f"{_HIDDEN}{index}" for index in range(size))


def columns_of(names: Sequence[str]) -> list[int]:
    """Where features stand in a row. Raises :class:`ConfigurationError` for a name that no version makes."""
    return [_column(name) for name in names]


def _column(name: str) -> int:
    found = INDEX.get(name)
    if found is not None:
        return found
    number = name.removeprefix(_HIDDEN)
    if number == name or not number.isdecimal():
        raise ConfigurationError(
            f"unknown feature {name!r}", hint=f"this version makes {', '.join(FEATURES)}, and {_HIDDEN}0 and so on"
        )
    return len(FEATURES) + int(number)


def hidden_size(spec: Mapping[str, Any]) -> int:
    """Width of the hidden state that a scorer or a guard reads, by its ``spec()``; 0 where it reads none."""
    own = [column - len(FEATURES) + 1 for column in columns_of(spec.get("features", ()))]
    return max([0, *own, *(hidden_size(part) for part in spec.values() if isinstance(part, Mapping))])


GAP_CAP: Final = 20.0
_SMALLEST_REST = 1e-9
_ONE_HOT = [tuple(float(index == one) for index in range(len(CLASSES))) for one in range(len(CLASSES))]
_ZEROS = (0.0,) * len(CLASSES)
_MISSING = [(GAP_CAP,) * missing for missing in range(TOP_K)]


def feature_row(signals: Signals, context: Context) -> tuple[float, ...]:
    """The features of one position, in the order of ``FEATURES``, and behind them its hidden state if it was read.

    A tuple of Python floats: a few numbers are weighed faster one by one than through an array.
    """
    return _row(signals, context.position, context.since_escalation)


def feature_matrix(positions: Iterable[tuple[Signals, Context]]) -> Floats:
    """Rows of :func:`feature_row`, shape (n, F) in float64.

    It calls that very function for each position, since numpy's logarithms may differ from Python's
    in the last bit.
    """
    return _stack([feature_row(signals, context) for signals, context in positions])


def answer_features(tokens: Sequence[Token]) -> tuple[npt.NDArray[np.int64], Floats]:
    """An answer's positions at which the fast model proposed a token, shape (n,), and their rows, (n, F).

    Where the policy was asked there, it saw exactly this row (but for a hidden state, which tokens do not keep).
    """
    positions: list[int] = []
    rows: list[tuple[float, ...]] = []
    last_escalation = -1
    for position, token in enumerate(tokens):
        if token.signals is not None:
            positions.append(position)
            rows.append(_row(token.signals, position, position - last_escalation - 1))
        if token.source == "slow":
            last_escalation = position
    return np.array(positions, np.int64), _stack(rows)


def _stack(rows: list[tuple[float, ...]]) -> Floats:
    return np.array(rows, np.float64).reshape(len(rows), len(rows[0]) if rows else len(FEATURES))


def _row(signals: Signals, position: int, since_escalation: int) -> tuple[float, ...]:
    logprobs, entropy, kind = signals.top_logprobs, signals.entropy_nats, signals.token_class
    best = logprobs[0]
    return (
        signals.max_prob,
        signals.margin,
        entropy,
        signals.varentropy,
        signals.log_partition,
        best - math.log(max(-math.expm1(best), _SMALLEST_REST)),
        *[min(best - logprob, GAP_CAP) for logprob in logprobs[1:TOP_K]],
        *_MISSING[max(TOP_K - len(logprobs), 0)],
        max(1.0 - math.fsum(map(math.exp, logprobs[:TOP_K])), 0.0),
        math.log1p(position),
        math.log1p(since_escalation),
        *_ONE_HOT[kind],
        *_ZEROS[:kind],
        entropy,
        *_ZEROS[kind + 1 :],
        float(signals.token_id),
        *(() if signals.hidden is None else signals.hidden.tolist()),
    )
