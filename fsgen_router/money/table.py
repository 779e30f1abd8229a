"""Prices out of a file that people keep: dated, with their source, by name of a model."""

from __future__ import annotations

import datetime
import difflib
import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from ..errors import ConfigurationError
from ..records import PRICED, Prices
from ..support.logs import log

PRICES_VARIABLE: Final = "FSGEN_PRICES"
"""The environment variable that names a table for every Router."""

_EXAMPLE = 'like [models."gpt-x"] with input = 1.0 and output = 5.0, in US dollars per million tokens'
_DATED = ("date", "source")


@dataclass(frozen=True)
class PriceTable:
    """Prices by name of a model: ``name``, or ``name@host`` for one endpoint alone.

    A TOML file (or JSON of the same shape)::

        date = 2026-11-20
        source = "https://vendor.example/pricing"

        [models."gpt-x"]
        input = 1.0
        cached_input = 0.05
        cache_write = 1.25
        output = 5.0
        reasoning = 5.0

    ``input`` and ``output`` are needed, the others are as in :class:`~fsgen_router.Prices`. A model may have a
    ``date`` and a ``source`` of its own; one date is needed, because prices change.
    """

    models: Mapping[str, Prices]
    where: str = ""

    @classmethod
    def load(cls, path: str | Path) -> PriceTable:
        """Read a table. Raises :class:`ConfigurationError` where there is none, or it says what no price list does."""
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
            found = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
        except OSError as error:
            raise ConfigurationError(f"{path} is no table of prices: {error.strerror}", hint=_EXAMPLE) from None
        except ValueError as error:
            raise ConfigurationError(f"the table of prices {path} cannot be read: {error}", hint=_EXAMPLE) from None
        return cls.of(found, str(path))

    @classmethod
    def of(cls, found: object, where: str) -> PriceTable:
        """A table out of what a file says; ``where`` it is."""
        if not isinstance(found, dict) or not isinstance(found.get("models"), dict) or not found["models"]:
            raise ConfigurationError(f"the price table {where} names no models", hint=_EXAMPLE)
        _require_known(found, ("models", *_DATED), where)
        shared = {name: found[name] for name in _DATED if name in found}
        models = {}
        for name, entry in found["models"].items():
            place = f"{where}, model {name!r}"
            models[str(name)] = parse_prices({**shared, **entry} if isinstance(entry, dict) else entry, place)
            if models[str(name)].date is None:
                raise ConfigurationError(f"{place}: no date", hint="prices change: say of when these are, date = ...")
        return cls(models, where)

    def find(self, name: str) -> Prices | None:
        """Of a model (``name@host`` of an endpoint): its own entry, or that of its name without the host."""
        prices = self.models.get(name) or self.models.get(name.rpartition("@")[0])
        return prices if prices is None or prices.source else replace(prices, source=self.where)

    def require(self, name: str) -> Prices:
        """Like :meth:`find`. Raises :class:`ConfigurationError` where the table does not know the model."""
        prices = self.find(name)
        if prices is None:
            known = ", ".join(self.models)
            raise ConfigurationError(f"{self.where} has no prices of {name}", hint=f"it has those of {known}")
        return prices


def parse_prices(found: object, place: str) -> Prices:
    """Prices out of a file or an option. Raises :class:`ConfigurationError`, which says where."""
    if not isinstance(found, dict):
        raise ConfigurationError(f"{place}: {found!r} are no prices", hint=_EXAMPLE)
    _require_known(found, (*PRICED, *_DATED), place)
    for name in ("input", "output"):
        if found.get(name) is None:
            raise ConfigurationError(f"{place}: no price of {name}", hint="0 where it costs nothing")
    prices: dict[str, Any] = {name: found.get(name) for name in PRICED}
    try:
        return Prices(**prices, source=str(found.get("source") or ""), date=_date(found.get("date")))
    except ConfigurationError as error:
        raise ConfigurationError(f"{place}: {error.message}", hint=error.hint) from None


def known_prices(model: object, given: Prices | str | Path | None = None) -> Prices | None:
    """A model's prices: those ``given`` (a table has to know it), else its own option's, else those of the table that
    ``FSGEN_PRICES`` names, else what the model knows of its vendor. None where nobody knows: they are not guessed.

    Of several (``endpoints``) each has its own, and one that nobody knows leaves the sum unknown;
    :class:`Prices` that are given are those of all.
    """
    if isinstance(given, Prices):
        return given
    first, *others = _endpoints(model)
    prices, fallbacks = _known(first, given), {other.name: _known(other, given) for other in others}
    known = {name: one for name, one in fallbacks.items() if one is not None}
    if prices is None or len(known) < len(fallbacks):
        if prices is not None or known:
            missing = [name for name, one in {first.name: prices, **fallbacks}.items() if one is None]
            log.warning("prices_unknown", models=missing)
        return None
    return replace(prices, fallbacks=known) if known else prices


def _endpoints(model: object) -> Sequence[Any]:
    """The models that a model asks in turn; itself, where it is one."""
    several: Sequence[Any] = getattr(model, "endpoints", ()) or (model,)
    return several


def _known(model: object, given: str | Path | None) -> Prices | None:
    name = str(getattr(model, "name", ""))
    if given is not None:
        return PriceTable.load(given).require(name)
    own: Prices | None = getattr(model, "prices", None)
    if own is not None:
        return own
    variable = os.environ.get(PRICES_VARIABLE)
    if variable and (listed := PriceTable.load(variable).find(name)) is not None:
        return listed
    vendor = getattr(model, "vendor_prices", None)
    known: Prices | None = vendor() if callable(vendor) else None
    return known


def _require_known(found: Mapping[str, Any], names: tuple[str, ...], place: str) -> None:
    for name in found:
        if name not in names:
            close = difflib.get_close_matches(str(name), names, 1)
            meant = f"did you mean {close[0]!r}? " if close else ""
            raise ConfigurationError(f"{place}: unknown {name!r}", hint=f"{meant}available: {', '.join(names)}")


def _date(value: object) -> datetime.date | None:
    if value is None:
        return None
    if isinstance(value, datetime.datetime):
        return value.date()
    if isinstance(value, datetime.date):
        return value
    try:
        return datetime.date.fromisoformat(str(value))
    except ValueError:
        raise ConfigurationError(f"date={value!r} is no date", hint="YYYY-MM-DD") from None
