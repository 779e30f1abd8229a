"""Whatever is typed as the name of a model: only errors of this package's own tree come out."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from things import THINGS

from fsgen_router import FsgenError
from fsgen_router.resolve import make_model

MODEL_PARTS = [
    "llama_cpp", "reference", "scripted", "openai", ":", "?", "&", "=", "fast", "slow", "n_ctx", "n_seq", "type_k",
    "where", "self", "which", "0", "-1", "64", "1e9", "99999999999999999999", "f16", "/", "..", "~", "~nobody", "\0",
    "/dev/null", "/tmp", "é", "\ud800", "%00", "x" * 300,
]  # fmt: skip


@given(st.text(max_size=20) | st.lists(st.sampled_from(MODEL_PARTS), max_size=8).map("".join) | st.sampled_from(THINGS))
@settings(max_examples=1000)
def test_models(where: Any) -> None:
    with suppress(FsgenError):
        make_model(where).shutdown()
