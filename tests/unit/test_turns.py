"""Models on one device take turns: their forwards never overlap, requests are kept in step, nobody starves."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_pairs import N_VOCAB, Pair, finish, ids_of, make_engine, pair, prompt

from fsgen_router import BackendError, Router, RouterClosed
from fsgen_router.adapters.scripted import ScriptedModel
from fsgen_router.contracts.models import Work
from fsgen_router.run import drivers, turns
from fsgen_router.run.turns import Device, Line, StepTimes, fixed_seconds, next_turn, turn_of
from fsgen_router.run.workers import Workers

POLICIES = ("never", "always", "every:3", "every:4,span=2", "random:0.3,span=rest", "entropy>1.5", "budget:0.2")


# --- what a forward costs ------------------------------------------------------------------------


@given(st.floats(0.001, 1.0), st.floats(0.0, 0.1), st.lists(st.integers(1, 500), min_size=2, max_size=32, unique=True))
def test_the_fixed_part_of_a_forward_is_found(fixed: float, each: float, tokens: list[int]) -> None:
    assert fixed_seconds([(count, fixed + each * count) for count in tokens]) == pytest.approx(fixed, rel=1e-6)


def test_a_forward_that_stalled_moves_nothing() -> None:
    times = StepTimes()
    assert times.fixed is None
    for number in range(24):
        times.add(1 + number % 8, 30.0 if number in (3, 11) else 0.1 + 0.01 * (1 + number % 8))
    assert times.fixed == pytest.approx(0.1, rel=0.1)
    assert times.usual < 0.2


@pytest.mark.parametrize("seconds", [[0.2], [0.2, 0.1, 0.3]])
def test_with_one_size_all_of_it_is_fixed(seconds: list[float]) -> None:
    assert fixed_seconds([(4, one) for one in seconds]) == pytest.approx(0.2)


# --- whose turn it is ----------------------------------------------------------------------------

FAST, SLOW = 0.02, 0.1


def turn(blocked: int, live: int, *, lost: float = 0.0, waited: float = 0.0, slow: float | None = SLOW) -> str:
    """Whose turn it is where ``blocked`` of ``live`` requests wait for the slow model."""
    lines = [Line(live - blocked, FAST, FAST, 0.0, 0.0), Line(blocked, slow, 4 * SLOW, lost, waited)]
    return ("fast", "slow")[next_turn(lines, live)]


def test_the_slow_model_waits_for_all_until_that_has_cost_what_it_saves() -> None:
    assert turn(1, 1) == "slow"  # a single request waits for nobody
    assert turn(4, 4) == "slow"
    assert turn(3, 4) == "fast"
    assert turn(3, 4, lost=0.99 * SLOW) == "fast"
    assert turn(3, 4, lost=SLOW) == "slow"
    assert turn(2, 4, lost=SLOW) == "fast"
    assert turn(2, 4, lost=2 * SLOW) == "slow"
    assert turn(1, 4, waited=11.9 * SLOW) == "fast"
    assert turn(1, 4, waited=12 * SLOW) == "slow"  # however little each of the fast model's forwards cost
    assert turn(1, 4, slow=None) == "slow"  # what it costs is to be learned
    assert turn(0, 4, lost=9.0, waited=9.0) == "fast"  # it reads ahead for who goes on


@given(
    st.lists(
        st.builds(
            Line,
            blocked=st.integers(1, 8),
            fixed=st.floats(0.001, 1.0),
            usual=st.floats(0.001, 1.0),
            lost=st.just(0.0),
            waited=st.just(0.0),
        ),
        min_size=2,
        max_size=3,
    )
)
def test_every_line_has_its_turn_in_the_end(lines: list[Line]) -> None:
    """However many models there are and whatever they cost, with nobody ever leaving a line."""
    live = sum(line.blocked for line in lines)
    served, clock, since = set(), 0.0, [0.0] * len(lines)
    lost = [0.0] * len(lines)
    for _ in range(100_000):
        now = [Line(line.blocked, line.fixed, line.usual, lost[at], clock - since[at]) for at, line in enumerate(lines)]
        chosen = next_turn(now, live)
        served.add(chosen)
        clock += lines[chosen].usual
        for at, line in enumerate(lines):
            lost[at] += (lines[chosen].fixed or 0.0) * line.blocked
        lost[chosen], since[chosen] = 0.0, clock
        if len(served) == len(lines):
            return
    pytest.fail(f"served: {served}")


# --- forwards ------------------------------------------------------------------------------------


class Timeline:
    """How many forwards of some models are under way, and the most there ever were."""

    def __init__(self) -> None:
        self._lock, self._now, self.most = threading.Lock(), 0, 0

    @contextlib.contextmanager
    def forward(self) -> Iterator[None]:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            yield
        finally:
            with self._lock:
                self._now -= 1


class Timed(ScriptedModel):
    """Its forwards take a fixed time and one for each token; it notes who was in them."""

    def __init__(self, plain: ScriptedModel, timeline: Timeline, *, seconds: Callable[[int], float], **options) -> None:
        super().__init__(plain.script, plain.tokenizer, name=plain.name, n_params=plain.n_params, **options)
        self.timeline, self.seconds = timeline, seconds
        self.sizes: list[int] = []

    def forward(self, works: Sequence[Work]):
        with self.timeline.forward():
            self.sizes.append(len(works))
            time.sleep(self.seconds(sum(len(work.ids) for work in works)))
            return super().forward(works)


def timed(
    case: int,
    *,
    devices: tuple[str | None, str | None] = ("cpu", "cpu"),
    fast: Callable[[int], float] = lambda tokens: 0.0005,
    slow: Callable[[int], float] = lambda tokens: 0.002,
    endless: bool = False,
    **options,
) -> tuple[Pair, Timeline]:
    plain, timeline = pair(case), Timeline()
    if endless:
        plain.fast.script = plain.slow.script = lambda ids: np.eye(N_VOCAB, dtype=np.float32)[0]
    models = [
        Timed(model, timeline, seconds=seconds, device=device, **{"n_seq": 8, **options})
        for model, seconds, device in zip((plain.fast, plain.slow), (fast, slow), devices, strict=True)
    ]
    return Pair(*models), timeline


def hasty(case: int) -> Callable[[int], float]:
    rng = random.Random(case)
    return lambda tokens: rng.random() * 0.001


@pytest.mark.parametrize("batching", [False, True])
def test_forwards_on_one_device_never_overlap(batching: bool) -> None:
    """Neither those of a Router, its twins and baselines, nor those of another Router on that device."""
    for case in range(2):
        (first, timeline), (second, _) = (timed(case, fast=hasty(case), slow=hasty(case + 9)) for _ in range(2))
        for model in (second.fast, second.slow):
            model.timeline = timeline
        with contextlib.ExitStack() as stack:
            pool = stack.enter_context(ThreadPoolExecutor(8))
            routers = [
                stack.enter_context(Router(one.fast, one.slow, policy="every:3", batching=batching))
                for one in (first, second)
            ]
            routers += [stack.enter_context(routers[0].with_policy("random:0.3", method="replace"))]
            expected = [
                router.complete("ab7"[number % 2 :], seed=1, max_tokens=24).text
                for number in range(4)
                for router in routers
            ]
            jobs = [
                pool.submit(router.complete, "ab7"[number % 2 :], seed=1, max_tokens=24, baseline=number % 3 == 0)
                for number in range(4)
                for router in routers
            ]
            assert [job.result(60).text for job in jobs] == expected
        assert timeline.most == 1
        assert first.all_free


@pytest.mark.parametrize("batching", [False, True])
@pytest.mark.parametrize(
    ("devices", "share"),
    [((None, None), 1.0), (("cuda:0", "cuda:1"), 1.0), (("cpu", None), 1.0), (("cpu", "cpu"), 0.5)],
)
def test_forwards_overlap_on_two_devices_and_where_both_fit_on_one(
    devices: tuple[str | None, str | None], share: float, batching: bool
) -> None:
    """Each model's forward waits until the other's is under way, too."""
    both = threading.Barrier(2)
    met: list[int] = []

    def meet(tokens: int) -> float:
        with contextlib.suppress(threading.BrokenBarrierError):
            met.append(both.wait(5))
        return 0.0

    models, timeline = timed(3, devices=devices, device_share=share, fast=meet, slow=meet, endless=True)
    with (
        Router(models.fast, models.slow, policy="never", batching=batching) as router,
        router.with_policy("always,span=rest", method="replace") as asking,
        ThreadPoolExecutor(2) as pool,
    ):
        jobs = [pool.submit(one.complete, "a", max_tokens=3) for one in (router, asking)]
        while not met and not all(job.done() for job in jobs):
            time.sleep(0.01)
        both.abort()
        for job in jobs:
            job.result(60)
    assert timeline.most == 2


@pytest.mark.parametrize("batching", [False, True])
def test_what_calls_forwards_itself_waits_for_its_turn(batching: bool) -> None:
    """Also where a request's own thread calls them."""
    models, _ = timed(3)
    done = threading.Event()
    with Router(models.fast, models.slow, policy="never", batching=batching) as router:
        other = threading.Thread(target=lambda: router.run_forwards("slow", done.set))
        with turn_of(models.fast):
            other.start()
            assert not done.wait(0.3)
        assert done.wait(30)
        other.join()


@pytest.mark.parametrize(("policy", "least"), [("every:6", 3.2), ("random:0.2", 2.2)])
async def test_requests_share_their_forwards(policy: str, least: float) -> None:
    """Also where they begin one after the other, out of step."""
    models, _ = timed(
        5,
        endless=True,
        fast=lambda tokens: 0.002 + 0.0005 * tokens,
        slow=lambda tokens: 0.01 + 0.001 * tokens,
    )
    with Router(models.fast, models.slow, policy=policy, method="verify") as router:

        async def one(number: int) -> str:
            await asyncio.sleep(0.01 * number)
            return (await router.acomplete("a", max_tokens=100, seed=number)).text

        assert set(await asyncio.gather(*map(one, range(4)))) == {"a" * 100}
    middle = models.slow.sizes[5:-5]
    assert sum(middle) / len(middle) > least


async def test_nobody_starves() -> None:
    """Whoever wants the slow model gets it, though others could go on without it for ever; and the other way round."""
    models, _ = timed(5, endless=True)
    with Router(models.fast, models.slow, policy="never") as router:
        for most, few in (("never", "always,span=rest"), ("always,span=rest", "never")):
            others = [asyncio.create_task(router.acomplete("a", max_tokens=4000, policy=most)) for _ in range(3)]
            answers = [await router.acomplete("ab", max_tokens=12, policy=few, method="replace") for _ in range(2)]
            assert [answer.usage.tokens for answer in answers] == [12, 12]
            assert not any(other.done() for other in others)
            for other in others:
                other.cancel()
            await asyncio.gather(*others, return_exceptions=True)
    assert models.all_free


async def test_the_order_of_turns_changes_no_text() -> None:
    for case in range(30):
        settings = [
            (POLICIES[n % len(POLICIES)], prompt(10 * case + n), {"seed": n, "method": ("replace", "verify")[n % 2]})
            for n in range(8)
        ]
        alone = [finish(make_engine(pair(case), p, ids, **options), pair(case))[0] for p, ids, options in settings]
        models = pair(case, n_seq=8, device="cpu")
        workers = Workers(models.models)
        engines = [make_engine(models, policy, ids, read_ahead=case % 3, **o) for policy, ids, o in settings]

        async def run(engine, models=models, workers=workers):
            async for _ in drivers.arun_live(engine, models.models, workers.seated("fast")):
                pass
            return engine.generation

        try:
            together = await asyncio.gather(*map(run, engines))
        finally:
            workers.close()
        assert [ids_of(found) for found in together] == [ids_of(found) for found in alone], case
        assert models.all_free


# --- interruptions -------------------------------------------------------------------------------


async def test_a_request_that_is_given_up_while_it_waits_for_its_turn_ends_at_once() -> None:
    """Though the slow model, for which it waits, would not have its turn before the others come to it."""
    models, _ = timed(5, endless=True, slow=lambda tokens: 0.1)
    with Router(models.fast, models.slow, policy="never") as router:
        await router.acomplete("a", max_tokens=3, policy="always")  # so that it is known what that costs
        others = [asyncio.create_task(router.acomplete("a", max_tokens=4000)) for _ in range(7)]
        await asyncio.sleep(0.02)
        before = models.slow.forwards
        for _ in range(5):
            waiting = asyncio.create_task(router.acomplete("ab", max_tokens=3, policy="always"))
            await asyncio.sleep(0.01)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        assert models.slow.forwards <= before + 1
        assert not any(other.done() for other in others)
        assert (await router.acomplete("ab", max_tokens=3, policy="always")).degraded is None
        for other in others:
            other.cancel()
        await asyncio.gather(*others, return_exceptions=True)
    assert models.all_free


async def test_random_cancellations_lose_nothing() -> None:
    rng = random.Random(0)
    models, timeline = timed(7, fast=hasty(1), slow=hasty(2))
    with Router(models.fast, models.slow, policy="random:0.4") as router:
        expected = {text: (await router.acomplete(text, seed=1)).text for text in ("a", "ab", "ab7")}
        for _ in range(20):
            texts = [rng.choice(list(expected)) for _ in range(8)]
            tasks = [asyncio.create_task(router.acomplete(text, seed=1)) for text in texts]
            await asyncio.sleep(rng.random() * 0.02)
            for task in tasks[::2]:
                task.cancel()
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            for text, answer in zip(texts[1::2], answers[1::2], strict=True):
                assert answer.text == expected[text]
    assert timeline.most == 1
    assert models.all_free


@pytest.mark.parametrize("role", ["fast", "slow"])
async def test_a_failure_in_the_middle_fails_its_batch_and_loses_nobody(role: str) -> None:
    models, _ = timed(8, endless=True)
    with Router(models.fast, models.slow, policy="every:4") as router:
        await router.acomplete("a", max_tokens=8)
        failing = models.models[role]
        failing._fail_after = failing.forwards + 3
        answers = await asyncio.gather(
            *(router.acomplete("ab", max_tokens=40) for _ in range(6)), return_exceptions=True
        )
        if role == "slow":
            assert all(answer.text == "a" * 40 and answer.degraded for answer in answers)
        else:
            assert all(isinstance(answer, BackendError) for answer in answers)
        failing._fail_after = None
        assert (await router.acomplete("ab", max_tokens=40)).degraded is None
    assert models.all_free


def test_closing_one_router_leaves_another_on_its_device() -> None:
    """Who waits for a turn is told, and who has none to wait for goes on."""
    (first, _), (second, _) = (timed(9, endless=True) for _ in range(2))
    before = set(threading.enumerate())
    with Router(second.fast, second.slow, policy="every:5") as staying, ThreadPoolExecutor(8) as pool:
        going = Router(first.fast, first.slow, policy="every:5")
        left = [pool.submit(going.complete, "a", max_tokens=4000) for _ in range(4)]
        stay = [pool.submit(staying.complete, "a", max_tokens=60) for _ in range(2)]
        while first.slow.forwards < 5 or second.slow.forwards < 2:
            time.sleep(0.001)
        assert len({thread for thread in set(threading.enumerate()) - before if thread.name == "fsgen-cpu"}) == 1
        going.close()
        for job in left:
            with pytest.raises(RouterClosed):
                job.result(60)
        assert first.all_free
        assert {job.result(60).text for job in stay} == {"a" * 60}
    assert not [thread for thread in threading.enumerate() if thread.name == "fsgen-cpu"]
    with Router(second.fast, second.slow, policy="every:5") as again:  # the next one starts it anew
        assert again.complete("a", max_tokens=6).text == "a" * 6


def test_a_router_that_nobody_closed_leaves_neither_the_shared_thread_nor_models() -> None:
    before, models = set(threading.enumerate()), pair(33, device="cpu")
    router = Router(models.fast, models.slow, policy="every:2")
    twin = router.with_policy("always")
    assert router.complete("a").tokens
    assert twin.complete("a").tokens
    started = set(threading.enumerate()) - before
    assert {thread.name for thread in started} == {"fsgen-cpu"}
    gone = weakref.ref(models.fast)
    del router, twin, models
    gc.collect()
    for thread in started:
        thread.join(30)
    gc.collect()
    assert gone() is None


# --- one device ----------------------------------------------------------------------------------


def test_a_device_lets_in_what_fits_first_come_first_served() -> None:
    device, order, lock = Device(), [], threading.Lock()
    begun = threading.Barrier(3)

    def forward(name: str, share: float) -> None:
        with device.turn(share):
            with lock:
                order.append(name)
            if name.startswith("half"):
                begun.wait(30)

    with ThreadPoolExecutor(4) as pool:
        with device.turn(1.0):
            jobs = []
            for count, (name, share) in enumerate([("half 1", 0.5), ("half 2", 0.5), ("whole", 8.0), ("half 3", 0.5)]):
                jobs.append(pool.submit(forward, name, share))
                while len(device._waiting) <= count:
                    time.sleep(0.001)
        begun.wait(30)  # both halves are in
        while len(order) < 4:
            time.sleep(0.001)
        begun.abort()
    assert set(order[:2]) == {"half 1", "half 2"}
    assert order[2:] == ["whole", "half 3"]
    assert device._free == pytest.approx(1.0)


def test_ctrl_c_while_waiting_for_a_turn_gives_it_up(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ScriptedModel(lambda ids: np.zeros(N_VOCAB), pair(0).fast.tokenizer, device="a device of its own")

    class CtrlC:
        def acquire(self) -> bool:
            raise KeyboardInterrupt

        def release(self) -> None:
            return None

    class Interrupted(turns._Ticket):
        def __init__(self, share: float) -> None:
            super().__init__(share)
            self.come = CtrlC()

    def interrupt() -> None:
        with monkeypatch.context() as patched:
            patched.setattr(turns, "_Ticket", Interrupted)
            with pytest.raises(KeyboardInterrupt), turn_of(model):
                pass

    with turn_of(model):
        interrupt()  # while it waits for the outer one
    interrupt()  # where its turn has come already
    with turn_of(model):
        pass
