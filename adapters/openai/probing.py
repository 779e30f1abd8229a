"""What an endpoint can do, found out once: few of them say so, and what they answer to tiny requests does.

What becomes of an answer so far shows in an endpoint's own count of tokens. What is found is one record, kept for other
processes (:mod:`.record`).
"""

from __future__ import annotations

import dataclasses
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
from .record import Record, Records, now, variables_key
from .replies import cached_of, count_of, text_end
from .requests import DIALECTS, NO_OTHER, Dialect, fields
from .responses import Reader

_PROBE = {"role": "user", "content": "Write the letter a."}
_PARTIAL = {"role": "assistant", "content": "a"}
_BLOCK = "<think>\n\n</think>\n\n"
_RAW_TOKENS = 2  # that begin and end a text; a chat template adds more
_IDS = [1, 2]  # of every vocabulary
_NAMED = {dialect.name: dialect for dialect in DIALECTS}


class Probes:
    """Asks an endpoint tiny questions, each sent as the real calls are, and remembers what came of them.

    ``trial``: they are made beside what requests do, also where the endpoint's breaker is open.
    """

    def __init__(
        self, connection: Connection, reader: Reader, options: OpenAIOptions, records: Records | None = None
    ) -> None:
        self._connection, self._reader, self._options = connection, reader, options
        self._name, self._records = connection.name, records
        self._probing = threading.Lock()
        self._loaded = False
        self._record = Record()
        self._spent: list[TextEnd] = []
        self._spending = threading.Lock()

    # --- what is known ---

    @property
    def record(self) -> Record:
        """What is known by now, here or from another process."""
        if not self._loaded:
            found = self._records.load() if self._records is not None else None
            if found is not None and not self._loaded:
                self._record = found
            self._loaded = True
        return self._record

    @property
    def capabilities(self) -> TextCapabilities:
        """What is known by now; None for what is not."""
        record = self.record
        facts = {
            name: getattr(record, name) for name in ("usage", "cached_tokens", "logprobs", "token_ids", "verifies")
        }
        if self._options.api == "completions":
            return TextCapabilities(prefill=True, raw=True, **facts)
        prefill = {"always": True, "never": False}.get(self._options.prefill)
        if prefill is None and record.dialects:
            prefill = any(dialect is not None for dialect in record.dialects.values())
        return TextCapabilities(prefill=prefill, raw=None if record.wraps is None else not record.wraps, **facts)

    def known(self, request: Continuation) -> bool:
        """Whether it is known how a partial answer to this is sent."""
        if self._options.api == "completions":
            return True
        if request.prompt is not None and self.record.wraps is not True:
            return self.record.wraps is not None
        return self._options.prefill in ("never", "whole") or variables_of(request) in self.record.dialects

    def take_spent(self) -> list[TextEnd]:
        """What probes were billed since this was last asked, an entry for each of them."""
        with self._spending:
            spent, self._spent = self._spent, []
            return spent

    # --- how partial answers are sent ---

    def dialect(self, request: Continuation, patience: Patience, *, trial: bool = False) -> Dialect | None:
        """How this endpoint continues a partial answer; None where it has to be told to. Found out once."""
        if self._options.prefill in ("never", "whole"):
            return None
        variables = variables_of(request)
        with self._probing:
            dialects = self.record.dialects
            if variables not in dialects:
                found = self._probe(request, patience, trial)
                dialects[variables] = found.name if found else None
                self._keep()
                log.info("prefill_probed", model=self._name, dialect=dialects[variables])
            name = dialects[variables]
            return _NAMED.get(name) if name is not None else None

    def wraps(self, request: Continuation, patience: Patience, *, trial: bool = False) -> bool:
        """Whether this endpoint puts raw prompts into a chat template. Found out once, at the first partial answer."""
        if self._options.api == "completions" or not (request.answer.strip() or trial):
            return bool(self.record.wraps)
        with self._probing:
            record = self.record
            if record.wraps is None:
                record.wraps = self._probe_raw(request, patience, trial)
                self._keep()
                log.info("completions_probed", model=self._name, wrapped=record.wraps)
                if record.wraps:
                    self._warn_of_wrapping()
            return record.wraps

    def find_out(self, request: Continuation, patience: Patience, *, again: bool = False) -> None:
        """All that matters for requests like this one; ``again``: also what is known."""
        if again:
            self.forget()
        if request.prompt is None or self.wraps(request, patience, trial=True):
            self.dialect(request, patience, trial=True)
        with self._probing:
            if self.record.usage is None:
                with suppress(EndpointError):  # some are not known then, and nothing depends on them
                    self._probe_facts(request, patience)
                self._keep()
                log.info("endpoint_probed", model=self._name, **dataclasses.asdict(self.capabilities))

    def knock(self, request: Continuation, patience: Patience) -> None:
        """Ask for one token: whether the endpoint answers at all."""
        whole = self._options.api == "completions" or (request.prompt is not None and not self.record.wraps)
        path, body = ("/completions", {"prompt": "a"}) if whole else ("/chat/completions", {"messages": [_PROBE]})
        with suppress(_Refused):  # which is an answer
            self._prompt_tokens(path, body, request, patience, trial=True)

    def forget(self) -> None:
        """What was found does not hold any more: it is found out again."""
        with self._probing:
            self._record, self._loaded = Record(), True
            if self._records is not None:
                self._records.forget()

    def _keep(self) -> None:
        self._record.found = now()
        if self._records is not None:
            self._records.save(self._record)

    def _probe(self, request: Continuation, patience: Patience, trial: bool) -> Dialect | None:
        """The first dialect that is not refused, if the endpoint's own count of tokens shows that it works.

        Tiny requests of one token each: two where it does, one more for each dialect that is refused, and a few more
        where the count leaves a doubt (see :func:`_leaves_open`).
        """

        def count(messages: Sequence[Mapping[str, Any]], extra: Mapping[str, Any]) -> int | None:
            sent = {"messages": messages, **extra}
            return self._prompt_tokens("/chat/completions", sent, request, patience, trial=trial)

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

    def _probe_raw(self, request: Continuation, patience: Patience, trial: bool) -> bool:
        """By the endpoint's own count: a prompt of one word has its tokens, and those that begin and end a text."""

        def count(prompt: str) -> int:
            return self._prompt_tokens("/completions", {"prompt": prompt}, request, patience, trial=trial) or 0

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
        self, path: str, body: Mapping[str, Any], request: Continuation, patience: Patience, *, trial: bool
    ) -> int | None:
        """Tokens of a prompt, as the endpoint counts them; None where it does not say.

        The request is as the real one, but for one token and in one piece, where that is not refused: not all
        count in a stream. Raises :class:`_Refused`.
        """
        sent, record = fields(request, self._options) | {"max_tokens": 1, **body}, self.record
        for streamed in (False, True) if record.streams is None else (record.streams,):
            streaming = {"stream": True, "stream_options": {"include_usage": True}} if streamed else {}
            try:
                usage = self._ask(path, sent | streaming, patience, trial=trial).get("usage")
            except EndpointError as error:
                if not error.bad_request:
                    raise
                continue
            record.streams = streamed
            return count_of(usage, "prompt_tokens")
        raise _Refused

    def _ask(
        self, path: str, body: Mapping[str, Any], patience: Patience, *, trial: bool, tries: int | None = None
    ) -> Mapping[str, Any]:
        """The reply to a tiny request, whose cost is kept for :meth:`take_spent`."""
        with closing(
            self._connection.ask(path, body, patience, self._reader.reply, trial=trial, tries=tries)
        ) as replies:
            (reply,) = replies
        with self._spending:
            self._spent.append(text_end("stop", reply.get("usage")))
        return reply

    # --- what replies hold ---

    def _probe_facts(self, request: Continuation, patience: Patience) -> None:
        """Whether logprobs, counts of tokens and ids can be had. A request that is refused says no."""
        record, chats = self.record, self._options.api != "completions"
        sent = fields(request, self._options) | {"max_tokens": 1}
        if record.streams:
            sent |= {"stream": True, "stream_options": {"include_usage": True}}
        path, plain = ("/chat/completions", {"messages": [_PROBE]}) if chats else ("/completions", {"prompt": "a"})
        wanted = {"logprobs": True, "top_logprobs": 1} if chats else {"logprobs": 1}
        reply = self._facts(path, sent | plain | wanted, patience)
        record.logprobs = bool(_choice(reply).get("logprobs"))
        reply = reply or self._facts(path, sent | plain, patience)  # where log-probabilities were refused
        record.usage = count_of(reply.get("usage"), "prompt_tokens") is not None
        record.cached_tokens = cached_of(reply.get("usage")) is not None
        if self._options.api == "chat":
            record.token_ids = record.verifies = False
            return
        rows = self._facts("/completions", sent | {"prompt": _IDS, "prompt_logprobs": 1}, patience)
        record.verifies = bool(_choice(rows).get("prompt_logprobs") or rows.get("prompt_logprobs"))
        rows = rows or self._facts("/completions", sent | {"prompt": _IDS}, patience)
        counted = count_of(rows.get("usage"), "prompt_tokens")
        record.token_ids = bool(rows) and counted in (None, *range(len(_IDS), len(_IDS) + _RAW_TOKENS + 1))

    def _facts(self, path: str, body: Mapping[str, Any], patience: Patience) -> Mapping[str, Any]:
        """The reply, or nothing where the request is refused, be it with a status that blames the server."""
        try:
            return self._ask(path, body, patience, trial=True, tries=1)
        except EndpointError as error:
            if error.status in (None, 401, 403, 429):
                raise
            return {}


def variables_of(request: Continuation) -> str:
    return variables_key(request.chat_template_kwargs)


def _choice(reply: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = reply.get("choices")
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}


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
