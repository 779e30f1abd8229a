"""What is billed beside a call that was heard of: tries that came to nothing."""

from __future__ import annotations

from collections.abc import Callable, Generator

import httpx2

from fsgen_router.contracts.billing import Billed
from fsgen_router.contracts.text_models import Continuation, TextEvent

from .requests import estimate_tokens


class Unheard:
    """Tries of a call of which nothing was heard, though the endpoint read their prompt. What is heard of is the
    caller's to count, with its end."""

    def __init__(self, request: Continuation) -> None:
        self._request = request

    def reading(
        self, read: Callable[[httpx2.Response], Generator[TextEvent]]
    ) -> Callable[[httpx2.Response], Generator[TextEvent]]:
        """``read``, which enters a reply that began and ended before anything was heard of it."""

        def events(response: httpx2.Response) -> Generator[TextEvent]:
            heard = False
            try:
                for event in read(response):
                    heard = True
                    yield event
            finally:
                if not heard:
                    self.enter()

        return events

    def enter(self) -> None:
        """One try, such as one that was sent and whose reply did not begin in time."""
        if self._request.meter is not None:
            guess = guessed_prompt(self._request)
            self._request.meter.enter(Billed.of("failed", prompt=None, written=None, guessed_prompt=guess))


def guessed_prompt(request: Continuation) -> int:
    """Tokens of all that a call sends, guessed: the endpoint has not said."""
    texts = [request.prompt or "", request.answer, *(message["content"] for message in request.messages or ())]
    return sum(map(estimate_tokens, texts))
