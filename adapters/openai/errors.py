"""What goes wrong at an endpoint: its refusals and the HTTP library's exceptions as errors of this package."""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Protocol, TypeVar
from urllib.parse import urljoin, urlsplit

import httpx2
import tenacity
from pydantic import SecretStr

from fsgen_router.contracts.text_models import TextEnd
from fsgen_router.errors import BackendError

from .options import OpenAIOptions

NOT_AN_API = "does the URL point at an OpenAI-compatible API (it mostly ends in /v1)?"
_MAX_ERROR_BYTES = 2**14

E = TypeVar("E", bound=BaseException)


class EndpointError(BackendError):
    """An endpoint's refusal or failure: its HTTP ``status`` if there was one, and what may follow.

    ``said`` is what it said about it, at the end of the message: it may repeat the prompt, so log events have what is
    ``plain``. ``retryable``: the same may work at once. ``fault``: the endpoint is to blame, not the request.
    ``end`` is what it had counted by then, if it said so.
    """

    def __init__(
        self,
        message: str,
        *,
        said: str = "",
        hint: str | None = None,
        status: int | None = None,
        retryable: bool = False,
        fault: bool | None = None,
        retry_after_seconds: float | None = None,
        body: str = "",
        parameter: object = None,
    ) -> None:
        super().__init__(f"{message}: {said}" if said else message, hint=hint)
        self.plain = message
        self.status, self.retryable, self.retry_after_seconds = status, retryable, retry_after_seconds
        self.fault = retryable if fault is None else fault
        self.end: TextEnd | None = None
        self._body, self._parameter = body, parameter

    @property
    def bad_request(self) -> bool:
        return self.status in (400, 422)

    def names(self, parameter: str) -> bool:
        """Whether a parameter is what was wrong with the request."""
        return self.bad_request and self.mentions(parameter)

    def mentions(self, parameter: str) -> bool:
        """Whether the endpoint says a parameter's name in its error: some fail with 500 over what they do not know."""
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
    if (exact := headers.get("retry-after-ms", "").strip()).isdecimal():  # OpenAI's own, beside the other
        return float(exact) / 1000
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
def mapped(name: str, options: OpenAIOptions, waiting: Waiting) -> Iterator[None]:
    """The HTTP library's exceptions as ours. ``waiting`` tells which wait one of them ended."""
    try:
        yield
    except (httpx2.HTTPError, EndpointError) as error:
        if not waiting.overdue and isinstance(error, EndpointError):
            raise
        raise with_end(_failure(error, name, options, waiting), getattr(error, "end", None)) from None
    except (httpx2.InvalidURL, RuntimeError) as error:  # RuntimeError: shut down meanwhile
        raise EndpointError(f"the request to {name} failed: {type(error).__name__}: {error}") from None


def with_end(error: E, end: TextEnd | None) -> E:
    """An error that holds what the endpoint had counted when it failed."""
    error.end = end  # type: ignore[attr-defined]
    return error


class Waiting(Protocol):
    """What is known of a wait for an endpoint."""

    @property
    def spoke(self) -> bool:
        """Whether a token has come."""

    @property
    def overdue(self) -> bool:
        """Whether it was ended because the next token did not come in time."""


def _failure(error: Exception, name: str, options: OpenAIOptions, waiting: Waiting) -> EndpointError:
    if isinstance(error, httpx2.ConnectTimeout):
        # The system has sent several packets meanwhile: another try would only take as long.
        return EndpointError(
            f"{name} could not be reached within {options.connect_timeout_seconds:g} s",
            hint="is the server up and the URL right?",
            fault=True,
        )
    if waiting.overdue or isinstance(error, httpx2.TimeoutException):
        return _silence(name, options, spoke=waiting.spoke)
    if isinstance(error, httpx2.ConnectError):
        return _unreached(error, name)
    if isinstance(error, httpx2.SSEError):
        return EndpointError(f"{name} sent no usable event stream", said=str(error), hint=NOT_AN_API, fault=True)
    if isinstance(error, httpx2.NetworkError | httpx2.RemoteProtocolError):
        return EndpointError(f"the connection to {name} broke", said=str(error), retryable=True)
    return EndpointError(f"the request to {name} failed: {type(error).__name__}: {error}")


def _silence(name: str, options: OpenAIOptions, *, spoke: bool) -> EndpointError:
    if not spoke and options.first_token_timeout_seconds is not None:
        return EndpointError(
            f"{name} gave no token for {options.first_token_seconds:g} s",
            hint="raise first_token_timeout_seconds if it is only slow",
            retryable=True,
        )
    return EndpointError(
        f"{name} was silent for {options.read_timeout_seconds:g} s",
        hint="raise read_timeout_seconds if it is only slow",
        retryable=True,
    )


def _unreached(error: httpx2.ConnectError, name: str) -> EndpointError:
    what = f"{name} cannot be reached: {error}"
    cause = _cause(error, ssl.SSLError)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return EndpointError(
            f"the certificate of {name} is not trusted: {cause.verify_message}",
            hint="is the URL right? An authority of your own is named by the environment variable SSL_CERT_FILE",
            fault=True,
        )
    if cause is not None:
        return EndpointError(what, hint="does it speak https, and not http?", fault=True)
    return EndpointError(what, hint="is the server up and the URL right?", retryable=True)


def _cause(error: BaseException | None, kind: type[E]) -> E | None:
    """The exception of a kind that an exception came of."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error


# --- what an endpoint says about it --------------------------------------------------------------


def refusal(
    response: httpx2.Response, path: str, name: str, *, key: SecretStr | None, options: OpenAIOptions
) -> EndpointError:
    """The error in a response whose status is not 200."""
    status = response.status_code
    body = body_of(response, _MAX_ERROR_BYTES)
    message, code, parameter = message_in(body)
    error = EndpointError(
        f"{name} answered {path} with status {status}",
        said=quoted(message, key) or "no reason given",
        status=status,
        retryable=(status in (408, 409, 429) and code != "insufficient_quota") or status >= 500,
        fault=status >= 500,
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
