"""Answers held to a schema on real models: valid whoever writes, one at a time and batched."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import tiny_transformers
from endpoints import native_server, real_server
from pydantic import BaseModel, Field
from random_schemas import random_schemas
from typer.testing import CliRunner

from fsgen_router import Generation, Router, reference
from fsgen_router.adapters.llama_cpp import LlamaCppModel
from fsgen_router.cli import app
from fsgen_router.constraints import GrammarVocabulary, make_constraint
from fsgen_router.contracts.models import TokenModel
from fsgen_router.resolve import make_model

pytest.importorskip("llguidance", reason="the extra 'constrain' is not installed")

MODES = [("never", None), ("every:4", "verify"), ("always", "replace"), ("budget:0.2", "verify")]


def asked(schema: dict[str, Any]) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}}}


def is_valid(answer: Generation, schema: dict[str, Any]) -> bool:
    """Whether a whole answer is of its schema; one that was cut off says nothing."""
    if answer.finish_reason != "eog":
        assert answer.parsed is None
        return False
    value = json.loads(answer.text)
    assert value == answer.parsed
    checker = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
    assert checker.is_valid(value), (schema, answer.text)
    return True


@pytest.mark.parametrize("batching", [False, True])
def test_random_schemas_are_kept_whoever_writes(fast_model: TokenModel, slow_model: TokenModel, batching: bool) -> None:
    """Greedy and sampled; `benchmarks/constraints.py` asks for a thousand."""
    schemas = random_schemas(12, number=3)
    cases = [(schema, *mode, number) for number, schema in enumerate(schemas) for mode in MODES]
    with Router(fast_model, slow_model, policy="never", batching=batching) as router:

        def ask(case: tuple[dict[str, Any], str, str | None, int]) -> bool:
            schema, policy, method, number = case
            temperature = 1.0 if number % 2 else 0.0
            options = asked(schema) | {"temperature": temperature, "seed": number, "max_tokens": 80}
            answer = router.complete("How many apples does Ada have?", policy=policy, method=method, **options)
            return is_valid(answer, schema)

        with ThreadPoolExecutor(4 if batching else 1) as threads:
            whole = list(threads.map(ask, cases))
    assert sum(whole) > len(whole) / 3


class Bill(BaseModel):
    item: str = Field(max_length=20)
    count: int = Field(ge=0, le=99)
    paid: bool


def test_exact_verification_is_the_slow_models_own_answer(fast_model: TokenModel, slow_model: TokenModel) -> None:
    """Under a schema too: what is forced costs neither of them a forward."""
    with Router(fast_model, slow_model, policy="every:4", method="verify", batching=False) as router:
        for prompt in ("Ada buys 3 apples.", "Juniper has 12 figs and gives away 5.", "Who is the baker?"):
            answer = router.complete(prompt, response_format=Bill, max_tokens=60, baseline=True)
            assert answer.baseline is not None
            assert answer.text == answer.baseline.text
            assert isinstance(answer.parsed, Bill)
            assert answer.baseline.parsed == answer.parsed
            assert answer.usage.forced == answer.baseline.usage.forced > 10
            assert answer.usage.decisions <= answer.usage.tokens - answer.usage.forced + answer.usage.discarded_tokens
            assert answer.report().to_dict()["usage"]["forced"] == answer.usage.forced


def test_a_conversation_is_held_to_a_schema_too(fast_model: TokenModel, slow_model: TokenModel) -> None:
    with Router(fast_model, slow_model, policy="every:4") as router:
        events = list(router.stream_chat([{"role": "user", "content": "3 apples?"}], response_format=Bill))
        assert isinstance(events[-1].generation.parsed, Bill)
        shown = "".join(event.text for event in events[:-1])
        assert shown == events[-1].generation.text


@pytest.fixture(scope="module")
def tiny() -> Iterator[TokenModel]:
    model = make_model(f"transformers:{tiny_transformers.saved('llama')}?device=cpu")
    yield model
    model.shutdown()


def vocabularies(tiny: TokenModel, fast_model: TokenModel) -> list[TokenModel]:
    return [fast_model, tiny]


def check_rewinds(words: GrammarVocabulary, schema: dict[str, Any], steps: int, number: int) -> None:
    """Masks after random cuts against those of a matcher that reads each answer from its beginning."""
    rng, constraint, ids = random.Random(number), make_constraint(words, schema=schema), list[int]()
    for _ in range(steps):
        allowed = np.flatnonzero(constraint.mask(ids).allowed)
        if rng.random() < 0.2 or set(allowed) <= words.eog_ids:
            del ids[rng.randrange(len(ids) + 1) :]
        else:
            ids.append(int(rng.choice(allowed)))
            if ids[-1] in words.eog_ids:
                ids.pop()
        fresh = make_constraint(words, schema=schema)
        assert (constraint.mask(ids).allowed == fresh.mask(ids).allowed).all()


@pytest.mark.parametrize("which", ["reference", "transformers"])
def test_masks_after_rewinds_on_vocabularies_of_backends(which: str, fast_model: TokenModel, tiny: TokenModel) -> None:
    words = GrammarVocabulary((fast_model if which == "reference" else tiny).tokenizer)
    for number, schema in enumerate(random_schemas(8, number=5)):
        check_rewinds(words, schema, 30, number)


def test_transformers_keeps_a_schema(tiny: TokenModel) -> None:
    other = make_model(f"transformers:{tiny_transformers.saved('qwen2')}?device=cpu")
    try:
        with Router(tiny, other, policy="every:3", method="verify") as router:
            answer = router.complete("lamp", response_format=Bill, max_tokens=90, seed=1, temperature=1.0)
            assert isinstance(answer.parsed, Bill) or answer.finish_reason == "length"
            assert router.complete("lamp", regex="(lamp|rope){3}").text in {
                a + b + c for a in ("lamp", "rope") for b in ("lamp", "rope") for c in ("lamp", "rope")
            }
    finally:
        other.shutdown()


def test_the_command_line_takes_a_form(tmp_path: Path) -> None:
    schema, grammar, broken = (tmp_path / name for name in ("bill.json", "sum.gbnf", "broken.json"))
    schema.write_text(json.dumps(Bill.model_json_schema() | {"additionalProperties": False}), encoding="utf-8")
    grammar.write_text('root ::= ("größe" | "rope") "s"', encoding="utf-8")
    broken.write_text("{", encoding="utf-8")
    run = CliRunner().invoke
    found = run(app, ["complete", "--json-schema", str(schema), "--json", "3 apples?"])
    answer = json.loads(found.stdout)
    assert set(json.loads(answer["text"])) == {"item", "count", "paid"}
    assert answer["usage"]["forced"] > 5
    assert run(app, ["complete", "--regex", "[ab]{3}", "x"]).stdout.strip() in {
        "".join(t) for t in product("ab", repeat=3)
    }
    talked = run(app, ["chat", "--grammar", str(grammar)], input="Which?\n")
    assert talked.stdout.strip() in ("größes", "ropes")
    for options, said in (
        (["--json-schema", str(broken)], "is no JSON"),
        (["--grammar", str(tmp_path / "none")], "cannot be read: No such file"),
        (["--regex", "(a"], "unclosed group"),
        (["--regex", "a", "--grammar", str(grammar)], "regex and grammar at once"),
    ):
        failed = run(app, ["complete", *options, "x"])
        assert failed.exit_code == 2
        assert said in " ".join(failed.stderr.split())


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The reference pair's slow model behind two real servers: one takes a schema, one knows JSON alone."""
    folder = tmp_path_factory.mktemp("servers")
    path = reference.path("slow")
    with native_server(folder, path) as native, real_server(folder, {"slow": path}) as python:
        yield {"native": native.url, "python": python.url}


@pytest.mark.parametrize("which", ["native", "python"])
@pytest.mark.parametrize("policy", ["always,span=rest", "every:6,span=rest,draft=drop", "every:6,span=rest"])
def test_a_real_server_keeps_a_schema_or_is_gone_on_from(
    which: str, policy: str, served: dict[str, str], fast_model: TokenModel
) -> None:
    ask = [{"role": "user", "content": "How many coins do 3 lamps and 4 ropes cost in Norvale?"}]
    slow = make_model(f"openai:slow@{served[which]}?probe=first&max_retries=0")
    try:
        with Router(fast_model, slow, policy=policy) as router:
            answer = router.chat(ask, response_format=Bill, max_tokens=300)
        assert isinstance(answer.parsed, Bill), (answer, answer.degraded)
        if which == "native" and policy != "every:6,span=rest":  # told the form, and whole answers only
            assert (answer.degraded, answer.usage.slow_token_share) == (None, 1.0)
        else:
            assert "form that was asked for" in str(answer.degraded)
    finally:
        slow.shutdown()


@pytest.mark.skipif("FSGEN_REAL_MODELS" not in os.environ, reason="FSGEN_REAL_MODELS names no folder of real models")
@pytest.mark.parametrize("name", ["qwen-0.5b", "smollm2-135m", "gemma3-270m"])
def test_a_real_model_answers_in_json(name: str) -> None:
    path = Path(os.environ["FSGEN_REAL_MODELS"]) / f"{name}.gguf"
    if not path.exists():
        pytest.skip(f"FSGEN_REAL_MODELS has no {path.name}")
    models = [LlamaCppModel(path, n_ctx=512, n_seq=1, n_threads=1) for _ in range(2)]
    try:
        with Router(*models, policy="every:6", method="verify", batching=False) as router:
            answer = router.complete("A bill for three green apples, paid. As JSON: ", response_format=Bill)
            assert isinstance(answer.parsed, Bill)
            assert answer.text == json.dumps(json.loads(answer.text), ensure_ascii=False)
    finally:
        for model in models:
            model.shutdown()
