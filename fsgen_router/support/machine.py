"""What of this machine the process may use: its affinity and the limits of its container counted.

A container sees all of its host's cores and memory; what it may use of them is written in the files of the
control groups that the process is in, and any group above it may allow less.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_UNLIMITED = 2**60  # bytes: what control groups of version 1 say where there is no limit is more
_ROOT = Path("/")


def usable_cores(root: Path = _ROOT) -> int:
    """Logical cores whose whole time this process may use, at least 1: half a core more makes no thread faster."""
    return max(min([len(_affinity()), *_quotas(root)]), 1)


def usable_physical_cores(root: Path = _ROOT) -> int:
    """Like :func:`usable_cores`, with the threads of one core counted once, where the system tells."""
    cores = {_siblings(cpu, root) for cpu in _affinity()}
    return max(min([len(cores), *_quotas(root)]), 1)


def free_bytes(root: Path = _ROOT) -> int | None:
    """Memory that this process may still take; None without psutil, which knows."""
    try:
        import psutil
    except ImportError:
        return None
    return min([int(psutil.virtual_memory().available), *_left_by_groups(root)])


def _affinity() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _siblings(cpu: int, root: Path) -> str:
    where = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
    return _read(where) or str(cpu)


# --- control groups ------------------------------------------------------------------------------


def _quotas(root: Path) -> Iterator[int]:
    """Whole cores that each group with a quota allows."""
    for folder in _groups(root, ""):
        quota, _, period = (_read(folder / "cpu.max") or "").partition(" ")
        yield from _cores(quota, period)
    for folder in _groups(root, "cpu"):
        yield from _cores(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))


def _cores(quota: str | None, period: str | None) -> Iterator[int]:
    try:
        allowed = int(quota or "") // int(period or "")
    except (ValueError, ZeroDivisionError):  # no such file, or no quota ("max")
        return
    if allowed >= 0:  # -1: no quota
        yield allowed


def _left_by_groups(root: Path) -> Iterator[int]:
    for folder in _groups(root, ""):
        yield from _left(folder, "memory.max", "memory.current", "")
    for folder in _groups(root, "memory"):
        yield from _left(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_")


def _left(folder: Path, limit_name: str, used_name: str, prefix: str) -> Iterator[int]:
    """What a group's limit leaves. Files that were read or mapped give way, so they count as free."""
    try:
        limit, used = int(_read(folder / limit_name) or ""), int(_read(folder / used_name) or "")
    except ValueError:  # no such file, or no limit ("max")
        return
    if limit >= _UNLIMITED:
        return
    lines = [line.split() for line in (_read(folder / "memory.stat") or "").splitlines()]
    said = {line[0]: int(line[1]) for line in lines if len(line) == 2 and line[1].isdigit()}
    files = said.get(f"{prefix}active_file", 0) + said.get(f"{prefix}inactive_file", 0)
    yield max(limit - max(used - files, 0), 0)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of the process's group and of those above it; ``""`` names version 2's one hierarchy.

    In a container the group's path may be the host's, and the container's own files lie at the top.
    """
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controller not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / controllers
        if controller and not top.is_dir():
            top = root / "sys/fs/cgroup" / controller
        inner = top / group.lstrip("/")
        yield from (folder for folder in (inner, *inner.parents) if folder.is_relative_to(top))


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
