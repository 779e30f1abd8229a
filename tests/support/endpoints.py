"""Endpoints on loopback: real servers of two kinds, and a socket that does what no server should."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ports import free_port

from fsgen_router.support.cache import cache_folder

# --- the real one --------------------------------------------------------------------------------


@dataclass(frozen=True)
class RealServer:
    """``python -m llama_cpp.server`` under way; ``log`` is what it prints."""

    url: str
    log: Path


@contextlib.contextmanager
def real_server(folder: Path, models: Mapping[str, Path], **settings: Any) -> Iterator[RealServer]:
    """Serve GGUF files under the names they are given; ``settings`` are the server's own."""
    port = free_port()
    # F32 keys and values, as the reference pair has them at home: texts are compared.
    kv = {"type_k": 0, "type_v": 0}
    shared = {"n_ctx": 512, "n_threads": 1, "n_threads_batch": 1, "seed": 0, "verbose": False, **kv}
    config = {
        "host": "127.0.0.1",
        "port": port,
        **settings,
        "models": [{"model": str(path), "model_alias": name, **shared} for name, path in models.items()],
    }
    (folder / "config.json").write_text(json.dumps(config))
    log = folder / "log"
    command = [sys.executable, "-m", "llama_cpp.server", "--config_file", str(folder / "config.json")]
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"},
        )
    try:
        server = RealServer(f"http://127.0.0.1:{port}/v1", log)
        forget(server.url)
        while True:
            if process.poll() is not None:
                raise AssertionError(f"the server did not start:\n{log.read_text()}")
            try:
                urllib.request.urlopen(f"{server.url}/models", timeout=5).close()
            except urllib.error.HTTPError as refused:  # it wants a key, so it is up
                refused.close()
            except OSError:
                time.sleep(0.05)
                continue
            break
        yield server
    finally:
        process.kill()  # asked politely, it would finish its streams first
        process.wait()


# A program for a process of its own: the server has no end, and a model in this process would share its threads.
_NATIVE = """
import sys, threading
import xllamacpp

params = xllamacpp.CommonParams()
params.model.path, params.model_alias = sys.argv[1], {"slow"}
params.n_ctx, params.n_parallel, params.n_threads_http = 4096, 4, 8
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
threading.Event().wait()
"""


@contextlib.contextmanager
def native_server(folder: Path, model: Path) -> Iterator[RealServer]:
    """llama.cpp's own server, as xllamacpp carries it, with a GGUF file under the name ``slow``."""
    log = folder / "native.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", _NATIVE, str(model)],
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    assert process.stdout is not None
    try:
        address = process.stdout.readline().strip()
        assert address, f"the server did not start:\n{log.read_text()}"
        server = RealServer(f"{address}/v1", log)
        forget(server.url)
        yield server
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def forget(url: str) -> None:
    """Let a server be a new one, though another had its port before: no record of what that did, and no breaker."""
    from fsgen_router.adapters.openai import breaker

    for path in (cache_folder() / "endpoints").glob("*.json"):
        if json.loads(path.read_text())["url"] == url:
            path.unlink()
    for key in [key for key in breaker._breakers if key[1] == url]:
        del breaker._breakers[key]


# --- the scripted one ----------------------------------------------------------------------------


@dataclass
class Asked:
    """A request as it came over the wire."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    send: Callable[[bytes], None]
    hear: Callable[[], bytes]
    """The next byte of the client; none when it has hung up."""
    connection: int


Script = Callable[[Asked], None]


@dataclass
class ScriptedServer:
    """Answers every request with what ``script`` sends, byte for byte."""

    script: Script
    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [asked.body for asked in self.asked]


@contextlib.contextmanager
def scripted_server(script: Script, tls: ssl.SSLContext | None = None) -> Iterator[ScriptedServer]:
    server = ScriptedServer(script)
    numbers = iter(range(1_000_000))

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            number = next(numbers)
            # A client that has gone is what half of the tests are about.
            with contextlib.suppress(OSError):
                while asked := self._read(number):
                    server.asked.append(asked)
                    server.script(asked)

        def _read(self, connection: int) -> Asked | None:
            request = self.rfile.readline().decode()
            if not request.strip():
                return None
            headers = {}
            while line := self.rfile.readline().decode().strip():
                name, _, value = line.partition(":")
                headers[name.lower()] = value.strip()
            body = json.loads(self.rfile.read(int(headers.get("content-length", 0))) or b"{}")
            return Asked(
                request.split()[1], headers, body, self.request.sendall, lambda: self.rfile.read(1), connection
            )

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Handler) as listening:
        if tls is not None:
            # Shaken hands with when it is read from, on the connection's own thread.
            listening.socket = tls.wrap_socket(listening.socket, server_side=True, do_handshake_on_connect=False)
        server.url = f"http{'s' * (tls is not None)}://127.0.0.1:{listening.server_address[1]}/v1"
        forget(server.url)
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.stopping.set()
            listening.shutdown()
            thread.join()


@contextlib.contextmanager
def black_hole() -> Iterator[str]:
    """An address whose connections are never made: packets to it are dropped, as behind a firewall."""
    with socket.socket() as listening, contextlib.ExitStack() as filled:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(3):  # more than the queue holds, and nobody accepts them
            waiting = filled.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        forget(url)
        yield url


# --- bytes ---------------------------------------------------------------------------------------


def reply(status: int, body: object, *, kind: str = "application/json", **headers: str) -> bytes:
    """A whole response."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} Said", f"Content-Type: {kind}", f"Content-Length: {len(data)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + data


STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def piece(data: bytes) -> bytes:
    """One piece of a chunked body; the empty one ends it."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(item: object) -> bytes:
    """One server-sent event: bytes and strings as they are, all else as JSON."""
    data = item if isinstance(item, bytes) else (item if isinstance(item, str) else json.dumps(item)).encode()
    return b"data: " + data + b"\n\n"


def chat_chunk(content: object = None, finish_reason: object = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": content}, "finish_reason": finish_reason}]}


def delta_chunk(finish_reason: object = None, **delta: object) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}


def text_chunk(text: object = "", finish_reason: object = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": text, "finish_reason": finish_reason}]}


def streamed(*items: object, done: bool = True) -> bytes:
    """A whole stream of events."""
    data = b"".join(map(event, [*items, *(["[DONE]"] if done else [])]))
    return STREAM_HEAD + piece(data) + piece(b"")


def says(text: str) -> bytes:
    """A stream that says ``text``, whatever was asked."""
    return streamed({"choices": [{"delta": {"content": text}, "text": text}]}, chat_chunk(None, "stop"))
