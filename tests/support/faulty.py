"""A proxy on loopback that lets requests through to a real server, or has them go wrong in one of many ways.

What the server counted and what of its text was passed on is kept, so that an answer can be held against it.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import random
import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from endpoints import STREAM_HEAD, event, forget, piece, reply

from fsgen_router import Generation

Kind = Literal[
    "none",
    # before anything of the server's
    "reset",
    "hang",
    "429",
    "500",
    "503",
    "html",
    "garbage",
    "not_json",
    # behind some events of the stream, perhaps behind none
    "stream_reset",
    "stream_end",
    "stream_hang",
    "truncated",
    "malformed",
    "error_event",
    # harmless
    "dribble",
    "comments",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
_STATUS = {"429": 429, "500": 500, "503": 503}
_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Fault:
    """What becomes of a request; ``after`` is how many events of a stream come before that."""

    kind: Kind = "none"
    after: int = 0


@dataclass
class Exchange:
    """A request through the proxy: what was asked, what the server said, what of it was passed on."""

    path: str
    body: dict[str, Any]
    fault: Fault
    text: str = ""
    """What was passed on."""
    whole: bool = False
    """Whether all of the reply was passed on."""
    ended: bool = False
    """Whether the end of the text was, with whatever may follow it."""
    left: bool = False
    """Whether the client hung up first."""
    usage: dict[str, Any] | None = None
    """The server's count, where it was passed on."""

    @property
    def partial(self) -> bool:
        return bool(self.text) and not self.ended


@dataclass
class FaultProxy:
    """``choose`` says what becomes of the n-th request."""

    choose: Callable[[int], Fault]
    url: str = ""
    exchanges: list[Exchange] = field(default_factory=list)
    connections: int = 0
    """Of clients, open now."""
    stopping: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def counted(self, change: int) -> None:
        with self._lock:
            self.connections += change

    def begin(self, path: str, body: dict[str, Any]) -> Exchange:
        with self._lock:
            exchange = Exchange(path, body, self.choose(len(self.exchanges)))
            self.exchanges.append(exchange)
            return exchange


def random_faults(seed: int, share: float) -> Callable[[int], Fault]:
    """A fault for this share of requests, drawn anew for each."""
    rng = random.Random(seed)

    def choose(number: int) -> Fault:
        if rng.random() >= share:
            return Fault()
        return Fault(rng.choice(KINDS[1:]), rng.choice((0, 1, 2, 5, 12)))

    return choose


@contextlib.contextmanager
def fault_proxy(upstream: str, choose: Callable[[int], Fault]) -> Iterator[FaultProxy]:
    """A proxy for the server with the base URL ``upstream``, under a base URL of its own."""
    proxy, parts = FaultProxy(choose), urlsplit(upstream)
    assert parts.hostname is not None

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            proxy.counted(1)
            try:
                with contextlib.suppress(OSError, http.client.HTTPException):
                    while self._one():
                        pass
            finally:
                proxy.counted(-1)

        def _one(self) -> bool:
            """Serve a request; whether the connection is good for another one."""
            line = self.rfile.readline().decode()
            if not line.strip():
                return False
            headers: dict[str, str] = {}
            while header := self.rfile.readline().decode().strip():
                name, _, value = header.partition(":")
                headers[name.lower()] = value.strip()
            data = self.rfile.read(int(headers.get("content-length", 0)))
            path = line.split()[1]
            exchange = proxy.begin(path, json.loads(data or b"{}"))
            kind = exchange.fault.kind
            if kind == "reset":
                return self._reset()
            if kind == "hang":
                return self._hang(exchange)
            if kind in _STATUS:
                self.request.sendall(reply(_STATUS[kind], {"error": {"message": "try later"}}, Retry_After="0"))
                return True
            if kind == "html":
                self.request.sendall(reply(200, b"<html>Welcome</html>", kind="text/html"))
                return True
            if kind == "not_json":
                self.request.sendall(reply(200, b"Welcome"))
                return True
            if kind == "garbage":
                self.request.sendall(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
                return False
            kept = {name: value for name, value in headers.items() if name in ("content-type", "authorization")}
            server = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_SECONDS)
            try:
                server.request("POST", path, data, kept)
                response = server.getresponse()
                if response.headers.get_content_type() != "text/event-stream":
                    body = response.read()
                    with contextlib.suppress(ValueError):
                        exchange.usage = json.loads(body).get("usage")
                    self.request.sendall(reply(response.status, body))
                    exchange.whole = exchange.ended = True
                    return True
                return self._stream(exchange, response)
            finally:
                server.close()

        def _stream(self, exchange: Exchange, response: http.client.HTTPResponse) -> bool:
            self._send(exchange, STREAM_HEAD)
            fault = exchange.fault
            for number, data in enumerate(_events(response)):
                if number == fault.after and fault.kind not in ("none", "dribble", "comments"):
                    return self._break(exchange, data)
                text, ended, usage = _told(data)
                exchange.usage = usage or exchange.usage
                if fault.kind == "comments":
                    self._send(exchange, piece(b": keep-alive\n\n"))
                whole = piece(event(data))
                for at in range(0, len(whole), 7) if fault.kind == "dribble" else (0,):
                    self._send(exchange, whole[at : at + 7] if fault.kind == "dribble" else whole)
                exchange.text += text
                exchange.ended = exchange.ended or ended
            exchange.whole = True
            self._send(exchange, piece(b""))
            return True

        def _break(self, exchange: Exchange, data: bytes) -> bool:
            kind = exchange.fault.kind
            if kind == "stream_reset":
                return self._reset()
            if kind == "stream_hang":
                return self._hang(exchange)
            if kind == "truncated":
                self._send(exchange, piece(event(data)[: len(data) // 2]))
            elif kind == "malformed":
                self._send(exchange, piece(event(data[: len(data) // 2])))
                self._send(exchange, piece(b""))
                return True
            elif kind == "error_event":
                self._send(exchange, piece(event({"error": {"message": "overloaded", "code": 529}})))
                self._send(exchange, piece(b""))
                return True
            return False

        def _send(self, exchange: Exchange, data: bytes) -> None:
            try:
                self.request.sendall(data)
            except OSError:
                exchange.left = True
                raise

        def _hang(self, exchange: Exchange) -> bool:
            """Say nothing more, until the client hangs up."""
            self.request.settimeout(_SECONDS)
            with contextlib.suppress(OSError):
                exchange.left = self.request.recv(1) == b""
            return False

        def _reset(self) -> bool:
            self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.request.close()
            return False

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

        def shutdown_request(self, request: Any) -> None:
            with contextlib.suppress(OSError):  # it was reset
                super().shutdown_request(request)

    with Server(("127.0.0.1", 0), Handler) as listening:
        proxy.url = f"http://127.0.0.1:{listening.server_address[1]}/v1"
        forget(proxy.url)
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            proxy.stopping.set()
            listening.shutdown()
            thread.join()


def _events(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """The data of server-sent events, as they come."""
    for line in response:
        if line.startswith(b"data:"):
            yield line[5:].strip()


def _told(data: bytes) -> tuple[str, bool, dict[str, Any] | None]:
    """The text in an event, whether that ends with it, and the count of tokens."""
    if data == b"[DONE]":
        return "", False, None
    said = json.loads(data)
    choices = said.get("choices") or ()
    text = "".join((choice.get("delta") or {}).get("content") or choice.get("text") or "" for choice in choices)
    return text, any(choice.get("finish_reason") for choice in choices), said.get("usage")


# --- an answer, held against what went over the wire -----------------------------------------------


def check_answer(answer: Generation, shown: Sequence[str], prompt: str, exchanges: Sequence[Exchange]) -> None:
    """No byte is lost or doubled, what failed is marked, and usage adds up to what the server counted.

    ``shown`` are the pieces that were streamed, ``exchanges`` the calls made for it (raw prompts, greedy).
    """
    assert "".join(shown) == answer.text
    assert b"".join(token.piece for token in answer.tokens).decode(errors="replace") == answer.text
    assert answer.finish_reason in ("eog", "length")
    ends = itertools.accumulate(len(token.piece) for token in answer.tokens)
    by_slow = {end - len(token.piece) for end, token in zip(ends, answer.tokens, strict=True) if token.source == "slow"}
    said, unsure, perhaps = [], False, 0
    for exchange in exchanges:
        begun = exchange.body["prompt"].removeprefix(prompt)
        assert answer.text.startswith(begun)
        # What was under way at a reset, or when the client had waited for long enough, may not have come.
        late = exchange is exchanges[-1] and any(words in (answer.degraded or "") for words in _GAVE_UP)
        soft = exchange.fault.kind == "stream_reset" or late
        if not (exchange.text or exchange.ended):
            continue
        if exchange is not _last(exchanges, exchange.body):
            continue  # nothing of it came, or it would not have been asked again
        if soft and len(begun.encode()) not in by_slow:
            perhaps += 1  # nothing of it came, or nothing that stands
            continue
        said.append(exchange)
        unsure = unsure or soft
    kept_bytes = _kept_bytes(answer, prompt, said, sure=not unsure)
    if any(exchange.partial for exchange in said):
        assert answer.degraded is not None, "what broke off is marked"
    assert len(said) <= answer.usage.round_trips <= len(said) + perhaps
    slow, told = answer.usage.slow, [exchange for exchange in said if exchange.usage is not None]
    prompts, cached, written = (sum(column) for column in zip((0, 0, 0), *map(_counts, told), strict=True))
    assert all(exchange.usage is not None for exchange in said if exchange.whole)
    assert unsure or answer.usage.slow_bytes == kept_bytes, "all of it and nothing twice"
    if unsure or perhaps:
        return  # whether the last count came is not known
    assert slow.cached == cached
    if len(told) == len(said):
        assert (slow.prefill + slow.cached, slow.decode) == (prompts, written)
        return
    # Of what broke off before the server said its count, the prompt and what arrived are counted here.
    untold = [exchange for exchange in said if exchange.usage is None]
    assert written <= slow.decode <= written + sum(len(exchange.text.encode()) for exchange in untold)
    assert slow.prefill + slow.cached > prompts


def _kept_bytes(answer: Generation, prompt: str, said: Sequence[Exchange], *, sure: bool) -> int:
    """How much of the answer the calls wrote: what each said stands whole, but for a last word that was cut off."""
    text = b"".join(token.piece for token in answer.tokens)
    by_slow = [token.source == "slow" for token in answer.tokens for _ in token.piece]
    begins = [len(exchange.body["prompt"].removeprefix(prompt).encode()) for exchange in said]
    position = kept_bytes = 0
    for exchange, start, limit in zip(said, begins, [*begins, len(text)][1:], strict=True):
        assert start >= position, "a text was asked for twice"
        position = next((at for at in range(start, limit) if not by_slow[at]), limit)
        heard, kept = exchange.text.encode(), text[start:position]
        assert heard.startswith(kept), (text[:start], heard, text)
        assert not sure or len(heard[len(kept) :].split()) <= 1, (kept, heard)
        kept_bytes += len(kept)
    return kept_bytes


_GAVE_UP = ("was silent", "gave no token", "before the deadline")


def _last(exchanges: Sequence[Exchange], body: dict[str, Any]) -> Exchange:
    return next(exchange for exchange in reversed(exchanges) if exchange.body == body)


def _counts(exchange: Exchange) -> tuple[int, int, int]:
    assert exchange.usage is not None, exchange
    details = exchange.usage.get("prompt_tokens_details") or {}
    return exchange.usage["prompt_tokens"], details.get("cached_tokens", 0), exchange.usage["completion_tokens"]
