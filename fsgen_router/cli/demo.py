"""``fsgen-router demo``: the idea, on the embedded pair, in a minute."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Annotated, Any

import typer
from rich.console import Console, Group
from rich.panel import Panel
from rich.text import Text

from ..contracts.text_models import reads_tokens
from ..evaluation import Item, ask, reference_items
from ..generation import Generation
from ..records import Claim, ModelUsage, Usage
from ..report import Comparison, Report
from ..router import Router
from . import options as o
from .terminal import err, out, write_json
from .tokens import legend, marked, token_records

NOTE = (
    "This pair is tiny and knows an invented world only: it shows how routing works and stands for no real chat model."
)


@dataclass(frozen=True, slots=True)
class _Case:
    item: Item
    fast: Generation
    slow: Generation
    routed: Generation

    def right(self, which: str) -> bool:
        answer: Generation = getattr(self, which)
        return self.item.check(answer.text)


def demo(
    count: Annotated[int, typer.Option(min=1, max=1000, help="How many problems.")] = 5,
    start: Annotated[
        int, typer.Option(min=0, help="The first one's number in the test split. They are not picked.")
    ] = 0,
    fast: o.Fast = None,
    slow: o.Slow = None,
    policy: o.Policy = None,
    method: o.Method = None,
    max_slow_calls: o.MaxSlowCalls = None,
    max_slow_tokens: o.MaxSlowTokens = None,
    max_tokens: o.MaxTokens = o.MAX_TOKENS,
    temperature: o.Temperature = 0.0,
    seed: Annotated[int, typer.Option(help="Same seed, same text.", rich_help_panel="Writing")] = 0,
    as_json: o.Json = False,
) -> None:
    """Watch a small model answer, and a large one step in where it is unsure.

    Takes a few held-out problems, in order and not picked, and shows for each what the fast model
    writes alone, what the slow model writes alone, and the routed answer with every token coloured by
    its author and by what the slow model said of it; then what routing cost and saved. The reference
    pair needs no download and no network.

    Examples:

      fsgen-router demo

      fsgen-router demo --policy "entropy>0.5" --count 10

      fsgen-router demo --policy random:0.2 --method replace
    """
    request = o.make_request(
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
        max_slow_calls=max_slow_calls,
        max_slow_tokens=max_slow_tokens,
    )
    items = reference_items("test", count, start)
    console = out()
    with o.open_router(fast, slow, policy, method) as router:
        # On so small a pair it costs nothing to show the disagreement rate too.
        router.audit = float(reads_tokens(router.slow))
        if not as_json:
            _introduce(console, router, count)
        cases = []
        for number, item in enumerate(items, 1):
            with _waiting(f"problem {number} of {count}", show=not as_json):
                case = _run(router, item, request)
            cases.append(case)
            if not as_json:
                _show(console, number, case)
        report = total_report([case.routed for case in cases])
        if as_json:
            write_json(_record(router, cases, report, NOTE if fast is None else None))
        else:
            given = {"--fast": fast, "--slow": slow, "--policy": policy, "--method": method}
            _conclude(console, cases, report, shlex.join(_eval_command(given)))
            if fast is None:
                console.print(Text(NOTE, style="yellow"))
            serve = shlex.join(["fsgen-router", "serve", *_options(given)])
            console.print(Text(f"{serve} speaks to any client of the APIs of OpenAI and Anthropic.", style="dim"))


@contextmanager
def _waiting(what: str, *, show: bool) -> Iterator[None]:
    console = err()
    if show and console.is_terminal:
        with console.status(what):
            yield
    else:
        yield


def _run(router: Router, item: Item, request: dict[str, Any]) -> _Case:
    routed = ask(router, item, **request, baseline=True)
    alone = router.with_policy("never")
    alone.audit = 0.0
    fast = ask(alone, item, **{**request, "max_slow_calls": None, "max_slow_tokens": None})
    assert routed.baseline is not None
    return _Case(item, fast, routed.baseline, routed)


# --- totals --------------------------------------------------------------------------------------


def total_report(answers: Sequence[Generation]) -> Report:
    """One report over several answers with measured baselines: sums, and rates of the sums."""
    reports = [answer.report() for answer in answers]
    totals: dict[str, Any] = {
        name: _sum([getattr(report, name) for report in reports])
        for name in ("slow_forwards", "seconds", "flops", "money_usd")
    }
    reasons = sorted({report.finish_reason for report in reports})
    degraded = [report.degraded for report in reports if report.degraded]
    claims = [report.claim for report in reports]
    return Report(
        usage=_sum_usage([answer.usage for answer in answers]),
        **totals,
        policy=reports[0].policy,
        method=reports[0].method,
        finish_reason=" and ".join(reasons),
        degraded=degraded[0] if degraded else None,
        verified_tokens=sum(report.verified_tokens for report in reports),
        claim=_total_claim(claims),
        alone=_sum_alone([report.alone for report in reports]),
        fast_step_seconds=reports[-1].fast_step_seconds,  # over all of a Router's requests so far
        slow_step_seconds=reports[-1].slow_step_seconds,
        advice=reports[0].advice if all(report.advice for report in reports) else None,
        auditable=all(report.auditable for report in reports),
    )


def _total_claim(claims: Sequence[Claim | None]) -> Claim | None:
    """What holds of all answers; of how many it does not, and why not of the first of these."""
    against = [claim for claim in claims if claim is not None and not claim.holds]
    if not against:
        return claims[0]
    return Claim(against[0].certified, (f"{len(against)} of {len(claims)} answers: {against[0].reasons[0]}",))


def _sum(parts: Sequence[Comparison]) -> Comparison:
    routed = [part.routed for part in parts if part.routed is not None]
    alone = [part.slow_only for part in parts if part.slow_only is not None]
    complete = len(routed) == len(alone) == len(parts)
    return Comparison(sum(routed), sum(alone), parts[0].baseline) if complete else Comparison(None, None, "unknown")


def _sum_alone(parts: Sequence[ModelUsage | None]) -> ModelUsage | None:
    total = ModelUsage()
    for part in parts:
        if part is None:
            return None
        _add(total, part)
    return total


def _sum_usage(parts: Sequence[Usage]) -> Usage:
    total = Usage()
    for part in parts:
        _add(total, part)
        _add(total.fast, part.fast)
        _add(total.slow, part.slow)
        _add(total.tuned, part.tuned)
    total.first_token_seconds = None
    total.audited = all(part.audited for part in parts)
    return total


def _add(total: Usage | ModelUsage, part: Usage | ModelUsage) -> None:
    for field in fields(total):
        value = getattr(part, field.name)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and getattr(total, field.name) is not None:
            setattr(total, field.name, getattr(total, field.name) + value)


# --- for people ----------------------------------------------------------------------------------


def _introduce(console: Console, router: Router, count: int) -> None:
    fast, slow = router.fast, router.slow
    console.print(
        Text.assemble(
            ("fast model  ", "bold"),
            f"{fast.name}, {_size(fast.n_params)}\n",
            ("slow model  ", "bold"),
            f"{slow.name}, {_size(slow.n_params)}\n",
            ("policy      ", "bold"),
            f"{router.policy.name}\n",
            ("method      ", "bold"),
            f"{router.method.name}\n\n",
            f"{count} held-out problem{'s' * (count != 1)}, in order and not picked.",
        )
    )
    console.print(legend(console, judges=router.method.rule is not None))


def _size(n_params: int | None) -> str:
    return "of unknown size" if n_params is None else f"{n_params:,} parameters"


def _show(console: Console, number: int, case: _Case) -> None:
    usage = case.routed.usage
    question = (case.item.messages or ({"content": ""},))[-1]["content"]
    lines = [
        Text(question, style="bold"),
        Text(),
        _answer("fast alone", case.right("fast"), Text(case.fast.text.strip(), style="dim")),
        _answer("slow alone", case.right("slow"), Text(case.slow.text.strip(), style="dim")),
        _answer("routed", case.right("routed"), marked(case.routed.tokens, console)),
        Text(
            f"The slow model took {usage.slow_forwards} sequential steps instead of {case.slow.usage.tokens} "
            f"and wrote {usage.slow_tokens} of {usage.tokens} tokens" + _judged(case.routed) + ".",
            style="dim",
        ),
    ]
    title = f"{number}. {case.item.family.replace('_', ' ')} (expected: {case.item.answer})"
    console.print(Panel(Group(*lines), title=Text(title), title_align="left", border_style="dim"))


def _judged(answer: Generation) -> str:
    verified = sum(token.verified for token in answer.tokens)
    if not verified and not answer.usage.bonus_tokens:
        return ""
    return (
        f" (corrections {answer.usage.corrections}, bonus {answer.usage.bonus_tokens}); it let {verified} drafts stand"
    )


def _answer(who: str, right: bool, text: Text) -> Text:
    mark = ("✓ right", "bold green") if right else ("✗ wrong", "bold red")
    line = Text.assemble((f"{who:<11}", "bold"), mark, "  ", text)
    line.rstrip()
    return line


def _conclude(console: Console, cases: Sequence[_Case], report: Report, more: str) -> None:
    n = len(cases)
    scores = {which: sum(case.right(which) for case in cases) for which in ("fast", "slow", "routed")}
    console.print(
        Text.assemble(
            (f"Right of {n}: ", "bold"),
            f"fast alone {scores['fast']}, slow alone {scores['slow']}, ",
            (f"routed {scores['routed']}", "bold"),
            f". So few problems prove nothing: {more} measures with intervals.",
        )
    )
    console.print(Text("\nAll problems together:"))
    console.print(report)


def _eval_command(given: Mapping[str, str | None]) -> list[str]:
    """The command that measures what was shown: with the same options, not with the policy's name, which is a name."""
    return ["fsgen-router", "eval", *_options(given)]


def _options(given: Mapping[str, str | None]) -> list[str]:
    return [part for name, value in given.items() if value is not None for part in (name, value)]


# --- for programs --------------------------------------------------------------------------------


def _record(router: Router, cases: Sequence[_Case], report: Report, note: str | None) -> dict[str, Any]:
    problems = []
    for case in cases:
        routed = {"text": case.routed.text, "right": case.right("routed"), "tokens": token_records(case.routed, router)}
        problems.append(
            {
                "id": case.item.id,
                "prompt": (case.item.messages or ({"content": ""},))[-1]["content"],
                "answer": case.item.answer,
                "family": case.item.family,
                "level": case.item.level,
                "fast": {"text": case.fast.text, "right": case.right("fast")},
                "slow": {"text": case.slow.text, "right": case.right("slow")},
                "routed": routed,
            }
        )
    return {
        "pair": {
            role: {"name": model.name, "n_params": model.n_params}
            for role, model in (("fast", router.fast), ("slow", router.slow))
        },
        "n": len(cases),
        "right": {which: sum(case.right(which) for case in cases) for which in ("fast", "slow", "routed")},
        "problems": problems,
        "report": report.to_dict(),
        "note": note,
    }
