"""Where a continuation meets what it continues: texts cut between words, and mended where an endpoint did not go on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsgen_router import BackendError
from fsgen_router.adapters.seams import Seam


def joined(seam: Seam, said: str, size: int = 1000) -> str:
    text = "".join(seam.push(said[at : at + size]) for at in range(0, len(said), size))
    return text + seam.flush()


CODE = "Here you are:\n\n```python\ndef double(x):"
SAYS = [
    # What is no repetition stays.
    ("The answer is 4, because", " two and two", " two and two", ()),
    ("The answer is 4", " The answer differs", " The answer differs", ()),
    ("First of all, the answer is 4", " 4 is even", " 4 is even", ()),
    ("I had", " had enough", " had enough", ()),
    ("She took", " sure steps", " sure steps", ()),
    ("And then:", "\n\n```python\nprint()\n```", "\n\n```python\nprint()\n```", ()),
    (CODE, "\n    return 2 * x\n```\nDone.", "\n    return 2 * x\n```\nDone.", ()),
    ("This is well", "-known.", "-known.", ()),
    ('He said: "Go', '" and left', '" and left', ()),
    ("The list:", "\n1. one\n2. two", "\n1. one\n2. two", ()),
    ("so far", " ", " ", ()),
    # The end of the answer again, or all of it.
    ("The answer is 4, because", "The answer is 4, because two", " two", ("restart",)),
    ("The answer is 4, because", "\n\nThe answer is 4,\nbecause two", " two", ("restart",)),
    ("First of all, the answer is 4", "the answer is 42", "2", ("repetition",)),
    ("It", "It rains", " rains", ("restart",)),
    ("so far", "so far", "", ("restart",)),
    ("so far ", "so far and on", "and on", ("restart", "space")),
    ("ha ha ha ha ha ha", "ha ha ha ha ha ha!", "!", ("restart",)),
    # All of it in other words: it joins where the answer's last words are.
    ("The capital of France is", "The capital city of France is Paris.", " Paris.", ("restart",)),
    (
        "A pound is 16 ounces. Two pounds are 32 ounces. Three pounds are",
        "A pound is 16 ounces, so two pounds are 32 ounces. Three pounds are 48 ounces.",
        " 48 ounces.",
        ("restart",),
    ),
    # Words about it.
    ("The capital is", "Sure! Paris.", "GAPParis.", ("introduction", "space")),
    ("The capital is", "Certainly!\n\nParis.", "GAPParis.", ("introduction", "space")),
    ("The capital is", "Sure, here is the continuation:\n\nParis.", "GAPParis.", ("introduction", "space")),
    ("The capital is", "Continuing from where I left off:\nParis.", "GAPParis.", ("introduction", "space")),
    ("It is so.", "Here's the rest of the answer:\n\nIt is so. And so.", " And so.", ("introduction", "restart")),
    ("The capital is", "**Continuing:**\n\nThe capital is Paris.", " Paris.", ("introduction", "restart")),
    # Something around it.
    ("The capital is", '"Paris."', "GAPParis.", ("wrapping", "space")),
    ("The capital of France is", "“The capital of France is Paris.”", " Paris.", ("wrapping", "restart")),
    ("The capital of France is", "...capital of France is Paris.", " Paris.", ("wrapping", "repetition")),
    ("The capital of France is", "```\nThe capital of France is Paris.\n```\n", " Paris.", ("wrapping", "restart")),
    (CODE, "```python\n    return 2 * x\n```", "    return 2 * x\n```", ("wrapping",)),
    # White space.
    ("The capital is", "Paris.", "GAPParis.", ("space",)),
    ("The capital is", "\n\nParis.", "GAPParis.", ("space",)),
    ("The capital is", ", of course, Paris.", ", of course, Paris.", ()),
    ("The capital ", " is Paris", "is Paris", ("space",)),
    ("The end.\n", "\nAnother.", "Another.", ("space",)),
]


@pytest.mark.parametrize(("answer", "said", "added", "repairs"), SAYS)
def test_what_chat_models_say_is_joined(answer: str, said: str, added: str, repairs: tuple[str, ...]) -> None:
    """However it is cut into pieces; with the space that the draft had there."""
    for size in (1, 2, 3, 7, 1000):
        seam = Seam(answer, gap=" ")
        assert joined(seam, said, size) == added.replace("GAP", " ")
        assert tuple(seam.repairs) == repairs


@pytest.mark.parametrize(
    ("answer", "gap", "said", "added"),
    [
        ("It", "", "aly", "aly"),  # in the middle of a word
        ("1", "", "12", "12"),
        ("好。", "", "我们", "我们"),  # a script without spaces
        ("The end.", "\n\n", "Another.", "\n\nAnother."),
        (CODE, "\n    ", "```python\n    return 2 * x\n```", "\n    return 2 * x\n```"),
        (CODE, "\n    ", "Sure, I'll continue:\n\nreturn 2 * x", "\n    return 2 * x"),
        ("The end.", " ", "\n\nAnother.", "\n\nAnother."),
    ],
)
def test_the_gap_is_the_drafts_own(answer: str, gap: str, said: str, added: str) -> None:
    for size in (1, 4, 1000):
        assert joined(Seam(answer, gap=gap), said, size) == added


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_an_answer_that_is_begun_anew_in_other_words_is_no_continuation(size: int) -> None:
    seam = Seam("The capital of France is", gap=" ")
    with pytest.raises(BackendError, match=r"begins the answer anew.*draft=drop"):
        joined(seam, "The capital of Germany would be Berlin. " * 20, size)


def test_a_partial_answer_that_comes_back_is_taken_off() -> None:
    """Where an endpoint was left one: Mistral's, for one, gives it back. What repeats by chance stays."""
    for size in (1, 4, 1000):
        assert joined(Seam("The capital is", told=False), "The capital is Paris", size) == " Paris"
        assert joined(Seam("ha ", told=False), "ha ha", size) == "ha ha"
        assert joined(Seam("ha ", told=False), " ha", size) == "ha"
        assert joined(Seam("\n", told=False), "\n\nWell", size) == "\nWell"
        assert joined(Seam("The capital is", told=False), "Sure! Paris", size) == "Sure! Paris"
    assert joined(Seam(""), "Sure!\n\nSo") == "Sure!\n\nSo"


TEXTS = st.text("ab \n", max_size=30)


@given(TEXTS, TEXTS, st.integers(1, 6))
def test_what_is_taken_off_was_written(answer: str, said: str, size: int) -> None:
    """However it is cut into pieces: nothing is taken but white space and an end of what was written."""
    text = joined(Seam(answer), said, size)
    assert said.endswith(text)
    taken = "".join(said[: len(said) - len(text)].split())
    assert "".join(answer.split()).endswith(taken)
    if said and said[0] == "a" and "a" not in answer:
        assert text == said


@given(st.text("ab é\n", min_size=12, max_size=40).map(lambda text: f"a{text}bbbbbbbbbbb"), st.text(max_size=20))
def test_a_whole_repetition_is_always_taken_off(answer: str, new: str) -> None:
    said = joined(Seam(answer), answer + new)
    assert len(said) <= len(new)
    assert new.endswith(said)


@given(st.text("ab,. \n\"`…'“”", max_size=40), st.text("ab,. \n\"`…'“”Sure!", max_size=60), st.integers(1, 9))
def test_pieces_of_any_size_are_joined_alike(answer: str, said: str, size: int) -> None:
    def outcome(size: int) -> str:
        try:
            return joined(Seam(answer, gap=" "), said, size)
        except BackendError as error:
            return str(error)

    assert outcome(size) == outcome(1000)
