"""The fast model's tokens that may still be taken back are held back from the stream."""

from __future__ import annotations

import codecs

from ..contracts.policy import Decision, checks_end
from ..records import Token
from ..rows.acceptance import Check
from ..rows.reading import Row
from ..text.boundaries import breaks
from .commands import Command
from .commit import at_the_end, commit, ends, release
from .core import Core
from .escalation import escalate
from .spending import admitted
from .state import Held

_MAX_WORD = 32
"""Tokens: a word that is longer is streamed before it is over."""
_TAIL = 8
"""Tokens that hold the last character for certain."""


def check_of(core: Core, draft: int, row: Row) -> Check | None:
    """What the slow model's row is to be asked about a draft that the fast one's row gave."""
    rule, position = core.method.rule, len(core.state.answer)
    if rule is None:
        return None
    greedy = core.request.warp.greedy
    return Check(
        token=draft,
        rule=rule,
        accept_uniform=0.0 if greedy else core.uniform(position, "accept"),
        residual_uniform=0.0 if greedy else core.uniform(position, "residual"),
        fast_logits=row.logits,
    )


def place(core: Core, record: Token, check: Check | None) -> list[Command]:
    """Put a token behind those that stand, for good or held back."""
    state = core.state
    state.answer.append(record.id)
    if core.request.text is not None and core.policy.asks and state.degraded is None:
        return _hold_word(core, record)
    if core.method.rule is None or state.degraded is not None:
        return [*release(core, 0), commit(core, record)]
    if check is None and not state.held:  # there is nothing to judge, and nothing before it to be taken back
        return [commit(core, record)]
    state.held.append(Held(record, state.policy, check))
    if state.span_left > 0:
        return []
    if not at_the_end(core):
        return release(core, core.method.draft_len)
    if any(held.check for held in state.held) and checks_end(core.policy, core.context()):
        decision = admitted(core, Decision(True, reason="end of the answer"))
        if decision.escalate:
            escalate(core, decision)
            return []
    return release(core, 0)


def _hold_word(core: Core, record: Token) -> list[Command]:
    """Hold a word back until it is over: an endpoint that is asked in the middle of one writes it anew."""
    held = core.state.held
    emitted = release(core, 0) if len(held) >= _MAX_WORD or may_cut(core, record.id, record.piece) else []
    held.append(Held(record, core.state.policy, None))
    return [*emitted, *release(core, 0)] if at_the_end(core) else emitted


def may_cut(core: Core, token: int, piece: bytes) -> bool:
    """Whether the answer may be cut before a token of this piece: where its bytes are text, and a word is over."""
    if ends(core, token):
        return True
    records = [*core.state.tokens[-_TAIL:], *(held.record for held in core.state.held[-_TAIL:])]
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(b"".join(record.piece for record in records))
    whole = not decoder.getstate()[0]
    return whole and bool(piece) and breaks(text, piece.decode(errors="replace"))


def take_back(core: Core, length: int) -> None:
    """Take the answer back to its first ``length`` tokens: what is held back behind them does not stand."""
    state = core.state
    state.held.clear()
    del state.answer[length:]
    for role, reader in state.readers.items():
        if reader.sequence >= 0:
            reader.seen = min(reader.seen, core.length(role))
