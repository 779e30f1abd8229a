"""Where a GGUF file is: a path, or a file of the hub, and all of its shards."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from fsgen_router.errors import ConfigurationError, ModelLoadError, ModelNotFound

from ..gguf_files import require_gguf, shards_of

_HUB = re.compile(r"hf://(?P<repo>[^/@]+/[^/@]+)/(?P<file>[^@]+?)(?:@(?P<revision>[^@]+))?")


def locate(where: str) -> Path:
    """The local file behind ``where``: a path, or ``hf://owner/repo/file.gguf@revision``.

    Of a model in shards this is the first, whichever was named: llama.cpp finds the others beside it, and they
    are there. Hub files come through the hub client's cache; ``HF_HUB_OFFLINE=1`` keeps it off the network.
    """
    if where.startswith("hf://"):
        return _from_hub(where)
    try:
        path = Path(where).expanduser()
        exists = path.exists()
    except (OSError, RuntimeError) as error:  # too long for a name, or ~nobody
        raise ModelNotFound(f"{where!r} is no path: {error}") from None
    shards = [path.with_name(name) for name in shards_of(path.name)]
    if path.is_dir():
        names = sorted(p.name for p in path.glob("*.gguf"))
        inside = [name for name in names if name in (shards_of(name) or [name])[:1]]
        raise ModelNotFound(
            f"{path} is a folder", hint=f"name a file in it: {', '.join(inside)}" if inside else "no GGUF file is in it"
        )
    if not exists and not any(shard.exists() for shard in shards):
        raise ModelNotFound(f"there is no model file {path}", hint=_instead_of(path))
    if missing := [shard.name for shard in shards if not shard.exists()]:
        raise ModelNotFound(
            f"{path} is one of {len(shards)} shards, and {len(missing)} are not beside it: {_few(missing)}",
            hint="fetch them into the same folder",
        )
    for file in shards or [path]:
        require_gguf(file, hint="convert it with llama.cpp's convert_hf_to_gguf")
    return shards[0] if shards else path


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _instead_of(path: Path) -> str:
    """What to do about a file that is not there."""
    first = next(iter(sorted(path.parent.glob(f"{glob.escape(path.stem)}-00001-of-*.gguf"))), None)
    if first is not None:
        return f"it is here in shards: name {first.name}"
    return "check the path, or use hf://owner/repo/file.gguf"


def _from_hub(where: str) -> Path:
    found = _HUB.fullmatch(where)
    if found is None:
        raise ConfigurationError(f"{where!r} names no hub file", hint="write hf://owner/repo/file.gguf@revision")
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise ImportError("hub models need the extra 'hub': pip install 'fsgen-router[hub]'") from error
    first, *others = shards_of(found["file"]) or [found["file"]]
    wanted = first
    try:
        path = Path(hf_hub_download(found["repo"], first, revision=found["revision"]))
        commit = path.parents[first.count("/")].name  # one commit for all, whatever is published meanwhile
        for wanted in others:
            hf_hub_download(found["repo"], wanted, revision=commit)
    except LocalEntryNotFoundError:
        raise ModelNotFound(
            f"{_named(found, wanted)} is not in the local cache and the hub was not reached",
            hint="unset HF_HUB_OFFLINE, or use a path",
        ) from None
    except (HfHubHTTPError, HFValidationError) as error:
        raise ModelNotFound(
            f"the hub has no {_named(found, wanted)}: {str(error).splitlines()[0]}",
            hint=None if others else "a large model may lie there in shards: name the first, file-00001-of-00002.gguf",
        ) from None
    except OSError as error:
        raise ModelLoadError(f"{_named(found, wanted)} could not be fetched: {error}") from None
    return locate(str(path))


def _named(found: re.Match[str], file: str) -> str:
    revision = f"@{found['revision']}" if found["revision"] else ""
    return f"hf://{found['repo']}/{file}{revision}"
