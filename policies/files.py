"""Policy files: safetensors whose header holds the policy's settings and its card as JSON. No pickle."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from fsgen_router.contracts.methods import Method
from fsgen_router.contracts.models import TokenModel
from fsgen_router.contracts.policy import Policy, reads_hidden
from fsgen_router.contracts.text_models import TextModel, reads_tokens
from fsgen_router.errors import ConfigurationError, PolicyFileError
from fsgen_router.methods import make_method
from fsgen_router.support.logs import warn

from .basic import Capped
from .best_of import BestOf
from .budget import RateHold
from .cards import FORMAT, CurvePoint, Pair, PolicyCard, fingerprint
from .drift import DriftMonitor
from .guard import OutlierGuard
from .learned import Learned, SpanRule
from .prompt_check import PromptCheck
from .scorers import make_scorer
from .stored import Spec, Tensors, restore

T = TypeVar("T")

SUFFIX = ".safetensors"
_FORMAT_KEY, _POLICY_KEY, _CARD_KEY = "fsgen_router.policy", "policy", "card"
_CURVE_KEY = "curve"
"""Beside the card, where versions that know no curve do not look."""
_CURVE = TypeAdapter(tuple[CurvePoint, ...])
_REMAKE = "make it again: fsgen-router calibrate"


class PolicyPairWarning(UserWarning):
    """A policy is used with models, or with a method, that it was not made for."""


class _Settings(BaseModel):
    """What a policy is beside its arrays and its card."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: float
    extent: int
    span: SpanRule | None
    hold: RateHold | None
    drift: DriftMonitor | None
    scorer: Spec
    guard: Spec | None
    inputs: Spec | None = None


def save_policy(path: str | os.PathLike[str], policy: Learned, card: PolicyCard) -> None:
    """Write a policy file, all of it or nothing: an older file stays until the new one is complete.

    The guarantee in the card is the policy's own, and so are pair and method where the policy has them.
    Raises :class:`PolicyFileError` where the file cannot be written.
    """
    from safetensors.numpy import save

    own = {"guarantee": policy.certificate, "pair": policy.pair or card.pair, "method": policy.method or card.method}
    card = card.model_copy(update={**own, "format": FORMAT})
    settings = _Settings(
        threshold=policy.threshold,
        extent=policy.extent,
        span=policy.span,
        hold=policy.hold,
        drift=policy.drift,
        scorer=policy.scorer.spec(),
        guard=None if policy.guard is None else policy.guard.spec(),
        inputs=None if policy.inputs is None else policy.inputs.spec(),
    )
    tensors = {f"scorer.{name}": part for name, part in policy.scorer.to_tensors().items()}
    for part, stored in (("guard", policy.guard), ("inputs", policy.inputs)):
        if stored is not None:
            tensors |= {f"{part}.{name}": tensor for name, tensor in stored.to_tensors().items()}
    header = {
        _FORMAT_KEY: str(FORMAT),
        _POLICY_KEY: settings.model_dump_json(),
        _CARD_KEY: card.model_dump_json(),
    }
    if policy.curve:
        header[_CURVE_KEY] = _CURVE.dump_json(policy.curve).decode()
    _replace_file(Path(path), save(tensors, header))


def _replace_file(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise PolicyFileError(
            f"{path} cannot be written: {error.strerror or error}", hint="name a folder that exists and has room"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def load_policy(path: str | os.PathLike[str]) -> tuple[Learned, PolicyCard]:
    """The policy and the card of a file. Raises :class:`PolicyFileError` for whatever is no policy file."""
    path = Path(path)
    header, tensors = _read(path)
    try:
        card = PolicyCard.model_validate_json(header[_CARD_KEY])
        settings = _Settings.model_validate_json(header[_POLICY_KEY])
        policy = Learned(
            scorer=make_scorer(settings.scorer, _under("scorer", tensors)),
            threshold=settings.threshold,
            extent=settings.extent,
            span=settings.span,
            hold=settings.hold,
            drift=settings.drift,
            guard=_restored("guard", settings.guard, tensors, OutlierGuard),
            inputs=_restored("inputs", settings.inputs, tensors, PromptCheck),
            certificate=card.guarantee,
            pair=card.pair,
            method=card.method,
            curve=_CURVE.validate_json(header.get(_CURVE_KEY, "[]")),
        )
    except KeyError as error:
        raise PolicyFileError(f"{path} lacks its {error.args[0]}", hint=_REMAKE) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise PolicyFileError(f"{path} is damaged: {where}: {first['msg']}", hint=_REMAKE) from error
    except ConfigurationError as error:
        raise PolicyFileError(f"{path} cannot be used: {error.message}", hint=error.hint or _REMAKE) from error
    return policy, card


def _read(path: Path) -> tuple[Mapping[str, str], Tensors]:
    """Header and arrays, once it is clear that this version can read them."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            header: Mapping[str, str] = file.metadata() or {}
            _require_format(path, header)
            return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise PolicyFileError(
            f"{path} is no safetensors file, or is cut off: {error}", hint="copy it again, or " + _REMAKE
        ) from error
    except FileNotFoundError as error:
        raise PolicyFileError(f"there is no policy file {path}", hint="check the path, or " + _REMAKE) from error
    except OSError as error:
        raise PolicyFileError(f"{path} cannot be read: {error.strerror or error}", hint="check the path") from error


def _require_format(path: Path, header: Mapping[str, str]) -> None:
    found = header.get(_FORMAT_KEY, "")
    if not found.isdecimal():
        raise PolicyFileError(f"{path} is a safetensors file, but no policy", hint=_REMAKE)
    if int(found) > FORMAT:
        raise PolicyFileError(
            f"{path} has format {found}, this version reads up to {FORMAT}", hint="upgrade fsgen-router"
        )


def _restored(part: str, spec: Spec | None, tensors: Tensors, kind: type[T]) -> T | None:
    if spec is None:
        return None
    found = restore(spec, _under(part, tensors))
    if not isinstance(found, kind):
        raise ConfigurationError(f"{part}: {spec.get('kind')!r} is no {kind.__name__}")
    return found


def _under(prefix: str, tensors: Mapping[str, Any]) -> Tensors:
    return {name.removeprefix(f"{prefix}."): t for name, t in tensors.items() if name.startswith(f"{prefix}.")}


def _require_hidden(policy: Policy, fast: TokenModel, found: Callable[[], Pair]) -> None:
    """Unlike probabilities, hidden states mean nothing but in the model that they were fitted in."""
    size, without = fast.capabilities.hidden_size, "take a policy calibrated without --hidden"
    if size is None:
        raise ConfigurationError(
            f"{policy.name} reads hidden states, which {fast.name} does not give", hint=f"{without}, or another backend"
        )
    while isinstance(policy, Capped | BestOf):
        policy = policy.inner if isinstance(policy, Capped) else policy.fallback
    if not isinstance(policy, Learned):
        return
    differences = []
    if policy.pair is not None:
        here = found()
        same_slow = policy.pair.model_copy(update={"slow": here.slow, "slow_params": here.slow_params, "tuned": None})
        differences = same_slow.differences(here)
    if policy.hidden_size != size:
        differences.append(f"hidden states are {size} wide, not {policy.hidden_size}")
    if differences:
        raise ConfigurationError(
            f"the policy {policy.name} reads another model's hidden states ({', '.join(differences)})",
            hint=f"calibrate one for this pair, or {without}",
        )


def check_pair(
    policy: Policy,
    fast: TokenModel,
    slow: TokenModel | TextModel,
    *,
    tuned: TokenModel | None = None,
    method: Method | str,
    quiet: bool = False,
    pair: Callable[[], Pair] | None = None,
) -> Policy:
    """The policy to use with these models and this method: itself, or with its certificate suspended.

    Warns (:class:`PolicyPairWarning`, and the event ``policy_pair``) where a learned policy was made for
    other models, or certified with another method; ``quiet`` where that was said. Policies that know no pair fit
    every pair. ``pair`` gives the models' :func:`fingerprint` where it is known: making it reads the whole vocabulary.
    Raises :class:`ConfigurationError` for a policy that reads hidden states where they are not those of its fast
    model, or cannot be read.
    """
    found = pair or partial(fingerprint, fast, slow, tuned)
    if reads_hidden(policy):
        _require_hidden(policy, fast, found)
    if isinstance(policy, Capped):
        inner = check_pair(policy.inner, fast, slow, method=method, quiet=quiet, pair=found)
        return policy if inner is policy.inner else replace(policy, inner=inner)
    if isinstance(policy, BestOf):
        if policy.judge.reads_slow and not reads_tokens(slow):
            raise ConfigurationError(
                f"{slow.name} gives text, no logits, so it cannot score answers",
                hint="verify with vote, as in best_of:4,vote>0.5, or with a checker of your own: BestOf(4, check)",
            )
        fallback = check_pair(policy.fallback, fast, slow, method=method, quiet=quiet, pair=found)
        return policy if fallback is policy.fallback else replace(policy, fallback=fallback)
    if not isinstance(policy, Learned):
        return policy
    reasons = []
    if policy.pair is not None and (differences := policy.pair.differences(found())):
        reasons.append(f"made for another pair ({', '.join(differences)})")
    certified_with = None if policy.certificate is None else make_method(policy.certificate.method).name
    if certified_with is not None and certified_with != (running := make_method(method).name):
        reasons.append(f"certified with the method {certified_with}, not {running}")
    if not reasons:
        return replace(policy, suspended=()) if policy.suspended else policy  # it ran with another method before
    why = ", ".join(reasons)
    said = f"the policy {policy.name} was {why}; calibrate one for this pair"
    if not quiet:
        warn(PolicyPairWarning, said, event="policy_pair", policy=policy.name, why=why)
    return replace(policy, suspended=tuple(reasons))
