"""Who carries out the jobs of live requests: in the caller's thread, or in one that owns the model.

A :class:`BatchWorker` runs whatever waits for its model in one forward, single tokens and catch-up chunks
mixed; nobody waits for a batch to fill. A request that waits for one model is in no other's queue, so it
costs the rest nothing.
"""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Protocol, TypeAlias, cast

from ..contracts.models import Rows, TokenModel, Work
from ..contracts.text_models import Continuation, ReasoningChunk, TextEnd, TextModel, reads_tokens
from ..decode import Chunk, Done, Event, Failed, Open, Start
from ..errors import BackendError, FsgenError, RouterClosed
from ..records import Role
from ..rows.reading import Row
from ..support.waiting import Home, WorkerThread, holding

CHUNK = 64
"""Tokens of one work in one forward while others wait too, so that a long prompt does not hold them up."""
TICK = 512
"""Tokens of all works in one forward; more only where more works than this wait, with one token each."""

AnyModel: TypeAlias = TokenModel | TextModel


def perform(model: AnyModel, command: Start) -> Generator[Event, None, None]:
    """Carry out one job here and now; what the backend failed with becomes an event.

    So does a bug in an adapter; a KeyboardInterrupt does not.
    """
    began, job, work = time.perf_counter(), command.job, command.work
    try:
        if isinstance(work, Continuation):
            yield from _stream(cast(TextModel, model), job, work, began)
            return
        local = cast(TokenModel, model)
        result = local.open(work.ids) if isinstance(work, Open) else _forward(local, work)
    except Exception as error:
        yield Failed(job, as_backend_error(error, model.name))
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


def _stream(model: TextModel, job: int, wanted: Continuation, began: float) -> Iterator[Event]:
    stream = model.stream(wanted)
    try:
        for item in stream:
            if isinstance(item, TextEnd):
                yield Done(job, item, time.perf_counter() - began)
                return
            yield Chunk(job, item.text, reasoning=isinstance(item, ReasoningChunk))
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

    def close(self, timeout: float | None = None) -> None:
        """End the threads; what is still waiting fails. Closing twice is allowed.

        A forward is waited for, at most ``timeout`` seconds.
        """

    def abandon(self) -> None:
        """Let the threads end when they like: nobody submits any more. Never waits."""


@dataclass(slots=True)
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
    """The one thread of a local model."""

    def __init__(self, model: TokenModel, name: str) -> None:
        self._model = model
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Start, Client]] = deque()
        self._jobs: list[_Job] = []
        self._closed = False
        self._thread = WorkerThread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, command: Start, client: Client) -> None:
        with holding(self._changed):
            if self._closed:
                raise _closed()
            self._waiting.append((command, client))
            self._changed.notify()

    def abandon(self) -> None:
        with holding(self._changed):
            self._closed = True
            self._changed.notify()

    def close(self, timeout: float | None = None) -> None:
        self.abandon()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def _run(self) -> None:
        while self._turn(*self._wait()):
            pass

    def _wait(self) -> tuple[deque[tuple[Start, Client]], bool]:
        """What has come, and whether that is the end. While it waits, the thread keeps nobody's request alive."""
        with holding(self._changed):
            while not (self._waiting or self._jobs or self._closed):
                # Not for ever: abandoned by what is collected just here, it would hear nothing of that.
                self._changed.wait(60)
            arrived, self._waiting = self._waiting, deque()
            return arrived, self._closed

    def _turn(self, arrived: deque[tuple[Start, Client]], closed: bool) -> bool:
        for command, client in arrived:
            self._admit(command, client)
        if closed:
            for job in self._jobs:
                job.client.deliver(Failed(job.command.job, _closed()))
        elif self._jobs:
            self._tick()
        return not closed

    def _admit(self, command: Start, client: Client) -> None:
        work = command.work
        if isinstance(work, Work):
            self._jobs.append(_Job(command, client, work, [None] * len(work.reads), list(range(len(work.reads)))))
            return
        for event in _safely(perform(self._model, command), command.job, self._model.name):
            client.deliver(event)

    def _tick(self) -> None:
        """One forward over a share of everything that waits."""
        for job in [job for job in self._jobs if job.client.cancelled]:
            self._jobs.remove(job)
            job.client.deliver(Failed(job.command.job, RouterClosed("the request was cancelled")))
        if not self._jobs:
            return
        shares = _shares([len(job.left.ids) for job in self._jobs])
        taken = [(job, *_split(job, share)) for job, share in zip(self._jobs, shares, strict=True)]
        began = time.perf_counter()
        try:
            results = self._model.forward([part for _, part, _ in taken])
            seconds = time.perf_counter() - began
            for (job, _, slots), rows in zip(taken, results, strict=True):
                for slot, row in zip(slots, rows, strict=True):
                    job.rows[slot] = row
                job.seconds += seconds
                job.reread += reread_of(rows)
        except BaseException as error:
            self._jobs.clear()
            for job, _, _ in taken:
                job.client.deliver(Failed(job.command.job, as_backend_error(error, self._model.name)))
            return
        self._jobs = [job for job in self._jobs if job.left.ids]
        chunked = max(shares) > 1 or any(map(reread_of, results))
        for job, _, _ in taken:
            if not job.left.ids:
                rows = cast(list[Row], job.rows)
                job.client.deliver(Done(job.command.job, rows, job.seconds, chunked, job.reread))


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
    job.left = Work(left.sequence, left.keep + size, left.ids[size:], [(at, read) for _, at, read in later])
    job.slots = [slot for slot, _, _ in later]
    part = Work(left.sequence, left.keep, left.ids[:size], [(at, read) for _, at, read in now])
    return part, [slot for slot, _, _ in now]


class StreamWorker:
    """Threads that wait for an endpoint, one for each stream under way.

    Not a pool's: the interpreter would wait for them at its end, and an endpoint may hang.
    """

    def __init__(self, model: TextModel, name: str) -> None:
        self._model, self._name = model, name
        self._lock = threading.Lock()
        self._under_way: dict[threading.Thread, tuple[int, Client]] = {}
        self._closed = False

    def submit(self, command: Start, client: Client) -> None:
        with holding(self._lock):
            if self._closed:
                raise _closed()
            thread = WorkerThread(target=self._run, args=(command, client), name=self._name, daemon=True)
            thread.start()
            self._under_way[thread] = command.job, client

    def _run(self, command: Start, client: Client) -> None:
        try:
            with closing(_safely(perform(self._model, command), command.job, self._model.name)) as events:
                for event in events:
                    if not client.deliver(event):
                        return
        finally:
            with holding(self._lock):
                del self._under_way[threading.current_thread()]

    def abandon(self) -> None:
        self._closed = True

    def close(self, timeout: float | None = None) -> None:
        # Without waiting for an endpoint that hangs: its stream ends when the model is shut down, or never.
        with holding(self._lock):
            self._closed = True
            under_way = list(self._under_way.values())
        for job, client in under_way:
            client.deliver(Failed(job, _closed()))


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
        # Who drops a Router without closing it gets its threads and models back.
        weakref.finalize(self, _abandon, self._started, self._home).atexit = False
        _all.add(self)
        _end_at_exit()

    def seated(self, fast: Role) -> Mapping[Role, Worker]:
        """All workers, with that of one of the models in the fast seat."""
        return {role: self._of(fast if role == "fast" else role) for role in self._models}

    def _of(self, role: Role) -> Worker:
        with holding(self._lock):
            if role not in self._started:
                model, name = self._models[role], f"fsgen-{role}"
                made = BatchWorker(model, name) if reads_tokens(model) else StreamWorker(cast(TextModel, model), name)
                self._started[role] = made
                if self._closed:
                    made.close()
            return self._started[role]

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
