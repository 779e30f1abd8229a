"""What an endpoint does with an answer so far, found out once: none of them says so, and its count of tokens does."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from typing import Any

from fsgen_router.contracts.text_models import Continuation, TextCapabilities, TextEnd, WrappedPromptWarning
from fsgen_router.support.logs import log, warn

from ..streaming import Patience
from .connection import Connection
from .errors import EndpointError
from .options import OpenAIOptions
from .replies import count_of, text_end
from .requests import DIALECTS, NO_OTHER, Dialect, fields
from .responses import Reader

_PROBE = {"role": "user", "content": "Write the letter a."}
_PARTIAL = {"role": "assistant", "content": "a"}
_BLOCK = "<think>\n\n</think>\n\n"
_RAW_TOKENS = 2  # that begin and end a text; a chat template adds more


class Probes:
    """Asks an endpoint tiny questions at the first need, and remembers what came of them."""

    def __init__(self, connection: Connection, reader: Reader, options: OpenAIOptions) -> None:
        self._connection, self._reader, self._options = connection, reader, options
        self._name = connection.name
        self._probing = threading.Lock()
        self._dialects: dict[str, Dialect | None] = {}
        """By the template's variables, which may change how a partial answer is taken."""
        self._wrapping: bool | None = None
        self._streamed: bool | None = None
        self._counting = threading.Lock()
        self._spent: list[TextEnd] = []

    def take_spent(self) -> list[TextEnd]:
        """What the endpoint counted for probes since this was last asked."""
        with self._counting:
            spent, self._spent = self._spent, []
        return spent

    @property
    def capabilities(self) -> TextCapabilities:
        """What is known by now; None for what is not."""
        if self._options.api == "completions":
            return TextCapabilities(prefill=True, raw=True)
        prefill = {"always": True, "never": False}.get(self._options.prefill)
        if prefill is None and self._dialects:
            prefill = any(dialect is not None for dialect in self._dialects.values())
        return TextCapabilities(prefill=prefill, raw=None if self._wrapping is None else not self._wrapping)

    def dialect(self, request: Continuation, patience: Patience) -> Dialect | None:
        """How this endpoint continues a partial answer; None where it has to be told to. Found out once."""
        if self._options.prefill == "never":
            return None
        variables = json.dumps(request.chat_template_kwargs or {}, sort_keys=True)
        with self._probing:
            if variables not in self._dialects:
                found = self._dialects[variables] = self._probe(request, patience)
                log.info("prefill_probed", model=self._name, dialect=found.name if found else None)
            return self._dialects[variables]

    def _probe(self, request: Continuation, patience: Patience) -> Dialect | None:
        """The first dialect that is not refused, if the endpoint's own count of tokens shows that it works.

        Tiny requests of one token each: two where it does, one more for each dialect that is refused, and a few more
        where the count leaves a doubt (see :func:`_leaves_open`).
        """

        def count(messages: Sequence[Mapping[str, Any]], extra: Mapping[str, Any]) -> int | None:
            return self._prompt_tokens("/chat/completions", {"messages": messages, **extra}, request, patience)

        bare = None
        if self._options.prefill == "auto":
            with suppress(_Refused):
                bare = count([_PROBE], {})
            if not bare:
                return None  # it does not say what it counts
        for dialect in DIALECTS:
            try:
                told = count([_PROBE, {**_PARTIAL, **dialect.message}], dialect.body)
            except _Refused:
                continue
            if bare is None:
                return dialect
            return dialect if told is not None and _leaves_open(dialect, bare, told, count) else None
        if self._options.prefill == "always":
            raise EndpointError(f"{self._name} refuses partial answers in every form", hint="leave out prefill=always")
        return None

    def wraps(self, request: Continuation, patience: Patience) -> bool:
        """Whether this endpoint puts raw prompts into a chat template. Found out once, at the first partial answer."""
        if self._options.api == "completions" or not request.answer.strip():
            return bool(self._wrapping)
        with self._probing:
            if self._wrapping is None:
                self._wrapping = self._probe_raw(request, patience)
                log.info("completions_probed", model=self._name, wrapped=self._wrapping)
                if self._wrapping:
                    self._warn_of_wrapping()
            return self._wrapping

    def _probe_raw(self, request: Continuation, patience: Patience) -> bool:
        """By the endpoint's own count: a prompt of one word has its tokens, and those that begin and end a text."""

        def count(prompt: str) -> int:
            return self._prompt_tokens("/completions", {"prompt": prompt}, request, patience) or 0

        with suppress(_Refused):  # the real request will say why
            beside = (one := count("a")) - 1
            if beside > _RAW_TOKENS:  # or its vocabulary has no such word
                beside = one - max((count("a a a") - one) // 2, 1)
            return beside > _RAW_TOKENS
        return False

    def _warn_of_wrapping(self) -> None:
        warn(
            WrappedPromptWarning,
            f"{self._name} puts raw prompts into its chat template, and answers them where it should go on with them: "
            "they are sent as a user's message from now on. Use chat(), or api=completions to send them as they are",
            event="prompts_wrapped",
            model=self._name,
        )

    def _prompt_tokens(
        self, path: str, body: Mapping[str, Any], request: Continuation, patience: Patience
    ) -> int | None:
        """Tokens of a prompt, as the endpoint counts them; None where it does not say.

        The request is as the real one, but for one token and in one piece, where that is not refused: not all
        count in a stream. Raises :class:`_Refused`.
        """
        sent = fields(request, self._options) | {"max_tokens": 1, **body}
        for streamed in (False, True) if self._streamed is None else (self._streamed,):
            streaming = {"stream": True, "stream_options": {"include_usage": True}} if streamed else {}
            try:
                with closing(self._connection.ask(path, sent | streaming, patience, self._reader.usage)) as usages:
                    usage = next(usages)
            except EndpointError as error:
                if not error.bad_request:
                    raise
                continue
            self._streamed = streamed
            with self._counting:
                self._spent.append(text_end("length", usage))
            return count_of(usage, "prompt_tokens")
        raise _Refused


class _Refused(Exception):
    """A probe's request was a bad one to the endpoint."""


def _leaves_open(
    dialect: Dialect,
    bare: int,
    told: int,
    count: Callable[[Sequence[Mapping[str, Any]], Mapping[str, Any]], int | None],
) -> bool:
    """Whether a partial answer was left open, which is told from counts of tokens.

    ``bare`` is the count of a user's message, ``told`` of the assistant's one word behind it. Left open, that adds the
    word, and what a template puts before an assistant's last message alone (an empty block of reasoning).
    Closed, it adds a whole message, and that, too. In doubt it is closed: nothing is lost by that but fidelity.
    """
    beside = told - bare - 1
    if beside <= 0:
        return True
    partial = [_PROBE, _PARTIAL]
    with suppress(_Refused):
        longer = count([*partial, {**_PARTIAL, **dialect.message}], dialect.body)
        whole = (longer or 0) - told - 1  # what begins and ends a message
        if whole <= 0 or beside == whole:
            return False
        if dialect.body:
            # One field leaves out the beginning of another message, the other one the end of this.
            ended, closed = count(partial, NO_OTHER), count(partial, {})
            if ended is None or closed is None or max(ended, closed) > told:
                return ended is not None and ended > told
        return beside == (count([{**_PROBE, "content": _BLOCK + _PROBE["content"]}], {}) or 0) - bare
    return False
