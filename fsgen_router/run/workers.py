"""Who carries out the jobs of live requests: in the caller's thread, or in one that owns the model.

A :class:`BatchWorker` puts whatever waits for its model into one forward, single tokens and catch-up chunks
mixed. A request that waits for one model is in no other's queue, so it costs the rest nothing. Models that
run side by side have a thread each; those that would be in each other's way share one (:mod:`.turns`).
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Protocol, TypeAlias, TypeVar, cast

from ..contracts.models import Opened, Rows, TokenModel, Work
from ..contracts.text_models import Continuation, ReasoningChunk, TextEnd, TextEvent, TextModel, reads_tokens
from ..decode import Chunk, Done, Event, Failed, Open, Start
from ..errors import BackendError, FsgenError, RouterClosed
from ..records import Role
from ..rows.reading import Row
from ..support.waiting import Home, WorkerThread, holding
from .turns import Line, StepTimes, fit_together, next_turn, turn_of

CHUNK = 64
"""Tokens of one work in one forward while others wait too, so that a long prompt does not hold them up."""
TICK = 512
"""Tokens of all works in one forward; more only where more works than this wait, with one token each."""

_CHECK_SECONDS = 1.0
"""How often who waits for a call looks whether its thread has ended."""

AnyModel: TypeAlias = TokenModel | TextModel
TextStream: TypeAlias = Generator[TextEvent, None, None]
T = TypeVar("T")


def perform(
    model: AnyModel, command: Start, begun: Callable[[TextStream], None] = lambda stream: None
) -> Generator[Event, None, None]:
    """Carry out one job here and now; what the backend failed with becomes an event.

    So does a bug in an adapter; a KeyboardInterrupt does not. ``begun`` is called with a stream that was begun for it.
    """
    began, job, work = time.perf_counter(), command.job, command.work
    try:
        if isinstance(work, Continuation):
            yield from _stream(cast(TextModel, model), job, work, began, begun)
            return
        local = cast(TokenModel, model)
        result: Opened | list[Row]
        if isinstance(work, Open):
            result = local.open(work.ids)
        else:
            with turn_of(local):
                began = time.perf_counter()
                result = _forward(local, work)
    except Exception as error:
        yield Failed(job, as_backend_error(error, model.name), time.perf_counter() - began)
    else:
        yield Done(job, result, time.perf_counter() - began, reread=reread_of(result))


def reread_of(result: object) -> int:
    """Tokens that a model read again for these rows."""
    return result.reread if isinstance(result, Rows) else 0


def _forward(model: TokenModel, work: Work) -> list[Row]:
    (rows,) = model.forward([work])
    if len(rows) != len(work.reads):
        raise BackendError(f"{model.name} gave {len(rows)} rows where {len(work.reads)} were wanted")
    return rows


def _stream(
    model: TextModel, job: int, wanted: Continuation, began: float, begun: Callable[[TextStream], None]
) -> Iterator[Event]:
    stream = model.stream(wanted)
    begun(stream)
    try:
        for item in stream:
            if isinstance(item, TextEnd):
                yield Done(job, item, time.perf_counter() - began)
                return
            seconds = time.perf_counter() - began
            if isinstance(item, ReasoningChunk):
                yield Chunk(job, item.text, reasoning=True, seconds=seconds)
            else:
                yield Chunk(job, item.text, repairs=item.repairs, seconds=seconds)
    finally:
        with suppress(Exception):  # what was said stands, and nobody hears more of it
            stream.close()
    raise BackendError(f"{model.name} ended its stream in mid-answer")


class Client(Protocol):
    """A live request, as a worker sees it."""

    @property
    def cancelled(self) -> bool: ...

    def deliver(self, event: Event) -> bool:
        """Called on the worker's thread, without any lock of the worker's held; False: the job is given up."""


def _closed() -> RouterClosed:
    return RouterClosed("the Router was closed while it was answering")


class Worker(Protocol):
    """Carries out jobs of one model on threads of its own."""

    def submit(self, command: Start, client: Client) -> None:
        """Begin a job, whose events are delivered later. Raises :class:`RouterClosed` after :meth:`close`."""

    def leave(self, job: int, client: Client) -> None:
        """Nobody waits for a job any more: what can be broken off ends at once."""

    def close(self, timeout: float | None = None) -> None:
        """End the threads; what is still waiting fails. Closing twice is allowed.

        A forward is waited for, at most ``timeout`` seconds.
        """

    def abandon(self) -> None:
        """Let the threads end when they like: nobody submits any more. Never waits."""


@dataclass(slots=True, eq=False)
class _Job:
    """A work on its way: what is left of it, and the rows that have come."""

    command: Start
    client: Client
    left: Work
    rows: list[Row | None] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    """Where in ``rows`` each of the remaining reads belongs."""
    seconds: float = 0.0
    reread: int = 0


class BatchWorker:
    """What waits for a local model: whatever it is goes into one forward.

    ``thread`` is what runs it, shared with models that take turns with this one (None: one of its own); those of a
    ``pair`` are kept in step.
    """

    def __init__(
        self, model: TokenModel, name: str, *, thread: ForwardThread | None = None, pair: object | None = None
    ) -> None:
        self._model = model
        self._thread = thread or ForwardThread(name)
        self._changed = self._thread.changed
        self._waiting: deque[tuple[Start, Client]] = deque()
        self._calls: deque[Callable[[], None]] = deque()
        self._jobs: list[_Job] = []
        self.closed = False
        self.ended = threading.Event()
        """Nothing of it is running, nor ever will."""
        self.pair = pair or object()
        self.times = StepTimes()
        self.nobody_waits()
        self.served = 0
        """The thread's last turn that went to the pair."""
        self._thread.add(self)

    def submit(self, command: Start, client: Client) -> None:
        with holding(self._changed):
            if self.closed:
                raise _closed()
            self._waiting.append((command, client))
            self._changed.notify()

    def call(self, function: Callable[[], T]) -> T:
        """What a function gives that uses the model directly, run where its forwards are, in its turn.

        Another thread would bring an OpenMP team of its own along, which slows every later forward down.
        """
        outcome: Future[T] = Future()
        with holding(self._changed):
            if self.closed:
                raise _closed()
            self._calls.append(lambda: _fulfil(outcome, function))
            self._changed.notify()
        while True:
            with suppress(TimeoutError):
                return outcome.result(_CHECK_SECONDS)
            if self.ended.is_set() and not outcome.done():
                raise _closed()

    def leave(self, job: int, client: Client) -> None:
        return  # a forward cannot be broken off

    def abandon(self) -> None:
        self.closed = True
        # Not waited for: others use it too, and who holds it may be waiting for what this thread holds.
        if self._changed.acquire(blocking=False):
            self._changed.notify()
            self._changed.release()

    def close(self, timeout: float | None = None) -> None:
        self._thread.end(self, timeout)

    # --- on its thread ---

    def nobody_waits(self) -> None:
        """Begin to count anew what the wait of those costs that can go on with no other model."""
        self.lost = 0.0
        """Fixed seconds of the pair's forwards meanwhile, for each of those who had no part in them."""
        self.since: float | None = None
        """When the first of them came."""

    @property
    def clients(self) -> list[Client]:
        return [job.client for job in self._jobs]

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._calls or self._jobs or self.closed)

    def admit(self) -> bool:
        """Take in what has come and let go of what was given up; False at the end, when it has failed all the rest."""
        with holding(self._changed):
            arrived, self._waiting = self._waiting, deque()
            calls, self._calls = self._calls, deque()
            closed = self.closed
        for command, client in arrived:
            self._admit(command, client)
        for call in calls if not closed else ():
            with turn_of(self._model):
                call()
        for job in [job for job in self._jobs if closed or job.client.cancelled]:
            self._jobs.remove(job)
            error = _closed() if closed else RouterClosed("the request was cancelled")
            job.client.deliver(Failed(job.command.job, error))
        return not closed

    def _admit(self, command: Start, client: Client) -> None:
        work = command.work
        if isinstance(work, Work):
            self._jobs.append(_Job(command, client, work, [None] * len(work.reads), list(range(len(work.reads)))))
            return
        for event in _safely(perform(self._model, command), command.job, self._model.name):
            client.deliver(event)

    def tick(self) -> None:
        """One forward over a share of everything that waits."""
        jobs = _ready(self._model, self._jobs)
        shares = _shares([len(job.left.ids) for job in jobs])
        taken = [(job, *_split(job, share)) for job, share in zip(jobs, shares, strict=True)]
        try:
            with turn_of(self._model):
                began = time.perf_counter()
                results = self._model.forward([part for _, part, _ in taken])
                seconds = time.perf_counter() - began
            for (job, _, slots), rows in zip(taken, results, strict=True):
                for slot, row in zip(slots, rows, strict=True):
                    job.rows[slot] = row
                job.seconds += seconds
                job.reread += reread_of(rows)
        except BaseException as error:
            self._jobs = [job for job in self._jobs if job not in jobs]
            for job, _, _ in taken:
                job.client.deliver(Failed(job.command.job, as_backend_error(error, self._model.name)))
            return
        self.times.add(sum(shares) + sum(map(reread_of, results)), seconds)
        self._jobs = [job for job in self._jobs if job.left.ids]
        chunked = max(shares) > 1 or any(map(reread_of, results))
        for job, _, _ in taken:
            if not job.left.ids:
                rows = cast(list[Row], job.rows)
                job.client.deliver(Done(job.command.job, rows, job.seconds, chunked, job.reread))


def _fulfil(outcome: Future[T], function: Callable[[], T]) -> None:
    try:
        outcome.set_result(function())
    except BaseException as error:
        outcome.set_exception(error)


class ForwardThread:
    """Runs the forwards of a model, or of those that cannot run side by side on a device: one after the other.

    It starts with the first worker and ends with the last.
    """

    def __init__(self, name: str) -> None:
        self.changed = threading.Condition()
        self._name = name
        self._workers: list[BatchWorker] = []
        self._thread: WorkerThread | None = None
        self._turns = 0

    def add(self, worker: BatchWorker) -> None:
        with holding(self.changed):
            self._workers.append(worker)
            if self._thread is None:
                self._thread = WorkerThread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
            self.changed.notify()

    def end(self, worker: BatchWorker, timeout: float | None) -> None:
        """Wait until a worker has ended, and the thread with it if that was the last one."""
        with holding(self.changed):
            thread = self._thread
            worker.closed = True
            self.changed.notify()
        if threading.current_thread() is thread:
            return
        if worker.ended.wait(timeout) and thread is not None and thread is not self._thread:
            thread.join(timeout)

    def _run(self) -> None:
        while self._wait():
            self._round()

    def _wait(self) -> bool:
        """Until there is something to do; False at the end. While it waits, it keeps nobody's request alive."""
        with holding(self.changed):
            while self._thread is threading.current_thread():
                if any(worker.has_work for worker in self._workers):
                    return True
                # Not for ever: abandoned by what is collected just here, it would hear nothing of that.
                self.changed.wait(60)
            return False

    def _round(self) -> None:
        for worker in list(self._workers):
            if not worker.admit():
                self._remove(worker)
        if self._thread is not threading.current_thread():
            return  # that was the last one; what comes now is another thread's
        ready: dict[object, list[BatchWorker]] = {}
        for worker in self._workers:
            if worker.clients:
                ready.setdefault(worker.pair, []).append(worker)
            else:
                worker.nobody_waits()
        if not ready:
            return
        # Pair by pair, then by model.
        pair = min(ready.values(), key=lambda workers: max(worker.served for worker in workers))
        self._turns += 1
        for worker in pair:
            worker.served = self._turns
        _serve(pair)

    def _remove(self, worker: BatchWorker) -> None:
        with holding(self.changed):
            self._workers.remove(worker)
            if not self._workers:
                self._thread = None  # another one starts with the next worker
        worker.ended.set()


def _serve(workers: Sequence[BatchWorker]) -> None:
    """One forward by the model of a pair whose turn it is, of those that something waits for."""
    if len(workers) == 1:
        (chosen,) = workers
        blocked = {chosen: 0}
    else:
        asked: dict[Client, list[BatchWorker]] = {}
        for worker in workers:
            for client in worker.clients:
                asked.setdefault(client, []).append(worker)
        blocked = {worker: sum(of == [worker] for of in asked.values()) for worker in workers}
        lines, now = [], time.perf_counter()
        for worker in workers:
            if not blocked[worker]:
                worker.nobody_waits()
            elif worker.since is None:
                worker.since = now
            waited = 0.0 if worker.since is None else now - worker.since
            lines.append(Line(blocked[worker], worker.times.fixed, worker.times.usual, worker.lost, waited))
        chosen = workers[next_turn(lines, len(asked))]
    chosen.nobody_waits()
    chosen.tick()
    for worker in blocked:
        if worker is not chosen:
            worker.lost += (chosen.times.fixed or 0.0) * blocked[worker]


_shared: dict[tuple[int, str], ForwardThread] = {}
"""By process and device: OpenMP has a team of threads for each that calls in, and more threads than cores are slow."""


def _thread_of(model: TokenModel, others: Iterable[AnyModel]) -> ForwardThread | None:
    """The thread that a model shares, where it does not run side by side with the others of its pair."""
    device = model.capabilities.device
    rivals = [
        other for other in others if other is not model and reads_tokens(other) and not fit_together(model, other)
    ]
    if device is None or not rivals:
        return None
    return _shared.setdefault((os.getpid(), device), ForwardThread(f"fsgen-{device}"))


def _ready(model: TokenModel, jobs: list[_Job]) -> list[_Job]:
    """Those that cost no forward, where a model can tell and there are any: the others meet in a later one."""
    knows = getattr(model, "knows", None)
    return ([job for job in jobs if knows(job.left)] if knows else []) or jobs


def _shares(lengths: Sequence[int]) -> list[int]:
    """How many tokens of works with these lengths go into one forward.

    The max-min fair division of :data:`TICK`: short works go whole, a single token always does, and long ones
    have equal parts of what that leaves, though none more than :data:`CHUNK` while others wait.
    """
    most, room = CHUNK if len(lengths) > 1 else TICK, TICK
    shares = list(lengths)
    shortest_first = sorted(range(len(lengths)), key=lengths.__getitem__)
    for done, index in enumerate(shortest_first):
        shares[index] = min(lengths[index], most, max(room // (len(lengths) - done), 1))
        room -= shares[index]
    return shares


def _split(job: _Job, size: int) -> tuple[Work, list[int]]:
    """Take the first ``size`` tokens off a job: as a work, and where its rows belong."""
    left = job.left
    if len(left.ids) <= size:
        job.left = replace(left, ids=())
        return left, job.slots
    now = [(slot, at, read) for slot, (at, read) in zip(job.slots, left.reads, strict=True) if at < size]
    later = [(slot, at - size, read) for slot, (at, read) in zip(job.slots, left.reads, strict=True) if at >= size]
    rest = [(at, read) for _, at, read in later]
    job.left = Work(left.sequence, left.keep + size, left.ids[size:], rest, left.more)
    job.slots = [slot for slot, _, _ in later]
    part = Work(left.sequence, left.keep, left.ids[:size], [(at, read) for _, at, read in now])
    return part, [slot for slot, _, _ in now]


@dataclass(slots=True, eq=False)
class _Streaming:
    """A job of an endpoint's under way."""

    job: int
    client: Client
    stream: TextStream | None = None
    left: bool = False

    def begun(self, stream: TextStream) -> None:
        self.stream = stream
        if self.left:
            self.leave()

    def leave(self) -> None:
        """End its stream, where that can be done from another thread; else that ends with its next event."""
        self.left = True
        cancel: Callable[[], None] | None = getattr(self.stream, "cancel", None)
        if cancel is not None:
            cancel()


class StreamWorker:
    """Threads that wait for an endpoint, one for each stream under way; or for a server, one for each call for rows.

    Not a pool's: the interpreter would wait for them at its end, and an endpoint may hang.
    """

    def __init__(self, model: AnyModel, name: str) -> None:
        self._model, self._name = model, name
        self._lock = threading.Lock()
        self._under_way: dict[threading.Thread, _Streaming] = {}
        self._closed = False

    def submit(self, command: Start, client: Client) -> None:
        streaming = _Streaming(command.job, client)
        with holding(self._lock):
            if self._closed:
                raise _closed()
            thread = WorkerThread(target=self._run, args=(command, streaming), name=self._name, daemon=True)
            thread.start()
            self._under_way[thread] = streaming

    def _run(self, command: Start, streaming: _Streaming) -> None:
        try:
            events = perform(self._model, command, streaming.begun)
            with closing(_safely(events, command.job, self._model.name)) as safe:
                for event in safe:
                    if not streaming.client.deliver(event):
                        return
        finally:
            with holding(self._lock):
                del self._under_way[threading.current_thread()]

    def leave(self, job: int, client: Client) -> None:
        with holding(self._lock):
            under_way = list(self._under_way.values())
        for streaming in under_way:
            if streaming.job == job and streaming.client is client:
                streaming.leave()

    def abandon(self) -> None:
        self._closed = True

    def close(self, timeout: float | None = None) -> None:
        # Without waiting for an endpoint that hangs: its stream ends now, or when the model is shut down, or never.
        with holding(self._lock):
            self._closed = True
            under_way = list(self._under_way.values())
        for streaming in under_way:
            streaming.client.deliver(Failed(streaming.job, _closed()))
            streaming.leave()


def _safely(events: Iterator[Event], job: int, name: str) -> Generator[Event, None, None]:
    """Whatever a backend raises: the thread that runs it serves other requests too, which must not wait in vain."""
    try:
        yield from events
    except GeneratorExit:
        raise
    except BaseException as error:
        yield Failed(job, as_backend_error(error, name))


def as_backend_error(error: BaseException, name: str) -> FsgenError:
    """This package's own errors as they are; any other that a model raised as the cause of a BackendError."""
    if isinstance(error, FsgenError):
        return error
    failure = BackendError(f"{name}: {error!r}")
    failure.__cause__ = error
    return failure


def _abandon(workers: Mapping[Role, Worker], home: Home) -> None:
    if not home.left:
        for worker in workers.values():
            worker.abandon()


_EXIT_SECONDS = 10.0
"""How long the interpreter's end waits for forwards: they cannot be broken off, and one may hang."""
_all: weakref.WeakSet[Workers] = weakref.WeakSet()


def _end() -> None:
    """End all threads in order, before the interpreter stops them where they are, with the locks that they hold."""
    deadline = time.monotonic() + _EXIT_SECONDS
    for workers in list(_all):
        workers.close(deadline)


@cache
def _end_at_exit() -> None:
    # Not when this is imported: what is registered last is run first, and models, which free themselves, are
    # loaded before there are workers for them.
    atexit.register(_end)


class Workers:
    """The workers of a pair, each started when it is first needed."""

    def __init__(self, models: Mapping[Role, AnyModel]) -> None:
        self._models = models
        self._started: dict[Role, Worker] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._home = Home()
        self._pair = object()
        # Who drops a Router without closing it gets its threads and models back.
        weakref.finalize(self, _abandon, self._started, self._home).atexit = False
        _all.add(self)
        _end_at_exit()

    def seated(self, fast: Role) -> Mapping[Role, Worker]:
        """All workers, with that of one of the models in the fast seat."""
        return {role: self._of(fast if role == "fast" else role) for role in self._models}

    def call(self, role: Role, function: Callable[[], T]) -> T:
        """Run a function that uses a model where its forwards run (see :meth:`BatchWorker.call`); a server's, here."""
        worker = self._of(role)
        return worker.call(function) if isinstance(worker, BatchWorker) else function()

    def _of(self, role: Role) -> Worker:
        with holding(self._lock):
            if role not in self._started:
                model, name = self._models[role], f"fsgen-{role}"
                self._started[role] = made = self._make(model, name)
                if self._closed:
                    made.abandon()  # not waited for: its thread may be waiting for this lock
            return self._started[role]

    def _make(self, model: AnyModel, name: str) -> Worker:
        if not reads_tokens(model) or model.capabilities.remote:
            return StreamWorker(model, name)
        return BatchWorker(model, name, thread=_thread_of(model, self._models.values()), pair=self._pair)

    def close(self, deadline: float | None = None) -> None:
        """End the threads; requests under way fail with :class:`RouterClosed`.

        Forwards are waited for, at most until the monotonic clock shows ``deadline``.
        """
        if self._home.left:
            return
        with holding(self._lock):
            self._closed = True
            started = list(self._started.values())
        for worker in started:
            worker.close(None if deadline is None else max(deadline - time.monotonic(), 0.0))
