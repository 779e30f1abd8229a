"""The Router: two models, a policy and a method behind ``complete``, ``stream`` and ``chat``."""

from __future__ import annotations

import copy
import hashlib
import os
import statistics
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import replace
from functools import cached_property
from types import TracebackType
from typing import Any, Self, TypeAlias

from . import drivers
from .config import RequestOptions
from .engine import Engine, Request
from .errors import ConfigurationError, InvalidRequest, PromptTooLong, RouterClosed
from .logs import log
from .methods import Method, make_method
from .models import TokenModel, Work
from .options import checked
from .policy import Ledger, Policy
from .reading import Read, hashed_uniform
from .records import Finished, Generation, ModelCard, Prices, Role, StreamEvent, TextDelta
from .resolve import make_model, reads_tokens
from .slots import Slots
from .text_models import TextModel
from .tokenizer import Message, Tokenizer, require_messages, require_same_vocabulary, require_text, token_classes

REFERENCE_PAIR = ("reference:fast", "reference:slow")
DEFAULT_POLICY = "budget:0.2"

_Prompts: TypeAlias = Mapping[Role, Sequence[int]]


class Router:
    """A fast model that writes, a slow one that is asked where a policy says so.

    ::

        with Router(fast="llama_cpp:small.gguf", slow="llama_cpp:large.gguf", policy="entropy>1.2") as router:
            print(router.complete("...").report())

    ``fast`` and ``slow`` are model strings (``backend:where``) or models; without both, the embedded
    reference pair is loaded. ``policy`` and ``method`` are objects or short forms. ``audit`` is the
    share of answers that the slow model reads whole afterwards, which yields ``disagreement_rate``.
    ``prices`` are the slow model's, in US dollars per million tokens. ``seed`` fixes sampling for
    requests that name none.

    Every method may be called from several threads, and from coroutines at the same time: a model
    runs one forward at a time, and a request waits while all sequences of a model (its ``n_seq``)
    are in use. Models that the Router loaded itself are freed by :meth:`close`.

    Raises :class:`ConfigurationError` for parts that do not exist or do not fit together (its
    subclass :class:`VocabularyMismatch` where ids mean different bytes) and
    :class:`ModelLoadError` where a model cannot be loaded.
    """

    def __init__(
        self,
        fast: TokenModel | str | None = None,
        slow: TokenModel | str | None = None,
        *,
        policy: Policy | str | None = None,
        method: Method | str = "replace",
        audit: float = 0.0,
        prices: Prices | None = None,
        seed: int | None = None,
    ) -> None:
        from .policies import make_policy

        if (fast is None) != (slow is None):
            missing = "slow" if slow is None else "fast"
            raise ConfigurationError(
                f"{missing} is missing", hint="name both models, or neither for the reference pair"
            )
        if not isinstance(audit, int | float) or not 0.0 <= audit <= 1.0:
            raise ConfigurationError(f"audit={audit!r}", hint="a share between 0 and 1")
        if not isinstance(seed, int | None):
            raise ConfigurationError(f"seed={seed!r}", hint="a whole number, or None")
        if not isinstance(prices, Prices | None):
            raise ConfigurationError(f"prices={prices!r}", hint="a Prices object, in US dollars per million tokens")
        self.policy = make_policy(DEFAULT_POLICY if policy is None else policy)
        self.method = make_method(method)
        self.audit, self.prices, self.seed = audit, prices, seed
        self.ledger = Ledger()
        self._owned: list[TokenModel | TextModel] = []
        self._closed = False
        try:
            self.fast = self._load(REFERENCE_PAIR[0] if fast is None else fast)
            self.slow = self._load(REFERENCE_PAIR[1] if slow is None else slow)
            if self.fast is self.slow:
                raise ConfigurationError(
                    "fast and slow are one model object", hint="load it twice to compare it to itself"
                )
            require_same_vocabulary(
                self.fast.tokenizer, self.slow.tokenizer, fast_name=self.fast.name, slow_name=self.slow.name
            )
        except BaseException:
            self.close()
            raise
        self._models: dict[Role, TokenModel] = {"fast": self.fast, "slow": self.slow}
        self._slots = Slots(min(self.fast.n_seq, self.slow.n_seq))
        self._steps: dict[Role, deque[float]] = {"fast": deque(maxlen=256), "slow": deque(maxlen=256)}

    def _load(self, model: TokenModel | str) -> TokenModel:
        loaded = make_model(model)
        if isinstance(model, str):
            self._owned.append(loaded)
        if not reads_tokens(loaded):
            raise ConfigurationError(f"{loaded.name} gives text and no logits", hint="take a local model")
        return loaded

    # --- what users call ---

    def complete(self, prompt: str, **options: Any) -> Generation:
        """Continue ``prompt`` as raw text. ``options`` are :class:`~fsgen_router.RequestOptions`.

        Raises :class:`InvalidRequest` for a prompt or an option that cannot be served.
        """
        return _last(self.stream(prompt, **options))

    def stream(self, prompt: str, **options: Any) -> Iterator[StreamEvent]:
        """Like :meth:`complete`, as :class:`TextDelta` events and one :class:`Finished`."""
        return self._stream(self._raw(prompt), options)

    def chat(self, messages: Sequence[Message], **options: Any) -> Generation:
        """Answer a conversation, each model in its own chat template.

        The next turn (these messages, the answer's text, a new message) finds both KV caches.
        """
        return _last(self.stream_chat(messages, **options))

    def stream_chat(self, messages: Sequence[Message], **options: Any) -> Iterator[StreamEvent]:
        """Like :meth:`chat`, as events."""
        return self._stream(self._chat(messages), options)

    async def acomplete(self, prompt: str, **options: Any) -> Generation:
        """The asynchronous :meth:`complete`; the same text."""
        return await _alast(self.astream(prompt, **options))

    def astream(self, prompt: str, **options: Any) -> AsyncIterator[StreamEvent]:
        """The asynchronous :meth:`stream`."""
        return self._astream(self._raw(prompt), options)

    async def achat(self, messages: Sequence[Message], **options: Any) -> Generation:
        """The asynchronous :meth:`chat`."""
        return await _alast(self.astream_chat(messages, **options))

    def astream_chat(self, messages: Sequence[Message], **options: Any) -> AsyncIterator[StreamEvent]:
        """The asynchronous :meth:`stream_chat`."""
        return self._astream(self._chat(messages), options)

    def with_policy(self, policy: Policy | str, *, method: Method | str | None = None) -> Router:
        """A Router over the same models with another policy, and a ledger of its own.

        Loads and checks nothing again. The models stay this Router's: keep it open meanwhile, and
        closing the twin frees nothing.
        """
        from .policies import make_policy

        self._require_open()
        twin = copy.copy(self)
        twin.policy = make_policy(policy)
        twin.method = self.method if method is None else make_method(method)
        twin.ledger, twin._owned = Ledger(), []
        # Its own threads, so that closing one leaves the other's; the slots count the models' sequences
        # and stay shared.
        twin.__dict__.pop("_executors", None)
        return twin

    def measure_steps(self, count: int = 8) -> None:
        """Time the slow model's steps of one token, so that reports can estimate its seconds alone.

        Costs ``count`` slow forwards. Answers with ``baseline=True`` need no estimate.
        """
        from time import perf_counter

        self._require_open()
        token = max(self.slow.tokenizer.eog_ids, default=0)
        with self._slots.hold():
            sequence = self.slow.open([]).sequence
            try:
                for number in range(count + 1):
                    began = perf_counter()
                    self.slow.forward([Work(sequence, number, [token], [(0, Read())])])
                    if number:  # the first one also warms up
                        self._steps["slow"].append(perf_counter() - began)
            finally:
                self.slow.close(sequence)

    def close(self) -> None:
        """Free the models that this Router loaded. Further calls raise :class:`RouterClosed`."""
        self._closed = True
        for executor in self.__dict__.pop("_executors", {}).values():
            executor.shutdown(wait=True)
        while self._owned:
            self._owned.pop().shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- prompts ---

    def _raw(self, prompt: str) -> Callable[[Tokenizer], list[int]]:
        self._require_open()
        require_text(prompt)
        return lambda tokenizer: tokenizer.encode(prompt, add_bos=True)

    def _chat(self, messages: Sequence[Message]) -> Callable[[Tokenizer], list[int]]:
        self._require_open()
        checked_messages = require_messages(messages)
        return lambda tokenizer: tokenizer.encode_chat(checked_messages)

    def _require_open(self) -> None:
        if self._closed:
            raise RouterClosed("the Router was closed", hint="make a new one")

    def _encode(self, encode: Callable[[Tokenizer], list[int]], roles: Sequence[Role]) -> _Prompts:
        prompts: dict[Role, list[int]] = {}
        for role in roles:
            model = self._models[role]
            prompts[role] = encode(model.tokenizer)
            if not prompts[role]:
                raise InvalidRequest("the prompt has no tokens", hint="give at least one character")
            if len(prompts[role]) >= model.n_ctx:
                raise PromptTooLong(
                    f"the prompt has {len(prompts[role])} tokens, the context of {model.name} holds {model.n_ctx}",
                    hint="shorten the prompt, or load the model with a larger n_ctx",
                )
        return prompts

    # --- engines ---

    @cached_property
    def _vocabulary(self) -> _Vocabulary:
        return _Vocabulary(self.fast.tokenizer, self.slow.tokenizer)

    def _engine(self, prompts: _Prompts, options: RequestOptions) -> Engine:
        from .policies import Capped

        policy = self.policy
        if options.max_slow_calls is not None or options.max_slow_tokens is not None:
            policy = Capped(policy, options.max_slow_calls, options.max_slow_tokens)
        roles: list[Role] = ["fast", "slow"] if policy.asks or self.audit else ["fast"]
        request = self._request(prompts, options)
        audit = hashed_uniform(request.seed, request.key, self.ledger.requests, "audit") < self.audit
        return Engine(
            replace(request, audit=audit),
            policy=policy,
            method=self.method,
            vocabulary=self._vocabulary,
            contexts={role: self._models[role].n_ctx for role in roles},
            ledger=self.ledger,
        )

    def _baseline(self, prompts: _Prompts, options: RequestOptions) -> Engine:
        """The slow model alone: the same engine with it in the fast seat, never escalating."""
        from .policies import Never

        return Engine(
            self._request({"fast": prompts["slow"]}, options),
            policy=Never(),
            method=self.method,
            vocabulary=self._vocabulary,
            contexts={"fast": self.slow.n_ctx},
            ledger=Ledger(),
        )

    def _request(self, prompts: _Prompts, options: RequestOptions) -> Request:
        seed = options.seed if options.seed is not None else self.seed
        ids = prompts["fast"]
        return Request(
            prompts=prompts,
            key=hashlib.blake2b(repr(ids).encode(), digest_size=8).hexdigest(),
            max_tokens=options.max_tokens,
            seed=int.from_bytes(os.urandom(6), "big") if seed is None else seed,
            warp=options.warp,
            stop=options.stop,
            stop_ids=frozenset(options.stop_tokens),
            constraint=options.make_constraint(self.fast.tokenizer.n_vocab),
        )

    def _prepare(
        self, encode: Callable[[Tokenizer], list[int]], options: Mapping[str, Any]
    ) -> tuple[Engine, Engine | None]:
        parsed = checked(RequestOptions, options, error=InvalidRequest)
        needed: list[Role] = ["fast", "slow"] if self.policy.asks or self.audit or parsed.baseline else ["fast"]
        if parsed.seed is None and self.seed is None:
            # A drawn seed is shared with the baseline and told in the answer.
            parsed = parsed.model_copy(update={"seed": int.from_bytes(os.urandom(6), "big")})
        prompts = self._encode(encode, needed)
        return self._engine(prompts, parsed), self._baseline(prompts, parsed) if parsed.baseline else None

    # --- running them ---

    def _stream(self, encode: Callable[[Tokenizer], list[int]], options: Mapping[str, Any]) -> Iterator[StreamEvent]:
        # Checked here and not in the generator, so that a bad request raises at the call.
        engine, alone = self._prepare(encode, options)
        return self._run(engine, alone)

    def _run(self, engine: Engine, alone: Engine | None) -> Iterator[StreamEvent]:
        with self._slots.hold():
            self._require_open()
            for emit in drivers.run(engine, self._models):
                yield TextDelta(emit.text, emit.token)
            if alone is not None:
                _level(alone, engine)
                deque(drivers.run(alone, {"fast": self.slow}), maxlen=0)
        yield Finished(self._conclude(engine, alone))

    def _astream(
        self, encode: Callable[[Tokenizer], list[int]], options: Mapping[str, Any]
    ) -> AsyncIterator[StreamEvent]:
        engine, alone = self._prepare(encode, options)
        return self._arun(engine, alone)

    async def _arun(self, engine: Engine, alone: Engine | None) -> AsyncIterator[StreamEvent]:
        async with self._slots.ahold():
            self._require_open()
            # Closed before the slots are given back, also when the stream is given up half-way.
            async with aclosing(drivers.arun(engine, self._models, self._executors)) as emits:
                async for emit in emits:
                    yield TextDelta(emit.text, emit.token)
            if alone is not None:
                _level(alone, engine)
                async for _ in drivers.arun(alone, {"fast": self.slow}, {"fast": self._executors["slow"]}):
                    pass
        yield Finished(self._conclude(engine, alone))

    @cached_property
    def _executors(self) -> dict[Role, ThreadPoolExecutor]:
        """One thread per model: a backend's own threads belong to the thread that calls it."""
        return {role: ThreadPoolExecutor(1, f"fsgen-{role}") for role in self._models}

    def _conclude(self, engine: Engine, alone: Engine | None) -> Generation:
        for role, times in engine.state.step_seconds.items():
            self._steps[role].extend(times)
        baseline = None
        if alone is not None:
            self._steps["slow"].extend(alone.state.step_seconds["fast"])
            baseline = alone.generation
        assert engine.generation is not None
        answer = replace(
            engine.generation,
            baseline=baseline,
            models={"fast": self._card("fast", None), "slow": self._card("slow", self.prices)},
        )
        log.info(
            "answered",
            tokens=answer.usage.tokens,
            slow_forwards=answer.usage.slow_forwards,
            escalation_rate=answer.usage.escalation_rate,
            finish_reason=answer.finish_reason,
            degraded=answer.degraded,
        )
        return answer

    def _card(self, role: Role, prices: Prices | None) -> ModelCard:
        steps = self._steps[role]
        model = self._models[role]
        return ModelCard(model.name, model.n_params, statistics.median(steps) if steps else None, prices)


class _Vocabulary:
    """Pieces, classes and ends of generation, shared by both models (checked to be the same)."""

    def __init__(self, fast: Tokenizer, slow: Tokenizer) -> None:
        self._tokenizer, self._hidden = fast, fast.special_ids
        self.n_vocab = fast.n_vocab
        self.eog_ids = fast.eog_ids | slow.eog_ids
        self._classes = token_classes(fast).tolist()

    def piece(self, token: int) -> bytes:
        """A token's bytes; none for a control token, which is no part of a text."""
        return b"" if token in self._hidden else self._tokenizer.piece(token)

    def class_of(self, token: int) -> int:
        return int(self._classes[token])

    def encode_after(self, before: str, text: str) -> list[int]:
        """Ids of ``text`` behind ``before``: cut with the word before it in view, where the cut falls between."""
        tail = before[-32:]
        ids = self._tokenizer.encode(tail + text, add_bos=False)
        own, size = 0, 0
        while own < len(ids) and size < len(tail.encode()):
            size += len(self._tokenizer.piece(ids[own]))
            own += 1
        if b"".join(map(self._tokenizer.piece, ids[own:])) == text.encode():
            return ids[own:]
        return self._tokenizer.encode(text, add_bos=False)


def _level(alone: Engine, routed: Engine) -> None:
    """Let a baseline find what the routed answer found in the slow model's KV cache, not what that left there."""
    slow = routed.state.readers["slow"]
    if slow.sequence >= 0:
        alone.request = replace(alone.request, max_cached=slow.found)


def _last(events: Iterator[StreamEvent]) -> Generation:
    for event in events:
        if isinstance(event, Finished):
            return event.generation
    raise AssertionError("a stream ends with Finished")


async def _alast(events: AsyncIterator[StreamEvent]) -> Generation:
    async for event in events:
        if isinstance(event, Finished):
            return event.generation
    raise AssertionError("a stream ends with Finished")
