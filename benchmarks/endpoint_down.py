"""What an endpoint that is down from the start costs: the time to the first token, beside the fast model alone.

Three ways to be down: nobody listens (refused), packets are dropped (an address that never answers), and a server that
hangs up on every request, whose requests are counted. Each block makes new Routers, as a process that has just begun,
and takes the first answers of each, in turns with the same Router whose policy never asks. Ratios are paired by block.

    python benchmarks/endpoint_down.py --fast llama_cpp:small.gguf --blocks 20
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from endpoints import black_hole, forget
from faulty import Fault, fault_proxy

from fsgen_router import Router, TextDelta
from fsgen_router.contracts.models import TokenModel
from fsgen_router.reference import world
from fsgen_router.resolve import make_model

from common import save

ANSWERS = 3
"""Of each new Router: the first meets an endpoint that nobody knows, the others one that is known to be down."""


@contextlib.contextmanager
def nobody_listens() -> Iterator[str]:
    with socket.socket() as free:  # bound, so that nobody else listens there
        free.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{free.getsockname()[1]}/v1"


def first_token(router: Router, prompt: str, policy: str | None, max_tokens: int) -> float:
    """Seconds to the first text; the rest of the answer is read too."""
    began, first = time.perf_counter(), None
    for event in router.stream(prompt, max_tokens=max_tokens, policy=policy):
        if first is None and isinstance(event, TextDelta) and event.text:
            first = time.perf_counter() - began
    assert first is not None
    return first


def measure(fast: TokenModel, urls: dict[str, str], policy: str, blocks: int, max_tokens: int) -> dict[str, Any]:
    found: dict[str, list[list[float]]] = {name: [] for name in ("alone", *urls)}
    for block in range(blocks):
        prompts = [world.problem("test", ANSWERS * block + number).prompt + "\n" for number in range(ANSWERS)]
        names = [*urls, "alone"] if block % 2 else ["alone", *urls]
        for name in names:
            url = urls.get(name, next(iter(urls.values())))
            forget(url)
            with Router(fast, f"openai:m@{url}", policy=policy) as router:
                asked = "never" if name == "alone" else None
                found[name].append([first_token(router, prompt, asked, max_tokens) for prompt in prompts])
    result: dict[str, Any] = {}
    for name, rows in found.items():
        times = [seconds for row in rows for seconds in row]
        alone = [seconds for row in found["alone"] for seconds in row]
        ratios = [one / other for one, other in zip(times, alone, strict=True)]
        more = [one - other for one, other in zip(times, alone, strict=True)]
        result[name] = {"median_ms": round(1000 * statistics.median(times), 3)}
        if name != "alone":
            result[name] |= {
                "ratio_median": round(statistics.median(ratios), 3),
                "ratio_of_first_answers": round(statistics.median(ratios[::ANSWERS]), 3),
                "more_ms_median": round(1000 * statistics.median(more), 3),
                "more_ms_highest": round(1000 * max(more), 3),
            }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", default="reference:fast", help="model string (default: %(default)s)")
    parser.add_argument("--policy", default="entropy>0.5,span=rest", help="(default: %(default)s)")
    parser.add_argument("--blocks", type=int, default=20, help="new Routers of each kind (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=24, help="of an answer (default: %(default)s)")
    parser.add_argument("--name", default="endpoint_down", help="of the result's file (default: %(default)s)")
    args = parser.parse_args()
    os.environ.pop("OPENAI_API_KEY", None)
    fast = make_model(args.fast)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FSGEN_CACHE"] = folder
        with (
            nobody_listens() as refused,
            black_hole() as silent,
            fault_proxy("http://127.0.0.1:9/v1", lambda number: Fault("reset")) as proxy,
        ):
            urls = {"refused": refused, "never answers": silent, "hangs up": proxy.url}
            measure(fast, urls, args.policy, 1, args.max_tokens)  # what is done once
            proxy.exchanges.clear()
            figures = measure(fast, urls, args.policy, args.blocks, args.max_tokens)
            asked = len(proxy.exchanges)
    save(
        args.name,
        {
            "script": "benchmarks/endpoint_down.py",
            "fast": fast.name,
            "policy": args.policy,
            "blocks": args.blocks,
            "answers_of_a_router": ANSWERS,
            "first_token": figures,
            "requests_that_the_server_saw_of_a_router": asked / args.blocks,
        },
    )
    fast.shutdown()


if __name__ == "__main__":
    main()
