"""``fsgen-router doctor``: what works here, and why not."""

from __future__ import annotations

import os
import platform
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata, util
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table
from rich.text import Text

from .. import __version__
from ..contracts.text_models import Continuation, TextCapabilities, reads_tokens
from ..costs import ForwardCost, choose_mode, disagreement
from ..costs.forward import STEADY
from ..errors import BackendError, ConfigurationError, FsgenError, VocabularyMismatch
from ..pairing import SwappedModelsWarning, UnsteadyMachineWarning, look_swapped
from ..reference import world
from ..router import Router
from ..support.machine import free_bytes, usable_cores
from . import options as o
from .terminal import EXIT_FAILED, err, out, write_json

QUESTION, ANSWER = "How many coins do 3 lamps and 4 ropes cost in Norvale?", "63"
"""Of the reference pair's world; to other pairs it is a prompt like any other."""
MEASURED_SECONDS = 30.0
SHOWN = (1, 4, 8, 16, 32)
"""Chunks whose times are shown."""

Status = Literal["ok", "note", "missing", "fail"]
_STYLES: dict[Status, tuple[str, str]] = {
    "ok": ("✓", "green"),
    "note": ("!", "yellow"),
    "missing": ("-", "dim"),
    "fail": ("✗", "bold red"),
}
_EXTRAS = {
    "llama": ("llama-cpp-python", "jinja2", "psutil"),
    "transformers": ("torch", "transformers", "accelerate", "gguf", "jinja2", "psutil"),
    "openai": ("httpx2", "tenacity"),
    "constrain": ("llguidance",),
    "serve": ("starlette", "uvicorn", "prometheus-client"),
    "calibrate": ("scikit-learn", "scipy", "matplotlib", "jinja2"),
    "hub": ("huggingface_hub",),
    "eval": ("matplotlib", "scipy"),
    "train": ("torch", "transformers", "gguf", "safetensors"),
}


@dataclass(frozen=True, slots=True)
class Check:
    """One finding: ``hint`` says what to do about it."""

    name: str
    status: Status
    detail: str
    hint: str | None = None


def doctor(
    fast: o.Fast = None,
    slow: o.Slow = None,
    fallback: o.Fallback = None,
    tuned: o.Tuned = None,
    refresh: Annotated[
        bool,
        typer.Option("--refresh", help="Find out again what an endpoint can do, which is kept for a week otherwise."),
    ] = False,
    as_json: o.Json = False,
) -> None:
    """Say what works here and why not: packages, backends, cores, memory, models.

    Exit code 1 when the pair (the reference pair, or --fast and --slow, and --tuned) cannot answer.

    Examples:

      fsgen-router doctor

      fsgen-router doctor --fast llama_cpp:small.gguf --slow llama_cpp:large.gguf
    """
    checks: list[Check] = []
    for section in (_python, _extras, _llama_cpp, _transformers, _processor, _threads, _memory, _accelerator, _hub):
        checks.extend(_guarded(section))
    pair = partial(_pair, fast, slow, tuned, fallback=fallback, refresh=refresh)
    checks.extend(_guarded(pair, name=_pair_label(fast, slow)))
    able = not any(check.status == "fail" for check in checks)
    if as_json:
        write_json({"ok": able, "version": __version__, "checks": [asdict(check) for check in checks]})
    else:
        _show(checks, able=able)
    if not able:
        raise typer.Exit(EXIT_FAILED)


def _guarded(section: Callable[[], Iterator[Check]], name: str = "") -> Iterator[Check]:
    """A check that fails is a finding, not the end of the others."""
    try:
        yield from section()
    except FsgenError as error:
        if isinstance(error, ConfigurationError) and not isinstance(error, VocabularyMismatch):
            raise  # an option that makes no sense says nothing about this machine
        yield Check(name or section.__name__.strip("_"), "fail", error.message, error.hint)
    except Exception as error:  # whatever a half-installed package raises when it is looked at
        what = f"{type(error).__name__}: {error}"
        yield Check(name or section.__name__.strip("_"), "fail" if name else "note", what)


# --- packages ------------------------------------------------------------------------------------


def _version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _python() -> Iterator[Check]:
    yield Check("fsgen-router", "ok", __version__)
    yield Check("python", "ok", f"{platform.python_version()} on {platform.platform(terse=True)}, {platform.machine()}")
    versions = {name: _version_of(name) for name in ("numpy", "pydantic", "safetensors", "typer", "rich", "structlog")}
    yield Check("base packages", "ok", ", ".join(f"{name} {version}" for name, version in versions.items()))


def _extras() -> Iterator[Check]:
    for extra, packages in _EXTRAS.items():
        versions = {name: _version_of(name) for name in packages}
        missing = [name for name, version in versions.items() if version is None]
        if missing:
            hint = f"pip install 'fsgen-router[{extra}]'"
            yield Check(f"extra {extra}", "missing", f"not installed: {', '.join(missing)}", hint)
        else:
            yield Check(f"extra {extra}", "ok", ", ".join(f"{name} {version}" for name, version in versions.items()))


def _llama_cpp() -> Iterator[Check]:
    if util.find_spec("llama_cpp") is None:
        hint = "pip install 'fsgen-router[llama]' (compiles llama.cpp: needs a C++ compiler and CMake)"
        yield Check("backend llama_cpp", "missing", "llama-cpp-python is not installed", hint)
        return
    from llama_cpp import llama_cpp as lib

    yield Check("backend llama_cpp", "ok", "loads")
    features = lib.llama_print_system_info().decode(errors="replace")
    enabled = [
        part.split("=")[0].split(":")[-1].strip() for part in features.split("|") if part.strip().endswith("= 1")
    ]
    yield Check("instructions", "ok", ", ".join(enabled) or "none reported")
    if lib.llama_supports_gpu_offload():
        yield Check("GPU offload", "ok", "llama.cpp was built with it: llama_cpp:model.gguf?n_gpu_layers=-1")
    else:
        hint = (
            "compile it again: CMAKE_ARGS=-DGGML_CUDA=on (or -DGGML_METAL=on) "
            "pip install --force-reinstall --no-cache-dir --no-deps llama-cpp-python"
        )
        yield Check("GPU offload", "missing", "llama.cpp was built without it, models run on the CPU", hint)


def _transformers() -> Iterator[Check]:
    try:
        from ..adapters import transformers as adapter
    except ImportError as error:
        what = str(error.__cause__ or error)
        yield Check("backend transformers", "missing", what, "pip install 'fsgen-router[transformers]'")
    else:
        device = adapter.device_of("auto")
        yield Check("backend transformers", "ok", f"loads; models run on {device} unless told otherwise")


# --- the machine ---------------------------------------------------------------------------------


def _processor() -> Iterator[Check]:
    cores = usable_cores()
    yield Check("cores", "ok", f"{cores} usable of {os.cpu_count()}")
    if hasattr(os, "getloadavg"):
        load = os.getloadavg()[0]
        busy = load > 0.75 * cores
        yield Check(
            "load",
            "note" if busy else "ok",
            f"{load:.1f} over the last minute",
            "other work competes for the cores: expect longer times than on an idle machine" if busy else None,
        )


def _threads() -> Iterator[Check]:
    threads, waiting = os.environ.get("OMP_NUM_THREADS"), os.environ.get("OMP_WAIT_POLICY")
    set_to = f"OMP_NUM_THREADS={threads or 'unset'}, OMP_WAIT_POLICY={waiting or 'unset'}"
    if threads is None and (waiting or "").lower() != "passive":
        hint = (
            "two thread pools on the same cores can be ten times slower than one: set OMP_NUM_THREADS=1 for small "
            "models or beside other work, or OMP_WAIT_POLICY=passive"
        )
        yield Check("threads", "note", set_to, hint)
    else:
        yield Check("threads", "ok", set_to)


def _memory() -> Iterator[Check]:
    available = free_bytes()
    if available is None:
        yield Check("memory", "missing", "unknown", "pip install 'fsgen-router[llama]' brings psutil, which reads it")
    else:
        yield Check("memory", "ok" if available > 2**29 else "note", f"{available / 2**30:.1f} GiB free")


def _accelerator() -> Iterator[Check]:
    if util.find_spec("torch") is None:
        yield Check("accelerators", "missing", "torch is not installed, so none was looked for")
        return
    import torch

    found = [_cuda(index) for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    if torch.backends.mps.is_available():
        found.append("mps: Apple")
    hint = f"transformers:owner/repo?device={found[0].partition(': ')[0]}" if found else None
    yield Check("accelerators", "ok" if found else "missing", ", ".join(found) or "torch sees none", hint)


def _cuda(index: int) -> str:
    import torch

    free, total = torch.cuda.mem_get_info(index)
    name = torch.cuda.get_device_name(index)
    return f"cuda:{index}: {name} ({free / 2**30:.1f} of {total / 2**30:.1f} GiB free)"


def _hub() -> Iterator[Check]:
    if util.find_spec("huggingface_hub") is None:
        yield Check("hub", "missing", "hf:// models need the hub client", "pip install 'fsgen-router[hub]'")
        return
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    mode = "offline (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else "online"
    yield Check("hub", "ok", f"{mode}, cache {cache}{'' if cache.is_dir() else ' (empty)'}")


# --- the pair ------------------------------------------------------------------------------------


def _pair(
    fast: str | None,
    slow: str | None,
    tuned: str | None,
    *,
    fallback: list[str] | None = None,
    refresh: bool = False,
) -> Iterator[Check]:
    name = _pair_label(fast, slow)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SwappedModelsWarning)  # said below
            # Vocabularies are compared when the Router is built.
            router = o.open_router(fast, slow, "every:2,span=8", fallback=fallback, tuned=tuned)
    except ImportError as error:
        yield Check(name, "fail", str(error), "pip install 'fsgen-router[llama]'")
        return
    with router:
        if not reads_tokens(router.slow):
            yield Check(name, "ok", f"{router.fast.name} loads, {_size(router.fast.n_params)} parameters")
            yield from _costs(router)
            for model in getattr(router.slow, "models", (router.slow,)):
                yield from _endpoint(model, refresh=refresh)
            return
        models = [model for model in (router.fast, router.slow, router.tuned) if model is not None]
        names, sizes = [model.name for model in models], [_size(model.n_params) for model in models]
        differing = router.shared.describe(*names) if router.shared else []
        alike = "" if differing else ", one vocabulary"
        yield Check(name, "ok", f"{_listed(names)} load, {_listed(sizes)} parameters{alike}")
        for sentence in differing:
            yield Check("vocabulary", "note", sentence)
        yield from _served(router.slow)
        if look_swapped(router.fast, router.slow):
            detail = f"the slow model {router.slow.name} is smaller than the fast model {router.fast.name}"
            yield Check("sizes", "note", detail, "are they swapped? --fast is the small one")
        yield from _costs(router)
        own = fast is not None  # whose answers are not known to be right, and may take long
        answer = router.complete(QUESTION, max_tokens=16 if own else o.MAX_TOKENS)
        if answer.degraded:
            yield Check("answers", "fail", answer.degraded)
            return
        usage = answer.usage
        answered = f"{usage.tokens} tokens, {usage.slow_tokens} by the slow model (every:2,span=8, to see both at work)"
        if not own and (said := world.extract_answer(answer.text)) != ANSWER:
            yield Check("answers", "fail", f"{said} to {QUESTION!r}, which is {ANSWER} ({answered})")
            return
        yield Check("answers", "ok", answered if own else f"right; {answered}")


def _served(model: object) -> Iterator[Check]:
    """How a server that gives rows for token ids is asked."""
    spoken = getattr(model, "spoken", None)
    if spoken is None:
        return
    rows = f"rows of token ids by {spoken.dialect.path}, their {spoken.top_k} best tokens"
    if spoken.reports_cached:
        yield Check("server", "ok", f"{rows}; it tells what its prefix cache held")
        return
    hint = "it reads the whole text at each call; vLLM: --enable-scale-out --enable-prompt-tokens-details"
    yield Check("server", "note", f"{rows}; it does not tell what its prefix cache held, which is not used then", hint)


def _size(n_params: int | None) -> str:
    return "of unknown" if n_params is None else f"{n_params:,}"


def _costs(router: Router) -> Iterator[Check]:
    """Measure the pair, and say what that means for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnsteadyMachineWarning)  # shown as a spread
        with err().status("measuring forwards") as status:
            found = router.measure(
                seconds=MEASURED_SECONDS,
                progress=lambda done, of: status.update(f"measuring forwards, round {done} of {of}"),
            )
    for role, cost in (("fast", found.fast), ("slow", found.slow)):
        if cost is not None:
            yield _times(f"{role} forwards", cost)
    if found.slow is None:
        yield Check("slow forwards", "note", "not measured: it is behind an endpoint", "give prices for what it costs")
        return
    choice = choose_mode(found, parts=disagreement(router.fast.n_params, router.slow.n_params))
    if choice.routes:
        yield Check("best mode", "ok", f"{choice}, as far as forwards tell")
    else:
        hint = "models that are farther apart, or a GPU, where reading drafts is cheap"
        yield Check("best mode", "note", f"the slow model alone; the best other is {choice}", hint)


def _times(name: str, cost: ForwardCost) -> Check:
    shown = ", ".join(f"{size}: {1000 * cost.seconds(size):.3g}" for size in SHOWN)
    detail = f"ms by new tokens {shown}; repetitions differ by {cost.spread:.0%}"
    if cost.spread <= STEADY:
        return Check(name, "ok", detail)
    return Check(name, "note", detail, "the machine changed its speed meanwhile: measure again when nothing else runs")


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


_ASKED = ({"role": "user", "content": "Write the letter a twice."},)
_GIVES = {
    "usage": "counts of tokens",
    "cached_tokens": "counts of cached tokens",
    "logprobs": "log-probabilities",
    "token_ids": "prompts of token ids",
    "verifies": "log-probabilities of a prompt, which verify a span",
}


def _endpoint(model: Any, *, refresh: bool) -> Iterator[Check]:
    """What an endpoint can do, found out now where nobody knows it; and a token, which shows that it answers."""
    request = Continuation(messages=_ASKED, answer="a", max_tokens=1)
    try:
        if callable(getattr(model, "probe", None)):
            model.probe(request, again=refresh)
            with suppress(ConfigurationError, BackendError):  # it takes no raw prompts
                model.probe(Continuation(prompt="a", max_tokens=1))
        deque(model.stream(request), maxlen=0)
    except BackendError as error:
        yield Check("endpoint", "fail", error.message, error.hint)
        return
    found: TextCapabilities = model.capabilities
    yield from _found(found, getattr(model, "found", ""))
    how = "continues a partial answer" if found.prefill else "has to be told to continue a partial answer"
    yield Check("endpoint", "ok", f"{model.name} answers, and {how}")


def _found(found: TextCapabilities, when: str) -> Iterator[Check]:
    known = {words: value for name, words in _GIVES.items() if (value := getattr(found, name)) is not None}
    if not known:
        return
    gives, lacks = ([words for words, value in known.items() if value is wanted] for wanted in (True, False))
    parts = [f"knows {', '.join(gives)}" if gives else "", f"not {', '.join(lacks)}" if lacks else ""]
    if found.raw is not None:
        parts.append("goes on with raw prompts" if found.raw else "puts raw prompts into its chat template")
    detail = "; ".join(filter(None, parts))
    yield Check("capabilities", "ok", f"{detail} (found out {when})" if when else detail, "--refresh finds out again")


def _pair_label(fast: str | None, slow: str | None) -> str:
    return "reference pair" if fast is None and slow is None else "pair"


def _show(checks: list[Check], *, able: bool) -> None:
    console = out()
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    for check in checks:
        sign, style = _STYLES[check.status]
        detail = Text(check.detail)
        if check.hint:
            detail.append(f"\n{check.hint}", style="dim")
        table.add_row(Text(sign, style=style), check.name, detail)
    console.print(table)
    verdict = ("Ready.", "bold green") if able else ("Not ready: see ✗ above.", "bold red")
    console.print(Text.assemble("\n", verdict, f"  ({sys.executable})"))
