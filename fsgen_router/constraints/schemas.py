"""JSON Schemas as a grammar holds them: read more strictly, or less, than llguidance does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_MAPS: Final = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS: Final = ("prefixItems", "items", "anyOf", "allOf", "oneOf")
_PARTS: Final = (
    "items", "additionalProperties", "additionalItems", "contains", "propertyNames", "not", "if", "then", "else",
)  # fmt: skip

_FORMATS: Final = {
    "date-time", "date", "time", "duration", "email", "idn-email", "hostname", "idn-hostname", "ipv4", "ipv6", "uri",
    "uri-reference", "iri", "iri-reference", "uuid", "uri-template", "json-pointer", "relative-json-pointer", "regex",
}  # fmt: skip
"""Those that JSON Schema gives a meaning. Any other is a note (pydantic writes ``path`` or ``password``)."""

_YEAR: Final = "(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_LEAP_YEAR: Final = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_DAY: Final = f"^(?:{_YEAR}-(?:0[13-9]|1[0-2]|02-[01]|02-2[0-8])|{_LEAP_YEAR}-02-29)"
_SECONDS: Final = "[0-9]{2}:[0-9]{2}:[0-5][0-9]"
_NARROWER: Final = {"date": (_DAY,), "time": (_SECONDS,), "date-time": (_DAY, _SECONDS)}
"""Dates as calendars and most readers have them: no year 0, no 29 February of another year, no leap seconds."""


def held(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema whose grammar is made: formats that say nothing left out, dates as most readers take them."""
    made = dict(schema)
    for name in _MAPS:
        if isinstance(made.get(name), Mapping):
            made[name] = {key: _part(part) for key, part in made[name].items()}
    for name in _LISTS:
        if isinstance(made.get(name), list | tuple):
            made[name] = [_part(part) for part in made[name]]
    for name in _PARTS:
        if isinstance(made.get(name), Mapping):
            made[name] = held(made[name])
    wanted = made.get("format")
    if isinstance(wanted, str) and wanted not in _FORMATS:
        del made["format"]
    elif isinstance(wanted, str) and wanted in _NARROWER:
        made["allOf"] = [*made.get("allOf", ()), *({"pattern": pattern} for pattern in _NARROWER[wanted])]
    return made


def _part(part: Any) -> Any:
    return held(part) if isinstance(part, Mapping) else part
