"""What each mode comes to, against the slow model alone: quality, seconds, throughput, FLOPs and money."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..evaluation import Array, Estimate, Item, Run, bootstrap, interval
from ..evaluation.intervals import RESAMPLES, flat
from ..records import ModelUsage, Prices
from ..report.comparison import cost_usd
from .decision import loss_bound
from .measuring import Sample
from .modes import DEFAULT, Mode, Seat

PREFERENCES = ("seconds", "money", "flops")
"""What may count: of each, :class:`Figures` has ``<name>_relative``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """A mode's answers as arrays of shape (n,).

    ``batch``: tokens, seconds and answers of each block answered several at a time, shape (blocks, 3), or None.
    ``flops`` and ``money`` are NaN where they are unknown; ``texts`` is None where they were not kept.
    """

    right: Array
    seconds: Array
    tokens: Array
    flops: Array
    money: Array
    slow_share: Array
    truncated: Array
    batch: Array | None = None
    texts: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One mode's figures over ``n`` prompts, per answer unless said otherwise.

    ``quality_loss``: accuracy of the slow model alone less this one's, with what the true one is at most in
    ``quality_loss_bound`` (see :func:`~fsgen_router.recommend.decision.loss_bound`); ``lost`` and ``won`` count the
    prompts that only the slow model alone, or only this mode, got right, and ``differ`` those on which this mode wrote
    another text than the slow model alone (None: unknown). ``seconds``: wall time with one request at a
    time; ``tokens_per_second_at_once``: with several, its interval by blocks of prompts. ``<name>_relative``: sums
    over all prompts against the slow model alone's, paired (1 is as dear). ``expected_seconds``: what a cost model
    says, where there is one. ``derived``: made of both models' own answers, not run by itself.
    """

    mode: Mode
    n: int
    accuracy: Estimate
    quality_loss: Estimate
    quality_loss_bound: float
    lost: int
    won: int
    differ: int | None = None
    seconds: Estimate
    seconds_relative: Estimate
    tokens_per_second: Estimate
    tokens_per_second_at_once: Estimate
    flops: Estimate
    flops_relative: Estimate
    money_usd: Estimate
    money_relative: Estimate
    slow_share: Estimate
    expected_seconds: float | None = None
    truncated: int = 0
    derived: bool = False
    recipe: str | None = field(default=None, repr=False)
    """How to do it where one Router's policy cannot."""

    @property
    def lossless(self) -> bool:
        """Whether every text was the slow model's own, and has to be (up to ties of quantised models)."""
        return self.mode.lossless and not self.differ

    def cost(self, prefer: str) -> Estimate:
        """Against the slow model alone, in what counts."""
        found: Estimate = getattr(self, f"{prefer}_relative")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Flat, for JSON: every figure with ``<name>_interval`` beside it."""
        said = not self.derived and self.mode.name != DEFAULT
        record: dict[str, Any] = {
            "name": self.mode.name,
            "kind": self.mode.kind,
            "policy": self.mode.policy if said else None,
            "method": self.mode.method if said else None,
            "seats": list(self.mode.seats),
            "lossless": self.lossless,
        }
        return record | {name: value for name, value in flat(self).items() if name != "mode"}


def columns_of(
    mode: Mode,
    run: Run,
    sample: Sample,
    batch: Sample | None,
    *,
    n_params: Mapping[Seat, int | None],
    prices: Prices | None,
) -> Columns:
    """A mode's answers as columns; ``run`` is ``sample``'s, judged, and ``batch`` the same several at a time."""
    positions = run.column("fast_positions"), run.column("slow_positions")
    flops = np.zeros(len(run))
    for seat, read in zip(mode.seats, positions, strict=True):
        flops = flops + _flops(read, n_params[seat])
    flops = flops + _flops(sample.extras["tuned_read"], n_params.get("tuned"))
    return Columns(
        right=run.column("right"),
        seconds=run.column("seconds"),
        tokens=run.column("tokens"),
        flops=flops,
        money=_money(mode, run, sample, prices),
        slow_share=run.column("slow_tokens") if mode.seats[1] == "slow" else _all_or_none(mode, run),
        truncated=run.column("truncated"),
        texts=tuple(sample.answers.texts),
        batch=None if batch is None else _throughput(batch),
    )


def _flops(read: Array, n_params: int | None) -> Array:
    """Of so many positions; a model that was not asked costs nothing, whatever its size."""
    return np.where(read > 0, np.nan if n_params is None else 2.0 * n_params, 0.0) * read


def _all_or_none(mode: Mode, run: Run) -> Array:
    """Tokens by the slow model, of a mode in which it does not sit in the slow seat."""
    return run.column("tokens") if mode.seats[0] == "slow" else np.zeros(len(run))


def _money(mode: Mode, run: Run, sample: Sample, prices: Prices | None) -> Array:
    """US dollars for what the model named slow read and wrote, wherever it sat."""
    if prices is None:
        return np.full(len(run), np.nan)
    if mode.seats[0] == "slow":
        read, written = run.column("fast_positions").tolist(), run.column("tokens").tolist()
        bills = [(r, 0.0, w, 1.0) for r, w in zip(read, written, strict=True)]
    elif mode.seats[1] == "slow":
        names = ("slow_read", "slow_cached", "slow_written", "slow_calls")
        bills = list(zip(*(sample.extras[name].tolist() for name in names), strict=True))
    else:
        return np.zeros(len(run))
    return np.array(
        [
            cost_usd(ModelUsage(prefill=int(r), cached=int(k)), written=int(w), calls=int(c), prices=prices)
            if r
            else 0.0
            for r, k, w, c in bills
        ]
    )


def _throughput(batch: Sample) -> Array:
    """Tokens, seconds and answers of each block, shape (blocks, 3)."""
    tokens = batch.answers.run(_UNJUDGED * len(batch.answers.texts), "").column("tokens")
    ends = np.cumsum(batch.sizes).astype(int)
    blocks = [float(part.sum()) for part in np.split(tokens, ends[:-1])]
    return np.stack([np.array(blocks), batch.walls, batch.sizes], 1)


_UNJUDGED = [Item(id="", prompt="", check=lambda _text: False)]


def make_figures(
    mode: Mode,
    found: Columns,
    slow: Columns,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    expected_seconds: float | None = None,
    derived: bool = False,
    recipe: str | None = None,
) -> Figures:
    """A mode's figures with their intervals (bootstrap over prompts), paired with the slow model alone's."""
    own = [found.right, found.seconds, found.tokens, found.flops, found.money, found.slow_share]
    alone = [slow.right, slow.seconds, slow.flops, slow.money]

    def statistic(m: Array) -> Array:
        right, seconds, tokens, flops, money, share, right0, seconds0, flops0, money0 = m.T
        return np.stack(
            [
                right,
                right0 - right,
                seconds,
                seconds / seconds0,
                tokens / seconds,
                flops,
                flops / flops0,
                money,
                money / money0,
                share / tokens,
            ],
            axis=1,
        )

    made = bootstrap(statistic, np.stack([*own, *alone], 1), seed=seed, resamples=resamples)
    accuracy, loss, seconds, seconds_rel, speed, flops, flops_rel, money, money_rel, share = made
    batch = Estimate(None)
    if found.batch is not None:
        batch = interval(found.batch[:, 0], found.batch[:, 1], seed=seed, resamples=resamples)
    lost = int(((slow.right == 1) & (found.right == 0)).sum())
    won = int(((slow.right == 0) & (found.right == 1)).sum())
    differ = None
    if found.texts is not None and slow.texts is not None:
        differ = sum(ours != theirs for ours, theirs in zip(found.texts, slow.texts, strict=True))
    return Figures(
        mode=mode,
        n=len(found.right),
        accuracy=accuracy,
        quality_loss=loss,
        quality_loss_bound=loss_bound(len(found.right), lost, won),
        lost=lost,
        won=won,
        differ=differ,
        seconds=seconds,
        seconds_relative=seconds_rel,
        tokens_per_second=speed,
        tokens_per_second_at_once=batch,
        flops=flops,
        flops_relative=flops_rel,
        money_usd=money,
        money_relative=money_rel,
        slow_share=share,
        expected_seconds=expected_seconds,
        truncated=int(found.truncated.sum()),
        derived=derived,
        recipe=recipe,
    )


def find(figures: Sequence[Figures], name: str) -> Figures:
    """The figures of the mode of that name."""
    return next(one for one in figures if one.mode.name == name)
