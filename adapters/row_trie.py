"""Rows that were read once are not read again: a trie of them, and a model with one in front.

Under greedy decoding a row is a function of the ids before it. Where many runs over the same prompts differ in
a few tokens, as candidates of a calibration do, most of what they ask for has been read::

    model = TrieModel(slow)          # a TokenModel like the one inside
    model.used                       # what was really read: positions, forwards, seconds

The model inside is asked only where a prefix is new, or where what is kept of its row does not tell what is
asked: an id outside the best ``top_k`` that nobody asked for before, signals or a hidden state that were not read
then. A whole row, a mask, a draw and a rule that compares whole rows are always read, and so is a row under another
:class:`~fsgen_router.rows.reading.Alignment` than the first one.

The first reading of a row stands; a later one only adds to it. Kernels for one token and for many differ in the
last digits on quantised models, so that without a trie two runs may part at a tie; over one trie they never do.
"""

from __future__ import annotations

import hashlib
import math
import struct
import threading
import time
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from fsgen_router.contracts.models import Opened, Rows, TokenModel, Work
from fsgen_router.errors import BackendError
from fsgen_router.rows.acceptance import Check, judge
from fsgen_router.rows.reading import UNREADABLE, Alignment, Floats, Read, Row
from fsgen_router.support.logs import log
from fsgen_router.support.waiting import Home, holding

from .sequences import SequencePool

Arrays: TypeAlias = Mapping[str, npt.NDArray[Any]]

TOP_K = 32
"""How many of a row's best ids are kept: of the slow model's rows, what the fast one chose is nearly always there."""
LIMIT_BYTES = 1 << 30

_ROOT, _UNKNOWN = 0, -1
# argmax, how many of the best were asked for, then natural logarithms: of the best, log-partition, entropy, varentropy
_HEAD = struct.Struct("<iidddd")
_NODE_BYTES, _ROW_BYTES, _OTHER_BYTES = 150, 50, 150  # of the containers' entries, as measured in CPython


@dataclass(slots=True)
class Used:
    """What a :class:`TrieModel` had the model inside read, and what it did not.

    ``positions``: tokens read, those that were read again included; ``forwards`` and their ``seconds``; ``read``
    and ``known``: rows that were asked for and had to be read, and those that were kept.
    """

    positions: int = 0
    forwards: int = 0
    seconds: float = 0.0
    read: int = 0
    known: int = 0

    def __sub__(self, other: Used) -> Used:
        return Used(
            self.positions - other.positions,
            self.forwards - other.forwards,
            self.seconds - other.seconds,
            self.read - other.read,
            self.known - other.known,
        )


class RowTrie:
    """Rows by the ids before them: a tree of tokens whose nodes keep what was read behind them.

    A row takes 12 bytes for each of its ``top_k`` best and about 250 more. Above ``limit_bytes`` nothing is added:
    what is new is then read each time.
    """

    def __init__(self, n_vocab: int, *, top_k: int = TOP_K, limit_bytes: int = LIMIT_BYTES) -> None:
        self.n_vocab, self.top_k, self.limit_bytes = n_vocab, top_k, limit_bytes
        self.bytes = 0
        self._children: dict[int, int] = {}
        self._keys = array("q", [0])
        """By node: its parent and its token, as one number."""
        self._rows: list[bytes | None] = [None]
        self._others: dict[int, float] = {}
        """Log-probabilities of ids that were asked for and are not among the best, by node and id."""
        self._hidden: dict[int, npt.NDArray[np.float32]] = {}
        self._alignment: Alignment | type | None = object
        self._saved = _Journal(nodes=1)
        self._nodes = hashlib.blake2b(digest_size=16)
        """Of all nodes that were taken away or put back: what a part says is about those."""

    def __len__(self) -> int:
        """How many rows are kept."""
        return sum(row is not None for row in self._rows)

    @property
    def full(self) -> bool:
        return self.bytes >= self.limit_bytes

    # --- nodes ---

    def walk(self, node: int, ids: Sequence[int]) -> list[int]:
        """The nodes of ``ids`` behind ``node``, made where they are new; -1 where there is no room for them."""
        found, children = [], self._children
        for token in ids:
            if node != _UNKNOWN:
                key = node * self.n_vocab + token
                child = children.get(key)
                node = self._add(key) if child is None else child
            found.append(node)
        return found

    def look(self, node: int, ids: Sequence[int]) -> list[int]:
        """The nodes of ``ids`` behind ``node``, as far as there are any; none is made."""
        found = []
        for token in ids:
            child = None if node == _UNKNOWN else self._children.get(node * self.n_vocab + token)
            if child is None:
                break
            found.append(node := child)
        return found

    def _add(self, key: int) -> int:
        if self.full:
            return _UNKNOWN
        node = self._children[key] = len(self._rows)
        self._keys.append(key)
        self._rows.append(None)
        self.bytes += _NODE_BYTES
        return node

    def has_row(self, node: int) -> bool:
        return node != _UNKNOWN and self._rows[node] is not None

    # --- rows ---

    def keeps(self, read: Read) -> bool:
        """Whether what is read depends on nothing but the ids before it."""
        if not read.warp.greedy or read.mask is not None:
            return False
        if self._alignment is object:
            self._alignment = read.alignment
        return read.alignment is self._alignment

    def find(self, node: int, read: Read) -> Row | None:
        """The row behind a node as it is read, None where what is kept does not tell."""
        if node == _UNKNOWN or read.full or not self.keeps(read):
            return None
        if read.check is not None and read.check.rule.needs_fast_row:
            return None
        blob = self._rows[node]
        if blob is None:
            return None
        argmax, asked, best, log_partition, entropy, varentropy = _HEAD.unpack_from(blob)
        count = (len(blob) - _HEAD.size) // 12
        if read.top_k > asked or (read.signals and math.isnan(entropy)):
            return None
        logprobs: tuple[float, ...] = ()
        if read.ids:
            try:
                logprobs = tuple([self._logprob(node, blob, count, token, argmax, best) for token in read.ids])
            except KeyError:
                return None
        hidden = self._hidden.get(node) if read.hidden else None
        if read.hidden and hidden is None:
            return None
        shown = min(read.top_k, count)
        row = Row(
            token=argmax,
            logprob=best,
            argmax=argmax,
            argmax_logprob=best,
            log_partition=log_partition,
            entropy=entropy if read.signals else math.nan,
            varentropy=varentropy if read.signals else math.nan,
            top_ids=struct.unpack_from(f"<{shown}i", blob, _HEAD.size) if shown else (),
            top_logprobs=struct.unpack_from(f"<{shown}d", blob, _HEAD.size + 4 * count) if shown else (),
            id_logprobs=logprobs,
            hidden=hidden,
        )
        if read.check is None:
            return row
        try:
            draft = self._logprob(node, blob, count, read.check.token, argmax, best)
        except KeyError:
            return None
        accepted, token = _judged(read.check, argmax, draft, best)
        return replace(row, token=token, logprob=draft if token == read.check.token else best, accepted=accepted)

    def _logprob(self, node: int, blob: bytes, count: int, token: int, argmax: int, best: float) -> float:
        if token == argmax:
            return best
        ids = struct.unpack_from(f"<{count}i", blob, _HEAD.size)
        if token in ids:
            at = _HEAD.size + 4 * count + 8 * ids.index(token)
            return cast(float, struct.unpack_from("<d", blob, at)[0])
        return self._others[node * self.n_vocab + token]

    def wider(self, read: Read) -> Read:
        """The read that also tells what is kept of a row."""
        if not self.keeps(read):
            return read
        judged = () if read.check is None or read.check.token in read.ids else (read.check.token,)
        return replace(read, top_k=max(read.top_k, self.top_k), ids=(*read.ids, *judged))

    def add(self, node: int, read: Read, row: Row) -> None:
        """Keep what ``read``, as :meth:`wider` made it, told of the row behind a node: all of a row that is new, and
        of another what was not known."""
        if node == _UNKNOWN or self.full or not self.keeps(read) or not math.isfinite(row.log_partition):
            return
        blob = self._rows[node]
        if blob is None:
            blob = self._set(node, _packed(read.top_k, row))
        elif read.top_k > _HEAD.unpack_from(blob)[1] or (read.signals and math.isnan(_HEAD.unpack_from(blob)[4])):
            blob = self._set(node, _completed(blob, read.top_k, row))
        known = struct.unpack_from(f"<{(len(blob) - _HEAD.size) // 12}i", blob, _HEAD.size)
        for token, logprob in zip(read.ids, row.id_logprobs, strict=True):
            if token not in known:
                self._note(node, token, logprob)
        if row.hidden is not None and node not in self._hidden:
            self._hidden[node] = row.hidden
            self._saved.hidden.append(node)
            self.bytes += row.hidden.nbytes + _OTHER_BYTES

    def _set(self, node: int, blob: bytes) -> bytes:
        before = self._rows[node]
        self.bytes += len(blob) - len(before) if before is not None else len(blob) + _ROW_BYTES
        self._rows[node] = blob
        self._saved.rows.append(node)
        return blob

    def _note(self, node: int, token: int, logprob: float) -> None:
        key = node * self.n_vocab + token
        if key not in self._others:
            self._others[key] = logprob
            self._saved.others.append(key)
            self.bytes += _OTHER_BYTES

    # --- on disk ---

    def take_new(self) -> Arrays | None:
        """What was added since this was last called, as arrays; None where nothing was."""
        saved, self._saved = self._saved, _Journal(nodes=len(self._rows))
        rows = list(dict.fromkeys(saved.rows))
        if saved.nodes == len(self._rows) and not (rows or saved.others or saved.hidden):
            return None
        blobs = [self._rows[node] or b"" for node in rows]
        states = [self._hidden[node] for node in saved.hidden]
        behind, keys = self._nodes.hexdigest(), np.array(self._keys[saved.nodes :], np.int64)
        self._nodes.update(keys.tobytes())
        return {
            "behind": np.frombuffer(behind.encode(), np.uint8),
            "keys": keys,
            "rows": np.array(rows, np.int64),
            "row_bytes": np.array([len(blob) for blob in blobs], np.int64),
            "data": np.frombuffer(b"".join(blobs), np.uint8),
            "others": np.array(saved.others, np.int64),
            "other_logprobs": np.array([self._others[key] for key in saved.others], np.float64),
            "hidden": np.array(saved.hidden, np.int64),
            "hidden_states": np.array(states, np.float32) if states else np.empty((0, 0), np.float32),
        }

    def put_back(self, arrays: Arrays) -> bool:
        """Take what :meth:`take_new` gave, in its order; False, and nothing is taken, where it does not follow on."""
        if arrays["behind"].tobytes().decode() != self._nodes.hexdigest():
            return False
        self._nodes.update(arrays["keys"].tobytes())
        for key in arrays["keys"].tolist():
            self._children[key] = len(self._rows)
            self._keys.append(key)
            self._rows.append(None)
        data, at = arrays["data"].tobytes(), 0
        for node, size in zip(arrays["rows"].tolist(), arrays["row_bytes"].tolist(), strict=True):
            self._set(node, data[at : at + size])
            at += size
        for key, logprob in zip(arrays["others"].tolist(), arrays["other_logprobs"].tolist(), strict=True):
            node, token = divmod(key, self.n_vocab)
            self._note(node, token, logprob)
        for node, state in zip(arrays["hidden"].tolist(), arrays["hidden_states"], strict=True):
            self._hidden[node] = state
            self.bytes += state.nbytes + _OTHER_BYTES
        self.bytes += _NODE_BYTES * len(arrays["keys"])
        self._saved = _Journal(nodes=len(self._rows))
        return True


@dataclass(slots=True)
class _Journal:
    """What was added since it was last written."""

    nodes: int
    rows: list[int] = field(default_factory=list)
    others: list[int] = field(default_factory=list)
    hidden: list[int] = field(default_factory=list)


def _packed(asked: int, row: Row) -> bytes:
    count = len(row.top_ids)
    head = _HEAD.pack(row.argmax, asked, row.argmax_logprob, row.log_partition, row.entropy, row.varentropy)
    return head + struct.pack(f"<{count}i{count}d", *row.top_ids, *row.top_logprobs)


def _completed(blob: bytes, asked: int, row: Row) -> bytes:
    """A kept row with what a later reading tells besides: the first one's numbers stand where there are any."""
    argmax, first_asked, best, log_partition, entropy, varentropy = _HEAD.unpack_from(blob)
    if math.isnan(entropy):
        entropy, varentropy = row.entropy, row.varentropy
    head = _HEAD.pack(argmax, max(asked, first_asked), best, log_partition, entropy, varentropy)
    if asked <= first_asked:
        return head + blob[_HEAD.size :]
    count = len(row.top_ids)
    return head + struct.pack(f"<{count}i{count}d", *row.top_ids, *row.top_logprobs)


def _judged(check: Check, argmax: int, draft_logprob: float, best_logprob: float) -> tuple[bool, int]:
    """What a rule says that needs no whole row, under greedy decoding."""

    def distributions(fast: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        raise AssertionError("the rule needs no whole row")

    return judge(
        check,
        drawn=argmax,
        draft_logprob=draft_logprob,
        best_logprob=best_logprob,
        redraw=lambda _uniform: argmax,
        distributions=distributions,
    )


@dataclass(slots=True)
class _Sequence:
    """A sequence as it is asked for, and the one of the model inside that follows it as far as it has to."""

    nodes: list[int] = field(default_factory=list)
    inside: int = -1
    agreed: int = 0
    """Tokens of this sequence that the one inside holds."""


@dataclass(slots=True)
class _Missing:
    """Rows of one work that have to be read: ``reads`` are (position, read, numbers in the work's reads)."""

    work: Work
    rows: Rows
    reads: list[tuple[int, Read, int | None]]


class TrieModel:
    """A :class:`~fsgen_router.contracts.models.TokenModel` that keeps the rows of the one inside in a :class:`RowTrie`.

    Its sequences hold what they are told to, and the model inside reads it only when a row is needed that is not
    known: then all that it lacks, in one piece. A forward that needs no such row costs no forward; one that
    does may cost more than its own tokens. The rows of an answer that are passed on the way are read and kept as well.
    Tokens that a model without rewind would read again are reported as it would.
    """

    def __init__(self, model: TokenModel, trie: RowTrie | None = None) -> None:
        self._model = model
        self.trie = RowTrie(model.tokenizer.n_vocab) if trie is None else trie
        self.used = Used()
        self.name, self.tokenizer, self.n_params = model.name, model.tokenizer, model.n_params
        self.n_ctx, self.n_seq, self.capabilities = model.n_ctx, model.n_seq, model.capabilities
        self.template_digest: str | None = getattr(model, "template_digest", None)
        self._pool = SequencePool(self.n_seq, self.n_ctx, self.tokenizer.n_vocab, rewinds=self.capabilities.rewind)
        self._sequences = [_Sequence() for _ in range(self.n_seq)]
        self._lock, self._home = threading.Lock(), Home()
        self._closed = self._told = False

    @property
    def identity(self) -> Mapping[str, str] | None:
        """What the model inside says that it is."""
        found: Mapping[str, str] | None = getattr(self._model, "identity", None)
        return found

    # --- sequences ---

    def open(self, ids: Sequence[int]) -> Opened:
        self._home.require(self.name)
        self._require_alive()
        return self._pool.open(ids)

    def close(self, sequence: int) -> None:
        if self._home.left:
            return
        held = self._sequences[sequence]
        inside, held.inside, held.agreed = held.inside, -1, 0
        if inside >= 0:
            self._model.close(inside)
        self._pool.close(sequence)

    def shutdown(self) -> None:
        self._closed = True
        self._model.shutdown()

    def _require_alive(self) -> None:
        if self._closed:
            raise BackendError(f"{self.name} was shut down")

    def take_new(self) -> Arrays | None:
        """What the trie has added since this was last called (:meth:`RowTrie.take_new`), between forwards."""
        with holding(self._lock):
            return self.trie.take_new()

    def knows(self, work: Work) -> bool:
        """Whether a work of an open sequence costs no forward: all its rows are known. Whoever batches works does
        well to take those first, so that the others meet."""
        nodes = self._sequences[work.sequence].nodes
        if not 0 <= work.keep <= len(nodes):
            return False
        found = self.trie.look(nodes[work.keep - 1] if work.keep else _ROOT, work.ids)
        return all(index < len(found) and self.trie.find(found[index], read) for index, read in work.reads)

    # --- forward ---

    def forward(self, works: Sequence[Work]) -> list[list[Row]]:
        self._home.require(self.name)
        with holding(self._lock):
            self._require_alive()
            try:
                return self._forward(works)
            except BaseException:
                # What failed inside holds nothing any more, and what did not is read again.
                for work in works:
                    if self._pool.forget(work.sequence):
                        held = self._sequences[work.sequence]
                        held.nodes, held.agreed = [], 0
                raise

    def _forward(self, works: Sequence[Work]) -> list[list[Row]]:
        found: list[Rows] = []
        missing: list[_Missing] = []
        for work in works:
            rewound = self._pool.begin(work)
            held = self._sequences[work.sequence]
            del held.nodes[work.keep :]
            held.agreed = min(held.agreed, work.keep)
            held.nodes += self.trie.walk(held.nodes[-1] if held.nodes else _ROOT, work.ids)
            rows = [self.trie.find(held.nodes[work.keep + index], read) for index, read in work.reads]
            again = work.keep if rewound and not self.capabilities.rewind else 0
            found.append(Rows([UNREADABLE if row is None else row for row in rows], reread=again))
            wanted = [
                (work.keep + index, self.trie.wider(read), number)
                for number, ((index, read), row) in enumerate(zip(work.reads, rows, strict=True))
                if row is None
            ]
            self.used.known += len(rows) - len(wanted)
            if wanted:
                missing.append(_Missing(work, found[-1], sorted(wanted, key=lambda read: read[0])))
        if len({work.sequence for work in works}) < len(works):
            raise BackendError("a sequence has two works in one forward")
        for work in works:
            self._pool.extend(work.sequence, work.ids)
        if missing:
            self._read(missing)
        return cast(list[list[Row]], found)

    def _read(self, missing: Sequence[_Missing]) -> None:
        """Have the model inside read what rows are missing, in one forward, and keep them."""
        asked = [self._catch_up(one) for one in missing]
        began = time.perf_counter()
        results = self._model.forward(asked)
        self.used.seconds += time.perf_counter() - began
        self.used.forwards += 1
        for one, work, rows in zip(missing, asked, results, strict=True):
            held = self._sequences[one.work.sequence]
            held.agreed = work.keep + len(work.ids)
            self.used.positions += len(work.ids) + (rows.reread if isinstance(rows, Rows) else 0)
            for (position, read, number), row in zip(one.reads, rows, strict=True):
                node = held.nodes[position]
                self.trie.add(node, read, row)
                if number is not None:
                    self.used.read += 1
                    original = one.work.reads[number][1]
                    # As it is kept, where it is: a row that was known in part stands as it was first read.
                    one.rows[number] = self.trie.find(node, original) or _narrower(row, original)
        if self.trie.full and self.trie.limit_bytes and not self._told:
            self._told = True
            log.warning("rows_full", model=self.name, bytes=self.trie.bytes)

    def _catch_up(self, one: _Missing) -> Work:
        """The work that brings the sequence inside to the last missing row; rows on the way are added to it."""
        held, first, last = self._sequences[one.work.sequence], one.reads[0][0], one.reads[-1][0]
        ids = self._pool.held(one.work.sequence)[: last + 1]
        if held.inside < 0:
            opened = self._model.open(ids)
            held.inside, held.agreed = opened.sequence, opened.kept
        keep = min(held.agreed, first)
        if last - keep >= len(one.reads):
            one.reads = sorted([*one.reads, *self._on_the_way(one, keep, last)], key=lambda read: read[0])
        more = one.work.more if last + 1 == one.work.keep + len(one.work.ids) else 0
        return Work(held.inside, keep, ids[keep:], [(position - keep, read) for position, read, _ in one.reads], more)

    def _on_the_way(self, one: _Missing, start: int, stop: int) -> list[tuple[int, Read, None]]:
        """Reads of unknown rows of the answer, which begins at the latest where a row was asked for before."""
        nodes, has_row = self._sequences[one.work.sequence].nodes, self.trie.has_row
        read = one.reads[-1][1]
        if not self.trie.keeps(read) or self.trie.full:
            return []
        asked = {position for position, *_ in one.reads}
        begins = next((position for position in range(stop) if has_row(nodes[position])), stop)
        plain = replace(read, ids=(), check=None, full=False)
        return [
            (position, plain, None)
            for position in range(max(begins, start), stop)
            if position not in asked and not has_row(nodes[position])
        ]


def _narrower(row: Row, read: Read) -> Row:
    """A row with what was asked for, and not all that was read."""
    return replace(
        row,
        top_ids=row.top_ids[: read.top_k],
        top_logprobs=row.top_logprobs[: read.top_k],
        id_logprobs=row.id_logprobs[: len(read.ids)],
    )
