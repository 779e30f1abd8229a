"""The contract of a model that gives rows of logits for token ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from ..rows.reading import Read, Row
from .tokenizer import Tokenizer

Role: TypeAlias = Literal["fast", "slow", "tuned"]
"""A model's seat: ``fast`` writes, ``slow`` is asked; ``tuned`` is a third one whose rows a method may read too."""


@dataclass(frozen=True, slots=True)
class Work:
    """One sequence's share of a forward.

    Keep the first ``keep`` tokens that the sequence holds (fewer than it holds is a rewind), append
    ``ids`` (at least one), and read the rows named in ``reads``: pairs of an index into ``ids`` and
    what to read of the row behind that token.

    ``more``: so many tokens are wanted behind them, if each is what the row before it chooses. A model that is asked
    over a network may write them at once; to others it says nothing.
    """

    sequence: int
    keep: int
    ids: Sequence[int]
    reads: Sequence[tuple[int, Read]]
    more: int = 0


class Rows(list[Row]):
    """A work's rows, in the order of its reads.

    ``reread``: tokens of its kept prefix that were read again for it, since the model's memory could not go back, or
    its server's prefix cache did not hold them. ``calls`` over a network that it took (None: there is none), and tokens
    ``written`` in them, those included that nobody asked for yet.
    """

    def __init__(self, rows: Iterable[Row] = (), *, reread: int = 0) -> None:
        super().__init__(rows)
        self.reread, self.written = reread, 0
        self.calls: int | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """A sequence that was opened, and how many tokens of the wanted prefix it still holds, to go on from."""

    sequence: int
    kept: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a model can do beyond the contract."""

    rewind: bool = True
    """A rewind costs nothing. Without it (recurrent memory), the kept prefix is read again: see :class:`Rows`."""
    hidden_size: int | None = None
    """Width of the hidden state that ``Read(hidden=True)`` brings; None where it cannot be read."""
    device: str | None = None
    """What forwards run on: ``cpu``, ``cuda:0``. Models that name one device take turns there, unless their shares of
    it fit side by side. None: forwards may overlap with any other model's."""
    device_share: float = 1.0
    """The part of the device that a forward keeps busy: on a CPU its threads over the cores."""
    top_k: int | None = None
    """So many of the best tokens are known of a row, and the log-probabilities of tokens that are named: no whole row,
    no entropy, none that is masked. None: the whole row."""
    remote: bool = False
    """Behind a network: a forward costs a round trip, and those of several threads run side by side."""


class TokenModel(Protocol):
    """A model that reads token ids and gives reduced rows of logits: a local one, or one behind a server that does.

    One with a method ``take_vocabulary(tokenizer, name)`` has no tokenizer of its own before it is given another
    model's. Calls are safe from several threads; a local model serialises its own forwards. After a fork, :meth:`open`
    and :meth:`forward` raise :class:`~fsgen_router.errors.ForkedProcess` in the child, and :meth:`close` and
    :meth:`shutdown` do nothing. A model that is dropped frees its memory like one that is shut down.
    """

    @property
    def name(self) -> str: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def n_params(self) -> int | None:
        """None where nobody knows."""

    @property
    def n_ctx(self) -> int:
        """Tokens that one sequence can hold."""

    @property
    def n_seq(self) -> int:
        """Sequences that can be open at once."""

    @property
    def capabilities(self) -> Capabilities: ...

    def open(self, ids: Sequence[int]) -> Opened:
        """Start a sequence on the longest prefix of ``ids`` that an idle one still holds.

        Without ``capabilities.rewind`` that is all that a sequence holds, and less than ``ids``, or nothing.
        Raises :class:`NoFreeSequence` when ``n_seq`` are open.
        """

    def forward(self, works: Sequence[Work]) -> list[list[Row]]:
        """Run a batch: for each work its rows, in the order of its ``reads``.

        A call costs what the new tokens cost, however long the prefix; where more had to be read, the rows are
        :class:`Rows` that say so. After a
        :class:`BackendError` the sequences named in it are empty and may be used again.
        """

    def close(self, sequence: int) -> None:
        """Give a sequence back. Its KV cache stays for a later ``open`` with the same beginning."""

    def shutdown(self) -> None:
        """Free the model. Closing twice is allowed."""
