"""What is asked: a prompt as each model reads it, how to answer it, and the vocabulary to answer in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ..contracts.models import Role
from ..contracts.tokenizer import Turn
from ..errors import ConfigurationError
from ..rows.reading import Mask, Warp
from ..text.drafts import show_in_messages, show_in_prompt
from .calls import Calls


class Constraint(Protocol):
    """Masks logits on both models: logit bias, grammars, JSON.

    ``mask`` is a pure function of the answer's ids so far (not to be changed), so that it survives a
    rewind.

    A constraint that knows further ahead what has to follow may have a method ``forced`` beside it, as pure, that
    gives those ids: they are placed as they are, without asking a model or a policy, and read in one chunk. One that
    can judge text from elsewhere, however it is cut into tokens, has ``accepted(answer, following)``: how many of the
    ids ``following`` may stand behind the answer.
    """

    def mask(self, answer: Sequence[int]) -> Mask | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPrompt:
    """A prompt as a slow model that gives text gets it: raw text, or messages.

    These come with variables and ``tools`` (in OpenAI's form) for their template.
    """

    prompt: str | None = None
    messages: tuple[Turn, ...] | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[Mapping[str, Any], ...] = ()

    def showing(self, draft: str) -> TextPrompt:
        """This prompt with a draft of the answer in view, for an answer that is written anew."""
        if self.messages is not None:
            return dataclasses.replace(self, messages=show_in_messages(self.messages, draft))
        return dataclasses.replace(self, prompt=show_in_prompt(self.prompt or "", draft))


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt, as each model reads it, and how to answer it.

    ``text`` is given where the slow model gives text; ``prompts`` then has the fast one's alone.
    """

    id: str = ""
    """Its name in log events."""
    prompts: Mapping[Role, Sequence[int]]
    text: TextPrompt | None = None
    show_draft: Callable[[str], Sequence[int]] | None = None
    """The slow model's prompt with a draft of the answer in view, where it reads tokens."""
    key: str
    """What random numbers are drawn for, beside the seed: a hash of the prompt."""
    max_tokens: int
    seed: int = 0
    warp: Warp = field(default_factory=Warp)
    stop: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()
    constraint: Constraint | None = None
    form: Mapping[str, Any] | None = None
    """What an endpoint is told of the form of a whole answer, as OpenAI's ``response_format``."""
    parse: Callable[[str], tuple[Any, str | None]] | None = None
    """Reads what a whole answer says, or why it says nothing."""
    calls: Calls | None = None
    """What is known of the tool calls that the answer may hold."""
    audit: bool = False
    alone: bool = False
    """The slow model's own answer: where that gives text and fails or says nothing, no other model goes on."""
    max_cached: int | None = None
    """Use no more than this of a prefix that a KV cache still holds; None: all of it."""


class Vocabulary(Protocol):
    """The part of a vocabulary that the engine needs; the same for both models where both have ids."""

    @property
    def n_vocab(self) -> int: ...

    def piece(self, token: int) -> bytes: ...

    def class_of(self, token: int) -> int: ...

    def encode_after(self, before: str, text: str) -> list[int]:
        """Ids of ``text`` where it stands behind ``before``."""

    @property
    def eog_ids(self) -> frozenset[int]: ...


def check_mask(mask: Mask | None, n_vocab: int) -> None:
    """Refuse a mask that does not fit; here, so that it fails its own request and no other of its batch."""
    if mask is None:
        return
    if not isinstance(mask, Mask):
        raise ConfigurationError(f"a constraint gave a {type(mask).__name__}", hint="a Mask, or None")
    allowed, ids, bias = mask.allowed, mask.ids, mask.bias
    if any(array is not None and not isinstance(array, np.ndarray) for array in (allowed, ids, bias)):
        raise ConfigurationError("a constraint's allowed, ids and bias have to be NumPy arrays")
    if allowed is not None and allowed.shape != (n_vocab,):
        raise ConfigurationError(f"a constraint's allowed has shape {allowed.shape}, the vocabulary ({n_vocab},)")
    if allowed is not None and allowed.dtype != bool:
        raise ConfigurationError(f"a constraint's allowed holds {allowed.dtype}", hint="bool, True where allowed")
    if ids is None or bias is None:
        return
    if ids.ndim != 1 or ids.shape != bias.shape:
        raise ConfigurationError(f"a constraint has ids of shape {ids.shape} and biases of shape {bias.shape}")
    if ids.dtype.kind not in "iu" or bias.dtype.kind not in "fiu" or np.isnan(bias).any():
        raise ConfigurationError(
            f"a constraint has ids of {ids.dtype} and biases of {bias.dtype}", hint="integers, and numbers without NaN"
        )
    if len(ids) and not (ids.min() >= 0 and ids.max() < n_vocab):
        raise ConfigurationError(
            f"a constraint biases tokens {ids.min()} to {ids.max()}, the vocabulary has 0 to {n_vocab - 1}"
        )


def forced_by(constraint: Constraint | None, answer: Sequence[int]) -> Sequence[int]:
    """The ids that a constraint knows to follow; none where it looks no further than its masks."""
    forced: Callable[[Sequence[int]], Sequence[int]] | None = getattr(constraint, "forced", None)
    return forced(answer) if callable(forced) else ()


def accepted_by(constraint: Constraint, answer: Sequence[int], following: Sequence[int]) -> int:
    """How many of the ids that follow an answer a constraint accepts: all of them, where it cannot tell."""
    accepted: Callable[[Sequence[int], Sequence[int]], int] | None = getattr(constraint, "accepted", None)
    return accepted(answer, following) if callable(accepted) else len(following)


def check_forced(tokens: Sequence[int], n_vocab: int) -> None:
    """Refuse forced tokens that are none of the vocabulary's."""
    if not all(isinstance(token, int) and 0 <= token < n_vocab for token in tokens):
        raise ConfigurationError(
            f"a constraint forces {list(tokens)[:8]}, the vocabulary has 0 to {n_vocab - 1}", hint="token ids as int"
        )
