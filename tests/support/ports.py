"""Ports for servers that want to be told one."""

from __future__ import annotations

import itertools
import os
import random
import socket

# Below those that systems give out by themselves: nobody takes one between this choice and its use. Of each process of
# tests its own.
_BEGIN = 10_000 + 2_000 * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 10)
_OFFSETS = itertools.count(random.randrange(2_000))


def free_port() -> int:
    for offset in itertools.islice(_OFFSETS, 2_000):
        port = _BEGIN + offset % 2_000
        with socket.socket() as trial:
            if trial.connect_ex(("127.0.0.1", port)):  # nobody listens
                return port
    raise RuntimeError("every port is taken")
