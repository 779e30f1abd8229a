"""A trie of rows: what it answers, what it has read again, what it keeps, and that nobody can tell."""

from __future__ import annotations

import dataclasses
import math
import random
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import numpy as np
import pytest
import scripted_pairs as sp

from fsgen_router import BackendError, Mask, Router
from fsgen_router.adapters.row_trie import RowTrie, TrieModel
from fsgen_router.adapters.scripted import ScriptedModel
from fsgen_router.contracts.models import Capabilities, Opened, Rows, TokenModel, Work
from fsgen_router.decode import Start
from fsgen_router.methods import make_method
from fsgen_router.rows.acceptance import Check, Rule
from fsgen_router.rows.reading import Alignment, Read, Row, Warp
from fsgen_router.rows.signals import TOP_K
from fsgen_router.run.workers import Client, _Job, _ready

SIGNALS = Read(signals=True, top_k=TOP_K)


def scripted(seed: int = 5, *, n_seq: int = 4, fail_after: int | None = None) -> ScriptedModel:
    return ScriptedModel(
        sp.script(seed),
        sp.tokenizer(),
        n_ctx=160,
        n_seq=n_seq,
        fail_after=fail_after,
        hidden=sp.hidden(5),
        hidden_size=sp.HIDDEN,
    )


def ids(count: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(sp.CONTROL) for _ in range(count)]


def rows(model: TokenModel, tokens: list[int], reads: list[tuple[int, Read]]) -> list[Row]:
    """Rows of a prefix, read from where the model remembers it."""
    opened = model.open(tokens)
    try:
        keep = min(opened.kept, min(at for at, _ in reads))
        work = Work(opened.sequence, keep, tokens[keep:], [(at - keep, read) for at, read in reads])
        return model.forward([work])[0]
    finally:
        model.close(opened.sequence)


def same(found: Row, expected: Row) -> bool:
    """Whether two rows say the same, NaN and arrays included."""
    return all(
        np.array_equal(a, b, equal_nan=True) if isinstance(a, np.ndarray) else a == b or (a != a and b != b)
        for a, b in zip(dataclasses.astuple(found), dataclasses.astuple(expected), strict=True)
    )


# --- rows ----------------------------------------------------------------------------------------

EXACT, NEAR = Rule(), Rule("near_best", 0.9)
READS = {
    "greedy": Read(),
    "signals": SIGNALS,
    "ids among the best and not": Read(ids=(0, 7, 3, 18)),
    "an exact check": Read(ids=(4,), check=Check(token=4, rule=EXACT)),
    "a lenient check": Read(check=Check(token=4, rule=NEAR)),
    "hidden": Read(hidden=True),
}


@pytest.mark.parametrize("name", READS)
def test_a_row_that_was_read_is_told_again_and_not_read_again(name: str) -> None:
    inside, read = scripted(), READS[name]
    model = TrieModel(inside, RowTrie(sp.N_VOCAB, top_k=3))
    expected = rows(scripted(), ids(12), [(11, read), (5, read)])
    first = rows(model, ids(12), [(11, read), (5, read)])
    forwards = inside.forwards
    again = rows(model, ids(12), [(11, read), (5, read)])
    assert inside.forwards == forwards
    assert all(map(same, first, expected))
    assert all(map(same, again, expected))
    assert (model.used.read, model.used.known) == (2, 2)


@pytest.mark.parametrize(
    "read",
    [
        Read(full=True),
        Read(mask=Mask(ids=np.array([3]), bias=np.array([50.0], np.float32))),
        Read(warp=Warp(temperature=2.0), uniform=0.7),
        Read(check=Check(token=4, rule=Rule("speculative"), fast_logits=np.zeros(sp.N_VOCAB, np.float32))),
        Read(alignment=Alignment(n_vocab=9, forbidden=np.array([2]), ends=np.array([], np.int64), end=0)),
    ],
    ids=["a whole row", "a mask", "a draw", "a rule on whole rows", "another alignment"],
)
def test_what_is_no_function_of_the_ids_alone_is_always_read(read: Read) -> None:
    inside = scripted()
    model = TrieModel(inside)
    rows(model, ids(12), [(11, SIGNALS)])
    for _ in range(2):
        before = inside.forwards
        assert same(rows(model, ids(12), [(11, read)])[0], rows(scripted(), ids(12), [(11, read)])[0])
        assert inside.forwards == before + 1
    assert same(rows(model, ids(12), [(11, SIGNALS)])[0], rows(scripted(), ids(12), [(11, SIGNALS)])[0])


def test_what_a_kept_row_does_not_tell_is_read_once_and_added() -> None:
    inside = scripted()
    model = TrieModel(inside, RowTrie(sp.N_VOCAB, top_k=2))
    plain = rows(model, ids(12), [(11, Read())])[0]
    worst = int(np.argmin(inside.script(ids(12))))
    for read in (Read(ids=(worst,)), SIGNALS, Read(hidden=True), Read(top_k=5)):
        before = inside.forwards
        told = [rows(model, ids(12), [(11, read)])[0] for _ in range(2)]
        assert all(same(row, rows(scripted(), ids(12), [(11, read)])[0]) for row in told)
        assert inside.forwards - before == (read != Read(top_k=5))  # signals had brought more than five
    assert same(rows(model, ids(12), [(11, Read())])[0], plain)
    assert math.isnan(plain.entropy)


def test_a_first_reading_stands_where_a_later_one_differs() -> None:
    """As kernels for one and for many tokens do: whoever comes later hears what the first heard."""
    inside = scripted()
    model = TrieModel(inside, RowTrie(sp.N_VOCAB, top_k=1))
    first = rows(model, ids(12), [(11, Read())])[0]
    row = np.array(inside.script(ids(12)))
    row[first.argmax] -= 100.0  # the other kernel's choice
    inside.script = lambda _: row
    later = rows(model, ids(12), [(11, SIGNALS)])[0]
    assert (later.token, later.argmax, later.argmax_logprob) == (first.argmax, first.argmax, first.argmax_logprob)
    assert rows(model, ids(12), [(11, Read())])[0].argmax == first.argmax


def test_rows_that_are_no_distribution_are_not_kept() -> None:
    inside = scripted()
    inside.script = lambda _: np.full(sp.N_VOCAB, np.nan, np.float32)
    model = TrieModel(inside)
    for _ in range(2):
        assert math.isnan(rows(model, ids(4), [(3, Read())])[0].log_partition)
    assert inside.forwards == 2


# --- what is read inside -------------------------------------------------------------------------


def test_only_what_is_new_is_read_and_what_is_passed_is_kept() -> None:
    inside = scripted()
    model = TrieModel(inside)
    prompt, answer = ids(6), ids(10, seed=1)
    rows(model, prompt, [(5, Read())])
    # Ten tokens of an answer whose last row is asked for: the model reads those, and keeps their rows too.
    rows(model, [*prompt, *answer], [(15, Read())])
    assert model.used.positions == 16
    before = inside.forwards
    rows(model, [*prompt, *answer], [(at, Read()) for at in range(5, 16)])
    assert inside.forwards == before
    # The prompt's rows are nobody's.
    rows(model, prompt, [(2, Read())])
    assert inside.forwards == before + 1


def test_the_model_inside_catches_up_only_when_a_row_is_needed() -> None:
    inside = scripted()
    model = TrieModel(inside)
    text = ids(20)
    rows(model, text, [(at, SIGNALS) for at in range(4, 20)])
    for _ in range(3):
        rows(model, text, [(at, SIGNALS) for at in range(4, 20)])
    sequence = model.open([]).sequence
    forwards, positions = inside.forwards, model.used.positions
    for at, token in enumerate(text):
        model.forward([Work(sequence, at, [token], [(0, SIGNALS)] if at >= 4 else [])])
    assert (inside.forwards, model.used.positions) == (forwards, positions)
    model.forward([Work(sequence, 20, [3], [(0, SIGNALS)])])
    assert inside.forwards == forwards + 1
    assert model.used.positions == positions + 1, "what it holds of another run's text is not read again"
    model.close(sequence)


def test_batches_of_what_is_known_and_what_is_not() -> None:
    inside = scripted()
    model = TrieModel(inside)
    known, fresh = ids(9), ids(9, seed=3)
    rows(model, known, [(8, SIGNALS)])
    opened = [model.open([]).sequence for _ in range(2)]
    before = len(inside.works)
    found = model.forward(
        [Work(opened[0], 0, known, [(8, SIGNALS)]), Work(opened[1], 0, fresh, [(8, SIGNALS), (4, SIGNALS)])]
    )
    assert len(inside.works) == before + 1
    assert [len(one) for one in found] == [1, 2]
    assert all(map(same, found[1], rows(scripted(), fresh, [(8, SIGNALS), (4, SIGNALS)])))
    for sequence in opened:
        model.close(sequence)


def test_it_tells_which_works_cost_nothing() -> None:
    inside = scripted()
    model = TrieModel(inside)
    rows(model, ids(9), [(at, SIGNALS) for at in range(4, 9)])
    sequence, before = model.open([]).sequence, inside.forwards
    model.forward([Work(sequence, 0, ids(9)[:5], [])])
    known = Work(sequence, 5, ids(9)[5:], [(3, SIGNALS), (0, SIGNALS)])
    assert model.knows(known)
    assert model.knows(dataclasses.replace(known, reads=[]))
    assert not model.knows(dataclasses.replace(known, ids=[*known.ids[:3], 3], reads=[(3, SIGNALS)]))
    assert not model.knows(dataclasses.replace(known, reads=[(0, Read(full=True))]))
    assert not model.knows(dataclasses.replace(known, keep=7))
    assert inside.forwards == before
    model.close(sequence)


def test_works_that_are_known_go_first_and_the_others_meet_in_one_forward() -> None:
    inside = scripted()
    model = TrieModel(inside)
    rows(model, ids(9), [(at, SIGNALS) for at in range(4, 9)])
    works = [
        Work(model.open([]).sequence, 0, ids(9, seed=seed), [(8, SIGNALS)])  # the first of them was read
        for seed in (0, 1, 2)
    ]
    jobs = [_Job(Start(0, "fast", work), cast(Client, None), work) for work in works]
    assert _ready(model, jobs) == jobs[:1]
    assert _ready(model, jobs[1:]) == jobs[1:]
    assert _ready(inside, jobs) == jobs, "a model that cannot tell reads whatever waits"


def test_answers_through_a_batching_router_are_the_same() -> None:
    """Asked at once, each from where its text was left before."""
    plain, inside = sp.pair(3, n_seq=4), sp.pair(3, n_seq=4)
    texts = ["ab", "a7", "7b", "b,"]
    with Router(plain.fast, plain.slow, policy="entropy>1", method="replace", seed=0) as router:
        expected = [router.complete(text, max_tokens=20).tokens for text in texts]
    tries = TrieModel(inside.fast), TrieModel(inside.slow)
    with Router(*tries, policy="entropy>1", method="replace", seed=0) as router, ThreadPoolExecutor(4) as pool:
        for most in (5, 12, 20):
            found = list(pool.map(lambda text, n=most: router.complete(text, max_tokens=n).tokens, texts))
    assert found == expected
    assert inside.fast.forwards <= sum(map(len, expected))


def test_a_failure_takes_only_those_along_that_were_read() -> None:
    """What waits while known works go first does not fail with them, nor is it forgotten."""
    inside = sp.pair(3, n_seq=4)
    model = TrieModel(inside.fast)
    with Router(model, TrieModel(inside.slow), policy="never", seed=0) as router:
        answer = router.complete("ab", max_tokens=6).tokens
        inside.fast._fail_after = inside.fast.forwards
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(router.complete, text, max_tokens=6) for text in ("ab", "a7", "7b", "ab")]
        assert asked[0].result().tokens == asked[3].result().tokens == answer
        for failed in asked[1:3]:
            with pytest.raises(BackendError, match="told to fail"):
                failed.result()


class Forgetful(ScriptedModel):
    """A model that cannot go back."""

    capabilities: Capabilities

    def open(self, ids: list[int]) -> Opened:  # type: ignore[override]
        opened = super().open(ids)
        return Opened(opened.sequence, 0)


def test_what_a_model_without_rewind_would_read_again_is_told() -> None:
    inside = Forgetful(sp.script(5), sp.tokenizer(), n_ctx=160, n_seq=1)
    inside.capabilities = Capabilities(rewind=False)
    model = TrieModel(inside)
    sequence = model.open([]).sequence
    model.forward([Work(sequence, 0, ids(12), [(11, Read())])])
    back = model.forward([Work(sequence, 8, ids(2, seed=4), [(1, Read())])])[0]
    assert isinstance(back, Rows)
    assert back.reread == 8
    on = model.forward([Work(sequence, 10, ids(2, seed=6), [(1, Read())])])[0]
    assert isinstance(on, Rows)
    assert on.reread == 0


def test_a_failure_inside_empties_its_sequences_and_leaves_what_is_known() -> None:
    inside = scripted(fail_after=1)
    model = TrieModel(inside)
    rows(model, ids(8), [(7, SIGNALS)])
    with pytest.raises(BackendError, match="told to fail"):
        rows(model, ids(9), [(8, SIGNALS)])
    assert same(rows(model, ids(8), [(7, SIGNALS)])[0], rows(scripted(), ids(8), [(7, SIGNALS)])[0])
    assert model.open(ids(8)).kept == 8


# --- memory and disk -----------------------------------------------------------------------------


def test_above_its_limit_nothing_is_added_and_everything_is_right(caplog: pytest.LogCaptureFixture) -> None:
    inside = scripted()
    model = TrieModel(inside, RowTrie(sp.N_VOCAB, limit_bytes=2500))
    for seed in range(6):
        text = ids(12, seed=seed)
        found = rows(model, text, [(at, SIGNALS) for at in range(3, 12)])
        assert all(map(same, found, rows(scripted(), text, [(at, SIGNALS) for at in range(3, 12)])))
    assert model.trie.full
    assert model.trie.bytes < 4000
    assert [record.getMessage() for record in caplog.records].count("rows_full") <= 1
    before = inside.forwards
    rows(model, ids(12, seed=0), [(3, SIGNALS)])
    assert inside.forwards == before, "what had room stays known"
    rows(model, ids(12, seed=5), [(11, SIGNALS)])
    assert inside.forwards == before + 1
    none = TrieModel(scripted(), RowTrie(sp.N_VOCAB, limit_bytes=0))
    for _ in range(2):
        rows(none, ids(12), [(11, SIGNALS)])
    assert (none.used.forwards, len(none.trie)) == (2, 0)


def test_rows_go_on_where_they_were_written() -> None:
    inside = scripted()
    model = TrieModel(inside, RowTrie(sp.N_VOCAB, top_k=2))
    parts = []
    for seed, read in enumerate((SIGNALS, Read(ids=(0, 7, 18)), Read(hidden=True), SIGNALS)):
        rows(model, [*ids(6), *ids(5, seed)], [(at, read) for at in range(5, 11)])
        parts.append(model.take_new())
    assert model.take_new() is None
    trie = RowTrie(sp.N_VOCAB, top_k=2)
    assert all(part is not None and trie.put_back(part) for part in parts)
    assert (len(trie), trie.bytes) == (len(model.trie), model.trie.bytes)
    resumed = TrieModel(scripted(fail_after=0), trie)
    for seed, read in enumerate((SIGNALS, Read(ids=(0, 7, 18)), Read(hidden=True), SIGNALS)):
        text, reads = [*ids(6), *ids(5, seed)], [(at, read) for at in range(6, 11)]
        assert all(map(same, rows(resumed, text, reads), rows(scripted(), text, reads)))
    first, second = parts[:2]
    assert first is not None
    assert second is not None
    assert not RowTrie(sp.N_VOCAB).put_back(second), "a part that does not follow on is not taken"


# --- whole answers -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["replace", "verify", "verify:near_best=0.3"])
@pytest.mark.parametrize("policy", ["never", "always,span=rest", "entropy>1.5", "every:3", "random:0.4"])
def test_answers_and_what_they_cost_are_those_without_a_trie(policy: str, method: str) -> None:
    """Token for token and counter for counter, whatever ran before over the same trie."""
    for case in range(6):
        plain, inside = sp.pair(case), sp.pair(case)
        tries = sp.Pair(TrieModel(inside.fast), TrieModel(inside.slow))  # type: ignore[arg-type]
        for first in ("always", "entropy>1", policy):
            found = sp.answer(tries, first, sp.prompt(case), method=make_method(method))
        expected = sp.answer(plain, policy, sp.prompt(case), method=make_method(method))
        assert found.tokens == expected.tokens
        ours, theirs = found.usage.to_dict(), expected.usage.to_dict()
        for usage in (ours, theirs):
            usage.pop("seconds"), usage.pop("first_token_seconds")
            for role in ("fast", "slow", "tuned"):
                counters = usage[role]  # type: ignore[literal-required]
                # What a sequence still held when it was opened depends on what ran before.
                counters["positions"] = counters["prefill"] + counters["cached"] + counters["catchup"]
                for name in ("seconds", "prefill", "cached", "catchup"):
                    counters.pop(name)
            usage.pop("slow_positions"), usage.pop("slow_position_share")
        assert ours == theirs
