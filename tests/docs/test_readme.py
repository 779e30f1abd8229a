"""What the README and its neighbours say: code, commands, files, models and figures that exist."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for room in ("fsgen_router", "adapters", "policies") for path in (ROOT / room).rglob("*.py"))


def python_blocks(document: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


def test_the_readme_is_short_and_begins_with_a_few_lines() -> None:
    """All of its code runs in test_snippets.py, as the site's does."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 170
    assert len(python_blocks("README.md")[0].strip().splitlines()) <= 12


# What repositories of the hub publish, checked on 2026-11-25 against what public programs fetch from there (with
# revision, size and SHA-256): the 0.5B's q8_0 has 675,710,816 bytes, the 1.5B's 1,894,532,128 (repository at
# 91cad511). Both are under Apache 2.0.
PUBLISHED = {
    ("Qwen/Qwen2.5-0.5B-Instruct-GGUF", "qwen2.5-0.5b-instruct-q8_0.gguf"),
    ("Qwen/Qwen2.5-1.5B-Instruct-GGUF", "qwen2.5-1.5b-instruct-q8_0.gguf"),
}


PLACEHOLDERS = {("owner/repo", "file.gguf"), ("owner/repo", None)}


LOCAL = {"a", "b", "base", "file", "large", "model", "small", "tuned"}  # names of files that stand for the reader's own


def shown_models() -> Iterator[tuple[str, str, str | None]]:
    """(where it is shown, repository or ``""``, file) of every model string that people read."""
    documents = [*ROOT.glob("*.md"), *SOURCES, *(ROOT / "examples").rglob("*.py"), *(ROOT / "examples").rglob("*.md")]
    documents += (ROOT / "docs").rglob("*.md")
    for path in documents:
        text, where = path.read_text(), str(path.relative_to(ROOT))
        for repository, file in re.findall(r"hf://([\w.-]+/[\w.-]+)/([\w./-]+\.gguf)", text):
            yield where, repository, file
        for repository in re.findall(r"transformers:([\w-][\w.-]*/[\w.-]+)", text):
            yield where, repository, None
        for file in re.findall(r"(?:llama_cpp|transformers):([\w./-]+\.gguf)", text):
            yield where, "", file


def test_every_model_that_is_shown_can_be_had() -> None:
    shown = list(shown_models())
    for where, repository, file in shown:
        if repository:
            assert (repository, file) in PUBLISHED | PLACEHOLDERS, f"{where}: {repository}/{file}"
        else:
            assert file is not None
            assert Path(file).stem in LOCAL, f"{where}: {file} is a file of whose?"
    for document in ("README.md", "fsgen_router/router.py"):
        named = {(repository, file) for where, repository, file in shown if where == document}
        assert len(named & PUBLISHED) >= 2, f"{document} shows no pair that can be fetched"
    assert {(repository, file) for _, repository, file in shown if repository} >= PUBLISHED


def test_commands_that_documents_name_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test", "check", "bench", "wheel", "help"} <= targets
    for document in ("README.md", "CONTRIBUTING.md"):
        for name in re.findall(r"^make ([a-z]+)|`make ([a-z]+)`", (ROOT / document).read_text(), re.MULTILINE):
            assert set(name) - {""} <= targets, document


def test_files_that_the_readme_points_to_exist() -> None:
    text = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", text):
        assert (ROOT / target).exists(), target
    for script in re.findall(r"`((?:benchmarks|examples)/[\w./-]+)`", text):
        assert (ROOT / script).exists(), script


def test_the_figures_in_the_documents_are_the_measured_ones() -> None:
    """README and model card are filled from benchmarks/results; a figure edited by hand shows here."""
    command = [sys.executable, str(ROOT / "benchmarks" / "readme.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
