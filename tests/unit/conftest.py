"""Unit tests load no model: they run where no backend is installed."""

from __future__ import annotations

from typing import NoReturn

import pytest


@pytest.fixture
def fast_model() -> NoReturn:
    pytest.fail("tests/unit load no model: what needs the reference pair belongs in tests/integration")


@pytest.fixture
def slow_model(fast_model: NoReturn) -> NoReturn:
    return fast_model
