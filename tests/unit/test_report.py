"""What a report says was saved: every figure by hand, losses shown as losses."""

from __future__ import annotations

import io
import json
import os
import re
from dataclasses import replace

import pytest
from learned_cases import guarantee, logistic
from rich.console import Console
from scripted_pairs import pair, prompt

from fsgen_router import Claim, Decision, Generation, Prices, Router, Token, Usage
from fsgen_router.policies import Learned
from fsgen_router.records import ModelCard, ModelUsage
from fsgen_router.report import FSGEN_RATE, Comparison, Report, cost_usd, flops

PRICES = Prices(input=3.0, output=15.0, cached_input=0.3)


def a_generation(**changes) -> Generation:
    """Ten tokens behind a prompt of 100: three by the slow model, in two calls of one and two tokens."""
    usage = Usage(
        fast=ModelUsage(prefill=100, decode=7, catchup=2, forwards=8, seconds=0.08),
        slow=ModelUsage(prefill=100, cached=0, catchup=5, decode=2, forwards=3, seconds=0.3),
        prompt_tokens=100,
        tokens=10,
        slow_tokens=3,
        decisions=9,
        escalations=2,
        seconds=0.5,
    )
    sources = "ffsfffssff"
    tokens = tuple(
        Token(
            id=at,
            piece=b"x",
            source={"f": "fast", "s": "slow"}[source],
            logprob=-0.1,
            signals=None,
            decision=Decision(source == "s"),
            fast_choice=None,
            slow_choice=None,
        )
        for at, source in enumerate(sources)
    )
    fields = {
        "text": "x" * 10,
        "tokens": tokens,
        "usage": usage,
        "finish_reason": "eog",
        "seed": 0,
        "policy": "entropy>1",
        "method": "replace",
        "models": {"fast": ModelCard("f", 1000), "slow": ModelCard("s", 20_000, step_seconds=0.1, prices=PRICES)},
    }
    return Generation(**fields | changes)


def slow_only(seconds: float = 0.9) -> Generation:
    """The slow model alone: its figures stand in the seat of the fast one."""
    usage = Usage(
        fast=ModelUsage(prefill=100, decode=11, forwards=12, seconds=seconds),
        prompt_tokens=100,
        tokens=12,
        seconds=seconds,
    )
    return a_generation(usage=usage, policy="never")


def test_estimated_against_one_slow_step_per_token() -> None:
    report = a_generation().report()
    assert report.slow_forwards == Comparison(3, 10, "estimated")
    assert report.slow_forwards.saving == pytest.approx(0.7)
    assert report.seconds == Comparison(0.5, pytest.approx(10 * 0.1), "estimated")
    assert report.flops.routed == 2 * 1000 * 109 + 2 * 20_000 * 107
    assert report.flops.slow_only == 2 * 20_000 * 109
    assert report.flops.baseline == "estimated"
    # 107 positions, of which the first token of the second call was read on the way to the next.
    assert report.money_usd.routed == pytest.approx(((107 - 1) * 3 + 3 * 15) / 1e6)
    assert report.money_usd.slow_only == pytest.approx((100 * 3 + 10 * 15) / 1e6)


def test_measured_against_the_baseline() -> None:
    report = a_generation(baseline=slow_only()).report()
    assert report.slow_forwards == Comparison(3, 12, "measured")
    assert report.seconds == Comparison(0.5, 0.9, "measured")
    assert report.flops.slow_only == 2 * 20_000 * 111
    assert report.money_usd.slow_only == pytest.approx((100 * 3 + 12 * 15) / 1e6)
    assert {report.flops.baseline, report.money_usd.baseline} == {"measured"}


def test_losses_are_negative() -> None:
    report = a_generation(baseline=slow_only(seconds=0.4)).report()
    assert report.seconds.saving == pytest.approx(1 - 0.5 / 0.4)
    assert report.seconds.saving < 0
    assert "-25.0%" in str(report)
    usage = a_generation().usage
    dear = replace(usage, slow=ModelUsage(prefill=100, catchup=5, decode=2, cached=5000, forwards=3))
    assert a_generation(usage=dear).report().money_usd.saving < 0


def test_catch_up_is_counted() -> None:
    usage = a_generation().usage
    more = replace(usage, slow=ModelUsage(prefill=100, catchup=55, decode=2, forwards=3, seconds=0.3))
    plain, report = a_generation().report(), a_generation(usage=more).report()
    assert report.flops.routed - plain.flops.routed == 2 * 20_000 * 50
    assert report.money_usd.routed - plain.money_usd.routed == pytest.approx(50 * 3 / 1e6)
    assert report.slow_forwards == plain.slow_forwards


def test_what_is_unknown_is_not_guessed() -> None:
    report = a_generation(models={"fast": ModelCard("f", 1000), "slow": ModelCard("s", 20_000)}).report()
    assert report.seconds == Comparison(0.5, None, "unknown")
    assert report.seconds.saving is None
    assert report.money_usd == Comparison(None, None, "unknown")
    assert "US dollars" not in str(report)
    assert "unknown" in str(report)
    bare = a_generation(models={}).report()
    assert (bare.flops.routed, bare.flops.slow_only, bare.flops.baseline) == (None, None, "unknown")


def test_money_by_hand() -> None:
    """One call of five tokens behind 1,000 cached and 200 new ones: 4 of the 204 read are its own."""
    usage = ModelUsage(prefill=200, decode=4, cached=1000, forwards=5)
    assert cost_usd(usage, written=5, calls=1, prices=PRICES) == pytest.approx((1000 * 0.3 + 200 * 3 + 5 * 15) / 1e6)
    without = Prices(input=3.0, output=15.0)
    assert cost_usd(usage, written=5, calls=1, prices=without) == pytest.approx((1200 * 3 + 5 * 15) / 1e6)
    nothing = ModelUsage()
    assert cost_usd(nothing, written=0, calls=0, prices=PRICES) == 0.0


def test_flops_are_two_per_parameter_and_position() -> None:
    assert flops(ModelUsage(prefill=10, catchup=3, decode=2, cached=99), 500) == 2 * 500 * 15


def test_a_report_of_nothing_slow() -> None:
    usage = Usage(fast=ModelUsage(prefill=5, decode=3, forwards=4), prompt_tokens=5, tokens=4, decisions=4)
    report = a_generation(usage=usage, tokens=()).report()
    assert report.slow_forwards.saving == 1.0
    assert report.money_usd.routed == 0.0
    assert usage.escalation_rate == 0.0


def test_rates_that_are_undefined_are_none() -> None:
    usage = Usage()
    for rate in ("escalation_rate", "slow_token_share", "slow_position_share", "disagreement_rate"):
        assert getattr(usage, rate) is None
        assert usage.to_dict()[rate] is None


def test_rates_are_not_mixed() -> None:
    usage = a_generation().usage
    assert usage.escalation_rate == 2 / 9
    assert usage.slow_token_share == 0.3
    assert usage.slow_position_share == 107 / 110
    assert usage.disagreement_rate is None
    assert replace(usage, compared=10, disagreements=4).disagreement_rate == 0.4
    assert replace(usage, compared=9, disagreements=4).disagreement_rate is None


def test_spans() -> None:
    assert [(s.start, s.stop, s.source) for s in a_generation().spans] == [
        (0, 2, "fast"),
        (2, 3, "slow"),
        (3, 6, "fast"),
        (6, 8, "slow"),
        (8, 10, "fast"),
    ]
    assert a_generation(tokens=()).spans == ()


# --- how it is shown -----------------------------------------------------------------------------


def test_json_holds_everything() -> None:
    report = a_generation(baseline=slow_only()).report()
    shown = json.loads(report.to_json())
    assert shown == json.loads(json.dumps(report.to_dict()))
    assert next(iter(shown)) == "slow_forwards"
    assert shown["slow_forwards"] == {
        "routed": 3,
        "slow_only": 12,
        "baseline": "measured",
        "saving": pytest.approx(0.75),
    }
    for name in ("seconds", "flops", "money_usd"):
        assert set(shown[name]) == {"routed", "slow_only", "baseline", "saving"}
    usage = shown["usage"]
    assert (usage["slow_forwards"], usage["slow_positions"], usage["slow"]["catchup"]) == (3, 107, 5)
    assert usage["escalation_rate"] == 2 / 9
    assert (shown["policy"], shown["method"], shown["finish_reason"], shown["degraded"]) == (
        "entropy>1",
        "replace",
        "eog",
        None,
    )
    assert shown["fsgen"]["published_rate"] == FSGEN_RATE == 0.2


def test_text_begins_with_slow_steps_and_names_each_baseline() -> None:
    text = str(a_generation().report())
    order = ["sequential slow steps", "seconds", "FLOPs", "US dollars", "escalation_rate", "slow_token_share"]
    places = [text.index(words) for words in order]
    assert places == sorted(places)
    assert "70.0%" in text
    assert text.count("estimated") >= 4
    assert "\x1b" not in text


def test_the_finding_is_told_with_what_it_is() -> None:
    text = " ".join(str(a_generation().report()).split())
    assert "arXiv 2406.12295" in text
    assert "under about 20%" in text
    assert "asking the slow model at every token" in text
    assert "compares to disagreement_rate alone, not to escalation_rate or slow_token_share" in text
    assert "unknown: Router(audit=1.0), or --audit 1 on the command line" in text
    known = a_generation(usage=replace(a_generation().usage, compared=10, disagreements=2))
    assert "audit" not in str(known.report()).partition("FS-GEN's figure")[2]
    assert known.report().fsgen["disagreement_rate"] == 0.2


def test_an_audit_is_not_advised_where_the_router_refuses_one() -> None:
    endpoint = ModelCard("endpoint", None, gives_rows=False)
    text = " ".join(str(a_generation(models={"fast": ModelCard("f", 1000), "slow": endpoint}).report()).split())
    assert "audit" not in text
    assert "gives text and no logits, so its choices cannot be compared" in text


def test_a_terminal_gets_it_in_colour() -> None:
    out = io.StringIO()
    report = a_generation(degraded="BackendError: gone").report()
    Console(file=out, force_terminal=True, color_system="standard", width=100).print(report)
    assert "\x1b[" in out.getvalue()
    assert "Degraded" in out.getvalue()
    assert "BackendError: gone" in str(report)


def test_what_became_of_drafts_is_counted() -> None:
    usage = replace(a_generation().usage, corrections=2, bonus_tokens=1, discarded_tokens=6)
    usage.slow.ahead = 40
    tokens = tuple(replace(token, verified=token.source == "fast") for token in a_generation().tokens)
    report = a_generation(usage=usage, tokens=tokens, method="verify:exact").report()
    assert report.verified_tokens == report.to_dict()["verified_tokens"] == 7
    cells = [re.split(r" {2,}", line.strip()) for line in str(report).splitlines()]
    rows = {row[0]: row[1] for row in cells if len(row) > 1}
    expected = {"corrections": "2", "verified tokens": "7", "bonus tokens": "1", "discarded drafts": "6"}
    assert expected | {"read ahead": "40"} == {name: rows.get(name) for name in (*expected, "read ahead")}
    # What did not happen takes no row.
    assert "corrections" not in str(a_generation().report())


def test_an_endpoint_is_compared_by_bytes() -> None:
    usage = replace(a_generation().usage, round_trips=2, text_bytes=40, slow_bytes=10)
    cards = {"fast": ModelCard("f", 1000), "slow": ModelCard("s", None)}
    report = a_generation(usage=usage, models=cards).report()
    assert usage.slow_token_share == 0.25
    text = str(report)
    assert "10 of 40 UTF-8 bytes" in text
    assert "round trips" in text
    flops_row = next(line for line in text.splitlines() if "FLOPs" in line)
    assert flops_row.count("unknown") == 4  # nobody knows its size


SENTENCE = "certified on prompts like the 400 of calibration: regret at most 5% at confidence 90%"
LONG = "learned:logistic>0.0711656,hold=0.123456,span=rest"


def full_report() -> Report:
    """Every row and every sentence, with figures as wide as they come."""
    usage = replace(
        a_generation().usage, tokens=123_456, escalations=12_345, decisions=98_765, corrections=2, bonus_tokens=1,
        discarded_tokens=123_456, round_trips=3, text_bytes=456_789, slow_bytes=123_456,
    )  # fmt: skip
    usage.slow.ahead, usage.seconds = 40, 12_345.678
    return a_generation(
        usage=usage,
        policy=LONG,
        method="verify:near_best=0.98,draft_len=16",
        claim=Claim(SENTENCE, ("a cap", "the answer was sampled", "the slow model failed")),
        degraded="BackendError: the endpoint said 503 Service Unavailable seven times in a row, and then nothing more",
        baseline=slow_only(),
    ).report()


def shown(report: Report, width: int) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(report)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_a_report_fits_80_columns_and_names_and_numbers_stay_whole() -> None:
    report = full_report()
    text = str(report)
    assert max(map(len, text.splitlines())) <= 80
    for whole in (
        LONG, "verify:near_best=0.98,draft_len=16", "sequential slow steps", "12345.678", "-1371642.0%",
        "slow_position_share", "123,456 of 456,789 UTF-8 bytes", "discarded drafts", "12,345 escalations in",
    ):  # fmt: skip
        assert any(whole in line for line in text.splitlines()), whole
    assert "…" not in text
    # Columns are aligned: a row's figures end where the heading's do.
    lines = text.splitlines()
    heading = next(line for line in lines if line.startswith("against"))
    rows = [line for line in lines if line.endswith(("measured", "unknown"))]
    assert len(rows) == 4
    for row in rows:
        for name in ("routed", "slow only", "saved"):
            end = heading.index(name) + len(name)
            assert row[end - 1] != " "
            assert row[end : end + 1] in ("", " ")


@pytest.mark.parametrize("width", [80, 120, 300])
def test_a_report_is_never_wider_than_100_columns(width: int) -> None:
    lines = shown(full_report(), width)
    assert max(map(len, lines)) <= min(width, 100)
    assert not any("…" in line for line in lines)


def test_print_takes_the_terminals_width(monkeypatch: pytest.MonkeyPatch) -> None:
    widths = {}
    for columns in (60, 90, 200):
        monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
        monkeypatch.setattr("shutil.get_terminal_size", lambda fallback, c=columns: os.terminal_size((c, 24)))
        widths[columns] = max(map(len, str(full_report()).splitlines()))
    assert widths[60] <= 60 < widths[90] <= 90 < widths[200] <= 100
    monkeypatch.setattr("sys.stdout.isatty", lambda: False)
    assert max(map(len, str(full_report()).splitlines())) <= 80


# --- why something was lost ----------------------------------------------------------------------


def lossy(**changes) -> Report:
    usage = replace(a_generation().usage, **changes)
    return a_generation(usage=usage, baseline=slow_only()).report()


def test_lost_seconds_are_told_in_the_answers_own_figures() -> None:
    assert "seconds" not in lossy(seconds=0.89).losses
    # 0.9 alone, of which 0.6 were spared; 0.08 by the fast model and 0.62 around both are more.
    usage = replace(a_generation().usage, seconds=1.0)
    cards = {"fast": ModelCard("f", 1000, step_seconds=0.01), "slow": ModelCard("s", 20_000, step_seconds=0.1)}
    told = a_generation(usage=usage, models=cards, baseline=slow_only()).report().losses["seconds"]
    assert "spared 0.600 s" in told
    assert "100 ms, 10.0 times as long as the fast one" in told
    assert "the fast one took 0.080 s and what lies around both (Python, waiting) 0.620 s" in told
    assert "about 1.2 times as slow would break even" in told  # (1.0 - 0.3) / (0.9 - 0.3)
    # Where no step was measured, none is told.
    assert "times as long" not in lossy(seconds=1.0).losses["seconds"]


def test_the_slowness_that_breaks_even_does() -> None:
    usage = replace(a_generation().usage, seconds=1.5)
    report = a_generation(usage=usage, baseline=slow_only()).report()
    times = float(re.search(r"about ([\d.]+) times", report.losses["seconds"])[1])
    slower = replace(usage, seconds=1.5 + usage.slow.seconds * (times - 1))
    again = a_generation(usage=slower, baseline=slow_only(seconds=0.9 * times)).report()
    assert again.seconds.saving == pytest.approx(0.0, abs=0.02)


def test_a_slow_model_that_was_busy_longer_than_alone() -> None:
    slow = replace(a_generation().usage.slow, seconds=0.95)
    told = lossy(seconds=1.2, slow=slow).losses["seconds"]
    assert "alone needs 0.900 s, and here it was busy for 0.950 s: 3 steps, in which it read 107 tokens" in told
    assert "break even" not in told  # a slower one would lose more


def test_lost_flops_money_and_steps_are_told() -> None:
    usage = replace(a_generation().usage, slow=ModelUsage(prefill=100, catchup=60, decode=2, cached=5000, forwards=20))
    report = a_generation(usage=replace(usage, corrections=1), baseline=slow_only()).report()
    assert set(report.losses) == {"slow_forwards", "flops", "money_usd"}
    assert "took 20 of them for 10 tokens, the slow model's own answer 12" in report.losses["slow_forwards"]
    # 2 x 1,000 parameters x 109 positions.
    assert "read 162 tokens, 60 of them to catch up" in report.losses["flops"]
    assert "alone it reads 111; the fast model's 218 k come on top" in report.losses["flops"]
    assert (
        "in 2 calls the slow model read 5,162 tokens (5,000 of them cached), and alone it reads 111"
        in (report.losses["money_usd"])
    )
    text = " ".join(str(report).split())
    assert all(" ".join(sentence.split()) in text for sentence in report.losses.values())
    assert report.to_dict()["losses"] == report.losses


def test_nothing_is_told_where_nothing_was_lost_or_known() -> None:
    cheap = replace(a_generation().usage, slow=ModelUsage(prefill=50, catchup=5, decode=2, forwards=3, seconds=0.3))
    assert a_generation(usage=cheap, baseline=slow_only()).report().losses == {}
    assert "lost" not in str(a_generation(usage=cheap, baseline=slow_only()).report())
    unknown = {"fast": ModelCard("f", 1000), "slow": ModelCard("s", None)}
    assert a_generation(models=unknown).report().losses == {}
    # What is shown as 0.0% is no loss, and has no sign.
    level = a_generation(usage=replace(a_generation().usage, seconds=0.9001), baseline=slow_only()).report()
    assert "seconds" not in level.losses
    assert "-0.0%" not in str(level)


def test_a_guarantee_is_shown_with_its_population_and_its_number() -> None:
    """Never as one word, which would read as if it were said of the answer."""
    assert guarantee().sentence == SENTENCE
    for claim, said in (
        (Claim(SENTENCE), SENTENCE),
        (Claim(SENTENCE, ("a cap", "a rate is held")), f"suspended: a cap; a rate is held ({SENTENCE})"),
    ):
        answer = a_generation(claim=claim)
        report = answer.report()
        assert answer.guarantee == said
        assert said in " ".join(str(report).split())
        record = report.to_dict()
        assert (record["guarantee"], record["guarantee_holds"]) == (said, claim.holds)
    assert a_generation().guarantee is None
    record = a_generation().report().to_dict()
    assert record["guarantee"] is record["guarantee_holds"] is None
    assert "uarantee" not in str(a_generation().report())


# --- from real runs ------------------------------------------------------------------------------


def test_always_saves_no_steps_and_never_saves_all() -> None:
    models = pair(14)
    with Router(models.fast, models.slow, policy="always") as router:
        report = router.complete("a", baseline=True).report()
        assert (report.slow_forwards.saving, report.slow_forwards.baseline) == (0.0, "measured")
        # Both models did all the work, so FLOPs were lost.
        assert report.flops.saving < 0
        with router.with_policy("never") as twin:
            assert twin.complete("a", baseline=True).report().slow_forwards.saving == 1.0


def test_an_estimate_of_always_is_its_baseline() -> None:
    """Escalating everywhere, the slow model does just what it does alone: estimate and measurement agree."""
    for case in range(30):
        models = pair(case)
        with Router(models.fast, models.slow, policy="always", method="replace", prices=PRICES) as router:
            text = "".join("ab7,"[token % 4] for token in prompt(case))
            measured = router.complete(text, baseline=True).report()
            estimated = pair(case)
        with Router(estimated.fast, estimated.slow, policy="always", method="replace", prices=PRICES) as router:
            guess = router.complete(text).report()
        assert guess.slow_forwards.slow_only == measured.slow_forwards.slow_only == measured.slow_forwards.routed
        assert guess.flops.slow_only == measured.flops.slow_only
        assert guess.money_usd.slow_only == pytest.approx(measured.money_usd.slow_only)
        # One call per token: each token that it wrote is paid for once more, as input of the next call.
        written = measured.usage.slow_tokens
        extra = measured.money_usd.routed - measured.money_usd.slow_only
        assert extra == pytest.approx((written - 1) * PRICES.input / 1e6)


def test_a_certificate_holds_only_for_answers_like_those_of_calibration() -> None:
    """In the answer and its report: what is certified, or why not."""
    policy = Learned(logistic(), 0.5).certified(guarantee())
    models = pair(3)
    with Router(models.fast, models.slow, policy=policy) as router:
        assert router.method.name == "replace"  # the certificate's
        for options, reasons in (
            ({}, ()),
            ({"max_slow_calls": 2}, ("a cap",)),
            ({"temperature": 1.0}, ("the answer was sampled",)),
            ({"temperature": 1.0, "max_slow_calls": 2}, ("a cap", "the answer was sampled")),
            ({"max_tokens": 1}, ("the answer was cut off",)),
            ({"logit_bias": {0: 0.1}}, ("its tokens were masked",)),
            ({"stop_tokens": [0]}, ("it may end at stop tokens",)),
        ):
            answer = router.complete("b", **{"seed": 1, "max_tokens": 200, **options})
            assert answer.claim == answer.report().claim == Claim(SENTENCE, reasons)
        assert router.with_policy("entropy>1").complete("a").guarantee is None
    eager = Learned(logistic(), 0.0).certified(guarantee(0.0))
    failing = pair(3, slow_fails_after=0)
    with Router(failing.fast, failing.slow, policy=eager) as router:
        assert "the slow model failed" in router.complete("a").claim.reasons
