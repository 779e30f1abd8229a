"""When to escalate."""

from .basic import Always, AtPrompt, Capped, Every, Never, Random, Threshold
from .budget import Budget
from .cards import Guarantee, Pair, PolicyCard, fingerprint
from .files import PolicyPairWarning, check_pair, load_policy, save_policy
from .learned import Learned, SpanRule, check_prompt, guarantee_of
from .shortform import SHORT_FORMS, make_policy

__all__ = [
    "SHORT_FORMS",
    "Always",
    "AtPrompt",
    "Budget",
    "Capped",
    "Every",
    "Guarantee",
    "Learned",
    "Never",
    "Pair",
    "PolicyCard",
    "PolicyPairWarning",
    "Random",
    "SpanRule",
    "Threshold",
    "check_pair",
    "check_prompt",
    "fingerprint",
    "guarantee_of",
    "load_policy",
    "make_policy",
    "save_policy",
]
