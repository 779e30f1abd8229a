"""One algorithm, several drivers: the same answers, and nothing left open whatever interrupts them."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor

import numpy as np
import pytest
from scripted_pairs import Pair, finish, ids_of, make_engine, pair, prompt

from fsgen_router import BackendError, Router, TextDelta, drivers
from fsgen_router.adapters.scripted import ScriptedModel
from fsgen_router.reading import Warp
from fsgen_router.records import Role

POLICIES = ("never", "always", "every:3", "every:4,span=2", "random:0.3,span=rest", "entropy>1.5", "budget:0.2")
WARPS = (Warp(), Warp(temperature=0.8), Warp(temperature=1.4, top_k=6, top_p=0.9))


@pytest.fixture(scope="module")
def executors() -> Iterator[Mapping[Role, Executor]]:
    with ThreadPoolExecutor(1) as fast, ThreadPoolExecutor(1) as slow:
        yield {"fast": fast, "slow": slow}


def a_case(case: int, **options):
    """One random case's pair and a function that makes its engine anew."""
    rng = random.Random(case)
    policy, warp = rng.choice(POLICIES), rng.choice(WARPS)
    settings = {
        "warp": warp,
        "seed": case,
        "max_tokens": rng.randint(1, 20),
        "stop": rng.choice([(), ("ab",), (",", "é")]),
        "audit": rng.random() < 0.3,
    }
    models = pair(case, **options)
    return models, lambda: make_engine(models, policy, prompt(case), **settings)


def counters(usage) -> dict:
    """All counters but the clocks."""
    return {
        name: {k: v for k, v in value.items() if k != "seconds"} if isinstance(value, dict) else value
        for name, value in usage.to_dict().items()
        if "seconds" not in name
    }


async def afinish(engine, models: Pair, executors: Mapping[Role, Executor]):
    shown = [emit.text async for emit in drivers.arun(engine, models.models, executors)]
    return engine.generation, shown


async def test_sync_and_async_agree(executors: Mapping[Role, Executor]) -> None:
    for case in range(1000):
        models, make = a_case(case)
        found, shown = finish(make(), models)
        again, make = a_case(case)
        other, also_shown = await afinish(make(), again, executors)
        assert (other.text, ids_of(other), also_shown) == (found.text, ids_of(found), shown), case
        assert [token.source for token in other.tokens] == [token.source for token in found.tokens], case
        assert (other.finish_reason, other.degraded) == (found.finish_reason, found.degraded), case
        assert counters(other.usage) == counters(found.usage), case


async def test_many_at_once_agree_with_one_by_one(executors: Mapping[Role, Executor]) -> None:
    """Requests that share two models and interleave forward by forward."""
    for group in range(20):
        models = pair(group, n_seq=8)
        settings = [
            (POLICIES[n % len(POLICIES)], prompt(10 * group + n), {"seed": n, "warp": WARPS[n % 3]}) for n in range(8)
        ]
        alone = [finish(make_engine(pair(group), p, ids, **options), pair(group))[0] for p, ids, options in settings]
        engines = [make_engine(models, policy, ids, **options) for policy, ids, options in settings]
        together = await asyncio.gather(*(afinish(engine, models, executors) for engine in engines))
        assert [ids_of(found) for found, _ in together] == [ids_of(found) for found in alone]
        assert models.all_free


def test_time_between_events_is_the_consumers_own() -> None:
    """A reader that dawdles between events is not counted in the request's seconds."""
    models = pair(21)
    engine = make_engine(models, "every:2", [0, 1, 2])
    dawdled = threading.Event()
    for _ in drivers.run(engine, models.models):
        dawdled.wait(0.05)
    usage = engine.generation.usage
    assert usage.tokens > 1
    assert usage.seconds < 0.05 * usage.tokens
    assert 0 < usage.first_token_seconds <= usage.seconds


# --- interruptions -------------------------------------------------------------------------------


def test_closing_a_stream_at_any_point_frees_everything() -> None:
    for case in range(300):
        models, make = a_case(case, n_seq=1)
        expected, _ = finish(make(), pair(case, n_seq=1))
        stream = drivers.run(make(), models.models)
        for _ in zip(range(case % 9), stream, strict=False):
            pass
        stream.close()
        assert models.all_free
        assert ids_of(finish(make(), models)[0]) == ids_of(expected), case


async def test_closing_an_async_stream_at_any_point_frees_everything(executors: Mapping[Role, Executor]) -> None:
    for case in range(200):
        models, make = a_case(case, n_seq=1)
        expected, _ = finish(make(), pair(case, n_seq=1))
        async with contextlib.aclosing(drivers.arun(make(), models.models, executors)) as stream:
            for _ in range(case % 9):
                if await anext(stream, None) is None:
                    break
        assert models.all_free
        assert ids_of((await afinish(make(), models, executors))[0]) == ids_of(expected), case


class Gate:
    """Holds a model's forwards (or opens) up until the test lets them go."""

    def __init__(self) -> None:
        self.entered, self.go = threading.Semaphore(0), threading.Semaphore(0)

    def pass_through(self) -> None:
        self.entered.release()
        assert self.go.acquire(timeout=30)


class GatedModel(ScriptedModel):
    """A scripted model that says when it is in the middle of a forward, and waits there."""

    gate: Gate | None = None

    def forward(self, works):
        if self.gate is not None:
            self.gate.pass_through()
        return super().forward(works)


def gated(case: int) -> Pair:
    plain = pair(case, n_seq=1)
    return Pair(
        *(GatedModel(m.script, m.tokenizer, name=m.name, n_seq=1) for m in (plain.fast, plain.slow)),
    )


async def in_thread(function, *args):
    return await asyncio.get_running_loop().run_in_executor(None, function, *args)


@pytest.mark.parametrize("role", ["fast", "slow"])
@pytest.mark.parametrize("cancels", [1, 3])
@pytest.mark.parametrize("forward", [0, 1, 2])
async def test_a_task_cancelled_in_the_middle_of_a_forward(
    executors: Mapping[Role, Executor], role: Role, cancels: int, forward: int
) -> None:
    """A forward cannot be broken off: the cancelled task waits for it, then closes its sequence."""
    models, ids = gated(21), [0, 1, 2]
    expected = finish(make_engine(pair(21), "always", ids), pair(21))[0]
    assert len(expected.tokens) > 3
    gate = models.models[role].gate = Gate()
    task = asyncio.create_task(afinish(make_engine(models, "always", ids), models, executors))
    for _ in range(forward):
        await in_thread(gate.entered.acquire)
        gate.go.release()
    await in_thread(gate.entered.acquire)
    for _ in range(cancels):
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
    gate.go.release()
    with pytest.raises(asyncio.CancelledError):
        await task
    models.models[role].gate = None
    assert models.all_free
    assert ids_of((await afinish(make_engine(models, "always", ids), models, executors))[0]) == ids_of(expected)


@pytest.mark.parametrize("cancels", [1, 3])
async def test_a_task_cancelled_while_its_sequence_is_being_opened(cancels: int) -> None:
    """The open is still queued behind other work when the task is cancelled; it must not be lost."""
    models, busy = pair(22, n_seq=1), threading.Event()
    with ThreadPoolExecutor(1) as fast, ThreadPoolExecutor(1) as slow:
        fast.submit(busy.wait)
        task = asyncio.create_task(afinish(make_engine(models, "never", [0]), models, {"fast": fast, "slow": slow}))
        await asyncio.sleep(0.01)
        for _ in range(cancels):
            task.cancel()
            await asyncio.sleep(0)
        busy.set()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert models.all_free


async def test_random_cancellations_leave_the_models_usable(executors: Mapping[Role, Executor]) -> None:
    rng = random.Random(0)
    for case in range(100):
        models, make = a_case(case, n_seq=1)
        task = asyncio.create_task(afinish(make(), models, executors))
        for _ in range(rng.randrange(60)):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert models.all_free


def test_ctrl_c_in_the_middle_of_a_forward() -> None:
    for after in (0, 1, 4):
        models, ids = pair(23, n_seq=1), [0, 1]
        expected = finish(make_engine(pair(23), "every:2", ids), pair(23))[0]
        assert len(expected.tokens) > 6
        plain, left = models.fast.script, [after]

        def interrupted(ids: Sequence[int], plain=plain, left=left) -> np.ndarray:
            if left[0] == 0:
                left[0] = -1
                raise KeyboardInterrupt
            left[0] -= 1
            return plain(ids)

        models.fast.script = interrupted
        with pytest.raises(KeyboardInterrupt):
            finish(make_engine(models, "every:2", ids), models)
        assert models.all_free
        assert ids_of(finish(make_engine(models, "every:2", ids), models)[0]) == ids_of(expected)


# --- the same through a Router -------------------------------------------------------------------


def router_of(models: Pair, **options) -> Router:
    return Router(models.fast, models.slow, **options)


def a_text(case: int) -> str:
    rng = random.Random(case)
    return "".join(rng.choice(["a", "b", " c", "7", ",", "né", "stop"]) for _ in range(rng.randint(1, 8)))


async def test_a_router_gives_one_text_by_every_way() -> None:
    for case in range(150):
        models = pair(case)
        options = {"max_tokens": 15, "seed": case, "temperature": (0.0, 1.0)[case % 2], "stop": "ab"}
        with router_of(models, policy=POLICIES[case % 6]) as router:
            text = a_text(case)
            answer = router.complete(text, **options)
            streamed = [event.text for event in router.stream(text, **options) if isinstance(event, TextDelta)]
            assert "".join(streamed) == answer.text
            assert (await router.acomplete(text, **options)).text == answer.text
            streamed = [event.text async for event in router.astream(text, **options) if isinstance(event, TextDelta)]
            assert "".join(streamed) == answer.text


async def test_a_router_stream_that_is_given_up_frees_its_place_at_once() -> None:
    """With one sequence per model, the next request needs what the last one gave back."""
    models = pair(30, n_seq=1)
    with router_of(models, policy="every:2") as router:
        expected = router.complete("a")
        assert len(expected.tokens) > 4
        for stop_after in (1, 2, 4):
            stream = router.stream("a")
            for _ in range(stop_after):
                next(stream)
            stream.close()
            assert router.complete("a").text == expected.text
            async with contextlib.aclosing(router.astream("a")) as astream:
                for _ in range(stop_after):
                    await anext(astream)
            assert models.all_free
            answer = await router.acomplete("a")
            assert (answer.text, answer.degraded) == (expected.text, None)


async def test_requests_cancelled_while_they_wait_for_a_sequence() -> None:
    models = pair(31, n_seq=1)
    with router_of(models, policy="every:2") as router:
        expected = router.complete("a").text
        stream = router.stream("a")
        next(stream)
        waiting = [asyncio.create_task(router.acomplete("a")) for _ in range(6)]
        await asyncio.sleep(0.01)
        for task in waiting[::2]:
            task.cancel()
        await asyncio.sleep(0)
        stream.close()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(r) is asyncio.CancelledError for r in results] == [True, False] * 3
        assert {r.text for r in results[1::2]} == {expected}
        # Every place is free again.
        assert (await asyncio.wait_for(router.acomplete("a"), 30)).text == expected
        assert models.all_free


async def test_a_fast_failure_reaches_the_caller_of_either_driver(executors: Mapping[Role, Executor]) -> None:
    plain = pair(32)
    models = Pair(ScriptedModel(plain.fast.script, plain.fast.tokenizer, n_seq=1, fail_after=2), plain.slow)
    with pytest.raises(BackendError):
        await afinish(make_engine(models, "never", [0]), models, executors)
    with pytest.raises(BackendError):
        finish(make_engine(models, "never", [0]), models)
    assert models.all_free
