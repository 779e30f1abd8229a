"""A small local model writes; a large one is called in only where the next tokens are uncertain.

    from . import Router

    answer = Router().complete("...")
    print(answer.text, answer.report())

Importing this package loads no backend.
"""

from pkgutil import extend_path

# adapters/ and policies/ lie beside this folder in a checkout. Whoever stands in its root imports this folder from
# there, and finds those two where the editable install links them.
__path__ = extend_path(__path__, __name__)

from ._version import __version__
from .config import RequestKeywords, RequestOptions
from .contracts.policy import REST, Context, Decision, Ledger, Policy
from .contracts.text_models import WrappedPromptWarning
from .decode import Constraint
from .errors import (
    BackendError,
    CalibrationError,
    CheckerFailed,
    ConfigurationError,
    ForkedProcess,
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
from .records import (
    Claim,
    Finished,
    Generation,
    ModelCard,
    ModelUsage,
    Prices,
    ReasoningDelta,
    Span,
    StreamEvent,
    TextDelta,
    Token,
    Usage,
)
from .report import Comparison, Report
from .router import RewindWarning, Router, SmallExtentWarning, SwappedModelsWarning, VocabularyWarning
from .rows.reading import Mask
from .rows.signals import Signals
from .text.conversation import SystemMessageWarning
from .text.messages import Message, TextPart

__all__ = [
    "REST",
    "BackendError",
    "CalibrationError",
    "CheckerFailed",
    "Claim",
    "Comparison",
    "ConfigurationError",
    "Constraint",
    "Context",
    "Decision",
    "Finished",
    "ForkedProcess",
    "FsgenError",
    "Generation",
    "InvalidRequest",
    "Ledger",
    "Mask",
    "Message",
    "ModelCard",
    "ModelFileCorrupt",
    "ModelLoadError",
    "ModelNotFound",
    "ModelUsage",
    "NoFreeSequence",
    "NotEnoughMemory",
    "NothingToGain",
    "Policy",
    "PolicyFileError",
    "Prices",
    "PromptTooLong",
    "QueueFull",
    "ReasoningDelta",
    "Report",
    "RequestKeywords",
    "RequestOptions",
    "RewindWarning",
    "Router",
    "RouterClosed",
    "Signals",
    "SmallExtentWarning",
    "Span",
    "StreamEvent",
    "SwappedModelsWarning",
    "SystemMessageWarning",
    "TextDelta",
    "TextPart",
    "Token",
    "Usage",
    "VocabularyMismatch",
    "VocabularyWarning",
    "WrappedPromptWarning",
    "__version__",
]
