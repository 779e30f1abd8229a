"""GGUF files: whether one is any, and those that are published in several, ``name-00001-of-00003.gguf`` and the two
that follow it."""

from __future__ import annotations

import re
from pathlib import Path

from fsgen_router.errors import ModelFileCorrupt, ModelLoadError

_SHARD = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


def shards_of(name: str) -> list[str]:
    """The names of all shards of the model that ``name`` is a shard of; empty where it is none."""
    found = _SHARD.fullmatch(name)
    if found is None or not 1 <= int(found["number"]) <= int(found["count"]):
        return []
    return [f"{found['stem']}-{number:05}-of-{found['count']}.gguf" for number in range(1, int(found["count"]) + 1)]


def require_gguf(path: Path, *, hint: str) -> None:
    """Raise :class:`ModelFileCorrupt` with this hint where ``path`` is no GGUF file."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}") from None
    if magic != b"GGUF":
        raise ModelFileCorrupt(f"{path} is not a GGUF file (it begins with {magic!r})", hint=hint)
