"""A real pair's modes against the slow model alone: seconds for the same problems, one, four and eight at once.

Every mode answers the same GSM8K problems, greedy, with the same limit of tokens, block by block in turns, so that
whatever slows the machine slows all. Figures are tokens per second of wall time and, paired by block, the ratio of
tokens per second to the slow model's own at the same number of requests at once; above 1 the mode is faster. Text that
``every:K`` with exact acceptance writes is the slow model's own; the others write what their policy lets through.
``generate`` and ``assisted`` are transformers' own loops over the same modules, one at a time, without and with the
fast model as its assistant. ``--slow-shape`` puts random weights of a larger Qwen2 into the slow model's place: seconds
then mean something, and text does not.

    python benchmarks/real_pair_speed.py --fast transformers:small.gguf --slow transformers:large.gguf \\
        --problems gsm8k_test.jsonl
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from real_pair import gsm8k

from fsgen_router import Router, SwappedModelsWarning
from fsgen_router.contracts.models import TokenModel
from fsgen_router.contracts.text_models import reads_tokens
from fsgen_router.evaluation import Item

from common import SHAPES, Shape, block_ratio, random_transformers, save

SLOW = "slow alone"
MODES: dict[str, tuple[str, str]] = {
    "fast alone": ("never", "replace"),
    "default": ("", ""),  # what the Router chooses by itself here
    "every:6": ("every:6", "verify:exact,draft_len=6"),
    "every:10": ("every:10", "verify:exact,draft_len=10"),
    "budget:0.2": ("budget:0.2", "verify"),
    "budget:0.1": ("budget:0.1", "verify"),
    "budget:0.2, replace": ("budget:0.2", "replace"),
    "budget:0.1, replace": ("budget:0.1", "replace"),
}
READ_AHEAD = {"budget:0.2, replace": 4}
"""Modes that are run with ``read_ahead`` too, and its tokens."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", required=True, help="a model string, with n_seq of at least --at-once")
    parser.add_argument("--slow", required=True, help="a model string, with n_seq of at least --at-once")
    parser.add_argument("--slow-shape", choices=SHAPES, help="random weights of this shape in the slow model's place")
    parser.add_argument("--problems", type=Path, required=True, help="GSM8K's test problems, JSON lines")
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--per-block", type=int, default=8, help="problems of a block (default: %(default)s)")
    parser.add_argument("--blocks", type=int, default=5, help="blocks of each (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=128, help="of an answer (default: %(default)s)")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--assisted", action="store_true", help="transformers' own generation beside them")
    parser.add_argument("--stop-after", type=float, default=1e9, help="seconds after which no fourth block begins")
    parser.add_argument("--device", default="", help="the name of the device, for the record")
    parser.add_argument("--name", default="real_pair_speed", help="of the result")
    args = parser.parse_args()
    began = time.perf_counter()
    items = gsm8k(args.problems, args.per_block * (args.blocks + 1))
    warnings.simplefilter("ignore", SwappedModelsWarning)  # the slow model alone is one in the fast seat
    slow = of_shape(SHAPES[args.slow_shape], args.slow) if args.slow_shape else args.slow
    router = Router(args.fast, slow, policy="never", method="replace", seed=0, batching=True)
    alone = Router(router.slow, router.fast, policy="never", method="replace", seed=0, batching=True)
    routers = {SLOW: alone}
    for name in args.modes:
        policy, method = MODES[name]
        if name == "default":
            routers[name] = chosen = Router(router.fast, router.slow, seed=0, batching=True)
            print("the default here:", chosen.policy.name, chosen.method.name)
            continue
        routers[name] = router.with_policy(policy, method=method)
        if name in READ_AHEAD:
            routers[f"{name}, read ahead"] = ahead = router.with_policy(policy, method=method)
            ahead.read_ahead = READ_AHEAD[name]

    def ask(routed: Router) -> Callable[[Item], int]:
        def one(item: Item) -> int:
            return len(routed.chat(item.messages or (), max_tokens=args.max_tokens).tokens)

        return one

    contenders: dict[tuple[str, int], Callable[[Item], int]] = {
        (name, many): ask(routed) for many in args.at_once for name, routed in routers.items()
    }
    if args.assisted:
        contenders["generate", 1] = generate(router, args.max_tokens, assisted=False)
        contenders["assisted", 1] = generate(router, args.max_tokens, assisted=True)
    speeds: dict[tuple[str, int], list[float]] = {key: [] for key in contenders}
    blocks = [items[at : at + args.per_block] for at in range(0, len(items), args.per_block)]
    for number, block in enumerate(blocks):
        if number > 2 and time.perf_counter() - began > args.stop_after:
            break
        for (name, many), one in contenders.items():
            # The first block warms up; one at a time takes longest, and its speed varies least.
            some = block[: 2 + (number > 0)] if many == 1 else block
            started = time.perf_counter()
            with ThreadPoolExecutor(many) as pool:
                tokens = sum(pool.map(one, some))
            if number:
                speeds[name, many].append(tokens / (time.perf_counter() - started))
    record: dict[str, Any] = {
        "fast": router.fast.name,
        "slow": router.slow.name,
        "device": args.device,
        "blocks": min(len(found) for found in speeds.values()),
        "problems_per_block": args.per_block,
        "max_tokens": args.max_tokens,
    }
    for (name, many), found in speeds.items():
        record[f"{name}, {many} at once"] = {
            "tokens_per_second": round(sorted(found)[len(found) // 2], 1),
            "to_slow_alone": block_ratio(found, speeds[SLOW, many]),
            "to_one_at_a_time": block_ratio(found, speeds[name, args.at_once[0]]),
        }
    save(args.name, record | {"seconds_in_all": round(time.perf_counter() - began, 1)})
    for one in (*routers.values(), router):
        one.close()


def generate(router: Router, max_tokens: int, *, assisted: bool) -> Callable[[Item], int]:
    """transformers' own loop over the modules that the Router's models hold."""
    import torch

    fast, slow = (model._model for model in (router.fast, router.slow))  # type: ignore[union-attr]
    assert reads_tokens(router.slow)
    tokenizer, ends = router.slow.tokenizer, sorted(router.slow.tokenizer.eog_ids)
    helper = {"assistant_model": fast} if assisted else {}

    def one(item: Item) -> int:
        ids = torch.tensor([tokenizer.encode_chat(item.messages or ())], device=slow.device)
        found = slow.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=ends,
            pad_token_id=ends[0],
            **helper,
        )
        return int(found.shape[1] - ids.shape[1])

    return one


def of_shape(shape: Shape, like: str) -> TokenModel:
    """Random weights of this shape, with the options and the tokenizer of a model string."""
    from transformers import AutoTokenizer

    where, _, options = like.removeprefix("transformers:").partition("?")
    source = Path(where)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    return random_transformers(shape, tokenizer, **dict(parse_qsl(options)))


if __name__ == "__main__":
    main()
