"""What calibration has finished, on disk: chunks of arrays, each written whole or not at all.

A work directory holds ``manifest.json``, which says what the chunks belong to, and one ``.npz`` (no
pickle) per chunk. Whoever starts again with the same prompts, pair and options finds what is done.
"""

from __future__ import annotations

import errno
import io
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from ..errors import CalibrationError, ConfigurationError
from ..evaluation.plots import write_atomically

Arrays: TypeAlias = Mapping[str, npt.NDArray[Any]]

FORMAT = 1
_MANIFEST = "manifest.json"
# What reading a file that is not a whole .npz can end with.
_UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)

T = TypeVar("T")


class WorkDirectory:
    """Chunks of one calibration, or of a study's cell.

    ``belongs_to`` is what they depend on: the pair, the prompts, the options.

    Raises :class:`ConfigurationError` where the directory holds chunks of something else.
    """

    def __init__(self, path: str | Path, belongs_to: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.before_chunk: Callable[[], None] = lambda: None
        """Called before a chunk is written: what it was made of is to be found again by who goes on from it."""
        self._claim({"format": FORMAT, **belongs_to})

    def _claim(self, wanted: dict[str, Any]) -> None:
        wanted = json.loads(json.dumps(wanted))
        found = self._manifest()
        if found is None:
            _writing(self.path, lambda: self.path.mkdir(parents=True, exist_ok=True))
            if any(self.path.glob("*.npz")):
                raise ConfigurationError(
                    f"{self.path} holds chunks but no {_MANIFEST} that says whose", hint="name another work directory"
                )
            target = self.path / _MANIFEST
            text = json.dumps(wanted, indent=1) + "\n"
            _writing(target, lambda: write_atomically(target, text.encode()))
        elif found != wanted:
            differing = [key for key in {**wanted, **found} if found.get(key) != wanted.get(key)]
            raise ConfigurationError(
                f"{self.path} belongs to something else: its {', '.join(differing)} differ",
                hint="name another work directory, or delete this one",
            )

    def _manifest(self) -> Any:
        try:
            return json.loads((self.path / _MANIFEST).read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"{self.path / _MANIFEST} cannot be read: {error}", hint="name another work directory"
            ) from None

    def load(self, name: str) -> dict[str, npt.NDArray[Any]] | None:
        """A finished chunk; None where there is none, or none that can be read (it is then made again)."""
        try:
            data = io.BytesIO((self.path / f"{name}.npz").read_bytes())
            with np.load(data, allow_pickle=False) as file:
                return {key: file[key] for key in file.files}
        except _UNREADABLE:
            return None

    def save(self, name: str, arrays: Arrays) -> None:
        """Write a chunk whole or not at all. Raises :class:`CalibrationError`, on a full disk for example."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        target = self.path / f"{name}.npz"
        _writing(target, lambda: write_atomically(target, buffer.getvalue()))

    def in_chunks(
        self,
        name: str,
        items: Sequence[T],
        compute: Callable[[Sequence[T], int], Arrays],
        *,
        size: int,
        on_items: Callable[[int], None] | None = None,
    ) -> dict[str, npt.NDArray[Any]]:
        """Arrays over ``items``, ``size`` of them at a time, each chunk computed once.

        ``compute`` gets a chunk's items and the index of the first. Arrays of the chunks are joined on
        their first axis. ``on_items`` hears how many items were found finished.
        """

        def one(chunk: Sequence[T], start: int, _names: Sequence[str]) -> list[Arrays]:
            return [compute(chunk, start)]

        return self.all_in_chunks([name], items, one, size=size, on_items=on_items)[0]

    def all_in_chunks(
        self,
        names: Sequence[str],
        items: Sequence[T],
        compute: Callable[[Sequence[T], int, Sequence[str]], Sequence[Arrays]],
        *,
        size: int,
        on_items: Callable[[int], None] | None = None,
    ) -> list[dict[str, npt.NDArray[Any]]]:
        """:meth:`in_chunks` for several names side by side: ``compute`` makes those of a chunk that are missing."""
        parts: dict[str, list[Arrays]] = {name: [] for name in names}
        for start in range(0, len(items), size):
            chunk = items[start : start + size]
            found = {name: self.load(f"{name}-{start:06d}") for name in names}
            missing = [name for name, arrays in found.items() if arrays is None]
            if on_items is not None and len(missing) < len(names):
                on_items(len(chunk) * (len(names) - len(missing)))
            made = dict(zip(missing, compute(chunk, start, missing) if missing else (), strict=True))
            if made:
                self.before_chunk()
            for name, arrays in made.items():
                self.save(f"{name}-{start:06d}", arrays)
            for name in names:
                parts[name].append(made[name] if name in made else found[name] or {})
        return [join(parts[name]) for name in names]


def join(parts: Sequence[Arrays]) -> dict[str, npt.NDArray[Any]]:
    """Arrays of the same names, one behind the other."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def check_folder(path: str | Path) -> Path:
    """The path itself; :class:`CalibrationError` where no folder is and none can be made. Called before hours of work,
    not after."""
    folder = Path(path)
    if not folder.is_dir():
        _writing(folder, lambda: folder.mkdir(parents=True))
        folder.rmdir()  # what comes next may still fail, and is to leave nothing behind
    return folder


def write_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; a :class:`CalibrationError` where that fails."""
    _writing(path, lambda: write_atomically(path, data))


def _writing(path: Path, action: Callable[[], object]) -> None:
    try:
        action()
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise CalibrationError(
            f"{path} cannot be written: {error.strerror or error}",
            hint="make room and run the same command again: what is finished is kept"
            if full
            else "name another place, or one that may be written to",
        ) from None


def pack_texts(texts: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """Texts as two arrays: UTF-8 bytes end to end, and each text's size."""
    encoded = [text.encode() for text in texts]
    return {
        "text": np.frombuffer(b"".join(encoded), np.uint8),
        "text_bytes": np.array([len(data) for data in encoded], np.int64),
    }


def unpack_texts(arrays: Arrays) -> list[str]:
    data = arrays["text"].tobytes()
    return [data[start:stop].decode() for start, stop in _edges(arrays["text_bytes"])]


def pack_ids(rows: Sequence[Sequence[int]]) -> dict[str, npt.NDArray[Any]]:
    """Rows of token ids of any length as two arrays: all ids, and each row's size."""
    return {
        "ids": np.array([token for row in rows for token in row], np.int32),
        "id_counts": np.array([len(row) for row in rows], np.int64),
    }


def unpack_ids(arrays: Arrays) -> list[list[int]]:
    ids = arrays["ids"].tolist()
    return [ids[start:stop] for start, stop in _edges(arrays["id_counts"])]


def _edges(sizes: npt.NDArray[Any]) -> Iterator[tuple[int, int]]:
    ends = np.cumsum(sizes).tolist()
    return zip([0, *ends], ends, strict=False)
