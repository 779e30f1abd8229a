"""What the core needs to know of a vocabulary, and the text that streams out of token bytes."""

from __future__ import annotations

import codecs
import enum
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, Protocol, TypeAlias, TypedDict, get_args

import numpy as np

from .errors import ConfigurationError, InvalidRequest, VocabularyMismatch

ChatRole: TypeAlias = Literal["system", "developer", "user", "assistant"]


class TextPart(TypedDict):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str


class Message(TypedDict):
    """One chat message. ``developer`` is the newer name of ``system``; parts of a content are joined as they are."""

    role: ChatRole
    content: str | Sequence[TextPart]


Turn: TypeAlias = Mapping[str, str]
"""A checked message: ``role`` (system, user or assistant) and ``content``, a text."""


class TokenClass(enum.IntEnum):
    """What kind of text a token is; a signal for policies."""

    SPECIAL = 0
    WORD_START = 1
    WORD_INNER = 2
    DIGIT = 3
    PUNCTUATION = 4
    SPACE = 5
    BYTE = 6


class Tokenizer(Protocol):
    """One model's vocabulary and chat template."""

    @property
    def n_vocab(self) -> int:
        """Ids run from 0 to ``n_vocab - 1``; padding rows behind them are not read."""

    @property
    def eog_ids(self) -> frozenset[int]:
        """Ids that end a generation; there may be several."""

    @property
    def special_ids(self) -> frozenset[int]:
        """Control tokens, which are no part of a text."""

    @property
    def unused_ids(self) -> frozenset[int]:
        """Ids that mean nothing and may differ between models of one family."""

    def piece(self, token: int) -> bytes:
        """The bytes of one token (a control token's name)."""

    def encode(self, text: str, *, add_bos: bool, parse_special: bool = False) -> list[int]:
        """Ids of ``text``. ``parse_special`` only for text that no user wrote."""

    def encode_chat(self, messages: Sequence[Turn]) -> list[int]:
        """Ids of a conversation in this model's template, up to where the assistant begins."""


def vocabulary_hash(tokenizer: Tokenizer) -> str:
    """SHA-256 over id and bytes of every token that means something.

    Sizes are not compared: models of one family differ in padding rows.
    """
    digest = hashlib.sha256()
    skipped = tokenizer.unused_ids
    for token in range(tokenizer.n_vocab):
        if token not in skipped:
            piece = tokenizer.piece(token)
            digest.update(f"{token}:{len(piece)}:{token in tokenizer.special_ids}:".encode())
            digest.update(piece)
    return digest.hexdigest()


def require_same_vocabulary(fast: Tokenizer, slow: Tokenizer, *, fast_name: str, slow_name: str) -> None:
    """Raise :class:`VocabularyMismatch` unless equal ids mean equal bytes in both."""
    if vocabulary_hash(fast) == vocabulary_hash(slow):
        return
    skipped = fast.unused_ids | slow.unused_ids
    for token in range(max(fast.n_vocab, slow.n_vocab)):
        if token in skipped:
            continue
        ours = fast.piece(token) if token < fast.n_vocab else None
        theirs = slow.piece(token) if token < slow.n_vocab else None
        if ours != theirs or (token in fast.special_ids) != (token in slow.special_ids):
            difference = f"id {token} is {ours!r} in {fast_name} and {theirs!r} in {slow_name}"
            if ours == theirs:
                control = fast_name if token in fast.special_ids else slow_name
                difference = f"id {token}, {ours!r}, is a control token in {control} alone"
            break
    else:
        difference = "they use different ids as padding"
    raise VocabularyMismatch(
        f"{fast_name} and {slow_name} have different vocabularies: {difference}",
        hint="take two models of one family: token-level routing needs identical vocabularies",
    )


def encode_after(tokenizer: Tokenizer, before: str, text: str) -> list[int]:
    """Ids of ``text`` behind ``before``: cut with the word before it in view, where the cut falls between."""
    # A replacement character stands for bytes that are no text, and would be cut in another way.
    tail = before[-32:].rpartition("\N{REPLACEMENT CHARACTER}")[2]
    ids = tokenizer.encode(tail + text, add_bos=False)
    pieces = [tokenizer.piece(token) for token in ids]
    own, size = 0, sum(map(len, pieces))
    while size > len(text.encode()):
        size -= len(pieces[own])
        own += 1
    if b"".join(pieces[own:]) == text.encode():
        return ids[own:]
    return _encode_within(tokenizer, text)


def _encode_within(tokenizer: Tokenizer, text: str, *, parse_special: bool = False) -> list[int]:
    """Ids of ``text`` as behind a line break: many vocabularies put a space before what begins a text."""
    line_break = tokenizer.encode("\n", add_bos=False)
    ids = tokenizer.encode("\n" + text, add_bos=False, parse_special=parse_special)
    if ids[: len(line_break)] == line_break:
        return ids[len(line_break) :]
    # It was taken into a token of the text.
    return tokenizer.encode(text, add_bos=False, parse_special=parse_special)


def encode_conversation(
    tokenizer: Tokenizer, messages: Sequence[Turn], render: Callable[[Sequence[Turn]], str], *, bos: int | None
) -> list[int]:
    """Ids of messages in the template that ``render`` puts them in, behind ``bos`` where there is one.

    No user's text becomes a control token: where a message holds the name of one, template and contents are cut
    apart, the template around stand-ins and each content as plain text.
    """
    control = {tokenizer.piece(token) for token in tokenizer.special_ids} - {b""}
    if any(name in message["content"].encode() for message in messages for name in control):
        ids = _encode_apart(tokenizer, messages, render)
    else:
        ids = tokenizer.encode(render(messages), add_bos=False, parse_special=True)
    return ids if bos is None or ids[:1] == [bos] else [bos, *ids]


def _encode_apart(tokenizer: Tokenizer, messages: Sequence[Turn], render: Callable[[Sequence[Turn]], str]) -> list[int]:
    contents, around = {}, []
    for number, message in enumerate(messages):
        content, stand_in = message["content"], f"\x02{number}\x03"
        contents[stand_in] = content.strip()
        # White space stays around a stand-in: some templates trim it, some do not.
        shown = content.replace(content.strip(), stand_in, 1) if content.strip() else content
        around.append({**message, "content": shown})
    ids: list[int] = []
    for part in filter(None, re.split("(\x02\\d+\x03)", render(around))):
        text, parse = contents.get(part, part), part not in contents
        if ids and ids[-1] not in tokenizer.special_ids:
            ids += _encode_within(tokenizer, text, parse_special=parse)
        else:
            ids += tokenizer.encode(text, add_bos=False, parse_special=parse)
    return ids


def token_classes(tokenizer: Tokenizer) -> np.ndarray:
    """int8 of shape (n_vocab,): the :class:`TokenClass` of every id."""
    classes = np.empty(tokenizer.n_vocab, np.int8)
    special, unused = tokenizer.special_ids, tokenizer.unused_ids
    for token in range(tokenizer.n_vocab):
        classes[token] = (
            TokenClass.SPECIAL if token in special or token in unused else _class_of(tokenizer.piece(token))
        )
    return classes


def _class_of(piece: bytes) -> TokenClass:
    try:
        text = piece.decode()
    except UnicodeDecodeError:
        return TokenClass.BYTE
    stripped = text.strip()
    if not stripped:
        return TokenClass.SPACE
    if stripped.isnumeric():
        return TokenClass.DIGIT
    if not any(c.isalnum() for c in stripped):
        return TokenClass.PUNCTUATION
    return TokenClass.WORD_START if text[0].isspace() else TokenClass.WORD_INNER


def require_text(text: object, what: str = "prompt") -> str:
    """``text`` itself, or :class:`InvalidRequest` when it is no valid, non-empty text."""
    if not isinstance(text, str):
        raise InvalidRequest(f"the {what} must be a str, not {type(text).__name__}", hint="decode bytes first")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"the {what} is not valid text: character {error.start} is a lone surrogate, which UTF-8 cannot hold",
            hint="read the input as UTF-8 with errors='strict' or 'replace'",
        ) from None
    if not text:
        raise InvalidRequest(f"the {what} is empty", hint="give at least one character")
    return text


def require_messages(messages: object) -> list[dict[str, str]]:
    """A checked copy of chat messages as :data:`Turn`; :class:`InvalidRequest` names the one that is wrong."""
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence) or not messages:
        raise InvalidRequest("messages must be a non-empty list", hint='like [{"role": "user", "content": "..."}]')
    checked: list[dict[str, str]] = []
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise InvalidRequest(f"message {number} is {type(message).__name__}, not a mapping")
        if unknown := set(message) - {"role", "content"}:
            raise InvalidRequest(
                f"message {number} has unsupported fields: {', '.join(sorted(map(str, unknown)))}",
                hint="only role and content are supported; tools and images are not",
            )
        role = message.get("role")
        if role not in get_args(ChatRole):
            raise InvalidRequest(f"message {number} has role {role!r}, not one of {', '.join(get_args(ChatRole))}")
        # Few chat templates know the newer name.
        checked.append({"role": "system" if role == "developer" else str(role), "content": _content(message, number)})
    if checked[-1]["role"] == "assistant":
        raise InvalidRequest("the last message is the assistant's", hint="end with a user message")
    return checked


def _content(message: Mapping[str, object], number: int) -> str:
    content, what = message.get("content"), f"content of message {number}"
    if isinstance(content, Sequence) and not isinstance(content, (str, bytes)):
        content = "".join(_text_of(part, what) for part in content)
    # A model may have answered nothing; a user may not ask nothing.
    if content == "" and message["role"] == "assistant":
        return ""
    return require_text(content, what)


def _text_of(part: object, what: str) -> str:
    if not isinstance(part, Mapping):
        raise InvalidRequest(
            f"the {what} holds a {type(part).__name__}", hint='parts are {"type": "text", "text": ...}'
        )
    if part.get("type") != "text":
        raise InvalidRequest(
            f"the {what} has a part of type {part.get('type')!r}", hint="only text is supported; images are not"
        )
    text = part.get("text")
    if not isinstance(text, str):
        raise InvalidRequest(f"the {what} has a part whose text is {type(text).__name__}", hint="a str")
    return text


class TextStream:
    """Token bytes in, text out: never half a character, never past a stop string.

    ``push`` returns what may be shown now. A tail that could be the beginning of a stop string, or
    of a character, waits for the next token.
    """

    def __init__(self, stop: Iterable[str] = ()) -> None:
        self.stop = tuple(stop)
        if not all(self.stop):
            raise ConfigurationError("a stop string is empty", hint="leave it out")
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.stopped = False

    def push(self, piece: bytes) -> str:
        return self._release(self._decoder.decode(piece))

    def flush(self) -> str:
        """What was still held back when the answer ended."""
        text = self._release(self._decoder.decode(b"", final=True))
        if not self.stopped:
            text, self._held = text + self._held, ""
        return text

    def _release(self, text: str) -> str:
        if self.stopped or not self.stop:
            return "" if self.stopped else text
        text = self._held + text
        found = [at for at in (text.find(word) for word in self.stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max(_overlap(text, word) for word in self.stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    @property
    def complete(self) -> bool:
        """False where the bytes so far end inside a character."""
        return not self._decoder.getstate()[0]

    def copy(self) -> TextStream:
        twin = TextStream(self.stop)
        twin._decoder.setstate(self._decoder.getstate())
        twin._held, twin.stopped = self._held, self.stopped
        return twin


def _overlap(text: str, word: str) -> int:
    """Length of the longest end of ``text`` that begins ``word``."""
    for size in range(min(len(word) - 1, len(text)), 0, -1):
        if text.endswith(word[:size]):
            return size
    return 0
