"""Both models' rows over a whole calibration: read once, kept in the work directory, shared by every run."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from ..adapters.row_trie import LIMIT_BYTES, TOP_K, Arrays, RowTrie, TrieModel, Used
from ..contracts.models import Role, TokenModel
from ..evaluation import Item
from ..router import Router
from ..rows.signals import TOP_K as SIGNALS_TOP_K
from .answers import Record
from .store import WorkDirectory
from .traces import local_slow, read_both

_KEPT_IDS: Mapping[Role, int] = {"fast": SIGNALS_TOP_K, "slow": TOP_K, "tuned": TOP_K}
"""Of a row's best ids: what signals hold of the fast model's, and where its choice is looked up in the slow one's."""


class SharedRows:
    """A twin of a Router whose models have a trie in front, with the rows that the work directory holds.

    Each keeps rows up to ``limit_bytes`` (0: none, so that every run reads anew). ``hidden`` says that traces read
    the fast model's hidden states.
    """

    def __init__(
        self, router: Router, work: WorkDirectory, *, limit_bytes: int = LIMIT_BYTES, hidden: bool = False
    ) -> None:
        self._work, self._hidden = work, hidden
        self.models: Mapping[Role, TrieModel] = {
            role: TrieModel(model, RowTrie(model.tokenizer.n_vocab, top_k=_KEPT_IDS[role], limit_bytes=limit_bytes))
            for role, model in _local(router).items()
        }
        self._saved = {role: self._load(role) for role in self.models}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said of the pair already
            self.router = Router(
                self.models["fast"],
                self.models["slow"],
                tuned=self.models.get("tuned"),
                policy="never",
                method="replace",
                seed=router.seed,
                batching=router.batching,
            )

    def _load(self, role: Role) -> int:
        """Take what an earlier calibration kept, as far as there is room: how many chunks follow on each other."""
        number = 0
        while not self.models[role].trie.full:
            arrays = self._work.load(_chunk(role, number))
            if arrays is None or not self.models[role].trie.put_back(arrays):
                break
            number += 1
        return number

    def save(self) -> None:
        """Keep what was read since this was last called."""
        for role, model in self.models.items():
            arrays: Arrays | None = model.take_new()
            if arrays is not None:
                self._work.save(_chunk(role, self._saved[role]), arrays)
                self._saved[role] += 1

    def read_both(self, item: Item, record: Record) -> None:
        """Read an answer whole with both models, so that its traces are known."""
        shared, answer = self.router.shared, record["ids"]
        both = self.models["fast"], self.models["slow"]
        # In the turn of live answers' forwards: beside them, on the same cores, each would take far longer.
        read_both(*both, item, answer, shared=shared, hidden=self._hidden, run=self.router.run_forwards)

    @property
    def used(self) -> dict[Role, Used]:
        """What both models really read so far."""
        return {role: model.used for role, model in self.models.items()}

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            role: {
                "positions": model.used.positions,
                "forwards": model.used.forwards,
                "seconds": model.used.seconds,
                "rows_read": model.used.read,
                "rows_known": model.used.known,
                "rows_kept": len(model.trie),
                "bytes": model.trie.bytes,
            }
            for role, model in self.models.items()
        }


def _local(router: Router) -> dict[Role, TokenModel]:
    local: dict[Role, TokenModel] = {"fast": router.fast, "slow": local_slow(router)}
    return local if router.tuned is None else local | {"tuned": router.tuned}


def _chunk(role: Role, number: int) -> str:
    return f"rows-{role}-{number:06d}"
