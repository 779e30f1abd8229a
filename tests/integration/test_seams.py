"""Random cuts by real tokenizers: every byte is where it belongs; more of them in ``benchmarks/seams.py``."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from seams import TRAINED, run_cuts, trained

from fsgen_router.adapters.llama_cpp import LlamaCppModel
from fsgen_router.text.conversation import encode_after

pytestmark = pytest.mark.filterwarnings("ignore::fsgen_router.SmallExtentWarning")


@pytest.mark.parametrize("name", TRAINED)
def test_no_byte_is_lost_or_doubled(name: str) -> None:
    found = run_cuts(trained(name), 500, seed=1)
    assert found.in_words > 100


@pytest.mark.parametrize("name", ["qwen-0.5b", "smollm2-135m", "gemma3-270m"])
@pytest.mark.skipif("FSGEN_REAL_MODELS" not in os.environ, reason="FSGEN_REAL_MODELS names no folder of real models")
def test_nor_by_tokenizers_of_real_models(name: str) -> None:
    path = Path(os.environ["FSGEN_REAL_MODELS"]) / f"{name}.gguf"
    if not path.exists():
        pytest.skip(f"FSGEN_REAL_MODELS has no {path.name}")
    model = LlamaCppModel(path, n_ctx=64)
    assert run_cuts(model.tokenizer, 300, seed=1).in_words > 50
    model.shutdown()


@pytest.mark.parametrize("text", ["e\u0301 and a\u0308", "\u1112\u1161\u11ab", "plain, then n\u0303"])
def test_a_text_that_a_tokenizer_would_change_is_spelt_in_bytes(text: str) -> None:
    """Qwen's composes characters: what an endpoint said stays as it said it."""
    tokenizer = trained("byte-level BPE, normalised")
    ids = encode_after(tokenizer, "So: ", text)
    assert b"".join(map(tokenizer.piece, ids)) == text.encode()
