"""``/v1/completions``: OpenAI's older completions, raw continuations of a text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

from pydantic import Field

from ..generation import Generation
from ..records import Token
from . import logprobs
from .body import Body, FsgenOptions, neutral, unsupported
from .chat_completions import FINISH, Stop, StreamOptions, biases, usage
from .dialect import Ask, Dialect, Facts, Json, Prompt, Reply, event, finish, options_of
from .errors import ApiError, openai_error
from .events import Heard, Text
from .logprobs import MAX_TOP
from .truth import token_record, token_records

MAX_TOKENS = 16
"""The API's own, where a request says nothing."""


class CompletionBody(Body):
    """A request for completions of raw text."""

    model: str | None = Field(default=None, description="one of /v1/models; left out: the Router's own policy")
    prompt: str | list[str] | list[int] | list[list[int]] = Field(description="texts, or the fast model's token ids")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, description=f"left out: {MAX_TOKENS}")
    temperature: float | None = Field(default=None, description="left out: 0, which is greedy")
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    n: int | None = Field(default=None, ge=1)
    stop: Stop = None
    logit_bias: dict[str, float] | None = None
    logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP, description="how many of the fast model's best")
    response_format: dict[str, Any] | None = None
    regex: str | None = None
    grammar: str | None = None
    fsgen: FsgenOptions | None = None
    user: str | None = None
    best_of: Annotated[Any, neutral(1)] = unsupported(1)
    echo: Annotated[Any, neutral(False)] = unsupported(False)
    suffix: Annotated[Any, neutral("")] = unsupported("")
    presence_penalty: Annotated[Any, neutral(0, 0.0)] = unsupported(0)
    frequency_penalty: Annotated[Any, neutral(0, 0.0)] = unsupported(0)


def _prompts(body: CompletionBody) -> tuple[Prompt, ...]:
    """Each prompt as a text or as token ids."""
    given: Any = body.prompt
    several = isinstance(given, list) and not (given and isinstance(given[0], int))
    return tuple(one if isinstance(one, str) else tuple(one) for one in (given if several else [given]))


def ask(body: CompletionBody) -> Ask:
    options = options_of(
        body,
        *("max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "response_format", "regex"),
        "grammar",
    )
    if options.get("response_format") == {"type": "text"}:
        del options["response_format"]
    options.setdefault("max_tokens", MAX_TOKENS)
    if body.logit_bias:
        options["logit_bias"] = biases(body.logit_bias)
    prompts = _prompts(body)
    if not prompts:
        raise ApiError(400, "invalid_request", "prompt: no prompt was given", param="prompt")
    return Ask(
        model=body.model,
        prompts=prompts,
        options=options,
        n=body.n or 1,
        stream=bool(body.stream),
        fsgen=body.fsgen or FsgenOptions(),
    )


class _Reply(Reply):
    def __init__(self, body: CompletionBody, facts: Facts) -> None:
        self._facts = facts
        self._tokens = bool(body.fsgen and body.fsgen.tokens)
        self._top = body.logprobs
        self._usage_apart = bool(body.stream_options and body.stream_options.include_usage)
        self._prompts = len(_prompts(body))
        self._count = self._prompts * (body.n or 1)
        self._answers: dict[int, Generation] = {}
        self._offsets = [0] * self._count
        self._head = {
            "id": f"cmpl-{facts.request_id}",
            "object": "text_completion",
            "created": facts.created,
            "model": facts.model,
        }

    def heard(self, index: int, what: Heard) -> Iterable[bytes]:
        if not isinstance(what, Text):
            return
        more: Json = {}
        if what.token is not None and self._tokens:
            more["fsgen"] = {"tokens": [token_record(what.token, self._facts.text_of)]}
        if what.token is not None and what.token.piece and self._top is not None:
            more["logprobs"] = self._logprobs([what.token], self._offsets[index])
            self._offsets[index] += len(what.token.text)
        if what.text or more:
            # null where nothing has ended yet: the API's own shape
            yield self._chunk({"index": index, "text": what.text, "finish_reason": None, **more})

    def _chunk(self, choice: Json, **more: Any) -> bytes:
        return event({**self._head, "choices": [choice], **more})

    def ended(self, index: int, answer: Generation) -> Iterable[bytes]:
        self._answers[index] = answer
        choice = {"index": index, "text": "", "finish_reason": finish(answer, FINISH)}
        if len(self._answers) < self._count or self._usage_apart:
            yield self._chunk(choice)
        else:
            yield self._chunk(choice, usage=usage([self._answers[at] for at in range(self._count)], self._prompts))

    def closing(self, answers: Sequence[Generation]) -> Iterable[bytes]:
        if self._usage_apart:
            yield event({**self._head, "choices": [], "usage": usage(answers, self._prompts)})
        yield b"data: [DONE]\n\n"

    def failed(self, error: ApiError) -> Iterable[bytes]:
        yield event(openai_error(error))
        yield b"data: [DONE]\n\n"

    def whole(self, answers: Sequence[Generation]) -> Json:
        choices = [self._choice(index, answer) for index, answer in enumerate(answers)]
        return {**self._head, "choices": choices, "usage": usage(answers, self._prompts)}

    def _choice(self, index: int, answer: Generation) -> Json:
        choice: Json = {"index": index, "text": answer.text, "finish_reason": finish(answer, FINISH)}
        if self._top is not None:
            choice["logprobs"] = self._logprobs(logprobs.shown(answer), 0)
        if self._tokens:
            choice["fsgen"] = {"tokens": token_records(answer.tokens, self._facts.text_of)}
        return choice

    def _logprobs(self, tokens: Sequence[Token], offset: int) -> Json:
        """In this API's older shape: a list of each thing; offsets are in characters of the answer."""
        offsets = []
        for token in tokens:
            offsets.append(offset)
            offset += len(token.text)
        top = self._top or 0
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [logprobs.known(token.logprob) for token in tokens],
            "top_logprobs": [dict(logprobs.best(token, top, self._facts.text_of)) for token in tokens],
            "text_offset": offsets,
            "fsgen": {"logprobs_of": [token.source for token in tokens], "top_logprobs_of": "fast"},
        }


_FIELDS = ("id", "object", "created", "model", "choices", "usage")
COMPLETIONS = Dialect("completions", "text_completion", CompletionBody, ask, _Reply, openai_error, _FIELDS)
