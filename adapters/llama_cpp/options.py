"""What is chosen when a GGUF model is loaded."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias, TypedDict

from llama_cpp import llama_cpp as lib
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from fsgen_router.support.options import TemplateVariables, as_text

ROPE_NUMBERS = (
    *("rope_freq_base", "rope_freq_scale"),
    *("yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow", "yarn_orig_ctx"),
)
"""What is handed to llama.cpp as it is; left out, the file decides."""


_LORA = re.compile(r"(?P<where>.+?)(?::(?P<scale>[-+]?\d*\.?\d+))?", re.DOTALL)


def _scales(value: object) -> object:
    """``a.gguf:0.5,b.gguf`` as a scale for each adapter; without one it is applied as it was trained."""
    if isinstance(value, Mapping):
        return {as_text(where): scale for where, scale in value.items()}
    text = as_text(value)
    if not isinstance(text, str):
        return value
    found = [_LORA.fullmatch(part) for part in text.split(",")]
    if None in found:
        raise ValueError("adapters are path, or path:scale, several by commas")
    return {part["where"]: float(part["scale"] or 1.0) for part in found if part}


def _listed(value: object) -> object:
    return value.split(",") if isinstance(value, str) else value


_Share: TypeAlias = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
_Scale: TypeAlias = Annotated[float, Field(allow_inf_nan=False)]
_Positive: TypeAlias = Annotated[float | None, Field(gt=0.0, allow_inf_nan=False)]


class LlamaCppKeywords(TypedDict, total=False):
    """The fields of :class:`LlamaCppOptions` as keyword arguments: what ``**options`` of a model takes."""

    n_ctx: int | None
    n_seq: int
    n_batch: int
    n_threads: int | None
    n_gpu_layers: int
    main_gpu: int | None
    split_mode: Literal["none", "layer", "row"] | None
    tensor_split: Sequence[float] | str | None
    lora: Mapping[str, float] | Mapping[Path, float] | str
    rope_scaling_type: Literal["none", "linear", "yarn", "longrope"] | None
    rope_freq_base: float | None
    rope_freq_scale: float | None
    yarn_ext_factor: float | None
    yarn_attn_factor: float | None
    yarn_beta_fast: float | None
    yarn_beta_slow: float | None
    yarn_orig_ctx: int | None
    flash_attn: bool
    type_k: Literal["f32", "f16", "q8_0"]
    type_v: Literal["f32", "f16", "q8_0"]
    mmap: bool
    chat_template: str | os.PathLike[str] | None
    chat_template_kwargs: Mapping[str, Any] | str


class LlamaCppOptions(BaseModel):
    """How a GGUF model is loaded. Memory grows with ``n_ctx * n_seq``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_ctx: int | None = Field(
        default=None, ge=16, description="tokens per sequence; None: the model's own, at most 4096"
    )
    n_seq: int = Field(default=1, ge=1, le=256, description="sequences (concurrent requests) held at once")
    n_batch: int = Field(default=512, ge=1, le=16_384, description="tokens per decode")
    n_threads: int | None = Field(
        default=None,
        ge=1,
        description="threads; None: one for small models, else the physical cores that are ours, minus one",
    )
    n_gpu_layers: int = Field(default=0, ge=-1, description="layers on the GPU; -1: all")
    main_gpu: int | None = Field(default=None, ge=0, description="the device that holds all with split_mode=none")
    split_mode: Literal["none", "layer", "row"] | None = Field(default=None, description="how devices share the model")
    tensor_split: Annotated[tuple[_Share, ...] | None, BeforeValidator(_listed)] = Field(
        default=None, description="each device's share: a list, or 0.6,0.4"
    )
    lora: Annotated[Mapping[str, _Scale], BeforeValidator(_scales)] = Field(
        default_factory=dict, description="LoRA adapters (GGUF): path, or path:scale, several by commas; or a dict"
    )
    rope_scaling_type: Literal["none", "linear", "yarn", "longrope"] | None = Field(
        default=None, description="how positions beyond training are made; None: as the file says, here and below"
    )
    rope_freq_base: _Positive = Field(default=None, description="RoPE's base frequency")
    rope_freq_scale: _Positive = Field(
        default=None, description="positions are multiplied by it: 0.5 for twice the context"
    )
    yarn_ext_factor: float | None = Field(default=None, ge=0.0, le=1.0, description="YaRN's mix with extrapolation")
    yarn_attn_factor: _Positive = Field(
        default=None, description="YaRN's factor on attention, where yarn_ext_factor is 0"
    )
    yarn_beta_fast: _Positive = Field(default=None, description="YaRN's low correction dimension")
    yarn_beta_slow: _Positive = Field(default=None, description="YaRN's high correction dimension")
    yarn_orig_ctx: int | None = Field(
        default=None, ge=1, description="YaRN's context before it was extended, in tokens"
    )
    flash_attn: bool = Field(default=False, description="flash attention; slows catch-up down on CPU")
    type_k: Literal["f32", "f16", "q8_0"] = "f16"
    type_v: Literal["f32", "f16", "q8_0"] = "f16"
    mmap: bool = True
    chat_template: Annotated[str | None, BeforeValidator(as_text)] = Field(
        default=None, min_length=1, description="a Jinja file or text; None: the model's own"
    )
    chat_template_kwargs: TemplateVariables = Field(
        default_factory=dict, description="variables for the template: a dict, or the same as JSON"
    )

    @model_validator(mode="after")
    def _devices_fit(self) -> Self:
        if self.tensor_split is not None:
            most = lib.llama_max_devices()
            if not 1 <= len(self.tensor_split) <= most or not any(self.tensor_split):
                raise ValueError(f"tensor_split is a share for each of 1 to {most} devices, and not all are 0")
            if self.split_mode == "none":
                raise ValueError("tensor_split divides a model, and split_mode=none keeps it on one device")
        return self

    @property
    def scales_rope(self) -> bool:
        return self.rope_scaling_type is not None or any(getattr(self, name) is not None for name in ROPE_NUMBERS)
