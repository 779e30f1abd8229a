"""The reference pair with its slow model behind llama.cpp's own server, and behind a proxy where things go wrong."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from endpoints import RealServer, native_server, real_server
from faulty import KINDS, Fault, FaultProxy, check_answer, fault_proxy, random_faults

from fsgen_router import Finished, Generation, Router, TextDelta, reference
from fsgen_router.adapters.openai import OpenAIModel
from fsgen_router.cli import doctor
from fsgen_router.contracts.models import TokenModel
from fsgen_router.reference import world

pytestmark = pytest.mark.filterwarnings("ignore::fsgen_router.SmallExtentWarning")
pytest.importorskip("xllamacpp", reason="llama.cpp's own server comes with xllamacpp, which is not installed")

# A breaker that opened is closed again by the next answer.
TRUSTING = "max_retries=1&breaker_seconds=0.05&probe=first"
# What hangs is given up soon.
HASTY = f"first_token_timeout_seconds=0.8&read_timeout_seconds=0.8&{TRUSTING}"


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    with native_server(tmp_path_factory.mktemp("native"), reference.path("slow")) as served:
        yield served


def test_the_same_texts_as_at_home(native: RealServer, fast_model: TokenModel) -> None:
    items = list(world.problems("calibration", 3))
    with (
        Router(fast_model, f"openai:slow@{native.url}?probe=first", policy="every:10,span=rest") as remote,
        Router(method="replace", policy="every:10,span=rest") as home,
    ):
        for policy in ("always,span=rest", "every:10,span=rest"):  # an endpoint's spans end between words
            for item in items:
                options = {"max_tokens": 120, "policy": policy}
                answer = remote.complete(item.prompt + "\n", **options)
                assert answer.degraded is None
                assert answer.text == home.complete(item.prompt + "\n", **options).text, policy
                messages = [{"role": "user", "content": item.prompt}]
                assert remote.chat(messages, **options).text == home.chat(messages, **options).text, policy


def test_doctor_shows_what_each_server_can_do(native: RealServer, tmp_path_factory: pytest.TempPathFactory) -> None:
    with real_server(tmp_path_factory.mktemp("python"), {"slow": reference.path("slow")}) as python:
        models = [OpenAIModel(f"slow@{server.url}") for server in (native, python)]
        shown = [{check.name: check for check in doctor._endpoint(model, refresh=True)} for model in models]
    assert [checks["endpoint"].status for checks in shown] == ["ok", "ok"]
    ours, theirs = (checks["capabilities"].detail for checks in shown)
    assert ours.startswith(
        "knows counts of tokens, counts of cached tokens, log-probabilities, prompts of token ids; "
        "not log-probabilities of a prompt, which verify a span; goes on with raw prompts (found out 20"
    )
    assert theirs.startswith(
        "knows counts of tokens, log-probabilities; not counts of cached tokens, prompts of token ids, "
    )
    assert "continues a partial answer" in shown[0]["endpoint"].detail
    assert "has to be told to" in shown[1]["endpoint"].detail
    for model in models:
        model.shutdown()


def stream(router: Router, number: int) -> tuple[Generation, list[str], str]:
    """An answer, the pieces in which it came, and its prompt."""
    prompt, shown = world.problem("test", number).prompt + "\n", []
    for event in router.stream(prompt, max_tokens=60, request_id=f"n-{number}"):
        if isinstance(event, TextDelta):
            shown.append(event.text)
        elif isinstance(event, Finished):
            return event.generation, shown, prompt
    raise AssertionError("a stream ends with Finished")


def held_against(proxy: FaultProxy, router: Router, number: int) -> Generation:
    before = len(proxy.exchanges)
    answer, shown, prompt = stream(router, number)
    calls = [exchange for exchange in proxy.exchanges[before:] if exchange.body.get("stream")]
    check_answer(answer, shown, prompt, calls)
    return answer


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "none"])
def test_each_fault_at_each_place(kind: str, native: RealServer, fast_model: TokenModel) -> None:
    """In the first call, and in the second; before the first text it is tried again, where that may help."""
    streams = kind not in ("reset", "hang", "429", "500", "503", "html", "garbage", "not_json")
    for broken, after in ((0, 0), (0, 2), (1, 1)) if streams else ((0, 0), (1, 0)):
        faults = {broken: Fault(kind, after)}
        with fault_proxy(native.url, lambda number, faults=faults: faults.get(number, Fault())) as proxy:
            options = f"{HASTY if 'hang' in kind else TRUSTING}&prefill=always&api=completions"
            with Router(fast_model, f"openai:slow@{proxy.url}?{options}", policy="every:8,span=10") as router:
                answer = held_against(proxy, router, 7)
            harmless = kind in ("dribble", "comments")
            again = kind not in ("html", "not_json", "garbage") and after == 0
            if harmless or (again and kind not in ("malformed", "truncated")):
                assert answer.degraded is None, (kind, after)


def test_random_faults(native: RealServer, fast_model: TokenModel) -> None:
    """A few dozen of what benchmarks/faults.py does a thousand times; nothing is left behind."""
    threads = set(threading.enumerate())
    with fault_proxy(native.url, random_faults(seed=3, share=0.3)) as proxy:
        with Router(fast_model, f"openai:slow@{proxy.url}?{HASTY}", policy="every:8,span=10") as router:
            answers = [held_against(proxy, router, number) for number in range(24)]
        broken = sum(answer.degraded is not None for answer in answers)
        assert 0 < broken < len(answers)
        assert any(exchange.partial for exchange in proxy.exchanges)
        mine = {thread for thread in threading.enumerate() if thread.name.startswith("fsgen-")} - threads
        for thread in mine:
            thread.join(30)
            assert not thread.is_alive()
        while proxy.connections:  # a test that waits in vain ends by pytest's timeout
            threading.Event().wait(0.01)
