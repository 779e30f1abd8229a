"""Token bytes in, text out."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from ..errors import ConfigurationError


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
