"""The decode loop of one request as a state machine: no I/O, no clock, no backend.

An engine yields commands and receives events::

    commands = engine.start()
    while engine.generation is None:
        ...carry out each Start, hand each Emit on...
        commands = engine.send(Done(job, result, seconds))

Drivers do that pumping (``run/drivers.py``). Every answer, whichever driver runs it, takes this path:

1. open the fast model's sequence and read the prompt;
2. the fast row becomes signals, the policy accepts (the token is committed) or escalates (``proposal``);
3. at an escalation the slow model catches up with all that it has not read yet, in one forward, and what the method
   reads (of it, and of others) gives the token; it goes on for the decision's extent (``escalation``);
4. a method with a rule holds the last drafts back from the stream (``drafts``): the rows of that forward judge
   them, and the first that is rejected takes the answer back to its position (``verification``);
5. a finished answer may be audited (``audit``): one slow forward labels every position and changes nothing.

A slow model that gives text is asked for a ``continuation`` instead, which streams. More than one job may
be under way (the slow model may read ahead while the fast one writes); a job's ``failure`` is an event.
"""

from __future__ import annotations

from ..contracts.models import Opened, Role
from ..contracts.policy import Ledger
from ..contracts.text_models import TextEnd
from ..rows.reading import Row
from . import audit, continuation, ending, escalation, failure, forced, proposal, read_ahead, verification
from .commands import Chunk, Command, Done, Event
from .core import Core
from .request import Request
from .state import Purpose, Reader


class Engine(Core):
    """One request's decode loop: what comes of an event, and which model reads next."""

    def start(self) -> list[Command]:
        """The first commands (of a new engine or of a fork)."""
        return [*continuation.resume(self), *self._next()]

    def send(self, event: Event) -> list[Command]:
        """Take the outcome of a job. Raises what the fast model failed with."""
        return [*self._heard(event), *self._next()]

    def _heard(self, event: Event) -> list[Command]:
        """What comes of an event: the act that its job was for goes on."""
        if isinstance(event, Chunk):
            return continuation.said(self, event)
        role, purpose, size = self.state.jobs.pop(event.job)
        error = failure.error_of(event, role)
        if error is not None:
            return failure.failed(self, role, purpose, error)
        assert isinstance(event, Done)
        self.spent(role, purpose, size, event)
        if isinstance(event.result, Opened):
            self.opened(role, event.result)
            return []
        if isinstance(event.result, TextEnd):
            return continuation.ended(self, event.result)
        return self._read(role, purpose, event.result)

    def _read(self, role: Role, purpose: Purpose, rows: list[Row]) -> list[Command]:
        match purpose:
            case "propose":
                return proposal.proposed(self, rows[0])
            case "answer":
                return escalation.answered(self, role, rows[0])
            case "verify":
                return verification.verified(self, rows)
            case "audit":
                audit.audited(self, role, rows)
        return []

    def _next(self) -> list[Command]:
        """The one place that decides which model reads next; an act asks nothing of a model that is busy."""
        state, emitted = self.state, forced.force(self)
        if state.finish is not None:
            return [*emitted, *ending.end(self)]
        if state.span_left == 0:
            return [*emitted, *read_ahead.ask(self), *proposal.ask(self)]
        if self.request.text is not None:
            return [*emitted, *continuation.ask(self)]
        if state.held:
            return [*emitted, *verification.ask(self)]
        return [*emitted, *escalation.ask(self)]

    def settle(self) -> None:
        """Enter in the ledger what a request that was given up, or failed, has spent all the same."""
        ending.settle(self)

    def fork(self, request: Request | None = None) -> Engine:
        """An engine that goes on from here on its own: its sequences open anew, its ledger is its own."""
        twin = object.__new__(Engine)
        twin.__dict__.update(self.__dict__)
        twin.request, twin.ledger = request or self.request, Ledger()
        twin.state = self.state.copy()
        twin.state.readers = {role: Reader() for role in self.state.readers}
        twin.state.jobs = {}
        return twin
