"""Fixtures: the reference pair, loaded once."""

from __future__ import annotations

import os

# One thread pool: two on the same cores are far slower than one. Before any backend is loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator

import pytest

from fsgen_router import reference
from fsgen_router.models import TokenModel
from fsgen_router.records import Role


def load(which: Role) -> TokenModel:
    pytest.importorskip("llama_cpp", reason="the reference pair runs on the extra 'llama', which is not installed")
    return reference.load(which)


@pytest.fixture(scope="session")
def fast_model() -> Iterator[TokenModel]:
    model = load("fast")
    yield model
    model.shutdown()


@pytest.fixture(scope="session")
def slow_model() -> Iterator[TokenModel]:
    model = load("slow")
    yield model
    model.shutdown()
