"""Policies from their short forms."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

from fsgen_router.contracts.policy import REST, Policy
from fsgen_router.errors import ConfigurationError

from .basic import SIGNALS, Always, AtPrompt, Every, Never, Random, Threshold
from .budget import Budget
from .files import SUFFIX, load_policy

SHORT_FORMS = (
    "never",
    "always",
    "every:8",
    "random:0.1",
    "entropy>1.2",
    "varentropy>2",
    "max_prob<0.6",
    "margin<0.4",
    "budget:0.2",
    "entropy>1.2,at=prompt",
)
_HINT = (
    f"one of {', '.join(SHORT_FORMS)} with your own numbers; add ',span=8' (or span=rest) for what the slow model "
    "then writes, ',window=4' to a threshold to average over the last tokens, and ',at=prompt' to decide about the "
    "whole answer at its first token; or a policy file, NAME.safetensors"
)
_PARTS = ("name", "asks", "begin", "decide", "end")
_HEAD = re.compile(r"(?P<kind>[a-z_]+)\s*(?:(?P<mark>[:<>])\s*(?P<value>[-+.\w]+))?")
# On which side of its threshold a signal says "uncertain".
_UNCERTAIN = {"entropy": ">", "varentropy": ">", "max_prob": "<", "margin": "<"}


def make_policy(policy: Policy | str | Path) -> Policy:
    """A policy from an object, a short form or a file.

    A path, or a text that ends in ``.safetensors``, is a policy file. Raises
    :class:`ConfigurationError`, which lists what exists, and
    :class:`~fsgen_router.errors.PolicyFileError` where the file is none.
    """
    if isinstance(policy, Path) or (isinstance(policy, str) and policy.endswith(SUFFIX)):
        return load_policy(policy)[0]
    if not isinstance(policy, str):
        missing = [part for part in _PARTS if not hasattr(policy, part)]
        if isinstance(policy, type) or "decide" in missing:
            raise ConfigurationError(
                f"{policy!r} is not a policy", hint="pass a short form, a file or an object with decide()"
            )
        if missing:
            raise ConfigurationError(
                f"the policy {type(policy).__name__} has no {' and no '.join(missing)}",
                hint=f"a policy has {', '.join(_PARTS[:-1])} and {_PARTS[-1]}: fsgen_router.Policy says what each is",
            )
        return policy
    head, *options = (part.strip() for part in policy.split(","))
    found = _HEAD.fullmatch(head)
    if found is None:
        raise ConfigurationError(f"unknown policy {policy!r}", hint=_HINT)
    kind, mark, value = found["kind"], found["mark"], found["value"]
    settings = _options(policy, options)
    window, extent = settings.pop("window", None), settings.pop("span", 1)
    if window is not None and kind not in SIGNALS:
        raise ConfigurationError(f"window does not go with {kind!r}", hint=_HINT)
    if settings.pop("at", None) is not None:
        return _at_prompt(policy, make_policy(head), alone=len(options) == 1)
    match kind, mark:
        case "never", None if extent == 1:
            return Never()
        case "always", None:
            return Always(extent)
        case "every", ":":
            return Every(int(_number(policy, value, whole=True)), extent)
        case "random", ":":
            return Random(_number(policy, value), extent)
        case "budget", ":":
            return Budget(_number(policy, value), extent=extent)
        case (("entropy" | "varentropy" | "max_prob" | "margin"), ("<" | ">")):
            if mark != _UNCERTAIN[kind]:
                raise ConfigurationError(
                    f"{policy!r} would escalate where the fast model is sure", hint=f"write {kind}{_UNCERTAIN[kind]}..."
                )
            return Threshold(kind, _number(policy, value), mark == ">", extent, 1 if window is None else window)
    raise ConfigurationError(f"unknown policy {policy!r}", hint=_HINT)


def _at_prompt(policy: str, inner: Policy, *, alone: bool) -> AtPrompt:
    if not alone or not isinstance(inner, Threshold | Budget | Random):
        raise ConfigurationError(
            f"at=prompt does not go with the rest of {policy!r}",
            hint="add it to a signal's threshold, a budget or random, without window and span",
        )
    if isinstance(inner, Budget):
        # Its threshold moves once in an answer: begun lower, it does not leave the first ten to the fast model.
        inner = replace(inner, scope="prompt", start=0.0)
    return AtPrompt(inner)


def _number(policy: str, value: str, *, whole: bool = False) -> float:
    try:
        number = int(value) if whole else float(value)
        if math.isfinite(number):
            return number
        raise ValueError(value)
    except ValueError:
        kind = "a whole number" if whole else "a number"
        raise ConfigurationError(f"{value!r} in policy {policy!r} is not {kind}", hint=_HINT) from None


def _options(policy: str, options: list[str]) -> dict[str, int]:
    settings: dict[str, int] = {}
    for option in options:
        name, _, value = option.partition("=")
        if name not in ("span", "window", "at") or not value or (name == "at" and value != "prompt"):
            raise ConfigurationError(f"unknown option {option!r} in policy {policy!r}", hint=_HINT)
        if (name, value) in (("span", "rest"), ("at", "prompt")):
            settings[name] = REST
        elif (number := int(_number(policy, value, whole=True))) >= 1:
            settings[name] = number
        else:
            raise ConfigurationError(f"{option!r} in policy {policy!r}: at least 1", hint=_HINT)
    return settings
