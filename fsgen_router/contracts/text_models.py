"""The contract of a model that gives text and not logits: an endpoint with a tokenizer of its own."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, TypeGuard

from ..errors import BackendError
from ..rows.reading import GREEDY, Warp
from .billing import Meter
from .models import TokenModel
from .tokenizer import Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class TextCapabilities:
    """What an endpoint was found to do. None: not yet known, the first partial answer shows it.

    ``prefill``: it goes on with a partial answer. Where it does not, it is told what was written so
    far and asked to go on, which costs fidelity. ``raw``: it goes on with raw text. Where it does not, a raw
    prompt is sent as a user's message. ``usage``: it says how many tokens it counted, ``cached_tokens``: and how many
    of them its cache held. ``logprobs``: it gives those of what it writes; ``token_ids``: it takes ids for a raw
    prompt; ``verifies``: it gives log-probabilities of the prompt, by which it can judge a draft.
    """

    prefill: bool | None
    raw: bool | None = None
    usage: bool | None = None
    cached_tokens: bool | None = None
    logprobs: bool | None = None
    token_ids: bool | None = None
    verifies: bool | None = None


class WrappedPromptWarning(UserWarning):
    """An endpoint puts raw prompts into a chat template: it answers them, and does not go on with them."""


class TimeIsUp(BackendError):
    """A continuation took all the seconds that its request had for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferedTools:
    """Tools that a whole answer may call: OpenAI's ``tools``, ``tool_choice`` and ``parallel_tool_calls``.

    ``write`` puts calls (a tool's name and the JSON text of its arguments) into the text that the answer has for them.
    Raises :class:`~fsgen_router.errors.BackendError` for what is no call.
    """

    tools: tuple[Mapping[str, Any], ...]
    choice: str | Mapping[str, Any]
    parallel: bool
    write: Callable[[Sequence[tuple[str, str]]], str] = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """A text to go on with: one of ``prompt`` (raw text) and ``messages``, and the ``answer`` so far.

    ``gap`` is the white space with which a draft went on behind ``answer``: what is to be put in between where a model
    that was told in words to go on leaves it out. ``max_tokens`` counts the endpoint's own tokens;
    ``chat_template_kwargs`` are variables for its chat template. ``form`` is OpenAI's ``response_format`` for an answer
    that is written from its beginning: an endpoint that takes none leaves it out, and its text is checked all the same.
    ``offered`` are tools that such an answer may call. A stream that has not ended after ``max_seconds`` is given up
    with :class:`TimeIsUp`; what came until then stands.
    """

    prompt: str | None = None
    messages: tuple[Turn, ...] | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    answer: str = ""
    gap: str = ""
    max_tokens: int
    warp: Warp = GREEDY
    seed: int | None = None
    form: Mapping[str, Any] | None = None
    offered: OfferedTools | None = None
    max_seconds: float | None = field(default=None, compare=False)
    meter: Meter | None = field(default=None, compare=False, repr=False)
    """Takes what is billed beside this call: tries of which nothing was heard."""
    # A request's stop strings are no part of it, though an endpoint may be paid for the few tokens behind one until its
    # call is cancelled. It would take the string off and say "stop", as where the model itself came to its end: nobody
    # could tell how the answer ended, and a string at once would look like an endpoint that has nothing to say. Servers
    # also look for it in reasoning, take four at most, and do not see one that the fast model's text began.


@dataclass(frozen=True, slots=True)
class TextChunk:
    """A piece of the continuation, as it arrived.

    ``repairs`` names what was mended at the seam before it: ``repetition`` or ``restart`` (of the answer, taken off),
    ``introduction``, ``wrapping`` (quotation marks or a code fence), ``space`` (put in or taken off).
    """

    text: str
    repairs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ReasoningChunk:
    """A piece of what the model thinks before it answers: billed like text, and no part of the continuation."""

    text: str


@dataclass(frozen=True, slots=True)
class TextEnd:
    """The last item of a stream: why it ended, and what the endpoint says it counted (None: unsaid).

    ``cached_tokens`` and ``cache_write_tokens`` are parts of ``prompt_tokens``, ``reasoning_tokens`` of
    ``completion_tokens``. ``model`` is the name of who wrote, where that is one of several.
    """

    finish_reason: Literal["stop", "length"]
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    reasoning_tokens: int | None = None
    model: str | None = None
    cache_write_tokens: int | None = None


TextEvent: TypeAlias = TextChunk | ReasoningChunk | TextEnd


class TextModel(Protocol):
    """A model that continues text. Calls are safe from several threads and run side by side.

    After a fork, :meth:`stream` raises :class:`~fsgen_router.errors.ForkedProcess` in the child, and
    :meth:`shutdown` does nothing.

    A model may know ``prices`` (what its own options say) and ``vendor_prices()`` (what its vendor asks), both
    :class:`~fsgen_router.Prices` or None.

    A model that has to find out how it is asked has a method ``unready`` (see :func:`unready`), and
    ``take_probe_usage()`` with what that was billed since it was last called: a :class:`TextEnd` for each call.
    ``down`` says that an endpoint failed and is left alone for a while: it refuses at once. A stream with a method
    ``cancel`` may be ended by it from any thread, also while another one waits for its next event.
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

    def shutdown(self) -> None:
        """Close connections. Closing twice is allowed."""


def reads_tokens(model: TokenModel | TextModel) -> TypeGuard[TokenModel]:
    """Whether a model gives rows of logits for tokens, and not only text."""
    return callable(getattr(model, "forward", None))


def unready(model: TextModel, request: Continuation) -> str | None:
    """Why a model is not to be asked to go on with an answer to ``request`` now, in a few words; None: it may be.

    What the model's own ``unready(request)`` says, which never waits, and begins what it has to find out first beside
    what requests do. It is also called when a request begins that may ask it.
    """
    own: Callable[[Continuation], str | None] | None = getattr(model, "unready", None)
    return None if own is None else own(request)


def probe_first(model: TokenModel | TextModel) -> None:
    """Let calls of a model wait for what it has to find out before them, and not go on without it meanwhile.

    For programs that are there for one answer, or that measure answers.
    """
    own: Callable[[], None] | None = getattr(model, "probe_first", None)
    if own is not None:
        own()
