"""Local models through transformers, on CUDA, CPU or another device of torch (extra ``transformers``).

``generate`` sees one request and keeps its loop to itself; this adapter calls the model's forward,
keeps every sequence's keys and values in place (:mod:`.slot_cache`), runs several sequences as one
batch, and reduces logits on the device that they live on (:mod:`.torch_reading`).
"""

from __future__ import annotations

import inspect
import json
import os
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from fsgen_router.contracts.models import Capabilities, Opened, Rows, Work
from fsgen_router.errors import (
    BackendError,
    ConfigurationError,
    FsgenError,
    ModelFileCorrupt,
    ModelLoadError,
    ModelNotFound,
    NotEnoughMemory,
)
from fsgen_router.rows.reading import UNREADABLE, Read, Row, Scratch, reduce_row
from fsgen_router.support.logs import log
from fsgen_router.support.machine import free_bytes, usable_cores
from fsgen_router.support.options import TemplateVariables, as_text, checked
from fsgen_router.support.waiting import Home, holding

from .sequences import SequencePool

try:
    import accelerate  # noqa: F401  # transformers loads onto a device, and reads GGUF files, through it
    import gguf
    import psutil  # noqa: F401  # free_bytes reads the memory through it
    import torch
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoTokenizer,
        DynamicCache,
        GgufConfig,
        PreTrainedTokenizerFast,
    )
    from transformers.utils import cached_file

    from .chat_template import template_text
except ImportError as error:
    raise ImportError(
        "the transformers backend needs the extra 'transformers': pip install 'fsgen-router[transformers]'"
    ) from error

from .shards import shards_of
from .slot_cache import Share, SlotCache, bytes_per_token, is_plain
from .torch_reading import reduce_rows
from .transformers_tokenizer import TransformersTokenizer

_LOGIT_BYTES = 128 << 20  # rows of logits held at once, as float32: 220 at a vocabulary of 152,000
# A forward costs about as much as this many tokens more in another one: what padding may cost to save it.
_PADDING = 64
_PROBED = 8
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def _parsed(value: object) -> object:
    """A JSON string becomes what it says, so that it can stand in a model string."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


class TransformersOptions(BaseModel):
    """How a model is loaded. The KV cache takes memory for ``n_ctx * n_seq`` tokens from the start."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_ctx: int | None = Field(None, ge=16, description="tokens per sequence; None: the model's own, at most 4096")
    n_seq: int = Field(1, ge=1, le=256, description="sequences (concurrent requests) held at once")
    n_batch: int = Field(512, ge=1, le=65_536, description="tokens per forward")
    n_threads: int | None = Field(
        None,
        ge=1,
        description="torch's threads on the CPU, for the whole process; None: as they are set, at most our cores",
    )
    device: str = Field("auto", description="cpu, cuda, cuda:1, mps, ...; auto: CUDA where there is one, else CPU")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto", description="of weights and KV cache; auto: as saved (from GGUF: float32)"
    )
    attn_implementation: str | None = Field(None, description="sdpa, eager, ...; None: transformers chooses")
    quantization_config: Annotated[dict[str, Any] | None, BeforeValidator(_parsed)] = Field(
        None, description="handed to transformers: a dict, or the same as JSON"
    )
    gguf_file: str | None = Field(None, description="the file of a folder or hub repository that holds the weights")
    chat_template: Annotated[str | None, BeforeValidator(as_text)] = Field(
        None, min_length=1, description="a Jinja file or text; None: the model's own"
    )
    chat_template_kwargs: TemplateVariables = Field(
        default_factory=dict, description="variables for the template: a dict, or the same as JSON"
    )
    trust_remote_code: bool = Field(False, description="run code that comes with the model")
    allow_pickle: bool = Field(False, description="load weights that are no safetensors; these can run code")


# --- where a model is ----------------------------------------------------------------------------

_HUB = re.compile(r"(?P<repo>[^/@]+(?:/[^/@]+)?)(?:@(?P<revision>[^@]+))?")


@dataclass(frozen=True, slots=True)
class _Source:
    """What transformers' ``from_pretrained`` takes to find a model."""

    name: str
    where: str
    arguments: dict[str, Any]
    on_hub: bool


def _locate(where: str, options: TransformersOptions) -> _Source:
    """A folder, a GGUF file, or ``owner/repo@revision`` on the hub."""
    try:
        path = Path(where).expanduser()
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # too long for a name, or ~nobody
        raise ModelNotFound(f"{where!r} is no path: {error}") from None
    remote = {"trust_remote_code": options.trust_remote_code}
    _require_whole(path.name if is_file else options.gguf_file)
    if is_file:
        _require_gguf(path)
        return _Source(path.name, str(path.parent), {**remote, "gguf_file": path.name}, on_hub=False)
    gguf_file = {"gguf_file": options.gguf_file} if options.gguf_file else {}
    if is_folder:
        _require_model_in(path, options.gguf_file)
        name = options.gguf_file or path.resolve().name
        return _Source(name, str(path), {**remote, **gguf_file}, on_hub=False)
    found = _HUB.fullmatch(where)
    if found is None or where[0] in ".~" or where.endswith(".gguf"):
        raise ModelNotFound(
            f"there is no model folder or GGUF file {where!r}", hint="check the path, or name a hub model: owner/repo"
        )
    revision = {"revision": found["revision"]} if found["revision"] else {}
    return _Source(where, found["repo"], {**remote, **gguf_file, **revision}, on_hub=True)


def _require_whole(gguf_file: str | None) -> None:
    """transformers reads one file, and would take a shard for a model without most of its weights."""
    if gguf_file is not None and len(shards := shards_of(gguf_file)) > 1:
        raise ConfigurationError(
            f"{gguf_file} is one of {len(shards)} shards, and transformers reads a model from one GGUF file",
            hint="load it as llama_cpp:, or merge the shards with llama.cpp's llama-gguf-split",
        )


def _require_gguf(path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}") from None
    if magic != b"GGUF":
        raise ModelFileCorrupt(f"{path} is not a GGUF file", hint="name the model's folder, or a GGUF file")


def _require_model_in(folder: Path, gguf_file: str | None) -> None:
    if gguf_file is not None:
        if not (folder / gguf_file).is_file():
            raise ModelNotFound(f"there is no {gguf_file} in {folder}")
        _require_gguf(folder / gguf_file)
    elif not (folder / "config.json").is_file():
        inside = ", ".join(sorted(path.name for path in folder.glob("*.gguf")))
        raise ModelNotFound(
            f"{folder} holds no model: there is no config.json in it",
            hint=f"name a file in it: {inside}" if inside else "save a model there with save_pretrained",
        )


@contextmanager
def _errors_of_loading(source: _Source) -> Iterator[None]:
    """Whatever transformers, the hub client or torch raise, as an error of this package."""
    name = source.name
    try:
        yield
    except FsgenError:
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise NotEnoughMemory(
            f"memory ran out while {name} was loaded: {_first_line(error)}",
            hint="a smaller dtype, quantization_config, n_ctx or n_seq, or another device",
        ) from None
    except ImportError as error:  # a package that only this model or this option needs
        raise ConfigurationError(f"{name} needs a package that is not installed: {_first_line(error)}") from None
    except OSError as error:
        if isinstance(error.__cause__, LocalEntryNotFoundError | OfflineModeIsEnabled):
            raise ModelNotFound(
                f"{name} is not in the local cache and the hub was not reached",
                hint="unset HF_HUB_OFFLINE, or use a folder",
            ) from None
        if "safetensors" in str(error):
            raise ModelNotFound(
                f"{name} has no safetensors: {_first_line(error)}",
                hint="allow_pickle=true loads other weights, which can run code: only from someone you trust",
            ) from None
        kind = ModelNotFound if source.on_hub else ModelFileCorrupt
        raise kind(f"{name} cannot be loaded: {_first_line(error)}") from None
    except Exception as error:
        said = _first_line(error)
        if "custom code" in str(error) or "trust_remote_code" in str(error):
            raise ConfigurationError(
                f"{name} comes with code of its own", hint="trust_remote_code=true runs it: read it first"
            ) from None
        if "for this kind of AutoModel" in said:
            raise ConfigurationError(f"{name} is no causal language model", hint="take a decoder") from None
        raise ModelFileCorrupt(f"{name} cannot be loaded: {said}", hint="is it complete?") from None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


# --- devices and memory --------------------------------------------------------------------------


def device_of(wanted: str) -> torch.device:
    """The device of that name, or :class:`ConfigurationError` with those that are here."""
    if wanted == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(wanted)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):  # torch says each in another way
        device = torch.device("meta")
    if device.type == "meta":
        here = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        here += ["mps"] if torch.backends.mps.is_available() else []
        raise ConfigurationError(f"there is no device {wanted!r} here", hint=f"available: {', '.join(here)}")
    return device


def _set_threads(wanted: int | None, device: torch.device) -> None:
    """As many as wanted. Torch counts the machine's cores where a container's quota allows fewer."""
    if wanted is None and device.type == "cpu" and torch.get_num_threads() > usable_cores():
        wanted = usable_cores()
    if wanted is not None:
        torch.set_num_threads(wanted)


def _free_bytes(device: torch.device) -> int | None:
    """What the device still has; None where nobody can say."""
    if device.type == "cpu":
        return free_bytes()
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + unused)
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return None


def _require_memory(name: str, device: torch.device, *, weights: float, per_token: int, n_seq: int, n_ctx: int) -> None:
    free = _free_bytes(device)
    cache = per_token * n_seq * n_ctx
    if free is None or weights + cache <= free:
        return
    parts = [f"weights {weights / 2**30:.1f} GiB"] if weights else []
    parts.append(f"KV cache {cache / 2**30:.1f} GiB for {n_seq} x {n_ctx} tokens")
    fits = int((free - weights) * 0.8 / per_token / n_seq) if per_token else 0
    raise NotEnoughMemory(
        f"{name} needs {(weights + cache) / 2**30:.1f} GiB on {device} ({', '.join(parts)}), {free / 2**30:.1f} GiB "
        f"are free: {(weights + cache - free) / 2**30:.1f} GiB short",
        hint=f"n_ctx={fits} would fit, or lower n_seq" if fits >= 16 else "a smaller dtype, or quantization_config",
    )


def _weight_bytes(model: Any, quantization: object) -> float:
    """What the weights take at least. How far a quantisation goes is its own business: 4 bits are the least."""
    parameters = [*model.parameters(), *model.buffers()]
    if quantization:
        return 0.5 * float(sum(parameter.numel() for parameter in parameters))
    return float(sum(parameter.numel() * parameter.element_size() for parameter in parameters))


# --- what a forward takes ------------------------------------------------------------------------


@dataclass(slots=True)
class _Pending:
    """A work that is being read: its ids from position ``start`` on, and the reads of each of them."""

    sequence: int
    start: int
    ids: Sequence[int]
    reads: dict[int, list[tuple[int, Read]]] = field(default_factory=dict)
    """Index into ``ids`` -> (number of the read in the work, the read)."""


@dataclass(frozen=True, slots=True)
class _Part:
    """Tokens of a pending work that are read in one step."""

    pending: int
    start: int
    stop: int


def plan_batches(
    lengths: Sequence[int], wanted: Sequence[Iterable[int]], *, n_batch: int, n_rows: int
) -> Iterator[list[_Part]]:
    """Steps that read ``lengths`` tokens, each a batch whose parts end in its last column.

    All end together. Where a shorter one would be padded by much, the longer ones go ahead in a step of
    their own. A step has at most ``n_batch`` columns times rows, and ``n_rows`` rows of logits: in each
    column that a work wants there is one for every part.
    """
    if not lengths:
        return
    width = max(lengths)
    joins = [width - length for length in lengths]
    columns = {join + index for join, indices in zip(joins, wanted, strict=True) for index in indices}
    for begin, end in _segments(joins, width):
        rows = [number for number, join in enumerate(joins) if join < end]
        at = begin
        while at < end:
            stop = _within(columns, at, min(at + max(n_batch // len(rows), 1), end), max(n_rows // len(rows), 1))
            yield [_Part(n, max(at - joins[n], 0), stop - joins[n]) for n in rows if joins[n] < stop]
            at = stop


def _within(wanted: Iterable[int], at: int, stop: int, most: int) -> int:
    """Where to stop, so that at most ``most`` of the wanted columns are read."""
    read = sorted(column for column in wanted if at <= column < stop)
    return read[most] if len(read) > most else stop


def _segments(joins: Sequence[int], width: int) -> Iterator[tuple[int, int]]:
    begin = 0
    for join in sorted(set(joins)):
        later = sum(other >= join for other in joins)
        if (join - begin) * later > _PADDING:
            yield begin, join
            begin = join
    yield begin, width


class _Memory(Protocol):
    """What a model remembers of its sequences between forwards."""

    capabilities: Capabilities

    def rewind(self, sequence: int, keep: int) -> int:
        """Go back to ``keep`` tokens; how many of them are really still there."""

    def plan(self, pending: Sequence[_Pending], *, n_batch: int, n_rows: int) -> Iterator[list[_Part]]: ...

    def place(self, shares: Sequence[Share], device: torch.device) -> dict[str, Any]:
        """What the model's forward takes."""

    def forget(self, sequence: int) -> None: ...


class _Slots:
    """Plain attention: every sequence in a slot, several in one batch."""

    capabilities = Capabilities(rewind=True)

    def __init__(self, probed: Any, *, n_seq: int, n_ctx: int) -> None:
        self._cache = SlotCache(probed, n_seq=n_seq, n_ctx=n_ctx)
        self.place = self._cache.place

    def rewind(self, sequence: int, keep: int) -> int:
        return keep

    def plan(self, pending: Sequence[_Pending], *, n_batch: int, n_rows: int) -> Iterator[list[_Part]]:
        lengths, wanted = [len(p.ids) for p in pending], [p.reads for p in pending]
        return plan_batches(lengths, wanted, n_batch=n_batch, n_rows=n_rows)

    def forget(self, sequence: int) -> None:
        return None


class _Caches:
    """Anything else (recurrent, hybrid, compressed): transformers' own cache for each sequence.

    Most of these cannot go back, so that a rewind reads the prefix again; sequences are read one after
    the other. Some models of transformers go wrong when several tokens follow on a state:
    ``in_pieces`` tells whether this one does not.
    """

    capabilities = Capabilities(rewind=False)

    def __init__(self, config: Any, argument: str, *, in_pieces: bool) -> None:
        self._config, self._argument, self._in_pieces = config, argument, in_pieces
        self._caches: dict[int, Any] = {}
        self._held: dict[int, int] = {}

    def rewind(self, sequence: int, keep: int) -> int:
        if not keep or self._held.get(sequence) != keep:
            self.forget(sequence)
            return 0
        return keep

    def plan(self, pending: Sequence[_Pending], *, n_batch: int, n_rows: int) -> Iterator[list[_Part]]:
        for number, work in enumerate(pending):
            at = 0
            while at < len(work.ids):
                size = n_batch if self._in_pieces or not work.start + at else 1
                stop = _within(work.reads, at, min(at + size, len(work.ids)), n_rows)
                yield [_Part(number, at, stop)]
                at = stop

    def place(self, shares: Sequence[Share], device: torch.device) -> dict[str, Any]:
        (share,) = shares
        if share.slot not in self._caches:
            self._caches[share.slot] = DynamicCache(config=self._config)
        self._held[share.slot] = share.stop
        return {
            "input_ids": torch.tensor([share.ids], device=device),
            "position_ids": torch.arange(share.start, share.stop, device=device)[None],
            self._argument: self._caches[share.slot],
        }

    def forget(self, sequence: int) -> None:
        self._caches.pop(sequence, None)
        self._held.pop(sequence, None)


# --- the model -----------------------------------------------------------------------------------


class TransformersModel:
    """A :class:`~fsgen_router.contracts.models.TokenModel` on a causal language model of transformers."""

    def __init__(self, where: str | os.PathLike[str], /, **options: Any) -> None:
        self.options = checked(TransformersOptions, options, error=ConfigurationError)
        template = self.options.chat_template and template_text(self.options.chat_template)
        source = _locate(os.fspath(where), self.options)
        self.name = source.name
        self.device = device_of(self.options.device)
        _set_threads(self.options.n_threads, self.device)
        self._lock, self._home = threading.Lock(), Home()
        self.n_seq = self.options.n_seq
        with _errors_of_loading(source):
            self._config = AutoConfig.from_pretrained(source.where, **source.arguments)
            self.n_ctx = self._context(self._config.get_text_config())
            self._require_memory_for_all()
            self._model: Any = self._load(source)
            takes = inspect.signature(self._model.forward).parameters
            self._takes_positions = "position_ids" in takes
            self._takes_rows = "logits_to_keep" in takes
            self._head: Any = self._model.get_output_embeddings()
            with self._head_inputs(wanted=self._head is not None) as states:
                self._memory, width = self._remember("cache_params" if "cache_params" in takes else "past_key_values")
            self.tokenizer = TransformersTokenizer(
                _tokenizer(source, self._config),
                self.name,
                width=width,
                eog_ids=_eog_ids(self._model),
                template=template,
                variables=self.options.chat_template_kwargs,
                **_said_by_gguf(source),
            )
            if template or self.options.chat_template_kwargs:
                _ = self.tokenizer.template  # checked now, and not at the first conversation
        self.n_params = int(self._model.num_parameters())
        if not states:
            self._head = None
        self.capabilities = replace(self._memory.capabilities, hidden_size=states[-1].shape[-1] if states else None)
        # numpy is the faster one on the host, and MPS shares its memory.
        on_host = self.device.type in ("cpu", "mps")
        # No method of this very model: in a circle it would wait, dropped, for the garbage collector.
        self._reduce = partial(_reduce_on_host, Scratch()) if on_host else reduce_rows
        self._pool = SequencePool(self.n_seq, self.n_ctx, self.tokenizer.n_vocab, rewinds=self.capabilities.rewind)
        self._n_rows = max(_LOGIT_BYTES // (4 * width), 1)

    # --- loading ---

    @property
    def _dtype(self) -> torch.dtype:
        if self.options.dtype != "auto":
            return _DTYPES[self.options.dtype]
        saved = getattr(self._config, "dtype", None)
        return saved if isinstance(saved, torch.dtype) else torch.float32

    def _context(self, config: Any) -> int:
        trained = getattr(config, "max_position_embeddings", None)
        if not isinstance(trained, int):
            return self.options.n_ctx or 4096
        n_ctx = self.options.n_ctx or min(trained, 4096)
        if n_ctx > trained:
            if getattr(config, "rope_parameters", None) is None:
                raise ConfigurationError(f"{self.name} has {trained} positions, {n_ctx} do not fit", hint="lower n_ctx")
            log.warning("context_beyond_training", model=self.name, n_ctx=n_ctx, n_ctx_train=trained)
        return n_ctx

    def _require_memory_for_all(self) -> None:
        """Before anything large is fetched or read: the model without its weights tells what it will take."""
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                self._config, dtype=self._dtype, trust_remote_code=self.options.trust_remote_code
            )
            try:
                per_token = bytes_per_token(_probe(model, "past_key_values", torch.device("meta"))[0])
            except Exception:  # whatever a forward cannot do without data: the weights count alone
                per_token = 0
        quantization = self.options.quantization_config or getattr(self._config, "quantization_config", None)
        self._require_memory(_weight_bytes(model, quantization), per_token)

    def _require_memory(self, weights: float, per_token: int) -> None:
        _require_memory(
            self.name, self.device, weights=weights, per_token=per_token, n_seq=self.n_seq, n_ctx=self.n_ctx
        )

    def _load(self, source: _Source) -> Any:
        options = self.options
        chosen = {
            name: value
            for name in ("attn_implementation", "quantization_config")
            if (value := getattr(options, name)) is not None
        }
        if "gguf_file" in source.arguments:
            # Weights that stay packed are computed with by kernels that transformers fetches from the hub.
            chosen.setdefault("quantization_config", GgufConfig(dequantize=True))
        model, found = AutoModelForCausalLM.from_pretrained(
            source.where,
            config=self._config,
            dtype=self._dtype,
            device_map={"": self.device},
            use_safetensors=None if options.allow_pickle else True,
            output_loading_info=True,
            **chosen,
            **source.arguments,
        )
        if missing := sorted(found["missing_keys"]):
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ModelFileCorrupt(f"{self.name} has no weights for {missing[0]}{more}", hint="is it complete?")
        return model.eval()

    def _remember(self, argument: str) -> tuple[_Memory, int]:
        """Memory for the sequences, in the shapes that a first forward shows; and the width of a row."""
        probed, logits = _probe(self._model, argument, self.device)
        if is_plain(probed):
            self._require_memory(0.0, bytes_per_token(probed))
            return _Slots(probed, n_seq=self.n_seq, n_ctx=self.n_ctx), logits.shape[-1]
        in_pieces = _reads_in_pieces(self._model, self._config, argument, self.device, self.name)
        return _Caches(self._config, argument, in_pieces=in_pieces), logits.shape[-1]

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
                self._model = self._memory = self._head = None  # type: ignore[assignment]
                _give_back(self.device)

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
                with self._errors_of_working():
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

    def _begin(self, works: Sequence[Work], rows: Sequence[Rows]) -> list[_Pending]:
        pending = []
        for work, found in zip(works, rows, strict=True):
            self._pool.begin(work)
            start = self._memory.rewind(work.sequence, work.keep)
            again = self._pool.held(work.sequence)[start:]
            found.reread = len(again)
            begun = _Pending(work.sequence, start, [*again, *work.ids] if again else work.ids)
            for number, (index, read) in enumerate(work.reads):
                begun.reads.setdefault(index + len(again), []).append((number, read))
            pending.append(begun)
        if len({begun.sequence for begun in pending}) < len(pending):
            raise BackendError("a sequence has two works in one forward")
        for work in works:
            self._pool.extend(work.sequence, work.ids)
        return pending

    def _step(self, pending: Sequence[_Pending], parts: Sequence[_Part], rows: Sequence[Rows]) -> None:
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
        with self._head_inputs(wanted=any(read.hidden for *_, read in reads)) as states:
            logits = self._logits(pending, parts, columns or [width - 1])
        at = {column: index for index, column in enumerate(columns)}
        found = self._reduce(
            logits.flatten(0, 1)[:, : self.tokenizer.n_vocab],
            [(row * len(columns) + at[column], read) for row, column, *_, read in reads],
            self._rows_of(states[-1], columns).flatten(0, 1) if states else None,
        )
        for (*_, work, number, _read), reduced in zip(reads, found, strict=True):
            rows[work][number] = reduced

    @contextmanager
    def _head_inputs(self, *, wanted: bool) -> Iterator[list[torch.Tensor]]:
        """What the LM head reads in a forward: hidden states of the rows of logits, and of no others."""
        seen: list[torch.Tensor] = []
        if not wanted:
            yield seen
            return
        if self._head is None:
            raise BackendError(f"{self.name} gives no hidden states")
        hook = self._head.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
        try:
            yield seen
        finally:
            hook.remove()

    def _logits(self, pending: Sequence[_Pending], parts: Sequence[_Part], columns: list[int]) -> torch.Tensor:
        """Logits of the given columns: shape (len(parts), len(columns), width of a row)."""
        shares = []
        for part in parts:
            work = pending[part.pending]
            shares.append(Share(work.sequence, work.start + part.start, work.ids[part.start : part.stop]))
        inputs = self._memory.place(shares, self.device)
        if not self._takes_positions:
            inputs.pop("position_ids")
        # The common case needs no index on the device: the last token alone.
        last = columns == [inputs["input_ids"].shape[1] - 1]
        if self._takes_rows:
            inputs["logits_to_keep"] = 1 if last else torch.tensor(columns, device=self.device)
        logits: torch.Tensor = self._model(**inputs, use_cache=True).logits
        return self._rows_of(logits, columns)

    def _rows_of(self, states: torch.Tensor, columns: list[int]) -> torch.Tensor:
        """The given columns of what a forward gave, which are all of it where the model was told them."""
        return states if self._takes_rows else states[:, columns]

    @contextmanager
    def _errors_of_working(self) -> Iterator[None]:
        try:
            yield
        except FsgenError:
            raise
        except (torch.OutOfMemoryError, MemoryError) as error:
            _give_back(self.device)
            raise BackendError(
                f"{self.name} ran out of memory on {self.device}: {_first_line(error)}",
                hint="load it with a smaller n_batch, n_ctx or n_seq, or a smaller dtype",
            ) from error
        except Exception as error:
            raise BackendError(f"{self.name}: {type(error).__name__}: {_first_line(error)}") from error


def _reduce_on_host(
    scratch: Scratch, logits: torch.Tensor, reads: Sequence[tuple[int, Read]], hidden: torch.Tensor | None = None
) -> list[Row]:
    rows = logits.float().cpu().numpy()
    if hidden is None:
        return [reduce_row(rows[row], read, scratch) for row, read in reads]
    states = hidden.float().cpu().numpy()
    return [reduce_row(rows[row], read, scratch, states[row]) for row, read in reads]


def _tokenizer(source: _Source, config: Any) -> Any:
    """The tokenizer as its file has it: a class of transformers may put rules of its own in place of some."""
    if "gguf_file" not in source.arguments:
        with suppress(OSError):  # there is none: transformers makes one from what there is
            cached_file(source.where, "tokenizer.json", revision=source.arguments.get("revision"))
            return PreTrainedTokenizerFast.from_pretrained(source.where, **source.arguments)
    return AutoTokenizer.from_pretrained(source.where, config=config, **source.arguments)


# Pre-tokenizers, by their names in GGUF files, that take a word of the vocabulary whole, merges or not.
_WHOLE_WORDS = {"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken"}
_SAID = ("pre", "token_type", "bos_token_id", "add_space_prefix")


def _said_by_gguf(source: _Source) -> dict[str, Any]:
    """What a GGUF file says of its vocabulary and transformers leaves out."""
    name = source.arguments.get("gguf_file")
    if name is None:
        return {}
    path = cached_file(source.where, name, revision=source.arguments.get("revision"))
    fields = gguf.GGUFReader(path).fields
    said = {key: fields[f"tokenizer.ggml.{key}"].contents() for key in _SAID if f"tokenizer.ggml.{key}" in fields}
    kinds = said.get("token_type", ())
    unused, control = (
        frozenset(token for token, kind in enumerate(kinds) if kind == wanted)
        for wanted in (gguf.TokenType.UNUSED, gguf.TokenType.CONTROL)
    )
    return {
        "whole_words": said.get("pre") in _WHOLE_WORDS,
        "unused_ids": unused,
        "control_ids": control,
        "bos_id": said.get("bos_token_id"),
        "space_prefix": said.get("add_space_prefix", True),
    }


def _eog_ids(model: Any) -> set[int]:
    """Ids that end a generation, by the two configurations that may say so."""
    ids: set[int] = set()
    for config in (model.generation_config, model.config.get_text_config()):
        ends = getattr(config, "eos_token_id", None)
        ids |= {ends} if isinstance(ends, int) else set(ends or ())
    return ids


def _give_back(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


# --- what a model is like, found out by asking it ------------------------------------------------


def _probe(model: Any, argument: str, device: torch.device) -> tuple[Any, torch.Tensor]:
    """The cache behind one token, and its logits."""
    cache = DynamicCache(config=model.config)
    logits = _run(model, argument, cache, torch.zeros((1, 1), dtype=torch.int64, device=device))
    return cache, logits


def _run(model: Any, argument: str, cache: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=ids, use_cache=True, **{argument: cache}).logits
        return logits


def _reads_in_pieces(model: Any, config: Any, argument: str, device: torch.device, name: str) -> bool:
    """Whether several tokens on top of a state give what they give at once.

    Each way is held against reading one token at a time, which every model must get right: the piece
    may be off by some times that, which is rounding.
    """
    ids = (torch.arange(2 * _PROBED, device=device) * 37 + 1)[None] % config.get_text_config().vocab_size

    def differs(*sizes: int) -> float:
        cache = DynamicCache(config=config)
        logits = torch.cat([_run(model, argument, cache, piece) for piece in ids.split(sizes, 1)], 1)
        return float((logits - whole).abs().max())

    whole = _run(model, argument, DynamicCache(config=config), ids)
    spread = float(whole.std())
    singly, piece = differs(_PROBED, *[1] * _PROBED), differs(_PROBED, _PROBED)
    if not singly < 0.1 * spread:
        raise ModelLoadError(
            f"{name} does not go on from where it was: what it reads token by token differs by {singly:.2g} from what "
            f"it reads at once",
            hint="its memory is not one that transformers' caches can hold; load it through another backend",
        )
    return bool(piece <= 4 * singly + torch.finfo(whole.dtype).eps * spread)
