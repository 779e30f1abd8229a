"""A small local model writes; a large one is called in only where the next tokens are uncertain.

::

    from fsgen_router import Router

    answer = Router().complete("...")
    print(answer.text, answer.report())

Importing this package loads no backend, and nothing else before a name of it is used.
"""

from importlib import import_module
from pkgutil import extend_path
from typing import TYPE_CHECKING, Any

# adapters/ and policies/ lie beside this folder in a checkout. Whoever stands in its root imports this folder from
# there, and finds those two where the editable install links them.
__path__ = extend_path(__path__, __name__)

from ._version import __version__

if TYPE_CHECKING:
    from .config import RequestKeywords, RequestOptions
    from .contracts.policy import REST, Context, Decision, Ledger, Policy
    from .contracts.text_models import WrappedPromptWarning
    from .contracts.tokenizer import TokenClass
    from .contracts.verifier import Draft, Verifier
    from .costs import PairCost
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
        VerifierFailed,
        VocabularyMismatch,
    )
    from .generation import Finished, Generation, ReasoningDelta, Restarted, StreamEvent, TextDelta, ToolCallDelta
    from .money import Budget
    from .pairing import (
        RewindWarning,
        SlowAloneWarning,
        SmallExtentWarning,
        SwappedModelsWarning,
        UnsteadyMachineWarning,
        VocabularyWarning,
    )
    from .records import (
        Candidate,
        Claim,
        MachinePrice,
        ModelCard,
        ModelUsage,
        Prices,
        Selection,
        Span,
        Token,
        ToolCall,
        Usage,
    )
    from .report import Comparison, Report, SessionReport
    from .router import Router
    from .rows.reading import Mask
    from .rows.signals import Signals
    from .session import Session
    from .text.conversation import SystemMessageWarning
    from .text.messages import Message, TextPart
    from .tools import Tool

__all__ = [
    "REST",
    "BackendError",
    "Budget",
    "CalibrationError",
    "Candidate",
    "CheckerFailed",
    "Claim",
    "Comparison",
    "ConfigurationError",
    "Constraint",
    "Context",
    "Decision",
    "Draft",
    "Finished",
    "ForkedProcess",
    "FsgenError",
    "Generation",
    "InvalidRequest",
    "Ledger",
    "MachinePrice",
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
    "PairCost",
    "Policy",
    "PolicyFileError",
    "Prices",
    "PromptTooLong",
    "QueueFull",
    "ReasoningDelta",
    "Report",
    "RequestKeywords",
    "RequestOptions",
    "Restarted",
    "RewindWarning",
    "Router",
    "RouterClosed",
    "Selection",
    "Session",
    "SessionReport",
    "Signals",
    "SlowAloneWarning",
    "SmallExtentWarning",
    "Span",
    "StreamEvent",
    "SwappedModelsWarning",
    "SystemMessageWarning",
    "TextDelta",
    "TextPart",
    "Token",
    "TokenClass",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "UnsteadyMachineWarning",
    "Usage",
    "Verifier",
    "VerifierFailed",
    "VocabularyMismatch",
    "VocabularyWarning",
    "WrappedPromptWarning",
    "__version__",
]

_HOMES = {
    "config": ("RequestKeywords", "RequestOptions"),
    "contracts.policy": ("REST", "Context", "Decision", "Ledger", "Policy"),
    "contracts.text_models": ("WrappedPromptWarning",),
    "contracts.tokenizer": ("TokenClass",),
    "contracts.verifier": ("Draft", "Verifier"),
    "costs": ("PairCost",),
    "decode": ("Constraint",),
    "errors": (
        "BackendError",
        "CalibrationError",
        "CheckerFailed",
        "ConfigurationError",
        "ForkedProcess",
        "FsgenError",
        "InvalidRequest",
        "ModelFileCorrupt",
        "ModelLoadError",
        "ModelNotFound",
        "NoFreeSequence",
        "NotEnoughMemory",
        "NothingToGain",
        "PolicyFileError",
        "PromptTooLong",
        "QueueFull",
        "RouterClosed",
        "VerifierFailed",
        "VocabularyMismatch",
    ),
    "money": ("Budget",),
    "pairing": (
        "RewindWarning",
        "SlowAloneWarning",
        "SmallExtentWarning",
        "SwappedModelsWarning",
        "UnsteadyMachineWarning",
        "VocabularyWarning",
    ),
    "generation": (
        "Finished",
        "Generation",
        "ReasoningDelta",
        "Restarted",
        "StreamEvent",
        "TextDelta",
        "ToolCallDelta",
    ),
    "records": (
        "Candidate",
        "Claim",
        "MachinePrice",
        "ModelCard",
        "ModelUsage",
        "Prices",
        "Selection",
        "Span",
        "Token",
        "ToolCall",
        "Usage",
    ),
    "report": ("Comparison", "Report", "SessionReport"),
    "router": ("Router",),
    "rows.reading": ("Mask",),
    "rows.signals": ("Signals",),
    "session": ("Session",),
    "text.conversation": ("SystemMessageWarning",),
    "text.messages": ("Message", "TextPart"),
    "tools": ("Tool",),
}
"""Which module each name comes from: it is loaded when the name is first used (PEP 562)."""
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
_ROOMS = {"adapters", "calibration", "costs", "errors", "evaluation", "money", "policies", "reference"}


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        value = getattr(import_module(f".{_HOME_OF[name]}", __name__), name)
        globals()[name] = value  # found at once from now on
        return value
    if name in _ROOMS:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})
