"""An idle slow model reads while the fast one writes."""

from __future__ import annotations

from .commands import Command
from .core import Core


def ask(core: Core) -> list[Command]:
    """Let an idle slow model read what stands for good, all but the last token, whose row is wanted later."""
    if core.state.degraded or core.busy("slow"):
        return []
    state, reader = core.state, core.state.readers["slow"]
    if reader.sequence < 0:
        return [core.open("slow", "ahead")]
    until = len(core.state.prompts["slow"]) + len(state.tokens) - 1
    if until - reader.seen < core.read_ahead:
        return []
    ids = core.ids("slow", reader.seen)[: until - reader.seen]
    state.usage.slow.ahead += len(ids)
    return [core.work("slow", reader.seen, ids, [], "ahead")]
