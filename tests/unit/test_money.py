"""Money: price tables, what is worth its price, caps that many requests share, and a bill that leaves nothing out."""

from __future__ import annotations

import datetime
import itertools
import json
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from endpoints import chat_chunk, reply, scripted_server, streamed
from scripted_pairs import N_VOCAB, pair, tokenizer

from fsgen_router import Budget, ConfigurationError, InvalidRequest, MachinePrice, Prices, Router, SmallExtentWarning
from fsgen_router.adapters.scripted import ScriptedModel, ScriptedTextModel
from fsgen_router.contracts.billing import Billed, Meter
from fsgen_router.contracts.text_models import Continuation, TextEnd, TextEvent
from fsgen_router.money import CallCost, PriceTable, Purse, Spending, cost_of, known_prices, margin_usd, small_calls

PRICES = Prices(input=1.0, output=5.0, cached_input=0.05)
ASKED = "ab7"


def letters(ids: Any) -> np.ndarray:
    """Writes " c" without end: an endpoint may be asked behind each."""
    row = np.zeros(N_VOCAB, np.float32)
    row[2] = 5.0
    return row


def fast() -> ScriptedModel:
    return ScriptedModel(letters, tokenizer())


def says(*pieces: str, name: str = "slow@host") -> ScriptedTextModel:
    return ScriptedTextModel(lambda request: pieces, name=name)


def endless(name: str = "slow@host") -> ScriptedTextModel:
    """Writes as much as it is asked for."""
    return ScriptedTextModel(lambda request: iter(["7"] * 10_000), name=name)


class Counting(ScriptedTextModel):
    """An endpoint that counts its tokens: ``prompt`` for a prompt, of which ``cached`` come from its cache."""

    def __init__(self, pieces: Iterable[str], *, prompt: int, cached: int = 0, put: int = 0, thought: int = 0) -> None:
        super().__init__(lambda request: pieces, name="counting@host")
        self._counts = prompt, cached, put, thought

    def stream(self, request: Continuation) -> Iterator[TextEvent]:  # type: ignore[override]
        prompt, cached, put, thought = self._counts
        for event in super().stream(request):
            if isinstance(event, TextEnd):
                written = (event.completion_tokens or 0) + thought
                event = TextEnd(event.finish_reason, prompt, cached, written, thought, cache_write_tokens=put)
            yield event


# --- prices --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"input": -1.0, "output": 2.0}, "input=-1.0 is no price"),
        ({"input": 1.0, "output": float("nan")}, "output=nan is no price"),
        ({"input": 1.0, "output": float("inf")}, "output=inf is no price"),
        ({"input": "1", "output": 2.0}, "input='1' is no price"),
        ({"input": True, "output": 2.0}, "input=True is no price"),
        ({"input": None, "output": 2.0}, "input=None is no price"),
        ({"input": 1.0, "output": 2.0, "reasoning": -0.1}, "reasoning=-0.1 is no price"),
        ({"input": 1.0, "output": 2.0, "cached_input": 1.5}, "cached_input=1.5 is dearer than input=1"),
        (
            {"input": 1.0, "output": 2.0, "cached_input": 0.5, "cache_write": 0.1},
            "cheaper than reading what was written",
        ),
    ],
)
def test_prices_that_no_list_has_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Prices(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"usd_per_hour": -1.0},
        {"watts": float("nan")},
        {"usd_per_hour": "1"},
        {"usd_per_kwh": 0.3},  # of how much power?
    ],
)
def test_prices_of_a_machine_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        MachinePrice(**wrong)


TABLE = """
date = 2026-11-20
source = "https://vendor.example/pricing"

[models."gpt-x"]
input = 1.0
cached_input = 0.05
cache_write = 1.25
output = 5.0
reasoning = 6.0

[models."gpt-x@other.example"]
input = 2.0
output = 8.0
date = 2026-01-02
source = "a contract"
"""


def written(tmp_path: Path, text: str, name: str = "prices.toml") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def test_a_table_says_what_a_model_costs_of_when_and_whence(tmp_path: Path) -> None:
    table = PriceTable.load(written(tmp_path, TABLE))
    listed = table.require("gpt-x@vendor.example")
    assert listed == Prices(
        1.0, 5.0, 0.05, 1.25, 6.0, source="https://vendor.example/pricing", date=datetime.date(2026, 11, 20)
    )
    # One endpoint's own prices come first.
    own = table.require("gpt-x@other.example")
    assert (own.input, own.source, own.date) == (2.0, "a contract", datetime.date(2026, 1, 2))
    assert table.find("gpt-y@vendor.example") is None
    with pytest.raises(ConfigurationError, match=r"no prices of gpt-y.*it has those of gpt-x"):
        table.require("gpt-y")
    as_json = {"date": "2026-11-20", "models": {"gpt-x": {"input": 1, "output": 5}}}
    path = written(tmp_path, json.dumps(as_json), "prices.json")
    assert PriceTable.load(path).require("gpt-x").source == str(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("date = 2026-11-20", "names no models"),
        ('[models."x"]\ninput = 1.0\noutput = 5.0', "no date"),
        ('date = 2026-11-20\n[models."x"]\ninput = 1.0', "no price of output"),
        ('date = 2026-11-20\n[models."x"]\ninput = -1.0\noutput = 5.0', "'x': input=-1.0 is no price"),
        ('date = 2026-11-20\n[models."x"]\ninput = 1.0\noutptu = 5.0', "did you mean 'output'"),
        ("date = 2026-11-20\n[models]\nx = 5.0", "5.0 are no prices"),
        ('date = "soon"\n[models."x"]\ninput = 1.0\noutput = 5.0', "'soon' is no date"),
        ('date = 2026-11-20\n[models."x"]\ninput = "1"\noutput = 5.0', "input='1' is no price"),
        ('curency = "EUR"\ndate = 2026-11-20\n[models."x"]\ninput = 1.0\noutput = 5.0', "unknown 'curency'"),
        ("[models", "cannot be read"),
    ],
)
def test_a_table_that_is_none_is_refused_with_the_place(tmp_path: Path, text: str, words: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigurationError, match=words) as refused:
        PriceTable.load(path)
    assert str(path) in refused.value.message
    with pytest.raises(ConfigurationError, match=words):
        Router(fast(), says("a"), prices=path)


def test_whose_prices_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument, a model's own option, the table of the environment, the vendor's list; else nobody knows."""
    path = written(tmp_path, TABLE)

    class Endpoint:
        name = "gpt-x@vendor.example"
        prices: Prices | None = Prices(3.0, 9.0)

        def vendor_prices(self) -> Prices | None:
            return Prices(4.0, 12.0)

    endpoint = Endpoint()
    assert known_prices(endpoint, PRICES) is PRICES
    assert known_prices(endpoint, path).input == 1.0  # type: ignore[union-attr]
    assert known_prices(endpoint) == Prices(3.0, 9.0)
    endpoint.prices = None
    assert known_prices(endpoint) == Prices(4.0, 12.0)
    monkeypatch.setenv("FSGEN_PRICES", str(path))
    assert known_prices(endpoint).input == 1.0  # type: ignore[union-attr]
    endpoint.name = "gpt-z@vendor.example"
    assert known_prices(endpoint) == Prices(4.0, 12.0)
    assert known_prices(says("a")) is None
    with pytest.raises(ConfigurationError, match="has no prices of"):
        known_prices(endpoint, path)


def test_a_router_takes_a_table_and_says_so_in_the_report(tmp_path: Path) -> None:
    path = written(tmp_path, TABLE)
    with Router(fast(), says("7", name="gpt-x@host"), policy="always,span=rest", prices=path) as router:
        report = router.complete(ASKED).report()
        assert router.prices is not None
        assert router.prices.reasoning == 6.0
        text = " ".join(str(report).split())
        assert "Prices of gpt-x@host, US dollars per million tokens: input 1, cached input 0.05" in text
        assert "(https://vendor.example/pricing, 2026-11-20)" in text
        assert report.to_dict()["prices"]["date"] == "2026-11-20"
        router.prices = None
        assert router.prices is None
        with pytest.raises(ConfigurationError, match="prices"):
            router.prices = 3.0  # type: ignore[assignment]


def test_no_price_is_not_a_price_of_nothing() -> None:
    with Router(fast(), says("7"), policy="always,span=rest") as router:
        report = router.complete(ASKED).report()
    assert report.money_usd.routed is None
    assert report.to_dict()["money_usd"]["routed"] is None
    text = " ".join(str(report).split())
    assert "No price known of slow@host" in text
    assert "US dollars" not in text.partition("billed")[0]
    assert "0.000000" not in text
    assert router.ledger.cost_usd is None
    assert router.ledger.billed.calls == 1


def test_a_vendors_list_is_asked_for_its_own_address_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the package genai-prices: real data, whatever the figures are."""
    pytest.importorskip("genai_prices")
    from fsgen_router.adapters.openai import OpenAIModel

    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.delenv("FSGEN_PRICES", raising=False)
    known = known_prices(OpenAIModel("gpt-4o-mini"))
    assert known is not None
    assert 0 < known.input < known.output
    assert known.cached_input is not None
    assert known.source.startswith("genai-prices ")
    for where in ("gpt-4o-mini@http://127.0.0.1:9/v1", "gpt-4o-mini@https://elsewhere.example/v1", "none-such"):
        assert known_prices(OpenAIModel(where, api_key_env="" if "@" in where else "OPENAI_API_KEY")) is None
    monkeypatch.setitem(sys.modules, "genai_prices", None)
    assert known_prices(OpenAIModel("gpt-4o-mini@http://127.0.0.1:9/v1", api_key_env="")) is None
    with pytest.raises(ImportError, match=r"fsgen-router\[openai\]"):
        known_prices(OpenAIModel("gpt-4o-mini"))
    own = OpenAIModel("gpt-4o-mini", prices='{"input": 7, "output": 9}')
    assert known_prices(own) == Prices(7, 9)
    with pytest.raises(ConfigurationError, match="no price of output"):
        OpenAIModel("gpt-4o-mini", prices={"input": 7})


# --- arithmetic ----------------------------------------------------------------------------------


def test_a_bill_by_hand() -> None:
    prices = Prices(1.0, 5.0, 0.05, 1.25, 6.0)
    billed = Billed(input=100, cached_input=1000, cache_write=40, output=20, reasoning=10)
    assert cost_of(billed, prices) == pytest.approx((100 + 1000 * 0.05 + 40 * 1.25 + 20 * 5 + 10 * 6) / 1e6)
    plain = Prices(1.0, 5.0)
    assert cost_of(billed, plain) == pytest.approx((1140 + 30 * 5) / 1e6)
    # Counts that contradict each other are cut to what they are parts of.
    assert Billed.of("call", prompt=10, written=3, cached=99, reasoning=7) == Billed(
        cached_input=10, reasoning=3, calls=1
    )


def test_breaking_even_is_the_rule_of_its_source() -> None:
    """g P_out > p P_cached + (g + m) P_write: 57 tokens at 1 : 0.05 : 5 and p = 4,000, about 200 uncached at 800."""
    cached = Prices(1.0, 5.0, 0.05, cache_write=1.25)

    def least(prices: Prices, sent: int) -> int:
        return next(g for g in range(1000) if margin_usd(prices, fresh=g, sent=sent, written=10) > 0)

    assert least(cached, 4000) == 57
    assert abs(least(Prices(1.0, 5.0), 800) - 203) <= 1
    # By hand: 60 x 5 - 4000 x 0.05 - 70 x 1.25.
    assert margin_usd(cached, fresh=60, sent=4000, written=10) == pytest.approx((300 - 200 - 87.5) / 1e6)
    # A cache that holds half.
    assert margin_usd(cached, fresh=60, sent=4000, written=10, found=0.5) == pytest.approx(
        (300 - 100 - 2000 - 87.5) / 1e6
    )


def test_small_calls_cost_what_their_calls_cost_one_by_one() -> None:
    """Every fifth token by the slow model, uncached: added up call by call."""
    prices, prompt, answer = Prices(1.0, 5.0), 128, 100
    found = small_calls(prices, rate=0.2, extent=1, prompt=prompt, answer=answer)
    calls = [prompt + 5 * k + 4 for k in range(20)]
    assert found.calls == pytest.approx(20)
    assert found.read == pytest.approx(sum(calls))
    assert found.usd == pytest.approx((sum(calls) + 20 * 5) / 1e6)
    assert found.over_slow_only == pytest.approx(found.usd / ((128 + 500) / 1e6))
    assert small_calls(prices, rate=0.2, extent=1, prompt=prompt, answer=answer, max_calls=1).calls == 1
    # A long prompt is in a vendor's cache from the second call on.
    long = small_calls(PRICES, rate=0.2, extent=1, prompt=4000, answer=answer)
    assert long.read_usd < 0.1 * long.read / 1e6


# --- few tokens at a time ------------------------------------------------------------------------


def test_few_tokens_at_a_time_are_refused_with_the_arithmetic() -> None:
    figures = small_calls(PRICES, rate=1 / 3, extent=1, prompt=128, answer=128)
    with pytest.raises(ConfigurationError, match=f"{figures.over_slow_only:.1f} times the slow model alone") as refused:
        Router(fast(), says("a"), policy="every:3", prices=PRICES)
    for part in (f"{figures.calls:.0f} calls", f"${figures.usd:.6f}", f"${figures.alone_usd:.6f}", "128 at $1"):
        assert part in refused.value.message, part
    assert "at_any_price=True" in (refused.value.hint or "")
    with Router(fast(), says("a"), policy="never", prices=PRICES) as router:
        for policy in ("always", "entropy>1", "budget:0.2,span=4", "random:0.5"):
            with pytest.raises(ConfigurationError, match="times the slow model alone"):
                router.with_policy(policy)
            with pytest.raises(InvalidRequest, match="times the slow model alone"):
                router.complete(ASKED, policy=policy)
        for policy in ("never", "every:3,span=8", "entropy>1,span=rest", "budget:0.9,at=prompt", "every:1000"):
            router.with_policy(policy)


def test_who_says_at_any_price_is_not_refused(recwarn: pytest.WarningsRecorder) -> None:
    with Router(fast(), endless(), policy="every:3", prices=PRICES, at_any_price=True) as router:
        assert router.complete(ASKED, max_tokens=9).usage.round_trips >= 2
    assert not recwarn.list
    with pytest.warns(SmallExtentWarning):
        Router(fast(), says("a"), policy="every:3")


# --- worth its price -----------------------------------------------------------------------------


def test_another_call_has_to_be_worth_its_price() -> None:
    """At the first token where the rule says so, and each one before it is declined in the trace, with its cost."""
    for max_tokens in (60, 200):
        endpoint = endless()
        with Router(fast(), endpoint, policy="every:2,span=8", prices=PRICES) as router:
            answer = router.complete(ASKED, max_tokens=max_tokens)
        usage = answer.usage
        assert usage.round_trips == len(endpoint.requests) > 1
        starts = [s.start for s in answer.spans if s.source == "slow"]
        prompt = usage.prompt_tokens
        for before, start in itertools.pairwise(starts):
            fresh, sent = start - before - 8, prompt + before
            assert margin_usd(PRICES, fresh=fresh, sent=sent, written=8, found=0.0) >= 0
            assert margin_usd(PRICES, fresh=fresh - 1, sent=sent, written=8, found=0.0) < 0
        declined = [t.decision for t in answer.tokens if t.decision and t.decision.reason.startswith("not worth $")]
        assert len(declined) == usage.declined > 10
        assert not any(decision.escalate for decision in declined)
        assert answer.degraded is None  # a call that is not worth it is no cap, and no failure
        assert "escalations that a cap or their price forbade" in str(answer.report())
        assert router.ledger.declined == usage.declined
    # Without it each second token asks.
    with Router(fast(), endless(), policy="every:2,span=8", prices=PRICES, at_any_price=True) as router:
        dear = router.complete(ASKED, max_tokens=200)
    assert dear.usage.round_trips > 2 * usage.round_trips
    assert dear.report().money_usd.routed > answer.report().money_usd.routed  # type: ignore[operator]


def test_a_cache_that_was_seen_to_work_makes_calls_cheaper() -> None:
    """The Router learns by the endpoint's own counts what share of a prompt is found again."""
    counts = {}
    for cached in (0, 2990):
        with Router(
            fast(), Counting(itertools.repeat("7"), prompt=3000, cached=cached), prices=PRICES, policy="never"
        ) as router:
            policy = "every:2,span=8"
            answers = [router.complete(ASKED, policy=policy, max_tokens=400) for _ in range(3)]
            counts[cached] = sum(answer.usage.round_trips for answer in answers[1:])
    assert counts[2990] > counts[0]


def test_a_local_slow_model_with_prices_is_not_held_to_them() -> None:
    models = pair(3)
    with Router(models.fast, models.slow, policy="every:3", method="replace", prices=PRICES) as router:
        answer = router.complete("a", max_tokens=20)
    assert answer.usage.escalations > 0
    assert answer.usage.declined == 0


# --- caps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["usd", "slow_calls", "slow_tokens", "seconds"])
@pytest.mark.parametrize("wrong", [-1, float("nan"), float("inf"), "1", True])
def test_caps_that_are_none_are_refused(kind: str, wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match=kind):
        Budget(**{kind: wrong})


@pytest.mark.parametrize("wrong", [-1, float("nan"), "x"])
@pytest.mark.parametrize("option", ["max_cost_usd", "max_seconds"])
def test_a_requests_caps_that_are_none_are_refused(option: str, wrong: Any) -> None:
    with (
        Router(fast(), says("a"), policy="never", prices=PRICES) as router,
        pytest.raises(InvalidRequest, match=option),
    ):
        router.complete(ASKED, **{option: wrong})


@pytest.mark.parametrize("batching", [False, True])
@pytest.mark.parametrize(
    "cap", [{"max_cost_usd": 0}, {"max_seconds": 0}, {"max_slow_calls": 0}, {"max_slow_tokens": 0}, {"budget": "usd"}]
)
@pytest.mark.parametrize("policy", ["always,span=rest", "every:3,span=16"])
def test_a_cap_of_zero_never_asks_and_the_answer_is_whole(cap: dict[str, Any], policy: str, batching: bool) -> None:
    endpoint = endless()
    if "budget" in cap:
        cap = {"budget": Budget(usd=0)}
    # Also where nobody knows a price: nothing is to be counted.
    with Router(fast(), endpoint, policy=policy, batching=batching) as router:
        answer = router.complete(ASKED, max_tokens=12, **cap)
        alone = router.complete(ASKED, max_tokens=12, policy="never")
    assert endpoint.requests == []
    assert (answer.text, answer.usage.tokens, answer.finish_reason) == (alone.text, 12, "length")
    assert answer.degraded is not None
    assert answer.degraded.startswith("cap on ")
    assert answer.usage.declined >= 1
    assert "the fast model finished the answer (cap on" in " ".join(str(answer.report()).split())
    assert alone.degraded is None


def test_money_that_nobody_can_count_is_no_cap() -> None:
    with Router(fast(), says("a"), policy="never") as router:
        with pytest.raises(InvalidRequest, match="no price known of slow@host"):
            router.complete(ASKED, max_cost_usd=0.5)
        with pytest.raises(ConfigurationError, match="no price known of slow@host"):
            router.budget = Budget(usd=1.0)
        router.budget = Budget(slow_calls=1)
        with pytest.raises(ConfigurationError, match="budget="):
            router.budget = 5  # type: ignore[assignment]
        with pytest.raises(InvalidRequest, match="budget"):
            router.complete(ASKED, budget=5)
    with pytest.raises(ConfigurationError, match="no price known"):
        Router(fast(), says("a"), budget=Budget(usd=1.0))


@pytest.mark.parametrize("policy", ["always,span=rest", "every:3,span=16", "every:5,span=rest"])
def test_a_cap_on_money_is_decided_before_the_call(policy: str) -> None:
    """No answer costs more than its cap, and what a cap leaves is used: by a shorter call where that is worth it."""
    spent = {}
    for cap in (2e-5, 1e-4, 2e-4, 5e-4, 1e-2):
        endpoint = endless()
        with Router(fast(), endpoint, policy=policy, prices=PRICES, at_any_price=True) as router:
            answer = router.complete(ASKED, max_tokens=100, max_cost_usd=cap)
            spent[cap] = answer.report().money_usd.routed
        assert spent[cap] <= cap
        assert answer.usage.tokens == 100
        asked_for_less = any(request.max_tokens not in (16, 100) for request in endpoint.requests)
        assert (answer.degraded is not None) or asked_for_less or cap == 1e-2, cap
    assert spent[1e-2] > spent[2e-4] > spent[2e-5] == 0.0  # a prompt alone is more
    assert router.ledger.cost_usd == pytest.approx(spent[1e-2])


def test_near_the_cap_the_rest_is_handed_over_where_that_costs_no_more_than_spans() -> None:
    """Of 40 tokens that are left, spans would take four calls more, each with the whole text."""
    endpoint = endless()
    dear_to_read = Prices(input=20.0, output=1.0)
    with Router(fast(), endpoint, policy="every:2,span=8", prices=dear_to_read, at_any_price=True) as router:
        first = router.complete(ASKED, max_tokens=60).report().money_usd.routed
        assert first is not None
        endpoint.requests.clear()
        answer = router.complete(ASKED, max_tokens=60, max_cost_usd=0.0016)
    assert endpoint.requests[-1].max_tokens > 8
    assert answer.tokens[-1].source == "slow"
    assert any(t.decision and t.decision.reason == "the rest costs less than spans" for t in answer.tokens)
    assert answer.report().money_usd.routed <= 0.0016 < first  # type: ignore[operator]


@pytest.mark.parametrize("batching", [False, True])
def test_a_budget_is_shared_and_never_overspent(batching: bool) -> None:
    """Eight threads at once: what calls under way may cost is set aside, so no remainder is spent twice."""

    def slowly(request: Continuation) -> Iterator[str]:
        time.sleep(0.02)  # calls overlap
        yield from itertools.repeat("7")

    for limit in ({"slow_calls": 5}, {"usd": 0.0015}, {"slow_tokens": 150}):
        budget = Budget(**limit)
        endpoint = ScriptedTextModel(slowly, name="slow@host")
        model = ScriptedModel(letters, tokenizer(), n_seq=8)
        with (
            Router(
                model, endpoint, policy="every:3,span=rest", prices=PRICES, budget=budget, batching=batching
            ) as router,
            ThreadPoolExecutor(8) as pool,
        ):
            answers = list(pool.map(lambda _: router.complete(ASKED, max_tokens=40), range(24)))
        assert all(answer.usage.tokens == 40 for answer in answers)
        spent = budget.spent
        assert spent.slow_calls == sum(answer.usage.escalations for answer in answers) == len(endpoint.requests) > 0
        assert spent.slow_tokens == sum(answer.usage.slow.decode for answer in answers)
        assert spent.usd == pytest.approx(sum(answer.report().money_usd.routed or 0 for answer in answers))
        for kind, cap in limit.items():
            assert getattr(spent, kind) <= cap
        left = [abs(getattr(budget.reserved, kind)) for kind in ("usd", "slow_calls", "slow_tokens", "seconds")]
        assert left == pytest.approx([0.0] * 4, abs=1e-9)
        assert sum(answer.degraded is not None for answer in answers) > 0
        assert router.ledger.billed.calls == len(endpoint.requests)


@pytest.mark.parametrize("method", ["replace", "verify"])
def test_a_local_slow_model_is_capped_by_calls_tokens_and_seconds(method: str) -> None:
    for limit in ({"slow_calls": 2}, {"slow_tokens": 3}, {"seconds": 1e-9}):
        models, budget = pair(5), Budget(**limit)
        with Router(models.fast, models.slow, policy="every:2", method=method, budget=budget) as router:
            answers = [router.complete("a", max_tokens=30) for _ in range(3)]
        spent = budget.spent
        assert spent.slow_calls == sum(answer.usage.escalations for answer in answers)
        if "seconds" not in limit:
            assert all(getattr(spent, kind) <= cap for kind, cap in limit.items())
        assert answers[-1].usage.slow_forwards == 0
        assert answers[-1].degraded is not None
        assert models.all_free


def test_a_purse_takes_all_or_nothing() -> None:
    wide, narrow = Budget(usd=10.0), Budget(usd=1.0, slow_calls=3)
    purse = Purse([wide, narrow])
    assert purse.reserve(Spending(usd=0.6, slow_calls=1)) is None
    assert Purse([wide, narrow]).reserve(Spending(usd=0.6, slow_calls=1)) == "cap on US dollars: 1"
    assert wide.reserved == Spending(usd=0.6, slow_calls=1)
    purse.settle(Spending(usd=0.1, slow_calls=1))
    assert wide.reserved == narrow.reserved == Spending()
    assert narrow.spent == wide.spent == Spending(usd=0.1, slow_calls=1)
    purse.settle(Spending(usd=0.3, slow_calls=1))  # the total, not what was added
    assert narrow.spent.usd == pytest.approx(0.3)
    assert CallCost(100, PRICES).affords(100e-6 + 3 * 5e-6) == 3


def test_sessions_may_share_a_budget_beside_the_routers() -> None:
    session, whole = Budget(slow_calls=1), Budget(slow_calls=10)
    with Router(fast(), says("7"), policy="every:3,span=rest", budget=whole) as router:
        answers = [router.complete(ASKED, max_tokens=9, budget=session) for _ in range(3)]
        other = router.complete(ASKED, max_tokens=9)
    assert [answer.usage.escalations for answer in answers] == [1, 0, 0]
    assert other.usage.escalations == 1
    assert (session.spent.slow_calls, whole.spent.slow_calls) == (1, 2)


# --- the bill ------------------------------------------------------------------------------------


def test_a_bill_names_every_kind_of_token_as_the_endpoint_counts_them() -> None:
    prices = Prices(1.0, 5.0, 0.05, 1.25, 6.0)
    endpoint = Counting(["7"] * 4, prompt=120, cached=60, put=40, thought=9)
    with Router(fast(), endpoint, policy="every:3,span=rest", prices=prices) as router:
        answer = router.complete(ASKED, max_tokens=20)
        report = answer.report()
    billed = answer.usage.billed
    assert billed == Billed(input=20, cached_input=60, cache_write=40, output=4, reasoning=9, calls=1)
    assert report.money_usd.routed == pytest.approx((20 + 60 * 0.05 + 40 * 1.25 + 4 * 5 + 9 * 6) / 1e6)
    shown = report.to_dict()["billed"]
    assert (shown["cached_input"], shown["cache_write"], shown["reasoning"], shown["estimated"]) == (60, 40, 9, 0)
    text = str(report)
    for row in ("input", "cached input", "cache write", "output", "reasoning"):
        assert row in text
    assert "estimated" not in text.partition("billed")[2].partition("rate or count")[0]
    assert router.ledger.billed == billed
    assert router.ledger.cost_usd == pytest.approx(report.money_usd.routed)


def test_what_an_endpoint_does_not_count_is_marked() -> None:
    with Router(fast(), ScriptedTextModel(lambda request: ["7"] * 4), policy="every:3,span=rest") as router:
        answer = router.complete(ASKED, max_tokens=20)
    billed = answer.usage.billed
    assert billed.estimated == billed.input > 0  # it counts what it writes, and no prompt
    assert f"{billed.estimated:,} tokens estimated" in " ".join(str(answer.report()).split())


@pytest.mark.parametrize("batching", [False, True])
def test_a_stream_that_is_left_is_billed(batching: bool) -> None:
    endpoint = ScriptedTextModel(lambda request: itertools.repeat("7"), name="slow@host")
    budget = Budget(slow_calls=5)
    with Router(fast(), endpoint, policy="always,span=rest", prices=PRICES, budget=budget, batching=batching) as router:
        events = router.stream(ASKED, max_tokens=100_000_000)
        for _ in range(3):
            next(events)
        events.close()  # type: ignore[attr-defined]
        ledger = router.ledger
        assert (ledger.billed.failed, ledger.billed.estimated) == (1, ledger.billed.tokens)
        assert ledger.billed.output > 0
        assert ledger.cost_usd == pytest.approx(cost_of(ledger.billed, PRICES)) == pytest.approx(budget.spent.usd)
        assert budget.reserved.slow_calls == 0


def test_probes_and_tries_that_came_to_nothing_are_billed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over HTTP: the probe's own usage, and a reply that broke off before its first word."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    broken = iter([True, False])

    def script(asked: Any) -> None:
        usage = {"prompt_tokens": 11, "completion_tokens": 1}
        if not asked.body.get("stream"):
            asked.send(
                reply(200, {"choices": [{"message": {"content": "a"}, "finish_reason": "length"}], "usage": usage})
            )
        elif next(broken):
            asked.send(streamed(done=False))
            raise ConnectionAbortedError
        else:
            usage = {"prompt_tokens": 40, "completion_tokens": 2, "prompt_tokens_details": {"cache_write_tokens": 8}}
            asked.send(streamed(chat_chunk("7"), chat_chunk(None, "stop"), {"choices": [], "usage": usage}))

    with (
        scripted_server(script) as server,
        Router(fast(), f"openai:slow@{server.url}?probe=first", policy="every:3,span=rest", prices=PRICES) as router,
    ):
        answer = router.chat([{"role": "user", "content": ASKED}], max_tokens=9)
        billed = answer.usage.billed
        probes = sum(not body.get("stream") for body in server.bodies)
        assert (billed.calls, billed.probes, billed.failed) == (1, probes, 1)
        assert probes >= 2
        assert billed.cache_write == 8
        guessed = billed.estimated
        assert 0 < guessed < 20
        assert billed.input == 32 + 11 * probes + guessed
        assert billed.output == 2 + probes
        assert answer.report().money_usd.routed == pytest.approx(cost_of(billed, PRICES))
        assert router.ledger.billed == billed
        shown = " ".join(str(answer.report()).split())
        assert f"1 call, {probes} probes, 1 failed request; {guessed} tokens estimated" in shown


def test_what_is_heard_of_when_a_request_is_over_is_billed_to_the_router() -> None:
    meter, late = Meter(), []
    meter.enter(Billed(input=1))
    assert meter.close(late.append) == Billed(input=1)
    meter.enter(Billed(input=5, probes=1))
    assert late == [Billed(input=5, probes=1)]
    assert meter.taken() == Billed()


# --- machines of one's own -----------------------------------------------------------------------


def test_seconds_of_local_models_cost_what_their_machine_does() -> None:
    rented = MachinePrice(usd_per_hour=3.6, watts=200.0, usd_per_kwh=0.36)
    powered = MachinePrice(watts=200.0)  # whose energy nobody priced
    assert (powered.usd(10.0), powered.joules(10.0)) == (None, 2000.0)
    assert rented.usd(10.0) == pytest.approx(10 * 3.6 / 3600 + 10 * 200 / 3.6e6 * 0.36)
    models = pair(3)
    with Router(models.fast, models.slow, policy="every:3", method="replace", machine=rented) as router:
        answer = router.complete("a", max_tokens=20, baseline=True)
        report, usage = answer.report(), answer.usage
        assert report.local_usd.routed == pytest.approx(rented.usd(usage.fast.seconds + usage.slow.seconds))
        assert answer.baseline is not None
        assert report.local_usd.slow_only == pytest.approx(rented.usd(answer.baseline.usage.fast.seconds))
        assert report.local_joules.routed == pytest.approx(200 * (usage.fast.seconds + usage.slow.seconds))
        assert {"US dollars, local", "joules, local"} <= {line.split("  ")[0] for line in str(report).splitlines()}
        assert report.to_dict()["local_usd"]["baseline"] == "measured"
        router.machine = {"slow": rented}
        only = router.complete("a", max_tokens=20).report()
        assert only.local_usd.routed == pytest.approx(rented.usd(only.usage.slow.seconds))
        capped = router.complete("a", max_tokens=20, max_cost_usd=1e-12)
        assert capped.degraded is not None
        for wrong in (3.0, {"slow": 3.0}, {"medium": rented}):
            with pytest.raises(ConfigurationError, match="machine="):
                router.machine = wrong  # type: ignore[assignment]
    with Router(fast(), says("7"), policy="every:3,span=rest", machine=rented, prices=PRICES) as router:
        report = router.complete(ASKED, max_tokens=9, baseline=True).report()
    assert report.local_usd.slow_only == 0.0  # an endpoint is no machine of this side
    assert report.local_usd.routed > 0.0  # type: ignore[operator]
    assert report.local_usd.saving is None


# --- what was saved, measured --------------------------------------------------------------------


def test_a_share_of_requests_is_also_asked_whole() -> None:
    verdicts = []

    def checker(answer: Any) -> bool:
        verdicts.append(answer.text)
        return "7" in answer.text

    options: dict[str, Any] = {"policy": "never", "prices": PRICES, "seed": 4}
    with Router(fast(), says("7", "b"), baseline_share=0.5, checker=checker, **options) as router:
        answers = [router.complete(f"{ASKED}{'ab7,'[n % 4] * (n // 4)}", max_tokens=9) for n in range(40)]
        savings, drawn = router.ledger.savings, [answer for answer in answers if answer.baseline is not None]
        assert 8 <= len(drawn) == savings.requests <= 32
        assert {answer.report().money_usd.baseline for answer in drawn} == {"measured"}
        assert {answer.report().money_usd.baseline for answer in answers if answer.baseline is None} == {"estimated"}
        whole = sum(cost_of(answer.baseline.usage.billed, PRICES) for answer in drawn)
        assert savings.slow_usd == pytest.approx(whole)
        assert (savings.usd, savings.saving) == (0.0, 1.0)
        assert (savings.checked, savings.right, savings.slow_right) == (len(drawn), 0.0, len(drawn))
        assert len(verdicts) == 2 * len(drawn)
        # It is paid for, and the totals say so.
        assert router.ledger.cost_usd == pytest.approx(whole)
        assert router.ledger.billed.calls == len(drawn)
        # Where the money is gone, nothing is asked beside.
        router.budget = Budget(slow_calls=0)
        router.baseline_share = 1.0
        assert router.complete(ASKED, max_tokens=9).baseline is None
        router.budget = None
        assert router.complete(ASKED, max_tokens=9).baseline is not None
        for wrong in (-0.1, 1.5, "1", True):
            with pytest.raises(ConfigurationError, match="baseline_share"):
                router.baseline_share = wrong  # type: ignore[assignment]
        with pytest.raises(ConfigurationError, match="checker"):
            router.checker = 5  # type: ignore[assignment]
    with Router(fast(), says("7"), **options) as router:
        assert router.complete(ASKED, max_tokens=9).baseline is None


def test_a_checker_that_raises_costs_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    def broken(answer: Any) -> bool:
        raise KeyError("x")

    with Router(fast(), says("7"), policy="never", prices=PRICES, baseline_share=1.0, checker=broken) as router:
        assert router.complete(ASKED, max_tokens=9).usage.tokens == 9
        assert (router.ledger.savings.requests, router.ledger.savings.checked) == (1, 0)
    assert "checker_failed" in caplog.text
