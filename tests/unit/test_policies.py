"""When to escalate: each policy by hand, the short forms, the rate that a budget holds."""

from __future__ import annotations

import random
import re
import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_pairs import answer, finish, make_engine, pair, prompt

from fsgen_router import REST, ConfigurationError, Context, Decision, Ledger, Signals
from fsgen_router.contracts.policy import hands_over
from fsgen_router.policies import (
    SHORT_FORMS,
    Always,
    AtPrompt,
    Budget,
    Capped,
    Every,
    Never,
    Random,
    Threshold,
    make_policy,
)
from fsgen_router.policies.shortform import FSGEN_FORMS
from fsgen_router.policies.thresholds import at_threshold, threshold_of
from fsgen_router.rows.reading import Read, Scratch, reduce_row
from fsgen_router.rows.signals import TOP_K, make_signals

SIGNALS = Signals(
    token_id=3,
    token_class=1,
    entropy_nats=1.0,
    varentropy=0.5,
    max_prob=0.6,
    margin=0.3,
    log_partition=2.0,
    top_ids=(3, 4),
    top_logprobs=(-0.5, -1.2),
)
CONTEXT = Context(position=0, since_escalation=0, slow_calls=0, slow_tokens=0, uniform=lambda: 0.5)


def decide(policy, signals=SIGNALS, state=None, **context):
    return policy.decide(policy.begin(Ledger()) if state is None else state, signals, replace(CONTEXT, **context))[1]


# --- each policy ---------------------------------------------------------------------------------


def test_never_and_always() -> None:
    assert not decide(Never()).escalate
    assert not Never().asks
    assert decide(Always()).escalate
    assert (decide(Always(3)).extent, decide(Always(REST)).extent) == (3, REST)
    assert Always().asks


@pytest.mark.parametrize("interval", [1, 2, 5])
def test_every(interval: int) -> None:
    policy = Every(interval)
    assert [decide(policy, since_escalation=since).escalate for since in range(6)] == [
        since + 1 >= interval for since in range(6)
    ]


def test_random_escalates_where_the_number_is_below_the_rate() -> None:
    assert decide(Random(0.3), uniform=lambda: 0.29).escalate
    assert not decide(Random(0.3), uniform=lambda: 0.3).escalate
    assert not decide(Random(0.0), uniform=lambda: 0.0).escalate
    assert decide(Random(1.0), uniform=lambda: 0.9999).escalate


def test_random_holds_its_rate_over_many_tokens() -> None:
    escalations = decisions = 0
    for case in range(300):
        usage = answer(pair(case), "random:0.3", prompt(case), seed=case).usage
        escalations, decisions = escalations + usage.escalations, decisions + usage.decisions
    # Binomial: five standard deviations.
    assert abs(escalations / decisions - 0.3) < 5 * (0.21 / decisions) ** 0.5


@pytest.mark.parametrize(
    ("signal", "value"),
    [("entropy", 1.0), ("varentropy", 0.5), ("max_prob", 0.6), ("margin", 0.3), ("delta", 0.15)],
)
def test_a_threshold_is_strict_and_has_a_side(signal: str, value: float) -> None:
    for above in (True, False):
        assert decide(Threshold(signal, value - 0.01, above)).escalate == above
        assert decide(Threshold(signal, value + 0.01, above)).escalate != above
        assert not decide(Threshold(signal, value, above)).escalate
    decision = decide(Threshold(signal, 0.2, True, extent=4))
    assert (decision.score, decision.threshold, decision.extent, decision.reason) == (value, 0.2, 4, signal)


def test_a_window_averages_and_begins_anew_after_an_escalation() -> None:
    policy = Threshold("entropy", 1.0, True, window=3)
    state, decisions = policy.begin(Ledger()), []
    for entropy in (0.5, 1.0, 1.4, 1.0, 5.0, 0.9, 0.9):
        state, decision = policy.decide(state, replace(SIGNALS, entropy_nats=entropy), CONTEXT)
        decisions.append((decision.escalate, round(decision.score, 6)))
    assert decisions == [
        (False, 0.5),
        (False, 0.75),
        (False, round(2.9 / 3, 6)),
        (True, round(3.4 / 3, 6)),
        (True, 5.0),
        (False, 0.9),
        (False, 0.9),
    ]


def test_a_state_is_a_value_that_a_rewind_can_restore() -> None:
    for policy in (Threshold("entropy", 1.0, True, window=3), Budget(0.2), Every(2)):
        state = policy.begin(Ledger())
        hash(state)
        later, first = policy.decide(state, SIGNALS, CONTEXT)
        policy.decide(later, SIGNALS, CONTEXT)
        assert policy.decide(state, SIGNALS, CONTEXT) == (later, first)


# --- caps ----------------------------------------------------------------------------------------


def test_a_cap_on_calls() -> None:
    policy = Capped(Always(4), max_calls=2)
    assert decide(policy, slow_calls=1).escalate
    over = decide(policy, slow_calls=2)
    assert (over.escalate, over.reason) == (False, "cap on slow calls")


@pytest.mark.parametrize(("extent", "used", "expected"), [(4, 0, 4), (4, 3, 2), (REST, 1, 4), (1, 4, 1)])
def test_a_cap_on_tokens_shortens_the_span(extent: int, used: int, expected: int) -> None:
    assert decide(Capped(Always(extent), max_tokens=5), slow_tokens=used).extent == expected
    assert decide(Capped(Always(extent), max_tokens=5), slow_tokens=5).reason == "cap on slow tokens"


def test_a_cap_lets_the_policy_through_where_it_accepts() -> None:
    policy = Capped(Threshold("entropy", 2.0, True), max_calls=1)
    assert decide(policy).reason == "entropy"
    assert (policy.name, policy.asks) == ("entropy>2", True)
    assert not Capped(Never(), max_calls=3).asks


@given(
    case=st.integers(0, 10_000), calls=st.integers(0, 5), tokens=st.integers(0, 9), extent=st.sampled_from([1, 3, REST])
)
def test_caps_hold_in_every_answer(case: int, calls: int, tokens: int, extent: int) -> None:
    usage = answer(pair(case), Capped(Every(2, extent), calls, tokens), prompt(case)).usage
    assert usage.escalations <= calls
    assert usage.slow_tokens <= tokens


# --- the budget ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.6])
@pytest.mark.parametrize(
    ("signal", "method"), [("entropy", "replace"), ("varentropy", "replace"), ("entropy", "verify")]
)
def test_a_budget_holds_its_rate_over_requests(rate: float, signal: str, method: str) -> None:
    """|rate - target| = |q_T - q_0| / (step T) to the last digit, and so the rate is near the target; also
    where drafts are taken back, since what was asked of the slow model was asked."""
    policy, ledger = Budget(rate, signal=signal), Ledger()
    for case in range(400):
        models = pair(case)
        finish(make_engine(models, policy, prompt(case), ledger=ledger, method=method), models)
        moved = ledger.recall(policy._key, policy.start) - policy.start
        found = ledger.escalations / ledger.decisions
        assert found - rate == pytest.approx(moved / (policy.step * ledger.decisions), abs=1e-9)
    assert ledger.decisions > 2000
    assert found == pytest.approx(rate, abs=0.03)


@given(
    scores=st.lists(st.floats(0, 12), min_size=1, max_size=80),
    rate=st.floats(0, 1),
    step=st.floats(0.001, 1),
    start=st.floats(0, 5),
)
def test_the_identity_holds_on_any_scores(scores: list[float], rate: float, step: float, start: float) -> None:
    policy, ledger = Budget(rate, step=step, start=start), Ledger()
    state, escalated = policy.begin(ledger), 0
    for score in scores:
        state, decision = policy.decide(state, replace(SIGNALS, entropy_nats=score), CONTEXT)
        assert decision.escalate == (score > decision.threshold)
        escalated += decision.escalate
    policy.end(state, ledger)
    moved = ledger.recall(policy._key, start) - start
    assert moved == pytest.approx(step * (escalated - rate * len(scores)), abs=1e-9)


def test_concurrent_requests_add_up() -> None:
    """Each works on its own copy of the threshold; at the end their changes are summed."""
    policy, ledger = Budget(0.2), Ledger()
    states = [policy.begin(ledger) for _ in range(8)]
    rng, changes = random.Random(0), []
    for number, state in enumerate(states):
        for _ in range(20 + number):
            state, _ = policy.decide(state, replace(SIGNALS, entropy_nats=rng.random() * 3), CONTEXT)
        states[number] = state
        changes.append(state[1])
    threads = [threading.Thread(target=policy.end, args=(state, ledger)) for state in reversed(states)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.recall(policy._key, policy.start) == pytest.approx(policy.start + sum(changes))


def test_two_budgets_in_one_ledger_do_not_mix() -> None:
    ledger = Ledger()
    one, other = Budget(0.1), Budget(0.3)
    state, _ = one.decide(one.begin(ledger), SIGNALS, CONTEXT)
    one.end(state, ledger)
    assert other.begin(ledger) == (other.start, 0.0)


def test_a_budget_follows_the_uncertain_side_only() -> None:
    with pytest.raises(ConfigurationError, match="entropy or varentropy"):
        Budget(0.2, signal="max_prob")


# --- short forms ---------------------------------------------------------------------------------

FORMS = {
    "never": Never(),
    "always": Always(),
    "always,span=4": Always(4),
    "always,span=rest": Always(REST),
    "every:8": Every(8),
    "every:8,span=2": Every(8, 2),
    "random:0.1": Random(0.1),
    "random:0": Random(0.0),
    "entropy>1.2": Threshold("entropy", 1.2, True),
    "entropy > 1.2 , span=8": Threshold("entropy", 1.2, True, 8),
    "varentropy>2": Threshold("varentropy", 2.0, True),
    "max_prob<0.6": Threshold("max_prob", 0.6, False),
    "margin<.4,window=4": Threshold("margin", 0.4, False, 1, 4),
    "margin<0.4,window=4,span=rest": Threshold("margin", 0.4, False, REST, 4),
    "entropy>-1e-3": Threshold("entropy", -0.001, True),
    "budget:0.2": Budget(0.2),
    "budget:0.2,span=3": Budget(0.2, extent=3),
    "  never ": Never(),
    "none": Never(),
    "normal": Always(),
    "normal,span=2": Always(2),
    "threshold": Threshold("max_prob", 0.5, False),
    "threshold:0.7": Threshold("max_prob", 0.7, False),
    "threshold:0.7,span=3,window=2": Threshold("max_prob", 0.7, False, 3, 2),
    "delta": Threshold("delta", 0.2, False),
    "delta:0.1": Threshold("delta", 0.1, False),
    "delta<0.1,span=8": Threshold("delta", 0.1, False, 8),
}


@pytest.mark.parametrize("form", FORMS)
def test_short_forms(form: str) -> None:
    policy = make_policy(form)
    assert policy == FORMS[form]
    # A policy's name is the short form that makes it again.
    assert make_policy(policy.name) == policy


def test_what_is_listed_exists() -> None:
    assert {make_policy(form).name for form in SHORT_FORMS} == set(SHORT_FORMS)
    assert [make_policy(form).name for form in FSGEN_FORMS] == ["never", "always", "max_prob<0.5", "delta<0.2"]


def test_fs_gens_routers_decide_as_its_code_does() -> None:
    """On random rows, by the formulas of its paper: max p < t, and (p1 - p2) / 2 < t."""
    rng = np.random.default_rng(0)
    asked = {"threshold": 0, "delta": 0}
    for _ in range(500):
        logits = (rng.normal(size=200) * rng.choice([0.5, 2.0, 6.0])).astype(np.float32).astype(np.float64)
        signals = make_signals(reduce_row(logits.astype(np.float32), Read(signals=True, top_k=TOP_K), Scratch()), 0)
        p = np.sort(np.exp(logits - np.logaddexp.reduce(logits)))[::-1]
        limit = round(float(rng.uniform(0.02, 0.6)), 3)
        for router, value in (("threshold", p[0]), ("delta", (p[0] - p[1]) / 2)):
            decision = decide(make_policy(f"{router}:{limit}"), signals)
            assert decision.escalate == (value < limit)
            assert decision.score == pytest.approx(float(value), abs=1e-5)
            asked[router] += decision.escalate
        assert decide(make_policy("normal"), signals).escalate
        assert not decide(make_policy("none"), signals).escalate
    assert all(50 < count < 450 for count in asked.values())


def test_an_object_is_taken_as_it_is() -> None:
    policy = Threshold("entropy", 1.0, True)
    assert make_policy(policy) is policy


WRONG = {
    "": "unknown policy",
    "nevr": "unknown policy",
    "never:1": "unknown policy",
    "never,span=3": "unknown policy",
    "always:2": "unknown policy",
    "every": "unknown policy",
    "every:": "unknown policy",
    "every>3": "unknown policy",
    "every:0": "at least 1",
    "every:-2": "at least 1",
    "every:2.5": "not a whole number",
    "every:x": "not a whole number",
    "every:1e3": "not a whole number",
    "random:1.1": "between 0 and 1",
    "random:-0.1": "between 0 and 1",
    "random:x": "not a number",
    "random:nan": "not a number",
    "budget:2": "between 0 and 1",
    "budget:inf": "not a number",
    "entropy": "unknown policy",
    "entropy:1": "unknown policy",
    "entropy>": "unknown policy",
    "entropy>much": "not a number",
    "entropy>>1": "unknown policy",
    "entropy<1": "sure.*write entropy>",
    "varentropy<1": "sure.*write varentropy>",
    "max_prob>0.5": "sure.*write max_prob<",
    "margin>0.5": "sure.*write margin<",
    "surprise>1": "unknown policy",
    "entropy>1,windw=3": "unknown option 'windw=3'",
    "entropy>1,window": "unknown option 'window'",
    "entropy>1,window=": "unknown option 'window='",
    "entropy>1,window=0": "window=0.*at least 1",
    "entropy>1,window=-3": "window=-3.*at least 1",
    "entropy>1,window=x": "not a whole number",
    "entropy>1,window=rest": "not a whole number",
    "entropy>1,span=0": "span=0.*at least 1",
    "entropy>1,span=-1": "span=-1.*at least 1",
    "entropy>1,,": "unknown option ''",
    "every:2,window=3": "window does not go with 'every'",
    "entropy>1;never": "unknown policy",
    "none:1": "unknown policy",
    "normal:1": "unknown policy",
    "none,window=2": "window does not go with 'none'",
    "threshold<0.5": "unknown policy",
    "threshold:much": "not a number",
    "delta>0.2": "sure.*write delta<",
}


@pytest.mark.parametrize("form", WRONG)
def test_wrong_short_forms_say_what_exists(form: str) -> None:
    with pytest.raises(ConfigurationError, match=re.compile(WRONG[form], re.DOTALL)) as raised:
        make_policy(form)
    assert raised.value.hint


@pytest.mark.parametrize(
    "thing", [None, 5, object(), b"never", Never, ["never"]], ids=lambda thing: type(thing).__name__
)
def test_what_is_no_policy(thing: object) -> None:
    with pytest.raises(ConfigurationError, match="is not a policy"):
        make_policy(thing)


@pytest.mark.parametrize("missing", ["name", "asks", "begin", "end"])
def test_a_policy_that_lacks_a_part_is_refused_where_it_is_given(missing: str) -> None:
    class Partial:
        name, asks = "partial", True

        def begin(self, ledger: Ledger) -> None:
            return None

        def decide(self, state: None, signals: Signals, context: Context) -> tuple[None, Decision]:
            return state, Decision(False)

        def end(self, state: None, ledger: Ledger) -> None:
            return None

    assert make_policy(Partial()).asks
    delattr(Partial, missing)
    with pytest.raises(ConfigurationError, match=f"the policy Partial has no {missing}"):
        make_policy(Partial())


def test_wrong_parameters() -> None:
    for make in (
        lambda: Always(0),
        lambda: Always(-2),
        lambda: Every(0),
        lambda: Random(1.5),
        lambda: Threshold("surprise", 1.0, True),
        lambda: Threshold("entropy", 1.0, True, window=0),
        lambda: Threshold("entropy", 1.0, True, extent=0),
        lambda: Budget(-0.1),
        lambda: Budget(0.1, step=0),
        lambda: Budget(0.1, extent=-5),
        lambda: Capped(Never(), max_calls=-1),
        lambda: Capped(Never(), max_tokens=-1),
    ):
        with pytest.raises(ConfigurationError):
            make()


# --- at the prompt -------------------------------------------------------------------------------


def test_deciding_at_the_prompt_is_deciding_once() -> None:
    policy = make_policy("entropy>1.2,at=prompt")
    assert isinstance(policy, AtPrompt)
    assert policy.asks
    state = policy.begin(Ledger())
    state, first = policy.decide(state, replace(SIGNALS, entropy_nats=2.0), replace(CONTEXT, position=0))
    assert (first.escalate, first.extent, first.score) == (True, REST, 2.0)
    state, sure = policy.decide(
        policy.begin(Ledger()), replace(SIGNALS, entropy_nats=1.0), replace(CONTEXT, position=0)
    )
    assert not sure.escalate
    state, later = policy.decide(state, replace(SIGNALS, entropy_nats=9.0), replace(CONTEXT, position=1))
    assert not later.escalate
    assert later.reason == "decided at the prompt"


def test_a_budget_of_prompts_is_held_apart_from_one_of_tokens() -> None:
    ledger = Ledger()
    prompts, tokens = make_policy("budget:0.9,at=prompt"), make_policy("budget:0.9")
    for entropy in (0.1, 0.2, 0.3):
        state, _ = prompts.decide(
            prompts.begin(ledger), replace(SIGNALS, entropy_nats=entropy), replace(CONTEXT, position=0)
        )
        state, _ = prompts.decide(
            state, replace(SIGNALS, entropy_nats=5.0), replace(CONTEXT, position=1)
        )  # no decision of this budget
        prompts.end(state, ledger)
    assert tokens.begin(ledger) == tokens.begin(Ledger())
    _, (first, _) = prompts.begin(ledger)
    assert first == pytest.approx(3 * 0.05 * (1.0 - 0.9))  # all three were above: it asks until it knows better


@pytest.mark.parametrize(
    "form", ["every:3,at=prompt", "never,at=prompt", "budget:0.2,at=prompt,span=3", "entropy>1,window=3,at=prompt"]
)
def test_what_cannot_be_decided_at_the_prompt_is_refused(form: str) -> None:
    with pytest.raises(ConfigurationError, match=r"at=prompt does not go .*threshold, a budget or random"):
        make_policy(form)
    with pytest.raises(ConfigurationError, match="unknown option 'at=now'"):
        make_policy("entropy>1,at=now")


def test_who_hands_everything_over() -> None:
    always = make_policy("always,span=rest")
    assert hands_over(always)
    assert hands_over(Capped(always, max_calls=1))
    for policy in (
        make_policy("always"),
        make_policy("always,span=8"),
        make_policy("entropy>1,span=rest"),
        Capped(always, max_calls=0),
        Capped(always, max_tokens=9),
    ):
        assert not hands_over(policy)


# --- a threshold that is moved -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "moved", "side"),
    [
        ("entropy>1.2", "entropy>0.25", "above"),
        ("varentropy>2,span=4,window=3", "varentropy>0.25,span=4,window=3", "above"),
        ("max_prob<0.6,span=sentence,max=64", "max_prob<0.25,span=sentence,max=64", "below"),
        ("margin<0.4,span=rest,draft=drop", "margin<0.25,span=rest,draft=drop", "below"),
        ("delta<0.2,at=prompt", "delta<0.25,at=prompt", "below"),
        ("entropy>9", "entropy>0.25", "above"),
    ],
)
def test_a_threshold_is_found_and_moved_wherever_it_sits(form: str, moved: str, side: str) -> None:
    for policy in (make_policy(form), Capped(make_policy(form), 3)):
        found = threshold_of(policy)
        assert found is not None
        assert (found.asks, found.curve, found.certified) == (side, (), None)
        assert found.low <= found.value <= found.high
        assert at_threshold(policy, found.value) == policy
        after = at_threshold(policy, 0.25)
        assert after.name == moved
        assert type(after) is type(policy)
        assert threshold_of(after) == replace(found, value=0.25, high=min(found.high, 6.0 if "var" in form else 4.0))


@pytest.mark.parametrize("form", ["never", "always", "every:4", "random:0.1", "budget:0.2", "best_of:2,vote>0.5"])
def test_a_policy_without_a_threshold_has_none_to_move(form: str) -> None:
    assert threshold_of(make_policy(form)) is None
    with pytest.raises(ConfigurationError, match="has none to set"):
        at_threshold(make_policy(form), 0.5)
    with pytest.raises(ConfigurationError, match="no number"):
        at_threshold(make_policy("entropy>1"), float("nan"))
