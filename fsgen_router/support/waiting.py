"""Who must not wait: a thread that others' requests wait for, a forked child, an interpreter at its end."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from ..errors import ForkedProcess


class WorkerThread(threading.Thread):
    """A thread that requests wait for, so it must itself wait for none: not for what it happens to collect either."""


class _Here(threading.local):
    locks = 0


_here = _Here()


@contextmanager
def holding(lock: AbstractContextManager[object]) -> Iterator[None]:
    """Hold a lock that a request may need to come to its end. Collection may run inside, and close streams there."""
    _here.locks += 1
    try:
        with lock:
            yield
    finally:
        _here.locks -= 1


def may_wait() -> bool:
    """Whether this thread may wait for the end of a request: it holds nothing that this needs."""
    return not _here.locks and not isinstance(threading.current_thread(), WorkerThread)


class Home:
    """The process that something was made in.

    A forked child has its parent's memory, but neither its threads nor its devices, and connections are
    shared. At the interpreter's end threads stop wherever they are, with the locks that they hold.
    """

    __slots__ = ("_pid",)

    def __init__(self) -> None:
        self._pid = os.getpid()

    @property
    def forked(self) -> bool:
        """Whether this is a child of that process."""
        return os.getpid() != self._pid

    @property
    def left(self) -> bool:
        """Whether nothing can be waited for any more, nor has to be given back: in a child, or at the end."""
        return self.forked or sys.is_finalizing()

    def require(self, name: str) -> None:
        """Raise :class:`ForkedProcess` in a child. Takes no lock, which a thread of the parent may have held."""
        if self.forked:
            raise ForkedProcess(
                f"{name} was loaded in process {self._pid}, and this is process {os.getpid()}, forked from it",
                hint="load it after the fork, in the process that uses it: in a server's lifespan or post_fork hook, "
                "without --preload; with multiprocessing, in the worker or by the 'spawn' method",
            )
