"""One decision for a whole answer, made of both models' own answers: any share of the prompts costs no new one.

``prompt``: the fast model reads the prompt, and its entropy there says who answers. ``answer``: it answers, and where
its mean entropy was high the slow model answers anew. Thresholds are quantiles over the very prompts, so that a given
share goes to the slow model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..evaluation import Array
from .figures import Columns
from .modes import Mode, Seat

SHARES = {"prompt": (0.25, 0.5, 0.75), "answer": (0.25, 0.5)}
"""Of prompts that go to the slow model. Behind its answer the fast model's time is spent already."""


@dataclass(frozen=True, slots=True)
class WholeQuery:
    """A mode with its columns, and how an application does it."""

    mode: Mode
    columns: Columns
    recipe: str


def whole_queries(
    fast: Columns,
    slow: Columns,
    *,
    first_token_seconds: Array,
    prompt_flops: Array,
    first_entropy: Array,
    mean_entropy: Array,
    seats: tuple[Seat, Seat],
) -> list[WholeQuery]:
    """Both kinds at all of :data:`SHARES`. The arrays, of shape (n,), are of the fast model's own answers:
    ``first_token_seconds`` and ``prompt_flops`` are what a decision at the prompt costs."""
    made = []
    kinds: Sequence[tuple[Literal["prompt", "answer"], Array]] = (("prompt", first_entropy), ("answer", mean_entropy))
    for when, scores in kinds:
        for share in SHARES[when]:
            threshold = float(np.quantile(scores, 1.0 - share))
            over = scores > threshold
            spent = (fast.seconds, fast.flops) if when == "answer" else (first_token_seconds, prompt_flops)
            columns = Columns(
                right=np.where(over, slow.right, fast.right),
                seconds=np.where(over, spent[0] + slow.seconds, fast.seconds),
                tokens=np.where(over, slow.tokens, fast.tokens),
                flops=np.where(over, spent[1] + slow.flops, fast.flops),
                money=np.where(over, slow.money, fast.money),
                slow_share=np.where(over, slow.tokens, 0.0),
                truncated=np.where(over, slow.truncated, fast.truncated),
                batch=_batch(fast, slow, over, answers=when == "answer"),
            )
            mode = Mode(name=f"at {when} {share:.0%}", kind="whole_query", policy=f"{when}:{share:g}", seats=seats)
            made.append(WholeQuery(mode, columns, _recipe(when, threshold)))
    return made


def _batch(fast: Columns, slow: Columns, over: npt.NDArray[np.bool_], *, answers: bool) -> Array | None:
    """Tokens, seconds and answers of each block several at a time: both models' own, by the share that each answers."""
    if fast.batch is None or slow.batch is None:
        return None
    ends = np.cumsum(fast.batch[:, 2]).astype(int)
    share = np.array([float(block.mean()) for block in np.split(over, ends[:-1])])
    tokens = (1 - share) * fast.batch[:, 0] + share * slow.batch[:, 0]
    walls = (1.0 if answers else 1 - share) * fast.batch[:, 1] + share * slow.batch[:, 1]
    return np.stack([tokens, walls, fast.batch[:, 2]], 1)


def _recipe(when: str, threshold: float) -> str:
    """An application's lines."""
    if when == "prompt":
        return (
            'first = router.complete(prompt, policy="never", max_tokens=1).tokens[0]\n'
            f"unsure = first.signals.entropy_nats > {threshold:.3g}\n"
            'answer = router.complete(prompt, policy="always,span=rest" if unsure else "never", method="replace")'
        )
    return (
        'answer = router.complete(prompt, policy="never")\n'
        "entropies = [token.signals.entropy_nats for token in answer.tokens]\n"
        f"if sum(entropies) / len(entropies) > {threshold:.3g}:\n"
        '    answer = router.complete(prompt, policy="always,span=rest", method="replace")'
    )
