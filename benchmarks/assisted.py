"""Exact ``verify`` against transformers' own assisted generation, on the same modules and the same prompts.

Each contender first finds its best draft length among 2, 4, 8 and 16 on prompts of their own; then they
take turns, one prompt at a time. Tokens per second, and paired ratios by prompt; above 1 the Router is
faster. Two parts:

* the reference pair (F32) through transformers: the Router with ``verify:exact`` and ``every:K``, against
  ``generate(assistant_model=...)`` with a constant schedule of K and no confidence threshold; beside them
  the Router with both models in llama.cpp, and ``generate`` with the slow model alone. All have to write
  the slow model's greedy tokens; where one does not, the gap between its two best logits is shown.
* a real shape (Qwen2.5-0.5B and a tenth of it, 32k vocabulary, random weights), with given acceptance
  rates: a hook on either module, behind its real forward, puts a script's next token on top of every row,
  and another token on a share of the draft's rows. Both contenders run these very modules, so they accept
  the same drafts at the same draft length.

    python benchmarks/assisted.py --prompts 200
"""

from __future__ import annotations

import argparse
import random
import string
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from fsgen_router import Generation, Router, reference
from fsgen_router.adapters.transformers import TransformersModel
from fsgen_router.reference import world

from common import HALF_BILLION, TENTH, block_ratio, random_model, save

DRAFT_LENGTHS = (2, 4, 8, 16)
ACCEPTANCES = (0.6, 0.8, 0.9)
VOCABULARY = 32_000
PROMPT_TOKENS = 100
SEED = 0
OURS, THEIRS, LLAMA_CPP, ALONE = "router", "assisted_generation", "router_llama_cpp", "slow_alone"


@dataclass(frozen=True)
class Question:
    prompt: str
    ids: list[int]
    max_tokens: int


@dataclass
class Tally:
    """What became of a contender's drafts and prompts, where it says so."""

    accepted: int = 0
    corrected: int = 0
    tokens: int = 0
    slow_forwards: int = 0
    prompt_tokens: int = 0
    cached: int = 0

    def clear(self) -> None:
        for name in vars(self):
            setattr(self, name, 0)

    def add(self, answer: Generation) -> None:
        self.accepted += sum(token.verified for token in answer.tokens)
        self.corrected += answer.usage.corrections
        self.tokens += answer.usage.tokens
        self.slow_forwards += answer.usage.slow_forwards
        self.prompt_tokens += answer.usage.prompt_tokens
        self.cached += answer.usage.slow.cached

    def figures(self) -> dict[str, float]:
        return {
            "acceptance": round(self.accepted / (self.accepted + self.corrected), 4),
            "tokens_per_slow_forward": round(self.tokens / self.slow_forwards, 3),
            "cached_share_of_prompts": round(self.cached / self.prompt_tokens, 4),
        }


@dataclass
class Contender:
    """Something that answers a question with drafts of a given length."""

    answer: Callable[[Question, int], Sequence[int]]
    draft_lengths: tuple[int, ...] = DRAFT_LENGTHS
    tally: Tally = field(default_factory=Tally)


def routed(router: Router) -> Contender:
    routers = {
        length: router.with_policy(f"every:{length}", method=f"verify:exact,draft_len={length}")
        for length in DRAFT_LENGTHS
    }
    tally = Tally()

    def answer(question: Question, length: int) -> list[int]:
        found = routers[length].complete(question.prompt, max_tokens=question.max_tokens)
        tally.add(found)
        return [token.id for token in found.tokens]

    return Contender(answer, tally=tally)


def assisted(fast: Any, slow: Any, eog_ids: frozenset[int]) -> Contender:
    """transformers' own loop; ``fast`` None: the slow model alone."""

    def answer(question: Question, length: int) -> list[int]:
        if fast is not None:
            # Assisted generation takes these from the assistant's own configuration.
            fast.generation_config.num_assistant_tokens = length
            fast.generation_config.num_assistant_tokens_schedule = "constant"
            fast.generation_config.assistant_confidence_threshold = 0
        ids = torch.tensor([question.ids], device=slow.device)
        found = slow.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            assistant_model=fast,
            do_sample=False,
            max_new_tokens=question.max_tokens,
            eos_token_id=sorted(eog_ids),
            pad_token_id=min(eog_ids),
        )
        return list(found[0, len(question.ids) :].tolist())

    return Contender(answer, DRAFT_LENGTHS if fast is not None else (0,))


def compete(
    contenders: dict[str, Contender], search: Sequence[Question], questions: Sequence[Question]
) -> tuple[dict[str, Any], dict[str, list[list[int]]]]:
    """Each contender's best draft length, by ``search``; then its times on ``questions``, in turns."""

    def speed(name: str, question: Question, length: int) -> tuple[float, list[int]]:
        began = time.perf_counter()
        ids = contenders[name].answer(question, length)
        return len(ids) / (time.perf_counter() - began), list(ids)

    tried = {(name, length): [] for name, contender in contenders.items() for length in contender.draft_lengths}
    for turn in range(len(search) + 1):
        for offset, ((name, length), speeds) in enumerate(tried.items()):
            # Not the question before, whose beginning the Router's models still hold.
            found, _ = speed(name, search[(turn + offset) % len(search)], length)
            if turn:  # the first one warms up
                speeds.append(found)
    medians = {way: sorted(speeds)[len(speeds) // 2] for way, speeds in tried.items()}
    best = {
        name: max(contender.draft_lengths, key=lambda length, name=name: medians[name, length])
        for name, contender in contenders.items()
    }
    for contender in contenders.values():
        contender.tally.clear()
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    answers: dict[str, list[list[int]]] = {name: [] for name in contenders}
    names = list(contenders)
    for number, question in enumerate(questions):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            found, ids = speed(name, question, best[name])
            speeds[name].append(found)
            answers[name].append(ids)
    figures = {
        "prompts": len(questions),
        "draft_length": {name: length for name, length in best.items() if length},
        "tokens_per_second": {name: round(sorted(found)[len(found) // 2], 1) for name, found in speeds.items()},
        "tokens_per_second_by_draft_length": {
            name: {str(length): round(medians[name, length], 1) for length in contender.draft_lengths}
            for name, contender in contenders.items()
        },
        **{
            f"{name}_over_assisted_generation": block_ratio(speeds[name], speeds[THEIRS])
            for name in names
            if name != THEIRS
        },
        "drafts": {name: c.tally.figures() for name, c in contenders.items() if c.tally.tokens},
    }
    return figures, answers


# --- the reference pair --------------------------------------------------------------------------


def reference_part(args: argparse.Namespace) -> dict[str, Any]:
    options = {"device": "cpu", "dtype": "float32", "n_ctx": 512, "n_threads": args.threads}
    fast, slow = (TransformersModel(reference.path(which), **options) for which in ("fast", "slow"))
    native = [reference.load(which, n_seq=1, n_threads=args.threads) for which in ("fast", "slow")]
    eog_ids = slow.tokenizer.eog_ids | fast.tokenizer.eog_ids
    contenders = {
        OURS: routed(Router(fast=fast, slow=slow, policy="never")),
        THEIRS: assisted(fast._model, slow._model, eog_ids),
        LLAMA_CPP: routed(Router(fast=native[0], slow=native[1], policy="never")),
        ALONE: assisted(None, slow._model, eog_ids),
    }
    problems = world.problems("test", args.prompts + args.search)
    questions = [
        Question(problem.prompt, slow.tokenizer.encode(problem.prompt, add_bos=True), args.tokens)
        for problem in problems
    ]
    figures, answers = compete(contenders, questions[: args.search], questions[args.search :])
    return figures | {"differences": differences(slow, questions[args.search :], answers)}


def differences(
    slow: TransformersModel, questions: Sequence[Question], answers: dict[str, list[list[int]]]
) -> dict[str, Any]:
    """Answers that are not the slow model's own, with its gap in logits where they part: next to 0 is a tie."""
    found: dict[str, Any] = {}
    for name in answers:
        gaps = [
            gap_at(slow, question.ids + expected[: _parting(ids, expected)])
            for question, ids, expected in zip(questions, answers[name], answers[ALONE], strict=True)
            if ids != expected
        ]
        found[name] = {"count": len(gaps), "gaps": [round(gap, 6) for gap in gaps]}
    return found


def _parting(ids: Sequence[int], others: Sequence[int]) -> int:
    pairs = enumerate(zip(ids, others, strict=False))
    return next((index for index, (one, other) in pairs if one != other), min(len(ids), len(others)))


def gap_at(model: TransformersModel, ids: Sequence[int]) -> float:
    with torch.inference_mode():
        best = model._model(torch.tensor([ids], device=model.device)).logits[0, -1].float().topk(2).values
    return float(best[0] - best[1])


# --- a real shape with given acceptance rates ----------------------------------------------------


class Script:
    """What the slow model writes, and what the fast one drafts: by position, prompt included."""

    def __init__(self, fast: Any, slow: Any) -> None:
        self.said: dict[str, torch.Tensor] = {}
        for role, module in (("fast", fast), ("slow", slow)):
            module.register_forward_hook(self._put_on_top(role), with_kwargs=True)

    def write(self, ids: Sequence[int], length: int, acceptance: float, seed: int) -> None:
        """Another script: ``length`` tokens behind the prompt ``ids``."""
        rng = random.Random(seed)
        written = [*ids, *(rng.randrange(1000, VOCABULARY - 2) for _ in range(length))]
        drafted = [token if rng.random() < acceptance else token + 1 for token in written]
        self.said = {"slow": torch.tensor(written), "fast": torch.tensor(drafted)}

    def _put_on_top(self, role: str) -> Callable[..., None]:
        def hook(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            if not self.said:
                return
            rows = output.logits[0]
            said = self.said[role].to(rows.device)
            wanted = said[kwargs["position_ids"][0, -len(rows) :] + 1]
            rows[torch.arange(len(rows), device=rows.device), wanted] = 1e3

        return hook


def real_shape_part(args: argparse.Namespace) -> dict[str, Any]:
    large = TENTH if args.quick else HALF_BILLION
    small = replace(TENTH, layers=2) if args.quick else TENTH
    options = {"device": args.device, "dtype": args.dtype, "n_ctx": 512, "n_threads": args.threads}
    fast, slow = (
        TransformersModel(
            random_model(replace(shape, name=f"{shape.name}-{shape.layers}-32k", vocabulary=VOCABULARY)), **options
        )
        for shape in (small, large)
    )
    script = Script(fast._model, slow._model)
    router = Router(fast=fast, slow=slow, policy="never")
    total = args.shape_search + args.shape_prompts
    rng = random.Random(SEED)
    # A letter is a token there, whatever stands beside it.
    prompts = ["".join(rng.choices(string.ascii_lowercase, k=PROMPT_TOKENS)) for _ in range(total)]
    questions = [Question(prompt, slow.tokenizer.encode(prompt, add_bos=True), args.shape_tokens) for prompt in prompts]
    numbers = {question.prompt: number for number, question in enumerate(questions)}

    def scripted(contender: Contender, acceptance: float) -> Contender:
        def answer(question: Question, length: int) -> Sequence[int]:
            ahead = question.max_tokens + max(DRAFT_LENGTHS)
            script.write(question.ids, ahead, acceptance, seed=numbers[question.prompt])
            return contender.answer(question, length)

        return replace(contender, answer=answer)

    figures: dict[str, Any] = {}
    for acceptance in args.acceptance:
        plain = {
            OURS: routed(router),
            THEIRS: assisted(fast._model, slow._model, slow.tokenizer.eog_ids),
            ALONE: assisted(None, slow._model, slow.tokenizer.eog_ids),
        }
        contenders = {name: scripted(contender, acceptance) for name, contender in plain.items()}
        found, answers = compete(contenders, questions[: args.shape_search], questions[args.shape_search :])
        assert answers[OURS] == answers[THEIRS] == answers[ALONE]
        figures[f"{acceptance:g}"] = found
    device = torch.cuda.get_device_name(slow.device) if slow.device.type == "cuda" else str(slow.device)
    about = {"slow": f"{slow.n_params / 1e6:.0f}M", "fast": f"{fast.n_params / 1e6:.0f}M", "dtype": args.dtype}
    return about | {"device": device, "tokens": args.shape_tokens, "acceptance": figures}


PARTS = {"reference_pair": reference_part, "real_shape": real_shape_part}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=200, help="reference pair (default: %(default)s)")
    parser.add_argument("--search", type=int, default=20, help="prompts to find draft lengths on")
    parser.add_argument("--tokens", type=int, default=128, help="per answer at most")
    parser.add_argument("--shape-prompts", type=int, default=10, help="real shape (default: %(default)s)")
    parser.add_argument("--shape-search", type=int, default=4)
    parser.add_argument("--shape-tokens", type=int, default=24)
    parser.add_argument("--acceptance", type=float, nargs="*", default=ACCEPTANCES)
    parser.add_argument("--device", default="cpu", help="of the real shape")
    parser.add_argument("--dtype", default="float32", help="of the real shape")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--part", choices=PARTS, action="append", help="only this (default: both)")
    parser.add_argument("--quick", action="store_true", help="a small shape and few prompts, to try the script out")
    args = parser.parse_args()
    if args.quick:
        args.prompts, args.search, args.shape_prompts, args.shape_search = 24, 4, 6, 2
    for part in args.part or PARTS:
        figures = {"script": "benchmarks/assisted.py", "threads": args.threads, "seed": SEED}
        save(f"assisted_{part}", figures | PARTS[part](args))


if __name__ == "__main__":
    main()
