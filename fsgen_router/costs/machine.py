"""What times depend on beside a model: the machine, and what this process may use of it."""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Mapping
from pathlib import Path

from ..support.machine import usable_cores

_CPU_INFO = Path("/proc/cpuinfo")
_POOLS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")
"""What thread pools are told by the environment."""


def machine() -> dict[str, str]:
    """This machine, as far as times depend on it. A GPU is named by the models that run on it."""
    pools = {name: os.environ[name] for name in _POOLS if name in os.environ}
    return {"processor": processor(), "cores": str(usable_cores()), "system": platform.system(), **pools}


@functools.cache
def processor(info: Path = _CPU_INFO) -> str:
    """The processor's name, or its architecture where the system tells no name."""
    try:
        lines = info.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Hardware"))]
    return next(filter(None, names), None) or platform.processor() or platform.machine()


def described(found: Mapping[str, str]) -> str:
    """A machine in words."""
    return f"{found.get('processor', 'unknown')}, {found.get('cores', '?')} cores"
