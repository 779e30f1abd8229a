"""One algorithm, several drivers: the same answers, and nothing left open whatever interrupts them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_pairs import N_VOCAB, Pair, finish, ids_of, make_engine, pair, prompt

from fsgen_router import BackendError, ConfigurationError, Mask, QueueFull, Router, RouterClosed, TextDelta
from fsgen_router.adapters.scripted import ScriptedModel
from fsgen_router.contracts.models import Work
from fsgen_router.decode import Done, Start
from fsgen_router.policies import Capped, Every
from fsgen_router.records import Role
from fsgen_router.rows.reading import Read, Warp
from fsgen_router.run import drivers
from fsgen_router.run.workers import CHUNK, TICK, BatchWorker, Workers, _shares
from fsgen_router.support.waiting import holding

POLICIES = ("never", "always", "every:3", "every:4,span=2", "random:0.3,span=rest", "entropy>1.5", "budget:0.2")
WARPS = (Warp(), Warp(temperature=0.8), Warp(temperature=1.4, top_k=6, top_p=0.9))


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
        "method": rng.choice(("replace", "verify", "verify:near_best=0.5,draft_len=3")),
        "read_ahead": rng.choice((0, 0, 2)),
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


@contextlib.contextmanager
def working(models: Pair):
    workers = Workers(models.models)
    try:
        yield workers
    finally:
        workers.close()


async def afinish(engine, models: Pair, workers: Workers | None = None):
    with contextlib.ExitStack() as stack:
        seated = (workers or stack.enter_context(working(models))).seated("fast")
        shown = [emit.text async for emit in drivers.arun_live(engine, models.models, seated)]
    return engine.generation, shown


def finish_live(engine, models: Pair):
    with working(models) as workers:
        shown = [emit.text for emit in drivers.run_live(engine, models.models, workers.seated("fast"))]
    return engine.generation, shown


async def test_all_drivers_agree() -> None:
    for case in range(600):
        models, make = a_case(case)
        found, shown = finish(make(), models)
        for driver in (afinish, finish_live):
            again, make = a_case(case)
            ran = driver(make(), again)
            other, also_shown = await ran if asyncio.iscoroutine(ran) else ran
            assert (other.text, ids_of(other), also_shown) == (found.text, ids_of(found), shown), case
            assert [token.source for token in other.tokens] == [token.source for token in found.tokens], case
            assert (other.finish_reason, other.degraded) == (found.finish_reason, found.degraded), case
            if not make().read_ahead:  # how far the slow model got ahead is a matter of time, never the text
                assert counters(other.usage) == counters(found.usage), case
            assert again.all_free


async def test_many_at_once_agree_with_one_by_one() -> None:
    """Requests that share two models and their forwards."""
    shared = 0
    for group in range(20):
        models = pair(group, n_seq=8)
        settings = [
            (POLICIES[n % len(POLICIES)], prompt(10 * group + n), {"seed": n, "warp": WARPS[n % 3]}) for n in range(8)
        ]
        alone = [finish(make_engine(pair(group), p, ids, **options), pair(group))[0] for p, ids, options in settings]
        engines = [make_engine(models, policy, ids, **options) for policy, ids, options in settings]
        with working(models) as workers:
            together = await asyncio.gather(*(afinish(engine, models, workers) for engine in engines))
        assert [ids_of(found) for found, _ in together] == [ids_of(found) for found in alone]
        assert models.all_free
        shared += models.fast.forwards < sum(found.usage.fast.forwards for found in alone)
    assert shared > 15


# --- what waits shares a forward -----------------------------------------------------------------


class Caller:
    """What a worker delivers to, and when."""

    def __init__(self) -> None:
        self.cancelled, self.events, self.done = False, [], threading.Event()

    def deliver(self, event) -> bool:
        self.events.append(event)
        self.done.set()
        return False


def test_a_long_prompt_goes_in_pieces_while_others_wait() -> None:
    """One token of each of the others goes with each piece; rows come back in their reads' order."""
    models = gated(24, n_seq=4)
    model, gate = models.fast, Gate()
    sequences = [model.open([]).sequence for _ in range(3)]
    ids = [number % 18 for number in range(5 * CHUNK + 7)]
    reads = [(len(ids) - 1, Read(full=True)), (3, Read()), (CHUNK, Read())]
    worker = BatchWorker(model, "test")
    try:
        model.gate = gate
        first, long, short = Caller(), Caller(), Caller()
        worker.submit(Start(0, "fast", Work(sequences[0], 0, [1], [(0, Read())])), first)
        gate.entered.acquire()  # it is in a forward; what comes now waits for the next one
        worker.submit(Start(1, "fast", Work(sequences[1], 0, ids, reads)), long)
        worker.submit(Start(2, "fast", Work(sequences[2], 0, [2], [(0, Read())])), short)
        gate.go.release()
        gate.entered.acquire()
        gate.go.release()
        assert short.done.wait(30)
        assert first.done.is_set()
        assert not long.done.is_set()
        model.gate = None
        gate.go.release(100)
        assert long.done.wait(30)
        assert [len(works) for works in model.batches[:2]] == [1, 2]
        assert [len(work.ids) for works in model.batches[1:2] for work in works] == [CHUNK, 1]
        (event,) = long.events
        assert isinstance(event, Done)
        for (at, read), row in zip(reads, event.result, strict=True):
            expected = model.script(ids[: at + 1])
            assert row.argmax == int(np.argmax(expected))
            assert (row.logits is not None) == read.full
        # Alone, it goes in few forwards.
        assert max(len(works[0].ids) for works in model.batches[2:]) > CHUNK
        assert max(sum(len(work.ids) for work in works) for works in model.batches) <= TICK
    finally:
        model.gate = None
        gate.go.release(100)
        worker.close()


@pytest.mark.parametrize(("other", "chunked"), [([3], False), ([3, 4], True)])
def test_a_forward_that_reads_chunks_too_is_no_time_of_a_step(other: list[int], chunked: bool) -> None:
    models = gated(24, n_seq=3)
    model, gate = models.fast, Gate()
    worker = BatchWorker(model, "test")
    try:
        model.gate = gate
        first, mine, others = Caller(), Caller(), Caller()
        for job, (ids, caller) in enumerate((([1], first), ([2], mine), (other, others))):
            worker.submit(Start(job, "fast", Work(model.open([]).sequence, 0, ids, [(0, Read())])), caller)
            if caller is first:
                gate.entered.acquire()  # it is in a forward; what comes now waits for the next one
        model.gate = None
        gate.go.release(100)
        assert first.done.wait(30)
        assert mine.done.wait(30)
        assert [first.events[0].chunked, mine.events[0].chunked] == [False, chunked]
    finally:
        model.gate = None
        gate.go.release(100)
        worker.close()


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=60))
def test_a_forward_is_shared_fairly(lengths: list[int]) -> None:
    shares = _shares(lengths)
    assert sum(shares) <= TICK
    largest, cut = max(shares), [share for share, length in zip(shares, lengths, strict=True) if share < length]
    assert all(share >= largest - 1 for share in cut)  # nobody has more than who could use more
    assert all(share > 0 for share in shares)
    if cut and len(lengths) > 1 and largest < CHUNK:
        assert sum(shares) > TICK - len(lengths)  # and nothing is left lying


def test_single_tokens_are_in_every_forward_however_many_long_prompts_there_are() -> None:
    models = gated(24, n_seq=20)
    model, gate = models.fast, Gate()
    sequences = [model.open([]).sequence for _ in range(20)]
    worker = BatchWorker(model, "test")
    try:
        model.gate = gate
        callers = [Caller() for _ in range(21)]
        worker.submit(Start(0, "fast", Work(sequences[0], 0, [1], [(0, Read())])), callers[0])
        gate.entered.acquire()  # it is in a forward; what comes now waits for the next one
        for job in range(1, 20):
            ids = [1] if job > 17 else [number % 18 for number in range(900)]
            worker.submit(Start(job, "fast", Work(sequences[job], 0, ids, [(len(ids) - 1, Read())])), callers[job])
        gate.go.release()
        gate.entered.acquire()
        worker.submit(Start(20, "fast", Work(sequences[0], 1, [2], [(0, Read())])), callers[20])
        model.gate = None
        gate.go.release(100)
        assert all(caller.done.wait(30) for caller in callers)
        assert all(isinstance(event, Done) for caller in callers for event in caller.events)
        counts = [sorted(len(work.ids) for work in works) for works in model.batches]
        assert counts[1] == [1, 1] + [30] * 17
        assert counts[2] == [1] + [30] * 16 + [31]
        assert all(sum(count) <= TICK for count in counts)
    finally:
        model.gate = None
        gate.go.release(100)
        worker.close()


def test_who_waits_for_the_slow_model_is_in_no_fast_batch() -> None:
    """The slow model hangs in a forward; the others' answers are finished meanwhile."""
    models = gated(25, n_seq=6)
    gate = models.slow.gate = Gate()
    with Router(models.fast, models.slow, policy="never") as router, ThreadPoolExecutor(1) as thread:
        stuck = thread.submit(router.with_policy("always").complete, "a", max_tokens=5)
        gate.entered.acquire()
        before = [router.complete("ab", max_tokens=5).text for _ in range(3)]
        assert not stuck.done()
        models.slow.gate = None
        gate.go.release(100)
        assert stuck.result(30).degraded is None
        assert {router.complete("ab", max_tokens=5).text} == set(before)


@pytest.mark.parametrize("batching", [False, True])
def test_who_is_done_does_not_wait_for_anothers_forward(batching: bool) -> None:
    """A sequence of the slow model is given back while the slow model works for someone else."""
    plain, busy, go = pair(25, n_seq=6), threading.Event(), threading.Event()

    def script(ids: Sequence[int]) -> np.ndarray:
        if len(ids) > 40:
            busy.set()
            assert go.wait(30)
        return plain.slow.script(ids)

    fast = ScriptedModel(lambda ids: np.eye(N_VOCAB, dtype=np.float32)[0], plain.fast.tokenizer, n_seq=6)
    slow = ScriptedModel(script, plain.slow.tokenizer, n_seq=6)
    policy = Capped(Every(2), max_calls=1)
    with (
        Router(fast, slow, policy=policy, method="replace", batching=batching) as router,
        ThreadPoolExecutor(2) as threads,
    ):
        stream = router.stream("ab", max_tokens=2000)
        while next(stream).token.source == "fast":  # until it holds a sequence of the slow model
            pass
        other = threads.submit(router.complete, "a" * 40, max_tokens=3)
        assert busy.wait(30)
        try:
            threads.submit(stream.close).result(10)
            assert not other.done()
        finally:
            go.set()
        assert other.result(30).degraded is None


def test_a_closed_worker_refuses_what_comes() -> None:
    models = pair(26)
    worker = BatchWorker(models.fast, "test")
    worker.close()
    worker.close()
    with pytest.raises(RouterClosed):
        worker.submit(Start(0, "fast", Work(0, 0, [1], [])), Caller())


def test_a_backends_bug_fails_its_batch_and_no_other() -> None:
    models = pair(27, n_seq=2)
    plain, broken = models.fast.script, [True]

    def script(ids):
        if broken[0] and len(ids) > 3:
            raise ZeroDivisionError
        return plain(ids)

    models.fast.script = script
    with Router(models.fast, models.slow, policy="never") as router:
        with pytest.raises(BackendError, match="ZeroDivisionError"):
            router.complete("aabb")
        broken[0] = False
        assert router.complete("aabb").text
    assert models.all_free


@pytest.mark.parametrize(
    "mask",
    [
        Mask(ids=np.array([999]), bias=np.array([1.0])),
        Mask(ids=np.array([-1]), bias=np.array([1.0])),
        Mask(ids=np.array([1, 2]), bias=np.array([1.0, 2.0, 3.0])),
        Mask(ids=np.array([1]), bias=np.array([[1.0, 2.0]])),
        Mask(ids=np.array([1.0]), bias=np.array([1.0])),
        Mask(ids=np.array([True]), bias=np.array([1.0])),
        Mask(ids=np.array([1]), bias=np.array([np.nan])),
        Mask(ids=[1], bias=[1.0]),  # type: ignore[arg-type]
        np.ones(N_VOCAB, bool),
        Mask(allowed=np.ones(N_VOCAB, np.int8)),
        Mask(allowed=np.ones(3, bool)),
    ],
)
def test_a_mask_that_does_not_fit_fails_its_own_request(mask: Mask) -> None:
    """Before a batch is made of it and others."""

    class Wrong:
        def mask(self, answer: Sequence[int]) -> Mask:
            return mask

    models = pair(5)
    with pytest.raises(ConfigurationError, match="a constraint"):
        finish_live(make_engine(models, "never", [0], constraint=Wrong()), models)
    assert models.fast.forwards == 0


@pytest.mark.parametrize("driver", [finish, finish_live])
@pytest.mark.parametrize("where", ["open", "forward", "rows", "no rows", "close"])
def test_a_bug_in_an_adapter_is_a_backend_error_by_any_driver(where: str, driver: Callable) -> None:
    plain, bug = pair(29), ValueError("a bug")

    class Broken(ScriptedModel):
        def open(self, ids):
            if where == "open":
                raise bug
            return super().open(ids)

        def forward(self, works):
            if where == "forward":
                raise bug
            rows = super().forward(works)
            return {"rows": [[] for _ in rows], "no rows": []}.get(where, rows)

        def close(self, sequence):
            super().close(sequence)
            if where == "close":
                raise bug

    broken = Broken(plain.fast.script, plain.fast.tokenizer)
    with pytest.raises(BackendError) as raised:
        driver(make_engine(Pair(broken, plain.slow), "never", [0]), Pair(broken, plain.slow))
    assert raised.value.__cause__ is bug or "rows" in where
    if where != "close":  # the slow model's bug degrades the answer
        found = driver(make_engine(Pair(plain.fast, broken), "always", [0]), Pair(plain.fast, broken))[0]
        assert found.degraded.startswith("BackendError")


@pytest.mark.parametrize("where", ["open", "forward", "rows", "close"])
def test_a_backend_that_breaks_the_contract_does_not_end_the_models_thread(where: str) -> None:
    """Other requests wait on it, and would wait for ever."""
    plain, broken = pair(29, n_seq=2), [where]

    class Broken(ScriptedModel):
        def open(self, ids):
            if broken[0] == "open":
                raise ZeroDivisionError
            return super().open(ids)

        def forward(self, works):
            if broken[0] == "forward":
                raise KeyboardInterrupt  # not even an Exception
            return super().forward(works)[broken[0] == "rows" :]

        def close(self, sequence):
            super().close(sequence)
            if broken[0] == "close":
                raise ZeroDivisionError

    fast = Broken(plain.fast.script, plain.fast.tokenizer, n_seq=2)
    with Router(fast, plain.slow, policy="never") as router, ThreadPoolExecutor(1) as thread:
        with pytest.raises(BackendError):
            thread.submit(router.complete, "ab").result(30)
        broken[0] = ""
        assert thread.submit(router.complete, "ab").result(30).tokens
    assert Pair(fast, plain.slow).all_free


def test_a_full_queue_refuses_and_stays_usable() -> None:
    models = gated(28, n_seq=2)
    gate = models.fast.gate = Gate()
    with (
        Router(models.fast, models.slow, policy="never", max_waiting=1) as router,
        ThreadPoolExecutor(3) as threads,
    ):
        running = [threads.submit(router.complete, "a", max_tokens=3) for _ in range(2)]
        gate.entered.acquire()
        while router._slots._free:
            gate.entered.acquire(timeout=0.01)
        waiting = threads.submit(router.complete, "a", max_tokens=3)
        while not router._slots._waiting:
            gate.entered.acquire(timeout=0.01)
        with pytest.raises(QueueFull, match=r"1 are waiting.*max_waiting"):
            router.complete("a", max_tokens=3)
        models.fast.gate = None
        gate.go.release(1000)
        texts = {job.result(30).text for job in (*running, waiting)}
        assert texts == {router.complete("a", max_tokens=3).text}


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


async def test_closing_a_live_stream_at_any_point_frees_everything() -> None:
    for case in range(200):
        models, make = a_case(case, n_seq=1)
        expected, _ = finish(make(), pair(case, n_seq=1))
        with working(models) as workers:
            async with contextlib.aclosing(drivers.arun_live(make(), models.models, workers.seated("fast"))) as stream:
                for _ in range(case % 9):
                    if await anext(stream, None) is None:
                        break
            assert models.all_free
            with contextlib.closing(drivers.run_live(make(), models.models, workers.seated("fast"))) as stream:
                for _ in zip(range(case % 9), stream, strict=False):
                    pass
            assert models.all_free
            assert ids_of((await afinish(make(), models, workers))[0]) == ids_of(expected), case


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

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.batches: list[list[Work]] = []

    def forward(self, works):
        self.batches.append(list(works))
        if self.gate is not None:
            self.gate.pass_through()
        return super().forward(works)


def gated(case: int, n_seq: int = 1) -> Pair:
    plain = pair(case, n_seq=n_seq)
    return Pair(
        *(GatedModel(m.script, m.tokenizer, name=m.name, n_seq=n_seq) for m in (plain.fast, plain.slow)),
    )


async def in_thread(function, *args):
    return await asyncio.get_running_loop().run_in_executor(None, function, *args)


@pytest.mark.parametrize("role", ["fast", "slow"])
@pytest.mark.parametrize("cancels", [1, 3])
@pytest.mark.parametrize("forward", [0, 1, 2])
async def test_a_task_cancelled_in_the_middle_of_a_forward(role: Role, cancels: int, forward: int) -> None:
    """A forward cannot be broken off: the cancelled task waits for it, then closes its sequence."""
    models, ids = gated(21), [0, 1, 2]
    expected = finish(make_engine(pair(21), "always", ids), pair(21))[0]
    assert len(expected.tokens) > 3
    gate = models.models[role].gate = Gate()
    task = asyncio.create_task(afinish(make_engine(models, "always", ids), models))
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
    assert ids_of((await afinish(make_engine(models, "always", ids), models))[0]) == ids_of(expected)


@pytest.mark.parametrize("cancels", [1, 3])
async def test_a_task_cancelled_while_its_sequence_is_being_opened(cancels: int) -> None:
    """The open still waits behind a forward when the task is cancelled; what it opens must not be lost."""
    models = gated(22, n_seq=2)
    gate = models.fast.gate = Gate()
    with working(models) as workers:
        other = asyncio.create_task(afinish(make_engine(models, "never", [0], max_tokens=2), models, workers))
        await in_thread(gate.entered.acquire)
        task = asyncio.create_task(afinish(make_engine(models, "never", [0]), models, workers))
        await asyncio.sleep(0.01)
        for _ in range(cancels):
            task.cancel()
            await asyncio.sleep(0)
        models.fast.gate = None
        gate.go.release(100)
        with pytest.raises(asyncio.CancelledError):
            await task
        await other
    assert models.all_free


async def test_random_cancellations_leave_the_models_usable() -> None:
    rng = random.Random(0)
    for case in range(100):
        models, make = a_case(case, n_seq=1)
        task = asyncio.create_task(afinish(make(), models))
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
    return Router(models.fast, models.slow, **{"policy": "budget:0.2", **options})


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


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("batching", [False, True])
def test_a_row_that_is_no_distribution_fails_its_own_request(value: float, batching: bool) -> None:
    models = pair(24, n_seq=4)

    def script(ids: Sequence[int]) -> np.ndarray:
        row = np.eye(N_VOCAB, dtype=np.float32)[0]
        return row * 0 + np.float32(value) if ids[0] == 1 and len(ids) > 5 else row

    models.fast.script = models.slow.script = script
    sampled = {"max_tokens": 30, "temperature": 1.0, "top_p": 0.9}
    with router_of(models, policy="every:3", batching=batching) as router, ThreadPoolExecutor(4) as pool:
        others = [pool.submit(router.complete, "a", **sampled) for _ in range(3)]
        with pytest.raises(BackendError, match="fast model's logits are no distribution"):
            router.complete("b", **sampled)
        assert all(other.result().degraded is None for other in others)
    assert models.all_free


def test_a_slow_row_that_is_no_distribution_degrades_the_answer() -> None:
    models = pair(24)
    models.slow.script = lambda ids: np.full(N_VOCAB, np.nan, np.float32)
    with router_of(models, policy="every:3") as router:
        answer = router.complete("a", max_tokens=8)
    assert answer.tokens
    assert "slow model's logits are no distribution" in str(answer.degraded)


@pytest.mark.parametrize("ending", ["given up", "failed", "finished"])
def test_a_request_that_was_given_up_has_spent_what_it_spent(ending: str) -> None:
    """A rate that is held over requests would else be held over patient clients alone."""
    models = pair(3)
    models.fast.script = models.slow.script = lambda ids: np.eye(N_VOCAB, dtype=np.float32)[0]
    with router_of(models, policy="budget:0.2") as router:
        if ending == "failed":
            models.fast._fail_after = 5
            with pytest.raises(BackendError):
                router.complete("a", max_tokens=20)
        elif ending == "given up":
            stream = router.stream("a", max_tokens=5000)
            for _ in range(5):
                next(stream)
            stream.close()
        else:
            router.complete("a", max_tokens=5)
        ledger = router.ledger
        assert (ledger.requests, ledger.decisions > 0, len(ledger.memory)) == (1, True, 1)


@pytest.mark.parametrize("ending", ["given up", "failed"])
def test_a_baseline_that_never_ran_keeps_no_models(ending: str) -> None:
    before, models = set(threading.enumerate()), pair(33)
    models.fast.script = models.slow.script = lambda ids: np.eye(N_VOCAB, dtype=np.float32)[0]
    router = router_of(models, policy="every:2", batching=True)
    if ending == "failed":
        models.fast._fail_after = 3
        with pytest.raises(BackendError):
            router.complete("a", baseline=True)
    else:
        stream = router.stream("a", baseline=True, max_tokens=2000)
        next(stream)
        stream.close()
        del stream
    started = set(threading.enumerate()) - before
    gone = weakref.ref(models.fast)
    del router, models
    gc.collect()
    for thread in started:
        thread.join(30)
    gc.collect()
    assert gone() is None


def in_a_cycle(stream: object) -> None:
    """Left to the garbage collector, as an exception that is kept leaves what its frames hold."""
    box: list[object] = [stream]
    box.append(box)


@pytest.mark.parametrize("batching", [False, True])
@pytest.mark.parametrize("module", ["run.slots", "adapters.sequences", "contracts.policy", "run.drivers"])
def test_a_stream_may_be_collected_while_another_request_begins(
    module: str, batching: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of what a lock guards, where any allocation may set the collector off."""
    models = pair(33, n_seq=4)
    models.fast.script = models.slow.script = lambda ids: np.eye(N_VOCAB, dtype=np.float32)[0]
    plain, waiting = holding.__wrapped__, []  # type: ignore[attr-defined]

    @contextlib.contextmanager
    def collecting(lock):
        with contextlib.contextmanager(plain)(lock):
            if waiting and threading.current_thread() is threading.main_thread():
                waiting.clear()
                gc.collect()
            yield

    monkeypatch.setattr(f"fsgen_router.{module}.holding", collecting)
    gc.disable()
    gc.freeze()  # what other tests have loaded need not be searched twenty times
    try:
        with router_of(models, policy="budget:0.2", batching=batching) as router:
            for _ in range(10):
                stream = router.stream("a", max_tokens=3000)
                next(stream)
                in_a_cycle(stream)
                del stream
                waiting.append(True)
                assert router.complete("a", max_tokens=3).text == "aaa"
                gc.collect()
    finally:
        gc.unfreeze()
        gc.enable()
    while router._slots._free < 4:
        threading.Event().wait(0.01)
    assert models.all_free


def test_a_router_that_nobody_closed_leaves_neither_threads_nor_models() -> None:
    before, models, twins = set(threading.enumerate()), pair(33), []
    router = router_of(models, policy="every:2")
    for policy in ("always", "never"):
        twins.append(router.with_policy(policy))
    for one in (router, *twins):
        assert one.complete("a").tokens
    started = set(threading.enumerate()) - before
    assert started
    gone = weakref.ref(models.fast)
    del router, one, twins, models
    gc.collect()
    for thread in started:
        thread.join(30)
    gc.collect()
    assert gone() is None


def test_a_stream_that_is_collected_on_the_models_thread_waits_for_nobody() -> None:
    """Least of all for that thread: here it drops the last reference, as its garbage collection may."""
    models, left, dropped = pair(36, n_seq=1), [], threading.Event()

    def script(ids: Sequence[int]) -> np.ndarray:
        if left and len(ids) > 20:
            left.clear()
            dropped.set()
        return np.eye(N_VOCAB, dtype=np.float32)[0]

    models.fast.script = script
    with router_of(models, policy="never", batching=True) as router:
        stream = router.stream("a", max_tokens=3000)
        next(stream)
        left.append(stream)
        del stream
        assert dropped.wait(30)
        # The request's own end gives its place back.
        assert asyncio.run(asyncio.wait_for(router.acomplete("ab", max_tokens=3), 30)).text == "aaa"
        assert models.fast.forwards < 2000
    assert models.all_free


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


@pytest.mark.parametrize("baseline", [False, True])
@pytest.mark.parametrize("done", [False, True])
def test_a_loop_closed_under_an_open_stream_keeps_no_place(done: bool, baseline: bool) -> None:
    """Its coroutine never comes to its end; the request does, whether it had written all by then or not."""
    models = pair(34, n_seq=2)
    models.fast.script = models.slow.script = lambda ids: np.eye(N_VOCAB, dtype=np.float32)[0]
    with router_of(models, policy="every:2") as router:
        loop = asyncio.new_event_loop()
        streams = [router.astream("a", max_tokens=20 if done else 3000, baseline=baseline) for _ in range(2)]
        for stream in streams:
            loop.run_until_complete(anext(stream))
        while done and router._slots._free < 2:
            threading.Event().wait(0.01)
        loop.close()
        assert asyncio.run(asyncio.wait_for(router.acomplete("a", max_tokens=3), 30)).text == "aaa"
        assert models.fast.forwards < 2000  # nobody reads what the others would have written
        del stream, streams
        gc.collect()  # they find their loop closed, and wait for nothing
    assert models.all_free


def test_who_waited_in_a_loop_that_is_closed_gets_no_place() -> None:
    models = pair(35, n_seq=1)
    with router_of(models, policy="never") as router:
        stream = router.stream("a")
        next(stream)
        loop = asyncio.new_event_loop()
        waiting = loop.create_task(router.acomplete("a"))
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        stream.close()
        assert asyncio.run(asyncio.wait_for(router.acomplete("a", max_tokens=3), 30)).tokens
        waiting._log_destroy_pending = False


def test_a_place_that_was_given_to_a_stopped_loop_comes_back_when_that_is_closed() -> None:
    """It never runs again, so who was given the place there never takes it."""
    models = pair(35, n_seq=1)
    with router_of(models, policy="never") as router:
        stream = router.stream("a")
        next(stream)
        loop = asyncio.new_event_loop()
        given = loop.create_task(router.acomplete("a"))
        loop.run_until_complete(asyncio.sleep(0))
        stream.close()
        waiting = threading.Thread(target=router.complete, args=("a",), daemon=True)
        waiting.start()
        loop.close()
        waiting.join(30)
        assert not waiting.is_alive()
        given._log_destroy_pending = False


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


async def test_a_request_that_gave_up_waiting_is_no_longer_in_the_queue() -> None:
    models = pair(31, n_seq=1)
    with router_of(models, policy="every:2", max_waiting=1) as router:
        stream = router.stream("a")
        next(stream)
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(router.acomplete("a"), 0.01)
        stream.close()


async def test_a_fast_failure_reaches_the_caller_of_any_driver() -> None:
    plain = pair(32)
    models = Pair(ScriptedModel(plain.fast.script, plain.fast.tokenizer, n_seq=1, fail_after=2), plain.slow)
    with pytest.raises(BackendError):
        await afinish(make_engine(models, "never", [0]), models)
    for driver in (finish, finish_live):
        with pytest.raises(BackendError):
            driver(make_engine(models, "never", [0]), models)
    assert models.all_free
