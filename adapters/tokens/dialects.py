"""How servers are asked for rows of token ids, and what they answer.

Shapes: vLLM 0.32 (run), SGLang's ``/generate`` (from its source; not run against a real one).

All of them tell of a position of the prompt what its *own* token's log-probability is and which tokens were the best
there, so the row behind a token stands at the position after it; the row behind the last token is that of the first
token which they write. A position that the server's prefix cache held has not been computed: what a reply says there is
absent or garbage, so rows before ``cached`` are never read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..openai.replies import count_of

NO_LOGPROB = -9998.0
"""What servers write for minus infinity and NaN, which JSON has not, is below this."""


class NoRows(Exception):
    """A reply without the rows that were asked for."""


@dataclass(frozen=True, slots=True)
class Best:
    """What is known of a row: its best tokens with their natural log-probabilities, the best first, ties by lower id.

    No other token is likelier than the last of them. ``beside`` has further tokens whose log-probability is known.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    beside: Mapping[int, float] = field(default_factory=dict)

    def logprob(self, token: int) -> float | None:
        """A token's log-probability, None where that is not known."""
        return self.logprobs[self.ids.index(token)] if token in self.ids else self.beside.get(token)

    def with_others(self, others: Mapping[int, float]) -> Best:
        """The same with further tokens."""
        return Best(self.ids, self.logprobs, {**self.beside, **others})

    @classmethod
    def of(cls, told: Iterable[tuple[int, float]], count: int) -> Best:
        """The ``count`` best of what was told, and the rest of it beside them."""
        ordered = sorted(told, key=lambda one: (-one[1], one[0]))
        if not ordered or any(math.isnan(logprob) for _, logprob in ordered):
            raise NoRows
        ids, logprobs = zip(*ordered[:count], strict=True)
        return cls(ids, logprobs, dict(ordered[count:]))


@dataclass(frozen=True, slots=True)
class Question:
    """Rows of one sequence: those behind ``ids[first:]``, each with its ``top_k`` best tokens.

    ``more`` tokens are written behind them, greedily, at least one; ``best`` is how many of their rows' best tokens are
    told. ``fresh``: nothing is to be taken from a prefix cache.
    """

    ids: Sequence[int]
    first: int
    top_k: int
    best: int
    more: int = 1
    fresh: bool = True

    @property
    def last(self) -> int:
        return len(self.ids) - 1

    @property
    def of_prompt(self) -> bool:
        """Whether a row before the last one is wanted."""
        return self.first < self.last


@dataclass(frozen=True, slots=True)
class Reply:
    """Rows by their positions: of the prompt as far as they were computed, then of the tokens ``written``.

    ``cached``: tokens that the prefix cache held; None: the server does not say.
    """

    rows: Mapping[int, Best]
    written: tuple[int, ...]
    cached: int | None


class Dialect(Protocol):
    """A kind of server."""

    @property
    def name(self) -> str: ...

    @property
    def path(self) -> str: ...

    def body(self, question: Question) -> dict[str, Any]:
        """What is sent."""

    def reply(self, found: Any, question: Question) -> Reply:
        """What came back. Raises :class:`NoRows` where it has no rows, whatever else it is."""


_NEUTRAL = {
    "temperature": 0.0,
    "repetition_penalty": 1.0,  # a model's own generation settings would count where nothing is said
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


class VllmGenerate:
    """vLLM's ``/inference/v1/generate`` (``--enable-scale-out``): ids in, ids out, and a prefix cache if wanted."""

    name, path = "generate", "/inference/v1/generate"

    def body(self, question: Question) -> dict[str, Any]:
        sampling = {
            **_NEUTRAL,
            "max_tokens": question.more,
            "logprobs": question.best,
            "detokenize": False,
            "skip_reading_prefix_cache": question.fresh,
        }
        if question.of_prompt:
            sampling["prompt_logprobs"] = question.top_k
        return {"token_ids": list(question.ids), "sampling_params": sampling}

    def reply(self, found: Any, question: Question) -> Reply:
        try:
            (choice,) = found["choices"]
            written = tuple(map(int, choice["token_ids"]))
            rows = {
                question.last + index: Best.of(
                    {(int(one["token_id"]), float(one["logprob"])) for one in (told, *told["top_logprobs"])},
                    question.best,
                )
                for index, told in enumerate(choice["logprobs"]["content"])
            }
            prompt = found["prompt_logprobs"] if question.of_prompt else ()
        except (KeyError, TypeError, ValueError) as error:
            raise NoRows from error
        return _reply(rows, prompt, written, found, question)


class VllmCompletions:
    """vLLM's ``/v1/completions`` with ids as the prompt: no prefix cache where rows of the prompt are asked for."""

    name, path = "completions", "/v1/completions"

    def body(self, question: Question) -> dict[str, Any]:
        body = {
            **_NEUTRAL,
            "prompt": list(question.ids),
            "max_tokens": question.more,
            "logprobs": question.best,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }
        if question.of_prompt:
            body["prompt_logprobs"] = question.top_k
        return body

    def reply(self, found: Any, question: Question) -> Reply:
        try:
            (choice,) = found["choices"]
            written = tuple(map(int, choice["token_ids"]))
            rows = {
                question.last + index: Best.of(
                    ((_token_id(name), float(logprob)) for name, logprob in told.items()), question.best
                )
                for index, told in enumerate(choice["logprobs"]["top_logprobs"])
            }
            prompt = choice["prompt_logprobs"] if question.of_prompt else ()
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise NoRows from error
        return _reply(rows, prompt, written, found, question)


def _token_id(name: str) -> int:
    return int(name.removeprefix("token_id:"))


def _reply(
    rows: dict[int, Best], prompt: Sequence[Any] | None, written: tuple[int, ...], found: Any, question: Question
) -> Reply:
    """With the rows of the prompt as vLLM has them: at each position its own token's entry and those of the best."""
    cached = count_of(found.get("usage"), "prompt_tokens_details", "cached_tokens")
    if len(rows) != len(written) or not written:
        raise NoRows
    if question.of_prompt:
        if not isinstance(prompt, list) or len(prompt) != len(question.ids):
            raise NoRows
        for position in range(max(question.first, cached or 0), question.last):
            told = prompt[position + 1]
            if not isinstance(told, dict):
                continue
            try:
                entries = [(int(token), float(entry["logprob"])) for token, entry in told.items()]
            except (KeyError, TypeError, ValueError) as error:
                raise NoRows from error
            rows[position] = Best.of(entries, question.top_k)
    return Reply(rows, written, cached)


class SGLang:
    """SGLang's ``/generate``: rows begin where they are wanted, and what is before them may be cached.

    It computes the prompt anew from ``logprob_start_len`` on, whose own entry is empty: the row behind that token is
    the next one's.
    """

    name, path = "sglang", "/generate"

    def body(self, question: Question) -> dict[str, Any]:
        return {
            "input_ids": list(question.ids),
            "sampling_params": {**_NEUTRAL, "max_new_tokens": question.more},
            "return_logprob": True,
            "logprob_start_len": min(question.first, question.last),
            "top_logprobs_num": max(question.top_k, question.best),
            "return_text_in_logprobs": False,
        }

    def reply(self, found: Any, question: Question) -> Reply:
        try:
            meta = found["meta_info"]
            own, best = meta["input_token_logprobs"], meta["input_top_logprobs"]
            out, out_best = meta["output_token_logprobs"], meta["output_top_logprobs"]
            rows = {
                question.last + index: Best.of(_pairs([told, *(tops or ())]), question.best)
                for index, (told, tops) in enumerate(zip(out, out_best, strict=True))
            }
            if question.of_prompt:
                for position in range(question.first, question.last):
                    at = position + 1 - question.first
                    if own[at][1] != question.ids[position + 1]:
                        raise NoRows
                    rows[position] = Best.of(_pairs([own[at], *(best[at] or ())]), question.top_k)
            written = tuple(int(told[1]) for told in out)
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise NoRows from error
        if not written:
            raise NoRows
        return Reply(rows, written, count_of(meta, "cached_tokens"))


def _pairs(told: Iterable[Sequence[Any]]) -> set[tuple[int, float]]:
    """(id, log-probability) of entries [log-probability, id, text]."""
    return {(int(entry[1]), float(entry[0])) for entry in told}


DIALECTS: tuple[Dialect, ...] = (VllmGenerate(), VllmCompletions(), SGLang())
"""In the order in which they are tried."""
