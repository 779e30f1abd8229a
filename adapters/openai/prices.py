"""What an endpoint's vendor asks, where a list that others keep up to date knows it."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from fsgen_router.errors import ConfigurationError
from fsgen_router.money import PriceTable, parse_prices
from fsgen_router.records import Prices

from .endpoint import Endpoint

_NAMES = {
    "input": "input_mtok",
    "cached_input": "cache_read_mtok",
    "cache_write": "cache_write_mtok",
    "output": "output_mtok",
    "reasoning": "output_reasoning_mtok",
}
"""Our kinds of tokens by the names of genai-prices."""


def optional_prices(option: str | Mapping[str, Any] | None, name: str) -> Prices | None:
    """The option ``prices`` of a model: a table's path, or prices themselves."""
    if option is None:
        return None
    if isinstance(option, str):
        return PriceTable.load(option).require(name)
    return parse_prices(option, f"prices of {name}")


def vendor_prices(endpoint: Endpoint) -> Prices | None:
    """What the package genai-prices knows of this model at this vendor's own address, as of now.

    None for an address or a model that it does not know: a name alone says nothing of what another host asks. Where a
    price grows with the prompt's length it is that of short ones, and the source says so.
    """
    if endpoint.loopback:
        return None
    try:
        from genai_prices import __version__, data_snapshot
    except ImportError as error:
        raise ImportError("the openai backend needs the extra 'openai': pip install 'fsgen-router[openai]'") from error
    now = datetime.datetime.now(datetime.UTC)
    try:
        found = data_snapshot.get_snapshot().find_provider_model(endpoint.model, None, None, endpoint.url)
        listed = found[1].get_prices(now)
    except LookupError:
        return None
    source, prices = f"genai-prices {__version__}", {}
    for ours, theirs in _NAMES.items():
        value: Any = getattr(listed, theirs, None)
        if hasattr(value, "tiers"):
            source = f"genai-prices {__version__}, prompts of up to {min(tier.start for tier in value.tiers):,} tokens"
            value = value.base
        prices[ours] = None if value is None else float(value)
    if prices["input"] is None or prices["output"] is None:
        return None
    try:
        return Prices(**prices, source=source)  # type: ignore[arg-type]
    except ConfigurationError:  # such a list is no price list: nothing is guessed of it
        return None
