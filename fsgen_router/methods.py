"""What the slow model's rows do at an escalation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from .errors import ConfigurationError
from .reading import Row


class Method(Protocol):
    """Decides which token stands at an escalated position."""

    @property
    def name(self) -> str: ...

    def choose(self, draft: int | None, slow: Row) -> tuple[int, float]:
        """The token and its log-probability under the slow model.

        ``draft`` is what the fast model would have written (None inside a span, where it was not
        asked); its slow log-probability is then ``slow.id_logprobs[0]``.
        """


@dataclass(frozen=True, slots=True)
class Replace:
    """The slow model's token stands: FS-GEN's oracle decoding (arXiv 2406.12295, section 3)."""

    name: str = "replace"

    def choose(self, draft: int | None, slow: Row) -> tuple[int, float]:
        return slow.token, slow.logprob


METHODS: dict[str, Method] = {"replace": Replace()}


def make_method(method: Method | str) -> Method:
    """A method from an object or its name."""
    if not isinstance(method, str):
        if isinstance(method, type) or not callable(getattr(method, "choose", None)):
            raise ConfigurationError(f"{method!r} is not a method", hint="pass a name or an object with choose()")
        return method
    if method not in METHODS:
        raise ConfigurationError(f"unknown method {method!r}", hint=f"available: {', '.join(METHODS)}")
    return METHODS[method]
