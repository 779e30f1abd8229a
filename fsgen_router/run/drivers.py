"""Drivers pump an engine: they have its commands carried out and feed the outcomes back.

One loop, :func:`_steps`, in three settings. :func:`run` does everything in the caller's thread. A
:class:`Live` request is moved on by the workers that its jobs run on, so many share their forwards;
:func:`run_live` and :func:`arun_live` wait for what it emits, in a thread or in a coroutine.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping
from contextlib import suppress
from typing import TypeAlias, cast

from ..contracts.models import Opened, TokenModel
from ..contracts.text_models import Continuation
from ..decode import Call, Cancel, Chunk, Close, Command, Done, Emit, Engine, Event, Failed, Returned, Start
from ..errors import BackendError, FsgenError
from ..records import Role
from ..support.waiting import Home, WorkerThread, holding, may_wait
from .workers import AnyModel, Worker, as_backend_error, perform

Models: TypeAlias = Mapping[Role, AnyModel]
Item: TypeAlias = Emit | BaseException | None
"""What a live request emits: tokens and text, then what it failed with, or None at its end."""
Run: TypeAlias = tuple[Engine, Models, Mapping[Role, Worker]]
"""An engine, and who sits in its seats."""


def _steps(engine: Engine) -> Generator[Command | None, Event | None, None]:
    """The engine's commands in order; None asks for the next event of the jobs under way.

    Time that the consumer of an ``Emit`` takes is not counted.
    """
    usage = engine.state.usage
    resumed = time.perf_counter()
    commands = deque(engine.start())
    while True:
        while commands:
            command = commands.popleft()
            if not isinstance(command, Emit):
                yield command
                continue
            usage.seconds += time.perf_counter() - resumed
            if usage.first_token_seconds is None and not command.reasoning and not command.restarts:
                usage.first_token_seconds = usage.seconds
            yield command
            resumed = time.perf_counter()
        if not engine.state.jobs:
            break
        event = yield None
        assert event is not None
        commands.extend(engine.send(event))
    usage.seconds += time.perf_counter() - resumed - usage.audit_seconds


def _close(engine: Engine, models: Models) -> None:
    failed: BaseException | None = None
    for role, sequence in engine.sequences:
        model = _local(models[role])
        try:
            model.close(sequence)
        except Exception as error:
            failed = as_backend_error(error, model.name)
    engine.settle()
    if failed is not None:
        raise failed


def _called(command: Call) -> Generator[Event, None, None]:
    """Call a function here and now."""
    try:
        event: Event = Returned(command.job, command.function())
    except FsgenError as error:
        event = Failed(command.job, error)
    yield event


def _local(model: AnyModel) -> TokenModel:
    return cast(TokenModel, model)


def run(engine: Engine, models: Models) -> Generator[Emit, None, None]:
    """The synchronous driver. Closing the iterator early leaves the models usable."""
    steps, home = _steps(engine), Home()
    jobs: dict[int, Generator[Event, None, None]] = {}
    try:
        event: Event | None = None
        while True:
            try:
                command = steps.send(event)
            except StopIteration:
                return
            event = None
            if isinstance(command, Emit):
                yield command
            elif isinstance(command, Start):
                jobs[command.job] = perform(models[command.role], command)
            elif isinstance(command, Call):
                jobs[command.job] = _called(command)
            elif isinstance(command, Close):
                _local(models[command.role]).close(command.sequence)
            elif isinstance(command, Cancel):
                jobs.pop(command.job).close()
            else:
                job = next(iter(jobs))
                event = next(jobs[job])
                if not isinstance(event, Chunk):
                    del jobs[job]
    finally:
        if not home.left:
            for events in jobs.values():
                events.close()
            _close(engine, models)


class Live:
    """A request that workers move on. ``emit`` is called on their threads, and must neither block nor raise.

    After the last :class:`Emit` comes exactly one end: None, or the error that the request failed with.
    By then nothing of it is running and its sequences are closed. ``ended`` is called before it, whether
    or not anybody still listens to the request: what it held is given back there.

    ``then`` makes a run that follows one which ended well, and is not heard: a baseline.
    """

    def __init__(
        self,
        engine: Engine,
        models: Models,
        workers: Mapping[Role, Worker],
        emit: Callable[[Item], None],
        *,
        then: Callable[[], Run] | None = None,
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        self._engine, self._models, self._workers = engine, models, workers
        self._emit, self._then, self._ended = emit, then, ended
        self._steps = _steps(engine)
        self._heard = True
        self._lock = threading.RLock()
        self._under_way: dict[int, Start | Call] = {}
        self._failed: BaseException | None = None
        self.cancelled = False

    def begin(self) -> None:
        with holding(self._lock):
            self._advance(None)

    def cancel(self) -> None:
        """Give the request up. A forward cannot be broken off: the end comes when it is done."""
        with holding(self._lock):
            if not self._under_way:
                return
            self.cancelled = True
            for job, command in list(self._under_way.items()):
                if isinstance(command, Start) and isinstance(command.work, Continuation):
                    del self._under_way[job]
                    self._workers[command.role].leave(job, self)
            self._end_if_idle()

    def abandon(self) -> None:
        """Give the request up whenever it is next heard of. Never waits."""
        self.cancelled = True

    def deliver(self, event: Event) -> bool:
        with holding(self._lock):
            command = self._under_way.get(event.job)
            if command is None:
                return False
            stopping = self.cancelled or self._failed is not None
            if stopping or not isinstance(event, Chunk):
                del self._under_way[event.job]
            if not stopping:
                self._advance(event)
                return event.job in self._under_way
            if isinstance(command, Start) and isinstance(event, Done) and isinstance(event.result, Opened):
                # The engine hears no more of it, so nobody else would have it closed.
                self._engine.late(event.job, command.role, event.result)
            self._end_if_idle()
            return False

    def _advance(self, event: Event | None) -> None:
        try:
            while (command := self._steps.send(event)) is not None:
                event = None
                if isinstance(command, Emit):
                    if self._heard:
                        self._emit(command)
                elif isinstance(command, Start):
                    # The lock is held, so nothing is delivered of it before it is entered.
                    self._workers[command.role].submit(command, self)
                    self._under_way[command.job] = command
                elif isinstance(command, Call):
                    self._under_way[command.job] = command
                    WorkerThread(target=self._call, args=(command,), name="fsgen-call", daemon=True).start()
                elif isinstance(command, Close):
                    _local(self._models[command.role]).close(command.sequence)
                else:
                    del self._under_way[command.job]
        except StopIteration:
            pass
        except BaseException as error:
            self._failed = error
        else:
            return
        self._end_if_idle()

    def _call(self, command: Call) -> None:
        """Call a user's function, in a thread that nobody else waits for."""
        try:
            event = next(_called(command))
        except BaseException as error:  # SystemExit, say: the request would wait for ever
            event = Failed(command.job, BackendError(f"a function ended with {type(error).__name__}: {error}"))
        self.deliver(event)

    def _end_if_idle(self) -> None:
        if self._under_way:
            return
        following: Run | None = None
        try:
            _close(self._engine, self._models)
            if self._then is not None and self._failed is None and not self.cancelled:
                following, self._then = self._then(), None
        except BaseException as error:
            self._failed = self._failed or error
        if following is None:
            self._ended()
            self._emit(self._failed)
            return
        self._engine, self._models, self._workers = following
        self._steps, self._heard = _steps(self._engine), False
        self._advance(None)


def run_live(
    engine: Engine,
    models: Models,
    workers: Mapping[Role, Worker],
    *,
    then: Callable[[], Run] | None = None,
    ended: Callable[[], None] = lambda: None,
) -> Iterator[Emit]:
    """The synchronous side of the batching driver. Closing the iterator early leaves the models usable.

    ``then`` and ``ended`` are :class:`Live`'s.
    """
    home = Home()
    items: queue.SimpleQueue[Item] = queue.SimpleQueue()
    live = Live(engine, models, workers, items.put, then=then, ended=ended)
    live.begin()
    item: Item = None
    over = False
    try:
        while isinstance(item := items.get(), Emit):
            yield item
        over = True
    finally:
        if not over and (home.left or not may_wait()):
            live.abandon()  # collected there: the end may need this very thread, or a lock that it holds
        elif not over:
            live.cancel()
            while isinstance(items.get(), Emit):
                pass
    if item is not None:
        raise item


async def arun_live(
    engine: Engine,
    models: Models,
    workers: Mapping[Role, Worker],
    *,
    then: Callable[[], Run] | None = None,
    ended: Callable[[], None] = lambda: None,
) -> AsyncGenerator[Emit, None]:
    """The asynchronous side of the batching driver: :func:`run_live` for a coroutine."""
    home, loop = Home(), asyncio.get_running_loop()
    items: asyncio.Queue[Item] = asyncio.Queue()

    def emit(item: Item) -> None:
        try:
            loop.call_soon_threadsafe(items.put_nowait, item)
        except RuntimeError:  # the loop is closed: nobody listens any more
            live.abandon()

    live = Live(engine, models, workers, emit, then=then, ended=ended)
    live.begin()
    item: Item = None
    over = False
    try:
        while isinstance(item := await items.get(), Emit):
            yield item
        over = True
    finally:
        if not over and (home.left or not may_wait()):
            live.abandon()
        elif not over:
            live.cancel()
            if loop.is_running():  # else this is being collected, and nothing can be awaited
                await _drained(items)
    if item is not None:
        raise item


async def _drained(items: asyncio.Queue[Item]) -> None:
    """Wait for the end of a request, however often the task that waits is cancelled meanwhile."""
    while True:
        with suppress(asyncio.CancelledError):
            if not isinstance(await items.get(), Emit):
                return
