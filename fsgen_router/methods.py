"""What the slow model's rows do at an escalation."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import Protocol

from .acceptance import RULES, Rule
from .errors import ConfigurationError
from .reading import Row

DEFAULT_DRAFT_LEN = 16


class Method(Protocol):
    """Decides which token stands at an escalated position, and what becomes of drafts before it."""

    @property
    def name(self) -> str:
        """The short form that makes this method again, or a description."""

    @property
    def rule(self) -> Rule | None:
        """How the slow model's rows judge drafted tokens; None: they do not."""

    @property
    def draft_len(self) -> int:
        """Drafted tokens held back from the stream, which a rule may still take back; 0 without a rule."""

    def choose(self, draft: int | None, slow: Row) -> tuple[int, float]:
        """The token that the slow model writes, and its log-probability under it.

        ``draft`` is what the fast model would have written (None inside a span, where it was not
        asked, and behind drafts that were all accepted); its slow log-probability is then
        ``slow.id_logprobs[0]``.
        """


@dataclass(frozen=True, slots=True)
class Replace:
    """The slow model's token stands: FS-GEN's oracle decoding (arXiv 2406.12295, section 3)."""

    name: str = "replace"
    rule: Rule | None = None
    draft_len: int = 0

    def choose(self, draft: int | None, slow: Row) -> tuple[int, float]:
        return slow.token, slow.logprob


@dataclass(frozen=True, slots=True)
class Verify:
    """The slow model's rows of the drafted tokens, which it has to read anyway, accept or correct them.

    At an escalation it reads all that it has not read, the uncertain token included. Of the last
    ``draft_len`` tokens, which are not streamed yet, the first that ``rule`` rejects is replaced and
    what follows is discarded (BiLD's rollback, arXiv 2302.07863); where all stand, the row behind them
    gives one more token (the bonus token of arXiv 2211.17192). It then goes on for the decision's
    extent. With the policy ``every:K`` (K at most ``draft_len``) every token is judged: the rule
    ``exact`` gives the slow model's own text, ``speculative`` its distribution.
    """

    rule: Rule = field(default_factory=Rule)
    draft_len: int = DEFAULT_DRAFT_LEN

    def __post_init__(self) -> None:
        if self.draft_len < 1:
            raise ConfigurationError(f"draft_len={self.draft_len}", hint="at least 1 token is held back")

    @property
    def name(self) -> str:
        held = "" if self.draft_len == DEFAULT_DRAFT_LEN else f",draft_len={self.draft_len}"
        return f"verify:{self.rule}{held}"

    def choose(self, draft: int | None, slow: Row) -> tuple[int, float]:
        return slow.token, slow.logprob


SHORT_FORMS = ("replace", "verify", "verify:near_best=0.5", "verify:speculative,draft_len=8")


def make_method(method: Method | str) -> Method:
    """A method from an object or a short form: ``replace``, ``verify`` (the rule ``exact``), or
    ``verify:RULE[=TOLERANCE][,draft_len=N]`` with a rule of :mod:`fsgen_router.acceptance`.

    Raises :class:`ConfigurationError`, which lists what exists.
    """
    if not isinstance(method, str):
        if isinstance(method, type) or not all(hasattr(method, part) for part in ("choose", "rule", "draft_len")):
            raise ConfigurationError(
                f"{method!r} is not a method", hint="pass a name or an object with choose(), rule and draft_len"
            )
        return method
    name, colon, details = method.partition(":")
    if name == "verify" and (details or not colon):
        return _make_verify(method, details)
    if method != "replace":
        raise ConfigurationError(f"unknown method {method!r}", hint=f"examples: {', '.join(SHORT_FORMS)}")
    return Replace()


def _make_verify(method: str, details: str) -> Verify:
    rule, draft_len = Rule(), DEFAULT_DRAFT_LEN
    for part in filter(None, details.split(",")):
        name, _, value = part.partition("=")
        try:
            if name == "draft_len":
                draft_len = int(value)
            elif name in RULES:
                rule = Rule(name, float(value) if value else 0.0)
            else:
                close = difflib.get_close_matches(name, [*RULES, "draft_len"], 1)
                raise ConfigurationError(
                    f"unknown rule {name!r} in method {method!r}",
                    hint=(f"did you mean {close[0]!r}? " if close else "") + f"rules: {', '.join(RULES)}",
                )
        except ConfigurationError:
            raise
        except ValueError:
            raise ConfigurationError(f"{value!r} in method {method!r} is not a number") from None
    return Verify(rule, draft_len)
