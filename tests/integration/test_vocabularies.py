"""Pairs whose vocabularies are not quite the same: ids that one model lacks, types that differ, ends of an answer."""

from __future__ import annotations

import logging
import re
import string
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny_gguf
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from typer.testing import CliRunner

from fsgen_router import (
    ConfigurationError,
    Generation,
    InvalidRequest,
    Mask,
    Router,
    VocabularyMismatch,
    VocabularyWarning,
)
from fsgen_router.adapters.llama_cpp import LlamaCppModel
from fsgen_router.adapters.scripted import ScriptedModel, ScriptedTokenizer
from fsgen_router.adapters.transformers import TransformersModel
from fsgen_router.adapters.transformers.reading import reduce_rows
from fsgen_router.calibration import trace_answer
from fsgen_router.calibration.labels import roll_out
from fsgen_router.cli import app
from fsgen_router.contracts.models import TokenModel, Work
from fsgen_router.evaluation.items import Item
from fsgen_router.rows import reading
from fsgen_router.rows.reading import FORBIDDEN, Alignment, Read, Row, Scratch, Warp, reduce_row
from fsgen_router.text.vocabulary import share_vocabulary, token_classes, vocabulary_hash

CONTROL, NORMAL, UNUSED = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL, gguf.TokenType.UNUSED
WORDS = ("lamp", "rope", "bell")
IMAGE, TURN = "<|image|>", "<|im_end|>"
N_SHARED = len(tiny_gguf.SPECIALS) + 256 + 1 + len(WORDS)
MIDDLE = N_SHARED - 2  # "rope"


def write(path: Path, words: Sequence[str] = WORDS, types: Mapping[str, Any] = {}, **options: Any) -> Path:
    control = dict.fromkeys((name for name in words if name.startswith("<")), CONTROL)
    return tiny_gguf.write(path, words, types={**control, **types}, **options)


def llama_cpp(path: Path) -> TokenModel:
    return LlamaCppModel(path, type_k="f32", type_v="f32", n_seq=2)


def transformers(path: Path) -> TokenModel:
    return TransformersModel(path, device="cpu", n_seq=2)


def as_on_an_accelerator(path: Path) -> TokenModel:
    model = TransformersModel(path, device="cpu", n_seq=2)
    model._reduce = reduce_rows
    return model


BACKENDS: dict[str, Callable[[Path], TokenModel]] = {
    "llama_cpp": llama_cpp,
    "transformers": transformers,
    "accelerator": as_on_an_accelerator,
}


@pytest.fixture(params=BACKENDS)
def load(request: pytest.FixtureRequest) -> Iterator[Callable[[Path], TokenModel]]:
    loaded: list[TokenModel] = []

    def load(path: Path) -> TokenModel:
        loaded.append(BACKENDS[request.param](path))
        return loaded[-1]

    yield load
    for model in loaded:
        model.shutdown()


def ids_of(answer: Generation) -> list[int]:
    return [token.id for token in answer.tokens]


def within(ids: Sequence[int], model: TokenModel) -> list[int]:
    return [token for token in ids if token < model.tokenizer.n_vocab]


def alone(model: TokenModel, prompt: str, count: int, forbidden: Sequence[int], ends: Mapping[int, int]) -> list[int]:
    """The plainest loop: a model's greedy text without ``forbidden`` ids, and ``ends`` under other names."""
    ids, written = model.tokenizer.encode(prompt, add_bos=True), []
    sequence, held = model.open([]).sequence, 0
    try:
        while len(written) < count:
            row = model.forward([Work(sequence, held, ids[held:], [(len(ids) - held - 1, Read(full=True))])])[0][0]
            held, logits = len(ids), np.array(row.logits)
            logits[list(forbidden)] = -np.inf
            token = int(logits.argmax())
            written.append(ends.get(token, token))
            if token in model.tokenizer.eog_ids or token in ends:
                break
            ids.append(token)
    finally:
        model.close(sequence)
    return written


# --- ids that one model lacks --------------------------------------------------------------------

VIDEO = "<|video|>"
LONE: dict[str, tuple[dict[str, Any], list[int]]] = {
    "at the end": ({"words": (*WORDS, IMAGE, VIDEO), "loud": (IMAGE, VIDEO)}, [N_SHARED, N_SHARED + 1]),
    "behind padding": (
        {"words": (*WORDS, "[PAD0]", IMAGE), "types": {"[PAD0]": UNUSED}, "loud": (IMAGE,)},
        [N_SHARED + 1],
    ),
    "in the middle": ({"types": {"rope": CONTROL}, "loud": ("rope",)}, [MIDDLE]),
    "in both places": (
        {"types": {"rope": CONTROL}, "words": (*WORDS, IMAGE), "loud": ("rope", IMAGE)},
        [MIDDLE, N_SHARED],
    ),
}
METHODS = ("replace", "verify", "verify:near_best=0.3", "verify:speculative", "verify:token=0.2", "verify:optimal=0.5")


@pytest.fixture(params=LONE)
def files(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path, list[int]]:
    """A file, one with ids that it lacks, and those."""
    options, lone = LONE[request.param]
    lacking = {"types": {"rope": UNUSED}} if MIDDLE in lone else {}
    return write(tmp_path / "less.gguf", seed=1, **lacking), write(tmp_path / "more.gguf", seed=2, **options), lone


@pytest.mark.parametrize("turned", [False, True], ids=["slow has more", "fast has more"])
def test_ids_that_one_model_lacks_are_never_written(load, files, turned: bool) -> None:
    less, more = load(files[0]), load(files[1])
    lone, pair = files[2], (more, less) if turned else (less, more)
    # A prompt behind which the model that has them would write them.
    prompt = next(p for p in string.ascii_letters if not set(alone(more, p, 30, [], {})).isdisjoint(lone))
    slow_only = alone(pair[1], prompt, 30, within(lone, pair[1]), {})
    tried = 0
    for method in METHODS:
        with Router(*pair, policy="every:3", method=method, audit=1.0) as router:
            for seed in range(2):
                sampled = {"temperature": 1.5, "seed": seed} if seed else {}
                answer = router.complete(prompt, max_tokens=30, baseline=True, **sampled)
                assert answer.degraded is None
                for text in (answer, answer.baseline):
                    assert set(ids_of(text)).isdisjoint(lone)
                tried += len(answer.tokens)
                assert answer.usage.disagreement_rate is not None
                if not seed and method == "verify":
                    assert ids_of(answer) == ids_of(answer.baseline) == slow_only
    assert tried > 100


def test_always_asking_gives_the_slow_models_own_text(load, files) -> None:
    less, more = load(files[0]), load(files[1])
    for fast, slow in ((less, more), (more, less)):
        expected = alone(slow, "rope lamp", 25, within(files[2], slow), {})
        for policy, method in (("always", "replace"), ("every:4", "verify:exact")):
            with Router(fast, slow, policy=policy, method=method) as router:
                assert ids_of(router.complete("rope lamp", max_tokens=25)) == expected
        with Router(fast, slow, policy="never") as router:
            expected = alone(fast, "lamp", 25, within(files[2], fast), {})
            assert ids_of(router.complete("lamp", max_tokens=25)) == expected


def test_two_backends_with_two_vocabularies(files) -> None:
    fast, slow = llama_cpp(files[0]), transformers(files[1])
    with Router(fast, slow, policy="every:3") as router:
        mixed = [ids_of(router.complete(prompt, max_tokens=30)) for prompt in ("lamp", "rope", "a b c")]
    assert mixed == [alone(slow, prompt, 30, within(files[2], slow), {}) for prompt in ("lamp", "rope", "a b c")]
    for model in (fast, slow):
        model.shutdown()


class Only:
    """A constraint that allows some ids."""

    def __init__(self, n_vocab: int, *ids: int) -> None:
        self.allowed = np.zeros(n_vocab, bool)
        self.allowed[list(ids)] = True

    def mask(self, answer: object) -> Mask:
        return Mask(allowed=self.allowed)


def test_biases_and_constraints_are_over_what_both_share(load, files) -> None:
    less, more, lone = load(files[0]), load(files[1]), files[2]
    for pair in ((less, more), (more, less)):
        with Router(*pair, policy="every:2") as router:
            for options in ({"stop_tokens": [N_SHARED]}, {"logit_bias": {N_SHARED: 1.0}}):
                with pytest.raises(InvalidRequest, match=f"the vocabulary has 0 to {N_SHARED - 1}"):
                    router.complete("lamp", **options)
            answer = router.complete("lamp", max_tokens=9, constraint=Only(N_SHARED, MIDDLE, 70, 71))
            assert set(ids_of(answer)) <= {70, 71} | ({MIDDLE} - set(lone))
            if MIDDLE in lone:  # a bias does not lift it, and alone it is nothing to write
                assert MIDDLE not in ids_of(router.complete("lamp", max_tokens=9, logit_bias={MIDDLE: 1e9}))
                with pytest.raises(ConfigurationError, match="allows no token"):
                    router.complete("lamp", max_tokens=9, constraint=Only(N_SHARED, MIDDLE))
                answer = router.complete("lamp", max_tokens=9, constraint=Only(N_SHARED, MIDDLE, 70))
                assert ids_of(answer) == [70] * 9


def test_conversations_are_read_in_each_models_own_ids(load, tmp_path: Path) -> None:
    """The slow model's template has a token that the fast one lacks: it reads it, and nobody writes it."""
    template = tiny_gguf._TEMPLATE.replace("<|assistant|>", TURN + "<|assistant|>")
    less, more = (
        load(write(tmp_path / "less.gguf", seed=1)),
        load(write(tmp_path / "more.gguf", (*WORDS, TURN), seed=2, template=template, eos=1)),
    )
    messages = [{"role": "user", "content": "lamp"}]
    assert N_SHARED in more.tokenizer.encode_chat(messages)
    with Router(less, more, policy="every:3") as router:
        answer = router.chat(messages, max_tokens=12, baseline=True)
        assert ids_of(answer) == ids_of(answer.baseline)
        follow_up = [*messages, {"role": "assistant", "content": answer.text}, messages[0]]
        assert router.chat(follow_up, max_tokens=12).degraded is None


def test_traces_compare_what_both_can_write(files) -> None:
    less, more, lone = llama_cpp(files[0]), llama_cpp(files[1]), files[2]
    prompt = next(p for p in string.ascii_letters if not set(alone(more, p, 30, [], {})).isdisjoint(lone))
    item = Item(id="0", check=bool, prompt=prompt)
    for pair in ((less, more), (more, less)):
        with Router(*pair, policy="always", method="replace", audit=1.0) as router:
            answer = router.complete(prompt, max_tokens=30)
            classes = token_classes(router.fast.tokenizer)
            found = trace_answer(
                *pair, item, ids_of(answer), [1] * len(answer.tokens), classes=classes, shared=router.shared
            )
            assert found.slow_choice.tolist() == ids_of(answer)
            assert found.fast_choice.tolist() == [token.fast_choice for token in answer.tokens]
            rolled = roll_out(router, item, ids_of(answer)[:3], max_tokens=30)
            assert rolled == answer.text
    for model in (less, more):
        model.shutdown()


# --- ends of an answer ---------------------------------------------------------------------------

END = 1  # tiny_gguf's <|end|>


def scripted(pieces: Sequence[bytes], rows: Callable[[Sequence[int]], np.ndarray], **ids: Sequence[int]) -> TokenModel:
    return ScriptedModel(rows, ScriptedTokenizer(pieces, **ids))


def test_an_end_that_the_fast_model_lacks_still_ends_the_answer(load, tmp_path: Path) -> None:
    """ChatML on an older vocabulary: the slow model ends by a token that is the last of its file alone."""
    less = load(write(tmp_path / "less.gguf", seed=1))
    more = load(write(tmp_path / "more.gguf", (*WORDS, TURN), seed=2, eos=N_SHARED, loud=(TURN,)))
    assert N_SHARED in more.tokenizer.eog_ids
    ended = 0
    for prompt in string.ascii_lowercase:
        expected = alone(more, prompt, 40, [], {N_SHARED: END})
        for policy, method in (("always", "replace"), ("every:5", "verify:exact"), ("every:5", "verify:near_best=0")):
            with Router(less, more, policy=policy, method=method, audit=1.0) as router:
                answer = router.complete(prompt, max_tokens=40, baseline=True)
                assert ids_of(answer) == ids_of(answer.baseline) == expected
                assert answer.finish_reason == answer.baseline.finish_reason
                assert (answer.finish_reason == "eog") == (expected[-1] == END)
                assert "<|" not in answer.text
        ended += expected[-1] == END
        with Router(more, less, policy="never") as router:  # and in the fast seat
            assert ids_of(router.complete(prompt, max_tokens=40)) == expected
        if ended == 3:
            break
    assert ended == 3


PIECES = (b"<bos>", b"<end>", b"a", b"b", b"c")


def test_ends_are_sampled_by_meaning() -> None:
    """Both ends of the slow model weigh together, as often as it would end on its own."""
    fast_row = np.log(np.array([1e-9, 0.1, 0.4, 0.3, 0.2], np.float32))
    slow_row = np.log(np.array([1e-9, 0.05, 0.25, 0.2, 0.3, 0.1, 0.1], np.float32))
    fast = scripted(PIECES, lambda _: fast_row, eog=[1], special=[0])
    slow = scripted((*PIECES, b"<turn>", b"<image>"), lambda _: slow_row, eog=[1, 5], special=[0, 6])
    wanted = {1: 0.15 / 0.9, 2: 0.25 / 0.9, 3: 0.2 / 0.9, 4: 0.3 / 0.9}
    for policy, method in (("always", "replace"), ("every:2", "verify:speculative"), ("every:2", "verify:token=0.5")):
        with Router(fast, slow, policy=policy, method=method) as router:
            first = [router.complete("a", max_tokens=3, temperature=1.0, seed=s).tokens[0].id for s in range(800)]
        assert set(first) <= {1, 2, 3, 4}
        if "token" not in method:
            counts = [first.count(token) for token in wanted]
            assert stats.chisquare(counts, [len(first) * share for share in wanted.values()]).pvalue > 1e-3


@pytest.mark.parametrize("fast_end", [5, 1])
def test_ends_that_each_model_has_alone(fast_end: int) -> None:
    """In the middle: named in one file, unused in the other, both ways."""

    class Words(ScriptedTokenizer):
        def __init__(self, *, eog: Sequence[int], unused: Sequence[int]) -> None:
            super().__init__((*PIECES, b"<stop>", b"<turn>", b"d"), eog=eog, special=[0])
            self.unused_ids = frozenset(unused)

    after = {2: 3, 3: 4, 4: 7}

    def rows(end: int) -> Callable[[Sequence[int]], np.ndarray]:
        return lambda ids: np.eye(8, dtype=np.float32)[after.get(ids[-1], end)] * 9

    unused = 5 if fast_end == 5 else 1
    fast = ScriptedModel(rows(fast_end), Words(eog=[fast_end], unused=[6]))
    slow = ScriptedModel(rows(6), Words(eog=[6], unused=[unused]))
    for policy in ("never", "always", "every:2"):
        for method in ("replace", "verify"):
            with Router(fast, slow, policy=policy, method=method, audit=1.0) as router:
                answer = router.complete("a", max_tokens=20, baseline=True)
                assert ids_of(answer) == ids_of(answer.baseline) == [3, 4, 7, fast_end]
                assert answer.finish_reason == answer.baseline.finish_reason == "eog"
                assert answer.usage.disagreement_rate == 0.0  # an end is an end


def test_a_pair_without_an_end_in_common_is_refused() -> None:
    def row(_: Sequence[int]) -> np.ndarray:
        return np.zeros(6, np.float32)

    fast = scripted(PIECES, row, eog=[])
    slow = scripted((*PIECES, b"<turn>"), row, eog=[5])
    with pytest.raises(VocabularyMismatch, match=r"no end of a generation in common: \[5\].*ids 0 to 4.*answer ends"):
        Router(fast, slow)
    # None at all is no difference.
    Router(fast, scripted(PIECES, row, eog=[])).close()


# --- types ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [NORMAL, gguf.TokenType.USER_DEFINED])
@pytest.mark.parametrize("turned", [False, True], ids=["text in the slow file", "text in the fast file"])
@pytest.mark.parametrize("space_prefix", [None, True], ids=["BPE", "SentencePiece"])
def test_a_control_token_that_one_file_calls_text(
    load, tmp_path: Path, kind: Any, turned: bool, space_prefix: bool | None
) -> None:
    name = "[user]"
    specials = ("<|bos|>", "<|end|>", name, "<|assistant|>")
    template = (
        "{{ bos_token }}{% for m in messages %}" + name + "{{ m['content'] + '<|end|>' }}{% endfor %}<|assistant|>"
    )
    alike: dict[str, Any] = {"specials": specials, "template": template, "space_prefix": space_prefix}
    usual = load(tiny_gguf.write(tmp_path / "usual.gguf", seed=1, **alike))
    other = load(tiny_gguf.write(tmp_path / "other.gguf", seed=2, types={name: kind}, **alike))
    pair = (other, usual) if turned else (usual, other)
    hashes = [vocabulary_hash(model.tokenizer) for model in pair]
    with pytest.warns(VocabularyWarning, match=rf"disagree on whether '{re.escape(name)}' \(id 2\) are control"):
        router = Router(*pair, policy="every:2", method="verify")
    assert router.shared.retyped == (2,)
    assert [vocabulary_hash(model.tokenizer) for model in pair] == hashes
    for content in ("lamp", f"a{name}b{name}", name, f"x <|end|> {name}", f"€{name}\n"):
        messages = [{"role": "user", "content": content}]
        ids = usual.tokenizer.encode_chat(messages)
        for tokenizer in (router.shared.fast, router.shared.slow):
            # As a template's token, and never as a user's.
            found = tokenizer.encode_chat(messages)
            assert found[:2] == ids[:2] == [0, 2]
            assert found.count(2) == 1
            assert b"".join(map(usual.tokenizer.piece, found)) == b"".join(map(usual.tokenizer.piece, ids))
            raw = tokenizer.encode(content, add_bos=True)
            assert (raw[0], 2 in raw) == (0, False)
            assert b"".join(map(tokenizer.piece, raw[1:])).decode() == (" " * bool(space_prefix)) + content
    # No part of a text, whoever writes it.
    biased = router.complete("lamp", max_tokens=3, logit_bias={2: 100.0})
    assert (ids_of(biased), biased.text) == ([2, 2, 2], "")
    assert {token.signals.token_class for token in biased.tokens if token.signals} == {0}
    answer = router.chat([{"role": "user", "content": f"a{name}b"}], max_tokens=12, baseline=True)
    assert ids_of(answer) == ids_of(answer.baseline)
    router.close()


def test_the_same_types_warn_of_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one, two = (write(tmp_path / f"{seed}.gguf", seed=seed, padding=seed) for seed in (0, 3))
    with warnings.catch_warnings(), caplog.at_level(logging.INFO, logger="fsgen_router"):
        warnings.simplefilter("error")
        with Router(f"llama_cpp:{one}", f"llama_cpp:{two}", policy="every:4") as router:
            assert router.shared.same
            assert (router.shared.fast_row, router.shared.slow_row) == (None, None)
    assert "vocabulary" not in caplog.text


# --- what is said --------------------------------------------------------------------------------


def test_control_tokens_that_one_model_lacks_are_logged_and_text_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    less, image = write(tmp_path / "less.gguf"), write(tmp_path / "image.gguf", (*WORDS, IMAGE))
    text = write(tmp_path / "text.gguf", (*WORDS, "drum", "horn", "fife", "gong", "bugle"))
    with warnings.catch_warnings(), caplog.at_level(logging.INFO, logger="fsgen_router"):
        warnings.simplefilter("error")
        Router(f"llama_cpp:{less}", f"llama_cpp:{image}", policy="every:4").close()
    assert "event='vocabulary' fast='less.gguf' slow='image.gguf' only_fast=0 only_slow=1 retyped=0" in caplog.text
    with pytest.warns(VocabularyWarning) as caught:
        Router(f"llama_cpp:{text}", f"llama_cpp:{less}").close()
    assert caught[0].filename == __file__
    assert str(caught[0].message) == (
        f"text.gguf alone has 'drum' (id {N_SHARED}), 'horn' (id {N_SHARED + 1}), 'fife' (id {N_SHARED + 2}), 'gong' "
        f"(id {N_SHARED + 3}), 1 more, which neither model will write."
    )


def test_doctor_says_what_is_not_shared(tmp_path: Path) -> None:
    less, more = write(tmp_path / "less.gguf"), write(tmp_path / "more.gguf", (*WORDS, IMAGE))
    done = CliRunner().invoke(app, ["doctor", "--fast", f"llama_cpp:{less}", "--slow", f"llama_cpp:{more}", "--json"])
    assert done.exit_code == 0
    assert "more.gguf alone has '<|image|>' (id 264), which neither model will write" in done.stdout
    assert "one vocabulary" not in done.stdout
    done = CliRunner().invoke(app, ["doctor", "--fast", f"llama_cpp:{less}", "--slow", f"llama_cpp:{less}", "--json"])
    assert "one vocabulary" in done.stdout


def test_the_first_real_difference_is_shown() -> None:
    ours = ScriptedTokenizer((*PIECES, b"d", b"e", b"f"), eog=[1])
    theirs = ScriptedTokenizer((*PIECES, b"d", b"g", b"h", b"i"), eog=[1])
    theirs.unused_ids = frozenset({6})
    with pytest.raises(VocabularyMismatch, match="id 7 is b'f' in ours and b'h' in theirs"):
        share_vocabulary(ours, theirs, fast_name="ours", slow_name="theirs")


# --- the reading ---------------------------------------------------------------------------------


@st.composite
def aligned(draw: Any) -> tuple[np.ndarray, Alignment]:
    width = draw(st.integers(3, 40))
    n_vocab = draw(st.integers(2, width))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    row = rng.normal(0, draw(st.sampled_from([0.1, 3.0, 30.0])), width).astype(np.float32)
    forbidden = rng.permutation(n_vocab)[: draw(st.integers(0, n_vocab - 1))]
    end = int(rng.choice(np.setdiff1d(np.arange(n_vocab), forbidden)))
    ends = rng.permutation(width)[: draw(st.integers(0, 3))]
    return row, Alignment(n_vocab=n_vocab, forbidden=np.sort(forbidden), ends=np.sort(ends), end=end)


def by_hand(row: np.ndarray, alignment: Alignment) -> np.ndarray:
    made = row[: alignment.n_vocab].astype(np.float64)
    if len(alignment.ends):
        made[alignment.end] = np.log(np.exp(row[alignment.ends].astype(np.float64)).sum())
    made[alignment.forbidden] = FORBIDDEN
    return made


@given(aligned(), st.sampled_from([Warp(), Warp(temperature=1.0), Warp(temperature=0.7, top_k=5, top_p=0.9)]))
@settings(max_examples=300)
def test_both_reductions_read_the_row_that_an_alignment_makes(case: tuple[np.ndarray, Alignment], warp: Warp) -> None:
    row, alignment = case
    before, expected = row.copy(), by_hand(row, alignment).astype(np.float32)
    options: dict[str, Any] = {"signals": True, "top_k": 4, "warp": warp, "uniform": 0.37, "full": True}
    options["ids"] = (0, alignment.n_vocab - 1)
    wanted = reduce_row(expected, Read(**options), Scratch())
    mask = Mask(ids=np.array([0]), bias=np.array([2.0], np.float32), allowed=np.ones(alignment.n_vocab, bool))
    ours = reduce_row(row, Read(alignment=alignment, **options), Scratch())
    # Twice, and beside rows that are read otherwise.
    reads = [(0, Read(alignment=alignment, **options)), (0, Read(**{**options, "ids": (0,)}))]
    theirs, plain, again, masked = reduce_rows(
        torch.from_numpy(row[None].copy()), [*reads, reads[0], (0, Read(alignment=alignment, mask=mask, **options))]
    )
    assert (row == before).all()
    assert plain.logits.shape == row.shape
    for found in (ours, theirs, again):
        assert_same(found, wanted)
    assert_same(masked, reduce_row(row, Read(alignment=alignment, mask=mask, **options), Scratch()))
    assert np.isin(np.flatnonzero(masked.logits == FORBIDDEN), alignment.forbidden).all()


def assert_same(found: Row, wanted: Row) -> None:
    assert found.argmax == wanted.argmax
    assert found.token == wanted.token
    assert found.logits.shape == wanted.logits.shape
    np.testing.assert_allclose(found.logits, wanted.logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.entropy, wanted.entropy, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.log_partition, wanted.log_partition, rtol=1e-5, atol=1e-5)
    usable = np.array(wanted.id_logprobs) > -1e8
    np.testing.assert_allclose(np.array(found.id_logprobs)[usable], np.array(wanted.id_logprobs)[usable], atol=1e-4)


def test_a_row_that_is_only_cut_is_not_copied() -> None:
    row = np.random.default_rng(0).normal(size=5000).astype(np.float32)
    none = np.empty(0, np.int64)
    cut = Alignment(n_vocab=4000, forbidden=none, ends=none, end=1)
    assert np.shares_memory(reading._prepared(row, cut, None), row)
    forbids = Alignment(n_vocab=4000, forbidden=np.array([7]), ends=none, end=1)
    assert not np.shares_memory(reading._prepared(row, forbids, None), row)


class AThenItsOwnEnd:
    """A grammar that was made with the fast model's ends of a generation."""

    def mask(self, answer: Any) -> Mask:
        allowed = np.zeros(5, np.bool_)
        allowed[[0, 4] if len(answer) >= 2 else [0]] = True
        return Mask(allowed=allowed)


@pytest.mark.filterwarnings("ignore::fsgen_router.VocabularyWarning")
def test_a_mask_that_allows_the_fast_models_own_end_lets_an_answer_end() -> None:
    pieces = [b"a", b"b", b" c", b"<e1>", b"<e2>"]
    ours, theirs = ScriptedTokenizer(pieces, eog=[4]), ScriptedTokenizer([*pieces[:4], b""], eog=[3])
    theirs.unused_ids = frozenset({4})
    rows = {"fast": [3, 2, 1, 0, 9], "slow": [1, 2, 3, 9, 0]}
    fast, slow = (
        ScriptedModel(lambda ids, name=name: np.array(rows[name], np.float32), tokenizer, name=name)
        for name, tokenizer in (("fast", ours), ("slow", theirs))
    )
    with Router(fast, slow, policy="every:2", method="replace") as router:
        answer = router.complete("ab", constraint=AThenItsOwnEnd(), max_tokens=8)
    assert (answer.text, answer.finish_reason) == ("aa", "eog")
