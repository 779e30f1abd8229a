"""Drivers pump an engine: they carry out its commands on real models and feed the outcomes back."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Generator, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import suppress

from .engine import Command, Done, Emit, Engine, Event, Failed, Open, Start
from .errors import FsgenError, RouterClosed
from .models import TokenModel
from .records import Role

Models = Mapping[Role, TokenModel]


def _steps(engine: Engine) -> Generator[Command, Event | None, None]:
    """The engine's commands in order. Time that the consumer of an ``Emit`` takes is not counted."""
    usage = engine.state.usage
    resumed = time.perf_counter()
    commands = deque(engine.start())
    while commands:
        command = commands.popleft()
        if isinstance(command, Emit):
            usage.seconds += time.perf_counter() - resumed
            if usage.first_token_seconds is None:
                usage.first_token_seconds = usage.seconds
            yield command
            resumed = time.perf_counter()
        else:
            event = yield command
            assert event is not None
            commands.extend(engine.send(event))
    usage.seconds += time.perf_counter() - resumed - usage.audit_seconds


def perform(model: TokenModel, command: Start) -> Event:
    """Carry out one job; what the backend failed with becomes an event."""
    began = time.perf_counter()
    try:
        work = command.work
        result = model.open(work.ids) if isinstance(work, Open) else model.forward([work])[0]
    except FsgenError as error:
        return Failed(command.job, error)
    return Done(command.job, result, time.perf_counter() - began)


def _close(engine: Engine, models: Models) -> None:
    for role, sequence in engine.sequences:
        models[role].close(sequence)


def run(engine: Engine, models: Models) -> Iterator[Emit]:
    """The synchronous driver. Closing the iterator early leaves the models usable."""
    steps = _steps(engine)
    try:
        command = next(steps, None)
        while command is not None:
            event = None
            if isinstance(command, Emit):
                yield command
            else:
                event = perform(models[command.role], command)
            try:
                command = steps.send(event)
            except StopIteration:
                command = None
    finally:
        _close(engine, models)


async def arun(engine: Engine, models: Models, executors: Mapping[Role, Executor]) -> AsyncGenerator[Emit, None]:
    """The asynchronous driver: each model works on the one thread of its executor."""
    loop = asyncio.get_running_loop()
    steps = _steps(engine)
    try:
        command = next(steps, None)
        while command is not None:
            event = None
            if isinstance(command, Emit):
                yield command
            else:
                try:
                    job = loop.run_in_executor(executors[command.role], perform, models[command.role], command)
                except RuntimeError:  # its threads have ended
                    raise RouterClosed("the Router was closed while it was answering") from None
                try:
                    event = await asyncio.shield(job)
                except asyncio.CancelledError:
                    # A forward cannot be broken off; its sequence must not be closed under it.
                    await _done(job)
                    _remember(engine, command, job.result())
                    raise
            try:
                command = steps.send(event)
            except StopIteration:
                command = None
    finally:
        _close(engine, models)


async def _done(job: asyncio.Future[Event]) -> None:
    """Wait for a job, however often the task that waits is cancelled meanwhile."""
    while not job.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([job])


def _remember(engine: Engine, command: Start, event: Event) -> None:
    """A sequence that was opened while the request was cancelled has to be closed too."""
    if isinstance(command.work, Open) and isinstance(event, Done):
        engine.send(event)
