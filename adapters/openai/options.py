"""What is chosen about an endpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, TypedDict

from pydantic import BaseModel, ConfigDict, Field, field_validator


class OpenAIKeywords(TypedDict, total=False):
    """The fields of :class:`OpenAIOptions` as keyword arguments: what ``**options`` of a model takes."""

    api: Literal["auto", "chat", "completions"]
    prefill: Literal["auto", "always", "never", "whole"]
    sampling: Literal["request", "server"]
    deadline_seconds: float
    connect_timeout_seconds: float
    first_token_timeout_seconds: float | None
    read_timeout_seconds: float
    max_retries: int
    breaker_failures: int
    breaker_seconds: float
    probe: Literal["beside", "first"]
    n_ctx: int | None
    api_key_env: str
    allow_http: bool
    extra_body: Mapping[str, Any] | str
    prices: Mapping[str, Any] | str | None


class OpenAIOptions(BaseModel):
    """How an endpoint is asked. The key is named by its environment variable and never written down."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    api: Literal["auto", "chat", "completions"] = Field(
        default="auto", description="auto: chat for messages, completions for raw prompts"
    )
    prefill: Literal["auto", "always", "never", "whole"] = Field(
        default="auto",
        description="send a partial answer to be continued; auto: where a probe shows that it works; "
        "never: tell it to go on; whole: ask for whole answers only",
    )
    probe: Literal["beside", "first"] = Field(
        default="beside",
        description="find out what the endpoint can do beside the fast model's writing, which goes on alone meanwhile; "
        "first: let the first call wait for it",
    )
    sampling: Literal["request", "server"] = Field(
        default="request",
        description="server: send no temperature, top_p, top_k and min_p, which reasoning models refuse",
    )
    deadline_seconds: float = Field(
        default=120.0, gt=0.0, le=86_400.0, description="for a whole call, retries included"
    )
    connect_timeout_seconds: float = Field(default=10.0, gt=0.0, le=86_400.0)
    first_token_timeout_seconds: float | None = Field(
        default=None,
        gt=0.0,
        le=86_400.0,
        description="longest wait for the first token, connecting included; None: read_timeout_seconds",
    )
    read_timeout_seconds: float = Field(
        default=60.0, gt=0.0, le=86_400.0, description="longest silence of the endpoint between two tokens"
    )
    max_retries: int = Field(default=2, ge=0, le=20, description="before the first text has arrived; never after it")
    breaker_failures: int = Field(
        default=3, ge=0, le=1000, description="failures in a row after which the endpoint is left alone; 0: never"
    )
    breaker_seconds: float = Field(
        default=30.0, gt=0.0, le=86_400.0, description="how long it is left alone before it is tried again"
    )
    n_ctx: int | None = Field(
        default=None, ge=16, description="the endpoint's context, which lowers max_tokens; None: unknown"
    )
    api_key_env: str = Field(
        default="OPENAI_API_KEY", pattern=r"^\w*$", description="environment variable with the key; empty: send none"
    )
    allow_http: bool = Field(default=False, description="send the key unencrypted to another machine")
    extra_body: Mapping[str, Any] = Field(
        default_factory=dict,
        description="JSON object that goes into every request, for what only this server knows; our own fields win",
    )

    prices: str | Mapping[str, Any] | None = Field(
        default=None, description='path of a price table, or a JSON object like {"input": 1.0, "output": 5.0}'
    )

    @field_validator("prices", mode="before")
    @classmethod
    def _prices_from_json(cls, value: object) -> object:
        return json.loads(value) if isinstance(value, str) and value.lstrip().startswith("{") else value

    @property
    def first_token_seconds(self) -> float:
        return self.first_token_timeout_seconds or self.read_timeout_seconds

    @field_validator("extra_body", mode="before")
    @classmethod
    def _from_json(cls, value: object) -> object:
        return json.loads(value) if isinstance(value, str) else value
