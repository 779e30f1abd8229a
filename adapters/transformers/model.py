"""A causal language model of transformers, with a memory for several sequences."""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, Unpack, cast

import torch
from transformers import AutoConfig
from transformers import __version__ as transformers_version

from fsgen_router.contracts.models import Opened, Rows, Work
from fsgen_router.errors import BackendError, ConfigurationError
from fsgen_router.rows.reading import UNREADABLE, Row, Scratch
from fsgen_router.support.digests import sampled_digest
from fsgen_router.support.options import checked
from fsgen_router.support.waiting import Home, holding

from ..chat_template import template_digest, template_text
from ..sequences import SequencePool
from .batches import Part, Pending
from .devices import device_of, give_back, records_graphs, require_memory, set_threads, share_of
from .errors import errors_of_loading, errors_of_working
from .graphs import Graphs, head_inputs
from .loading import context_length, load_model, require_memory_for_all
from .memories import Caches, Memory, Slots
from .options import TransformersKeywords, TransformersOptions
from .probing import probe, reads_in_pieces
from .reading import reduce_on_host, reduce_rows
from .slot_cache import Share, bytes_per_token, is_plain
from .source import locate
from .tokenizer import TransformersTokenizer
from .vocabulary import eog_ids, fast_tokenizer, said_by_gguf

_LOGIT_BYTES = 128 << 20  # rows of logits held at once, as float32: 220 at a vocabulary of 152,000


class TransformersModel:
    """A :class:`~fsgen_router.contracts.models.TokenModel` on a causal language model of transformers."""

    def __init__(self, where: str | os.PathLike[str], /, **options: Unpack[TransformersKeywords]) -> None:
        self.options = checked(TransformersOptions, options, error=ConfigurationError)
        template = self.options.chat_template and template_text(self.options.chat_template)
        self.template_digest = template_digest(template, self.options.chat_template_kwargs)
        source = self._source = locate(os.fspath(where), self.options)
        self.name = source.name
        self.device = device_of(self.options.device)
        set_threads(self.options.n_threads, self.device)
        self._lock, self._home = threading.Lock(), Home()
        self.n_seq = self.options.n_seq
        with errors_of_loading(source):
            self._config = AutoConfig.from_pretrained(source.where, **source.arguments)
            self.n_ctx = context_length(self._config.get_text_config(), self.name, self.options)
            require_memory_for_all(self._config, self.name, self.device, self.options, self.n_ctx)
            self._model: Any = load_model(source, self._config, self.device, self.options)
            takes = inspect.signature(self._model.forward).parameters
            self._takes_positions = "position_ids" in takes
            self._takes_rows = "logits_to_keep" in takes
            self._head: Any = self._model.get_output_embeddings()
            self._graphs: Graphs | None = None
            cache = "cache_params" if "cache_params" in takes else "past_key_values"
            with head_inputs(self._head) as states:
                probed, logits = probe(self._model, cache, self.device)
            width = logits.shape[-1]
            self._memory = self._remember(probed, cache)
            self.tokenizer = TransformersTokenizer(
                fast_tokenizer(source, self._config),
                self.name,
                width=width,
                eog_ids=eog_ids(self._model),
                template=template,
                variables=self.options.chat_template_kwargs,
                **said_by_gguf(source),
            )
            if template or self.options.chat_template_kwargs:
                _ = self.tokenizer.template  # checked now, and not at the first conversation
        self.n_params = int(self._model.num_parameters())
        if not states:
            self._head = None
        self.capabilities = replace(
            self._memory.capabilities,
            hidden_size=states[-1].shape[-1] if states else None,
            device=str(self.device),
            device_share=share_of(self.device),
        )
        # numpy is the faster one on the host, and MPS shares its memory.
        on_host = self.device.type in ("cpu", "mps")
        # No method of this very model: in a circle it would wait, dropped, for the garbage collector.
        self._reduce = partial(reduce_on_host, Scratch()) if on_host else reduce_rows
        self._pool = SequencePool(self.n_seq, self.n_ctx, self.tokenizer.n_vocab, rewinds=self.capabilities.rewind)
        self._n_rows = max(_LOGIT_BYTES // (4 * width), 1)

    def _remember(self, probed: Any, argument: str) -> Memory:
        """Memory for the sequences, in the shapes of the cache that a first forward has filled."""
        if is_plain(probed):
            per_token = bytes_per_token(probed)
            require_memory(self.name, self.device, weights=0.0, per_token=per_token, n_seq=self.n_seq, n_ctx=self.n_ctx)
            slots = Slots(probed, n_seq=self.n_seq, n_ctx=self.n_ctx)
            if self.options.cuda_graphs and records_graphs(self.device) and self._takes_positions:
                self._graphs = Graphs.of(self._model, self._head, slots.cache, probed, self.device, self.name)
            return slots
        in_pieces = reads_in_pieces(self._model, self._config, argument, self.device, self.name)
        return Caches(self._config, argument, in_pieces=in_pieces)

    @cached_property
    def identity(self) -> dict[str, str]:
        """What its times depend on beside the machine: its shape, device and libraries, options."""
        device = self.device
        return {
            "backend": f"transformers {transformers_version}, torch {torch.__version__}",
            "files": sampled_digest(self._source.weights) if self._source.weights else "",
            "config": self._config.to_json_string(use_diff=False),
            "parameters": f"{self.n_params} as {self._model.dtype}",
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "threads": str(torch.get_num_threads()) if device.type == "cpu" else "",
            "options": self.options.model_dump_json(exclude={"chat_template", "chat_template_kwargs"}),
        }

    # --- sequences ---

    def open(self, ids: Sequence[int]) -> Opened:
        self._home.require(self.name)
        with holding(self._lock):
            self._require_alive()
            return self._pool.open(ids)

    def close(self, sequence: int) -> None:
        self._pool.close(sequence)  # without the lock, which others' forwards hold

    def shutdown(self) -> None:
        if self._home.left:
            return
        with holding(self._lock):
            if self._model is not None:
                self._model = self._memory = self._head = self._graphs = None  # type: ignore[assignment]
                give_back(self.device)

    def _free(self) -> None:
        """What is held for speed alone."""
        if self._graphs is not None:
            self._graphs.forget()
        give_back(self.device)

    def _require_alive(self) -> None:
        if self._model is None:
            raise BackendError(f"{self.name} was shut down")

    # --- forward ---

    def forward(self, works: Sequence[Work]) -> list[list[Row]]:
        self._home.require(self.name)
        with holding(self._lock), torch.inference_mode():
            self._require_alive()
            rows = [Rows([UNREADABLE] * len(work.reads)) for work in works]
            try:
                with errors_of_working(self.name, self.device, self._free):
                    pending = self._begin(works, rows)
                    for parts in self._memory.plan(pending, n_batch=self.options.n_batch, n_rows=self._n_rows):
                        self._step(pending, parts, rows)
            except BaseException:
                # What the KV cache holds now is not known (Ctrl-C too): both sides forget.
                for work in works:
                    if self._pool.forget(work.sequence):
                        self._memory.forget(work.sequence)
                raise
            return cast(list[list[Row]], rows)

    def _begin(self, works: Sequence[Work], rows: Sequence[Rows]) -> list[Pending]:
        pending = []
        for work, found in zip(works, rows, strict=True):
            self._pool.begin(work)
            start = self._memory.rewind(work.sequence, work.keep)
            again = self._pool.held(work.sequence)[start:]
            found.reread = len(again)
            begun = Pending(work.sequence, start, [*again, *work.ids] if again else work.ids)
            for number, (index, read) in enumerate(work.reads):
                begun.reads.setdefault(index + len(again), []).append((number, read))
            pending.append(begun)
        if len({begun.sequence for begun in pending}) < len(pending):
            raise BackendError("a sequence has two works in one forward")
        for work in works:
            self._pool.extend(work.sequence, work.ids)
        return pending

    def _step(self, pending: Sequence[Pending], parts: Sequence[Part], rows: Sequence[Rows]) -> None:
        """One forward of the model, and what is read of it."""
        width = max(part.stop - part.start for part in parts)
        # (row of the batch, column, work, number of the read, read)
        reads = [
            (row, width - (part.stop - index), part.pending, number, read)
            for row, part in enumerate(parts)
            for index, asked in pending[part.pending].reads.items()
            if part.start <= index < part.stop
            for number, read in asked
        ]
        columns = sorted({column for _, column, *_ in reads})
        shares = [
            Share(work.sequence, work.start + part.start, work.ids[part.start : part.stop])
            for part in parts
            for work in (pending[part.pending],)
        ]
        logits, states = self._read(shares, columns or [width - 1], hidden=any(read.hidden for *_, read in reads))
        at = {column: index for index, column in enumerate(columns)}
        found = self._reduce(
            logits.flatten(0, 1)[:, : self.tokenizer.n_vocab],
            [(row * len(columns) + at[column], read) for row, column, *_, read in reads],
            states.flatten(0, 1) if states is not None else None,
        )
        for (*_, work, number, _read), reduced in zip(reads, found, strict=True):
            rows[work][number] = reduced
            if reduced is UNREADABLE:
                self._memory.spoil(pending[work].sequence)

    def _read(
        self, shares: Sequence[Share], columns: list[int], *, hidden: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits of the given columns, of shape (len(shares), len(columns), width of a row), and what the LM head read
        for them, if that is asked for."""
        if hidden and self._head is None:
            raise BackendError(f"{self.name} gives no hidden states")
        if self._graphs is not None and (replayed := self._graphs.read(shares)):
            logits, *states = (_of_columns(part, columns) for part in replayed)
            return logits, states[-1] if hidden else None
        inputs = self._memory.place(shares, self.device)
        if not self._takes_positions:
            inputs.pop("position_ids")
        # The common case needs no index on the device: the last token alone.
        last = columns == [inputs["input_ids"].shape[1] - 1]
        if self._takes_rows:
            inputs["logits_to_keep"] = 1 if last else torch.tensor(columns, device=self.device)
        with head_inputs(self._head if hidden else None) as states:
            logits = self._model(**inputs, use_cache=True).logits
        if self._takes_rows:
            return logits, states[-1] if hidden else None
        return _of_columns(logits, columns), _of_columns(states[-1], columns) if hidden else None


def _of_columns(states: torch.Tensor, columns: list[int]) -> torch.Tensor:
    """``states[:, columns]``; without an index on the device where they follow one another."""
    first, last = columns[0], columns[-1]
    return states[:, first : last + 1] if len(columns) == last + 1 - first else states[:, columns]
