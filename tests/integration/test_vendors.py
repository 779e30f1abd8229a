"""Dialects of vendors that cannot run here, each as the vendor documents it or as its users have met it.

respx answers where the HTTP library would open a connection: all of ours is real above that.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import respx
from endpoints import chat_chunk, event

from fsgen_router.adapters.openai import OpenAIModel
from fsgen_router.contracts.text_models import Continuation, TextCapabilities, TextChunk, TextEnd

KEY = "sk-vendor"
HELLO = ({"role": "user", "content": "hello"},)
Vendor = Callable[[str, dict[str, Any]], httpx.Response]


def refuses(status: int, body: object) -> httpx.Response:
    return httpx.Response(status, json=body)


def answers(body: dict[str, Any], text: str, usage: dict[str, Any], **choice: Any) -> httpx.Response:
    """As a whole reply or as a stream, whichever was asked for."""
    if not body.get("stream"):
        message = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "length", **choice}
        return httpx.Response(200, json={"object": "chat.completion", "choices": [message], "usage": usage})
    chunks = [chat_chunk(text), chat_chunk(None, "stop"), {"choices": [], "usage": usage}, "[DONE]"]
    return httpx.Response(
        200, content=b"".join(map(event, chunks)), headers={"content-type": "text/event-stream; charset=utf-8"}
    )


def words(body: dict[str, Any]) -> int:
    return sum(4 + len(message["content"].split()) for message in body["messages"])


def partial(body: dict[str, Any]) -> bool:
    return body["messages"][-1]["role"] == "assistant"


def claude(path: str, body: dict[str, Any]) -> httpx.Response:
    """Claude from 4.6 on, through the compatible endpoint: no prefill, no logprobs, no raw prompts."""
    if path.endswith("/v1/completions"):
        return refuses(404, {"type": "error", "error": {"type": "not_found_error", "message": "Not found"}})
    if partial(body):
        why = "This model does not support assistant message prefill. The conversation must end with a user message."
        return refuses(400, {"type": "error", "error": {"type": "invalid_request_error", "message": why}})
    count = words(body)
    return answers(body, " anew", {"prompt_tokens": count, "completion_tokens": 1, "total_tokens": count + 1})


def mistral(path: str, body: dict[str, Any]) -> httpx.Response:
    """Fields that it does not know are refused, and a last message of the assistant's that is not marked."""
    unknown = {"continue_final_message", "add_generation_prompt", "logprobs", "top_logprobs"} & body.keys()
    if path.endswith("/v1/completions"):
        return refuses(404, {"message": "no Route matched with those values"})
    if unknown:
        detail = [{"type": "extra_forbidden", "loc": ["body", name], "msg": "Extra inputs are not permitted"}
                  for name in sorted(unknown)]  # fmt: skip
        return refuses(422, {"object": "error", "message": {"detail": detail}, "type": "invalid_request_error"})
    if partial(body) and not body["messages"][-1].get("prefix"):
        why = "Expected last role User or Tool (or Assistant with prefix True) for serving but got assistant"
        return refuses(400, {"object": "error", "message": why, "type": "invalid_request_error", "code": None})
    count = words(body) + (0 if partial(body) else 6)
    usage = {"prompt_tokens": count, "completion_tokens": 1, "total_tokens": count + 1, "prompt_audio_seconds": None}
    return answers(body, " more" if partial(body) else " anew", usage)


def deepseek(path: str, body: dict[str, Any]) -> httpx.Response:
    """The beta: ``prefix`` goes on, other fields are ignored, logprobs are given, cache hits have their own fields."""
    if path.endswith("/completions") and "messages" not in body:
        return refuses(422, {"error": {"message": "prompt: input should be a string", "code": "invalid_request_error"}})
    on = partial(body) and body["messages"][-1].get("prefix")
    count = words(body) + (0 if on else 6)
    usage = {"prompt_tokens": count, "completion_tokens": 1, "total_tokens": count + 1, "prompt_cache_hit_tokens": 4,
             "prompt_cache_miss_tokens": count - 4}  # fmt: skip
    logprobs = {"content": [{"token": "a", "logprob": -0.1, "top_logprobs": []}]} if body.get("logprobs") else None
    return answers(body, " more" if on else " anew", usage, logprobs=logprobs)


def reasoner(path: str, body: dict[str, Any]) -> httpx.Response:
    """A reasoning model of OpenAI's: parameters are renamed or refused, a last message is never continued."""
    if path.endswith("/v1/completions"):
        why = "This is a chat model and not supported in the v1/completions endpoint."
        return refuses(404, {"error": {"message": why, "type": "invalid_request_error", "param": "model"}})
    for name in ("max_tokens", "logprobs", "continue_final_message", "temperature"):
        if name in body:
            instead = " Use 'max_completion_tokens' instead." if name == "max_tokens" else ""
            why = f"Unsupported parameter: '{name}' is not supported with this model.{instead}"
            return refuses(400, {"error": {"message": why, "type": "invalid_request_error", "param": name}})
    count = words(body)
    usage = {"prompt_tokens": count, "completion_tokens": 9, "total_tokens": count + 9,
             "prompt_tokens_details": {"cached_tokens": 2, "audio_tokens": 0},
             "completion_tokens_details": {"reasoning_tokens": 8}}  # fmt: skip
    return answers(body, " anew", usage)


NOTHING = {"logprobs": False, "token_ids": False, "verifies": False}


@pytest.mark.parametrize(
    ("vendor", "url", "options", "found", "text", "cached"),
    [
        (claude, "https://api.anthropic.com/v1", {},
         TextCapabilities(prefill=False, usage=True, cached_tokens=False, **NOTHING), " anew", None),
        (mistral, "https://api.mistral.ai/v1", {},
         TextCapabilities(prefill=True, usage=True, cached_tokens=False, **NOTHING), " more", None),
        (deepseek, "https://api.deepseek.com/beta", {},
         TextCapabilities(prefill=True, usage=True, cached_tokens=True, **NOTHING | {"logprobs": True}), " more", 4),
        (reasoner, "https://api.openai.com/v1", {"sampling": "server"},
         TextCapabilities(prefill=False, usage=True, cached_tokens=True, **NOTHING), " anew", 2),
    ],
)  # fmt: skip
def test_a_vendors_dialect(
    vendor: Vendor, url: str, options: dict[str, Any], found: TextCapabilities, text: str, cached: int | None,
    httpx2_mock: respx.Router, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """What the probe finds, how a partial answer then goes out, and what is counted of it."""
    monkeypatch.setenv("VENDOR_KEY", KEY)
    route = httpx2_mock.route(method="POST", url__startswith=url)
    route.mock(side_effect=lambda request: vendor(request.url.path, json.loads(request.content)))
    model = OpenAIModel(f"m@{url}", api_key_env="VENDOR_KEY", max_retries=0, **options)
    assert model.probe() == found
    probes = route.call_count
    *chunks, end = model.stream(Continuation(messages=HELLO, answer="so far", max_tokens=64))
    assert isinstance(end, TextEnd)
    assert "".join(chunk.text for chunk in chunks if isinstance(chunk, TextChunk)) == text
    assert (end.cached_tokens, end.prompt_tokens is not None) == (cached, True)
    assert route.call_count == probes + 1, "nothing is probed twice, and nothing is refused"
    requests = [call.request for call in route.calls]
    assert {request.headers["authorization"] for request in requests} == {f"Bearer {KEY}"}
    told = [message["role"] for message in json.loads(requests[-1].content)["messages"]]
    assert told == (["user", "assistant"] if found.prefill else ["user", "assistant", "user"])
    # Each probe that was answered is billed, and none of those that were refused.
    answered = sum(call.response.status_code == 200 for call in route.calls) - 1
    assert len(model.take_probe_usage()) == answered
    model.shutdown()
