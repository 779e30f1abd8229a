"""What routing saved, against the slow model alone: steps, seconds, FLOPs and money, kept apart.

A saving is 1 - routed / slow-only and is negative where routing cost more. Catch-up is counted: what
the slow model reads of the fast one's text is in its positions, FLOPs, seconds and input tokens.
"""

from .comparison import Comparison, cost_usd, flops
from .report import FSGEN_RATE, FSGEN_SOURCE, Report, make_report
from .session import SessionReport

__all__ = ["FSGEN_RATE", "FSGEN_SOURCE", "Comparison", "Report", "SessionReport", "cost_usd", "flops", "make_report"]
