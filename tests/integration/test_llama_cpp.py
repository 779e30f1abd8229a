"""What is llama.cpp's own: files, the hub, tokenizers and templates from a GGUF, memory, batches."""

from __future__ import annotations

import hashlib
import http.server
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np
import pytest
import tiny_gguf
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_cpp import llama_cpp as lib

from fsgen_router import (
    BackendError,
    ConfigurationError,
    InvalidRequest,
    Mask,
    ModelFileCorrupt,
    ModelLoadError,
    ModelNotFound,
    NotEnoughMemory,
    Router,
    VocabularyMismatch,
    reference,
)
from fsgen_router.adapters.llama_cpp import LlamaCppModel, LlamaCppOptions, locate
from fsgen_router.adapters.llama_cpp.loading import device_of, model_params
from fsgen_router.contracts.models import TokenModel, Work
from fsgen_router.resolve import make_model
from fsgen_router.rows.reading import Read

FAST = reference.path("fast")


def still_loads() -> None:
    """After a failure, a good file loads and answers."""
    model = LlamaCppModel(FAST, n_ctx=64)
    sequence = model.open([]).sequence
    assert model.forward([Work(sequence, 0, [1, 2], [(1, Read())])])[0][0].token >= 0
    model.shutdown()


# --- the tokenizer -------------------------------------------------------------------------------


@given(st.text(max_size=60))
@settings(max_examples=500)
def test_any_text_survives_the_tokenizer(tokenizer_of_fast, text: str) -> None:
    tokenizer = tokenizer_of_fast
    ids = tokenizer.encode(text, add_bos=False)
    assert b"".join(map(tokenizer.piece, ids)) == text.encode()
    assert not set(ids) & tokenizer.special_ids


@pytest.fixture(scope="module")
def tokenizer_of_fast(fast_model: TokenModel):
    return fast_model.tokenizer


CONTROL_NAMES = ("<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")


def test_every_token_has_the_bytes_that_encode_to_it(tokenizer_of_fast) -> None:
    tokenizer = tokenizer_of_fast
    names = {tokenizer.piece(token).decode() for token in tokenizer.special_ids}
    assert names == set(CONTROL_NAMES)
    for token in range(tokenizer.n_vocab):
        if token not in tokenizer.special_ids:
            assert tokenizer.piece(token)
    for name in CONTROL_NAMES:
        (token,) = tokenizer.encode(name, add_bos=False, parse_special=True)
        assert tokenizer.piece(token).decode() == name
        assert token in tokenizer.special_ids
    assert tokenizer.eog_ids == set(tokenizer.encode("<|end|>", add_bos=False, parse_special=True))


def test_the_beginning_of_sequence_is_added_once(tokenizer_of_fast) -> None:
    (bos,) = tokenizer_of_fast.encode("<|bos|>", add_bos=False, parse_special=True)
    assert tokenizer_of_fast.encode("lamp", add_bos=True)[0] == bos
    assert tokenizer_of_fast.encode("lamp", add_bos=True).count(bos) == 1
    assert bos not in tokenizer_of_fast.encode("lamp", add_bos=False)


def expected_chat(tokenizer, messages: list[dict[str, str]]) -> list[int]:
    """The reference pair's template, built from ids."""

    def control(name: str) -> list[int]:
        return tokenizer.encode(f"<|{name}|>", add_bos=False, parse_special=True)

    ids = control("bos")
    for message in messages:
        content = tokenizer.encode(message["content"].strip(), add_bos=False)
        ids += control(message["role"]) + content + control("end")
    return ids + control("assistant")


CONTENT = st.lists(
    st.sampled_from([*CONTROL_NAMES, "<|", "|>", "<|en", "d|>", "lamp", " ", "\n", "\x020\x03", "\x02", "€", "{{ x }}"])
    | st.text(max_size=5),
    min_size=1,
    max_size=8,
).map("".join)


@given(st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), CONTENT), min_size=1, max_size=4))
@settings(max_examples=400)
def test_a_users_text_never_becomes_a_control_token(tokenizer_of_fast, turns: list[tuple[str, str]]) -> None:
    messages = [{"role": role, "content": content} for role, content in turns]
    ids = tokenizer_of_fast.encode_chat(messages)
    # Python's and Jinja's idea of white space is the same; what is left is the template and plain text.
    assert ids == expected_chat(tokenizer_of_fast, messages)
    control = [token for token in ids if token in tokenizer_of_fast.special_ids]
    assert len(control) == 2 + 2 * len(messages)


def test_raw_prompts_hold_no_control_tokens_either(fast_model: TokenModel, slow_model: TokenModel) -> None:
    with Router(fast_model, slow_model, policy="never") as router:
        prompt = "x<|end|><|user|>"
        answer = router.complete(prompt, max_tokens=1)
        plain = fast_model.tokenizer.encode(prompt, add_bos=True)
        assert answer.usage.prompt_tokens == len(plain)
        assert len(set(plain) & fast_model.tokenizer.special_ids) == 1


def test_templates_that_are_missing_or_refuse(tmp_path: Path) -> None:
    without = LlamaCppModel(tiny_gguf.write(tmp_path / "without.gguf", template=None))
    refuses = LlamaCppModel(
        tiny_gguf.write(tmp_path / "refuses.gguf", template="{{ raise_exception('no system messages') }}")
    )
    broken = LlamaCppModel(tiny_gguf.write(tmp_path / "broken.gguf", template="{% if %}"))
    message = [{"role": "user", "content": "x"}]
    for model, words in (
        (without, "no chat template.*raw prompt"),
        (refuses, "no system messages"),
        (broken, "template"),
    ):
        with pytest.raises((ConfigurationError, InvalidRequest), match=words):
            model.tokenizer.encode_chat(message)
        assert model.tokenizer.encode("lamp", add_bos=False)
        model.shutdown()


# --- files ---------------------------------------------------------------------------------------


def test_a_missing_file() -> None:
    with pytest.raises(ModelNotFound, match=r"no model file.*hf://"):
        LlamaCppModel("/no/such/model.gguf")
    with pytest.raises(FileNotFoundError):
        LlamaCppModel("/no/such/model.gguf")


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"is a folder.*no GGUF file"):
        LlamaCppModel(tmp_path)
    tiny_gguf.write(tmp_path / "inside.gguf")
    with pytest.raises(ModelNotFound, match=r"name a file in it: inside\.gguf"):
        LlamaCppModel(tmp_path)


@pytest.mark.parametrize("content", [b"", b"GG", b"PK\x03\x04 a zip file", b"\x00" * 64, b"<html>not found</html>"])
def test_what_is_no_gguf_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelFileCorrupt, match=r"not a GGUF file.*convert"):
        LlamaCppModel(path)
    still_loads()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 1.0])
def test_a_truncated_file(tmp_path: Path, share: float) -> None:
    data = FAST.read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(data[: max(4, int(share * (len(data) - 1)))])
    with pytest.raises(ModelFileCorrupt, match=r"cannot load.*download complete"):
        LlamaCppModel(path)
    still_loads()


def test_a_file_of_noise_behind_the_right_beginning(tmp_path: Path) -> None:
    path = tmp_path / "noise.gguf"
    path.write_bytes(b"GGUF" + np.random.default_rng(0).bytes(5000))
    with pytest.raises(ModelFileCorrupt, match="cannot load"):
        LlamaCppModel(path)
    still_loads()


@pytest.mark.parametrize("where", ["x" * 5000, "~no-such-user-here/x.gguf", "a\0b.gguf", "", "."])
def test_paths_that_are_none(where: str) -> None:
    with pytest.raises(ModelNotFound):
        LlamaCppModel(where)


# --- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("n_contxt=5", "unknown option 'n_contxt'.*available: n_ctx"),
        ("n_thread=1", "did you mean 'n_threads'"),
        ("n_ctx=abc", "n_ctx='abc'"),
        ("n_ctx=2", "n_ctx='2'"),
        ("n_seq=0", "n_seq='0'"),
        ("type_k=q3", "type_k='q3'.*f32"),
        ("n_batch=0", "n_batch='0'"),
        ("n_gpu_layers=-2", "n_gpu_layers='-2'"),
        ("n_ctx", "is not option=value"),
        ("where=elsewhere", "unknown option 'where'"),
        ("self=1", "unknown option 'self'"),
        ("which=slow", "unknown option 'which'"),
    ],
)
def test_wrong_options(options: str, words: str) -> None:
    for model in (f"llama_cpp:{FAST}", "reference:fast"):
        with pytest.raises(ConfigurationError, match=words):
            make_model(f"{model}?{options}")


def test_options_in_a_model_string() -> None:
    model = make_model(f"llama_cpp:{FAST}?n_ctx=80&n_seq=3&type_k=f16&mmap=false&n_batch=9&flash_attn=true")
    assert (model.n_ctx, model.n_seq) == (80, 3)
    assert model.options.type_k == "f16"
    assert not model.options.mmap
    model.shutdown()


def test_more_sequences_than_tokens_in_a_decode() -> None:
    """llama.cpp would end the process."""
    model = LlamaCppModel(FAST, n_ctx=80, n_seq=4, n_batch=2)
    works = [Work(model.open([]).sequence, 0, [300 + n, 301, 302], [(2, Read())]) for n in range(4)]
    assert all(len(rows) == 1 for rows in model.forward(works))
    model.shutdown()


def test_there_is_no_third_reference_model() -> None:
    with pytest.raises(ModelNotFound, match="fast or slow"):
        make_model("reference:middle")


def test_too_little_memory_for_the_context() -> None:
    with pytest.raises(NotEnoughMemory, match=r"KV cache of fast.gguf needs .* GiB.*would fit") as raised:
        LlamaCppModel(FAST, n_ctx=2_000_000_000)
    assert isinstance(raised.value, MemoryError)
    fits = int(re.search(r"n_ctx=(\d+)", raised.value.hint)[1])
    assert 0 < fits < 2_000_000_000
    with pytest.raises(NotEnoughMemory, match="lower n_seq"):
        LlamaCppModel(FAST, n_ctx=20_000_000, n_seq=256)
    still_loads()


def test_a_context_beyond_training_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tiny_gguf.write(tmp_path / "short.gguf", n_ctx=128)
    with caplog.at_level(logging.WARNING, logger="fsgen_router"):
        LlamaCppModel(path, n_ctx=256).shutdown()
    assert "context_beyond_training" in caplog.text
    model = LlamaCppModel(path)
    assert model.n_ctx == 128
    model.shutdown()


# --- batches -------------------------------------------------------------------------------------


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that really go through llama_decode."""
    sizes: list[int] = []
    plain = lib.llama_decode

    def counting(context, batch):
        sizes.append(batch.n_tokens)
        return plain(context, batch)

    monkeypatch.setattr(lib, "llama_decode", counting)
    return sizes


def test_a_call_reads_its_new_tokens_and_no_others(decoded: list[int]) -> None:
    model = LlamaCppModel(FAST, n_ctx=200, n_seq=2, n_batch=16)
    one, two = model.open([]).sequence, model.open([]).sequence
    row = [(0, Read())]
    model.forward([Work(one, 0, [5] * 100, row)])
    assert (sum(decoded), max(decoded)) == (100, 16)
    decoded.clear()
    # However long the prefix: one token is one position.
    model.forward([Work(one, 100, [6], row)])
    assert decoded == [1]
    # Several sequences are one decode, filled up to equal lengths where that costs little.
    model.forward([Work(one, 101, [6], row), Work(two, 0, [7, 8, 9], row)])
    assert decoded == [1, 6]
    model.forward([Work(one, 102, [6], row), Work(two, 3, [7] * 9, row)])
    assert decoded == [1, 6, 10]
    decoded.clear()
    model.forward([Work(one, 50, [6, 7], row)])
    assert decoded == [2]
    model.shutdown()


def test_a_step_of_several_sequences_is_one_computation(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp computes the sequences of a batch together only as far as their numbers follow one another: works come
    in any order, and small gaps between them are filled. Nothing of that is seen in what is held or said."""
    decode, batches = lib.llama_decode, []

    def watched(context: object, batch: lib.llama_batch) -> int:
        batches.append([batch.seq_id[index][0] for index in range(batch.n_tokens)])
        return decode(context, batch)

    monkeypatch.setattr(lib, "llama_decode", watched)
    together, alone = (LlamaCppModel(FAST, n_ctx=64, n_seq=count) for count in (14, 1))
    prompts = [[1, 2, 3 + number] for number in range(14)]
    for number, prompt in enumerate(prompts):
        assert together.open(prompt).sequence == number
        together.forward([Work(number, 0, prompt, [])])

    def rows_of(model: LlamaCppModel, sequence: int, prompt: list[int], token: int) -> list[float]:
        (rows,) = model.forward([Work(sequence, len(prompt), [token], [(0, Read())])])
        return [rows[0].token, rows[0].logprob]

    for order, computed in (
        ([5, 3, 4], [3, 4, 5]),
        ([0, 13, 4], [0, 1, 2, 3, 4, 13]),  # 5 to 12 is a gap too wide
        ([2, 0], [0, 1, 2]),
    ):
        batches.clear()
        works = [Work(number, 3, [7], [(0, Read())]) for number in order]
        found = together.forward(works)
        assert batches == [computed]
        for number, (row,) in zip(order, found, strict=True):
            sequence = alone.open([]).sequence
            alone.forward([Work(sequence, 0, prompts[number], [])])
            assert [row.token, pytest.approx(row.logprob, abs=1e-4)] == rows_of(alone, sequence, prompts[number], 7)
            alone.close(sequence)
    # Of different lengths, which are made equal where that costs little.
    lengths = {3: 2, 4: 1, 5: 3}
    batches.clear()
    found = together.forward([Work(number, 3, [7] * size, [(size - 1, Read())]) for number, size in lengths.items()])
    assert batches == [[3] * 3 + [4] * 3 + [5] * 3]
    for (number, size), (row,) in zip(lengths.items(), found, strict=True):
        sequence = alone.open([]).sequence
        alone.forward([Work(sequence, 0, [*prompts[number], *[7] * (size - 1)], [])])
        assert [row.token, pytest.approx(row.logprob, abs=1e-4)] == rows_of(
            alone, sequence, [*prompts[number], *[7] * (size - 1)], 7
        )
        alone.close(sequence)
    # Those in between hold what they held.
    for number in (1, 4, 5):
        sequence = alone.open([]).sequence
        alone.forward([Work(sequence, 0, prompts[number], [])])
        token, logprob = rows_of(alone, sequence, prompts[number], 9)
        assert rows_of(together, number, prompts[number], 9) == [token, pytest.approx(logprob, abs=1e-4)]
        alone.close(sequence)
    # A work that is cut in two, for its hidden states, is not filled up between its parts.
    hidden = [(1, Read()), (30, Read(hidden=True))]
    together.forward([Work(0, 3, [7] * 31, hidden), Work(2, 3, [7], [(0, Read())])])
    # One that is full is in nobody's way.
    together.forward([Work(1, 3, [7] * 61, [])])
    batches.clear()
    together.forward([Work(number, 3, [7], [(0, Read())]) for number in (2, 0)])
    assert batches == [[0, 2]]


def test_a_decode_that_fails_is_a_backend_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp's own refusal, provoked by a position that is taken."""
    model = LlamaCppModel(FAST, n_ctx=64)
    sequence = model.open([]).sequence
    model.forward([Work(sequence, 0, [1, 2, 3], [(2, Read())])])
    with monkeypatch.context() as patched:
        patched.setattr(lib, "llama_memory_seq_rm", lambda *_: True)
        with pytest.raises(BackendError, match="llama_decode returned -1"):
            model.forward([Work(sequence, 1, [2], [(0, Read())])])
    with pytest.raises(BackendError):
        model.forward([Work(sequence, 1, [2], [(0, Read())])])
    assert model.forward([Work(sequence, 0, [1, 2], [(1, Read())])])[0][0].token >= 0
    model.shutdown()


def test_a_model_that_was_shut_down_says_so() -> None:
    model = LlamaCppModel(FAST, n_ctx=64)
    sequence = model.open([]).sequence
    model.shutdown()
    model.close(sequence)
    with pytest.raises(BackendError, match="shut down"):
        model.open([])
    with pytest.raises(BackendError, match="shut down"):
        model.forward([Work(sequence, 0, [1], [])])
    with pytest.raises(BackendError, match="shut down"):
        model.tokenizer.encode_chat([{"role": "user", "content": "x"}])


# --- two vocabularies ----------------------------------------------------------------------------


def test_files_with_different_vocabularies_are_refused(tmp_path: Path) -> None:
    one = tiny_gguf.write(tmp_path / "one.gguf", ["lamp", "rope", "bell"])
    two = tiny_gguf.write(tmp_path / "two.gguf", ["lamp", "drum", "bell"])
    first = len(tiny_gguf.SPECIALS) + 256 + 2
    with pytest.raises(VocabularyMismatch, match=rf"id {first} is b'rope' in one.gguf and b'drum' in two.gguf"):
        Router(f"llama_cpp:{one}", f"llama_cpp:{two}")
    renamed = (*tiny_gguf.SPECIALS[:3], "<|helper|>")
    with pytest.raises(VocabularyMismatch, match="id 3 "):
        Router(f"llama_cpp:{one}", f"llama_cpp:{tiny_gguf.write(two, ['lamp', 'rope', 'bell'], specials=renamed)}")


class NoPadding:
    """Allows all that the vocabulary means."""

    def __init__(self, size: int) -> None:
        self.allowed = np.ones(size, bool)

    def mask(self, answer: object) -> Mask:
        return Mask(allowed=self.allowed)


def test_models_of_one_family_may_differ_in_padding(tmp_path: Path) -> None:
    one = tiny_gguf.write(tmp_path / "one.gguf", seed=1)
    two = tiny_gguf.write(tmp_path / "two.gguf", seed=2, padding=7)
    with Router(f"llama_cpp:{one}", f"llama_cpp:{two}", policy="every:2") as router:
        n_vocab = router.fast.tokenizer.n_vocab
        assert router.slow.tokenizer.n_vocab == n_vocab == len(tiny_gguf.SPECIALS) + 256 + 1 + 2
        answer = router.complete("lamp", max_tokens=30, constraint=NoPadding(n_vocab))
        assert answer.degraded is None
        assert all(token.id < n_vocab for token in answer.tokens)
    # ... and the other way round.
    with Router(f"llama_cpp:{two}", f"llama_cpp:{one}", policy="every:2") as router:
        answer = router.complete("lamp", max_tokens=30, constraint=NoPadding(n_vocab))
        assert all(token.id < n_vocab for token in answer.tokens)


@pytest.mark.filterwarnings("ignore::fsgen_router.SwappedModelsWarning")  # padding makes parameters
@pytest.mark.parametrize("slow_padding", [0, 7])
def test_padding_is_never_written(tmp_path: Path, slow_padding: int) -> None:
    """Rows that mean nothing have weights too; with random ones they win now and then."""
    one = tiny_gguf.write(tmp_path / "one.gguf", seed=1, padding=300)
    two = tiny_gguf.write(tmp_path / "two.gguf", seed=2, padding=slow_padding)
    for policy in ("never", "always", "every:2"):
        with Router(f"llama_cpp:{one}", f"llama_cpp:{two}", policy=policy, audit=1.0) as router:
            meant = len(tiny_gguf.SPECIALS) + 256 + 1 + 2
            for seed in range(5):
                answer = router.complete("lamp", max_tokens=20, temperature=1.0, seed=seed)
                assert answer.degraded is None
                assert all(token.id < meant for token in answer.tokens)


# --- shards --------------------------------------------------------------------------------------


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    """A tiny model in three files."""
    tiny_gguf.write(tmp_path / "tiny.gguf", shard=5)
    found = sorted(tmp_path.glob("*.gguf"))
    assert [path.name for path in found] == [f"tiny-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    return found


def logits_of(where: Path, **options: object) -> np.ndarray:
    model = LlamaCppModel(where, **options)
    try:
        work = Work(model.open([]).sequence, 0, [0, 9, 8, 7, 5], [(4, Read(full=True))])
        return model.forward([work])[0][0].logits.copy()
    finally:
        model.shutdown()


def test_any_shard_names_the_whole_model(shards: list[Path], tmp_path: Path) -> None:
    whole = logits_of(tiny_gguf.write(tmp_path / "whole.gguf"))
    for named in shards:
        assert locate(str(named)) == shards[0]
        assert np.array_equal(logits_of(named), whole)


def test_shards_that_are_missing_are_named(shards: list[Path]) -> None:
    shards[1].rename(shards[1].with_suffix(".part"))
    for named in shards:
        with pytest.raises(ModelNotFound, match=r"one of 3 shards, and 1 are not beside it: tiny-00002-of-00003\.gguf"):
            LlamaCppModel(named)
    shards[0].unlink()
    with pytest.raises(ModelNotFound, match=r"2 are not beside it: tiny-00001-of-00003\.gguf, tiny-00002-of"):
        LlamaCppModel(shards[2])
    shards[2].unlink()
    with pytest.raises(ModelNotFound, match="there is no model file"):
        LlamaCppModel(shards[2])


def test_the_name_without_a_number_says_where_the_shards_are(shards: list[Path]) -> None:
    with pytest.raises(ModelNotFound, match=r"in shards: name tiny-00001-of-00003\.gguf"):
        LlamaCppModel(shards[0].with_name("tiny.gguf"))


def test_shards_under_other_names(shards: list[Path], tmp_path: Path) -> None:
    for shard in (shards[0], shards[1]):
        renamed = Path(shutil.copy(shard, tmp_path / "renamed.gguf"))
        with pytest.raises(ModelFileCorrupt, match=r"one of several shards, which llama\.cpp finds by the names"):
            LlamaCppModel(renamed)
    renamed.unlink()
    with pytest.raises(ModelNotFound, match=r"is a folder \(name a file in it: tiny-00001-of-00003\.gguf\)"):
        LlamaCppModel(tmp_path)


def test_a_shard_that_is_no_gguf_or_cut_off(shards: list[Path]) -> None:
    whole = shards[1].read_bytes()
    shards[1].write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelFileCorrupt, match="cannot load"):
        LlamaCppModel(shards[0])
    shards[1].write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ModelFileCorrupt, match=r"tiny-00002-of-00003\.gguf is not a GGUF file"):
        LlamaCppModel(shards[0])
    still_loads()


def test_names_that_only_look_like_shards(tmp_path: Path) -> None:
    for name in ("a-00003-of-00002.gguf", "a-00000-of-00002.gguf", "a-1-of-2.gguf", "a-00001-of-00001.gguf"):
        path = tiny_gguf.write(tmp_path / name)
        LlamaCppModel(path).shutdown()


# --- LoRA, RoPE, devices -------------------------------------------------------------------------

QUERY, OUT = "blk.0.attn_q.weight", "blk.0.ffn_down.weight"


@pytest.fixture
def lora(tmp_path: Path) -> tuple[Path, Path, dict[str, np.ndarray]]:
    """A model, an adapter of rank 2 and alpha 6 for two of its weights, and what it adds to them."""
    rng = np.random.default_rng(1)
    ab = {QUERY: (rng.normal(size=(2, 16)), rng.normal(size=(16, 2)))}
    ab[OUT] = rng.normal(size=(2, 32)), rng.normal(size=(16, 2))
    adapter = tiny_gguf.write_lora(tmp_path / "adapter.gguf", ab, alpha=6.0)
    return tiny_gguf.write(tmp_path / "tiny.gguf"), adapter, {name: 3.0 * b @ a for name, (a, b) in ab.items()}


def test_a_lora_is_what_merging_it_gives(lora: tuple[Path, Path, dict[str, np.ndarray]], tmp_path: Path) -> None:
    base, adapter, change = lora
    plain = logits_of(base)
    for wanted, scale in (
        (adapter, 1.0),
        (str(adapter), 1.0),
        (f"{adapter}:0.5", 0.5),
        (f"{adapter}:-2", -2.0),
        ({adapter: 0.25}, 0.25),
        (f"{adapter}:0", 0.0),
    ):
        merged = tiny_gguf.write(tmp_path / "merged.gguf", change={name: scale * more for name, more in change.items()})
        expected = logits_of(merged)
        assert np.allclose(logits_of(base, lora=wanted), expected, atol=1e-3)
        assert (scale == 0.0) == np.allclose(expected, plain, atol=1e-3)


def test_several_loras_add_up(lora: tuple[Path, Path, dict[str, np.ndarray]], tmp_path: Path) -> None:
    base, adapter, _ = lora
    second = Path(shutil.copy(adapter, tmp_path / "second.gguf"))
    model = make_model(f"llama_cpp:{base}?lora={adapter}:0.25,{second}:0.5")
    assert model.name == "tiny.gguf+adapter.gguf+second.gguf"
    model.shutdown()
    both, once = logits_of(base, lora=f"{adapter}:0.25,{second}:0.5"), logits_of(base, lora=f"{adapter}:.75")
    assert np.allclose(both, once, atol=1e-3)


def test_loras_that_do_not_fit(lora: tuple[Path, Path, dict[str, np.ndarray]], tmp_path: Path) -> None:
    base, _, _ = lora
    wide = {QUERY: (np.ones((2, 24)), np.ones((24, 2)))}
    other = tiny_gguf.write_lora(tmp_path / "other.gguf", wide, alpha=1.0, architecture="llama")
    wrong = tiny_gguf.write_lora(tmp_path / "wrong.gguf", wide, alpha=1.0)
    for wanted, kind, words in (
        (tmp_path / "missing.gguf", ModelNotFound, "no model file .*missing.gguf"),
        (wrong, ModelFileCorrupt, "cannot apply the LoRA adapter .*wrong.gguf to tiny.gguf.*convert_lora_to_gguf"),
        (other, ModelFileCorrupt, "cannot apply the LoRA adapter .*other.gguf"),
        (base, ModelFileCorrupt, "cannot apply the LoRA adapter .*tiny.gguf"),
        ("", ConfigurationError, "path:scale"),
        ({str(base): float("nan")}, ConfigurationError, "lora"),
        (7, ConfigurationError, "lora"),
    ):
        with pytest.raises(kind, match=words):
            LlamaCppModel(base, lora=wanted)
    still_loads()


def test_rope_is_scaled(tmp_path: Path) -> None:
    path = tiny_gguf.write(tmp_path / "tiny.gguf")
    plain = logits_of(path)
    seen = [plain]
    for options in (
        {"rope_freq_base": 100.0},
        {"rope_freq_scale": 0.25},
        {"rope_scaling_type": "yarn", "rope_freq_scale": 0.25, "yarn_orig_ctx": 32, "yarn_ext_factor": 1.0},
        {"rope_scaling_type": "yarn", "rope_freq_scale": 0.25, "yarn_ext_factor": 0.0, "yarn_attn_factor": 4.0},
        {
            **{"rope_scaling_type": "yarn", "rope_freq_scale": 0.25, "yarn_orig_ctx": 32, "yarn_ext_factor": 1.0},
            **{"yarn_beta_fast": 0.02, "yarn_beta_slow": 0.01},
        },
    ):
        logits = logits_of(path, **options)
        assert not any(np.allclose(logits, other, atol=1e-4) for other in seen), options
        seen.append(logits)
    # As the file says, said aloud.
    assert np.allclose(logits_of(path, rope_scaling_type="none", rope_freq_scale=1.0, rope_freq_base=10_000), plain)
    in_a_string = make_model(f"llama_cpp:{path}?rope_scaling_type=linear&rope_freq_scale=0.25")
    in_a_string.shutdown()
    for name, value in (
        *(
            ("rope_freq_base", 0.0),
            ("rope_freq_base", "inf"),
            ("rope_freq_scale", -1.0),
            ("rope_scaling_type", "linea"),
        ),
        *(("yarn_ext_factor", 2.0), ("yarn_orig_ctx", 0), ("yarn_beta_fast", "nan")),
    ):
        with pytest.raises(ConfigurationError, match=f"{name}={value!r}"):
            LlamaCppModel(path, **{name: value})


def test_a_scaled_context_is_not_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tiny_gguf.write(tmp_path / "tiny.gguf", n_ctx=64)
    for options, events in (({}, 1), ({"rope_freq_scale": 0.5}, 0)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "fsgen_router"):
            LlamaCppModel(path, n_ctx=128, **options).shutdown()
        assert caplog.text.count("context_beyond_training") == events


def test_devices_are_told_to_llama_cpp() -> None:
    """What it is given; what it makes of several devices takes a machine that has them."""
    options = dict(parse_qsl("main_gpu=1&split_mode=row&tensor_split=0.6,0.4,0&n_gpu_layers=-1"))
    params = model_params(LlamaCppOptions(**options))
    assert (params.main_gpu, params.split_mode, params.n_gpu_layers) == (1, lib.LLAMA_SPLIT_MODE_ROW, -1)
    assert np.allclose([params.tensor_split[at] for at in range(lib.llama_max_devices())][:4], [0.6, 0.4, 0, 0])
    for mode in ("none", "layer", "row"):
        assert model_params(LlamaCppOptions(split_mode=mode)).split_mode == getattr(
            lib, f"LLAMA_SPLIT_MODE_{mode.upper()}"
        )
    unset, default = model_params(LlamaCppOptions()), lib.llama_model_default_params()
    assert (unset.main_gpu, unset.split_mode) == (default.main_gpu, default.split_mode)
    assert not unset.tensor_split


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"main_gpu": -1}, "main_gpu=-1"),
        ({"split_mode": "rows"}, "'none', 'layer' or 'row'"),
        ({"tensor_split": "0.6,x"}, r"tensor_split\.1='x'"),
        ({"tensor_split": [0.5, -0.5]}, r"tensor_split\.1=-0\.5"),
        ({"tensor_split": "0,0"}, "not all are 0"),
        ({"tensor_split": [1.0] * 200}, "each of 1 to"),
        ({"tensor_split": []}, "each of 1 to"),
        ({"tensor_split": "1,1", "split_mode": "none"}, "keeps it on one device"),
    ],
)
def test_devices_that_are_none(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        LlamaCppModel(FAST, **options)


def test_devices_where_llama_cpp_knows_none() -> None:
    if lib.llama_supports_gpu_offload():
        pytest.skip("llama.cpp was built for a GPU here")
    for options in ({"main_gpu": 0}, {"split_mode": "layer"}, {"tensor_split": "1"}):
        with pytest.raises(ConfigurationError, match=rf"{next(iter(options))} chooses among GPUs.*built without them"):
            LlamaCppModel(FAST, **options)


@pytest.mark.parametrize(
    ("built", "options", "device"),
    [
        (b"CUDA : ARCHS = 900 | CPU : AVX2 = 1 | ", {"n_gpu_layers": -1}, "cuda:0"),
        (b"CUDA : ARCHS = 900 | CPU : AVX2 = 1 | ", {"n_gpu_layers": 8, "main_gpu": 1}, "cuda:1"),
        (b"MTL : EMBED_LIBRARY = 1 | CPU : NEON = 1 | ", {"n_gpu_layers": -1}, "mps"),
        (b"Vulkan : | CPU : AVX2 = 1 | ", {"n_gpu_layers": -1}, "gpu:0"),
        (b"CUDA : ARCHS = 900 | CPU : AVX2 = 1 | ", {}, "cpu"),
        (None, {"n_gpu_layers": -1}, "cpu"),
    ],
)
def test_a_device_has_the_name_that_torch_gives_it(
    built: bytes | None, options: dict[str, int], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that models of both backends on one GPU take turns. Said by builds that are not here."""
    monkeypatch.setattr(lib, "llama_supports_gpu_offload", lambda: built is not None)
    monkeypatch.setattr(lib, "llama_print_system_info", lambda: built)
    model = LlamaCppModel(FAST, n_ctx=32)
    assert device_of(model._context, LlamaCppOptions(**options))[0] == device
    model.shutdown()


# --- the hub -------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["hf://", "hf://owner", "hf://owner/repo", "hf://owner/repo/", "hf://a/b/c.gguf@"])
def test_hub_names_that_are_none(where: str) -> None:
    with pytest.raises(ConfigurationError, match=r"names no hub file.*hf://owner/repo/file.gguf@revision"):
        locate(where)


def in_a_process(where: str, home: Path, **environment: str) -> str:
    """What ``locate`` gives or raises where the hub client reads this environment (at its import)."""
    program = (
        "import sys, time\n"
        "time.sleep = lambda seconds: None\n"  # the hub's client would wait between its attempts, half a minute
        "from fsgen_router import FsgenError\n"
        "from fsgen_router.adapters.llama_cpp import LlamaCppModel, locate\n"
        "try:\n"
        "    path = locate(sys.argv[1])\n"
        "    LlamaCppModel(path, n_ctx=32).shutdown()\n"
        "    print(path)\n"
        "except FsgenError as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    cleaned = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    cleaned |= {"HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-c", program, where], env=cleaned, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A hub cache that holds one repository with one file."""
    repository = tmp_path / "hub" / "models--owner--repo"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    tiny_gguf.write(snapshot / "tiny.gguf")
    return tmp_path


def test_offline_mode_is_respected(cache: Path) -> None:
    found = in_a_process("hf://owner/repo/tiny.gguf", cache, HF_HUB_OFFLINE="1")
    assert found == str(cache / "hub" / "models--owner--repo" / "snapshots" / COMMIT / "tiny.gguf")
    assert in_a_process(f"hf://owner/repo/tiny.gguf@{COMMIT}", cache, HF_HUB_OFFLINE="1") == found
    for missing in ("hf://owner/repo/other.gguf", "hf://owner/repo/tiny.gguf@v2", "hf://owner/other/tiny.gguf"):
        said = in_a_process(missing, cache, HF_HUB_OFFLINE="1")
        assert re.match("ModelNotFound .*not in the local cache.*HF_HUB_OFFLINE", said), said


def test_shards_of_the_cache(cache: Path) -> None:
    """The client gives the first where it lies; the others lie beside it."""
    snapshot = cache / "hub" / "models--owner--repo" / "snapshots" / COMMIT
    first = tiny_gguf.write(snapshot / "large.gguf", shard=5)
    where = "hf://owner/repo/large-00002-of-00003.gguf"
    assert in_a_process(where, cache, HF_HUB_OFFLINE="1") == str(first)
    (snapshot / "large-00003-of-00003.gguf").unlink()
    said = in_a_process(where, cache, HF_HUB_OFFLINE="1")
    assert re.match("ModelNotFound hf://owner/repo/large-00003-of-00003.gguf is not in the local cache", said), said


class Hub(http.server.BaseHTTPRequestHandler):
    """The few answers of a hub that downloading files needs: ``tiny.gguf``, and ``large.gguf`` in shards."""

    asked: list[str]

    def do_HEAD(self) -> None:
        self._answer(send=False)

    def do_GET(self) -> None:
        self._answer(send=True)

    def _answer(self, *, send: bool) -> None:
        self.server.asked.append(self.path)
        found = re.fullmatch(r"/owner/repo/resolve/(?P<revision>[\w.]+)/folder/(?P<file>[\w.-]+)", self.path)
        data = self.server.files.get(found["file"]) if found else None
        if self.path.startswith("/owner/private/"):
            self.send_response(401)
            self.send_header("X-Error-Code", "GatedRepo")
            self.send_header("X-Error-Message", "Access to this model is restricted")
        elif data is None or found["revision"] not in ("main", "v1", COMMIT):
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if "/repo/" in self.path else "RepoNotFound")
        else:
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if send:
                self.wfile.write(data)
            return
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return None


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[http.server.ThreadingHTTPServer]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    folder = tmp_path_factory.mktemp("hub")
    tiny_gguf.write(folder / "tiny.gguf")
    tiny_gguf.write(folder / "large.gguf", shard=5)
    server.files = {path.name: path.read_bytes() for path in folder.iterdir()}
    server.asked = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_files_come_from_the_hub_once(hub: http.server.ThreadingHTTPServer, tmp_path: Path) -> None:
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    where = "hf://owner/repo/folder/tiny.gguf@v1"
    found = in_a_process(where, tmp_path, HF_ENDPOINT=endpoint)
    assert Path(found).read_bytes() == hub.files["tiny.gguf"]
    assert any("/resolve/v1/" in path for path in hub.asked)
    hub.asked.clear()
    # From the cache, without a word to the hub.
    assert in_a_process(where, tmp_path, HF_ENDPOINT=endpoint, HF_HUB_OFFLINE="1") == found
    assert hub.asked == []


def test_all_shards_come_from_the_hub(hub: http.server.ThreadingHTTPServer, tmp_path: Path) -> None:
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    found = Path(in_a_process("hf://owner/repo/folder/large-00001-of-00003.gguf", tmp_path, HF_ENDPOINT=endpoint))
    for number in (1, 2, 3):
        name = f"large-0000{number}-of-00003.gguf"
        assert found.with_name(name).read_bytes() == hub.files[name]
    # One commit, whatever "main" is by then.
    assert {path.split("/")[4] for path in hub.asked if "large-00001" not in path} == {COMMIT}


def test_a_shard_that_the_hub_lacks_is_named(hub: http.server.ThreadingHTTPServer, tmp_path: Path) -> None:
    del hub.files["large-00002-of-00003.gguf"]
    where, endpoint = "hf://owner/repo/folder/large-00003-of-00003.gguf@v1", f"http://127.0.0.1:{hub.server_port}"
    said = in_a_process(where, tmp_path, HF_ENDPOINT=endpoint)
    assert re.match("ModelNotFound the hub has no hf://owner/repo/folder/large-00002-of-00003.gguf@v1", said), said


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("hf://owner/repo/other.gguf", "ModelNotFound .*the hub has no hf://owner/repo/other.gguf"),
        ("hf://owner/repo/folder/large.gguf", "ModelNotFound .*in shards: name the first, file-00001-of-00002.gguf"),
        ("hf://owner/repo/folder/large-00001-of-00009.gguf", "ModelNotFound .*has no .*/large-00001-of-00009.gguf"),
        ("hf://owner/repo/folder/tiny.gguf@v9", "ModelNotFound"),
        ("hf://owner/missing/tiny.gguf", "ModelNotFound"),
        ("hf://owner/private/tiny.gguf", "ModelNotFound"),
        ("hf://owner/re..po/tiny.gguf", "ModelNotFound"),
    ],
)
def test_what_the_hub_does_not_have(
    hub: http.server.ThreadingHTTPServer, tmp_path: Path, where: str, words: str
) -> None:
    said = in_a_process(where, tmp_path, HF_ENDPOINT=f"http://127.0.0.1:{hub.server_port}")
    assert re.match(words, said), said


def test_a_hub_that_cannot_be_reached(tmp_path: Path) -> None:
    said = in_a_process("hf://owner/repo/tiny.gguf", tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert re.match("ModelNotFound .*hub was not reached", said), said


def test_a_file_from_the_hub_that_is_no_gguf(hub: http.server.ThreadingHTTPServer, tmp_path: Path) -> None:
    hub.files["tiny.gguf"] = b"version https://git-lfs.github.com/spec/v1"
    said = in_a_process("hf://owner/repo/folder/tiny.gguf", tmp_path, HF_ENDPOINT=f"http://127.0.0.1:{hub.server_port}")
    assert re.match("ModelFileCorrupt .*not a GGUF file", said), said


def test_errors_of_loading_are_one_family() -> None:
    assert issubclass(ModelNotFound, ModelLoadError)
    assert issubclass(ModelFileCorrupt, ModelLoadError)
    assert issubclass(NotEnoughMemory, ModelLoadError)
