"""Drafts judged by the rows that the slow model reads anyway."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from ..contracts.methods import Draw
from ..contracts.models import Role
from ..errors import ConfigurationError
from ..rows.acceptance import Rule
from ..rows.reading import Row

DEFAULT_DRAFT_LEN = 16
DEFAULT_WINDOW = 6
"""Of the rule ``entropy_gate``, in drafts: its authors' (arXiv 2511.22972)."""


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
    roles: ClassVar[tuple[Role, ...]] = ("slow",)
    whole_rows: ClassVar[tuple[Role, ...]] = ()

    def __post_init__(self) -> None:
        if self.draft_len < 1:
            raise ConfigurationError(f"draft_len={self.draft_len}", hint="at least 1 token is held back")

    @property
    def name(self) -> str:
        held = "" if self.draft_len == DEFAULT_DRAFT_LEN else f",draft_len={self.draft_len}"
        return f"verify:{self.rule}{held}"

    def choose(self, draft: int | None, rows: Mapping[Role, Row], draw: Draw) -> tuple[int, float]:
        slow = rows["slow"]
        return slow.token, slow.logprob
