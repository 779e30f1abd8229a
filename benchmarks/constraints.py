"""Answers held to a schema: whether they are of it, whether masks survive rewinds, and what a mask costs.

- ``schemas``: so many random JSON Schemas (``tests/support/random_schemas.py``), each asked of the reference pair in
  three modes, one at a time and batched, greedy and sampled in turn. Every whole answer is parsed and checked by the
  package jsonschema, formats included; an answer that reached its limit of tokens says nothing.
- ``rewinds``: masks behind random cuts of random answers, against those of matchers that read each answer from its
  beginning, in the vocabulary of the reference pair.
- ``suite``, with its folder: the JSON-Schema-Test-Suite (https://github.com/json-schema-org/JSON-Schema-Test-Suite, or
  the folder ``json`` of the package jsonschema's source). Each schema that is not refused is asked of the reference
  pair, and judges the suite's own values: what is invalid has to be refused by the grammar as well.
- ``overhead``, with a model's file: what a constraint adds to a step (what is forced, the mask, its place in the row's
  reduction) over the positions of one long answer, beside that model's own step.

    python benchmarks/constraints.py --count 1000 --seed 1 --rewinds 10000 --model models/qwen-0.5b.gguf
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np

from fsgen_router import InvalidRequest, Router, reference
from fsgen_router.adapters.llama_cpp import LlamaCppModel
from fsgen_router.constraints import GrammarVocabulary, make_constraint
from fsgen_router.contracts.models import Work
from fsgen_router.reference import world
from fsgen_router.rows.reading import Mask, Read, Scratch, reduce_row
from fsgen_router.rows.signals import TOP_K

from common import RESULTS, save

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from random_schemas import random_schemas

MODES = {"never": ("never", None), "every:4, verify": ("every:4", "verify"), "always": ("always", "replace")}
MAX_TOKENS = 160
DRAFTS = {
    "draft4": jsonschema.Draft4Validator,
    "draft6": jsonschema.Draft6Validator,
    "draft7": jsonschema.Draft7Validator,
    "draft2019-09": jsonschema.Draft201909Validator,
    "draft2020-12": jsonschema.Draft202012Validator,
}


def ask(
    router: Router,
    schema: dict[str, Any],
    mode: tuple[str, str | None],
    number: int,
    prompt: str,
    draft: str = "draft2020-12",
) -> Counter[str]:
    """What came of one answer, and how many of its tokens were forced."""
    policy, method = mode
    wanted = {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}}
    options = {"temperature": float(number % 2), "seed": number, "max_tokens": MAX_TOKENS}
    try:
        answer = router.complete(prompt, response_format=wanted, policy=policy, method=method, **options)
    except InvalidRequest as error:
        print("refused", json.dumps(schema), error, file=sys.stderr)
        return Counter(refused=1)
    found = Counter(answers=1, tokens=answer.usage.tokens, forced=answer.usage.forced)
    if answer.finish_reason != "eog":
        return found + Counter(cut_off=1)
    checker = DRAFTS[draft](schema, format_checker=DRAFTS[draft].FORMAT_CHECKER)
    try:
        valid = checker.is_valid(json.loads(answer.text))
    except ValueError:
        valid = False
    if not valid:
        print("invalid", json.dumps(schema), repr(answer.text), file=sys.stderr)
    return found + Counter(whole=1, invalid=not valid)


def schemas(count: int, seed: int) -> dict[str, Any]:
    drawn = random_schemas(count, number=seed)
    prompts = [problem.prompt for problem in world.problems("test", 100)]
    figures: dict[str, Any] = {"count": len(drawn), "max_tokens": MAX_TOKENS}
    fast, slow = reference.load("fast"), reference.load("slow")
    for batching in (False, True):
        with Router(fast, slow, policy="never", batching=batching) as router:
            for name, mode in MODES.items():
                cases = [(router, schema, mode, at, prompts[at % len(prompts)]) for at, schema in enumerate(drawn)]
                with ThreadPoolExecutor(4 if batching else 1) as threads:
                    found = sum(threads.map(lambda case: ask(*case), cases), Counter[str]())
                keys = ("answers", "whole", "invalid", "cut_off", "refused", "tokens", "forced")
                figures[f"{name}{', batched' * batching}"] = {key: found[key] for key in keys}
    for model in (fast, slow):
        model.shutdown()
    return figures


def suite(folder: Path) -> dict[str, Any]:
    """The required tests of each draft."""
    fast, slow = reference.load("fast"), reference.load("slow")
    words, counts, answers = GrammarVocabulary(fast.tokenizer), Counter[str](), Counter[str]()
    loose_ends: list[str] = []
    with Router(fast, slow, policy="never") as router:
        for path in sorted(folder.glob("tests/draft[2467]*/*.json")):
            for group in json.loads(path.read_text()):
                schema = group["schema"]
                if not isinstance(schema, dict):
                    continue
                counts["schemas"] += 1
                try:
                    constraint = make_constraint(words, schema=schema, any_layout=True)
                except InvalidRequest:
                    counts["refused"] += 1
                    continue
                for test in group["tests"]:
                    verdict = "valid" if test["valid"] else "invalid"
                    takes = _takes(constraint, words, fast.tokenizer, test["data"])
                    counts[f"{verdict}_values"] += 1
                    counts[f"{verdict}_values_accepted"] += takes
                    if takes and not test["valid"]:
                        loose_ends.append(f"{path.parent.name}/{path.name}: {group['description']}")
                answers += ask(
                    router, schema, MODES["every:4, verify"], counts["schemas"], "The value in JSON: ", path.parent.name
                )
    for model in (fast, slow):
        model.shutdown()
    keys = ("answers", "whole", "invalid", "cut_off")
    held = {"every:4, verify": {key: answers[key] for key in keys}}
    return {**counts, "invalid_values_accepted_in": loose_ends, **held}


def _takes(constraint: Any, words: GrammarVocabulary, tokenizer: Any, value: Any) -> bool:
    ids = tokenizer.encode(json.dumps(value, ensure_ascii=False), add_bos=False)
    if constraint.accepted([], ids) < len(ids):
        return False
    return bool(constraint.mask(ids).allowed[[*words.eog_ids]].any())


def rewinds(cases: int, seed: int) -> dict[str, int]:
    """Random walks in grammars of random schemas, cut at random, across the end of an answer too."""
    model = reference.load("fast")
    words, rng, unequal, done = GrammarVocabulary(model.tokenizer), random.Random(seed), 0, 0
    drawn = random_schemas(100, number=seed)
    while done < cases:
        schema, ids = rng.choice(drawn), list[int]()
        constraint = make_constraint(words, schema=schema)
        for _ in range(min(100, cases - done)):
            allowed = np.flatnonzero(constraint.mask(ids).allowed)
            if rng.random() < 0.3 or not len(allowed) or (ids and ids[-1] in words.eog_ids):
                del ids[rng.randrange(len(ids) + 1) :]
            else:
                ids.append(int(rng.choice(allowed)))
            if rng.random() < 0.2:
                constraint.forced(ids)
            fresh = make_constraint(words, schema=schema)
            unequal += not (constraint.mask(ids).allowed == fresh.mask(ids).allowed).all()
            done += 1
    model.shutdown()
    return {"cases": done, "unequal": unequal}


def overhead(path: Path, threads: int, seed: int) -> dict[str, Any]:
    """Milliseconds of a step with and without a constraint: at each position of one answer, of some 400 tokens."""
    model = LlamaCppModel(path, n_ctx=1024, n_seq=1, n_threads=threads)
    item = {
        "type": "object",
        "properties": {
            "title": {"type": "string"},
            "price": {"type": "number", "minimum": 0},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 20}},
            "kind": {"enum": ["book", "record", "film"]},
        },
        "required": ["title", "price", "tags", "kind"],
        "additionalProperties": False,
    }
    one = {"title": "A long way home, and back", "price": 12.5, "tags": ["travel", "memoir"], "kind": "book"}
    text = json.dumps([{**one, "title": f"{one['title']} ({number})"} for number in range(8)])
    ids = model.tokenizer.encode(text, add_bos=False)
    began = time.perf_counter()
    words = GrammarVocabulary(model.tokenizer)
    make_constraint(words, schema={"type": "array", "items": item})
    tree = time.perf_counter() - began
    began = time.perf_counter()
    constraint = make_constraint(words, schema={"type": "array", "items": item})
    again = time.perf_counter() - began
    row = np.random.default_rng(seed).normal(0, 3, words.n_vocab).astype(np.float32)
    scratch = Scratch()
    masked, free = [], []
    for at in range(len(ids)):
        began = time.perf_counter()
        reduce_row(row, Read(signals=True, top_k=TOP_K), scratch)
        between = time.perf_counter()
        constraint.forced(ids[:at])
        mask: Mask = constraint.mask(ids[:at])
        mask.forced()
        reduce_row(row, Read(signals=True, top_k=TOP_K, mask=constraint.mask(ids[:at])), scratch)
        masked.append(time.perf_counter() - between)
        free.append(between - began)
    added = [with_it - without for with_it, without in zip(masked, free, strict=True)]
    sequence, steps = model.open(ids).sequence, []
    for at, token in enumerate(ids[:60]):
        began = time.perf_counter()
        model.forward([Work(sequence, at, [token], [(0, Read(signals=True, top_k=TOP_K))])])
        steps.append(time.perf_counter() - began)
    model.close(sequence)
    model.shutdown()
    step = statistics.median(steps[5:])
    return {
        "model": path.name,
        "n_vocab": words.n_vocab,
        "threads": threads,
        "positions": len(ids),
        "first_grammar_ms": round(1e3 * tree, 1),
        "same_grammar_again_ms": round(1e3 * again, 3),
        "added_ms": {
            "mean": round(1e3 * statistics.mean(added), 3),
            "p99": round(1e3 * float(np.quantile(added, 0.99)), 3),
        },
        "step_ms": round(1e3 * step, 2),
        "share_of_step": round(statistics.mean(added) / step, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="random schemas")
    parser.add_argument("--rewinds", type=int, default=10_000, help="masks that are compared")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--suite", type=Path, help="the folder of the JSON-Schema-Test-Suite")
    parser.add_argument("--model", type=Path, help="a GGUF file with a large vocabulary, whose step is timed")
    parser.add_argument("--threads", type=int, default=2, help="of that model")
    args = parser.parse_args()
    kept = ("schemas", "rewinds", "suite", "overhead")  # parts that this run leaves out
    before = json.loads(path.read_text()) if (path := RESULTS / "constraints.json").exists() else {}
    figures: dict[str, Any] = {"seed": args.seed} | {part: before[part] for part in kept if part in before}
    if args.count:
        figures["schemas"] = schemas(args.count, args.seed)
    if args.rewinds:
        figures["rewinds"] = rewinds(args.rewinds, args.seed)
    if args.suite is not None:
        figures["suite"] = suite(args.suite)
    if args.model is not None:
        figures["overhead"] = overhead(args.model, args.threads, args.seed)
    save("constraints", figures)


if __name__ == "__main__":
    main()
