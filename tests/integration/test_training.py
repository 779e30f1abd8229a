"""The reference pair's training script, in small: it learns, resumes to the same weights, and exports."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("torch")
from safetensors.numpy import load_file

SCRIPTS = Path(__file__).parents[2] / "examples" / "reference_pair"
TOKENS = 120_000


def train(out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(SCRIPTS / "train.py"), "--size", "tiny", "--out", str(out)]
    return subprocess.Popen(
        [*command, "--tokens", str(TOKENS), "--evaluate", "0"],
        stderr=subprocess.DEVNULL,
        # A shell's background jobs, and so tests run in one, begin with SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    assert train(out).wait(timeout=500) == 0
    return out


def test_the_loss_falls(trained: Path) -> None:
    history = json.loads((trained / "state.json").read_text())["history"]
    assert history[-1]["loss"] < history[0]["loss"]


def test_an_interrupted_run_ends_with_the_same_weights(trained: Path, tmp_path: Path) -> None:
    process = train(tmp_path)
    while not (tmp_path / "state.json").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=100)
    assert not (tmp_path / "hf").exists(), "it was to be interrupted before its end"
    assert train(tmp_path).wait(timeout=500) == 0
    whole, resumed = (load_file(folder / "hf" / "model.safetensors") for folder in (trained, tmp_path))
    assert all((whole[name] == resumed[name]).all() for name in whole)


def test_export_proves_that_both_engines_agree(trained: Path, tmp_path: Path) -> None:
    target = tmp_path / "tiny.gguf"
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "export.py"), str(trained / "hf"), str(target)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "largest difference of a logit" in done.stdout
    assert target.read_bytes()[:4] == b"GGUF"
