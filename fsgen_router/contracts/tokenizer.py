"""The contract of a tokenizer: one model's vocabulary and chat template."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

Turn: TypeAlias = Mapping[str, Any]
"""A checked message: ``role`` (system, user, assistant or tool) and ``content``, a text.

An assistant's may have ``tool_calls`` (OpenAI's form, ``arguments`` as a JSON object) and ``reasoning_content``, a
tool's has the ``tool_call_id`` that it answers, and the ``name`` of its tool.
"""


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
