"""What errors and reports advise: it names what exists, and works where it is said."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import scripted_pairs
import typer

from fsgen_router import Budget, InvalidRequest, MachinePrice, Prices, RequestOptions, Router
from fsgen_router.adapters.llama_cpp import LlamaCppOptions
from fsgen_router.adapters.openai import OpenAIOptions
from fsgen_router.adapters.tokens import TokensOptions
from fsgen_router.adapters.transformers import TransformersOptions
from fsgen_router.calibration import CalibrationOptions
from fsgen_router.cli import app
from fsgen_router.resolve import make_model
from fsgen_router.support import options

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for room in ("fsgen_router", "adapters", "policies") for path in (ROOT / room).rglob("*.py"))
ROUTER = set(inspect.signature(Router).parameters)
BACKENDS = (LlamaCppOptions, TransformersOptions, OpenAIOptions, TokensOptions)
MODELS = {name for model in BACKENDS for name in model.model_fields}


def test_whose_an_option_is_is_known() -> None:
    """The lists that hints are made from are those of the real parts."""
    assert set(options.OF_ROUTER) | {"seed"} == ROUTER
    first_the_routers = {"budget", "policy", "method"}
    assert set(options.OF_REQUEST) == set(RequestOptions.model_fields) - first_the_routers
    assert set(options.OF_MODEL) == MODELS - {"chat_template_kwargs"}  # a request's first
    assert set(options._ELSEWHERE.values()) <= {*options.OF_REQUEST, *options.OF_MODEL}


@pytest.mark.parametrize(
    ("said", "advised"),
    [
        ("audit", "it is the Router's: Router(..., audit=...)"),
        ("prices", "it is the Router's"),
        ("read_ahead", "it is the Router's"),
        ("n_ctx", "it is a model's: 'backend:where?n_ctx=...'"),
        ("num_ctx", "it is a model's: 'backend:where?n_ctx=...'"),
        ("max_completion_tokens", "did you mean 'max_tokens'?"),
        ("max_new_tokens", "did you mean 'max_tokens'?"),
        ("n_predict", "did you mean 'max_tokens'?"),
        ("stop_token_ids", "did you mean 'stop_tokens'?"),
        ("stop_sequences", "did you mean 'stop'?"),
        ("max_tokns", "did you mean 'max_tokens'?"),
    ],
)
def test_an_option_of_a_request_that_is_none(said: str, advised: str) -> None:
    models = scripted_pairs.pair(3)
    with Router(models.fast, models.slow) as router, pytest.raises(InvalidRequest) as refused:
        router.complete("a", **{said: 1})
    assert refused.value.hint.startswith(advised)
    assert "max_slow_tokens" not in refused.value.hint.partition("available")[0]


def test_an_option_of_a_model_that_is_none() -> None:
    for said, advised in (
        ("temperature", "it is a request's"),
        ("audit", "it is the Router's"),
        ("ngl", "did you mean"),
    ):
        with pytest.raises(options.ConfigurationError) as refused:
            make_model(f"reference:fast?{said}=1")
        assert refused.value.hint.startswith(advised), refused.value.hint


def advice() -> Iterator[tuple[str, str]]:
    """(where, text) of every hint in the sources, whatever is put into it left out."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            named = isinstance(node, ast.keyword) and node.arg == "hint"
            if named or (isinstance(node, ast.Assign) and "hint" in ast.unparse(node.targets[0]).lower()):
                texts = [
                    part.value
                    for part in ast.walk(node.value)
                    if isinstance(part, ast.Constant) and isinstance(part.value, str)
                ]
                yield f"{path.name}:{node.value.lineno}", " ".join(texts)


def commands(group: typer.core.TyperGroup) -> Iterator[str]:
    for command in group.commands.values():
        if isinstance(command, typer.core.TyperGroup):
            yield from commands(command)
        else:
            yield from (name for parameter in command.params for name in parameter.opts)


def test_advice_names_options_that_exist() -> None:
    known = ROUTER | MODELS | set(RequestOptions.model_fields) | set(CalibrationOptions.model_fields)
    known |= {field.name for record in (Prices, MachinePrice) for field in dataclasses.fields(record)}
    known |= set(inspect.signature(Budget).parameters)
    # Of certify(), of a method's and of a policy's short forms.
    known |= {"at", "bound", "draft", "draft_len", "else", "max", "near_best", "span", "token", "window"}
    others = {"CMAKE_ARGS", "DGGML_CUDA", "DGGML_METAL", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "errors"}
    flags = set(commands(typer.main.get_command(app)))
    flags |= {
        "--force-reinstall",
        "--no-cache-dir",
        "--no-deps",
        "--preload",
        "--merge",
        "--enable-scale-out",
        "--enable-prompt-tokens-details",
    }  # pip's, gunicorn's, llama.cpp's, vLLM's
    seen = 0
    for where, text in advice():
        for name in re.findall(r"\b([A-Za-z_]+)=", text):
            seen += 1
            assert name in known | others, f"{where}: {name} in {text!r}"
        for flag in re.findall(r"(?<!\w)--[a-z][\w-]+", text):
            seen += 1
            assert flag in flags, f"{where}: {flag} in {text!r}"
    assert seen > 15


def test_what_a_report_advises_works(fast_model: object, slow_model: object) -> None:
    with Router(fast_model, slow_model, policy="every:4") as router:
        report = router.complete("lamp", max_tokens=8).report()
    assert "Router(audit=1.0)" in report.fsgen["note"]
    with Router(fast_model, slow_model, policy="every:4", audit=1.0) as router:
        report = router.complete("lamp", max_tokens=8).report()
    assert report.usage.disagreement_rate is not None
    assert "unknown" not in report.fsgen["note"]
