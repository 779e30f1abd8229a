"""The slow model begins the answer anew: what was written so far is a draft that does not stand."""

from __future__ import annotations

import itertools

from ..contracts.policy import REST
from ..text.stream import TextStream
from .commands import Command, Emit
from .core import Core


def begin_anew(core: Core) -> list[Command]:
    """Take back all of the answer. A slow model that reads tokens has the draft in its prompt, where it is shown it."""
    state, usage = core.state, core.state.usage
    was_streamed = bool(state.tokens)
    read = list(core.ids("slow", 0)) if "slow" in state.prompts else []
    if core.request.show_draft is not None and state.escalation is not None and state.escalation.draft == "show":
        shown = core.request.show_draft(draft_of(core))
        # A draft for which there is no room is dropped.
        if len(shown) + len(state.answer) < core.contexts["slow"]:
            state.prompts["slow"] = shown
    usage.restarts += 1
    usage.discarded_tokens += len(state.answer) + (state.proposal is not None)
    usage.tokens = usage.text_bytes = usage.slow_tokens = usage.slow_bytes = usage.forced = 0
    state.tokens, state.held, state.answer, state.shown, state.rows, state.proposal = [], [], [], [], {}, None
    state.text, state.last_escalation, state.anew = TextStream(core.request.stop), -1, False
    if state.escalation is not None and state.escalation.extent == REST:
        state.span_left = core.room
    for role, reader in state.readers.items():
        if reader.sequence >= 0:
            reader.seen = min(reader.seen, core.length(role))
    if "slow" in state.prompts:
        prompt = state.prompts["slow"]
        common = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(read, prompt, strict=False))
        state.readers["slow"].seen = min(state.readers["slow"].seen, sum(1 for _ in common))
    return [Emit("", None, restarts=True)] if was_streamed else []


def draft_of(core: Core) -> str:
    """The answer so far, without a character at its end that is not whole."""
    records = [*core.state.tokens, *(held.record for held in core.state.held)]
    return b"".join(record.piece for record in records).decode(errors="ignore")
