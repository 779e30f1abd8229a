"""Code in docstrings, which the reference pages are made of, can be pasted: it imports from public places and runs."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import snippets
from snippets import Block, Page

MODULES = (
    "fsgen_router",
    "fsgen_router.adapters.llama_cpp",
    "fsgen_router.adapters.openai",
    "fsgen_router.adapters.scripted",
    "fsgen_router.adapters.tokens",
    "fsgen_router.adapters.transformers",
    "fsgen_router.calibration",
    "fsgen_router.costs",
    "fsgen_router.errors",
    "fsgen_router.evaluation",
    "fsgen_router.json_forms",
    "fsgen_router.law",
    "fsgen_router.methods",
    "fsgen_router.money",
    "fsgen_router.policies",
    "fsgen_router.recommend",
    "fsgen_router.reference",
    "fsgen_router.study",
)
NOT_RUN = {
    "fsgen_router.Router": "downloads its models",
    "fsgen_router.calibration": "models of one's own; and minutes: examples/calibrate.py runs these steps",
    "fsgen_router.calibration.calibrate": "models of one's own",
    "fsgen_router.recommend": "models of one's own",
    "fsgen_router.recommend.recommend": "models of one's own",
    "fsgen_router.study": "a configuration of one's own",
}
_CODE = re.compile(r"^.*?::\n\n((?:(?: {4}.*)?\n)+)", re.MULTILINE)


def documented(module: ModuleType) -> Iterator[tuple[str, str]]:
    """Names and docstrings of a module, of what it exports, and of the methods of that."""
    yield module.__name__, inspect.getdoc(module) or ""
    for name in getattr(module, "__all__", None) or [name for name in vars(module) if not name.startswith("_")]:
        thing = getattr(module, name)
        if not (inspect.isclass(thing) or inspect.isfunction(thing)):
            continue
        path = f"{module.__name__}.{name}"
        yield path, inspect.getdoc(thing) or ""
        for inner, member in vars(thing).items() if inspect.isclass(thing) else ():
            if not inner.startswith("_"):
                yield f"{path}.{inner}", inspect.getdoc(member) or ""


def code_of(docstring: str) -> list[str]:
    """What stands behind ``::`` and is Python."""
    blocks = [textwrap.dedent(found[1]).strip("\n") for found in _CODE.finditer(docstring + "\n")]
    for line in re.findall(r"^ +(from \S+ import .+)", docstring, re.MULTILINE):
        assert line in "\n".join(blocks), f"{line!r} is not behind a line that ends in ::"
    return [block for block in blocks if is_python(block)]


def is_python(code: str) -> bool:
    try:
        compile(code, "docstring", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    except SyntaxError:
        assert "import " not in code, code
        return False
    return True


def unknown_names(code: str) -> set[str]:
    """What is read in code that nothing in it makes."""
    nodes = list(ast.walk(ast.parse(code)))
    made = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    made |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    made |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    made |= {
        alias.asname or alias.name
        for node in nodes
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    read = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    return read - made - set(vars(builtins))


EXAMPLES = {
    path: blocks
    for module in map(importlib.import_module, MODULES)
    for path, docstring in documented(module)
    if (blocks := code_of(docstring))
}


@pytest.mark.parametrize("path", EXAMPLES)
def test_an_example_of_a_docstring_can_be_pasted(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = "\n".join(EXAMPLES[path])
    snippets.check_imports(code)
    snippets.check_python(code)
    # The name under which a thing is documented needs no import in its own docstring.
    assert unknown_names(code) <= {path.rpartition(".")[2]}
    if path in NOT_RUN:
        imports = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Import | ast.ImportFrom)]
        code = "\n".join(map(ast.unparse, imports))
    page = Page(tmp_path)
    try:
        page.python(Block("python", None, code, 0), path)
    finally:
        page.close()


def test_examples_are_found() -> None:
    assert EXAMPLES.keys() >= {*NOT_RUN, "fsgen_router", "fsgen_router.evaluation", "fsgen_router.adapters.scripted"}


def test_an_example_that_cannot_be_pasted_is_told() -> None:
    with pytest.raises(AssertionError):
        snippets.check_imports("from . import calibrate")
    assert unknown_names("with open_pair() as pair:\n    choose(pair, target)") == {"open_pair", "choose", "target"}
    assert is_python("router = Router()")
    assert not is_python("FsgenError\n├── ConfigurationError")
    with pytest.raises(AssertionError, match="from"):
        code_of("One line.\n\n    from . import Router\n")
