"""Several endpoints as one slow model: the first is asked, and the next where that fails before its first text."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Generator, Sequence
from types import TracebackType

from fsgen_router.contracts.text_models import (
    Continuation,
    TextCapabilities,
    TextEnd,
    TextEvent,
    TextModel,
    TimeIsUp,
    probe_first,
    reads_tokens,
    unready,
)
from fsgen_router.errors import BackendError, ConfigurationError
from fsgen_router.support.logs import log


class Fallbacks:
    """A :class:`~fsgen_router.contracts.text_models.TextModel` over others, asked in their order.

    Each has its own breaker, its own probe and its own way to be asked; one that is down costs no time. ``owned`` are
    those that :meth:`shutdown` shuts down.
    """

    def __init__(self, models: Sequence[TextModel], *, owned: Sequence[TextModel] = ()) -> None:
        if any(reads_tokens(model) for model in models):
            raise ConfigurationError(
                "a list of slow models is one of endpoints", hint="name one local model, or endpoints like openai:..."
            )
        if len({id(model) for model in models}) < max(len(models), 2):
            raise ConfigurationError("a list of slow models names two or more, each once", hint="or name one alone")
        self.endpoints = tuple(models)
        self._owned = tuple(owned)
        self.name = ", else ".join(model.name for model in models)

    def __repr__(self) -> str:
        return f"Fallbacks({', '.join(map(repr, self.endpoints))})"

    @property
    def n_params(self) -> int | None:
        return self.endpoints[0].n_params

    @property
    def capabilities(self) -> TextCapabilities:
        """Those of the first that is not down."""
        return next((model for model in self.endpoints if not is_down(model)), self.endpoints[0]).capabilities

    def unready(self, request: Continuation) -> str | None:
        """What the first says that is not down."""
        for model in self.endpoints:
            if not is_down(model):
                return unready(model, request)
        return None

    def probe_first(self) -> None:
        for model in self.endpoints:
            probe_first(model)

    def take_probe_usage(self) -> list[TextEnd]:
        """What the endpoints counted for probes since this was last asked."""
        found = [(model.name, getattr(model, "take_probe_usage", None)) for model in self.endpoints]
        return [dataclasses.replace(end, model=name) for name, take in found if take is not None for end in take()]

    def stream(self, request: Continuation) -> FallbackStream:
        return FallbackStream(self.endpoints, request)

    def shutdown(self) -> None:
        for model in self._owned:
            model.shutdown()


def is_down(model: TextModel) -> bool:
    """Whether a model says that it would refuse to be asked."""
    return bool(getattr(model, "down", False))


class FallbackStream(Generator[TextEvent, None, None]):
    """The stream of the first model that gives an event, as one that any thread may end."""

    def __init__(self, models: Sequence[TextModel], request: Continuation) -> None:
        self._left, self._request = list(models), request
        self._lock = threading.Lock()
        self._ended = False
        self._began = time.monotonic()
        self._model, self._stream = self._begin()

    def _begin(self) -> tuple[TextModel, Generator[TextEvent, None, None]]:
        model = self._left.pop(0)
        meter, seconds = self._request.meter, self._request.max_seconds
        request = dataclasses.replace(
            self._request,
            meter=None if meter is None else meter.at(model.name),
            max_seconds=None if seconds is None else seconds - (time.monotonic() - self._began),
        )
        return model, model.stream(request)

    def send(self, value: None = None, /) -> TextEvent:
        while True:
            try:
                event = next(self._stream)
            except BackendError as error:
                if not self._left or self._ended or isinstance(error, TimeIsUp):
                    raise
                self._go_on(error)
                continue
            self._left.clear()
            return dataclasses.replace(event, model=self._model.name) if isinstance(event, TextEnd) else event

    def _go_on(self, error: BackendError) -> None:
        failed = self._model
        with self._lock:
            model, stream = self._begin()
            self._model, self._stream = model, stream
            ended = self._ended
        if ended:
            self.cancel()
        log.warning(
            "fallback_used",
            model=failed.name,
            instead=model.name,
            status=getattr(error, "status", None),
            reason=f"{type(error).__name__}: {getattr(error, 'plain', error.message)}",
        )

    def throw(
        self, kind: type[BaseException] | BaseException, value: object = None, traceback: TracebackType | None = None, /
    ) -> TextEvent:
        self.close()
        raise kind

    def cancel(self) -> None:
        """End it, from any thread, where the model's own stream can be so ended."""
        with self._lock:
            self._ended = True
            stream = self._stream
        cancel = getattr(stream, "cancel", None)
        if cancel is not None:
            cancel()

    def close(self) -> None:
        with self._lock:
            self._ended = True
            stream = self._stream
        stream.close()
