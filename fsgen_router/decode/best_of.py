"""Whole answers of the fast model's, judged before anything is shown: one of them stands, or the loop begins.

Each answer is an engine of its own, under a policy that never asks; this one hands their commands on. As many are
written at once as there are ``lanes``, sequences of the fast model that the request may use, and behind an answer
its sequence goes to the next, with the prompt still in it. Then:

1. where the verifier wants the slow model's log-probabilities, that reads the answers;
2. the verifier scores them, in a thread that nobody else waits for;
3. the best one stands if it passes; otherwise this engine starts as under any policy, in sequences that hold the
   prompt.

A slow model that fails while it reads is given up, and the first answer, the fast model's own, stands.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from ..contracts.methods import Method
from ..contracts.models import Opened, Role
from ..contracts.policy import Decision, Ledger, Policy
from ..contracts.text_models import TextEnd
from ..contracts.verifier import Selecting
from ..errors import FsgenError, RouterClosed
from ..methods import Replace
from ..money import Terms
from ..records import Selection, Token
from ..rows.reading import Alignment
from . import ending, failure
from .answers import Answer, Reading, scores_of
from .commands import Call, Close, Command, Done, Emit, Event, Failed, Returned, Start
from .engine import Engine
from .request import Request, Vocabulary
from .state import Purpose, Reader


class BestOfEngine(Engine):
    """An engine of a request whose policy, ``best_of``, has the fast model write whole answers first.

    ``writer`` is a policy that never asks.
    """

    def __init__(
        self,
        request: Request,
        *,
        best_of: Selecting,
        writer: Policy,
        policy: Policy,
        method: Method,
        vocabulary: Vocabulary,
        contexts: Mapping[Role, int],
        ledger: Ledger,
        alignments: Mapping[Role, Alignment | None] = MappingProxyType({}),
        read_ahead: int = 0,
        terms: Terms | None = None,
    ) -> None:
        super().__init__(
            request,
            policy=policy,
            method=method,
            vocabulary=vocabulary,
            contexts=contexts,
            ledger=ledger,
            alignments=alignments,
            read_ahead=read_ahead,
            terms=terms,
        )
        self.best_of, self._judge, self._writer, self._contexts = best_of, best_of.judge, writer, contexts
        self.lanes = 1
        """How many answers are written at once. May be raised before the start."""
        self._answers: list[Answer] = []
        self._inner: dict[int, tuple[int, int]] = {}
        """Of a job: the answer that it is for, and what that answer's engine calls it."""
        self._calls: dict[int, list[Answer]] = {}
        self._reading = Reading()
        self._idle: list[Reader] = []

    @property
    def sequences(self) -> list[tuple[Role, int]]:
        found = [*super().sequences, *(("fast", reader.sequence) for reader in self._idle if reader.sequence >= 0)]
        for answer in self._answers:
            found += answer.engine.sequences
        return found

    def late(self, job: int, role: Role, opened: Opened) -> None:
        if job in self._inner:
            number, inner = self._inner[job]
            self._answers[number].engine.late(inner, role, opened)
        else:
            super().late(job, role, opened)

    def start(self) -> list[Command]:
        return self._go_on()

    def send(self, event: Event) -> list[Command]:
        """Take the outcome of a job. Raises what the fast model or the verifier failed with."""
        if event.job in self._inner:
            return self._hear(event)
        if self.state.selection is not None:
            return super().send(event)
        role, purpose, size = self.state.jobs.pop(event.job)
        if purpose == "judge":
            return self._judged(self._calls.pop(event.job), event)
        assert isinstance(event, Done | Failed)
        error = failure.error_of(event, role)
        if error is not None:
            return self._give_up(error)
        assert isinstance(event, Done)
        self.spent(role, purpose, size, event)
        assert not isinstance(event.result, TextEnd)
        if isinstance(event.result, Opened):
            self.opened(role, event.result)
        else:
            self._reading.scored(event.result)
        return self._go_on()

    def _go_on(self) -> list[Command]:
        """What can begin now: answers in free lanes, then their scores, then the verdict."""
        commands: list[Command] = []
        if self._judge.one_by_one:
            commands += [self._ask([answer]) for answer in self._answers if answer.written and not answer.asked]
        while self._busy < self.lanes and len(self._answers) < self.best_of.k and not self._passed:
            commands += self._begin()
        if self._busy:
            return commands
        if self._judge.reads_slow and (work := self._reading.ask(self, self._answers)) is not None:
            return [work]
        return self._decide() if self._answers[0].asked else [self._ask(self._answers)]

    @property
    def _busy(self) -> int:
        """Answers that are being written or, where each is judged by itself, judged: the next ones wait for that."""
        one_by_one = self._judge.one_by_one
        return sum(not (answer.judged if one_by_one else answer.written) for answer in self._answers)

    @property
    def _passed(self) -> bool:
        return any(answer.score is not None and self._judge.passes(answer.score) for answer in self._answers)

    # --- the fast model writes ---

    def _begin(self) -> list[Command]:
        number = len(self._answers)
        engine = Engine(
            self._variant(number),
            policy=self._writer,
            method=Replace(),
            vocabulary=self.vocabulary,
            contexts=self._contexts,
            ledger=Ledger(),
            alignments=self.alignments,
        )
        if self._idle:
            _take_over(engine, self._idle.pop())
        answer = Answer(engine)
        self._answers.append(answer)
        commands = self._through(number, engine.start())
        if answer.written:  # a mask left no choice at all
            self._count(answer)
            commands += [self._ask([answer])] if self._judge.one_by_one else []
        return commands

    def _variant(self, number: int) -> Request:
        """The request of one answer: the first is as it is, the others have random numbers of their own."""
        request = dataclasses.replace(self.request, audit=False)
        if number == 0:
            return request
        warp = request.warp
        if warp.greedy:
            warp = dataclasses.replace(warp, temperature=self.best_of.temperature)
        return dataclasses.replace(request, key=f"{request.key}/{number}", warp=warp)

    def _through(self, number: int, commands: Iterable[Command]) -> list[Command]:
        """An answer's commands as this engine's: jobs get numbers of their own, and nothing is shown yet."""
        passed: list[Command] = []
        for command in commands:
            if isinstance(command, Emit):
                self._answers[number].emits.append(command)
            else:
                assert isinstance(command, Start)
                job = self._new_job(command.role, "draft")
                self._inner[job] = (number, command.job)
                passed.append(dataclasses.replace(command, job=job))
        return passed

    def _new_job(self, role: Role, purpose: Purpose) -> int:
        job = self.state.next_job
        self.state.next_job += 1
        self.state.jobs[job] = (role, purpose, 0)
        return job

    def _hear(self, event: Event) -> list[Command]:
        number, inner = self._inner.pop(event.job)
        del self.state.jobs[event.job]
        answer = self._answers[number]
        commands = self._through(number, answer.engine.send(dataclasses.replace(event, job=inner)))
        if not answer.written:
            return commands
        self._count(answer)
        return [*commands, *self._go_on()]

    def _count(self, answer: Answer) -> None:
        """An answer is written: its sequence is free, and what it took is this request's."""
        theirs, mine = answer.engine.state, self.state
        self._idle.append(theirs.readers["fast"])
        theirs.readers["fast"] = Reader()
        for counter in dataclasses.fields(mine.usage.fast):
            spent = getattr(mine.usage.fast, counter.name) + getattr(theirs.usage.fast, counter.name)
            setattr(mine.usage.fast, counter.name, spent)
        mine.step_seconds["fast"] += theirs.step_seconds["fast"]

    # --- the verdict ---

    def _ask(self, answers: list[Answer]) -> Call:
        job = self._new_job("fast", "judge")
        self._calls[job] = answers
        for answer in answers:
            answer.asked = True
        drafts = tuple(answer.draft for answer in answers)
        return Call(job, lambda: scores_of(self._judge, drafts))

    def _judged(self, answers: Sequence[Answer], event: Event) -> list[Command]:
        if isinstance(event, Failed):
            raise event.error
        assert isinstance(event, Returned)
        for answer, score in zip(answers, event.value, strict=True):
            answer.judged, answer.score = True, score
        return self._go_on()

    def _decide(self) -> list[Command]:
        scored = [answer for answer in self._answers if answer.score is not None]
        best = max(scored, key=lambda answer: answer.score or 0.0, default=None)  # the first of equals
        if best is None:
            return self._escalate("each was empty, cut off or refused")
        if not self._judge.passes(best.score or 0.0):
            return self._escalate(f"the best does not pass {self._judge.name}")
        return self._pick(best, f"the best passes {self._judge.name}")

    def _give_up(self, error: FsgenError) -> list[Command]:
        """The slow model failed: it can neither judge nor write."""
        if isinstance(error, RouterClosed):
            raise error
        self.state.degraded = f"{type(error).__name__}: {error.message}"
        return self._pick(self._answers[0], "the slow model failed, and this is the fast one's own")

    def _conclude(self, chosen: Answer | None, reason: str) -> list[Command]:
        """Enter the verdict. One of the sequences goes on with this engine, the others are given back."""
        number = next((n for n, answer in enumerate(self._answers) if answer is chosen), None)
        candidates = tuple(answer.candidate for answer in self._answers)
        self.state.selection = Selection(candidates=candidates, chosen=number, reason=reason)
        self.state.usage.discarded_tokens += sum(len(a.engine.state.tokens) for a in self._answers if a is not chosen)
        _take_over(self, self._idle.pop())
        slow = self.state.readers["slow"]
        slow.seen = min(slow.seen, len(self.request.prompts.get("slow", ())))
        idle, self._idle = self._idle, []
        return [Close("fast", reader.sequence) for reader in idle if reader.sequence >= 0]

    def _escalate(self, reason: str) -> list[Command]:
        return [*self._conclude(None, reason), *super().start()]

    def _pick(self, answer: Answer, reason: str) -> list[Command]:
        """Show it, and end as any answer ends."""
        closed = self._conclude(answer, reason)
        state, theirs = self.state, answer.engine.state
        decision = Decision(False, score=answer.score, reason=f"best of {self.best_of.k}")
        state.tokens = [self._marked(token, at, answer, decision) for at, token in enumerate(theirs.tokens)]
        state.answer, state.shown, state.finish = list(theirs.answer), list(theirs.shown), theirs.finish
        state.usage.tokens, state.usage.text_bytes = theirs.usage.tokens, theirs.usage.text_bytes
        state.usage.decisions += 1
        tokens = iter(state.tokens)
        shown = [dataclasses.replace(emit, token=next(tokens) if emit.token else None) for emit in answer.emits]
        return [*closed, *shown, *ending.end(self)]

    def _marked(self, token: Token, at: int, answer: Answer, decision: Decision) -> Token:
        """A token of the answer that stands, with what the slow model made of it where that has read it."""
        if not answer.read:
            return dataclasses.replace(token, decision=decision)
        verified = self.state.degraded is None
        return dataclasses.replace(token, decision=decision, slow_choice=answer.choices[at], verified=verified)


def _take_over(engine: Engine, reader: Reader) -> None:
    """Let an engine that has read nothing go on with a fast sequence that holds the prompt, and an answer behind it."""
    if reader.sequence < 0:
        return
    seen = min(reader.seen, len(engine.request.prompts["fast"]))
    # What it held before was counted when it was opened.
    engine.state.readers["fast"] = dataclasses.replace(reader, seen=seen, first_job=_LONG_AGO)


_LONG_AGO = 1 << 60
"""The number of a job that no engine reaches."""
