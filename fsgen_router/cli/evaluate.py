"""``fsgen-router eval``: quality beside cost, with intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from .. import evaluation as ev
from ..contracts.policy import Policy
from ..errors import ConfigurationError
from ..policies import make_policy
from ..policies.basic import THRESHOLDS
from ..reference import world
from . import options as o
from .evaluate_run import run_all
from .evaluate_show import record, show, show_plot
from .terminal import write_json

_PROBLEMS, _STATISTICS = "Problems", "Statistics"


def evaluate(
    fast: o.Fast = None,
    slow: o.Slow = None,
    fallback: o.Fallback = None,
    tuned: o.Tuned = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="POLICY",
            help="A policy to evaluate, a short form or a file; may be repeated.",
            show_default=o.DEFAULT_POLICY_TEXT,
            rich_help_panel="Routing",
        ),
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SIGNAL",
            help=f"Also a sweep of about {len(ev.SWEEP_RATES)} settings of {', '.join(THRESHOLDS)} (thresholds at "
            "quantiles of the signal), random, budget or every; [cyan]entropy,span=8[/] for spans; may be repeated.",
            show_default=False,
            rich_help_panel="Routing",
        ),
    ] = None,
    method: o.Method = None,
    max_slow_calls: o.MaxSlowCalls = None,
    max_slow_tokens: o.MaxSlowTokens = None,
    audit: o.Audit = 0.0,
    read_ahead: o.ReadAhead = 0,
    batching: o.Batching = None,
    split: Annotated[
        str, typer.Option(help=f"Of the reference world: {', '.join(world.SPLITS)}.", rich_help_panel=_PROBLEMS)
    ] = "test",
    count: Annotated[int, typer.Option(min=1, help="How many problems.", rich_help_panel=_PROBLEMS)] = 200,
    start: Annotated[int, typer.Option(min=0, help="The first one's number.", rich_help_panel=_PROBLEMS)] = 0,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.jsonl",
            help='Your own problems: {"prompt": ..., "answer": ...} or {"messages": [...], "answer": ...} a line.',
            show_default=False,
            rich_help_panel=_PROBLEMS,
        ),
    ] = None,
    match: Annotated[
        str,
        typer.Option(
            help="When a text of your own problems is right: answer (behind the last 'Answer:', else all of it), "
            "exact, contains, number (the last one).",
            rich_help_panel=_PROBLEMS,
        ),
    ] = "answer",
    max_tokens: o.MaxTokens = o.MAX_TOKENS,
    temperature: o.Temperature = 0.0,
    top_k: o.TopK = 0,
    top_p: o.TopP = 1.0,
    min_p: o.MinP = 0.0,
    stop: o.Stop = None,
    seed: Annotated[
        int, typer.Option(help="Of the bootstrap, of random policies and of sampling.", rich_help_panel=_STATISTICS)
    ] = 0,
    resamples: Annotated[
        int, typer.Option(min=100, help="Bootstrap draws, by prompt.", rich_help_panel=_STATISTICS)
    ] = 2000,
    concurrency: Annotated[int, typer.Option(min=1, help="Problems asked at once.", rich_help_panel=_STATISTICS)] = 1,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png",
            help="Plot accuracy against the share of tokens that the slow model wrote.",
            show_default=False,
            rich_help_panel="Output",
        ),
    ] = None,
    as_json: o.Json = False,
) -> None:
    """Measure quality and cost of policies on problems with checkable answers.

    Both models alone are run once and every policy is compared to them, paired by prompt. Intervals
    are 95%, by a bootstrap over prompts. The recovered gap, (accuracy - fast) / (slow - fast), is
    given only where the interval of slow - fast lies above 0.

    Examples:

      fsgen-router eval --policy "entropy>0.7" --policy random:0.1

      fsgen-router eval --sweep entropy --sweep random --plot curve.png

      fsgen-router eval --sweep entropy --method verify:near_best=0.9 --json

      fsgen-router eval --prompts mine.jsonl --match number --json
    """
    request = o.make_request(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
        stop=stop,
        max_slow_calls=max_slow_calls,
        max_slow_tokens=max_slow_tokens,
    )
    # None is the Router's own, which depends on the pair.
    policies: list[Policy | None] = [make_policy(form) for form in policy or ()]
    if not policies and not sweep:
        policies = [None]
    signals = [_check_sweep(form) for form in sweep or []]
    if plot is not None:
        from ..evaluation.plots import check_plot_path

        check_plot_path(plot)
    items = _items(prompts, match, split, count, start)
    with o.open_router(
        fast,
        slow,
        method=method,
        fallback=fallback,
        tuned=tuned,
        audit=audit,
        read_ahead=read_ahead,
        batching=batching,
    ) as router:
        results = run_all(
            router,
            items,
            policies,
            signals,
            method,
            None if prompts else split,
            concurrency=concurrency,
            seed=seed,
            resamples=resamples,
            request=request,
        )
    if plot is not None:
        show_plot(plot, results, pair=o.pair_title(router))
    source = str(prompts) if prompts else f"{world.VERSION} {split} {start} to {start + count - 1}"
    head = {
        "pair": {"fast": router.fast.name, "slow": router.slow.name}
        | ({} if router.tuned is None else {"tuned": router.tuned.name}),
        "problems": source,
        "n": len(items),
        "seed": seed,
        "resamples": resamples,
        "method": router.method.name,
    }
    if as_json:
        write_json(head | record(results, single=len(policies) == 1 and not signals))
    else:
        show(head, results)


def _check_sweep(form: str) -> tuple[str, str]:
    """A sweep's signal and its suffix (",span=8"), checked before anything runs."""
    signal, comma, rest = form.replace(" ", "").partition(",")
    for example in ev.sweep_policies(signal, np.ones(1), rates=(0.5,), suffix=comma + rest):
        make_policy(example)
    return signal, comma + rest


def _items(prompts: Path | None, match: str, split: str, count: int, start: int) -> list[ev.Item]:
    known = next((name for name in ev.MATCHES if name == match), None)
    if known is None:
        raise ConfigurationError(f"unknown match {match!r}", hint=f"available: {', '.join(ev.MATCHES)}")
    if prompts is not None:
        return ev.read_items(prompts, match=known)
    return ev.reference_items(_split(split), count, start)


def _split(name: str) -> world.Split:
    for split in world.SPLITS:
        if split == name:
            return split
    raise ConfigurationError(f"unknown split {name!r}", hint=f"available: {', '.join(world.SPLITS)}")
