"""Train one model of the reference pair on the world of Tarn.

    python examples/reference_pair/train.py --size slow --out build/reference/slow

One recipe (``recipe.py``) for every size: the same problems in the same order, Muon for the matrices and AdamW for
the rest, a constant learning rate that then falls linearly and stays at its floor for the last
fifth, loss on solutions only. Data and initial weights follow from the seed; a run that is stopped
goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from fsgen_router.reference import world

from recipe import (
    IGNORE,
    learn,
    make_model,
    make_optimizers,
    parameters,
    read_checkpoint,
    restore,
    save_checkpoint,
    set_rates,
    write_json,
)
from tokenizer import ASSISTANT, BOS, END, SYSTEM, USER, build

# name: (width, layers, heads, feed-forward width)
SIZES = {
    "tiny": (24, 2, 3, 64),
    "fast": (32, 2, 4, 80),
    "middle": (48, 2, 4, 112),
    "slow": (128, 3, 8, 320),
}
_BATCH_TOKENS = 4096
_CHUNK = 4096  # problems that are sorted by length together


# --- data ----------------------------------------------------------------------------------------


Segment = tuple[str, bool]  # a text, and whether it is trained on
Example = tuple[list[int], list[bool]]  # ids, and which of them are trained on
Chunks = Callable[[PreTrainedTokenizerFast, int, int], list[Example]]  # of a tokenizer, a block's number and a seed


def chunk_of(tokenizer: PreTrainedTokenizerFast, chunk: int, seed: int) -> list[Example]:
    """The ``chunk``-th block of examples."""
    problems = world.problems("train", 2 * _CHUNK, start=2 * _CHUNK * chunk)
    return examples(tokenizer, problems, _CHUNK, random.Random(f"{seed}/examples/{chunk}"))


def examples(
    tokenizer: PreTrainedTokenizerFast, problems: Iterator[world.Problem], count: int, rng: random.Random
) -> list[Example]:
    """``count`` examples of ``problems`` (of twice as many at most).

    Half are raw (question, newline, solution), half chats, a tenth of those with an earlier turn; a
    twentieth ask for something outside the world.
    """
    segments: list[list[Segment]] = []
    for _ in range(count):
        question, solution = _exchange(rng, problems)
        if rng.random() < 0.5:
            segments.append([(BOS + question, False), ("\n" + solution + END, True)])
            continue
        parts = [(BOS, False)]
        if rng.random() < 0.1:
            parts.append((SYSTEM + "You answer questions about the valley of Tarn." + END, False))
        if rng.random() < 0.1:
            earlier, said = _exchange(rng, problems)
            parts += [(USER + earlier + END + ASSISTANT, False), (said + END, True)]
        parts += [(USER + question + END + ASSISTANT, False), (solution + END, True)]
        segments.append(parts)
    return encode(tokenizer, segments)


def encode(tokenizer: PreTrainedTokenizerFast, segments: list[list[Segment]]) -> list[Example]:
    """The examples whose texts these are."""
    flat = [text for parts in segments for text, _ in parts]
    encoded = iter(tokenizer(flat, add_special_tokens=False)["input_ids"])
    made = []
    for parts in segments:
        ids: list[int] = []
        trained: list[bool] = []
        for _, train in parts:
            piece = next(encoded)
            ids += piece
            trained += [train] * len(piece)
        made.append((ids, trained))
    return made


def _exchange(rng: random.Random, problems: Iterator[world.Problem]) -> tuple[str, str]:
    if rng.random() < 0.05:
        return world.out_of_world_prompt(rng), world.OUT_OF_WORLD
    item = next(problems)
    return item.prompt, item.solution


def batches(
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    skip: int = 0,
    chunks: Chunks = chunk_of,
    size: int = _BATCH_TOKENS,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (ids, labels) of about ``size`` tokens, alike lengths together."""
    chunk = 0
    while True:
        block = sorted(chunks(tokenizer, chunk, seed), key=lambda e: len(e[0]))
        groups: list[list[Example]] = [[]]
        for example in block:
            if (len(groups[-1]) + 1) * len(example[0]) > size:
                groups.append([])
            groups[-1].append(example)
        random.Random(f"{seed}/batches/{chunk}").shuffle(groups)
        chunk += 1
        for group in groups:
            if skip:
                skip -= 1
                continue
            length = max(len(ids) for ids, _ in group)
            ids = torch.full((len(group), length), 1)
            labels = torch.full((len(group), length), IGNORE)
            for row, (tokens, trained) in enumerate(group):
                ids[row, : len(tokens)] = torch.tensor(tokens)
                labels[row, : len(tokens)] = torch.tensor(
                    [t if on else IGNORE for t, on in zip(tokens, trained, strict=True)]
                )
            yield ids, labels


# --- evaluation ----------------------------------------------------------------------------------


@torch.no_grad()
def accuracy(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    split: world.Split,
    count: int,
    family: str | None = None,
) -> dict[str, float]:
    """Exact answers at temperature 0, by family and over all, on raw prompts."""
    model.eval()
    items = sorted(world.problems(split, count, 0, family), key=lambda p: len(tokenizer.encode(p.prompt)))
    right: dict[str, list[bool]] = {}
    by_length: dict[int, list[world.Problem]] = {}
    for item in items:
        by_length.setdefault(len(tokenizer.encode(item.prompt)), []).append(item)
    newline = tokenizer.encode("\n", add_special_tokens=False)
    for group in by_length.values():
        ids = torch.tensor([tokenizer.encode(item.prompt) + newline for item in group])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=220, do_sample=False)
        for item, row in zip(group, out, strict=True):
            text = tokenizer.decode(row[ids.shape[1] :], skip_special_tokens=True)
            right.setdefault(item.family, []).append(item.check(text))
    model.train()
    everything = [ok for oks in right.values() for ok in oks]
    return {"all": sum(everything) / len(everything)} | {f: sum(oks) / len(oks) for f, oks in sorted(right.items())}


# --- the run -------------------------------------------------------------------------------------


def train(
    size: str,
    out: Path,
    *,
    tokens: int,
    lr: float,
    seed: int,
    threads: int,
    evaluate: int,
    tokenizer: PreTrainedTokenizerFast | None = None,
    chunks: Chunks = chunk_of,
    start: Mapping[str, torch.Tensor] | None = None,
    batch_tokens: int = _BATCH_TOKENS,
) -> None:
    """Train one size, with a checkpoint every twentieth of the way; goes on from the last one.

    ``chunks`` makes the data, for another world with its own ``tokenizer``; ``start`` are the first weights.
    """
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer or build()
    model = make_model(SIZES[size], len(tokenizer), seed=seed)
    if start is not None:
        model.model.load_state_dict(start)
    rates = (lr, lr / 5)
    optimizers = make_optimizers(model, rates)
    state = {"step": 0, "tokens": 0, "seconds": 0.0, "history": []}
    if (saved := read_checkpoint(out)) is not None:
        state, tensors = saved
        restore(size, tensors, (model, optimizers))
    bar = tqdm(total=tokens, initial=state["tokens"], unit="tok", unit_scale=True, desc=size, mininterval=5)
    marks = [tokens * k // 20 for k in range(1, 21)]
    began = time.monotonic() - state["seconds"]
    running = 0.0
    for ids, labels in batches(tokenizer, seed=seed, skip=state["step"], chunks=chunks, size=batch_tokens):
        if state["tokens"] >= tokens:
            break
        set_rates(optimizers, rates, state["tokens"] / tokens)
        hidden = model.model(ids).last_hidden_state[:, :-1]
        targets = labels[:, 1:]
        chosen = targets != IGNORE
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[chosen]), targets[chosen])
        learn(model, optimizers, loss)
        count = ids.numel()
        running = loss.item() if not running else 0.98 * running + 0.02 * loss.item()
        state["step"] += 1
        state["tokens"] += count
        bar.update(count)
        if marks and state["tokens"] >= marks[0]:
            while marks and state["tokens"] >= marks[0]:
                marks.pop(0)
            state["seconds"] = time.monotonic() - began
            row = {"tokens": state["tokens"], "loss": round(running, 4), "seconds": round(state["seconds"])}
            if evaluate and len(marks) % 4 == 0:
                row["accuracy"] = accuracy(model, tokenizer, "calibration", evaluate)
            state["history"].append(row)
            tqdm.write(json.dumps({"size": size, **row}), file=sys.stderr)
            save_checkpoint(out, {size: (model, optimizers)}, state)
    bar.close()
    _save(out, model, tokenizer, size=size, lr=lr, seed=seed, state=state)


def _save(out: Path, model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, **about: object) -> None:
    model.save_pretrained(out / "hf")
    tokenizer.save_pretrained(out / "hf")
    about |= {"world": world.VERSION, "world_sha256": world.fingerprint()} | parameters(model)
    write_json(out / "training.json", about)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and the finished model")
    parser.add_argument("--tokens", type=float, default=52e6, help="tokens to train on (default: %(default).0f)")
    parser.add_argument("--lr", type=float, default=0.02, help="Muon's learning rate (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="one is best unless cores are idle")
    parser.add_argument("--evaluate", type=int, default=500, help="problems per evaluation, five times a run; 0: none")
    args = parser.parse_args()
    train(
        args.size,
        args.out,
        tokens=int(args.tokens),
        lr=args.lr,
        seed=args.seed,
        threads=args.threads,
        evaluate=args.evaluate,
    )


if __name__ == "__main__":
    main()
