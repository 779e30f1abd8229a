"""For how much the slow model is asked: to a boundary, in whole words; what becomes of the draft at a hand-over."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from scripted_pairs import CONTROL, EOG, PIECES, pair

from fsgen_router import BackendError, ConfigurationError, Generation, Restarted, Router, TextDelta
from fsgen_router.adapters.scripted import ScriptedModel, ScriptedTextModel, ScriptedTokenizer
from fsgen_router.contracts.policy import REST, Until
from fsgen_router.contracts.text_models import Continuation
from fsgen_router.policies import Every, Extended, make_policy
from fsgen_router.text.boundaries import breaks, end_of, sure_of, whole_words

pytestmark = pytest.mark.filterwarnings("ignore::fsgen_router.SmallExtentWarning")

ASKED = "Q:"
FAST = " One two three. Four five six. Seven eight nine ten."
SLOW = " Uno dos. Tres cinco,\nseis.\n\nSiete ocho. Fin."
MODES = [False, True]


def vocabulary() -> ScriptedTokenizer:
    """Words with the space before them, letters, and an end."""
    pieces = {f" {word.strip('.,')}".encode() for text in (FAST, SLOW) for word in text.split()}
    letters = {bytes([byte]) for byte in range(10, 127)}
    return ScriptedTokenizer([*sorted(letters), *sorted(pieces), b"<end>"], eog=[len(letters) + len(pieces)])


def writer(text: str, name: str, **options: int) -> ScriptedModel:
    """Writes this text behind the last question, by position: whatever was written there before."""
    words = vocabulary()
    ids, asked = [*words.encode(text, add_bos=False), *words.eog_ids], words.encode(ASKED, add_bos=True)

    def row(held: Sequence[int]) -> np.ndarray:
        last = max(at for at in range(len(held)) if list(held[at : at + len(asked)]) == asked)
        return 9 * np.eye(words.n_vocab, dtype=np.float32)[ids[min(len(held) - last - len(asked), len(ids) - 1)]]

    return ScriptedModel(row, words, name=name, **options)


def local(policy: str, method: str = "replace", batching: bool = False, **options: int) -> Router:
    slow = writer(SLOW, "slow", **options)
    return Router(writer(FAST, "fast"), slow, policy=policy, method=method, batching=batching)


def says(*pieces: str) -> ScriptedTextModel:
    return ScriptedTextModel(lambda request: pieces)


def remote(endpoint: ScriptedTextModel, policy: str, batching: bool = False) -> Router:
    return Router(writer(FAST, "fast"), endpoint, policy=policy, batching=batching)


def streamed(router: Router, **options: object) -> tuple[Generation, str, list[str]]:
    """The answer, the text that its stream shows in the end, and what was taken away on the way."""
    shown, taken = "", []
    for event in router.stream(ASKED, **{"max_tokens": 80, **options}):
        if isinstance(event, TextDelta):
            shown += event.text
        elif isinstance(event, Restarted):
            taken.append(shown)
            shown = ""
        else:
            answer = event.generation
    assert shown == answer.text
    return answer, shown, taken


def written(answer: Generation, source: str) -> list[str]:
    """What one model wrote, by its spans."""
    texts = [b"".join(t.piece for t in answer.tokens[s.start : s.stop]).decode() for s in answer.spans]
    return [text for text, span in zip(texts, answer.spans, strict=True) if span.source == source]


# --- boundaries ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "until", "ends"),
    [
        ("It is 3.14 m. Then", "sentence", "It is 3.14 m."),
        ("Dr. Who came, e.g. twice. And", "sentence", "Dr. Who came, e.g. twice."),
        ("J. Doe left. He", "sentence", "J. Doe left."),
        ("1. First this. Then", "sentence", "1. First this."),
        ("“Go!” he said. “No", "sentence", "“Go!” he said."),
        ("(As it is.) So", "sentence", "(As it is.)"),
        ("A title\nand more", "sentence", "A title"),
        ("行きます。次", "sentence", "行きます。"),
        ("「行く。」と", "sentence", "「行く。」"),
        ("यह है। वह", "sentence", "यह है।"),
        (" Done. ", "sentence", None),  # what follows decides
        ("\n\n one\n", "line", "\n\n one"),
        ("one\r\ntwo", "line", "one"),
        ("one two", "line", None),
        ("one\ntwo\n\nthree", "step", "one\ntwo"),
        ("so\n2. next", "step", "so"),
        ("so\n2.5 times", "step", None),
        ("so\n### Step 2", "step", "so"),
    ],
)
def test_where_sentences_lines_and_steps_end(text: str, until: Until, ends: str | None) -> None:
    end = end_of(text, until)
    assert (None if end is None else text[:end]) == ends
    # Nothing that is sure to stand goes beyond an end that comes to light later.
    for size in range(len(text)):
        if end_of(text[:size], until) is None and end is not None:
            assert sure_of(text[:size], until) <= end


def test_a_text_is_cut_in_no_word_and_in_no_character() -> None:
    for before, after, cut in (
        ("the", " end", True), ("the", "re", False), ("the ", "end", False), ("a\n", "\nb", False), ("", "a", True),
        ("好", "的", True), ("ผ", "ม", True), ("e", "\u0301", False), ("👩", "\u200d", False), ("print", "(", False),
        ("👩\u200d", "👧", False),
    ):  # fmt: skip
        assert breaks(before, after) == cut, (before, after)
    for text, whole in (
        ("one tw", "one"),
        ("one two.", "one two."),
        ("it is 3.", "it is"),
        ("a ", "a"),
        ("日本語", "日本"),
    ):
        assert text[: whole_words(text)] == whole


# --- spans ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("batching", MODES)
@pytest.mark.parametrize(
    ("span", "said"),
    [("sentence", " Uno dos."), ("line", " Uno dos. Tres cinco,"), ("step,max=rest", " Uno dos. Tres cinco,\nseis.")],
)
def test_a_span_ends_at_its_boundary_and_so_does_the_call(span: str, said: str, batching: bool) -> None:
    """What came behind it is billed and not shown; the fast model goes on with its own text."""
    for size in (1, 3, len(SLOW)):
        endpoint = says(*(SLOW[at : at + size] for at in range(0, len(SLOW), size)))
        with remote(endpoint, f"every:3,span={span}", batching) as router:
            answer, _, _ = streamed(router, max_slow_calls=1)
        (request,) = endpoint.requests
        assert (request.answer, request.gap) == (" One two", " ")
        assert written(answer, "slow") == [said]
        assert answer.text.startswith(f" One two{said}")
        assert (answer.usage.round_trips, endpoint.closed_early) == (1, 1)
        came = SLOW if size == len(SLOW) else said
        assert answer.usage.slow.decode >= len(vocabulary().encode(came, add_bos=False))


@pytest.mark.parametrize("batching", MODES)
@pytest.mark.parametrize(
    ("pieces", "said"),
    [
        ([" Uno", " do", "s. Tr", "es"], " Uno dos."),  # the last word may go on
        ([" Uno", " dos", ".", "x"], " Uno dos."),
        ([" Uno", "  ", "\n", "x"], " Uno"),  # white space is the fast model's
        (["su", "per", "cali", "x"], "supercali"),  # there is no other word
        ([" ", "Uno", ",", "x"], " Uno,"),
    ],
)
def test_a_span_that_meets_its_limit_ends_with_a_word(pieces: list[str], said: str, batching: bool) -> None:
    endpoint = says(*pieces)
    with remote(endpoint, "every:3,span=3", batching) as router:
        answer, _, _ = streamed(router, max_slow_calls=1)
    assert endpoint.requests[0].max_tokens == 3
    assert written(answer, "slow") == [said]
    assert answer.usage.slow.decode == 3


def test_a_span_that_ends_the_answer_is_cut_nowhere() -> None:
    endpoint = says(" Uno", " do")
    with remote(endpoint, "every:3,span=sentence") as router:
        assert streamed(router)[0].text == " One two Uno do"
    endpoint = says(" Uno", " do", "s. Tr", "es")
    with remote(endpoint, "every:3,span=9") as router:
        answer, _, _ = streamed(router, max_tokens=5)
    assert (answer.text, answer.finish_reason) == (" One two Uno dos.", "length")


@pytest.mark.parametrize("method", ["replace", "verify:exact"])
@pytest.mark.parametrize("span", ["sentence", "line", "step", "sentence,max=2"])
def test_a_local_slow_model_stops_at_the_same_boundaries(span: str, method: str) -> None:
    """With the token that shows the boundary, which is paid for."""
    with local(f"every:4,span={span}", method) as router:
        answer, _, _ = streamed(router, max_slow_calls=1)
    text = b"".join(t.piece for t in answer.tokens if t.source == "slow").decode()
    until = span.partition(",")[0]
    shown, last = end_of(text, until), answer.tokens[[t.source for t in answer.tokens].index("slow") :]
    if "max" in span:
        assert sum(t.source == "slow" for t in answer.tokens) == 2
        return
    assert shown is not None
    slow = [t.piece for t in last if t.source == "slow"]
    assert end_of(b"".join(slow[:-1]).decode(), until) is None


# --- words are held back ---------------------------------------------------------------------------


def test_an_escalation_in_the_middle_of_a_word_takes_it_back() -> None:
    """Nothing that was shown: it was held back."""
    endpoint = says(" threads", " hold.")
    with remote(endpoint, "every:4,span=rest") as router:  # behind "three"
        answer, _, _ = streamed(router)
    (request,) = endpoint.requests
    assert (request.answer, request.gap) == (" One two", " ")
    assert answer.text == " One two threads hold."
    assert answer.usage.discarded_tokens == 2


@pytest.mark.parametrize("batching", MODES)
@pytest.mark.parametrize("pieces", [(), (" ", "\n"), "fails", " fails"])
def test_what_was_held_back_stands_where_nothing_takes_its_place(pieces: Sequence[str], batching: bool) -> None:
    def script(request: Continuation) -> Iterator[str]:
        yield from ([pieces[0]] if pieces == " fails" else [] if pieces == "fails" else pieces)
        if "fails" in pieces:
            raise BackendError("gone")

    with remote(ScriptedTextModel(script), "every:4,span=rest", batching) as router:
        answer, _, _ = streamed(router)
    assert answer.text == FAST
    assert answer.degraded
    assert answer.usage.discarded_tokens == 0


def test_seams_on_a_nasty_vocabulary() -> None:
    """Characters in parts, words without end, stop strings: streams are the text, calls are made at boundaries."""
    asked, nasty = 0, ScriptedTokenizer([*PIECES, b"x"], eog=EOG, special=[CONTROL])  # "x" is in a piece only
    for case in range(250):
        rng = random.Random(case)
        said = [rng.choice(["a", " c", "né", "€", "\n", "7, ", "stop", "b,", " "]) for _ in range(rng.randrange(8))]
        endpoint = ScriptedTextModel(lambda request, said=said: said)
        span = rng.choice(["1", "4", "rest", "sentence", "line,max=3", "rest,draft=drop", "rest,draft=show"])
        policy = f"random:{rng.choice([0.1, 0.4])},span={span}"
        stop = rng.choice([(), ("stop",), ("top",), ("c\n",)])
        shown = ""
        writes = pair(case).fast.script
        fast = ScriptedModel(lambda ids, w=writes: np.pad(w(ids), (0, 1), constant_values=-9), nasty)
        with Router(fast, endpoint, policy=policy, seed=case) as router:
            for event in router.stream("ab7", max_tokens=24, stop=stop):
                if isinstance(event, TextDelta):
                    shown += event.text
                elif isinstance(event, Restarted):
                    shown = ""
                else:
                    answer = event.generation
        assert shown == answer.text
        whole = b"".join(token.piece for token in answer.tokens).decode(errors="replace")
        assert whole.startswith(answer.text)
        assert stop or whole == answer.text
        assert len(answer.tokens) == answer.usage.tokens
        for request in endpoint.requests:
            asked += 1
            assert "draft" in policy or answer.text.startswith(request.answer) or stop
    assert asked > 300


# --- drafts ------------------------------------------------------------------------------------------


def anew(request: Continuation) -> list[str]:
    return [" ", *SLOW[1:].split(" ")] if not request.answer else [" and", " more."]


@pytest.mark.parametrize("batching", MODES)
@pytest.mark.parametrize("draft", ["keep", "show", "drop"])
def test_what_an_endpoint_makes_of_a_draft(draft: str, batching: bool) -> None:
    endpoint = ScriptedTextModel(anew)
    with remote(endpoint, f"every:4,span=rest,draft={draft}", batching) as router:
        answer, _, taken = streamed(router)
        by_chat = router.chat([{"role": "user", "content": ASKED}], max_tokens=80)
    request, chatted = endpoint.requests
    usage = answer.usage
    if draft == "keep":
        assert (answer.text, taken, usage.restarts) == (" One two and more.", [], 0)
        assert (request.answer, chatted.answer) == (" One two", " One two")
        return
    assert answer.text == by_chat.text == " " + "".join(SLOW[1:].split(" "))
    assert taken == [" One two"]  # the word was still held back
    assert (request.answer, request.max_tokens) == ("", 80)
    # The draft, and the token that was uncertain.
    assert (usage.restarts, usage.discarded_tokens) == (1, 4)
    assert (usage.tokens, usage.slow_tokens) == (len(answer.tokens), len(answer.tokens))
    assert {token.source for token in answer.tokens} == {"slow"}
    (message,) = chatted.messages
    if draft == "drop":
        assert (request.prompt, message["content"]) == (ASKED, ASKED)
    else:
        assert request.prompt.startswith(f"{ASKED} One two three")
        assert request.prompt.endswith(ASKED)
        assert message["content"].startswith(ASKED)
        assert "<draft>\nOne two three\n</draft>" in message["content"]


@pytest.mark.parametrize("batching", MODES)
@pytest.mark.parametrize("method", ["replace", "verify:exact"])
@pytest.mark.parametrize("draft", ["keep", "show", "drop"])
def test_what_a_local_slow_model_makes_of_a_draft(draft: str, method: str, batching: bool) -> None:
    with local(f"every:4,span=rest,draft={draft}", method, batching) as router:
        answer, _, taken = streamed(router)
        again, _, _ = streamed(router)
        slow = router.slow
    assert again.text == answer.text
    usage = answer.usage
    if draft == "keep":
        assert (taken, usage.restarts) == ([], 0)
        return
    assert answer.text == SLOW
    assert (usage.restarts, answer.finish_reason) == (1, "eog")
    assert usage.discarded_tokens == 4
    assert usage.tokens == usage.slow_tokens == len(answer.tokens)
    assert all(seen == "" for seen in taken) if method != "replace" else taken == [" One two three"]
    read = [b"".join(map(vocabulary().piece, work.ids)).decode() for work in slow.works]
    assert any("may be wrong" in text for text in read) == (draft == "show")


def test_a_draft_that_does_not_fit_is_dropped() -> None:
    with local("every:4,span=rest,draft=show", n_ctx=60) as router:
        answer, _, _ = streamed(router)
    assert (answer.text, answer.degraded, answer.usage.restarts) == (SLOW, None, 1)


@pytest.mark.parametrize("pieces", [[], [" "], [BackendError("gone")], [" ", BackendError("gone")]])
def test_a_draft_stands_until_the_slow_models_first_word(pieces: list[object]) -> None:
    def script(request: Continuation) -> Iterator[str]:
        for piece in pieces:
            if isinstance(piece, BackendError):
                raise piece
            yield piece

    with remote(ScriptedTextModel(script), "every:4,span=rest,draft=drop") as router:
        answer, _, taken = streamed(router)
    assert (answer.text, taken, answer.usage.restarts) == (FAST, [], 0)
    assert answer.degraded


def test_a_call_that_fails_behind_its_first_word_leaves_that() -> None:
    def script(request: Continuation) -> Iterator[str]:
        yield from (" Uno", " dos.")
        raise BackendError("gone")

    with remote(ScriptedTextModel(script), "every:4,span=rest,draft=drop") as router:
        answer, _, taken = streamed(router)
    assert answer.text.startswith(" Uno dos.")
    assert (taken, answer.usage.restarts) == ([" One two"], 1)
    assert "gone" in answer.degraded


def test_a_restart_within_caps_and_stop_strings() -> None:
    endpoint = ScriptedTextModel(anew)
    with remote(endpoint, "every:4,span=rest,draft=drop") as router:
        answer, _, _ = streamed(router, stop="Tres")
        assert (answer.text, answer.finish_reason) == (" Unodos.", "stop")
        capped, _, taken = streamed(router, max_slow_tokens=3, max_slow_calls=1)
        assert taken
        assert endpoint.requests[-1].max_tokens == 3
        assert capped.usage.slow_tokens <= 8
        assert {token.source for token in capped.tokens} == {"slow", "fast"}
        assert streamed(router, max_slow_calls=0)[0].text == FAST
    with local("every:4,span=rest,draft=drop") as router:
        assert streamed(router, stop="cinco")[0].text == " Uno dos. Tres "
        assert streamed(router, max_tokens=5)[0].usage.tokens == 5
        assert len(streamed(router, max_slow_tokens=3, max_slow_calls=1)[0].tokens) > 3


# --- what there is to choose from --------------------------------------------------------------------


@pytest.mark.parametrize(
    "form",
    [
        "entropy>1.2,span=sentence,max=64",
        "every:8,span=line,max=16",
        "budget:0.2,span=step,max=rest",
        "entropy>1,window=4,span=rest,draft=drop",
        "random:0.1,span=rest,draft=show",
    ],
)
def test_extents_have_short_forms(form: str) -> None:
    policy = make_policy(form)
    assert isinstance(policy, Extended)
    assert policy.name == form
    assert make_policy(policy.name) == policy


def test_short_forms_of_extents_that_say_less() -> None:
    assert make_policy("every:8,span=line") == make_policy("every:8,span=line,max=64")
    assert make_policy("every:8,span=rest,draft=keep") == Every(8, REST)
    assert make_policy("entropy>1,draft=keep") == make_policy("entropy>1")


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("entropy>1,span=paragraph", "unknown boundary 'paragraph'.*sentence, line, step.*rest"),
        ("entropy>1,span=rest,draft=burn", "unknown draft=burn.*keep, show, drop"),
        ("entropy>1,draft=drop", "draft=drop begins the answer anew.*span=rest"),
        ("entropy>1,span=8,draft=show", "draft=show begins the answer anew"),
        ("entropy>1,span=line,draft=show", "draft=show begins the answer anew"),
        ("entropy>1,max=8", "max=.*write span=16"),
        ("entropy>1,span=8,max=8", "max="),
        ("entropy>1,span=line,max=0", "max=0.*at least 1"),
        ("entropy>1,span=line,max=x", "not a whole number"),
        ("entropy>1,draft=", "unknown option 'draft='"),
        ("never,span=line", "does not go with"),
        ("entropy>1,at=prompt,draft=drop", "draft= does not go with"),
    ],
)
def test_extents_that_there_are_not(form: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        make_policy(form)
