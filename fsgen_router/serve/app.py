"""The application: which path is answered by what."""

from __future__ import annotations

from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ..router import Router
from .chat_completions import CHAT
from .completions import COMPLETIONS
from .dialect import Dialect
from .errors import ApiError
from .guard import Guard, error_response
from .messages import COUNT_TOKENS, MESSAGES
from .metrics import Metrics
from .named import Names
from .observing import Observer
from .openapi import openapi
from .options import ServeOptions
from .page_files import page_routes
from .pages import Pages
from .responses import RESPONSES
from .runner import Runner

DIALECTS: dict[str, Dialect[Any]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETIONS,
    "/v1/responses": RESPONSES,
    "/v1/messages": MESSAGES,
    "/v1/messages/count_tokens": COUNT_TOKENS,
}


class _Answered:
    """A path whose requests the runner answers."""

    def __init__(self, runner: Runner, dialect: Dialect[Any]) -> None:
        self._runner, self._dialect = runner, dialect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._runner.answer(self._dialect, scope, receive, send)


async def _told(request: Request, error: Exception) -> Response:
    """No such path, or no such method on it."""
    if isinstance(error, HTTPException) and error.status_code == 405:
        told = ApiError(405, "method_not_allowed", f"no {request.method} at this path", headers=error.headers)
    else:
        told = ApiError(404, "not_found", "there is nothing at this path; /openapi.json lists what there is")
    return error_response(told, request)


def make_app(router: Router, options: ServeOptions | None = None) -> ASGIApp:
    """The server as an ASGI application over a Router, which stays its maker's to close.

    Raises :class:`~fsgen_router.ConfigurationError` for model names and policies that do not go with the pair.
    """
    chosen = options or ServeOptions()
    names = Names(router, chosen.models)
    metrics = Metrics(lambda: router.load)
    runner = Runner(router, chosen, names, Observer(metrics, log_prompts=chosen.log_prompts))
    pages = Pages(router, names, metrics, openapi(DIALECTS))
    routes = [Route(path, _Answered(runner, dialect), methods=["POST"]) for path, dialect in DIALECTS.items()]
    routes += [
        Route("/health", pages.health, methods=["GET"]),
        Route("/ready", pages.ready, methods=["GET"]),
        Route("/metrics", pages.metrics, methods=["GET"]),
        Route("/openapi.json", pages.openapi, methods=["GET"]),
        Route("/v1/embeddings", pages.embeddings, methods=["POST"]),
        Route("/v1/models", pages.models, methods=["GET"]),
        Route("/v1/models/{name:path}", pages.model, methods=["GET"]),
        *page_routes(),
    ]
    app: ASGIApp = Starlette(routes=routes, exception_handlers={HTTPException: _told})
    app = Guard(app, chosen)
    if chosen.cors:
        app = CORSMiddleware(
            app,
            allow_origins=chosen.cors,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["*"],
            allow_credentials=False,
        )
    return app
