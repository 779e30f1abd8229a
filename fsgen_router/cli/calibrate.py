"""``fsgen-router calibrate``: from a pair and prompts to a policy file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from .. import calibration as cal
from ..calibration.bench import load_prompts
from ..calibration.cost import ASSUMED_AUROC
from ..calibration.options import check_output, require_rate_to_hold
from ..calibration.report import check_report_path
from ..calibration.target import DEFAULT_REGRET, require_enough_prompts
from . import options as o
from .progress import stage_bars
from .terminal import EXIT_FAILED, out, percent, say, show_table, write_json

_PROMPTS, _TARGET, _FIT = "Prompts", "Target", "Fit"


def calibrate(
    policy_file: Annotated[
        Path,
        typer.Option("--out", metavar="FILE.safetensors", help="The policy file to write.", rich_help_panel="Output"),
    ],
    fast: o.Fast = None,
    slow: o.Slow = None,
    tuned: o.Tuned = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.jsonl",
            help='{"prompt": ...} or {"messages": [...]} a line, with an "answer" where there is one. Needed for '
            "models of your own.",
            show_default="the reference pair's own problems",
            rich_help_panel=_PROMPTS,
        ),
    ] = None,
    count: Annotated[
        int, typer.Option(min=10, help="How many of the reference pair's problems.", rich_help_panel=_PROMPTS)
    ] = 1000,
    check: Annotated[
        str | None,
        typer.Option(
            metavar="CHECKER",
            help=f"When an answer is right: {', '.join(cal.CHECKERS)}. [cyan]python:[/] imports code that you name.",
            show_default="answer, or slow where answers are missing",
            rich_help_panel=_PROMPTS,
        ),
    ] = None,
    max_tokens: o.MaxTokens = o.MAX_TOKENS,
    stop: o.Stop = None,
    target_rate: Annotated[
        float | None,
        typer.Option(
            help="Escalate up to this share of the decisions, whether or not fewer would do. Nothing is certified.",
            show_default=False,
            rich_help_panel=_TARGET,
        ),
    ] = None,
    max_regret: Annotated[
        float | None,
        typer.Option(
            help="Regret at most: the share of prompts that are right with the slow model and wrong when routed. The "
            "least escalation for which that is certified; no policy where it is for none.",
            show_default=f"{DEFAULT_REGRET}, certified if possible",
            rich_help_panel=_TARGET,
        ),
    ] = None,
    confidence: Annotated[
        float, typer.Option(help="Of the certificate of --max-regret.", rich_help_panel=_TARGET)
    ] = 0.9,
    max_cost: Annotated[
        float | None,
        typer.Option(
            help="Measured seconds at most, as a share of the slow model's alone. Nothing is certified.",
            show_default=False,
            rich_help_panel=_TARGET,
        ),
    ] = None,
    bound: Annotated[
        str,
        typer.Option(
            metavar="TEST",
            help="The certificate's test: binomial, on all calibration prompts, or betting, which stops where it is "
            "settled and certifies less with as many.",
            rich_help_panel=_TARGET,
        ),
    ] = "binomial",
    hold: Annotated[
        bool, typer.Option("--hold", help="Let the threshold follow --target-rate.", rich_help_panel=_TARGET)
    ] = False,
    label: Annotated[
        str, typer.Option(help=f"What the score predicts: {', '.join(cal.LABELS)}.", rich_help_panel=_FIT)
    ] = "soft",
    scorer: Annotated[
        str, typer.Option(help=f"What is fitted: {', '.join(cal.SCORERS)}.", rich_help_panel=_FIT)
    ] = "logistic",
    prior: Annotated[bool, typer.Option("--prior", help="Add log-odds by token id.", rich_help_panel=_FIT)] = False,
    hidden: Annotated[
        bool,
        typer.Option(
            "--hidden", help="Let the score read the fast model's last hidden state too.", rich_help_panel=_FIT
        ),
    ] = False,
    rounds: Annotated[
        int, typer.Option(min=0, max=10, help="On-policy rounds of collecting.", rich_help_panel=_FIT)
    ] = 2,
    rollouts: Annotated[
        int, typer.Option(min=0, help="Budget of --label divergence, in continuations.", rich_help_panel=_FIT)
    ] = 2000,
    extent: Annotated[
        int, typer.Option(min=1, help="Tokens that the slow model writes at an escalation.", rich_help_panel=_FIT)
    ] = 1,
    span_window: Annotated[
        int | None,
        typer.Option(
            min=1, help="Also judge spans of so many drafted tokens.", show_default=False, rich_help_panel=_FIT
        ),
    ] = None,
    method: Annotated[str, typer.Option(metavar="METHOD", help=o.METHOD_TEXT, rich_help_panel="Routing")] = "replace",
    compare: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METHOD",
            help="Draw curves, and the learned policy's with this method too, or another scorer's ([cyan]svm[/]: "
            "FS-GEN's router); may be repeated.",
            show_default=False,
            rich_help_panel="Routing",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the fit, rollouts and intervals.", rich_help_panel=_FIT)] = 0,
    concurrency: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Prompts asked at once.",
            show_default="the sequences that both models hold (n_seq)",
            rich_help_panel=_PROMPTS,
        ),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Keeps what is finished, so that an interrupted calibration goes on.",
            show_default="beside --out",
            rich_help_panel="Output",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html",
            help="Write a report page and its figures.",
            show_default=False,
            rich_help_panel="Output",
        ),
    ] = None,
    curves: Annotated[
        bool,
        typer.Option(
            "--curves/--no-curves",
            help="Run what the report compares to: other signals, chance, an oracle.",
            rich_help_panel="Output",
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Say what it will cost, expected and at most, and stop.", rich_help_panel="Output"
        ),
    ] = False,
    as_json: o.Json = False,
) -> None:
    """Make a policy file for a pair of models, with a stated and tested target.

    Prompts are split by their hash: scorers are fitted on some, thresholds chosen and certified on
    others, figures given on the rest. Without a target: the least escalation with a regret of at most 5%,
    certified at 90% if the prompts allow it; the verdict says whether they do. What is finished is kept: run the same
    command again after an interruption, or with another target at no cost for the traces.

    Examples:

      fsgen-router calibrate --out policy.safetensors --report report.html

      fsgen-router calibrate --fast llama_cpp:a.gguf --slow llama_cpp:b.gguf \\
        --prompts prompts.jsonl --out policy.safetensors \\
        --max-regret 0.05 --confidence 0.9

      fsgen-router calibrate --out policy.safetensors --target-rate 0.1 --dry-run
    """
    options: dict[str, Any] = {
        "label": label,
        "scorer": scorer,
        "prior": prior,
        "hidden": hidden,
        "rounds": rounds,
        "rollouts": rollouts,
        "extent": extent,
        "span_window": span_window,
        "method": method,
        "compare": tuple(compare or ()),
        "hold": hold,
        "curves": curves,
        "max_tokens": max_tokens,
        "stop": tuple(stop or ()),
        "concurrency": concurrency,
        "seed": seed,
    }
    target: dict[str, Any] = {
        "target_rate": target_rate,
        "max_regret": max_regret,
        "confidence": confidence,
        "max_cost": max_cost,
        "bound": bound,
    }
    if dry_run:
        _estimate(fast, slow, tuned, prompts, check, count, policy_file, report, target, options, as_json=as_json)
        return
    with stage_bars() as progress:
        found = cal.calibrate(
            fast,
            slow,
            prompts,
            out=policy_file,
            tuned=tuned,
            check=check,
            count=count,
            work=work,
            report=report,
            progress=progress,
            **target,
            **options,
        )
    if as_json:
        write_json(found.to_dict())
    else:
        _show(found, report)
    if found.policy is None:
        raise typer.Exit(EXIT_FAILED)


def _estimate(
    fast: str | None,
    slow: str | None,
    tuned: str | None,
    prompts: Path | None,
    check: str | None,
    count: int,
    policy_file: Path,
    report: Path | None,
    target: dict[str, Any],
    options: dict[str, Any],
    *,
    as_json: bool,
) -> None:
    parsed = cal.make_options(**options)
    wanted = cal.make_target(**target)
    loaded = load_prompts(prompts, fast, slow, count=count)
    require_rate_to_hold(parsed, wanted)
    require_enough_prompts(loaded, wanted)
    check_output(policy_file)
    if report is not None:
        check_report_path(report)
    cal.make_checker(check, [item for _, items in loaded for item in items])
    with cal.open_pair(fast, slow, tuned=tuned, seed=parsed.seed) as router:
        stages = cal.estimate_cost(router, loaded, wanted, parsed)
    totals = {name: sum(getattr(stage, name) for stage in stages) for name in _COSTS}
    if as_json:
        rows = [asdict(stage) for stage in stages]
        write_json({"prompts": loaded.to_dict(), "target": str(wanted), "stages": rows, **totals})
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("stage", no_wrap=True)
    for heading in ("slow positions\nexpected", "\nat most", "seconds\nexpected", "\nat most"):
        table.add_column(heading, justify="right")
    shown = ("expected_positions", "slow_positions", "expected_seconds", "seconds")
    for stage in stages:
        table.add_row(stage.stage, *(f"{getattr(stage, name):,.0f}" for name in shown))
    table.add_section()
    table.add_row("in all", *(f"{totals[name]:,.0f}" for name in shown))
    alone = stages[0]
    table.add_row(
        "of both models alone",
        *(f"{totals[name] / max(getattr(alone, own), 1e-9):.1f}" for name, own in zip(shown, _ALONE, strict=True)),
    )
    console = out()
    console.print(Text(f"{len(loaded)} prompts from {loaded.source}; target: {wanted}", style="bold"))
    show_table(table)
    console.print(
        Text(
            f"Timed on {cal.SAMPLE} prompts, one at a time. Expected: rows are read once, the models differ as often "
            f"as on these prompts, a score tells where with an AUROC of {ASSUMED_AUROC:g}, and testing stops at a "
            f"rate of {wanted.nominal_rate:.0%}. At most: nothing is shared.",
            style="dim",
        )
    )


_COSTS = ("slow_tokens", "slow_positions", "seconds", "expected_positions", "expected_seconds")
_ALONE = ("slow_positions", "slow_positions", "seconds", "seconds")


# --- results -------------------------------------------------------------------------------------


def _show(found: cal.Calibration, report: Path | None) -> None:
    console = out()
    if found.policy is None:
        console.print(Text("No policy was written.", style="bold yellow"))
    else:
        console.print(Text(f"{found.path}: {found.policy.name}", style="bold"))
    console.print(Text(f"Target: {found.target}."))
    console.print(Text(f"{found.choice.reason}.", style="green" if found.choice.certified else "yellow"))
    if found.check == "slow":
        console.print("Right means equal to the slow model's answer: no expected answers were compared with.")
    held = found.held
    if held is not None and held.routed is not None:
        rate = held.routed.rate("escalation_rate") or 0.0
        console.print(
            f"On {len(held.fast)} report prompts: {held.routed.accuracy:.1%} right at an escalation rate of {rate:.1%} "
            f"(fast alone {held.fast.accuracy:.1%}, slow alone {held.slow.accuracy:.1%})."
        )
        if held.curves is not None:
            console.print(curves_table(held.curves))
    if report is not None:
        say(f"Report written to {report}")


def curves_table(curves: Mapping[str, Any]) -> Table:
    """Ways of routing on the report prompts, one a row."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("routing by")
    # Headings are broken where it reads well; figures and their intervals never.
    table.add_column("escalation rate that\nrecovers 95% of the gap", justify="right", no_wrap=True)
    table.add_column("mean gap recovered,\nrates 0 to 20%", justify="right", no_wrap=True)
    for name, curve in curves.items():
        table.add_row(name, percent(curve.recovery[0.95], "-"), percent(curve.area, "-"))
    return table
