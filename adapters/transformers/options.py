"""What is chosen when a model of transformers is loaded."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypedDict

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from fsgen_router.support.options import TemplateVariables, as_text


def _parsed(value: object) -> object:
    """A JSON string becomes what it says, so that it can stand in a model string."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


class TransformersKeywords(TypedDict, total=False):
    """The fields of :class:`TransformersOptions` as keyword arguments: what ``**options`` of a model takes."""

    n_ctx: int | None
    n_seq: int
    n_batch: int
    n_threads: int | None
    device: str
    dtype: Literal["auto", "float32", "float16", "bfloat16"]
    attn_implementation: str | None
    cuda_graphs: bool
    quantization_config: Mapping[str, Any] | str | None
    gguf_file: str | None
    chat_template: str | os.PathLike[str] | None
    chat_template_kwargs: Mapping[str, Any] | str
    trust_remote_code: bool
    allow_pickle: bool


class TransformersOptions(BaseModel):
    """How a model is loaded. The KV cache takes memory for ``n_ctx * n_seq`` tokens from the start."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_ctx: int | None = Field(
        default=None, ge=16, description="tokens per sequence; None: the model's own, at most 4096"
    )
    n_seq: int = Field(default=1, ge=1, le=256, description="sequences (concurrent requests) held at once")
    n_batch: int = Field(default=512, ge=1, le=65_536, description="tokens per forward")
    n_threads: int | None = Field(
        default=None,
        ge=1,
        description="torch's threads on the CPU, for the whole process; None: as they are set, at most our cores",
    )
    device: str = Field(
        default="auto", description="cpu, cuda, cuda:1, mps, ...; auto: CUDA where there is one, else CPU"
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        default="auto", description="of weights and KV cache; auto: as saved (from GGUF: float32)"
    )
    attn_implementation: str | None = Field(default=None, description="sdpa, eager, ...; None: transformers chooses")
    cuda_graphs: bool = Field(
        default=True, description="on CUDA, record small forwards of each shape and replay them: far fewer launches"
    )
    quantization_config: Annotated[dict[str, Any] | None, BeforeValidator(_parsed)] = Field(
        default=None, description="handed to transformers: a dict, or the same as JSON"
    )
    gguf_file: str | None = Field(
        default=None, description="the file of a folder or hub repository that holds the weights"
    )
    chat_template: Annotated[str | None, BeforeValidator(as_text)] = Field(
        default=None, min_length=1, description="a Jinja file or text; None: the model's own"
    )
    chat_template_kwargs: TemplateVariables = Field(
        default_factory=dict, description="variables for the template: a dict, or the same as JSON"
    )
    trust_remote_code: bool = Field(default=False, description="run code that comes with the model")
    allow_pickle: bool = Field(default=False, description="load weights that are no safetensors; these can run code")
