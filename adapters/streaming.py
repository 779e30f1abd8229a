"""What models behind a network share: calls that can be left at any time, and text that arrives in pieces."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from types import TracebackType

from fsgen_router.errors import BackendError
from fsgen_router.text_models import TextChunk, TextEnd, TextEvent
from fsgen_router.waiting import Home

# --- one call ------------------------------------------------------------------------------------


class Patience:
    """How long a call may take, and whether anybody still waits for it."""

    def __init__(self, seconds: float) -> None:
        self.deadline = time.monotonic() + seconds
        self.closed = threading.Event()
        self._lock = threading.RLock()  # a call may be collected, and so closed, in the middle of anything
        self._cut: Callable[[], object] | None = None

    @property
    def left(self) -> float:
        """Seconds, never quite none, so that they can be a timeout."""
        return max(self.deadline - time.monotonic(), 1e-3)

    @property
    def ended(self) -> bool:
        return self.closed.is_set() or time.monotonic() >= self.deadline

    @contextmanager
    def cutting(self, cut: Callable[[], object]) -> Iterator[None]:
        """While this is entered, :meth:`close` calls ``cut``, which ends a wait for the network."""
        with self._lock:
            self._cut = cut
        try:
            yield
        finally:
            with self._lock:
                self._cut = None

    def close(self) -> None:
        self.closed.set()
        with self._lock:
            if self._cut is not None:
                self._cut()


class Call(Generator[TextEvent, None, None]):
    """A request under way on a thread of its own, as a generator.

    ``events`` makes what is iterated over; it runs on that thread, and ends when its patience has ended.
    :meth:`close` may be called from any thread and returns at once; dropping the call does the same. The
    endpoint notices at once if its reply has begun, else when it begins.
    """

    def __init__(self, events: Callable[[Patience], Generator[TextEvent]], seconds: float, name: str) -> None:
        self._inbox: queue.SimpleQueue[TextEvent | Exception | None] = queue.SimpleQueue()
        self._patience = Patience(seconds)
        self._name = name
        self._ended = False
        self._reason: Exception | None = None
        self._home = Home()
        work = events(self._patience), self._inbox
        threading.Thread(target=_work, args=work, name="fsgen-call", daemon=True).start()

    def send(self, value: None = None, /) -> TextEvent:
        """The next event, which is waited for until the deadline."""
        self._home.require(f"this call of {self._name}")
        if not self._ended:
            item = self._next()
            if isinstance(item, TextChunk):
                return item
            if isinstance(item, TextEnd):
                self._ended = True
                return item
            self.close()
            if item is not None:
                raise item
        reason, self._reason = self._reason, None
        raise reason or StopIteration

    def _next(self) -> TextEvent | Exception | None:
        try:
            return self._inbox.get(timeout=self._patience.left)
        except queue.Empty:
            return late(self._name)

    def throw(
        self, kind: type[BaseException] | BaseException, value: object = None, traceback: TracebackType | None = None, /
    ) -> TextEvent:
        self.close()
        raise kind

    def close(self, reason: Exception | None = None) -> None:
        """End the request. Who waits or asks for the next event gets ``reason``, or the end of the stream."""
        if not self._ended and not self._home.left:
            self._reason, self._ended = reason, True
            self._patience.close()
            self._inbox.put(None)

    def __del__(self) -> None:
        self.close()


def _work(events: Generator[TextEvent], inbox: queue.SimpleQueue[TextEvent | Exception | None]) -> None:
    try:
        with closing(events):
            # After the end, too: the rest of the reply is read, which leaves the connection for the next call.
            for event in events:
                inbox.put(event)
    except Exception as error:
        inbox.put(error)
    finally:
        inbox.put(None)


def late(name: str) -> BackendError:
    return BackendError(f"{name} did not answer before the deadline", hint="raise deadline_seconds")


# --- text that arrives in pieces -----------------------------------------------------------------


class SurrogateJoiner:
    """Text out of JSON strings: two halves of a character that came in two chunks are one again.

    A half that stays alone becomes U+FFFD, because no UTF-8 can hold it.
    """

    def __init__(self) -> None:
        self._half = ""

    def push(self, text: str) -> str:
        text = self._half + text
        self._half = text[-1] if text and "\ud800" <= text[-1] <= "\udbff" else ""
        return _valid(text[: len(text) - len(self._half)])

    def flush(self) -> str:
        text, self._half = _valid(self._half), ""
        return text


def _valid(text: str) -> str:
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


class Unrepeat:
    """Drops from the beginning of a continuation what was already written.

    An overlap is the longest beginning of the continuation (white space before it aside) with which
    ``written`` ends. It counts from ``minimum`` characters on, since short ones happen by chance, or when
    it is all that was written and no word goes on behind it. Text is held back only as long as it may
    still be a repetition.
    """

    def __init__(self, written: str, minimum: int = 12) -> None:
        self._written, self._minimum = written, minimum
        self._all = len(written.lstrip())
        self._held: str | None = "" if self._all or written else None

    def push(self, text: str) -> str:
        if self._held is None:
            return text
        self._held += text
        return "" if self._head in self._written else self._decide()

    def flush(self) -> str:
        return "" if self._held is None else self._decide()

    @property
    def _head(self) -> str:
        """What to compare; white space is part of it only where nothing else was written."""
        return (self._held or "").lstrip() if self._all else (self._held or "")

    def _decide(self) -> str:
        held, head, self._held = self._held or "", self._head, None
        sizes = range(min(len(head), len(self._written)), 0, -1)
        found = next((size for size in sizes if self._written.endswith(head[:size]) and self._counts(head, size)), 0)
        return head[found:] if found else held

    def _counts(self, head: str, size: int) -> bool:
        if size >= self._minimum:
            return True
        word_goes_on = head[size - 1].isalnum() and head[size : size + 1].isalnum()
        return size == self._all and not word_goes_on
