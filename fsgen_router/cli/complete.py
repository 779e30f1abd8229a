"""``fsgen-router complete``: one answer, streamed."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import InvalidRequest
from ..generation import Finished, Restarted, TextDelta
from ..report.losses import degraded_words
from . import options as o
from .terminal import err, read_prompt, say, write, write_json
from .tokens import token_records


def complete(
    prompt: o.Prompt = None,
    fast: o.Fast = None,
    slow: o.Slow = None,
    fallback: o.Fallback = None,
    tuned: o.Tuned = None,
    prices: o.PricesFile = None,
    policy: o.Policy = None,
    method: o.Method = None,
    max_slow_calls: o.MaxSlowCalls = None,
    max_slow_tokens: o.MaxSlowTokens = None,
    max_cost: o.MaxCost = None,
    max_seconds: o.MaxSeconds = None,
    audit: o.Audit = 0.0,
    read_ahead: o.ReadAhead = 0,
    batching: o.Batching = None,
    max_tokens: o.MaxTokens = o.MAX_TOKENS,
    temperature: o.Temperature = 0.0,
    top_k: o.TopK = 0,
    top_p: o.TopP = 1.0,
    min_p: o.MinP = 0.0,
    stop: o.Stop = None,
    json_schema: o.JsonSchema = None,
    regex: o.Regex = None,
    grammar: o.Grammar = None,
    seed: o.Seed = None,
    as_chat: o.Chat = False,
    report: Annotated[
        bool, typer.Option("--report", help="Print what routing saved to standard error.", rich_help_panel="Output")
    ] = False,
    baseline: Annotated[
        bool,
        typer.Option(
            "--baseline",
            help="Also run the slow model alone, so that savings are measured, not estimated.",
            rich_help_panel="Output",
        ),
    ] = False,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="With --json: every token, who wrote it and why.", rich_help_panel="Output")
    ] = False,
    as_json: o.Json = False,
) -> None:
    """Continue a prompt, and write the text as it comes.

    The prompt is continued as raw text; --chat asks it as a user's message instead.
    From standard input, one newline at the end is dropped.

    Examples:

      fsgen-router complete \\
        "How many coins do 3 lamps and 4 ropes cost in Norvale?"

      echo "How many years do the ages of Eva Dale and Joel Yew add up to?" |
        fsgen-router complete --policy "entropy>0.5" --report

      fsgen-router complete --policy every:8 --method verify:near_best=0.9 \\
        "How many coins do 2 bells and 5 candles cost in Saltby?"

      fsgen-router complete --chat "..." \\
        --fast llama_cpp:small.gguf --slow llama_cpp:large.gguf
    """
    if tokens and not as_json:
        raise InvalidRequest("--tokens goes with --json", hint="add it, or let fsgen-router trace colour the tokens")
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
        max_cost=max_cost,
        max_seconds=max_seconds,
        json_schema=json_schema,
        regex=regex,
        grammar=grammar,
    )
    with o.open_router(
        fast,
        slow,
        policy,
        method,
        fallback=fallback,
        tuned=tuned,
        prices=prices,
        audit=audit,
        read_ahead=read_ahead,
        batching=batching,
    ) as router:
        request["baseline"] = baseline
        events = (
            router.stream_chat([{"role": "user", "content": text}], **request)
            if as_chat
            else router.stream(text, **request)
        )
        ends_line, answer = True, None
        try:
            for event in events:
                if isinstance(event, Finished):
                    answer = event.generation
                elif isinstance(event, TextDelta) and event.text and not as_json:
                    write(event.text)
                    ends_line = event.text.endswith("\n")
                elif isinstance(event, Restarted) and not as_json:
                    write("\n" * (not ends_line))
                    ends_line = True
                    say("The slow model begins the answer anew: what is above does not stand.")
        finally:
            if not ends_line:
                write("\n")
        assert answer is not None
        if as_json:
            write_json(
                {**answer.to_dict(tokens=False), **({"tokens": token_records(answer, router)} if tokens else {})}
            )
        if answer.degraded:
            say(f"Degraded: {degraded_words(answer.degraded)}.", "bold red")
        if report:
            err().print(answer.report())
