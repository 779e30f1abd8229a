"""Is a prompt like those of calibration at all? What suspends a certificate where it is not."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, pairwise
from typing import Any, ClassVar, Final, NamedTuple, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from fsgen_router.contracts.tokenizer import Tokenizer, Turn
from fsgen_router.errors import ConfigurationError

from .stored import Stored

Ints: TypeAlias = npt.NDArray[np.int64]
T = TypeVar("T", bound=Any)

WINDOW: Final = 16
"""Tokens that are judged together, so that a strange sentence shows in a long prompt of the right kind."""
FEWEST: Final = 3
"""Prompts that a token, or a pair of tokens, has to stand in to be kept: rarer ones tell little of what the next
prompts hold, and would put what single users wrote into the file."""
SUSPENDED: Final = 0.005
"""Share of prompts like those of calibration that a check suspends, wrongly, at most (see :func:`fit_inputs`)."""


class Asked(NamedTuple):
    """A request as it is compared: its form, its messages (0: raw text; a system message is none of them), and the
    ids of its plain text."""

    form: str
    messages: int
    ids: Sequence[int]


def asked(tokenizer: Tokenizer, *, prompt: str | None = None, messages: Sequence[Turn] | None = None) -> Asked:
    """What is looked at of a prompt, raw or messages. The template is left out, or it would outweigh short prompts."""
    if messages is None:
        return Asked("raw text", 0, tokenizer.encode(prompt or "", add_bos=False))
    turns = sum(message["role"] in ("user", "assistant") for message in messages)
    form = "messages" if turns == len(messages) else "messages with a system message"
    text = "\n".join(message["content"] for message in messages)
    return Asked(form, turns, tokenizer.encode(text, add_bos=False))


@dataclass(frozen=True, eq=False)
class PromptCheck(Stored):
    """Forms, lengths and words of calibration's prompts, and from where on another prompt is unlike them.

    ``forms`` are those that occurred, ``messages`` the most of one conversation, ``shortest`` and ``longest``
    are in tokens; ``stop`` is what calibration's answers ended at. Words are judged by the log-probability of
    a token behind the one before it, in nats, under counts of calibration's prompts: Witten-Bell interpolation
    of pairs, single tokens and a uniform distribution (Witten and Bell, 1991). Its mean over the prompt must not
    be below ``lowest_mean``, nor over any ``window`` tokens below ``lowest_window``.

    ``tokens``, shape (m,), with ``seen``, the times that each of them occurred; ``pairs``, shape (k, 2), with
    ``pairs_seen``. ``total`` counts all tokens, also those that are not kept.
    """

    kind: ClassVar[str] = "prompts"
    forms: tuple[str, ...]
    messages: int
    stop: tuple[str, ...]
    shortest: int
    longest: int
    lowest_mean: float
    lowest_window: float
    window: int
    n_vocab: int
    total: int
    tokens: Ints
    seen: Ints
    pairs: Ints
    pairs_seen: Ints
    longest_answer: int | None = None
    """Tokens after which calibration's answers were cut off; None where that is not known."""

    def __post_init__(self) -> None:
        if self.seen.shape != (len(self.tokens),) or self.pairs.shape != (len(self.pairs_seen), 2):
            raise ConfigurationError("prompts: the parts do not fit")

    def __str__(self) -> str:
        turns = f", at most {self.messages} in a conversation" if self.messages else ""
        forms, tokens = " or ".join(self.forms), f"{self.shortest} to {self.longest} tokens"
        return f"the guarantee is suspended but for {forms}{turns}, {tokens}, in words like calibration's"

    def reasons(self, request: Asked, *, stop: Sequence[str] = ()) -> tuple[str, ...]:
        """In words, how a request is unlike those of calibration; empty where it is like them."""
        found = []
        if request.form not in self.forms:
            found.append(f"the prompt is {request.form}, calibration's were {' or '.join(self.forms)}")
        if request.messages > self.messages > 0:
            found.append(f"a conversation of {request.messages} messages, calibration's had at most {self.messages}")
        if set(stop) != set(self.stop):
            found.append("the answer ends at other stop strings than calibration's")
        length = len(request.ids)
        if not self.shortest <= length <= self.longest:
            found.append(f"a prompt of {length} tokens, calibration's had {self.shortest} to {self.longest}")
        mean, window = self.likelihood(request.ids)
        if mean < self.lowest_mean or window < self.lowest_window:
            found.append("words unlike those of calibration's prompts")
        return tuple(found)

    def likelihood(self, ids: Sequence[int]) -> tuple[float, float]:
        """Mean log-probability of a token, and the lowest mean over ``window`` tokens in a row; nats."""
        if not len(ids):
            return 0.0, 0.0
        values = np.array([self._logprob(before, token) for before, token in pairwise([_BEGIN, *ids])])
        size = min(self.window, len(values))
        sums = np.cumsum(np.concatenate(([0.0], values)))
        return float(values.mean()), float((sums[size:] - sums[:-size]).min() / size)

    def _logprob(self, before: int, token: int) -> float:
        tokens, pairs, behind = self._tables
        single = tokens.get(token, 0) / (self.total + len(tokens)) + self._unseen
        times = tokens.get(before, 0)
        if not times:
            return math.log(single)
        kinds, kept = behind[before]
        return math.log(pairs.get((before, token), 0) / (times + kinds) + (1 - kept / (times + kinds)) * single)

    @cached_property
    def _tables(self) -> tuple[dict[int, int], dict[tuple[int, int], int], dict[int, tuple[int, int]]]:
        """Times of each token and of each pair; and of each token, how many pairs it begins, and their times."""
        tokens = dict(zip(self.tokens.tolist(), self.seen.tolist(), strict=True))
        pairs = {(a, b): times for (a, b), times in zip(self.pairs.tolist(), self.pairs_seen.tolist(), strict=True)}
        behind = dict.fromkeys(tokens, (0, 0))
        for (before, _), times in pairs.items():
            kinds, kept = behind[before]
            behind[before] = kinds + 1, kept + times
        return tokens, pairs, behind

    @cached_property
    def _unseen(self) -> float:
        """The uniform distribution's part of any token's probability."""
        return (1 - int(self.seen.sum()) / (self.total + len(self.tokens))) / self.n_vocab


_BEGIN = -1  # stands before a prompt's first token


def fit_inputs(
    known: Sequence[Asked],
    held: Sequence[Asked],
    n_vocab: int,
    *,
    stop: Sequence[str] = (),
    suspended: float = SUSPENDED,
) -> PromptCheck:
    """A check that suspends at most a share ``suspended`` of prompts like the ``held`` ones, on average.

    Words are counted on ``known`` prompts, and the limits are set on the ``held`` ones, so that a fresh prompt of
    their source is as likely to be beyond a limit as any of them: each of the four limits leaves out the k most
    extreme, k / (n + 1) at most a quarter of the share (a conformal p-value; Vovk et al., 2005). Where there are
    fewer than 4 / ``suspended`` of them, the most extreme is the limit, and 4 / (n + 1) are suspended. Forms and
    numbers of messages are all that occurred. No loss is looked at, and no limit changes an answer.
    """
    if not known or not held:
        raise ConfigurationError("no prompts to tell others by")
    texts = [[_BEGIN, *one.ids] for one in known]
    tokens, pairs = _often(texts), _often([list(pairwise(ids)) for ids in texts])
    check = PromptCheck(
        forms=tuple(sorted({one.form for one in (*known, *held)})),
        messages=max(one.messages for one in (*known, *held)),
        stop=tuple(stop),
        shortest=0,
        longest=0,
        lowest_mean=-math.inf,
        lowest_window=-math.inf,
        window=WINDOW,
        n_vocab=n_vocab,
        total=sum(map(len, texts)),
        tokens=np.array(list(tokens), np.int64),
        seen=np.array(list(tokens.values()), np.int64),
        pairs=np.array(list(pairs), np.int64).reshape(-1, 2),
        pairs_seen=np.array(list(pairs.values()), np.int64),
    )
    likelihoods = [check.likelihood(one.ids) for one in held]
    lengths = [len(one.ids) for one in held]
    return replace(
        check,
        shortest=int(_limit(lengths, suspended / 4)),
        longest=-int(_limit([-length for length in lengths], suspended / 4)),
        lowest_mean=_limit([mean for mean, _ in likelihoods], suspended / 4),
        lowest_window=_limit([window for _, window in likelihoods], suspended / 4),
    )


def _often(prompts: Sequence[Sequence[T]]) -> dict[T, int]:
    """How often each thing occurs that at least ``FEWEST`` prompts have, in order."""
    times, prompts_with = Counter(chain.from_iterable(prompts)), Counter(chain.from_iterable(map(set, prompts)))
    return {thing: times[thing] for thing in sorted(times) if prompts_with[thing] >= FEWEST}


def _limit(values: Sequence[float], share: float) -> float:
    """The smallest value but for a share of them: a fresh one lies below it with a probability of at most
    max(``share``, 1 / (n + 1))."""
    return sorted(values)[max(math.floor(share * (len(values) + 1)), 1) - 1]
