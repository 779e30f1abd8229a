"""What a server is told."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ..errors import ConfigurationError

KEYS_VARIABLE = "FSGEN_SERVE_KEYS"
"""Environment variable with the keys that clients may show, separated by white space or commas."""
LEAST_KEY = 16
"""Characters: shorter keys can be guessed from their hashes, and at the door."""
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_NAME = re.compile(r"[\x21-\x7e]{1,128}")


class ServeOptions(BaseModel):
    """Options of a server. Raises :class:`~fsgen_router.ConfigurationError` through :meth:`of`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(default="127.0.0.1", description="where it listens; elsewhere than on loopback it wants keys")
    port: int = Field(default=8000, ge=0, le=65535, description="0: any that is free")
    models: Mapping[str, str] = Field(
        default_factory=dict, description="policies by the model name that clients ask for, beside those always there"
    )
    keys: frozenset[str] = Field(default=frozenset(), description="SHA-256 digests (hex) of the keys of clients")
    no_keys: bool = Field(default=False, description="listen elsewhere than on loopback without keys")
    cors: tuple[str, ...] = Field(default=(), description="origins whose pages may ask, like https://example.org")
    max_body_bytes: int = Field(default=4 * 1024 * 1024, ge=1024, description="of a request's body")
    max_prompt_tokens: int | None = Field(default=None, ge=1, description="of the fast model's; None: its context")
    max_new_tokens: int | None = Field(
        default=None, ge=1, description="that a request may ask for, and gets where it says nothing; None: the context"
    )
    max_concurrent: int = Field(default=64, ge=1, description="requests at once per key; without keys, per server")
    max_choices: int = Field(default=8, ge=1, description="answers that one request may ask for")
    idle_seconds: float = Field(default=15.0, gt=0, description="without a token until a sign of life is sent")
    send_seconds: float = Field(default=60.0, gt=0, description="that a client may take to read what was sent")
    body_seconds: float = Field(default=60.0, gt=0, description="that a client may take to send its body")
    shutdown_seconds: int = Field(default=300, ge=0, description="that answers under way have to end in")
    log_prompts: bool = Field(default=False, description="prompts and answers in the request log")

    @field_validator("models")
    @classmethod
    def _nameable(cls, models: Mapping[str, str]) -> Mapping[str, str]:
        for name in models:
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no model name: up to 128 visible ASCII characters")
        return models

    @field_validator("keys")
    @classmethod
    def _digests(cls, keys: frozenset[str]) -> frozenset[str]:
        if not all(re.fullmatch("[0-9a-f]{64}", key) for key in keys):
            raise ValueError("keys are SHA-256 digests in hex: read_keys() makes them")
        return keys

    @field_validator("cors")
    @classmethod
    def _origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if origin != "*" and not re.fullmatch(r"https?://[^/\s]+", origin):
                raise ValueError(f"{origin!r} is no origin: like https://example.org, without a path")
        return origins

    @model_validator(mode="after")
    def _guarded(self) -> ServeOptions:
        if not self.keys and not self.no_keys and not self.loopback:
            raise ValueError(
                f"listening on {self.host} without keys: give some ({KEYS_VARIABLE} or --keys FILE), or say --no-keys"
            )
        return self

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @classmethod
    def of(cls, **options: object) -> ServeOptions:
        """Checked options; :class:`~fsgen_router.ConfigurationError` says which one is wrong."""
        try:
            return cls.model_validate(options)
        except ValueError as error:
            first = error.errors()[0] if hasattr(error, "errors") else {"loc": (), "msg": str(error)}
            where = ".".join(map(str, first["loc"]))
            message = str(first["msg"]).removeprefix("Value error, ")
            raise ConfigurationError(f"{where}: {message}" if where else message) from None


def digest(key: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def read_keys(file: Path | None = None) -> frozenset[str]:
    """Digests of the keys in ``file`` (one a line, ``#`` begins a comment) and in the environment variable
    ``FSGEN_SERVE_KEYS``. A key may stand there as ``sha256:`` and its digest in hex.

    Raises :class:`~fsgen_router.ConfigurationError`, which never repeats a key.
    """
    found = _digests_of(re.split(r"[\s,]+", os.environ.get(KEYS_VARIABLE, "")), KEYS_VARIABLE)
    if file is None:
        return found
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or type(error).__name__
        raise ConfigurationError(f"the keys in {file} cannot be read: {why}") from None
    named = _digests_of((line.partition("#")[0].strip() for line in lines), str(file))
    if not named:
        raise ConfigurationError(f"no key in {file}", hint="one a line")
    return found | named


def _digests_of(keys: Iterable[str], where: str) -> frozenset[str]:
    digests = set()
    for number, key in enumerate(filter(None, keys), 1):
        if hashed := _DIGEST.fullmatch(key):
            digests.add(hashed[1])
        elif len(key) < LEAST_KEY or not _NAME.fullmatch(key):
            raise ConfigurationError(
                f"key {number} in {where} is no key: {LEAST_KEY} to 128 visible ASCII characters",
                hint="python -c 'import secrets; print(secrets.token_urlsafe(32))' makes one",
            )
        else:
            digests.add(digest(key))
    return frozenset(digests)
