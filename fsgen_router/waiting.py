"""Who must not wait: a thread that others' requests wait for, whatever it happens to collect there."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager


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
