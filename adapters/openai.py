"""Models behind an OpenAI-compatible HTTP endpoint (extra ``openai``).

A :class:`~fsgen_router.contracts.text_models.TextModel` over ``/chat/completions`` and ``/completions``, streamed as
server-sent events: hosted vendors, vLLM, SGLang, llama-server, Ollama and the like. What these endpoints
have in common is little, so what one of them refuses (a parameter's name, a partial answer) is found out
at the first need and remembered.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import socket
import threading
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal, TypeVar
from urllib.parse import urljoin, urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from fsgen_router.adapters.streaming import Call, Channel, Patience, ThinkBlock, Unrepeat, late
from fsgen_router.contracts.text_models import (
    Continuation,
    ReasoningChunk,
    TextCapabilities,
    TextChunk,
    TextEnd,
    TextEvent,
    WrappedPromptWarning,
)
from fsgen_router.errors import BackendError, ConfigurationError, InvalidRequest
from fsgen_router.rows.reading import Warp
from fsgen_router.support.logs import log, warn
from fsgen_router.support.options import checked
from fsgen_router.support.waiting import Home
from fsgen_router.text.messages import require_messages, require_text

try:
    import httpx2
    import tenacity
except ImportError as error:
    raise ImportError("the openai backend needs the extra 'openai': pip install 'fsgen-router[openai]'") from error

DEFAULT_URL = "https://api.openai.com/v1"

_MAX_STOPS = 4  # more are refused by OpenAI; the caller looks for all of them itself
_MAX_EVENT_BYTES = 2**20
_MAX_BODY_BYTES = 2**23
_MAX_ERROR_BYTES = 2**14
_CHARS_PER_TOKEN = 64  # no vocabulary reaches this on average
_SPARE_CHARS = 1024
_MAX_REASONING_CHARS = 2**22  # its tokens count against max_tokens at some endpoints only
_MAX_SEED = 2**31 - 1  # what every endpoint's integer type holds

Messages = list[dict[str, Any]]
T = TypeVar("T")


class OpenAIOptions(BaseModel):
    """How an endpoint is asked. The key is named by its environment variable and never written down."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    api: Literal["auto", "chat", "completions"] = Field(
        "auto", description="auto: chat for messages, completions for raw prompts"
    )
    prefill: Literal["auto", "always", "never"] = Field(
        "auto", description="send a partial answer to be continued; auto: where a probe shows that it works"
    )
    sampling: Literal["request", "server"] = Field(
        "request", description="server: send no temperature, top_p, top_k and min_p, which reasoning models refuse"
    )
    deadline_seconds: float = Field(120.0, gt=0.0, le=86_400.0, description="for a whole call, retries included")
    connect_timeout_seconds: float = Field(10.0, gt=0.0, le=86_400.0)
    read_timeout_seconds: float = Field(60.0, gt=0.0, le=86_400.0, description="longest silence of the endpoint")
    max_retries: int = Field(2, ge=0, le=20, description="before the first text has arrived; never after it")
    n_ctx: int | None = Field(None, ge=16, description="the endpoint's context, which lowers max_tokens; None: unknown")
    api_key_env: str = Field(
        "OPENAI_API_KEY", pattern=r"^\w*$", description="environment variable with the key; empty: send none"
    )
    allow_http: bool = Field(False, description="send the key unencrypted to another machine")
    extra_body: Mapping[str, Any] = Field(
        default_factory=dict,
        description="JSON object that goes into every request, for what only this server knows; our own fields win",
    )

    @field_validator("extra_body", mode="before")
    @classmethod
    def _from_json(cls, value: object) -> object:
        return json.loads(value) if isinstance(value, str) else value


# --- where the endpoint is -----------------------------------------------------------------------

_WHERE = re.compile(r"(?P<model>.+)@(?P<url>https?://.*)", re.DOTALL)
_MEANT_AS_URL = re.compile(r"@(\w*:?//.*|[\w.-]+:\d+(/.*)?|[^@]*/v\d+/?|localhost|[\d.]+)$", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A model and the base URL (up to ``/v1``, no slash behind it) that serves it."""

    model: str
    url: str
    encrypted: bool
    loopback: bool

    @property
    def name(self) -> str:
        return f"{self.model}@{urlsplit(self.url).netloc}"


def parse_endpoint(where: str) -> Endpoint:
    """``model@https://host/v1``, or ``model`` alone for ``OPENAI_BASE_URL`` or OpenAI itself.

    A model's name may hold ``/``, ``:`` and ``@``. Raises :class:`ConfigurationError`.
    """
    found = _WHERE.fullmatch(where)
    model, url = (found["model"], found["url"]) if found else (where, os.environ.get("OPENAI_BASE_URL") or DEFAULT_URL)
    example = "write openai:model-name@https://host/v1"
    if not model.strip() or model.startswith("@") or not model.isprintable():
        raise ConfigurationError(f"{model!r} is no name of a model", hint=example)
    if not found and _MEANT_AS_URL.search(where):
        # Not to be taken for a name: it would send prompts and the key to OpenAI.
        raise ConfigurationError(f"{where!r} ends in an address without http:// or https://", hint=example)
    if not url.isprintable():
        raise ConfigurationError(f"the URL of {model!r} holds characters that no URL has", hint=example)
    try:
        parts = urlsplit(url.rstrip("/"))
        host, _, _ = parts.hostname, parts.port, httpx2.URL(url)
    except (ValueError, httpx2.InvalidURL) as error:
        raise ConfigurationError(f"the URL of {model!r} is none: {error}", hint=example) from None
    if "@" in parts.netloc:
        raise ConfigurationError(
            f"the URL of {model!r} holds a user name or a password", hint="put the key into an environment variable"
        )
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise ConfigurationError(f"{url!r} is no base URL of an endpoint", hint=example)
    if parts.path.endswith("/completions"):
        raise ConfigurationError(f"{url!r} is not a base URL", hint="leave out /chat/completions or /completions")
    return Endpoint(model, parts.geturl(), parts.scheme == "https", _is_loopback(host))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _read_key(endpoint: Endpoint, options: OpenAIOptions) -> SecretStr | None:
    name = options.api_key_env
    key = os.environ.get(name, "").strip() if name else ""
    if not key:
        if endpoint.url.startswith(DEFAULT_URL) or (name and name != OpenAIOptions.model_fields["api_key_env"].default):
            raise ConfigurationError(
                f"{endpoint.name} needs a key, and " + (f"{name} is not set" if name else "api_key_env is empty"),
                hint="put it into an environment variable, and that one's name into api_key_env",
            )
        return None
    # A header takes no other characters, and the library's own error would quote it.
    if not (key.isascii() and key.isprintable()):
        raise ConfigurationError(f"the key in {name} holds characters that no key has", hint="set it again")
    if not (endpoint.encrypted or endpoint.loopback or options.allow_http):
        raise ConfigurationError(
            f"{endpoint.name} is asked over http, which would show the key in {name} to everyone in between",
            hint="use https, or api_key_env= to send no key, or allow_http=true in a network that you trust",
        )
    return SecretStr(key)


# --- what goes wrong -----------------------------------------------------------------------------


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


def _is_retryable(error: BaseException) -> bool:
    return isinstance(error, EndpointError) and error.retryable


_JITTER = tenacity.wait_random_exponential(multiplier=0.5, max=8.0)


def _wait_seconds(state: tenacity.RetryCallState) -> float:
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
def _mapped(name: str, options: OpenAIOptions) -> Iterator[None]:
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
        raise EndpointError(f"{name} sent no usable event stream: {error}", hint=_NOT_AN_API) from None
    except (httpx2.NetworkError, httpx2.RemoteProtocolError) as error:
        raise EndpointError(f"the connection to {name} broke: {error}", retryable=True) from None
    except (httpx2.HTTPError, httpx2.InvalidURL, RuntimeError) as error:  # RuntimeError: shut down meanwhile
        raise EndpointError(f"the request to {name} failed: {type(error).__name__}: {error}") from None


_NOT_AN_API = "does the URL point at an OpenAI-compatible API (it mostly ends in /v1)?"


def _close(client: httpx2.Client, home: Home) -> None:
    if not home.forked:  # in a child they are the parent's connections
        client.close()


def _cut(response: httpx2.Response) -> None:
    """End the connection under whoever reads from it, in another thread."""
    connection = response.extensions["network_stream"].get_extra_info("socket")
    if isinstance(connection, socket.socket):
        with suppress(OSError):  # it has ended by itself
            # Not SSLSocket's own, which also takes the state away that the reader is using.
            socket.socket.shutdown(connection, socket.SHUT_RDWR)


# --- what an endpoint sends ----------------------------------------------------------------------


# DeepSeek's, vLLM's older and SGLang's; vLLM's newer, Ollama's, OpenRouter's and Groq's; those of proxies.
_REASONING = ("reasoning_content", "reasoning", "thinking", "reasoning_text")


class _Delta(BaseModel):
    content: str | None = None
    refusal: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    thinking: Any = None
    reasoning_text: Any = None

    @model_validator(mode="before")
    @classmethod
    def _from_parts(cls, value: object) -> object:
        """Content in parts (Mistral's reasoning models) as text and reasoning."""
        parts = value.get("content") if isinstance(value, dict) else None
        if not isinstance(parts, list):
            return value
        told = {"content": _text_of(parts, "text"), "reasoning": _text_of(parts, "thinking")}
        return {**value, **told} if isinstance(value, dict) else value


def _text_of(parts: object, kind: str) -> str:
    """The text of the parts of one kind, which may hold parts themselves."""
    if not isinstance(parts, list):
        return parts if isinstance(parts, str) else ""
    inner = (
        part[kind] for part in parts if isinstance(part, dict) and part.get("type", "text") == kind and kind in part
    )
    return "".join(_text_of(item, "text") for item in inner)


class _Choice(BaseModel):
    delta: _Delta | None = None
    message: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None

    @property
    def _parts(self) -> dict[str, _Delta]:
        """``message`` belongs to replies that are not streamed; after a stream of deltas it repeats them."""
        return {name: part for name in ("delta", "message") if (part := getattr(self, name)) is not None}

    @property
    def words(self) -> dict[str, str]:
        """What is said, by the place where it stands."""
        return {name: part.content or "" for name, part in self._parts.items()} | {"text": self.text or ""}

    @property
    def reasoning(self) -> dict[str, str]:
        """What is thought, by the place where it stands."""
        return {
            f"{name}.{field}": text
            for name, part in self._parts.items()
            for field in _REASONING
            if isinstance(text := getattr(part, field), str)
        }

    @property
    def refusal(self) -> dict[str, str]:
        return {name: part.refusal for name, part in self._parts.items() if isinstance(part.refusal, str)}


class _Reply(BaseModel):
    """A chunk of a stream, or a whole reply; all that is not read of it is let through."""

    choices: list[_Choice] | None = None
    usage: Any = None
    error: Any = None
    object: Any = None
    message: Any = None

    @property
    def failure(self) -> object:
        """What the endpoint says went wrong, if this is such a message."""
        return self.error or (self.message or self.object if self.object == "error" else None)


_FINISH: dict[str, Literal["stop", "length"]] = {
    "stop": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "end_turn": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "max_tokens": "length",
    "model_length": "length",
}


_UNFINISHED = {
    "content_filter": "the endpoint's filter stopped it",
    "tool_calls": "it wants to call a tool, and none was offered",
    "function_call": "it wants to call a function, and none was offered",
}


def _count(usage: object, *path: str) -> int | None:
    for name in path:
        usage = usage.get(name) if isinstance(usage, dict) else None
    return usage if isinstance(usage, int) and not isinstance(usage, bool) and usage >= 0 else None


def _text_end(reason: Literal["stop", "length"], usage: object) -> TextEnd:
    prompt, written = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    cached = _first_count(usage, ("prompt_tokens_details", "cached_tokens"), ("prompt_cache_hit_tokens",))
    thought = _first_count(usage, ("completion_tokens_details", "reasoning_tokens"), ("reasoning_tokens",))
    if prompt is not None and written is not None:
        # Some vendors leave reasoning out of what was written, and count it in the total alone.
        beyond = (_count(usage, "total_tokens") or 0) - prompt - written
        if beyond > 0 and beyond == (thought or (0 if beyond == cached else beyond)):
            written, thought = written + beyond, beyond
        elif thought is not None and thought > written:
            written += thought
    return TextEnd(reason, prompt, cached, written, thought)


def _first_count(usage: object, *paths: tuple[str, ...]) -> int | None:
    return next((count for path in paths if (count := _count(usage, *path)) is not None), None)


def _message_in(body: str) -> tuple[str, object, object]:
    """The sentence, the code and the parameter in the body of an error, whichever dialect it is in."""
    try:
        reply = json.loads(body)
    except (ValueError, RecursionError):
        return body, None, None
    inner = reply.get("error") or reply.get("detail") or reply if isinstance(reply, dict) else reply
    if not isinstance(inner, dict):
        return inner if isinstance(inner, str) else json.dumps(inner), None, None
    return str(inner.get("message") or json.dumps(inner)), inner.get("code"), inner.get("param")


# --- how a partial answer is sent ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Dialect:
    """A way to ask for the continuation of the last message: fields beside its content, and in the body."""

    name: str
    message: Mapping[str, Any]
    body: Mapping[str, Any]


_NO_OTHER = {"add_generation_prompt": False}
DIALECTS = (
    # Endpoints either take these (vLLM, SGLang, llama-server, DeepSeek's beta), ignore or refuse them all.
    Dialect("flags", {"prefix": True}, {"continue_final_message": True, **_NO_OTHER}),
    Dialect("last_message", {}, {}),
    Dialect("prefix", {"prefix": True}, {}),  # Mistral, which refuses the flags and an unmarked last message
)
_PROBE = {"role": "user", "content": "Write the letter a."}
_PARTIAL = {"role": "assistant", "content": "a"}
_BLOCK = "<think>\n\n</think>\n\n"
_RAW_TOKENS = 2  # that begin and end a text; a chat template adds more
_CONTINUE = (
    "Your last message was cut off. Continue it exactly where it stops, as if you had never stopped: write only what "
    "comes next, with a space first if a new word begins. Repeat nothing of it, and add no introduction or comment."
)


# --- the model -----------------------------------------------------------------------------------


class OpenAIModel:
    """A :class:`~fsgen_router.contracts.text_models.TextModel` behind an OpenAI-compatible endpoint.

    ``where`` is ``model-name@https://host/v1``; ``options`` are :class:`OpenAIOptions`. Nothing is asked of
    the endpoint before the first :meth:`stream`. Raises :class:`ConfigurationError` for what cannot work.
    """

    n_params = None

    def __init__(self, where: str, /, **options: Any) -> None:
        self.options = checked(OpenAIOptions, options, error=ConfigurationError)
        self._endpoint = parse_endpoint(where)
        self._key = _read_key(self._endpoint, self.options)
        headers = {"Accept-Encoding": "identity", "Accept": "text/event-stream, application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key.get_secret_value()}"
        self._client = httpx2.Client(
            headers=headers,
            follow_redirects=False,  # the key goes to the host that was named and to no other
            limits=httpx2.Limits(max_keepalive_connections=16),
            trust_env=not self._endpoint.loopback,
        )
        self._home = Home()
        weakref.finalize(self, _close, self._client, self._home)  # for a model that is dropped without shutdown()
        self._closed = False
        self._calls: weakref.WeakSet[Call] = weakref.WeakSet()
        # Found out on the way, and then remembered.
        self._dropped: set[str] = set()
        self._renamed: dict[str, str] = {}
        self._probing = threading.Lock()
        self._probed = False
        self._dialect: Dialect | None = None
        self._wrapping: bool | None = None
        self._probes_streamed: bool | None = None

    def __repr__(self) -> str:
        return f"OpenAIModel({self.name!r})"

    @property
    def name(self) -> str:
        return self._endpoint.name

    @property
    def n_ctx(self) -> int | None:
        return self.options.n_ctx

    @property
    def capabilities(self) -> TextCapabilities:
        """``prefill`` of messages and ``raw`` prompts: None until a first partial answer of the kind is sent."""
        if self.options.api == "completions":
            return TextCapabilities(prefill=True, raw=True)
        prefill = {"always": True, "never": False}.get(self.options.prefill)
        if prefill is None and self._probed:
            prefill = self._dialect is not None
        return TextCapabilities(prefill=prefill, raw=None if self._wrapping is None else not self._wrapping)

    def count_tokens(self, text: str) -> int:
        """An estimate, a quarter of the bytes: endpoints share no way to count."""
        return -(-len(text.encode()) // 4)

    def shutdown(self) -> None:
        """Close connections; whoever still reads a stream gets a :class:`BackendError`."""
        if self._home.left:
            return
        self._closed = True
        for call in list(self._calls):
            call.close(BackendError(f"{self.name} was shut down"))
        self._client.close()

    def stream(self, request: Continuation) -> Call:
        """The continuation of ``request``; it is under way when this returns.

        Raises :class:`InvalidRequest` or :class:`ConfigurationError` here for what is known to be wrong,
        and :class:`BackendError` from the iteration for what the endpoint does.
        """
        self._home.require(self.name)
        if self._closed:
            raise BackendError(f"{self.name} was shut down")
        if (request.prompt is None) == (request.messages is None) or request.max_tokens < 1:
            raise InvalidRequest("a continuation has a prompt or messages, and at least one token to write")
        kind = "chat" if request.prompt is None else "completions"
        if request.messages is None:
            require_text(request.prompt)
        else:
            require_messages(request.messages)
        if self.options.api not in ("auto", kind):
            raise ConfigurationError(
                f"{self.name} is used with api={self.options.api}, which takes no "
                + ("messages" if kind == "chat" else "raw prompts"),
                hint=f"use {'complete' if kind == 'chat' else 'chat'}(), or leave out api",
            )
        call = Call(lambda patience: self._continue(request, patience), self.options.deadline_seconds, self.name)
        self._calls.add(call)
        return call

    # --- requests ---

    def _continue(self, request: Continuation, patience: Patience) -> Generator[TextEvent]:
        body = self._fields(request) | {"stream": True, "stream_options": {"include_usage": True}}
        body |= self._limits(request)
        unrepeat = Unrepeat("")
        think: ThinkBlock | None = None
        if request.prompt is not None and not self._wraps(request, patience):
            path = "/completions"
            body["prompt"] = f"{request.prompt}{request.answer}"
        else:
            path = "/chat/completions"
            if request.chat_template_kwargs:
                own = body.get("chat_template_kwargs") or {}
                body["chat_template_kwargs"] = {**own, **request.chat_template_kwargs}
            messages: Messages = [dict(message) for message in request.messages or _as_messages(request.prompt)]
            continues = False
            if request.answer.strip():
                dialect = self._find_dialect(request, patience)
                unrepeat, continues = _add_answer(messages, body, request.answer, dialect), dialect is not None
            elif request.answer:
                unrepeat = Unrepeat(request.answer, minimum=1)  # white space alone is no message
            body["messages"] = messages
            # Where the last message goes on, no block of reasoning can begin: such tags are a part of its text.
            think = None if continues else ThinkBlock()
        with closing(self._ask(path, body, patience, lambda reply: self._read(reply, request.max_tokens))) as events:
            for event in events:
                if patience.ended:
                    raise late(self.name)
                for part in (event,) if think is None else think.push(event):
                    yield from _unrepeated(part, unrepeat)

    def _fields(self, request: Continuation) -> dict[str, Any]:
        """What a request and the probes for it say alike."""
        return {**self.options.extra_body, **self._sampling(request.warp, request.seed)}

    def _limits(self, request: Continuation) -> dict[str, Any]:
        max_tokens = request.max_tokens
        if self.options.n_ctx is not None:
            texts = [request.prompt or "", request.answer, *(m["content"] for m in request.messages or ())]
            max_tokens = max(min(max_tokens, self.options.n_ctx - sum(map(self.count_tokens, texts))), 1)
        stops = list(dict.fromkeys(request.stop))[:_MAX_STOPS]
        return {"max_tokens": max_tokens, **({"stop": stops} if stops else {})}

    def _sampling(self, warp: Warp, seed: int | None) -> dict[str, Any]:
        if warp.greedy:
            return {} if self.options.sampling == "server" else {"temperature": 0.0}
        fields: dict[str, Any] = {} if seed is None else {"seed": seed & _MAX_SEED}
        if self.options.sampling == "server":
            return fields
        # top_p is said even where it changes nothing, because endpoints have defaults of their own.
        fields |= {"temperature": warp.temperature, "top_p": warp.top_p}
        # These are not OpenAI's, and refused there: only where they were asked for. Else the endpoint's defaults hold.
        beyond = {"top_k": warp.top_k, "min_p": warp.min_p}
        return fields | {name: value for name, value in beyond.items() if value}

    def _ask(
        self, path: str, body: Mapping[str, Any], patience: Patience, read: Callable[[httpx2.Response], Iterator[T]]
    ) -> Generator[T]:
        """Send a request until its first item has come, at most as often as allowed; then the rest of it."""

        def start() -> tuple[T, Generator[T]]:
            while True:
                sent = self._adapted(body)
                items = self._send(path, sent, patience, read)
                try:
                    return next(items), items
                except EndpointError as error:
                    if not self._adapt(error, sent):
                        raise

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_is_retryable),
            stop=tenacity.stop_any(
                tenacity.stop_after_attempt(self.options.max_retries + 1),
                tenacity.stop_before_delay(patience.left),
            ),
            wait=_wait_seconds,
            sleep=tenacity.sleep_using_event(patience.closed),
            before_sleep=self._log_retry,
            reraise=True,
        )
        first, rest = retrying(start)
        with closing(rest):
            yield first
            yield from rest

    def _send(
        self, path: str, body: Mapping[str, Any], patience: Patience, read: Callable[[httpx2.Response], Iterator[T]]
    ) -> Generator[T]:
        if patience.ended:
            raise late(self.name)
        # Beyond the deadline by a little, so that it is the deadline that is reported.
        options, left = self.options, patience.left + 1.0
        timeout = httpx2.Timeout(
            min(options.read_timeout_seconds, left), connect=min(options.connect_timeout_seconds, left)
        )
        url, sent = self._endpoint.url + path, {"model": self._endpoint.model, **body}
        with (
            _mapped(self.name, options),
            self._client.stream("POST", url, json=sent, timeout=timeout) as response,
        ):
            if response.status_code != 200:
                raise self._refusal(response, path)
            with patience.cutting(lambda: _cut(response)):
                yield from read(response)

    def _adapted(self, body: Mapping[str, Any]) -> dict[str, Any]:
        return {self._renamed.get(name, name): value for name, value in body.items() if name not in self._dropped}

    def _adapt(self, error: EndpointError, sent: Mapping[str, Any]) -> bool:
        """Do without what an endpoint refuses, where that changes no text; whether a new try is worth it."""
        if "max_tokens" in sent and error.names("max_completion_tokens"):
            self._renamed["max_tokens"] = "max_completion_tokens"
            log.info("endpoint_parameter", model=self.name, parameter="max_tokens", now="max_completion_tokens")
            return True
        for name in ("stream_options", "seed"):
            if name in sent and error.names(name):
                self._dropped.add(name)
                log.warning("endpoint_parameter", model=self.name, parameter=name, now=None)
                return True
        return False

    def _log_retry(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        log.warning(
            "endpoint_retry",
            model=self.name,
            attempt=state.attempt_number,
            status=getattr(error, "status", None),
            wait_seconds=round(state.upcoming_sleep, 3),
        )

    # --- replies ---

    def _read(self, response: httpx2.Response, max_tokens: int) -> Generator[TextEvent]:
        """Chunks and the end of them, out of an event stream or (some know no streams) a whole reply."""
        finish: str | None = None
        usage: object = None
        room, spare = max_tokens * _CHARS_PER_TOKEN + _SPARE_CHARS, _MAX_REASONING_CHARS
        words, reasoning, refusal = Channel(), Channel(), Channel()
        said, refused = False, ""
        replies = self._replies(response)
        while True:
            try:
                reply = next(replies, None)
            except (EndpointError, httpx2.HTTPError):
                if finish is None:
                    raise
                reply = None  # it broke off after it had ended
            if reply is None:
                break
            usage = reply.usage or usage
            for choice in (reply.choices or ())[:1]:
                finish, last = choice.finish_reason or finish, bool(choice.finish_reason)
                thought, text = reasoning.push(choice.reasoning, last=last), words.push(choice.words, last=last)
                refused += refusal.push(choice.refusal, last=last)
                room, spare = room - len(text), spare - len(thought)
                if room < 0 or spare < 0:
                    raise EndpointError(
                        f"{self.name} writes on beyond max_tokens={max_tokens}", hint="the endpoint ignores the limit"
                    )
                said = said or bool(text.strip())
                if thought:
                    yield ReasoningChunk(thought)
                if text:
                    yield TextChunk(text)
        if thought := reasoning.flush():
            yield ReasoningChunk(thought)
        if text := words.flush():
            yield TextChunk(text)
        refused += refusal.flush()
        if refused and not (said or text):
            raise EndpointError(f"{self.name} refuses to answer: {self._quoted(refused)}")
        yield self._end(finish, usage)
        next(replies, None)  # what closes the stream, so that the connection can be used again

    def _end(self, finish: str | None, usage: object) -> TextEnd:
        if finish is None:
            raise EndpointError(
                f"{self.name} broke off in the middle of an answer",
                hint="it sent no finish_reason: was it stopped, or busy with another request?",
                retryable=True,
            )
        if finish.lower() not in _FINISH:
            raise EndpointError(f"{self.name} ended its answer with {finish!r:.80}", hint=_UNFINISHED.get(finish))
        return _text_end(_FINISH[finish.lower()], usage)

    def _replies(self, response: httpx2.Response) -> Generator[_Reply | None]:
        """Parsed messages; None at ``[DONE]``."""
        if _kind(response) == "application/json":
            yield self._parse(self._body(response, _MAX_BODY_BYTES))
            return
        response.encoding = "utf-8"  # as event streams are, whatever the header says
        for event in httpx2.EventSource(response, max_event_size=_MAX_EVENT_BYTES):
            if event.data.strip() == "[DONE]":
                yield None
            elif event.event == "error":
                raise self._failure(_message_in(event.data)[0])
            elif event.data:
                yield self._parse(event.data)

    def _parse(self, data: str) -> _Reply:
        try:
            reply = _Reply.model_validate(json.loads(data))
        except (ValueError, RecursionError) as error:
            what = "no JSON"
            if isinstance(error, ValidationError):
                what = f"a wrong {'.'.join(map(str, error.errors()[0]['loc'])) or 'reply'}"
            raise EndpointError(f"{self.name} sent {what}: {self._quoted(data)}", hint=_NOT_AN_API) from None
        if reply.failure:
            failure = reply.failure
            raise self._failure(_message_in(failure if isinstance(failure, str) else json.dumps(failure))[0])
        return reply

    def _failure(self, message: str) -> EndpointError:
        return EndpointError(f"{self.name} failed: {self._quoted(message)}", retryable=True)

    def _body(self, response: httpx2.Response, limit: int) -> str:
        """At most ``limit`` bytes of it."""
        data = bytearray()
        for piece in response.iter_bytes():
            data += piece
            if len(data) > limit:
                break
        return data[:limit].decode("utf-8", "replace")

    def _quoted(self, text: str) -> str:
        """What an endpoint said, on one line, short, and without the key that it may have repeated."""
        if self._key is not None:
            text = text.replace(self._key.get_secret_value(), "***")
        line = "".join(char if char.isprintable() else "\ufffd" for char in " ".join(text.split()))
        return line if len(line) <= 300 else f"{line[:300]}..."

    def _refusal(self, response: httpx2.Response, path: str) -> EndpointError:
        status = response.status_code
        body = self._body(response, _MAX_ERROR_BYTES)
        message, code, parameter = _message_in(body)
        error = EndpointError(
            f"{self.name} answered {path} with status {status}: {self._quoted(message) or 'no reason given'}",
            status=status,
            retryable=(status in (408, 409, 429) and code != "insufficient_quota") or status >= 500,
            retry_after_seconds=_retry_after(response.headers),
            body=body,
            parameter=parameter,
        )
        error.hint = self._hint(error, path, response)
        return error

    def _hint(self, error: EndpointError, path: str, response: httpx2.Response) -> str | None:
        status = error.status or 0
        if 300 <= status < 400:
            target = urlsplit(urljoin(str(response.url), response.headers.get("location", "")))
            return f"it redirects to {target.scheme}://{target.netloc}{target.path}: name that URL if you trust it"
        if status in (401, 403):
            variable = self.options.api_key_env or "OPENAI_API_KEY"
            return f"is the key in {variable} right?" if self._key else f"no key was sent: set {variable}"
        if status in (404, 405, 501):
            if path == "/completions":
                return "an endpoint without /completions takes no raw prompts: use chat(); or check URL and model"
            return f"check the model's name, and the URL: {_NOT_AN_API}"
        if status == 429:
            return "too many requests, or the account is empty"
        if any(error.names(name) for name in ("temperature", "top_p", "top_k", "min_p")):
            return "sampling=server leaves sampling to the endpoint"
        return None

    # --- partial answers ---

    def _find_dialect(self, request: Continuation, patience: Patience) -> Dialect | None:
        """How this endpoint continues a partial answer; None where it has to be told to. Found out once."""
        if self.options.prefill == "never":
            return None
        with self._probing:
            if not self._probed:
                self._dialect = self._probe(request, patience)
                self._probed = True
                log.info("prefill_probed", model=self.name, dialect=self._dialect.name if self._dialect else None)
            return self._dialect

    def _probe(self, request: Continuation, patience: Patience) -> Dialect | None:
        """The first dialect that is not refused, if the endpoint's own count of tokens shows that it works.

        Tiny requests of one token each: two where it does, one more for each dialect that is refused, and a few more
        where the count leaves a doubt (see :func:`_leaves_open`).
        """

        def count(messages: Sequence[Mapping[str, Any]], extra: Mapping[str, Any]) -> int | None:
            return self._prompt_tokens("/chat/completions", {"messages": messages, **extra}, request, patience)

        bare = None
        if self.options.prefill == "auto":
            with suppress(_Refused):
                bare = count([_PROBE], {})
            if not bare:
                return None  # it does not say what it counts
        for dialect in DIALECTS:
            try:
                told = count([_PROBE, {**_PARTIAL, **dialect.message}], dialect.body)
            except _Refused:
                continue
            if bare is None:
                return dialect
            return dialect if told is not None and _leaves_open(dialect, bare, told, count) else None
        if self.options.prefill == "always":
            raise EndpointError(f"{self.name} refuses partial answers in every form", hint="leave out prefill=always")
        return None

    def _wraps(self, request: Continuation, patience: Patience) -> bool:
        """Whether this endpoint puts raw prompts into a chat template. Found out once, at the first partial answer."""
        if self.options.api == "completions" or not request.answer.strip():
            return bool(self._wrapping)
        with self._probing:
            if self._wrapping is None:
                self._wrapping = self._probe_raw(request, patience)
                log.info("completions_probed", model=self.name, wrapped=self._wrapping)
                if self._wrapping:
                    self._warn_of_wrapping()
            return self._wrapping

    def _probe_raw(self, request: Continuation, patience: Patience) -> bool:
        """By the endpoint's own count: a prompt of one word has its tokens, and those that begin and end a text."""

        def count(prompt: str) -> int:
            return self._prompt_tokens("/completions", {"prompt": prompt}, request, patience) or 0

        with suppress(_Refused):  # the real request will say why
            beside = (one := count("a")) - 1
            if beside > _RAW_TOKENS:  # or its vocabulary has no such word
                beside = one - max((count("a a a") - one) // 2, 1)
            return beside > _RAW_TOKENS
        return False

    def _warn_of_wrapping(self) -> None:
        warn(
            WrappedPromptWarning,
            f"{self.name} puts raw prompts into its chat template, and answers them where it should go on with them: "
            "they are sent as a user's message from now on. Use chat(), or api=completions to send them as they are",
            event="prompts_wrapped",
            model=self.name,
        )

    def _prompt_tokens(
        self, path: str, body: Mapping[str, Any], request: Continuation, patience: Patience
    ) -> int | None:
        """Tokens of a prompt, as the endpoint counts them; None where it does not say.

        The request is as the real one, but for one token and in one piece, where that is not refused: not all
        count in a stream. Raises :class:`_Refused`.
        """
        sent = self._fields(request) | {"max_tokens": 1, **body}
        for streamed in (False, True) if self._probes_streamed is None else (self._probes_streamed,):
            streaming = {"stream": True, "stream_options": {"include_usage": True}} if streamed else {}
            try:
                with closing(self._ask(path, sent | streaming, patience, self._usage)) as usages:
                    usage = next(usages)
            except EndpointError as error:
                if not error.bad_request:
                    raise
                continue
            self._probes_streamed = streamed
            return _count(usage, "prompt_tokens")
        raise _Refused

    def _usage(self, response: httpx2.Response) -> Iterator[object]:
        if _kind(response) != "text/event-stream":
            yield self._parse(self._body(response, _MAX_BODY_BYTES)).usage
            return
        usage = None
        for reply in self._replies(response):
            usage = (reply and reply.usage) or usage
        yield usage


class _Refused(Exception):
    """A probe's request was a bad one to the endpoint."""


def _kind(response: httpx2.Response) -> str:
    return response.headers.get("content-type", "").partition(";")[0].strip().lower()


def _leaves_open(
    dialect: Dialect,
    bare: int,
    told: int,
    count: Callable[[Sequence[Mapping[str, Any]], Mapping[str, Any]], int | None],
) -> bool:
    """Whether a partial answer was left open, which is told from counts of tokens.

    ``bare`` is the count of a user's message, ``told`` of the assistant's one word behind it. Left open, that adds the
    word, and what a template puts before an assistant's last message alone (an empty block of reasoning).
    Closed, it adds a whole message, and that, too. In doubt it is closed: nothing is lost by that but fidelity.
    """
    beside = told - bare - 1
    if beside <= 0:
        return True
    partial = [_PROBE, _PARTIAL]
    with suppress(_Refused):
        longer = count([*partial, {**_PARTIAL, **dialect.message}], dialect.body)
        whole = (longer or 0) - told - 1  # what begins and ends a message
        if whole <= 0 or beside == whole:
            return False
        if dialect.body:
            # One field leaves out the beginning of another message, the other one the end of this.
            ended, closed = count(partial, _NO_OTHER), count(partial, {})
            if ended is None or closed is None or max(ended, closed) > told:
                return ended is not None and ended > told
        return beside == (count([{**_PROBE, "content": _BLOCK + _PROBE["content"]}], {}) or 0) - bare
    return False


def _as_messages(prompt: str | None) -> Messages:
    return [{"role": "user", "content": prompt or ""}]


def _unrepeated(event: TextEvent, unrepeat: Unrepeat) -> Iterator[TextEvent]:
    if isinstance(event, ReasoningChunk):
        yield event
        return
    text = unrepeat.push(event.text) if isinstance(event, TextChunk) else unrepeat.flush()
    if text:
        yield TextChunk(text)
    if isinstance(event, TextEnd):
        yield event


def _add_answer(messages: Messages, body: dict[str, Any], answer: str, dialect: Dialect | None) -> Unrepeat:
    """Put the answer so far at the end of ``messages``; returns what takes repetitions off its continuation."""
    if dialect is None:
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": _CONTINUE}]
        return Unrepeat(answer)
    # Chat templates trim white space at the end (and some vendors refuse it): it is left out, and taken off
    # the continuation, which begins with it.
    kept = answer.rstrip()
    messages.append({"role": "assistant", "content": kept, **dialect.message})
    body |= dialect.body
    return Unrepeat(answer[len(kept) :], minimum=1)
