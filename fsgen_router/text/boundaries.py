"""Where a text may be cut: between words, and at the end of a sentence, a line or a step."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from ..contracts.policy import Until

# Scripts that put no space between words, and their punctuation.
_UNSPACED = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3001-\u303f\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff01-\uff9f\U00020000-\U0003134f]"
)
_CLOSERS = "\"'”’»›)\\]}*_`」』）】"
_ENDS = re.compile(f"[.!?…‼⁇⁈⁉؟۔।॥։][{_CLOSERS}]*$")
_WIDE_ENDS = re.compile(f"[。！？｡]+[{_CLOSERS}]*")
_NUMBERED = re.compile(r"[#*> ]*(?:\d{1,3}[.)]|Step)(?=\s)")
_BEGINS_STEP = re.compile(r"\s*\n[#*>\s]*(?:\d{1,3}[.)]?|S|St|Ste|Step)?\s*$")
_SURE_ENDS = frozenset(".,;:!?…)]}\"'”’»")
_ABBREVIATIONS = re.compile(r"(?i)al|approx|cf|dr|e\.g|eq|fig|i\.e|inc|jr|ltd|mr|mrs|ms|prof|resp|sr|st|vs")
_JOINER = "\N{ZERO WIDTH JOINER}"


def breaks(before: str, after: str) -> bool:
    """Whether a text may be cut between two parts of it: before white space, or where a script has none.

    Never within white space, before a mark that belongs to the character before it, or at a joiner.
    """
    if not before or not after:
        return True
    last, first = before[-1], after[0]
    if first.isspace() or last.isspace():
        return not last.isspace()
    if last == _JOINER or first == _JOINER or unicodedata.category(first).startswith("M"):
        return False
    return bool(_UNSPACED.match(last) or _UNSPACED.match(first))


def whole_words(text: str) -> int:
    """The length of ``text`` without white space at its end, and without a last word that may go on."""
    end = len(text.rstrip())
    if end < len(text):
        return end
    if not text or _is_over(text):
        return end
    word = end - len(text.rsplit(None, 1)[-1])
    cuts = (at for at in range(end - 1, word, -1) if breaks(text[at - 1], text[at]))
    return next(cuts, len(text[:word].rstrip()))


def sure_of(text: str, until: Until) -> int:
    """How much of a span's ``text`` will stand, whatever comes behind it: whole words, before a mark of a step."""
    size = whole_words(text)
    mark = _BEGINS_STEP.search(text) if until == "step" else None
    return size if mark is None else min(size, mark.start())


def _is_over(text: str) -> bool:
    """Whether the last word has come to its end; a number may go on behind a point."""
    return text[-1] in _SURE_ENDS and not text[-2:-1].isdigit()


def end_of(text: str, until: Until) -> int | None:
    """Where the first sentence, line or step of ``text`` ends, before the white space behind it; None: not in it.

    A *line* ends at a line break; a *step* at a blank line, or at a line break before a numbered line or one that
    begins with "Step"; a *sentence* at a line break, and at its mark where white space and no lower-case letter
    follows (Unicode Standard Annex 29, rules SB8 and SB11), the marks of scripts without spaces aside. White space
    before the first word ends nothing. What ``text`` does not decide yet is None.
    """
    return min(_ends(text, until), default=None)


def _ends(text: str, until: Until) -> Iterator[int]:
    """Ends in ``text``; the first of each kind is enough."""
    for run in re.finditer(r"(?<=\S)\s+", text):
        breaks_line, behind = "\n" in run[0], text[run.end() : run.end() + 16]
        if (
            (until == "line" and breaks_line)
            or (until == "step" and breaks_line and (run[0].count("\n") > 1 or _NUMBERED.match(behind)))
            or (
                until == "sentence"
                and (breaks_line or (behind and _ends_sentence(text[max(run.start() - 80, 0) : run.start()], behind)))
            )
        ):
            yield run.start()
            break
    if until == "sentence":
        wide = (mark.end() for mark in _WIDE_ENDS.finditer(text) if mark.end() < len(text))
        yield from ([end] if (end := next(wide, None)) is not None else [])


def _ends_sentence(before: str, behind: str) -> bool:
    mark = _ENDS.search(before[-16:])
    if mark is None or behind[0].islower():
        return False
    if mark[0][0] != ".":
        return True
    line = before[: len(before) - len(mark[0])].rpartition("\n")[2]
    word = line.split()[-1].lstrip("(\"'“‘*_") if line.split() else ""
    number_of_line = word.isdigit() and word == line.strip()
    initial = len(word) == 1 and word.isupper() and behind[0].isupper()
    return not (number_of_line or initial or _ABBREVIATIONS.fullmatch(word))
