"""Policies from their short forms."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from fsgen_router.contracts.policy import REST, Policy
from fsgen_router.errors import ConfigurationError

from .basic import THRESHOLDS, Always, AtPrompt, Every, Never, Random, SignalName, Threshold
from .best_of import BestOf, Score, Vote
from .budget import Budget
from .extents import BOUNDARIES, DRAFTS, MAX_SPAN, Extended
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
    "delta<0.2",
    "budget:0.2",
    "entropy>1.2,at=prompt",
    "entropy>1.2,span=sentence,max=64",
    "entropy>1.2,span=rest,draft=drop",
    "best_of:4,score>-0.3",
    "best_of:4,vote>0.5",
)
FSGEN_FORMS = ("none", "normal", "threshold:0.5", "delta:0.2")
"""FS-GEN's own names of its routers (arXiv 2406.12295), with the numbers that its code runs with. Its SVM is a learned
score: ``fsgen-router calibrate --scorer svm``."""
_HINT = (
    f"one of {', '.join(SHORT_FORMS)} with your own numbers (FS-GEN's names are known too: {', '.join(FSGEN_FORMS)}); "
    f"add ',span=8', span=rest or span={'|'.join(BOUNDARIES)} (with ',max=64' tokens at most) for what the slow model "
    f"then writes, ',draft={'|'.join(DRAFTS)}' to span=rest for what it makes of the answer so far, ',window=4' to a "
    "threshold to average over the last tokens, and ',at=prompt' to decide about the whole answer at its first token; "
    "',else=POLICY' to best_of for who writes where no answer passes; or a policy file, NAME.safetensors"
)
_PARTS = ("name", "asks", "begin", "decide", "end")
_HEAD = re.compile(r"(?P<kind>[a-z_]+)\s*(?:(?P<mark>[:<>])\s*(?P<value>[-+.\w]+))?")
# On which side of its threshold a signal says "uncertain".
_UNCERTAIN = {"entropy": ">", "varentropy": ">", "max_prob": "<", "margin": "<", "delta": "<"}
# What they compare, and with what where no number is given.
_FSGEN: dict[str, tuple[SignalName, float]] = {"threshold": ("max_prob", 0.5), "delta": ("delta", 0.2)}


def make_policy(policy: Policy | str | Path) -> Policy:
    """A policy from an object, a short form or a file.

    FS-GEN's routers (arXiv 2406.12295) have their own names: ``none`` (never), ``normal`` (always), ``threshold:0.5``
    (max_prob below it), ``delta:0.2`` (half the margin below it); the numbers are its own where they are left out.
    A path, or a text that ends in ``.safetensors``, is a policy file. Raises
    :class:`ConfigurationError`, which lists what exists, and
    :class:`~fsgen_router.errors.PolicyFileError` where the file is none.
    """
    if isinstance(policy, str) and re.match(r"\s*best_of\b", policy):
        return _best_of(policy)
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
    settings, words = _options(policy, options)
    if words or "max" in settings:
        return _extended(policy, head, settings, words)
    window, extent = settings.pop("window", None), settings.pop("span", 1)
    if window is not None and kind not in (*THRESHOLDS, *_FSGEN):
        raise ConfigurationError(f"window does not go with {kind!r}", hint=_HINT)
    if settings.pop("at", None) is not None:
        return _at_prompt(policy, make_policy(head), alone=len(options) == 1)
    match kind, mark:
        case (("never" | "none"), None) if extent == 1:
            return Never()
        case (("always" | "normal"), None):
            return Always(extent)
        case (("threshold" | "delta"), (None | ":")):
            signal, own = _FSGEN[kind]
            limit = own if value is None else _number(policy, value)
            return Threshold(signal, limit, above=False, extent=extent, window=window or 1)
        case "every", ":":
            return Every(int(_number(policy, value, whole=True)), extent)
        case "random", ":":
            return Random(_number(policy, value), extent)
        case "budget", ":":
            return Budget(_number(policy, value), extent=extent)
        case (("entropy" | "varentropy" | "max_prob" | "margin" | "delta"), ("<" | ">")):
            if mark != _UNCERTAIN[kind]:
                raise ConfigurationError(
                    f"{policy!r} would escalate where the fast model is sure", hint=f"write {kind}{_UNCERTAIN[kind]}..."
                )
            return Threshold(kind, _number(policy, value), mark == ">", extent, 1 if window is None else window)
    raise ConfigurationError(f"unknown policy {policy!r}", hint=_HINT)


def _extended(policy: str, head: str, settings: dict[str, int], words: dict[str, str]) -> Policy:
    """A policy whose extent is more than a number of tokens."""
    window = f",window={settings['window']}" if "window" in settings else ""
    inner = make_policy(head + window)
    if not inner.asks or "at" in settings:
        raise ConfigurationError(f"{next(iter(words), 'max')}= does not go with the rest of {policy!r}", hint=_HINT)
    if "max" in settings and "until" not in words:
        raise ConfigurationError(
            f"max= in policy {policy!r} is the most of a span to a boundary",
            hint=f"write span=16 for a number of tokens, or span={'|'.join(BOUNDARIES)} beside max=16",
        )
    extent = settings.get("max", MAX_SPAN) if "until" in words else settings.get("span", 1)
    made = Extended(inner, extent, **words)  # type: ignore[arg-type]  # which checks them
    if made.until or made.draft != "keep":
        return made
    return make_policy(f"{head},span={'rest' if extent == REST else extent}{window}")


_BEST_OF = re.compile(
    r"\s*best_of\s*:\s*(?P<k>[^,]+?)\s*(?:,\s*(?P<kind>score|vote)\s*(?:>\s*(?P<value>[^,\s]+))?\s*)?"
    r"(?:,\s*temperature\s*=\s*(?P<temperature>[^,\s]+)\s*)?(?:,\s*else\s*=(?P<fallback>.*))?"
)


def _best_of(policy: str) -> BestOf:
    """``best_of:K[,score[>NATS]|,vote[>SHARE]][,temperature=T][,else=POLICY]``."""
    found = _BEST_OF.fullmatch(policy)
    if found is None:
        raise ConfigurationError(f"unknown policy {policy!r}", hint=_BEST_OF_HINT)
    value = None if found["value"] is None else _number(policy, found["value"])
    settings: dict[str, Any] = {}
    if found["temperature"] is not None:
        settings["temperature"] = _number(policy, found["temperature"])
    if found["fallback"] is not None:
        settings["fallback"] = make_policy(found["fallback"].strip())
    verifier = Vote(*(() if value is None else (value,))) if found["kind"] == "vote" else Score(value)
    return BestOf(int(_number(policy, found["k"], whole=True)), verifier, **settings)


_BEST_OF_HINT = (
    "best_of:4,score>-0.3 has the slow model score 4 answers, in nats per token; best_of:4,vote>0.5 counts how many of "
    "them agree; ,temperature=0.8 and, as the last, ,else=POLICY for where none passes"
)


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


def _options(policy: str, options: list[str]) -> tuple[dict[str, int], dict[str, str]]:
    """Options that are numbers, and ``until`` and ``draft``, which are words."""
    settings: dict[str, int] = {}
    words: dict[str, str] = {}
    for option in options:
        name, _, value = option.partition("=")
        if name not in ("span", "max", "draft", "window", "at") or not value or (name == "at" and value != "prompt"):
            raise ConfigurationError(f"unknown option {option!r} in policy {policy!r}", hint=_HINT)
        if name == "draft":
            words["draft"] = value
        elif name == "span" and value[0].isalpha() and value != "rest":
            words["until"] = value
        elif (name, value) in (("span", "rest"), ("max", "rest"), ("at", "prompt")):
            settings[name] = REST
        elif (number := int(_number(policy, value, whole=True))) >= 1:
            settings[name] = number
        else:
            raise ConfigurationError(f"{option!r} in policy {policy!r}: at least 1", hint=_HINT)
    return settings, words
