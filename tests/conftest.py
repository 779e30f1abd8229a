"""Fixtures: the reference pair, loaded once."""

from __future__ import annotations

import os

# One thread pool: two on the same cores are far slower than one. Before any backend is loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator

import pytest

from fsgen_router import reference
from fsgen_router.models import TokenModel


@pytest.fixture(scope="session")
def fast_model() -> Iterator[TokenModel]:
    model = reference.load("fast")
    yield model
    model.shutdown()


@pytest.fixture(scope="session")
def slow_model() -> Iterator[TokenModel]:
    model = reference.load("slow")
    yield model
    model.shutdown()
