"""The decode loop of one request as a state machine: no I/O, no clock, no backend.

An engine yields commands and receives events::

    commands = engine.start()
    while engine.generation is None:
        ...carry out each Start, hand each Emit on...
        commands = engine.send(Done(job, result, seconds))

Drivers do that pumping (``run/drivers.py``). Every answer, whichever driver runs it, takes this path:

1. open the fast model's sequence and read the prompt;
2. the fast row becomes signals, the policy accepts (the token is committed) or escalates (``proposal``);
3. at an escalation the slow model catches up with all that it has not read yet, in one piece of work (which workers
   may cut into several forwards), and what the method reads (of it, and of others) gives the token; it goes on for
   the decision's extent (``escalation``);
4. a method with a rule holds the last drafts back from the stream (``drafts``): the rows of that work judge
   them, and the first that is rejected takes the answer back to its position (``verification``);
5. a finished answer may be audited (``audit``): it is read back whole, which labels every position and changes nothing.

A slow model that gives text is asked for a ``continuation`` instead, which streams. More than one job may
be under way (the slow model may read ahead while the fast one writes); a job's ``failure`` is an event.
"""

from __future__ import annotations

from ..contracts.billing import Meter
from ..contracts.models import Opened, Role
from ..contracts.policy import Ledger
from ..contracts.text_models import TextEnd
from ..money import Terms
from ..rows.reading import Row
from . import audit, continuation, ending, escalation, failure, forced, proposal, read_ahead, review, verification
from .commands import Chunk, Command, Done, Event, Returned
from .core import Core
from .request import Request
from .state import Purpose, Reader


class Engine(Core):
    """One request's decode loop: what comes of an event, and which model reads next."""

    def start(self) -> list[Command]:
        """The first commands (of a new engine or of a fork)."""
        if self.policy.asks and not self.hands_over:
            self.unready()  # what has to be found out before it is asked is found out meanwhile
        return self._next(continuation.resume(self))

    def send(self, event: Event) -> list[Command]:
        """Take the outcome of a job. Raises what the fast model failed with."""
        if isinstance(event, Chunk):
            self.state.took("slow", event.seconds)
            return self._next(continuation.said(self, event))
        assert not isinstance(event, Returned), "this engine calls no function"
        role, purpose, size = self.state.jobs.pop(event.job)
        error = failure.error_of(event, role)
        if error is not None:
            self.state.took(role, event.seconds)
            return self._next(failure.failed(self, role, purpose, error))
        assert isinstance(event, Done)
        self.spent(role, purpose, size, event)
        return self._next(self._act(role, purpose, event.result))

    def _act(self, role: Role, purpose: Purpose, result: Opened | list[Row] | TextEnd) -> list[Command]:
        """The act that a job was for goes on with what came of it."""
        if isinstance(result, Opened):
            self.opened(role, result)
            return []
        if isinstance(result, TextEnd):
            return continuation.ended(self, result)
        match purpose:
            case "propose":
                return proposal.proposed(self, result[0])
            case "answer":
                return escalation.answered(self, role, result[0])
            case "verify":
                return verification.verified(self, result)
            case "audit":
                audit.audited(self, role, result)
        return []

    def _next(self, commands: list[Command]) -> list[Command]:
        """The one place that decides which model reads next; an act asks nothing of a model that is busy.

        Its commands come behind those of the act before.
        """
        state = self.state
        if self.request.constraint is not None:
            commands += forced.force(self)
        if state.finish is None:
            proposal.hand_over(self)
        elif not state.closed:
            commands += review.judge(self)
        if state.finish is not None:
            commands += ending.end(self)
        elif state.span_left == 0:
            if self.read_ahead:
                commands += read_ahead.ask(self)
            commands += proposal.ask(self)
        elif self.request.text is not None:
            commands += continuation.ask(self)
        elif state.held:
            commands += verification.ask(self)
        else:
            commands += escalation.ask(self)
        return commands

    def settle(self) -> None:
        """Enter in the ledger what a request that was given up, or failed, has spent all the same."""
        ending.settle(self)

    def fork(self, request: Request | None = None) -> Engine:
        """An engine that goes on from here on its own: its sequences open anew, its ledger is its own, without caps."""
        twin = object.__new__(Engine)
        twin.__dict__.update(self.__dict__)
        twin.request, twin.ledger = request or self.request, Ledger()
        twin.terms, twin.meter = Terms(), Meter()
        twin.state = self.state.copy()
        twin.state.readers = {role: Reader() for role in self.state.readers}
        twin.state.jobs = {}
        return twin
