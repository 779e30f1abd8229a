"""A circuit breaker for each endpoint: one that is down is left alone for a while, and no request waits for it.

Of the libraries, pybreaker (1.4) holds its lock while a guarded call runs, so that calls go one at a time, and
purgatory (3.0) has none; both let any number of calls through when they try again, and go by the wall clock. What is
needed beside that, a trial that no request waits for and a period that the endpoint itself may name, is most of it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from fsgen_router.support.logs import log
from fsgen_router.support.waiting import holding

from .endpoint import Endpoint
from .errors import EndpointError

MAX_HOLD_SECONDS = 3600.0
"""An endpoint that wants to be left alone for longer is asked again by then."""


class Breaker:
    """Closed, it lets calls through. After some failures in a row it is open: calls are refused at once.

    When its time is over, one trial is made beside what requests do (half-open); it closes the breaker or opens it
    again. Failures are those of the endpoint: it is not reached, breaks off, is silent, or says that it is at fault.
    """

    def __init__(self, name: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._name, self._clock = name, clock
        self._lock = threading.Lock()
        self._failures = 0
        self._why = ""
        self._opened: float | None = None
        self._until = 0.0
        self._trying = False
        self.reached = False
        """Whether the endpoint has answered this process."""

    @property
    def closed(self) -> bool:
        return self._opened is None

    def refusal(self) -> EndpointError | None:
        """Why a call is refused; None: it may be made."""
        with holding(self._lock):
            if self._opened is None:
                return None
            left = self._until - self._clock()
        again = f"in {left:.0f} s" if left >= 1 else "soon"
        return EndpointError(
            f"{self._name} is not asked, after it failed: {self._why}",
            hint=f"it is tried again {again}; breaker_failures and breaker_seconds say when to leave it alone",
        )

    def begin_trial(self) -> bool:
        """Whether it is the caller's to try the endpoint again; nobody else's until :meth:`end_trial`."""
        with holding(self._lock):
            if self._opened is None or self._trying or self._clock() < self._until:
                return False
            self._trying = True
            return True

    def end_trial(self) -> None:
        with holding(self._lock):
            self._trying = False

    def succeed(self) -> None:
        """The endpoint answered as it should."""
        with holding(self._lock):
            self.reached, self._failures = True, 0
            opened, self._opened = self._opened, None
        if opened is not None:
            log.info("breaker_closed", model=self._name, open_seconds=round(self._clock() - opened, 3))

    def fail(self, error: EndpointError, *, limit: int, seconds: float) -> None:
        """A try failed: the ``limit``-th in a row opens the breaker for ``seconds``, and so does that of a trial."""
        with holding(self._lock):
            self._failures += 1
            opens = limit > 0 and (self._opened is not None or self._failures >= limit)
        if opens:
            self._open(error, seconds)

    def hold(self, error: EndpointError) -> None:
        """The endpoint said for how long it wants to be left alone, and that is longer than a call may wait."""
        self._open(error, min(error.retry_after_seconds or 0.0, MAX_HOLD_SECONDS))

    def _open(self, error: EndpointError, seconds: float) -> None:
        with holding(self._lock):
            now = self._clock()
            first, self._opened = self._opened is None, now if self._opened is None else self._opened
            self._until, self._why = max(self._until, now + seconds), error.plain
            failures = self._failures
        if first:
            log.warning(
                "breaker_opened", model=self._name, failures=failures, status=error.status, seconds=round(seconds, 3)
            )


_breakers: dict[tuple[int, str, str], Breaker] = {}
"""By process and endpoint: all models of a process that use the endpoint share one."""


def breaker_of(endpoint: Endpoint) -> Breaker:
    return _breakers.setdefault((os.getpid(), endpoint.url, endpoint.model), Breaker(endpoint.name))
