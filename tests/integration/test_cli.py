"""The command line as people and programs use it: exit codes, JSON, pipes, signals, a terminal."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console
from typer.testing import CliRunner

from fsgen_router import BackendError, Context, Decision, Ledger, Router, Signals, Token, __version__
from fsgen_router.adapters.scripted import ScriptedModel, ScriptedTokenizer
from fsgen_router.calibration.curves import Curve
from fsgen_router.cli import app
from fsgen_router.cli.calibrate import curves_table
from fsgen_router.cli.chat import _Session
from fsgen_router.cli.demo import total_report
from fsgen_router.cli.evaluate_show import folded
from fsgen_router.cli.terminal import show_error
from fsgen_router.cli.tokens import token_table
from fsgen_router.contracts.models import TokenModel
from fsgen_router.evaluation import Estimate
from fsgen_router.policies import Never, Threshold

COMMANDS = ("demo", "complete", "chat", "eval", "trace", "recommend", "doctor")
PROMPT = "How many coins do 3 lamps cost in Saltby?"
FSGEN = [sys.executable, "-c", "from fsgen_router.cli import main; main()"]
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")},
    "OMP_NUM_THREADS": "1",
    "TERM": "xterm-256color",
}


def invoke(*arguments: str, stdin: bytes | None = None) -> Any:
    """A command in this process; output and messages apart."""
    return CliRunner(env={"COLUMNS": "100"}).invoke(app, arguments, input=stdin)


def run(*arguments: str, stdin: bytes = b"", environment: dict[str, str] | None = None) -> Any:
    """A command in a process of its own."""
    return subprocess.run(
        [*FSGEN, *arguments], input=stdin, capture_output=True, timeout=120, env={**ENVIRONMENT, **(environment or {})}
    )


def heed_interrupts() -> None:
    """A shell's background jobs, and so tests run in one, begin with SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def started(*arguments: str, stdin: int = subprocess.PIPE) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [*FSGEN, *arguments],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        preexec_fn=heed_interrupts,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def idle(pid: int) -> None:
    """Until a process uses no processor: it waits for what is typed."""
    spent = None
    while spent != (spent := psutil.Process(pid).cpu_times()[:2]):
        time.sleep(0.3)


# --- help and wrong usage ------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches(command: str) -> None:
    done = invoke(command, "--help")
    assert done.exit_code == 0
    assert "Examples:" in done.stdout
    assert f"fsgen-router {command}" in done.stdout
    assert "--json" in done.stdout


def test_help_and_version() -> None:
    listed = invoke("--help")
    assert listed.exit_code == 0
    assert all(command in listed.stdout for command in COMMANDS)
    assert invoke("--version").stdout == f"fsgen-router {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("complete", "x", "--policy", "entropee>1"), ("entropee", "max_prob<0.6", "budget:0.2")),
        (("complete", "x", "--method", "guess"), ("guess", "verify:near_best=0.5")),
        (("complete", "x", "--method", "verify:exactly"), ("exactly", "near_best")),
        (("complete", "x", "--method", "verify:near_best=2"), ("between 0 and 1",)),
        (("complete", "x", "--read-ahead", "-1"), ("read_ahead",)),
        (("complete", "x", "--read-ahead", "4", "--no-batching"), ("read_ahead",)),
        (("complete", "x", "--fast", "onnx:a", "--slow", "reference:slow"), ("onnx", "llama_cpp:")),
        (("complete", "x", "--fast", "reference:fast"), ("slow is missing",)),
        (("complete", "x", "--fast", "reference:fast?n_ctxx=1", "--slow", "reference:slow"), ("n_ctxx", "n_ctx")),
        (("complete", "x", "--temperature", "-1"), ("temperature",)),
        (("complete", "x", "--max-tokens", "0"), ("max_tokens",)),
        (("complete", "x", "--audit", "2"), ("audit",)),
        (("complete", "x", "--zzz"), ("--zzz", "--policy", "--json")),
        (("complete", ""), ("empty",)),
        (("complete", "word " * 3000), ("context",)),
        (("complet", "x"), ("complet", "complete")),
        (("trace", "x", "--policy", "every:0"), ("interval",)),
        (("demo", "--count", "0"), ("--count",)),
        (("eval", "--split", "exam"), ("exam", "calibration")),
        (("eval", "--sweep", "mood"), ("mood", "entropy")),
        (("eval", "--sweep", "entropy,spam=1"), ("spam",)),
        (("eval", "--policy", "often"), ("often", "never")),
        (("eval", "--plot", "curve.txt"), ("curve.txt", ".png")),
        (("eval", "--plot", "/no/such/folder/curve.png"), ("/no/such/folder",)),
        (("eval", "--match", "fuzzy"), ("fuzzy", "contains")),
        (("eval", "--prompts", "/no/such/file"), ("/no/such/file",)),
        (("doctor", "--fast", "onnx:a", "--slow", "onnx:b"), ("onnx",)),
    ],
)
def test_wrong_usage_is_2_and_says_what_exists(arguments: tuple[str, ...], said: tuple[str, ...]) -> None:
    done = invoke(*arguments)
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    assert all(word in done.stderr for word in said), done.stderr
    assert "Traceback" not in done.stderr


def test_what_fails_while_running_is_1(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUFnot really")
    for where in (tmp_path / "bad.gguf", tmp_path / "absent.gguf"):
        done = invoke("complete", "x", "--fast", f"llama_cpp:{where}", "--slow", "reference:slow")
        assert done.exit_code == 1
        assert done.stdout == ""
        assert done.stderr.startswith("Error: ")
        assert "Hint: " in done.stderr


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("fsgen_router.cli.options.Router", broken)
    assert isinstance(invoke("complete", "x").exception, ZeroDivisionError)


def test_a_missing_extra_is_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    done = invoke("eval", "--count", "2", "--max-tokens", "2")
    assert done.exit_code == 1
    assert "pip install 'fsgen-router[eval]'" in done.stderr


def test_the_command_line_loads_no_backend() -> None:
    code = (
        "import sys, fsgen_router.cli, fsgen_router.evaluation, fsgen_router.evaluation.plots; "
        "print([name for name in ('torch', 'transformers', 'llama_cpp', 'scipy', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "[]\n", done.stderr


# --- complete ------------------------------------------------------------------------------------


def test_complete_writes_the_text_and_nothing_else() -> None:
    with Router(policy="entropy>1") as router:
        expected = router.complete(PROMPT).text
    done = run("complete", PROMPT, "--policy", "entropy>1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode() == expected + "\n"
    assert done.stderr == b""


@pytest.mark.parametrize("arguments", [(), ("-",)])
def test_complete_reads_standard_input(arguments: tuple[str, ...]) -> None:
    given = invoke("complete", PROMPT)
    assert invoke("complete", *arguments, stdin=f"{PROMPT}\n".encode()).stdout == given.stdout


def test_complete_as_json() -> None:
    done = invoke("complete", PROMPT, "--json", "--tokens", "--baseline", "--seed", "7", "--audit", "1")
    assert done.exit_code == 0
    assert done.stdout.count("\n") == 1
    record = json.loads(done.stdout)
    assert record["seed"] == 7
    assert record["degraded"] is None
    assert record["usage"]["tokens"] == len(record["tokens"])
    assert 0 <= record["usage"]["disagreement_rate"] <= 1
    assert record["report"]["slow_forwards"]["baseline"] == "measured"
    shown = b"".join(bytes.fromhex(token["bytes"]) for token in record["tokens"])
    assert shown.decode() == record["text"]


def test_tokens_without_json_are_refused() -> None:
    done = invoke("complete", PROMPT, "--tokens")
    assert done.exit_code == 2
    assert done.stdout == ""
    assert "--json" in done.stderr
    assert "trace" in done.stderr


def test_sampling_follows_the_seed() -> None:
    arguments = ("complete", PROMPT, "--temperature", "1.5", "--top-p", "0.95", "--seed")
    first, again, other = (invoke(*arguments, seed).stdout for seed in ("1", "1", "2"))
    assert first == again != other


def test_what_is_left_out_is_the_routers_to_choose() -> None:
    record = json.loads(invoke("complete", PROMPT, "--json").stdout)
    with Router() as router:
        assert (record["policy"], record["method"]) == (router.policy.name, router.method.name)
    assert record["method"].startswith("verify")
    batched = invoke("complete", PROMPT, "--batching", "--read-ahead", "4", "--json")
    assert json.loads(batched.stdout)["text"] == record["text"]


def test_stop_chat_and_caps() -> None:
    text = json.loads(invoke("complete", PROMPT, "--chat", "--policy", "always", "--json").stdout)["text"]
    word = text.split()[2]
    cut = json.loads(invoke("complete", PROMPT, "--chat", "--policy", "always", "--stop", word, "--json").stdout)
    assert cut["text"] == text[: text.index(word)]
    assert cut["finish_reason"] == "stop"
    capped = json.loads(invoke("complete", PROMPT, "--policy", "always", "--max-slow-calls", "2", "--json").stdout)
    assert capped["usage"]["escalations"] == 2


def test_prices_and_caps_on_money(tmp_path: Path) -> None:
    table = tmp_path / "prices.toml"
    table.write_text('date = 2026-11-26\n[models."slow.gguf"]\ninput = 1.0\noutput = 5.0')
    asked = ("complete", PROMPT, "--policy", "always", "--json")
    priced = json.loads(invoke(*asked, "--prices", str(table)).stdout)
    assert priced["report"]["money_usd"]["routed"] > 0
    capped = json.loads(invoke(*asked, "--prices", str(table), "--max-cost", "0").stdout)
    assert (capped["usage"]["slow_tokens"], capped["degraded"]) == (0, "cap on US dollars: 0")
    timed = json.loads(invoke(*asked, "--max-seconds", "0").stdout)
    assert (timed["usage"]["slow_tokens"], timed["degraded"]) == (0, "cap on slow seconds: 0")
    for command in (("complete", PROMPT), ("serve",)):
        done = invoke(*command, "--max-cost", "1")
        assert done.exit_code == 2
        assert "no price known of slow.gguf" in done.stderr


def test_the_report_goes_to_standard_error() -> None:
    done = invoke("complete", PROMPT, "--report")
    assert "sequential slow steps" in done.stderr
    assert "sequential slow steps" not in done.stdout


def test_input_that_is_not_utf8_names_the_byte() -> None:
    for command in ("complete", "trace"):
        done = run(command, stdin=b"caf\xe9 au lait")
        assert done.returncode == 2
        assert done.stdout == b""
        assert b"offset 3" in done.stderr
        assert b"0xe9" in done.stderr
        assert b"Traceback" not in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="arguments are bytes on POSIX only")
def test_an_argument_that_is_not_utf8() -> None:
    done = subprocess.run([*map(os.fsencode, FSGEN), b"complete", b"caf\xe9"], capture_output=True, env=ENVIRONMENT)
    assert done.returncode == 2
    assert b"surrogate" in done.stderr
    assert b"Traceback" not in done.stderr


def test_an_old_terminal_encoding_ends_nothing() -> None:
    done = run("complete", "é€", "--max-tokens", "4", environment={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr


# --- pipes, signals, terminals -------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="a POSIX shell")
@pytest.mark.parametrize("arguments", [("complete", PROMPT), ("trace", PROMPT), ("demo", "--count", "2"), ("doctor",)])
def test_a_reader_that_leaves_early_is_no_error(arguments: tuple[str, ...]) -> None:
    with started(*arguments, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
        assert process.wait(60) in (0, 141)
    assert said == b""


def test_ctrl_c_ends_an_evaluation_without_a_trace(tmp_path: Path) -> None:
    plot = tmp_path / "curve.png"
    with started("eval", "--count", "60", "--sweep", "entropy", "--plot", str(plot)) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        first = process.stderr.readline()  # the fast model alone is done, the rest is under way
        assert b"right of 60" in first, first
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        said = process.stderr.read()
        assert b"Interrupted" in said
        assert b"Traceback" not in said
        assert process.stdout.read() == b""
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_between_piped_messages_ends_the_chat() -> None:
    with started("chat") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(PROMPT.encode() + b"\n")
        process.stdin.flush()
        assert process.stdout.readline().strip()
        idle(process.pid)
        for _ in range(6):  # the first one may still meet the end of the answer, and then stops only that
            process.send_signal(signal.SIGINT)
            # Long, so that on a busy machine no second one meets an interpreter that is already ending.
            with suppress(subprocess.TimeoutExpired):
                process.wait(15)
                break
        assert process.returncode == 130
        assert b"Traceback" not in process.stderr.read()


def in_terminal(*arguments: str, typed: bytes = b"", columns: int = 100, **environment: str) -> tuple[int, str]:
    """Run in a pseudo-terminal; the exit code and all that it showed."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    with subprocess.Popen(
        [*FSGEN, *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env={**ENVIRONMENT, **environment},
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while select.select([ours], [], [], 60)[0]:
                try:
                    part = os.read(ours, 4096)
                except OSError:  # Linux says so when the other side is gone
                    break
                if not part:
                    break
                shown += part
                if typed and b"> " in shown:
                    os.write(ours, typed)
                    typed = b""
        finally:
            os.close(ours)
            if process.poll() is None and not shown:
                process.kill()
        return process.wait(60), shown.decode()


posix_terminal = pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals")
SLOW_COLOURS, ACCEPTED_COLOURS, BONUS_COLOURS = "\x1b[1;30;43m", "\x1b[32m", "\x1b[30;46m"


@posix_terminal
def test_a_terminal_shows_authors_in_colours() -> None:
    code, shown = in_terminal("demo", "--count", "1", "--policy", "every:3")
    assert code == 0
    assert SLOW_COLOURS in shown
    assert ACCEPTED_COLOURS in shown
    assert BONUS_COLOURS in shown
    assert "⟦" not in shown
    assert "This pair is tiny" in shown


@posix_terminal
def test_without_colours_authors_are_in_brackets() -> None:
    code, shown = in_terminal("trace", PROMPT, "--policy", "every:3", NO_COLOR="1")
    assert code == 0
    assert SLOW_COLOURS not in shown
    assert "⟦" in shown
    assert "entropy" in shown
    assert "escalate" in shown


@posix_terminal
def test_a_conversation_at_a_terminal() -> None:
    code, shown = in_terminal("chat", typed=f"{PROMPT}\n/report\n/nonsense\n/exit\n".encode())
    assert code == 0
    assert "sequential slow steps" in shown
    assert "Unknown command" in shown


def lines_in_terminal(*arguments: str, columns: int) -> list[str]:
    """What a terminal without colours shows, line by line."""
    code, shown = in_terminal(*arguments, columns=columns, NO_COLOR="1")
    assert code == 0, shown
    return [line.rstrip() for line in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown).splitlines()]


@posix_terminal
@pytest.mark.parametrize("columns", [80, 120, 200])
@pytest.mark.parametrize(
    "arguments",
    [
        ("trace", PROMPT, "--policy", "budget:0.2", "--max-slow-calls", "2", "--report"),
        ("complete", PROMPT, "--report", "--baseline", "--max-tokens", "12"),  # its text is the terminal's to wrap
        ("demo", "--count", "1"),
        ("doctor",),
        ("policy", "show", "fsgen_router/reference/policy.safetensors"),
        ("law",),
    ],
    ids=lambda arguments: arguments[0],
)
def test_output_fits_the_terminal_and_100_columns(arguments: tuple[str, ...], columns: int) -> None:
    lines = lines_in_terminal(*arguments, columns=columns)
    assert max(map(len, lines)) <= min(columns, 100)


@posix_terminal
def test_a_trace_of_80_columns_has_every_number_whole() -> None:
    question = "How many coins do 3 lamps and 4 ropes cost in Norvale?"
    lines = lines_in_terminal("trace", question, "--policy", "budget:0.2", columns=80)
    start = next(number for number, line in enumerate(lines) if line.split()[:2] == ["#", "token"])
    records = [json.loads(line) for line in invoke("trace", question, "--policy", "budget:0.2").stdout.splitlines()]
    rows = lines[start + 1 : start + 1 + len(records)]
    for record, row in zip(records, rows, strict=True):
        assert row.split()[0] == str(record["position"])
        assert f" {record['source']}  {record['verdict']} " in row
        assert record["decision"] in row
        if record["score"] is not None:
            sign = ">" if record["score"] > record["threshold"] else "<"
            assert f" {record['entropy_nats']:.3f}  {record['score']:.3f} {sign} {record['threshold']:.3f}  " in row
    assert "…" not in "".join(rows)
    (differing, *_) = [record for record in records if record["verdict"] == "corrected"]
    assert repr(differing["fast_choice"]["text"]) in rows[differing["position"]]


def test_long_tokens_are_cut_and_numbers_are_not(fast_model: TokenModel, slow_model: TokenModel) -> None:
    def entry(position: int, score: float, threshold: float) -> Token:
        signals = answer.tokens[0].signals
        decision = Decision(True, score=score, threshold=threshold, reason="a reason of one's own, and a long one")
        piece = b"a token of very many characters, as some vocabularies have"
        return dataclasses.replace(answer.tokens[0], piece=piece, signals=signals, decision=decision)

    with Router(fast_model, slow_model, policy="every:2") as router:
        answer = router.complete(PROMPT, max_tokens=3)
        scores = ((12.3456, 0.5), (7.7e-05, 6.5e-05), (3, 8), (0.25, 0.25))
        tokens = tuple(entry(position, *pair) for position, pair in enumerate(scores))
        shown = io.StringIO()
        table = token_table(dataclasses.replace(answer, tokens=(*tokens, *answer.tokens)), router)
        Console(file=shown, width=80).print(table)
    lines = shown.getvalue().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert len(lines) == 1 + len(tokens) + len(answer.tokens)
    for row, compared in zip(
        lines[1:], ("12.346 > 0.500", "7.7e-05 > 6.5e-05", "3 < 8", "0.250 = 0.250"), strict=False
    ):
        assert compared in row
        assert "…" in row


# --- trace ---------------------------------------------------------------------------------------


def test_trace_in_a_pipe_is_json_lines() -> None:
    done = invoke("trace", PROMPT, "--policy", "entropy>0.3,span=2", "--method", "replace", "--audit")
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record["position"] for record in records] == list(range(len(records)))
    for record in records:
        assert record["source"] == ("fast" if record["decision"] == "accept" else "slow")
        assert record["fast_choice"] is not None
        assert record["slow_choice"] is not None
        if record["decision"] == "span":
            assert record["entropy_nats"] is None
        else:
            assert (record["score"] > record["threshold"]) == (record["decision"] == "escalate")
            assert record["score"] == record["entropy_nats"]
            assert record["reason"] == "entropy"
    assert {record["decision"] for record in records} == {"accept", "escalate", "span"}
    assert invoke("trace", PROMPT, "--policy", "never", "--json").stdout.count("\n") > 1


def test_trace_tells_how_each_token_came_to_stand() -> None:
    # Sampled, so that the models differ whatever pair is shipped.
    arguments = (PROMPT, "--policy", "every:4", "--method", "verify", "--temperature", "1.5", "--seed", "1")
    records = [json.loads(line) for line in invoke("trace", *arguments).stdout.splitlines()]
    usage = json.loads(invoke("complete", *arguments, "--json").stdout)["usage"]
    report = json.loads(invoke("complete", *arguments, "--json").stdout)["report"]
    counted = Counter(record["verdict"] for record in records)
    assert counted["corrected"] == usage["corrections"] > 0
    assert counted["bonus"] == usage["bonus_tokens"] > 0
    assert counted["accepted"] == report["verified_tokens"] > 0
    for before, record in pairwise(records):
        assert (record["source"] == "fast") == (record["verdict"] in ("accepted", "unchecked"))
        if record["verdict"] == "bonus":
            assert (before["decision"], before["verdict"]) == ("escalate", "accepted")
    # With every token judged, none is left unchecked.
    assert counted["unchecked"] == 0
    shown = invoke("demo", "--count", "1", "--policy", "every:4").stdout
    assert all(bracket in shown for bracket in ("‹", "⟦+"))


# --- demo ----------------------------------------------------------------------------------------


def test_demo_for_people() -> None:
    done = invoke("demo", "--count", "2", "--policy", "every:3")
    assert done.exit_code == 0
    assert done.stdout.count("routed     ") == 2
    assert "⟦" in done.stdout
    assert "This pair is tiny" in done.stdout
    # Slow steps come first, and both models alone were really run.
    assert done.stdout.index("sequential slow steps ") < done.stdout.index("FLOPs")
    assert "measured" in done.stdout
    assert "estimated" not in done.stdout


def test_demo_as_json() -> None:
    record = json.loads(invoke("demo", "--count", "3", "--json").stdout)
    assert record["n"] == len(record["problems"]) == 3
    for which in ("fast", "slow", "routed"):
        assert record["right"][which] == sum(problem[which]["right"] for problem in record["problems"])
    usage = record["report"]["usage"]
    tokens = [token for problem in record["problems"] for token in problem["routed"]["tokens"]]
    assert usage["tokens"] == len(tokens)
    assert usage["slow_tokens"] == sum(token["source"] == "slow" for token in tokens)
    assert usage["disagreement_rate"] is not None
    assert record["report"]["slow_forwards"]["baseline"] == "measured"


def test_totals_are_sums(fast_model: TokenModel, slow_model: TokenModel) -> None:
    router = Router(fast_model, slow_model, policy="every:4")
    answers = [router.complete(prompt, baseline=True, max_tokens=20) for prompt in (PROMPT, "Who?")]
    total = total_report(answers)
    parts = [answer.report() for answer in answers]
    assert total.slow_forwards.slow_only == sum(part.slow_forwards.slow_only or 0 for part in parts)
    assert total.usage.slow.catchup == sum(answer.usage.slow.catchup for answer in answers)
    assert total.usage.escalation_rate == pytest.approx(
        sum(answer.usage.escalations for answer in answers) / sum(answer.usage.decisions for answer in answers)
    )
    assert total.money_usd.routed is None


# --- eval ----------------------------------------------------------------------------------------

FIGURES = ("accuracy", "accuracy_fast", "accuracy_slow", "escalation_rate", "slow_token_share", "slow_position_share")


def evaluated(*arguments: str) -> Any:
    done = invoke("eval", "--resamples", "200", "--json", *arguments)
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def test_one_policy_is_at_the_top_level() -> None:
    record = evaluated("--count", "8", "--policy", "entropy>0.5")
    assert record["n"] == 8
    assert record["policy"] == "entropy>0.5"
    for name in (*FIGURES, "slow_forwards", "slow_forwards_relative"):
        low, high = record[f"{name}_interval"]
        assert low <= record[name] <= high
    assert (record["recovered_gap"] is None) == (record["note"] is not None)
    assert evaluated("--count", "8", "--policy", "entropy>0.5") == record


def test_a_sweep_with_verification() -> None:
    record = evaluated("--count", "4", "--sweep", "every", "--method", "verify:near_best=0.5")
    assert record["method"] == "verify:near_best=0.5"
    for policy in record["policies"]:
        assert policy["slow_forwards"] <= policy["corrections_per_answer"] + policy["bonus_tokens_per_answer"] + 1
        assert policy["discarded_tokens_per_answer"] >= policy["corrections_per_answer"]
    for level in record["rate_at_recovery"]["every"].values():
        assert {"escalation_rate", "slow_token_share"} <= level.keys()


def test_a_policy_file_is_evaluated_with_its_own_method(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    file = tmp_path / "policy.safetensors"
    made = invoke("calibrate", "--out", str(file), "--count", "40", "--rounds", "0")
    assert made.exit_code == 0, made.stderr
    record = evaluated("--count", "4", "--policy", str(file))
    assert record["policy"].startswith("learned:")
    asked = json.loads(invoke("complete", PROMPT, "--policy", str(file), "--json").stdout)
    assert asked["method"] == "replace"  # what it was calibrated with
    assert asked["report"]["guarantee"] is None
    assert not recwarn.list


def test_a_sweep_lists_its_policies(tmp_path: Path) -> None:
    plot = tmp_path / "curve.png"
    arguments = ("--count", "5", "--sweep", "entropy", "--policy", "random:0.2", "--concurrency", "2")
    record = evaluated(*arguments, "--plot", str(plot))
    names = [policy["policy"] for policy in record["policies"]]
    assert names[0] == "random:0.2"
    assert 9 <= len(names) <= 13
    assert len(set(names)) == len(names)
    assert all(name.startswith("entropy>") for name in names[1:])
    assert {policy["accuracy_slow"] for policy in record["policies"]} == {record["accuracy_slow"]}
    assert set(record["rate_at_recovery"]["entropy"]) == {"0.5", "0.8", "0.95"}
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_own_problems(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    chat = {"messages": [{"role": "user", "content": PROMPT}], "answer": "coins"}
    path.write_text("\n".join(json.dumps(line) for line in ({"prompt": PROMPT, "answer": "no such text"}, chat)))
    arguments = ("--prompts", str(path), "--match", "contains", "--sweep", "max_prob")
    record = evaluated(*arguments)
    assert record["n"] == 2
    assert record["problems"] == str(path)
    assert record["accuracy_slow"] <= 0.5


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "no items"), (b'{"prompt": "x", "answer": "y"}\nnonsense\n', "line 2"), (b"\xff", "line 1")],
)
def test_bad_problem_files(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(content)
    done = invoke("eval", "--prompts", str(path))
    assert done.exit_code == 2
    assert said in done.stderr


@pytest.mark.parametrize("columns", ["80", "120"])
def test_the_table_for_people(columns: str) -> None:
    names = ("every:4", "varentropy>0.0123456,span=8,window=4", "max_prob<0.999923,span=rest", "entropy>7.728e-05")
    arguments = [part for name in names for part in ("--policy", name)]
    done = CliRunner(env={"COLUMNS": columns}).invoke(app, ["eval", "--count", "4", "--sweep", "every", *arguments])
    assert done.exit_code == 0
    assert all(len(line) <= min(int(columns), 100) for line in done.stdout.splitlines())
    for words in ("fast alone", "every:4", "slow alone", "bootstrap by prompt", "method verify:exact", "sweep of"):
        assert words in done.stdout
    assert "…" not in done.stdout
    # A threshold stands on one line, and so does every interval: a line is a name, figures or intervals alone.
    for number in ("0.0123456", "0.999923", "7.728e-05"):
        assert re.search(rf"[<>]{number}(?![\d.])", done.stdout)
    table = done.stdout.partition("fast alone")[2].partition("slow alone")[0].splitlines()
    for cell in (cell for line in table[1:] for cell in line.split() if "–" in cell):
        assert re.fullmatch(r"\d+(\.\d)?–\d+(\.\d)?", cell), cell
    # What became of drafts is one aligned table of its own.
    assert re.search(r"policy +corrections +bonus tokens +discarded tokens", done.stdout)


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("entropy>0.0007713", ["entropy>0.0007713"]),
        ("learned:logistic>0.0711656", ["learned:logistic", ">0.0711656"]),
        ("entropy>1.5,window=8,span=rest", ["entropy>1.5", ",window=8", ",span=rest"]),
        ("a name of one's own that is long", ["a name of one's own that is long"]),
    ],
)
def test_a_name_is_folded_between_its_parts(name: str, lines: list[str]) -> None:
    assert folded(name).split("\n") == lines


def test_a_calibrations_tables_fit(tmp_path: Path) -> None:
    arguments = ["calibrate", "--out", str(tmp_path / "p.safetensors"), "--count", "40", "--dry-run"]
    done = CliRunner(env={"COLUMNS": "80"}).invoke(app, arguments)
    assert done.exit_code == 0, done.stderr
    assert max(len(line.rstrip()) for line in done.stdout.splitlines()) <= 80
    wide = Estimate(1.0, (0.999, 1.0))
    curves = {
        "learned, verify:near_best=0.9": Curve((), {0.95: wide}, wide),
        "masked_entropy": Curve((), {0.95: wide}, wide),
    }
    shown = io.StringIO()
    Console(file=shown, width=80).print(curves_table(curves))
    lines = shown.getvalue().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert sum(line.count("100.0% [99.9%, 100.0%]") for line in lines) == 4


# --- chat ----------------------------------------------------------------------------------------


def test_a_piped_conversation_has_turns() -> None:
    lines = f"{PROMPT}\n\n/report\nAnd in Lowick?\n/reset\n{PROMPT}\n/exit\nnever read\n"
    done = invoke("chat", "--json", "--policy", "entropy>1", stdin=lines.encode())
    assert done.exit_code == 0
    first, report, second, third = map(json.loads, done.stdout.splitlines())
    assert report == {"report": first["report"]}
    # The second turn reads on behind the first, whose beginning is still in the KV cache.
    assert second["usage"]["prompt_tokens"] > first["usage"]["prompt_tokens"] + first["usage"]["tokens"]
    assert second["usage"]["fast"]["cached"] > first["usage"]["prompt_tokens"]
    assert third["text"] == first["text"]
    assert third["usage"]["prompt_tokens"] == first["usage"]["prompt_tokens"]


def test_a_piped_conversation_goes_on_after_an_error() -> None:
    done = invoke("chat", stdin=("word " * 3000 + f"\n{PROMPT}\n").encode())
    assert done.exit_code == 2
    assert "context" in done.stderr
    assert done.stdout.strip()
    assert invoke("chat", stdin=b"ok\n\xff\n").exit_code == 2


class _InterruptOnce(Never):
    """Ctrl-C in the middle of the first answer."""

    presses = 1

    def decide(self, state: Any, signals: Signals, context: Context) -> tuple[Any, Decision]:
        if context.position == 3 and self.presses:
            object.__setattr__(self, "presses", 0)
            raise KeyboardInterrupt
        return super().decide(state, signals, context)

    def begin(self, ledger: Ledger) -> Any:
        return None


def test_ctrl_c_stops_one_answer_and_keeps_the_session(
    fast_model: TokenModel, slow_model: TokenModel, capsys: pytest.CaptureFixture[str]
) -> None:
    router = Router(fast_model, slow_model, policy=_InterruptOnce())
    session = _Session(router, {"max_tokens": 20}, None, as_json=False)
    assert session.take("A first message, which is stopped")
    stopped = capsys.readouterr()
    assert "Stopped" in stopped.err
    assert session.take(PROMPT)
    expected = router.with_policy("never").chat([{"role": "user", "content": PROMPT}], max_tokens=20)
    assert capsys.readouterr().out == expected.text + "\n"
    # Every sequence was given back.
    opened = [fast_model.open([]) for _ in range(fast_model.n_seq)]
    for sequence in opened:
        fast_model.close(sequence.sequence)


def test_a_degraded_answer_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np

    tokenizer = ScriptedTokenizer([b"a", b"b", b"<end>"], eog=[2])

    def script(ids: Any) -> Any:
        return np.array([1.0, 0.5, 3.0 if len(ids) > 5 else 0.0], np.float32)

    router = Router(
        ScriptedModel(script, tokenizer, name="one"),
        ScriptedModel(script, tokenizer, name="two", fail_after=1),
        policy=Threshold("entropy", 0.1, above=True),
    )
    session = _Session(router, {}, "ab", as_json=True)
    session.take("ab")
    said = capsys.readouterr()
    assert json.loads(said.out)["degraded"]
    assert "given up" in said.err
    show_error(BackendError("it broke", hint="mend it"))
    assert capsys.readouterr().err == "Error: it broke\nHint: mend it\n"


# --- doctor --------------------------------------------------------------------------------------


def test_doctor() -> None:
    done = invoke("doctor", "--json")
    assert done.exit_code == 0
    record = json.loads(done.stdout)
    assert record["ok"] is True
    checks = {check["name"]: check for check in record["checks"]}
    for name in ("python", "backend llama_cpp", "GPU offload", "cores", "threads", "memory", "hub", "reference pair"):
        assert name in checks
    assert checks["answers"]["status"] == "ok"
    for role in ("fast", "slow"):
        assert re.search(r"1: [\d.]+, 4: [\d.]+, .*repetitions differ by \d+%", checks[f"{role} forwards"]["detail"])
    assert "times the slow model's seconds" in checks["best mode"]["detail"]
    assert "Ready" in invoke("doctor").stdout


def test_doctor_notes_models_in_the_wrong_seats() -> None:
    swapped = invoke("doctor", "--fast", "reference:slow", "--slow", "reference:fast", "--json")
    assert swapped.exit_code == 0, swapped.output
    (sizes,) = [check for check in json.loads(swapped.stdout)["checks"] if check["name"] == "sizes"]
    assert sizes["status"] == "note"
    assert "smaller than the fast model" in sizes["detail"]
    assert "sizes" not in [check["name"] for check in json.loads(invoke("doctor", "--json").stdout)["checks"]]


def test_doctor_says_why_not(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    arguments = ("doctor", "--fast", f"llama_cpp:{tmp_path / 'bad.gguf'}", "--slow", "reference:slow")
    done = invoke(*arguments, "--json")
    assert done.exit_code == 1
    record = json.loads(done.stdout)
    assert record["ok"] is False
    failed = [check for check in record["checks"] if check["status"] == "fail"]
    assert [check["name"] for check in failed] == ["pair"]
    assert failed[0]["hint"]
    assert "Not ready" in invoke(*arguments).stdout


def test_doctor_without_a_backend() -> None:
    hidden = (
        "import sys\n"
        "class Hide:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('llama_cpp', 'torch', 'huggingface_hub', 'psutil'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Hide())\n"
        "import importlib.util\n"
        "real = importlib.util.find_spec\n"
        "def find_spec(name, package=None):\n"
        "    try:\n"
        "        return real(name, package)\n"
        "    except ModuleNotFoundError:\n"
        "        return None\n"
        "importlib.util.find_spec = find_spec\n"
        "from fsgen_router.cli import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", hidden, "doctor", "--json"], capture_output=True, timeout=120, env=ENVIRONMENT
    )
    assert done.returncode == 1, done.stderr
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert "fsgen-router[llama]" in checks["backend llama_cpp"]["hint"]
    assert "fsgen-router[hub]" in checks["hub"]["hint"]
    assert checks["accelerators"]["status"] == "missing"
    assert checks["reference pair"]["status"] == "fail"
    assert "fsgen-router[llama]" in checks["reference pair"]["detail"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize(("where", "said"), [(">/dev/full", "No space left"), (">&-", "no standard output")])
def test_output_that_cannot_be_written_is_one_line_of_error(where: str, said: str) -> None:
    command = shlex.join([*FSGEN, "complete", "--max-tokens", "3", PROMPT])
    done = subprocess.run(["/bin/sh", "-c", f"{command} {where}"], capture_output=True, timeout=120, env=ENVIRONMENT)
    assert done.returncode == 1
    assert said in done.stderr.decode()
    assert b"Traceback" not in done.stderr


def test_the_command_that_demo_advises_works() -> None:
    """With the options that demo was given: a policy's own name is no short form of it."""
    shown = invoke("demo", "--count", "1", "--policy", "entropy>0.8,span=4")
    assert "fsgen-router eval --policy 'entropy>0.8,span=4' measures" in " ".join(shown.stdout.split())
    shown = invoke("demo", "--count", "1")
    assert "fsgen-router eval measures" in " ".join(shown.stdout.split())
