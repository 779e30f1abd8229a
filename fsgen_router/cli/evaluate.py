"""``fsgen-router eval``: quality beside cost, with intervals."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich import box
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from .. import evaluation as ev
from ..contracts.policy import Policy
from ..errors import ConfigurationError
from ..generation import Generation
from ..policies import make_policy
from ..policies.basic import SIGNALS
from ..reference import world
from ..router import Router
from . import options as o
from .terminal import err, out, say, write_json

_CALIBRATION = 100
_PROBLEMS, _STATISTICS = "Problems", "Statistics"


@dataclass(frozen=True, slots=True)
class _Results:
    """Everything that was run, and what it comes to."""

    fast: ev.Run
    slow: ev.Run
    runs: tuple[ev.Run, ...]
    sweeps: dict[str, tuple[ev.Run, ...]]
    summaries: tuple[ev.Summary, ...]
    recovery: dict[str, dict[str, dict[float, ev.Estimate]]]
    """By sweep, rate and share of the gap."""
    methods: dict[str, str]
    """By policy: a policy file brings its own."""

    @property
    def method(self) -> str:
        """All methods that were run."""
        return " and ".join(dict.fromkeys(self.methods.values()))

    def label(self, policy: str) -> str:
        """A policy's name, with its method where that is not everyone's."""
        several = len(set(self.methods.values())) > 1
        return f"{policy}, {self.methods[policy]}" if several and policy in self.methods else policy


def evaluate(
    fast: o.Fast = None,
    slow: o.Slow = None,
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
            help=f"Also a sweep of about {len(ev.SWEEP_RATES)} settings of {', '.join(SIGNALS)} (thresholds at "
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
    given only where the interval of slow - fast excludes 0.

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
    with o.open_router(fast, slow, method=method, audit=audit, read_ahead=read_ahead, batching=batching) as router:
        results = _run(
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
        _plot(plot, results, pair=o.pair_title(router))
    source = str(prompts) if prompts else f"{world.VERSION} {split} {start} to {start + count - 1}"
    head = {
        "pair": {"fast": router.fast.name, "slow": router.slow.name},
        "problems": source,
        "n": len(items),
        "seed": seed,
        "resamples": resamples,
        "method": router.method.name,
    }
    if as_json:
        write_json(head | _record(results, single=len(policies) == 1 and not signals))
    else:
        _show(head, results)


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


# --- running -------------------------------------------------------------------------------------


class _Progress:
    """A bar over all answers on a terminal; a line per policy elsewhere."""

    def __init__(self, bars: Progress, task: TaskID) -> None:
        self._bars, self._task = bars, task

    def advance(self, _item: ev.Item, _answer: Generation) -> None:
        self._bars.advance(self._task)

    def begin(self, what: str) -> None:
        self._bars.update(self._task, description=what)

    def more(self, answers: int) -> None:
        self._bars.update(self._task, total=(self._bars.tasks[self._task].total or 0) + answers)

    def end(self, run: ev.Run) -> None:
        if not self._bars.console.is_terminal:
            say(f"{run.policy}: {run.accuracy:.1%} right of {len(run)}")


@contextmanager
def _progress(total: int) -> Iterator[_Progress]:
    console = err()
    columns = (
        TextColumn("{task.description:<24.24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        yield _Progress(bars, bars.add_task("loading", total=total))


def _run(
    router: Router,
    items: Sequence[ev.Item],
    policies: Sequence[Policy | None],
    signals: Sequence[tuple[str, str]],
    method: str | None,
    split: str | None,
    *,
    concurrency: int,
    seed: int,
    resamples: int,
    request: dict[str, Any],
) -> _Results:
    collectors = {signal: ev.signal_collector(signal) for signal, _ in signals if signal in SIGNALS}
    swept = len(signals) * len(ev.SWEEP_RATES)
    with _progress(len(items) * (2 + len(policies) + swept)) as progress:

        def advance(item: ev.Item, answer: Generation) -> None:
            progress.advance(item, answer)

        def collect(item: ev.Item, answer: Generation) -> None:
            progress.advance(item, answer)
            if answer.policy == "never":
                for add, _ in collectors.values():
                    add(item, answer)

        if collectors and split is not None:
            # Thresholds from problems that no result is reported on.
            progress.begin("thresholds")
            other = ev.reference_items("fit" if split == "calibration" else "calibration", _CALIBRATION)
            progress.more(len(other))
            ev.run_items(router, other, "never", on_answer=collect, concurrency=concurrency, **request)
        progress.begin("each model alone")
        fast, slow = ev.run_baselines(
            router, items, on_answer=advance if split else collect, concurrency=concurrency, **request
        )
        progress.end(fast)
        progress.end(slow)

        methods: dict[str, str] = {}

        def run(policy: Policy | str | None) -> ev.Run:
            routed = router if policy is None else router.with_policy(policy, method=method)
            progress.begin(routed.policy.name)
            done = ev.run_items(routed, items, on_answer=advance, concurrency=concurrency, **request)
            methods[done.policy] = routed.method.name
            progress.end(done)
            return done

        runs = [run(policy) for policy in policies]
        sweeps = {}
        for signal, suffix in signals:
            values = np.array(collectors[signal][1]) if signal in collectors else None
            forms = ev.sweep_policies(signal, values, suffix=suffix)
            progress.more((len(forms) - len(ev.SWEEP_RATES)) * len(items))
            sweeps[signal + suffix] = tuple(run(form) for form in forms)
        progress.begin("intervals")
        for swept_runs in sweeps.values():
            runs += swept_runs
        return _Results(
            fast,
            slow,
            tuple(runs),
            sweeps,
            tuple(ev.summarise(r, fast, slow, seed=seed, resamples=resamples) for r in (*runs, fast, slow)),
            {
                name: {
                    rate: ev.rate_at_recovery(fast, slow, swept_runs, rate=rate, seed=seed, resamples=resamples)
                    for rate in _RECOVERY_RATES
                }
                for name, swept_runs in sweeps.items()
            },
            methods,
        )


def _plot(path: Path, results: _Results, *, pair: str) -> None:
    from ..evaluation.plots import quality_plot

    by_name = {summary.policy: summary for summary in results.summaries}
    in_sweep = {run.policy for runs in results.sweeps.values() for run in runs}
    single = {results.label(run.policy): [by_name[run.policy]] for run in results.runs if run.policy not in in_sweep}
    curves = {name: [by_name[run.policy] for run in runs] for name, runs in results.sweeps.items()}
    # What the slow model wrote means the same for every method; escalations do not.
    quality_plot(
        path,
        curves | single,
        rate="slow_token_share",
        title="Quality against the slow model's share",
        pair=pair,
        method=results.method,
    )
    say(f"Plot written to {path}")


# --- results -------------------------------------------------------------------------------------

_ALONE = ("accuracy_fast", "accuracy_slow", "gap")
_RECOVERY_RATES = ("escalation_rate", "slow_token_share")
_COUNTS = ("corrections", "bonus_tokens", "discarded_tokens")


def _record(results: _Results, *, single: bool) -> dict[str, Any]:
    *summaries, _, slow = results.summaries
    policies = [_summary(run, summary) for run, summary in zip(results.runs, summaries, strict=True)]
    common = {name: value for key in _ALONE for name, value in getattr(slow, key).to_dict(key).items()}
    common |= slow.slow_forwards.to_dict("slow_forwards_slow_only")
    note = _gap_note(slow)
    if single:
        return {**common, **policies[0], "note": note}
    record: dict[str, Any] = {**common, "policies": policies, "note": note}
    if results.recovery:
        record["rate_at_recovery"] = {name: _recovery(rates) for name, rates in results.recovery.items()}
    return record


def _summary(run: ev.Run, summary: ev.Summary) -> dict[str, Any]:
    """A policy's figures, and per answer what became of drafts (``slow_forwards`` is per answer already)."""
    return summary.to_dict() | {f"{name}_per_answer": float(run.column(name).mean()) for name in _COUNTS}


def _recovery(rates: dict[str, dict[float, ev.Estimate]]) -> dict[str, dict[str, Any]]:
    by_level: dict[str, dict[str, Any]] = {}
    for rate, levels in rates.items():
        for level, estimate in levels.items():
            by_level.setdefault(f"{level:g}", {}).update(estimate.to_dict(rate))
    return by_level


def _gap_note(summary: ev.Summary) -> str | None:
    if summary.recovered_gap.value is not None:
        return None
    return (
        f"accuracy_slow - accuracy_fast is {_plain(summary.gap)}: its interval does not exclude 0, so no recovered "
        "gap is given. Take more prompts, or a pair that differs."
    )


def _plain(estimate: ev.Estimate) -> str:
    if estimate.value is None:
        return "unknown"
    span = f" [{estimate.interval[0]:.1%}, {estimate.interval[1]:.1%}]" if estimate.interval else ""
    return f"{estimate.value:.1%}{span}"


def _show(head: dict[str, Any], results: _Results) -> None:
    console = out()
    *policies, fast, slow = results.summaries
    console.print(
        Text(
            f"{head['n']} problems ({head['problems']}); {head['pair']['fast']} + {head['pair']['slow']}; "
            f"method {results.method}",
            style="bold",
        )
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
    table.add_column("policy", overflow="fold")
    for heading in ("right", "gap\nrecovered", "escalated", "slow\ntokens", "slow\nreads", "slow\nsteps"):
        # An interval is the widest cell: on 80 columns the policy's name is what folds, where it may.
        table.add_column(heading, justify="right", min_width=9, no_wrap=True)
    table.add_row(*_row(fast, alone=True), end_section=True)
    for number, summary in enumerate(policies, 1):
        table.add_row(*_row(summary, results.label(summary.policy)), end_section=number == len(policies))
    table.add_row(*_row(slow, alone=True))
    console.print(table)
    console.print(Text(_legend(head, slow), style="dim"))
    if results.recovery and slow.recovered_gap.value is not None:
        console.print(_recovery_table(results))
    if results.method != "replace":
        console.print(_drafts_table(results))
    if note := _gap_note(slow):
        console.print(Text(note, style="yellow"))
    for summary in results.summaries:
        if summary.truncated:
            say(f"{summary.policy}: {summary.truncated} answers met --max-tokens or the context", "yellow")
        if summary.degraded:
            say(f"{summary.policy}: in {summary.degraded} answers the slow model failed and was given up", "bold red")


def _recovery_table(results: _Results) -> Table:
    title = "share of the tokens that the slow model writes, where this much of the gap is recovered"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left", title_style="dim")
    table.add_column("sweep of", no_wrap=True)
    levels = next(iter(results.recovery.values()))["slow_token_share"]
    for level in levels:
        table.add_column(f"{level:.0%}", justify="right", no_wrap=True)
    for name, rates in results.recovery.items():
        table.add_row(Text(folded(name)), *(_cell(estimate) for estimate in rates["slow_token_share"].values()))
    return table


def _drafts_table(results: _Results) -> Table:
    """What became of drafts, where the method judges them."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="per answer", title_justify="left", title_style="dim")
    table.add_column("policy", overflow="fold")
    for name in _COUNTS:
        table.add_column(name.replace("_", " "), justify="right", no_wrap=True)
    for run in results.runs:
        table.add_row(Text(folded(run.policy, 26)), *(f"{run.column(name).mean():.2f}" for name in _COUNTS))
    return table


def _legend(head: dict[str, Any], slow: ev.Summary) -> str:
    return (
        "Percentages; below each its 95% interval "
        f"(bootstrap by prompt, {head['resamples']} draws, seed {head['seed']}). gap recovered: (right - fast alone) / "
        "(slow alone - fast alone); escalated: share of decisions; slow tokens: share of what was written; slow reads: "
        "share of prompt and answer positions that the slow model read (above 100% where it read drafts that were "
        "discarded); slow steps: sequential ones, as a share of the slow model's alone "
        f"({slow.slow_forwards.value:.1f} an answer)."
    )


def _row(summary: ev.Summary, label: str | None = None, *, alone: bool = False) -> list[str | Text]:
    rates = ("escalation_rate", "slow_token_share", "slow_position_share", "slow_forwards_relative")
    recovered = Text("") if alone else _cell(summary.recovered_gap)
    return [
        Text(folded(label or summary.policy)),
        _cell(summary.accuracy),
        recovered,
        *(_cell(getattr(summary, rate)) for rate in rates),
    ]


def _cell(estimate: ev.Estimate) -> Text:
    """A percentage and, dim below it, its interval."""
    if estimate.value is None:
        return Text("-")
    text = Text(f"{estimate.value:.1%}")
    # An interval of no width says nothing: the figure is fixed by what the policy is.
    if estimate.interval and estimate.interval[0] != estimate.interval[1]:
        text.append(
            "\n{}–{}".format(*(f"{100 * edge:.1f}".replace("100.0", "100") for edge in estimate.interval)), style="dim"
        )
    return text


def folded(name: str, width: int = 18) -> str:
    """A policy's name on several lines where it is longer than ``width``, never broken within a word or a number."""
    lines = [""]
    for part in re.split(r"(?=[:<>,])", name):
        if lines[-1] and len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)
