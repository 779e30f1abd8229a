"""A model behind an endpoint: what is asked of it, and what comes back."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator
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
from .errors import EndpointError
from .metering import Unheard
from .options import OpenAIKeywords, OpenAIOptions
from .prices import optional_prices, vendor_prices
from .probing import Probes
from .record import Records
from .requests import add_answer, fields, max_tokens_of, messages_of, tools_of
from .responses import Reader

ANY_MESSAGES = ({"role": "user", "content": "Hello"},)


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
        self._probes = Probes(self._connection, self._reader, self.options, Records(endpoint, self.options))
        self.prices = optional_prices(self.options.prices, self.name)
        """What this model's option says of its prices; None where it says nothing."""
        self._endpoint = endpoint
        self._closed = False
        self._first = self.options.probe == "first"
        self._finding = threading.Lock()
        """Held by the thread that finds something out beside requests."""
        self._unfound: BackendError | None = None
        """Why that came to nothing, where the next call will say so too."""
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
        """What is known of the endpoint, from a probe of this process or of another one: None for what is not."""
        return self._probes.capabilities

    @property
    def found(self) -> str:
        """When that was found out, as ISO 8601; empty where it was not."""
        return self._probes.record.found

    def probe(self, request: Continuation | None = None, *, again: bool = False) -> TextCapabilities:
        """Find out now what the endpoint can do for requests like this one (by default, messages), and keep that.

        What another process found in the last days counts, unless ``again``. Raises :class:`BackendError`.
        """
        self._require_open()
        like = request or Continuation(messages=ANY_MESSAGES, max_tokens=1)

        def find_out(patience: Patience) -> Generator[TextEvent]:
            self._probes.find_out(like, patience, again=again)
            yield from ()

        self._wait_for(find_out)
        self._unfound = None
        return self.capabilities

    def probe_first(self) -> None:
        """As with the option ``probe=first`` from now on: calls wait for what has to be found out before them."""
        self._first = True

    @property
    def down(self) -> bool:
        """Whether the endpoint is left alone because it failed: a call is refused at once."""
        return not self._connection.breaker.closed

    def unready(self, request: Continuation) -> str | None:
        """Why a partial answer to ``request`` is not to be sent now, in a few words; None: it may be.

        Never waits: what has to be found out first is begun, on a thread of its own. An endpoint that is down is ready:
        to refuse, which takes no time either.
        """
        if self._closed or self._connection.home.left:
            return None
        breaker = self._connection.breaker
        if not breaker.closed:
            return None
        if self.options.prefill == "whole" and request.answer.strip():
            return "whole answers only"
        if self._first or self._unfound is not None:
            return None  # who calls waits for it
        if self._probes.known(request) and breaker.reached and not self._finding.locked():
            return None
        self._begin(request)
        return "probing"

    def _begin(self, request: Continuation, *, ended: Callable[[], None] = lambda: None) -> None:
        """Find out what is not known, or whether the endpoint answers, unless that is under way."""
        if not self._finding.acquire(blocking=False):
            ended()
            return

        def find_out(patience: Patience) -> Generator[TextEvent]:
            if self._probes.known(request):
                self._probes.knock(request, patience)
            else:
                self._probes.find_out(request, patience)
            yield from ()

        def run() -> None:
            try:
                self._wait_for(find_out)
                self._unfound = None
            except BackendError as error:
                self._unfound = error if self._connection.breaker.closed else None
            finally:
                self._finding.release()
                ended()

        threading.Thread(target=run, name="fsgen-probe", daemon=True).start()

    def _wait_for(self, events: Callable[[Patience], Generator[TextEvent]]) -> None:
        call = Call(events, self.options.deadline_seconds, self.name)
        self._calls.add(call)
        deque(call, maxlen=0)

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
        and :class:`BackendError` from the iteration for what the endpoint does. One that is down is not asked, but
        tried again beside when its time has come.
        """
        self._require_open()
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
        breaker = self._connection.breaker
        if breaker.begin_trial():
            self._begin(request, ended=breaker.end_trial)
        call = Call(
            lambda patience: self._continue(request, patience),
            self.options.deadline_seconds,
            self.name,
            granted=request.max_seconds,
        )
        self._calls.add(call)
        return call

    def _require_open(self) -> None:
        self._connection.home.require(self.name)
        if self._closed:
            raise BackendError(f"{self.name} was shut down")

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
        if request.form is not None:
            body["response_format"] = dict(request.form)
        if request.offered is not None:
            body |= tools_of(request.offered)
        unheard = Unheard(request)
        write = None if request.offered is None else request.offered.write
        read = unheard.reading(partial(self._reader.events, max_tokens=request.max_tokens, write_calls=write))
        try:
            with closing(self._connection.ask(path, body, patience, read, unanswered=unheard.enter)) as events:
                for event in events:
                    if patience.ended:
                        raise late(self.name, patience)
                    for part in (event,) if think is None else think.push(event):
                        yield from self._joined(part, seam)
        except EndpointError as error:
            if error.bad_request and request.answer.strip():
                self._probes.forget()  # it may be set up in another way by now
            raise

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
