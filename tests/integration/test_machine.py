"""Backends keep to the cores and the memory that a container allows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from cgroups import tree, version_2

from fsgen_router import NotEnoughMemory, reference
from fsgen_router.adapters.llama_cpp import LlamaCppModel
from fsgen_router.adapters.transformers import TransformersModel
from fsgen_router.support import machine

CORES = 8


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files below are of a machine with eight cores, whatever this one has."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(CORES)), raising=False)


def test_a_model_that_a_container_has_no_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, proc__self__cgroup="0::/")
    tree(tmp_path / "sys/fs/cgroup", **{"memory.max": str(2**20), "memory.current": "0"})
    monkeypatch.setattr(machine.free_bytes, "__defaults__", (tmp_path,))
    with pytest.raises(NotEnoughMemory, match=r"0.0 GiB are free.*would fit"):
        LlamaCppModel(reference.path("slow"), n_seq=16)
    with pytest.raises(NotEnoughMemory, match="short"):
        TransformersModel(reference.path("slow"), n_seq=16)


def test_torch_takes_no_more_threads_than_there_are_cores(tmp_path: Path) -> None:
    """In a process of its own: torch counts four, and its container allows 2.9."""
    tree(tmp_path, proc__self__cgroup="0::/")
    tree(tmp_path / "sys/fs/cgroup", **{"cpu.max": "290000 100000"})
    program = (
        "import os, sys, pathlib, torch\n"
        "from fsgen_router.support import machine\n"
        "os.sched_getaffinity = lambda _: set(range(8))\n"
        "machine.usable_cores.__defaults__ = (pathlib.Path(sys.argv[1]),)\n"
        "from fsgen_router import reference\n"
        "from fsgen_router.adapters.transformers import TransformersModel\n"
        "for asked in (None, 5):\n"
        "    torch.set_num_threads(4)\n"
        "    TransformersModel(reference.path('fast'), n_threads=asked).shutdown()\n"
        "    print(torch.get_num_threads())\n"
        "torch.set_num_threads(1)\n"
        "TransformersModel(reference.path('fast')).shutdown()\n"
        "print(torch.get_num_threads())\n"  # fewer are left as they are
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["2", "5", "1"]


def test_llama_cpps_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llama_cpp import llama_cpp as lib

    from fsgen_router.adapters.llama_cpp import loading

    version_2(tmp_path, "390000 100000")
    monkeypatch.setattr(machine.usable_physical_cores, "__defaults__", (tmp_path,))
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: CORES)
    model = LlamaCppModel(reference.path("fast"), n_ctx=32)
    assert lib.llama_n_threads(model._context) == 1  # a small model
    monkeypatch.setattr(loading, "_SMALL_MODEL", 0)
    model.shutdown()
    larger = LlamaCppModel(reference.path("fast"), n_ctx=32)
    assert lib.llama_n_threads(larger._context) == 2
    larger.shutdown()


def test_a_forward_keeps_its_threads_share_of_the_cores_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version_2(tmp_path, "400000 100000")
    monkeypatch.setattr(machine.usable_physical_cores, "__defaults__", (tmp_path,))
    for threads, share in ((1, 0.25), (4, 1.0)):
        model = LlamaCppModel(reference.path("fast"), n_ctx=32, n_threads=threads)
        assert (model.capabilities.device, model.capabilities.device_share) == ("cpu", share)
        model.shutdown()
