"""Which way of answering pays: modes of a pair measured on prompts, and one of them recommended.

::

    from fsgen_router.recommend import recommend

    found = recommend("llama_cpp:small.gguf", "llama_cpp:large.gguf", "problems.jsonl", check="number")
    print(found.advice.verdict, found.evidence, found.python)

Each model alone, routing by token with ``replace`` and ``verify``, speculative decoding, drafts judged loosely,
handing over the rest, and one decision for a whole answer: all are answered in turns, prompt by prompt, so that what
else the machine does hits all alike. :func:`decide` is the rule, on figures alone. Needs the
extra ``eval``; the page needs ``calibrate``.
"""

from .decision import MOST_PROMPTS, WORTH, Advice, Option, Verdict, decide, loss_bound
from .figures import PREFERENCES, Figures
from .measuring import BLOCK, Measurements
from .models import Models
from .modes import ROUTED, Kind, Mode, Seat, pair_modes
from .pipeline import DEFAULT_COUNT, DEFAULT_QUALITY_LOSS, recommend
from .result import Recommendation
from .words import headline

__all__ = [
    "BLOCK",
    "DEFAULT_COUNT",
    "DEFAULT_QUALITY_LOSS",
    "MOST_PROMPTS",
    "PREFERENCES",
    "ROUTED",
    "WORTH",
    "Advice",
    "Figures",
    "Kind",
    "Measurements",
    "Mode",
    "Models",
    "Option",
    "Recommendation",
    "Seat",
    "Verdict",
    "decide",
    "headline",
    "loss_bound",
    "pair_modes",
    "recommend",
]
