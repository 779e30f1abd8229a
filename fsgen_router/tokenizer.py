"""What the core needs to know of a vocabulary, and the text that streams out of token bytes."""

from __future__ import annotations

import codecs
import enum
import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, TypedDict, cast, get_args

import numpy as np

from .errors import ConfigurationError, InvalidRequest, VocabularyMismatch
from .reading import Alignment

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


class SystemMessageWarning(UserWarning):
    """A model's chat template takes no such system message: it was put before the user's text instead."""


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

    def encode_chat(self, messages: Sequence[Turn], chat_template_kwargs: Mapping[str, Any] | None = None) -> list[int]:
        """Ids of a conversation in this model's template, up to where the assistant begins.

        ``chat_template_kwargs`` are variables for the template, such as ``enable_thinking``.
        """


# What opens and closes reasoning. Where one is a control token it still is part of the text: without it, what was
# thought would read as the answer's beginning.
_THINKING = frozenset(
    name.encode()
    for name in (
        *("<think>", "</think>", "<seed:think>", "</seed:think>"),
        *("[THINK]", "[/THINK]"),  # Magistral
        *("<|START_THINKING|>", "<|END_THINKING|>"),  # Command
        *("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
        *("<|channel>", "<channel|>"),  # Gemma 4
    )
)


def hidden_ids(tokenizer: Tokenizer, special_ids: frozenset[int] | None = None) -> frozenset[int]:
    """Control tokens (None: the tokenizer's own) that are not shown in a text: all but those around reasoning."""
    special = tokenizer.special_ids if special_ids is None else special_ids
    own = range(tokenizer.n_vocab)  # another model's may lie beyond
    return frozenset(token for token in special if token not in own or tokenizer.piece(token) not in _THINKING)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedVocabulary:
    """How the vocabularies of two models relate whose ids mean the same bytes, as far as both have them.

    ``only_fast`` and ``only_slow`` are ids that mean something to one model alone: no answer holds them.
    ``retyped`` ids are control tokens to one alone, and are taken for some in both.
    """

    fast: Tokenizer
    """The fast model's, as this pair uses it."""
    slow: Tokenizer
    n_vocab: int
    """Rows of both models are read up to here."""
    only_fast: tuple[int, ...]
    only_slow: tuple[int, ...]
    retyped: tuple[int, ...]
    eog_ids: frozenset[int]
    special_ids: frozenset[int]
    fast_row: Alignment | None
    """What makes the fast model's rows ones that the slow one can write too; None: they are."""
    slow_row: Alignment | None

    @property
    def same(self) -> bool:
        return not (self.only_fast or self.only_slow or self.retyped)

    def describe(self, fast_name: str, slow_name: str) -> list[str]:
        """In sentences, what is not the same."""
        found = []
        for name, tokenizer, ids in ((fast_name, self.fast, self.only_fast), (slow_name, self.slow, self.only_slow)):
            if ids:
                found.append(f"{name} alone has {_named(tokenizer, ids)}, which neither model will write")
        if self.retyped:
            named = _named(self.fast, self.retyped)
            found.append(f"{fast_name} and {slow_name} disagree on whether {named} are control tokens: taken for some")
        return found


_SHOWN = 4


def _named(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    names = [f"{tokenizer.piece(token).decode(errors='replace')!r} (id {token})" for token in ids[:_SHOWN]]
    more = [f"{len(ids) - _SHOWN:,} more"] if len(ids) > _SHOWN else []
    return ", ".join([*names, *more])


def share_vocabulary(fast: Tokenizer, slow: Tokenizer, *, fast_name: str, slow_name: str) -> SharedVocabulary:
    """What two vocabularies share. One may lack ids of the other, at its end or in the middle.

    Raises :class:`VocabularyMismatch` where an id means other bytes, and where a model could not end an answer.
    """
    n_vocab = min(fast.n_vocab, slow.n_vocab)
    known = [frozenset(range(tokenizer.n_vocab)) - tokenizer.unused_ids for tokenizer in (fast, slow)]
    both = known[0] & known[1]
    for token in range(n_vocab):
        if fast.piece(token) != slow.piece(token) and token in both:
            raise VocabularyMismatch(
                f"{fast_name} and {slow_name} have different vocabularies: id {token} is {fast.piece(token)!r} in "
                f"{fast_name} and {slow.piece(token)!r} in {slow_name}",
                hint="take two models of one family: token-level routing needs ids that mean the same bytes",
            )
    lone, eog_ids = known[0] ^ known[1], fast.eog_ids | slow.eog_ids
    # Rather an end to both than to one, and rather one that both know.
    places = (fast.eog_ids & slow.eog_ids & both, eog_ids & both, {token for token in eog_ids if token < n_vocab})
    end = next((min(place) for place in places if place), -1)
    if end < 0 and eog_ids:
        raise VocabularyMismatch(
            f"{fast_name} and {slow_name} have no end of a generation in common: {sorted(eog_ids)} is all there is, "
            f"and they share the ids 0 to {n_vocab - 1}",
            hint="take a file whose vocabulary says how an answer ends",
        )

    def row(tokenizer: Tokenizer, own: frozenset[int]) -> Alignment | None:
        moved = tokenizer.eog_ids & lone & own
        ends = sorted((moved | {end}) & own) if moved - {end} else []
        forbidden = sorted(token for token in lone if token < n_vocab and not (token == end and moved))
        if tokenizer.n_vocab == n_vocab and not forbidden and not ends:
            return None
        return Alignment(
            n_vocab=n_vocab, forbidden=np.array(forbidden, np.int64), ends=np.array(ends, np.int64), end=end
        )

    special_ids = fast.special_ids | slow.special_ids
    retyped = (fast.special_ids ^ slow.special_ids) & both
    return SharedVocabulary(
        fast=_Retyped.of(fast, retyped),
        slow=_Retyped.of(slow, retyped),
        n_vocab=n_vocab,
        only_fast=tuple(sorted(known[0] - known[1])),
        only_slow=tuple(sorted(known[1] - known[0])),
        retyped=tuple(sorted(retyped)),
        eog_ids=frozenset(token for token in eog_ids if token < n_vocab),
        special_ids=special_ids,
        fast_row=row(fast, known[0]),
        slow_row=row(slow, known[1]),
    )


class _Retyped:
    """A tokenizer with further control tokens, whose file has them as text: no text becomes one, and templates do.

    All else is the tokenizer's own.
    """

    def __init__(self, inner: Tokenizer, control_ids: frozenset[int]) -> None:
        self._inner = inner
        self.special_ids = inner.special_ids | control_ids
        further = {inner.piece(token).decode(errors="replace"): token for token in control_ids - inner.special_ids}
        self._ids = {name: token for name, token in further.items() if name}
        longest_first = sorted(self._ids, key=len, reverse=True)
        self._name = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    @classmethod
    def of(cls, tokenizer: Tokenizer, control_ids: frozenset[int]) -> Tokenizer:
        return cast(Tokenizer, cls(tokenizer, control_ids)) if control_ids - tokenizer.special_ids else tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def encode(self, text: str, *, add_bos: bool, parse_special: bool = False) -> list[int]:
        names = list(self._name.finditer(text))
        if parse_special and names:
            return self._around(names, text, add_bos=add_bos)
        ids = self._inner.encode(text, add_bos=add_bos, parse_special=parse_special)
        if not names or set(self._ids.values()).isdisjoint(ids):
            return ids
        # Cut within each name, which is then no token's.
        cuts = [0, *(name.start() + 1 for name in names), len(text)]
        first, *parts = (text[start:stop] for start, stop in itertools.pairwise(cuts))
        ids = self._inner.encode(first, add_bos=add_bos)
        for part in parts:
            ids += _encode_within(self._inner, part)
        return ids

    def _around(self, names: Sequence[re.Match[str]], text: str, *, add_bos: bool) -> list[int]:
        ids, at = self._inner.encode("", add_bos=add_bos), 0
        for name in names:
            ids += [*self._part(text[at : name.start()]), self._ids[name[0]]]
            at = name.end()
        return ids + self._part(text[at:])

    def _part(self, text: str) -> list[int]:
        return self._inner.encode(text, add_bos=False, parse_special=True) if text else []

    def encode_chat(self, *arguments: Any, **options: Any) -> list[int]:
        """The tokenizer's own, which cuts texts by this one's :meth:`encode`."""
        ids: list[int] = type(self._inner).encode_chat(cast(Any, self), *arguments, **options)
        return ids


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


def token_classes(tokenizer: Tokenizer, special_ids: frozenset[int] = frozenset()) -> np.ndarray:
    """int8 of shape (n_vocab,): the :class:`TokenClass` of every id. ``special_ids`` are control tokens too."""
    classes = np.empty(tokenizer.n_vocab, np.int8)
    special, unused = tokenizer.special_ids | special_ids, tokenizer.unused_ids
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
