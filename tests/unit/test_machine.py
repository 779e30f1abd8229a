"""Cores and memory that a process may use, read from control groups as kernels and containers write them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cgroups import tree, version_2

from fsgen_router.support.machine import free_bytes, usable_cores, usable_physical_cores

psutil = pytest.importorskip("psutil")
CORES = 8
GIB = 2**30


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files below are of a machine with eight cores, whatever this one has."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(CORES)), raising=False)


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000", CORES),
        ("200000 100000", 2),
        ("390000 100000", 3),  # rounded down: a fourth thread would wait for nine tenths of its time
        ("150000 100000", 1),
        ("50000 100000", 1),  # never none
        ("1600000 100000", CORES),  # more than there is
        ("rubbish", CORES),
        ("100000 0", CORES),
    ],
)
def test_a_quota_is_rounded_down(tmp_path: Path, quota: str, cores: int) -> None:
    assert usable_cores(version_2(tmp_path, quota)) == cores
    assert usable_physical_cores(tmp_path) == cores


def test_no_control_groups_at_all(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == CORES
    assert free_bytes(tmp_path) == pytest.approx(psutil.virtual_memory().available, rel=0.2)


def test_every_group_above_counts(tmp_path: Path) -> None:
    version_2(tmp_path, "max 100000", inside="system.slice/app.service")
    assert usable_cores(tmp_path) == CORES
    (tmp_path / "sys/fs/cgroup/system.slice/cpu.max").write_text("300000 100000\n")
    assert usable_cores(tmp_path) == 3
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("250000 100000\n")
    assert usable_cores(tmp_path) == 2


@pytest.mark.parametrize("folder", ["cpu,cpuacct", "cpu"])
def test_version_1(tmp_path: Path, folder: str) -> None:
    """Mounted under the names of its controllers together, or under each alone (with links)."""
    tree(tmp_path, proc__self__cgroup="3:memory:/m\n2:cpu,cpuacct:/pod/one\n1:cpuset:/")
    group = tmp_path / "sys/fs/cgroup" / folder / "pod"
    (group / "one").mkdir(parents=True)
    for where, quota in ((group, "700000"), (group / "one", "-1")):
        (where / "cpu.cfs_quota_us").write_text(quota)
        (where / "cpu.cfs_period_us").write_text("200000")
    assert usable_cores(tmp_path) == 3
    (group / "one" / "cpu.cfs_quota_us").write_text("400000")
    assert usable_cores(tmp_path) == 2


def test_a_container_that_sees_its_hosts_path(tmp_path: Path) -> None:
    """The group's path is the host's, the container's own files lie at the top."""
    tree(tmp_path, proc__self__cgroup="4:cpu,cpuacct:/docker/0123abc\n0::/docker/0123abc")
    top = tmp_path / "sys/fs/cgroup/cpu,cpuacct"
    top.mkdir(parents=True)
    (top / "cpu.cfs_quota_us").write_text("250000")
    (top / "cpu.cfs_period_us").write_text("100000")
    assert usable_cores(tmp_path) == 2


def test_threads_of_one_core_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for cpu in range(CORES):
        tree(
            tmp_path,
            **{f"sys__devices__system__cpu__cpu{cpu}__topology__thread_siblings_list": f"{cpu % 4},{cpu % 4 + 4}"},
        )
    assert (usable_cores(tmp_path), usable_physical_cores(tmp_path)) == (8, 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 4, 1})
    assert (usable_cores(tmp_path), usable_physical_cores(tmp_path)) == (3, 2)
    version_2(tmp_path, "190000 100000")
    assert (usable_cores(tmp_path), usable_physical_cores(tmp_path)) == (1, 1)


def test_memory_of_a_group(tmp_path: Path) -> None:
    """Files that were read give way, anonymous memory does not."""
    stat = f"anon {GIB // 4}\nactive_file {GIB // 8}\ninactive_file {GIB // 8}"
    tree(tmp_path, proc__self__cgroup="0::/a")
    tree(
        tmp_path / "sys/fs/cgroup/a",
        **{"memory.max": str(GIB), "memory.current": str(GIB // 2), "memory.stat": stat},
    )
    assert free_bytes(tmp_path) == GIB - GIB // 4
    (tmp_path / "sys/fs/cgroup/a/memory.max").write_text("max")
    assert free_bytes(tmp_path) == pytest.approx(psutil.virtual_memory().available, rel=0.2)


def test_memory_of_a_group_of_version_1(tmp_path: Path) -> None:
    tree(tmp_path, proc__self__cgroup="5:memory:/pod")
    folder = tmp_path / "sys/fs/cgroup/memory"
    files = {"memory.limit_in_bytes": str(2**63 - 4096), "memory.usage_in_bytes": str(GIB)}
    tree(folder, **files)
    tree(folder / "pod", **files)
    assert free_bytes(tmp_path) == pytest.approx(psutil.virtual_memory().available, rel=0.2)
    tree(folder / "pod", **{"memory.limit_in_bytes": str(2 * GIB), "memory.stat": f"total_inactive_file {GIB // 4}"})
    assert free_bytes(tmp_path) == GIB + GIB // 4
