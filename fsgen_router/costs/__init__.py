"""What forwards cost on this machine, and what an answer will take: :class:`PairCost`.

A model's forwards are measured (``measuring``) into a table (``forward``), kept by model, options and machine
(``store``, ``machine``). From two tables follow the expected seconds of an answer in a mode (``expected``), and the
mode that a pair is run with where none is named (``choosing``).
"""

from .choosing import Candidate, Choice, assess, assumed_rates, choose_mode, choose_remote, disagreement
from .expected import Judged, Mode, PairCost, Rates
from .forward import ForwardCost, Point
from .measuring import QUICK, THOROUGH, Effort, measure_forwards, measure_steps
from .store import CostStore, cache_folder

__all__ = [
    "QUICK",
    "THOROUGH",
    "Candidate",
    "Choice",
    "CostStore",
    "Effort",
    "ForwardCost",
    "Judged",
    "Mode",
    "PairCost",
    "Point",
    "Rates",
    "assess",
    "assumed_rates",
    "cache_folder",
    "choose_mode",
    "choose_remote",
    "disagreement",
    "measure_forwards",
    "measure_steps",
]
