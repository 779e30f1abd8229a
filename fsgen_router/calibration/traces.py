"""What both models think at every position of an answer: one prefill each, no stepping."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..contracts.models import TokenModel, Work
from ..contracts.policy import Context
from ..contracts.text_models import reads_tokens
from ..contracts.tokenizer import Tokenizer
from ..errors import ConfigurationError
from ..evaluation import Array, Item
from ..pairing import RunForwards
from ..policies.features import feature_matrix
from ..router import Router
from ..rows.reading import Read, Row
from ..rows.signals import TOP_K, Signals, make_signals
from ..text.vocabulary import SharedVocabulary, token_classes
from .answers import CHUNK, Answers, OnItems
from .store import Arrays, WorkDirectory, join

_FORWARD = 256
"""Tokens read in one forward: bounds the rows of logits that a backend holds at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traces:
    """Positions of answers. Every field is an array over them, shape (n,) unless said otherwise.

    ``prompt`` counts the prompts from 0, ``round`` the rounds of collecting (0: the slow model's own
    answers). ``token`` is what stands there; ``since_escalation`` are the tokens since the slow model
    last wrote. ``entropy_nats`` to ``top_logprobs`` (shape (n, TOP_K), padded with -1 and -inf) are the
    fast model's reductions, ``token_class`` the class of its choice ``top_ids[:, 0]``.
    ``slow_choice`` is the slow model's choice after the same tokens, ``slow_logprob`` its
    log-probability and ``slow_logprob_of_fast`` that of the fast model's choice, both under the slow
    model, in nats; -1 and NaN where the slow model was not asked. ``hidden`` are the fast model's hidden states, shape
    (n, n_embd), where they were read.
    """

    round: npt.NDArray[np.int64]
    prompt: npt.NDArray[np.int64]
    position: npt.NDArray[np.int64]
    token: npt.NDArray[np.int64]
    since_escalation: npt.NDArray[np.int64]
    token_class: npt.NDArray[np.int64]
    entropy_nats: npt.NDArray[np.float64]
    varentropy: npt.NDArray[np.float64]
    log_partition: npt.NDArray[np.float64]
    top_ids: npt.NDArray[np.int64]
    top_logprobs: npt.NDArray[np.float64]
    slow_choice: npt.NDArray[np.int64]
    slow_logprob: npt.NDArray[np.float64]
    slow_logprob_of_fast: npt.NDArray[np.float64]
    hidden: npt.NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.prompt)

    @property
    def fast_choice(self) -> npt.NDArray[np.int64]:
        return self.top_ids[:, 0]

    @property
    def answer(self) -> npt.NDArray[np.int64]:
        """Which answer a position belongs to, from 0: what may not be torn apart when data are split."""
        return np.cumsum(self.position == 0) - 1

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: array for name, array in arrays.items() if array is not None}

    def select(self, chosen: npt.NDArray[Any]) -> Traces:
        """The positions that a mask or an index array names."""
        return Traces(**{name: array[chosen] for name, array in self.to_arrays().items()})

    def signals(self) -> Iterator[Signals]:
        """Signals as serving would make them, position by position, but for hidden states."""
        columns = (self.entropy_nats, self.varentropy, self.log_partition, self.token_class)
        rows = zip(
            *(column.tolist() for column in columns), self.top_ids.tolist(), self.top_logprobs.tolist(), strict=True
        )
        for entropy, varentropy, log_partition, token_class, ids, logprobs in rows:
            known = sum(token >= 0 for token in ids)
            row = Row(
                token=ids[0],
                logprob=logprobs[0],
                argmax=ids[0],
                argmax_logprob=logprobs[0],
                log_partition=log_partition,
                entropy=entropy,
                varentropy=varentropy,
                top_ids=tuple(ids[:known]),
                top_logprobs=tuple(logprobs[:known]),
            )
            yield make_signals(row, token_class)

    def features(self) -> Array:
        """Rows of features, shape (n, F), made by the function that serves them; hidden states stand behind."""
        contexts = zip(self.position.tolist(), self.since_escalation.tolist(), strict=True)
        rows = feature_matrix(
            (signals, Context(position, since, 0, 0, _no_uniform))
            for signals, (position, since) in zip(self.signals(), contexts, strict=True)
        )
        # Here and not position by position: a Python number for each would take ten times the memory.
        return rows if self.hidden is None else np.concatenate([rows, self.hidden], axis=1, dtype=np.float64)

    def digest(self) -> str:
        """A short hash of everything in here but hidden states, to name what is made of it."""
        digest = hashlib.sha256()
        for name, array in replace(self, hidden=None).to_arrays().items():
            digest.update(f"{name}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]


def _no_uniform() -> float:
    raise AssertionError("features draw no random numbers")


def join_traces(parts: Sequence[Traces]) -> Traces:
    """Traces one behind the other."""
    return Traces(**join([part.to_arrays() for part in parts]))


# --- making them ---------------------------------------------------------------------------------


def local_slow(router: Router) -> TokenModel:
    """The slow model, whose choice at every position is read.

    Raises :class:`ConfigurationError` for one that gives only text.
    """
    slow = router.slow
    if not reads_tokens(slow):
        raise ConfigurationError(
            f"calibration reads the slow model's choice at every position, which {slow.name} does not give",
            hint="take a local slow model",
        )
    return slow


def encode_item(tokenizer: Tokenizer, item: Item) -> list[int]:
    """An item's prompt as a model reads it."""
    if item.messages is not None:
        return tokenizer.encode_chat(item.messages)
    return tokenizer.encode(item.prompt or "", add_bos=True)


def read_answer(
    model: TokenModel, prompt: Sequence[int], answer: Sequence[int], read: Callable[[int], Read]
) -> list[Row]:
    """The row behind which each token of ``answer`` was chosen, by one prefill (chunked where it is long).

    ``read(k)`` says what to read of the row before the answer's k-th token.
    """
    ids = [*prompt, *answer][:-1]
    first = len(prompt) - 1
    opened = model.open(ids)
    rows: list[Row] = []
    try:
        keep = min(opened.kept, first)
        while keep < len(ids):
            stop = min(keep + _FORWARD, len(ids))
            reads = [(at - keep, read(at - first)) for at in range(max(keep, first), stop)]
            rows += model.forward([Work(opened.sequence, keep, ids[keep:stop], reads)])[0]
            keep = stop
    finally:
        model.close(opened.sequence)
    return rows


def read_both(
    fast: TokenModel,
    slow: TokenModel | None,
    item: Item,
    answer: Sequence[int],
    *,
    shared: SharedVocabulary | None = None,
    hidden: bool = False,
    run: RunForwards = lambda _role, function: function(),
) -> tuple[list[Row], list[Row]]:
    """Both models' rows behind which each token of an answer was chosen: the fast one's with signals, the slow one's
    with the log-probability of the fast one's choice (none without a slow model). ``run`` reads them."""
    fast_words = shared.fast if shared else fast.tokenizer
    wanted = Read(signals=True, top_k=TOP_K, hidden=hidden, alignment=shared.fast_row if shared else None)
    fast_prompt = encode_item(fast_words, item)
    fast_rows: list[Row] = run("fast", lambda: read_answer(fast, fast_prompt, answer, lambda _: wanted))
    if slow is None:
        return fast_rows, []
    prompt, slow_row = encode_item(shared.slow if shared else slow.tokenizer, item), shared.slow_row if shared else None
    asked = [Read(ids=(row.argmax,), alignment=slow_row) for row in fast_rows]
    slow_rows: list[Row] = run("slow", lambda: read_answer(slow, prompt, answer, lambda k: asked[k]))
    return fast_rows, slow_rows


def trace_answer(
    fast: TokenModel,
    slow: TokenModel | None,
    item: Item,
    answer: Sequence[int],
    by_slow: Sequence[int] | None,
    *,
    classes: npt.NDArray[Any],
    shared: SharedVocabulary | None = None,
    number: int = 0,
    round: int = 0,
    hidden: bool = False,
) -> Traces:
    """Both models' views of one answer to one item, with ``hidden`` the fast one's hidden states; without ``slow`` the
    fast one's alone.

    ``shared`` says how their vocabularies relate (the Router's); None: they are the same.

    ``by_slow`` is 1 where the slow model wrote a token. None: the answer is the slow model's own, and
    counts as written by an oracle that escalates where the two choices differ, which writes the same.
    """
    fast_rows, slow_rows = read_both(fast, slow, item, answer, shared=shared, hidden=hidden)
    written = [f.argmax != s.argmax for f, s in zip(fast_rows, slow_rows, strict=True)] if by_slow is None else by_slow
    count = len(answer)
    none = np.full(count, np.nan)
    padding = TOP_K - len(fast_rows[0].top_ids)
    return Traces(
        round=np.full(count, round),
        prompt=np.full(count, number),
        position=np.arange(count),
        token=np.array(answer, np.int64),
        since_escalation=np.array(_since(written), np.int64),
        token_class=classes[[row.argmax for row in fast_rows]].astype(np.int64),
        entropy_nats=np.array([row.entropy for row in fast_rows]),
        varentropy=np.array([row.varentropy for row in fast_rows]),
        log_partition=np.array([row.log_partition for row in fast_rows]),
        top_ids=np.array([(*row.top_ids, *(-1,) * padding) for row in fast_rows], np.int64),
        top_logprobs=np.array([(*row.top_logprobs, *(-np.inf,) * padding) for row in fast_rows]),
        slow_choice=np.array([row.argmax for row in slow_rows] if slow else [-1] * count, np.int64),
        slow_logprob=np.array([row.argmax_logprob for row in slow_rows]) if slow else none,
        slow_logprob_of_fast=np.array([row.id_logprobs[0] for row in slow_rows]) if slow else none,
        hidden=np.array([row.hidden for row in fast_rows], np.float32) if hidden else None,
    )


def _since(written: Sequence[int | bool]) -> list[int]:
    """At each position the tokens since the last that the slow model wrote, or since the beginning."""
    counts, last = [], -1
    for position, slow in enumerate(written):
        counts.append(position - last - 1)
        if slow:
            last = position
    return counts


def trace_answers(
    router: Router,
    items: Sequence[Item],
    answers: Answers,
    *,
    work: WorkDirectory,
    name: str,
    round: int = 0,
    own: bool = False,
    hidden: bool = False,
    asks_slow: bool = True,
    on_items: OnItems | None = None,
) -> Traces:
    """Traces of answers to items, or those that ``work`` holds under ``name``.

    ``own`` says that the answers are the slow model's own; ``hidden`` has hidden states read, whose traces
    are kept apart. Without ``asks_slow`` they are of the fast model alone. Nothing else may use the Router's models
    meanwhile.
    """
    slow, shared = local_slow(router), router.shared
    classes = token_classes(router.fast.tokenizer, shared.special_ids if shared else frozenset())

    def compute(chunk: Sequence[Item], start: int) -> Arrays:
        parts = []
        for number, item in enumerate(chunk, start):
            parts.append(
                trace_answer(
                    router.fast,
                    slow if asks_slow else None,
                    item,
                    answers.ids[number],
                    None if own else answers.by_slow[number],
                    classes=classes,
                    shared=shared,
                    number=number,
                    round=round,
                    hidden=hidden,
                )
            )
            if on_items is not None:
                on_items(1)
        return join_traces(parts).to_arrays()

    name = f"{name}-hidden" if hidden else name
    return Traces(**work.in_chunks(name, items, compute, size=CHUNK, on_items=on_items))
