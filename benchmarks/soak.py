"""Many streams for a long time: memory stays flat, and no text is lost or crossed.

Keeps ``--streams`` requests of the reference pair under way at once, coroutines and threads mixed, raw
prompts and chats, several policies and methods, a third of them cancelled at a random moment. Every
answer that ends is compared to its solo run, made beforehand, one at a time.

    python benchmarks/soak.py --minutes 60 --streams 16
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from typing import Any

import psutil

from fsgen_router import Router, TextDelta, reference
from fsgen_router.reference import world

from common import save

# Thresholds and draws are compared by text: batches sum in another order than single steps, so a tie of
# more than seven digits may fall either way. Such a difference is counted apart, and shown.
POLICIES = (
    ("entropy>0.7", "replace"),
    ("entropy>0.7", "verify"),
    ("every:6", "verify"),
    ("random:0.1,span=4", "replace"),
)
PROMPTS = 60


def ask(router: Router, number: int, way: str) -> Any:
    """One stream: the asynchronous or the synchronous iterator of a prompt as raw text or as a chat."""
    text = world.problem("calibration", number).prompt
    options: dict[str, Any] = {"max_tokens": 160, "seed": 1}
    if number % 2:
        messages = [{"role": "user", "content": text}]
        return router.astream_chat(messages, **options) if way == "async" else router.stream_chat(messages, **options)
    return router.astream(text + "\n", **options) if way == "async" else router.stream(text + "\n", **options)


class Tally:
    def __init__(self) -> None:
        self.finished = self.cancelled = self.different = 0
        self.shown: list[tuple[str, str]] = []

    def compare(self, found: str, expected: str) -> None:
        self.finished += 1
        if found != expected:
            self.different += 1
            self.shown.append((expected, found))


def in_thread(router: Router, number: int, stop_after: int | None, expected: str, tally: Tally) -> None:
    stream, parts = ask(router, number, "sync"), []
    for count, event in enumerate(stream):
        if count == stop_after:
            stream.close()
            tally.cancelled += 1
            return
        if isinstance(event, TextDelta):
            parts.append(event.text)
    tally.compare("".join(parts), expected)


async def in_task(router: Router, number: int, expected: str, tally: Tally) -> None:
    parts = [event.text async for event in ask(router, number, "async") if isinstance(event, TextDelta)]
    tally.compare("".join(parts), expected)


async def stream_for_ever(
    routers: list[Router], expected: dict[tuple[int, int], str], until: float, rng: random.Random, tally: Tally
) -> None:
    while time.monotonic() < until:
        which, number = rng.randrange(len(routers)), rng.randrange(PROMPTS)
        give_up = rng.random() < 1 / 3
        right = expected[which, number]
        if rng.random() < 0.5:
            stop_after = rng.randrange(40) if give_up else None
            await asyncio.to_thread(in_thread, routers[which], number, stop_after, right, tally)
            continue
        task = asyncio.create_task(in_task(routers[which], number, right, tally))
        if give_up:
            await asyncio.sleep(rng.random() * 0.3)
            if task.cancel():
                tally.cancelled += 1
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()


async def soak(args: argparse.Namespace) -> dict[str, Any]:
    models = [reference.load(which, n_seq=args.streams) for which in ("fast", "slow")]
    base = Router(*models, policy="budget:0.2")
    routers = [base.with_policy(policy, method=method) for policy, method in POLICIES]
    expected = {}
    for which, router in enumerate(routers):
        for number in range(PROMPTS):
            events = ask(router, number, "sync")
            expected[which, number] = "".join(event.text for event in events if isinstance(event, TextDelta))
    process, tally = psutil.Process(), Tally()
    began, until = time.monotonic(), time.monotonic() + 60 * args.minutes
    streams = [
        asyncio.create_task(stream_for_ever(routers, expected, until, random.Random(seed), tally))
        for seed in range(args.streams)
    ]
    memory: list[float] = []
    while time.monotonic() < until:
        await asyncio.sleep(min(args.every, max(until - time.monotonic(), 0.01)))
        memory.append(process.memory_info().rss / 2**20)
        print(
            f"{(time.monotonic() - began) / 60:6.1f} min  {memory[-1]:7.1f} MiB  {tally.finished} finished, "
            f"{tally.cancelled} cancelled, {tally.different} different",
            flush=True,
        )
        for task in streams:
            if task.done():
                task.result()
    await asyncio.gather(*streams)
    for router in routers:
        router.close()
    base.close()
    # Every sequence is free again.
    for model in models:
        opened = [model.open([]).sequence for _ in range(model.n_seq)]
        for sequence in opened:
            model.close(sequence)
        model.shutdown()
    for right, found in tally.shown[:5]:
        print("expected:", right, "\nfound:   ", found)
    tenth = max(len(memory) // 10, 1)
    return {
        "pair": world.VERSION,
        "streams": args.streams,
        "minutes": args.minutes,
        "finished": tally.finished,
        "cancelled": tally.cancelled,
        "different_from_the_solo_run": tally.different,
        "memory_mib": {
            "after_the_first_tenth": round(memory[tenth - 1], 1),
            "at_the_end": round(memory[-1], 1),
            "highest_after_the_first_tenth": round(max(memory[tenth - 1 :]), 1),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--every", type=float, default=60.0, help="seconds between looks at memory")
    args = parser.parse_args()
    save("soak", asyncio.run(soak(args)))


if __name__ == "__main__":
    main()
