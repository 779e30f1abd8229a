"""When to escalate."""

from .basic import Always, Capped, Every, Never, Random, Threshold
from .budget import Budget
from .shortform import SHORT_FORMS, make_policy

__all__ = [
    "SHORT_FORMS",
    "Always",
    "Budget",
    "Capped",
    "Every",
    "Never",
    "Random",
    "Threshold",
    "make_policy",
]
