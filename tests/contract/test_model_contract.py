"""The contract of a model that gives rows, one suite over every adapter.

A new adapter joins by one more entry in ``ADAPTERS``. Of a model behind a server the rows are compared as far as it
tells them: see :class:`_Told`.
"""

from __future__ import annotations

import dataclasses
import math
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import scripted_pairs
import tiny_transformers
from token_server import token_server

from fsgen_router import BackendError, Mask, NoFreeSequence, reference
from fsgen_router.adapters.row_trie import TrieModel
from fsgen_router.adapters.scripted import ScriptedModel
from fsgen_router.adapters.tokens import TokensModel
from fsgen_router.adapters.transformers import TransformersModel
from fsgen_router.adapters.transformers.reading import reduce_rows
from fsgen_router.contracts.models import TokenModel, Work
from fsgen_router.costs import Effort, measure_forwards
from fsgen_router.records import Role
from fsgen_router.rows.reading import GREEDY, Read, Row, Warp, draw, warped

N_CTX = 160
FULL = Read(full=True)


def _scripted(n_seq: int) -> TokenModel:
    return ScriptedModel(
        scripted_pairs.script(5),
        scripted_pairs.tokenizer(),
        n_ctx=N_CTX,
        n_seq=n_seq,
        hidden=scripted_pairs.hidden(5),
        hidden_size=scripted_pairs.HIDDEN,
    )


def _llama_cpp(n_seq: int, n_batch: int) -> TokenModel:
    return reference.load("fast", n_ctx=N_CTX, n_seq=n_seq, n_batch=n_batch)


def _transformers(architecture: str, n_seq: int, n_batch: int = 512) -> TransformersModel:
    return TransformersModel(
        tiny_transformers.saved(architecture), n_ctx=N_CTX, n_seq=n_seq, n_batch=n_batch, device="cpu"
    )


def _as_on_an_accelerator(model: TransformersModel) -> TokenModel:
    """With the reductions that run there: on the CPU numpy does them."""
    model._reduce = reduce_rows
    return model


class _Told:
    """A model behind a server, asked for the best tokens of a row where a whole one is: of the others it says NaN."""

    def __init__(self, n_seq: int, api: str, **settings: Any) -> None:
        folder = tiny_transformers.saved("llama")
        self._serving = token_server(folder, max_model_len=N_CTX + 1, **settings)
        server = self._serving.__enter__()
        self._inner = TokensModel(f"slow@{server.url}", api=api, n_seq=n_seq, tokenizer=str(folder))  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def forward(self, works: Sequence[Work]) -> list[list[Row]]:
        asked = [dataclasses.replace(work, reads=[(at, self._told(read)) for at, read in work.reads]) for work in works]
        return [
            [self._whole(row) if read.full else row for row, (_, read) in zip(rows, work.reads, strict=True)]
            for rows, work in zip(self._inner.forward(asked), works, strict=True)
        ]

    def _told(self, read: Read) -> Read:
        return dataclasses.replace(read, full=False, top_k=20) if read.full else read

    def _whole(self, row: Row) -> Row:
        logits = np.full(self.tokenizer.n_vocab, np.nan, np.float32)
        logits[list(row.top_ids)] = row.top_logprobs
        return dataclasses.replace(row, logits=logits)

    def shutdown(self) -> None:
        self._inner.shutdown()
        self._serving.__exit__(None, None, None)


ADAPTERS: dict[str, Callable[[], TokenModel]] = {
    "scripted-1": lambda: _scripted(1),
    "scripted-4": lambda: _scripted(4),
    "llama_cpp-1": lambda: _llama_cpp(1, 512),
    "llama_cpp-4": lambda: _llama_cpp(4, 512),
    "llama_cpp-1-chunked": lambda: _llama_cpp(1, 7),
    "llama_cpp-4-chunked": lambda: _llama_cpp(4, 7),
    "transformers-1": lambda: _transformers("llama", 1),
    "transformers-4": lambda: _as_on_an_accelerator(_transformers("llama", 4)),
    "transformers-4-chunked": lambda: _transformers("gemma2", 4, 7),  # one layer with a sliding window
    "transformers-4-recurrent": lambda: _transformers("falcon_h1", 4),
    "trie-1-scripted": lambda: TrieModel(_scripted(1)),
    "trie-4-llama_cpp": lambda: TrieModel(_llama_cpp(4, 512)),
    "trie-4-transformers-chunked": lambda: TrieModel(_transformers("gemma2", 4, 7)),
    "trie-4-transformers-recurrent": lambda: TrieModel(_transformers("falcon_h1", 4)),
    "tokens-1-completions": lambda: _Told(1, "completions"),
    "tokens-4-generate": lambda: _Told(4, "generate"),
}


@pytest.fixture
def whole_rows(request: pytest.FixtureRequest) -> None:
    """For tests of what is read of whole rows, and of hidden states."""
    names = [request.getfixturevalue(name) for name in ("model", "wide_model") if name in request.fixturenames]
    if any(isinstance(model, _Told) for model in names):
        pytest.skip("a server tells the best tokens of a row alone")


@pytest.fixture(params=ADAPTERS)
def model(request: pytest.FixtureRequest) -> Iterator[TokenModel]:
    made = ADAPTERS[request.param]()
    yield made
    made.shutdown()


@pytest.fixture(params=[name for name in ADAPTERS if "-4" in name])
def wide_model(request: pytest.FixtureRequest) -> Iterator[TokenModel]:
    made = ADAPTERS[request.param]()
    yield made
    made.shutdown()


def some_ids(model: TokenModel, count: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    ordinary = sorted(set(range(model.tokenizer.n_vocab)) - model.tokenizer.special_ids)
    return [rng.choice(ordinary) for _ in range(count)]


def last(model: TokenModel, sequence: int, keep: int, ids: Sequence[int], read: Read = FULL) -> Row:
    return model.forward([Work(sequence, keep, ids, [(len(ids) - 1, read)])])[0][0]


def fresh(model: TokenModel, ids: Sequence[int], read: Read = FULL) -> Row:
    """The row behind ``ids``, read from the beginning."""
    sequence = model.open([]).sequence
    try:
        return last(model, sequence, 0, ids, read)
    finally:
        model.close(sequence)


def assert_same_row(found: Row, expected: Row) -> None:
    # Kernels for one and for many tokens may sum in another order.
    np.testing.assert_allclose(found.logits, expected.logits, atol=2e-4, rtol=1e-4)


# --- opening, prefix reuse, closing --------------------------------------------------------------


def test_a_new_model_keeps_nothing(model: TokenModel) -> None:
    assert model.open(some_ids(model, 5)).kept == 0


def is_scripted(model: TokenModel) -> bool:
    """Whether a function is the model, with a trie in front or without."""
    return isinstance(getattr(model, "_model", model), ScriptedModel)


def test_a_model_says_what_it_runs_on(model: TokenModel) -> None:
    """Models of one device take turns there; the double runs on none unless it is told."""
    capabilities = model.capabilities
    assert capabilities.device == (None if is_scripted(model) or capabilities.remote else "cpu")
    assert capabilities.device_share > 0


def test_what_a_closed_sequence_read_is_found_again(model: TokenModel) -> None:
    ids = some_ids(model, 20)
    other = (ids[12] + 1) % min(model.tokenizer.n_vocab, 18)
    first = model.open(ids)
    last(model, first.sequence, 0, ids)
    model.close(first.sequence)
    back = model.capabilities.rewind  # else it goes on from all that it holds, or begins anew
    for wanted, kept in (
        (ids, 20 * back),
        ([*ids, 3, 4], 20),
        (ids[:8], 8 * back),
        ([*ids[:12], other, *ids[13:]], 12 * back),
        ([], 0),
    ):
        opened = model.open(wanted)
        assert opened.kept == kept
        model.close(opened.sequence)


def test_going_on_from_a_kept_prefix_equals_reading_it_all(model: TokenModel) -> None:
    ids, more = some_ids(model, 30), some_ids(model, 9, seed=1)
    expected = fresh(model, [*ids[:25], *more])
    opened = model.open(ids)
    last(model, opened.sequence, opened.kept, ids[opened.kept :] or ids[-1:])
    model.close(opened.sequence)
    wanted = [*ids[:25], *more]
    opened = model.open(wanted)
    assert opened.kept == 25 * model.capabilities.rewind
    row = last(model, opened.sequence, opened.kept, wanted[opened.kept :])
    assert_same_row(row, expected)
    model.close(opened.sequence)
    opened = model.open([*wanted, 3])
    assert opened.kept == len(wanted)
    row = last(model, opened.sequence, opened.kept, [3])
    model.close(opened.sequence)
    assert_same_row(row, fresh(model, [*wanted, 3]))


def test_the_longest_prefix_wins_and_the_least_recently_used_goes_first(wide_model: TokenModel) -> None:
    prompts = [some_ids(wide_model, 10, seed) for seed in range(4)]
    held = {}
    for number, ids in enumerate(prompts):
        opened = wide_model.open(ids)
        last(wide_model, opened.sequence, 0, ids)
        held[number] = opened.sequence
    for number in (2, 0, 3, 1):
        wide_model.close(held[number])
    for number, ids in enumerate(prompts):
        opened = wide_model.open([*ids, 3])
        assert (opened.sequence, opened.kept) == (held[number], 10)
        wide_model.close(opened.sequence)
    # Nothing in common with any: the one that was closed longest ago is given.
    assert wide_model.open([]).sequence == held[0]


def test_who_begins_alike_does_not_take_a_longer_conversation(wide_model: TokenModel) -> None:
    """Nearly all chats begin with the same words of a template."""
    long, alike = some_ids(wide_model, 20), some_ids(wide_model, 20)[:6]  # more is lost than twice what is in common
    mine = wide_model.open(long)
    last(wide_model, mine.sequence, 0, long)
    wide_model.close(mine.sequence)
    other = wide_model.open([*alike, 3, 4, 5])
    assert other.sequence != mine.sequence
    wide_model.close(other.sequence)
    back = wide_model.open([*long, 3])
    assert (back.sequence, back.kept) == (mine.sequence, 20)


def test_sequences_run_out_and_come_back(model: TokenModel) -> None:
    opened = [model.open([]).sequence for _ in range(model.n_seq)]
    assert sorted(opened) == sorted(set(opened))
    with pytest.raises(NoFreeSequence, match="n_seq"):
        model.open([])
    model.close(opened[0])
    assert model.open([]).sequence == opened[0]


# --- forward -------------------------------------------------------------------------------------


def test_token_by_token_equals_at_once(model: TokenModel) -> None:
    ids = some_ids(model, 18)
    expected = fresh(model, ids)
    sequence = model.open([]).sequence
    rows = [last(model, sequence, at, [token]) for at, token in enumerate(ids)]
    assert_same_row(rows[-1], expected)


def test_rewind_equals_a_fresh_run(model: TokenModel) -> None:
    rng = random.Random(3)
    sequence, held = model.open([]).sequence, []
    for turn in range(12):
        keep = rng.randint(0, len(held))
        ids = some_ids(model, rng.randint(1, 12), seed=turn)
        row = last(model, sequence, keep, ids)
        held = [*held[:keep], *ids]
        model.close(sequence)
        expected = fresh(model, held)
        opened = model.open([*held, 3])
        sequence = opened.sequence
        assert opened.kept == len(held)
        assert_same_row(row, expected)


def test_a_batch_equals_solo_runs(wide_model: TokenModel) -> None:
    rng = random.Random(4)
    contexts: dict[int, list[int]] = {wide_model.open([]).sequence: [] for _ in range(wide_model.n_seq)}
    answers = []
    for turn in range(6):
        works = []
        for sequence in rng.sample(list(contexts), rng.randint(1, len(contexts))):
            keep = rng.randint(0, len(contexts[sequence]))
            ids = some_ids(wide_model, rng.randint(1, 10), seed=100 * turn + sequence)
            contexts[sequence] = [*contexts[sequence][:keep], *ids]
            works.append(Work(sequence, keep, ids, [(len(ids) - 1, FULL)]))
        for work, rows in zip(works, wide_model.forward(works), strict=True):
            assert len(rows) == 1
            answers.append((list(contexts[work.sequence]), rows[0]))
    for sequence in contexts:
        wide_model.close(sequence)
    for ids, row in answers:
        assert_same_row(row, fresh(wide_model, ids))


def test_reads_come_back_in_their_own_order_and_may_repeat(model: TokenModel) -> None:
    ids = some_ids(model, 12)
    wanted = [11, 0, 5, 5, 3, 11]
    sequence = model.open([]).sequence
    rows = model.forward([Work(sequence, 0, ids, [(at, FULL) for at in wanted])])[0]
    model.close(sequence)
    for at, row in zip(wanted, rows, strict=True):
        assert_same_row(row, fresh(model, ids[: at + 1]))


@pytest.mark.parametrize("at", [None, 0, 40], ids=["every row", "the first row", "one row in the middle"])
def test_many_reads_in_one_work(model: TokenModel, at: int | None) -> None:
    """More rows than an adapter may want to hold at once, spread out or all of one token."""
    ids = some_ids(model, 150)
    places = list(range(150)) if at is None else [at] * 150
    sequence = model.open([]).sequence
    rows = model.forward([Work(sequence, 0, ids, [(place, FULL) for place in places])])[0]
    model.close(sequence)
    assert len(rows) == 150
    for index in (0, 63, 64, 65, 149):
        assert_same_row(rows[index], fresh(model, ids[: places[index] + 1]))


# --- hidden states -------------------------------------------------------------------------------

STATE = Read(full=True, hidden=True)


def assert_same_state(found: Row, expected: Row) -> None:
    assert_same_row(found, expected)
    assert found.hidden is not None
    assert found.hidden.dtype == np.float32
    np.testing.assert_allclose(found.hidden, expected.hidden, atol=2e-5, rtol=1e-5)


@pytest.mark.usefixtures("whole_rows")
def test_a_hidden_state_comes_with_the_row_where_it_is_asked_for(model: TokenModel) -> None:
    ids = some_ids(model, 40)
    plain, row = fresh(model, ids), fresh(model, ids, STATE)
    assert plain.hidden is None
    assert row.hidden is not None
    assert row.hidden.shape == (model.capabilities.hidden_size,)
    assert row.hidden.std() > 0.01
    assert_same_row(row, plain)
    kept = row.hidden.copy()
    fresh(model, some_ids(model, 40, seed=1), STATE)
    assert (row.hidden == kept).all()  # it is a copy


@pytest.mark.usefixtures("whole_rows")
@pytest.mark.parametrize("first", [0, 3, 70])
def test_hidden_states_among_other_reads(model: TokenModel, first: int) -> None:
    """However much is read without, before and in between."""
    ids = some_ids(model, 150)
    wanted = [first, first + 1, 149, 20, *range(80, 149, 2), 0]
    reads = [(at, STATE if at >= first and at != 20 else FULL) for at in wanted]
    sequence = model.open([]).sequence
    rows = model.forward([Work(sequence, 0, ids, reads)])[0]
    model.close(sequence)
    for (at, read), row in [*zip(reads, rows, strict=True)][:8]:
        if read.hidden:
            assert_same_state(row, fresh(model, ids[: at + 1], STATE))
        else:
            assert row.hidden is None
            assert_same_row(row, fresh(model, ids[: at + 1]))


@pytest.mark.usefixtures("whole_rows")
def test_hidden_states_in_a_batch_and_after_rewinds(wide_model: TokenModel) -> None:
    rng = random.Random(8)
    contexts: dict[int, list[int]] = {wide_model.open([]).sequence: [] for _ in range(wide_model.n_seq - 1)}
    for turn in range(5):
        works = []
        for sequence in contexts:
            keep = rng.randint(0, len(contexts[sequence]))
            ids = some_ids(wide_model, rng.choice((1, 1, 9, 30)), seed=100 * turn + sequence)
            contexts[sequence] = [*contexts[sequence][:keep], *ids][:N_CTX]
            works.append(Work(sequence, keep, ids, [(len(ids) - 1, rng.choice((STATE, FULL)))]))
        for work, (row,) in zip(works, wide_model.forward(works), strict=True):
            expected = fresh(wide_model, contexts[work.sequence], STATE)
            if work.reads[0][1].hidden:
                assert_same_state(row, expected)
            else:
                assert row.hidden is None
                assert_same_row(row, expected)


@pytest.mark.parametrize("role", ["fast", "slow"])
def test_backends_agree_on_hidden_states(role: Role) -> None:
    """Measured with F32 weights: 5e-6 at most, at a standard deviation of 1 to 3."""
    llama, other = reference.load(role), TransformersModel(reference.path(role), device="cpu")
    try:
        assert llama.capabilities.hidden_size == other.capabilities.hidden_size
        for seed in range(3):
            ids = some_ids(llama, 60, seed)
            ours, theirs = fresh(llama, ids, STATE).hidden, fresh(other, ids, STATE).hidden
            np.testing.assert_allclose(ours, theirs, atol=5e-5)
    finally:
        llama.shutdown()
        other.shutdown()


def test_a_work_without_reads_still_reads_its_tokens(model: TokenModel) -> None:
    ids = some_ids(model, 9)
    expected = fresh(model, ids)
    sequence = model.open([]).sequence
    assert model.forward([Work(sequence, 0, ids[:8], [])]) == [[]]
    assert_same_row(last(model, sequence, 8, ids[8:]), expected)


def test_a_context_can_be_filled_to_the_last_token(model: TokenModel) -> None:
    ids = some_ids(model, N_CTX)
    sequence = model.open([]).sequence
    before = last(model, sequence, 0, ids[:-1])
    assert math.isfinite(last(model, sequence, N_CTX - 1, ids[-1:]).log_partition)
    # ... and rewound from there.
    assert_same_row(last(model, sequence, N_CTX - 2, [ids[-2]]), before)


# --- what is read of a row -----------------------------------------------------------------------


@pytest.mark.usefixtures("whole_rows")
def test_reductions_agree_with_the_full_row(model: TokenModel) -> None:
    ids = some_ids(model, 14)
    asked = (0, 7, 3)
    row = fresh(model, ids, Read(full=True, signals=True, top_k=5, ids=asked))
    exact = np.asarray(row.logits, np.float64)
    logprobs = exact - np.logaddexp.reduce(exact)
    probabilities = np.exp(logprobs)
    entropy = -(probabilities * logprobs).sum()
    assert row.token == row.argmax == int(exact.argmax())
    assert row.logprob == row.argmax_logprob == pytest.approx(logprobs.max(), abs=1e-5)
    assert row.log_partition == pytest.approx(np.logaddexp.reduce(exact), abs=1e-5)
    assert row.entropy == pytest.approx(entropy, abs=1e-5)
    assert row.varentropy == pytest.approx((probabilities * (logprobs + entropy) ** 2).sum(), abs=1e-4)
    assert list(row.top_ids) == np.argsort(-exact, kind="stable")[:5].tolist()
    np.testing.assert_allclose(row.top_logprobs, logprobs[list(row.top_ids)], atol=1e-5)
    np.testing.assert_allclose(row.id_logprobs, logprobs[list(asked)], atol=1e-5)


def test_nothing_is_read_that_was_not_asked_for(model: TokenModel) -> None:
    row = fresh(model, some_ids(model, 4), Read())
    assert math.isnan(row.entropy)
    assert math.isnan(row.varentropy)
    assert (row.top_ids, row.top_logprobs, row.id_logprobs, row.logits) == ((), (), (), None)


@pytest.mark.usefixtures("whole_rows")
def test_masks_come_before_everything_else(model: TokenModel) -> None:
    ids, n_vocab = some_ids(model, 6), model.tokenizer.n_vocab
    plain = fresh(model, ids)
    allowed = np.ones(n_vocab, bool)
    allowed[plain.argmax] = False
    mask = Mask(ids=np.array([4, 2]), bias=np.array([30.0, 50.0], np.float32), allowed=allowed)
    row = fresh(model, ids, Read(mask=mask, full=True, top_k=3))
    expected = np.array(plain.logits)
    expected[[4, 2]] += [30, 50]
    expected[plain.argmax] = -1e9
    np.testing.assert_allclose(row.logits, expected, atol=1e-3, rtol=1e-4)
    assert row.argmax == row.top_ids[0] == int(expected.argmax())
    assert plain.argmax not in row.top_ids
    # The mask left no trace in the model.
    assert_same_row(fresh(model, ids), plain)


@pytest.mark.usefixtures("whole_rows")
def test_a_read_can_draw(model: TokenModel) -> None:
    ids = some_ids(model, 6)
    logits = fresh(model, ids).logits
    warp = Warp(temperature=6.0, top_k=10, top_p=0.95)
    drawn = set()
    for step in range(20):
        row = fresh(model, ids, Read(warp=warp, uniform=step / 20))
        assert row.token == draw(*warped(logits, warp), step / 20)
        drawn.add(row.token)
    assert len(drawn) > 1
    assert fresh(model, ids, Read(warp=GREEDY, uniform=0.9)).token == int(np.argmax(logits))


# --- errors leave the model usable ---------------------------------------------------------------

_WRONG: dict[str, Callable[[TokenModel, int], Work]] = {
    "keeps more than it holds": lambda m, s: Work(s, 7, some_ids(m, 2), [(1, FULL)]),
    "keeps a negative number": lambda m, s: Work(s, -1, some_ids(m, 2), [(1, FULL)]),
    "no new tokens": lambda m, s: Work(s, 2, [], []),
    "over the context": lambda m, s: Work(s, 6, some_ids(m, N_CTX - 5), [(0, FULL)]),
    "a token outside the vocabulary": lambda m, s: Work(s, 6, [0, m.tokenizer.n_vocab], [(1, FULL)]),
    "a negative token": lambda m, s: Work(s, 6, [-1], [(0, FULL)]),
    "a token that no integer of the backend holds": lambda m, s: Work(s, 6, [2**40], [(0, FULL)]),
    "a row behind the last token": lambda m, s: Work(s, 6, some_ids(m, 2), [(2, FULL)]),
    "a row before the first token": lambda m, s: Work(s, 6, some_ids(m, 2), [(-1, FULL)]),
}


@pytest.mark.parametrize("wrong", _WRONG)
def test_a_wrong_work_is_refused_and_the_sequence_is_empty(model: TokenModel, wrong: str) -> None:
    ids = some_ids(model, 6)
    expected = fresh(model, ids)
    sequence = model.open([]).sequence
    last(model, sequence, 0, ids)
    with pytest.raises(BackendError):
        model.forward([_WRONG[wrong](model, sequence)])
    with pytest.raises(BackendError):
        last(model, sequence, 1, ids[1:])
    assert_same_row(last(model, sequence, 0, ids), expected)
    model.close(sequence)


def test_a_sequence_that_is_not_open_is_refused(wide_model: TokenModel) -> None:
    ids = some_ids(wide_model, 3)
    for sequence in (0, 3, wide_model.n_seq, -1):
        with pytest.raises(BackendError, match="not open"):
            last(wide_model, sequence, 0, ids)
    assert wide_model.open(ids).kept == 0


def test_a_failing_batch_empties_every_sequence_in_it_and_no_other(wide_model: TokenModel) -> None:
    ids = some_ids(wide_model, 6)
    expected = fresh(wide_model, [*ids, *ids])
    first, second, outside = (wide_model.open([]).sequence for _ in range(3))
    for sequence in (first, second, outside):
        last(wide_model, sequence, 0, ids)
    with pytest.raises(BackendError):
        wide_model.forward([Work(first, 6, ids, [(5, FULL)]), Work(second, 9, ids, [(5, FULL)])])
    for sequence in (first, second):
        with pytest.raises(BackendError):
            last(wide_model, sequence, 1, ids)
        assert_same_row(last(wide_model, sequence, 0, [*ids, *ids]), expected)
    assert_same_row(last(wide_model, outside, 6, ids), expected)


# --- what it costs -------------------------------------------------------------------------------


def test_forwards_can_be_timed_and_nothing_stays_in_use(model: TokenModel) -> None:
    """Whichever backend: by the contract alone, in a context that is soon full, also where nothing can be rewound."""
    ids = some_ids(model, 12)
    before = fresh(model, ids)
    found = measure_forwards({"slow": model}, Effort(rounds=2, seconds=5.0))["slow"]
    assert {point.tokens for point in found.points} >= ({1, 16, 17} if model.capabilities.remote else {1, 4, 16})
    assert (found.further is None) != model.capabilities.remote
    assert {point.sequences for point in found.points} <= {1, 2, 4}
    assert found.step > 0.0
    assert found.seconds(4, rows=4) > 0.0
    opened = [model.open([]).sequence for _ in range(model.n_seq)]
    for sequence in opened:
        model.close(sequence)
    assert_same_row(fresh(model, ids), before)


def test_what_a_model_is_names_its_options_and_no_template(model: TokenModel) -> None:
    """What costs are kept by, where a model says it at all."""
    identity = getattr(model, "identity", None)
    if identity is None:
        assert is_scripted(model)
        return
    assert all(isinstance(name, str) and isinstance(value, str) for name, value in identity.items())
    assert f'"n_seq":{model.n_seq}' in identity["options"]
    assert "chat_template" not in identity["options"]


def test_shutdown_twice_is_allowed(model: TokenModel) -> None:
    model.shutdown()
    model.shutdown()


# --- threads -------------------------------------------------------------------------------------


def test_threads_share_a_model(wide_model: TokenModel) -> None:
    """Each thread works on a sequence of its own; nothing of another's shows."""
    problems: list[BaseException] = []
    found: dict[int, tuple[list[int], Row]] = {}
    begin = threading.Barrier(wide_model.n_seq)

    def work(number: int) -> None:
        try:
            rng, held = random.Random(number), []
            begin.wait()
            sequence = wide_model.open([]).sequence
            for turn in range(15):
                keep, ids = rng.randint(0, len(held)), some_ids(wide_model, rng.randint(1, 6), 50 * number + turn)
                row = last(wide_model, sequence, keep, ids)
                held = [*held[:keep], *ids]
            found[number] = held, row
            wide_model.close(sequence)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(wide_model.n_seq)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    for held, row in found.values():
        assert_same_row(row, fresh(wide_model, held))
