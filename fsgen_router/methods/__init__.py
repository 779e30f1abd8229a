"""What the slow model's rows do at an escalation. One method, one module."""

from .contrast import Contrast
from .proxy import Proxy
from .replace import Replace
from .settings import FSGEN_SETTINGS
from .shortform import SHORT_FORMS, make_method
from .verify import DEFAULT_DRAFT_LEN, Verify

__all__ = [
    "DEFAULT_DRAFT_LEN",
    "FSGEN_SETTINGS",
    "SHORT_FORMS",
    "Contrast",
    "Proxy",
    "Replace",
    "Verify",
    "make_method",
]
