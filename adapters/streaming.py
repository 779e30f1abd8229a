"""What models behind a network share: calls that can be left at any time, and text that arrives in pieces."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from types import TracebackType

from fsgen_router.contracts.text_models import ReasoningChunk, TextChunk, TextEnd, TextEvent, TimeIsUp
from fsgen_router.errors import BackendError
from fsgen_router.support.waiting import Home
from fsgen_router.text.vocabulary import REASONING_MARKS

# --- one call ------------------------------------------------------------------------------------


class Waiting:
    """One try of a call: by when its next token has to come, and what came of that."""

    def __init__(self, seconds: float) -> None:
        self.due = time.monotonic() + seconds
        self.spoke = self.overdue = False

    def heard(self, seconds: float) -> None:
        """A token came; the next one has to come within ``seconds``."""
        self.spoke, self.due = True, time.monotonic() + seconds


class Patience:
    """How long a call may take, and whether anybody still waits for it."""

    def __init__(self, seconds: float, *, granted: float | None = None) -> None:
        self.capped = granted is not None and granted < seconds
        """Whether it ends with what a request has ``granted``, and not with what an endpoint is waited for at most."""
        self.deadline = time.monotonic() + (granted if granted is not None and self.capped else seconds)
        self.closed = threading.Event()
        self.closed_in_time = False
        """Whether it was left before its deadline."""
        self._lock = threading.RLock()  # a call may be collected, and so closed, in the middle of anything
        self._cut: Callable[[], object] | None = None
        self._waiting: Waiting | None = None

    @property
    def left(self) -> float:
        """Seconds, never quite none, so that they can be a timeout."""
        return max(self.deadline - time.monotonic(), 1e-3)

    @property
    def ended(self) -> bool:
        return self.closed.is_set() or time.monotonic() >= self.deadline

    def begin(self, seconds: float) -> Waiting:
        """A try begins, whose first token has to come within ``seconds``."""
        self._waiting = Waiting(seconds)
        return self._waiting

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

    @property
    def next_look(self) -> float:
        """Seconds until something may be overdue."""
        waiting = self._waiting
        due = None if waiting is None or waiting.overdue else waiting.due
        if due is None:  # none is under way, or this one was ended
            return min(self.left, _LOOK_SECONDS)
        return min(self.left, max(due - time.monotonic(), _LEAST_SECONDS))

    def look(self) -> None:
        """End the try whose next token is overdue. What that means is for the thread to say that made it."""
        with self._lock:
            waiting = self._waiting
            if waiting is not None and self._cut is not None and time.monotonic() >= waiting.due:
                waiting.overdue = True
                self._cut()

    def close(self) -> None:
        self.closed_in_time = self.closed_in_time or time.monotonic() < self.deadline
        self.closed.set()
        with self._lock:
            if self._cut is not None:
                self._cut()


_LOOK_SECONDS, _LEAST_SECONDS = 1.0, 0.02
"""How often a call that waits looks whether its tries are overdue, where nothing says when that may be."""


class Call(Generator[TextEvent, None, None]):
    """A request under way on a thread of its own, as a generator.

    ``events`` makes what is iterated over; it runs on that thread, and ends when its patience has ended.
    :meth:`close` may be called from any thread and returns at once; dropping the call does the same. The
    endpoint notices at once if its reply has begun, else when it begins.
    """

    def __init__(
        self,
        events: Callable[[Patience], Generator[TextEvent]],
        seconds: float,
        name: str,
        *,
        granted: float | None = None,
    ) -> None:
        self._inbox: queue.SimpleQueue[TextEvent | Exception | None] = queue.SimpleQueue()
        self._patience = Patience(seconds, granted=granted)
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
            if isinstance(item, TextChunk | ReasoningChunk):
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
        while True:
            try:
                return self._inbox.get(timeout=self._patience.next_look)
            except queue.Empty:
                if self._patience.ended:
                    return late(self._name, self._patience)
                self._patience.look()

    def throw(
        self, kind: type[BaseException] | BaseException, value: object = None, traceback: TracebackType | None = None, /
    ) -> TextEvent:
        self.close()
        raise kind

    def cancel(self) -> None:
        """:meth:`close`, under the name by which a stream says that another thread may end it."""
        self.close()

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


def late(name: str, patience: Patience) -> BackendError:
    if patience.capped:
        return TimeIsUp(f"{name} did not end within the seconds that it was given")
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


class Increments:
    """What each piece of a text adds to it, also where an endpoint repeats all that came before in each.

    The first pieces show which: while each goes on from the whole of the one before it they are held back, until
    that is no chance any more; the first that does not is an addition, and so are all. A text that repeats
    itself from its beginning ("ha ha ha") is no sign. The piece that comes with the end may repeat the whole
    in either case.
    """

    def __init__(self) -> None:
        self._open: list[str] | None = []
        """The pieces so far, while both readings are possible; the first of them is out already."""
        self._repeats = False
        self._out: list[str] = []

    def push(self, piece: str, *, last: bool = False) -> str:
        if last and self._is_the_whole(piece):
            return self._decide(repeats=True) if self._open and len(self._open) > 1 else ""
        if not piece:
            return ""
        if self._open is None:
            return self._add(piece)
        self._open.append(piece)
        if len(self._open) == 1:
            return self._add(piece)
        before = self._open[-2]
        if len(piece) <= len(before) or not piece.startswith(before):
            return self._decide(repeats=False)
        return self._decide(repeats=True) if self._says_again(_LIKELY, alone=_SURE) else ""

    def _is_the_whole(self, piece: str) -> bool:
        whole = self._open[-1] if self._open else "".join(self._out)
        return piece == whole and _telling(piece) >= _LIKELY

    def flush(self) -> str:
        """What is still held back at the end."""
        if not self._open or len(self._open) == 1:
            return ""
        return self._decide(repeats=self._says_again(_SOME, alone=_WORD))

    def _says_again(self, least: int, *, alone: int) -> bool:
        """Whether the last piece repeats the one before it, by its length: of several, or of one ``alone``.

        One counts only where else a word would stand right behind itself.
        """
        assert self._open is not None
        before, several = self._open[-2], len(self._open) > 2
        behind_itself = before[0].isalnum() and before[-1].isalnum()
        return _telling(before) >= (least if several else alone) and (several or behind_itself)

    def _decide(self, *, repeats: bool) -> str:
        assert self._open is not None
        held, self._open, self._repeats = self._open[1:], None, repeats
        return "".join(map(self._add, held[-1:] if repeats else held))

    def _add(self, piece: str) -> str:
        if self._repeats:
            self._out = ["".join(self._out)]
            piece = "" if self._out[0].startswith(piece) else piece.removeprefix(self._out[0])
        self._out.append(piece)
        return piece


_SOME, _WORD, _LIKELY, _SURE = 2, 4, 12, 32  # characters


def _telling(text: str) -> int:
    """The length of a text that could not come from repeating a part of it, else 0."""
    head = text[:64]
    periods = range(1, 2 * len(head) // 3 + 1)
    return 0 if any(head.startswith(head[period:]) for period in periods) else len(text)


class Channel:
    """One text out of a stream whose chunks may name it in several places, as it is added to.

    The place that gives the first of it counts: what another one says is the same again, as in a last chunk
    with the whole ``message``.
    """

    def __init__(self) -> None:
        self._place: str | None = None
        self._increments, self._joiner = Increments(), SurrogateJoiner()

    def push(self, places: Mapping[str, str], *, last: bool = False) -> str:
        for place, text in places.items():
            if text and self._place in (None, place):
                self._place = place
                return self._joiner.push(self._increments.push(text, last=last))
        return ""

    def flush(self) -> str:
        return self._joiner.push(self._increments.flush()) + self._joiner.flush()


class ThinkBlock:
    """Tells a block of reasoning at the beginning of a message from the text behind it.

    Some servers leave it in the text, between tags. One that is never closed is reasoning to its end. Line
    breaks behind reasoning belong to the template.
    """

    def __init__(self) -> None:
        self._held = ""
        self._until: str | None = None
        """The tag that ends the block, while it is open."""
        self._begun = self._thought = False

    def push(self, event: TextEvent) -> Iterator[TextEvent]:
        if isinstance(event, TextChunk):
            yield from self._text(event.text)
            return
        if isinstance(event, ReasoningChunk):
            self._thought = True
        elif self._held:
            yield ReasoningChunk(self._held) if self._until else TextChunk(self._held)
        yield event

    def _text(self, text: str) -> Iterator[TextEvent]:
        if self._begun:
            yield TextChunk(text)
            return
        self._held += text
        while self._until is not None or self._opens():
            if self._until is None:
                self._begun, text, self._held = True, self._held, ""
                yield TextChunk(text)
                return
            yield from self._inside(self._until)
            if self._until is not None:
                return

    def _opens(self) -> bool:
        """Whether the beginning is known: that of a block, or that of the text."""
        if self._thought:
            self._held = self._held.lstrip("\r\n")
        head = self._held.lstrip()
        for tag, end in REASONING_MARKS.items():
            if head.startswith(tag):
                self._until, self._held = end, head[len(tag) :]
                return True
        return bool(head) and not any(tag.startswith(head) for tag in REASONING_MARKS)

    def _inside(self, end: str) -> Iterator[TextEvent]:
        reasoning, closed, behind = self._held.partition(end)
        # The end of what has come may be the beginning of the tag.
        keep = 0 if closed else next((n for n in range(len(end) - 1, 0, -1) if reasoning.endswith(end[:n])), 0)
        self._held = behind.lstrip("\r\n") if closed else reasoning[len(reasoning) - keep :]
        if reasoning := reasoning[: len(reasoning) - keep]:
            yield ReasoningChunk(reasoning)
        if closed:
            self._thought, self._until = True, None
