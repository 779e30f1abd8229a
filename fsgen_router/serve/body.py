"""From bytes to a checked body: limits, JSON, and each field that is not supported refused by its name."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from starlette.types import Receive, Scope

from .errors import ApiError


class Body(BaseModel):
    """A part of a request. Unknown fields are refused by their names; null is the same as absent."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    def given(self, *names: str) -> dict[str, Any]:
        """The fields of these names that were given, as plain JSON values."""
        return self.model_dump(mode="json", include=set(names), exclude_none=True, exclude_unset=True)


def neutral(*values: Any) -> Any:
    """A field that this server does not support: the values that change nothing are taken, all others refused."""

    def check(value: Any) -> Any:
        if value is None or any(value == one and type(value) is type(one) for one in values):
            return value
        allowed = " and ".join(dict.fromkeys(json.dumps(one) for one in values if not isinstance(one, float)))
        raise ValueError("is not supported by this server" + (f" (only {allowed} is taken)" if values else ""))

    return BeforeValidator(check, json_schema_input_type=None)


def unsupported(*values: Any) -> Any:
    """The default of a field of the kind :func:`neutral`; its schema says which values are taken."""
    return Field(default=None, json_schema_extra={"enum": [None, *values]})


class FsgenOptions(Body):
    """The extension field ``fsgen``: how this one request is routed, and what is told of it."""

    policy: str | None = Field(default=None, max_length=256, description="a short form, like entropy>1.2")
    method: str | None = Field(default=None, max_length=256, description="a short form, like verify")
    threshold: float | None = Field(
        default=None, allow_inf_nan=False, description="in the place of the policy's own, where it has one"
    )
    max_slow_calls: int | None = Field(default=None, ge=0)
    max_slow_tokens: int | None = Field(default=None, ge=0)
    max_cost_usd: float | None = Field(default=None, ge=0)
    max_seconds: float | None = Field(default=None, ge=0)
    tokens: bool | None = Field(default=None, description="say of each token who wrote it, and why")


_FIELD = re.compile(r"(?!(?:str|int|dict|list)$)\w+")
"""Not the name of a union's alternative."""
AnyBody = TypeVar("AnyBody", bound=Body)


async def read_body(scope: Scope, receive: Receive, *, limit: int, seconds: float) -> bytes:
    """All of a request's body. Raises :class:`ApiError` where it is no JSON, is too long or does not come."""
    headers = dict(scope["headers"])
    kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
    # Pages of other origins may send other types without asking first.
    if kind != b"application/json":
        raise ApiError(415, "media_type", "the body must be JSON: Content-Type: application/json")
    try:
        announced = int(headers.get(b"content-length", b"0"))
    except ValueError:
        announced = 0
    parts, size = [], 0
    try:
        async with asyncio.timeout(seconds):
            while True:
                if max(size, announced) > limit:
                    raise ApiError(
                        413, "too_large", f"the body is longer than {limit:,} bytes", headers={"Connection": "close"}
                    )
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ConnectionResetError("the client left before its body was read")
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if not message.get("more_body", False):
                    break
    except TimeoutError:
        raise ApiError(
            408, "timeout", f"the body did not come within {seconds:g} seconds", headers={"Connection": "close"}
        ) from None
    if size > limit:
        raise ApiError(413, "too_large", f"the body is longer than {limit:,} bytes")
    return b"".join(parts)


def parse(model: type[AnyBody], raw: bytes) -> AnyBody:
    """A checked body, or an :class:`ApiError` that names the field that is wrong."""
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        raise _explained(error) from None


def _explained(error: ValidationError) -> ApiError:
    found = error.errors(include_url=False, include_input=False)
    # A part of an unknown type has no fields that are known; of a union the alternative counts that went furthest.
    first = next(
        (one for one in found if one["loc"][-1:] == ("type",) or "tag" in one["type"]),
        next((one for one in found if one["type"] == "extra_forbidden"), max(found, key=lambda one: len(one["loc"]))),
    )
    if first["type"] == "json_invalid":
        return ApiError(400, "invalid_request", f"the body is no valid JSON: {first['ctx']['error']}")
    where = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or _FIELD.fullmatch(part))
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "is not supported by this server"
    elif first["type"] == "missing":
        message = "is missing"
    return ApiError(400, "invalid_request", f"{where or 'the body'}: {message}", param=where or None)
