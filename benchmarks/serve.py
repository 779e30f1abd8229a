"""What the server costs beside the Router that it serves, and whether it holds out.

``overhead``: tokens per second of 1 and of 8 streams, over HTTP and of the same Router in the same process, in turns;
clients are a process of their own. The shape of Qwen2.5-0.5B (``--models``: the real one) writes alone (``never``): a
policy would only make the share of HTTP smaller. ``first_token``: from the call, or the request, to the first text, in
turns too. Ratios and differences are of pairs, with 95% bootstrap intervals.

``soak``: ``--streams`` requests of the reference pair at once over HTTP, of all four APIs, a third of which leave in
the middle; every answer that ends is compared to its solo run, and memory is looked at.

    python benchmarks/serve.py --minutes 20
    python benchmarks/serve.py --models FOLDER --minutes 1
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

import httpx2
import numpy as np
import psutil
import uvicorn
from scipy.stats import bootstrap

from fsgen_router import Router, TextDelta
from fsgen_router.reference import world
from fsgen_router.serve import ServeOptions, make_app

from common import HALF_BILLION, RESULTS, TENTH, block_ratio, random_model, save

PORT = 8765
URL = f"http://127.0.0.1:{PORT}"
POLICIES = {"local/router": None, "verified": "every:6", "local/fast": "never", "thresholded": "entropy>0.7"}
APIS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
PROMPTS = 40


@contextmanager
def serving(router: Router, **options: Any) -> Iterator[None]:
    config = uvicorn.Config(
        make_app(router, ServeOptions(port=PORT, **options)), port=PORT, lifespan="off", log_config=None
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()


def body_of(path: str, text: str, **options: Any) -> dict[str, Any]:
    """A streamed request for an answer to ``text``."""
    messages = [{"role": "user", "content": text}]
    if path == "/v1/completions":
        return {"prompt": text + "\n", "stream": True, **options}
    if path == "/v1/responses":
        options["max_output_tokens"] = options.pop("max_tokens")
        return {"input": text, "stream": True, **options}
    return {"messages": messages, "stream": True, **options}


def text_in(path: str, event: dict[str, Any]) -> str:
    if path == "/v1/responses":
        return event["delta"] if event["type"] == "response.output_text.delta" else ""
    if path == "/v1/messages":
        return event["delta"]["text"] if event["type"] == "content_block_delta" else ""
    return "".join(
        choice["text"] if "text" in choice else choice["delta"].get("content", "") for choice in event["choices"]
    )


# --- overhead ------------------------------------------------------------------------------------


def prompt(number: int) -> str:
    """A few tokens, of no other prompt's beginning."""
    return f"{number}. " + " ".join(f"word{(number * 7 + place) % 97}" for place in range(4))


async def in_process(router: Router, numbers: list[int], tokens: int, bias: dict[int, float]) -> dict[str, Any]:
    async def one(number: int) -> tuple[float, int]:
        began, first, count = time.perf_counter(), 0.0, 0
        async for event in router.astream(prompt(number), max_tokens=tokens, logit_bias=bias):
            if isinstance(event, TextDelta):
                first = first or time.perf_counter() - began
                count += 1
        return first, count

    return await measured(one, numbers)


async def over_http(numbers: list[int], tokens: int, bias: dict[int, float], row: bool) -> dict[str, Any]:
    """All at once, or one after the other (``row``)."""
    options = {"max_tokens": tokens, "logit_bias": bias, "fsgen": {"tokens": False}}
    async with httpx2.AsyncClient(base_url=URL, timeout=600) as client:
        await client.get("/health")

        async def one(number: int) -> tuple[float, int]:
            began, first, last = time.perf_counter(), 0.0, ""
            body = body_of("/v1/completions", prompt(number), **options) | {"prompt": prompt(number)}
            async with client.stream("POST", "/v1/completions", json=body) as stream:
                async for line in stream.aiter_lines():
                    if line.startswith("data: {"):
                        first = first or time.perf_counter() - began
                        last = line
            return first, int(json.loads(last[6:])["usage"]["completion_tokens"])

        if row:
            return {"first": [(await one(number))[0] for number in numbers]}
        return await measured(one, numbers)


async def measured(one: Any, numbers: list[int]) -> dict[str, Any]:
    began = time.perf_counter()
    found = await asyncio.gather(*map(one, numbers))
    seconds = time.perf_counter() - began
    return {"tokens_per_second": sum(count for _, count in found) / seconds, "first": [first for first, _ in found]}


def as_client(numbers: list[int], tokens: int, bias: dict[int, float], *, row: bool = False) -> dict[str, Any]:
    """:func:`over_http` in a process of its own."""
    command = [sys.executable, __file__, "--client", json.dumps([numbers, tokens, list(bias), row])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def overhead(router: Router, streams: int, blocks: int, tokens: int) -> dict[str, Any]:
    bias = dict.fromkeys(router.fast.tokenizer.eog_ids, -1e9)
    ours, https = [], []
    for block in range(blocks + 1):
        numbers = [1000 * streams + 2 * streams * block + at for at in range(2 * streams)]
        first, second = numbers[:streams], numbers[streams:]
        # Either goes first as often.
        if block % 2:
            https.append(as_client(first, tokens, bias))
            ours.append(asyncio.run(in_process(router, second, tokens, bias)))
        else:
            ours.append(asyncio.run(in_process(router, first, tokens, bias)))
            https.append(as_client(second, tokens, bias))
    ours, https = ours[1:], https[1:]  # the first block warms up
    return {
        "blocks": blocks,
        "tokens": tokens,
        "tokens_per_second": {
            "router": median(one["tokens_per_second"] for one in ours),
            "server": median(one["tokens_per_second"] for one in https),
        },
        "server_to_router": block_ratio(
            [one["tokens_per_second"] for one in https], [one["tokens_per_second"] for one in ours]
        ),
    }


def first_token(router: Router, blocks: int, each: int = 8) -> dict[str, Any]:
    """From the call, or the request, to the first text, one request at a time: its prompt is in the cache, so that what
    is compared is one step of the model and all that lies around it."""
    bias = dict.fromkeys(router.fast.tokenizer.eog_ids, -1e9)
    differences = []
    for block in range(blocks + 1):

        async def here() -> list[float]:
            return [(await in_process(router, [7], 1, bias))["first"][0] for _ in range(each)]

        ways = {
            "router": lambda: asyncio.run(here()),
            "server": lambda: as_client([7] * each, 1, bias, row=True)["first"],
        }
        found = {name: 1000 * median(ways[name]()) for name in sorted(ways, reverse=bool(block % 2))}
        differences.append(found["server"] - found["router"])
    values = np.asarray(differences[1:])
    interval = bootstrap((values,), np.median, n_resamples=9999, rng=np.random.default_rng(0)).confidence_interval
    return {
        "blocks": blocks,
        "of_requests": each,
        "later_ms": {"median": float(np.median(values)), "low": float(interval.low), "high": float(interval.high)},
    }


# --- soak ----------------------------------------------------------------------------------------


def solo_runs(router: Router) -> dict[tuple[str, str, int], str]:
    expected = {}
    for name, policy in POLICIES.items():
        chosen: dict[str, Any] = {"max_tokens": 160} | ({} if policy is None else {"policy": policy})
        for number in range(PROMPTS):
            text = world.problem("calibration", number).prompt
            raw = router.complete(text + "\n", **chosen).text
            chat = router.chat([{"role": "user", "content": text}], **chosen).text
            expected |= {(path, name, number): raw if path == "/v1/completions" else chat for path in APIS}
    return expected


class Tally:
    def __init__(self) -> None:
        self.finished = self.left = self.different = self.refused = 0
        self.shown: list[tuple[str, str, str]] = []


async def keep_asking(
    client: httpx2.AsyncClient, expected: dict[tuple[str, str, int], str], until: float, seed: int, tally: Tally
) -> None:
    rng = random.Random(seed)
    while time.monotonic() < until:
        path, name, number = rng.choice(list(expected))
        leave_after = rng.randrange(1, 40) if rng.random() < 1 / 3 else None
        body = body_of(path, world.problem("calibration", number).prompt, max_tokens=160, model=name)
        parts, lines = [], 0
        async with client.stream("POST", path, json=body) as stream:
            if stream.status_code != 200:
                tally.refused += 1
                continue
            async for line in stream.aiter_lines():
                if line.startswith("data: {"):
                    parts.append(text_in(path, json.loads(line[6:])))
                    lines += 1
                if lines == leave_after:
                    break
        if lines == leave_after:
            tally.left += 1
            continue
        tally.finished += 1
        if "".join(parts) != expected[path, name, number]:
            tally.different += 1
            tally.shown.append((f"{path} {name} {number}", expected[path, name, number], "".join(parts)))


async def soak(minutes: float, streams: int) -> dict[str, Any]:
    # Not the pair's own policy: its drift monitor escalates sooner when many prompts in a row are not like those of
    # calibration (or their answers are left in the middle), so that its text depends on other requests, as it should.
    router = Router(policy="entropy>0.5", method="verify")
    expected = solo_runs(router)
    models = {name: policy for name, policy in POLICIES.items() if policy and not name.startswith("local/")}
    tally, process, memory = Tally(), psutil.Process(), []
    until = time.monotonic() + 60 * minutes
    limits = httpx2.Limits(max_connections=None)
    with serving(router, models=models):
        async with httpx2.AsyncClient(base_url=URL, timeout=120, limits=limits) as client:

            async def watch() -> None:
                while True:
                    memory.append(process.memory_info().rss / 2**20)
                    await asyncio.sleep(max(1.0, minutes * 60 / 200))

            watching = asyncio.create_task(watch())
            await asyncio.gather(*(keep_asking(client, expected, until, at, tally) for at in range(streams)))
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
        while router.load.running:  # whose clients have left
            await asyncio.sleep(0.01)
    await router.aclose()
    settled = memory[len(memory) // 4 :]
    return {
        "minutes": minutes,
        "streams": streams,
        "finished": tally.finished,
        "left": tally.left,
        "refused": tally.refused,
        "different": tally.different,
        "shown": tally.shown[:5],
        "memory_mib": {
            "after_a_quarter": round(settled[0], 1),
            "at_the_end": round(settled[-1], 1),
            "highest": round(max(memory), 1),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, help="a folder with qwen-0.5b.gguf, instead of random weights")
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--at-once", type=int, nargs="*", default=[1, 8], help="streams of the overhead")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--client", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.client:
        numbers, tokens, ends, row = json.loads(args.client)
        print(json.dumps(asyncio.run(over_http(numbers, tokens, dict.fromkeys(ends, -1e9), row))))
        return
    kept = RESULTS / "serve.json"  # what is not measured this time stays
    figures: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    if args.at_once:
        fast = random_model(HALF_BILLION) if args.models is None else args.models / "qwen-0.5b.gguf"
        settings = f"?n_seq=8&n_ctx=512&n_threads={args.threads}"
        slow = random_model(TENTH) if args.models is None else fast
        pair = [f"llama_cpp:{path}{settings}" for path in (fast, slow)]
        with Router(*pair, policy="never") as router, serving(router):
            for streams in args.at_once:
                figures[f"overhead_{streams}"] = overhead(router, streams, args.blocks, args.tokens)
                if streams == 1:
                    figures["first_token"] = first_token(router, args.blocks)
                figures["weights"] = "random" if args.models is None else fast.name
                figures["threads"] = args.threads
                print(json.dumps(figures[f"overhead_{streams}"]))
    if args.minutes:
        figures["soak"] = asyncio.run(soak(args.minutes, args.streams))
        print(json.dumps(figures["soak"]))
    save("serve", figures)


if __name__ == "__main__":
    main()
