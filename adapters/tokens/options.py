"""What is chosen about a server that takes token ids."""

from __future__ import annotations

from typing import Literal, TypedDict

from pydantic import BaseModel, ConfigDict, Field

from ..openai.options import OpenAIOptions

Api = Literal["auto", "generate", "completions", "sglang"]


class TokensKeywords(TypedDict, total=False):
    """The fields of :class:`TokensOptions` as keyword arguments: what ``**options`` of a model takes."""

    api: Api
    n_seq: int
    n_ctx: int | None
    n_params: int | None
    n_best: int
    ahead: int
    vocabulary: Literal["checked", "trusted"]
    tokenizer: str | None
    deadline_seconds: float
    connect_timeout_seconds: float
    max_retries: int
    api_key_env: str
    allow_http: bool


class TokensOptions(BaseModel):
    """How a server is asked. The key is named by its environment variable and never written down."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    api: Api = Field(
        default="auto",
        description="generate: vLLM's /inference/v1/generate; completions: its /v1/completions; sglang: SGLang's "
        "/generate; auto: the first of them that gives rows",
    )
    n_seq: int = Field(default=16, ge=1, le=4096, description="requests at a time, each a call of its own")
    n_ctx: int | None = Field(
        default=None, ge=16, description="tokens that one request can hold; None: what the server's model card says"
    )
    n_params: int | None = Field(default=None, ge=1, description="parameters, which no server tells; for reports")
    n_best: int = Field(
        default=20, ge=1, le=1024, description="best tokens of a row to ask for at most; servers allow 20 unless told"
    )
    ahead: int = Field(
        default=32, ge=0, le=4096, description="tokens that one call writes at most where a span is to be written"
    )
    vocabulary: Literal["checked", "trusted"] = Field(
        default="checked", description="checked: ids are compared with the fast model's; trusted: they are said to be"
    )
    tokenizer: str | None = Field(
        default=None,
        description="folder with the model's tokenizer files (tokenizer.json); None: the fast model's tokenizer, whose "
        "ids are compared with the server's",
    )
    deadline_seconds: float = Field(default=120.0, gt=0.0, le=86_400.0, description="for a call, retries included")
    connect_timeout_seconds: float = Field(default=10.0, gt=0.0, le=86_400.0)
    max_retries: int = Field(default=2, ge=0, le=20, description="of a call that failed")
    api_key_env: str = Field(
        default="OPENAI_API_KEY", pattern=r"^\w*$", description="environment variable with the key; empty: send none"
    )
    allow_http: bool = Field(default=False, description="send the key unencrypted to another machine")

    @property
    def connection(self) -> OpenAIOptions:
        """The same for the connection. No reply streams, so it may stay silent until its deadline."""
        return OpenAIOptions(
            deadline_seconds=self.deadline_seconds,
            connect_timeout_seconds=self.connect_timeout_seconds,
            read_timeout_seconds=self.deadline_seconds,
            max_retries=self.max_retries,
            api_key_env=self.api_key_env,
            allow_http=self.allow_http,
        )
