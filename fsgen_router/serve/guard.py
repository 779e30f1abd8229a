"""Who may ask: hosts, keys, and a name for each request."""

from __future__ import annotations

import hmac
import re
import uuid
from typing import Final

from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from .errors import ApiError, anthropic_error, openai_error
from .options import ServeOptions, digest
from .page_files import is_page

OPEN: Final = frozenset({"/health"})
"""Paths that want no key, beside the page's own."""
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,100}")
_LOCAL = re.compile(r"(?:localhost|127(?:\.\d{1,3}){3}|\[::1\]|::1)(?::\d+)?", re.IGNORECASE)


class Guard:
    """Names a request, and lets it in where it shows a key (or where none is wanted).

    ``state`` of the scope has ``request_id`` and ``key``, the beginning of the key's digest, from then on.
    """

    def __init__(self, app: ASGIApp, options: ServeOptions) -> None:
        self._app, self._keys = app, sorted(options.keys)
        # Pages of other origins reach a server on loopback by a name of their own that leads there (DNS rebinding).
        self._local_only = options.loopback and not options.keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        named = headers.get("x-request-id", "")
        state = scope.setdefault("state", {})
        state["request_id"] = named if _REQUEST_ID.fullmatch(named) else uuid.uuid4().hex
        state["key"] = ""
        try:
            if self._local_only and not _LOCAL.fullmatch(headers.get("host", "localhost")):
                raise ApiError(403, "forbidden", "this server answers on localhost only: give it keys for other hosts")
            if self._keys and scope["path"] not in OPEN and not is_page(scope["path"]):
                state["key"] = self._key_of(headers)
        except ApiError as error:
            await error_response(error, HTTPConnection(scope))(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _key_of(self, headers: dict[str, str]) -> str:
        """The digest of the key that is shown, as far as a log may have it."""
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        shown = bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        hashed = digest(shown)
        # Every key is compared, each in constant time.
        found = [hmac.compare_digest(hashed, key) for key in self._keys]
        if not shown or not any(found):
            what = "the key is not known" if shown else "a key is wanted: Authorization: Bearer KEY, or x-api-key: KEY"
            raise ApiError(401, "unauthorized", what, headers={"WWW-Authenticate": "Bearer"})
        return hashed[:12]


def error_response(error: ApiError, request: HTTPConnection) -> Response:
    """An error in the shape of the API whose path was asked."""
    shape = anthropic_error if request.url.path.startswith("/v1/messages") else openai_error
    named = request.scope["state"]["request_id"]
    headers = {"x-fsgen-request-id": named, "x-request-id": named, **error.headers}
    return JSONResponse(shape(error), status_code=error.status, headers=headers)
