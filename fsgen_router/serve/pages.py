"""What is not asked of a model: which models there are, and how the server is."""

from __future__ import annotations

import time
from dataclasses import asdict, fields

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..errors import FsgenError
from ..json_forms import finite
from ..policies.thresholds import ThresholdOf, threshold_of
from ..router import Router
from .dialect import Json, present
from .errors import ApiError
from .guard import error_response
from .metrics import CONTENT_TYPE, Metrics
from .named import Named, Names


class Pages:
    """The paths that are answered at once."""

    def __init__(self, router: Router, names: Names, metrics: Metrics, description: Json) -> None:
        self._router, self._names, self._metrics, self._created = router, names, metrics, int(time.time())
        self._description = description

    async def health(self, request: Request) -> Response:
        """The process lives: no more is said without a key."""
        return JSONResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """Whether another request would be let in, and how busy the models are."""
        try:
            load = self._router.load
        except FsgenError:
            return JSONResponse({"status": "closed"}, status_code=503)
        ready = load.room > 0
        body = {"status": "ready" if ready else "full", **asdict(load)}
        return JSONResponse(body, status_code=200 if ready else 503)

    async def metrics(self, request: Request) -> Response:
        return Response(self._metrics.page(), media_type=CONTENT_TYPE)

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(self._description)

    async def embeddings(self, request: Request) -> Response:
        error = ApiError(404, "not_found", "this server has no embeddings: its two models write")
        return error_response(error, request)

    async def models(self, request: Request) -> Response:
        models = [self._model(named) for named in self._names.all()]
        return JSONResponse({"object": "list", "data": models})

    async def model(self, request: Request) -> Response:
        try:
            return JSONResponse(self._model(self._names.find(request.path_params["name"])))
        except ApiError as error:
            return error_response(error, request)

    def _model(self, named: Named) -> Json:
        threshold = threshold_of(named.base)
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
                **({} if threshold is None else {"threshold": _told(threshold)}),
            },
        }


def _told(threshold: ThresholdOf) -> Json:
    """A threshold that ``fsgen.threshold`` moves, and what others did in calibration; absent fields are left out."""
    points = [present(**point.model_dump()) for point in threshold.curve]
    facts = {one.name: getattr(threshold, one.name) for one in fields(threshold)}
    told: Json = finite(present(**facts | {"curve": points or None}))
    return told
