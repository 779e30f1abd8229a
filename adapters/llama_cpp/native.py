"""llama.cpp itself: its log, and what it allocated for a model."""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from llama_cpp import llama_cpp as lib

from fsgen_router.errors import BackendError
from fsgen_router.support.waiting import Home

# --- the log -------------------------------------------------------------------------------------

_last_errors: list[str] = []


@lib.llama_log_callback  # type: ignore[untyped-decorator, unused-ignore]
def _on_log(level: int, text: bytes, _data: object) -> None:
    if level >= 4:  # GGML_LOG_LEVEL_ERROR
        _last_errors.append(text.decode(errors="replace").strip())
        del _last_errors[:-20]


_backend_lock = threading.Lock()
_backend_ready = False


def init_backend() -> None:
    global _backend_ready
    with _backend_lock:
        if not _backend_ready:
            lib.llama_log_set(_on_log, ctypes.c_void_p(0))
            lib.llama_backend_init()
            _backend_ready = True


def forget_errors() -> None:
    """Before a call whose errors are to be quoted."""
    _last_errors.clear()


def errors_said() -> str:
    """The errors that llama.cpp has logged since, on one line."""
    return "; ".join(_last_errors) or "no reason given"


# --- memory --------------------------------------------------------------------------------------


class Native:
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
