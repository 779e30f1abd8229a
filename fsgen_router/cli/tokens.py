"""Tokens for people and for programs: who wrote each one, and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..records import Generation, Token
from ..router import Router
from ..signals import Signals

SLOW_STYLE = "bold black on yellow"
_BRACKETS = ("⟦", "⟧")


def marked(tokens: Sequence[Token], console: Console) -> Text:
    """An answer with the slow model's tokens highlighted; in brackets where there are no colours."""
    text = Text()
    for source, run in _runs(tokens):
        # Together, because one character may be several tokens.
        piece = b"".join(token.piece for token in run).decode(errors="replace")
        if source == "fast" or not piece:
            text.append(piece)
        elif has_colours(console):
            text.append(piece, style=SLOW_STYLE)
        else:
            lead = piece[: len(piece) - len(piece.lstrip())]
            text.append(f"{lead}{_BRACKETS[0]}{piece[len(lead) :]}{_BRACKETS[1]}")
    text.rstrip()
    return text


def legend(console: Console) -> Text:
    """What :func:`marked` means."""
    slow = ("slow model", SLOW_STYLE) if has_colours(console) else f"{_BRACKETS[0]}slow model{_BRACKETS[1]}"
    return Text.assemble(("Tokens by the ", "dim"), "fast model", (" and by the ", "dim"), slow)


def has_colours(console: Console) -> bool:
    return console.is_terminal and not console.no_color and console.color_system is not None


def _runs(tokens: Iterable[Token]) -> list[tuple[str, list[Token]]]:
    runs: list[tuple[str, list[Token]]] = []
    for token in tokens:
        if runs and runs[-1][0] == token.source:
            runs[-1][1].append(token)
        else:
            runs.append((token.source, [token]))
    return runs


# --- for programs --------------------------------------------------------------------------------


def token_records(answer: Generation, router: Router) -> list[dict[str, Any]]:
    """One object per token, as ``trace`` writes them."""
    return [_record(position, token, router) for position, token in enumerate(answer.tokens)]


def _record(position: int, token: Token, router: Router) -> dict[str, Any]:
    signals, decision = token.signals, token.decision
    return {
        "position": position,
        "id": token.id,
        "text": token.text,
        "bytes": token.piece.hex(),
        "source": token.source,
        "decision": _verdict(token),
        "reason": decision.reason if decision else None,
        "score": decision.score if decision and signals else None,
        "threshold": decision.threshold if decision and signals else None,
        "logprob": token.logprob,
        **_signals(signals),
        "fast_choice": _choice(token.fast_choice, router),
        "slow_choice": _choice(token.slow_choice, router),
    }


def _signals(signals: Signals | None) -> dict[str, float | None]:
    names = ("entropy_nats", "varentropy", "max_prob", "margin")
    return {name: getattr(signals, name) if signals else None for name in names}


def _choice(token: int | None, router: Router) -> dict[str, Any] | None:
    return None if token is None else {"id": token, "text": _piece(token, router)}


def _piece(token: int, router: Router) -> str:
    return router.fast.tokenizer.piece(token).decode(errors="replace")


def _verdict(token: Token) -> str:
    """accept, escalate, span (inside what an escalation handed over) or forced (by a mask)."""
    if token.decision is not None and token.decision.reason == "forced":
        return "forced"
    if token.source == "slow":
        return "escalate" if token.signals is not None else "span"
    return "accept"


# --- for people ----------------------------------------------------------------------------------


def token_table(answer: Generation, router: Router) -> Table:
    """Every token: its author, the fast model's signals, and the decision."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading, right in (
        ("#", True),
        ("token", False),
        ("by", False),
        ("entropy", True),
        ("max_prob", True),
        ("margin", True),
        ("decision", False),
        ("score", True),
        ("threshold", True),
        ("why", False),
        ("fast wanted", False),
    ):
        table.add_column(heading, justify="right" if right else "left", no_wrap=True)
    for position, token in enumerate(answer.tokens):
        table.add_row(*_row(position, token, router), style=None if token.source == "fast" else "yellow")
    return table


def _row(position: int, token: Token, router: Router) -> list[str | Text]:
    signals, decision = token.signals, token.decision
    changed = token.source == "slow" and token.fast_choice is not None and token.fast_choice != token.id
    return [
        str(position),
        Text(_visible(token, router)),
        token.source,
        f"{signals.entropy_nats:.3f}" if signals else "",
        f"{signals.max_prob:.3f}" if signals else "",
        f"{signals.margin:.3f}" if signals else "",
        _verdict(token),
        _number(decision.score) if decision and signals else "",
        _number(decision.threshold) if decision and signals else "",
        Text(decision.reason if decision else ""),
        Text(repr(_piece(token.fast_choice or 0, router)) if changed else ""),
    ]


def _visible(token: Token, router: Router) -> str:
    """A token so that white space and ends can be seen."""
    if not token.piece:
        return _piece(token.id, router)
    return repr(token.piece.decode()) if _is_text(token.piece) else f"0x{token.piece.hex()}"


def _is_text(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
