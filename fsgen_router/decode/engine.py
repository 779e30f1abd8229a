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
4. a method with a rule holds the last drafts back from the stream: the rows of that forward judge
   them, and the first that is rejected takes the answer back to its position;
5. a finished answer may be audited: one slow forward labels every position and changes nothing.

A slow model that gives text is asked for a continuation instead, which streams. More than one job may
be under way (the slow model may read ahead while the fast one writes); a job's failure is an event.
What an engine knows is in one record, :class:`EngineState`, which :meth:`Engine.fork` copies.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np

from ..contracts.methods import Method
from ..contracts.models import Opened, Work
from ..contracts.policy import REST, Context, Decision, Ledger, Policy, PolicyState, checks_end, reads_hidden, rewound
from ..contracts.text_models import Continuation, TextEnd
from ..contracts.tokenizer import Turn
from ..errors import BackendError, ConfigurationError, FsgenError, RouterClosed
from ..generation import Generation
from ..records import FinishReason, ModelUsage, Role, Token, Usage
from ..rows.acceptance import Check
from ..rows.reading import Alignment, Mask, Read, Row, Warp, hashed_uniform
from ..rows.signals import TOP_K, Signals, make_signals
from ..support.waiting import holding
from ..text.stream import TextStream

# --- commands and events -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Open:
    """Open a sequence for these ids; the result is an :class:`~fsgen_router.contracts.models.Opened`."""

    ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class Start:
    """Begin a piece of work on a model; its outcome comes back as :class:`Done` or :class:`Failed`.

    Works of one model are to be begun in the order of their commands.
    """

    job: int
    role: Role
    work: Open | Work | Continuation


@dataclass(frozen=True, slots=True)
class Emit:
    """A token stands, and ``text`` may be shown; or the slow model thinks (``reasoning``), which is no text."""

    text: str
    token: Token | None
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class Cancel:
    """Give a job up: nothing is heard of it any more."""

    job: int


Command: TypeAlias = Start | Emit | Cancel


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a continuation, or of the ``reasoning`` before it; its job goes on."""

    job: int
    text: str
    reasoning: bool = False


@dataclass(frozen=True, slots=True)
class Done:
    """A job's result: ``Opened`` for an ``Open``, rows for a ``Work``, the end of a ``Continuation``.

    ``seconds`` that it took, with those of a forward that it shared counted whole. ``chunked``: that forward read
    more than a single token of some work, so this is no time of a decode step. ``reread``: tokens that the model
    read again, since it could not go back.
    """

    job: int
    result: Opened | list[Row] | TextEnd
    seconds: float
    chunked: bool = False
    reread: int = 0


@dataclass(frozen=True, slots=True)
class Failed:
    """A job came to nothing: the backend's error, or a deadline that passed."""

    job: int
    error: FsgenError


Event: TypeAlias = Done | Chunk | Failed

# --- a request -----------------------------------------------------------------------------------


class Constraint(Protocol):
    """Masks logits on both models: logit bias, grammars, JSON.

    ``mask`` is a pure function of the answer's ids so far (not to be changed), so that it survives a
    rewind.
    """

    def mask(self, answer: Sequence[int]) -> Mask | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPrompt:
    """A prompt as a slow model that gives text gets it: raw text, or messages and variables for their template."""

    prompt: str | None = None
    messages: tuple[Turn, ...] | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt, as each model reads it, and how to answer it.

    ``text`` is given where the slow model gives text; ``prompts`` then has the fast one's alone.
    """

    id: str = ""
    """Its name in log events."""
    prompts: Mapping[Role, Sequence[int]]
    text: TextPrompt | None = None
    key: str
    """What random numbers are drawn for, beside the seed: a hash of the prompt."""
    max_tokens: int
    seed: int = 0
    warp: Warp = field(default_factory=Warp)
    stop: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()
    constraint: Constraint | None = None
    audit: bool = False
    alone: bool = False
    """The slow model's own answer: where that gives text and fails or says nothing, no other model goes on."""
    max_cached: int | None = None
    """Use no more than this of a prefix that a KV cache still holds; None: all of it."""


class Vocabulary(Protocol):
    """The part of a vocabulary that the engine needs; the same for both models where both have ids."""

    @property
    def n_vocab(self) -> int: ...

    def piece(self, token: int) -> bytes: ...

    def class_of(self, token: int) -> int: ...

    def encode_after(self, before: str, text: str) -> list[int]:
        """Ids of ``text`` where it stands behind ``before``."""

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
    first_job: int = -1
    """The job that first read, on top of those."""


@dataclass(slots=True)
class Proposal:
    """The fast model's token at the position under decision."""

    row: Row
    signals: Signals
    decision: Decision


@dataclass(slots=True)
class Held:
    """A drafted token that models read as part of the answer, and that is not streamed yet.

    ``policy`` is the policy's state behind it, for a rewind to here. Without a ``check`` there is
    nothing to judge: a mask left one choice.
    """

    record: Token
    policy: PolicyState
    check: Check | None


Purpose: TypeAlias = Literal["open", "propose", "answer", "verify", "text", "ahead", "audit"]


@dataclass(slots=True)
class EngineState:
    """All that an engine knows of a request. Tokens and records in it are immutable."""

    policy: PolicyState
    text: TextStream
    answer: list[int] = field(default_factory=list)
    """Ids that stand, those held back included."""
    tokens: list[Token] = field(default_factory=list)
    """Those that cannot be taken back."""
    held: list[Held] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
    readers: dict[Role, Reader] = field(default_factory=lambda: {"fast": Reader(), "slow": Reader()})
    jobs: dict[int, tuple[Role, Purpose, int]] = field(default_factory=dict)
    next_job: int = 0
    proposal: Proposal | None = None
    escalation: Decision | None = None
    span_left: int = 0
    """Tokens that the slow model is still to write; above 0, it has the word."""
    span_text: str = ""
    span_reasoning: str = ""
    reasoning: list[str] = field(default_factory=list)
    silences: list[str] = field(default_factory=list)
    """Of each call of an endpoint that ended without text, why."""
    last_escalation: int = -1
    finish: FinishReason | None = None
    degraded: str | None = None
    usage: Usage = field(default_factory=Usage)
    step_seconds: dict[Role, list[float]] = field(default_factory=lambda: {"fast": [], "slow": []})
    """Times of the forwards that read one new token of each request in them: what a slow-only baseline is
    estimated from, whose steps would be shared alike. Those that also read chunks tell nothing of a step."""

    def copy(self) -> EngineState:
        return dataclasses.replace(
            self,
            text=self.text.copy(),
            answer=list(self.answer),
            tokens=list(self.tokens),
            held=list(self.held),
            shown=list(self.shown),
            reasoning=list(self.reasoning),
            silences=list(self.silences),
            readers={role: dataclasses.replace(reader) for role, reader in self.readers.items()},
            jobs=dict(self.jobs),
            step_seconds={role: list(times) for role, times in self.step_seconds.items()},
            usage=dataclasses.replace(
                self.usage, fast=dataclasses.replace(self.usage.fast), slow=dataclasses.replace(self.usage.slow)
            ),
        )


class Engine:
    """One request's decode loop. ``contexts`` holds each model's context length in tokens, ``alignments`` what makes
    a model's rows ones of the vocabulary, where its own is another.

    With ``read_ahead`` n > 0 the slow model reads whenever n tokens wait for it, while the fast one goes
    on: worth it where they run on different devices.
    """

    def __init__(
        self,
        request: Request,
        *,
        policy: Policy,
        method: Method,
        vocabulary: Vocabulary,
        contexts: Mapping[Role, int],
        ledger: Ledger,
        alignments: Mapping[Role, Alignment | None] = MappingProxyType({}),
        read_ahead: int = 0,
    ) -> None:
        self.request, self.policy, self.method = request, policy, method
        self.alignments = alignments
        self.vocabulary, self.ledger = vocabulary, ledger
        self.read_ahead = read_ahead if policy.asks and request.text is None else 0
        self.reads_hidden = reads_hidden(policy)
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

    def settle(self) -> None:
        """Enter in the ledger what a request that was given up, or failed, has spent all the same."""
        if self.generation is not None or not self.state.usage.decisions:
            return
        if self.state.finish is None:
            self.policy.end(self.state.policy, self.ledger)
        self._enter_in_ledger()

    @property
    def sequences(self) -> list[tuple[Role, int]]:
        """Sequences that are open and have to be closed by the driver."""
        return [(role, r.sequence) for role, r in self.state.readers.items() if r.sequence >= 0]

    # --- events in, commands out ---

    def start(self) -> list[Command]:
        """The first commands (of a new engine or of a fork)."""
        state = self.state
        if not (state.span_text or state.span_reasoning):
            return self._next()
        # Forked in the middle of a continuation: what was said stands, and another call says what follows.
        emitted = self._text_stands()
        state.span_left = max(state.span_left - len(emitted), 0)
        return [*emitted, *self._next()]

    def send(self, event: Event) -> list[Command]:
        """Take the outcome of a job. Raises what the fast model failed with."""
        state = self.state
        if isinstance(event, Chunk):
            return self._chunk(event)
        role, purpose, size = state.jobs.pop(event.job)
        if isinstance(event, Failed):
            return self._failed(role, purpose, event.error)
        if isinstance(event.result, list) and any(math.isnan(row.log_partition) for row in event.result):
            error = BackendError(f"the {role} model's logits are no distribution", hint=_NO_DISTRIBUTION)
            return self._failed(role, purpose, error)
        if purpose == "audit":
            state.usage.audit_seconds += event.seconds
            state.usage.audit_positions += event.reread
        else:
            counters = self._counters(role)
            counters.seconds += event.seconds
            counters.reread += event.reread
            if event.job == state.readers[role].first_job:  # what it read again was of no use in the KV cache
                counters.cached -= event.reread
            if size == 1 and purpose != "ahead" and not event.chunked and not event.reread:
                state.step_seconds[role].append(event.seconds)
        result = event.result
        if isinstance(result, Opened):
            return self._opened(role, purpose, result)
        if isinstance(result, TextEnd):
            return self._text_ended(result)
        match purpose:
            case "propose":
                return self._proposed(result[0])
            case "answer":
                return self._answered(result[0])
            case "verify":
                return self._verified(result)
            case "ahead":
                return self._read_some()
        return self._audited(role, result)

    def _failed(self, role: Role, purpose: Purpose, error: FsgenError) -> list[Command]:
        state, finished = self.state, self.state.finish is not None
        if not finished and (role == "fast" or isinstance(error, RouterClosed)):
            raise error
        if finished and purpose == "ahead":  # nobody needs what it read, save perhaps an audit, which begins anew
            state.readers[role].seen = 0
            return self._wrap_up()
        if finished:  # an audit that fails costs only its labels
            return self._conclude()
        # The answer is not lost: the fast model goes on alone, and the result says so.
        state.degraded = f"{type(error).__name__}: {error.message}"
        emitted = self._text_stands() if state.span_text or state.span_reasoning else []
        if state.span_left == 0:  # it was reading ahead
            state.escalation = None
            return emitted
        return [*emitted, *self._hand_back("stop")]

    def _hand_back(self, finish: FinishReason) -> list[Command]:
        """The slow model stops in mid-span: the fast one's token stands, if nothing came in its place, and it goes on.

        ``finish`` is how an answer ends that the slow model was to write alone.
        """
        state = self.state
        state.span_left, state.escalation = 0, None
        if self.request.alone and state.degraded is not None:
            state.proposal, state.finish = None, state.finish or finish
        if state.proposal is not None:
            return self._fast_stands(state.proposal)
        return [*self._release(0), *self._next()]

    def _opened(self, role: Role, purpose: Purpose, opened: Opened) -> list[Command]:
        reader = self.state.readers[role]
        # At least one token has to be read for a row to come back.
        kept = opened.kept if self.request.max_cached is None else min(opened.kept, self.request.max_cached)
        reader.sequence, reader.found = opened.sequence, opened.kept
        reader.seen = min(kept, self._length(role) - 1)
        if self.state.finish is not None:
            return self._wrap_up()
        return self._read_some() if purpose == "ahead" else self._next()

    # --- the fast model's tokens ---

    def _proposed(self, row: Row) -> list[Command]:
        state = self.state
        signals = make_signals(row, self.vocabulary.class_of(row.token))
        if state.degraded is not None:
            return self._fast_stands(Proposal(row, signals, Decision(False, reason="degraded")))
        state.policy, decision = self.policy.decide(state.policy, signals, self._context())
        if decision.escalate and self.request.text is not None and not state.text.complete:
            decision = dataclasses.replace(decision, escalate=False, reason="inside a character")
        proposal = Proposal(row, signals.without_hidden(), decision)
        state.usage.decisions += 1
        if not decision.escalate:
            return self._fast_stands(proposal)
        self._escalate(decision)
        if self.method.rule is not None:
            return self._fast_stands(proposal)
        state.proposal = proposal
        return self._next()

    def _context(self) -> Context:
        state, position = self.state, len(self.state.answer)
        return Context(
            position=position,
            since_escalation=position - state.last_escalation - 1,
            slow_calls=state.usage.escalations,
            slow_tokens=state.usage.slow_tokens,
            uniform=lambda: self._uniform(position, "policy"),
        )

    def _escalate(self, decision: Decision) -> None:
        if decision.extent < 1 and decision.extent != REST:
            raise ConfigurationError(
                f"the policy {self.policy.name} escalates for {decision.extent} tokens", hint="at least 1, or REST"
            )
        self.state.usage.escalations += 1
        self.state.escalation = decision
        self.state.span_left = self.room if decision.extent == REST else decision.extent

    def _fast_stands(self, proposal: Proposal) -> list[Command]:
        """The fast model's token becomes part of the answer."""
        self.state.proposal = None
        row = proposal.row
        record = Token(
            id=row.token,
            piece=self._piece(row.token),
            source="fast",
            logprob=row.logprob,
            signals=proposal.signals,
            decision=proposal.decision,
            fast_choice=row.argmax,
            slow_choice=None,
        )
        return [*self._place(record, self._check(record.id, row)), *self._next()]

    def _check(self, draft: int, row: Row) -> Check | None:
        rule, position = self.method.rule, len(self.state.answer)
        if rule is None:
            return None
        greedy = self.request.warp.greedy
        return Check(
            token=draft,
            rule=rule,
            accept_uniform=0.0 if greedy else self._uniform(position, "accept"),
            residual_uniform=0.0 if greedy else self._uniform(position, "residual"),
            fast_logits=row.logits,
        )

    def _place(self, record: Token, check: Check | None) -> list[Command]:
        """Put a token behind those that stand, for good or held back."""
        state = self.state
        state.answer.append(record.id)
        if self.method.rule is None or state.degraded is not None:
            return [*self._release(0), self._commit(record)]
        if check is None and not state.held:  # there is nothing to judge, and nothing before it to be taken back
            return [self._commit(record)]
        state.held.append(Held(record, state.policy, check))
        if state.span_left > 0:
            return []
        if not self._at_the_end():
            return self._release(self.method.draft_len)
        if any(held.check for held in state.held) and checks_end(self.policy, self._context()):
            self._escalate(Decision(True, reason="end of the answer"))
            return []
        return self._release(0)

    def _at_the_end(self) -> bool:
        """Whether nothing can follow the tokens that stand, those held back included."""
        state, last = self.state, self.state.answer[-1]
        if self._ends(last) or len(state.answer) >= min(self.request.max_tokens, self.room):
            return True
        if not self.request.stop:
            return False
        text = state.text.copy()
        for held in state.held:
            text.push(held.record.piece)
        return text.stopped

    def _release(self, keep: int) -> list[Command]:
        """Stream what is held back, all but the last ``keep`` tokens."""
        emitted: list[Command] = []
        while len(self.state.held) > keep and self.state.finish is None:
            emitted.append(self._commit(self.state.held.pop(0).record))
        return emitted

    # --- the slow model's tokens ---

    def _answered(self, row: Row) -> list[Command]:
        proposal, self.state.proposal = self.state.proposal, None
        emit = self._slow_stands(row, proposal.row.token if proposal else None, proposal)
        return [emit, *self._next()]

    def _slow_stands(self, row: Row, draft: int | None, fast: Proposal | Token | None) -> Emit:
        """The slow model's token becomes part of the answer; ``fast`` is what is known of the position."""
        state = self.state
        token, logprob = self.method.choose(draft, row)
        if draft is not None and token != draft:
            state.usage.corrections += 1
        if isinstance(fast, Proposal):
            state.usage.discarded_tokens += token != draft
        state.span_left -= 1
        state.last_escalation = len(state.answer)
        state.answer.append(token)
        return self._commit(
            Token(
                id=token,
                piece=self._piece(token),
                source="slow",
                logprob=logprob,
                signals=fast.signals if fast else None,
                decision=fast.decision if isinstance(fast, Token) else state.escalation,
                fast_choice=fast.row.argmax if isinstance(fast, Proposal) else fast.fast_choice if fast else None,
                slow_choice=row.argmax,
            )
        )

    def _verified(self, rows: Sequence[Row]) -> list[Command]:
        """Judge what is held back: the first rejected draft is replaced, what follows it is discarded."""
        state, judged = self.state, iter(rows)
        emitted: list[Command] = []
        while state.held:
            held = state.held[0]
            row = next(judged) if held.check else None
            if row is not None and not row.accepted:
                state.usage.discarded_tokens += len(state.held)
                state.policy = rewound(self.policy, held.policy, state.policy)
                self._rewind(len(state.tokens))
                emitted.append(self._slow_stands(row, held.record.id, held.record))
                break
            state.held.pop(0)
            record = held.record
            if row is not None:
                record = dataclasses.replace(record, verified=True, slow_choice=row.argmax)
            emitted.append(self._commit(record))
        else:
            bonus = next(judged, None)
            if bonus is None:
                state.span_left = 0
            elif state.finish is None:
                state.usage.bonus_tokens += 1
                emitted.append(self._slow_stands(bonus, None, None))
        return [*emitted, *self._next()]

    def _rewind(self, length: int) -> None:
        """Take the answer back to its first ``length`` tokens."""
        state = self.state
        state.held.clear()
        del state.answer[length:]
        for role, reader in state.readers.items():
            if reader.sequence >= 0:
                reader.seen = min(reader.seen, self._length(role))

    # --- a continuation as text ---

    def _chunk(self, event: Chunk) -> list[Command]:
        state = self.state
        # An endpoint's JSON may hold half of a surrogate pair, which is no text.
        said = event.text.encode(errors="replace")
        if event.reasoning:
            return [self._thought(said.decode())]
        text = state.text.push(said)
        state.span_text += said.decode()
        state.shown.append(text)
        emitted: list[Command] = [Emit(text, None)] if text else []
        if not state.text.stopped:
            return emitted
        del state.jobs[event.job]
        state.span_left = 0
        return [*emitted, Cancel(event.job), *self._text_stands(), *self._next()]

    def _thought(self, text: str) -> Emit:
        """Keep what the slow model thinks; the thoughts of two calls are two paragraphs."""
        state = self.state
        if state.reasoning and not state.span_reasoning:
            text = f"\n\n{text}"
        state.span_reasoning += text
        state.reasoning.append(text)
        return Emit("", None, text)

    def _text_ended(self, end: TextEnd) -> list[Command]:
        state = self.state
        if not (state.span_text if end.finish_reason == "length" else state.span_text.strip()):
            return self._nothing_said(end)
        emitted = self._text_stands(end)
        if state.finish in (None, "length") and end.finish_reason == "stop":
            # Whole, though it may have more tokens in the fast model's vocabulary than were asked for.
            state.finish = "eog"
        elif state.finish is None and state.escalation is not None and state.escalation.extent == REST:
            state.finish = "length"
        state.span_left = 0
        return [*emitted, *self._next()]

    def _nothing_said(self, end: TextEnd) -> list[Command]:
        """A continuation without a word ends no answer, whatever it says: the fast model's token stands.

        Nor is it asked for again and again: an endpoint that had nothing to say to the rest, or twice to a
        span, is given up. Where the fast model was about to end the answer, the two agree.
        """
        state = self.state
        rest = state.escalation is None or state.escalation.extent == REST
        agreed = end.finish_reason == "stop" and state.proposal is not None and self._ends(state.proposal.row.token)
        limit, thought = self._limit(), state.usage.reasoning_tokens
        emitted = self._text_stands(end)
        thought = state.usage.reasoning_tokens - thought
        if not agreed:
            state.silences.append(_why_silent(end, thought, limit))
            if rest or len(state.silences) >= MAX_SILENT_CALLS:
                state.degraded = state.silences[-1]
        return [*emitted, *self._hand_back("eog" if end.finish_reason == "stop" else "length")]

    def _text_stands(self, end: TextEnd | None = None) -> list[Command]:
        """The tokens of a continuation, whose text was streamed, in the fast model's vocabulary."""
        state, usage = self.state, self.state.usage
        text, state.span_text = state.span_text, ""
        position = len(state.answer)
        before = b"".join(token.piece for token in state.tokens).decode(errors="replace")
        ids = self.vocabulary.encode_after(before, text) if text else []
        if text and state.proposal is not None:
            usage.discarded_tokens += 1
            state.proposal = None
        emitted: list[Command] = []
        for token in ids:
            state.last_escalation = len(state.answer)
            state.answer.append(token)
            record = Token(
                id=token,
                piece=self.vocabulary.piece(token),
                source="slow",
                logprob=None,
                signals=None,
                decision=state.escalation,
                fast_choice=None,
                slow_choice=None,
            )
            emitted.append(self._commit(record, streamed=True))
        self._count_call(end or TextEnd("stop"), position, len(ids))
        return emitted

    def _count_call(self, end: TextEnd, position: int, written: int) -> None:
        """What a call cost; what the endpoint did not say of it is counted in the fast model's tokens.

        Of reasoning, which the fast model never reads, they are a quarter of the bytes.
        """
        usage, slow = self.state.usage, self.state.usage.slow
        usage.round_trips += 1
        reasoning, self.state.span_reasoning = self.state.span_reasoning, ""
        thought = end.reasoning_tokens
        if thought is None:
            thought = -(-len(reasoning.encode()) // 4)
        prompt = end.prompt_tokens or len(self.request.prompts["fast"]) + position
        cached, written = min(end.cached_tokens or 0, prompt), end.completion_tokens or written + thought
        usage.reasoning_tokens += min(thought, written)
        slow.cached += cached
        slow.prefill += prompt - cached
        slow.decode += written
        slow.forwards += written

    # --- tokens that cannot be taken back ---

    def _commit(self, record: Token, *, streamed: bool = False) -> Emit:
        """Stream a token (unless its text was), and see whether it ends the answer."""
        state = self.state
        state.tokens.append(record)
        state.usage.tokens += 1
        state.usage.text_bytes += len(record.piece)
        if record.source == "slow":
            state.usage.slow_tokens += 1
            state.usage.slow_bytes += len(record.piece)
        text = "" if streamed else state.text.push(record.piece)
        state.shown.append(text)
        if self._ends(record.id):
            state.finish = "eog" if record.id in self.vocabulary.eog_ids else "stop"
        elif state.text.stopped:
            state.finish = "stop"
        elif len(state.tokens) >= self.request.max_tokens:
            state.finish = "length"
        elif len(state.tokens) >= self.room:
            state.finish = "context"
        return Emit(text, record)

    def _ends(self, token: int) -> bool:
        return token in self.vocabulary.eog_ids or token in self.request.stop_ids

    def _piece(self, token: int) -> bytes:
        return b"" if self._ends(token) else self.vocabulary.piece(token)

    # --- what to do next ---

    def _next(self) -> list[Command]:
        """The one place that decides which model reads next."""
        state, forced = self.state, self._forced()
        if state.finish is not None:
            return [*forced, *self._finish()]
        if state.span_left == 0:
            position, rule = len(state.answer), self.method.rule
            full = rule is not None and rule.needs_fast_row and state.degraded is None
            hidden = self.reads_hidden and state.degraded is None
            read = self._choice("fast", position, signals=True, full=full, hidden=hidden)
            return [*forced, *self._read_ahead(), *self._read("fast", read, "propose")]
        if self.request.text is not None:
            return [*forced, *self._continue_text(self.request.text)]
        if any(role == "slow" for role, _, _ in state.jobs.values()):
            return forced  # it is reading ahead, and comes back here when it is done
        if state.held:
            return [*forced, *self._verify()]
        draft = () if state.proposal is None else (state.proposal.row.token,)
        read = self._choice("slow", len(state.answer), ids=draft)
        return [*forced, *self._read("slow", read, "answer")]

    def _forced(self) -> list[Command]:
        """Place what a mask leaves no choice about: no model is asked, no policy."""
        emitted: list[Command] = []
        state = self.state
        while self.request.constraint is not None and state.finish is None:
            if state.held and self._at_the_end():
                break  # what is held back has to be judged first
            mask = self._mask(len(state.answer))
            token = None if mask is None else mask.forced()
            if token is None:
                break
            record = Token(
                id=token,
                piece=self._piece(token),
                source="fast",
                logprob=None,
                signals=None,
                decision=Decision(False, reason="forced"),
                fast_choice=token,
                slow_choice=token,
            )
            emitted += self._place(record, None)
        return emitted

    def _choice(
        self,
        role: Role,
        position: int,
        *,
        signals: bool = False,
        ids: tuple[int, ...] = (),
        check: Check | None = None,
        full: bool = False,
        hidden: bool = False,
    ) -> Read:
        """How a model's row is read that the token at ``position`` may be taken from."""
        return Read(
            signals=signals,
            top_k=TOP_K if signals else 0,
            ids=ids,
            warp=self.request.warp,
            # Both models draw with one number, so asking the slow one everywhere is its own sampling.
            uniform=0.0 if self.request.warp.greedy else self._uniform(position, "token"),
            mask=self._mask(position),
            check=check,
            full=full,
            hidden=hidden,
            alignment=self.alignments.get(role),
        )

    def _verify(self) -> list[Command]:
        """Let the slow model read all that it has not read, and judge what is held back."""
        state, reader = self.state, self.state.readers["slow"]
        if reader.sequence < 0:
            return [self._start("slow", Open(self._ids("slow", 0)), "open")]
        prompt, done = len(self.request.prompts["slow"]), len(state.tokens)
        # The row that judges a token is the one before it; nothing is read of the row behind the end.
        checks = [(done + k, held.check) for k, held in enumerate(state.held) if held.check]
        keep = min(reader.seen, prompt + (checks[0][0] if checks else len(state.answer)) - 1)
        ids = self._ids("slow", keep)
        reads = [
            (prompt + at - 1 - keep, self._choice("slow", at, ids=(check.token,), check=check)) for at, check in checks
        ]
        if self._at_the_end():
            ids = ids[:-1]
        else:
            reads.append((len(ids) - 1, self._choice("slow", len(state.answer))))
        return [self._work("slow", keep, ids, reads, "verify")]

    def _continue_text(self, text: TextPrompt) -> list[Command]:
        state = self.state
        written = b"".join(token.piece for token in state.tokens).decode(errors="replace")
        wanted = Continuation(
            prompt=text.prompt,
            messages=text.messages,
            chat_template_kwargs=text.chat_template_kwargs,
            answer=written,
            max_tokens=self._limit(),
            warp=self.request.warp,
            seed=self.request.seed,
        )
        return [self._start("slow", wanted, "text")]

    def _limit(self) -> int:
        """How many tokens a continuation is asked for."""
        return min(self.state.span_left, self.request.max_tokens - len(self.state.answer))

    def _read_ahead(self) -> list[Command]:
        """Let an idle slow model read what stands for good, all but the last token, whose row is wanted later."""
        state, reader = self.state, self.state.readers["slow"]
        if not self.read_ahead or state.degraded or any(role == "slow" for role, _, _ in state.jobs.values()):
            return []
        if reader.sequence < 0:
            return [self._start("slow", Open(self._ids("slow", 0)), "ahead")]
        until = len(self.request.prompts["slow"]) + len(state.tokens) - 1
        if until - reader.seen < self.read_ahead:
            return []
        ids = self._ids("slow", reader.seen)[: until - reader.seen]
        state.usage.slow.ahead += len(ids)
        return [self._work("slow", reader.seen, ids, [], "ahead")]

    def _read_some(self) -> list[Command]:
        """The slow model has read ahead: someone may be waiting for it."""
        if self.state.finish is not None:
            return self._wrap_up()
        return self._next() if self.state.span_left > 0 else self._read_ahead()

    def _mask(self, position: int) -> Mask | None:
        if self.request.constraint is None:
            return None
        answer = self.state.answer
        mask = self.request.constraint.mask(answer if position == len(answer) else answer[:position])
        _check_mask(mask, self.vocabulary.n_vocab)
        if mask is None or mask.allowed is None or not len(self.unshared):
            return mask
        # The only token that a mask allows has to be one that both models read.
        allowed = mask.allowed.copy()
        allowed[self.unshared] = False
        return dataclasses.replace(mask, allowed=allowed)

    @cached_property
    def unshared(self) -> np.ndarray:
        """Ids of the vocabulary that no model of this pair writes."""
        none = np.empty(0, np.int64)
        forbidden = [none if alignment is None else alignment.forbidden for alignment in self.alignments.values()]
        return functools.reduce(np.intersect1d, forbidden) if forbidden else none

    def _read(self, role: Role, read: Read, purpose: Purpose) -> list[Command]:
        """Let a model read all that it has not seen, and read the last row."""
        reader = self.state.readers[role]
        if reader.sequence < 0:
            return [self._start(role, Open(self._ids(role, 0)), "open")]
        keep = min(reader.seen, self._length(role) - 1)
        ids = self._ids(role, keep)
        return [self._work(role, keep, ids, [(len(ids) - 1, read)], purpose)]

    def _work(
        self, role: Role, keep: int, ids: Sequence[int], reads: Sequence[tuple[int, Read]], purpose: Purpose
    ) -> Start:
        counters, reader = self._counters(role), self.state.readers[role]
        if reader.first_job < 0:
            reader.first_job = self.state.next_job
            counters.cached += keep
        in_prompt = min(max(len(self.request.prompts[role]) - keep, 0), len(ids))
        counters.prefill += in_prompt
        if purpose == "ahead":
            counters.catchup += len(ids) - in_prompt
        else:
            counters.forwards += 1
            if in_prompt < len(ids):
                counters.decode += 1
                counters.catchup += len(ids) - in_prompt - 1
        reader.seen = keep + len(ids)
        return self._start(role, Work(reader.sequence, keep, ids, reads), purpose)

    def _counters(self, role: Role) -> ModelUsage:
        return self.state.usage.fast if role == "fast" else self.state.usage.slow

    def _start(self, role: Role, work: Open | Work | Continuation, purpose: Purpose) -> Start:
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

    def _uniform(self, position: int, purpose: str) -> float:
        return hashed_uniform(self.request.seed, self.request.key, position, purpose)

    # --- the end ---

    def _finish(self) -> list[Command]:
        state = self.state
        tail = state.text.flush()
        state.shown.append(tail)
        self.policy.end(state.policy, self.ledger)
        emitted: list[Command] = [Emit(tail, None)] if tail else []
        return [*emitted, *self._wrap_up()]

    def _wrap_up(self) -> list[Command]:
        """What is left to do when the answer stands."""
        if self.state.jobs:
            return []  # reading ahead: a sequence is not given back under a forward
        return self._audit() if self.request.audit and self.state.degraded is None else self._conclude()

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
        alignment = self.alignments.get(role)
        reads = [
            (start - keep + k, Read(mask=self._mask(k), alignment=alignment)) for k in range(len(self.state.answer))
        ]
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
        if state.silences and not usage.slow_tokens:  # no call was left for a word of it
            state.degraded = state.degraded or state.silences[-1]
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
            reasoning="".join(state.reasoning),
        )
        return []

    def _enter_in_ledger(self) -> None:
        usage, ledger = self.state.usage, self.ledger
        with holding(ledger.lock):
            ledger.requests += 1
            ledger.audits += usage.audited
            ledger.tokens += usage.tokens
            ledger.slow_tokens += usage.slow_tokens
            ledger.decisions += usage.decisions
            ledger.escalations += usage.escalations


MAX_SILENT_CALLS = 2
"""Calls without text after which an endpoint that is asked for spans is given up."""


def _why_silent(end: TextEnd, thought: int, limit: int) -> str:
    written, over = end.completion_tokens or 0, end.finish_reason == "length"
    if thought and over:
        return f"it said nothing: its limit of {limit} tokens went into reasoning. Ask for more, or turn that off"
    if thought:
        return f"it said nothing: all that it wrote was reasoning ({thought} tokens), which can be turned off"
    if over:
        return f"it said nothing within its limit of {limit} tokens"
    return f"it said nothing new in {written} tokens" if written else "it said nothing"


_NO_DISTRIBUTION = "NaN or infinite, or a bias forbids every token: try a wider dtype, or another bias"


def _check_mask(mask: Mask | None, n_vocab: int) -> None:
    """Refuse a mask that does not fit; here, so that it fails its own request and no other of its batch."""
    if mask is None:
        return
    if not isinstance(mask, Mask):
        raise ConfigurationError(f"a constraint gave a {type(mask).__name__}", hint="a Mask, or None")
    allowed, ids, bias = mask.allowed, mask.ids, mask.bias
    if any(array is not None and not isinstance(array, np.ndarray) for array in (allowed, ids, bias)):
        raise ConfigurationError("a constraint's allowed, ids and bias have to be NumPy arrays")
    if allowed is not None and allowed.shape != (n_vocab,):
        raise ConfigurationError(f"a constraint's allowed has shape {allowed.shape}, the vocabulary ({n_vocab},)")
    if allowed is not None and allowed.dtype != bool:
        raise ConfigurationError(f"a constraint's allowed holds {allowed.dtype}", hint="bool, True where allowed")
    if ids is None or bias is None:
        return
    if ids.ndim != 1 or ids.shape != bias.shape:
        raise ConfigurationError(f"a constraint has ids of shape {ids.shape} and biases of shape {bias.shape}")
    if ids.dtype.kind not in "iu" or bias.dtype.kind not in "fiu" or np.isnan(bias).any():
        raise ConfigurationError(
            f"a constraint has ids of {ids.dtype} and biases of {bias.dtype}", hint="integers, and numbers without NaN"
        )
    if len(ids) and not (ids.min() >= 0 and ids.max() < n_vocab):
        raise ConfigurationError(
            f"a constraint biases tokens {ids.min()} to {ids.max()}, the vocabulary has 0 to {n_vocab - 1}"
        )
