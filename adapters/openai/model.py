"""A model behind an endpoint: what is asked of it, and what comes back."""

from __future__ import annotations

import weakref
from collections.abc import Generator, Iterator
from contextlib import closing
from functools import partial
from typing import Unpack

from fsgen_router.contracts.text_models import (
    Continuation,
    ReasoningChunk,
    TextCapabilities,
    TextChunk,
    TextEnd,
    TextEvent,
)
from fsgen_router.errors import BackendError, ConfigurationError, InvalidRequest
from fsgen_router.records import Prices
from fsgen_router.support.logs import log
from fsgen_router.support.options import checked
from fsgen_router.text.messages import require_messages, require_text

from ..seams import Seam
from ..streaming import Call, Patience, ThinkBlock, late
from .connection import Connection
from .endpoint import parse_endpoint
from .metering import Unheard
from .options import OpenAIKeywords, OpenAIOptions
from .prices import optional_prices, vendor_prices
from .probing import Probes
from .requests import add_answer, fields, max_tokens_of, messages_of
from .responses import Reader


class OpenAIModel:
    """A :class:`~fsgen_router.contracts.text_models.TextModel` behind an OpenAI-compatible endpoint.

    ``where`` is ``model-name@https://host/v1``; ``options`` are :class:`OpenAIOptions`. Nothing is asked of
    the endpoint before the first :meth:`stream`. Raises :class:`ConfigurationError` for what cannot work.
    """

    n_params = None

    def __init__(self, where: str, /, **options: Unpack[OpenAIKeywords]) -> None:
        self.options = checked(OpenAIOptions, options, error=ConfigurationError)
        endpoint = parse_endpoint(where)
        self.name = endpoint.name
        self._connection = Connection(endpoint, self.options)
        self._reader = Reader(self.name, self._connection.key)
        self._probes = Probes(self._connection, self._reader, self.options)
        self.prices = optional_prices(self.options.prices, self.name)
        """What this model's option says of its prices; None where it says nothing."""
        self._endpoint = endpoint
        self._closed = False
        self._calls: weakref.WeakSet[Call] = weakref.WeakSet()

    def __repr__(self) -> str:
        return f"OpenAIModel({self.name!r})"

    @property
    def n_ctx(self) -> int | None:
        return self.options.n_ctx

    def take_probe_usage(self) -> list[TextEnd]:
        """What the endpoint counted for probes since this was last asked, an entry for each: they are billed too."""
        return self._probes.take_spent()

    def vendor_prices(self) -> Prices | None:
        """What the package genai-prices knows of this model at its vendor's address; None where it knows nothing."""
        return vendor_prices(self._endpoint)

    @property
    def capabilities(self) -> TextCapabilities:
        """``prefill`` of messages and ``raw`` prompts: None until a first partial answer of the kind is sent."""
        return self._probes.capabilities

    def shutdown(self) -> None:
        """Close connections; whoever still reads a stream gets a :class:`BackendError`."""
        if self._connection.home.left:
            return
        self._closed = True
        for call in list(self._calls):
            call.close(BackendError(f"{self.name} was shut down"))
        self._connection.close()

    def stream(self, request: Continuation) -> Call:
        """The continuation of ``request``; it is under way when this returns.

        Raises :class:`InvalidRequest` or :class:`ConfigurationError` here for what is known to be wrong,
        and :class:`BackendError` from the iteration for what the endpoint does.
        """
        self._connection.home.require(self.name)
        if self._closed:
            raise BackendError(f"{self.name} was shut down")
        if (request.prompt is None) == (request.messages is None) or request.max_tokens < 1:
            raise InvalidRequest("a continuation has a prompt or messages, and at least one token to write")
        kind = "chat" if request.prompt is None else "completions"
        if request.messages is None:
            require_text(request.prompt)
        else:
            require_messages(request.messages)
        if self.options.api not in ("auto", kind):
            raise ConfigurationError(
                f"{self.name} is used with api={self.options.api}, which takes no "
                + ("messages" if kind == "chat" else "raw prompts"),
                hint=f"use {'complete' if kind == 'chat' else 'chat'}(), or leave out api",
            )
        call = Call(lambda patience: self._continue(request, patience), self.options.deadline_seconds, self.name)
        self._calls.add(call)
        return call

    # --- requests ---

    def _continue(self, request: Continuation, patience: Patience) -> Generator[TextEvent]:
        body = fields(request, self.options) | {"stream": True, "stream_options": {"include_usage": True}}
        body["max_tokens"] = max_tokens_of(request, self.options)
        seam = Seam("")
        think: ThinkBlock | None = None
        if request.prompt is not None and not self._probes.wraps(request, patience):
            path = "/completions"
            body["prompt"] = f"{request.prompt}{request.answer}"
        else:
            path = "/chat/completions"
            messages = messages_of(request)
            continues = False
            if request.answer.strip():
                dialect = self._probes.dialect(request, patience)
                seam = add_answer(messages, body, request.answer, dialect, gap=request.gap)
                continues = dialect is not None
            elif request.answer:
                seam = Seam(request.answer, told=False)  # white space alone is no message
            body["messages"] = messages
            # Where the last message goes on, no block of reasoning can begin: such tags are a part of its text.
            think = None if continues else ThinkBlock()
        unheard = Unheard(request)
        read = unheard.reading(partial(self._reader.events, max_tokens=request.max_tokens))
        try:
            with closing(self._connection.ask(path, body, patience, read)) as events:
                for event in events:
                    if patience.ended:
                        raise late(self.name)
                    for part in (event,) if think is None else think.push(event):
                        yield from self._joined(part, seam)
        finally:
            if patience.ended:
                unheard.given_up()

    def _joined(self, event: TextEvent, seam: Seam) -> Iterator[TextEvent]:
        if isinstance(event, ReasoningChunk):
            yield event
            return
        text = seam.push(event.text) if isinstance(event, TextChunk) else seam.flush()
        if text:
            repairs, seam.repairs = tuple(seam.repairs), []
            if repairs:
                log.info("seam_repaired", model=self.name, repairs=list(repairs))
            yield TextChunk(text, repairs)
        if isinstance(event, TextEnd):
            yield event
