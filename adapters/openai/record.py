"""What was found out about an endpoint, kept for other processes: a file for each endpoint, model and way of asking."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fsgen_router.errors import ConfigurationError
from fsgen_router.support.cache import cache_folder, write_whole
from fsgen_router.support.logs import log

from .endpoint import Endpoint
from .options import OpenAIOptions

FORMAT = 1
FRESH = timedelta(days=7)
"""Servers are set up anew: what was found longer ago is found out again."""

_SAID = ("api", "prefill", "sampling", "extra_body", "api_key_env")
"""Options that change what is asked, or of whom."""


@dataclass(slots=True)
class Record:
    """What an endpoint was found to do; None: not found out.

    ``dialects`` are names of :class:`~.requests.Dialect` (None: no partial answer is continued) by what the template's
    variables were, which may change that. ``wraps``: raw prompts are put into a chat template. ``streams``: only a
    stream is answered.
    """

    dialects: dict[str, str | None] = field(default_factory=dict)
    wraps: bool | None = None
    streams: bool | None = None
    usage: bool | None = None
    cached_tokens: bool | None = None
    logprobs: bool | None = None
    token_ids: bool | None = None
    verifies: bool | None = None
    found: str = ""
    """When, as ISO 8601."""


def variables_key(variables: Mapping[str, Any]) -> str:
    """A digest: a template's variables may hold anything, and are not to be read in a file."""
    return _digest(variables) if variables else ""


class Records:
    """The file of one endpoint's record. What cannot be read, is too old or speaks of another counts as not there."""

    def __init__(self, endpoint: Endpoint, options: OpenAIOptions) -> None:
        said = {name: value for name, value in options.model_dump(mode="json").items() if name in _SAID}
        self._about = {"url": endpoint.url, "model": endpoint.model, "options": _digest(said)}
        self._name = endpoint.name

    @property
    def path(self) -> Path:
        return cache_folder() / "endpoints" / f"{_digest(self._about)}.json"

    def load(self) -> Record | None:
        try:
            found = json.loads(self.path.read_text())
            if found["format"] != FORMAT:
                raise ConfigurationError(f"it has format {found['format']}, not {FORMAT}")
            if {name: found[name] for name in self._about} != self._about:
                raise ConfigurationError("it is of another endpoint")
            record = _parsed(found["record"])
            age = datetime.now(UTC) - datetime.fromisoformat(record.found)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("probe_unread", model=self._name, path=str(self.path), why=str(error))
            return None
        return record if timedelta(minutes=-5) <= age < FRESH else None

    def forget(self) -> None:
        """It does not hold any more."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    def save(self, record: Record) -> None:
        """Keep it, whole or not at all, with what other processes found meanwhile about other variables."""
        if (other := self.load()) is not None:
            record.dialects = {**other.dialects, **record.dialects}
        text = json.dumps({"format": FORMAT, **self._about, "record": dataclasses.asdict(record)}, indent=1)
        try:
            write_whole(self.path, text + "\n")
        except OSError as error:
            log.warning("probe_unkept", model=self._name, path=str(self.path), why=error.strerror or str(error))


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _parsed(found: Mapping[str, Any]) -> Record:
    record = Record(**found)
    facts = {name: value for name, value in found.items() if name not in ("dialects", "found")}
    if not all(value is None or isinstance(value, bool) for value in facts.values()):
        raise TypeError(f"its facts are {facts}")
    if not all(isinstance(key, str) and isinstance(name, str | None) for key, name in record.dialects.items()):
        raise TypeError(f"its dialects are {record.dialects}")
    return record


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:32]
