"""Every example runs as a user would start it."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import random
import re
import runpy
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ports import free_port

from fsgen_router import ToolCall
from fsgen_router.adapters.llama_cpp import LlamaCppModel
from fsgen_router.constraints.grammars import of_calls
from fsgen_router.constraints.matching import GrammarConstraint
from fsgen_router.constraints.tokens import GrammarVocabulary
from fsgen_router.reference import world
from fsgen_router.tools.definitions import Choice, make_tools
from fsgen_router.tools.plan import ToolPlan

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments], cwd=EXAMPLES, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_quickstart_answers_and_reports() -> None:
    out = run("quickstart.py")
    assert out.partition("\n")[0].endswith("Answer: 63")
    assert "sequential slow steps" in out
    assert max(map(len, out.splitlines()[1:])) <= 80


def test_chat_backend_finds_its_caches_again() -> None:
    out = run("chat_backend.py")
    expected = [problem.answer for problem in world.problems("test", 8)]
    assert re.findall(r"Answer: (\w+)", out) == expected
    counts = [line for line in out.splitlines() if line.endswith(" cached")]
    assert len(counts) == 8
    # Each conversation's second turn begins with the tokens of its first.
    assert sum(int(line.split()[-2]) > 20 for line in counts) >= 4


def test_custom_policy_escalates_digits_only() -> None:
    out = run("custom_policy.py")
    assert out.count("tokens from the slow model") == 3
    assert re.findall(r"^(\w+), \d+ of", out, re.MULTILINE) == ["right"] * 3


def test_calibrate_goes_from_prompts_to_a_certified_policy() -> None:
    out = run("calibrate.py", "40")
    assert "round 1: " in out
    assert "of calibration: regret at most 20% at confidence 90%" in out
    assert "policy learned:logistic>" in out


def test_the_agent_world_runs_on_its_own_pair() -> None:
    out = run("agent_world.py", "--tasks", "12")
    found = re.findall(
        r"^(.+?) +(\d+) of 12 tasks, +([\d.]+) slow forwards a task, [\d.]+ turns, (\d+) malformed calls$",
        out,
        re.MULTILINE,
    )
    ways = {name: (int(won), float(steps)) for name, won, steps, malformed in found if malformed == "0"}
    assert list(ways) == ["fast alone", "slow alone", "routed", "whole turns"]
    assert ways["slow alone"][0] >= 10
    assert ways["routed"][0] >= 10
    assert 0 < ways["routed"][1] < 0.7 * ways["slow alone"][1]


def test_the_agent_world_tells_a_right_end_and_a_malformed_call() -> None:
    world = runpy.run_path(str(EXAMPLES / "agent_world.py"))
    made = world["tasks"](200)
    wanted = [task.wanted for task in made]
    assert {len(bookings) for bookings in wanted} == {0, 1, 2}
    asked = {split: {task.ask for task in world["tasks"](200, split=split)} for split in ("train", "tune", "test")}
    assert not asked["train"] & asked["test"]
    assert not asked["tune"] & asked["test"]
    for arguments, valid in (
        ('{"thing": "lamp", "town": "Norvale"}', True),
        ('{"thing": "map", "town": "Norvale"}', False),
        ('{"thing": "lamp"}', False),
        ('{"thing": "lamp", "town": "Norvale", "count": 2}', False),
    ):
        assert world["is_valid"](ToolCall("1", "get_price", arguments)) == valid, arguments
    assert not world["is_valid"](
        ToolCall("1", "book", '{"thing": "lamp", "town": "Norvale", "count": 100, "total": 3}')
    )
    assert world["compute"]("7*12-5") == "79"
    assert "cannot compute" in world["compute"]("2**9")


def test_the_agent_pair_was_trained_on_what_its_grammar_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answer of its expert, and wherever the grammar forces tokens, they are the expert's."""
    pytest.importorskip("torch")
    monkeypatch.syspath_prepend(EXAMPLES / "reference_pair")
    training = importlib.import_module("train_agents")
    tokenizer = LlamaCppModel(EXAMPLES / "agent_pair" / "slow.gguf").tokenizer
    assert tokenizer.template.text == training.CHAT_TEMPLATE
    assert tokenizer.template.reads_tools
    plan = ToolPlan.make(
        make_tools(training.TOOLS), Choice(), parallel=False, template=tokenizer.template.text, tokenizer=tokenizer,
        messages=[], piece=tokenizer.piece,
    )  # fmt: skip
    assert plan.form.name == "hermes"
    words, forced = GrammarVocabulary(tokenizer), 0
    for number, task in enumerate(training.tasks(4, "layout", "train")):
        messages = training.expert(task, random.Random(number))
        text = tokenizer.template.render(messages, {"tools": training.TOOLS}).removesuffix(training.ASSISTANT)
        for answer in (said for said, trained in training.segments(text) if trained):
            ids = tokenizer.encode(answer, add_bos=False, parse_special=True)
            constraint = GrammarConstraint(words, of_calls(plan.grammar))
            for at, token in enumerate(ids):
                assert constraint.mask(ids[:at]).allowed[token], (answer, at)
                if begins := list(constraint.forced(ids[:at])):
                    assert begins == ids[at : at + len(begins)], (answer, at)
                    forced += 1
    assert forced > 50


@pytest.mark.parametrize("split", ["test", "shifted"])
def test_generate_writes_checkable_json_lines(split: str) -> None:
    items = [json.loads(line) for line in run("reference_pair/generate.py", split, "5").splitlines()]
    assert len(items) == 5
    assert all(item["solution"].endswith(f"Answer: {item['answer']}") for item in items)


def test_remote_slow_prints_the_bill_and_what_slow_only_would_have_cost() -> None:
    """Of a real server, which counts its own tokens: both are measured."""
    pytest.importorskip("xllamacpp", reason="llama.cpp's own server comes with xllamacpp, which is not installed")
    out = run("remote_slow.py", "6")
    routed, alone = (
        float(re.search(rf"^{who} +\$([\d.]+), \d right$", out, re.MULTILINE)[1]) for who in ("routed", "slow alone")
    )
    saved = float(re.search(r"^saved +(-?[\d.]+)%$", out, re.MULTILINE)[1])
    assert saved == pytest.approx(100 * (1 - routed / alone), abs=0.1)
    assert 0 < routed < alone
    assert "of which 0 are estimates" in out
    whole = float(re.search(r"bills \$([\d.]+)", out)[1])
    assert routed < whole < routed + alone + 1e-9  # its cache held what the routed answer had sent
    row = next(line for line in out.splitlines() if line.startswith("US dollars  "))
    assert row.endswith("measured")
    assert "cached input" in out


# --- the server ----------------------------------------------------------------------------------

QUESTION = {"messages": [{"role": "user", "content": "How many coins do 3 lamps and 4 ropes cost in Norvale?"}]}


def post(url: str, body: object) -> tuple[int, dict[str, str], str]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, dict(reply.headers), reply.read().decode()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, dict(refused.headers), refused.read().decode()


def test_the_server_runs_with_two_workers(tmp_path: Path) -> None:
    port = free_port()
    log = tmp_path / "log"
    # The README's command.
    command = [sys.executable, "-m", "uvicorn", "fastapi_app:app", "--workers", "2", "--port", str(port)]
    with log.open("w") as file:
        server = subprocess.Popen(
            command, cwd=EXAMPLES, stdout=file, stderr=file, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
    try:
        workers = set()
        while log.read_text().count("Application startup complete") < 2:
            assert server.poll() is None, log.read_text()
            time.sleep(0.05)
        for _ in range(200):
            with ThreadPoolExecutor(8) as pool:
                replies = list(pool.map(lambda _: post(f"http://127.0.0.1:{port}/chat", QUESTION), range(8)))
            assert {status for status, _, _ in replies} == {200}
            assert {text.rpartition("Answer: ")[2] for _, _, text in replies} == {"63"}
            workers |= {headers["x-worker"] for _, headers, _ in replies}
            if len(workers) == 2:
                break
        assert len(workers) == 2
        assert post(f"http://127.0.0.1:{port}/chat", {"messages": [{"role": "x", "content": ""}]})[0] == 422
    finally:
        server.terminate()
        assert server.wait(60) in (0, -signal.SIGTERM)
    assert "Traceback" not in log.read_text()


async def test_the_server_says_503_before_it_has_said_200() -> None:
    app = runpy.run_path(str(EXAMPLES / "fastapi_app.py"))["app"]
    bodies, sent = [json.dumps(QUESTION).encode()] * 2, []
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "path": "/chat",
        "raw_path": b"/chat", "query_string": b"", "headers": [(b"content-type", b"application/json")],
    }  # fmt: skip

    async def receive() -> dict[str, object]:
        if not bodies:
            await asyncio.Event().wait()  # the client stays
        return {"type": "http.request", "body": bodies.pop(), "more_body": False}

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    async with app.router.lifespan_context(app):
        router = app.state.router
        kept = [router.astream("a") for _ in range(router.fast.n_seq + router.max_waiting)]
        await app(scope, receive, send)
        assert sent[0]["status"] == 503
        assert (b"retry-after", b"1") in sent[0]["headers"]
        kept.clear()
        sent.clear()
        await app(scope, receive, send)
        assert sent[0]["status"] == 200
        assert b"".join(message.get("body", b"") for message in sent).endswith(b"Answer: 63")
