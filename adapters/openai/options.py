"""What is chosen about an endpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, TypedDict

from pydantic import BaseModel, ConfigDict, Field, field_validator


class OpenAIKeywords(TypedDict, total=False):
    """The fields of :class:`OpenAIOptions` as keyword arguments: what ``**options`` of a model takes."""

    api: Literal["auto", "chat", "completions"]
    prefill: Literal["auto", "always", "never"]
    sampling: Literal["request", "server"]
    deadline_seconds: float
    connect_timeout_seconds: float
    read_timeout_seconds: float
    max_retries: int
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
    prefill: Literal["auto", "always", "never"] = Field(
        default="auto", description="send a partial answer to be continued; auto: where a probe shows that it works"
    )
    sampling: Literal["request", "server"] = Field(
        default="request",
        description="server: send no temperature, top_p, top_k and min_p, which reasoning models refuse",
    )
    deadline_seconds: float = Field(
        default=120.0, gt=0.0, le=86_400.0, description="for a whole call, retries included"
    )
    connect_timeout_seconds: float = Field(default=10.0, gt=0.0, le=86_400.0)
    read_timeout_seconds: float = Field(
        default=60.0, gt=0.0, le=86_400.0, description="longest silence of the endpoint"
    )
    max_retries: int = Field(default=2, ge=0, le=20, description="before the first text has arrived; never after it")
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

    @field_validator("extra_body", mode="before")
    @classmethod
    def _from_json(cls, value: object) -> object:
        return json.loads(value) if isinstance(value, str) else value
