"""Money: price tables, what a call costs and when it pays, and budgets that are asked before it is made.

A file is one of these: ``table`` (prices, and where they come from), ``arithmetic`` (what they make of tokens),
``budget`` (caps that several requests may share), ``terms`` (what one request is held to).
"""

from ..contracts.billing import Billed
from ..contracts.policy import Savings
from .arithmetic import LEAST_CACHED, CallCost, SmallCalls, cost_of, local_bill, margin_usd, small_calls
from .budget import Budget, Purse, Spending
from .table import PRICES_VARIABLE, PriceTable, known_prices, parse_prices
from .terms import Terms

__all__ = [
    "LEAST_CACHED",
    "PRICES_VARIABLE",
    "Billed",
    "Budget",
    "CallCost",
    "PriceTable",
    "Purse",
    "Savings",
    "SmallCalls",
    "Spending",
    "Terms",
    "cost_of",
    "known_prices",
    "local_bill",
    "margin_usd",
    "parse_prices",
    "small_calls",
]
