"""What is billed beside a call that was heard of: tries that came to nothing."""

from __future__ import annotations

from collections.abc import Callable, Generator

import httpx2

from fsgen_router.contracts.billing import Billed
from fsgen_router.contracts.text_models import Continuation, TextEvent

from .requests import estimate_tokens


class Unheard:
    """A call until something is heard of it; then it is the caller's to count, with its end."""

    def __init__(self, request: Continuation) -> None:
        self._request, self._heard = request, False

    def reading(
        self, read: Callable[[httpx2.Response], Generator[TextEvent]]
    ) -> Callable[[httpx2.Response], Generator[TextEvent]]:
        """``read``, which enters a reply that began and ended before anything was heard of it: its prompt was read."""

        def events(response: httpx2.Response) -> Generator[TextEvent]:
            heard = False
            try:
                for event in read(response):
                    heard = self._heard = True
                    yield event
            finally:
                if not heard:
                    self._enter()

        return events

    def given_up(self) -> None:
        """The call was left, or its deadline passed. What was sent before any reply began is billed all the same."""
        if not self._heard:
            self._enter()

    def _enter(self) -> None:
        self._heard = True
        if self._request.meter is not None:
            guess = guessed_prompt(self._request)
            self._request.meter.enter(Billed.of("failed", prompt=None, written=None, guessed_prompt=guess))


def guessed_prompt(request: Continuation) -> int:
    """Tokens of all that a call sends, guessed: the endpoint has not said."""
    texts = [request.prompt or "", request.answer, *(message["content"] for message in request.messages or ())]
    return sum(map(estimate_tokens, texts))
