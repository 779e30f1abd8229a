"""Files and modules that the documents name in code marks exist."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
from snippets import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PLACES = (ROOT, ROOT / "fsgen_router", ROOT / "tests")
"""Where a path may begin; the code's own are named without ``fsgen_router/``, as its files name each other."""

_MARKED = re.compile(r"`([^`\n]+)`")
_COMMENT = re.compile(r"<!-- (.+) -->")
_PATH = re.compile(r"(?<![\w./:-])[\w.-]+(?:/[\w.-]+)*\.(?:py|sh|svg|toml)\b")
_MODULE = re.compile(r"(?<![\w.])fsgen_router(?:\.\w+)+")


def prose(text: str) -> str:
    """What is in code marks and comments. Blocks are left out: they are run."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return "\n".join([*_MARKED.findall(text), *_COMMENT.findall(text), *re.findall(r"^::: (\S+)", text, re.MULTILINE)])


def missing_files(text: str) -> list[str]:
    return sorted(path for path in set(_PATH.findall(text)) if not any((place / path).is_file() for place in PLACES))


def missing_names(text: str) -> list[str]:
    return sorted(name for name in set(_MODULE.findall(text)) if not _exists(name))


def _exists(name: str) -> bool:
    """The longest module in a dotted name is imported, the rest are attributes."""
    parts = name.split(".")
    for size in range(len(parts), 0, -1):
        try:
            thing = importlib.import_module(".".join(parts[:size]))
        except ModuleNotFoundError:
            continue
        for part in parts[size:]:
            fields = getattr(thing, "model_fields", {}) | getattr(thing, "__annotations__", {})
            if part in fields:
                return True
            if not hasattr(thing, part):
                return False
            thing = getattr(thing, part)
        return True
    return False


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_page_names_exists(path: Path) -> None:
    text = prose(path.read_text())
    assert missing_files(text) == []
    assert missing_names(text) == []


def test_a_name_that_is_wrong_is_told() -> None:
    wrong = prose("`tests/test_examples.py`, `decode/motor.py`; `fsgen_router.text_models`, `fsgen_router.Rooter`")
    assert missing_files(wrong) == ["decode/motor.py", "tests/test_examples.py"]
    assert missing_names(wrong) == ["fsgen_router.Rooter", "fsgen_router.text_models"]
    assert missing_files(prose("<!-- not run: tests/test_examples.py runs it -->")) == ["tests/test_examples.py"]
    right = (
        "`unit/test_machine.py` `rows/reading.py` `fsgen_router.Router.complete` `fsgen_router.contracts.text_models`"
    )
    assert missing_files(prose(right)) == missing_names(prose(right)) == []
