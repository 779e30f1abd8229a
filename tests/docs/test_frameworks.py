"""Every example of a framework runs against the real command, where its packages are installed."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples" / "frameworks"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
FRAMEWORKS = {
    "openai_client": (["openai"], r"\[\w*\W*\w+\].* Answer: 63\n73 tokens, \d+ steps of the slow model"),
    "anthropic_client": (["anthropic"], r"(.* Answer: 63\n\d+ tokens, \d+ steps of the slow model\n?){2}"),
    "langchain_client": (["langchain_openai"], r".* Answer: 63\n73 tokens, \d+ steps of the slow model"),
    "langchain_model": (
        ["langchain_core"],
        r".* Answer: 63\n73 tokens, \d+ slow steps\nAnswer: 54\nAnswer: 72\nAnswer: 81",
    ),
    "pydantic_ai_agent": (
        ["pydantic_ai", "openai"],
        r"Order\(thing='(lamp|rope|map)', town='(Norvale|Eastmoor)', count=[1-9]\)\n.* Answer: 63\n73 tokens",
    ),
    "openai_agents": (
        ["agents", "openai"],
        r"get_price\('(lamp|rope)', 'Norvale'\)\n\['ToolCallItem', 'ToolCallOutputItem', 'MessageOutputItem'\]\n.+",
    ),
    "dspy_program": (["dspy"], r"(price|family|sharing)\n.* Answer: 63"),
    "litellm_router": (["litellm"], r"cheap: Answer: 63, 73 tokens\ncareful: Answer: 63, 73 tokens\n.* Answer: 63"),
}
"""What each needs, and what it prints."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``fsgen-router serve``."""
    log = tmp_path_factory.mktemp("server") / "log"
    program = "from fsgen_router.cli import main; main()"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", program, "serve", "--port", "0"], stderr=file, env=ENVIRONMENT
        )
    try:
        while (found := re.search(r"Listening on (\S+)/v1", log.read_text())) is None:
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        yield found[1]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def test_every_example_is_run() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(FRAMEWORKS)


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_a_framework_works_with_the_server(name: str, request: pytest.FixtureRequest) -> None:
    packages, expected = FRAMEWORKS[name]
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    where = []
    if name != "langchain_model":  # which is in process
        url = request.getfixturevalue("server")
        where = [url if name == "anthropic_client" else f"{url}/v1"]
    done = subprocess.run(
        [sys.executable, f"{name}.py", *where],
        cwd=EXAMPLES,
        capture_output=True,
        text=True,
        timeout=120,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(expected, done.stdout.strip()), done.stdout
