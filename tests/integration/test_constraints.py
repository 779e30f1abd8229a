"""Answers held to a schema on real models: valid whoever writes, one at a time and batched."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import tiny_transformers
from pydantic import BaseModel, Field
from random_schemas import random_schemas

from fsgen_router import Generation, Router
from fsgen_router.adapters.llama_cpp import LlamaCppModel
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
