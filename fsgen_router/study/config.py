"""What a study runs: ``study.toml``, checked before anything is loaded."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..errors import ConfigurationError
from ..evaluation import Item, Match, read_items, reference_items
from ..methods import make_method
from ..policies import make_policy
from ..reference import world
from ..support.options import checked

Name = Annotated[str, Field(min_length=1)]
Size = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSpec(_Table):
    """One of a list of models, smallest first."""

    model: Name = Field(description="a model string: backend:where")
    name: str = Field("", description="what to call it; left out: the model string")
    size: Size | None = Field(None, description="billions of parameters; left out: as the model says")
    tuned: str | None = Field(None, description="a model tuned from it, for methods that read one: its name or string")

    @property
    def label(self) -> str:
        return self.name or self.model


class PairSpec(_Table):
    """A pair: names of ``models``, or model strings."""

    fast: Name = Field(description="the model that writes")
    slow: Name = Field(description="the model that is asked")
    tuned: str | None = Field(None, description="the fast model tuned, for methods that read it")


class DatasetSpec(_Table):
    """Prompts: a file of JSON lines, or a split of the reference pair's world."""

    name: str = Field("", description="what to call it; left out: the file's or the split's name")
    file: Path | None = Field(None, description="JSON lines, as eval --prompts takes them")
    split: str | None = Field(None, description=f"of the reference world: {', '.join(world.SPLITS)}")
    match: Match = Field("answer", description="when an answer is right")
    prompt_key: str = Field("prompt", description="the field that holds the prompt")
    answer_key: str = Field("answer", description="the field that holds the expected answer")
    chat: bool = Field(False, description="send prompts as a user's message, in each model's own template")
    instruction: str = Field("", description="text behind every prompt")
    n: int | None = Field(None, ge=2, description="prompts; left out: the study's")
    max_tokens: int | None = Field(None, ge=1, description="tokens of an answer at most; left out: the study's")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.file is None) == (self.split is None):
            raise ValueError("a data set has either a file or a split")
        if self.split is not None and self.split not in world.SPLITS:
            raise ValueError(f"unknown split {self.split!r}; available: {', '.join(world.SPLITS)}")
        return self

    @property
    def label(self) -> str:
        return self.name or (self.file.stem if self.file is not None else f"world-{self.split}")

    def items(self, n: int, seed: int) -> list[Item]:
        """``n`` prompts; other ones for each seed, as far as there are so many.

        Raises :class:`InvalidRequest` where the file is wrong.
        """
        if self.file is None:
            (split,) = (name for name in world.SPLITS if name == self.split)
            return reference_items(split, n, seed * n)
        found = read_items(self.file, match=self.match, answers=False, convert=self._converted)
        order = np.random.default_rng(seed).permutation(len(found))[:n] if len(found) > n else np.arange(len(found))
        return [found[number] for number in np.sort(order)]

    def _converted(self, record: dict[str, Any]) -> dict[str, Any]:
        """A line of the file as :func:`read_items` knows it."""
        if self.prompt_key != "prompt" or self.answer_key != "answer":
            keys = {self.prompt_key: "prompt", self.answer_key: "answer"}
            record = {keys[key]: value for key, value in record.items() if key in keys}
        prompt = record.get("prompt")
        if not isinstance(prompt, str):
            return record
        prompt += self.instruction
        if self.chat:
            return {k: v for k, v in record.items() if k != "prompt"} | {
                "messages": [{"role": "user", "content": prompt}]
            }
        return record | {"prompt": prompt}


class StudyConfig(_Table):
    """Pairs x methods x data sets x seeds. Answers are greedy: a sampled token differs from the best one by chance."""

    name: str = Field("study", description="a title")
    models: tuple[ModelSpec, ...] = Field((), description="models, smallest first; without pairs: all pairs of them")
    pairs: tuple[PairSpec, ...] = ()
    methods: tuple[Name, ...] = Field(("replace",), min_length=1, description="short forms of methods")
    policies: tuple[Name, ...] = Field((), description="short forms of policies to set beside token routing")
    datasets: tuple[DatasetSpec, ...] = Field(min_length=1)
    n: int = Field(200, ge=2, description="prompts of each data set")
    max_tokens: int = Field(256, ge=1, description="tokens of an answer at most")
    stop: tuple[str, ...] = Field((), description="end answers before any of these")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0,), min_length=1, description="which prompts are drawn")
    concurrency: int = Field(
        8, ge=1, le=256, description="prompts answered at once (a model's n_seq, unless it is given)"
    )
    min_tokens: int = Field(200, ge=1, description="fewer tokens than these give no rate")
    first_tokens: int = Field(10, ge=1, description="how many tokens of an answer are its first ones")

    def all_pairs(self) -> list[PairSpec]:
        """The pairs named, or all pairs of the models; each by labels."""
        if self.pairs:
            return list(self.pairs)
        return [
            PairSpec(fast=fast.label, slow=slow.label, tuned=fast.tuned) for fast, slow in combinations(self.models, 2)
        ]

    def model(self, label: str) -> ModelSpec:
        """A model of the list, or what a model string in a pair stands for."""
        return next((model for model in self.models if model.label == label), _just(label))


def _just(model: str) -> ModelSpec:
    return ModelSpec.model_validate({"model": model})


def read_study(path: str | Path) -> StudyConfig:
    """A study from its TOML file. Raises :class:`ConfigurationError` saying what is wrong with it."""
    try:
        text = Path(path).read_bytes().decode()
        record = tomllib.loads(text)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}", hint="check the path") from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not valid UTF-8 at byte {error.start}", hint="save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path} is not valid TOML: {error}", hint="see examples/study.toml") from None
    return make_study(record)


def make_study(record: Mapping[str, Any]) -> StudyConfig:
    """A study from its tables; :class:`ConfigurationError` names what is wrong."""
    study = checked(StudyConfig, record, error=ConfigurationError)
    for what, labels in (
        ("models", [model.label for model in study.models]),
        ("data sets", [dataset.label for dataset in study.datasets]),
        ("methods", study.methods),
        ("policies", study.policies),
        ("seeds", study.seeds),
    ):
        if repeated := [label for number, label in enumerate(labels) if label in labels[:number]]:
            raise ConfigurationError(f"two {what} are {repeated[0]!r}", hint="give each a name of its own")
    for method in study.methods:
        make_method(method)
    for policy in study.policies:
        make_policy(policy)
    if not study.pairs and len(study.models) < 2:
        raise ConfigurationError("no pairs", hint="name pairs, or at least two models, smallest first")
    return study
