"""What every act of an answer uses: the request and how it is answered, the state, and works for models."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType

import numpy as np

from ..contracts.billing import Meter
from ..contracts.methods import Method
from ..contracts.models import Opened, Role, Rows, Work
from ..contracts.policy import Context, Ledger, Policy, hands_over, reads_hidden
from ..contracts.text_models import Continuation
from ..errors import ConfigurationError
from ..generation import Generation
from ..money import Terms
from ..rows.acceptance import Check
from ..rows.reading import FORBIDDEN, Alignment, Floats, Mask, Read, choose_token, hashed_uniform
from ..rows.signals import TOP_K
from ..text.stream import TextStream
from .commands import Done, Open, Start
from .request import Request, Vocabulary, check_mask
from .state import EngineState, Purpose, Reader


class Core:
    """One request: what it is, what is known of it, and what acts share. An act is a function of this.

    ``contexts`` holds each model's context length in tokens, ``alignments`` what makes a model's rows ones of the
    vocabulary, where its own is another. With ``read_ahead`` n > 0 the slow model reads whenever n tokens wait for it,
    while the fast one goes on: worth it where they run on different devices. ``terms`` are what escalations may cost.
    ``ready`` says of a slow model that gives text why it is not to be asked now
    (:func:`~fsgen_router.contracts.text_models.unready`).
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
        terms: Terms | None = None,
        ready: Callable[[Continuation], str | None] | None = None,
    ) -> None:
        if policy.asks:
            _require_rows(method, request)
        self.request, self.policy, self.method = request, policy, method
        self.alignments = alignments
        self.vocabulary, self.ledger = vocabulary, ledger
        self.terms, self.meter = terms or Terms(), Meter()
        self._ready = ready
        self.read_ahead = read_ahead if policy.asks and request.text is None else 0
        self.reads_hidden = reads_hidden(policy)
        # Where a method reads the fast model too, that is asked all the same.
        self.hands_over = hands_over(policy) and method.rule is None and method.roles == ("slow",)
        # Each costs 4 bytes for each token of the vocabulary at each step.
        self.whole_rows = frozenset(method.whole_rows if policy.asks else ())
        if method.rule is not None and method.rule.needs_fast_row:
            self.whole_rows |= {"fast"}
        self.contexts = contexts
        roles: dict[Role, None] = dict.fromkeys(("fast", "slow", *request.prompts))
        self.state = EngineState(
            policy=policy.begin(ledger),
            prompts=dict(request.prompts),
            text=TextStream(request.stop),
            readers={role: Reader() for role in roles},
            step_seconds={role: [] for role in roles},
        )
        self.state.usage.prompt_tokens = len(request.prompts["fast"])
        self.generation: Generation | None = None

    @property
    def sequences(self) -> list[tuple[Role, int]]:
        """Sequences that are open and have to be closed by the driver."""
        return [(role, r.sequence) for role, r in self.state.readers.items() if r.sequence >= 0]

    def late(self, job: int, role: Role, opened: Opened) -> None:
        """A sequence was opened for a job of which nothing more is heard: it is to be closed with the others."""
        self.state.readers[role].sequence = opened.sequence

    # --- where the answer stands ---

    @property
    def room(self) -> int:
        """Tokens that the contexts hold behind the prompts; the slow model's counts only where that may be asked."""
        return min(limit - len(self.state.prompts[role]) for role, limit in self.contexts.items())

    def ids(self, role: Role, start: int) -> Sequence[int]:
        """Prompt and answer tokens from ``start`` on; costs what it returns."""
        prompt = self.state.prompts[role]
        if start >= len(prompt):
            return self.state.answer[start - len(prompt) :]
        return [*prompt[start:], *self.state.answer]

    def length(self, role: Role) -> int:
        return len(self.state.prompts[role]) + len(self.state.answer)

    def context(self) -> Context:
        """What the policy may know of this position."""
        state, position = self.state, len(self.state.answer)
        return Context(
            position=position,
            since_escalation=position - state.last_escalation - 1,
            slow_calls=state.usage.escalations,
            slow_tokens=state.usage.slow_tokens,
            uniform=lambda: self.uniform(position, "policy"),
            call=None if self.request.calls is None else self.request.calls.place(state.answer),
        )

    def uniform(self, position: int, purpose: str) -> float:
        return hashed_uniform(self.request.seed, self.request.key, position, purpose)

    def unready(self) -> str | None:
        """Why the slow model is not to be asked now, in a few words; None: it may be."""
        text = self.request.text
        if text is None or self._ready is None:
            return None
        answer = b"".join(token.piece for token in self.state.tokens).decode(errors="replace")
        about = {name: getattr(text, name) for name in ("prompt", "messages", "chat_template_kwargs")}
        return self._ready(Continuation(**about, answer=answer, max_tokens=1))

    # --- how rows are read, and tokens drawn ---

    def choice(
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
            # All models draw with one number, so asking the slow one everywhere is its own sampling.
            uniform=0.0 if self.request.warp.greedy else self.uniform(position, "token"),
            mask=self.mask(position),
            check=check,
            full=full,
            hidden=hidden,
            alignment=self.alignments.get(role),
        )

    def draw(self, logits: Floats) -> tuple[int, float]:
        """A token from logits that a method made for this position, and its log-probability under them."""
        rows = self.state.rows.values() if self.forbids else ()
        forbidden = [row.logits == FORBIDDEN for row in rows if row.logits is not None]
        if forbidden:  # by a mask or an alignment, which no sum of rows may lift
            logits = np.where(functools.reduce(np.logical_or, forbidden), FORBIDDEN, logits)
        warp = self.request.warp
        return choose_token(logits, warp, 0.0 if warp.greedy else self.uniform(len(self.state.answer), "token"))

    def mask(self, position: int) -> Mask | None:
        if self.request.constraint is None:
            return None
        answer = self.state.answer
        mask = self.request.constraint.mask(answer if position == len(answer) else answer[:position])
        check_mask(mask, self.vocabulary.n_vocab)
        moved = [alignment for alignment in self.alignments.values() if alignment is not None and len(alignment.ends)]
        if mask is None or mask.allowed is None or not (len(self.unshared) or moved):
            return mask
        # The only token that a mask allows has to be one that all models read; an end of one's own counts as theirs.
        allowed = mask.allowed.copy()
        for alignment in moved:
            allowed[alignment.end] |= bool(allowed[alignment.ends[alignment.ends < len(allowed)]].any())
        allowed[self.unshared] = False
        return dataclasses.replace(mask, allowed=allowed)

    @property
    def forbids(self) -> bool:
        """Whether a row may have tokens that are not to be written: what a mask or an alignment forbids."""
        return self.request.constraint is not None or any(
            alignment is not None and len(alignment.forbidden) for alignment in self.alignments.values()
        )

    @cached_property
    def unshared(self) -> np.ndarray:
        """Ids of the vocabulary that no model of this pair writes."""
        none = np.empty(0, np.int64)
        forbidden = [none if alignment is None else alignment.forbidden for alignment in self.alignments.values()]
        return functools.reduce(np.intersect1d, forbidden) if forbidden else none

    # --- works, and what they cost ---

    def busy(self, role: Role) -> bool:
        """Whether something of a model's is under way."""
        jobs = self.state.jobs
        return bool(jobs) and any(job[0] == role for job in jobs.values())

    def read(self, role: Role, read: Read, purpose: Purpose, *, more: int = 0) -> Start:
        """Let a model read all that it has not seen, and read the last row; ``more`` tokens of its own may follow."""
        reader = self.state.readers[role]
        if reader.sequence < 0:
            return self.open(role)
        keep = min(reader.seen, self.length(role) - 1)
        ids = self.ids(role, keep)
        return self.work(role, keep, ids, [(len(ids) - 1, read)], purpose, more=more)

    def left(self, wanted: int) -> int:
        """How many of so many tokens the answer has room for behind the next one."""
        return max(min(wanted, min(self.request.max_tokens, self.room) - len(self.state.answer)) - 1, 0)

    def open(self, role: Role, purpose: Purpose = "open") -> Start:
        return self.begin(role, Open(self.ids(role, 0)), purpose)

    def opened(self, role: Role, opened: Opened) -> None:
        reader = self.state.readers[role]
        # At least one token has to be read for a row to come back.
        kept = opened.kept if self.request.max_cached is None else min(opened.kept, self.request.max_cached)
        reader.sequence, reader.found = opened.sequence, opened.kept
        reader.seen = min(kept, self.length(role) - 1)

    def work(
        self,
        role: Role,
        keep: int,
        ids: Sequence[int],
        reads: Sequence[tuple[int, Read]],
        purpose: Purpose,
        *,
        more: int = 0,
    ) -> Start:
        """Keep so many tokens, append ``ids``, read: begun and counted."""
        counters, reader = self.state.usage.of(role), self.state.readers[role]
        if reader.first_job < 0:
            reader.first_job = self.state.next_job
            counters.cached += keep
        in_prompt = min(max(len(self.state.prompts[role]) - keep, 0), len(ids))
        counters.prefill += in_prompt
        if purpose == "ahead":
            counters.catchup += len(ids) - in_prompt
        else:
            counters.forwards += 1
            if in_prompt < len(ids):
                counters.decode += 1
                counters.catchup += len(ids) - in_prompt - 1
        reader.seen = keep + len(ids)
        return self.begin(role, Work(reader.sequence, keep, ids, reads, more), purpose)

    def begin(self, role: Role, work: Open | Work | Continuation, purpose: Purpose) -> Start:
        job = self.state.next_job
        self.state.next_job += 1
        self.state.jobs[job] = (role, purpose, len(work.ids) if isinstance(work, Work) else 0)
        return Start(job, role, work)

    def spent(self, role: Role, purpose: Purpose, size: int, done: Done) -> None:
        """Count what a job took that read ``size`` tokens."""
        state = self.state
        if purpose == "audit":
            state.usage.audit_seconds += done.seconds
            state.usage.audit_positions += done.reread
            return
        counters = state.usage.of(role)
        state.took(role, done.seconds)
        counters.reread += done.reread
        if isinstance(done.result, Rows) and done.result.calls is not None:
            counters.calls += done.result.calls
            if done.result.written > 1:  # what they take alone; of a single one most is the way there
                state.step_seconds[role].append(done.seconds / done.result.written)
            size = 0
        if done.job == state.readers[role].first_job:  # what it read again was of no use in the KV cache
            counters.cached -= done.reread
        if size == 1 and purpose != "ahead" and not done.chunked and not done.reread:
            state.step_seconds[role].append(done.seconds)


def _require_rows(method: Method, request: Request) -> None:
    """Refuse a method whose rows nobody gives."""
    if request.text is not None:
        if method.roles != ("slow",):
            raise ConfigurationError(
                f"the slow model gives text, no logits, and the method {method.name} reads rows of "
                f"{' and '.join(method.roles)}",
                hint="use the method replace",
            )
    elif missing := [role for role in method.roles if role not in request.prompts]:
        raise ConfigurationError(
            f"the method {method.name} reads a {missing[0]} model, and there is none", hint="use the method replace"
        )
    elif method.rule is not None and method.roles != ("slow",):
        raise ConfigurationError(
            f"the method {method.name} has a rule and reads rows of {' and '.join(method.roles)}",
            hint="with a rule it is the slow model's rows alone that say what stands",
        )
