"""A model on one llama.cpp context."""

from __future__ import annotations

import ctypes
import operator
import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Unpack, cast

import numpy as np
from llama_cpp import __version__ as llama_cpp_version
from llama_cpp import llama_cpp as lib

from fsgen_router.contracts.models import Capabilities, Opened, Rows, Work
from fsgen_router.errors import BackendError, ConfigurationError
from fsgen_router.rows.reading import UNREADABLE, Floats, Row, reduce_row
from fsgen_router.support.digests import sampled_digest
from fsgen_router.support.options import checked
from fsgen_router.support.waiting import Home, holding

from ..chat_template import template_digest, template_text
from ..gguf_files import shards_of
from ..sequences import SequencePool
from .batch import MAX_OUTPUTS, SPARE, Batch, Segment, Wanted, computations, neighbours
from .files import locate
from .ggml import devices, make_scratch
from .loading import add_lora, device_of, load_model, make_context, require_devices
from .native import Native
from .options import LlamaCppKeywords, LlamaCppOptions
from .tokenizer import LlamaCppTokenizer

# Where hidden states are read, llama.cpp makes an output of every token. Up to so many that nobody wants cost
# less than a decode of their own.
_SPARE_OUTPUTS = 16

_at, _order = operator.attrgetter("at"), operator.attrgetter("hidden", "sequence")


class LlamaCppModel:
    """A :class:`~fsgen_router.contracts.models.TokenModel` on one llama.cpp context."""

    def __init__(self, where: str | os.PathLike[str], /, **options: Unpack[LlamaCppKeywords]) -> None:
        self.options = checked(LlamaCppOptions, options, error=ConfigurationError)
        template = self.options.chat_template and template_text(self.options.chat_template)
        self.template_digest = template_digest(template, self.options.chat_template_kwargs)
        path = locate(os.fspath(where))
        require_devices(self.options)
        adapters = {locate(adapter): scale for adapter, scale in self.options.lora.items()}
        self._files = [path.with_name(name) for name in shards_of(path.name) or [path.name]] + list(adapters)
        # With an adapter it is another model: a policy is calibrated for the one or the other.
        self.name = "+".join([path.name, *(adapter.name for adapter in adapters)])
        self._home = Home()
        context: Any = None
        model = load_model(path, self.options)
        try:
            context, self.n_ctx = make_context(model, self.name, self.options)
            if adapters:
                add_lora(model, context, self.name, adapters)
        except BaseException:
            if context is not None:
                lib.llama_free(context)
            lib.llama_model_free(model)
            raise
        self._context = context
        self._native = Native(model, context, self.name)
        self._lock = self._native.forwards
        self.tokenizer = LlamaCppTokenizer(
            self._native, self.name, template=template, variables=self.options.chat_template_kwargs
        )
        if template or self.options.chat_template_kwargs:
            _ = self.tokenizer.template  # checked now, and not at the first conversation
        self._memory = lib.llama_get_memory(context)
        self.n_params: int = lib.llama_model_n_params(model)
        self.n_seq = self.options.n_seq
        device, device_share = device_of(context, self.options)
        self.capabilities = Capabilities(
            device=device,
            device_share=device_share,
            rewind=not (lib.llama_model_is_recurrent(model) or lib.llama_model_is_hybrid(model)),
            hidden_size=lib.llama_model_n_embd_out(model),
        )
        self._pool = SequencePool(self.n_seq, self.n_ctx, self.tokenizer.n_vocab, rewinds=self.capabilities.rewind)
        self._scratch = make_scratch(lib._lib)
        self._batch = Batch(self.options.n_batch)
        # A pointer as a plain integer, without ctypes' own wrapping of every row.
        self._logits_at, self._hidden_at = (lib._lib[f"llama_get_{name}_ith"] for name in ("logits", "embeddings"))
        for function in (self._logits_at, self._hidden_at):
            function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_int32], ctypes.c_void_p
        self._views: dict[tuple[int, int], Floats] = {}
        self._reads_hidden = False

    @cached_property
    def identity(self) -> dict[str, str]:
        """What its times depend on beside the machine: files, build and devices of llama.cpp, options."""
        return {
            "backend": f"llama_cpp {llama_cpp_version}",
            "files": sampled_digest(self._files),
            "build": lib.llama_print_system_info().decode(errors="replace"),
            "devices": ", ".join(devices(lib._lib)) if self.options.n_gpu_layers else "",
            "options": self.options.model_dump_json(exclude={"chat_template", "chat_template_kwargs"}),
        }

    # --- sequences ---

    def open(self, ids: Sequence[int]) -> Opened:
        self._home.require(self.name)
        with holding(self._lock):
            self._native.require()
            return self._pool.open(ids)

    def close(self, sequence: int) -> None:
        self._pool.close(sequence)  # without the lock, which others' forwards hold

    def shutdown(self) -> None:
        if self._home.left:
            return
        with holding(self._native.forwards), holding(self._native.vocabulary):
            self._native.free()

    # --- forward ---

    def forward(self, works: Sequence[Work]) -> list[list[Row]]:
        self._home.require(self.name)
        with holding(self._lock):
            self._native.require()
            rows = [Rows([UNREADABLE] * len(work.reads)) for work in works]
            try:
                segments: list[Segment] = []
                for number, work in enumerate(works):
                    rewound = self._pool.begin(work)
                    segments += self._segments(work, rows[number], rewound=rewound)
                    self._pool.extend(work.sequence, work.ids)
                # A decode either gives hidden states or does not: what needs none goes first.
                segments.sort(key=_order)
                segments, spare = self._together(segments) if len(segments) > 1 else (segments, [])
                try:
                    for segment in segments:
                        self._add(segment)
                    self._flush()
                finally:
                    for sequence, position in spare:
                        lib.llama_memory_seq_rm(self._memory, sequence, position, -1)
            except BaseException:
                # What the KV cache holds now is not known (Ctrl-C too): both sides forget.
                self._batch.clear()
                for work in works:
                    if self._pool.forget(work.sequence):
                        lib.llama_memory_seq_rm(self._memory, work.sequence, -1, -1)
                raise
            return cast(list[list[Row]], rows)

    def _segments(self, work: Work, rows: Rows, *, rewound: bool) -> list[Segment]:
        """Rewind a work's sequence, and cut its tokens where reads begin that want hidden states."""
        ids, start, reads = work.ids, work.keep, work.reads
        if rewound and not lib.llama_memory_seq_rm(self._memory, work.sequence, start, -1):
            # Recurrent memory cannot go back: read the kept prefix again.
            lib.llama_memory_seq_rm(self._memory, work.sequence, -1, -1)
            reads = [(at + start, read) for at, read in reads]
            rows.reread, ids, start = start, [*self._pool.held(work.sequence), *ids], 0
        wanted = [Wanted(index, rows, slot, read) for slot, (index, read) in enumerate(reads)]
        wanted.sort(key=_at)
        firsts = [wish.at for wish in wanted if wish.read.hidden]
        first = firsts[0] if firsts else 0
        if first <= _SPARE_OUTPUTS:
            return [Segment(work.sequence, start, ids, wanted, hidden=bool(firsts))]
        before = [wish for wish in wanted if wish.at < first]
        behind = [wish._replace(at=wish.at - first) for wish in wanted[len(before) :]]
        return [
            Segment(work.sequence, start, ids[:first], before, hidden=False),
            Segment(work.sequence, start + first, ids[first:], behind, hidden=True),
        ]

    def _together(self, segments: Sequence[Segment]) -> tuple[list[Segment], list[tuple[int, int]]]:
        """Segments in order, with spare tokens so that they are computed together, and where those begin.

        Segments of neighbours are made equally long, and idle sequences between them get as many tokens, where that
        costs less than what is saved.
        """
        if not self.capabilities.rewind or segments[0].hidden != segments[-1].hidden:
            return list(segments), []  # of both kinds, a sequence may have tokens in a later decode, too
        whole, spare = list[Segment](), list[tuple[int, int]]()
        for group in neighbours(segments):
            longest, token = max(len(segment.ids) for segment in group), group[0].ids[0]
            given = {segment.sequence: segment for segment in group}
            filled = [
                given.get(number) or Segment(number, len(self._pool.held(number)), [], [], group[0].hidden)
                for number in range(group[0].sequence, group[-1].sequence + 1)
            ]
            padding = sum(longest - len(segment.ids) for segment in filled)
            fits = all(segment.start + longest <= self.n_ctx for segment in filled)
            if not 0 < padding <= SPARE * (computations(group) - 1) or not fits:
                whole += group
                continue
            for segment in filled:
                if missing := longest - len(segment.ids):
                    spare.append((segment.sequence, segment.start + len(segment.ids)))
                    segment.ids = [*segment.ids, *[token] * missing]
            whole += filled
        return whole, spare

    def _add(self, segment: Segment) -> None:
        """Put a segment into the batch, decoding whenever it is full."""
        batch, ids, at = self._batch, segment.ids, 0
        if batch.hidden != segment.hidden:
            self._flush()
            batch.hidden = segment.hidden
        pending = list(segment.wanted)
        while at < len(ids):
            take = min(batch.room, len(ids) - at)
            if len(pending) > MAX_OUTPUTS:
                # At least one token, however many reads it has.
                take = max(min(take, pending[MAX_OUTPUTS].at - at), 1)
            base = batch.append(segment.sequence, segment.start + at, ids[at : at + take])
            while pending and pending[0].at < at + take:
                wish = pending.pop(0)
                batch.want(base + wish.at - at, wish)
            at += take
            if at < len(ids) or not batch.room or len(batch.wanted) >= MAX_OUTPUTS:
                self._flush()

    def _flush(self) -> None:
        batch = self._batch
        if not batch.struct.n_tokens:
            return
        if batch.hidden != self._reads_hidden:
            # Free between decodes of one kind; a change has llama.cpp plan its next decode anew.
            lib.llama_set_embeddings(self._context, batch.hidden)
            self._reads_hidden = batch.hidden
        status = lib.llama_decode(self._context, batch.struct)
        if status:
            reason = {1: "the KV cache is full", 2: "it was aborted", -1: "a position is out of order"}.get(status, "")
            raise BackendError(f"{self.name}: llama_decode returned {status} {reason}".rstrip())
        for index, (_, rows, slot, read) in batch.wanted:
            logits = self._view(self._logits_at(self._context, index), self.tokenizer.n_vocab)
            hidden = self._hidden_state(index) if read.hidden else None
            rows[slot] = reduce_row(logits, read, self._scratch, hidden)
        batch.clear()

    def _hidden_state(self, index: int) -> Floats:
        address, size = self._hidden_at(self._context, index), self.capabilities.hidden_size
        if not address or size is None:
            raise BackendError(f"{self.name} gives no hidden states")
        return self._view(address, size)

    def _view(self, address: int, size: int) -> Floats:
        """A row of logits or a hidden state where llama.cpp has it, valid until the next decode."""
        view = self._views.get((address, size))
        if view is None:
            if len(self._views) > 4096:
                self._views.clear()
            row = ctypes.cast(address, ctypes.POINTER(ctypes.c_float))
            view = self._views[address, size] = np.ctypeslib.as_array(row, (size,))
        return view
