"""What goes wrong, as a status, a kind and a sentence; each API has a shape of its own for them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias

from ..errors import (
    BackendError,
    ConfigurationError,
    FsgenError,
    InvalidRequest,
    NoFreeSequence,
    PolicyFileError,
    PromptTooLong,
    QueueFull,
    RouterClosed,
)

Kind: TypeAlias = Literal[
    "invalid_request",
    "context_length",
    "unauthorized",
    "forbidden",
    "not_found",
    "method_not_allowed",
    "timeout",
    "too_large",
    "media_type",
    "too_many_requests",
    "queue_full",
    "server",
    "unavailable",
]


MAX_MESSAGE = 2000


class ApiError(Exception):
    """A request that is not answered. ``param`` is the field of the body that is wrong."""

    def __init__(
        self,
        status: int,
        kind: Kind,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        # Some repeat what was sent.
        self.message = message if len(message) <= MAX_MESSAGE else message[: MAX_MESSAGE - 3] + "..."
        self.status, self.kind, self.param = status, kind, param
        self.headers = dict(headers or {})


# --- the shapes ----------------------------------------------------------------------------------

_OPENAI: Final[Mapping[Kind, tuple[str, str | None]]] = {
    "invalid_request": ("invalid_request_error", None),
    "context_length": ("invalid_request_error", "context_length_exceeded"),
    "unauthorized": ("invalid_request_error", "invalid_api_key"),
    "forbidden": ("invalid_request_error", "forbidden"),
    "not_found": ("invalid_request_error", "not_found"),
    "method_not_allowed": ("invalid_request_error", "method_not_allowed"),
    "timeout": ("invalid_request_error", "timeout"),
    "too_large": ("invalid_request_error", "request_too_large"),
    "media_type": ("invalid_request_error", "unsupported_media_type"),
    "too_many_requests": ("rate_limit_error", "too_many_requests"),
    "queue_full": ("rate_limit_error", "queue_full"),
    "server": ("server_error", None),
    "unavailable": ("server_error", "unavailable"),
}
_ANTHROPIC: Final[Mapping[Kind, str]] = {
    "unauthorized": "authentication_error",
    "forbidden": "permission_error",
    "not_found": "not_found_error",
    "too_large": "request_too_large",
    "too_many_requests": "rate_limit_error",
    "queue_full": "rate_limit_error",
    "server": "api_error",
    "unavailable": "overloaded_error",
}


def openai_error(error: ApiError) -> dict[str, Any]:
    """``{"error": {message, type, param, code}}``, in which the API itself has null for what there is not."""
    kind, code = _OPENAI[error.kind]
    if error.kind == "not_found" and error.param == "model":
        code = "model_not_found"
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": code}}


def anthropic_error(error: ApiError) -> dict[str, Any]:
    return {
        "type": "error",
        "error": {"type": _ANTHROPIC.get(error.kind, "invalid_request_error"), "message": error.message},
    }


# --- from the Router's errors --------------------------------------------------------------------

_UNKNOWN = re.compile(r"unknown option '(\w+)'")
_NAMED = re.compile(r"(\w+)(?:\.[\w.]+)?(?:=| names | cannot be used)")


def as_api_error(error: FsgenError, retry_after: int) -> ApiError:
    """A Router's error as a client is told it. What a model or a backend says stays in the log: it may hold prompts."""
    match error:
        case QueueFull() | NoFreeSequence():
            return ApiError(
                429, "queue_full", f"{error.message} (try again later)", headers={"Retry-After": str(retry_after)}
            )
        case PromptTooLong():
            return ApiError(400, "context_length", error.message, param="messages")
        case RouterClosed():
            return ApiError(503, "unavailable", "the server is shutting down", headers={"Retry-After": "5"})
        case InvalidRequest() | ConfigurationError():
            return _invalid(error)
        case PolicyFileError():
            return ApiError(400, "invalid_request", "no such policy", param="fsgen.policy")
        case BackendError():
            return ApiError(500, "server", "a model failed in the middle of its work")
    return ApiError(500, "server", f"the server failed ({type(error).__name__})")


def _invalid(error: FsgenError) -> ApiError:
    """With the field's name. What this server's Router does not know is refused here, and nowhere else."""
    if unknown := _UNKNOWN.match(error.message):
        return ApiError(400, "invalid_request", f"{unknown[1]} is not supported by this server", param=unknown[1])
    named = _NAMED.match(error.message)
    return ApiError(400, "invalid_request", str(error), param=None if named is None else named[1])
