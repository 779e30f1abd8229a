"""Tokens for people and for programs: who wrote each one, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..contracts.policy import FORCED, Decision
from ..generation import Generation
from ..records import Token
from ..router import Router
from ..rows.signals import Signals

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
        "tuned_choice": _choice(token.tuned_choice, router),
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
    if token.decision is not None and token.decision.reason == FORCED:
        return FORCED
    if token.source == "slow" and token.signals is None:
        return "span"
    return "escalate" if token.decision is not None and token.decision.escalate else "accept"


# --- for people ----------------------------------------------------------------------------------


def token_table(answer: Generation, router: Router) -> Table:
    """Every token: who wrote it instead of what, how it came to stand, the fast model's entropy, and the decision.

    It fits 80 columns: tokens and reasons are shortened, numbers never. All else is in :func:`token_records`.
    """
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    usual = _usual_reason(answer.tokens)
    for heading, shortened in (
        ("#", False),
        ("token", True),
        ("not", True),
        ("by", False),
        ("verdict", False),
        ("entropy", False),
        ("score : limit", False),
        ("decision", True),
    ):
        right = heading in ("#", "entropy", "score : limit")
        # Rich narrows the columns that may wrap; their cells are cut instead.
        table.add_column(heading, justify="right" if right else "left", no_wrap=not shortened)
    colours = {"unchecked": None, "accepted": "green", "bonus": "cyan"}
    for position, (token, kind) in enumerate(zip(answer.tokens, standings(answer.tokens), strict=True)):
        table.add_row(*_row(position, token, kind, router, usual), style=colours.get(kind, "yellow"))
    return table


def table_legend(answer: Generation) -> Text:
    """What the columns of :func:`token_table` mean."""
    usual = _usual_reason(answer.tokens)
    scored = f"score : limit are of the policy's {usual}" if usual else "score : limit are the policy's"
    return Text(
        f"not: what the fast model wanted there. entropy: of its next token, in nats. {scored}; --json has all signals."
    )


def _usual_reason(tokens: Sequence[Token]) -> str:
    """The commonest reason of the decisions with a score: said once, not at every token."""
    counted = Counter(
        token.decision.reason for token in tokens if token.decision is not None and token.decision.score is not None
    )
    return max(counted, key=counted.__getitem__, default="")


def _row(position: int, token: Token, kind: Standing, router: Router, usual: str) -> list[str | Text]:
    signals, decision = token.signals, token.decision
    changed = token.source == "slow" and token.fast_choice is not None and token.fast_choice != token.id
    why = decision.reason if decision and signals and decision.reason not in (usual, _decision(token)) else ""
    return [
        str(position),
        _cut(_visible(token, router)),
        _cut(repr(_piece(token.fast_choice or 0, router)) if changed else ""),
        token.source,
        kind,
        _number(signals.entropy_nats) if signals else "",
        _compared(decision) if decision and signals else "",
        _cut(f"{_decision(token)}: {why}" if why else _decision(token)),
    ]


def _cut(text: str) -> Text:
    return Text(text, no_wrap=True, overflow="ellipsis")


def _compared(decision: Decision) -> str:
    """A score and its threshold, and how they compare: ``0.912 > 0.071``."""
    score, limit = decision.score, decision.threshold
    if score is None or limit is None:
        return _number(score)
    sign = ">" if score > limit else "<" if score < limit else "="
    if 0 < abs(limit) < 5e-4:  # three decimals would show 0 on both sides
        return f"{score:.1e} {sign} {limit:.1e}"
    return f"{_number(score)} {sign} {_number(limit)}"


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
    """Three decimals; whole numbers (of tokens, say) as they are."""
    if value is None:
        return ""
    return f"{value:.0f}" if isinstance(value, int) else f"{value:.3f}"
