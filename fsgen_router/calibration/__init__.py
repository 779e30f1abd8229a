"""From a pair of models and prompts to a policy file with a stated, tested target.

::

    from fsgen_router.calibration import calibrate

    found = calibrate("llama_cpp:small.gguf", "llama_cpp:large.gguf", "prompts.jsonl",
                      out="policy.safetensors", report="report.html")
    print(found.choice.reason)

Prompts are split by their hash into three: scorers are fitted on ``fit``, thresholds chosen and
certified on ``calibration``, figures given on ``report``. The steps, for notebooks::

    from fsgen_router.calibration import (
        choose, collect_and_fit, hold_out, make_inputs, make_target,
        open_bench, open_pair, reference_prompts, require_gap,
    )

    target = make_target(max_regret=0.2, confidence=0.9)
    with open_pair(None, None) as router:
        bench = open_bench(router, reference_prompts(300), "calibration.work")
        require_gap(bench)                          # is there anything to gain?
        fitted = collect_and_fit(bench, target)     # traces, labels, on-policy rounds, a scorer
        choice = choose(bench, fitted, target)      # candidates, each run on the calibration prompts
        inputs = make_inputs(router.fast.tokenizer, bench.prompts)  # what tells prompts of another kind
        held = hold_out(bench, fitted, choice.policy)

What is finished is kept in the work directory, so each may be called again at no cost. All of them share what
the models have read (:class:`SharedRows`). Needs the extra ``calibrate``.

Its files, in the order in which a calibration comes through them::

    pipeline    calibrate(): all steps, one after the other
    options     how a policy is made, checked before hours of work
    target      what a threshold is chosen for, and whether the prompts are enough to certify it
    cost        what it will cost, estimated before it runs
    prompts     the prompts, and their three splits
    checks      when an answer is right
    bench       what every step works on: a pair, prompts that both models answered alone, a work directory
    rows        a trie in front of each model, so that what any run has read is read once
    answers     a Router's answers to prompts, kept
    traces      what both models think at every position of an answer
    labels      at which positions the slow model was worth asking
    fit         a scorer of traces and labels
    fitting     traces, labels and a scorer, on the slow model's answers and then in on-policy rounds
    candidates  which thresholds are tried: at quantiles of the scores
    runner      each candidate run over prompts
    thresholds  which candidate meets the target: by rate, by cost, or by certified risk
    choosing    the policy that serves: its threshold, its drift monitor, its check of prompts
    metrics     how well a score tells positions apart, and how well it is calibrated
    tokens      which tokens a score sends to the slow model
    curves      quality against cost on the report prompts
    held_out    all of that on the report prompts
    result      what was found, and the header of the policy file
    figures     its figures
    report      its page
    progress    stages, told to who listens
    store       what is finished, on disk
"""

from ..evaluation import make_outcome
from .answers import Answers, answer_items
from .bench import Bench, open_bench, open_pair, require_gap
from .candidates import CANDIDATE_RATES, Span, candidate_policies
from .checks import CHECKERS, Checker, bind, make_checker
from .choosing import choose, make_inputs
from .cost import SAMPLE, StageCost, estimate_cost
from .curves import Curve, Point, random_runs, ratio_at_recovery, recovered_area, threshold_runs
from .fit import CALIBRATIONS, SCORERS, fit_scorer
from .fitting import Fitted, Round, collect_and_fit
from .held_out import Held, hold_out
from .labels import LABELS, Labels, disagreement, divergence, roll_out, soft
from .metrics import auroc, average_precision, calibration_error, reliability, score_metrics
from .options import CalibrationOptions, make_options
from .pipeline import calibrate
from .progress import Progress, Silent, Stages
from .prompts import SHARES, SPLITS, Prompts, read_prompts, reference_prompts, split_items
from .report import write_report
from .result import Calibration
from .rows import SharedRows
from .runner import Runner
from .store import WorkDirectory
from .target import Target, make_target
from .thresholds import Choice, choose_certified, choose_cost, choose_rate, regret
from .traces import Traces, trace_answer, trace_answers

__all__ = [
    "CALIBRATIONS",
    "CANDIDATE_RATES",
    "CHECKERS",
    "LABELS",
    "SAMPLE",
    "SCORERS",
    "SHARES",
    "SPLITS",
    "Answers",
    "Bench",
    "Calibration",
    "CalibrationOptions",
    "Checker",
    "Choice",
    "Curve",
    "Fitted",
    "Held",
    "Labels",
    "Point",
    "Progress",
    "Prompts",
    "Round",
    "Runner",
    "SharedRows",
    "Silent",
    "Span",
    "StageCost",
    "Stages",
    "Target",
    "Traces",
    "WorkDirectory",
    "answer_items",
    "auroc",
    "average_precision",
    "bind",
    "calibrate",
    "calibration_error",
    "candidate_policies",
    "choose",
    "choose_certified",
    "choose_cost",
    "choose_rate",
    "collect_and_fit",
    "disagreement",
    "divergence",
    "estimate_cost",
    "fit_scorer",
    "hold_out",
    "make_checker",
    "make_inputs",
    "make_options",
    "make_outcome",
    "make_target",
    "open_bench",
    "open_pair",
    "random_runs",
    "ratio_at_recovery",
    "read_prompts",
    "recovered_area",
    "reference_prompts",
    "regret",
    "reliability",
    "require_gap",
    "roll_out",
    "score_metrics",
    "soft",
    "split_items",
    "threshold_runs",
    "trace_answer",
    "trace_answers",
    "write_report",
]
