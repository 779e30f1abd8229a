"""What the transformers adapter costs around the model's own forward, and what batches and catch-up gain.

Alternating blocks on one loaded model of a real shape with random weights: a bare loop (transformers'
``DynamicCache``, the last row, argmax on the device) against the adapter, which also reads signals;
then forwards of several sequences, and of several tokens, against as many single steps.

    python benchmarks/transformers_steps.py --device cuda --dtype bfloat16
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from transformers import DynamicCache

from fsgen_router.adapters.transformers import TransformersModel
from fsgen_router.contracts.models import Work
from fsgen_router.rows.reading import Read

from common import HALF_BILLION, TENTH, block_ratio, random_model, save, timed

PREFIX = 200
READ = Read(signals=True, top_k=8)
BATCHES, CATCH_UPS = (2, 4, 8), (2, 8, 16, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=24, help="alternating blocks (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=16, help="steps per block (default: %(default)s)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="the tenth-size shape, to try the script out")
    args = parser.parse_args()
    shape = TENTH if args.quick else HALF_BILLION
    model = TransformersModel(
        random_model(shape),
        device=args.device,
        dtype=args.dtype,
        n_threads=args.threads,
        n_ctx=1024,
        n_seq=max(BATCHES),
    )
    sequences = [model.open([]).sequence for _ in range(model.n_seq)]
    prefix = list(range(1000, 1000 + PREFIX))
    model.forward([Work(sequence, 0, prefix, []) for sequence in sequences])

    def steps(batch: int, size: int) -> Callable[[], None]:
        """One block: each step starts behind the prefix again, so that all cost the same."""
        works = [Work(sequence, PREFIX, [7] * size, [(size - 1, READ)]) for sequence in sequences[:batch]]
        return lambda: [model.forward(works) for _ in range(args.tokens)] and None

    runs = {"bare": bare_loop(model, prefix, args.tokens), "adapter": steps(1, 1)}
    runs |= {f"sequences_{batch}": steps(batch, 1) for batch in BATCHES}
    runs |= {f"tokens_{size}": steps(1, size) for size in CATCH_UPS}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for block in range(args.blocks + 1):
        for name, run in runs.items():
            seconds = timed(run)
            if block:  # the first one warms up
                times[name].append(seconds)
    name = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else str(model.device)
    save(
        "transformers_steps",
        {
            "shape": shape.name,
            "device": name,
            "dtype": args.dtype,
            "threads": args.threads,
            "blocks": args.blocks,
            "steps_per_block": args.tokens,
            "bare_over_adapter": block_ratio(times["bare"], times["adapter"]),
            "over_one_step": {
                name: block_ratio(found, times["adapter"]) for name, found in times.items() if "_" in name
            },
            "ms_per_step": {n: round(1000 * sorted(t)[len(t) // 2] / args.tokens, 3) for n, t in times.items()},
        },
    )


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
