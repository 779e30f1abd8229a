"""How a policy is made: the options of a calibration, checked before hours of work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ..adapters.row_trie import LIMIT_BYTES
from ..errors import ConfigurationError
from ..support.options import checked
from .candidates import Span
from .curves import CURVE_RATES
from .fit import CALIBRATIONS, SCORERS
from .labels import LABELS, LabelName
from .target import Target


class CalibrationOptions(BaseModel):
    """How a policy is made. Answers are greedy: temperature 0."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: LabelName = Field("soft", description=f"what the score predicts: {', '.join(LABELS)}")
    scorer: str = Field("logistic", description=f"what is fitted: {', '.join(SCORERS)}")
    prior: bool = Field(False, description="add log-odds by token id")
    hidden: bool = Field(False, description="let logistic or mlp read the fast model's last hidden state too")
    probabilities: str = Field("platt", description=f"how scores become probabilities: {', '.join(CALIBRATIONS)}")
    rounds: int = Field(2, ge=0, le=10, description="on-policy rounds behind the slow model's own answers")
    rollouts: int = Field(2000, ge=0, description="budget of the label divergence, in continuations by the slow model")
    extent: int = Field(1, ge=1, description="tokens that the slow model writes at an escalation")
    span_window: int | None = Field(None, ge=1, description="also judge spans of so many drafted tokens")
    span_quantile: float = Field(0.9, ge=0.0, le=1.0, description="of a span's scores")
    method: str = Field("replace", description="what the slow model's rows do")
    compare: tuple[str, ...] = Field(
        (), description="other methods to draw the learned policy's curve with, and other scorers to draw one of"
    )
    hold: bool = Field(False, description="let the threshold follow the target rate at run time")
    curves: bool = Field(False, description="run everything that the report compares the policy to")
    curve_rates: tuple[float, ...] = Field(CURVE_RATES, min_length=1, description="nominal rates of a curve's points")
    max_tokens: int = Field(256, ge=1, description="tokens of an answer at most")
    stop: tuple[str, ...] = Field((), description="end answers before any of these")
    concurrency: int | None = Field(
        None, ge=1, description="prompts asked at once; as many as both models hold sequences, unless said"
    )
    row_memory: int = Field(
        LIMIT_BYTES, ge=0, description="bytes of rows that are kept of each model, for every run to share; 0: none"
    )
    seed: int = Field(0, ge=0, description="of the fit, of rollouts and of every interval")

    @field_validator("scorer")
    @classmethod
    def _known_scorer(cls, value: str) -> str:
        return _one_of(value, SCORERS)

    @field_validator("probabilities")
    @classmethod
    def _known_calibration(cls, value: str) -> str:
        return _one_of(value, CALIBRATIONS)

    @field_validator("curve_rates")
    @classmethod
    def _shares(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0.0 < rate < 1.0 for rate in value):
            raise ValueError("rates are between 0 and 1")
        return value

    @model_validator(mode="after")
    def _reads_hidden(self) -> Self:
        if self.hidden and self.scorer not in ("logistic", "mlp"):
            raise ValueError(f"hidden: {self.scorer} reads no hidden states, logistic and mlp do")
        return self

    @property
    def span(self) -> Span | None:
        return None if self.span_window is None else Span(self.span_window, self.span_quantile)

    @property
    def draws_curves(self) -> bool:
        """Whether curves were asked for, or a comparison, which is one."""
        return self.curves or bool(self.compare)

    @property
    def request(self) -> dict[str, Any]:
        """Options of every request."""
        return {"max_tokens": self.max_tokens, "stop": self.stop, "seed": self.seed}


def make_options(**options: Any) -> CalibrationOptions:
    """Checked options; :class:`ConfigurationError` says what exists."""
    return checked(CalibrationOptions, options, error=ConfigurationError)


def _one_of(value: str, available: Sequence[str]) -> str:
    if value not in available:
        raise ValueError(f"available: {', '.join(available)}")
    return value


def check_output(out: str | Path) -> Path:
    """The path of the policy file, checked before hours of work and not after."""
    path = Path(out)
    if path.suffix != ".safetensors":
        raise ConfigurationError(f"{path} is no policy file", hint="end it with .safetensors")
    if not path.parent.is_dir():
        raise ConfigurationError(f"there is no folder {path.parent}", hint="make it first")
    return path


def require_rate_to_hold(options: CalibrationOptions, target: Target) -> None:
    """Raise :class:`ConfigurationError` for a threshold that should follow a rate, where none is the target."""
    if options.hold and target.rate is None:
        raise ConfigurationError("hold without a target rate", hint="add --target-rate, which it follows")
