"""Where a continuation meets the text that it continues: checked, and mended where that is possible.

An endpoint that only can be told in words to go on does what chat models do: it says that it will, repeats the end of
what was written or all of it, puts quotation marks or a code fence around its text, and leaves the space out that the
text would begin with. Each of these is taken off or put in, and told by its name (:data:`TextChunk.repairs`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fsgen_router.errors import BackendError

_LEAST = 12
"""Characters, white space aside: a repetition of fewer happens by chance, unless it is all that was written."""
_MID_SENTENCE, _BEHIND_SENTENCE = 10, 64
"""Characters by which a text that begins like the answer is known to begin it anew."""
_TAIL, _LEAST_TAIL = 24, 8
"""Characters of the answer's end that are looked for in such a text."""
_AGAIN = r"continu|left off|cut off|stopped|rest of|remain|picking up"
_POLITE = r"sure(?: thing)?|certainly|of course|absolutely|okay|understood|got it|apologies|sorry"
_STARTS = rf"{_POLITE}|here(?:['’]s| is| are)|i(?:['’]ll| will)|let me|picking up|resuming"
_INTRODUCTION = re.compile(
    rf"[*_#> ]*(?:(?:{_POLITE})[!.,:]*|continu\w*[^\n]{{0,60}}[:…*_]+"
    rf"|(?:{_STARTS})\b[^\n]{{0,80}}?(?:{_AGAIN})[^\n]{{0,80}}[:.!…*_]+)[ \t]*\n\s*",
    re.IGNORECASE,
)
_POLITE_WORD = re.compile(rf"(?:{_POLITE})[!.,:]\s+", re.IGNORECASE)
_POLITE_STARTS = (
    *("sure", "certainly", "of course", "absolutely", "okay", "understood", "got it", "apologies", "sorry", "here's"),
    *("here’s", "here is", "here are", "i'll", "i’ll", "i will", "let me", "picking up", "resuming", "continu"),
)
_LONGEST_INTRODUCTION = 160
_FENCE = re.compile(r"```[^\n`]*\n")
_OPENING = "\"'“‘«([{*_`$"
_OPENERS = {'"': '"', "“": "”", "«": "»", "...": "", "…": ""}


@dataclass(frozen=True, slots=True)
class _Folded:
    """A text without its white space, and where each character of it stood."""

    text: str
    places: tuple[int, ...]

    @classmethod
    def of(cls, text: str) -> _Folded:
        kept = [(at, character) for at, character in enumerate(text) if not character.isspace()]
        return cls("".join(character for _, character in kept), tuple(at for at, _ in kept))

    def end(self, size: int) -> int:
        """Where the first ``size`` characters end in the whole text."""
        return self.places[size - 1] + 1 if size else 0


class Seam:
    """Takes a continuation in pieces of any size, and gives it as it joins ``written``.

    ``gap`` is the white space that was to follow there. ``told``: the endpoint was told in words to go on; otherwise it
    was left a partial answer, and what may come back of that is all of it, or white space. Text is held back only as
    long as it may still have to be mended; ``repairs`` names what was.

    Raises :class:`BackendError` for a text that begins the answer anew and never comes to its end: shown, it would say
    everything twice.
    """

    def __init__(self, written: str, *, gap: str = "", told: bool = True) -> None:
        self._written, self._gap, self._told = written, gap, told
        self._folded = _Folded.of(written)
        self._begun = not written
        self._held = ""
        self._closer: str | None = None
        """What closes a wrapping that was taken off; its end is held back."""
        self.repairs: list[str] = []

    def push(self, text: str) -> str:
        return self._closed(self._joined(text, last=False), last=False)

    def flush(self) -> str:
        return self._closed(self._joined("", last=True), last=True)

    # --- the beginning ---

    def _joined(self, text: str, *, last: bool) -> str:
        if self._begun:
            return text
        self._held += text
        if not self._held.strip() and not last:
            return ""
        joined = self._join(self._held, last=last)
        if joined is None:
            return ""
        self._begun, self._held = True, ""
        return joined

    def _join(self, said: str, *, last: bool) -> str | None:
        """The continuation, mended; None while more of it has to be known."""
        first = len(said) - len(said.lstrip())
        start = self._introduction(said, first, last=last)
        wrapping = None if start is None else self._wrapping(said[start:], last=last)
        if start is None or wrapping is None:
            return None
        opened, closer = wrapping
        head = _Folded.of(said[start + opened :])
        if not last and self._undecided(head.text):
            return None
        size, name = self._repeated(head, last=last)
        if size < 0:
            return None
        opener = said[start : start + opened]
        if opener and not size and not self._is_wrapping(opener):
            opener, closer = "", None  # it is the text's own
        self._closer = closer
        named = {"introduction": start > first, "wrapping": bool(opener), name: size > 0}
        rest = said[start + len(opener) + head.end(size) :]
        lead = said[:first] if start == first and not size else ""
        text = self._spaced(lead + rest, again=size > 0, line=start > first or opener.startswith("```"))
        named["space"] = text != lead + rest
        self.repairs += [repair for repair, done in named.items() if done]
        return text

    def _introduction(self, said: str, at: int, *, last: bool) -> int | None:
        """Where the text begins behind words about it; None while that is not known."""
        if not self._told:
            return at
        head = said[at:]
        found = _INTRODUCTION.match(head)
        if found is not None:
            return at + found.end()
        polite = _POLITE_WORD.match(head)
        if polite is not None and self._mid_sentence and "\n" in head:
            return at + polite.end()
        waiting = "\n" not in head and len(head) < _LONGEST_INTRODUCTION and not last
        begun = head.lstrip("*_#> ").lower()
        if waiting and any(begun.startswith(word) or word.startswith(begun) for word in _POLITE_STARTS):
            return None
        if polite is not None and self._mid_sentence:
            return at + polite.end()
        return at

    def _wrapping(self, head: str, *, last: bool) -> tuple[int, str | None] | None:
        """How much at the beginning opens a wrapping, and what would close it; None while that is not known."""
        if not self._told:
            return 0, None
        fence = _FENCE.match(head)
        if fence is not None and self._fenced:
            # One that names its language was opened again, and is closed in the text; another one closes.
            return (fence.end(), "") if fence[0] != "```\n" else (0, None)
        if fence is not None:
            return fence.end(), "```"
        if not last and (
            head in ("", ".", "..", "`", "``") or (head.startswith("```") and "\n" not in head and len(head) < 40)
        ):
            return None
        for opener, closer in _OPENERS.items():
            if head.startswith(opener):
                return len(opener), closer
        return 0, None

    def _is_wrapping(self, opener: str) -> bool:
        """Whether no text goes on like that behind what was written, a repetition in it or not."""
        if opener.startswith("```"):
            return self._fenced
        closer = _OPENERS[opener]
        return bool(closer) and self._mid_sentence and not self._is_open(opener, closer)

    def _is_open(self, opener: str, closer: str) -> bool:
        """Whether a quotation is under way where the answer ends."""
        if opener == closer:
            return self._written.count(opener) % 2 == 1
        return self._written.count(opener) > self._written.count(closer)

    @property
    def _fenced(self) -> bool:
        return len(re.findall(r"(?m)^\s*```", self._written)) % 2 == 1

    @property
    def _mid_sentence(self) -> bool:
        end = self._folded.text[-1:]
        return end.isalnum() or end in ",;-"

    # --- what is repeated ---

    def _undecided(self, head: str) -> bool:
        """Whether it may still turn out to be a repetition."""
        if not self._folded.text:
            return False
        return head in self._folded.text if self._told else self._folded.text.startswith(head)

    def _repeated(self, head: _Folded, *, last: bool) -> tuple[int, str]:
        """Characters at the beginning that were written before, and how they came; below 0 while that is not known."""
        written, said = self._folded.text, head.text
        if not self._told:
            whole = said.startswith(written) and len(written) >= _LEAST
            return (len(written), "repetition") if whole else (0, "")
        sizes = range(min(len(said), len(written)), 0, -1)
        size = next((n for n in sizes if written.endswith(said[:n]) and self._counts(head, n)), 0)
        if size:
            return size, "restart" if size == len(written) else "repetition"
        same = next(
            (n for n, (a, b) in enumerate(zip(said, written, strict=False)) if a != b), min(len(said), len(written))
        )
        if same < (_MID_SENTENCE if self._mid_sentence else _BEHIND_SENTENCE):
            return 0, ""
        # It begins like the answer and goes on in other words: the text joins where the answer's last words are.
        if (found := said.find(written[-_TAIL:], max(same - _TAIL, 0))) >= 0 and len(written) >= _TAIL:
            return found + _TAIL, "restart"
        if not last and len(said) < 1.5 * len(written) + 200:
            return -1, ""
        for size in range(min(_TAIL, len(written)), _LEAST_TAIL - 1, -1):
            if (found := said.find(written[-size:], max(same - size, 0))) >= 0:
                return found + size, "restart"
        raise BackendError(
            "the continuation begins the answer anew, in other words",
            hint="let it: draft=drop or draft=show in the policy; or take an endpoint that continues a partial answer",
        )

    def _counts(self, head: _Folded, size: int) -> bool:
        if size >= _LEAST:
            return True
        goes_on = head.text[size - 1].isalnum() and head.text[size : size + 1].isalnum()
        apart = len(head.places) > size and head.places[size] > head.places[size - 1] + 1
        return size == len(self._folded.text) and (apart or not goes_on)

    # --- white space ---

    def _spaced(self, text: str, *, again: bool, line: bool) -> str:
        """The text with one gap before it, neither missing nor doubled.

        ``again``: it stood behind what was repeated, as it should. ``line``: a line break that was taken off stood
        before it.
        """
        rest = text.lstrip()
        lead, behind = text[: len(text) - len(rest)], self._written[len(self._written.rstrip()) :]
        if not rest:
            return text
        if behind:
            # White space that was written before comes once.
            sizes = range(min(len(lead), len(behind)), 0, -1)
            return lead[next((size for size in sizes if behind.endswith(lead[:size])), 0) :] + rest
        if not self._told or again:
            return text
        if line and "\n" in self._gap and "\n" not in lead:
            return ("\n" + lead if lead else self._gap) + rest
        if not lead and self._opens_word(rest[0]):
            return self._gap + rest
        if "\n" in lead and "\n" not in self._gap and self._mid_sentence:
            return self._gap + rest  # a line break belongs to no sentence
        return text

    def _opens_word(self, character: str) -> bool:
        return character.isalnum() or (character in _OPENING and not self._is_open(character, character))

    # --- the end ---

    def _closed(self, text: str, *, last: bool) -> str:
        if not self._closer or not self._begun:
            return text
        text = self._held + text
        self._held = ""
        if last:
            end = text.rstrip()
            if not end.endswith(self._closer):
                return text
            end = end.removesuffix(self._closer)
            return end.rstrip("\n") if self._closer == "```" else end
        kept = len(text.rstrip().rstrip(self._closer[0]).rstrip())
        self._held = text[kept:]
        return text[:kept]
