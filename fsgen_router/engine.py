"""The decode loop as a state machine: no I/O, no clock, no backend.

An engine yields commands and receives events::

    commands = engine.start()
    while engine.generation is None:
        ...carry out each Start, hand each Emit on...
        commands = engine.send(Done(job, result, seconds))

Drivers do that pumping (``drivers.py``). Every answer, whichever driver runs it, takes this path:

1. open the fast model's sequence and read the prompt;
2. the fast row becomes signals, the policy accepts (the token is committed) or escalates;
3. at an escalation the slow model catches up with all that it has not read yet, in one forward,
   and its row gives the token (the method says how); it goes on for the decision's extent;
4. a finished answer may be audited: one slow forward labels every position and changes nothing.

More than one job may be under way; a job's failure is an event. What an engine knows is in one
record, :class:`EngineState`, which :meth:`Engine.fork` copies.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

from .errors import FsgenError
from .methods import Method
from .models import Opened, Work
from .policy import REST, Context, Decision, Ledger, Policy, PolicyState
from .reading import Mask, Read, Row, Warp, hashed_uniform
from .records import FinishReason, Generation, Role, Token, Usage
from .signals import TOP_K, Signals, make_signals
from .tokenizer import TextStream

# --- commands and events -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Open:
    """Open a sequence for these ids; the result is an :class:`~fsgen_router.models.Opened`."""

    ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class Start:
    """Begin a piece of work on a model; its outcome comes back as :class:`Done` or :class:`Failed`."""

    job: int
    role: Role
    work: Open | Work


@dataclass(frozen=True, slots=True)
class Emit:
    """A token stands, and ``text`` may be shown."""

    text: str
    token: Token | None


Command: TypeAlias = Start | Emit


@dataclass(frozen=True, slots=True)
class Done:
    """A job's result: ``Opened`` for an ``Open``, rows for a ``Work``. ``seconds`` it took."""

    job: int
    result: Opened | list[Row]
    seconds: float


@dataclass(frozen=True, slots=True)
class Failed:
    """A job came to nothing: the backend's error, or a deadline that passed."""

    job: int
    error: FsgenError


Event: TypeAlias = Done | Failed

# --- a request -----------------------------------------------------------------------------------


class Constraint(Protocol):
    """Masks logits on both models: logit bias, grammars, JSON.

    ``mask`` is a pure function of the answer's ids so far (not to be changed), so that it survives a
    rewind.
    """

    def mask(self, answer: Sequence[int]) -> Mask | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt, as each model reads it, and how to answer it."""

    prompts: Mapping[Role, Sequence[int]]
    key: str
    """What random numbers are drawn for, beside the seed: a hash of the prompt."""
    max_tokens: int
    seed: int = 0
    warp: Warp = field(default_factory=Warp)
    stop: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()
    constraint: Constraint | None = None
    audit: bool = False
    max_cached: int | None = None
    """Use no more than this of a prefix that a KV cache still holds; None: all of it."""


class Vocabulary(Protocol):
    """The part of a vocabulary that the engine needs; the same for both models."""

    def piece(self, token: int) -> bytes: ...

    def class_of(self, token: int) -> int: ...

    @property
    def eog_ids(self) -> frozenset[int]: ...


# --- the state -----------------------------------------------------------------------------------


@dataclass(slots=True)
class Reader:
    """How far one model has read: ``seen`` of (prompt + answer) tokens are in its KV cache."""

    sequence: int = -1
    seen: int = 0
    found: int = 0
    """Tokens that the KV cache still held when the sequence was opened."""


@dataclass(slots=True)
class Proposal:
    """The fast model's token at the position under decision."""

    row: Row
    signals: Signals
    decision: Decision


Purpose: TypeAlias = Literal["open", "propose", "answer", "audit"]


@dataclass(slots=True)
class EngineState:
    """All that an engine knows of a request. Tokens and records in it are immutable."""

    policy: PolicyState
    text: TextStream
    answer: list[int] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
    readers: dict[Role, Reader] = field(default_factory=lambda: {"fast": Reader(), "slow": Reader()})
    jobs: dict[int, tuple[Role, Purpose, int]] = field(default_factory=dict)
    next_job: int = 0
    proposal: Proposal | None = None
    escalation: Decision | None = None
    span_left: int = 0
    last_escalation: int = -1
    finish: FinishReason | None = None
    degraded: str | None = None
    usage: Usage = field(default_factory=Usage)
    step_seconds: dict[Role, list[float]] = field(default_factory=lambda: {"fast": [], "slow": []})
    """Times of the forwards that read one new token: what a slow-only baseline is estimated from."""

    def copy(self) -> EngineState:
        return dataclasses.replace(
            self,
            text=self.text.copy(),
            answer=list(self.answer),
            tokens=list(self.tokens),
            shown=list(self.shown),
            readers={role: dataclasses.replace(reader) for role, reader in self.readers.items()},
            jobs=dict(self.jobs),
            step_seconds={role: list(times) for role, times in self.step_seconds.items()},
            usage=dataclasses.replace(
                self.usage, fast=dataclasses.replace(self.usage.fast), slow=dataclasses.replace(self.usage.slow)
            ),
        )


class Engine:
    """One request's decode loop. ``contexts`` holds each model's context length in tokens."""

    def __init__(
        self,
        request: Request,
        *,
        policy: Policy,
        method: Method,
        vocabulary: Vocabulary,
        contexts: Mapping[Role, int],
        ledger: Ledger,
    ) -> None:
        self.request, self.policy, self.method = request, policy, method
        self.vocabulary, self.ledger = vocabulary, ledger
        # Where no slow model may be asked, its context limits nothing.
        self.room = min(limit - len(request.prompts[role]) for role, limit in contexts.items())
        self.state = EngineState(policy=policy.begin(ledger), text=TextStream(request.stop))
        self.state.usage.prompt_tokens = len(request.prompts["fast"])
        self.generation: Generation | None = None

    def fork(self, request: Request | None = None) -> Engine:
        """An engine that goes on from here on its own: its sequences open anew, its ledger is its own."""
        twin = object.__new__(Engine)
        twin.__dict__.update(self.__dict__)
        twin.request, twin.ledger = request or self.request, Ledger()
        twin.state = self.state.copy()
        twin.state.readers = {"fast": Reader(), "slow": Reader()}
        twin.state.jobs = {}
        return twin

    @property
    def sequences(self) -> list[tuple[Role, int]]:
        """Sequences that are open and have to be closed by the driver."""
        return [(role, r.sequence) for role, r in self.state.readers.items() if r.sequence >= 0]

    # --- events in, commands out ---

    def start(self) -> list[Command]:
        """The first commands (of a new engine or of a fork)."""
        return self._next()

    def send(self, event: Event) -> list[Command]:
        """Take the outcome of a job. Raises what the fast model failed with."""
        role, purpose, size = self.state.jobs.pop(event.job)
        if isinstance(event, Failed):
            return self._failed(role, purpose, event.error)
        if purpose == "audit":
            self.state.usage.audit_seconds += event.seconds
        else:
            counters = self.state.usage.fast if role == "fast" else self.state.usage.slow
            counters.seconds += event.seconds
            if size == 1:
                self.state.step_seconds[role].append(event.seconds)
        if isinstance(event.result, Opened):
            return self._opened(role, event.result)
        if purpose == "propose":
            return self._proposed(event.result[0])
        if purpose == "answer":
            return self._answered(event.result[0])
        return self._audited(role, event.result)

    def _failed(self, role: Role, purpose: Purpose, error: FsgenError) -> list[Command]:
        state = self.state
        if state.finish is not None:  # an audit that fails costs only its labels
            return self._conclude()
        if role == "fast":
            raise error
        # The answer is not lost: the fast model goes on alone, and the result says so.
        state.degraded = f"{type(error).__name__}: {error.message}"
        state.span_left, state.escalation = 0, None
        if state.proposal is not None:
            return self._commit_fast(state.proposal)
        return self._next()

    def _opened(self, role: Role, opened: Opened) -> list[Command]:
        reader = self.state.readers[role]
        # At least one token has to be read for a row to come back.
        kept = opened.kept if self.request.max_cached is None else min(opened.kept, self.request.max_cached)
        reader.sequence, reader.found = opened.sequence, opened.kept
        reader.seen = min(kept, self._length(role) - 1)
        if self.state.finish is not None:
            return self._audit()
        counters = self.state.usage.fast if role == "fast" else self.state.usage.slow
        counters.cached += reader.seen
        return self._next()

    def _proposed(self, row: Row) -> list[Command]:
        state = self.state
        signals = make_signals(row, self.vocabulary.class_of(row.token))
        if state.degraded is not None:
            return self._commit_fast(Proposal(row, signals, Decision(False, reason="degraded")))
        position = len(state.answer)
        context = Context(
            position=position,
            since_escalation=position - state.last_escalation - 1,
            slow_calls=state.usage.escalations,
            slow_tokens=state.usage.slow_tokens,
            uniform=lambda: hashed_uniform(self.request.seed, self.request.key, position, "policy"),
        )
        state.policy, decision = self.policy.decide(state.policy, signals, context)
        proposal = Proposal(row, signals, decision)
        state.usage.decisions += 1
        if not decision.escalate:
            return self._commit_fast(proposal)
        state.usage.escalations += 1
        state.proposal, state.escalation = proposal, decision
        state.span_left = self.room if decision.extent == REST else decision.extent
        return self._next()

    def _commit_fast(self, proposal: Proposal) -> list[Command]:
        self.state.proposal = None
        row = proposal.row
        emit = self._commit(
            row.token,
            "fast",
            row.logprob,
            signals=proposal.signals,
            decision=proposal.decision,
            fast_choice=row.argmax,
            slow_choice=None,
        )
        return [emit, *self._next()]

    def _answered(self, row: Row) -> list[Command]:
        state = self.state
        proposal, state.proposal = state.proposal, None
        token, logprob = self.method.choose(proposal.row.token if proposal else None, row)
        if proposal is not None and token != proposal.row.token:
            state.usage.corrections += 1
            state.usage.discarded_tokens += 1
        state.span_left -= 1
        state.last_escalation = len(state.answer)
        emit = self._commit(
            token,
            "slow",
            logprob,
            signals=proposal.signals if proposal else None,
            decision=state.escalation,
            fast_choice=proposal.row.argmax if proposal else None,
            slow_choice=row.argmax,
        )
        return [emit, *self._next()]

    def _commit(
        self,
        token: int,
        source: Role,
        logprob: float | None,
        *,
        signals: Signals | None,
        decision: Decision | None,
        fast_choice: int | None,
        slow_choice: int | None,
    ) -> Emit:
        """Make a token part of the answer."""
        state = self.state
        ended = token in self.vocabulary.eog_ids or token in self.request.stop_ids
        record = Token(
            id=token,
            piece=b"" if ended else self.vocabulary.piece(token),
            source=source,
            logprob=logprob,
            signals=signals,
            decision=decision,
            fast_choice=fast_choice,
            slow_choice=slow_choice,
        )
        state.answer.append(token)
        state.tokens.append(record)
        state.usage.tokens += 1
        state.usage.slow_tokens += source == "slow"
        text = state.text.push(record.piece)
        state.shown.append(text)
        if ended:
            state.finish = "eog" if token in self.vocabulary.eog_ids else "stop"
        elif state.text.stopped:
            state.finish = "stop"
        elif len(state.answer) >= self.request.max_tokens:
            state.finish = "length"
        elif len(state.answer) >= self.room:
            state.finish = "context"
        return Emit(text, record)

    # --- what to do next ---

    def _next(self) -> list[Command]:
        """The one place that decides which model reads next."""
        state, forced = self.state, self._forced()
        if state.finish is not None:
            return [*forced, *self._finish()]
        mask = self._mask(len(state.answer))
        role: Role = "slow" if state.span_left > 0 else "fast"
        draft = state.proposal.row.token if state.proposal else None
        read = Read(
            signals=role == "fast",
            top_k=TOP_K if role == "fast" else 0,
            ids=() if draft is None else (draft,),
            warp=self.request.warp,
            # Both models draw with one number, so asking the slow one everywhere is its own sampling.
            uniform=0.0 if self.request.warp.greedy else self._uniform(len(state.answer)),
            mask=mask,
        )
        return [*forced, *self._read(role, read, "propose" if role == "fast" else "answer")]

    def _forced(self) -> list[Command]:
        """Commit what a mask leaves no choice about: no model is asked, no policy."""
        emitted: list[Command] = []
        while self.state.finish is None:
            mask = self._mask(len(self.state.answer))
            token = None if mask is None else mask.forced()
            if token is None:
                break
            decision = Decision(False, reason="forced")
            emitted.append(
                self._commit(token, "fast", None, signals=None, decision=decision, fast_choice=token, slow_choice=token)
            )
        return emitted

    def _mask(self, position: int) -> Mask | None:
        if self.request.constraint is None:
            return None
        answer = self.state.answer
        return self.request.constraint.mask(answer if position == len(answer) else answer[:position])

    def _read(self, role: Role, read: Read, purpose: Purpose) -> list[Command]:
        """Let a model read all that it has not seen, and read the last row."""
        reader, state = self.state.readers[role], self.state
        if reader.sequence < 0:
            return [self._start(role, Open(self._ids(role, 0)), "open")]
        ids = self._ids(role, reader.seen)
        counters = state.usage.fast if role == "fast" else state.usage.slow
        in_prompt = max(len(self.request.prompts[role]) - reader.seen, 0)
        counters.prefill += in_prompt
        if in_prompt < len(ids):
            counters.decode += 1
            counters.catchup += len(ids) - in_prompt - 1
        counters.forwards += 1
        work = Work(reader.sequence, reader.seen, ids, [(len(ids) - 1, read)])
        reader.seen += len(ids)
        return [self._start(role, work, purpose)]

    def _start(self, role: Role, work: Open | Work, purpose: Purpose) -> Start:
        job = self.state.next_job
        self.state.next_job += 1
        self.state.jobs[job] = (role, purpose, len(work.ids) if isinstance(work, Work) else 0)
        return Start(job, role, work)

    def _ids(self, role: Role, start: int) -> Sequence[int]:
        """Prompt and answer tokens from ``start`` on; costs what it returns."""
        prompt = self.request.prompts[role]
        if start >= len(prompt):
            return self.state.answer[start - len(prompt) :]
        return [*prompt[start:], *self.state.answer]

    def _length(self, role: Role) -> int:
        return len(self.request.prompts[role]) + len(self.state.answer)

    def _uniform(self, position: int) -> float:
        return hashed_uniform(self.request.seed, self.request.key, position, "token")

    # --- the end ---

    def _finish(self) -> list[Command]:
        state = self.state
        tail = state.text.flush()
        state.shown.append(tail)
        self.policy.end(state.policy, self.ledger)
        emitted: list[Command] = [Emit(tail, None)] if tail else []
        return [*emitted, *(self._audit() if self.request.audit and state.degraded is None else self._conclude())]

    def _audit(self) -> list[Command]:
        """One forward over the finished answer by each model whose choices are not all known."""
        for role in ("slow", "fast"):
            choices = (t.slow_choice if role == "slow" else t.fast_choice for t in self.state.tokens)
            if any(choice is None for choice in choices):
                return self._read_back(role)
        self.state.usage.audited = True
        return self._conclude()

    def _read_back(self, role: Role) -> list[Command]:
        reader = self.state.readers[role]
        start = len(self.request.prompts[role]) - 1
        if reader.sequence < 0:
            return [self._start(role, Open(self._ids(role, 0)), "open")]
        keep = min(reader.seen, start)
        ids = self._ids(role, keep)[:-1]
        reads = [(start - keep + k, Read(mask=self._mask(k))) for k in range(len(self.state.answer))]
        reader.seen = keep + len(ids)
        self.state.usage.audit_positions += len(ids)
        return [self._start(role, Work(reader.sequence, keep, ids, reads), "audit")]

    def _audited(self, role: Role, rows: Sequence[Row]) -> list[Command]:
        tokens = self.state.tokens
        for index, row in enumerate(rows):
            if role == "slow" and tokens[index].slow_choice is None:
                tokens[index] = dataclasses.replace(tokens[index], slow_choice=row.argmax)
            elif role == "fast" and tokens[index].fast_choice is None:
                tokens[index] = dataclasses.replace(tokens[index], fast_choice=row.argmax)
        return self._audit()

    def _conclude(self) -> list[Command]:
        state, usage = self.state, self.state.usage
        assert state.finish is not None
        known = [t for t in state.tokens if t.fast_choice is not None and t.slow_choice is not None]
        usage.compared = len(known)
        usage.disagreements = sum(t.fast_choice != t.slow_choice for t in known)
        self._enter_in_ledger()
        self.generation = Generation(
            text="".join(state.shown),
            tokens=tuple(state.tokens),
            usage=usage,
            finish_reason=state.finish,
            seed=self.request.seed,
            policy=self.policy.name,
            method=self.method.name,
            degraded=state.degraded,
        )
        return []

    def _enter_in_ledger(self) -> None:
        usage, ledger = self.state.usage, self.ledger
        with ledger.lock:
            ledger.requests += 1
            ledger.audits += usage.audited
            ledger.tokens += usage.tokens
            ledger.slow_tokens += usage.slow_tokens
            ledger.decisions += usage.decisions
            ledger.escalations += usage.escalations
