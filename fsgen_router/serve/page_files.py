"""The page at ``/``: files that this package holds, and nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FOLDER: Final = Path(__file__).with_name("page")
PREFIX: Final = "/page/"
KINDS: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
"""What the page may do: run its own files and ask its own server. No script makes markup of text."""
HEADERS: Final = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}


def is_page(path: str) -> bool:
    """Whether a path is the page's own, which holds nothing of anybody's: it wants no key, its requests do."""
    return path == "/" or path.startswith(PREFIX)


def page_routes() -> list[Route]:
    """A route for each file. They are read once: a few kilobytes."""
    files = {path.name: path for path in sorted(FOLDER.iterdir()) if path.suffix in KINDS}
    routes = {f"{PREFIX}{name}": path for name, path in files.items() if path.suffix != ".html"}
    return [_route(at, path) for at, path in {"/": files["index.html"], **routes}.items()]


def _route(at: str, path: Path) -> Route:
    content, kind = path.read_bytes(), KINDS[path.suffix]

    async def send(request: Request) -> Response:
        return Response(content, media_type=kind, headers=HEADERS)

    return Route(at, send, methods=["GET"])
