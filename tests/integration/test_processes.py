"""Processes end, fork and drop what they loaded: nothing hangs, nothing of a parent's is touched, memory comes back.

Each program runs in an interpreter of its own, with warnings as errors (but those of files that llama_cpp leaves open).
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from endpoints import STREAM_HEAD, Asked, event, piece, reply, scripted_server, text_chunk

from fsgen_router import reference

PREAMBLE = """
import asyncio, atexit, contextlib, gc, os, sys, threading, time, warnings, weakref
from fsgen_router import *
from fsgen_router import reference

PROMPT = "Ada has 38 shells. Eva has 58 more shells than Ada."

def make(n_seq=2):
    if URL:
        slow, policy = f"openai:m@{URL}?api_key_env=&api=completions&probe=first", "every:3,span=rest"
        return Router(fast=f"reference:fast?n_seq={n_seq}", slow=slow, policy=policy, batching=BATCHING)
    pair = [f"reference:{which}?n_seq={n_seq}" for which in ("fast", "slow")]
    return Router(*pair, policy="every:3", batching=BATCHING)

def options(router):
    endless = {} if URL else {"logit_bias": {token: -100.0 for token in router.fast.tokenizer.eog_ids}}
    return {"max_tokens": 900, **endless}

def asked(events):  # until the endpoint hangs in the middle of its text, or the slow model has written
    while (token := next(events).token) is not None and token.source == "fast":
        pass
    return events

def half_read(router):
    return asked(router.stream(PROMPT, **options(router)))
"""


def run(program: str, *arguments: str, url: str = "", batching: bool = True, code: int = 0) -> tuple[str, str]:
    """What a program prints and says on standard error, once it has come to its own end."""
    source = f"URL, BATCHING = {url!r}, {batching}\n{PREAMBLE}\n{textwrap.dedent(program)}"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::ResourceWarning", "-c", source, *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def hanging() -> Iterator[str]:
    """An endpoint that says a little and then nothing, until another request tells it to go on."""
    go = threading.Event()

    def script(asked: Asked) -> None:
        if asked.path.endswith("/go"):
            go.set()
            asked.send(reply(200, {}))
            return
        go.clear()
        asked.send(STREAM_HEAD + piece(event(text_chunk(" and then"))))
        while not go.wait(0.05):
            if server.stopping.is_set():
                return
        asked.send(piece(event(text_chunk(" the end", "stop")) + event("[DONE]")) + piece(b""))

    with scripted_server(script) as server:
        yield server.url


PAIRS = pytest.mark.parametrize("remote", [False, True], ids=["local", "endpoint"])
DRIVERS = pytest.mark.parametrize("batching", [False, True], ids=["alone", "batching"])

# --- the interpreter's end -----------------------------------------------------------------------

# What a script does with a stream that it does not read to its end -> its exit code, and what it says (None: asyncio
# says something of its own).
ENDINGS: dict[str, tuple[str, int, str | None]] = {
    "a global": ("stream = half_read(make())", 0, ""),
    "a global router": ("router = make(); stream = half_read(router)", 0, ""),
    "exit": ("stream = half_read(make()); sys.exit(3)", 3, ""),
    "exit in a thread": (
        "stream = half_read(make()); thread = threading.Thread(target=sys.exit); thread.start()",
        0,
        "",
    ),
    "a frame": (
        """
        def work():
            stream = half_read(make())
            raise RuntimeError("of the frame")
        work()
        """,
        1,
        "RuntimeError: of the frame",
    ),
    "a kept exception": (
        """
        def work():
            stream = half_read(make())
            raise RuntimeError
        try:
            work()
        except RuntimeError as error:
            kept = error
        """,
        0,
        "",
    ),
    "in the loop": (
        """
        router = make()
        for event in router.stream(PROMPT, **options(router)):
            raise RuntimeError("in the loop")
        """,
        1,
        "RuntimeError: in the loop",
    ),
    "a cycle": ("stream = half_read(make()); box = [stream]; box.append(box); del stream", 0, ""),
    "a thread": (
        """
        router, streams = make(), []
        thread = threading.Thread(target=lambda: streams.append(half_read(router)))
        thread.start()
        """,
        0,
        "",
    ),
    "a thread goes on when the main one has ended": (
        """
        router, main = make(), threading.main_thread()
        def work():
            stream = half_read(router)
            main.join()
            stream.close()
        threading.Thread(target=work).start()
        """,
        0,
        "",
    ),
    "a daemon thread": (
        """
        router, begun = make(), threading.Event()
        def work():
            stream = half_read(router)
            begun.set()
            with contextlib.suppress(RouterClosed, BackendError):
                for _ in stream:
                    pass
        threading.Thread(target=work, daemon=True).start()
        begun.wait()
        """,
        0,
        "",
    ),
    "closed by an exit handler": (
        """
        streams = []
        atexit.register(lambda: [stream.close() for stream in streams])
        streams.append(half_read(make()))
        """,
        0,
        "",
    ),
    "a loop that is never closed": (
        """
        router, loop = make(), asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        stream = router.astream(PROMPT, **options(router))
        loop.run_until_complete(anext(stream))
        """,
        0,
        "",
    ),
    "a loop that was closed": (
        """
        router, loop = make(), asyncio.new_event_loop()
        stream = router.astream(PROMPT, **options(router))
        loop.run_until_complete(anext(stream))
        loop.close()
        """,
        0,
        "",
    ),
    "a pending task": (
        """
        router, begun = make(), asyncio.Event()
        async def read():
            async for event in router.astream(PROMPT, **options(router)):
                begun.set()
        loop = asyncio.new_event_loop()
        task = loop.create_task(read())
        loop.run_until_complete(begun.wait())
        task._log_destroy_pending = False
        loop.close()
        """,
        0,
        None,
    ),
    "a pending task of a loop that is never closed": (
        """
        router, begun = make(), asyncio.Event()
        async def read():
            async for event in router.astream(PROMPT, **options(router)):
                begun.set()
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        task = loop.create_task(read())
        loop.run_until_complete(begun.wait())
        task._log_destroy_pending = False
        """,
        0,
        "",
    ),
    "an unread task under run": (
        """
        async def main():
            router = make()
            stream = router.astream(PROMPT, **options(router))
            await anext(stream)
            raise RuntimeError("in the coroutine")
        asyncio.run(main())
        """,
        1,
        "RuntimeError: in the coroutine",
    ),
}


@PAIRS
@DRIVERS
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_script_ends_whatever_it_leaves_half_read(ending: str, batching: bool, remote: bool, hanging: str) -> None:
    program, code, said = ENDINGS[ending]
    _, stderr = run(program, url=hanging if remote else "", batching=batching, code=code)
    if said is not None:
        assert stderr.strip().splitlines()[-1:] == ([said] if said else []), stderr
        assert "Exception ignored" not in stderr


def test_a_thread_does_not_wait_for_ever_for_what_the_main_one_holds() -> None:
    _, stderr = run(
        """
        router = make(n_seq=1)
        stream = half_read(router)
        threading.Thread(target=router.complete, args=(PROMPT,)).start()
        """,
        batching=False,
    )
    assert "NoFreeSequence: the main thread has ended with 1 streams open" in stderr


def test_a_forward_that_hangs_does_not_keep_the_interpreter() -> None:
    run(
        """
        from fsgen_router.run import workers
        from fsgen_router.adapters.scripted import ScriptedModel, ScriptedTokenizer
        import numpy as np
        workers._EXIT_SECONDS = 0.2
        def script(ids):
            if len(ids) > 40:
                threading.Event().wait()
            return np.eye(3, dtype=np.float32)[0]
        words = ScriptedTokenizer([b"a", b"b", b"<end>"], eog=[2])
        router = Router(ScriptedModel(script, words), ScriptedModel(script, words), policy="never", batching=True)
        stream = router.stream("a", max_tokens=90)
        next(stream)
        """
    )


@pytest.mark.parametrize("when", range(3))
def test_a_model_is_not_freed_under_a_thread_that_is_in_a_forward(when: int) -> None:
    """The interpreter ends while a thread of the script's own reads on; a crash would be a signal."""
    run(
        """
        model = reference.load("slow", n_seq=1)
        from fsgen_router.contracts.models import Work
        from fsgen_router.rows.reading import Read
        def work():
            sequence = model.open([]).sequence
            with contextlib.suppress(BackendError):  # freed between two forwards
                while True:
                    model.forward([Work(sequence, 0, list(range(300)), [(299, Read())])])
        threading.Thread(target=work, daemon=True).start()
        time.sleep(0.05 * (1 + int(sys.argv[1])))
        """,
        str(when),
    )


# --- memory --------------------------------------------------------------------------------------

DROPPING = """
import ctypes, psutil

def settled():
    gc.collect()
    while any(thread.name.startswith("fsgen-") for thread in threading.enumerate()):
        time.sleep(0.01)
    ctypes.CDLL(None).malloc_trim(0)  # what was freed, and only kept for the next time, is no growth
    return psutil.Process().memory_info().rss

def growth(use, count):
    for _ in range(3):
        use()
    before = settled()
    for _ in range(count):
        use()
    return settled() - before
"""


@pytest.mark.parametrize("use", ["complete", "half read", "model", "tokenizer", "twin", "nothing"])
@DRIVERS
def test_what_is_dropped_without_close_gives_its_memory_back(use: str, batching: bool) -> None:
    size = sum(reference.path(which).stat().st_size for which in ("fast", "slow"))
    out, _ = run(
        DROPPING
        + textwrap.dedent("""
        def use():
            router = make(n_seq=8)
            if sys.argv[1] == "complete":
                assert router.complete(PROMPT, max_tokens=5).tokens
            elif sys.argv[1] == "half read":
                stream = half_read(router)
            elif sys.argv[1] == "model":
                assert router.fast.open([1]).kept == 0
            elif sys.argv[1] == "tokenizer":
                words = router.fast.tokenizer
                del router
                gc.collect()
                assert words.encode("lamp", add_bos=False)  # it keeps what it reads of
            elif sys.argv[1] == "twin":
                twin = router.with_policy("never")
                del router
                assert twin.complete(PROMPT, max_tokens=5).tokens
        print(growth(use, 12))
        """),
        use,
        batching=batching,
    )
    assert int(out) < size  # of twelve times that, and more of KV cache


def test_a_dropped_router_is_gone_with_its_models() -> None:
    run(
        """
        router = make()
        router.complete(PROMPT, max_tokens=5)
        gone = [weakref.ref(router), weakref.ref(router.fast), weakref.ref(router.slow)]
        del router
        gc.collect()
        for thread in [thread for thread in threading.enumerate() if thread.name.startswith("fsgen-")]:
            thread.join(30)
        gc.collect()
        assert [one() for one in gone] == [None] * 3
        """
    )


def test_a_real_model_that_is_dropped_gives_its_memory_back() -> None:
    folder = os.environ.get("FSGEN_REAL_MODELS")
    if folder is None:
        pytest.skip("FSGEN_REAL_MODELS names no folder with smollm2-135m.gguf")
    path = Path(folder) / "smollm2-135m.gguf"
    out, _ = run(
        DROPPING
        + textwrap.dedent("""
        from fsgen_router.adapters.llama_cpp import LlamaCppModel
        def use():
            model = LlamaCppModel(sys.argv[1], n_ctx=1024, n_threads=1, mmap=False)
            assert model.tokenizer.encode("lamp", add_bos=False)
        print(growth(use, 5))
        """),
        str(path),
    )
    assert int(out) < 0.5 * path.stat().st_size


# --- forks ---------------------------------------------------------------------------------------

FORKING = """
def in_child(function):
    \"\"\"What a forked child says that function raised or gave; it ends as an interpreter does.\"\"\"
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from Python 3.12 on: there are threads
        pid = os.fork()
    if not pid:
        try:
            said = repr(function())
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writer, said.encode())
        gc.collect()
        sys.exit(7)
    os.close(writer)
    for _ in range(2000):
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            break
        time.sleep(0.01)
    else:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        raise SystemExit(f"the child hangs: {os.read(reader, 1000)}")
    said = os.read(reader, 10_000).decode()
    os.close(reader)
    assert os.waitstatus_to_exitcode(status) == 7, (said, status)
    return said

def refused(function):
    said = in_child(function)
    assert said.startswith("ForkedProcess: "), said
    assert "after the fork" in said, said
    assert f"in process {os.getpid()}" in said, said
"""

ENTRIES = {
    "complete": "lambda: router.complete(PROMPT)",
    "stream": "lambda: router.stream(PROMPT)",
    "chat": "lambda: router.chat(MESSAGES)",
    "stream_chat": "lambda: router.stream_chat(MESSAGES)",
    "acomplete": "lambda: asyncio.run(router.acomplete(PROMPT))",
    "achat": "lambda: asyncio.run(router.achat(MESSAGES))",
    "astream": "lambda: router.astream(PROMPT)",
    "astream_chat": "lambda: router.astream_chat(MESSAGES)",
    "with_policy": "lambda: router.with_policy('never')",
    "measure": "lambda: router.measure()",
    "measure_steps": "lambda: router.measure_steps(1)",
    "run_forwards": "lambda: router.run_forwards('fast', lambda: None)",
    "a stream of the parent's": "lambda: next(stream)",
    "a stream of the parent's, told to stop": "lambda: stream.throw(KeyboardInterrupt)",
    "an asynchronous one": "lambda: asyncio.run(anext_of(astream))",
    "the fast model": "lambda: router.fast.open([1])",
    "its forward": "lambda: router.fast.forward([])",
    "the slow model": "lambda: router.slow.stream(None) if URL else router.slow.forward([])",
}
HARMLESS = {
    "nothing": "lambda: None",
    "close": "lambda: (router.close(), router.close())[0]",
    "leaving a with block": "lambda: router.__exit__(None, None, None)",
    "closing a stream": "lambda: stream.close()",
    "closing an asynchronous one": "lambda: asyncio.run(astream.aclose())",
    "shutting models down": "lambda: (router.fast.shutdown(), router.slow.shutdown())[0]",
    "dropping it all": "lambda: globals().update(router=None, stream=None, astream=None)",
}


@PAIRS
@DRIVERS
def test_a_forked_child_is_told_so_at_every_entry_and_touches_nothing(
    batching: bool, remote: bool, hanging: str
) -> None:
    """The parent goes on afterwards as if nothing had been, with the stream that it had begun."""
    entries = "".join(f"refused({entry})\n" for entry in ENTRIES.values())
    harmless = "".join(f"assert in_child({entry}) == 'None'\n" for entry in HARMLESS.values())
    run(
        FORKING
        + textwrap.dedent("""
        import urllib.request
        MESSAGES = [{"role": "user", "content": PROMPT}]
        async def anext_of(stream):
            return await anext(stream)
        router = make()
        def go():
            if URL:
                urllib.request.urlopen(URL + "/go", data=b"{}").close()
        expected = half_read(router)
        go()
        expected = list(expected)[-1].generation.text
        loop = asyncio.new_event_loop()
        astream = router.astream(PROMPT, **options(router))
        loop.run_until_complete(anext(astream))
        loop.run_until_complete(astream.aclose())
        astream = router.astream(PROMPT, **options(router))
        stream = half_read(router)
        """)
        + entries
        + harmless
        + textwrap.dedent("""
        assert not router._closed
        go()
        assert list(stream)[-1].generation.text == expected
        with router:
            router.complete(PROMPT, max_tokens=2)
        loop.close()
        """),
        url=hanging if remote else "",
        batching=batching,
    )


@DRIVERS
def test_a_child_forked_under_every_lock_hangs_in_none(batching: bool) -> None:
    """Locks that another thread held at the fork are held for ever in the child."""
    run(
        FORKING
        + textwrap.dedent("""
        router = make(n_seq=2)
        stream = half_read(router)
        locks = [
            router._slots._lock, router.ledger.lock, router._workers._lock, router.fast._lock, router.slow._lock,
            router.fast._pool._lock, router.fast.tokenizer._lock,
        ]
        locks += [worker._changed for worker in router._workers._started.values()]
        held, done = threading.Event(), threading.Event()
        def hold():
            with contextlib.ExitStack() as stack:
                for lock in locks:
                    stack.enter_context(lock)
                held.set()
                done.wait()
        if not BATCHING or stream.close() is None:  # nothing else moves on meanwhile
            threading.Thread(target=hold, daemon=True).start()
        held.wait()
        refused(lambda: router.complete(PROMPT))
        refused(lambda: router.fast.open([1]))
        for harmless in (router.close, stream.close, router.fast.shutdown, lambda: router.fast.close(0)):
            assert in_child(harmless) == "None"
        assert in_child(lambda: globals().update(router=None, stream=None)) == "None"
        done.set()
        """),
        batching=batching,
    )


def test_multiprocessing_brings_the_error_to_the_parent() -> None:
    out, _ = run(
        """
        import multiprocessing
        router = make()
        router.complete(PROMPT, max_tokens=3)
        def ask(prompt):
            return router.complete(prompt, max_tokens=3).text
        warnings.simplefilter("ignore", DeprecationWarning)
        with multiprocessing.get_context("fork").Pool(2) as pool:
            try:
                pool.map(ask, [PROMPT] * 4)
            except ForkedProcess as error:
                print(error.hint)
        print(router.complete(PROMPT, max_tokens=3).usage.tokens)
        """
    )
    assert "spawn" in out
    assert out.splitlines()[-1] == "3"


def test_a_child_that_loads_its_own_works() -> None:
    run(
        FORKING
        + textwrap.dedent("""
        router = make()
        expected = router.complete(PROMPT, max_tokens=5).text
        def load():
            with make() as own:
                return [own.complete(PROMPT, max_tokens=5).text, asyncio.run(own.acomplete(PROMPT, max_tokens=5)).text]
        assert in_child(load) == repr([expected, expected])
        def leave_half_read():
            global stream
            stream = half_read(make())
        assert in_child(leave_half_read) == "None"
        """)
    )
