"""What an answer is made of: tokens and spans, counters, claims, and what is known of the models."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Literal, TypeAlias, cast

from .contracts.models import Role as Role
from .contracts.policy import Decision
from .json_forms import SpanJson, TokenJson, UsageJson, finite
from .rows.signals import Signals

Source: TypeAlias = Literal["fast", "slow"]
Verdict: TypeAlias = Literal["written", "accepted", "unchecked"]
FinishReason: TypeAlias = Literal["eog", "stop", "length", "context"]


@dataclass(frozen=True, slots=True, repr=False)
class Token:
    """One emitted token: what it is, who wrote it and why.

    ``logprob`` (nats) is under the model that wrote it, or the method's own logits, after masks and before
    temperature. ``signals`` are the fast model's; None where it was not asked (inside a slow span, or where a
    mask left one choice). ``fast_choice`` and ``slow_choice`` are both models' greedy choices where
    they are known, ``tuned_choice`` that of a third one where the method read it. ``verified``: the slow model
    judged the fast one's token, and it stands. A token of the slow model's whose decision did not escalate corrects
    a draft that an escalation further on had judged.
    """

    id: int
    piece: bytes
    source: Source
    logprob: float | None
    signals: Signals | None
    decision: Decision | None
    fast_choice: int | None
    slow_choice: int | None
    verified: bool = False
    tuned_choice: int | None = None

    @property
    def verdict(self) -> Verdict:
        return "written" if self.source == "slow" else "accepted" if self.verified else "unchecked"

    @property
    def text(self) -> str:
        return self.piece.decode(errors="replace")

    def __repr__(self) -> str:
        return f"Token({self.piece!r}, id={self.id}, source={self.source!r}, verdict={self.verdict!r})"

    def to_dict(self) -> TokenJson:
        record = {"id": self.id, "text": self.text, "bytes": self.piece.hex()}
        names = ("source", "verdict", "logprob", "fast_choice", "slow_choice", "tuned_choice")
        record |= {name: getattr(self, name) for name in names}
        record["decision"] = None if self.decision is None else asdict(self.decision)
        record["signals"] = None if self.signals is None else self.signals.to_dict()
        return cast(TokenJson, finite(record))


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens ``start`` to ``stop`` (exclusive) of an answer that one model wrote.

    ``verdict`` is the slow model's: it wrote them, it read and accepted them, or they are unchecked.
    """

    start: int
    stop: int
    source: Source
    verdict: Verdict

    def to_dict(self) -> SpanJson:
        return {"start": self.start, "stop": self.stop, "source": self.source, "verdict": self.verdict}


@dataclass(slots=True)
class ModelUsage:
    """One model's counters in one request; tokens unless said otherwise.

    ``prefill``: prompt tokens read; ``cached``: tokens that were still in the KV cache when the
    sequence was opened, and of use; ``decode``: answer tokens read in a step for the row behind them;
    ``catchup``: other answer tokens read; ``reread``: prompt and answer tokens read again, since the model
    could not go back to before them (``Capabilities.rewind``); ``ahead``: those of all these read while the other
    model went on writing; ``forwards``: sequential steps, which someone waited for; ``seconds``: measured in all of
    them.
    """

    prefill: int = 0
    cached: int = 0
    catchup: int = 0
    decode: int = 0
    reread: int = 0
    ahead: int = 0
    forwards: int = 0
    seconds: float = 0.0

    @property
    def positions(self) -> int:
        """Tokens that the model read, some of them again."""
        return self.prefill + self.catchup + self.decode + self.reread


@dataclass(slots=True)
class Usage:
    """Counters of one request, and the rates made of them. A rate is None where it is undefined."""

    fast: ModelUsage = field(default_factory=ModelUsage)
    slow: ModelUsage = field(default_factory=ModelUsage)
    tuned: ModelUsage = field(default_factory=ModelUsage)
    """Of a third model, where a method reads one."""
    prompt_tokens: int = 0
    tokens: int = 0
    slow_tokens: int = 0
    text_bytes: int = 0
    slow_bytes: int = 0
    decisions: int = 0
    escalations: int = 0
    discarded_tokens: int = 0
    """Tokens that do not stand: the fast model's drafts, and what was written before a restart."""
    corrections: int = 0
    """Positions at which the method put another token in the place of the fast model's.

    Under the policy ``always`` each token is one escalation, and corrections per escalation are FS-GEN's
    collaboration frequency (CoF, arXiv 2406.12295) of the method on the text that it writes."""
    tuned_corrections: int = 0
    """Those of the same positions at which its token is not the third model's: the CoF against the tuned model."""
    bonus_tokens: int = 0
    """Tokens that the slow model wrote behind drafts that it had accepted, in the forward that judged them."""
    restarts: int = 0
    """Hand-overs at which the slow model began the answer anew; the draft's tokens are among ``discarded_tokens``."""
    seam_repairs: int = 0
    """Repairs at seams: what an endpoint that was told in words to go on repeated, put around its text or left out."""
    reasoning_tokens: int = 0
    """What an endpoint wrote and was not to be shown, a part of ``slow.decode``: it is billed and waited for.

    In the endpoint's own count; where it says none, a quarter of the bytes of the reasoning that came."""
    round_trips: int = 0
    """Calls that an endpoint answered: with text, with nothing more to say, or with tokens that it kept to itself.

    All of them are billed and waited for; a call that failed before its first text is not."""
    audited: bool = False
    audit_positions: int = 0
    audit_seconds: float = 0.0
    compared: int = 0
    """Positions at which both models' choices are known."""
    disagreements: int = 0
    seconds: float = 0.0
    """Wall time of the request, audits excluded."""
    first_token_seconds: float | None = None

    def of(self, role: Role) -> ModelUsage:
        """One model's counters."""
        return self.fast if role == "fast" else self.slow if role == "slow" else self.tuned

    def copy(self) -> Usage:
        """Counters of their own."""
        return replace(self, fast=replace(self.fast), slow=replace(self.slow), tuned=replace(self.tuned))

    @property
    def slow_forwards(self) -> int:
        """Sequential steps of the slow model: the figure behind latency."""
        return self.slow.forwards

    @property
    def slow_positions(self) -> int:
        """Tokens that the slow model read: the figure behind its FLOPs."""
        return self.slow.positions

    @property
    def escalation_rate(self) -> float | None:
        """Escalations per decision."""
        return self.escalations / self.decisions if self.decisions else None

    @property
    def slow_token_share(self) -> float | None:
        """Emitted tokens that the slow model wrote; UTF-8 bytes where it has a tokenizer of its own."""
        if self.round_trips:
            return self.slow_bytes / self.text_bytes if self.text_bytes else None
        return self.slow_tokens / self.tokens if self.tokens else None

    @property
    def slow_position_share(self) -> float | None:
        """Prompt and answer tokens that the slow model read."""
        total = self.prompt_tokens + self.tokens
        return min(self.slow_positions / total, 1.0) if total else None

    @property
    def disagreement_rate(self) -> float | None:
        """FS-GEN's CoF: positions at which the models' greedy choices differ.

        Known only where both models' choices are known at every position (an audited answer, or one
        whose every token was escalated); otherwise None.
        """
        return self.disagreements / self.compared if self.tokens and self.compared == self.tokens else None

    def to_dict(self) -> UsageJson:
        rates = ("escalation_rate", "slow_token_share", "slow_position_share", "disagreement_rate")
        record = asdict(self) | {
            "slow_forwards": self.slow_forwards,
            "slow_positions": self.slow_positions,
            **{name: getattr(self, name) for name in rates},
        }
        return cast(UsageJson, record)


@dataclass(frozen=True, slots=True)
class Claim:
    """What was certified about a policy (``certified``, a sentence), and why it does not speak of an answer.

    ``reasons`` is empty where it does. It never says that one answer is right: it bounds a mean over prompts.
    """

    certified: str
    reasons: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        return not self.reasons

    def but(self, *reasons: str) -> Claim:
        """The same claim with more reasons against it."""
        return Claim(self.certified, self.reasons + reasons)

    def __str__(self) -> str:
        return self.certified if self.holds else f"suspended: {'; '.join(self.reasons)} ({self.certified})"


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a report needs to know of a model. Prices are in US dollars per million tokens."""

    name: str
    n_params: int | None
    step_seconds: float | None = None
    """Measured time of a forward with one new token of each request in it (median), where any was seen."""
    prices: Prices | None = None
    gives_rows: bool = True
    """False behind an endpoint, which gives text."""


@dataclass(frozen=True, slots=True)
class Prices:
    """US dollars per million tokens; ``cached_input`` for tokens that the endpoint's cache held."""

    input: float
    output: float
    cached_input: float | None = None
