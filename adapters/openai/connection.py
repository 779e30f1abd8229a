"""The way to an endpoint: connections, deadlines, tries, and the parameters that it turned out not to take."""

from __future__ import annotations

import hashlib
import json
import socket
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from typing import Any, TypeVar

import httpx2
import tenacity

from fsgen_router.support.logs import log
from fsgen_router.support.waiting import Home

from ..streaming import Patience, late
from .breaker import breaker_of
from .endpoint import Endpoint, read_key
from .errors import EndpointError, is_retryable, mapped, refusal, wait_seconds
from .options import OpenAIOptions

T = TypeVar("T")


class Connection:
    """Sends requests to one endpoint. Nothing is sent before the first :meth:`ask`."""

    def __init__(self, endpoint: Endpoint, options: OpenAIOptions) -> None:
        self.name, self.home = endpoint.name, Home()
        self.breaker = breaker_of(endpoint)
        self._endpoint, self._options = endpoint, options
        self.key = read_key(endpoint, options)
        headers = {"Accept-Encoding": "identity", "Accept": "text/event-stream, application/json"}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key.get_secret_value()}"
        self._client = httpx2.Client(
            headers=headers,
            follow_redirects=False,  # the key goes to the host that was named and to no other
            limits=httpx2.Limits(max_keepalive_connections=16),
            trust_env=not endpoint.loopback,
            # Which, unlike proxies, are the environment's on loopback too (SSL_CERT_FILE).
            verify=httpx2.create_ssl_context() if endpoint.encrypted else True,
        )
        weakref.finalize(self, _close, self._client, self.home)  # for a model that is dropped without shutdown()
        # Found out on the way, and then remembered.
        self._dropped: set[str] = set()
        self._refused_forms: set[str] = set()
        self._renamed: dict[str, str] = {}

    def close(self) -> None:
        self._client.close()

    def ask(
        self,
        path: str,
        body: Mapping[str, Any] | None,
        patience: Patience,
        read: Callable[[httpx2.Response], Iterator[T]],
        *,
        trial: bool = False,
        tries: int | None = None,
        unanswered: Callable[[], None] = lambda: None,
    ) -> Generator[T]:
        """Send a request until its first item has come, at most as often as allowed; then the rest of it.

        Without a ``body`` it is a GET. Refused while the endpoint's breaker is open, but for a ``trial``: nobody's
        answer waits for that, and if it fails after all tries, the endpoint is down. With ``tries`` of its own it is a
        question that may make a server stumble, which says nothing of others. ``unanswered`` is called for each try
        that was sent and then left, by its deadline or by us, before a reply began.
        """
        if not trial and (refused := self.breaker.refusal()) is not None:
            raise refused

        def start() -> tuple[T, Generator[T]]:
            while True:
                sent = None if body is None else self._adapted(body)
                items = self._send(path, sent, patience, read, unanswered)
                try:
                    return next(items), items
                except EndpointError as error:
                    if sent is None or not self._adapt(error, sent):
                        if not trial:
                            self._judge(error, patience, spoke=False)
                        raise

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(is_retryable),
            stop=tenacity.stop_any(
                tenacity.stop_after_attempt(tries or self._options.max_retries + 1),
                tenacity.stop_before_delay(patience.left),
            ),
            wait=wait_seconds,
            sleep=tenacity.sleep_using_event(patience.closed),
            before_sleep=self._log_retry,
            reraise=True,
        )
        try:
            first, rest = retrying(start)
        except EndpointError as error:
            if trial and tries is None:
                self._judge(error, patience, spoke=False, trial=True)
            told = bool(error.retry_after_seconds and self._options.breaker_failures)
            if told and tries is None and not patience.closed.is_set():
                self.breaker.hold(error)
            raise
        with closing(rest):
            try:
                yield first
                yield from rest
            except EndpointError as error:
                self._judge(error, patience, spoke=True)
                raise
        self.breaker.succeed()

    def _judge(self, error: EndpointError, patience: Patience, *, spoke: bool, trial: bool = False) -> None:
        """Whether an error says that the endpoint is down, or that it is up."""
        if patience.ended and (spoke or patience.closed_in_time or patience.capped):
            return  # we left it
        options = self._options
        if error.fault:
            self.breaker.fail(
                error,
                limit=min(options.breaker_failures, 1) if trial else options.breaker_failures,
                seconds=options.breaker_seconds,
            )
        elif error.status is not None and error.status != 429:
            self.breaker.succeed()

    def _send(
        self,
        path: str,
        body: Mapping[str, Any] | None,
        patience: Patience,
        read: Callable[[httpx2.Response], Iterator[T]],
        unanswered: Callable[[], None],
    ) -> Generator[T]:
        if patience.ended:
            raise late(self.name, patience)
        # Beyond the deadline by a little, so that it is the deadline that is reported.
        options, left = self._options, patience.left + 1.0
        timeout = httpx2.Timeout(
            min(options.first_token_seconds, left), connect=min(options.connect_timeout_seconds, left)
        )
        url = self._endpoint.url + path
        method, sent = ("GET", None) if body is None else ("POST", {"model": self._endpoint.model, **body})
        waiting = patience.begin(options.first_token_seconds)
        with (
            mapped(self.name, options, waiting),
            _replied(self._client.stream(method, url, json=sent, timeout=timeout), patience, unanswered) as response,
        ):
            try:
                if response.status_code != 200:
                    raise refusal(response, path, self.name, key=self.key, options=options)
                # From here on it is who waits for the tokens that says how long: comments come in between.
                longest = max(options.first_token_seconds, options.read_timeout_seconds)
                response.request.extensions["timeout"]["read"] = min(longest, patience.left + 1.0)
                with patience.cutting(lambda: _cut(response)):
                    for item in read(response):
                        waiting.heard(options.read_timeout_seconds)
                        yield item
            finally:
                if self._client.is_closed:
                    # It was still connecting at close(): the pool, which has forgotten it, would leave it open.
                    response.extensions["network_stream"].close()

    def _adapted(self, body: Mapping[str, Any]) -> dict[str, Any]:
        dropped = self._dropped
        if self._refused_forms and _form_of(body) in self._refused_forms:
            dropped = {*dropped, "response_format"}
        return {self._renamed.get(name, name): value for name, value in body.items() if name not in dropped}

    def _adapt(self, error: EndpointError, sent: Mapping[str, Any]) -> bool:
        """Do without what an endpoint refuses, where that changes no text; whether a new try is worth it."""
        if "max_tokens" in sent and error.names("max_completion_tokens"):
            self._renamed["max_tokens"] = "max_completion_tokens"
            log.info("endpoint_parameter", model=self.name, parameter="max_tokens", now="max_completion_tokens")
            return True
        for name in ("stream_options", "seed"):
            if name in sent and error.names(name):
                self._dropped.add(name)
                log.warning("endpoint_parameter", model=self.name, parameter=name, now=None)
                return True
        told = "response_format" in sent and "response_format" not in self._options.extra_body
        if told and error.mentions("response_format"):  # the answer is checked all the same
            self._refused_forms.add(_form_of(sent))
            log.warning("endpoint_parameter", model=self.name, parameter="response_format", now=None)
            return True
        return False

    def _log_retry(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        log.warning(
            "endpoint_retry",
            model=self.name,
            attempt=state.attempt_number,
            status=getattr(error, "status", None),
            wait_seconds=round(state.upcoming_sleep, 3),
        )


@contextmanager
def _replied(
    stream: AbstractContextManager[httpx2.Response], patience: Patience, unanswered: Callable[[], None]
) -> Iterator[httpx2.Response]:
    """What a request is answered with; it was sent whole where it is the reply that one stops waiting for."""
    with ExitStack() as stack:
        try:
            response = stack.enter_context(stream)
        except (httpx2.ReadTimeout, httpx2.ReadError, httpx2.RemoteProtocolError) as error:
            if patience.ended or isinstance(error, httpx2.ReadTimeout):
                unanswered()
            raise
        yield response


def _form_of(body: Mapping[str, Any]) -> str:
    """The ``response_format`` of a request, in short: an endpoint may take one, and another not."""
    return hashlib.sha256(json.dumps(body.get("response_format"), sort_keys=True).encode()).hexdigest()


def _close(client: httpx2.Client, home: Home) -> None:
    if not home.forked:  # in a child they are the parent's connections
        client.close()


def _cut(response: httpx2.Response) -> None:
    """End the connection under whoever reads from it, in another thread."""
    connection = response.extensions["network_stream"].get_extra_info("socket")
    if isinstance(connection, socket.socket):
        with suppress(OSError):  # it has ended by itself
            # Not SSLSocket's own, which also takes the state away that the reader is using.
            socket.socket.shutdown(connection, socket.SHUT_RDWR)
