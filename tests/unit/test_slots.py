"""A request is admitted or refused at its call, and its place comes back whatever becomes of it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from scripted_pairs import N_VOCAB, Pair, pair

from fsgen_router import InvalidRequest, NoFreeSequence, QueueFull, Router, RouterClosed
from fsgen_router.run.slots import Slots

DRIVERS = pytest.mark.parametrize("batching", [False, True], ids=["alone", "batching"])


@pytest.fixture
def models() -> Pair:
    models = pair(33, n_seq=1)
    models.fast.script = models.slow.script = lambda ids: np.eye(N_VOCAB, dtype=np.float32)[0]
    return models


@pytest.fixture
def make(models: Pair) -> Iterator[Callable[..., Router]]:
    """Routers with one sequence per model, which two places more may wait for."""
    made: list[Router] = []

    def router(**options: Any) -> Router:
        made.append(Router(models.fast, models.slow, policy="never", **{"max_waiting": 2, **options}))
        return made[-1]

    yield router
    for one in made:
        one.close()


def places(router: Router) -> int:
    return router._slots._admitted


CALLS: dict[str, Callable[[Router], Any]] = {
    "stream": lambda router: router.stream("a"),
    "stream_chat": lambda router: router.stream_chat([{"role": "user", "content": "a"}]),
    "astream": lambda router: router.astream("a"),
    "astream_chat": lambda router: router.astream_chat([{"role": "user", "content": "a"}]),
    "measure": lambda router: router.measure(seconds=0.0),
    "measure_steps": lambda router: router.measure_steps(1),
}


@pytest.mark.parametrize("call", CALLS)
@DRIVERS
def test_a_full_queue_refuses_at_the_call(make: Callable[..., Router], call: str, batching: bool) -> None:
    """Not at the first event, when a server has said 200; and without an event loop."""
    router = make(batching=batching)
    kept = [router.stream("a"), router.astream("a"), router.stream("a")]
    with pytest.raises(QueueFull, match=r"^0 requests are being answered and 3 are waiting \(.*max_waiting"):
        CALLS[call](router)
    kept.pop().close()
    CALLS[call](router)
    assert places(router) == len(kept)


@pytest.mark.parametrize("call", ["acomplete", "achat"])
async def test_an_awaited_answer_is_refused_when_it_is_awaited(make: Callable[..., Router], call: str) -> None:
    router = make(max_waiting=0)
    kept = router.astream("a")
    with pytest.raises(QueueFull):
        await (router.acomplete("a") if call == "acomplete" else router.achat([{"role": "user", "content": "a"}]))
    await kept.aclose()
    assert (await router.acomplete("a", max_tokens=3)).text == "aaa"
    assert places(router) == 0


def test_a_bad_request_takes_no_place(make: Callable[..., Router]) -> None:
    router = make()
    for call in (router.stream, router.astream):
        with pytest.raises(InvalidRequest):
            call("a", max_tokens=-1)
    assert places(router) == 0


@pytest.mark.parametrize("way", ["closed", "dropped", "in a cycle", "told to stop"])
@DRIVERS
def test_a_stream_that_nobody_reads_keeps_no_place(make: Callable[..., Router], way: str, batching: bool) -> None:
    router = make(batching=batching)
    for _ in range(5):
        stream = router.stream("a")
        assert places(router) == 1
        if way == "closed":
            stream.close()
            stream.close()
            assert next(stream, None) is None
        elif way == "told to stop":
            with pytest.raises(KeyboardInterrupt):
                stream.throw(KeyboardInterrupt)
        elif way == "in a cycle":
            box: list[Any] = [stream]
            box.append(box)
            del stream, box
            gc.collect()
        else:
            del stream
        assert places(router) == 0
    assert router.complete("a", max_tokens=3).text == "aaa"


@pytest.mark.parametrize("way", ["closed", "dropped", "cancelled", "told to stop"])
async def test_an_asynchronous_stream_that_nobody_reads_keeps_no_place(make: Callable[..., Router], way: str) -> None:
    router = make()
    for _ in range(5):
        stream = router.astream("a")
        assert places(router) == 1
        if way == "closed":
            await stream.aclose()
            await stream.aclose()
            assert await anext(stream, None) is None
        elif way == "told to stop":
            with pytest.raises(KeyError):
                await stream.athrow(KeyError)
        elif way == "cancelled":  # before it has begun
            task = asyncio.ensure_future(anext(stream))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            del task, stream
            await asyncio.sleep(0.01)  # the loop closes what it has seen begin
        else:
            del stream
        assert places(router) == 0
    assert (await router.acomplete("a", max_tokens=3)).text == "aaa"


async def test_cancelled_before_its_first_event_it_leaves_the_queue(make: Callable[..., Router]) -> None:
    router = make()
    with contextlib.closing(router.stream("a", max_tokens=2000)) as running:
        next(running)
        for _ in range(5):
            stream = router.astream("a")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(stream), 0.01)
            assert places(router) == 1
    assert places(router) == 0


def test_places_are_read_in_any_order(make: Callable[..., Router]) -> None:
    """A place is no slot: who reads the later one first would else wait for one that itself holds."""
    router = make(batching=False)
    first, second, third = (router.stream("a", max_tokens=3) for _ in range(3))
    assert [len(list(stream)) for stream in (third, first, second)] == [4, 4, 4]
    assert places(router) == 0


def test_one_thread_is_still_told_that_it_would_wait_for_itself(make: Callable[..., Router]) -> None:
    router = make(batching=False)
    first, second = router.stream("a"), router.stream("a")
    next(first)
    with pytest.raises(NoFreeSequence, match="1 streams open"):
        next(second)
    assert places(router) == 1
    first.close()
    assert router.complete("a", max_tokens=3).text == "aaa"


def test_a_stream_is_read_in_another_loop_than_it_was_called_in(make: Callable[..., Router]) -> None:
    router = make(max_waiting=0)

    async def call() -> Any:
        return router.astream("a", max_tokens=3)

    async def read(stream: Any) -> int:
        return len([event async for event in stream])

    for _ in range(3):
        stream = asyncio.run(call())
        assert places(router) == 1
        assert asyncio.run(read(stream)) == 4
        assert places(router) == 0


def test_who_waits_in_a_loop_that_is_closed_is_no_longer_counted(make: Callable[..., Router]) -> None:
    router = make()
    running = router.stream("a", max_tokens=2000)
    next(running)
    loop = asyncio.new_event_loop()
    tasks = [loop.create_task(router.acomplete("a")) for _ in range(2)]
    loop.run_until_complete(asyncio.sleep(0))
    with pytest.raises(QueueFull):
        router.stream("a")
    loop.close()
    stream = router.stream("a", max_tokens=3)
    assert places(router) == 2
    running.close()
    assert len(list(stream)) == 4
    assert places(router) == 0
    for task in tasks:
        task._log_destroy_pending = False  # type: ignore[attr-defined]


@DRIVERS
def test_a_closed_router_gives_every_place_back(make: Callable[..., Router], batching: bool) -> None:
    router = make(batching=batching)
    unread, stream = router.stream("a"), router.stream("a")
    router.close()
    for one in (stream, unread):
        with pytest.raises(RouterClosed):
            next(one)
    assert places(router) == 0


def test_a_routers_load_says_how_busy_it_is(make: Callable[..., Router]) -> None:
    router = make(batching=False)
    seen = [router.load]
    first = router.stream("a", max_tokens=2)
    seen.append(router.load)  # called, and not yet asked for a place
    next(first)
    second = router.stream("a", max_tokens=2)
    seen.append(router.load)
    for stream in (first, second):
        stream.close()  # type: ignore[attr-defined]
    seen.append(router.load)
    assert [(one.running, one.waiting, one.room) for one in seen] == [(0, 0, 3), (0, 1, 2), (1, 1, 1), (0, 0, 3)]
    assert seen[0].places == 1
    router.close()
    with pytest.raises(RouterClosed):
        router.load  # noqa: B018


def test_a_twin_waits_in_the_same_queue(make: Callable[..., Router]) -> None:
    router = make(max_waiting=0)
    twin = router.with_policy("always")
    stream = router.stream("a")
    with pytest.raises(QueueFull):
        twin.stream("a")
    stream.close()
    assert twin.complete("a", max_tokens=3).text == "aaa"


def test_a_place_that_is_collected_under_the_lock_comes_back() -> None:
    """In the middle of another request's admission, where any allocation may set the collector off."""
    slots = Slots(1, 1)

    def leak() -> None:
        box: list[Any] = [slots.admit()]
        box.append(box)

    gc.disable()
    try:
        leak()
        with slots._lock:
            gc.collect()
            assert slots._admitted == 0
        kept = [slots.admit(), slots.admit()]
        with pytest.raises(QueueFull):
            slots.admit()
        assert len(kept) == 2
    finally:
        gc.enable()


def test_many_threads_leave_no_place_behind(make: Callable[..., Router]) -> None:
    router = make(max_waiting=50)
    refused: list[int] = []

    def work(number: int) -> None:
        for turn in range(30):
            try:
                stream = router.stream("a", max_tokens=3)
            except QueueFull:
                refused.append(number)
                continue
            if (number + turn) % 3:
                for _ in range(turn % 4):
                    next(stream, None)
            if turn % 2:
                stream.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert not refused
    assert places(router) == 0
    assert router._slots._free == 1
