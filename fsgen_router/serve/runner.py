"""One request from its bytes to its last one, whichever API it came by: admission, streaming, leaving, failing."""

from __future__ import annotations

import asyncio
import os
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from math import ceil
from statistics import fmean
from typing import Any

from starlette.types import Receive, Scope, Send

from ..contracts.policy import Policy
from ..errors import FsgenError
from ..generation import Generation
from ..router import Router
from ..support.logs import log
from .body import parse, read_body
from .dialect import Ask, Dialect, Facts, Json, Messages, Prompt, to_json
from .errors import ApiError, as_api_error
from .merging import Closable, Left, Merged
from .named import Named, Names
from .observing import Observer, Request
from .options import ServeOptions
from .telling import Telling, held_from
from .truth import headers as rate_headers
from .wire import ClientLeft, Wire

_SSE = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", "x-accel-buffering": "no"}

_OF_PROMPTS = ("chat_template_kwargs", "tools", "tool_choice")
"""Options that change what the models read."""


@dataclass(slots=True)
class Runner:
    """Answers requests of every API with one Router."""

    router: Router
    options: ServeOptions
    names: Names
    observer: Observer
    _running: Counter[str] = field(default_factory=Counter)
    """Requests under way, by key."""
    _seconds: deque[float] = field(default_factory=lambda: deque([1.0], maxlen=64))
    """What the last answers took."""

    @property
    def retry_after(self) -> int:
        """Seconds until who is refused may have better luck: about what an answer takes now."""
        return max(1, min(60, ceil(fmean(self._seconds))))

    async def answer(self, dialect: Dialect[Any], scope: Scope, receive: Receive, send: Send) -> None:
        """Everything of one request. Sends exactly one answer or error, and raises nothing."""
        seen = self.observer.begin(dialect, scope)
        wire = Wire(send, self.options.send_seconds, {"x-fsgen-request-id": seen.id, "x-request-id": seen.id})
        try:
            with self._counted(scope["state"].get("key", "")):
                await self._answer(dialect, scope, receive, wire, seen)
        except (ClientLeft, ConnectionError) as error:
            seen.left(error.kind if isinstance(error, ClientLeft) else "cancelled")
        except asyncio.CancelledError:
            seen.left("shutdown")
            raise
        except Exception as error:
            refused = self._told(error)
            seen.failed(refused)
            with suppress(ClientLeft, ConnectionError):
                await wire.refuse(dialect, refused)
        finally:
            seen.end()

    async def _answer(self, dialect: Dialect[Any], scope: Scope, receive: Receive, wire: Wire, seen: Request) -> None:
        raw = await read_body(scope, receive, limit=self.options.max_body_bytes, seconds=self.options.body_seconds)
        body = parse(dialect.body, raw)
        asked = dialect.ask(body)
        named = self.names.find(asked.model)
        seen.understood(asked, named)
        options = {**asked.options, **named.options(asked.fsgen, max_choices=self.options.max_choices)}
        policy: Policy = options.get("policy", self.router.policy)
        wire.headers |= {"x-fsgen-model": named.name, "x-fsgen-policy": policy.name}
        streams, prompt_tokens = await self._admit(asked, options, seen.id)
        reply = dialect.reply(body, self._facts(seen, asked, named, prompt_tokens))
        wire.last_words = reply.failed
        merged = Merged(streams)
        leaving = asyncio.create_task(_watch(receive, merged))
        try:
            telling = Telling(reply, seen, streamed=asked.stream, held_from=held_from(asked, policy))
            answers = await self._tell(dialect, asked, telling, merged, wire)
        finally:
            leaving.cancel()
            await merged.aclose()
        if answers:
            self._seconds.append(seen.seconds)
        seen.answered(answers)

    def _counted(self, key: str) -> _Counted:
        return _Counted(self._running, key, self.options.max_concurrent, self.retry_after)

    def _told(self, error: Exception) -> ApiError:
        """An error as the client is told it."""
        if isinstance(error, ApiError):
            return error
        if isinstance(error, FsgenError):
            return as_api_error(error, self.retry_after)
        # Where, not what: an error's words may hold a prompt.
        where = "".join(traceback.format_tb(error.__traceback__)[-3:])
        log.warning("serve_failed", error=type(error).__name__, where=where)
        return ApiError(500, "server", "the server failed")

    def _facts(self, seen: Request, asked: Ask, named: Named, prompt_tokens: int) -> Facts:
        stop = asked.options.get("stop", ())
        return Facts(
            request_id=seen.id,
            created=int(time.time()),
            model=named.name,
            text_of=self.text_of,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            prompt_tokens=prompt_tokens,
        )

    def text_of(self, token: int) -> str:
        return self.router.fast.tokenizer.piece(token).decode(errors="replace")

    # --- before the first byte ---

    async def _admit(self, asked: Ask, options: Json, request_id: str) -> tuple[list[Closable], int]:
        """A stream for each answer, all of them in the queue (where one is refused, none is); tokens of the prompt."""
        count = len(asked.prompts) * asked.n
        if count > self.options.max_choices:
            raise ApiError(
                400,
                "invalid_request",
                f"{count} answers in one request, at most {self.options.max_choices}",
                param="n" if asked.n > 1 else "prompt",
            )
        self._limit_new_tokens(options)
        if asked.n > 1 and options.get("seed") is None:
            options["seed"] = int.from_bytes(os.urandom(6), "big")
        streams: list[Closable] = []
        try:
            # In a thread: a long prompt takes a while to encode, and other streams go on meanwhile.
            counted = await asyncio.to_thread(self._begin, streams, asked, options, request_id)
        except BaseException:
            for stream in streams:
                await stream.aclose()
            raise
        return streams, counted

    def _begin(self, streams: list[Closable], asked: Ask, options: Json, request_id: str) -> int:
        """Enter an answer's stream for each that is asked for; tokens of the prompt, where somebody wants to know."""
        several = len(asked.prompts) * asked.n > 1
        counted = 0
        for prompt in map(self._text, asked.prompts):
            if asked.count_prompt or self.options.max_prompt_tokens is not None:
                counted = self._count(prompt, options)
            for number in range(asked.n):
                own = dict(options)
                own["request_id"] = f"{request_id}.{len(streams)}" if several else request_id
                if asked.n > 1:
                    own["seed"] = options["seed"] + number
                begin: Callable[..., Any] = self.router.astream if isinstance(prompt, str) else self.router.astream_chat
                streams.append(begin(prompt, **own))
        return counted

    def _limit_new_tokens(self, options: Json) -> None:
        limit = self.options.max_new_tokens
        wanted = options.get("max_tokens")
        if wanted is None:
            options["max_tokens"] = limit or self.router.fast.n_ctx
        elif limit is not None and wanted > limit:
            raise ApiError(400, "invalid_request", f"max_tokens={wanted}, at most {limit} here", param="max_tokens")

    def _text(self, prompt: Prompt) -> str | Messages:
        """A prompt that came as the fast model's token ids as the text that they are."""
        if not isinstance(prompt, tuple):
            return prompt
        tokenizer = self.router.fast.tokenizer
        if wrong := [one for one in prompt if not 0 <= one < tokenizer.n_vocab]:
            raise ApiError(
                400, "invalid_request", f"prompt: no token {wrong[0]}, they are 0 to {tokenizer.n_vocab - 1}",
                param="prompt",
            )  # fmt: skip
        # What begins a text comes again when it is encoded.
        ids = prompt[1:] if prompt and prompt[0] in tokenizer.special_ids else prompt
        if any(one in tokenizer.special_ids for one in ids):
            raise ApiError(400, "invalid_request", "prompt: control tokens are no text", param="prompt")
        try:
            return b"".join(map(tokenizer.piece, ids)).decode()
        except UnicodeDecodeError:
            raise ApiError(400, "invalid_request", "prompt: these tokens are no UTF-8 text", param="prompt") from None

    def _count(self, prompt: str | Messages, options: Json) -> int:
        """Tokens of a prompt, no more than there may be."""
        told = {name: options[name] for name in _OF_PROMPTS if name in options}
        count = self.router.count_tokens(prompt, **told)  # type: ignore[arg-type]  # which checks them
        limit = self.options.max_prompt_tokens
        if limit is not None and count > limit:
            raise ApiError(400, "context_length", f"the prompt has {count} tokens, at most {limit} here")
        return count

    # --- from the first byte on ---

    async def _tell(
        self, dialect: Dialect[Any], asked: Ask, telling: Telling, merged: Merged, wire: Wire
    ) -> list[Generation]:
        """Send an answer, streamed or whole. Raises :class:`ClientLeft` where nobody reads it."""
        count = len(asked.prompts) * asked.n
        frames = [*telling.reply.opening()]
        while len(telling.answers) < count:
            items = await merged.next(self.options.idle_seconds)
            broken = None
            for item in items:
                if isinstance(item, Left):
                    raise ClientLeft
                if isinstance(item, Exception):
                    broken = item
                    break
                frames += telling.take(*item)
            if broken is not None and not telling.told:
                raise broken  # before the first token: its status tells it
            if asked.stream:
                if not wire.begun:
                    await wire.begin(200, _SSE)
                await wire.write(frames if items else [*frames, dialect.sign_of_life])
                frames = []
            if broken is not None:
                raise broken
        answers = [telling.answers[index] for index in range(count)]
        if asked.stream:
            await wire.write([*telling.reply.closing(answers)], last=True)
        else:
            rates = rate_headers(answers[0]) if count == 1 else {}
            await wire.whole(200, to_json(telling.reply.whole(answers)), rates)
        return answers


async def _watch(receive: Receive, merged: Merged) -> None:
    """Tell when the client leaves."""
    while (await receive())["type"] != "http.disconnect":
        pass
    merged.leave()


class _Counted:
    """One of the requests that a key may have under way."""

    def __init__(self, running: Counter[str], key: str, limit: int, retry_after: int) -> None:
        self._running, self._key, self._limit, self._retry_after = running, key, limit, retry_after

    def __enter__(self) -> None:
        if self._running[self._key] >= self._limit:
            raise ApiError(
                429,
                "too_many_requests",
                f"{self._limit} requests are under way with this key, which are as many as it may have",
                headers={"Retry-After": str(self._retry_after)},
            )
        self._running[self._key] += 1

    def __exit__(self, *error: object) -> None:
        self._running[self._key] -= 1
        if not self._running[self._key]:
            del self._running[self._key]
