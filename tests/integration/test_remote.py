"""The reference pair with a slow model that gives text, a real server on loopback among them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from endpoints import real_server

from fsgen_router import Router, reference
from fsgen_router.adapters.scripted import ScriptedTextModel
from fsgen_router.contracts.models import TokenModel
from fsgen_router.reference import world

# Short spans are the harder case, though nobody should pay for them.
pytestmark = pytest.mark.filterwarnings("ignore::fsgen_router.SmallExtentWarning")

# This server penalises repetition unless told not to; and the first answer is compared too.
PLAIN = 'extra_body={"repeat_penalty":1.0}&probe=first'


def test_the_default_on_the_reference_pair(fast_model: TokenModel) -> None:
    """As the README says of it."""
    with Router(fast_model, ScriptedTextModel(lambda request: ["b"])) as router:
        for item in world.problems("test", 6):
            answer = router.complete(item.prompt + "\n", max_tokens=100)
            assert answer.usage.escalations == 0
            assert "handed nothing over" in str(answer.report())


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with real_server(tmp_path_factory.mktemp("remote"), {"slow": reference.path("slow")}) as served:
        yield served.url


def test_the_reference_pair_with_its_slow_model_behind_http(
    url: str, fast_model: TokenModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same weights, the same texts as at home: whole answers and the rest; of spans, what each goes on with."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    items = list(world.problems("calibration", 6))
    with (
        Router(fast_model, f"openai:slow@{url}?{PLAIN}", policy="always,span=rest") as remote_router,
        Router(method="replace", policy="always,span=rest") as home,
    ):
        for policy in ("always,span=rest", "every:10,span=rest"):
            routed, local = remote_router.with_policy(policy), home.with_policy(policy)
            for item in items:
                answer = routed.complete(item.prompt + "\n", max_tokens=200)
                assert answer.degraded is None
                assert answer.text == local.complete(item.prompt + "\n", max_tokens=200).text, policy
        for policy in ("every:6,span=4", "every:12,span=sentence,max=30"):
            spans = set()
            for item in items[:3]:
                answer = remote_router.with_policy(policy).complete(item.prompt + "\n", max_tokens=200)
                for span in answer.spans:
                    before, said = (
                        b"".join(t.piece for t in answer.tokens[a:b]).decode()
                        for a, b in ((0, span.start), (span.start, span.stop))
                    )
                    if span.source == "slow" and said:
                        own = home.complete(item.prompt + "\n" + before, max_tokens=40).text
                        assert own.startswith(said), policy
                        spans.add(said)
            assert len(spans) > 3
            if "sentence" in policy:
                assert all(said[-1] in ".!?" or said.startswith(" Answer:") for said in spans), spans
        # Through its own template too.
        messages = [{"role": "user", "content": items[0].prompt}]
        chat = Router(fast_model, f"openai:slow@{url}?{PLAIN}", policy="always,span=rest")
        assert chat.chat(messages, max_tokens=200).text == home.chat(messages, max_tokens=200).text
        chat.close()


def test_a_server_that_is_not_there(fast_model: TokenModel) -> None:
    slow = "openai:slow@http://127.0.0.1:9/v1?max_retries=0&probe=first"
    with Router(fast_model, slow, policy="every:4,span=rest") as router:
        answer = router.complete("Ada has 3 shells.", max_tokens=12)
        assert answer.degraded is not None
        assert answer.usage.tokens > 4
