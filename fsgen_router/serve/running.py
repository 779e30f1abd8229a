"""Running the application: uvicorn, signals, and a last word to everyone."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator

import uvicorn

from ..errors import ConfigurationError
from ..router import Router
from .app import make_app
from .options import ServeOptions


class _Server(uvicorn.Server):
    """uvicorn, which tells where it listens, and whose end by a signal is an end like any other."""

    def __init__(self, config: uvicorn.Config, listening: Callable[[str, int], None]) -> None:
        super().__init__(config)
        self._listening = listening

    async def startup(self, sockets: object = None) -> None:
        await super().startup(sockets)  # type: ignore[arg-type]
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            self._listening(host, port)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM)
        for one in signals:
            loop.add_signal_handler(one, self.handle_exit, one, None)
        try:
            yield
        finally:
            for one in signals:
                loop.remove_signal_handler(one)


def serve(
    router: Router, options: ServeOptions, *, listening: Callable[[str, int], None] = lambda host, port: None
) -> None:
    """Serve ``router`` until a signal (SIGTERM, SIGINT) ends it; then nobody new is let in, and answers are finished.

    Runs in the main thread. ``listening`` is called with host and port once it does. A second SIGINT ends at once.
    Raises :class:`~fsgen_router.ConfigurationError` where the port is taken.
    """
    config = uvicorn.Config(
        make_app(router, options),
        host=options.host,
        port=options.port,
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=75,  # longer than clients keep idle connections, so that none is closed under a request
        timeout_graceful_shutdown=options.shutdown_seconds,
    )
    try:
        asyncio.run(_Server(config, listening).serve())
    except SystemExit:
        raise ConfigurationError(
            f"cannot listen on {options.host}:{options.port}", hint="is the port taken? 0 stands for any that is free"
        ) from None
