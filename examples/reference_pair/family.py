"""Train the reference family: five sizes, several seeds each, all of them at once and at matched tokens.

    python examples/reference_pair/family.py build/family/rows.npy.xz --out build/family/run
    python examples/reference_pair/family.py build/family/ages_apart.npy.xz --out build/family/tuned \\
        --sizes 43k --start build/family/run --tokens 4e6 --lr 0.005

All members take each step together, so they have always seen as many tokens; those of one seed have seen the same
rows in the same order, and a seed is a member's first weights and its order of rows. The recipe is the
reference pair's (``recipe.py``). Muon's rate is the same for every width: its update has a spectral norm of 1
(times the root of rows / columns), which is what a rate needs to carry over from width to width (Yang et al.,
arXiv 2310.17813). AdamW's, for embeddings and norms, is a fifth of it, falling as 1 / width beyond 128, where
both were found.

``--stop-after`` bounds the time of the whole training: the schedule follows the tokens or the clock, whichever
is further on, so a training that ends early has still come down to its floor. A run that is stopped goes on
from its last checkpoint. ``OUT`` gets ``state.json``, that checkpoint and, with each one, the finished form:
weights rounded to bfloat16 in files of less than 16 MiB (``family-N.safetensors``) and ``family.json``, of which
``finish.py`` makes models.

On a GPU each member's step is one CUDA graph on a stream of its own.
"""

from __future__ import annotations

import argparse
import json
import lzma
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from tqdm import tqdm

from recipe import (
    IGNORE,
    Shape,
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

# Heads have 64 dimensions, or all 32 of the width: kernels of other engines take no smaller ones.
SIZES: dict[str, Shape] = {  # by parameters: (width, layers, heads, feed-forward width)
    "43k": (32, 2, 1, 80),
    "157k": (64, 2, 1, 224),
    "644k": (128, 3, 2, 320),
    "1.9M": (192, 4, 3, 512),
    "5M": (320, 4, 5, 832),
}
VOCABULARY = 598
HELD_OUT = 64  # the first rows of a file are not for training
_BOS = 0
_PART = 159 * 2**20 // 10  # bytes of tensors in a file
_MARKS = 5  # times that the loss on held-out rows is looked at
_SYNC = 20  # steps that are queued on a GPU before the clock is read
_TRIAL = 100  # steps over which the time of a step is measured
_WARM_UP = 3  # steps before a graph is captured: kernels are chosen, optimiser states made


class Member:
    """One size and seed in training: its model, its optimisers and, on a GPU, its captured step."""

    def __init__(self, size: str, seed: int, lr: float, rows: torch.Tensor, batch: int) -> None:
        self.size, self.seed, self.name = size, seed, f"{size}-{seed}"
        self.device = rows.device
        self.rates = (lr, lr / 5 * min(1.0, 128 / SIZES[size][0]))
        self.model = make_model(SIZES[size], VOCABULARY, seed=seed).to(self.device)
        self.optimizers = make_optimizers(self.model, self.rates, captured=self.device.type == "cuda")
        self._rows = rows
        self._index = torch.zeros(batch, dtype=torch.long, device=self.device)
        self._steps = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._stream = torch.cuda.Stream() if self.device.type == "cuda" else None
        self._capturing = self._stream is not None

    def step(self, index: torch.Tensor, progress: float) -> None:
        """Learn from the rows ``index``; on a GPU this queues the work."""
        if self._stream is None:
            self._prepare(index, progress)
            self._update()
            return
        with torch.cuda.stream(self._stream):
            self._prepare(index, progress)
            if self._graph is not None:
                self._graph.replay()
                return
            self._update()
            self._steps += 1
        if self._capturing and self._steps == _WARM_UP:
            self._capture()

    def _prepare(self, index: torch.Tensor, progress: float) -> None:
        self._index.copy_(index)
        set_rates(self.optimizers, self.rates, progress)

    def _update(self) -> None:
        learn(self.model, self.optimizers, loss(self.model, self._rows[self._index]))

    def _capture(self) -> None:
        """Record a step (nothing is computed); where that cannot be done, steps stay as they are."""
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                self._update()
            self._graph = graph
        except RuntimeError as error:
            self._capturing = False
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            tqdm.write(f"{self.name}: no CUDA graph, steps stay slow: {error}", file=sys.stderr)
        torch.cuda.synchronize()

    @torch.no_grad()
    def held_out_loss(self) -> float:
        losses = [loss(self.model, part).item() for part in self._rows[:HELD_OUT].split(32)]
        return round(sum(losses) / len(losses), 4)

    def weights(self) -> dict[str, torch.Tensor]:
        """The weights as they are kept: in bfloat16, each under the member's name."""
        own = self.model.model.state_dict()
        return {f"{self.name}/{key}": value.to("cpu", torch.bfloat16) for key, value in own.items()}

    @torch.no_grad()
    def set_weights(self, stored: dict[str, torch.Tensor]) -> None:
        for key, value in self.model.model.state_dict().items():
            value.copy_(stored[f"{self.name}/{key}"])


def loss(model: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy (nats) of the trained tokens of ``rows``, shape (n, length); an example sees itself alone."""
    ids = torch.where(rows < 0, ~rows, rows).long()
    targets = rows.long().masked_fill(rows < 0, IGNORE)
    example = (ids == _BOS).cumsum(1)
    length = ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
    mask = (example[:, None, :, None] == example[:, None, None, :]) & causal
    positions = torch.arange(length, device=ids.device)[None]
    with torch.autocast("cuda", torch.bfloat16, enabled=ids.is_cuda):
        hidden = model.model(
            ids, attention_mask={"full_attention": mask}, position_ids=positions, use_cache=False
        ).last_hidden_state
    logits = model.lm_head(hidden.float())  # not in bfloat16, which holds a logit of 40 to a quarter
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten(), ignore_index=IGNORE)


class Order:
    """Which rows a seed's members see at a step: all of them in random order, then all again."""

    def __init__(self, rows: int, batch: int, seed: int, device: torch.device) -> None:
        self._rows, self._batch, self._seed, self._device = rows, batch, seed, device
        self._epoch, self._shuffled = -1, torch.empty(0)

    def __call__(self, step: int) -> torch.Tensor:
        epoch, place = divmod(step, self._rows // self._batch)
        if epoch != self._epoch:
            if self._device.type == "cuda":
                torch.cuda.synchronize()  # no step still reads the order before
            random = torch.Generator().manual_seed(1000 * self._seed + epoch)
            self._shuffled = (torch.randperm(self._rows, generator=random) + HELD_OUT).to(self._device)
            if self._device.type == "cuda":
                torch.cuda.synchronize()
            self._epoch = epoch
        return self._shuffled[place * self._batch : (place + 1) * self._batch]


def train(args: argparse.Namespace) -> None:
    began = time.monotonic()
    device = torch.device(args.device)
    torch.set_float32_matmul_precision("high")
    torch.backends.cuda.enable_cudnn_sdp(False)  # it compiles a plan for each shape
    with lzma.open(args.rows) if args.rows.suffix == ".xz" else args.rows.open("rb") as file:
        rows = torch.from_numpy(np.load(file)).to(device)
    start = read_weights(args.start) if args.start else None
    if start is not None:
        args.seeds = [seed for seed in args.seeds if all(f"{size}-{seed}/norm.weight" in start for size in args.sizes)]
        if not args.seeds:
            raise SystemExit(f"{args.start} holds no such members")
    per_step = args.batch * rows.shape[1]
    steps = -(-int(args.tokens) // per_step)
    state: dict[str, Any] = {"step": 0, "tokens": 0, "seconds": 0.0, "progress": 0.0, "history": []}
    state |= {"sizes": args.sizes, "seeds": args.seeds}
    saved = read_checkpoint(args.out)
    if saved is not None:
        state = saved[0]
        if state["sizes"] != args.sizes:
            raise SystemExit(f"{args.out} holds a training of {' '.join(state['sizes'])}: name another folder")
        if state["progress"] == 1:
            print(f"{args.out} holds a finished training", file=sys.stderr)
            return
    members = [Member(size, seed, args.lr, rows, args.batch) for seed in state["seeds"] for size in args.sizes]
    for member in members:
        if saved is not None:
            restore(member.name, saved[1], (member.model, member.optimizers))
        elif start is not None:
            member.set_weights(start)
    args.out.mkdir(parents=True, exist_ok=True)
    began -= state["seconds"]
    orders = {seed: Order(len(rows) - HELD_OUT, args.batch, seed, device) for seed in state["seeds"]}
    bar = tqdm(total=steps * per_step, initial=state["tokens"], unit="tok", unit_scale=True, mininterval=5)
    pause_at = state["seconds"] + (args.pause_after or float("inf"))
    checkpoint_at = state["seconds"] + args.checkpoint_every
    mark = int(_MARKS * state["progress"])
    trial = state["step"] + _TRIAL if args.least and args.stop_after else float("inf")
    if device.type == "cuda":
        torch.cuda.synchronize()  # what the members' streams read is there
    while state["progress"] < 1:
        for member in members:
            member.step(orders[member.seed](state["step"]), state["progress"])
        state["step"] += 1
        state["tokens"] += per_step
        bar.update(per_step)
        state["progress"] = max(state["progress"], state["step"] / steps)
        if device.type == "cuda":
            if state["step"] % _SYNC and state["progress"] < 1:
                continue
            torch.cuda.synchronize()
        state["seconds"] = time.monotonic() - began
        # From here on: before it much time went into few steps, which are to be the warm-up all the same.
        first = state.setdefault("first_seconds", state["seconds"])
        if args.stop_after:
            clock = (state["seconds"] - first) / max(args.stop_after - first, 1e-9)
            state["progress"] = min(1.0, max(state["progress"], clock))
        if state["step"] >= trial:
            trial = _fit_seeds(args, state, members)
        if mark < int(_MARKS * state["progress"]) < _MARKS:
            mark = int(_MARKS * state["progress"])
            note(members, state)
        if state["seconds"] >= min(checkpoint_at, pause_at) and state["progress"] < 1:
            save(args, members, state)
            checkpoint_at = state["seconds"] + args.checkpoint_every
            if state["seconds"] >= pause_at:
                bar.close()
                print(f"paused at {state['progress']:.0%}: the same command goes on", file=sys.stderr)
                return
    bar.close()
    for member in members:
        member.set_weights(member.weights())  # what is measured is what is kept
    note(members, state)
    save(args, members, state)


def _fit_seeds(args: argparse.Namespace, state: dict[str, Any], members: list[Member]) -> float:
    """Drop the last seed where the time is too short for ``--least`` tokens; the step to look again at."""
    then = state.get("trial")
    state["trial"] = {"tokens": state["tokens"], "seconds": state["seconds"]}
    if then is not None:
        pace = (state["tokens"] - then["tokens"]) / (state["seconds"] - then["seconds"])
        expected = state["tokens"] + pace * (args.stop_after - state["seconds"])
        line = f"{len(members)} members: {pace:,.0f} tokens/s each, {min(expected, args.tokens):,.0f} in the end"
        tqdm.write(line, file=sys.stderr)
        if expected >= args.least or len(state["seeds"]) == 1:
            return float("inf")
        state["seeds"] = state["seeds"][:-1]
        members[:] = [member for member in members if member.seed in state["seeds"]]
        del state["trial"]
    return state["step"] + _TRIAL


def note(members: list[Member], state: dict[str, Any]) -> None:
    """Add each member's held-out loss to the history, and show it."""
    row = {"tokens": state["tokens"], "seconds": round(state["seconds"], 1)}
    row["held_out_loss"] = {member.name: member.held_out_loss() for member in members}
    state["history"].append(row)
    tqdm.write(json.dumps(row), file=sys.stderr)


def save(args: argparse.Namespace, members: list[Member], state: dict[str, Any]) -> None:
    """A checkpoint to go on from, and the members as they stand."""
    save_checkpoint(args.out, {member.name: (member.model, member.optimizers) for member in members}, state)
    out = args.pack or args.out
    out.mkdir(parents=True, exist_ok=True)
    parts: list[dict[str, torch.Tensor]] = [{}]
    room = _PART
    for member in members:
        for key, value in member.weights().items():
            if value.nbytes > room:
                parts.append({})
                room = _PART
            parts[-1][key] = value
            room -= value.nbytes
    for number, part in enumerate(parts, 1):
        save_file(part, out / f"family-{number}.safetensors.tmp")
        (out / f"family-{number}.safetensors.tmp").replace(out / f"family-{number}.safetensors")
    for old in out.glob("family-*.safetensors"):  # of more seeds
        if int(old.stem.partition("-")[2]) > len(parts):
            old.unlink()
    recipe = {"tokens": args.tokens, "lr": args.lr, "batch": args.batch, "stop_after": args.stop_after}
    about = {
        member.name: {
            "size": member.size, "seed": member.seed, "shape": SIZES[member.size], "rates": member.rates,
            **parameters(member.model),
        }
        for member in members
    }  # fmt: skip
    on = torch.cuda.get_device_name() if members[0].device.type == "cuda" else "CPU"
    write_json(out / "family.json", {"members": about, "recipe": recipe, "device": on, "state": state})


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The finished weights that lie in ``folder``, by "member/parameter"."""
    tensors: dict[str, torch.Tensor] = {}
    for part in sorted(folder.glob("family-*.safetensors")):
        tensors |= load_file(part)
    return tensors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, help="what rows.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--pack", type=Path, help="folder for the finished members (default: OUT)")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--start", type=Path, help="folder of finished members to begin with")
    parser.add_argument("--tokens", type=float, default=104e6, help="for each member (default: %(default).0f)")
    parser.add_argument("--batch", type=int, default=32, help="rows a step (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=0.02, help="Muon's learning rate (default: %(default)s)")
    parser.add_argument("--stop-after", type=float, metavar="SECONDS", help="end the training then, schedule and all")
    parser.add_argument("--least", type=float, metavar="TOKENS", help="with --stop-after: drop seeds to reach so many")
    parser.add_argument("--pause-after", type=float, metavar="SECONDS", help="stop then, to go on later")
    parser.add_argument("--checkpoint-every", type=float, metavar="SECONDS", default=60)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
