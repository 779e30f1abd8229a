"""The page that describes the server: made of the bodies' models, so that it says what is checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic.json_schema import models_json_schema

from .. import __version__
from .dialect import Dialect, Json

_REF = "#/components/schemas/{model}"
_STATUSES = {
    "400": "a field is wrong or not supported; the message names it",
    "401": "a key is wanted",
    "403": "this host may not be asked for",
    "404": "no such model, or nothing at this path",
    "405": "no such method",
    "408": "the body did not come in time",
    "413": "the body is too long",
    "415": "the body is no JSON",
    "429": "the queue is full, or the key has too many requests under way: Retry-After says when to try again",
    "500": "a model failed",
    "503": "the server is shutting down, or full",
}
_GETS = {
    "/health": "whether the process lives; wants no key",
    "/ready": "whether another request would be let in, and how busy the models are",
    "/v1/models": "the model names, each of which is a policy",
}
_OBJECT: Json = {"type": "object"}


def openapi(dialects: Mapping[str, Dialect[Any]]) -> Json:
    """An OpenAPI 3.1 description."""
    bodies = [(dialect.body, "validation") for dialect in dialects.values()]
    refs, schemas = models_json_schema(bodies, ref_template=_REF)  # type: ignore[arg-type]
    paths: Json = {path: {"post": _post(dialect, refs)} for path, dialect in dialects.items()}
    paths |= {path: {"get": _get(about)} for path, about in _GETS.items()}
    paths["/health"]["get"]["security"] = []
    paths["/v1/models/{name}"] = {"get": _get("one model", parameter="name")}
    paths["/metrics"] = {"get": _get("Prometheus metrics", kind="text/plain")}
    return {
        "openapi": "3.1.0",
        "info": {"title": "fsgen-router", "version": __version__, "description": "A fast and a slow model, routed."},
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        "security": [{"bearer": []}, {"key": []}],
    }


def _post(dialect: Dialect[Any], refs: Mapping[Any, Json]) -> Json:
    whole = {"type": "object", "required": list(dialect.fields)}
    content: Json = {"application/json": {"schema": whole}}
    if "stream" in dialect.body.model_fields:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    body = {"required": True, "content": {"application/json": {"schema": refs[dialect.body, "validation"]}}}
    return {
        "operationId": dialect.name,
        "summary": (dialect.body.__doc__ or "").strip(),
        "requestBody": body,
        "responses": {"200": {"description": "the answer", "content": content}, **_errors(_STATUSES)},
    }


def _get(about: str, *, kind: str = "application/json", parameter: str | None = None) -> Json:
    schema = _OBJECT if kind == "application/json" else {"type": "string"}
    found = {"200": {"description": about, "content": {kind: {"schema": schema}}}}
    known: Json = {"summary": about, "responses": found | _errors(["401", "403", "404", "405", "503"])}
    if parameter is not None:
        known["parameters"] = [{"name": parameter, "in": "path", "required": True, "schema": {"type": "string"}}]
    return known


def _errors(statuses: Iterable[str]) -> Json:
    content = {"application/json": {"schema": _OBJECT}}
    return {status: {"description": _STATUSES[status], "content": content} for status in statuses}
