"""Control groups and processors of a machine that is not this one, as files below a folder."""

from __future__ import annotations

from pathlib import Path


def tree(root: Path, **files: str) -> Path:
    """A root folder with these files; ``__`` in a name stands for ``/``."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def version_2(root: Path, quota: str, *, inside: str = "") -> Path:
    tree(root, proc__self__cgroup=f"0::/{inside}")
    folder = root / "sys/fs/cgroup" / inside
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.max").write_text(quota + "\n")
    return root
