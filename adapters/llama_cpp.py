"""Local GGUF models through llama.cpp's low-level API (extra ``llama``).

``Llama.create_completion`` costs up to two milliseconds of Python a token and sees one sequence; this
adapter calls ``llama_decode`` itself, keeps several sequences in one context, and reduces logits in
place.
"""

from __future__ import annotations

import ctypes
import glob
import operator
import os
import re
import threading
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeAlias, cast

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from fsgen_router.contracts.models import Capabilities, Opened, Rows, Work
from fsgen_router.contracts.tokenizer import Turn
from fsgen_router.errors import (
    BackendError,
    ConfigurationError,
    ModelFileCorrupt,
    ModelLoadError,
    ModelNotFound,
    NotEnoughMemory,
)
from fsgen_router.rows.reading import UNREADABLE, Floats, Read, Row, reduce_row
from fsgen_router.support.logs import log
from fsgen_router.support.machine import free_bytes, usable_physical_cores
from fsgen_router.support.options import TemplateVariables, as_text, checked
from fsgen_router.support.waiting import Home, holding
from fsgen_router.text.conversation import encode_conversation

from .sequences import SequencePool

try:
    import psutil
    from llama_cpp import llama_cpp as lib

    from .chat_template import ChatTemplate, no_template, template_text
except ImportError as error:
    raise ImportError("the llama_cpp backend needs the extra 'llama': pip install 'fsgen-router[llama]'") from error

from .ggml import make_scratch
from .shards import shards_of

_KV_TYPES = {"f32": 0, "f16": 1, "q8_0": 8}
_KV_BYTES = {"f32": 4.0, "f16": 2.0, "q8_0": 34 / 32}
_SMALL_MODEL = 50_000_000
_MAX_OUTPUTS = 64  # rows of logits held at once: 39 MB at a vocabulary of 152,000
# Where hidden states are read, llama.cpp makes an output of every token. Up to so many that nobody wants cost
# less than a decode of their own.
_SPARE_OUTPUTS = 16

_UNUSED, _CONTROL = 2, 8  # llama_token_attr

_SPLIT_MODES = {"none": lib.LLAMA_SPLIT_MODE_NONE, "layer": lib.LLAMA_SPLIT_MODE_LAYER, "row": lib.LLAMA_SPLIT_MODE_ROW}
_ROPE_SCALING_TYPES = {
    "none": lib.LLAMA_ROPE_SCALING_TYPE_NONE,
    "linear": lib.LLAMA_ROPE_SCALING_TYPE_LINEAR,
    "yarn": lib.LLAMA_ROPE_SCALING_TYPE_YARN,
    "longrope": lib.LLAMA_ROPE_SCALING_TYPE_LONGROPE,
}
# What is handed to llama.cpp as it is; left out, the file decides.
_ROPE_NUMBERS = (
    *("rope_freq_base", "rope_freq_scale"),
    *("yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow", "yarn_orig_ctx"),
)


_LORA = re.compile(r"(?P<where>.+?)(?::(?P<scale>[-+]?\d*\.?\d+))?", re.DOTALL)


def _scales(value: object) -> object:
    """``a.gguf:0.5,b.gguf`` as a scale for each adapter; without one it is applied as it was trained."""
    if isinstance(value, Mapping):
        return {as_text(where): scale for where, scale in value.items()}
    text = as_text(value)
    if not isinstance(text, str):
        return value
    found = [_LORA.fullmatch(part) for part in text.split(",")]
    if None in found:
        raise ValueError("adapters are path, or path:scale, several by commas")
    return {part["where"]: float(part["scale"] or 1.0) for part in found if part}


def _listed(value: object) -> object:
    return value.split(",") if isinstance(value, str) else value


_Share: TypeAlias = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
_Scale: TypeAlias = Annotated[float, Field(allow_inf_nan=False)]
_Positive: TypeAlias = Annotated[float | None, Field(gt=0.0, allow_inf_nan=False)]


class LlamaCppOptions(BaseModel):
    """How a GGUF model is loaded. Memory grows with ``n_ctx * n_seq``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_ctx: int | None = Field(None, ge=16, description="tokens per sequence; None: the model's own, at most 4096")
    n_seq: int = Field(1, ge=1, le=256, description="sequences (concurrent requests) held at once")
    n_batch: int = Field(512, ge=1, le=16_384, description="tokens per decode")
    n_threads: int | None = Field(
        None, ge=1, description="threads; None: one for small models, else the physical cores that are ours, minus one"
    )
    n_gpu_layers: int = Field(0, ge=-1, description="layers on the GPU; -1: all")
    main_gpu: int | None = Field(None, ge=0, description="the device that holds all with split_mode=none")
    split_mode: Literal["none", "layer", "row"] | None = Field(None, description="how devices share the model")
    tensor_split: Annotated[tuple[_Share, ...] | None, BeforeValidator(_listed)] = Field(
        None, description="each device's share: a list, or 0.6,0.4"
    )
    lora: Annotated[Mapping[str, _Scale], BeforeValidator(_scales)] = Field(
        default_factory=dict, description="LoRA adapters (GGUF): path, or path:scale, several by commas; or a dict"
    )
    rope_scaling_type: Literal["none", "linear", "yarn", "longrope"] | None = Field(
        None, description="how positions beyond training are made; None: as the file says, here and below"
    )
    rope_freq_base: _Positive = Field(None, description="RoPE's base frequency")
    rope_freq_scale: _Positive = Field(None, description="positions are multiplied by it: 0.5 for twice the context")
    yarn_ext_factor: float | None = Field(None, ge=0.0, le=1.0, description="YaRN's mix with extrapolation")
    yarn_attn_factor: _Positive = Field(None, description="YaRN's factor on attention, where yarn_ext_factor is 0")
    yarn_beta_fast: _Positive = Field(None, description="YaRN's low correction dimension")
    yarn_beta_slow: _Positive = Field(None, description="YaRN's high correction dimension")
    yarn_orig_ctx: int | None = Field(None, ge=1, description="YaRN's context before it was extended, in tokens")
    flash_attn: bool = Field(False, description="flash attention; slows catch-up down on CPU")
    type_k: Literal["f32", "f16", "q8_0"] = "f16"
    type_v: Literal["f32", "f16", "q8_0"] = "f16"
    mmap: bool = True
    chat_template: Annotated[str | None, BeforeValidator(as_text)] = Field(
        None, min_length=1, description="a Jinja file or text; None: the model's own"
    )
    chat_template_kwargs: TemplateVariables = Field(
        default_factory=dict, description="variables for the template: a dict, or the same as JSON"
    )

    @model_validator(mode="after")
    def _devices_fit(self) -> Self:
        if self.tensor_split is not None:
            most = lib.llama_max_devices()
            if not 1 <= len(self.tensor_split) <= most or not any(self.tensor_split):
                raise ValueError(f"tensor_split is a share for each of 1 to {most} devices, and not all are 0")
            if self.split_mode == "none":
                raise ValueError("tensor_split divides a model, and split_mode=none keeps it on one device")
        return self

    @property
    def scales_rope(self) -> bool:
        return self.rope_scaling_type is not None or any(getattr(self, name) is not None for name in _ROPE_NUMBERS)


# --- llama.cpp's log -----------------------------------------------------------------------------

_last_errors: list[str] = []


@lib.llama_log_callback  # type: ignore[untyped-decorator, unused-ignore]
def _on_log(level: int, text: bytes, _data: object) -> None:
    if level >= 4:  # GGML_LOG_LEVEL_ERROR
        _last_errors.append(text.decode(errors="replace").strip())
        del _last_errors[:-20]


_backend_lock = threading.Lock()
_backend_ready = False


def _init_backend() -> None:
    global _backend_ready
    with _backend_lock:
        if not _backend_ready:
            lib.llama_log_set(_on_log, ctypes.c_void_p(0))
            lib.llama_backend_init()
            _backend_ready = True


# --- files ---------------------------------------------------------------------------------------

_HUB = re.compile(r"hf://(?P<repo>[^/@]+/[^/@]+)/(?P<file>[^@]+?)(?:@(?P<revision>[^@]+))?")


def locate(where: str) -> Path:
    """The local file behind ``where``: a path, or ``hf://owner/repo/file.gguf@revision``.

    Of a model in shards this is the first, whichever was named: llama.cpp finds the others beside it, and they
    are there. Hub files come through the hub client's cache; ``HF_HUB_OFFLINE=1`` keeps it off the network.
    """
    if where.startswith("hf://"):
        return _from_hub(where)
    try:
        path = Path(where).expanduser()
        exists = path.exists()
    except (OSError, RuntimeError) as error:  # too long for a name, or ~nobody
        raise ModelNotFound(f"{where!r} is no path: {error}") from None
    shards = [path.with_name(name) for name in shards_of(path.name)]
    if path.is_dir():
        names = sorted(p.name for p in path.glob("*.gguf"))
        inside = [name for name in names if name in (shards_of(name) or [name])[:1]]
        raise ModelNotFound(
            f"{path} is a folder", hint=f"name a file in it: {', '.join(inside)}" if inside else "no GGUF file is in it"
        )
    if not exists and not any(shard.exists() for shard in shards):
        raise ModelNotFound(f"there is no model file {path}", hint=_instead_of(path))
    if missing := [shard.name for shard in shards if not shard.exists()]:
        raise ModelNotFound(
            f"{path} is one of {len(shards)} shards, and {len(missing)} are not beside it: {_few(missing)}",
            hint="fetch them into the same folder",
        )
    for file in shards or [path]:
        _require_gguf(file)
    return shards[0] if shards else path


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _instead_of(path: Path) -> str:
    """What to do about a file that is not there."""
    first = next(iter(sorted(path.parent.glob(f"{glob.escape(path.stem)}-00001-of-*.gguf"))), None)
    if first is not None:
        return f"it is here in shards: name {first.name}"
    return "check the path, or use hf://owner/repo/file.gguf"


def _require_gguf(path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}") from None
    if magic != b"GGUF":
        raise ModelFileCorrupt(
            f"{path} is not a GGUF file (it begins with {magic!r})",
            hint="convert it with llama.cpp's convert_hf_to_gguf",
        )


def _from_hub(where: str) -> Path:
    found = _HUB.fullmatch(where)
    if found is None:
        raise ConfigurationError(f"{where!r} names no hub file", hint="write hf://owner/repo/file.gguf@revision")
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise ImportError("hub models need the extra 'hub': pip install 'fsgen-router[hub]'") from error
    first, *others = shards_of(found["file"]) or [found["file"]]
    wanted = first
    try:
        path = Path(hf_hub_download(found["repo"], first, revision=found["revision"]))
        commit = path.parents[first.count("/")].name  # one commit for all, whatever is published meanwhile
        for wanted in others:
            hf_hub_download(found["repo"], wanted, revision=commit)
    except LocalEntryNotFoundError:
        raise ModelNotFound(
            f"{_named(found, wanted)} is not in the local cache and the hub was not reached",
            hint="unset HF_HUB_OFFLINE, or use a path",
        ) from None
    except (HfHubHTTPError, HFValidationError) as error:
        raise ModelNotFound(
            f"the hub has no {_named(found, wanted)}: {str(error).splitlines()[0]}",
            hint=None if others else "a large model may lie there in shards: name the first, file-00001-of-00002.gguf",
        ) from None
    except OSError as error:
        raise ModelLoadError(f"{_named(found, wanted)} could not be fetched: {error}") from None
    return locate(str(path))


def _named(found: re.Match[str], file: str) -> str:
    revision = f"@{found['revision']}" if found["revision"] else ""
    return f"hf://{found['repo']}/{file}{revision}"


# --- memory --------------------------------------------------------------------------------------


class _Native:
    """What llama.cpp allocated for a model: freed once, when it is shut down, dropped, or the interpreter ends.

    A tokenizer that outlives its model keeps it. At the interpreter's end, too, because some GPU backends end the
    process with an error where that was forgotten.
    """

    def __init__(self, model: Any, context: Any, name: str) -> None:
        self._model, self._name = model, name
        self.forwards, self.vocabulary = threading.RLock(), threading.RLock()
        """Whoever uses the context, or the vocabulary, holds these: not to be freed under them."""
        self.free = weakref.finalize(self, _free, model, context, (self.forwards, self.vocabulary), Home())

    @property
    def model(self) -> Any:
        self.require()
        return self._model

    def require(self) -> None:
        if not self.free.alive:
            raise BackendError(f"{self._name} was shut down")


def _free(model: Any, context: Any, locks: Sequence[threading.RLock], home: Home) -> None:
    if home.forked:
        return  # the parent's, as are its threads and its GPU
    with ExitStack() as held:
        for lock in locks:
            if not lock.acquire(blocking=False):
                return  # the interpreter ends, and a thread is still in there
            held.callback(lock.release)
        lib.llama_free(context)
        lib.llama_model_free(model)


# --- the tokenizer -------------------------------------------------------------------------------


class LlamaCppTokenizer:
    """The vocabulary and chat template of a GGUF file.

    Padding behind the last token that means something is cut off: its rows are neither compared nor
    read, so models of one family that differ in it agree, and no model can write it.
    """

    def __init__(
        self, native: _Native, name: str, *, template: str | None = None, variables: Mapping[str, Any] | None = None
    ) -> None:
        self._native, self._name = native, name
        self._wanted_template, self._variables = template, variables
        self._lock = native.vocabulary
        self.n_vocab: int = lib.llama_vocab_n_tokens(self._vocab)
        while self.n_vocab and lib.llama_vocab_get_attr(self._vocab, self.n_vocab - 1) & _UNUSED:
            self.n_vocab -= 1

    @property
    def _vocab(self) -> Any:
        return lib.llama_model_get_vocab(self._native.model)

    @cached_property
    def _pieces(self) -> list[bytes]:
        size = 256
        buffer = ctypes.create_string_buffer(size)
        pieces = []
        for token in range(self.n_vocab):
            count = lib.llama_token_to_piece(self._vocab, token, buffer, size, 0, True)
            if count < 0:
                size = -count
                buffer = ctypes.create_string_buffer(size)
                count = lib.llama_token_to_piece(self._vocab, token, buffer, size, 0, True)
            pieces.append(buffer.raw[:count])
        return pieces

    @cached_property
    def _attributes(self) -> list[int]:
        return [lib.llama_vocab_get_attr(self._vocab, token) for token in range(self.n_vocab)]

    @cached_property
    def eog_ids(self) -> frozenset[int]:
        return frozenset(t for t in range(self.n_vocab) if lib.llama_vocab_is_eog(self._vocab, t))

    @cached_property
    def special_ids(self) -> frozenset[int]:
        return frozenset(t for t, attributes in enumerate(self._attributes) if attributes & _CONTROL)

    @cached_property
    def unused_ids(self) -> frozenset[int]:
        return frozenset(t for t, attributes in enumerate(self._attributes) if attributes & _UNUSED)

    @property
    def pieces(self) -> Sequence[bytes]:
        return self._pieces

    def piece(self, token: int) -> bytes:
        return self._pieces[token]

    def encode(self, text: str, *, add_bos: bool, parse_special: bool = False) -> list[int]:
        data = text.encode()
        size = len(data) + 8
        while True:
            buffer = (lib.llama_token * size)()
            with self._lock:
                count = lib.llama_tokenize(self._vocab, data, len(data), buffer, size, add_bos, parse_special)
            if count >= 0:
                return list(buffer[:count])
            size = -count

    @cached_property
    def template(self) -> ChatTemplate:
        """The file's default chat template, or the one that was given instead."""
        with self._lock:
            vocab = self._vocab
            own = lib.llama_model_chat_template(self._native.model, None) or b""
            ids = {name: getattr(lib, f"llama_vocab_{name}")(vocab) for name in ("bos", "eos", "pad", "sep")}
        text = self._wanted_template or own.decode(errors="replace")
        if not text:
            raise no_template(self._name)
        names = {f"{name}_token": self._name_of(token) for name, token in ids.items() if 0 <= token < self.n_vocab}
        return ChatTemplate(text, self._name, tokens=names, is_token=self._is_token, variables=self._variables)

    def _name_of(self, token: int) -> str:
        return self._pieces[token].decode(errors="replace")

    def _is_token(self, name: str) -> bool:
        return len(self.encode(name, add_bos=False, parse_special=True)) == 1

    def encode_chat(self, messages: Sequence[Turn], chat_template_kwargs: Mapping[str, Any] | None = None) -> list[int]:
        """A user's text never becomes a control token, whatever it contains."""
        render = partial(self.template.render, variables=chat_template_kwargs)
        return encode_conversation(self, messages, render, bos=self._bos)

    @cached_property
    def _bos(self) -> int | None:
        """The token that every sequence begins with, if the vocabulary says so."""
        with self._lock:
            vocab = self._vocab
            return int(lib.llama_vocab_bos(vocab)) if lib.llama_vocab_get_add_bos(vocab) else None


def _model_params(options: LlamaCppOptions) -> Any:
    """llama.cpp's parameters for loading a model."""
    params = lib.llama_model_default_params()
    params.n_gpu_layers = options.n_gpu_layers
    params.load_mode = lib.LLAMA_LOAD_MODE_MMAP if options.mmap else lib.LLAMA_LOAD_MODE_NONE
    if options.main_gpu is not None:
        params.main_gpu = options.main_gpu
    if options.split_mode is not None:
        params.split_mode = _SPLIT_MODES[options.split_mode]
    if options.tensor_split is not None:
        # llama.cpp reads one for every device there could be.
        shares = (ctypes.c_float * lib.llama_max_devices())(*options.tensor_split)
        params.tensor_split = ctypes.cast(shares, ctypes.POINTER(ctypes.c_float))
    return params


def _require_devices(options: LlamaCppOptions) -> None:
    """Options that choose among devices are no good where llama.cpp knows none."""
    chosen = [name for name in ("main_gpu", "split_mode", "tensor_split") if getattr(options, name) is not None]
    if chosen and not lib.llama_supports_gpu_offload():
        raise ConfigurationError(
            f"{chosen[0]} chooses among GPUs, and llama.cpp was built without them",
            hint="leave it out, or build llama.cpp for your GPU: fsgen-router doctor says how",
        )


# --- the model -----------------------------------------------------------------------------------


class LlamaCppModel:
    """A :class:`~fsgen_router.contracts.models.TokenModel` on one llama.cpp context."""

    def __init__(self, where: str | os.PathLike[str], /, **options: Any) -> None:
        self.options = checked(LlamaCppOptions, options, error=ConfigurationError)
        template = self.options.chat_template and template_text(self.options.chat_template)
        path = locate(os.fspath(where))
        _require_devices(self.options)
        adapters = {locate(adapter): scale for adapter, scale in self.options.lora.items()}
        # With an adapter it is another model: a policy is calibrated for the one or the other.
        self.name = "+".join([path.name, *(adapter.name for adapter in adapters)])
        self._home = Home()
        self._context: Any = None
        self._model = self._load(path)
        try:
            self._context = self._make_context()
            if adapters:
                self._add_lora(adapters)
        except BaseException:
            if self._context is not None:
                lib.llama_free(self._context)
            lib.llama_model_free(self._model)
            raise
        self._native = _Native(self._model, self._context, self.name)
        self._lock = self._native.forwards
        self.tokenizer = LlamaCppTokenizer(
            self._native, self.name, template=template, variables=self.options.chat_template_kwargs
        )
        if template or self.options.chat_template_kwargs:
            _ = self.tokenizer.template  # checked now, and not at the first conversation
        self._memory = lib.llama_get_memory(self._context)
        self.n_params: int = lib.llama_model_n_params(self._model)
        self.n_seq = self.options.n_seq
        self.capabilities = Capabilities(
            rewind=not (lib.llama_model_is_recurrent(self._model) or lib.llama_model_is_hybrid(self._model)),
            hidden_size=lib.llama_model_n_embd_out(self._model),
        )
        self._pool = SequencePool(self.n_seq, self.n_ctx, self.tokenizer.n_vocab, rewinds=self.capabilities.rewind)
        self._scratch = make_scratch(lib._lib)
        self._batch = _Batch(self.options.n_batch)
        # A pointer as a plain integer, without ctypes' own wrapping of every row.
        self._logits_at, self._hidden_at = (lib._lib[f"llama_get_{name}_ith"] for name in ("logits", "embeddings"))
        for function in (self._logits_at, self._hidden_at):
            function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_int32], ctypes.c_void_p
        self._views: dict[tuple[int, int], Floats] = {}
        self._reads_hidden = False

    def _load(self, path: Path) -> Any:
        _init_backend()
        _last_errors.clear()
        params = _model_params(self.options)
        model = lib.llama_model_load_from_file(os.fsencode(path), params)
        if not model:
            said = "; ".join(_last_errors) or "no reason given"
            if "main_gpu" in said:
                raise ConfigurationError(f"main_gpu={self.options.main_gpu} is no device here: {said}")
            hint = "is the download complete?"
            if " split file " in said:
                hint = "it is one of several shards, which llama.cpp finds by the names they were published with"
            raise ModelFileCorrupt(f"llama.cpp cannot load {path}: {said}", hint=hint)
        return model

    def _make_context(self) -> Any:
        options, model = self.options, self._model
        trained = lib.llama_model_n_ctx_train(model)
        self.n_ctx: int = options.n_ctx or min(trained, 4096)
        if self.n_ctx > trained and not options.scales_rope:
            log.warning("context_beyond_training", model=self.name, n_ctx=self.n_ctx, n_ctx_train=trained)
        self._require_memory()
        params = lib.llama_context_default_params()
        params.n_ctx = self.n_ctx * options.n_seq
        params.n_seq_max = options.n_seq
        params.kv_unified = False
        # llama.cpp has room for an output of every sequence, or ends the process.
        params.n_batch = params.n_ubatch = max(options.n_batch, options.n_seq)
        params.n_threads = params.n_threads_batch = options.n_threads or self._default_threads()
        params.flash_attn_type = int(options.flash_attn)
        # Without it layers with a sliding window forget what a rewind goes back to.
        params.swa_full = True
        params.type_k, params.type_v = _KV_TYPES[options.type_k], _KV_TYPES[options.type_v]
        # A hidden state for every token, also of models that are made to pool them.
        params.pooling_type = lib.LLAMA_POOLING_TYPE_NONE
        params.no_perf = True
        if options.rope_scaling_type is not None:
            params.rope_scaling_type = _ROPE_SCALING_TYPES[options.rope_scaling_type]
        for name in _ROPE_NUMBERS:
            if (value := getattr(options, name)) is not None:
                setattr(params, name, value)
        _last_errors.clear()
        context = lib.llama_init_from_model(model, params)
        if not context:
            said = "; ".join(_last_errors) or "no reason given"
            raise ModelLoadError(
                f"llama.cpp cannot make a context of {self.n_ctx} x {options.n_seq} tokens for {self.name}: {said}",
                hint="try a smaller n_ctx or n_seq, or f16 for type_k and type_v",
            )
        return context

    def _add_lora(self, found: Mapping[Path, float]) -> None:
        """Apply adapters to the context. They are freed with the model."""
        adapters = []
        for path in found:
            _last_errors.clear()
            adapter = lib.llama_adapter_lora_init(self._model, os.fsencode(path))
            if not adapter:
                said = "; ".join(_last_errors) or "no reason given"
                raise ModelFileCorrupt(
                    f"llama.cpp cannot apply the LoRA adapter {path} to {self.name}: {said}",
                    hint="it has to be made for this model, and converted by llama.cpp's convert_lora_to_gguf",
                )
            if lib.llama_adapter_get_alora_n_invocation_tokens(adapter):
                raise ConfigurationError(
                    f"{path} is an activated LoRA, which is on behind its invocation tokens alone",
                    hint="merge it into the model, or take a plain LoRA",
                )
            adapters.append(ctypes.cast(adapter, ctypes.c_void_p).value)
        pointers = ctypes.cast(
            (ctypes.c_void_p * len(adapters))(*adapters), ctypes.POINTER(ctypes.POINTER(ctypes.c_void_p))
        )
        status = lib.llama_set_adapters_lora(
            self._context, pointers, len(adapters), (ctypes.c_float * len(adapters))(*found.values())
        )
        if status:
            raise ModelLoadError(f"llama.cpp cannot apply {', '.join(map(str, found))} to {self.name}")

    def _default_threads(self) -> int:
        # Two pools on the same cores are far slower than one: leave a core to the rest.
        if lib.llama_model_n_params(self._model) < _SMALL_MODEL:
            return 1
        usable = usable_physical_cores()
        return max(min(psutil.cpu_count(logical=False) or usable, usable) - 1, 1)

    def _require_memory(self) -> None:
        model, options = self._model, self.options
        if options.n_gpu_layers:
            return  # the KV cache of those layers is not in this machine's memory
        width = (
            lib.llama_model_n_embd(model) // max(lib.llama_model_n_head(model), 1) * lib.llama_model_n_head_kv(model)
        )
        per_token = lib.llama_model_n_layer(model) * width * (_KV_BYTES[options.type_k] + _KV_BYTES[options.type_v])
        needed = per_token * self.n_ctx * options.n_seq
        available = free_bytes()
        if available is not None and needed > available:
            fits = int(available * 0.8 / per_token / options.n_seq) if per_token else 0
            raise NotEnoughMemory(
                f"the KV cache of {self.name} needs {needed / 2**30:.1f} GiB for {options.n_seq} x {self.n_ctx} "
                f"tokens, "
                f"{available / 2**30:.1f} GiB are free",
                hint=f"n_ctx={fits} would fit, or lower n_seq",
            )

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
                segments: list[_Segment] = []
                for number, work in enumerate(works):
                    rewound = self._pool.begin(work)
                    segments += self._segments(work, rows[number], rewound=rewound)
                    self._pool.extend(work.sequence, work.ids)
                # A decode either gives hidden states or does not: what needs none goes first.
                segments.sort(key=_hidden)
                for segment in segments:
                    self._add(segment)
                self._flush()
            except BaseException:
                # What the KV cache holds now is not known (Ctrl-C too): both sides forget.
                self._batch.clear()
                for work in works:
                    if self._pool.forget(work.sequence):
                        lib.llama_memory_seq_rm(self._memory, work.sequence, -1, -1)
                raise
            return cast(list[list[Row]], rows)

    def _segments(self, work: Work, rows: Rows, *, rewound: bool) -> list[_Segment]:
        """Rewind a work's sequence, and cut its tokens where reads begin that want hidden states."""
        ids, start, reads = work.ids, work.keep, work.reads
        if rewound and not lib.llama_memory_seq_rm(self._memory, work.sequence, start, -1):
            # Recurrent memory cannot go back: read the kept prefix again.
            lib.llama_memory_seq_rm(self._memory, work.sequence, -1, -1)
            reads = [(at + start, read) for at, read in reads]
            rows.reread, ids, start = start, [*self._pool.held(work.sequence), *ids], 0
        wanted = [_Wanted(index, rows, slot, read) for slot, (index, read) in enumerate(reads)]
        wanted.sort(key=_at)
        firsts = [wish.at for wish in wanted if wish.read.hidden]
        first = firsts[0] if firsts else 0
        if first <= _SPARE_OUTPUTS:
            return [_Segment(work.sequence, start, ids, wanted, hidden=bool(firsts))]
        before = [wish for wish in wanted if wish.at < first]
        behind = [wish._replace(at=wish.at - first) for wish in wanted[len(before) :]]
        return [
            _Segment(work.sequence, start, ids[:first], before, hidden=False),
            _Segment(work.sequence, start + first, ids[first:], behind, hidden=True),
        ]

    def _add(self, segment: _Segment) -> None:
        """Put a segment into the batch, decoding whenever it is full."""
        batch, ids, at = self._batch, segment.ids, 0
        if batch.hidden != segment.hidden:
            self._flush()
            batch.hidden = segment.hidden
        pending = list(segment.wanted)
        while at < len(ids):
            take = min(batch.room, len(ids) - at)
            if len(pending) > _MAX_OUTPUTS:
                # At least one token, however many reads it has.
                take = max(min(take, pending[_MAX_OUTPUTS].at - at), 1)
            base = batch.append(segment.sequence, segment.start + at, ids[at : at + take])
            while pending and pending[0].at < at + take:
                wish = pending.pop(0)
                batch.want(base + wish.at - at, wish)
            at += take
            if at < len(ids) or not batch.room or len(batch.wanted) >= _MAX_OUTPUTS:
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


class _Wanted(NamedTuple):
    """A row to be read: behind which token, and where it goes."""

    at: int
    rows: Rows
    slot: int
    read: Read


_at, _hidden = operator.attrgetter("at"), operator.attrgetter("hidden")


@dataclass(slots=True)
class _Segment:
    """Tokens of one sequence from position ``start`` on, and the rows wanted of them in ascending order."""

    sequence: int
    start: int
    ids: Sequence[int]
    wanted: list[_Wanted]
    hidden: bool
    """Some rows are wanted with their hidden states."""


class _Batch:
    """A ``llama_batch`` whose arrays are numpy's, so that filling it is a few slice assignments."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._token, self._pos, self._seq = (np.zeros(size, np.int32) for _ in range(3))
        self._n_seq = np.ones(size, np.int32)
        self._logits = np.zeros(size, np.int8)
        self._seq_at = self._seq.ctypes.data + 4 * np.arange(size, dtype=np.uint64)
        fields = dict(lib.llama_batch._fields_)
        arrays: dict[str, Any] = {
            "token": self._token,
            "pos": self._pos,
            "n_seq_id": self._n_seq,
            "seq_id": self._seq_at,
            "logits": self._logits,
        }
        self.struct = lib.llama_batch(
            n_tokens=0, **{name: ctypes.cast(array.ctypes.data, fields[name]) for name, array in arrays.items()}
        )
        self.wanted: list[tuple[int, _Wanted]] = []
        self.hidden = False
        """The next decode gives hidden states, so that every token of it is an output."""

    @property
    def room(self) -> int:
        size = min(self.size, _MAX_OUTPUTS) if self.hidden else self.size
        return size - int(self.struct.n_tokens)

    def append(self, sequence: int, position: int, ids: Sequence[int]) -> int:
        """Add tokens of one sequence; returns the batch index of the first."""
        base = int(self.struct.n_tokens)
        end = base + len(ids)
        if len(ids) == 1:  # a decode step, where it counts: a slice takes four times as long
            self._token[base], self._pos[base] = ids[0], position
            self._seq[base], self._logits[base] = sequence, self.hidden
        else:
            self._token[base:end] = ids
            self._pos[base:end] = range(position, position + len(ids))
            self._seq[base:end] = sequence
            self._logits[base:end] = self.hidden
        self.struct.n_tokens = end
        return base

    def want(self, index: int, wish: _Wanted) -> None:
        self._logits[index] = 1
        self.wanted.append((index, wish))

    def clear(self) -> None:
        self.struct.n_tokens = 0
        self.wanted.clear()
