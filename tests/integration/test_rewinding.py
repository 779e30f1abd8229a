"""Models that cannot go back: what they hold, what they read again, what is said and chosen because of it."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_gguf
import tiny_transformers
from llama_cpp import llama_cpp as lib

from fsgen_router import Generation, RewindWarning, Router
from fsgen_router.adapters.llama_cpp import LlamaCppModel
from fsgen_router.adapters.transformers import TransformersModel
from fsgen_router.contracts.models import Rows, TokenModel, Work
from fsgen_router.methods import Replace, Verify
from fsgen_router.rows.reading import Read

# Models of other kinds have other sizes here, whichever is the fast one.
pytestmark = pytest.mark.filterwarnings("ignore::fsgen_router.SwappedModelsWarning")


FULL = Read(full=True)


def tiny(memory: str, tmp_path: Path, *, seed: int = 0, n_seq: int = 1, **options: Any) -> TokenModel:
    path = tiny_gguf.write(tmp_path / f"{memory}-{seed}.gguf", memory=memory, seed=seed, n_ctx=512)
    return LlamaCppModel(path, type_k="f32", type_v="f32", n_seq=n_seq, **options)


def of_transformers(architecture: str, n_seq: int = 1) -> TokenModel:
    return TransformersModel(tiny_transformers.saved(architecture), n_seq=n_seq, device="cpu")


BACKWARD = {
    "llama_cpp recurrent": lambda tmp_path, **options: tiny("recurrent", tmp_path, **options),
    "llama_cpp hybrid": lambda tmp_path, **options: tiny("hybrid", tmp_path, **options),
    "transformers mamba": lambda tmp_path, **options: of_transformers("mamba", **options),
    "transformers lfm2": lambda tmp_path, **options: of_transformers("lfm2", **options),
}
Make = Callable[..., TokenModel]


@pytest.fixture(params=BACKWARD)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    return lambda **options: BACKWARD[request.param](tmp_path, **options)


class Counting:
    """A model whose tokens read are counted where the backend reads them."""

    def __init__(self, model: TokenModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read = 0
        if isinstance(model, LlamaCppModel):
            flush = model._flush

            def counted() -> None:
                self.read += int(model._batch.struct.n_tokens)
                flush()

            monkeypatch.setattr(model, "_flush", counted)
        else:
            step = model._step

            def stepped(pending: Any, parts: Any, rows: Any) -> None:
                self.read += sum(part.stop - part.start for part in parts)
                step(pending, parts, rows)

            monkeypatch.setattr(model, "_step", stepped)


def some_ids(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(10, 200, count).tolist()


def read(model: TokenModel, sequence: int, keep: int, ids: Sequence[int]) -> Rows:
    rows = model.forward([Work(sequence, keep, ids, [(len(ids) - 1, FULL)])])[0]
    assert isinstance(rows, Rows)
    return rows


# --- the models ----------------------------------------------------------------------------------


def test_what_is_read_again_is_told_with_the_rows(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    assert not model.capabilities.rewind
    counting, ids = Counting(model, monkeypatch), some_ids(40)
    sequence = model.open([]).sequence
    for keep, stop, again in ((0, 30, 0), (30, 35, 0), (20, 36, 20), (36, 40, 0), (0, 12, 0), (11, 40, 11)):
        before = counting.read
        rows = read(model, sequence, keep, ids[keep:stop])
        assert rows.reread == again
        assert counting.read - before == again + stop - keep
        fresh = model if model.n_seq > 1 else make()
        expected = read(fresh, fresh.open([]).sequence, 0, ids[:stop])[0]
        np.testing.assert_allclose(rows[0].logits, expected.logits, atol=2e-4, rtol=1e-4)
        fresh.shutdown()
    model.shutdown()


def test_a_prefix_counts_as_kept_only_to_go_on_from(make: Make) -> None:
    model, ids = make(n_seq=3), some_ids(30)
    long, short = model.open([]).sequence, model.open([]).sequence
    read(model, long, 0, ids)
    read(model, short, 0, ids[:12])
    model.close(long)
    model.close(short)
    other = [*ids[:20], 5, 6, 7]
    # The longest that is a beginning of it as a whole, and not the one that has more in common with it.
    for wanted, found in (
        ([*ids, 3], (long, 30)),
        (other, (short, 12)),
        (ids[:13], (short, 12)),
        (ids, (short, 12)),
        (ids[:5], None),
        (ids[:12], None),
        ([7], None),
    ):
        opened = model.open(wanted)
        assert opened.kept == (found[1] if found else 0)
        assert found is None or opened.sequence == found[0]
        model.close(opened.sequence)
    opened = model.open(other)
    expected = read(model, model.open([]).sequence, 0, other)[0]
    rows = read(model, opened.sequence, opened.kept, other[opened.kept :])
    assert rows.reread == 0
    np.testing.assert_allclose(rows[0].logits, expected.logits, atol=2e-4, rtol=1e-4)
    model.shutdown()


def test_several_sequences_in_one_forward(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    model, texts = make(n_seq=3), [some_ids(25, seed) for seed in range(3)]
    counting = Counting(model, monkeypatch)
    sequences = [model.open([]).sequence for _ in texts]
    for keeps, stops in (((0, 0, 0), (20, 7, 13)), ((20, 3, 13), (25, 11, 14)), ((8, 11, 2), (21, 12, 25))):
        works = [
            Work(sequence, keep, ids[keep:stop], [(stop - keep - 1, FULL)])
            for sequence, ids, keep, stop in zip(sequences, texts, keeps, stops, strict=True)
        ]
        before = counting.read
        found = model.forward(works)
        again = sum(rows.reread for rows in found)
        assert counting.read - before == again + sum(len(work.ids) for work in works)
        for (row,), ids, stop in zip(found, texts, stops, strict=True):
            alone = make()
            expected = read(alone, alone.open([]).sequence, 0, ids[:stop])[0]
            np.testing.assert_allclose(row.logits, expected.logits, atol=2e-4, rtol=1e-4)
            alone.shutdown()
    assert again == 10
    model.shutdown()


def test_layers_with_a_window_keep_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever llama.cpp's default is: with a window alone, a rewind would go back to what is forgotten."""
    defaults = lib.llama_context_default_params

    def otherwise() -> Any:
        params = defaults()
        params.swa_full = False
        return params

    monkeypatch.setattr(lib, "llama_context_default_params", otherwise)
    model = tiny("window", tmp_path, n_batch=16)
    assert model.capabilities.rewind
    ids, sequence = some_ids(400), model.open([]).sequence
    expected = read(model, sequence, 0, ids[:60])[0]
    read(model, sequence, 60, ids[60:])
    rows = read(model, sequence, 57, ids[57:60])
    assert rows.reread == 0
    np.testing.assert_allclose(rows[0].logits, expected.logits, atol=2e-4, rtol=1e-4)
    model.shutdown()


# --- what a request counts -----------------------------------------------------------------------


def read_by(usage: Any) -> int:
    return usage.prefill + usage.catchup + usage.decode + usage.reread


def pair(make: Make, *, slow: bool, tmp_path: Path, **options: Any) -> tuple[TokenModel, TokenModel]:
    """The model that cannot go back in one seat, one with attention in the other."""
    cannot = make(**options)
    if isinstance(cannot, LlamaCppModel):
        can = tiny("attention", tmp_path, seed=3, **options)
    else:
        can = of_transformers("llama", **options)
    return (can, cannot) if slow else (cannot, can)


@pytest.mark.parametrize("batching", [False, True])
@pytest.mark.parametrize("slow", [True, False], ids=["slow", "fast"])
def test_every_token_that_is_read_is_counted(
    make: Make, slow: bool, batching: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = pair(make, slow=slow, tmp_path=tmp_path)
    counting = [Counting(model, monkeypatch) for model in models]
    prompt = "lamp rope " * 9 + "a"
    with pytest.warns(RewindWarning):
        router = Router(*models, policy="every:4", method="verify", batching=batching)
    answers: list[Generation] = []
    for number in range(3):
        before = [one.read for one in counting]
        answer = router.complete(prompt + "b" * number, max_tokens=24)
        answers.append(answer)
        usage = answer.usage
        for one, start, counted in zip(counting, before, (usage.fast, usage.slow), strict=True):
            assert one.read - start == counted.positions == read_by(counted)
        cannot, can = (usage.slow, usage.fast) if slow else (usage.fast, usage.slow)
        assert can.reread == 0
        # Each correction costs the prompt and what stands of the answer.
        assert usage.corrections
        assert cannot.reread >= (usage.corrections - 1) * usage.prompt_tokens > 0
        assert cannot.cached == 0  # the sequence holds more than the prompt, and cannot go back to it
        assert usage.to_dict()["slow" if slow else "fast"]["reread"] == cannot.reread
        assert re.search(rf"read again(, fast)? .* {cannot.reread:,} ", str(answer.report()))
        expected = 2 * sum(m.n_params * u.positions for m, u in zip(models, (usage.fast, usage.slow), strict=True))
        assert answer.report().flops.routed == expected
    assert answers[1].usage.fast.cached + answers[1].usage.slow.cached > 0
    router.close()
    for model in models:
        model.shutdown()


@pytest.mark.parametrize("slow", [True, False], ids=["slow", "fast"])
def test_replace_reads_nothing_again(make: Make, slow: bool, tmp_path: Path) -> None:
    models = pair(make, slow=slow, tmp_path=tmp_path, n_seq=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RewindWarning)
        router = Router(*models, policy="every:3,span=2")
    assert router.method == Replace()  # the default, since one cannot go back
    assert router.with_policy("every:2").method == Replace()
    with router:
        first = router.complete("lamp rope", max_tokens=20)
        assert first.usage.slow_tokens
        chat = [{"role": "user", "content": "lamp"}]
        answer = router.chat(chat, max_tokens=20)
        chat += [{"role": "assistant", "content": answer.text}, {"role": "user", "content": "rope"}]
        follow_up = router.chat(chat, max_tokens=20)
        for found in (first, answer, follow_up):
            assert (found.usage.fast.reread, found.usage.slow.reread) == (0, 0)
            assert "read again" not in str(found.report())
        baseline = router.complete("rope", max_tokens=20, baseline=True).baseline
        assert baseline.usage.fast.reread == 0
    for model in models:
        model.shutdown()


def test_a_conversation_goes_on_from_where_it_was(make: Make) -> None:
    """The next turn begins with all that the model holds, which is then not read again."""
    models = make(n_seq=2), make(n_seq=2)
    with Router(*models, policy="never") as router:
        first = router.complete("lamp rope lamp", max_tokens=9)
        ids = [*models[0].tokenizer.encode("lamp rope lamp", add_bos=True), *[t.id for t in first.tokens[:-1]], 50]
        opened = models[0].open(ids)
        assert opened.kept == len(ids) - 1
        models[0].close(opened.sequence)
    for model in models:
        model.shutdown()


def test_an_audit_counts_what_it_reads_again(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = pair(make, slow=True, tmp_path=tmp_path)
    counting = Counting(models[1], monkeypatch)
    with Router(*models, policy="every:6", audit=1.0) as router:
        usage = router.complete("lamp rope lamp", max_tokens=20).usage
        assert usage.audited
        assert counting.read == usage.slow.positions + usage.audit_positions  # the fast one was asked everywhere
        assert usage.slow.reread == 0
    for model in models:
        model.shutdown()


# --- what is chosen and said ---------------------------------------------------------------------


def test_a_method_that_takes_back_warns_where_that_is_dear(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    models = pair(make, slow=True, tmp_path=tmp_path)
    name = models[1].name
    with caplog.at_level(logging.WARNING, logger="fsgen_router"), pytest.warns(RewindWarning) as caught:
        router = Router(*models, method="verify:near_best=0.3")
    (warning,) = (one for one in caught if one.category is RewindWarning)
    assert warning.filename == __file__
    for words in ("verify:near_best=0.3", name, "read again", "The method replace"):
        assert words in str(warning.message)
    assert f"event='reread' method='verify:near_best=0.3' models=['{name}']" in caplog.text
    assert router.method.rule is not None
    with pytest.warns(RewindWarning):
        router.with_policy("every:3", method="verify")
    router.close()
    for model in models:
        model.shutdown()


def test_models_that_can_go_back_verify_by_default(tmp_path: Path) -> None:
    models = tiny("attention", tmp_path), tiny("window", tmp_path, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RewindWarning)
        with Router(*models, policy="every:4") as router:
            assert router.method == Verify()
    for model in models:
        model.shutdown()
