"""The contract of a model that gives text and not logits: an endpoint with a tokenizer of its own."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, TypeGuard

from .models import TokenModel
from .reading import GREEDY, Warp
from .tokenizer import Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class TextCapabilities:
    """What an endpoint was found to do.

    ``prefill``: it goes on with a partial answer. Where it does not, it is told what was written so
    far and asked to go on, which costs fidelity. None: not yet known, the first partial answer shows it.
    """

    prefill: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """A text to go on with: one of ``prompt`` (raw text) and ``messages``, and the ``answer`` so far.

    ``max_tokens`` counts the endpoint's own tokens.
    """

    prompt: str | None = None
    messages: tuple[Turn, ...] | None = None
    answer: str = ""
    max_tokens: int
    warp: Warp = GREEDY
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TextChunk:
    """A piece of the continuation, as it arrived."""

    text: str


@dataclass(frozen=True, slots=True)
class TextEnd:
    """The last item of a stream: why it ended, and what the endpoint says it counted (None: unsaid)."""

    finish_reason: Literal["stop", "length"]
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None


TextEvent: TypeAlias = TextChunk | TextEnd


class TextModel(Protocol):
    """A model that continues text. Calls are safe from several threads and run side by side.

    After a fork, :meth:`stream` raises :class:`~fsgen_router.errors.ForkedProcess` in the child, and
    :meth:`shutdown` does nothing.
    """

    @property
    def name(self) -> str: ...

    @property
    def n_params(self) -> int | None:
        """None where nobody knows."""

    @property
    def capabilities(self) -> TextCapabilities: ...

    def stream(self, request: Continuation) -> Generator[TextEvent, None, None]:
        """Chunks, then one :class:`TextEnd`. Closing the generator early ends the request.

        Raises :class:`~fsgen_router.errors.BackendError` where the endpoint fails, also in mid-stream.
        """

    def count_tokens(self, text: str) -> int:
        """The endpoint's tokens in ``text``; an estimate where it offers no count."""

    def shutdown(self) -> None:
        """Close connections. Closing twice is allowed."""


def reads_tokens(model: TokenModel | TextModel) -> TypeGuard[TokenModel]:
    """Whether a model gives rows of logits for tokens, and not only text."""
    return callable(getattr(model, "forward", None))
