"""``fsgen-router chat``: a conversation that keeps both models' caches."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

import typer
from rich.text import Text

from ..errors import FsgenError
from ..generation import Finished, Generation, Restarted, TextDelta
from ..report.losses import degraded_words
from ..router import Router
from ..text.messages import Message
from . import options as o
from .terminal import decode, err, exit_code, say, show_error, write, write_json

_COMMANDS = {
    "/report": "what the last answer cost and saved",
    "/reset": "forget the conversation",
    "/help": "this list",
    "/exit": "leave (Ctrl-D too)",
}


def chat(
    system: o.System = None,
    fast: o.Fast = None,
    slow: o.Slow = None,
    fallback: o.Fallback = None,
    tuned: o.Tuned = None,
    prices: o.PricesFile = None,
    policy: o.Policy = None,
    method: o.Method = None,
    max_slow_calls: o.MaxSlowCalls = None,
    max_slow_tokens: o.MaxSlowTokens = None,
    max_cost: o.MaxCost = None,
    max_seconds: o.MaxSeconds = None,
    audit: o.Audit = 0.0,
    read_ahead: o.ReadAhead = 0,
    batching: o.Batching = None,
    max_tokens: o.MaxTokens = o.MAX_TOKENS,
    temperature: o.Temperature = 0.0,
    top_k: o.TopK = 0,
    top_p: o.TopP = 1.0,
    min_p: o.MinP = 0.0,
    stop: o.Stop = None,
    json_schema: o.JsonSchema = None,
    regex: o.Regex = None,
    grammar: o.Grammar = None,
    seed: o.Seed = None,
    as_json: o.Json = False,
) -> None:
    """Talk to the pair; each model uses its own chat template.

    In a terminal, Ctrl-C stops the answer under way and Ctrl-D leaves; /report, /reset and /exit do
    what they say. In a pipe, every line is one message. A stopped or failed message is not kept in
    the conversation.

    Examples:

      fsgen-router chat

      fsgen-router chat --fast llama_cpp:small.gguf \\
        --slow openai:model-name@https://host/v1

      printf '%s\\n' "How many coins do 3 lamps and 4 ropes cost in Norvale?" \\
        /report | fsgen-router chat
    """
    request = o.make_request(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
        stop=stop,
        max_slow_calls=max_slow_calls,
        max_slow_tokens=max_slow_tokens,
        max_cost=max_cost,
        max_seconds=max_seconds,
        json_schema=json_schema,
        regex=regex,
        grammar=grammar,
    )
    with o.open_router(
        fast,
        slow,
        policy,
        method,
        fallback=fallback,
        tuned=tuned,
        prices=prices,
        audit=audit,
        read_ahead=read_ahead,
        batching=batching,
    ) as router:
        session = _Session(router, request, system, as_json=as_json)
        interactive = sys.stdin.isatty()
        if interactive:
            say(
                f"{router.fast.name} + {router.slow.name}, policy {router.policy.name}, method {router.method.name}. "
                "/help lists commands."
            )
        for message in _typed() if interactive else _piped():
            try:
                if not session.take(message):
                    break
            except KeyboardInterrupt:  # between answers, while something is written
                if not interactive:
                    raise
                say("\nStopped.")
        # People have seen the error and gone on; a script has to be told.
        if session.failed and not interactive:
            raise typer.Exit(session.failed)


def _typed() -> Iterator[str]:
    """Lines from the keyboard, with editing and history, until Ctrl-D."""
    with suppress(ImportError):  # not on every platform
        import readline  # noqa: F401
    while True:
        try:
            yield input("> ")
        except EOFError:
            write("\n")
            return
        except KeyboardInterrupt:
            write("\n")
            say("Ctrl-D or /exit leaves.")
        except UnicodeDecodeError as error:
            say(f"That line is not valid UTF-8 (byte {error.start}).", "bold red")


def _piped() -> Iterator[str]:
    """Lines of standard input, checked as they come."""
    for number, line in enumerate(sys.stdin.buffer, 1):
        yield decode(line.rstrip(b"\r\n"), f"line {number} of standard input")


class _Session:
    """The messages so far, and what to do with the next line."""

    def __init__(self, router: Router, request: dict[str, Any], system: str | None, *, as_json: bool) -> None:
        self._router, self._request, self._as_json = router, request, as_json
        self._opening: list[Message] = [{"role": "system", "content": system}] if system else []
        self._messages = list(self._opening)
        self._last: Generation | None = None
        self.failed = 0

    def take(self, line: str) -> bool:
        """Answer a message or obey a command; False to leave."""
        line = line.strip()
        if line == "/exit":
            return False
        if line == "/reset":
            self._messages = list(self._opening)
            say("The conversation is forgotten.")
        elif line == "/report":
            self._report()
        elif line.startswith("/"):
            if line != "/help":
                say(f"Unknown command {line.split()[0]!r}.", "bold red")
            for name, meaning in _COMMANDS.items():
                err().print(Text.assemble((f"  {name:<8}", "bold"), meaning))
        elif line:
            self._answer(line)
        return True

    def _report(self) -> None:
        if self._last is None:
            say("Nothing was answered yet.")
        elif self._as_json:
            write_json({"report": self._last.report().to_dict()})
        else:
            err().print(self._last.report())

    def _answer(self, text: str) -> None:
        messages: list[Message] = [*self._messages, {"role": "user", "content": text}]
        try:
            answer = self._stream(messages)
        except KeyboardInterrupt:
            say("Stopped; the conversation goes on without that message.")
        except FsgenError as error:
            show_error(error)
            say("The conversation goes on without that message; /reset begins a new one.")
            self.failed = self.failed or exit_code(error)
        else:
            self._last = answer
            # An answer without text cannot be said again to a chat template.
            if answer.text.strip():
                self._messages = [*messages, {"role": "assistant", "content": answer.text}]
            if self._as_json:
                write_json(answer.to_dict(tokens=False))
            if answer.degraded:
                say(f"Degraded: {degraded_words(answer.degraded)}.", "bold red")

    def _stream(self, messages: list[Message]) -> Generation:
        shown = False
        # Closed at once on Ctrl-C, so that the models are free for the next message.
        with closing(self._router.stream_chat(messages, **self._request)) as events:  # type: ignore[type-var]
            try:
                for event in events:
                    if isinstance(event, Finished):
                        return event.generation
                    if isinstance(event, TextDelta) and event.text and not self._as_json:
                        write(event.text)
                        shown = True
                    elif isinstance(event, Restarted) and not self._as_json:
                        write("\n")
                        say("The slow model begins the answer anew: what is above does not stand.")
            finally:
                if shown or not self._as_json:
                    write("\n")
        raise AssertionError("a stream ends with Finished")
