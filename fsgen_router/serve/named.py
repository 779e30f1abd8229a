"""The policies behind the model names that clients ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..contracts.methods import Method
from ..contracts.policy import Policy
from ..errors import ConfigurationError
from ..evaluation.runs import SLOW_ONLY
from ..policies import BestOf, guarantee_of, make_policy
from ..policies.files import SUFFIX
from ..policies.thresholds import at_threshold
from ..router import Router
from .body import FsgenOptions
from .dialect import Json
from .errors import ApiError

DEFAULT = "local/router"


@dataclass(frozen=True, slots=True)
class Named:
    """A model name, and what answers under it; without a policy the Router's own, with all that goes with it."""

    name: str
    about: str
    shown: str
    """What its policy is called."""
    base: Policy
    """What decides, the Router's own policy where ``policy`` is None."""
    policy: Policy | None = None
    method: Method | None = None

    def options(self, asked: FsgenOptions, *, max_choices: int) -> Json:
        """Options of a request under this name, with what it says itself in their place."""
        options = asked.given("max_slow_calls", "max_slow_tokens", "max_cost_usd", "max_seconds")
        if asked.policy is not None:
            options["policy"] = _asked_policy(asked.policy, max_choices)
        elif self.policy is not None:
            options["policy"] = self.policy
        if asked.threshold is not None:
            options["policy"] = _moved(options.get("policy", self.base), asked.threshold)
        if asked.method is not None:
            options["method"] = _short_form(asked.method, "method")
        elif self.method is not None and asked.policy is None:
            options["method"] = self.method
        return options


class Names:
    """All model names of a server.

    There are always ``local/router``, ``local/fast`` and ``local/slow``, and ``local/certified`` where the Router's
    policy has a certificate. Raises :class:`~fsgen_router.ConfigurationError` for policies that do not go with the
    pair.
    """

    def __init__(self, router: Router, policies: Mapping[str, str]) -> None:
        own = f"policy {router.policy.name}, method {router.method.name}"
        self._all = {DEFAULT: Named(DEFAULT, own, router.policy.name, router.policy)}
        self._add(router, "local/fast", "never", about="the fast model alone")
        self._add(router, "local/slow", SLOW_ONLY, method="replace", about="the slow model alone")
        claim = guarantee_of(router.policy)
        if claim is not None:
            certified = "local/certified"
            self._all[certified] = Named(certified, f"{own}: {claim.certified}", router.policy.name, router.policy)
        for name, policy in policies.items():
            if name in self._all:
                raise ConfigurationError(f"the model name {name} is taken", hint=f"taken: {', '.join(self._all)}")
            self._add(router, name, policy)

    def _add(self, router: Router, name: str, policy: str, *, method: str | None = None, about: str = "") -> None:
        twin = router.with_policy(policy, method=method)
        words = f"policy {twin.policy.name}, method {twin.method.name}"
        self._all[name] = Named(
            name, f"{about}: {words}" if about else words, twin.policy.name, twin.policy, twin.policy, twin.method
        )

    def all(self) -> list[Named]:
        return list(self._all.values())

    def find(self, name: str | None) -> Named:
        """What answers under a name; without one the Router's own policy."""
        name = DEFAULT if name is None else name
        found = self._all.get(name)
        if found is None:
            raise ApiError(
                404,
                "not_found",
                f"the model {name[:100]!r} does not exist; there are {', '.join(self._all)}",
                param="model",
            )
        return found


def _moved(policy: Policy, threshold: float) -> Policy:
    """A policy with the threshold that a client asks for."""
    try:
        return at_threshold(policy, threshold)
    except ConfigurationError as error:
        raise ApiError(400, "invalid_request", f"fsgen.{error}", param="fsgen.threshold") from None


def _asked_policy(text: str, max_choices: int) -> Policy:
    """A client's policy, which asks for no more answers than a client may have."""
    policy = make_policy(_short_form(text, "policy"))
    if isinstance(policy, BestOf) and policy.k > max_choices:
        raise ApiError(
            400, "invalid_request", f"fsgen.policy: best_of:{policy.k}, at most {max_choices}", param="fsgen.policy"
        )
    return policy


def _short_form(text: str, field: str) -> str:
    """A client's policy or method, which names no file of this machine."""
    if SUFFIX in text or "/" in text or "\\" in text:
        raise ApiError(400, "invalid_request", f"fsgen.{field}: a short form, no file", param=f"fsgen.{field}")
    return text
