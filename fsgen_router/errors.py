"""Every error that this package raises.

::

    FsgenError
    ├── ConfigurationError (ValueError)   what was asked for does not exist or does not fit together
    │   └── VocabularyMismatch            a token-level method needs one vocabulary, these are two
    ├── InvalidRequest (ValueError)       this prompt or these options cannot be served
    │   └── PromptTooLong                 the prompt does not fit the context
    ├── ModelLoadError                    a model could not be made ready
    │   ├── ModelNotFound (FileNotFoundError)
    │   ├── ModelFileCorrupt
    │   └── NotEnoughMemory (MemoryError)
    ├── BackendError                      a model failed while it was working
    │   └── NoFreeSequence                all of a model's sequences are in use
    ├── VerifierFailed                    a caller's verifier raised; the answers it was to judge are kept
    ├── CalibrationError                  calibration cannot go on; what was done so far is kept
    │   ├── NothingToGain                 the slow model is not measurably better than the fast one
    │   └── CheckerFailed                 a caller's checker raised
    ├── QueueFull                         too many requests are waiting already
    ├── PolicyFileError                   a policy file is missing, corrupt or of a newer format
    ├── RouterClosed                      the Router was used after close()
    └── ForkedProcess                     a model that was loaded before a fork is used in the child

Errors of libraries underneath are mapped to these; ``hint`` says what to do about it.
"""

from __future__ import annotations


class FsgenError(Exception):
    """Base of all errors raised on purpose. ``hint`` is the way out, in one sentence."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigurationError(FsgenError, ValueError):
    """An unknown option, policy, method or backend, or parts that do not fit together."""


class VocabularyMismatch(ConfigurationError):
    """Two models whose token ids do not mean the same bytes."""


class InvalidRequest(FsgenError, ValueError):
    """A prompt or a request option that cannot be served."""


class PromptTooLong(InvalidRequest):
    """The prompt leaves no room for an answer in the context."""


class ModelLoadError(FsgenError):
    """A model could not be loaded."""


class ModelNotFound(ModelLoadError, FileNotFoundError):
    """No such file, or no such model on the hub."""

    # OSError formats itself from errno; ours is a sentence.
    __str__ = FsgenError.__str__


class ModelFileCorrupt(ModelLoadError):
    """The file is not a model, or is cut off."""


class NotEnoughMemory(ModelLoadError, MemoryError):
    """The weights or the KV cache do not fit."""


class BackendError(FsgenError):
    """A backend failed in the middle of its work."""


class NoFreeSequence(BackendError):
    """Every sequence that the model was given memory for is in use."""


class VerifierFailed(FsgenError):
    """A verifier raised, or gave no scores; ``candidates`` are the answers that it was to choose among, as texts."""

    def __init__(self, message: str, *, hint: str | None = None, candidates: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint=hint)
        self.candidates = candidates


class CalibrationError(FsgenError):
    """Calibration cannot go on. Traces and runs that were finished are kept in its work directory."""


class NothingToGain(CalibrationError):
    """The interval of accuracy_slow - accuracy_fast does not lie above 0, so no policy can be judged."""


class CheckerFailed(CalibrationError):
    """A caller's checker raised; the message names the prompt."""


class QueueFull(FsgenError):
    """More requests are waiting than the Router was told to keep."""


class PolicyFileError(FsgenError):
    """A policy file that cannot be read."""


class RouterClosed(FsgenError):
    """The Router's models have been released."""


class ForkedProcess(FsgenError):
    """A Router or a model was loaded before a fork and is used in the child, which has none of its threads."""
