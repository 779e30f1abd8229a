"""The public test doubles: a function is the model.

::

    from fsgen_router.adapters.scripted import ScriptedModel, ScriptedTextModel, ScriptedTokenizer

    def logits(ids):             # every token so far -> one row of shape (n_vocab,)
        return [2.0, 1.0, 0.0] if len(ids) % 2 else [1.0, 2.0, 0.0]

    tokenizer = ScriptedTokenizer([b"a", b"b", b"<end>"], eog=[2])
    model = ScriptedModel(logits, tokenizer)

    def pieces(request):         # a Continuation -> what streams in, piece by piece
        yield from ("b", "a")

    endpoint = ScriptedTextModel(pieces)

    def hidden(ids):             # optional: every token so far -> a hidden state of shape (hidden_size,)
        return [float(len(ids)), 1.0]

    model = ScriptedModel(logits, tokenizer, hidden=hidden, hidden_size=2)

They keep the whole contract (sequences, rewind, prefix reuse, reductions, errors), so what passes
with them fails on a real backend only for the backend's own reasons.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from fsgen_router.contracts.models import Capabilities, Opened, Work
from fsgen_router.contracts.text_models import (
    Continuation,
    ReasoningChunk,
    TextCapabilities,
    TextChunk,
    TextEnd,
    TextEvent,
)
from fsgen_router.contracts.tokenizer import Turn
from fsgen_router.errors import BackendError, ConfigurationError, InvalidRequest
from fsgen_router.rows.reading import Floats, Read, Row, Scratch, reduce_row
from fsgen_router.support.waiting import Home, holding

from .sequences import SequencePool

Script = Callable[[Sequence[int]], Floats]
TextScript = Callable[[Continuation], Iterable[str | ReasoningChunk]]


class ScriptedTokenizer:
    """A vocabulary given as a list of pieces; text is cut by the longest matching piece."""

    def __init__(self, pieces: Sequence[bytes], *, eog: Iterable[int], special: Iterable[int] = ()) -> None:
        self.pieces = tuple(pieces)
        self.eog_ids = frozenset(eog)
        self.special_ids = frozenset(special) | self.eog_ids
        self.unused_ids: frozenset[int] = frozenset()

    @property
    def n_vocab(self) -> int:
        return len(self.pieces)

    def piece(self, token: int) -> bytes:
        return self.pieces[token]

    @cached_property
    def _ids(self) -> dict[bytes, int]:
        return {p: i for i, p in enumerate(self.pieces) if i not in self.special_ids}

    def encode(self, text: str, *, add_bos: bool, parse_special: bool = False) -> list[int]:
        data, at, ids = text.encode(), 0, []
        longest = max(map(len, self._ids))
        while at < len(data):
            for size in range(min(longest, len(data) - at), 0, -1):
                token = self._ids.get(data[at : at + size])
                if token is not None:
                    ids.append(token)
                    at += size
                    break
            else:
                raise InvalidRequest(f"the scripted vocabulary has no piece for {data[at : at + 1]!r}")
        return ids

    def encode_chat(self, messages: Sequence[Turn], chat_template_kwargs: Mapping[str, Any] | None = None) -> list[int]:
        return [token for m in messages for token in self.encode(m["content"], add_bos=False)]


class ScriptedModel:
    """A :class:`~fsgen_router.contracts.models.TokenModel` whose logits are ``script(ids)``.

    ``works`` records every work of every forward and ``forwards`` counts those, for tests. ``fail_after``
    makes the forward with that number (from 0) and all later ones raise :class:`BackendError`. With ``hidden``
    reads may ask for hidden states, of shape (``hidden_size``,). ``device`` and ``device_share`` are what its
    capabilities say: models of one device take turns.
    """

    def __init__(
        self,
        script: Script,
        tokenizer: ScriptedTokenizer,
        *,
        name: str = "scripted",
        n_ctx: int = 4096,
        n_seq: int = 4,
        n_params: int = 1000,
        fail_after: int | None = None,
        hidden: Script | None = None,
        hidden_size: int | None = None,
        device: str | None = None,
        device_share: float = 1.0,
    ) -> None:
        self.script, self.tokenizer, self.name = script, tokenizer, name
        self.n_ctx, self.n_seq, self.n_params = n_ctx, n_seq, n_params
        if (hidden is None) != (hidden_size is None):
            raise ConfigurationError("hidden states and their size go together", hint="give hidden and hidden_size")
        self.hidden = hidden
        self.capabilities = Capabilities(hidden_size=hidden_size, device=device, device_share=device_share)
        self.works: list[Work] = []
        self._fail_after = fail_after
        self.forwards = 0
        self._pool = SequencePool(n_seq, n_ctx, tokenizer.n_vocab)
        self._scratch = Scratch()
        self._lock, self._home = threading.Lock(), Home()

    def open(self, ids: Sequence[int]) -> Opened:
        self._home.require(self.name)
        with holding(self._lock):
            return self._pool.open(ids)

    def forward(self, works: Sequence[Work]) -> list[list[Row]]:
        self._home.require(self.name)
        with holding(self._lock):
            number, self.forwards = self.forwards, self.forwards + 1
            try:
                if self._fail_after is not None and number >= self._fail_after:
                    raise BackendError(f"{self.name} was told to fail")
                rows = [self._run(work) for work in works]
            except BaseException:
                for work in works:
                    self._pool.forget(work.sequence)
                raise
            self.works.extend(works)
            return rows

    def _run(self, work: Work) -> list[Row]:
        self._pool.begin(work)
        rows: dict[int, Row] = {}
        held = self._pool.held(work.sequence)
        reads = dict(enumerate(work.reads))
        for index, token in enumerate(work.ids):
            self._pool.extend(work.sequence, [token])
            for number in [n for n, (at, _) in reads.items() if at == index]:
                logits = np.asarray(self.script(held), np.float32)
                if logits.shape != (self.tokenizer.n_vocab,):
                    raise ConfigurationError(f"the script gave shape {logits.shape}, not ({self.tokenizer.n_vocab},)")
                read = reads.pop(number)[1]
                rows[number] = reduce_row(logits, read, self._scratch, self._hidden_state(held, read))
        return [rows[number] for number in range(len(work.reads))]

    def _hidden_state(self, held: Sequence[int], read: Read) -> Floats | None:
        if not read.hidden:
            return None
        if self.hidden is None:
            raise BackendError(f"{self.name} gives no hidden states")
        state = np.asarray(self.hidden(held), np.float32)
        if state.shape != (self.capabilities.hidden_size,):
            raise ConfigurationError(
                f"the script gave a hidden state of shape {state.shape}, not ({self.capabilities.hidden_size},)"
            )
        return state

    def close(self, sequence: int) -> None:
        self._pool.close(sequence)  # without the lock, which others' forwards hold

    def shutdown(self) -> None:
        return None


class ScriptedTextModel:
    """A :class:`~fsgen_router.contracts.text_models.TextModel` that streams ``script(request)``.

    A piece is text or a ``ReasoningChunk``, and counts as a token: of more than
    ``max_tokens`` the rest is left out, and the stream ends with ``length``. ``requests`` records what was
    asked, ``closed_early`` how many streams were left. What the script raises is what the endpoint fails with.
    """

    def __init__(self, script: TextScript, *, name: str = "scripted-text", n_params: int | None = None) -> None:
        self.script, self.name, self.n_params = script, name, n_params
        self.capabilities = TextCapabilities(prefill=True)
        self.requests: list[Continuation] = []
        self.closed_early = 0
        self._home = Home()

    def stream(self, request: Continuation) -> Generator[TextEvent, None, None]:
        self._home.require(self.name)
        self.requests.append(request)
        written = thought = 0
        try:
            for piece in self.script(request):
                if written == request.max_tokens:
                    yield TextEnd("length", completion_tokens=written, reasoning_tokens=thought)
                    return
                written += 1
                thought += isinstance(piece, ReasoningChunk)
                yield TextChunk(piece) if isinstance(piece, str) else piece
        except GeneratorExit:
            self.closed_early += 1
            raise
        yield TextEnd("stop", completion_tokens=written, reasoning_tokens=thought)

    def shutdown(self) -> None:
        return None
