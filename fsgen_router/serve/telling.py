"""From a stream's events to what is sent of them, and what may not be sent yet."""

from __future__ import annotations

from collections import defaultdict
from itertools import chain
from typing import Any

from ..contracts.policy import Policy
from ..generation import Finished, Generation, Restarted, StreamEvent
from .dialect import Ask, Reply
from .errors import ApiError
from .events import Heard, Reasoning, Text, ToolArguments, heard
from .observing import Request


def held_from(asked: Ask, policy: Policy) -> Any:
    """The kind of event from which on an answer may turn out not to stand, because the slow model begins it anew.

    All of it where the policy's ``draft`` says so, or where a tool may be called that was called before; from its first
    call on where there may be several, two of which may be the same.
    """
    turns = [turn for prompt in asked.prompts if isinstance(prompt, list) for turn in prompt]
    if "draft=" in policy.name or ("tools" in asked.options and any("tool_calls" in turn for turn in turns)):
        return Text | Reasoning | ToolArguments
    several = "tools" in asked.options and asked.options.get("parallel_tool_calls", True)
    return ToolArguments if several else None


class Telling:
    """What comes of an answer's events.

    No API can take anything back: what may not stand is held until the answer's end (see :func:`held_from`).
    """

    def __init__(self, reply: Reply, seen: Request, *, streamed: bool, held_from: Any) -> None:
        self.reply, self._seen, self._streamed, self._held_from = reply, seen, streamed, held_from
        self.answers: dict[int, Generation] = {}
        self._held: defaultdict[int, list[Heard]] = defaultdict(list)
        self.told: set[int] = set()
        """The answers of which anything was sent."""

    def take(self, index: int, event: StreamEvent) -> list[bytes]:
        """What is sent for an event of answer number ``index``."""
        if isinstance(event, Restarted):
            if index in self.told:
                raise ApiError(500, "server", "the answer was begun anew, and a part of it has been sent")
            self._held.pop(index, None)
            return []
        if isinstance(event, Finished):
            self.answers[index] = event.generation
            late = [self._tell(index, what) for what in self._held.pop(index, ())]
            return [*chain(*late), *(self.reply.ended(index, event.generation) if self._streamed else ())]
        what = heard(event)
        if what is None:
            return []
        self._seen.heard(index, what)
        if not self._streamed:
            return []
        if index in self._held or (self._held_from is not None and isinstance(what, self._held_from)):
            self._held[index].append(what)
            return []
        return self._tell(index, what)

    def _tell(self, index: int, what: Heard) -> list[bytes]:
        frames = [*self.reply.heard(index, what)]
        if frames:
            self.told.add(index)
        return frames
