"""Train one size of the reference family (or all five) on the world of Tarn.

    python examples/reference_pair/train.py --size slow --out build/reference/slow
    python examples/reference_pair/train.py --size all --out build/reference

One recipe for every size: the same problems in the same order, Muon for the matrices and AdamW for
the rest, a constant learning rate that then falls linearly and stays at its floor for the last
fifth, loss on solutions only. Data and initial weights follow from the seed; a run that is stopped
goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from fsgen_router.reference import world

from tokenizer import ASSISTANT, BOS, END, SYSTEM, USER, build

# name: (width, layers, heads, feed-forward width)
SIZES = {
    "tiny": (24, 2, 3, 64),
    "fast": (32, 2, 4, 80),
    "middle": (48, 2, 4, 112),
    "large": (96, 3, 6, 256),
    "slow": (128, 3, 8, 320),
}
CONTEXT = 1024
_BATCH_TOKENS = 4096
_CHUNK = 4096  # problems that are sorted by length together
_IGNORE = -100
_WARM, _DECAY_FROM, _DECAY_TO = 0.4 / 52, 16 / 52, 41 / 52  # of the way


def make_model(size: str, vocabulary: int, *, seed: int) -> Qwen2ForCausalLM:
    width, layers, heads, feed_forward = SIZES[size]
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=vocabulary,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            intermediate_size=feed_forward,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
            dtype="float32",
        )
    )


# --- data ----------------------------------------------------------------------------------------


def examples(tokenizer: PreTrainedTokenizerFast, chunk: int, *, seed: int) -> list[tuple[list[int], list[bool]]]:
    """The ``chunk``-th block of examples as (ids, which of them are trained on).

    Half are raw (question, newline, solution), half chats, a tenth of those with an earlier turn; a
    twentieth ask for something outside the world.
    """
    rng = random.Random(f"{seed}/examples/{chunk}")
    problems = iter(world.problems("train", 2 * _CHUNK, start=2 * _CHUNK * chunk))
    segments: list[list[tuple[str, bool]]] = []
    for _ in range(_CHUNK):
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
    tokenizer: PreTrainedTokenizerFast, *, seed: int, skip: int = 0
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (ids, labels) of about ``_BATCH_TOKENS`` tokens, alike lengths together."""
    chunk = 0
    while True:
        block = sorted(examples(tokenizer, chunk, seed=seed), key=lambda e: len(e[0]))
        groups: list[list[tuple[list[int], list[bool]]]] = [[]]
        for example in block:
            if (len(groups[-1]) + 1) * len(example[0]) > _BATCH_TOKENS:
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
            labels = torch.full((len(group), length), _IGNORE)
            for row, (tokens, trained) in enumerate(group):
                ids[row, : len(tokens)] = torch.tensor(tokens)
                labels[row, : len(tokens)] = torch.tensor(
                    [t if on else _IGNORE for t, on in zip(tokens, trained, strict=True)]
                )
            yield ids, labels


# --- optimisation --------------------------------------------------------------------------------


class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal by five Newton-Schulz steps (Jordan et al., 2024), for matrices.

    torch.optim.Muon in single precision: its bfloat16 takes most of the time where a CPU has to emulate it.
    """

    def __init__(self, params: list[torch.nn.Parameter], lr: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": 0.0, "momentum": 0.95})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for param in group["params"]:
                state = self.state[param]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(param)
                momentum = state["momentum_buffer"].lerp_(param.grad, 1 - group["momentum"])
                update = _orthogonalised(param.grad.lerp(momentum, group["momentum"]))
                rows, columns = param.shape
                param.mul_(1 - group["lr"] * group["weight_decay"])
                param.add_(update, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)


def _orthogonalised(matrix: torch.Tensor) -> torch.Tensor:
    a, b, c = 3.4445, -4.775, 2.0315
    tall = matrix.size(0) > matrix.size(1)
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def make_optimizers(model: Qwen2ForCausalLM, lr: float) -> list[torch.optim.Optimizer]:
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        Muon(matrices, lr=lr),
        torch.optim.AdamW(rest, lr=lr / 5, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def schedule(progress: float) -> float:
    """Learning-rate factor: constant (after a short warm-up), then linear to 1%, then flat for a fifth."""
    if progress < _WARM:
        return max(progress / _WARM, 0.01)
    return max(1 - max(progress - _DECAY_FROM, 0.0) / (_DECAY_TO - _DECAY_FROM), 0.01)


def weight_decay(progress: float) -> float:
    """Muon's weight decay: none while the rate is constant (it slows learning), then some.

    Without it residuals grow to thousands, and single precision no longer holds logits to 1e-4.
    """
    return 0.0 if progress < _DECAY_FROM else 0.03


# --- evaluation ----------------------------------------------------------------------------------


@torch.no_grad()
def accuracy(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, split: world.Split, count: int
) -> dict[str, float]:
    """Exact answers at temperature 0, by family and over all, on raw prompts."""
    model.eval()
    items = sorted(world.problems(split, count), key=lambda p: len(tokenizer.encode(p.prompt)))
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


def train(size: str, out: Path, *, tokens: int, lr: float, seed: int, threads: int, evaluate: int) -> None:
    """Train one size, with a checkpoint every twentieth of the way; goes on from the last one."""
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = build()
    model = make_model(size, len(tokenizer), seed=seed)
    optimizers = make_optimizers(model, lr)
    state = {"step": 0, "tokens": 0, "seconds": 0.0, "history": []}
    if (out / "state.json").exists():
        state = _restore(out, model, optimizers)
    bar = tqdm(total=tokens, initial=state["tokens"], unit="tok", unit_scale=True, desc=size, mininterval=5)
    marks = [tokens * k // 20 for k in range(1, 21)]
    began = time.monotonic() - state["seconds"]
    running = 0.0
    for ids, labels in batches(tokenizer, seed=seed, skip=state["step"]):
        if state["tokens"] >= tokens:
            break
        factor = schedule(state["tokens"] / tokens)
        for optimizer, base in zip(optimizers, (lr, lr / 5), strict=True):
            optimizer.param_groups[0]["lr"] = base * factor
        optimizers[0].param_groups[0]["weight_decay"] = weight_decay(state["tokens"] / tokens)
        hidden = model.model(ids).last_hidden_state[:, :-1]
        targets = labels[:, 1:]
        chosen = targets != _IGNORE
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[chosen]), targets[chosen])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
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
            _checkpoint(out, model, optimizers, state)
    bar.close()
    _save(out, model, tokenizer, size=size, lr=lr, seed=seed, state=state)


def _checkpoint(out: Path, model: Qwen2ForCausalLM, optimizers: list[torch.optim.Optimizer], state: dict) -> None:
    """Weights and optimizer state as safetensors, then the JSON that makes them current."""
    tensors = {f"model.{name}": value.contiguous().clone() for name, value in model.model.state_dict().items()}
    for k, optimizer in enumerate(optimizers):
        for index, values in optimizer.state_dict()["state"].items():
            tensors |= {
                f"optimizer.{k}.{index}.{name}": torch.as_tensor(value).clone() for name, value in values.items()
            }
    save_file(tensors, out / f"checkpoint-{state['step']}.safetensors")
    (out / "state.json.tmp").write_text(json.dumps(state))
    os.replace(out / "state.json.tmp", out / "state.json")
    for old in out.glob("checkpoint-*.safetensors"):
        if old.name != f"checkpoint-{state['step']}.safetensors":
            old.unlink()


def _restore(out: Path, model: Qwen2ForCausalLM, optimizers: list[torch.optim.Optimizer]) -> dict:
    state: dict = json.loads((out / "state.json").read_text())
    tensors = load_file(out / f"checkpoint-{state['step']}.safetensors")
    model.model.load_state_dict({n[len("model.") :]: t for n, t in tensors.items() if n.startswith("model.")})
    for k, optimizer in enumerate(optimizers):
        whole = optimizer.state_dict()
        for name, value in tensors.items():
            kind, *where = name.split(".")
            if kind == "optimizer" and int(where[0]) == k:
                whole["state"].setdefault(int(where[1]), {})[where[2]] = value
        optimizer.load_state_dict(whole)
    return state


def _save(out: Path, model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, **about: object) -> None:
    model.save_pretrained(out / "hf")
    tokenizer.save_pretrained(out / "hf")
    about |= {
        "world": world.VERSION,
        "world_sha256": world.fingerprint(),
        "n_params": sum(p.numel() for p in model.parameters()),
        "n_params_without_embeddings": sum(p.numel() for n, p in model.named_parameters() if "embed" not in n),
    }
    (out / "training.json").write_text(json.dumps(about, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=[*SIZES, "all"], required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and the finished model")
    parser.add_argument("--tokens", type=float, default=52e6, help="tokens to train on (default: %(default).0f)")
    parser.add_argument("--lr", type=float, default=0.02, help="Muon's learning rate (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="one is best unless cores are idle")
    parser.add_argument("--evaluate", type=int, default=500, help="problems per evaluation, five times a run; 0: none")
    args = parser.parse_args()
    for size in SIZES if args.size == "all" else [args.size]:
        out = args.out / size if args.size == "all" else args.out
        train(
            size, out, tokens=int(args.tokens), lr=args.lr, seed=args.seed, threads=args.threads, evaluate=args.evaluate
        )


if __name__ == "__main__":
    main()
