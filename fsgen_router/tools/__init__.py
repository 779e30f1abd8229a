"""Tools that a model may call: what they are, how models write calls, and what an answer calls.

:mod:`.definitions` checks what callers give; :mod:`.formats` has the formats of models, found by their chat templates,
and makes the grammar that answers are held to; :mod:`.prompting` puts tools into words for templates that know none;
:mod:`.reading` reads calls in a text that grows, and :mod:`.plan` has all of it for one request.
"""

from .definitions import Choice, Tool, make_choice, make_tools
from .formats import FORMATS, GENERIC, ToolFormat, format_of
from .plan import ToolPlan
from .prompting import in_words

__all__ = [
    "FORMATS",
    "GENERIC",
    "Choice",
    "Tool",
    "ToolFormat",
    "ToolPlan",
    "format_of",
    "in_words",
    "make_choice",
    "make_tools",
]
