"""Costs that were measured are kept in files: one for each model, its options and the machine."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..contracts.models import TokenModel
from ..errors import ConfigurationError
from ..records import Role
from ..support.cache import cache_folder, write_whole
from ..support.logs import log
from .forward import ForwardCost
from .machine import described, machine

FORMAT = 1


class CostStore:
    """Files of measured costs in a folder, by default one of the user's cache.

    A model is known by its ``identity`` (a digest of its file, backend and options), the seat that it was measured
    in and the machine: the same file with other options, or on another machine, has a file of its own. What cannot
    be read, or speaks of something else, counts as not there. Models without an ``identity`` are not kept.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder if folder is not None else cache_folder() / "costs"

    def path(self, role: Role, model: TokenModel) -> Path | None:
        """Where a model's costs are kept, there or not; None where it does not say what it is."""
        about = _about(role, model)
        if about is None:
            return None
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        return self.folder / f"{digest[:32]}.json"

    def load(self, role: Role, model: TokenModel) -> ForwardCost | None:
        path, about = self.path(role, model), _about(role, model)
        if path is None or about is None:
            return None
        try:
            found = json.loads(path.read_text())
            if found["format"] != FORMAT:
                raise ConfigurationError(f"it has format {found['format']}, not {FORMAT}")
            for part, ours in about.items():
                if found[part] != ours:
                    theirs = described(found[part]) if part == "machine" else found[part]
                    raise ConfigurationError(f"it is of another {part}: {theirs}")
            return ForwardCost.from_dict(found)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("costs_unread", model=model.name, path=str(path), why=str(error))
            return None

    def save(self, role: Role, model: TokenModel, cost: ForwardCost) -> None:
        """Keep a model's costs, whole or not at all. A folder that cannot be written to is logged, and no error."""
        path, about = self.path(role, model), _about(role, model)
        if path is None or about is None:
            return
        measured = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        text = json.dumps({"format": FORMAT, **about, "measured": measured, **cost.to_dict()}, indent=1)
        try:
            write_whole(path, text + "\n")
        except OSError as error:
            log.warning("costs_unkept", model=model.name, path=str(path), why=error.strerror or str(error))


def _about(role: Role, model: TokenModel) -> dict[str, Any] | None:
    identity: Mapping[str, str] | None = getattr(model, "identity", None)
    if identity is None:
        return None
    # The fast seat's rows are read for signals, another's to judge drafts.
    return {"model": dict(identity), "seat": "fast" if role == "fast" else "slow", "machine": machine()}
