"""What the fast model thinks at every position of an answer, and which tokens begin a sentence or a step."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from ..calibration.store import Arrays
from ..calibration.traces import encode_item, read_answer
from ..contracts.models import TokenModel
from ..evaluation import Array, Item
from ..router import Router
from ..rows.reading import Read
from ..rows.signals import make_signals
from ..text.vocabulary import token_classes

Ints = npt.NDArray[np.int64]

_ENDS = re.compile(r"(?:[.!?…][\"'”’)\]*]*\s+|\n\s*)\Z")
_LOOK_BACK = 12
"""Tokens of context that tell where a sentence ends."""


@dataclass(frozen=True, slots=True)
class Positions:
    """Positions of answers; every field has shape (n,), over all answers of a cell one behind the other.

    ``prompt`` counts the prompts from 0, ``place`` the answer's tokens, of ``length``. ``token`` stands there;
    ``fast_choice`` (and ``tuned_choice``, -1 where no tuned model was read) is what the model alone would write
    behind the same text. The signals are the fast model's: ``entropy_nats``, ``max_prob`` and ``margin``.
    ``token_class`` is that of ``token``; ``begins`` is 1 for the first token of a sentence or a line.
    """

    prompt: Ints
    place: Ints
    length: Ints
    token: Ints
    fast_choice: Ints
    tuned_choice: Ints
    entropy_nats: Array
    max_prob: Array
    margin: Array
    token_class: Ints
    begins: Ints

    def __len__(self) -> int:
        return len(self.token)

    @property
    def mismatch(self) -> npt.NDArray[np.bool_]:
        """Where the collaboration's token is not the fast model's own."""
        return np.asarray(self.token != self.fast_choice)

    @property
    def mismatch_tuned(self) -> npt.NDArray[np.bool_] | None:
        """The same against the tuned fast model; None where it was not read."""
        return None if (self.tuned_choice < 0).any() else np.asarray(self.token != self.tuned_choice)

    @property
    def tenth(self) -> Ints:
        """Which tenth of its answer a position lies in, 0 to 9."""
        return 10 * self.place // self.length

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def read_positions(
    router: Router, items: Sequence[Item], answers: Sequence[Sequence[int]], start: int, tuned: TokenModel | None = None
) -> Arrays:
    """:class:`Positions` of answers, as arrays, by one prefill each; ``start`` is the first prompt's number.

    Nothing else may use the Router's models meanwhile.
    """
    shared = router.shared
    words = shared.fast if shared else router.fast.tokenizer
    classes = token_classes(router.fast.tokenizer, shared.special_ids if shared else frozenset())
    alignment = shared.fast_row if shared else None
    columns: dict[str, list[Any]] = {field.name: [] for field in fields(Positions)}
    wanted, choice = Read(signals=True, top_k=2, alignment=alignment), Read(alignment=alignment)
    for number, (item, ids) in enumerate(zip(items, answers, strict=True), start):
        rows = read_answer(router.fast, encode_item(words, item), ids, lambda _: wanted) if ids else []
        choices = [-1] * len(ids)
        if tuned is not None and ids:
            own = read_answer(tuned, encode_item(tuned.tokenizer, item), ids, lambda _: choice)
            choices = [row.argmax for row in own]
        signals = [make_signals(row, 0) for row in rows]
        columns["prompt"] += [number] * len(ids)
        columns["place"] += range(len(ids))
        columns["length"] += [len(ids)] * len(ids)
        columns["token"] += ids
        columns["fast_choice"] += [row.argmax for row in rows]
        columns["tuned_choice"] += choices
        for name in ("entropy_nats", "max_prob", "margin"):
            columns[name] += [getattr(one, name) for one in signals]
        columns["token_class"] += classes[list(ids)].tolist()
        columns["begins"] += beginnings([router.fast.tokenizer.piece(token) for token in ids])
    kinds = {"entropy_nats": np.float64, "max_prob": np.float64, "margin": np.float64}
    return {name: np.array(column, kinds.get(name, np.int64)) for name, column in columns.items()}


def beginnings(pieces: Sequence[bytes]) -> list[int]:
    """1 for each token that begins a sentence or a line (a step of a solution), the first token included.

    A sentence begins behind ``.``, ``!`` or ``?`` and white space, which may be the token's own; a decimal point ends
    none.
    """
    found = []
    for at, piece in enumerate(pieces):
        text = piece.decode(errors="replace")
        before = b"".join(pieces[max(at - _LOOK_BACK, 0) : at]).decode(errors="replace")
        lead = text[: len(text) - len(text.lstrip())]
        # White space alone begins nothing: what follows it does.
        found.append(int(at == 0 or (bool(text.strip()) and bool(_ENDS.search(before + lead)))))
    return found
