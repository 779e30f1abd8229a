"""The Router: two models, a policy and a method behind ``complete``, ``stream`` and ``chat``."""

from __future__ import annotations

import asyncio
import copy
import os
import statistics
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, aclosing, closing, nullcontext
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Never, Self, TypeVar, Unpack, overload

from . import reference, requests
from .bookkeeping import Checker, bill_probes, enter_savings
from .config import RequestKeywords, RequestOptions
from .contracts.methods import Method
from .contracts.models import TokenModel
from .contracts.policy import Ledger, Policy
from .contracts.text_models import reads_tokens
from .costs import THOROUGH, PairCost, measure_steps
from .costs.measuring import Progress
from .decode import BestOfEngine, CallEvents, Emit, Engine, TextPrompt
from .errors import BackendError, ConfigurationError, InvalidRequest, RouterClosed
from .generation import Finished, Generation, ReasoningDelta, Restarted, StreamEvent, TextDelta
from .methods import make_method
from .money import Budget, PriceTable, Purse, Terms, known_prices
from .pairing import REFERENCE_PAIR, Pairing, RunForwards, is_reference_pair, warn_of_swapped
from .records import MachinePrice, ModelCard, Prices, Role
from .resolve import make_model
from .run import drivers
from .run.slots import Load, Place, Slots
from .run.streams import AsyncStream, Stream
from .run.turns import turn_of
from .run.workers import AnyModel, Workers
from .session import Session
from .support.logs import log
from .support.options import checked
from .support.waiting import Home
from .text.messages import Message, require_messages, require_text
from .text.vocabulary import SharedVocabulary

MAX_WAITING = 1024
T = TypeVar("T")


class _Fixed(Generic[T]):
    """What a Router was made with. It can be read; who assigns to it is told how to have another."""

    def __init__(self, meaning: str, *, instead: str, of: str | None = None) -> None:
        self.__doc__, self._instead, self._of = meaning, instead, of

    def __set_name__(self, owner: type[object], name: str) -> None:
        self._name = name

    @overload
    def __get__(self, router: None, owner: type[object]) -> Self: ...
    @overload
    def __get__(self, router: object, owner: type[object] | None = None) -> T: ...
    def __get__(self, router: object | None, owner: type[object] | None = None) -> T | Self:
        if router is None:
            return self
        value: T = getattr(getattr(router, self._of), self._name) if self._of else getattr(router, f"_{self._name}")
        return value

    def __set__(self, router: object, value: Never) -> None:
        raise AttributeError(f"{self._name} of a Router is fixed when it is made ({self._instead})")


def _where_forwards_run(workers: Workers, models: Mapping[Role, AnyModel], *, batching: bool) -> RunForwards:
    """What runs a function that uses a local model where and when its forwards run. Another thread would bring an
    OpenMP team of its own along, which slows every later forward down. It holds no Router, so that one is freed when
    dropped."""

    def run(role: Role, function: Callable[[], T]) -> T:
        if batching:
            return workers.call(role, function)
        model = models[role]
        with turn_of(model) if reads_tokens(model) else nullcontext():
            return function()

    return run


class Router:
    """A fast model that writes, a slow one that is asked where a policy says so.

    ::

        fast = "llama_cpp:hf://Qwen/Qwen2.5-0.5B-Instruct-GGUF/qwen2.5-0.5b-instruct-q8_0.gguf"
        slow = "llama_cpp:hf://Qwen/Qwen2.5-1.5B-Instruct-GGUF/qwen2.5-1.5b-instruct-q8_0.gguf"
        with Router(fast, slow, policy="entropy>1.2") as router:
            print(router.chat([{"role": "user", "content": "..."}]).report())

    ``fast`` and ``slow`` are model strings (``backend:where``) or models; without both, the embedded
    reference pair is loaded, which comes with a certified policy and the method that goes with it.
    ``tuned`` is a third local model on their vocabulary, the fast one after its tuning: the method ``proxy``, which
    is the default then, adds what tuning changed to the slow model's logits.
    ``policy`` and ``method`` are objects, short forms or, for a policy, a file. ``audit`` is the share of
    answers that the slow model reads whole afterwards, which yields ``disagreement_rate``. ``seed`` fixes
    sampling for requests that name none.

    ``prices`` are the slow model's, in US dollars per million tokens: :class:`Prices`, or the path of a price table;
    left out, what is known of it (see :attr:`prices`). With them an endpoint is asked once more only where that is
    worth its price, and few tokens at a time are refused where they cost more than the slow model alone, unless
    ``at_any_price``. ``budget`` caps what the slow model spends on all requests; where a cap is reached the fast model
    finishes. ``machine`` prices the seconds of local models. ``baseline_share`` of the requests are also asked of the
    slow model whole, and judged by ``checker``, where there is one.

    Of two local models that are given neither policy nor method, the forwards are timed (a few seconds, once for a
    model on a machine), and the mode is taken that is expected to be fastest at the quality of ``budget:0.2``. It is
    never expected to take longer than the slow model alone: where nothing gains, that writes whole answers, and
    :class:`SlowAloneWarning` says so. Where one of the two is given, the policy is ``budget:0.2`` or the method
    ``verify``.

    A slow model behind an endpoint gives text and no rows: by default it is handed the rest of an
    answer once, when the fast model has been uncertain for a while; with ``prices`` it is what is cheapest by them.
    ``slow`` may be a list of endpoints: each is asked where those before it fail or are down. What an endpoint can do
    is found out beside the fast model's writing, which goes on alone meanwhile.

    Every method may be called from several threads, and from coroutines at the same time. With
    ``batching`` what all live requests want of a model goes into one forward (None: where both models
    hold several sequences, and where the slow one gives text; coroutines always batch). A request waits
    while all sequences of a model (its ``n_seq``) are in use, and is refused with :class:`QueueFull` when
    ``max_waiting`` wait already. With ``read_ahead`` n > 0 the slow model reads whenever n tokens wait for
    it, while the fast one goes on: worth it where they run on different devices. Models that the Router
    loaded itself are freed by :meth:`close`, or when the Router is dropped. It belongs to the process that made
    it: in a forked child every method but :meth:`close` raises :class:`ForkedProcess`.

    ``audit``, ``prices``, ``budget``, ``machine``, ``baseline_share``, ``checker`` and ``seed`` may be changed later,
    for the requests that follow, and so may ``read_ahead`` with batching. All else is fixed: a request may name another
    policy and method, and :meth:`with_policy` gives a Router over the same models that has them. A slow model with
    clearly fewer parameters than the fast one is warned of (:class:`SwappedModelsWarning`).

    Local models share one vocabulary. Ids that one of them lacks are never written, and
    :class:`VocabularyWarning` names those that are text. The method ``verify`` takes drafts back, which models
    with recurrent memory pay with reading everything again: where one of the pair cannot rewind the default is
    ``replace``, and another one earns a :class:`RewindWarning`.

    Raises :class:`ConfigurationError` for parts that do not exist or do not fit together (its
    subclass :class:`VocabularyMismatch` where ids mean different bytes) and
    :class:`ModelLoadError` where a model cannot be loaded.
    """

    _another = "make another Router"
    fast = _Fixed[TokenModel]("The model that writes.", instead=_another, of="_pair")
    slow = _Fixed[AnyModel]("The model that is asked.", instead=_another, of="_pair")
    tuned = _Fixed[TokenModel | None]("A third model, whose rows a method may read.", instead=_another, of="_pair")
    shared = _Fixed[SharedVocabulary | None]("How two local models' vocabularies relate.", instead=_another, of="_pair")
    policy = _Fixed[Policy](
        "When the slow model is asked.",
        instead="name another for one request, complete(..., policy=...), or for a twin: router.with_policy(...)",
    )
    method = _Fixed[Method](
        "What its rows do.",
        instead="name another for one request, complete(..., method=...), or for a twin: "
        "router.with_policy(router.policy, method=...)",
    )
    ledger = _Fixed[Ledger](
        "Totals of all requests, and policies' memory across them.",
        instead="router.with_policy(router.policy) gives one with a new ledger",
    )
    batching = _Fixed[bool]("Whether requests in threads share their forwards.", instead=_another)
    max_waiting = _Fixed[int]("How many requests wait before others are refused.", instead=_another)

    def __init__(
        self,
        fast: AnyModel | str | None = None,
        slow: AnyModel | str | Sequence[AnyModel | str] | None = None,
        *,
        tuned: AnyModel | str | None = None,
        policy: Policy | str | Path | None = None,
        method: Method | str | None = None,
        audit: float = 0.0,
        prices: Prices | str | Path | None = None,
        budget: Budget | None = None,
        machine: MachinePrice | Mapping[Role, MachinePrice] | None = None,
        at_any_price: bool = False,
        baseline_share: float = 0.0,
        checker: Checker | None = None,
        seed: int | None = None,
        batching: bool | None = None,
        read_ahead: int = 0,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        from .policies import make_policy

        if (fast is None) != (slow is None):
            missing = "slow" if slow is None else "fast"
            raise ConfigurationError(
                f"{missing} is missing", hint="name both models, or neither for the reference pair"
            )
        if not isinstance(batching, bool | None):
            raise ConfigurationError(f"batching={batching!r}", hint="True, False, or None for what the models hold")
        _require_count("max_waiting", max_waiting)
        self._batching = batching is not False
        self._max_waiting, self._home = max_waiting, Home()
        if isinstance(prices, str | Path):
            PriceTable.load(prices)  # whether it can be read; what it knows of the slow model is seen below
        self._prices: Prices | None = None
        self._at_any_price = bool(at_any_price)
        self.budget, self.machine, self.baseline_share, self.checker = budget, machine, baseline_share, checker
        self.audit, self.seed, self.read_ahead = audit, seed, read_ahead
        if fast is None or slow is None:
            fast, slow = REFERENCE_PAIR
        if policy is None and method is None and tuned is None and is_reference_pair(fast, slow):
            policy = reference.policy_path()
        # Checked before models are loaded, which takes longer.
        wanted_policy = None if policy is None else make_policy(policy)
        wanted_method = None if method is None else make_method(method)
        self._ledger = Ledger()
        self._owned: list[AnyModel] = []
        self._closed = False
        try:
            self._pair = Pairing(*(self._load(model) for model in (fast, slow, tuned) if model is not None))
            self._pair.require_auditor(self.audit)
            if batching is None:
                # Beside an endpoint also for one request at a time: a call that hangs keeps no caller's thread.
                batching = self._pair.n_seq > 1 or self._pair.slow_is_remote
            self._batching = bool(read_ahead) or batching
            self._workers = Workers(self._pair.models)
            self._pair.run_forwards = _where_forwards_run(self._workers, self._pair.models, batching=self._batching)
            self.prices = prices
            self._policy, self._method = self._choose(wanted_policy, wanted_method)
            warn_of_swapped(self.fast, self.slow)
            remote = wanted_policy is None and self._pair.local_slow is None
            self._default_remote = self.policy if remote else None
        except BaseException:
            self.close()
            raise
        self._slots = Slots(self._pair.n_seq, max_waiting)
        self._measuring = threading.Lock()
        self._steps: dict[Role, deque[float]] = {role: deque(maxlen=256) for role in self._pair.models}

    def _load(self, model: AnyModel | str | Sequence[AnyModel | str]) -> AnyModel:
        loaded = make_model(model)
        if loaded is not model and not (isinstance(model, list | tuple) and loaded in model):
            self._owned.append(loaded)
        return loaded

    def _instead(self, policy: Policy | str | Path | None, method: Method | str | None) -> tuple[Policy, Method]:
        """This Router's policy and method, or another of either in its place."""
        from .policies import make_policy

        if policy is None and method is None:
            return self.policy, self.method
        chosen = self.policy if policy is None else make_policy(policy)
        if method is None:
            learned_with: str | None = getattr(chosen, "method", None)
            method = learned_with or self.method
        return self._choose(chosen, make_method(method))

    def _choose(self, policy: Policy | None, method: Method | None) -> tuple[Policy, Method]:
        return self._pair.choose(policy, method, self.prices, at_any_price=self._at_any_price)

    # --- what may be changed later ---

    @property
    def audit(self) -> float:
        """The share of answers that the slow model reads whole afterwards."""
        return self._audit

    @audit.setter
    def audit(self, share: float) -> None:
        if not isinstance(share, int | float) or not 0.0 <= share <= 1.0:
            raise ConfigurationError(f"audit={share!r}", hint="a share between 0 and 1")
        if "_pair" in self.__dict__:
            self._pair.require_auditor(share)
        self._audit = share

    @property
    def prices(self) -> Prices | None:
        """The slow model's, in US dollars per million tokens; None where nobody knows them.

        Set to a :class:`Prices`, or to the path of a price table that names the model. None looks for what is known:
        the model's own option ``prices``, the table that ``FSGEN_PRICES`` names, its vendor's list.
        """
        return self._prices

    @prices.setter
    def prices(self, prices: Prices | str | Path | None) -> None:
        if not isinstance(prices, Prices | str | Path | None):
            raise ConfigurationError(
                f"prices={prices!r}", hint="a Prices object, in US dollars per million tokens, or a price table's path"
            )
        before, self._prices = self._prices, known_prices(self.slow, prices)
        try:
            self._require_countable(self.budget)
        except ConfigurationError:
            self._prices = before
            raise

    @property
    def budget(self) -> Budget | None:
        """What the slow model may spend on all of its requests, and on others' that share the object."""
        return self._budget

    @budget.setter
    def budget(self, budget: Budget | None) -> None:
        if not isinstance(budget, Budget | None):
            raise ConfigurationError(f"budget={budget!r}", hint="a Budget object, such as Budget(usd=1.0), or None")
        if "_pair" in self.__dict__:
            self._require_countable(budget)
        self._budget = budget

    @property
    def machine(self) -> MachinePrice | Mapping[Role, MachinePrice] | None:
        """What this side's machines cost: one price for all local models, or one by role (fast, slow, tuned)."""
        return self._machine

    @machine.setter
    def machine(self, machine: MachinePrice | Mapping[Role, MachinePrice] | None) -> None:
        by_role = machine if isinstance(machine, Mapping) else {}
        fits = isinstance(machine, MachinePrice | Mapping | None) and all(
            role in ("fast", "slow", "tuned") and isinstance(price, MachinePrice) for role, price in by_role.items()
        )
        if not fits:
            raise ConfigurationError(
                f"machine={machine!r}", hint='a MachinePrice, or one by role: {"fast": MachinePrice(usd_per_hour=0.5)}'
            )
        self._machine = machine

    @property
    def baseline_share(self) -> float:
        """The share of requests that are also asked of the slow model whole, so that savings are measured.

        What both cost is added up in ``ledger.savings``, and each such answer's report is measured. It costs money.
        """
        return self._baseline_share

    @baseline_share.setter
    def baseline_share(self, share: float) -> None:
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0.0 <= share <= 1.0:
            raise ConfigurationError(f"baseline_share={share!r}", hint="a share between 0 and 1")
        self._baseline_share = share

    @property
    def checker(self) -> Checker | None:
        """What says how good an answer is (True, or a number), of those that were also asked of the slow model."""
        return self._checker

    @checker.setter
    def checker(self, checker: Checker | None) -> None:
        if checker is not None and not callable(checker):
            raise ConfigurationError(f"checker={checker!r}", hint="a function of an answer (a Generation), or None")
        self._checker = checker

    def _require_countable(self, budget: Budget | None) -> None:
        """Refuse a budget of money where nobody knows what the slow model costs."""
        if budget is None or not budget.caps("usd"):
            return
        if budget.left("usd") > 0 and not Terms(prices=self.prices, machine=self._machine_of("slow")).countable:
            raise ConfigurationError(
                f"{budget!r}, and no price known of {self.slow.name}",
                hint="give prices=, or a budget of slow_calls, slow_tokens or seconds",
            )

    @property
    def seed(self) -> int | None:
        """Of requests that name none; None: drawn for each."""
        return self._seed

    @seed.setter
    def seed(self, seed: int | None) -> None:
        if not isinstance(seed, int | None):
            raise ConfigurationError(f"seed={seed!r}", hint="a whole number, or None")
        self._seed = seed

    @property
    def read_ahead(self) -> int:
        """Tokens that wait for the slow model when it reads them beside the fast one; 0: never."""
        return self._read_ahead

    @read_ahead.setter
    def read_ahead(self, tokens: int) -> None:
        _require_count("read_ahead", tokens)
        if tokens and not self._batching:
            raise ConfigurationError("read_ahead without batching", hint="make the Router with batching=True")
        self._read_ahead = tokens

    # --- what users call ---

    def complete(self, prompt: str, **options: Unpack[RequestKeywords]) -> Generation:
        """Continue ``prompt`` as raw text. ``options`` are :class:`~fsgen_router.RequestOptions`.

        Raises :class:`InvalidRequest` for a prompt or an option that cannot be served.
        """
        return _last(self.stream(prompt, **options))

    def stream(self, prompt: str, **options: Unpack[RequestKeywords]) -> Iterator[StreamEvent]:
        """Like :meth:`complete`, as :class:`TextDelta` events and one :class:`Finished`.

        An endpoint that shows what it thinks adds :class:`ReasoningDelta` events, and a policy with ``draft=show`` or
        ``draft=drop`` a :class:`Restarted`, where the text so far has to be taken away.
        Raises :class:`InvalidRequest` and :class:`QueueFull` at the call. A stream that is closed or dropped, read or
        not, gives its place back.
        """
        return self._stream(TextPrompt(prompt=require_text(prompt)), options)

    def chat(self, messages: Sequence[Message], **options: Unpack[RequestKeywords]) -> Generation:
        """Answer a conversation, each model in its own chat template.

        The next turn (these messages, the answer's text, a new message) finds both KV caches.
        """
        return _last(self.stream_chat(messages, **options))

    def stream_chat(self, messages: Sequence[Message], **options: Unpack[RequestKeywords]) -> Iterator[StreamEvent]:
        """Like :meth:`chat`, as events."""
        return self._stream(TextPrompt(messages=tuple(require_messages(messages))), options)

    async def acomplete(self, prompt: str, **options: Unpack[RequestKeywords]) -> Generation:
        """The asynchronous :meth:`complete`; the same text."""
        return await _alast(self.astream(prompt, **options))

    def astream(self, prompt: str, **options: Unpack[RequestKeywords]) -> AsyncIterator[StreamEvent]:
        """The asynchronous :meth:`stream`."""
        return self._astream(TextPrompt(prompt=require_text(prompt)), options)

    async def achat(self, messages: Sequence[Message], **options: Unpack[RequestKeywords]) -> Generation:
        """The asynchronous :meth:`chat`."""
        return await _alast(self.astream_chat(messages, **options))

    def astream_chat(
        self, messages: Sequence[Message], **options: Unpack[RequestKeywords]
    ) -> AsyncIterator[StreamEvent]:
        """The asynchronous :meth:`stream_chat`."""
        return self._astream(TextPrompt(messages=tuple(require_messages(messages))), options)

    def count_tokens(self, prompt: str | Sequence[Message], **options: Unpack[RequestKeywords]) -> int:
        """Tokens of a raw prompt, or of messages in the fast model's chat template, as that model reads them.

        ``options`` are a request's; those that change no prompt change no count. Raises :class:`InvalidRequest`.
        """
        self._require_open()
        if isinstance(prompt, str):
            text = TextPrompt(prompt=require_text(prompt))
        else:
            text = TextPrompt(messages=tuple(require_messages(prompt)))
        parsed = checked(RequestOptions, options, error=InvalidRequest)
        return requests.count_prompt(self._pair, self._read_by_models(text, parsed))

    def with_policy(self, policy: Policy | str | Path, *, method: Method | str | None = None) -> Router:
        """A Router over the same models with another policy, and a ledger of its own.

        ``method`` left out is the one that a learned policy was calibrated with, else this Router's. Loads
        nothing again. The models stay this Router's: keep it open meanwhile, and closing the twin frees nothing.
        """
        self._require_open()
        twin = copy.copy(self)
        twin._policy, twin._method = self._instead(policy, method)
        twin._ledger, twin._owned = Ledger(), []
        # Its own threads, so that closing one leaves the other's; the slots count the models' sequences
        # and stay shared.
        twin._workers = Workers(self._pair.models)
        return twin

    def session(self, **options: Unpack[RequestKeywords]) -> Session:
        """Calls that belong together: a conversation or an agent's run, under one ``budget=`` and with one report.

        ``options`` are those of all its calls.
        """
        self._require_open()
        return Session(self, **options)

    @property
    def load(self) -> Load:
        """How many requests are being answered and how many wait, on these models, and how many fit.

        Raises :class:`RouterClosed`.
        """
        self._require_open()
        return self._slots.load

    def run_forwards(self, role: Role, function: Callable[[], T]) -> T:
        """What a function gives that calls a model's forwards itself, run where and when those run.

        Beside them, on another thread, both would take longer, on shared cores many times as long.
        """
        self._require_open()
        found: T = self._pair.run_forwards(role, function)
        return found

    def measure_steps(self, count: int = 8) -> None:
        """Time the slow model's steps of one token, so that reports can estimate its seconds alone.

        Costs ``count`` slow forwards. Answers with ``baseline=True`` need no estimate.
        """
        self._require_open()
        slow = self._pair.local_slow
        if slow is None:
            raise ConfigurationError(f"{self.slow.name} has no steps to time", hint="ask with baseline=True")
        with self._slots.admit().hold():
            self._steps["slow"].extend(self.run_forwards("slow", lambda: measure_steps(slow, count)))

    @property
    def costs(self) -> PairCost | None:
        """What both models' forwards cost on this machine; None where nobody has asked.

        The default policy and method ask, where neither was named, and so does :meth:`measure`.
        """
        return self._pair.costs

    def measure(
        self,
        *,
        seconds: float = 60.0,
        watts: float | None = None,
        usd_per_hour: float | None = None,
        progress: Progress = lambda done, of: None,
    ) -> PairCost:
        """Time both models' forwards by number of new tokens and of sequences, and keep that for later Routers.

        Takes about ``seconds`` at most (a few forwards are timed whatever they take), and the place of ``n_seq``
        requests (at most 8): it waits for those under way. ``progress`` is called with the rounds that are done and
        how many there are. ``watts`` and ``usd_per_hour`` are this machine's while it works, for
        :meth:`PairCost.joules` and :meth:`PairCost.usd`. An endpoint is not measured: ``slow`` is None then. This
        Router keeps its policy and method, and its reports estimate with these figures.

        Warns (:class:`UnsteadyMachineWarning`) where the machine changed its speed meanwhile: what was known before
        stays then. Raises :class:`QueueFull` and :class:`BackendError`.
        """
        self._require_open()
        with self._measuring, ExitStack() as places:
            for _ in range(min(self._pair.n_seq, 8)):
                places.enter_context(self._slots.admit().hold())
            self._require_open()
            costs = self._pair.measure(replace(THOROUGH, seconds=seconds), progress=progress)
            costs = replace(
                costs,
                watts=costs.watts if watts is None else watts,
                usd_per_hour=costs.usd_per_hour if usd_per_hour is None else usd_per_hour,
            )
            self._pair.costs = costs
        return costs

    def close(self) -> None:
        """Free the models that this Router loaded. Requests under way and further calls raise :class:`RouterClosed`.

        Waits for forwards, not for endpoints. Without batching a request runs in its caller's own thread, where
        only the model can end a call that hangs. In a forked child nothing is freed: all of it is the parent's.
        """
        self._closed = True
        if self._home.left:
            return
        if "_workers" in self.__dict__:
            self._workers.close()
        owned, self._owned = self._owned, []
        for model in owned:
            model.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def aclose(self) -> None:
        """:meth:`close` for a coroutine: its event loop runs on while the models come to rest."""
        await asyncio.to_thread(self.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        closed = ", closed" if self._closed else ""
        third = "" if self.tuned is None else f", tuned={self.tuned.name!r}"
        return (
            f"Router(fast={self.fast.name!r}, slow={self.slow.name!r}{third}, policy={self.policy.name!r}, "
            f"method={self.method.name!r}{closed})"
        )

    # --- prompts ---

    def _require_open(self) -> None:
        self._home.require("the Router")
        if self._closed:
            raise RouterClosed("the Router was closed", hint="make a new one")

    def _prepare(self, text: TextPrompt, options: Mapping[str, Any]) -> tuple[Engine, Engine | None]:
        self._require_open()
        parsed = checked(RequestOptions, options, error=InvalidRequest)
        try:
            policy, method = self._instead(parsed.policy, parsed.method)
        except ConfigurationError as error:  # of this request alone
            raise InvalidRequest(error.message, hint=error.hint) from None
        asked_alone = parsed.baseline or self.baseline_share > 0
        needed = self._pair.roles(policy, method, audit=bool(self.audit) or asked_alone)
        seed = parsed.seed if parsed.seed is not None else self.seed
        if seed is None:  # shared with the baseline, and told in the answer
            seed = int.from_bytes(os.urandom(6), "big")
        text = self._read_by_models(text, parsed)
        prompts = requests.encode_prompts(self._pair, text, needed)
        terms = self._terms()
        drawn = not terms.purse.exhausted and requests.draws_baseline(prompts, seed, self.ledger, self.baseline_share)
        alone = (
            requests.make_baseline(self._pair, text, prompts, parsed, seed=seed, terms=terms)
            if parsed.baseline or drawn
            else None
        )
        engine = requests.make_engine(
            self._pair,
            text,
            prompts,
            parsed,
            policy=policy,
            method=method,
            seed=seed,
            ledger=self.ledger,
            audit=self.audit,
            read_ahead=self.read_ahead,
            terms=terms,
        )
        return engine, alone

    def _read_by_models(self, text: TextPrompt, options: RequestOptions) -> TextPrompt:
        """A prompt with what a request's options add to it."""
        if options.tools and options.tool_choice.mode != "none":  # what it may not call, a model had better not see
            text = replace(text, tools=tuple(tool.to_dict() for tool in options.tools))
        if options.chat_template_kwargs:
            requests.require_read(self._pair, text, options.chat_template_kwargs)
            text = replace(text, chat_template_kwargs=options.chat_template_kwargs)
        return text

    def _terms(self) -> Terms:
        """What a request's escalations are held to, before its own caps."""
        return Terms(
            purse=Purse([] if self.budget is None else [self.budget]),
            prices=self.prices,
            machine=self._machine_of("slow"),
            gate=not self._at_any_price,
            step_seconds=self._step_seconds("slow"),
            bill_to=self.ledger,
        )

    def _machine_of(self, role: Role) -> MachinePrice | None:
        """What a local model's machine costs: as it was said to this Router, or to :meth:`measure`."""
        if not reads_tokens(self._pair.models[role]):
            return None
        if self.machine is not None:
            return self.machine.get(role) if isinstance(self.machine, Mapping) else self.machine
        costs = self._pair.costs
        if costs is None or (costs.watts is None and costs.usd_per_hour is None):
            return None
        return MachinePrice(usd_per_hour=costs.usd_per_hour, watts=costs.watts)

    # --- running them ---

    def _stream(self, text: TextPrompt, options: Mapping[str, Any]) -> Iterator[StreamEvent]:
        # Checked here and not in the generator, so that a bad request raises at the call.
        engine, alone = self._prepare(text, options)
        place = self._slots.admit()
        return Stream(self._run(engine, alone, place), place)

    def _run(self, engine: Engine, alone: Engine | None, place: Place) -> Generator[StreamEvent, None, None]:
        events = _events_of(engine)
        for emit in (self._live if self._batching else self._inline)(engine, alone, place):
            place.narrow()
            yield from events.of(emit)
        yield from events.end()
        yield Finished(self._conclude(engine, alone))

    def _inline(self, engine: Engine, alone: Engine | None, place: Place) -> Iterator[Emit]:
        with place.hold():
            self._require_open()
            try:
                with closing(drivers.run(engine, self._pair.seated("fast"))) as emits:
                    for emit in emits:
                        yield emit
                        self._require_open()
                if alone is not None:
                    requests.level(alone, engine)
                    deque(drivers.run(alone, self._pair.seated(self._pair.seat_alone)), maxlen=0)
            except BackendError:
                self._require_open()  # its models may be freed: it was not they that failed
                raise

    def _live(self, engine: Engine, alone: Engine | None, place: Place) -> Iterator[Emit]:
        place.take()
        yield from self._begin(drivers.run_live, engine, alone, place)

    def _begin(self, driver: Callable[..., T], engine: Engine, alone: Engine | None, place: Place) -> T:
        """A live request's emits. It leaves its place at its end.

        Not who listens to it: a coroutine whose loop is closed never comes to its own end.
        """
        try:
            self._require_open()
            workers = self._workers.seated("fast")
            if isinstance(engine, BestOfEngine):  # until something is shown: by then their sequences are closed
                engine.lanes += place.widen(engine.best_of.k - 1)
        except BaseException:
            place.leave()
            raise
        return driver(engine, self._pair.models, workers, then=self._then(engine, alone), ended=place.leave)

    def _then(self, engine: Engine, alone: Engine | None) -> Callable[[], drivers.Run] | None:
        """What follows a live answer: its baseline, where one was asked for."""
        if alone is None:
            return None

        def baseline() -> drivers.Run:
            requests.level(alone, engine)
            return alone, self._pair.seated(self._pair.seat_alone), self._workers.seated(self._pair.seat_alone)

        return baseline

    def _astream(self, text: TextPrompt, options: Mapping[str, Any]) -> AsyncIterator[StreamEvent]:
        engine, alone = self._prepare(text, options)
        place = self._slots.admit()
        return AsyncStream(self._arun(engine, alone, place), place)

    async def _arun(self, engine: Engine, alone: Engine | None, place: Place) -> AsyncGenerator[StreamEvent, None]:
        await place.atake()
        events = _events_of(engine)
        # Closed with this coroutine, also when it is given up half-way.
        async with aclosing(self._begin(drivers.arun_live, engine, alone, place)) as emits:
            async for emit in emits:
                place.narrow()
                for event in events.of(emit):
                    yield event
        for event in events.end():
            yield event
        yield Finished(self._conclude(engine, alone))

    def _conclude(self, engine: Engine, alone: Engine | None) -> Generation:
        for role, times in engine.state.step_seconds.items():
            self._steps[role].extend(times)
        baseline = None
        if alone is not None:
            self._steps["slow"].extend(alone.state.step_seconds["fast"] if self._pair.local_slow else ())
            baseline = None if alone.generation is None else _with_calls(alone, alone.generation)
        assert engine.generation is not None
        bill_probes(engine, self.slow, self.ledger)
        answer = replace(
            _with_calls(engine, engine.generation),
            request_id=engine.request.id,
            baseline=baseline,
            default_policy=self._is_default(engine.policy),
            claim=requests.claim_of(engine, self.ledger),
            models={
                role: self._card(role, engine.terms.prices if role == "slow" else None) for role in self._pair.models
            },
        )
        if baseline is not None and baseline.degraded is None:
            enter_savings(self.ledger, answer, baseline, self.checker)
        log.info(
            "answered",
            request_id=answer.request_id,
            fast=self.fast.name,
            slow=self.slow.name,
            policy=answer.policy,
            method=answer.method,
            tokens=answer.usage.tokens,
            slow_forwards=answer.usage.slow_forwards,
            escalation_rate=answer.usage.escalation_rate,
            finish_reason=answer.finish_reason,
            degraded=engine.state.fault or answer.degraded,
        )
        for run, generation in ((engine, answer), (alone, baseline)):
            if run is not None and generation is not None and generation.degraded is not None:
                log.warning(
                    "degraded",
                    request_id=answer.request_id,
                    fast=self.fast.name,
                    slow=self.slow.name,
                    model=self.slow.name,
                    reason=run.state.fault or generation.degraded,
                )
        return answer

    def _is_default(self, policy: Policy) -> bool:
        """Whether a request's policy was this Router's own choice for an endpoint, and no cap forbade it to act."""
        from .policies import Capped

        while policy is not self._default_remote and isinstance(policy, Capped):
            if 0 in (policy.max_calls, policy.max_tokens):
                return False
            policy = policy.inner
        return policy is self._default_remote

    def _card(self, role: Role, prices: Prices | None) -> ModelCard:
        model = self._pair.models[role]
        return ModelCard(
            model.name,
            model.n_params,
            self._step_seconds(role),
            prices,
            gives_rows=reads_tokens(model),
            machine=self._machine_of(role),
        )

    def _step_seconds(self, role: Role) -> float | None:
        """Of one token, as measured; None where nobody has."""
        steps, measured = self._steps[role], getattr(self._pair.costs, role, None)
        return statistics.median(steps) if steps else measured.step if measured else None


class _PlainEvents:
    """A stream's events where the answer calls no tools."""

    def of(self, emit: Emit) -> tuple[StreamEvent]:
        if emit.restarts:
            return (Restarted(),)
        return (ReasoningDelta(emit.reasoning) if emit.reasoning else TextDelta(emit.text, emit.token),)

    def end(self) -> tuple[()]:
        return ()


def _events_of(engine: Engine) -> CallEvents:
    calls = engine.request.calls
    return _PlainEvents() if calls is None else calls.events(engine.request.id)


def _with_calls(engine: Engine, answer: Generation) -> Generation:
    calls = engine.request.calls
    return answer if calls is None else calls.applied(answer, engine.request.id)


def _require_count(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConfigurationError(f"{name}={value!r}", hint="a whole number, at least 0")


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
