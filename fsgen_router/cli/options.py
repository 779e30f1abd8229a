"""Options that several commands share, and the Router they describe."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

import typer

from ..methods import SHORT_FORMS as METHODS
from ..policies import SHORT_FORMS
from ..resolve import EXAMPLES
from ..router import DEFAULT_POLICY, REFERENCE_PAIR, Router

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
Policy: TypeAlias = Annotated[
    str,
    typer.Option(
        metavar="POLICY",
        help=f"When the slow model is asked: {', '.join(SHORT_FORMS)}, with your own numbers; add ,span=8 for spans.",
        rich_help_panel=_ROUTING,
    ),
]
Method: TypeAlias = Annotated[
    str, typer.Option(help=f"What it does then: {', '.join(METHODS)}.", rich_help_panel=_ROUTING)
]
MaxSlowCalls: TypeAlias = Annotated[
    int | None,
    typer.Option(help="Cap on escalations per answer.", show_default="none", rich_help_panel=_ROUTING),
]
MaxSlowTokens: TypeAlias = Annotated[
    int | None,
    typer.Option(help="Cap on slow tokens per answer.", show_default="none", rich_help_panel=_ROUTING),
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
POLICY = DEFAULT_POLICY
METHOD = "replace"


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
) -> dict[str, Any]:
    """Options of a request, as ``Router.complete`` takes them (it checks them)."""
    return {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "seed": seed,
        "stop": tuple(stop or ()),
        "max_slow_calls": max_slow_calls,
        "max_slow_tokens": max_slow_tokens,
    }


def open_router(
    fast: str | None, slow: str | None, policy: str = POLICY, method: str = METHOD, *, audit: float = 0.0
) -> Router:
    """The Router that the options describe."""
    return Router(fast, slow, policy=policy, method=method, audit=audit)


def pair_name(fast: str | None, slow: str | None) -> str:
    """What to call the pair in output."""
    return f"{fast or REFERENCE_PAIR[0]} + {slow or REFERENCE_PAIR[1]}"
