"""Answers as JSON: whole, valid for every parser, and of the shape that is documented."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pydantic
import pytest
import scripted_pairs

from fsgen_router import Decision, Generation, Mask, Router, Token
from fsgen_router.contracts.models import TokenModel
from fsgen_router.json_forms import AnswerJson, GenerationJson, ReportJson, TokenJson, dumps

# Every key that is documented is there, and no other.
_EXACT = pydantic.ConfigDict(extra="forbid", strict=True)


def require_shape(kind: Any, value: object) -> None:
    pydantic.TypeAdapter(pydantic.with_config(_EXACT)(kind)).validate_json(json.dumps(value, allow_nan=False))


class Only:
    """A constraint that forbids all but a few tokens, whose log-probabilities are then -inf."""

    def mask(self, answer: Any) -> Mask:
        allowed = np.zeros(self.n_vocab, np.bool_)
        allowed[[20, 21]] = True
        return Mask(allowed=allowed)

    def __init__(self, n_vocab: int) -> None:
        self.n_vocab = n_vocab


def answers(fast_model: TokenModel, slow_model: TokenModel) -> dict[str, Generation]:
    with Router(fast_model, slow_model, policy="every:3", audit=1.0) as router:
        only = Only(router.fast.tokenizer.n_vocab)
        return {
            "measured": router.complete("lamp", max_tokens=12, baseline=True),
            "masked": router.complete("lamp", max_tokens=4, constraint=only, request_id="mine-7"),
            "handed over": router.complete("lamp", max_tokens=4, policy="always,span=rest", method="replace"),
        }


def test_every_key_is_documented_and_there(fast_model: TokenModel, slow_model: TokenModel) -> None:
    for name, answer in answers(fast_model, slow_model).items():
        require_shape(GenerationJson, answer.to_dict())
        require_shape(AnswerJson, answer.to_dict(tokens=False))
        require_shape(ReportJson, answer.report().to_dict())
        whole = json.loads(answer.to_json(), parse_constant=pytest.fail)
        assert whole == json.loads(dumps(answer.to_dict())), name
        assert b"".join(bytes.fromhex(t["bytes"]) for t in whole["tokens"]).decode(errors="replace") == answer.text
        assert [span["stop"] for span in whole["spans"]][-1] == len(whole["tokens"])
        assert whole["report"] == json.loads(answer.report().to_json())
        assert "tokens" not in json.loads(answer.to_json(tokens=False))
    assert whole["tokens"][0]["decision"]["extent"] == -1


def test_what_is_not_finite_is_null() -> None:
    token = Token(5, b"\xc3", "fast", -math.inf, None, Decision(True, score=math.nan), None, None)
    record = token.to_dict()
    require_shape(TokenJson, record)
    assert (record["logprob"], record["decision"]["score"], record["bytes"]) == (None, None, "c3")
    assert dumps({"a": (math.nan, [math.inf, 1.5, True, None, "ä"])}) == '{"a": [null, [null, 1.5, true, null, "ä"]]}'


def test_a_request_keeps_its_name_and_else_gets_one(fast_model: TokenModel, slow_model: TokenModel) -> None:
    found = answers(fast_model, slow_model)
    assert found["masked"].request_id == found["masked"].to_dict()["request_id"] == "mine-7"
    assert len({answer.request_id for answer in found.values()}) == 3


def test_what_is_printed_by_name_is_short() -> None:
    models = scripted_pairs.pair(3)
    with Router(models.fast, models.slow, policy="every:2") as router:
        answer = router.complete("a", max_tokens=40)
        assert repr(router) == (
            f"Router(fast={models.fast.name!r}, slow={models.slow.name!r}, policy='every:2', method='verify:exact')"
        )
    assert repr(router).endswith(", closed)")
    for thing in (answer, answer.report(), answer.tokens[0], router):
        assert len(repr(thing)) < 200, repr(thing)
        assert "\n" not in repr(thing)
    assert repr(answer.text[:20])[:-1] in repr(answer)
