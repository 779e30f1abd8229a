"""What is not asked of a model: which models there are, and how the server is."""

from __future__ import annotations

import time

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..router import Router
from .dialect import Json
from .errors import ApiError
from .guard import error_response
from .named import Named, Names


class Pages:
    """The paths that are answered at once."""

    def __init__(self, router: Router, names: Names) -> None:
        self._router, self._names, self._created = router, names, int(time.time())

    async def health(self, request: Request) -> Response:
        """The process lives: no more is said without a key."""
        return JSONResponse({"status": "ok"})

    async def models(self, request: Request) -> Response:
        models = [self._model(named) for named in self._names.all()]
        return JSONResponse({"object": "list", "data": models})

    async def model(self, request: Request) -> Response:
        try:
            return JSONResponse(self._model(self._names.find(request.path_params["name"])))
        except ApiError as error:
            return error_response(error, request)

    def _model(self, named: Named) -> Json:
        return {
            "id": named.name,
            "object": "model",
            "created": self._created,
            "owned_by": "fsgen-router",
            "fsgen": {
                "policy": named.shown,
                "about": named.about,
                "fast": self._router.fast.name,
                "slow": self._router.slow.name,
            },
        }
