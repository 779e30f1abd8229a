"""What a large file is, without reading all of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

_HEAD, _SAMPLE, _SAMPLES = 1 << 20, 1 << 16, 32


def sampled_digest(paths: Iterable[Path]) -> str:
    """SHA-256 of sizes, beginnings and samples of files, in hexadecimal: it tells models apart, and proves nothing."""
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(size.to_bytes(8, "big"))
        with path.open("rb") as file:
            digest.update(file.read(_HEAD))
            for number in range(_SAMPLES):
                file.seek(size * number // _SAMPLES)
                digest.update(file.read(_SAMPLE))
    return digest.hexdigest()
