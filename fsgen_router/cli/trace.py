"""``fsgen-router trace``: who wrote each token, and why."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from ..report.losses import degraded_words
from . import options as o
from .terminal import err, out, read_prompt, say, write_json
from .tokens import legend, marked, table_legend, token_records, token_table


def trace(
    prompt: o.Prompt = None,
    fast: o.Fast = None,
    slow: o.Slow = None,
    tuned: o.Tuned = None,
    policy: o.Policy = None,
    method: o.Method = None,
    max_slow_calls: o.MaxSlowCalls = None,
    max_slow_tokens: o.MaxSlowTokens = None,
    audit: Annotated[
        bool,
        typer.Option(
            "--audit",
            help="Let the slow model read the finished answer, so that every token has slow_choice.",
            rich_help_panel="Routing",
        ),
    ] = False,
    max_tokens: o.MaxTokens = o.MAX_TOKENS,
    temperature: o.Temperature = 0.0,
    top_k: o.TopK = 0,
    top_p: o.TopP = 1.0,
    min_p: o.MinP = 0.0,
    stop: o.Stop = None,
    seed: o.Seed = None,
    as_chat: o.Chat = False,
    report: Annotated[
        bool, typer.Option("--report", help="Print the report to standard error too.", rich_help_panel="Output")
    ] = False,
    as_json: o.Json = False,
) -> None:
    """Show who wrote each token of an answer, and why.

    In a terminal: the answer in colours and a table of 80 columns. In a pipe or with --json: one JSON object a
    line and token, with every signal. Decisions are accept, escalate, span (written within an escalation's span)
    and forced (a mask left one choice). Verdicts are unchecked and accepted (the fast model's, judged
    by the slow one or not), corrected, bonus (behind drafts that were accepted) and written.

    Examples:

      fsgen-router trace "How many coins do 3 lamps and 4 ropes cost in Norvale?"

      fsgen-router trace --policy "max_prob<0.6" --method replace \\
        "How many years do the ages of Eva Dale and Joel Yew add up to?"

      fsgen-router trace --policy every:8 --method verify:near_best=0.5 \\
        "How many coins do 2 bells and 5 candles cost in Saltby?"

      fsgen-router trace --json \\
        "How many coins do 3 lamps and 4 ropes cost in Norvale?" |
        jq 'select(.verdict == "corrected") | .text'
    """
    text = read_prompt(prompt)
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
    with o.open_router(fast, slow, policy, method, tuned=tuned, audit=float(audit)) as router:
        answer = (
            router.chat([{"role": "user", "content": text}], **request) if as_chat else router.complete(text, **request)
        )
        console = out()
        if as_json or not console.is_terminal:
            for record in token_records(answer, router):
                write_json(record)
        else:
            console.print(Text(f"policy {answer.policy}, method {answer.method}", style="bold"))
            console.print(marked(answer.tokens, console))
            console.print(Text())
            console.print(token_table(answer, router))
            console.print(Text())
            console.print(legend(console, judges=router.method.rule is not None))
            console.print(table_legend(answer), style="dim")
        if answer.degraded:
            say(f"Degraded: {degraded_words(answer.degraded)}.", "bold red")
        if report:
            err().print(answer.report())
