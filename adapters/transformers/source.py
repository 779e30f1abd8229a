"""Where a model is: a folder, a GGUF file, or a repository of the hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsgen_router.errors import ConfigurationError, ModelNotFound

from ..gguf_files import require_gguf, shards_of
from .options import TransformersOptions

_HUB = re.compile(r"(?P<repo>[^/@]+(?:/[^/@]+)?)(?:@(?P<revision>[^@]+))?")
_NO_GGUF = "name the model's folder, or a GGUF file"


@dataclass(frozen=True, slots=True)
class Source:
    """What transformers' ``from_pretrained`` takes to find a model."""

    name: str
    where: str
    arguments: dict[str, Any]
    on_hub: bool

    @property
    def weights(self) -> list[Path]:
        """The files that hold them; none where the hub is asked for them."""
        if self.on_hub:
            return []
        folder, gguf_file = Path(self.where), self.arguments.get("gguf_file")
        return [folder / gguf_file] if gguf_file else sorted({*folder.glob("*.safetensors"), *folder.glob("*.bin")})


def locate(where: str, options: TransformersOptions) -> Source:
    """A folder, a GGUF file, or ``owner/repo@revision`` on the hub."""
    try:
        path = Path(where).expanduser()
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # too long for a name, or ~nobody
        raise ModelNotFound(f"{where!r} is no path: {error}") from None
    remote = {"trust_remote_code": options.trust_remote_code}
    _require_whole(path.name if is_file else options.gguf_file)
    if is_file:
        require_gguf(path, hint=_NO_GGUF)
        return Source(path.name, str(path.parent), {**remote, "gguf_file": path.name}, on_hub=False)
    gguf_file = {"gguf_file": options.gguf_file} if options.gguf_file else {}
    if is_folder:
        _require_model_in(path, options.gguf_file)
        name = options.gguf_file or path.resolve().name
        return Source(name, str(path), {**remote, **gguf_file}, on_hub=False)
    found = _HUB.fullmatch(where)
    if found is None or where[0] in ".~" or where.endswith(".gguf"):
        raise ModelNotFound(
            f"there is no model folder or GGUF file {where!r}", hint="check the path, or name a hub model: owner/repo"
        )
    revision = {"revision": found["revision"]} if found["revision"] else {}
    return Source(where, found["repo"], {**remote, **gguf_file, **revision}, on_hub=True)


def _require_whole(gguf_file: str | None) -> None:
    """transformers reads one file, and would take a shard for a model without most of its weights."""
    if gguf_file is not None and len(shards := shards_of(gguf_file)) > 1:
        raise ConfigurationError(
            f"{gguf_file} is one of {len(shards)} shards, and transformers reads a model from one GGUF file",
            hint="load it as llama_cpp:, or merge the shards with llama-gguf-split --merge, a program of llama.cpp",
        )


def _require_model_in(folder: Path, gguf_file: str | None) -> None:
    if gguf_file is not None:
        if not (folder / gguf_file).is_file():
            raise ModelNotFound(f"there is no {gguf_file} in {folder}")
        require_gguf(folder / gguf_file, hint=_NO_GGUF)
    elif not (folder / "config.json").is_file():
        inside = ", ".join(sorted(path.name for path in folder.glob("*.gguf")))
        raise ModelNotFound(
            f"{folder} holds no model: there is no config.json in it",
            hint=f"name a file in it: {inside}" if inside else "save a model there with save_pretrained",
        )
