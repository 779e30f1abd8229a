"""Chat templates of local models: one renderer, with what transformers' own offers to templates.

Templates are programs that come with a model: they run in Jinja's sandbox.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.runtime
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fsgen_router.contracts.tokenizer import Tokenizer, Turn
from fsgen_router.errors import ConfigurationError, InvalidRequest
from fsgen_router.support.logs import warn
from fsgen_router.support.options import SET_BY_US
from fsgen_router.text.conversation import SystemMessageWarning, encode_conversation

# Tokens between which some models write their reasoning and their answer, with headings that are plain text or with
# nothing but these tokens to tell one from the other. Files and loaders differ in which of them are control tokens.
_CHANNELS = (
    ("<|channel|>", "<|message|>"),  # harmony: gpt-oss
    ("<|think|>", "<|content|>"),  # Solar Open
)
_MAX_BYTES = 2**20
_CONTROL = "_control_tokens"
"""A variable of ours: names that no JSON in a rendered text holds."""


def template_digest(template: str | None, variables: Mapping[str, Any]) -> str | None:
    """What tells a model with another template, or with fixed variables, from itself; None where both are its own."""
    if not template and not variables:
        return None
    return hashlib.sha256(json.dumps([template, dict(variables)], sort_keys=True, default=str).encode()).hexdigest()


class ChatTemplate:
    """The template in ``text``. ``tokens`` are variables like ``bos_token``, ``is_token`` tells what is one token of
    the vocabulary, and ``variables`` are what the caller of a model gives to every conversation.

    Raises :class:`ConfigurationError` for what is no template, and for variables that it does not read.
    """

    def __init__(
        self,
        text: str,
        owner: str,
        *,
        tokens: Mapping[str, Any],
        is_token: Callable[[str], bool] = lambda _: False,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        self._owner, self._told, self.text = owner, False, text
        self._fixed = {
            "tools": None,
            "documents": None,
            "bos_token": "",
            "eos_token": "",
            **tokens,
            **(variables or {}),
        }
        environment = _environment()
        try:
            self._template = environment.from_string(text)
            read = jinja2.meta.find_undeclared_variables(environment.parse(text))
            self.variables = read - set(SET_BY_US)
            self.reads_tools = "tools" in read and "tool_calls" in text
        except (jinja2.TemplateError, RecursionError) as error:
            line = f"line {error.lineno}: " if isinstance(error, jinja2.TemplateSyntaxError) else ""
            raise ConfigurationError(
                f"the chat template of {owner} is no valid Jinja: {line}{error}", hint="chat_template= takes another"
            ) from None
        if unread := sorted(set(variables or ()) - self.variables):
            raise ConfigurationError(
                f"the chat template of {owner} reads no {', '.join(unread)}",
                hint=f"it reads {', '.join(sorted(self.variables)) or 'none'}",
            )
        self._channels = next((pair for pair in _CHANNELS if all(t in text and is_token(t) for t in pair)), None)

    def render(self, messages: Sequence[Turn], variables: Mapping[str, Any] | None = None) -> str:
        """The conversation as text, up to where the assistant begins. ``variables`` go before the model's own.

        A system message that the template refuses, or leaves out, is put before the user's next one, as llama.cpp
        does; :class:`~fsgen_router.SystemMessageWarning` says so. Raises :class:`InvalidRequest` where the template
        refuses the messages, and :class:`ConfigurationError` where answers would read as one with their reasoning.
        """
        values = {**self._fixed, **(variables or {})}
        if any(message["role"] == "system" for message in messages):
            messages = self._with_system_shown(messages, values)
        text = self._text(messages, values)
        # A template may open the answer's channel itself.
        if self._channels is not None and not text.endswith(self._channels[-1]):
            raise ConfigurationError(
                f"{self._owner} writes in channels ({' and '.join(self._channels)}): its reasoning and its answer "
                f"would read as one text",
                hint="use complete() with a raw prompt, a chat_template= that opens the answer's channel, or an "
                "endpoint that keeps channels apart",
            )
        return text

    def encode(
        self, tokenizer: Tokenizer, messages: Sequence[Turn], variables: Mapping[str, Any] | None, *, bos: int | None
    ) -> list[int]:
        """Ids of the rendered conversation, behind ``bos``. No user's text in it becomes a control token."""
        names = [tokenizer.piece(token).decode(errors="replace") for token in tokenizer.special_ids]
        render = partial(self.render, variables={**(variables or {}), _CONTROL: names})
        return encode_conversation(tokenizer, messages, render, bos=bos)

    def _text(self, messages: Sequence[Turn], values: Mapping[str, Any]) -> str:
        try:
            return self._render(messages, values)
        except Exception:
            if not any(message.get("tool_calls") for message in messages):
                raise
        return self._render([_with_argument_texts(message) for message in messages], values)

    def _render(self, messages: Sequence[Turn], values: Mapping[str, Any]) -> str:
        try:
            return self._template.render(
                messages=[dict(message) for message in messages], add_generation_prompt=True, **values
            )
        except Exception as error:  # whatever a template from a file raises
            raise InvalidRequest(f"the chat template of {self._owner} refuses these messages: {error}") from None

    def _with_system_shown(self, messages: Sequence[Turn], values: Mapping[str, Any]) -> Sequence[Turn]:
        """The first way to put system messages at which every one of them can be seen in what comes out.

        Marks stand for them: a template may trim a text, or take switches out of it.
        """
        marked, marks = [], []
        for number, message in enumerate(messages):
            if message["role"] == "system":
                marks.append(f"\x02{number}\x03")
                message = {**message, "content": marks[-1]}
            marked.append(message)
        for wanted, tried in zip(_ways(messages), _ways(marked), strict=True):
            try:
                shown = self._text(tried, values)
            except InvalidRequest:
                continue
            if all(mark in shown for mark in marks):
                if wanted is not messages:
                    self._tell()
                return wanted
        return messages

    def _tell(self) -> None:
        if not self._told:
            self._told = True
            warn(
                SystemMessageWarning,
                f"the chat template of {self._owner} takes no such system message: it is put before the user's text",
                event="system_merged",
                model=self._owner,
            )


def _with_argument_texts(message: Turn) -> Turn:
    """A message whose calls have their arguments as JSON text, which some templates put into theirs as they are."""
    calls = [
        {**call, "function": {**call["function"], "arguments": _tojson(call["function"]["arguments"])}}
        for call in message.get("tool_calls", ())
    ]
    return {**message, "tool_calls": calls} if calls else message


def _ways(messages: Sequence[Turn]) -> Iterator[Sequence[Turn]]:
    """As they are; with the first system message alone left where it is; with none."""
    yield messages
    if messages[0]["role"] == "system":
        yield [messages[0], *_merged(messages[1:])]
    yield _merged(messages)


def _merged(messages: Sequence[Turn]) -> list[Turn]:
    """System messages as the beginning of the user turns that follow them; behind the last, as one of their own."""
    merged: list[Turn] = []
    waiting: list[str] = []
    for message in messages:
        if message["role"] == "system":
            waiting.append(message["content"])
        elif message["role"] == "user":
            merged.append({**message, "content": "\n".join([*waiting, message["content"]])})
            waiting = []
        else:
            merged.append(message)
    if not waiting:
        return merged
    if merged and merged[-1]["role"] == "user":  # many templates want turns to alternate
        waiting.insert(0, merged.pop()["content"])
    return [*merged, {"role": "user", "content": "\n".join(waiting)}]


def is_token(tokenizer: Tokenizer, name: str) -> bool:
    """Whether a name is one token of a vocabulary, be it a control token's."""
    return len(tokenizer.encode(name, add_bos=False, parse_special=True)) == 1


def no_template(owner: str) -> ConfigurationError:
    return ConfigurationError(
        f"{owner} has no chat template",
        hint="load it with chat_template=file.jinja, or use complete() with a raw prompt",
    )


def template_text(wanted: str) -> str:
    """What ``chat_template=`` names: the template itself, or the file that holds it.

    Raises :class:`ConfigurationError` for a file that is missing or holds no text.
    """
    if "{{" in wanted or "{%" in wanted:
        return wanted
    hint = "a Jinja file, or a template's own text"
    try:
        with Path(wanted).expanduser().open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except (OSError, RuntimeError, ValueError) as error:  # no such file, ~nobody, no name of a file at all
        reason = getattr(error, "strerror", None) or error
        raise ConfigurationError(f"chat_template={wanted!r} cannot be read: {reason}", hint=hint) from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text or len(data) > _MAX_BYTES:
        raise ConfigurationError(f"chat_template={wanted!r} is no text file", hint=hint)
    if "messages" not in text:
        raise ConfigurationError(f"chat_template={wanted!r} is no chat template: it reads no messages", hint=hint)
    return text


# --- what templates find -------------------------------------------------------------------------


class _Generation(jinja2.ext.Extension):
    """``{% generation %}`` marks what an assistant wrote, for training. What is in it is text as any other."""

    tags = {"generation"}  # noqa: RUF012  # jinja2 declares it so

    def parse(self, parser: Any) -> Any:
        parser.stream.skip(1)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson_filter
    environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    return environment


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


@jinja2.pass_context
def _tojson_filter(context: jinja2.runtime.Context, value: Any, *arguments: Any, **options: Any) -> str:
    """What a tool, a call or its result holds never becomes a control token: in JSON a letter has another spelling."""
    text = _tojson(value, *arguments, **options)
    for name in context.get(_CONTROL, ()):
        if name and name in text:
            text = text.replace(name, f"\\u{ord(name[0]):04x}{name[1:]}")
    return text


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own escapes what HTML would misread."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
