"""Tokens for people and for programs: who wrote each one, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..records import Generation, Token
from ..router import Router
from ..signals import Signals

Standing: TypeAlias = Literal["unchecked", "accepted", "corrected", "bonus", "written"]
"""How a token came to stand.

The fast model's are ``unchecked``, or ``accepted`` where the slow one judged them. The slow model's are
``corrected`` (in a draft's place), ``bonus`` (behind drafts that it had accepted, in the same forward)
or ``written`` (the rest: within its span, or where both wanted the same).
"""

SLOW_STYLE = "bold black on yellow"
_STYLES: dict[Standing, str] = {
    "unchecked": "",
    "accepted": "green",
    "corrected": SLOW_STYLE,
    "bonus": "black on cyan",
    "written": SLOW_STYLE,
}
_BRACKETS: dict[Standing, tuple[str, str]] = {
    "unchecked": ("", ""),
    "accepted": ("‹", "›"),
    "corrected": ("⟦", "⟧"),
    "bonus": ("⟦+", "⟧"),
    "written": ("⟦", "⟧"),
}


def standing(token: Token, before: Token | None) -> Standing:
    """How a token came to stand; ``before`` is the one in front of it."""
    if token.source == "fast":
        return "accepted" if token.verified else "unchecked"
    if token.signals is not None and token.signals.token_id != token.id:
        return "corrected"
    return "bonus" if token.signals is None and before is not None and before.verified else "written"


def standings(tokens: Sequence[Token]) -> list[Standing]:
    """:func:`standing` of every token of an answer."""
    return [standing(token, before) for token, before in zip(tokens, [None, *tokens], strict=False)]


def marked(tokens: Sequence[Token], console: Console) -> Text:
    """An answer with its tokens coloured by author and verdict; in brackets where there are no colours."""
    text = Text()
    for kind, run in _runs(tokens):
        # Together, because one character may be several tokens.
        piece = b"".join(token.piece for token in run).decode(errors="replace")
        text.append(_in_colour(piece, kind) if has_colours(console) else _in_brackets(piece, kind))
    text.rstrip()
    return text


def _in_colour(piece: str, kind: Standing) -> Text:
    return Text(piece, style=_STYLES[kind])


def _in_brackets(piece: str, kind: Standing) -> Text:
    lead = piece[: len(piece) - len(piece.lstrip())]
    rest = piece[len(lead) :]
    opening, closing = _BRACKETS[kind] if rest else ("", "")
    return Text(f"{lead}{opening}{rest}{closing}")


def legend(console: Console, *, judges: bool) -> Text:
    """What :func:`marked` means; ``judges``: the method has the slow model judge drafts."""
    show = _in_colour if has_colours(console) else _in_brackets
    parts: list[Text | str] = ["Tokens by the ", show("fast model", "unchecked"), " and by the "]
    parts.append(show("slow model", "written"))
    if judges:
        parts += ["; ", show("accepted by the slow model", "accepted"), ", ", show("its bonus token", "bonus")]
    return Text.assemble(*parts)


def has_colours(console: Console) -> bool:
    return console.is_terminal and not console.no_color and console.color_system is not None


def _runs(tokens: Sequence[Token]) -> list[tuple[Standing, list[Token]]]:
    runs: list[tuple[Standing, list[Token]]] = []
    for token, kind in zip(tokens, standings(tokens), strict=True):
        if runs and runs[-1][0] == kind:
            runs[-1][1].append(token)
        else:
            runs.append((kind, [token]))
    return runs


# --- for programs --------------------------------------------------------------------------------


def token_records(answer: Generation, router: Router) -> list[dict[str, Any]]:
    """One object per token, as ``trace`` writes them."""
    return [
        _record(position, token, kind, router)
        for position, (token, kind) in enumerate(zip(answer.tokens, standings(answer.tokens), strict=True))
    ]


def _record(position: int, token: Token, kind: Standing, router: Router) -> dict[str, Any]:
    signals, decision = token.signals, token.decision
    return {
        "position": position,
        "id": token.id,
        "text": token.text,
        "bytes": token.piece.hex(),
        "source": token.source,
        "verdict": kind,
        "decision": _decision(token),
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


def _decision(token: Token) -> str:
    """The policy's: accept or escalate; span (inside what an escalation handed over) or forced (by a mask)."""
    if token.decision is not None and token.decision.reason == "forced":
        return "forced"
    if token.source == "slow" and token.signals is None:
        return "span"
    return "escalate" if token.decision is not None and token.decision.escalate else "accept"


# --- for people ----------------------------------------------------------------------------------


def token_table(answer: Generation, router: Router) -> Table:
    """Every token: how it came to stand, the fast model's signals, and the decision."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading, right in (
        ("#", True),
        ("token", False),
        ("verdict", False),
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
    colours = {"unchecked": None, "accepted": "green", "bonus": "cyan"}
    for position, (token, kind) in enumerate(zip(answer.tokens, standings(answer.tokens), strict=True)):
        table.add_row(*_row(position, token, kind, router), style=colours.get(kind, "yellow"))
    return table


def _row(position: int, token: Token, kind: Standing, router: Router) -> list[str | Text]:
    signals, decision = token.signals, token.decision
    changed = token.source == "slow" and token.fast_choice is not None and token.fast_choice != token.id
    return [
        str(position),
        Text(_visible(token, router)),
        kind,
        f"{signals.entropy_nats:.3f}" if signals else "",
        f"{signals.max_prob:.3f}" if signals else "",
        f"{signals.margin:.3f}" if signals else "",
        _decision(token),
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
