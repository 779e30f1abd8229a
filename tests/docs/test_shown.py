"""What newcomers see first: every prompt that is shown is of the reference pair's world and rightly answered."""

from __future__ import annotations

import inspect
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from world_solver import solve

from fsgen_router import Router, cli
from fsgen_router.contracts.models import TokenModel
from fsgen_router.reference import world

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
COMMANDS = {
    name: inspect.getdoc(getattr(getattr(cli, module), function)) or ""
    for name, module, function in (
        ("complete", "complete", "complete"),
        ("chat", "chat", "chat"),
        ("trace", "trace", "trace"),
        ("eval", "evaluate", "evaluate"),
        ("calibrate", "calibrate", "calibrate"),
        ("recommend", "recommend", "recommend"),
        ("demo", "demo", "demo"),
        ("doctor", "doctor", "doctor"),
    )
}


# --- the solver ----------------------------------------------------------------------------------


@pytest.mark.parametrize("split", world.SPLITS)
def test_the_solver_agrees_with_the_generator(split: world.Split) -> None:
    for problem in world.problems(split, 300):
        assert solve(problem.prompt) == problem.answer, problem.prompt


def test_the_solver_refuses_what_is_not_of_the_world() -> None:
    rng = random.Random(0)
    assert not [prompt for prompt in (world.out_of_world_prompt(rng) for _ in range(1000)) if solve(prompt) is not None]
    for near in (
        "How many coins do 3 lamps cost in Saltby?",  # the world asks for two wares at least
        "How many coins do 3 lamps and 4 ropes cost in Paris?",
        "Who lives in Saltby?",
        "Ada has 38 shells. ...",
        "Tell me the home, trade, pet of Joel Nobody. What is the trade of Joel Nobody?",
    ):
        assert solve(near) is None


# --- every prompt --------------------------------------------------------------------------------


def code_blocks(document: str) -> list[str]:
    return re.findall(r"```\w*\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


def questions(text: str) -> list[str]:
    """Quoted questions in code."""
    return [quoted for _, quoted in re.findall(r"""(["'])([A-Z][^"'\n{}]*\?)\1""", text)]


def shown_texts() -> dict[str, str]:
    texts = {"README.md": "\n".join(code_blocks("README.md"))}
    paths = [
        *(path for path in (ROOT / "fsgen_router").rglob("*.py") if path.name != "world.py"),
        *(path for room in ("adapters", "policies") for path in (ROOT / room).rglob("*.py")),
        # The real pair is asked other things.
        *(path for path in (ROOT / "examples").rglob("*.py") if path.name != "real_pair.py"),
        ROOT / "Makefile",
    ]
    return texts | {str(path.relative_to(ROOT)): path.read_text() for path in paths}


SHOWN = sorted({(where, question) for where, text in shown_texts().items() for question in questions(text)})


def test_prompts_were_found_where_they_are_shown() -> None:
    assert {where for where, _ in SHOWN} >= {
        "README.md",
        "examples/quickstart.py",
        "fsgen_router/cli/chat.py",
        "fsgen_router/cli/complete.py",
        "fsgen_router/cli/doctor.py",
        "fsgen_router/cli/trace.py",
    }


@pytest.mark.parametrize(("where", "question"), SHOWN)
def test_a_shown_prompt_is_rightly_answered(
    where: str, question: str, fast_model: TokenModel, slow_model: TokenModel
) -> None:
    expected = solve(question)
    assert expected is not None, f"{where}: not a question of the world"
    with Router() as router:
        for answer in (router.complete(question), router.chat([{"role": "user", "content": question}])):
            assert world.extract_answer(answer.text) == expected, answer.text
    # Other ways that the README shows.
    for policy, method in (("budget:0.2", "verify"), ("entropy>0.8,span=rest", "replace")):
        answer = Router(fast_model, slow_model, policy=policy, method=method).complete(question)
        assert world.extract_answer(answer.text) == expected, answer.text


# --- every command -------------------------------------------------------------------------------


def examples_in(text: str) -> list[str]:
    """Commands of one line or, where a line goes on, several."""
    found = []
    for line in text.splitlines():
        line = line.strip()
        if found and found[-1].endswith(("\\", "|")):
            found[-1] = f"{found[-1].removesuffix(chr(92)).rstrip()} {line}"
        elif re.match(r"(fsgen-router|echo|printf) ", line):
            found.append(line)
    return found


def asks(command: str) -> bool:
    """Whether a command answers a prompt with the reference pair."""
    return bool(re.search(r"fsgen-router (complete|trace|chat)\b", command)) and "--fast" not in command


RUN = sorted(
    {
        command
        for text in (*COMMANDS.values(), *code_blocks("README.md"))
        for command in examples_in(text)
        if asks(command) and command != "fsgen-router chat"
    }
)


@pytest.mark.skipif(os.name != "posix", reason="a POSIX shell")
@pytest.mark.parametrize("command", RUN)
def test_a_shown_command_answers_rightly(command: str, tmp_path: Path) -> None:
    """As it is typed into a shell."""
    (question,) = questions(command)
    program = tmp_path / "fsgen-router"
    program.write_text(f"#!/bin/sh\nexec '{sys.executable}' -c 'from fsgen_router.cli import main; main()' \"$@\"\n")
    program.chmod(0o755)
    typed = command.partition(" | jq")[0]  # which is not everywhere
    done = subprocess.run(
        ["/bin/sh", "-c", typed],
        capture_output=True,
        text=True,
        timeout=120,
        env={**ENVIRONMENT, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout
    if "fsgen-router trace" in command:
        said = "".join(json.loads(line)["text"] for line in said.splitlines()[:-1])  # the last one ends the answer
    assert world.extract_answer(said) == solve(question)


def test_shown_commands_are_found() -> None:
    assert len(RUN) >= 8
    assert not [command for command in RUN if '"..."' in command]


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_in_help_fit_80_columns_and_can_be_copied(name: str) -> None:
    from typer.testing import CliRunner

    lines = [
        line.rstrip() for line in CliRunner(env={"COLUMNS": "80"}).invoke(cli.app, [name, "--help"]).stdout.splitlines()
    ]
    assert max(map(len, lines)) <= 80
    _, examples = COMMANDS[name].split("Examples:")
    for line in filter(None, examples.splitlines()):
        assert f" {line}" in lines


# --- doctor --------------------------------------------------------------------------------------


def test_doctor_answers_a_question_of_the_world(monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from fsgen_router.cli import doctor

    assert solve(doctor.QUESTION) == doctor.ANSWER

    def answers() -> dict[str, Any]:
        record = json.loads(CliRunner().invoke(cli.app, ["doctor", "--json"]).stdout)
        return {"ok": record["ok"]} | next(check for check in record["checks"] if check["name"] == "answers")

    found = answers()
    assert found["ok"]
    assert found["detail"].startswith("right")
    monkeypatch.setattr(doctor, "ANSWER", "64")
    found = answers()
    assert not found["ok"]
    assert found["status"] == "fail"
