"""A small local model writes; a large one is called in only where the next tokens are uncertain.

    from fsgen_router import Router

    answer = Router().complete("...")
    print(answer.text, answer.report())

Importing this package loads no backend.
"""

from ._version import __version__
from .config import RequestOptions
from .errors import (
    BackendError,
    CalibrationError,
    CheckerFailed,
    ConfigurationError,
    FsgenError,
    InvalidRequest,
    ModelFileCorrupt,
    ModelLoadError,
    ModelNotFound,
    NoFreeSequence,
    NotEnoughMemory,
    NothingToGain,
    PolicyFileError,
    PromptTooLong,
    QueueFull,
    RouterClosed,
    VocabularyMismatch,
)
from .policy import REST, Context, Decision, Ledger, Policy
from .reading import Mask
from .records import Claim, Finished, Generation, Prices, Span, TextDelta, Token, Usage
from .router import Router, SmallExtentWarning
from .signals import Signals

__all__ = [
    "REST",
    "BackendError",
    "CalibrationError",
    "CheckerFailed",
    "Claim",
    "ConfigurationError",
    "Context",
    "Decision",
    "Finished",
    "FsgenError",
    "Generation",
    "InvalidRequest",
    "Ledger",
    "Mask",
    "ModelFileCorrupt",
    "ModelLoadError",
    "ModelNotFound",
    "NoFreeSequence",
    "NotEnoughMemory",
    "NothingToGain",
    "Policy",
    "PolicyFileError",
    "Prices",
    "PromptTooLong",
    "QueueFull",
    "RequestOptions",
    "Router",
    "RouterClosed",
    "Signals",
    "SmallExtentWarning",
    "Span",
    "TextDelta",
    "Token",
    "Usage",
    "VocabularyMismatch",
    "__version__",
]
