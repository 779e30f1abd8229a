"""The policy that serves: its threshold, chosen by running candidates, and what watches over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..contracts.tokenizer import Tokenizer
from ..evaluation import SLOW_ONLY, Run
from ..policies import Learned
from ..policies.drift import make_monitor
from ..policies.prompt_check import PromptCheck, asked, fit_inputs
from .bench import Bench
from .candidates import candidate_policies, policy_at
from .fitting import Fitted
from .prompts import Prompts, prompt_key
from .runner import Runner, traced_name
from .target import Target
from .thresholds import BATCH, Choice, choose_certified, choose_cost, choose_rate


def choose(bench: Bench, fitted: Fitted, target: Target) -> Choice:
    """A threshold for the target, every candidate run on the calibration prompts."""
    options, runner = bench.options, bench.runners["calibration"]
    candidates = candidate_policies(
        fitted.scorer, fitted.scores(), fitted.traces.answer, extent=options.extent, span=options.span
    )
    slow = runner.run(SLOW_ONLY)
    with bench.stages.stage("candidates", len(candidates) * len(slow)) as runner.on_items:
        if target.rate is not None:
            choice = choose_rate(runner, candidates, target.rate, method=options.method)
        elif target.max_cost is not None:
            timed = bench.timed("calibration")
            timed.on_items = runner.on_items
            choice = choose_cost(timed, candidates, target.max_cost, timed.run(SLOW_ONLY), method=options.method)
        else:
            assert target.max_regret is not None
            if target.bound == "betting":
                runner, slow = _in_fixed_order(runner, slow)
            choice = choose_certified(
                runner,
                candidates,
                slow,
                bound=target.bound,
                alpha=target.max_regret,
                delta=1.0 - target.confidence,
                method=options.method,
                certain=target.certain,
            )
    bench.runners["calibration"].on_items = None
    return choice


def _in_fixed_order(runner: Runner, slow: Run) -> tuple[Runner, Run]:
    """Prompts in the order of their hashes: a file may be sorted, and testing that stops early sees the first ones."""
    order = sorted(range(len(slow)), key=lambda number: prompt_key(runner.items[number]))
    items = [runner.items[number] for number in order]
    ordered = replace(runner, items=items, split=f"{runner.split}-by-hash", chunk=BATCH)
    return ordered, Run(slow.policy, tuple(slow.outcomes[number] for number in order))


def nominal_policy(bench: Bench, fitted: Fitted, target: Target) -> Learned:
    """What figures are given of where no candidate met the target."""
    options = bench.options
    return policy_at(
        fitted.scorer,
        fitted.scores(),
        fitted.traces.answer,
        target.nominal_rate,
        extent=options.extent,
        span=options.span,
    )


def watch(bench: Bench, policy: Learned) -> Learned:
    """The policy with a drift monitor made of the calibration prompts, routed as in serving: of the fast model's
    signals, so the slow one need not read what it was not asked for."""
    method = bench.options.method
    answers = bench.runners["calibration"].answers(policy, method)
    name = f"signals-calibration-{traced_name(policy, method)}"
    traces = bench.trace("calibration", answers, name, asks_slow=False)
    features = traces.features()
    decided = policy.decided(features, traces.prompt)
    monitor = make_monitor(
        policy.scorer.score(features[decided]), traces.prompt[decided], policy.threshold, seed=bench.options.seed
    )
    return replace(policy, drift=monitor)


def make_inputs(
    tokenizer: Tokenizer, prompts: Prompts, *, stop: Sequence[str] = (), max_tokens: int | None = None
) -> PromptCheck:
    """What tells prompts of another kind: counted on the fit prompts, its limits set on the calibration prompts;
    and how long an answer could be there."""
    known, held = (
        [asked(tokenizer, prompt=item.prompt, messages=item.messages) for item in items]
        for items in (prompts.fit, prompts.calibration)
    )
    return replace(fit_inputs(known, held, tokenizer.n_vocab, stop=stop), longest_answer=max_tokens)
