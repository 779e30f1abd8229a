"""Tokens that cannot be taken back: they are streamed, and one of them ends the answer."""

from __future__ import annotations

from ..contracts.policy import FORCED
from ..records import Token
from .commands import Command, Emit
from .core import Core


def commit(core: Core, record: Token, *, streamed: bool = False) -> Emit:
    """Stream a token (unless its text was), and see whether it ends the answer."""
    state = core.state
    state.tokens.append(record)
    state.usage.tokens += 1
    state.usage.text_bytes += len(record.piece)
    state.usage.forced += record.decision is not None and record.decision.reason == FORCED
    if record.source == "slow":
        state.usage.slow_tokens += 1
        state.usage.slow_bytes += len(record.piece)
    text = "" if streamed else state.text.push(record.piece)
    state.shown.append(text)
    if ends(core, record.id):
        state.finish = "eog" if record.id in core.vocabulary.eog_ids else "stop"
    elif state.text.stopped:
        state.finish = "stop"
    elif len(state.tokens) >= core.request.max_tokens:
        state.finish = "length"
    elif len(state.tokens) >= core.room:
        state.finish = "context"
    return Emit(text, record)


def release(core: Core, keep: int) -> list[Command]:
    """Stream what is held back, up to the last ``keep`` tokens that are still to be judged."""
    held, emitted = core.state.held, list[Command]()
    judged = [at for at, one in enumerate(held) if one.check is not None]
    for _ in range(judged[-keep:][0] if keep and judged else len(held)):
        if core.state.finish is not None:
            break
        emitted.append(commit(core, held.pop(0).record))
    return emitted


def ends(core: Core, token: int) -> bool:
    return token in core.vocabulary.eog_ids or token in core.request.stop_ids


def piece(core: Core, token: int) -> bytes:
    if ends(core, token):
        return b""
    calls = core.request.calls
    return (calls and calls.shown.get(token)) or core.vocabulary.piece(token)


def at_the_end(core: Core) -> bool:
    """Whether nothing can follow the tokens that stand, those held back included."""
    state, last = core.state, core.state.answer[-1]
    if ends(core, last) or len(state.answer) >= min(core.request.max_tokens, core.room):
        return True
    if not core.request.stop:
        return False
    text = state.text.copy()
    for held in state.held:
        text.push(held.record.piece)
    return text.stopped
