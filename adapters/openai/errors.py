"""What goes wrong at an endpoint: its refusals and the HTTP library's exceptions as errors of this package."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urljoin, urlsplit

import httpx2
import tenacity
from pydantic import SecretStr

from fsgen_router.errors import BackendError

from .options import OpenAIOptions

NOT_AN_API = "does the URL point at an OpenAI-compatible API (it mostly ends in /v1)?"
_MAX_ERROR_BYTES = 2**14


class EndpointError(BackendError):
    """An endpoint's refusal or failure: its HTTP ``status`` if there was one, and what may follow."""

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        status: int | None = None,
        retryable: bool = False,
        retry_after_seconds: float | None = None,
        body: str = "",
        parameter: object = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.status, self.retryable, self.retry_after_seconds = status, retryable, retry_after_seconds
        self._body, self._parameter = body, parameter

    @property
    def bad_request(self) -> bool:
        return self.status in (400, 422)

    def names(self, parameter: str) -> bool:
        """Whether a parameter is what was wrong with the request."""
        if not self.bad_request:
            return False
        return self._parameter == parameter or bool(re.search(rf"(^|[\"'`.]|: ){parameter}\b", self._body))


def is_retryable(error: BaseException) -> bool:
    return isinstance(error, EndpointError) and error.retryable


_JITTER = tenacity.wait_random_exponential(multiplier=0.5, max=8.0)


def wait_seconds(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    told = error.retry_after_seconds if isinstance(error, EndpointError) else None
    return _JITTER(state) if told is None else told


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, from a header that holds seconds or a date (RFC 9110, 10.2.3)."""
    value = headers.get("retry-after", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max((date - datetime.now(UTC)).total_seconds(), 0.0)


@contextmanager
def mapped(name: str, options: OpenAIOptions) -> Iterator[None]:
    """The HTTP library's exceptions as ours."""
    try:
        yield
    except httpx2.ConnectTimeout:
        raise EndpointError(
            f"{name} could not be reached within {options.connect_timeout_seconds:g} s",
            hint="is the server up and the URL right?",
            retryable=True,
        ) from None
    except httpx2.TimeoutException:
        raise EndpointError(
            f"{name} was silent for {options.read_timeout_seconds:g} s",
            hint="raise read_timeout_seconds if it is only slow",
            retryable=True,
        ) from None
    except httpx2.ConnectError as error:
        raise EndpointError(
            f"{name} cannot be reached: {error}", hint="is the server up and the URL right?", retryable=True
        ) from None
    except httpx2.SSEError as error:
        raise EndpointError(f"{name} sent no usable event stream: {error}", hint=NOT_AN_API) from None
    except (httpx2.NetworkError, httpx2.RemoteProtocolError) as error:
        raise EndpointError(f"the connection to {name} broke: {error}", retryable=True) from None
    except (httpx2.HTTPError, httpx2.InvalidURL, RuntimeError) as error:  # RuntimeError: shut down meanwhile
        raise EndpointError(f"the request to {name} failed: {type(error).__name__}: {error}") from None


# --- what an endpoint says about it --------------------------------------------------------------


def refusal(
    response: httpx2.Response, path: str, name: str, *, key: SecretStr | None, options: OpenAIOptions
) -> EndpointError:
    """The error in a response whose status is not 200."""
    status = response.status_code
    body = body_of(response, _MAX_ERROR_BYTES)
    message, code, parameter = message_in(body)
    error = EndpointError(
        f"{name} answered {path} with status {status}: {quoted(message, key) or 'no reason given'}",
        status=status,
        retryable=(status in (408, 409, 429) and code != "insufficient_quota") or status >= 500,
        retry_after_seconds=_retry_after(response.headers),
        body=body,
        parameter=parameter,
    )
    error.hint = _hint(error, path, response, key, options)
    return error


def _hint(
    error: EndpointError, path: str, response: httpx2.Response, key: SecretStr | None, options: OpenAIOptions
) -> str | None:
    status = error.status or 0
    if 300 <= status < 400:
        target = urlsplit(urljoin(str(response.url), response.headers.get("location", "")))
        return f"it redirects to {target.scheme}://{target.netloc}{target.path}: name that URL if you trust it"
    if status in (401, 403):
        variable = options.api_key_env or "OPENAI_API_KEY"
        return f"is the key in {variable} right?" if key else f"no key was sent: set {variable}"
    if status in (404, 405, 501):
        if path == "/completions":
            return "an endpoint without /completions takes no raw prompts: use chat(); or check URL and model"
        return f"check the model's name, and the URL: {NOT_AN_API}"
    if status == 429:
        return "too many requests, or the account is empty"
    if any(error.names(name) for name in ("temperature", "top_p", "top_k", "min_p")):
        return "sampling=server leaves sampling to the endpoint"
    return None


def message_in(body: str) -> tuple[str, object, object]:
    """The sentence, the code and the parameter in the body of an error, whichever dialect it is in."""
    try:
        reply = json.loads(body)
    except (ValueError, RecursionError):
        return body, None, None
    inner = reply.get("error") or reply.get("detail") or reply if isinstance(reply, dict) else reply
    if not isinstance(inner, dict):
        return inner if isinstance(inner, str) else json.dumps(inner), None, None
    return str(inner.get("message") or json.dumps(inner)), inner.get("code"), inner.get("param")


def body_of(response: httpx2.Response, limit: int) -> str:
    """At most ``limit`` bytes of it."""
    data = bytearray()
    for piece in response.iter_bytes():
        data += piece
        if len(data) > limit:
            break
    return data[:limit].decode("utf-8", "replace")


def quoted(text: str, key: SecretStr | None) -> str:
    """What an endpoint said, on one line, short, and without the key that it may have repeated."""
    if key is not None:
        text = text.replace(key.get_secret_value(), "***")
    line = "".join(char if char.isprintable() else "\ufffd" for char in " ".join(text.split()))
    return line if len(line) <= 300 else f"{line[:300]}..."
