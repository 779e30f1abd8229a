"""What is transformers' own: architectures, batches, tokenizers, files, devices, memory, GGUF."""

from __future__ import annotations

import itertools
import json
import logging
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import cuda_graphs
import numpy as np
import pytest
import tiny_gguf
import tiny_transformers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaModel,
    LlamaPreTrainedModel,
    PreTrainedTokenizerFast,
)

from fsgen_router import (
    BackendError,
    ConfigurationError,
    InvalidRequest,
    ModelFileCorrupt,
    ModelNotFound,
    NotEnoughMemory,
    Router,
    reference,
)
from fsgen_router.adapters.llama_cpp import LlamaCppModel
from fsgen_router.adapters.transformers import TransformersModel, TransformersTokenizer, plan_batches
from fsgen_router.adapters.transformers.devices import require_memory
from fsgen_router.adapters.transformers.graphs import Graphs
from fsgen_router.contracts.models import TokenModel, Work
from fsgen_router.contracts.tokenizer import TokenClass
from fsgen_router.reference import world
from fsgen_router.resolve import make_model
from fsgen_router.rows.reading import UNREADABLE, Read
from fsgen_router.text.vocabulary import share_vocabulary, token_classes, vocabulary_hash

FULL = Read(full=True)
PADDING = list(range(tiny_transformers.N_VOCAB, tiny_transformers.N_VOCAB + tiny_transformers.PADDING))
HAS_CUDA = torch.cuda.is_available()
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not HAS_CUDA, reason="no CUDA device"))]
ATTENTION = ("llama", "qwen2", "mistral", "gemma2", "gpt2", "bloom", "qwen3_moe", "deepseek_v3")
RECURRENT = ("lfm2", "falcon_h1", "mamba")


def load(architecture: str, **options: Any) -> TransformersModel:
    return TransformersModel(tiny_transformers.saved(architecture), **{"device": "cpu", **options})


def some_ids(count: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(len(tiny_transformers.SPECIALS), tiny_transformers.N_VOCAB) for _ in range(count)]


def exact(architecture: str, ids: Sequence[int], device: str = "cpu") -> np.ndarray:
    """Every row of the plain model, without a cache: shape (len(ids), n_vocab)."""
    model = plain(architecture, device)
    with torch.inference_mode():
        rows = model(torch.tensor([ids], device=device), use_cache=False).logits[0]
    return rows[:, : tiny_transformers.N_VOCAB].float().cpu().numpy()


@cache
def plain(architecture: str, device: str) -> Any:
    return tiny_transformers.make_model(architecture).to(device)


# --- the same logits as the plain model ----------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("architecture", [*ATTENTION, *RECURRENT])
def test_rewinds_chunks_and_batches_equal_the_plain_model(architecture: str, device: str) -> None:
    model = load(architecture, n_seq=3, n_ctx=96, n_batch=24, device=device)
    reads_as_the_plain_model(model, architecture, device)
    assert model.capabilities.rewind is (architecture in ATTENTION)
    model.shutdown()


def reads_as_the_plain_model(model: TransformersModel, architecture: str, device: str = "cpu") -> None:
    """Random works on three sequences, each row against the whole text read at once."""
    rng = random.Random(5)
    contexts: dict[int, list[int]] = {model.open([]).sequence: [] for _ in range(3)}
    expected, found = [], []
    for turn in range(8):
        works = []
        for sequence in rng.sample(list(contexts), rng.randint(1, 3)):
            keep = rng.randint(len(contexts[sequence]) // 2, len(contexts[sequence]))
            ids = some_ids(rng.choice([1, 1, 2, 7, 30]), seed=10 * turn + sequence)[: 96 - keep]
            if not ids:
                keep, ids = 40, some_ids(3, seed=turn)
            contexts[sequence] = [*contexts[sequence][:keep], *ids]
            places = sorted({0, len(ids) // 2, len(ids) - 1})
            works.append(Work(sequence, keep, ids, [(place, FULL) for place in places]))
            expected += list(exact(architecture, contexts[sequence], device)[[keep + place for place in places]])
        found += [row.logits for rows in model.forward(works) for row in rows]
    tolerance = 1e-5 if device == "cpu" else 1e-4  # kernels there are chosen by the shape
    np.testing.assert_allclose(found, expected, atol=tolerance, rtol=tolerance)


# --- small forwards of fixed shapes, which are recorded where there is CUDA ----------------------


@pytest.fixture
def fixed_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded on the CPU where there is no CUDA."""
    monkeypatch.setattr("fsgen_router.adapters.transformers.model.records_graphs", lambda device: True)
    if not HAS_CUDA:
        cuda_graphs.emulate(monkeypatch)


@pytest.mark.usefixtures("fixed_shapes")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])
def test_forwards_of_fixed_shapes_equal_the_plain_model(architecture: str, device: str) -> None:
    model = load(architecture, n_seq=3, n_ctx=96, n_batch=24, device=device)
    assert model._graphs is not None
    reads_as_the_plain_model(model, architecture, device)
    assert {shape.rows for shape in model._graphs._recorded} == {1, 2, 4}
    assert len({shape.columns for shape in model._graphs._recorded}) > 2
    model.shutdown()


@pytest.mark.usefixtures("fixed_shapes")
def test_replays_that_do_nothing_are_seen(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """As a graph that was recorded on another device."""
    monkeypatch.setattr(Graphs, "_graph", lambda self, forward: lambda: None)
    model = load("llama", n_seq=3, n_ctx=96, n_batch=24)
    assert model._graphs is None
    assert "cuda_graphs_off" in caplog.text
    model.shutdown()


@pytest.mark.usefixtures("fixed_shapes")
def test_memory_that_runs_out_while_one_is_recorded_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load("llama", n_seq=3, n_ctx=96, n_batch=24)
    assert model._graphs is not None
    forward = Graphs._forward

    def short(self: Graphs, fixed: Any) -> None:
        if fixed.count > 8:
            raise torch.OutOfMemoryError
        forward(self, fixed)

    monkeypatch.setattr(Graphs, "_forward", short)
    reads_as_the_plain_model(model, "llama")
    sizes = [shape.rows * shape.columns for shape in model._graphs._recorded]
    assert sizes
    assert max(sizes) <= 8
    model.shutdown()


@pytest.mark.usefixtures("fixed_shapes")
@pytest.mark.parametrize("device", DEVICES)
def test_what_is_no_number_is_gone_once_it_is_taken_back(device: str) -> None:
    """A mask does not hide it: a weight of 0 times NaN is NaN."""
    model, ids = load("llama", n_seq=2, n_ctx=96, device=device), some_ids(12)
    bad = next(token for token in range(10, 99) if token not in ids)
    with torch.inference_mode():
        model._model.get_input_embeddings().weight[bad] = torch.nan
    sequence = model.open([]).sequence
    model.forward([Work(sequence, 0, ids[:8], [])])
    assert model.forward([Work(sequence, 8, [bad] * 9, [(8, FULL)])]) == [[UNREADABLE]]
    ((row,),) = model.forward([Work(sequence, 8, ids[8:], [(3, FULL)])])
    np.testing.assert_allclose(row.logits, exact("llama", ids)[-1], atol=1e-4)  # kernels are chosen by the device
    model.shutdown()


@pytest.mark.usefixtures("fixed_shapes")
@pytest.mark.parametrize(("limit", "most"), [("_MOST_TOKENS", 4), ("_MOST_ATTENDED", 96)])
def test_large_forwards_are_called_as_ever(limit: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load("llama", n_seq=3, n_ctx=96, n_batch=24)
    assert model._graphs is not None
    monkeypatch.setattr(f"fsgen_router.adapters.transformers.graphs.{limit}", most)
    reads_as_the_plain_model(model, "llama")
    sizes = {
        shape.rows * (shape.columns if limit == "_MOST_TOKENS" else shape.width) for shape in model._graphs._recorded
    }
    assert sizes
    assert max(sizes) <= most
    model.shutdown()


@pytest.mark.usefixtures("fixed_shapes")
@pytest.mark.parametrize("device", DEVICES)
def test_forwards_of_fixed_shapes_give_hidden_states(device: str) -> None:
    ids, given = some_ids(12), []
    for graphs in (True, False):
        model = load("qwen2", device=device, cuda_graphs=graphs)
        assert (model._graphs is not None) is graphs
        sequence = model.open([]).sequence
        for start in range(0, 12, 3):
            work = Work(sequence, start, ids[start : start + 3], [(0, Read(hidden=True)), (2, Read(hidden=True))])
            given.append(np.stack([row.hidden for row in model.forward([work])[0]]))
        model.shutdown()
    np.testing.assert_allclose(given[:4], given[4:], atol=1e-5)


@pytest.mark.usefixtures("fixed_shapes")
@pytest.mark.parametrize("architecture", ["mistral", "gemma2", "bloom", "mamba"])
def test_models_of_another_attention_are_called_as_ever(architecture: str) -> None:
    model = load(architecture, n_seq=3, n_ctx=96, n_batch=24)
    assert model._graphs is None
    reads_as_the_plain_model(model, architecture)
    model.shutdown()


@pytest.mark.usefixtures("fixed_shapes")
@pytest.mark.parametrize("how", [torch.ones_like, lambda mask: mask[0]], ids=["ignores it", "fails on it"])
def test_a_model_that_reads_otherwise_with_a_mask_of_its_own_is_called_as_ever(
    how: Callable[[torch.Tensor], torch.Tensor], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    honest = LlamaModel.forward

    def forward(self: Any, *args: Any, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> Any:
        mask = attention_mask if attention_mask is None or attention_mask.ndim < 4 else how(attention_mask)
        return honest(self, *args, attention_mask=mask, **kwargs)

    monkeypatch.setattr(LlamaModel, "forward", forward)
    model = load("llama", n_seq=3, n_ctx=96, n_batch=24)
    assert model._graphs is None
    assert "cuda_graphs_off" in caplog.text
    reads_as_the_plain_model(model, "llama")
    model.shutdown()


@pytest.mark.usefixtures("fixed_shapes")
def test_a_forward_that_cannot_be_recorded_is_computed_and_others_are_called_as_ever(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = load("llama", n_seq=3, n_ctx=96, n_batch=24)
    honest = LlamaModel.forward

    def looking(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = honest(self, *args, **kwargs)
        assert found.last_hidden_state.isfinite().all().item()
        return found

    monkeypatch.setattr(LlamaModel, "forward", looking)
    reads_as_the_plain_model(model, "llama")
    assert model._graphs is not None
    assert not model._graphs._recorded
    assert caplog.text.count("cuda_graphs_off") == 1
    assert "not permitted when stream is capturing" in caplog.text
    model.shutdown()


@pytest.mark.usefixtures("fixed_shapes")
@pytest.mark.parametrize("why", ["not compiled whole", "frequencies by length"])
def test_a_model_that_is_known_to_look_at_values_is_never_recorded(
    why: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_transformers.saved("llama"), tmp_path / "model")
    if why == "frequencies by length":
        edit_config(folder, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})
    else:
        monkeypatch.setattr(LlamaPreTrainedModel, "_can_compile_fullgraph", False)
    model = TransformersModel(folder, device="cpu", n_seq=3, n_ctx=96)
    assert model._graphs is None
    assert "cuda_graphs_off" not in caplog.text
    model.shutdown()


@pytest.mark.usefixtures("fixed_shapes")
def test_recorded_forwards_outlast_errors_and_give_way_to_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = load("llama"), some_ids(12)
    assert model._graphs is not None
    sequence = model.open([]).sequence
    model.forward([Work(sequence, 0, ids, [])])
    recorded = dict(model._graphs._recorded)
    with pytest.raises(BackendError, match="holds 12 tokens"):
        model.forward([Work(sequence, 20, ids, [])])
    assert model._graphs._recorded == recorded

    def full(_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(model._graphs, "read", full)
        with pytest.raises(BackendError, match="ran out of memory"):
            model.forward([Work(sequence, 0, ids, [])])
    assert not model._graphs._recorded
    model.forward([Work(sequence, 0, ids, [])])
    assert set(model._graphs._recorded) == set(recorded)
    model.shutdown()


@pytest.mark.skipif(HAS_CUDA, reason="which stream comes next is settled here")
@pytest.mark.usefixtures("fixed_shapes")
def test_no_two_models_record_on_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs.Stream, "numbers", itertools.cycle([7, 7, 8]))
    models = [load("llama"), load("llama")]
    assert [model._graphs._stream.cuda_stream for model in models] == [7, 8]  # type: ignore[union-attr]
    for model in models:
        model.shutdown()


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gpt2", "falcon_h1"])
def test_greedy_text_is_that_of_generate(architecture: str) -> None:
    model, ids = load(architecture, n_ctx=128), some_ids(11)
    expected = plain(architecture, "cpu").generate(
        torch.tensor([ids]), max_new_tokens=30, do_sample=False, eos_token_id=None, suppress_tokens=PADDING
    )
    sequence, held = model.open([]).sequence, list(ids)
    token = model.forward([Work(sequence, 0, ids, [(len(ids) - 1, Read())])])[0][0].token
    while len(held) < expected.shape[1]:
        held.append(token)
        token = model.forward([Work(sequence, len(held) - 1, [token], [(0, Read())])])[0][0].token
    assert held == expected[0].tolist()
    model.shutdown()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_implementations(attention: str) -> None:
    model = load("qwen2", attn_implementation=attention, n_seq=2)
    ids, more = some_ids(20), some_ids(5, seed=1)
    works = [Work(model.open([]).sequence, 0, text, [(len(text) - 1, FULL)]) for text in (ids, more)]
    for text, (row,) in zip((ids, more), model.forward(works), strict=True):
        np.testing.assert_allclose(row.logits, exact("qwen2", text)[-1], atol=1e-5)
    model.shutdown()


@pytest.mark.parametrize("device", DEVICES)
def test_half_precision(device: str) -> None:
    model = load("llama", dtype="bfloat16", n_seq=2, device=device)
    assert model._memory.cache.layers[0].keys.dtype is torch.bfloat16
    ids = some_ids(20)
    first, second = model.open([]).sequence, model.open([]).sequence
    model.forward([Work(first, 0, ids[:7], [])])
    one, other = model.forward([Work(first, 7, ids[7:], [(12, FULL)]), Work(second, 0, ids[:3], [(2, FULL)])])
    for row, count in ((one[0], 20), (other[0], 3)):
        rows = exact("llama", ids[:count])
        # Eight bits of mantissa, through two layers.
        np.testing.assert_allclose(row.logits, rows[-1], atol=0.05 * np.abs(rows).max())
    model.shutdown()


def test_models_that_lose_their_state_are_refused() -> None:
    """RWKV's own state is none of transformers' caches."""
    with pytest.raises(ModelFileCorrupt.__mro__[1], match="does not go on from where it was"):
        load("rwkv")


def test_a_state_that_takes_one_token_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mamba in transformers goes wrong with several tokens on top of a state, Mamba 2 and others do not."""
    sizes = forwards_of(model := load("mamba"), monkeypatch)
    sequence = model.open([]).sequence
    model.forward([Work(sequence, 0, some_ids(20), [])])
    model.forward([Work(sequence, 20, some_ids(4), [])])
    assert sizes == [(1, 20), (1, 1), (1, 1), (1, 1), (1, 1)]
    model.shutdown()
    sizes = forwards_of(model := load("falcon_h1"), monkeypatch)
    sequence = model.open([]).sequence
    model.forward([Work(sequence, 0, some_ids(20), [])])
    model.forward([Work(sequence, 20, some_ids(4), [])])
    # A rewind reads the kept prefix again.
    model.forward([Work(sequence, 10, some_ids(4), [])])
    assert sizes == [(1, 20), (1, 4), (1, 14)]
    model.shutdown()


# --- what a call costs ---------------------------------------------------------------------------


def forwards_of(model: TransformersModel, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Shapes of what really goes through the model from here on."""
    shapes: list[tuple[int, int]] = []
    inner = model._model.forward

    def counting(*args: Any, **kwargs: Any) -> Any:
        shapes.append(tuple(kwargs["input_ids"].shape))
        return inner(*args, **kwargs)

    monkeypatch.setattr(model._model, "forward", counting)
    return shapes


def test_a_call_reads_its_new_tokens_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load("llama", n_ctx=400, n_seq=2, n_batch=100)
    shapes = forwards_of(model, monkeypatch)
    one, two = model.open([]).sequence, model.open([]).sequence
    row = [(0, Read())]
    model.forward([Work(one, 0, [5] * 250, row)])
    assert shapes == [(1, 100), (1, 100), (1, 50)]
    shapes.clear()
    # However long the prefix: one token is one position, and a rewind is free.
    model.forward([Work(one, 250, [6], row)])
    model.forward([Work(one, 120, [6, 7], row)])
    # Several sequences are one batch.
    model.forward([Work(one, 122, [6], row), Work(two, 0, [7, 8, 9], row)])
    assert shapes == [(1, 1), (1, 2), (2, 3)]
    model.shutdown()


def test_only_the_wanted_rows_go_through_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load("llama", n_seq=2)
    rows: list[tuple[int, ...]] = []
    inner = model._model.lm_head.forward
    monkeypatch.setattr(
        model._model.lm_head, "forward", lambda hidden: rows.append(tuple(hidden.shape[:2])) or inner(hidden)
    )
    one, two = model.open([]).sequence, model.open([]).sequence
    model.forward([Work(one, 0, some_ids(30), [(29, Read())]), Work(two, 0, some_ids(20), [(19, Read())])])
    model.forward([Work(one, 30, some_ids(9), [(2, Read()), (8, Read()), (2, FULL)])])
    model.forward([Work(one, 39, some_ids(9), [])])
    assert rows == [(2, 1), (1, 2), (1, 1)]
    model.shutdown()


@given(
    works=st.lists(st.tuples(st.integers(1, 300), st.lists(st.integers(0, 299), max_size=40)), min_size=1, max_size=9),
    n_batch=st.integers(1, 400),
    n_rows=st.integers(1, 60),
)
@settings(max_examples=300)
def test_plans_read_every_token_once_and_in_order(
    works: list[tuple[int, list[int]]], n_batch: int, n_rows: int
) -> None:
    lengths = [length for length, _ in works]
    wanted = [{index for index in indices if index < length} for length, indices in works]
    read = [0] * len(works)
    for parts in plan_batches(lengths, wanted, n_batch=n_batch, n_rows=n_rows):
        width = max(part.stop - part.start for part in parts)
        assert len(parts) * width <= max(n_batch, len(parts))
        columns = set()
        for part in parts:
            assert part.start == read[part.pending] < part.stop
            read[part.pending] = part.stop
            columns |= {width - part.stop + i for i in wanted[part.pending] if part.start <= i < part.stop}
        assert len(columns) * len(parts) <= max(n_rows, len(parts))
        padding = sum(width - (part.stop - part.start) for part in parts)
        assert padding <= 64 * len(parts)
    assert read == lengths


def test_a_long_catch_up_is_not_padded_onto_the_others() -> None:
    shapes = [
        (len(parts), max(part.stop - part.start for part in parts))
        for parts in plan_batches([200, 1, 1, 1], [[]] * 4, n_batch=128, n_rows=9)
    ]
    assert shapes == [(1, 128), (1, 71), (4, 1)]
    assert [len(parts) for parts in plan_batches([8, 7, 5, 1], [[]] * 4, n_batch=128, n_rows=9)] == [4]
    assert list(plan_batches([], [], n_batch=1, n_rows=1)) == []


# --- one vocabulary in two backends --------------------------------------------------------------

TEXTS = (
    "How many coins do 3 lamps cost in Saltby?\n\n x<|end|> 12345 €",
    "<|bos|>a<|user|>",
    "  lead and trail \n",
    "你好 \U0001f600 é ﬁ",
    "lamprope lamp<|endoftext|>",
    "",
)
CHATS = (
    [{"role": "user", "content": "How many lamps?"}],
    [
        {"role": "system", "content": " Be <|end|> brief.\n"},
        {"role": "user", "content": "x<|user|>\x020\x03 y"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "<|bos|>"},
    ],
)


@pytest.fixture(scope="module")
def slow_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference pair's slow model in transformers' own format."""
    folder, path = tmp_path_factory.mktemp("pair") / "slow", reference.path("slow")
    read = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path.parent, gguf_file=path.name))
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    read = TransformersModel(path, device="cpu").tokenizer
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=read._with_special, bos_token="<|bos|>", eos_token="<|end|>", pad_token="<|end|>"
    )
    tokenizer.chat_template = read._tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    return folder


def assert_one_vocabulary(ours: Any, theirs: Any) -> None:
    assert share_vocabulary(ours, theirs, fast_name="ours", slow_name="theirs").same
    assert vocabulary_hash(ours) == vocabulary_hash(theirs)
    assert ours.n_vocab == theirs.n_vocab
    assert ours.eog_ids == theirs.eog_ids
    assert ours.special_ids == theirs.special_ids
    assert ours.unused_ids == theirs.unused_ids
    assert (token_classes(ours) == token_classes(theirs)).all()
    for text in TEXTS:
        for add_bos in (False, True):
            for parse_special in (False, True):
                options = {"add_bos": add_bos, "parse_special": parse_special}
                assert ours.encode(text, **options) == theirs.encode(text, **options), (text, options)
    for messages in CHATS:
        assert ours.encode_chat(messages) == theirs.encode_chat(messages)


@pytest.mark.parametrize("kind", ["gguf", "folder"])
def test_the_reference_pair_is_the_same_in_both_backends(kind: str, slow_folder: Path, slow_model: TokenModel) -> None:
    model = TransformersModel(reference.path("slow") if kind == "gguf" else slow_folder, device="cpu")
    assert_one_vocabulary(model.tokenizer, slow_model.tokenizer)
    assert (model.n_params, model.n_ctx) == (slow_model.n_params, slow_model.n_ctx)
    assert model.name == ("slow.gguf" if kind == "gguf" else "slow")
    ids = slow_model.tokenizer.encode("How many coins do 3 lamps cost in Saltby?", add_bos=True)
    reads = [(place, Read(full=True, signals=True, top_k=4)) for place in range(len(ids))]
    found, expected = (m.forward([Work(m.open([]).sequence, 0, ids, reads)])[0] for m in (model, slow_model))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours.logits, theirs.logits, atol=2e-4)
        assert ours.entropy == pytest.approx(theirs.entropy, abs=2e-4)
        assert ours.argmax == theirs.argmax
    model.shutdown()


@pytest.mark.parametrize("padding", [0, 7])
def test_any_gguf_file_is_the_same_in_both_backends(tmp_path: Path, padding: int) -> None:
    path = tiny_gguf.write(tmp_path / "tiny.gguf", padding=padding)
    ours, theirs = TransformersModel(path, device="cpu"), LlamaCppModel(path)
    assert_one_vocabulary(ours.tokenizer, theirs.tokenizer)
    assert ours.n_params == theirs.n_params
    # A folder may name the file beside its options.
    named = make_model(f"transformers:{tmp_path}?gguf_file=tiny.gguf&n_seq=2&device=cpu&n_ctx=64")
    assert (named.name, named.n_seq, named.n_ctx) == ("tiny.gguf", 2, 64)
    # quantization_config goes to transformers as it is.
    config = json.dumps({"quant_method": "gguf", "dequantize": True})
    packed = make_model(f"transformers:{path}?device=cpu&quantization_config={config}")
    for model in (ours, theirs, named, packed):
        model.shutdown()


ROUTES: list[dict[str, Any]] = [
    {"policy": "every:3"},
    {"policy": "always"},
    {"policy": "every:4", "method": "verify"},
    {"policy": "every:4", "method": "replace"},
]


@pytest.mark.parametrize("options", ROUTES, ids=str)
def test_a_router_over_two_backends_writes_what_it_writes_over_one(
    options: dict[str, Any], slow_folder: Path, fast_model: TokenModel, slow_model: TokenModel
) -> None:
    prompts = [item.prompt for item in world.problems("test", 4)]
    with Router(fast_model, slow_model, **options) as router:
        expected = [router.complete(prompt, max_tokens=60) for prompt in prompts]
        expected += [router.chat([{"role": "user", "content": prompt}], max_tokens=20) for prompt in prompts[:1]]
        expected += [router.complete(prompt, max_tokens=30, temperature=1.0, seed=5) for prompt in prompts[:2]]
    fast = f"llama_cpp:{reference.path('fast')}?type_k=f32&type_v=f32&n_ctx=1024"
    with Router(fast, f"transformers:{slow_folder}?device=cpu&dtype=float32&n_ctx=1024", **options) as router:
        found = [router.complete(prompt, max_tokens=60) for prompt in prompts]
        found += [router.chat([{"role": "user", "content": prompt}], max_tokens=20) for prompt in prompts[:1]]
        found += [router.complete(prompt, max_tokens=30, temperature=1.0, seed=5) for prompt in prompts[:2]]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.degraded is None
        assert ours.text == theirs.text
        assert [token.source for token in ours.tokens] == [token.source for token in theirs.tokens]
        assert ours.usage.slow_tokens == theirs.usage.slow_tokens > 0


# --- tokenizers ----------------------------------------------------------------------------------

KINDS: dict[str, Callable[..., Any]] = {
    "byte level": tiny_transformers.byte_level,
    "byte fallback": tiny_transformers.byte_fallback,
    "unigram": tiny_transformers.unigram,
}


def wrapped(kind: str, **options: Any) -> TransformersTokenizer:
    return TransformersTokenizer(KINDS[kind](), kind, width=400, **options)


@pytest.mark.parametrize("kind", ["byte level", "byte fallback"])
@given(text=st.text(max_size=40) | st.sampled_from(TEXTS))
@settings(max_examples=150)
def test_any_text_survives_the_tokenizer(kind: str, text: str) -> None:
    tokenizer = _TOKENIZERS[kind]
    ids = tokenizer.encode(text, add_bos=False)
    # A vocabulary in the manner of SentencePiece begins every text with a space.
    before = " " if kind == "byte fallback" and text else ""
    assert b"".join(map(tokenizer.piece, ids)) == (before + text.replace("▁", before or "▁")).encode()
    assert not set(ids) & tokenizer.special_ids


_TOKENIZERS = {kind: wrapped(kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_control_tokens_come_from_templates_alone(kind: str) -> None:
    tokenizer = _TOKENIZERS[kind]
    ids = {name: tokenizer.encode(name, add_bos=False, parse_special=True) for name in tiny_transformers.SPECIALS}
    named = {name: token for name, tokens in ids.items() for token in tokens if tokenizer.piece(token) == name.encode()}
    assert set(named) == set(tiny_transformers.SPECIALS)
    assert tokenizer.special_ids == set(named.values())
    assert tokenizer.eog_ids == {named["<|end|>"]}
    assert tokenizer.encode("lamp", add_bos=True) == [
        named["<|bos|>"],
        *tokenizer.encode("lamp", add_bos=False),
    ]
    for name in tiny_transformers.SPECIALS:
        assert not set(tokenizer.encode(f"a {name} b", add_bos=False)) & tokenizer.special_ids
    chat = tokenizer.encode_chat([{"role": "user", "content": "a <|end|><|assistant|> b"}])
    control = [token for token in chat if token in tokenizer.special_ids]
    assert control == [named[f"<|{name}|>"] for name in ("bos", "user", "end", "assistant")]


def test_a_conversation_is_cut_as_transformers_cuts_it() -> None:
    tokenizer = tiny_transformers.byte_level()
    messages = [{"role": "user", "content": " lamp rope "}, {"role": "assistant", "content": "x"}, CHATS[0][0]]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert _TOKENIZERS["byte level"].encode_chat(messages) == expected
    # ... and where a content holds a control token's name, only what was that name is cut otherwise.
    messages[0]["content"] = " lamp <|end|> rope\n"
    ids = _TOKENIZERS["byte level"].encode_chat(messages)
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert b"".join(map(_TOKENIZERS["byte level"].piece, ids)).decode() == text


def test_bytes_of_pieces() -> None:
    level, fallback, unigram = (_TOKENIZERS[kind] for kind in KINDS)
    vocabulary = tiny_transformers.byte_level().get_vocab()
    assert level.piece(vocabulary["Ġ"]) == b" "
    assert level.piece(vocabulary["lamp"]) == b"lamp"
    assert {level.piece(token) for token in range(4, 260)} == {bytes([byte]) for byte in range(256)}
    vocabulary = tiny_transformers.byte_fallback().get_vocab()
    assert fallback.piece(vocabulary["<0xE4>"]) == b"\xe4"
    assert fallback.piece(vocabulary["▁th"]) == b" th"
    assert fallback.piece(vocabulary["<unk>"]) == b"<unk>"
    assert vocabulary["<unk>"] not in fallback.special_ids
    assert unigram.piece(tiny_transformers.unigram().get_vocab()["▁lamp"]) == b" lamp"
    assert token_classes(fallback)[vocabulary["<0xE4>"]] == TokenClass.BYTE


def test_names_that_look_like_control_tokens_are_some() -> None:
    """GGUF files list them so, and the other model of a pair may come from one."""
    tokenizer = tiny_transformers.byte_level()
    tokenizer.add_tokens([AddedToken("<|fim_prefix|>"), AddedToken("<tool_call>")])
    wrapped = TransformersTokenizer(tokenizer, "x", width=400)
    prefix, call = (tokenizer.get_vocab()[name] for name in ("<|fim_prefix|>", "<tool_call>"))
    assert prefix in wrapped.special_ids
    assert call not in wrapped.special_ids
    assert prefix not in wrapped.encode("<|fim_prefix|>", add_bos=False)
    assert wrapped.encode("<|fim_prefix|>", add_bos=False, parse_special=True) == [prefix]


def test_a_tokenizer_that_is_not_a_fast_one() -> None:
    with pytest.raises(ConfigurationError, match=r"no fast tokenizer.*tokenizer\.json"):
        TransformersTokenizer(object(), "x", width=400)


def test_ends_of_a_generation_come_from_everywhere(tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_transformers.saved("llama"), tmp_path / "model")
    for name, ends in (("generation_config.json", [2, 9]), ("config.json", 3)):
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": ends}))
    model = TransformersModel(folder, device="cpu")
    assert model.tokenizer.eog_ids == {1, 2, 3, 9}
    # Rows behind the last token are neither read nor written.
    assert model.tokenizer.n_vocab == tiny_transformers.N_VOCAB
    model.shutdown()


def test_templates_that_are_missing_or_refuse() -> None:
    for template, words in (
        (None, "no chat template.*raw prompt"),
        ("{{ raise_exception('no system messages') }}", "no system messages"),
        ("{% if %}", "template"),
    ):
        tokenizer = TransformersTokenizer(tiny_transformers.byte_level(template=template), "x", width=400)
        with pytest.raises((ConfigurationError, InvalidRequest), match=words):
            tokenizer.encode_chat(CHATS[0])
        assert tokenizer.encode("lamp", add_bos=False)


def test_a_tokenizer_file_is_taken_as_it_is(tmp_path: Path) -> None:
    """transformers' own class for Qwen 2 puts its rules in place of the file's, and adds a token."""
    saved = tiny_transformers.saved("qwen2")
    assert type(AutoTokenizer.from_pretrained(saved)).__name__ == "Qwen2Tokenizer"
    ours, theirs = load("qwen2"), load("llama")
    assert_one_vocabulary(ours.tokenizer, theirs.tokenizer)
    for model in (ours, theirs):
        model.shutdown()


# --- what cannot be loaded -----------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good model of one's own to break."""
    return shutil.copytree(tiny_transformers.saved("llama"), tmp_path / "model")


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def still_loads() -> None:
    model = load("llama")
    assert model.forward([Work(model.open([]).sequence, 0, [5, 6], [(1, Read())])])[0][0].token >= 0
    model.shutdown()


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("/no/such/model", "no model folder or GGUF file.*owner/repo"),
        ("./model", "no model folder"),
        ("small.gguf", "no model folder or GGUF file"),
        ("a/b/c", "no model folder"),
        ("x" * 5000, "no path|no model"),
        ("~no-such-user-here/x", "no path|no model"),
        ("a\0b", "."),
        ("@v1", "no model folder"),
    ],
)
def test_a_missing_model(where: str, words: str) -> None:
    with pytest.raises(ModelNotFound, match=words):
        TransformersModel(where)
    with pytest.raises(FileNotFoundError):
        TransformersModel(where)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"no config\.json.*save_pretrained"):
        TransformersModel(tmp_path)
    tiny_gguf.write(tmp_path / "inside.gguf")
    with pytest.raises(ModelNotFound, match=r"name a file in it: inside\.gguf"):
        TransformersModel(tmp_path)
    with pytest.raises(ModelNotFound, match=r"no other\.gguf"):
        TransformersModel(tmp_path, gguf_file="other.gguf")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelFileCorrupt, match="model_type"):
        TransformersModel(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelFileCorrupt, match="valid JSON"):
        TransformersModel(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(ConfigurationError, match="no causal language model"):
        TransformersModel(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip file", b"GGUF" + b"\x07" * 3000])
def test_a_file_that_is_no_gguf(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelFileCorrupt):
        TransformersModel(path)
    still_loads()


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_truncated_weights(folder: Path, share: float) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ModelFileCorrupt, match=r"model cannot be loaded.*complete"):
        TransformersModel(folder)
    still_loads()


def test_weights_that_are_missing_are_not_made_up(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    for name in [name for name in weights if "layers.1.mlp" in name]:
        del weights[name]
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(ModelFileCorrupt, match=r"no weights for model\.layers\.1\.mlp.* and 2 more"):
        TransformersModel(folder)


def test_weights_of_another_size(folder: Path) -> None:
    edit_config(folder, intermediate_size=64)
    with pytest.raises(ModelFileCorrupt, match="cannot be loaded"):
        TransformersModel(folder)


def test_weights_that_can_run_code_are_loaded_by_name_alone(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(ModelNotFound, match=r"safetensors.*allow_pickle"):
        TransformersModel(folder, device="cpu")
    model = make_model(f"transformers:{folder}?allow_pickle=true&device=cpu")
    ids = some_ids(9)
    (row,) = model.forward([Work(model.open([]).sequence, 0, ids, [(8, FULL)])])[0]
    np.testing.assert_allclose(row.logits, exact("llama", ids)[-1], atol=1e-5)
    model.shutdown()


def test_code_that_comes_with_a_model_runs_by_name_alone(folder: Path) -> None:
    edit_config(folder, model_type="own", auto_map={"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"})
    (folder / "own.py").write_text("raise SystemExit('this ran')\n")
    with pytest.raises(ConfigurationError, match=r"code of its own.*trust_remote_code=true"):
        TransformersModel(folder)


def test_a_folder_without_a_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(ModelFileCorrupt, match="cannot be loaded"):
        TransformersModel(folder)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("n_contxt=5", "unknown option 'n_contxt'.*available: n_ctx"),
        ("n_thread=1", "did you mean 'n_threads'"),
        ("n_ctx=abc", "n_ctx='abc'"),
        ("n_seq=0", "n_seq='0'"),
        ("dtype=int3", "dtype='int3'.*float32"),
        ("quantization_config=four", "quantization_config='four'"),
        ('quantization_config={"quant_method":"none-such"}', "none-such"),
        ("quantization_config=%7B%22load_in_4bit%22:true%7D", "bitsandbytes"),
        ("attn_implementation=none-such", "none-such"),
        ("device=none-such", "no device 'none-such' here.*available: cpu"),
        ("device=cuda:64", "no device 'cuda:64' here.*available: cpu"),
        ("device=meta", "no device 'meta' here"),
        ("where=elsewhere", "unknown option 'where'"),
    ],
)
def test_wrong_options(options: str, words: str) -> None:
    with pytest.raises((ConfigurationError, ModelFileCorrupt), match=words):
        make_model(f"transformers:{tiny_transformers.saved('llama')}?{options}")
    still_loads()


def test_options_in_a_model_string() -> None:
    folder = tiny_transformers.saved("llama")
    model = make_model(f"transformers:{folder}?n_ctx=80&n_seq=3&dtype=bfloat16&n_batch=9&device=cpu&allow_pickle=0")
    assert (model.name, model.n_ctx, model.n_seq, model.options.n_batch) == ("llama", 80, 3, 9)
    assert model._model.dtype is torch.bfloat16
    assert not model.options.allow_pickle
    model.shutdown()


def test_threads_are_set_for_the_process() -> None:
    before = torch.get_num_threads()
    try:
        load("llama", n_threads=before + 1).shutdown()
        assert torch.get_num_threads() == before + 1
        load("llama").shutdown()
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("device", DEVICES)
def test_too_little_memory_names_the_shortfall(device: str) -> None:
    with pytest.raises(NotEnoughMemory, match=r"weights .* GiB.*KV cache .* GiB short.*would fit") as raised:
        load("llama", n_ctx=2_000_000_000, device=device)
    assert isinstance(raised.value, MemoryError)
    assert 0 < int(re.search(r"n_ctx=(\d+)", raised.value.hint)[1]) < 2_000_000_000
    still_loads()


def test_weights_that_do_not_fit_are_refused_before_they_are_read(folder: Path) -> None:
    edit_config(folder, hidden_size=2**20, head_dim=2**18, intermediate_size=2**22)
    (folder / "model.safetensors").unlink()
    with pytest.raises(NotEnoughMemory, match=r"needs .* GiB on cpu.*GiB short.*smaller dtype"):
        TransformersModel(folder, device="cpu")


def test_a_context_beyond_training(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="fsgen_router"):
        load("llama", n_ctx=600).shutdown()
    assert "context_beyond_training" in caplog.text
    with pytest.raises(ConfigurationError, match="512 positions, 600 do not fit"):
        load("gpt2", n_ctx=600)


def test_memory_of_recorded_forwards_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    def segment(number: int, pool: tuple[int, int]) -> dict[str, object]:
        return {"device": number, "total_size": 100, "allocated_size": 40, "segment_pool_id": pool}

    held = [segment(1, (0, 0)), segment(1, (0, 0)), segment(1, (0, 3)), segment(0, (0, 0))]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (1000, 2000))
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: held)
    fits = {"weights": 1120.0, "per_token": 0, "n_seq": 1, "n_ctx": 16}
    require_memory("m", torch.device("cuda", 1), **fits)
    with pytest.raises(NotEnoughMemory, match="on cuda:1"):
        require_memory("m", torch.device("cuda", 1), **fits | {"weights": 1121.0})


# --- what fails while it works -------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "falcon_h1"])
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "ran out of memory on cpu.*n_batch"),
        (RuntimeError("a kernel\nsaid no"), "RuntimeError: a kernel$"),
        (KeyboardInterrupt(), "^$"),
    ],
    ids=["memory", "kernel", "interrupt"],
)
def test_a_forward_that_fails_leaves_the_model_usable(
    architecture: str, fault: BaseException, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second of three chunks, where the KV cache has half of it."""
    model, ids = load(architecture, n_batch=4, n_seq=2), some_ids(12)
    failing, other = model.open([]).sequence, model.open([]).sequence
    model.forward([Work(other, 0, ids[:6], [])])
    calls = []
    inner = model._model.forward

    def faulty(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise fault
        return inner(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(model._model, "forward", faulty)
        with pytest.raises(KeyboardInterrupt if isinstance(fault, KeyboardInterrupt) else BackendError, match=words):
            model.forward([Work(failing, 0, ids, [(11, FULL)])])
    with pytest.raises(BackendError, match="holds 0 tokens"):
        model.forward([Work(failing, 4, ids, [])])
    (row,) = model.forward([Work(failing, 0, ids, [(11, FULL)])])[0]
    np.testing.assert_allclose(row.logits, exact(architecture, ids)[-1], atol=1e-5)
    (row,) = model.forward([Work(other, 6, ids[6:], [(5, FULL)])])[0]
    np.testing.assert_allclose(row.logits, exact(architecture, ids)[-1], atol=1e-5)
    model.shutdown()


def test_two_works_on_one_sequence_are_refused() -> None:
    model = load("llama")
    sequence = model.open([]).sequence
    with pytest.raises(BackendError, match="two works"):
        model.forward([Work(sequence, 0, [5], []), Work(sequence, 0, [6], [])])
    model.forward([Work(sequence, 0, [5], [])])
    model.shutdown()


def test_a_model_that_was_shut_down_says_so() -> None:
    model = load("llama")
    sequence = model.open([]).sequence
    model.shutdown()
    model.close(sequence)
    with pytest.raises(BackendError, match="shut down"):
        model.open([])
    with pytest.raises(BackendError, match="shut down"):
        model.forward([Work(sequence, 0, [5], [])])


# --- the hub -------------------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_cache(tmp_path: Path) -> Path:
    """A hub cache that holds one repository."""
    repository = tmp_path / "hub" / "models--owner--repo"
    shutil.copytree(tiny_transformers.saved("llama"), repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    for name in ("main", "v1"):
        (repository / "refs" / name).write_text(COMMIT)
    return tmp_path


OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig):
    model_type = "own"
class Own(LlamaForCausalLM):
    config_class = OwnConfig
"""


def in_a_process(models: Sequence[str], home: Path, **environment: str) -> list[str]:
    """What loading gives or raises where the hub client reads this environment (at its import)."""
    program = (
        "import sys\n"
        "from fsgen_router import FsgenError\n"
        "from fsgen_router.resolve import make_model\n"
        "for model in sys.argv[1:]:\n"
        "    try:\n"
        "        print(make_model(model).name)\n"
        "    except FsgenError as error:\n"
        "        print(type(error).__name__, error)\n"
    )
    cleaned = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    cleaned |= {"HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", **environment}
    command = [sys.executable, "-c", program, *models]
    done = subprocess.run(command, env=cleaned, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()


def test_models_of_the_hub_come_from_its_cache(hub_cache: Path) -> None:
    models = ("owner/repo", "owner/repo@v1?n_seq=2", f"owner/repo@{COMMIT}", "owner/repo@v2", "owner/other", "re..po/x")
    own = shutil.copytree(tiny_transformers.saved("llama"), hub_cache / "own")
    edit_config(own, model_type="own", auto_map={"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"})
    (own / "own.py").write_text(OWN_CODE)
    models += (f"{own}?trust_remote_code=true",)
    said = in_a_process([f"transformers:{model}" for model in models], hub_cache, HF_HUB_OFFLINE="1")
    assert said[:3] == ["owner/repo", "owner/repo@v1", f"owner/repo@{COMMIT}"]
    for name, line in zip(("owner/repo@v2", "owner/other"), said[3:], strict=False):
        assert re.match(f"ModelNotFound {name} is not in the local cache.*HF_HUB_OFFLINE", line), line
    assert re.match(r"ModelNotFound re\.\.po/x cannot be loaded.*repo_id", said[5]), said[5]
    assert said[6] == "own"


@pytest.mark.parametrize("space_prefix", [True, False])
def test_a_sentencepiece_file_cuts_texts_as_in_llama_cpp(tmp_path: Path, space_prefix: bool) -> None:
    """Also a text that begins with a space, and one behind a control token."""
    path = tiny_gguf.write(
        tmp_path / "spm.gguf", ["▁l", "▁la", "▁lamp", "la", "mp", "lamp", "ro", "pe", "rope"], space_prefix=space_prefix
    )
    native, model = LlamaCppModel(path), TransformersModel(path)
    shared = share_vocabulary(native.tokenizer, model.tokenizer, fast_name="llama.cpp", slow_name="transformers")
    assert shared.same
    texts = ("lamp", " lamp", "  two  lamps ", "é", "a\nb", "rope <|user|>lamp", "<|end|> lamp", "\N{GRINNING FACE}x")
    for text in texts:
        for parse in (False, True):
            expected = native.tokenizer.encode(text, add_bos=True, parse_special=parse)
            assert model.tokenizer.encode(text, add_bos=True, parse_special=parse) == expected
    messages = [{"role": "user", "content": " a lamp"}]
    assert model.tokenizer.encode_chat(messages) == native.tokenizer.encode_chat(messages)
    for one in (native, model):
        one.shutdown()


@pytest.mark.parametrize("space_prefix", [True, False])
def test_a_control_tokens_name_changes_no_space_around_a_message(tmp_path: Path, space_prefix: bool) -> None:
    template = (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}\n text <|end|>{% endfor %}<|assistant|>{{ 'lamp' }}"
    )
    words = ["▁l", "▁la", "▁lamp", "la", "mp", "lamp"]
    path = tiny_gguf.write(tmp_path / "spm.gguf", words, template=template, space_prefix=space_prefix)
    for one in (LlamaCppModel(path), TransformersModel(path)):
        tokenizer = one.tokenizer

        def text(name: str, tokenizer: Any = tokenizer) -> bytes:
            messages = [{"role": "user", "content": f"lamp {name} lamp"}, {"role": "user", "content": "lamp"}]
            return b"".join(map(tokenizer.piece, tokenizer.encode_chat(messages)))

        assert text("<|end|>").count(b"<|end|>") == 3
        assert text("<|end|>").replace(b"lamp <|end|> lamp", b"lamp xxx lamp") == text("xxx")
        one.shutdown()


def test_gguf_shards_are_refused_with_the_way_out(tmp_path: Path) -> None:
    """transformers reads one file, and would miss the tensors of the others."""
    first = tiny_gguf.write(tmp_path / "tiny.gguf", shard=5)
    for where, options in (
        (first, {}),
        (tmp_path, {"gguf_file": first.name}),
        ("owner/repo", {"gguf_file": "large-00001-of-00002.gguf"}),
    ):
        with pytest.raises(ConfigurationError, match=r"one of \d shards.*load it as llama_cpp:, or merge"):
            TransformersModel(where, **options)
    whole = tiny_gguf.write(tmp_path / "tiny-00001-of-00001.gguf")
    TransformersModel(whole).shutdown()
