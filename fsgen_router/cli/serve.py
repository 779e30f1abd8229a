"""``fsgen-router serve``: the pair behind the APIs that clients speak."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..contracts.text_models import reads_tokens
from ..errors import ConfigurationError, InvalidRequest
from ..evaluation.runs import SLOW_ONLY
from ..money import Budget
from ..router import MAX_WAITING, Router
from . import options as o
from .terminal import say

_SERVER, _ACCESS, _LIMITS = "Server", "Access", "Limits"


def serve(
    fast: o.Fast = None,
    slow: o.Slow = None,
    fallback: o.Fallback = None,
    tuned: o.Tuned = None,
    prices: o.PricesFile = None,
    policy: o.Policy = None,
    method: o.Method = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=POLICY",
            help="A model name of your own, and the policy behind it; may be repeated. There are always "
            "[cyan]local/router[/], [cyan]local/fast[/] and [cyan]local/slow[/].",
            show_default=False,
            rich_help_panel=_SERVER,
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Where to listen.", rich_help_panel=_SERVER)] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any that is free.", rich_help_panel=_SERVER)] = 8000,
    keys: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Keys that clients may show, one a line (or sha256: and its digest); also in the environment, "
            "[cyan]FSGEN_SERVE_KEYS[/].",
            show_default=False,
            rich_help_panel=_ACCESS,
        ),
    ] = None,
    no_keys: Annotated[
        bool,
        typer.Option("--no-keys", help="Listen elsewhere than on loopback without keys.", rich_help_panel=_ACCESS),
    ] = False,
    cors: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="An origin whose pages may ask; may be repeated.",
            show_default="none",
            rich_help_panel=_ACCESS,
        ),
    ] = None,
    max_body_bytes: Annotated[int, typer.Option(help="Of a request.", rich_help_panel=_LIMITS)] = 4 * 1024 * 1024,
    max_prompt_tokens: Annotated[
        int | None, typer.Option(help="Of a prompt.", show_default="the context", rich_help_panel=_LIMITS)
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Of an answer.", show_default="the context", rich_help_panel=_LIMITS)
    ] = None,
    max_concurrent: Annotated[int, typer.Option(help="Requests at once per key.", rich_help_panel=_LIMITS)] = 64,
    max_waiting: Annotated[
        int, typer.Option(help="Requests that wait before others are refused.", rich_help_panel=_LIMITS)
    ] = MAX_WAITING,
    max_cost: Annotated[
        float | None,
        typer.Option(
            metavar="USD",
            help="Cap on what the slow model costs for all requests; behind it the fast model goes on alone.",
            show_default="none",
            rich_help_panel=_LIMITS,
        ),
    ] = None,
    log_prompts: Annotated[
        bool,
        typer.Option("--log-prompts", help="Prompts and answers in the request log.", rich_help_panel=_SERVER),
    ] = False,
    audit: o.Audit = 0.0,
    read_ahead: o.ReadAhead = 0,
) -> None:
    """Serve the pair to any client: chat completions, completions, responses and messages, streamed.

    The request log goes to standard error. Ctrl-C, or SIGTERM, lets nobody new in and finishes the answers under way.

    Examples:

      fsgen-router serve

      fsgen-router serve --fast llama_cpp:small.gguf?n_seq=8 \\
        --slow llama_cpp:large.gguf?n_seq=8 --policy "entropy>1.2"

      fsgen-router serve --model careful=entropy>0.3 --model quick=never
    """
    from ..serve import ServeOptions
    from ..serve import serve as run
    from ..serve.options import read_keys

    options = ServeOptions.of(
        host=host,
        port=port,
        models=_named(model or []),
        keys=read_keys(keys),
        no_keys=no_keys,
        cors=tuple(cors or ()),
        max_body_bytes=max_body_bytes,
        max_prompt_tokens=max_prompt_tokens,
        max_new_tokens=max_new_tokens,
        max_concurrent=max_concurrent,
        log_prompts=log_prompts,
    )
    with o.open_router(
        fast,
        slow,
        policy,
        method,
        fallback=fallback,
        tuned=tuned,
        prices=prices,
        budget=None if max_cost is None else Budget(usd=max_cost),
        audit=audit,
        read_ahead=read_ahead,
        batching=True,
        max_waiting=max_waiting,
    ) as router:
        _warm_up(router)
        _log_to_standard_error()
        say(f"{o.pair_title(router)}, policy {router.policy.name}, method {router.method.name}")
        run(router, options, listening=lambda host, port: _tell(host, port, keys=bool(options.keys)))
    say("Stopped.")


def _warm_up(router: Router) -> None:
    """Have the models write a token each, so that what they do once is done before somebody waits for it."""
    ways: list[tuple[str, str | None]] = [("never", None)]
    if reads_tokens(router.slow):
        ways.append((SLOW_ONLY, "replace"))
        router.measure_steps()  # so that answers can say what they saved in seconds
    for policy, method in ways:
        with router.with_policy(policy, method=method) as twin:  # with a ledger of its own
            try:
                twin.chat([{"role": "user", "content": "a"}], max_tokens=1)
            except (ConfigurationError, InvalidRequest):  # without a chat template
                twin.complete("a", max_tokens=1)


def _log_to_standard_error() -> None:
    """The request log, and warnings of what serves it."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("fsgen_router").setLevel(logging.INFO)


def _named(pairs: list[str]) -> dict[str, str]:
    """``NAME=POLICY``, of which a policy may have more ``=``."""
    names: dict[str, str] = {}
    for pair in pairs:
        name, found, policy = pair.partition("=")
        if not (name and found and policy):
            raise ConfigurationError(f"--model {pair} is no name and policy", hint="give both, with = between them")
        if name in names:
            raise ConfigurationError(f"--model {name} is given twice")
        names[name] = policy
    return names


def _tell(host: str, port: int, *, keys: bool) -> None:
    where = f"[{host}]" if ":" in host else host
    say(f"Listening on http://{where}:{port}/v1" + (", with keys" if keys else ""), style="bold")
    say(f"A page to try it: http://{where}:{port}/")
