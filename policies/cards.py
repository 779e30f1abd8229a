"""What is said about a learned policy: the pair it is for, how it was made, what it guarantees."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from fsgen_router.contracts.models import TokenModel
from fsgen_router.contracts.text_models import TextModel
from fsgen_router.text.vocabulary import vocabulary_hash

FORMAT = 2
"""Version of the policy file. It rises when an older version of this package could misread a file: one that reads
format 1 knows no check of prompts, and would claim the certificate for any."""

Share: TypeAlias = Annotated[float, Field(ge=0.0, le=1.0)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Pair(_Record):
    """Which two models a policy was made for, and which third one where its method reads one.

    Sizes are parameters; None where a model does not tell.
    """

    vocabulary: str = Field(description="SHA-256 of the fast model's vocabulary")
    fast: str
    slow: str
    fast_params: int | None = None
    slow_params: int | None = None
    fast_template: str | None = Field(None, description="digest of a chat template given instead of the file's own")
    slow_template: str | None = None
    tuned: str | None = None
    tuned_params: int | None = None
    tuned_template: str | None = None

    @model_serializer(mode="wrap")
    def _without_a_third(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Where there is none, the record is one that older versions read."""
        record: dict[str, Any] = dump(self)
        return record if self.tuned else {name: value for name, value in record.items() if "tuned" not in name}

    def differences(self, other: Pair) -> list[str]:
        """In words, where ``other`` differs from this; empty for the same pair."""
        found = [] if self.vocabulary == other.vocabulary else ["another vocabulary"]
        for role in ("fast", "slow", *(("tuned",) if self.tuned else ())):
            ours = getattr(self, role), getattr(self, f"{role}_params")
            theirs = getattr(other, role), getattr(other, f"{role}_params")
            if ours != theirs:
                found.append(f"{role} is {_model(*theirs)}, not {_model(*ours)}")
            if getattr(self, f"{role}_template") != getattr(other, f"{role}_template"):
                found.append(f"{role} has another chat template")
        return found


def _model(name: str | None, n_params: int | None) -> str:
    return str(name) if n_params is None else f"{name} ({n_params:,} parameters)"


def fingerprint(fast: TokenModel, slow: TokenModel | TextModel, tuned: TokenModel | None = None) -> Pair:
    """The pair that two models are, with the third that a method reads.

    The vocabulary is the fast one's, which local models share.
    """
    return Pair(
        vocabulary=vocabulary_hash(fast.tokenizer),
        fast=fast.name,
        slow=slow.name,
        fast_params=fast.n_params,
        slow_params=slow.n_params,
        fast_template=getattr(fast, "template_digest", None),
        slow_template=getattr(slow, "template_digest", None),
        tuned=None if tuned is None else tuned.name,
        tuned_params=None if tuned is None else tuned.n_params,
        tuned_template=getattr(tuned, "template_digest", None),
    )


class Guarantee(_Record):
    """With probability ``1 - delta`` over the draw of the calibration prompts, the expected ``loss`` of a
    prompt from the same source is at most ``alpha``, when the policy runs with ``threshold`` under
    ``method`` (Learn-then-Test, arXiv 2110.01052)."""

    alpha: Share
    delta: Share
    loss: str = Field(description="what is bounded, such as regret")
    threshold: float = Field(description="the score above which a token is escalated")
    n_prompts: int = Field(ge=1, description="calibration prompts")
    n_thresholds: int = Field(ge=1, description="candidates, each run on the calibration prompts")
    risk: float = Field(ge=0.0, description="mean loss on the calibration prompts")
    p_value: Share
    bound: Literal["binomial", "hoeffding_bentkus", "betting"]
    certified_rate: Share = Field(description="escalation rate on the calibration prompts")
    method: str = "replace"
    policy: str = Field(default="", description="digest of the policy that it was made for")

    @property
    def sentence(self) -> str:
        """The claim in words, everywhere: of which prompts, what, and how sure."""
        return (
            f"certified on prompts like the {self.n_prompts:,} of calibration: {self.loss} at most "
            f"{percent(self.alpha)} at confidence {percent(1 - self.delta)}"
        )


def percent(share: float) -> str:
    """A stated share as it was stated: 5%, 2.5%."""
    return f"{100 * share:.4g}%"


class CurvePoint(_Record):
    """A policy at one threshold, on ``n_prompts`` of its calibration prompts. ``risk`` is the mean of the loss that was
    to be bounded; None where the target was none about quality."""

    threshold: float
    n_prompts: int = Field(ge=1)
    escalation_rate: Share | None
    accuracy: Share
    risk: float | None = None


class Metric(_Record):
    """A figure and its 95% interval; None where undefined."""

    value: float | None
    interval: tuple[float, float] | None = None


class PolicyCard(_Record):
    """The header of a policy file."""

    format: int = FORMAT
    kind: str = "learned"
    created: str = Field(default="", description="date, ISO 8601")
    pair: Pair
    method: str = Field(default="replace", description="the method that it was calibrated with")
    label: str = Field(description="what the score predicts: disagreement, soft or divergence")
    signals: tuple[str, ...] = Field(description="features that the scorer reads")
    data_hash: str = Field(description="SHA-256 over the prompts")
    splits: dict[str, int] = Field(description="prompts in each split")
    metrics: dict[str, Metric] = Field(default_factory=dict)
    guarantee: Guarantee | None = None
    seed: int = 0
    versions: dict[str, str] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()


_LIBRARIES = ("fsgen-router", "numpy", "safetensors", "scipy", "scikit-learn", "torch")


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that had a part in a policy, where they are installed."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions
