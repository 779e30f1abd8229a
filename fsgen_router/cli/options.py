"""Options that several commands share, and the Router they describe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from ..contracts.text_models import probe_first
from ..errors import ConfigurationError, InvalidRequest
from ..methods import DEFAULT_DRAFT_LEN
from ..methods.contrast import FORMS
from ..money import Budget
from ..pairing import DEFAULT_POLICY, DEFAULT_REMOTE_POLICY
from ..policies import SHORT_FORMS
from ..resolve import EXAMPLES
from ..router import MAX_WAITING, Router
from ..rows.acceptance import RULES

_MODELS, _ROUTING, _SAMPLING, _OUTPUT = "Models", "Routing", "Writing", "Output"

Prompt: TypeAlias = Annotated[
    str | None,
    typer.Argument(help="The prompt; [cyan]-[/], or nothing in a pipe, reads standard input.", show_default=False),
]
Fast: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="BACKEND:WHERE",
        help=f"The model that writes, like [cyan]{EXAMPLES[0]}[/]. With --slow; without both: the reference pair.",
        show_default=False,
        rich_help_panel=_MODELS,
    ),
]
Slow: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="BACKEND:WHERE",
        help=f"The model that is asked, like [cyan]{EXAMPLES[2]}[/].",
        show_default=False,
        rich_help_panel=_MODELS,
    ),
]
Fallback: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        metavar="openai:WHERE",
        help="An endpoint that is asked where --slow, and those named before it, fail; may be repeated.",
        show_default=False,
        rich_help_panel=_MODELS,
    ),
]
Tuned: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="BACKEND:WHERE",
        help="A third model for --method proxy (the default then): the fast one after its tuning.",
        show_default=False,
        rich_help_panel=_MODELS,
    ),
]
DEFAULT_POLICY_TEXT = (
    f"{DEFAULT_POLICY}; the reference pair's own file; behind an endpoint "
    f"{DEFAULT_REMOTE_POLICY.replace(',', ', ')}, once"
)
POLICY_TEXT = (
    f"When the slow model is asked: {', '.join(SHORT_FORMS)}, with your own numbers; add ,span=8 (or ,span=rest) for "
    "how much it then writes. Or a policy file, [cyan]NAME.safetensors[/]."
)
METHOD_TEXT = (
    "What it does then. [cyan]replace[/]: writes its own token. [cyan]verify[/]: also judges the drafts before it, "
    f"and corrects from the first bad one on. [cyan]verify:RULE=a,draft_len=N[/]: by one of {', '.join(RULES)} (a from "
    "0 to 1; exact and speculative take none; of entropy_gate it is in nats, with ,window=W), with N drafts held back "
    f"({DEFAULT_DRAFT_LEN} unless said). [cyan]contrast:FORM,alpha=A,beta=B[/]: the best of both models' logits set "
    f"against each other, by one of {', '.join(FORMS)}. [cyan]proxy:alpha=A[/]: of its logits, moved by what tuning "
    "changed of the fast model."
)

Policy: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="POLICY", help=POLICY_TEXT, show_default=DEFAULT_POLICY_TEXT, rich_help_panel=_ROUTING),
]
Method: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="METHOD",
        help=METHOD_TEXT,
        show_default="verify; the policy file's own; replace behind an endpoint; proxy with --tuned",
        rich_help_panel=_ROUTING,
    ),
]
ReadAhead: TypeAlias = Annotated[
    int,
    typer.Option(
        metavar="N",
        help="Let the slow model read whenever N tokens wait for it, while the fast one writes; 0: only when asked. "
        "For models on different devices.",
        rich_help_panel=_ROUTING,
    ),
]
Batching: TypeAlias = Annotated[
    bool | None,
    typer.Option(
        "--batching/--no-batching",
        help="Run what all live requests want of a model in one forward.",
        show_default="where models hold several sequences (n_seq)",
        rich_help_panel=_ROUTING,
    ),
]
MaxSlowCalls: TypeAlias = Annotated[
    int | None,
    typer.Option(help="Cap on escalations per answer.", show_default="none", rich_help_panel=_ROUTING),
]
MaxSlowTokens: TypeAlias = Annotated[
    int | None,
    typer.Option(help="Cap on slow tokens per answer.", show_default="none", rich_help_panel=_ROUTING),
]
MaxCost: TypeAlias = Annotated[
    float | None,
    typer.Option(
        metavar="USD",
        help="Cap on what the slow model costs per answer, by its known prices.",
        show_default="none",
        rich_help_panel=_ROUTING,
    ),
]
MaxSeconds: TypeAlias = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        help="Cap on the slow model's time per answer.",
        show_default="none",
        rich_help_panel=_ROUTING,
    ),
]
PricesFile: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--prices",
        metavar="FILE",
        help="A table of prices that knows the slow model (TOML or JSON).",
        show_default="the model's own option, FSGEN_PRICES, what is known of its vendor",
        rich_help_panel=_MODELS,
    ),
]
Audit: TypeAlias = Annotated[
    float,
    typer.Option(
        help="Share of answers that the slow model reads whole afterwards: gives disagreement_rate.",
        rich_help_panel=_ROUTING,
    ),
]
MaxTokens: TypeAlias = Annotated[int, typer.Option(help="Tokens to write at most.", rich_help_panel=_SAMPLING)]
Temperature: TypeAlias = Annotated[
    float, typer.Option(help="0 always takes the best token; higher is more varied.", rich_help_panel=_SAMPLING)
]
TopK: TypeAlias = Annotated[int, typer.Option(help="Sample among the k best; 0: all.", rich_help_panel=_SAMPLING)]
TopP: TypeAlias = Annotated[
    float, typer.Option(help="Sample among the best that hold this probability.", rich_help_panel=_SAMPLING)
]
MinP: TypeAlias = Annotated[
    float, typer.Option(help="Sample above this share of the best probability.", rich_help_panel=_SAMPLING)
]
Stop: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(help="End before this text; may be repeated.", show_default=False, rich_help_panel=_SAMPLING),
]
JsonSchema: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Answer in JSON of the JSON Schema in this file.",
        show_default=False,
        rich_help_panel=_SAMPLING,
    ),
]
Regex: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="REGEX",
        help="The answer matches this regular expression (Rust's syntax), whole.",
        show_default=False,
        rich_help_panel=_SAMPLING,
    ),
]
Grammar: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="The answer is of the grammar in this file: Lark's notation, or GBNF.",
        show_default=False,
        rich_help_panel=_SAMPLING,
    ),
]
Seed: TypeAlias = Annotated[
    int | None,
    typer.Option(help="Same seed, same text.", show_default="a new one", rich_help_panel=_SAMPLING),
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Machine-readable output.", rich_help_panel=_OUTPUT)]
Chat: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--chat", help="Send the prompt as a user's message in each model's chat template.", rich_help_panel=_SAMPLING
    ),
]
System: TypeAlias = Annotated[
    str | None,
    typer.Option(help="A system message to begin with.", show_default=False, rich_help_panel=_SAMPLING),
]

MAX_TOKENS = 256


def make_request(
    *,
    max_tokens: int = MAX_TOKENS,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int | None = None,
    stop: list[str] | None = None,
    max_slow_calls: int | None = None,
    max_slow_tokens: int | None = None,
    max_cost: float | None = None,
    max_seconds: float | None = None,
    json_schema: Path | None = None,
    regex: str | None = None,
    grammar: Path | None = None,
) -> dict[str, Any]:
    """Options of a request, as ``Router.complete`` takes them (it checks them)."""
    return {
        "response_format": None if json_schema is None else _read_schema(json_schema),
        "regex": regex,
        "grammar": None if grammar is None else _read_file("--grammar", grammar),
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "seed": seed,
        "stop": tuple(stop or ()),
        "max_slow_calls": max_slow_calls,
        "max_slow_tokens": max_slow_tokens,
        "max_cost_usd": max_cost,
        "max_seconds": max_seconds,
    }


def _read_schema(path: Path) -> dict[str, Any]:
    """The ``response_format`` of a schema in a file."""
    text = _read_file("--json-schema", path)
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"--json-schema {path} is no JSON: {error}") from None
    return {"type": "json_schema", "json_schema": {"name": path.stem, "schema": schema}}


def _read_file(option: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidRequest(f"{option} {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{option} {path} is not valid UTF-8 (byte {error.start})") from None


def open_router(
    fast: str | None,
    slow: str | None,
    policy: str | None = None,
    method: str | None = None,
    *,
    fallback: list[str] | None = None,
    tuned: str | None = None,
    prices: Path | None = None,
    budget: Budget | None = None,
    audit: float = 0.0,
    read_ahead: int = 0,
    batching: bool | None = None,
    max_waiting: int = MAX_WAITING,
) -> Router:
    """The Router that the options describe; what they leave out is the Router's to choose.

    A command is there for one answer, or for a few: what has to be found out of an endpoint is found out first.
    """
    if fallback and slow is None:
        raise ConfigurationError("--fallback without --slow", hint="name the endpoint that it stands in for")
    router = Router(
        fast,
        [slow, *fallback] if fallback and slow is not None else slow,
        tuned=tuned,
        policy=policy,
        method=method,
        prices=prices,
        budget=budget,
        audit=audit,
        read_ahead=read_ahead,
        batching=batching,
        max_waiting=max_waiting,
    )
    probe_first(router.slow)
    return router


def pair_title(router: Router) -> str:
    """What to call the pair in output."""
    return " + ".join(model.name for model in (router.fast, router.slow, router.tuned) if model is not None)
