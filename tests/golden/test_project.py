"""Drift: what is exported, who imports whom, what the wheel holds, where its version comes from."""

from __future__ import annotations

import ast
import graphlib
import inspect
import itertools
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import fsgen_router
from fsgen_router import calibration, errors, methods, policies
from fsgen_router.config import RequestOptions
from fsgen_router.support import logs

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for room in ("fsgen_router", "adapters", "policies") for path in (ROOT / room).rglob("*.py"))

# --- exports -------------------------------------------------------------------------------------

EXPORTS = {
    "REST", "BackendError", "Budget", "CalibrationError", "Candidate", "CheckerFailed", "Claim", "Comparison",
    "ConfigurationError", "Constraint", "Context", "Decision", "Draft", "Finished", "ForkedProcess", "FsgenError",
    "Generation", "InvalidRequest", "Ledger", "MachinePrice", "Mask", "Message", "ModelCard", "ModelFileCorrupt",
    "ModelLoadError", "ModelNotFound", "ModelUsage", "NoFreeSequence", "NotEnoughMemory", "NothingToGain", "PairCost",
    "Policy", "PolicyFileError", "Prices", "PromptTooLong", "QueueFull", "ReasoningDelta", "Report",
    "RequestKeywords", "RequestOptions", "Restarted", "RewindWarning", "Router", "RouterClosed", "Selection", "Session",
    "SessionReport", "Signals", "SlowAloneWarning", "SmallExtentWarning", "Span", "StreamEvent", "SwappedModelsWarning",
    "SystemMessageWarning", "TextDelta", "TextPart", "Token", "TokenClass", "Tool", "ToolCall", "ToolCallDelta",
    "UnsteadyMachineWarning", "Usage", "Verifier", "VerifierFailed", "VocabularyMismatch", "VocabularyWarning",
    "WrappedPromptWarning", "__version__",
}  # fmt: skip
POLICY_EXPORTS = {
    "SHORT_FORMS", "Always", "AtPrompt", "Audit", "BestOf", "Budget", "ByTool", "Capped", "Check", "Every", "Extended",
    "Guarantee", "Learned", "MissedEstimate", "Never", "OnlineHead", "Pair", "PolicyCard", "PolicyPairWarning",
    "Random", "Score", "SpanRule", "Threshold", "Vote", "audit_of", "check_pair", "check_prompt", "estimate_missed",
    "fingerprint", "guarantee_of", "load_policy", "make_policy", "promote", "save_policy",
}  # fmt: skip
METHOD_EXPORTS = {
    "DEFAULT_DRAFT_LEN", "FSGEN_SETTINGS", "SHORT_FORMS", "Contrast", "Proxy", "Replace", "Verify", "make_method",
}  # fmt: skip
OPTIONS = {
    "max_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "stop", "stop_tokens", "logit_bias", "constraint",
    "response_format", "regex", "grammar", "tools", "tool_choice", "parallel_tool_calls", "chat_template_kwargs",
    "max_slow_calls", "max_slow_tokens", "max_cost_usd", "max_seconds", "budget", "baseline", "policy", "method",
    "request_id",
}  # fmt: skip
ROUTER = {
    "achat", "aclose", "acomplete", "astream", "astream_chat", "audit", "baseline_share", "batching", "budget", "chat",
    "checker", "close", "complete", "costs", "count_tokens", "fast", "ledger", "load", "machine",
    "max_waiting", "measure", "measure_steps", "method", "policy", "prices", "read_ahead",
    "run_forwards", "seed", "session", "shared", "slow", "stream", "stream_chat", "tuned", "with_policy",
}  # fmt: skip


def test_exported_names_are_these() -> None:
    """Golden: a name that goes or comes is a change for users, and belongs in the changelog."""
    assert set(fsgen_router.__all__) == EXPORTS
    assert set(policies.__all__) == POLICY_EXPORTS
    assert set(methods.__all__) == METHOD_EXPORTS
    assert set(RequestOptions.model_fields) == OPTIONS
    assert {name for name in vars(fsgen_router.Router) if not name.startswith("_")} == ROUTER
    for name in EXPORTS:
        assert hasattr(fsgen_router, name)
    for name in POLICY_EXPORTS:
        assert hasattr(policies, name)


def test_names_come_from_where_type_checkers_are_told() -> None:
    """They are loaded when they are used; a checker reads imports that are never carried out."""
    tree = ast.parse((ROOT / "fsgen_router" / "__init__.py").read_text())
    told = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert told == fsgen_router._HOME_OF
    assert {*told, "__version__"} == set(fsgen_router.__all__) == EXPORTS
    assert set(dir(fsgen_router)) >= EXPORTS
    with pytest.raises(AttributeError, match="has no attribute 'Ruoter'"):
        fsgen_router.Ruoter  # noqa: B018


def test_importing_the_package_loads_nothing_before_it_is_used() -> None:
    program = (
        "import sys, fsgen_router\n"
        "print(sorted(sys.modules.keys() & {'numpy', 'pydantic', 'rich', 'structlog', 'asyncio', 'typer'}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout.strip() == "[]"


def test_everything_exported_is_documented() -> None:
    for module, names in ((fsgen_router, EXPORTS), (policies, POLICY_EXPORTS), (methods, METHOD_EXPORTS)):
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
    "_version", "errors", "json_forms", "support", "rows", "contracts", "text", "methods", "records", "money", "report",
    "generation", "decode", "constraints", "tools", "run", "config", "adapters", "policies", "costs", "reference",
    "resolve", "pairing", "requests", "bookkeeping", "session", "router", "fsgen_router", "evaluation", "calibration",
    "recommend", "law",
    "study", "serve", "cli",
)  # fmt: skip

# Which foreign backends and extras a file touches at all, and when.
HEAVY = {
    "torch", "transformers", "llama_cpp", "huggingface_hub", "gguf", "matplotlib", "scipy", "psutil", "tokenizers",
    "safetensors", "tqdm", "openai", "httpx", "httpx2", "tenacity", "sklearn", "jinja2",
    "accelerate", "genai_prices", "llguidance", "starlette", "uvicorn", "prometheus_client", "opentelemetry",
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
    "adapters/openai/metering.py": {"httpx2"},
    "adapters/openai/responses.py": {"httpx2"},
    "adapters/tokens/server.py": {"httpx2"},
    "adapters/transformers/__init__.py": {
        *("accelerate", "gguf", "huggingface_hub", "jinja2", "psutil", "tokenizers", "torch", "transformers"),
    },
    "adapters/transformers/devices.py": {"torch"},
    "adapters/transformers/errors.py": {"huggingface_hub", "torch"},
    "adapters/transformers/loading.py": {"torch", "transformers"},
    "adapters/transformers/memories.py": {"torch", "transformers"},
    "adapters/transformers/model.py": {"torch", "transformers"},
    "adapters/transformers/probing.py": {"torch", "transformers"},
    "adapters/transformers/graphs.py": {"torch", "transformers"},
    "adapters/transformers/reading.py": {"torch"},
    "adapters/transformers/slot_cache.py": {"torch", "transformers"},
    "adapters/transformers/tokenizer.py": {"tokenizers"},
    "adapters/transformers/vocabulary.py": {"gguf", "transformers"},
    "fsgen_router/constraints/engine.py": {"llguidance"},
    "fsgen_router/serve/__init__.py": {"prometheus_client", "starlette", "uvicorn"},
    "fsgen_router/serve/app.py": {"starlette"},
    "fsgen_router/serve/body.py": {"starlette"},
    "fsgen_router/serve/guard.py": {"starlette"},
    "fsgen_router/serve/metrics.py": {"prometheus_client"},
    "fsgen_router/serve/observing.py": {"starlette"},
    "fsgen_router/serve/page_files.py": {"starlette"},
    "fsgen_router/serve/pages.py": {"starlette"},
    "fsgen_router/serve/runner.py": {"starlette"},
    "fsgen_router/serve/running.py": {"uvicorn"},
    "fsgen_router/serve/tracing.py": {"starlette"},
    "fsgen_router/serve/wire.py": {"starlette"},
}
WHEN_CALLED = {
    "fsgen_router/calibration/fit.py": {"sklearn", "torch"},
    "fsgen_router/calibration/report.py": {"jinja2"},
    "adapters/llama_cpp/files.py": {"huggingface_hub"},
    "adapters/openai/prices.py": {"genai_prices"},
    "fsgen_router/evaluation/intervals.py": {"scipy"},
    "fsgen_router/cli/doctor.py": {"llama_cpp", "huggingface_hub", "torch"},
    "fsgen_router/support/machine.py": {"psutil"},
    "fsgen_router/evaluation/plots.py": {"matplotlib"},
    "fsgen_router/serve/tracing.py": {"opentelemetry"},
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
        if other is None or other == room:
            continue
        # The root holds the version and the exports; what comes before it may not use it.
        assert ORDER.index(other) < ORDER.index(room), f"{room} imports {name}"


def test_the_drawing_of_contributing_agrees_with_the_order() -> None:
    """Every room once, and no ring holds a room that comes before one of the ring below."""
    drawing = (ROOT / "CONTRIBUTING.md").read_text().split("## Where things are")[1].split("```")[1]
    rings = [re.findall(r"^  (\w+)(?:/|\.py) ", ring, re.MULTILINE) for ring in re.split("─+", drawing)]
    rooms = [[ORDER.index(room) for room in ring] for ring in rings]
    assert sorted(itertools.chain(*rooms)) == [
        at for at, room in enumerate(ORDER) if room not in ("_version", "fsgen_router")
    ]
    assert all(max(lower) < min(upper) for upper, lower in itertools.pairwise(rooms))


def test_the_map_of_calibration_names_each_of_its_files() -> None:
    listed = re.findall(r"^    ([a-z_]+) {2,}\S", inspect.getdoc(calibration) or "", re.MULTILINE)
    files = {path.stem for path in (ROOT / "fsgen_router" / "calibration").glob("*.py")} - {"__init__"}
    assert sorted(listed) == sorted(files)


def test_files_import_each_other_in_no_circle() -> None:
    """Within a room too, and whether an import happens when the module is imported or when something is called."""

    def module(path: Path) -> str:
        top, *rest = path.relative_to(ROOT).with_suffix("").parts
        return ".".join(["fsgen_router", *([] if top == "fsgen_router" else [top]), *rest]).removesuffix(".__init__")

    modules = {module(path): path for path in SOURCES}

    def holder(name: str) -> str:
        """The module that an imported name is in."""
        while name and name not in modules:
            name = name.rpartition(".")[0]
        return name

    arrows = {own: {holder(name) for name, _ in imports(path)} - {own, ""} for own, path in modules.items()}
    assert sum(map(len, arrows.values())) > len(modules)
    try:
        graphlib.TopologicalSorter(arrows).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_what_is_shown_loads_rich(path: Path) -> None:
    """rich takes longer to import than all of this package: it waits until something is rendered."""
    if "rich" in {name.split(".")[0] for name, _ in imports(path)}:
        assert room_of(path) == "cli" or path == ROOT / "fsgen_router" / "report" / "layout.py"
    for name, early in imports(path):
        if name.startswith("fsgen_router.report.layout") and room_of(path) != "cli":
            assert not early


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
        ("httpx2", "openai", "tokens:name@http://host:8000"),
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
    files = ("py.typed", "reference/fast.gguf", "reference/slow.gguf", "law/fsgen_cof.csv", "law/fsgen_cof.source.txt")
    files += tuple(f"serve/page/{path.name}" for path in (ROOT / "fsgen_router/serve/page").iterdir())
    for data in files:
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


# --- the version ---------------------------------------------------------------------------------


def test_the_version_has_one_source() -> None:
    assert 'version = { attr = "fsgen_router._version.__version__" }' in (ROOT / "pyproject.toml").read_text()
    assert re.fullmatch(r"\d+\.\d+\.\d+(?:\.dev\d+|rc\d+)?", fsgen_router.__version__)
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert "## [Unreleased]" in changelog or f"## [{fsgen_router.__version__}]" in changelog
    assert "Deprecation rule" in changelog
