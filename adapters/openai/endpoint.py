"""Where an endpoint is, and the key for it."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx2
from pydantic import SecretStr

from fsgen_router.errors import ConfigurationError

from .options import OpenAIOptions

DEFAULT_URL = "https://api.openai.com/v1"

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


def read_key(endpoint: Endpoint, options: OpenAIOptions) -> SecretStr | None:
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
