"""Fixtures: the reference pair, loaded once."""

from __future__ import annotations

import os
import tempfile

# One thread pool: two on the same cores are far slower than one. Before any backend is loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What is measured here stays here: a folder of this run, also for the processes that it starts.
os.environ["FSGEN_CACHE"] = (_cache := tempfile.TemporaryDirectory(prefix="fsgen-cache-")).name

from collections.abc import Iterator

import pytest
from hypothesis import settings

from fsgen_router import reference
from fsgen_router.contracts.models import TokenModel
from fsgen_router.records import Role

# The same examples in every run, which says of a change whether it holds; --hypothesis-profile=new draws others.
# No deadlines: the machine is shared.
settings.register_profile("new", deadline=None)
settings.register_profile("same", deadline=None, derandomize=True)
settings.load_profile("same")


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
