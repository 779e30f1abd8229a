"""Answers held to a grammar: masks, what is forced, what is refused, and what comes of an answer."""

from __future__ import annotations

import gc
import json
import random
import re
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from endpoints import Asked, delta_chunk, reply, scripted_server, streamed
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel, Field
from scripted_pairs import N_VOCAB, Pair, answer, ids_of, pair, prompt

from fsgen_router import Generation, InvalidRequest, Mask, Router
from fsgen_router.adapters.scripted import ScriptedModel, ScriptedTextModel, ScriptedTokenizer, TextScript
from fsgen_router.config import RequestOptions
from fsgen_router.constraints import GrammarVocabulary, make_constraint
from fsgen_router.contracts.text_models import Continuation
from fsgen_router.text.vocabulary import share_vocabulary

pytest.importorskip("llguidance", reason="the extra 'constrain' is not installed")

CASE = st.integers(min_value=0, max_value=100_000)

# Bytes, some longer pieces, one that is text and spells an end, a control token, two ends.
PIECES = [bytes([byte]) for byte in range(256)] + [b'{"', b'": ', b'", "', b"name", b"ab", b"</s>", b"<call>", b"<end>"]
TEXT_END, CALL, END = len(PIECES) - 3, len(PIECES) - 2, len(PIECES) - 1
BYTES = ScriptedTokenizer(PIECES, eog=[TEXT_END, END], special=[CALL])
WORDS = GrammarVocabulary(BYTES)

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "kind": {"enum": ["apple", "pear"]},
        "sizes": {"type": "array", "items": {"type": "integer"}, "maxItems": 3},
    },
    "required": ["name", "kind"],
    "additionalProperties": False,
}
ASKED: list[dict[str, Any]] = [
    {"schema": PERSON},
    {"schema": {"type": "object"}},
    {"regex": "(ab|a)+c?"},
    {"regex": r"[0-9]{3}-(name|nab|</s>)"},
    {"grammar": 'start: <call> "name" %json {"type": "integer"} <call>'},
    {"grammar": 'root ::= "ab" item+\nitem ::= [0-9] ","?'},
]


def noise(seed: int) -> ScriptedModel:
    """Random logits; some draft well, some badly, for the others."""

    def script(ids: Sequence[int]) -> np.ndarray:
        return np.random.default_rng([seed, *ids]).normal(size=len(PIECES)).astype(np.float32)

    return ScriptedModel(script, BYTES, name=f"noise-{seed}", n_params=1000 + seed)


def written(text: str) -> list[int]:
    return BYTES.encode(text, add_bos=False)


def allowed_by(asked: dict[str, Any], ids: Sequence[int]) -> np.ndarray:
    """A matcher of its own, that reads the answer from its beginning."""
    matcher = make_constraint(WORDS, **asked)._matcher  # of which nothing was read
    assert matcher.consume_tokens([token for token in ids if token not in BYTES.eog_ids])
    return np.frombuffer(matcher.compute_logit_bias(), np.uint8) != 0


# --- masks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_masks_are_those_of_a_fresh_matcher_after_any_rewind(asked: dict[str, Any]) -> None:
    """Across an end of the generation too."""
    rng, constraint, ids = random.Random(1), make_constraint(WORDS, **asked), list[int]()
    for _ in range(150):
        if rng.random() < 0.3 or (ids and ids[-1] in BYTES.eog_ids):
            del ids[rng.randrange(len(ids) + 1) :]
        else:
            ids.append(int(rng.choice(np.flatnonzero(constraint.mask(ids).allowed))))
        if rng.random() < 0.3:
            constraint.forced(ids)
        assert (constraint.mask(ids).allowed == allowed_by(asked, ids)).all()


@pytest.mark.parametrize(
    ("asked", "texts"),
    [
        (ASKED[0], ['{"name": "ab", "kind": "pear"}', '{"name": "", "kind": "apple", "sizes": [1, 23]}']),
        (ASKED[2], ["a", "ab", "aab", "abc", "ababac"]),
        (ASKED[3], ["123-name", "123-nab", "123-</s>"]),
        (ASKED[5], ["ab1", "ab1,2", "ab12,"]),
    ],
    ids=["schema", "letters", "words", "gbnf"],
)
def test_what_is_forced_begins_all_that_can_follow(asked: dict[str, Any], texts: list[str]) -> None:
    """At every byte of several answers, none of which was cut as the tokenizer cuts it."""
    constraint = make_constraint(WORDS, **asked)
    found = set()
    for text in texts:
        for at in range(len(text) + 1):
            ends = [other for other in texts if other.startswith(text[:at])]
            forced = constraint.forced(list(text[:at].encode()))
            if forced == (TEXT_END,):
                assert ends == [text]
                continue
            begun = b"".join(PIECES[token] for token in forced).decode()
            assert all(other[at:].startswith(begun) for other in ends)
            found.add(begun)
    assert len(found) > 1 or texts[0] == "a"


def test_ends_are_allowed_where_a_grammar_may_end_and_alone_where_it_has_to() -> None:
    constraint = make_constraint(WORDS, regex="ab?")
    assert not constraint.mask([]).allowed[[TEXT_END, END]].any()
    assert set(np.flatnonzero(constraint.mask(written("a")).allowed)) == {ord("b"), TEXT_END, END}
    assert set(np.flatnonzero(constraint.mask([ord("a"), ord("b")]).allowed)) == {TEXT_END, END}
    assert constraint.forced([ord("a")]) == []  # an end may follow, or more
    assert constraint.forced([ord("a"), ord("b")]) == (TEXT_END,)


def test_a_token_that_ends_an_answer_is_no_text_of_it() -> None:
    """Some vocabularies have one that reads like text: in the middle of a string it would end the answer."""
    constraint = make_constraint(WORDS, regex="x.*y")
    assert not constraint.mask([ord("x")]).allowed[[TEXT_END, END]].any()
    spelled = make_constraint(WORDS, regex="</s>")
    assert set(np.flatnonzero(spelled.mask([]).allowed)) == {ord("<")}


def test_control_tokens_stand_where_a_grammar_names_them() -> None:
    constraint = make_constraint(WORDS, grammar='start: <call> "x" <call>')
    assert constraint.forced([]) == [CALL, ord("x"), CALL]
    assert not make_constraint(WORDS, regex=".*").mask([]).allowed[CALL]


def test_ids_that_a_pair_does_not_share_are_never_allowed() -> None:
    more = ScriptedTokenizer([*PIECES, b"abab", b"\n\n"], eog=[TEXT_END, END], special=[CALL])
    shared = share_vocabulary(more, BYTES, fast_name="more", slow_name="bytes")
    constraint = make_constraint(GrammarVocabulary(shared), regex="abab|\\n\\n")
    assert constraint.mask([]).allowed.shape == (shared.n_vocab,)
    longer = share_vocabulary(BYTES, more, fast_name="bytes", slow_name="more")
    assert make_constraint(GrammarVocabulary(longer), regex="(ab)+").mask([]).allowed.shape == (longer.n_vocab,)
    # In the middle of the ids one that only one model has: neither a mask nor what is forced holds it.
    holed = ScriptedTokenizer(PIECES, eog=[TEXT_END, END], special=[CALL])
    holed.unused_ids = frozenset({PIECES.index(b"ab")})
    for one, other in ((BYTES, holed), (holed, BYTES)):
        words = GrammarVocabulary(share_vocabulary(one, other, fast_name="one", slow_name="other"))
        constraint = make_constraint(words, regex="abab")
        assert set(np.flatnonzero(constraint.mask([]).allowed)) == {ord("a")}
        assert all(token < 256 for token in constraint.forced([]))


def test_a_vocabulary_that_lacks_bytes_still_forces_what_it_can() -> None:
    tokens = ScriptedTokenizer([b"a", b"b", b"ab", b"<end>"], eog=[3])
    constraint = make_constraint(GrammarVocabulary(tokens), regex="abab")
    assert constraint.forced([]) == [2, 2]
    for lacking in ("xyz", "abx"):
        with pytest.raises(InvalidRequest, match=r"no value fits it|cannot write it"):
            make_constraint(GrammarVocabulary(tokens), regex=lacking)


class Changing(ScriptedTokenizer):
    """Some tokenizers change what they cut: this one writes capitals small."""

    def encode(self, text: str, *, add_bos: bool, parse_special: bool = False) -> list[int]:
        return super().encode(text.lower(), add_bos=add_bos)


def test_what_is_forced_has_its_own_bytes_whatever_a_tokenizer_makes_of_them() -> None:
    changing = Changing([*PIECES[:-1], b"AB", b"<end>"], eog=[len(PIECES)], special=[CALL])
    constraint = make_constraint(GrammarVocabulary(changing), regex="ABC")
    assert constraint.forced([]) == [PIECES.index(b"<end>"), ord("C")]
    assert set(np.flatnonzero(constraint.mask([]).allowed)) == {PIECES.index(b"<end>")}


def test_a_vocabulary_that_is_dropped_is_freed() -> None:
    """With the model whose tokenizer it is, though llguidance's object holds that too."""
    tokens = ScriptedTokenizer(PIECES, eog=[END])
    words = GrammarVocabulary(tokens)
    assert make_constraint(words, regex="name, name").forced([])
    alive = weakref.ref(tokens)
    del tokens, words
    gc.collect()
    assert alive() is None


def test_a_matcher_is_made_anew_behind_an_error() -> None:
    """Of an error llguidance's matchers never recover."""
    constraint = make_constraint(WORDS, schema=PERSON)
    before = constraint.mask([]).allowed.copy()
    with pytest.raises(InvalidRequest, match="behind 2 tokens of the answer"):
        constraint.mask(written("xy"))
    assert (constraint.mask([]).allowed == before).all()
    assert constraint.mask(written('{"')).allowed.any()


# --- answers -------------------------------------------------------------------------------------

_ANSWER = re.compile(r"(?:ab?7)+|stop,|né\n b")


@given(case=CASE, policy=st.sampled_from(["never", "always", "every:2", "every:4", "every:3,span=rest"]))
@settings(max_examples=150)
def test_answers_are_of_the_grammar_whoever_writes(case: int, policy: str) -> None:
    models, ids = pair(case), prompt(case)
    words = GrammarVocabulary(models.fast.tokenizer)
    for method in ("replace", "verify"):
        constraint = make_constraint(words, regex=_ANSWER.pattern.replace("(?:", "("))
        found = answer(models, policy, ids, method=method, constraint=constraint, max_tokens=30)
        if found.finish_reason == "eog":
            assert _ANSWER.fullmatch(found.text)
        forced = [token for token in found.tokens if token.decision and token.decision.reason == "forced"]
        assert found.usage.forced == len(forced)
        assert not any(token.signals for token in forced)


class Runs:
    """A constraint of which long runs are forced: by ``forced`` at once, or by masks one at a time."""

    def __init__(self, case: int, *, ahead: bool) -> None:
        self.case = case
        if ahead:
            self.forced = self._forced

    def _at(self, position: int) -> int | None:
        return (self.case * 31 + position) % 18 if position % 12 >= 3 else None

    def _forced(self, ids: Sequence[int]) -> Sequence[int]:
        run, at = [], len(ids)
        while (token := self._at(at)) is not None:
            run.append(token)
            at += 1
        return run

    def mask(self, ids: Sequence[int]) -> Mask | None:
        token = self._at(len(ids))
        if token is None:
            return None
        allowed = np.zeros(N_VOCAB, bool)
        allowed[token] = True
        return Mask(allowed=allowed)


@given(case=CASE, interval=st.integers(1, 5), ahead=st.booleans(), limit=st.integers(1, 60))
@settings(max_examples=150)
def test_long_forced_runs_push_no_draft_past_the_judge(case: int, interval: int, ahead: bool, limit: int) -> None:
    models, ids = pair(case), prompt(case)
    alone = answer(Pair(models.slow, models.fast), "never", ids, constraint=Runs(case, ahead=False), max_tokens=limit)
    found = answer(
        models,
        f"every:{interval}",
        ids,
        method=f"verify:exact,draft_len={interval}",
        constraint=Runs(case, ahead=ahead),
        max_tokens=limit,
    )
    assert ids_of(found) == ids_of(alone)


def test_a_forced_run_is_read_in_one_chunk_and_asks_nobody() -> None:
    fast, slow = noise(1), noise(2)
    with Router(fast, slow, policy="never", batching=False) as router:
        found = router.complete("x", grammar='start: "name name name: " /[0-9]/', max_tokens=30)
    assert re.fullmatch("name name name: [0-9]", found.text)
    assert (fast.forwards, found.usage.decisions, found.usage.forced) == (1, 1, len(found.tokens) - 1)
    assert slow.forwards == 0


def test_what_is_forced_stops_at_the_limit_at_a_stop_and_at_a_bias() -> None:
    with Router(noise(1), noise(2), policy="always", batching=False) as router:
        assert router.complete("x", regex="name, name", max_tokens=3).finish_reason == "length"
        assert router.complete("x", regex="name, name", stop=", ").text == "name"


def test_a_bias_and_a_grammar_hold_together() -> None:
    """Of two ways to write the same, and where there is no choice, which no bias makes."""
    found = ROUTER.complete("x", regex="[ab]{5}, ab", logit_bias={ord("b"): -50.0, PIECES.index(b"ab"): -50.0})
    assert found.text == "aaaaa, ab"
    assert found.usage.forced == 4


def test_a_matcher_that_meets_a_limit_fails_its_request_alone() -> None:
    """The regular expression explodes some hundred characters into an answer."""
    ends: dict[str, Any] = {}
    with Router(noise(1), noise(2), policy="every:3", batching=True) as router:

        def ask(name: str, **options: Any) -> None:
            try:
                ends[name] = router.complete("x", max_tokens=200, **options)
            except InvalidRequest as error:
                ends[name] = error

        goes_on = {TEXT_END: -100.0, END: -100.0}
        asked = {"explodes": {"regex": "(a{1,100}){1,100}", "logit_bias": goes_on}, "whole": {"regex": "[a-c]{150}"}}
        threads = [threading.Thread(target=ask, args=(name,), kwargs=options) for name, options in asked.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert isinstance(ends["explodes"], InvalidRequest)
        assert "tokens of the answer" in str(ends["explodes"])
        assert "make it smaller" in str(ends["explodes"].hint)
        assert re.fullmatch("[a-c]{150}", ends["whole"].text)


# --- what is refused -----------------------------------------------------------------------------


def schema_of(schema: Any, **more: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "it", "schema": schema, **more}}}


class Sizes(BaseModel):
    sizes: set[int]


# Each alternative has properties of its own: too many to be followed at once, behind the first character.
MANY = {"anyOf": [{"type": "object", "properties": {f"p{n}{k}": {} for k in range(9)}} for n in range(300)]}
DEEP: Any = {"type": "integer"}
for _ in range(2000):
    DEEP = {"type": "array", "items": DEEP}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (schema_of({"type": "strin"}), "Invalid type: strin.*JSON Schema"),
        (schema_of({"type": "string", "minLength": 5, "maxLength": 2}), "Unsatisfiable.*minLength.*loosen it"),
        (schema_of({"$ref": "#"}), "no value fits it.*loosen it"),
        (schema_of({"$ref": "#/$defs/none"}), "Pointer '/.defs/none' does not exist"),
        (schema_of({"$ref": "https://example.com/schema"}), "not present in a registry.*nothing is fetched"),
        (schema_of({"type": "array", "uniqueItems": True}), "Unimplemented keys.*uniqueItems.*strict=False"),
        ({"response_format": Sizes}, "Unimplemented keys.*uniqueItems"),
        (schema_of({"oneOf": [{"type": "integer"}, {"type": "number"}]}), "oneOf.*say anyOf"),
        (schema_of({"type": "string", "pattern": "(?=a)b"}), "look-around.*Rust"),
        (schema_of({"enum": ["x" * 2_000_000]}), "response_format has 2,000,.*at most 262,144"),
        (schema_of({"const": float("nan")}), "no JSON"),
        (schema_of({"const": {1, 2}}), "no JSON"),
        (schema_of({"description": "\ud800"}), "response_format"),
        (schema_of(DEEP), "recursion|nest"),
        (schema_of(True), "its schema an object"),
        (schema_of({"type": "integer"}, strict="yes"), "strict is true or false"),
        (schema_of({"type": "integer"}, schemas={}), "has no 'schemas'"),
        ({"response_format": {"type": "jsn"}}, "wanted is .*json_object"),
        ({"response_format": {"type": "json_object", "schema": {}}}, "json_object has no 'schema'"),
        ({"response_format": int}, "or a pydantic model"),
        ({"regex": "(a"}, "regex cannot be used: unclosed group"),
        ({"regex": "(a)\\1"}, "backreference.*Rust"),
        ({"regex": r"[^\s\S]"}, "no value fits it"),
        ({"regex": "(" * 100_000}, "regex cannot be used"),
        ({"regex": "a\udc80"}, "surrogate"),
        ({"grammar": "start: name"}, "unknown name.*Lark"),
        ({"grammar": 'begin: "a"'}, "start"),
        ({"grammar": 'root ::= "a'}, "Unexpected end of input.*GBNF"),
        ({"grammar": 'start: start "a"'}, "no value fits it"),
        ({"grammar": "start: " + "(" * 100_000}, "nested.*make it smaller"),
        (schema_of(MANY), "max is 2000.*make it smaller"),
        ({"grammar": 'start: "a"', "regex": "a"}, "regex and grammar at once"),
        ({"regex": "a", "constraint": Runs(1, ahead=False)}, "regex and constraint at once"),
        ({"response_format": {"type": "json_object"}, "grammar": "x"}, "response_format and grammar at once"),
        ({"guided_regex": "a"}, "did you mean 'regex'"),
    ],
)
def test_what_cannot_be_held_is_refused_with_the_reason(options: dict[str, Any], message: str) -> None:
    router = ROUTER
    with pytest.raises(InvalidRequest, match=f"(?s){message}") as refused:
        router.complete("x", **options)
    assert len(str(refused.value)) < 900


ROUTER = Router(noise(1), noise(2), policy="every:3", batching=False)


def test_a_grammar_that_is_ambiguous_without_end_is_answered_or_refused() -> None:
    """Within limits on time and size: nothing hangs."""
    for grammar in ('start: x\nx: x x | "a" | x x x', 'start: x\nx: "a" x "a" | "a" x | "a"'):
        found = ROUTER.complete("x", grammar=grammar, max_tokens=60)
        assert set(found.text) <= {"a"}


def test_a_schema_whose_values_have_no_end_is_refused() -> None:
    """At once, or where the answer comes to it."""
    endless = {"type": "object", "properties": {"next": {"$ref": "#/$defs/endless"}}, "required": ["next"]}
    closed = {"$defs": {"endless": {**endless, "additionalProperties": False}}}
    with pytest.raises(InvalidRequest, match=r"no value fits it.*nothing could be written"):
        ROUTER.complete("x", **schema_of({**closed, "$ref": "#/$defs/endless"}))
    later = {**closed, "type": "array", "items": {"$ref": "#/$defs/endless"}, "minItems": 1}
    with pytest.raises(InvalidRequest, match="no value fits it"):
        ROUTER.complete("x", **schema_of(later))


def test_the_missing_extra_is_named() -> None:
    """When a grammar is wanted; all else works without it."""
    program = (
        "import sys; sys.modules['llguidance'] = None\n"
        "from fsgen_router import Router\n"
        "from fsgen_router.adapters.scripted import ScriptedModel, ScriptedTokenizer\n"
        "tokens = ScriptedTokenizer([b'a', b'<end>'], eog=[1])\n"
        "fast, slow = (ScriptedModel(lambda ids: [1.0, 0.0], tokens, name=name) for name in 'fs')\n"
        "router = Router(fast, slow, policy='never')\n"
        "print(router.complete('a', max_tokens=2, response_format={'type': 'text'}).text)\n"
        "try:\n    router.complete('a', regex='a')\n"
        "except ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout.startswith("aa\n")
    assert "pip install 'fsgen-router[constrain]'" in done.stdout


# --- what an answer says -------------------------------------------------------------------------


class Pick(BaseModel):
    """With what pydantic alone knows."""

    kind: Literal["apple", "pear"]
    even: Annotated[int, Field(ge=0, le=9), AfterValidator(lambda n: n if n % 2 == 0 else _odd())]


class Basket(BaseModel):
    picks: list[Pick] = Field(min_length=1, max_length=2)
    counts: dict[Literal["a", "b"], int] = Field(max_length=1)


class Open(BaseModel, extra="allow"):
    n: int


class Called(BaseModel):
    call: Callable[[], int]


def _odd() -> int:
    raise ValueError("an odd number")


def test_a_pydantic_model_gives_its_instance_or_says_why_not() -> None:
    found = [ROUTER.complete("x" * n, response_format=Pick, max_tokens=60) for n in range(1, 12)]
    whole = [one for one in found if one.parsed is not None]
    refused = [one for one in found if one.parsed is None]
    assert whole
    assert refused
    assert all(isinstance(one.parsed, Pick) and one.parse_error is None for one in whole)
    assert all(one.parse_error == "Pick: even: Value error, an odd number" for one in refused)
    assert all(json.loads(one.text)["even"] % 2 == (one.parsed is None) for one in found)


def test_objects_of_a_pydantic_model_have_its_fields_and_no_others() -> None:
    assert all(set(json.loads(ROUTER.complete("x", response_format=Pick).text)) == {"kind", "even"} for _ in range(3))
    closed = RequestOptions(response_format=Basket).response_format.schema
    assert closed["additionalProperties"] is False
    assert closed["$defs"]["Pick"]["additionalProperties"] is False
    assert closed["properties"]["counts"]["additionalProperties"] == {"type": "integer"}
    assert RequestOptions(response_format=Open).response_format.schema["additionalProperties"] is True
    with pytest.raises(InvalidRequest, match="Called has no JSON Schema"):
        ROUTER.complete("x", response_format=Called)


def test_a_validator_that_breaks_loses_no_answer() -> None:
    class Broken(BaseModel):
        n: Annotated[Literal[1, 2], AfterValidator(lambda n: {}[n])]

    found = ROUTER.complete("x", response_format=Broken)
    assert (found.finish_reason, found.parsed) == ("eog", None)
    assert str(found.parse_error).startswith("Broken: KeyError")


def test_a_vocabulary_without_an_end_takes_no_text_for_one() -> None:
    endless = ScriptedTokenizer([b"a", b"b"], eog=[])
    constraint = make_constraint(GrammarVocabulary(endless), regex="ba")
    assert constraint.mask([1]).allowed.tolist() == [True, False]
    assert constraint.mask([1, 0]).allowed.tolist() == [False, False]
    assert constraint.forced([1, 0]) == ()


def test_json_gives_its_value_and_what_is_cut_off_gives_none() -> None:
    found: Generation = ROUTER.complete("x", **schema_of(PERSON), max_tokens=100)
    assert found.parsed == json.loads(found.text)
    assert found.finish_reason == "eog"
    cut = ROUTER.complete("x", **schema_of(PERSON), max_tokens=len(found.tokens) - 1)
    assert (cut.finish_reason, cut.parsed, cut.parse_error) == ("length", None, None)
    stopped = ROUTER.complete("x", **schema_of(PERSON), stop='"kind"')
    assert (stopped.finish_reason, stopped.parsed) == ("stop", None)
    assert "no JSON" in str(stopped.parse_error)
    free = ROUTER.complete("x", response_format={"type": "text"}, max_tokens=5)
    assert (free.parsed, free.parse_error) == (None, None)


@pytest.mark.parametrize(
    ("form", "whole", "refused"),
    [
        ("date", ["2024-02-29", "2000-02-29", "0999-12-31"], ["2023-02-29", "1900-02-29", "0000-01-01", "2024-04-31"]),
        ("time", ["23:59:59Z", "00:00:00.5+01:00"], ["23:59:60Z", "24:00:00Z"]),
        ("date-time", ["2024-02-29T01:02:03Z"], ["2023-02-29T01:02:03Z", "2024-02-28T01:02:60Z"]),
        ("path", ["any/text"], []),  # a note, of pydantic's: JSON Schema knows no such format
    ],
)
def test_formats_are_held_as_readers_of_them_do(form: str, whole: list[str], refused: list[str]) -> None:
    """Also where they are nested, beside a pattern, and where ``format`` is a property's name."""
    text = {"type": "string", "format": form}
    schema = {"type": "object", "properties": {"format": {"anyOf": [{"type": "null"}, text]}}, "required": ["format"]}
    constraint = make_constraint(WORDS, schema=schema)
    for value in whole:
        answer = written(json.dumps({"format": value}))
        assert constraint.mask(answer).allowed[END]
    for value in refused:
        with pytest.raises(InvalidRequest, match="tokens of the answer"):
            constraint.mask(written(json.dumps({"format": value})))


def test_loose_schemas_ignore_what_no_grammar_holds() -> None:
    found = ROUTER.complete("x", **schema_of({"type": "array", "uniqueItems": True, "maxItems": 2}, strict=False))
    assert isinstance(found.parsed, list)


def test_options_are_read_once() -> None:
    read = RequestOptions(response_format=Pick).response_format
    assert RequestOptions(response_format=read).response_format is read


# --- behind an endpoint --------------------------------------------------------------------------

WHOLE = '{\n  "kind": "pear",\n  "even": 4\n}'


def beside(pieces: Sequence[str] | TextScript, **options: Any) -> tuple[Router, ScriptedTextModel]:
    """Noise that writes, beside an endpoint that says so."""
    endpoint = ScriptedTextModel(pieces if callable(pieces) else lambda request: pieces)
    return Router(noise(1), endpoint, **options), endpoint


@pytest.mark.parametrize("batching", [False, True])
@pytest.mark.parametrize("size", [1, 3, 100])
def test_an_endpoints_whole_answer_is_told_its_form_and_checked(batching: bool, size: int) -> None:
    """In any layout; what comes behind it is left out."""
    pieces = [WHOLE[at : at + size] for at in range(0, len(WHOLE), size)]
    for before, behind in (([], []), (["\n "], []), ([], ["\n\nI hope ", "that helps."])):
        router, endpoint = beside([*before, *pieces, *behind], policy="always,span=rest", batching=batching)
        with router:
            answer = router.complete("x", response_format=Pick, max_tokens=60)
            assert (answer.text, answer.finish_reason, answer.degraded) == (WHOLE, "eog", None)
            assert answer.parsed == Pick(kind="pear", even=4)
            assert [request.form["json_schema"]["name"] for request in endpoint.requests] == ["Pick"]
            assert answer.usage.slow_bytes == len(WHOLE)


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ('{"kind": "pear", "odd": 3}', '{"kind": "pear", "'),
        ("```json\n" + WHOLE + "\n```", ""),
        ('{"kind": "plum"}', '{"kind": "p'),
        ("I am sorry.", ""),
        ('{"kind": "pear", ', '{"kind": "pear", '),  # and says that it has ended
    ],
)
@pytest.mark.parametrize("size", [2, 100])
def test_where_an_endpoint_breaks_the_form_the_fast_model_goes_on(said: str, kept: str, size: int) -> None:
    router, endpoint = beside([said[at : at + size] for at in range(0, len(said), size)], policy="always,span=rest")
    with router:
        events = list(router.stream("x", response_format=Pick, max_tokens=90))
    answer = events[-1].generation
    slow = b"".join(token.piece for token in answer.tokens if token.source == "slow").decode()
    assert slow == kept
    assert set(json.loads(answer.text)) == {"kind", "even"}
    assert answer.text.startswith(kept)
    assert "form that was asked for" in str(answer.degraded)
    assert len(endpoint.requests) == 1
    assert "".join(event.text for event in events[:-1]) == answer.text  # nothing was shown that does not stand


def types(text: str) -> ScriptedModel:
    """Writes this text byte by byte, behind a prompt of one token."""

    def script(ids: Sequence[int]) -> np.ndarray:
        row, left = np.zeros(len(PIECES), np.float32), text.encode().removeprefix(b"".join(PIECES[i] for i in ids[1:]))
        row[left[0] if left else END] = 9.0
        return row

    return ScriptedModel(script, BYTES, name="types")


@pytest.mark.parametrize("batching", [False, True])
def test_an_endpoint_goes_on_within_the_form_and_may_begin_anew(batching: bool) -> None:
    """Of a partial answer it is told nothing; for one that it writes anew it is."""
    own = '{"name": "abc", "kind": "apple", "sizes": [1, 2, 4]}'
    options = {**schema_of(PERSON), "max_tokens": 90}

    def continues(request: Continuation) -> list[str]:
        assert own.startswith(request.answer)
        return [*own[len(request.answer) :].replace("4", "6")]

    with Router(types(own), ScriptedTextModel(continues), policy="every:36,span=rest", batching=batching) as router:
        answer = router.complete("x", **options)
        assert (answer.text, answer.degraded) == (own.replace("4", "6"), None)
        assert 0 < answer.usage.slow_tokens < answer.usage.tokens
        assert [request.form for request in router.slow.requests] == [None]
    with Router(types(own), ScriptedTextModel(continues), policy="every:8,span=8", batching=batching) as router:
        answer = router.complete("x", **options)
        assert (answer.text, answer.degraded) in [(own, None), (own.replace("4", "6"), None)]
        assert len(router.slow.requests) > 1
    anew = ScriptedTextModel(lambda request: [own.replace(" ", "\n")])
    with Router(types(own), anew, policy="every:36,span=rest,draft=show", batching=batching) as router:
        answer = router.complete("x", **options)
        assert (answer.text, answer.usage.restarts) == (own.replace(" ", "\n"), 1)
        assert anew.requests[0].form is not None
    broken = ScriptedTextModel(lambda request: ["Sorry!"])
    with Router(types(own), broken, policy="every:36,span=rest,draft=drop", batching=batching) as router:
        answer = router.complete("x", **options)
        assert (answer.text, answer.usage.restarts) == (own, 0)  # the draft stands
        assert answer.degraded is not None


def test_what_an_endpoint_cannot_be_held_to_is_refused() -> None:
    router, _ = beside([WHOLE], policy="always,span=rest")
    with router:
        for options in ({"regex": "a"}, {"grammar": "start: x"}, {"logit_bias": {1: 1.0}}):
            with pytest.raises(InvalidRequest, match=f"gives text.*leave {next(iter(options))} out; response_format"):
                router.complete("x", **options)
        assert router.complete("x", response_format={"type": "text"}).text == WHOLE


def test_a_baseline_of_an_endpoint_keeps_the_form() -> None:
    router, _ = beside([WHOLE], policy="never")
    with router:
        answer = router.complete("x", response_format=Pick, max_tokens=90, baseline=True)
        assert answer.baseline is not None
        assert answer.baseline.parsed == Pick(kind="pear", even=4)


@pytest.mark.parametrize("status", [400, 422])
def test_an_endpoint_that_takes_no_form_is_asked_without_it(status: int) -> None:
    """Once for each: an endpoint may refuse one schema and take another."""

    def script(asked: Asked) -> None:
        if "response_format" in asked.body and "Pick" in str(asked.body["response_format"]):
            message = "Invalid schema for response_format 'Pick'"
            asked.send(reply(status, {"error": {"message": message, "param": "response_format"}}))
        else:
            asked.send(streamed(delta_chunk(content=WHOLE), delta_chunk(finish_reason="stop")))

    ask = [{"role": "user", "content": "x"}]
    with scripted_server(script) as server:
        router = Router(noise(1), f"openai:m@{server.url}", policy="always,span=rest")
        with router:
            for _ in range(2):
                assert router.chat(ask, response_format=Pick, max_tokens=90).parsed == Pick(kind="pear", even=4)
            router.chat(ask, response_format={"type": "json_object"}, max_tokens=90)
    told = [asked.body.get("response_format", {}).get("type") for asked in server.asked if asked.body]
    assert told == ["json_schema", None, None, "json_object"]
