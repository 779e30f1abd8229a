"""The server in a thread, on a port of its own, as clients meet it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from fsgen_router import Router
from fsgen_router.serve import ServeOptions, make_app


@contextlib.contextmanager
def serving(router: Router, **options: Any) -> Iterator[str]:
    """Its URL, like ``http://127.0.0.1:8000``. The Router stays the caller's to close."""
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    port = bound.getsockname()[1]
    app = make_app(router, ServeOptions(port=port, **options))
    config = uvicorn.Config(app, port=port, lifespan="off", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([bound])), daemon=True)
    thread.start()
    try:
        until(lambda: server.started)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)


def until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait for something that comes."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.005)
