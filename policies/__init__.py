"""When to escalate."""

from .audits import Audit, MissedEstimate, audit_of, estimate_missed
from .basic import Always, AtPrompt, Capped, Every, Never, Random, Threshold
from .best_of import BestOf, Check, Score, Vote
from .budget import Budget
from .by_tool import ByTool
from .cards import Guarantee, Pair, PolicyCard, fingerprint
from .extents import Extended
from .files import PolicyPairWarning, check_pair, load_policy, save_policy
from .learned import Learned, SpanRule, check_prompt, guarantee_of
from .online import OnlineHead, promote
from .shortform import SHORT_FORMS, make_policy

__all__ = [
    "SHORT_FORMS",
    "Always",
    "AtPrompt",
    "Audit",
    "BestOf",
    "Budget",
    "ByTool",
    "Capped",
    "Check",
    "Every",
    "Extended",
    "Guarantee",
    "Learned",
    "MissedEstimate",
    "Never",
    "OnlineHead",
    "Pair",
    "PolicyCard",
    "PolicyPairWarning",
    "Random",
    "Score",
    "SpanRule",
    "Threshold",
    "Vote",
    "audit_of",
    "check_pair",
    "check_prompt",
    "estimate_missed",
    "fingerprint",
    "guarantee_of",
    "load_policy",
    "make_policy",
    "promote",
    "save_policy",
]
