"""Whether a server's ids mean what the fast model's mean, and the tokenizer that both have then."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fsgen_router.contracts.tokenizer import Tokenizer, Turn
from fsgen_router.errors import ConfigurationError, VocabularyMismatch
from fsgen_router.support.logs import log
from fsgen_router.text.vocabulary import vocabulary_hash

from ..openai.errors import EndpointError
from .server import Server

BATCH = 4096
"""Ids in one request: some forty requests for a vocabulary of 150,000."""
_TEXTS = (
    "The quick brown fox, 1234567890 times: don't (ever) stop...",
    "Größe, naïve café, 東京都は日本の首都です。 Привет, мир! العربية हिन्दी",
    "🙂👩‍👩‍👧 ∑∞≠ \u200bÿ\ufffd𝔘𝔫𝔦",
    "def f(x):\n    return x ** 2\t# comment\n\n\n  end",
)
"""What both have to cut alike: bytes that are a part of a character show in no text of one token."""
_CONVERSATION: tuple[Turn, ...] = (
    {"role": "user", "content": "Count to four."},
    {"role": "assistant", "content": "1 2 3 4"},
    {"role": "user", "content": "And back again."},
)
_SAID_TO_BE = "the same ids all the same? ?vocabulary=trusted; or name its files: ?tokenizer=folder"


class ServedTokenizer:
    """A local tokenizer for a server's model whose ids mean the same, but for ``lacking``: ids that it does not have.

    A text becomes ids here, so that no user's text becomes a control token. That the server's chat template reads a
    conversation alike is looked at when the first one comes.
    """

    def __init__(self, inner: Tokenizer, lacking: frozenset[int], server: Server, name: str) -> None:
        self._inner, self._server, self._name = inner, server, name
        self.unused_ids = inner.unused_ids | lacking
        self._looked = threading.Lock()
        self._alike: dict[str, bool] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @property
    def n_vocab(self) -> int:
        return self._inner.n_vocab

    @property
    def eog_ids(self) -> frozenset[int]:
        return self._inner.eog_ids

    @property
    def special_ids(self) -> frozenset[int]:
        return self._inner.special_ids

    def piece(self, token: int) -> bytes:
        return self._inner.piece(token)

    def encode(self, text: str, *, add_bos: bool, parse_special: bool = False) -> list[int]:
        return self._inner.encode(text, add_bos=add_bos, parse_special=parse_special)

    def encode_chat(self, messages: Sequence[Turn], chat_template_kwargs: Mapping[str, Any] | None = None) -> list[int]:
        """By the fast model's template. Raises :class:`ConfigurationError` where the server's is another one."""
        variables = dict(chat_template_kwargs or {})
        with self._looked:
            key = repr(sorted(variables.items()))
            if key not in self._alike:
                self._alike[key] = self._reads_alike(variables)
        if not self._alike[key]:
            raise ConfigurationError(
                f"{self._server.name} has another chat template than {self._name}",
                hint=f"load {self._name} with the server's, chat_template=file.jinja, or use complete()",
            )
        return self._inner.encode_chat(messages, chat_template_kwargs)

    def _reads_alike(self, variables: Mapping[str, Any]) -> bool:
        ours = self._inner.encode_chat(_CONVERSATION, variables)
        try:
            return ours == self._server.tokenize_chat(_CONVERSATION, variables)
        except EndpointError as error:
            if not (error.bad_request or error.status in (404, 405, 501)):
                raise
            log.warning("template_unchecked", model=self._server.name, why=error.message)
            return True


_compared: dict[tuple[str, str, str, str], frozenset[int]] = {}
"""What servers' models lack of vocabularies that were compared in this process."""


def compare(server: Server, root: str, tokenizer: Tokenizer, name: str) -> frozenset[int]:
    """Compare every id of a tokenizer with the server's; returns those that the server's lacks.

    By the texts of single tokens, thousands in one request, and by how a few texts are cut, which shows the tokens that
    are a part of a character. Compared once in a process for each model (``root`` is what it was loaded from) and
    vocabulary. Raises :class:`VocabularyMismatch` with the first difference.
    """
    key = server.url, server.model, root, vocabulary_hash(tokenizer)
    if key not in _compared:
        try:
            lacking = _compare(server, tokenizer, name)
        except EndpointError as error:
            if error.status in (404, 405, 501):
                raise ConfigurationError(
                    f"{server.name} has no tokenizer endpoints, so its ids cannot be compared with those of {name}",
                    hint=_SAID_TO_BE,
                ) from None
            raise
        _compared[key] = lacking
    return _compared[key]


def _compare(server: Server, tokenizer: Tokenizer, name: str) -> frozenset[int]:
    between = _separator(server, tokenizer)
    meant = [token for token in range(tokenizer.n_vocab) if token not in tokenizer.unused_ids]
    lacking = set()
    for start in range(0, len(meant), BATCH):
        batch = meant[start : start + BATCH]
        for token, theirs in zip(batch, _texts(server, tokenizer, batch, between), strict=True):
            ours = tokenizer.piece(token).decode(errors="replace")
            if ours and not theirs:
                lacking.add(token)
            elif ours != theirs:
                raise VocabularyMismatch(
                    f"{name} and {server.name} have different vocabularies: id {token} is {ours!r} in {name} and "
                    f"{theirs!r} in {server.name}",
                    hint="serve a model of its family: token-level routing needs ids that mean the same bytes",
                )
    if len(lacking) > len(meant) // 2:
        raise VocabularyMismatch(f"{server.name} tells no text of {len(lacking)} ids of {name}", hint=_SAID_TO_BE)
    for text in _TEXTS:
        our_ids, their_ids = tokenizer.encode(text, add_bos=False), server.tokenize(text)
        if our_ids != their_ids:
            at = next((at for at, (one, other) in enumerate(zip(our_ids, their_ids, strict=False)) if one != other), 0)
            raise VocabularyMismatch(
                f"{name} and {server.name} cut a text differently: {text!r} is {our_ids[at : at + 3]} from token {at} "
                f"on in {name} and {their_ids[at : at + 3]} in {server.name}",
                hint=_SAID_TO_BE,
            )
    return frozenset(lacking)


def _separator(server: Server, tokenizer: Tokenizer) -> int:
    """A control token whose name the server shows, to stand between tokens whose texts are asked for together."""
    for token in sorted(tokenizer.special_ids - tokenizer.unused_ids):
        name = tokenizer.piece(token).decode(errors="replace")
        if len(name) > 2 and name.isascii() and server.detokenize([token, token]) == 2 * name:
            return token
    raise ConfigurationError(
        f"{server.name} shows no control token by its name, so ids cannot be compared in bulk", hint=_SAID_TO_BE
    )


def _texts(server: Server, tokenizer: Tokenizer, ids: Sequence[int], between: int) -> Iterator[str]:
    """The server's text of each id."""
    name = tokenizer.piece(between).decode()
    told = server.detokenize([token for one in ids for token in (between, one)] + [between])
    parts = told.split(name)
    # The separator itself is one of the ids, perhaps: between two of them stands nothing.
    wanted = iter(parts[1:])
    for one in ids:
        text = next(wanted, "")
        if one == between:
            next(wanted, "")
            text = name
        yield text
