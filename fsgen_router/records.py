"""What an answer is made of: tokens and spans, counters, claims, and what is known of the models."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, TypeAlias, cast

from .contracts.billing import Billed
from .contracts.models import Role as Role
from .contracts.policy import Decision
from .errors import ConfigurationError
from .json_forms import PricesJson, SelectionJson, SpanJson, TokenJson, ToolCallJson, UsageJson, finite
from .rows.signals import Signals

Source: TypeAlias = Literal["fast", "slow"]
Verdict: TypeAlias = Literal["written", "accepted", "unchecked"]
FinishReason: TypeAlias = Literal["eog", "stop", "length", "context", "tool_calls"]


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


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that an answer asks its reader to make. ``arguments`` is JSON text of an object, as the model wrote it.

    ``id`` is 9 letters and digits: what the message with its result names (``tool_call_id``).
    """

    id: str
    name: str
    arguments: str

    @property
    def parsed(self) -> dict[str, Any]:
        """The arguments by name."""
        made: dict[str, Any] = json.loads(self.arguments)
        return made

    def to_dict(self) -> ToolCallJson:
        return {"id": self.id, "name": self.name, "arguments": self.arguments}


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One of the fast model's answers that a verifier chose among.

    ``score`` is in the verifier's own unit; None where it was not asked, or would not have this answer.
    """

    text: str
    tokens: int
    finish_reason: FinishReason
    score: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What a verifier made of the fast model's answers: ``chosen`` is the number of the one that stands, from 0; None
    where the request was escalated. ``reason`` says why."""

    candidates: tuple[Candidate, ...]
    chosen: int | None
    reason: str

    def to_dict(self) -> SelectionJson:
        return cast(SelectionJson, finite(asdict(self)))


@dataclass(slots=True)
class ModelUsage:
    """One model's counters in one request; tokens unless said otherwise.

    ``prefill``: prompt tokens read; ``cached``: tokens that were still in the KV cache when the
    sequence was opened, and of use; ``decode``: answer tokens read in a step for the row behind them;
    ``catchup``: other answer tokens read; ``reread``: prompt and answer tokens read again, since the model
    could not go back to before them (``Capabilities.rewind``), or its server's prefix cache did not hold them;
    ``ahead``: those of all these read while the other model went on writing; ``forwards``: sequential steps, which
    someone waited for; ``calls``: requests to a server that gives rows for token ids, which takes several steps in one;
    ``seconds``: measured in all of them.
    """

    prefill: int = 0
    cached: int = 0
    catchup: int = 0
    decode: int = 0
    reread: int = 0
    ahead: int = 0
    forwards: int = 0
    calls: int = 0
    seconds: float = 0.0

    def add(self, other: ModelUsage) -> None:
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))

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
    forced: int = 0
    """Emitted tokens that a constraint left no choice about: no model was asked for them, and no policy."""
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
    billed: Billed = field(default_factory=Billed)
    """What an endpoint bills for this request: its calls, and what else was sent meanwhile (probes, failed tries)."""
    prompt_cached: int = 0
    """Tokens of the first call's prompt that an endpoint's cache held: what the slow model alone would have found."""
    declined: int = 0
    """Escalations that the policy wanted, and that a cap or their price forbade."""
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
        own = {name: replace(getattr(self, name)) for name in ("fast", "slow", "tuned")}
        return replace(self, **own, billed=self.billed.copy())

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
            "billed": self.billed.to_dict(),
            **{name: getattr(self, name) for name in rates},
        }
        return cast(UsageJson, record)


def add_usages(usages: Iterable[Usage]) -> Usage:
    """Counters of several requests as those of one. Audited and first-token times are the first one's."""
    total: Usage | None = None
    for usage in usages:
        if total is None:
            total = usage.copy()
            continue
        for one in fields(Usage):
            mine, further = getattr(total, one.name), getattr(usage, one.name)
            if isinstance(mine, ModelUsage | Billed):
                mine.add(further)
            elif one.name not in ("audited", "first_token_seconds"):
                setattr(total, one.name, mine + further)
    return total or Usage()


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
    machine: MachinePrice | None = None
    """What the machine costs that it runs on; None where nobody said, and behind an endpoint."""


@dataclass(frozen=True, slots=True)
class Prices:
    """US dollars per million tokens.

    ``cached_input`` is for tokens that the endpoint's cache held, ``cache_write`` for those that it puts there,
    ``reasoning`` for what a model thinks before it writes. None: as ``input``, ``input`` and ``output``.
    ``source`` and ``date`` say where they come from and of when they are: prices change. ``fallbacks`` are those of
    endpoints that are asked where this one fails, by name.

    Raises :class:`ConfigurationError` for what no price list says: a price that is negative or no number, a cache that
    makes reading dearer.
    """

    input: float
    output: float
    cached_input: float | None = None
    cache_write: float | None = None
    reasoning: float | None = None
    source: str = ""
    date: datetime.date | None = None
    fallbacks: Mapping[str, Prices] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name in PRICED:
            value: object = getattr(self, name)
            if value is None and name not in ("input", "output"):
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value < math.inf:
                raise ConfigurationError(
                    f"{name}={value!r} is no price", hint="US dollars per million tokens: a number, at least 0"
                )
        if self.of_cached > self.input:
            raise ConfigurationError(
                f"cached_input={self.cached_input:g} is dearer than input={self.input:g}",
                hint="are the two swapped? A cache that costs more is left out: cached_input=None",
            )
        if self.of_cache_write < self.of_cached:
            raise ConfigurationError(
                f"cache_write={self.cache_write:g} is cheaper than reading what was written ({self.of_cached:g})",
                hint="are the two swapped? None: writing costs what input does",
            )

    @property
    def of_cached(self) -> float:
        return self.input if self.cached_input is None else self.cached_input

    @property
    def of_cache_write(self) -> float:
        return self.input if self.cache_write is None else self.cache_write

    @property
    def of_reasoning(self) -> float:
        return self.output if self.reasoning is None else self.reasoning

    @property
    def dearest(self) -> Prices:
        """Of each kind the highest price that any of the endpoints asks."""
        every = (self, *self.fallbacks.values())
        return Prices(
            input=max(one.input for one in every),
            output=max(one.output for one in every),
            cached_input=max(one.of_cached for one in every),
            cache_write=max(one.of_cache_write for one in every),
            reasoning=max(one.of_reasoning for one in every),
        )

    def to_dict(self) -> PricesJson:
        prices = {name: getattr(self, name) for name in PRICED}
        date = None if self.date is None else self.date.isoformat()
        record = prices | {"source": self.source, "date": date}
        others = {name: other.to_dict() for name, other in self.fallbacks.items()}
        return cast(PricesJson, record | ({"fallbacks": others} if others else {}))

    def __str__(self) -> str:
        named = [(name.replace("_", " "), getattr(self, name)) for name in PRICED]
        listed = ", ".join(f"{name} {value:g}" for name, value in named if value is not None)
        said = ", ".join([*([self.source] if self.source else []), *([self.date.isoformat()] if self.date else [])])
        return f"US dollars per million tokens: {listed}" + (f" ({said})" if said else "")


PRICED = ("input", "cached_input", "cache_write", "output", "reasoning")
"""The kinds of tokens that have a price of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MachinePrice:
    """What an hour of a model's work on its machine costs: rent, and energy where its power is known.

    ``usd_per_hour`` is rent (or wear), ``watts`` the power that the machine takes while it works, ``usd_per_kwh`` the
    price of its energy. Raises :class:`ConfigurationError` for what is negative or no number.
    """

    usd_per_hour: float | None = None
    watts: float | None = None
    usd_per_kwh: float | None = None

    def __post_init__(self) -> None:
        for name in ("usd_per_hour", "watts", "usd_per_kwh"):
            value: object = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value < math.inf:
                raise ConfigurationError(f"{name}={value!r}", hint="a number, at least 0")
        if self.usd_per_kwh is not None and self.watts is None:
            raise ConfigurationError("usd_per_kwh without watts", hint="say what power the machine takes: watts=")

    def usd(self, seconds: float) -> float | None:
        """US dollars for so many seconds; None where neither rent nor energy has a price."""
        if self.usd_per_hour is None and self.usd_per_kwh is None:
            return None
        energy = (self.watts or 0.0) * (self.usd_per_kwh or 0.0) / 1000.0
        return ((self.usd_per_hour or 0.0) + energy) * seconds / 3600.0

    def joules(self, seconds: float) -> float | None:
        """Energy of so many seconds; None where no power was given."""
        return None if self.watts is None else self.watts * seconds
