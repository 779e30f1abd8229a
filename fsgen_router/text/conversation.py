"""Text and conversations as token ids, cut as a tokenizer cuts them in their place."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from ..contracts.tokenizer import Tokenizer, Turn


class SystemMessageWarning(UserWarning):
    """A model's chat template takes no such system message: it was put before the user's text instead."""


def encode_after(tokenizer: Tokenizer, before: str, text: str) -> list[int]:
    """Ids of ``text`` behind ``before``: cut with the word before it in view, where the cut falls between.

    Their bytes are those of ``text``, as far as the vocabulary has them: some tokenizers normalise what they cut.
    """
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
    ids = encode_within(tokenizer, text)
    return ids if _says(tokenizer, ids, text) else _encode_in_parts(tokenizer, text, _spelling(tokenizer))


def _says(tokenizer: Tokenizer, ids: Sequence[int], text: str) -> bool:
    return b"".join(map(tokenizer.piece, ids)) == text.encode()


def _spelling(tokenizer: Tokenizer) -> dict[bytes, int]:
    """Tokens of single characters and bytes."""
    hidden = tokenizer.special_ids | tokenizer.unused_ids
    pieces = ((tokenizer.piece(token), token) for token in range(tokenizer.n_vocab) if token not in hidden)
    return {piece: token for piece, token in pieces if len(piece) <= 4}


def _encode_in_parts(tokenizer: Tokenizer, text: str, spelling: Mapping[bytes, int]) -> list[int]:
    """Ids of a text that a tokenizer changes: of the parts that it leaves as they are, and bytes of the rest."""
    ids = encode_within(tokenizer, text)
    if _says(tokenizer, ids, text):
        return ids
    if len(text) > 1:
        halves = text[: len(text) // 2], text[len(text) // 2 :]
        return [token for half in halves for token in _encode_in_parts(tokenizer, half, spelling)]
    character = text.encode()
    parts = [character] if character in spelling else [bytes([byte]) for byte in character]
    return [spelling[part] for part in parts] if all(part in spelling for part in parts) else ids


def encode_within(tokenizer: Tokenizer, text: str, *, parse_special: bool = False) -> list[int]:
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
            ids += encode_within(tokenizer, text, parse_special=parse)
        else:
            ids += tokenizer.encode(text, add_bos=False, parse_special=parse)
    return ids
