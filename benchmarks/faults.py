"""Answers through an endpoint that fails at random: complete, marked, counted, and nothing left behind.

The reference pair with its slow model behind llama.cpp's own server (xllamacpp), and between the two a proxy that lets
a share of the requests go wrong: resets, stalls, streams that are cut, truncated or malformed, 429 and 5xx, and more
(``tests/support/faulty.py``). Every answer is held against what went over the wire: no byte lost or doubled, what broke
off marked, usage as the server counted it. Threads and coroutines are mixed, and some requests are left half-way.

    python benchmarks/faults.py --runs 1000 --seed 1
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import logging
import os
import random
import sys
import tempfile
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from endpoints import native_server
from faulty import Exchange, FaultProxy, check_answer, fault_proxy, random_faults

from fsgen_router import Finished, Generation, Router, SmallExtentWarning, TextDelta, reference
from fsgen_router.reference import world

from common import save

POLICIES = ("every:8,span=10", "entropy>0.6,span=rest", "random:0.1,span=16", "always,span=rest")
OPTIONS = "first_token_timeout_seconds=2&read_timeout_seconds=2&max_retries=1&breaker_failures=3&breaker_seconds=0.3"
SPLITS = ("calibration", "test")


class Runs:
    """What became of the runs, and what was wrong with any."""

    def __init__(self, proxy: FaultProxy, router: Router, seed: int, left_share: float) -> None:
        self.proxy, self.router, self.seed, self.left_share = proxy, router, seed, left_share
        self.counts: collections.Counter[str] = collections.Counter()
        self.tokens: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []
        self._lock = threading.Lock()

    def run(self, number: int) -> None:
        rng = random.Random(f"{self.seed}/{number}")
        # A prompt of its own, by which its calls are known.
        prompt = f"{number}. {world.problem(SPLITS[number % 2], number // 2).prompt}\n"
        options = {"max_tokens": 60, "seed": 1, "policy": rng.choice(POLICIES)}
        leave = rng.randrange(1, 30) if rng.random() < self.left_share else None
        shown: list[str] = []
        try:
            answer = asyncio.run(self._async(prompt, options, leave, shown)) if number % 2 else None
            if not number % 2:
                answer = self._sync(prompt, options, leave, shown)
            if answer is None:
                self._count("left half-way")
                return
            self._check(answer, shown, prompt)
        except Exception:
            with self._lock:
                self.wrong.append(f"run {number}: {traceback.format_exc()}")

    def _sync(self, prompt: str, options: dict[str, Any], leave: int | None, shown: list[str]) -> Generation | None:
        with contextlib.closing(self.router.stream(prompt, **options)) as events:  # type: ignore[type-var]
            for count, event in enumerate(events):
                if count == leave:
                    return None
                if isinstance(event, Finished):
                    return event.generation
                shown.append(event.text if isinstance(event, TextDelta) else "")
        raise AssertionError("a stream ends with Finished")

    async def _async(
        self, prompt: str, options: dict[str, Any], leave: int | None, shown: list[str]
    ) -> Generation | None:
        async with contextlib.aclosing(self.router.astream(prompt, **options)) as events:  # type: ignore[type-var]
            count = 0
            async for event in events:
                if count == leave:
                    return None
                if isinstance(event, Finished):
                    assert asyncio.all_tasks() == {asyncio.current_task()}, "a task was left"
                    return event.generation
                shown.append(event.text if isinstance(event, TextDelta) else "")
                count += 1
        raise AssertionError("a stream ends with Finished")

    def _check(self, answer: Generation, shown: list[str], prompt: str) -> None:
        calls = [call for call in list(self.proxy.exchanges) if _of(call, prompt)]
        check_answer(answer, shown, prompt, calls)
        failed = sum(call.fault.kind not in ("none", "dribble", "comments") for call in calls)
        refused = "is not asked" in (answer.degraded or "")
        self._count("answered")
        self._count("degraded" if answer.degraded else "tried again and whole" if failed else "whole")
        if refused:
            self._count("refused by the breaker")
        with self._lock:
            slow = answer.usage.slow
            self.tokens.update(prompt=slow.prefill, cached=slow.cached, written=slow.decode)

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1


def _of(call: Exchange, prompt: str) -> bool:
    return bool(call.body.get("stream")) and str(call.body.get("prompt", "")).startswith(prompt)


def sockets() -> int:
    """Connections that this process holds."""
    return len(psutil.Process().net_connections("tcp"))


def faults(runs: int, seed: int, share: float, at_once: int) -> dict[str, Any]:
    os.environ.pop("OPENAI_API_KEY", None)
    events: collections.Counter[str] = collections.Counter()
    counting = logging.Handler()
    counting.emit = lambda record: events.update([getattr(record, "event", "")])  # type: ignore[method-assign]
    logger = logging.getLogger("fsgen_router")
    logger.addHandler(counting)
    logger.setLevel(logging.INFO)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, native_server(Path(folder), reference.path("slow")) as server:
        os.environ["FSGEN_CACHE"] = folder
        with fault_proxy(server.url, random_faults(seed, share)) as proxy:
            # All that a process starts once (a pool's threads, an event loop) is there before it is counted.
            fast = f"reference:fast?n_seq={at_once}"
            with Router(fast, f"openai:slow@{proxy.url}?{OPTIONS}", policy=POLICIES[0]) as router:
                checked = Runs(proxy, router, seed, left_share=0.1)
                before_threads, before_sockets = threading.active_count(), sockets()
                with ThreadPoolExecutor(at_once) as pool:
                    for done, _ in enumerate(pool.map(checked.run, range(runs)), 1):
                        if done % 100 == 0:
                            print(f"{done} runs, {len(checked.wrong)} wrong, {dict(checked.counts)}", flush=True)
            for _ in range(200):  # what was left ends at once, but not in no time
                if not proxy.connections and not [t for t in threading.enumerate() if t.name.startswith("fsgen-")]:
                    break
                time.sleep(0.05)
            left = [thread.name for thread in threading.enumerate() if thread.name.startswith("fsgen-")]
            kinds = collections.Counter(call.fault.kind for call in proxy.exchanges)
            result = {
                "pair": world.VERSION,
                "runs": runs,
                "seed": seed,
                "fault_share": share,
                "at_once": at_once,
                "wrong": len(checked.wrong),
                "outcomes": dict(sorted(checked.counts.items())),
                "calls": len(proxy.exchanges),
                "faults": dict(sorted(kinds.items())),
                "events": {name: count for name, count in sorted(events.items()) if name},
                "slow_tokens_counted": dict(checked.tokens),
                "left": {
                    "connections_of_the_proxy": proxy.connections,
                    "sockets": sockets() - before_sockets,
                    "threads": left,
                    "threads_more": threading.active_count() - before_threads,
                },
                "seconds": round(time.monotonic() - began, 1),
            }
    for wrong in checked.wrong[:5]:
        print(wrong, file=sys.stderr)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--share", type=float, default=0.3, help="of the requests that go wrong")
    parser.add_argument("--at-once", type=int, default=4, help="requests under way")
    parser.add_argument("--json", action="store_true", help="print the result alone, and keep no file")
    args = parser.parse_args()
    import warnings

    warnings.simplefilter("ignore", SmallExtentWarning)
    with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
        result = faults(args.runs, args.seed, args.share, args.at_once)
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        save("faults", result)
    if result["wrong"] or any(result["left"].values()):
        sys.exit("something was wrong, or left behind")


if __name__ == "__main__":
    main()
