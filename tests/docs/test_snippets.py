"""Every code block of the documentation runs, and prints what the page says.

``FSGEN_UPDATE_DOCS=1 pytest tests/docs`` writes what was printed into the pages instead.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import snippets
from snippets import ROOT, UPDATE, Block, Page

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_page_runs_and_prints_what_it_says(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = path.read_text()
    blocks = list(snippets.read(text))
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    page, printed, found = Page(tmp_path), "", []
    try:
        for block in blocks:
            if block.kind == "output":
                if not UPDATE:
                    assert snippets.steady(printed) == snippets.steady(block.code), f"{path.name}:{block.line}"
                found.append((block, printed))
            else:
                printed = follow(block, page, str(path))
    finally:
        page.close()
    if UPDATE:
        path.write_text(with_outputs(text, found))


def follow(block: Block, page: Page, where: str) -> str:
    """Run a block, or check it where it is not run; what it printed."""
    match block.language, block.kind:
        case "python", "not run":
            snippets.check_imports(block.code)
            snippets.check_python(block.code)
        case "python", None:
            snippets.check_imports(block.code)
            return page.python(block, where)
        case "console", "not run":
            for command in snippets.commands(block.code):
                snippets.check_command(command)
        case "console", None:
            return page.console(block)
        case "json", None:
            snippets.check_json(block.code)
        case "toml", None:
            tomllib.loads(block.code)
            page.keep(block)
        case unknown:
            raise AssertionError(f"{where}:{block.line}: {unknown}")
    return ""


def with_outputs(text: str, outputs: list[tuple[Block, str]]) -> str:
    """The page with what was printed in its output blocks, from the last one on, so that lines stay where they are."""
    lines = text.splitlines()
    for block, printed in reversed(outputs):
        shown = block.code.count("\n") + 1 if block.code else 0
        if snippets.steady(printed) != snippets.steady(block.code):  # times alone are no change
            lines[block.line : block.line + shown] = [line.rstrip() for line in printed.strip("\n").splitlines()]
    return "\n".join(lines) + "\n"


def test_few_blocks_are_not_run_and_each_says_why() -> None:
    blocks = [block for path in PAGES for block in snippets.read(path.read_text())]
    left_out = [block for block in blocks if block.kind == "not run"]
    run = [block for block in blocks if block.language in ("python", "console") and block.kind is None]
    assert all(block.why for block in left_out)
    assert len(left_out) * 3 <= len(run), [block.code for block in left_out]


def test_a_page_that_is_wrong_is_told() -> None:
    """The checks of what is not run find what they are there for."""
    for wrong in ("from fsgen_router.engine import Engine", "from fsgen_router import Nothing"):
        with pytest.raises((AssertionError, ImportError)):
            snippets.check_imports(wrong)
    for wrong in (
        'Router(fast="llama_cpp:a.gguf?n_context=8")',
        'Router(polcy="never")',
        'router.complete("a", max_token=5)',
        "router.complete(",
    ):
        with pytest.raises((AssertionError, SyntaxError)):
            snippets.check_python(wrong)
    for wrong in (
        "pip install 'fsgen-router[lama]'",
        "make tests",
        "fsgen-router complete --polcy never",
        "fsgen-router finish",
        "fsgen-router eval --fast 'llama_cpp:a.gguf?n_context=8'",
        "rm -rf .",
    ):
        with pytest.raises((AssertionError, KeyError)):
            snippets.check_command(wrong)
    with pytest.raises(AssertionError, match="line 1 opens"):
        list(snippets.read("```python {linenums=1}\n1\n```"))
    with pytest.raises(AssertionError, match="line 1 says"):
        list(snippets.read("<!-- outputs -->\n```text\n1\n```"))
    with pytest.raises(AssertionError, match="text"):
        follow(Block("text", None, "printed by nothing", 1), Page(ROOT), "page.md")
    assert snippets.steady("seconds  0.02  0.05") == snippets.steady("seconds 0.1 0.3")
    lost = "Seconds were lost: it took 0.3 s,\nand 0.2 s alone.\n"
    assert snippets.steady(f"a\n{lost}b") == snippets.steady("a\n\nb")
    assert snippets.steady("steps  0.02") != snippets.steady("steps  0.03")
