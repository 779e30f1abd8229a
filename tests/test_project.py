"""Drift: what is exported, who imports whom, what the wheel holds, what the documents say."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import fsgen_router
from fsgen_router import errors, policies
from fsgen_router.config import RequestOptions
from fsgen_router.support import logs

ROOT = Path(__file__).parent.parent
SOURCES = sorted(path for room in ("fsgen_router", "adapters", "policies") for path in (ROOT / room).rglob("*.py"))

# --- exports -------------------------------------------------------------------------------------

EXPORTS = {
    "REST", "BackendError", "CalibrationError", "CheckerFailed", "Claim", "Comparison", "ConfigurationError",
    "Constraint", "Context", "Decision", "Finished", "ForkedProcess", "FsgenError", "Generation", "InvalidRequest",
    "Ledger", "Mask", "Message", "ModelCard", "ModelFileCorrupt", "ModelLoadError", "ModelNotFound", "ModelUsage",
    "NoFreeSequence", "NotEnoughMemory", "NothingToGain", "Policy", "PolicyFileError", "Prices", "PromptTooLong",
    "QueueFull", "ReasoningDelta", "Report", "RequestKeywords", "RequestOptions", "RewindWarning", "Router",
    "RouterClosed", "Signals", "SmallExtentWarning", "Span", "StreamEvent", "SwappedModelsWarning",
    "SystemMessageWarning", "TextDelta", "TextPart", "Token", "Usage", "VocabularyMismatch", "VocabularyWarning",
    "WrappedPromptWarning", "__version__",
}  # fmt: skip
POLICY_EXPORTS = {
    "SHORT_FORMS", "Always", "Budget", "Capped", "Every", "Guarantee", "Learned", "Never", "Pair", "PolicyCard",
    "PolicyPairWarning", "Random", "SpanRule", "Threshold", "check_pair", "check_prompt", "fingerprint", "guarantee_of",
    "load_policy", "make_policy", "save_policy",
}  # fmt: skip
OPTIONS = {
    "max_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "stop", "stop_tokens", "logit_bias", "constraint",
    "chat_template_kwargs", "max_slow_calls", "max_slow_tokens", "baseline", "policy", "method", "request_id",
}  # fmt: skip
ROUTER = {
    "achat", "aclose", "acomplete", "astream", "astream_chat", "audit", "batching", "chat", "close", "complete", "fast",
    "ledger", "max_waiting", "measure_steps", "method", "policy", "prices", "read_ahead", "seed", "slow", "stream",
    "stream_chat", "with_policy",
}  # fmt: skip


def test_exported_names_are_these() -> None:
    """Golden: a name that goes or comes is a change for users, and belongs in the changelog."""
    assert set(fsgen_router.__all__) == EXPORTS
    assert set(policies.__all__) == POLICY_EXPORTS
    assert set(RequestOptions.model_fields) == OPTIONS
    assert {name for name in vars(fsgen_router.Router) if not name.startswith("_")} == ROUTER
    for name in EXPORTS:
        assert hasattr(fsgen_router, name)
    for name in POLICY_EXPORTS:
        assert hasattr(policies, name)


def test_everything_exported_is_documented() -> None:
    for module, names in ((fsgen_router, EXPORTS), (policies, POLICY_EXPORTS)):
        for name in names:
            thing = getattr(module, name)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                assert inspect.getdoc(thing), name
    for name in ROUTER:
        assert inspect.getdoc(getattr(fsgen_router.Router, name)), name
    assert all(field.description or name in ("stop",) for name, field in RequestOptions.model_fields.items())


def test_the_tree_of_errors_is_drawn_as_it_is() -> None:
    drawn = {}
    parents: list[tuple[int, str]] = []
    for line in errors.__doc__.splitlines():
        found = re.match(r"(?P<indent>[\s│├└─]*)(?P<name>[A-Z]\w+)(?: \((?P<builtin>\w+)\))?", line)
        if found and (found["name"] == "FsgenError" or "─" in found["indent"]):
            depth = len(found["indent"])
            while parents and parents[-1][0] >= depth:
                parents.pop()
            bases = {parents[-1][1]} if parents else set()
            drawn[found["name"]] = bases | ({found["builtin"]} if found["builtin"] else set())
            parents.append((depth, found["name"]))
    real = {
        name: {base.__name__ for base in thing.__bases__} - {"Exception"}
        for name, thing in vars(errors).items()
        if inspect.isclass(thing) and issubclass(thing, Exception)
    }
    assert drawn == real


# --- log events ----------------------------------------------------------------------------------

LEVELS = {"info", "warning"}


def events_of(source: str) -> set[str]:
    """The names of the events that a module can log: by ``log``, by a method of it that got a name, or by ``warn``."""
    tree = ast.parse(source)

    def is_log(node: ast.AST) -> bool:
        return (
            isinstance(node, ast.Attribute)
            and node.attr in LEVELS
            and isinstance(node.value, ast.Name)
            and node.value.id == "log"
        )

    methods = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and any(map(is_log, ast.walk(node.value)))
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    names: list[ast.expr] = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.id if isinstance(node.func, ast.Name) else None
        if is_log(node.func) or name in methods:
            names.append(node.args[0])
        elif name == "warn":
            names += [keyword.value for keyword in node.keywords if keyword.arg == "event"]
    assert all(isinstance(name, ast.Constant) for name in names), "an event without a name of its own"
    return {name.value for name in names}


def test_log_events_are_the_documented_ones() -> None:
    """Each that the code can log is documented, and each that is documented can be logged."""
    lines = ("log.info('a', b=1)", "level = log.warning if x else log.info", "level('c')", "other.info('d')")
    assert events_of("\n".join([*lines, "warn(W, 'e', event='f')"])) == {"a", "c", "f"}
    logged = set().union(*(events_of(path.read_text()) for path in SOURCES if path.name != "logs.py"))
    sentence = re.search(r"Events: (.*?)\.\n", logs.__doc__ or "", re.DOTALL)
    assert sentence
    assert set(re.findall(r"``(\w+)``", sentence[1])) == logged


# --- layering ------------------------------------------------------------------------------------

# A file imports only from rooms before its own.
ORDER = (
    "_version", "errors", "json_forms", "support", "rows", "contracts", "text", "methods", "records", "report", "decode",
    "run", "config", "adapters", "policies", "reference", "resolve", "router", "fsgen_router", "evaluation",
    "calibration", "cli",
)  # fmt: skip
# An answer makes its own report, which is about answers: the one loop, closed only when it is called.
LOOPS = {("records", "report")}

# Which foreign backends and extras a file touches at all, and when.
HEAVY = {
    "torch", "transformers", "llama_cpp", "huggingface_hub", "gguf", "matplotlib", "scipy", "psutil", "tokenizers",
    "safetensors", "tqdm", "openai", "httpx", "httpx2", "tenacity", "sklearn", "jinja2",
    "accelerate",
}  # fmt: skip
AT_IMPORT = {
    "adapters/chat_template.py": {"jinja2"},
    "adapters/llama_cpp/__init__.py": {"jinja2", "llama_cpp", "psutil"},
    "adapters/llama_cpp/batch.py": {"llama_cpp"},
    "adapters/llama_cpp/loading.py": {"llama_cpp", "psutil"},
    "adapters/llama_cpp/model.py": {"llama_cpp"},
    "adapters/llama_cpp/native.py": {"llama_cpp"},
    "adapters/llama_cpp/options.py": {"llama_cpp"},
    "adapters/llama_cpp/tokenizer.py": {"llama_cpp"},
    "adapters/openai/__init__.py": {"httpx2", "tenacity"},
    "adapters/openai/connection.py": {"httpx2", "tenacity"},
    "adapters/openai/endpoint.py": {"httpx2"},
    "adapters/openai/errors.py": {"httpx2", "tenacity"},
    "adapters/openai/reading.py": {"httpx2"},
    "adapters/transformers/__init__.py": {
        *("accelerate", "gguf", "huggingface_hub", "jinja2", "psutil", "tokenizers", "torch", "transformers"),
    },
    "adapters/transformers/devices.py": {"torch"},
    "adapters/transformers/errors.py": {"huggingface_hub", "torch"},
    "adapters/transformers/loading.py": {"torch", "transformers"},
    "adapters/transformers/memories.py": {"torch", "transformers"},
    "adapters/transformers/model.py": {"torch", "transformers"},
    "adapters/transformers/probing.py": {"torch", "transformers"},
    "adapters/transformers/reading.py": {"torch"},
    "adapters/transformers/slot_cache.py": {"torch", "transformers"},
    "adapters/transformers/tokenizer.py": {"tokenizers"},
    "adapters/transformers/vocabulary.py": {"gguf", "transformers"},
}
WHEN_CALLED = {
    "fsgen_router/calibration/fit.py": {"sklearn", "torch"},
    "fsgen_router/calibration/report.py": {"jinja2"},
    "adapters/llama_cpp/files.py": {"huggingface_hub"},
    "fsgen_router/evaluation/intervals.py": {"scipy"},
    "fsgen_router/cli/doctor.py": {"llama_cpp", "huggingface_hub", "torch"},
    "fsgen_router/support/machine.py": {"psutil"},
    "fsgen_router/evaluation/plots.py": {"matplotlib"},
    "policies/certify.py": {"scipy"},
    "policies/files.py": {"safetensors"},
    "policies/guard.py": {"scipy"},
}


def room_of(path: Path) -> str:
    top, *rest = path.relative_to(ROOT).with_suffix("").parts
    if top != "fsgen_router":
        return top
    return "fsgen_router" if rest == ["__init__"] else rest[0]


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(absolute dotted name, whether it happens when the module is imported)"""
    top, *rest = path.relative_to(ROOT).with_suffix("").parts
    package = ["fsgen_router", *([] if top == "fsgen_router" else [top]), *rest][:-1]
    tree = ast.parse(path.read_text())
    inner = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((name.name, id(node) not in inner) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = [*base, *(node.module.split(".") if node.module else [])]
            for name in node.names:
                yield ".".join([*stem, name.name]), id(node) not in inner


def imported_room(name: str) -> str | None:
    first, *rest = name.split(".")
    if first != "fsgen_router":
        return None
    return rest[0] if rest and rest[0] in ORDER else "fsgen_router"


def test_every_file_has_a_room() -> None:
    assert {room_of(path) for path in SOURCES} <= set(ORDER)
    assert len(SOURCES) > 20


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_from_rooms_before_it(path: Path) -> None:
    room = room_of(path)
    for name, _ in imports(path):
        other = imported_room(name)
        if other is None or other == room or (room, other) in LOOPS:
            continue
        # The root holds the version and the exports; what comes before it may not use it.
        assert ORDER.index(other) < ORDER.index(room), f"{room} imports {name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_adapter_touches_a_backend(path: Path) -> None:
    where = str(path.relative_to(ROOT))
    at_import = {name.split(".")[0] for name, early in imports(path) if early} & HEAVY
    later = {name.split(".")[0] for name, early in imports(path) if not early} & HEAVY
    assert at_import <= AT_IMPORT.get(where, set())
    assert later <= WHEN_CALLED.get(where, set())


def test_importing_the_package_loads_no_backend() -> None:
    program = (
        "import sys, fsgen_router, fsgen_router.policies, fsgen_router.adapters.scripted\n"
        f"print(sorted(sys.modules.keys() & {HEAVY!r}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("missing", "extra", "model"),
    [
        ("llama_cpp", "llama", "llama_cpp:small.gguf"),
        ("psutil", "llama", "llama_cpp:small.gguf"),
        ("jinja2", "llama", "llama_cpp:small.gguf"),
        ("huggingface_hub", "hub", "llama_cpp:hf://owner/repo/file.gguf"),
        ("torch", "transformers", "transformers:folder"),
        ("transformers", "transformers", "transformers:folder"),
        ("accelerate", "transformers", "transformers:folder"),
        ("gguf", "transformers", "transformers:folder"),
        ("jinja2", "transformers", "transformers:folder"),
        ("httpx2", "openai", "openai:name@https://host/v1"),
        ("tenacity", "openai", "openai:name@https://host/v1"),
    ],
)
def test_a_missing_extra_is_named(missing: str, extra: str, model: str) -> None:
    """In a process where the backend cannot be imported."""
    program = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from fsgen_router.resolve import make_model\n"
        f"try:\n    make_model({model!r})\n"
        "except ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd="/")
    assert f"pip install 'fsgen-router[{extra}]'" in done.stdout
    assert f"{extra} = [" in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize(
    ("missing", "extra"),
    [
        ("llama_cpp", "llama"),
        ("httpx2", "openai"),
        ("tokenizers", "transformers"),
        ("huggingface_hub", "transformers"),
    ],
)
def test_a_missing_extra_is_named_by_every_part_of_a_backend(missing: str, extra: str) -> None:
    """Whichever is imported first."""
    package = {"llama": "llama_cpp"}.get(extra, extra)
    parts = sorted(path.stem for path in (ROOT / "adapters" / package).glob("*.py") if path.stem != "__init__")
    program = (
        f"import importlib, sys; sys.modules[{missing!r}] = None\n"
        f"for part in {parts!r}:\n"
        f"    try:\n        importlib.import_module('fsgen_router.adapters.{package}.' + part)\n"
        "    except ImportError as error:\n        print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd="/")
    assert len(parts) > 5
    assert done.stdout.count(f"pip install 'fsgen-router[{extra}]'") == len(parts)


# --- the wheel -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as it is built from a copy, so that nothing is written into the checkout."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for room in ("fsgen_router", "adapters", "policies", "tests", "examples"):
        shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    out = copy / "out"
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(copy)],
        check=True,
        capture_output=True,
    )
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_holds_one_import_root(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    roots = {name.split("/")[0] for name in names}
    assert roots == {"fsgen_router", f"fsgen_router-{fsgen_router.__version__}.dist-info"}
    assert not [name for name in names if "test" in name or "example" in name or "benchmark" in name]


def test_the_wheel_holds_every_module_and_the_data(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in SOURCES:
        top, *rest = path.relative_to(ROOT).parts
        inside = ["fsgen_router", *([] if top == "fsgen_router" else [top]), *rest]
        assert "/".join(inside) in names
    for data in ("py.typed", "reference/fast.gguf", "reference/slow.gguf"):
        assert f"fsgen_router/{data}" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_wheel_runs_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    program = (
        "import fsgen_router, fsgen_router.policies, pathlib, sys\n"
        "assert pathlib.Path(fsgen_router.__file__).is_relative_to(sys.argv[1]), fsgen_router.__file__\n"
        "assert pathlib.Path(fsgen_router.policies.__file__).is_relative_to(sys.argv[1])\n"
        "with fsgen_router.Router(policy='every:3') as router:\n"
        "    print(router.complete('lamp', max_tokens=5).usage.tokens)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
    )
    assert int(done.stdout) >= 1


# --- documents -----------------------------------------------------------------------------------


def test_the_version_has_one_source() -> None:
    assert 'version = { attr = "fsgen_router._version.__version__" }' in (ROOT / "pyproject.toml").read_text()
    assert re.fullmatch(r"\d+\.\d+\.\d+(?:\.dev\d+|rc\d+)?", fsgen_router.__version__)
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert "## [Unreleased]" in changelog or f"## [{fsgen_router.__version__}]" in changelog
    assert "Deprecation rule" in changelog


def python_blocks(document: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


def test_the_readmes_code_is_python_and_its_imports_exist() -> None:
    blocks = python_blocks("README.md")
    assert blocks
    for block in blocks:
        tree = compile(block, "README.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fsgen_router"):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, name.name) for name in node.names), block


def test_the_readmes_first_lines_run(capsys: pytest.CaptureFixture[str]) -> None:
    first = python_blocks("README.md")[0]
    assert len(first.strip().splitlines()) <= 12
    names: dict[str, object] = {}
    exec(compile(first, "README.md", "exec"), names)
    router = names["router"]
    assert isinstance(router, fsgen_router.Router)
    router.close()
    assert "sequential slow steps" in capsys.readouterr().out


# What repositories of the hub publish, checked on 2026-11-25 against what public programs fetch from there (with
# revision, size and SHA-256): the 0.5B's q8_0 has 675,710,816 bytes, the 1.5B's 1,894,532,128 (repository at
# 91cad511); the 7B's q4_k_m is two shards at bb5d59e0, and no single file. All three are under Apache 2.0.
PUBLISHED = {
    ("Qwen/Qwen2.5-0.5B-Instruct-GGUF", "qwen2.5-0.5b-instruct-q8_0.gguf"),
    ("Qwen/Qwen2.5-1.5B-Instruct-GGUF", "qwen2.5-1.5b-instruct-q8_0.gguf"),
    ("Qwen/Qwen2.5-7B-Instruct-GGUF", "qwen2.5-7b-instruct-q4_k_m-00001-of-00002.gguf"),
}
PLACEHOLDERS = {("owner/repo", "file.gguf"), ("owner/repo", None)}
LOCAL = {"a", "b", "base", "file", "large", "model", "small"}  # names of files that stand for the reader's own


def shown_models() -> Iterator[tuple[str, str, str | None]]:
    """(where it is shown, repository or ``""``, file) of every model string that people read."""
    documents = [*ROOT.glob("*.md"), *SOURCES, *(ROOT / "examples").rglob("*.py"), *(ROOT / "examples").rglob("*.md")]
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
    for document in ("README.md", "fsgen_router/router.py", "fsgen_router/cli/complete.py"):
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
