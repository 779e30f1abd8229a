"""What the transformers adapter costs around the model's own forward, and what batches and catch-up gain.

Alternating blocks on one loaded model of a real shape with random weights: a bare loop (transformers'
``DynamicCache``, the last row, argmax on the device) against the adapter, which also reads signals;
then forwards of several sequences, and of several tokens, against as many single steps. On CUDA each is
run without recorded forwards (``cuda_graphs``) too.

    python benchmarks/transformers_steps.py --device cuda --shape 0.5b 1.5b 14b
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from transformers import DynamicCache

from fsgen_router.adapters.transformers import TransformersModel
from fsgen_router.contracts.models import Work
from fsgen_router.rows.reading import Read

from common import SHAPES, Shape, block_ratio, random_transformers, save, timed

PREFIX = 200
READ = Read(signals=True, top_k=8)
BATCHES, CATCH_UPS = (2, 4, 8), (2, 4, 8, 16, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["0.5b"], help="(default: 0.5b)")
    parser.add_argument("--blocks", type=int, default=24, help="alternating blocks (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=16, help="steps per block (default: %(default)s)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--name", default="transformers_steps", help="of the result")
    args = parser.parse_args()
    found = {name: measure(SHAPES[name], args) for name in args.shape}
    cuda = args.device.startswith("cuda") or (args.device == "auto" and torch.cuda.is_available())
    about = {
        "device": torch.cuda.get_device_name() if cuda else f"{args.threads} CPU threads",
        "dtype": args.dtype,
        "blocks": args.blocks,
        "steps_per_block": args.tokens,
    }
    save(args.name, about | found)


def measure(shape: Shape, args: argparse.Namespace) -> dict[str, Any]:
    model = random_transformers(
        shape, device=args.device, dtype=args.dtype, n_threads=args.threads, n_ctx=1024, n_seq=max(BATCHES)
    )
    sequences = [model.open([]).sequence for _ in range(model.n_seq)]
    prefix = list(range(1000, 1000 + PREFIX))
    model.forward([Work(sequence, 0, prefix, []) for sequence in sequences])
    graphs = model._graphs

    def steps(batch: int, size: int, *, recorded: bool = True) -> Callable[[], None]:
        """One block: each step starts behind the prefix again, so that all cost the same."""
        works = [Work(sequence, PREFIX, [7] * size, [(size - 1, READ)]) for sequence in sequences[:batch]]

        def run() -> None:
            model._graphs = graphs if recorded else None
            for _ in range(args.tokens):
                model.forward(works)

        return run

    sizes = {"adapter": (1, 1)}
    sizes |= {f"sequences_{batch}": (batch, 1) for batch in BATCHES}
    sizes |= {f"tokens_{size}": (1, size) for size in CATCH_UPS}
    runs = {"bare": bare_loop(model, prefix, args.tokens)} | {name: steps(*size) for name, size in sizes.items()}
    if graphs is not None:
        runs |= {f"{name} unrecorded": steps(*size, recorded=False) for name, size in sizes.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for block in range(args.blocks + 1):
        for name, run in runs.items():
            seconds = timed(run)
            if block:  # the first one warms up
                times[name].append(seconds)
    model.shutdown()
    figures = {
        "bare_over_adapter": block_ratio(times["bare"], times["adapter"]),
        "over_one_step": {name: block_ratio(times[name], times["adapter"]) for name in sizes if name != "adapter"},
        "ms_per_step": {n: round(1000 * sorted(t)[len(t) // 2] / args.tokens, 3) for n, t in times.items()},
    }
    if graphs is not None:
        figures["unrecorded_over_recorded"] = {
            name: block_ratio(times[f"{name} unrecorded"], times[name]) for name in sizes
        }
    return figures


def bare_loop(model: TransformersModel, prefix: list[int], tokens: int) -> Callable[[], None]:
    """The model's forward as a plain script calls it."""
    cache, device = DynamicCache(config=model._config), model.device
    with torch.inference_mode():
        model._model(input_ids=torch.tensor([prefix], device=device), past_key_values=cache, use_cache=True)

    @torch.inference_mode()
    def run() -> None:
        for _ in range(tokens):
            ids = torch.tensor([[7]], device=device)
            output = model._model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            int(output.logits[0, -1].argmax())
            cache.crop(-1)

    return run


if __name__ == "__main__":
    main()
