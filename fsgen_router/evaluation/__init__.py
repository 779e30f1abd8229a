"""Quality beside cost on problems with checkable answers, with intervals by prompt.

::

    from fsgen_router import Router
    from fsgen_router.evaluation import reference_items, run_baselines, run_items, summarise

    router, items = Router(), reference_items("test", 20)
    fast, slow = run_baselines(router, items)
    run = run_items(router, items, "entropy>0.7")
    print(summarise(run, fast, slow).to_dict())

A :class:`Run` holds one policy's outcomes, and ``run.column("right")`` is an array over the items in
their order, so runs over the same items are paired. Every interval is a percentile bootstrap
(Efron and Tibshirani, 1993, chapter 13) that resamples prompts, never tokens: the tokens of one
answer depend on each other. The same seed draws the same prompts for every run.

The statistics need the extra ``eval``; running items does not.
"""

from .equal_work import EqualWork, at_equal_work
from .intervals import Estimate, Interval, bootstrap, interval
from .items import MATCHES, Item, Match, matches, read_items, reference_items
from .runs import (
    COLUMNS,
    RATES,
    SLOW_ONLY,
    Array,
    OnAnswer,
    Outcome,
    Run,
    ask,
    make_outcome,
    run_baselines,
    run_items,
    whole_query,
)
from .summaries import Summary, rate_at_recovery, recovered_gap, summarise
from .sweeps import SWEEP_RATES, signal_collector, signal_values, sweep_policies

__all__ = [
    "COLUMNS",
    "MATCHES",
    "RATES",
    "SLOW_ONLY",
    "SWEEP_RATES",
    "Array",
    "EqualWork",
    "Estimate",
    "Interval",
    "Item",
    "Match",
    "OnAnswer",
    "Outcome",
    "Run",
    "Summary",
    "ask",
    "at_equal_work",
    "bootstrap",
    "interval",
    "make_outcome",
    "matches",
    "rate_at_recovery",
    "read_items",
    "recovered_gap",
    "reference_items",
    "run_baselines",
    "run_items",
    "signal_collector",
    "signal_values",
    "summarise",
    "sweep_policies",
    "whole_query",
]
