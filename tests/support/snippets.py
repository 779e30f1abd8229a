"""Code blocks of a Markdown page: read, run in the page's order, and, where a page says so, only checked.

``python`` blocks share one namespace a page, and may await, as in Jupyter; with ``title="name.py"`` they are files, and
so are ``toml`` blocks.
``console`` blocks are run by bash, line by line: what follows ``$``. A line that ends in ``&`` is a server, which
is waited for and ended with the page. All of it happens in one folder a page, in which ``examples`` is this
repository's. Ports (8000 to 8099) are replaced by free ones.

A comment above a block changes that::

    <!-- output -->          this block is what the one before it printed; see UPDATE
    <!-- not run: why -->    checked only: syntax, imports, commands, model strings and the names of options

``json`` and ``toml`` have to be valid, and ``text`` is for outputs. All else is refused, so that nothing goes unseen.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import importlib
import inspect
import io
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import typer.main
from ports import free_port

from fsgen_router import RequestOptions, Router
from fsgen_router.cli import app

ROOT = Path(__file__).parents[2]
UPDATE = os.environ.get("FSGEN_UPDATE_DOCS") == "1"
"""Whether outputs are written into the pages instead of being compared."""

PUBLIC = re.compile(
    r"fsgen_router(\.(policies|methods|adapters(\.\w+)?|calibration|costs|evaluation|json_forms|money|law|recommend|reference|serve|study))?"
)
"""Where documentation may import from: all else moves."""
MODEL_OPTIONS = {
    "llama_cpp": "llama_cpp.LlamaCppOptions",
    "reference": "llama_cpp.LlamaCppOptions",
    "openai": "openai.OpenAIOptions",
    "transformers": "transformers.TransformersOptions",
}
"""By backend, in ``fsgen_router.adapters``; loaded where a page names one."""

# --- reading -------------------------------------------------------------------------------------

_FENCE = re.compile(r"```(?P<language>\w*)(?: title=\"(?P<title>[\w.]+)\")?$")
_COMMENT = re.compile(r"<!-- (?P<kind>output|not run)(?:: (?P<why>.+))? -->")
_FIGURES = re.compile(r"<!-- (figures: \w+|/figures) -->")
_INCLUDE = re.compile(r"--8<--\n(?P<path>.+)\n--8<--")


@dataclass(frozen=True)
class Block:
    """A fenced block; ``line`` is its first line of code, counted from 0."""

    language: str
    title: str | None
    code: str
    line: int
    kind: str | None = None
    why: str | None = None


def read(text: str) -> Iterator[Block]:
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        opened = _FENCE.fullmatch(lines[number])
        number += 1
        if opened is None:
            line = lines[number - 1].lstrip()
            assert not line.startswith("```"), f"line {number} opens no block that is known"
            if line.startswith("<!--"):
                assert _COMMENT.fullmatch(line) or _FIGURES.fullmatch(line), f"line {number} says nothing that is known"
            continue
        first = number
        while lines[number] != "```":
            number += 1
        said = _COMMENT.fullmatch(lines[first - 2]) if first > 1 else None
        code = _INCLUDE.sub(lambda found: (ROOT / found["path"]).read_text().rstrip(), "\n".join(lines[first:number]))
        yield Block(
            opened["language"],
            opened["title"],
            code,
            first,
            said["kind"] if said else None,
            said["why"] if said else None,
        )
        number += 1


# --- running -------------------------------------------------------------------------------------


@dataclass
class Page:
    """A page's namespace, folder, servers and free ports."""

    folder: Path
    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "__main__"})
    ports: dict[str, str] = field(default_factory=dict)
    servers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    runner: asyncio.Runner = field(default_factory=asyncio.Runner)

    def python(self, block: Block, where: str) -> str:
        """Run it; what it printed."""
        code = self._with_free_ports(block.code)
        if block.title is not None:
            self.keep(block)
            return ""
        # Lines of the page, so that errors point into it.
        tree = ast.parse("\n" * block.line + code, where)
        flags = (
            ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        )  # and none of this file's own: a page says for itself how annotations are read
        compiled = compile(tree, where, "exec", flags, dont_inherit=True)
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            waiting = eval(compiled, self.names)
            if inspect.iscoroutine(waiting):
                self.runner.run(waiting)
        return self._with_shown_ports(out.getvalue())

    def keep(self, block: Block) -> None:
        """Write it as a file, where it has a name."""
        if block.title is not None:
            (self.folder / block.title).write_text(self._with_free_ports(block.code))

    def console(self, block: Block) -> str:
        printed = ""
        for command in commands(block.code):
            shown = self._with_free_ports(command)
            if shown.endswith("&"):
                self._serve(shown.removesuffix("&"))
                continue
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", shown],
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=300,
            )
            assert done.returncode == 0, f"$ {command}\n{done.stdout}{done.stderr}"
            printed += done.stdout
        return self._with_shown_ports(printed)

    @property
    def _environment(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {**os.environ, "PATH": path, "COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb"}

    def _serve(self, command: str) -> None:
        """Start a server, and wait for its port."""
        with (self.folder / f"server{len(self.servers)}.log").open("wb") as log:
            server = subprocess.Popen(
                ["bash", "-c", f"exec {command}"],
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.servers.append(server)
        port = int(command.split("--port")[1].split()[0])
        while True:
            assert server.poll() is None, Path(log.name).read_text()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return
            time.sleep(0.05)

    def _with_free_ports(self, code: str) -> str:
        def free(found: re.Match[str]) -> str:
            if found[0] not in self.ports:
                self.ports[found[0]] = str(free_port())
            return self.ports[found[0]]

        return re.sub(r"(?<=--port )80\d\d\b|(?<=127\.0\.0\.1:)80\d\d\b", free, code)

    def _with_shown_ports(self, printed: str) -> str:
        for shown, free in self.ports.items():
            printed = printed.replace(free, shown)
        return printed.replace(str(self.folder), "...")

    def close(self) -> None:
        for server in self.servers:
            with contextlib.suppress(ProcessLookupError):  # ended by itself, which has been said by then
                os.killpg(server.pid, signal.SIGKILL)  # its own session: it and the workers that it started
            server.wait()
        for thing in self.names.values():
            if isinstance(thing, Router):
                thing.close()
        self.runner.close()


def commands(code: str) -> Iterator[str]:
    """What is typed in a console block: behind ``$``, with the lines that a backslash continues."""
    lines = iter(code.splitlines())
    for line in lines:
        assert line.startswith("$ "), f"{line!r}: output goes into a block of its own"
        command = line.removeprefix("$ ")
        while command.endswith("\\"):
            command += "\n" + next(lines)
        yield command


def steady(printed: str) -> list[str]:
    """Lines of an output without what no two runs share: times, ids, and the widths that depend on them."""
    # Said where routing took longer, which may be so in one run and not in the next.
    printed = re.sub(r"^Seconds were lost: .*?\.$\n?", "", printed, flags=re.MULTILINE | re.DOTALL)
    lines = []
    for line in filter(str.strip, printed.splitlines()):
        line = re.sub(r"\b[0-9a-f]{32}\b", "ID", line.rstrip())
        line = re.sub(r"[-+]?[\d,.]+ ?(ms|µs|s|seconds|KB|MB|GB|GiB|MiB)\b", r"TIME \1", line)
        line = re.sub(r"(?<=seconds\": )[\d.e+-]+|\d{4}-\d\d-\d\d[T ][\d:.]+\S*", "TIME", line)
        if line.lstrip("│ ").startswith("seconds"):
            line = re.sub(r"-?[\d,.]+%?", "N", line)
        lines.append(re.sub(r"[ ─━═]+", " ", line))
    return lines


# --- checking what is not run --------------------------------------------------------------------


def check_imports(code: str) -> None:
    """Names come from the public places, and exist."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno} imports from where it stands, which no reader does"
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fsgen_router"):
            module = importlib.import_module(node.module or "")
            for name in node.names:
                assert PUBLIC.fullmatch(node.module or ""), f"{node.module} is no public place"
                assert hasattr(module, name.name) or importlib.import_module(f"{node.module}.{name.name}")


def check_python(code: str) -> None:
    """Syntax, model strings, and the options of a Router and of requests."""
    tree = ast.parse(code)
    compile(code, "page", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            check_model(node.value)
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            given = {keyword.arg for keyword in node.keywords} - {None}
            if called == "Router":
                assert given <= set(inspect.signature(Router).parameters), code
            elif re.fullmatch("a?(complete|stream|chat|stream_chat)", called):
                assert given <= set(RequestOptions.model_fields), code


def check_model(text: str) -> None:
    """A string that names a backend has options that this backend knows."""
    backend, colon, rest = text.partition(":")
    if not colon or backend not in MODEL_OPTIONS or " " in text:
        return
    query = rest.partition("?")[2]
    if not query:
        return
    module, _, options = MODEL_OPTIONS[backend].partition(".")
    known = getattr(importlib.import_module(f"fsgen_router.adapters.{module}"), options).model_fields
    for name, _ in urllib.parse.parse_qsl(query, keep_blank_values=True, strict_parsing=True):
        assert name in known, f"{backend} has no option {name}"


def check_command(command: str) -> None:
    words = shlex.split(command.rstrip("&"), comments=True)
    match words:
        case ["fsgen-router", *rest]:
            _check_ours(rest)
        case ["pip", "install", *packages]:
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            for package in packages:
                if found := re.fullmatch(r"fsgen-router\[(.+)\]", package):
                    assert set(found[1].split(",")) <= set(extras), package
        case ["make", *targets]:
            known = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert set(targets) <= set(known), command
        case ["gunicorn" | "vllm" | "llama-server" | "ollama" | "git", *_]:
            pass  # other people's
        case _:
            raise AssertionError(f"{command!r} is neither run nor known")


def _check_ours(words: list[str]) -> None:
    """A command of ours and its options."""
    command: Any = typer.main.get_command(app)
    while words and hasattr(command, "commands"):
        command, *words = command.commands[words[0]], *words[1:]
    with click.Context(command) as context:
        known = {option: parameter for parameter in command.get_params(context) for option in parameter.opts}
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word.startswith("--"):
            name = word.partition("=")[0]
            assert name in known, f"{command.name} has no option {name}"
            if name in ("--fast", "--slow"):
                check_model(following)


def check_json(code: str) -> None:
    json.loads(code)
