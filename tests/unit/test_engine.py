"""The decode loop on scripted pairs, where everything can be computed a second time by hand."""

from __future__ import annotations

import codecs
import dataclasses
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scripted_pairs import (
    CONTROL,
    END,
    EOG,
    N_VOCAB,
    PIECES,
    TURN,
    Pair,
    answer,
    finish,
    greedy,
    ids_of,
    make_engine,
    pair,
    prompt,
    script,
    tokenizer,
)

from fsgen_router import REST, BackendError, Generation, Ledger, Mask
from fsgen_router.adapters.scripted import ScriptedModel
from fsgen_router.contracts.models import Work
from fsgen_router.decode import Emit, Failed, Open, Start
from fsgen_router.policies import Always, Every, Never, Random, Threshold
from fsgen_router.rows.reading import Warp
from fsgen_router.run import drivers

CASES = range(400)
CASE = st.integers(min_value=0, max_value=100_000)
WARPS = (
    Warp(temperature=0.7),
    Warp(temperature=1.3, top_k=4),
    Warp(temperature=1.0, top_p=0.8),
    Warp(temperature=2.0, top_k=9, top_p=0.9, min_p=0.05),
)
POLICIES = (
    "never",
    "always",
    "always,span=3",
    "always,span=rest",
    "every:1",
    "every:2",
    "every:3,span=2",
    "every:5,span=rest",
    "random:0.3",
    "random:0.3,span=2",
    "entropy>1.5",
    "max_prob<0.5,window=3",
    "margin<0.2,span=2",
    "budget:0.2",
)


# --- the properties that hold the engine in place ------------------------------------------------


def test_never_is_the_fast_models_own_text() -> None:
    for case in CASES:
        models, ids = pair(case), prompt(case)
        found = answer(models, "never", ids)
        assert ids_of(found) == greedy(models.fast.script, ids, 24), case
        assert models.slow.works == [], case


@pytest.mark.parametrize("policy", ["always", "always,span=3", "always,span=rest", "every:1", "random:1", "entropy>-1"])
def test_always_is_the_slow_models_own_text(policy: str) -> None:
    for case in CASES:
        models, ids = pair(case), prompt(case)
        found = answer(models, policy, ids)
        assert ids_of(found) == greedy(models.slow.script, ids, 24), case
        assert {token.source for token in found.tokens} == {"slow"}, case


@pytest.mark.parametrize("warp", WARPS, ids=str)
def test_sampled_the_ends_are_each_models_own_sampling(warp: Warp) -> None:
    """Both models draw with one number per position, so escalating everywhere is slow-only sampling."""
    for case in range(150):
        models, ids = pair(case), prompt(case)
        alone = Pair(models.slow, models.fast)
        routed = answer(models, "always", ids, warp=warp, seed=case)
        assert ids_of(routed) == ids_of(answer(alone, "never", ids, warp=warp, seed=case)), case
        fast = answer(models, "never", ids, warp=warp, seed=case)
        assert ids_of(fast) == ids_of(answer(alone, "always", ids, warp=warp, seed=case)), case


def test_another_seed_is_another_text() -> None:
    models, ids = pair(1), prompt(1)
    texts = {answer(models, "never", ids, warp=Warp(temperature=2.0), seed=seed).text for seed in range(20)}
    assert len(texts) > 10


def routed_by_hand(models: Pair, ids: Sequence[int], interval: int, extent: int, limit: int) -> list[tuple[int, str]]:
    """Every ``interval``-th token and ``extent - 1`` more by the slow model, in the plainest loop."""
    written: list[tuple[int, str]] = []
    since, span = 0, 0
    while len(written) < limit and not (written and written[-1][0] in EOG):
        context = [*ids, *(token for token, _ in written)]
        if not span and since + 1 >= interval:
            span = limit if extent == REST else extent
        source = "slow" if span else "fast"
        script = models.slow.script if span else models.fast.script
        written.append((int(np.argmax(script(context))), source))
        span, since = max(span - 1, 0), 0 if source == "slow" else since + 1
    return written


@given(case=CASE, interval=st.integers(1, 9), extent=st.sampled_from([1, 2, 5, REST]), limit=st.integers(1, 30))
@settings(max_examples=400)
def test_every_k_and_spans_equal_a_plain_loop(case: int, interval: int, extent: int, limit: int) -> None:
    models, ids = pair(case), prompt(case)
    found = answer(models, Every(interval, extent), ids, max_tokens=limit)
    assert [(t.id, t.source) for t in found.tokens] == routed_by_hand(models, ids, interval, extent, limit)


@given(case=CASE, policy=st.sampled_from(POLICIES), warp=st.sampled_from([Warp(), *WARPS]))
@settings(max_examples=200)
def test_each_token_is_its_models_own_choice(case: int, policy: str, warp: Warp) -> None:
    """Whatever the policy: given what stands before it, each token is its writer's."""
    models, ids = pair(case), prompt(case)
    found = answer(models, policy, ids, warp=warp, seed=3)
    if not warp.greedy:
        solo = {"fast": Pair(models.fast, models.slow), "slow": Pair(models.slow, models.fast)}
        for at, token in enumerate(found.tokens):
            before = ids_of(found)[:at]
            # The same position of the same request, so the same random number.
            engine = make_engine(solo[token.source], "never", ids, warp=warp, seed=3, constraint=Prefix(before))
            assert ids_of(finish(engine, solo[token.source])[0])[: at + 1] == [*before, token.id]
        return
    for at, token in enumerate(found.tokens):
        context = [*ids, *ids_of(found)[:at]]
        row = getattr(models, token.source).script(context)
        assert token.id == int(np.argmax(row))
        assert token.logprob == pytest.approx(float(row.max() - np.logaddexp.reduce(row.astype(float))), abs=1e-5)
        if token.signals is not None:
            assert token.fast_choice == token.signals.argmax == int(np.argmax(models.fast.script(context)))


class Prefix:
    """Forces the first tokens, then nothing."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = ids

    def mask(self, written: Sequence[int]) -> Mask | None:
        if len(written) >= len(self.ids):
            return None
        allowed = np.zeros(N_VOCAB, bool)
        allowed[self.ids[len(written)]] = True
        return Mask(allowed=allowed)


# --- text ----------------------------------------------------------------------------------------


@given(case=CASE, policy=st.sampled_from(POLICIES), limit=st.integers(1, 60))
@settings(max_examples=350)
def test_pieces_are_whole_characters_and_make_up_the_text(case: int, policy: str, limit: int) -> None:
    models, ids = pair(case), prompt(case)
    found, shown = finish(make_engine(models, policy, ids, max_tokens=limit), models)
    data = b"".join(token.piece for token in found.tokens)
    assert found.text == "".join(shown) == data.decode(errors="replace")
    # At any moment all complete characters are shown, and one that could still be completed waits.
    so_far = b""
    for at, token in enumerate(found.tokens):
        so_far += token.piece
        whole = codecs.getincrementaldecoder("utf-8")("replace").decode(so_far)
        assert "".join(shown[: at + 1]) == whole


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_character_cut_anywhere_is_shown_whole(size: int) -> None:
    ids = {piece: token for token, piece in enumerate(PIECES)}
    cut = [b"n\xc3\xa9", b"\xe2\x82", b"\xac", b"\xf0\x9f", b"\x98", b"\x80", b"\xe2\x82", b"\xacx\xc3", b"\xa9"]
    wanted = [ids[piece] for piece in cut]
    models = pair(size)
    engine = make_engine(models, f"every:{size}", [0], constraint=Prefix(wanted), max_tokens=len(wanted))
    found, shown = finish(engine, models)
    assert found.text == "né€😀€xé"
    assert [piece for piece in shown if piece] == ["né", "€", "😀", "€x", "é"]


def cut_at_stop(text: str, stops: Sequence[str]) -> str:
    places = [text.find(word) for word in stops if word in text]
    return text[: min(places)] if places else text


@given(
    case=CASE,
    policy=st.sampled_from(POLICIES),
    stops=st.lists(
        st.sampled_from(["a", "aa", "ab", " c", "stop", "topstop", "stopt", "7,", "é", "€\n", "\n\n", ",a", "néné"]),
        min_size=1,
        max_size=3,
    ),
)
@settings(max_examples=400)
def test_nothing_is_shown_from_a_stop_string_on(case: int, policy: str, stops: list[str]) -> None:
    # A stop string that ends inside another one ends the answer before the other could.
    assume(not any(one in other[1:-1] for one in stops for other in stops))
    models, ids = pair(case), prompt(case)
    free = answer(models, policy, ids, max_tokens=40)
    found, shown = finish(make_engine(models, policy, ids, max_tokens=40, stop=tuple(stops)), models)
    assert "".join(shown) == found.text == cut_at_stop(free.text, stops)
    assert ids_of(found) == ids_of(free)[: len(found.tokens)]
    if found.finish_reason == "stop":
        assert any(word in b"".join(t.piece for t in found.tokens).decode(errors="replace") for word in stops)
        # It stopped at the token that completed the stop string, not later.
        assert not any(word in b"".join(t.piece for t in found.tokens[:-1]).decode(errors="replace") for word in stops)
    else:
        assert found.finish_reason == free.finish_reason


# --- the end of an answer ------------------------------------------------------------------------


@given(case=CASE, policy=st.sampled_from(POLICIES), limit=st.integers(1, 40), n_ctx=st.integers(14, 40))
@settings(max_examples=400)
def test_an_answer_ends_for_the_reason_it_gives(case: int, policy: str, limit: int, n_ctx: int) -> None:
    models, ids = pair(case, n_ctx=n_ctx), prompt(case)
    stop_ids = frozenset({case % CONTROL})
    found = answer(models, policy, ids, max_tokens=limit, stop_ids=stop_ids)
    written = ids_of(found)
    room = n_ctx - len(ids)
    assert 1 <= len(written) <= min(limit, room)
    assert not set(written[:-1]) & (EOG | stop_ids)
    if written[-1] in EOG:
        expected = "eog"
    elif written[-1] in stop_ids:
        expected = "stop"
    else:
        expected = "length" if len(written) == limit else "context"
        assert expected == "length" or len(written) == room
    assert found.finish_reason == expected
    # The token that ends an answer is no part of its text.
    shown = [token.piece for token in found.tokens if token.id not in EOG | stop_ids]
    assert found.text == b"".join(shown).decode(errors="replace")


@pytest.mark.parametrize("ending", [END, TURN])
@pytest.mark.parametrize("writer", ["fast", "slow"])
def test_either_model_may_end_with_any_of_its_tokens(writer: str, ending: int) -> None:
    def ends(ids: Sequence[int]) -> np.ndarray:
        row = np.zeros(N_VOCAB, np.float32)
        row[ending if len(ids) >= 5 else 0] = 9
        return row

    def goes_on(ids: Sequence[int]) -> np.ndarray:
        row = np.zeros(N_VOCAB, np.float32)
        row[0] = 9
        return row

    scripts = {"fast": goes_on, "slow": goes_on} | {writer: ends}
    words = tokenizer()
    models = Pair(ScriptedModel(scripts["fast"], words), ScriptedModel(scripts["slow"], words))
    found = answer(models, "never" if writer == "fast" else "every:2", [1, 1], max_tokens=30)
    assert (found.finish_reason, found.tokens[-1].source, found.tokens[-1].id) == ("eog", writer, ending)
    assert found.text == "a" * (len(found.tokens) - 1)


def test_where_no_slow_model_is_asked_its_context_limits_nothing() -> None:
    models = pair(7)
    models.slow.n_ctx = 3
    ids = [0, 1, 2, 3]
    engine = make_engine(models, "never", ids)
    engine.contexts = {"fast": models.fast.n_ctx}  # as the Router sets contexts for a policy that never asks
    assert finish(engine, models)[0].finish_reason in ("eog", "length")


# --- masks ---------------------------------------------------------------------------------------


class Only:
    """Allows a set of tokens; every ``period``-th position is forced."""

    def __init__(self, allowed: Sequence[int], period: int = 0) -> None:
        self.allowed, self.period = allowed, period

    def mask(self, written: Sequence[int]) -> Mask:
        allowed = np.zeros(N_VOCAB, bool)
        forced = self.period and len(written) % self.period == 0
        allowed[[self.allowed[0]] if forced else list(self.allowed)] = True
        return Mask(allowed=allowed, ids=np.array([2]), bias=np.array([1.5], np.float32))


class Counting(Never):
    """Counts what the policy is asked."""

    def __init__(self, inner: object) -> None:
        object.__setattr__(self, "inner", inner)
        object.__setattr__(self, "positions", [])

    asks = True

    def decide(self, state, signals, context):
        self.positions.append(context.position)
        return self.inner.decide(state, signals, context)


@given(case=CASE, extent=st.sampled_from([1, 2, REST]), period=st.integers(0, 4), interval=st.integers(1, 4))
@settings(max_examples=400)
def test_a_mask_binds_both_models_and_a_forced_token_asks_nobody(
    case: int, extent: int, period: int, interval: int
) -> None:
    models, ids = pair(case), prompt(case)
    allowed = random.Random(case).sample(range(CONTROL), 4)
    policy = Counting(Every(interval, extent))
    found = answer(models, policy, ids, constraint=Only(allowed, period), max_tokens=16)
    assert set(ids_of(found)) <= set(allowed)
    forced = [at for at in range(len(found.tokens)) if period and at % period == 0]
    assert not set(forced) & set(policy.positions)
    for at in forced:
        token = found.tokens[at]
        assert (token.id, token.signals, token.decision.reason) == (allowed[0], None, "forced")
    # No model read a row for a forced position.
    asked = [len(work.ids) + work.keep - len(ids) for work in [*models.fast.works, *models.slow.works]]
    assert not set(forced) & set(asked)


def test_a_wholly_forced_answer_needs_no_model() -> None:
    models = pair(3)
    found = answer(models, "always", [0], constraint=Prefix([1, 2, 4]), max_tokens=3)
    assert found.text == "b c\n"
    assert models.fast.works == models.slow.works == []
    assert found.usage.escalation_rate is None


def test_signals_are_taken_after_the_mask_and_before_temperature() -> None:
    models, ids = pair(11), prompt(11)
    allowed = (1, 2, 5, 6)
    found = answer(models, "every:2", ids, constraint=Only(allowed), warp=Warp(temperature=5.0), seed=1)
    for at, token in enumerate(found.tokens):
        if token.signals is None:
            continue
        row = models.fast.script([*ids, *ids_of(found)[:at]]).astype(float)
        row[2] += 1.5
        row = row[list(allowed)]
        probabilities = np.exp(row - np.logaddexp.reduce(row))
        assert token.signals.max_prob == pytest.approx(probabilities.max(), abs=1e-5)
        assert token.signals.entropy_nats == pytest.approx(-(probabilities * np.log(probabilities)).sum(), abs=1e-5)
        first, second = np.sort(probabilities)[::-1][:2]
        assert token.signals.margin == pytest.approx(first - second, abs=1e-5)
        assert token.signals.log_partition == pytest.approx(np.logaddexp.reduce(row), abs=1e-5)


# --- counters ------------------------------------------------------------------------------------


def read_in_order(works: Sequence[Work], stream: Sequence[int]) -> int:
    """Checks that works read ``stream`` from its beginning, each token once; returns how many."""
    at = 0
    for work in works:
        assert work.keep == at
        assert list(work.ids) == list(stream[at : at + len(work.ids)])
        assert [index for index, _ in work.reads] == [len(work.ids) - 1]
        at += len(work.ids)
    return at


@given(case=CASE, policy=st.sampled_from(POLICIES), limit=st.integers(1, 40))
@settings(max_examples=400)
def test_counters_add_up_to_the_works_that_were_done(case: int, policy: str, limit: int) -> None:
    models, ids = pair(case), prompt(case)
    found = answer(models, policy, ids, max_tokens=limit)
    usage, written = found.usage, ids_of(found)
    for counters, model in ((usage.fast, models.fast), (usage.slow, models.slow)):
        read = read_in_order(model.works, [*ids, *written])
        assert counters.positions == read == counters.prefill + counters.catchup + counters.decode
        assert counters.forwards == len(model.works)
        assert counters.cached == 0
        assert counters.prefill == (len(ids) if model.works else 0)
        # One row per forward; all but the one behind the prompt are rows behind answer tokens.
        behind_prompt = sum(work.keep + len(work.ids) == len(ids) for work in model.works)
        assert counters.decode == counters.forwards - behind_prompt
    assert usage.prompt_tokens == len(ids)
    assert usage.tokens == len(written)
    assert usage.slow_tokens == sum(t.source == "slow" for t in found.tokens) == usage.slow_forwards
    # Where every answer is handed over whole, that is one decision, for which nothing is read.
    unread = policy == "always,span=rest"
    assert usage.escalations == unread + sum(t.decision.escalate and t.signals is not None for t in found.tokens)
    assert usage.decisions - unread == sum(t.signals is not None for t in found.tokens) == usage.fast.forwards
    assert usage.corrections == sum(
        t.source == "slow" and t.signals is not None and t.id != t.fast_choice for t in found.tokens
    )
    assert usage.slow_positions == usage.slow.positions
    if usage.slow_forwards:
        assert usage.slow_position_share == usage.slow_positions / (len(ids) + len(written))
    assert usage.escalation_rate == usage.escalations / usage.decisions
    assert usage.slow_token_share == usage.slow_tokens / usage.tokens
    covered = [at for span in found.spans for at in range(span.start, span.stop)]
    assert covered == list(range(len(written)))
    assert all({t.source for t in found.tokens[s.start : s.stop]} == {s.source} for s in found.spans)


def test_a_second_request_reads_only_what_is_new() -> None:
    for case in range(100):
        models, ids = pair(case, n_seq=1), prompt(case)
        first = answer(models, "every:3", ids, max_tokens=12)
        longer = [*ids, *ids_of(first)[:-1], 0, 1]
        done = {role: len(model.works) for role, model in models.models.items()}
        second = answer(models, "every:3", longer, max_tokens=12)
        for role, model in models.models.items():
            counters = getattr(second.usage, role)
            works = model.works[done[role] :]
            assert sum(len(work.ids) for work in works) == counters.positions
            if works:
                assert counters.cached == works[0].keep
                assert counters.cached + counters.prefill == len(longer)
        # The fast model had read all of the first answer but its last token.
        assert second.usage.fast.cached == len(longer) - 2
        assert ids_of(second) == ids_of(answer(pair(case), "every:3", longer, max_tokens=12))


def test_the_same_prompt_again_reads_one_token() -> None:
    """A row has to come from somewhere: the last prompt token is read again, the rest is cached."""
    models, ids = pair(2, n_seq=1), [0, 1, 2, 3]
    first = answer(models, "always", ids)
    again = answer(models, "always", ids)
    assert ids_of(again) == ids_of(first)
    for counters in (again.usage.fast, again.usage.slow):
        assert (counters.cached, counters.prefill) == (3, 1)


def test_an_engine_enters_its_totals_in_the_ledger_once() -> None:
    ledger, expected = Ledger(), [0, 0, 0, 0]
    for case in range(60):
        models = pair(case)
        engine = make_engine(models, "every:3,span=2", prompt(case), ledger=ledger, audit=case % 2 == 0)
        usage = finish(engine, models)[0].usage
        totals = (usage.tokens, usage.slow_tokens, usage.decisions, usage.escalations)
        expected = [a + b for a, b in zip(expected, totals, strict=True)]
    assert (ledger.requests, ledger.audits) == (60, 30)
    assert [ledger.tokens, ledger.slow_tokens, ledger.decisions, ledger.escalations] == expected


@pytest.mark.parametrize("chunked", [False, True])
def test_forwards_that_others_chunks_were_in_are_no_steps(chunked: bool) -> None:
    models, engine = pair(9), make_engine(pair(9), "never", [0, 1, 2])
    todo = engine.start()
    while todo:
        command = todo.pop(0)
        if isinstance(command, Start):
            event = next(drivers.perform(models.models[command.role], command))
            todo += engine.send(dataclasses.replace(event, chunked=chunked))
    steps = engine.generation.usage.fast.forwards - 1  # all but the prompt's
    assert steps > 1
    assert len(engine.state.step_seconds["fast"]) == (0 if chunked else steps)


# --- audits --------------------------------------------------------------------------------------


@given(case=CASE, policy=st.sampled_from(POLICIES), warp=st.sampled_from([Warp(), WARPS[1]]))
@settings(max_examples=350)
def test_an_audit_labels_every_position_and_changes_nothing(case: int, policy: str, warp: Warp) -> None:
    models, ids = pair(case), prompt(case)
    plain = answer(models, policy, ids, warp=warp)
    models = pair(case)
    audited = answer(models, policy, ids, warp=warp, audit=True)
    written = ids_of(plain)
    assert ids_of(audited) == written
    assert audited.text == plain.text
    assert audited.finish_reason == plain.finish_reason
    contexts = [[*ids, *written[:at]] for at in range(len(written))]
    fast = [int(np.argmax(models.fast.script(context))) for context in contexts]
    slow = [int(np.argmax(models.slow.script(context))) for context in contexts]
    assert [token.fast_choice for token in audited.tokens] == fast
    assert [token.slow_choice for token in audited.tokens] == slow
    assert audited.usage.disagreement_rate == sum(a != b for a, b in zip(fast, slow, strict=True)) / len(written)
    # The audit's own reading is kept apart from the answer's.
    for counters, other in ((audited.usage.fast, plain.usage.fast), (audited.usage.slow, plain.usage.slow)):
        assert counters.forwards == other.forwards
        assert (counters.decode, counters.catchup) == (other.decode, other.catchup)
    assert sum(len(work.ids) for work in [*models.fast.works, *models.slow.works]) == (
        audited.usage.fast.positions + audited.usage.slow.positions + audited.usage.audit_positions
    )


def test_an_audit_takes_one_slow_forward() -> None:
    models, ids = pair(4), prompt(4)
    found = answer(models, "never", ids, audit=True)
    assert len(models.slow.works) == 1
    assert len(models.slow.works[0].reads) == len(found.tokens)
    assert found.usage.slow_forwards == 0


def test_disagreement_is_unknown_unless_both_choices_are_known_everywhere() -> None:
    for case in range(100):
        models, ids = pair(case), prompt(case)
        for policy in ("never", "every:2", "always", "always,span=3"):
            found = answer(models, policy, ids)
            known = [t.fast_choice is not None and t.slow_choice is not None for t in found.tokens]
            assert (found.usage.disagreement_rate is not None) == all(known)
            assert found.usage.compared == sum(known)
        # Asked at every token, both choices are known without an audit.
        assert answer(models, "always", ids).usage.disagreement_rate is not None


def test_an_audit_sees_the_mask_too() -> None:
    models, ids = pair(6), prompt(6)
    found = answer(models, "every:3", ids, constraint=Only((0, 1, 5)), audit=True, max_tokens=15)
    assert {t.slow_choice for t in found.tokens} | {t.fast_choice for t in found.tokens} <= {0, 1, 5}


# --- failures ------------------------------------------------------------------------------------


@given(case=CASE, after=st.integers(0, 6), policy=st.sampled_from([p for p in POLICIES if p != "never"]))
@settings(max_examples=400)
def test_a_slow_failure_costs_quality_not_the_answer(case: int, after: int, policy: str) -> None:
    models, ids = pair(case, slow_fails_after=after), prompt(case)
    whole = answer(pair(case), policy, ids)
    found = answer(models, policy, ids)
    assert models.all_free
    if whole.usage.slow_forwards <= after:
        assert found.degraded is None
        assert ids_of(found) == ids_of(whole)
        return
    assert found.degraded is not None
    assert "was told to fail" in found.degraded
    at = [n for n, token in enumerate(whole.tokens) if token.source == "slow"][after]
    assert ids_of(found)[:at] == ids_of(whole)[:at]
    # From there on the fast model alone, to a proper end.
    rest = greedy(models.fast.script, [*ids, *ids_of(found)[:at]], 24 - at)
    assert ids_of(found)[at:] == rest
    assert {token.source for token in found.tokens[at:]} == {"fast"}


def test_a_slow_model_without_a_free_sequence_degrades_too() -> None:
    models = pair(5, n_seq=1)
    taken = models.slow.open([]).sequence
    found = answer(models, "every:2", prompt(5))
    assert found.degraded is not None
    assert "NoFreeSequence" in found.degraded
    models.slow.close(taken)
    assert answer(models, "every:2", prompt(5)).degraded is None


@pytest.mark.parametrize("after", [0, 1, 5])
def test_a_fast_failure_raises_and_leaves_the_models_usable(after: int) -> None:
    broken, ids = pair(9), [0, 1, 2]
    expected = answer(pair(9), "every:3", ids)
    assert len(expected.tokens) > after + 1
    working = broken.fast
    failing = ScriptedModel(working.script, working.tokenizer, n_seq=2, fail_after=after)
    with pytest.raises(BackendError, match="told to fail"):
        answer(Pair(failing, broken.slow), "every:3", ids)
    assert Pair(failing, broken.slow).all_free
    assert ids_of(answer(Pair(working, broken.slow), "every:3", ids)) == ids_of(expected)


def test_an_audit_that_fails_costs_only_its_labels() -> None:
    ids = prompt(8)
    plain = answer(pair(8), "always,span=4", ids)
    # The slow model fails: it has answered, then has to read the answer back.
    models = pair(8, slow_fails_after=0)
    found = answer(models, "never", ids, audit=True)
    assert ids_of(found) == ids_of(answer(pair(8), "never", ids))
    assert (found.usage.disagreement_rate, found.usage.audited) == (None, False)
    # The fast model fails: spans left positions at which it was not asked.
    models = pair(8)
    models.fast = ScriptedModel(
        models.fast.script, models.fast.tokenizer, n_seq=2, fail_after=plain.usage.fast.forwards
    )
    found = answer(models, "always,span=4", ids, audit=True)
    assert ids_of(found) == ids_of(plain)
    assert (found.usage.disagreement_rate, found.usage.audited) == (None, False)
    assert models.all_free


@pytest.mark.parametrize("audit", [False, True])
@pytest.mark.parametrize("at", [Open, Work])
def test_reading_ahead_that_fails_behind_the_end_degrades_nothing(at: type, audit: bool) -> None:
    """The answer was complete without it; an audit reads anew."""
    models, ids = pair(13, n_seq=1), prompt(13)
    expected = answer(pair(13), "every:50", ids, audit=audit)
    engine = make_engine(models, "every:50", ids, audit=audit, read_ahead=1)
    todo, late = engine.start(), None
    while engine.generation is None:
        if not todo:  # the fast model is done: what it did not wait for comes to nothing
            assert late is not None
            if isinstance(late.work, Work):
                with pytest.raises(BackendError):
                    models.slow.forward([dataclasses.replace(late.work, ids=[999])])
            todo, late = engine.send(Failed(late.job, BackendError("too late"))), None
            continue
        command = todo.pop(0)
        if not isinstance(command, Start):
            continue
        if command.role == "slow" and isinstance(command.work, at) and engine.state.finish is None and late is None:
            late = command
        else:
            todo += engine.send(next(drivers.perform(models.models[command.role], command)))
    found = engine.generation
    assert (ids_of(found), found.degraded) == (ids_of(expected), None)
    assert [token.slow_choice for token in found.tokens] == [token.slow_choice for token in expected.tokens]
    for role, sequence in engine.sequences:
        models.models[role].close(sequence)
    assert models.all_free


# --- forks ---------------------------------------------------------------------------------------


def pump_until(engine, models: Pair, commands: int):
    """Carry out so many commands, then stop; returns what is still to be done, and the text so far."""
    todo, shown = list(engine.start()), []
    for _ in range(commands):
        if not todo:
            break
        command = todo.pop(0)
        if isinstance(command, Emit):
            shown.append(command.text)
        else:
            todo += engine.send(next(drivers.perform(models.models[command.role], command)))
    return todo, shown


@given(case=CASE, policy=st.sampled_from(POLICIES), commands=st.integers(0, 40), sampled=st.booleans())
@settings(max_examples=350)
def test_a_fork_goes_on_alike_and_leaves_the_original_alone(
    case: int, policy: str, commands: int, sampled: bool
) -> None:
    models, ids = pair(case, n_seq=4), prompt(case)
    warp, ledger = WARPS[0] if sampled else Warp(), Ledger()
    expected = answer(models, policy, ids, warp=warp, audit=True)
    engine = make_engine(models, policy, ids, warp=warp, audit=True, ledger=ledger)
    todo, shown = pump_until(engine, models, commands)
    if engine.generation is not None:
        return
    before = snapshot(engine)
    fork = engine.fork()
    twin, _ = finish(fork, models)
    assert (ids_of(twin), twin.text) == (ids_of(expected), expected.text)
    assert twin.finish_reason == expected.finish_reason
    assert twin.usage.disagreement_rate == expected.usage.disagreement_rate
    # The original: nothing of its state has changed, nor its ledger, and it goes on as if nothing was.
    assert snapshot(engine) == before
    while todo:
        command = todo.pop(0)
        if isinstance(command, Start):
            todo += engine.send(next(drivers.perform(models.models[command.role], command)))
        else:
            shown.append(command.text)
    assert ids_of(engine.generation) == ids_of(expected)
    assert "".join(shown) == expected.text
    assert engine.generation.usage.slow_forwards == expected.usage.slow_forwards
    assert ledger.requests == 1
    for role, sequence in engine.sequences:
        models.models[role].close(sequence)
    assert models.all_free


def snapshot(engine) -> str:
    """All that an engine knows, as text that no later change reaches."""
    state, stream = engine.state, engine.state.text
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return repr((fields | {"text": (stream._held, stream.stopped, stream._decoder.getstate())}, engine.ledger))


def test_forks_may_go_different_ways() -> None:
    """Another seed from the same point on: same beginning, other ends, each its own request."""
    models, ids = pair(12, n_seq=4), prompt(12)
    engine = make_engine(models, "every:3", ids, warp=Warp(temperature=3.0), seed=1)
    todo, _ = pump_until(engine, models, 12)
    assert todo
    beginning = list(engine.state.answer)
    assert beginning
    ends = set()
    for seed in range(8):
        twin, _ = finish(engine.fork(dataclasses.replace(engine.request, seed=seed)), models)
        assert ids_of(twin)[: len(beginning)] == beginning
        ends.add(tuple(ids_of(twin)))
    assert len(ends) > 1


# --- policies see what they are promised ---------------------------------------------------------


class Watching:
    """A policy that records every context it is given."""

    name, asks = "watching", True

    def __init__(self, inner: object) -> None:
        self.inner, self.contexts, self.ended = inner, [], []

    def begin(self, ledger):
        return self.inner.begin(ledger)

    def decide(self, state, signals, context):
        self.contexts.append((context.position, context.since_escalation, context.slow_calls, context.slow_tokens))
        return self.inner.decide(state, signals, context)

    def end(self, state, ledger):
        self.ended.append(state)
        self.inner.end(state, ledger)


@pytest.mark.parametrize(
    "inner", [Always(), Every(3), Every(3, 2), Random(0.4, 3), Threshold("entropy", 1.5, True, 2)], ids=lambda p: p.name
)
def test_the_context_a_policy_sees_is_right(inner: object) -> None:
    for case in range(100):
        models, ids = pair(case), prompt(case)
        policy = Watching(inner)
        found = answer(models, policy, ids)
        expected = []
        for at, token in enumerate(found.tokens):
            if token.signals is None:
                continue
            slow = [n for n in range(at) if found.tokens[n].source == "slow"]
            calls = sum(found.tokens[n].signals is not None for n in slow)
            expected.append((at, at - (slow[-1] if slow else -1) - 1, calls, len(slow)))
        assert policy.contexts == expected
        assert len(policy.ended) == 1


def test_random_numbers_depend_on_seed_request_and_position_alone() -> None:
    models, ids = pair(20), prompt(20)

    def sources(seed: int) -> list[str]:
        return [token.source for token in answer(models, "random:0.5", ids, seed=seed).tokens]

    assert sources(1) == sources(1)
    assert len({tuple(sources(seed)) for seed in range(10)}) > 1


def test_a_script_decides_what_is_written() -> None:
    """The hash scripts really are a function of their ids, and pairs really differ."""
    one, other = script(1), script(2)
    assert np.array_equal(one([1, 2]), one([1, 2]))
    assert not np.array_equal(one([1, 2]), one([1, 3]))
    assert not np.array_equal(one([1, 2]), other([1, 2]))
    rates = [rate for case in range(100) if (rate := disagreement(case)) is not None]
    assert 0.05 < float(np.mean(rates)) < 0.95


def disagreement(case: int) -> float | None:
    found: Generation = answer(pair(case), "never", prompt(case), audit=True)
    return found.usage.disagreement_rate
