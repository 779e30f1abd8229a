"""Drafts judged by the slow model's rows: lossless where it must be, and what the rules do else."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scripted_pairs import (
    EOG,
    N_VOCAB,
    Pair,
    answer,
    finish,
    greedy,
    ids_of,
    make_engine,
    pair,
    prompt,
    tokenizer,
)

from fsgen_router import ConfigurationError, Decision, Mask
from fsgen_router.adapters.scripted import ScriptedModel
from fsgen_router.methods import Replace, Verify, make_method
from fsgen_router.policies import Capped, Every
from fsgen_router.rows.acceptance import RULES, Check, Rule, first_rejected, target
from fsgen_router.rows.reading import GREEDY, Read, Scratch, Warp, dense, reduce_row, softmax
from fsgen_router.run import drivers

CASE = st.integers(min_value=0, max_value=100_000)
WARPS = (Warp(), Warp(temperature=0.7), Warp(temperature=1.3, top_k=4), Warp(temperature=1.0, top_p=0.8))


# --- lossless ------------------------------------------------------------------------------------


@given(
    case=CASE,
    interval=st.integers(1, 9),
    more=st.integers(0, 4),
    limit=st.integers(1, 30),
    warp=st.sampled_from(WARPS),
    stop=st.sampled_from([(), ("ab",), (",", "é"), ("stop",)]),
    read_ahead=st.sampled_from([0, 0, 1, 3]),
)
@settings(max_examples=400)
def test_exact_verification_is_the_slow_models_own_text(
    case: int, interval: int, more: int, limit: int, warp: Warp, stop: tuple[str, ...], read_ahead: int
) -> None:
    """Speculative decoding: greedy, and sampled with the numbers that the slow model would draw."""
    models, ids = pair(case), prompt(case)
    options = {"warp": warp, "seed": case, "max_tokens": limit, "stop": stop}
    alone = answer(Pair(models.slow, models.fast), "never", ids, **options)
    found = answer(
        models,
        f"every:{interval}",
        ids,
        method=f"verify:exact,draft_len={interval + more}",
        read_ahead=read_ahead,
        **options,
    )
    assert ids_of(found) == ids_of(alone)
    assert (found.text, found.finish_reason) == (alone.text, alone.finish_reason)
    assert all(token.source == "slow" or token.verified for token in found.tokens)


class _Fixed:
    """A constraint that forbids some tokens, and leaves one choice at every third place, or at ``forced`` of five."""

    def __init__(self, case: int, forced: int = 0) -> None:
        self.rng, self.forced = case, forced

    def mask(self, ids: Sequence[int]) -> Mask:
        allowed = np.ones(N_VOCAB, bool)
        allowed[(self.rng + len(ids)) % 7] = False
        if len(ids) % 5 < self.forced if self.forced else len(ids) % 3 == 2:
            allowed[:] = False
            allowed[(self.rng * 31 + len(ids)) % N_VOCAB] = True
        return Mask(allowed=allowed)


@given(case=CASE, interval=st.integers(1, 6), limit=st.integers(1, 25))
@settings(max_examples=300)
def test_exact_verification_under_a_mask(case: int, interval: int, limit: int) -> None:
    models, ids = pair(case), prompt(case)
    options = {"constraint": _Fixed(case), "max_tokens": limit}
    alone = answer(Pair(models.slow, models.fast), "never", ids, **options)
    found = answer(models, Every(interval), ids, method="verify", **options)
    assert ids_of(found) == ids_of(alone)


def test_what_a_mask_forces_costs_no_slow_forward() -> None:
    """Inside a slow span, and behind drafts that are about to be judged."""
    for case in range(100):
        models, ids = pair(case), prompt(case)
        for policy in ("every:2,span=3", "every:1,span=rest", "every:5,span=2"):
            found = answer(models, policy, ids, method="verify", constraint=_Fixed(case, forced=4), max_tokens=25)
            assert all(token.decision.reason == "forced" for at, token in enumerate(found.tokens) if at % 5 < 4)
            assert all(work.reads for work in models.slow.works)  # nor does it read what nobody asks about


def test_a_forward_judges_the_drafts_and_writes_one_more() -> None:
    """A pair that always agrees: K drafts and a bonus token for each forward of the slow model."""
    models = pair(5)
    twins = Pair(models.fast, ScriptedModel(models.fast.script, models.fast.tokenizer, name="slow"))
    for interval in (1, 2, 4, 8):
        found = answer(twins, f"every:{interval}", [0, 1, 2], max_tokens=200, method="verify:exact,draft_len=8")
        usage = found.usage
        assert ids_of(found) == greedy(models.fast.script, [0, 1, 2], 200)
        assert usage.corrections == usage.discarded_tokens == 0
        whole, rest = divmod(usage.tokens, interval + 1)
        assert usage.bonus_tokens == whole
        assert usage.slow_forwards == whole + bool(rest)
        # Nothing is read twice: every position once, all but the last.
        assert usage.slow.cached + usage.slow_positions == usage.prompt_tokens + usage.tokens - 1


def test_a_correction_reads_again_only_what_changed() -> None:
    for case in range(200):
        found = answer(pair(case), "every:4", prompt(case), method="verify", max_tokens=40)
        usage = found.usage
        assert usage.slow_positions <= usage.prompt_tokens + usage.tokens + usage.discarded_tokens
        assert usage.slow_forwards <= usage.tokens
        assert usage.tokens == usage.slow_tokens + sum(token.verified for token in found.tokens)


# --- gated by a policy ---------------------------------------------------------------------------


@given(
    case=CASE,
    policy=st.sampled_from(["entropy>1.5", "random:0.3,span=2", "margin<0.2", "every:5,span=rest"]),
    rule=st.sampled_from(
        ["exact", "near_best=0.5", "near_best=1", "entropy_gate=1.5,window=2", "chow=0.3", "token=0.5", "speculative"]
    ),
    draft_len=st.integers(1, 6),
    warp=st.sampled_from(WARPS),
)
@settings(max_examples=300)
def test_what_stands_is_what_a_model_wrote(case: int, policy: str, rule: str, draft_len: int, warp: Warp) -> None:
    models, ids = pair(case), prompt(case)
    method = f"verify:{rule},draft_len={draft_len}"
    found, shown = finish(make_engine(models, policy, ids, method=method, warp=warp, seed=2), models)
    assert "".join(shown) == found.text
    assert models.all_free
    usage = found.usage
    assert usage.slow_tokens == sum(token.source == "slow" for token in found.tokens)
    assert usage.corrections + usage.bonus_tokens <= usage.slow_tokens
    for at, token in enumerate(found.tokens):
        if warp.greedy and token.source == "fast" and token.fast_choice is not None:
            row = models.fast.script([*ids, *ids_of(found)[:at]])
            assert token.id == int(np.argmax(row))
        if warp.greedy and token.source == "slow":
            row = models.slow.script([*ids, *ids_of(found)[:at]])
            assert token.id == int(np.argmax(row))


def test_never_escalating_is_the_fast_models_own_text() -> None:
    for case in range(200):
        models, ids = pair(case), prompt(case)
        found = answer(models, "never", ids, method="verify")
        assert ids_of(found) == greedy(models.fast.script, ids, 24)
        assert models.slow.works == []


def test_at_most_draft_len_tokens_are_held_back() -> None:
    """And what was streamed is never taken back."""
    for case in range(100):
        for draft_len in (1, 3, 8):
            models, ids = pair(case), prompt(case)
            engine = make_engine(models, "entropy>2.2", ids, method=f"verify:exact,draft_len={draft_len}")
            streamed: list[int] = []
            for emit in drivers.run(engine, models.models):
                assert len(engine.state.held) <= draft_len + 1
                if emit.token is not None:
                    streamed.append(emit.token.id)
            assert streamed == ids_of(engine.generation)


def test_a_rollback_takes_the_policy_back() -> None:
    """A policy that counts what it has seen in this text counts what stands, not what was discarded."""

    class Counting:
        asks, name, checks_end = True, "counting", True

        def __init__(self) -> None:
            self.seen: list[tuple[int, int]] = []

        def begin(self, ledger):
            return 0

        def decide(self, state, signals, context):
            self.seen.append((state, context.position))
            return state + 1, Decision(context.since_escalation >= 4)

        def end(self, state, ledger) -> None:
            return None

    for case in range(50):
        policy = Counting()
        models, ids = pair(case), prompt(case)
        found = answer(models, policy, ids, method="verify", max_tokens=40)
        bonus = 0
        # One decision for each position that stands, but for the slow model's bonus tokens.
        for state, position in policy.seen:
            assert state <= position
            bonus = max(bonus, position - state)
        assert bonus <= found.usage.bonus_tokens
        assert found.usage.decisions == len(policy.seen)


def test_a_rollback_begins_a_new_window() -> None:
    """As every escalation does: a mean is over the fast model's tokens that followed the slow model's last one."""
    behind_corrections = 0
    for case in range(100):
        models, ids = pair(case), prompt(case)
        found = answer(models, "entropy>1.6,window=3", ids, method="verify", max_tokens=40)
        entropies: list[float] = []
        for before, token in zip([None, *found.tokens], found.tokens, strict=False):
            if token.source == "slow":
                entropies = []
                continue
            entropies = [*entropies, token.signals.entropy_nats][-3:]
            assert token.decision.score == pytest.approx(sum(entropies) / len(entropies))
            behind_corrections += before is not None and before.source == "slow" and before.signals is not None
            if token.decision.escalate:
                entropies = []
    assert behind_corrections > 50


def test_a_failing_slow_model_costs_no_draft() -> None:
    for case in range(60):
        models, ids = pair(case, slow_fails_after=case % 4), prompt(case)
        found, shown = finish(make_engine(models, "every:3", ids, method="verify"), models)
        assert "".join(shown) == found.text
        if found.degraded:
            assert "BackendError" in found.degraded
        assert models.all_free


def test_a_cap_leaves_the_end_unchecked() -> None:
    """The guard goes before losslessness: it was asked for by name."""
    for case in range(50):
        for caps in ({"max_calls": 1}, {"max_tokens": 1}, {"max_calls": 0}):
            found = answer(pair(case), Capped(Every(4), **caps), prompt(case), method="verify", max_tokens=7)
            assert found.usage.escalations <= caps.get("max_calls", 100)
            assert found.usage.slow_tokens <= caps.get("max_tokens", 100)


def test_caps_that_do_not_bind_change_nothing() -> None:
    """The end of an answer is judged under them as without them, so exact verification stays lossless."""
    for case in range(100):
        models, ids = pair(case), prompt(case)
        capped = Capped(Capped(Every(4), max_calls=100), max_tokens=100)
        found = answer(models, capped, ids, method="verify", max_tokens=7)
        assert ids_of(found) == greedy(models.slow.script, ids, 7)
        assert all(token.source == "slow" or token.verified for token in found.tokens)


@pytest.mark.parametrize("method", ["replace", "verify"])
@pytest.mark.parametrize("extent", [0, -2])
def test_an_extent_of_no_tokens_is_refused(method: str, extent: int) -> None:
    """It would be asked for at the same position for ever."""

    class Nothing(Every):
        def decide(self, state, signals, context):
            return state, Decision(True, extent)

    with pytest.raises(ConfigurationError, match=f"escalates for {extent} tokens"):
        answer(pair(3), Nothing(2), prompt(3), method=method)


# --- distributions -------------------------------------------------------------------------------


def _markov(seed: int, sharpness: float) -> tuple[np.ndarray, ScriptedModel]:
    """A model whose next token depends on the last one alone, so that draws can be pooled."""
    table = np.random.default_rng(seed).normal(size=(N_VOCAB, N_VOCAB)).astype(np.float32) * sharpness
    table[:, sorted(EOG)] = -30.0
    return table, ScriptedModel(lambda ids: table[ids[-1]], tokenizer(), name=f"markov-{seed}", n_ctx=100_000)


@pytest.mark.parametrize(
    ("rule", "draws"),
    [
        ("speculative", 32_000),
        ("exact", 12_000),
        ("near_best=0.6", 12_000),
        ("token=0.6", 12_000),
        ("chow=0.6", 12_000),
        ("difference=0.1", 12_000),
        ("optimal=0.5", 12_000),
    ],
)
def test_what_is_written_follows_the_rules_distribution(rule: str, draws: int) -> None:
    """Each judged token, given the one before it, follows the rule's target (chi-square)."""
    slow_table, slow = _markov(1, 1.2)
    fast_table, fast = _markov(2, 0.7)
    fast_table += 0.6 * slow_table
    warp = Warp(temperature=0.9, top_p=0.95)
    models, method = Pair(fast, slow), make_method(f"verify:{rule}")
    counts = np.zeros((N_VOCAB, N_VOCAB))
    for seed in range(8):
        found = answer(models, "every:3", [seed], method=method, warp=warp, seed=seed, max_tokens=draws // 8)
        for before, token in zip([seed, *ids_of(found)], found.tokens, strict=False):
            # A bonus token, where the fast model was not asked, is the slow model's own.
            counts[before, token.id] += token.fast_choice is not None or rule in ("speculative", "exact")
    assert counts.sum() > draws / 2
    statistic = freedom = 0.0
    for last, observed in enumerate(counts):
        wanted = _wanted(method.rule, slow_table[last], fast_table[last], warp)
        assert observed[wanted == 0].sum() == 0
        expected = observed.sum() * wanted
        usable = expected > 5
        if usable.any():
            rest = observed.sum() - observed[usable].sum(), observed.sum() - expected[usable].sum()
            statistic += float(((observed[usable] - expected[usable]) ** 2 / expected[usable]).sum())
            statistic += (rest[0] - rest[1]) ** 2 / rest[1] if rest[1] > 5 else 0.0
            freedom += usable.sum() - (rest[1] <= 5)
    assert stats.chi2.sf(statistic, freedom) > 1e-4, (statistic, freedom)


def _wanted(rule: Rule, slow: np.ndarray, fast: np.ndarray, warp: Warp) -> np.ndarray:
    warped_p, warped_q = dense(slow, warp), dense(fast, warp)
    if rule.name in ("exact", "speculative"):
        return warped_p
    if rule.name == "near_best":  # accepted where near best, else drawn again: the same distribution
        rule = Rule("token", rule.tolerance)
    return target(rule, softmax(slow), softmax(fast), warped_p, warped_q)


# --- the rules alone -----------------------------------------------------------------------------


def _judged(slow: np.ndarray, fast: np.ndarray, token: int, rule: str, warp: Warp = GREEDY, **uniforms: float):
    check = Check(token=token, rule=make_method(f"verify:{rule}").rule, fast_logits=fast, **uniforms)
    row = reduce_row(slow, Read(check=check, ids=(token,), warp=warp), Scratch())
    return row.accepted, row.token


def test_rules_at_temperature_zero_choose_between_both_best_tokens() -> None:
    slow = np.log(np.array([0.5, 0.4, 0.06, 0.04], np.float32))
    sure, unsure = (np.log(np.array(q, np.float32)) for q in ([0.04, 0.9, 0.03, 0.03], [0.1, 0.45, 0.25, 0.2]))
    for rule, fast, stands in (
        ("exact", sure, False),
        ("speculative", sure, False),
        ("near_best=0.1", sure, False),
        ("near_best=0.3", sure, True),  # 0.4 >= 0.7 * 0.5
        ("chow=0.2", sure, True),  # the fast model is sure enough
        ("chow=0.2", unsure, False),
        ("difference=0.1", unsure, True),  # 0.45 >= 0.5 - 0.1
        ("difference=0.01", unsure, False),
        ("optimal=1", unsure, True),
        ("optimal=0", unsure, False),
        ("token=0.3", unsure, True),
        ("token=0.1", unsure, False),
    ):
        assert _judged(slow, fast, 1, rule) == (stands, 1 if stands else 0), rule


def test_the_slow_models_best_token_always_stands_at_temperature_zero() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        slow, fast = rng.normal(size=(2, 12)).astype(np.float32) * 3
        fast[slow.argmax()] = fast.max() + 1
        for name in RULES:
            rule = name if name in ("exact", "speculative") else f"{name}=0.3"
            assert _judged(slow, fast, int(fast.argmax()), rule) == (True, int(slow.argmax())), name


def test_a_rejected_draft_is_never_drawn_again_by_speculative_sampling() -> None:
    rng = np.random.default_rng(1)
    warp = Warp(temperature=1.0)
    rejected = 0
    for _ in range(500):
        slow, fast = rng.normal(size=(2, 8)).astype(np.float32) * 2
        draft = int(rng.integers(8))
        uniforms = {"accept_uniform": rng.random(), "residual_uniform": rng.random()}
        stands, token = _judged(slow, fast, draft, "speculative", warp, **uniforms)
        assert stands == (token == draft)
        rejected += not stands
    assert rejected > 50


# --- entropy gating ------------------------------------------------------------------------------


def _gated(drafts: list[int], rows: np.ndarray, threshold: float, window: int) -> int:
    """FLy's rule in plain words (arXiv 2511.22972): how many drafts stand."""
    wrong = [draft != int(row.argmax()) for draft, row in zip(drafts, rows, strict=True)]
    for at, row in enumerate(rows):
        p = softmax(row)
        certain = -float((p * np.log(p)).sum()) <= threshold
        cut_off = at + window >= len(drafts)
        if wrong[at] and (certain or cut_off or any(wrong[at + 1 : at + 1 + window])):
            return at
    return len(drafts)


@given(case=CASE, window=st.integers(1, 6), threshold=st.sampled_from([0.0, 0.5, 1.0, 1.4]))
@settings(max_examples=400)
def test_the_gate_forgives_as_its_definition_says(case: int, window: int, threshold: float) -> None:
    rng = np.random.default_rng(case)
    rows = rng.normal(size=(12, 8)).astype(np.float32) * rng.choice([0.5, 1.5, 4.0], size=(12, 1)).astype(np.float32)
    drafts = [int(row.argmax()) if rng.random() < 0.8 else int(rng.integers(8)) for row in rows]
    rule = Rule("entropy_gate", threshold, window)
    read = [
        reduce_row(row, Read(signals=True, check=Check(token=draft, rule=rule)), Scratch())
        for draft, row in zip(drafts, rows, strict=True)
    ]
    stand = first_rejected(rule, [bool(row.accepted) for row in read], [row.entropy for row in read])
    assert stand == _gated(drafts, rows, threshold, window)


def test_other_rules_forgive_nothing() -> None:
    for rule in ("exact", "near_best", "speculative"):
        assert first_rejected(Rule(rule), [True, False, True, True], [9.0] * 4) == 1
    assert first_rejected(Rule("entropy_gate", 1.0, 1), [], []) == 0


@given(case=CASE, interval=st.integers(2, 8), window=st.integers(1, 4), threshold=st.sampled_from([0.0, 1.2, 2.0]))
@settings(max_examples=300)
def test_gated_answers_are_what_draft_and_verify_in_turns_write(
    case: int, interval: int, window: int, threshold: float
) -> None:
    """The whole loop against its definition: draft ``interval`` tokens, keep what stands, add the slow model's."""
    models, ids, limit = pair(case), prompt(case), 25
    written: list[int] = []
    while len(written) < limit and not (written and written[-1] in EOG):
        drafts: list[int] = []
        while len(drafts) < min(interval, limit - len(written)) and not (drafts and drafts[-1] in EOG):
            drafts.append(int(models.fast.script([*ids, *written, *drafts]).argmax()))
        rows = [models.slow.script([*ids, *written, *drafts[:at]]) for at in range(len(drafts))]
        stand = _gated(drafts, np.stack(rows), threshold, window)
        written += drafts[:stand]
        if len(written) < limit and not (stand and written[-1] in EOG):
            written.append(int(models.slow.script([*ids, *written]).argmax()))
    method = f"verify:entropy_gate={threshold},window={window},draft_len={interval}"
    assert ids_of(answer(models, f"every:{interval}", ids, method=method, max_tokens=limit)) == written


def test_a_gate_forgives_some_and_an_infinite_one_nothing() -> None:
    forgiven = 0
    for case in range(100):
        models, ids = pair(case), prompt(case)
        found = answer(models, "every:8", ids, method="verify:entropy_gate=1.5,window=1", max_tokens=40)
        forgiven += sum(token.verified and token.slow_choice != token.id for token in found.tokens)
        closed = answer(models, "every:8", ids, method="verify:entropy_gate=1e9,window=1", max_tokens=40)
        assert ids_of(closed) == greedy(models.slow.script, ids, 40)
    assert forgiven > 20


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("verify:", "unknown method"),
        ("verify:exakt", "did you mean 'exact'"),
        ("verify:near_best=2", "between 0 and 1"),
        ("verify:near_best=x", "not a number"),
        ("verify:exact=0.5", "takes no tolerance"),
        ("verify:exact,draft_len=0", "at least 1"),
        ("verify:entropy_gate=-1", "in nats, at least 0"),
        ("verify:entropy_gate=nan", "in nats, at least 0"),
        ("verify:entropy_gate=1,window=0", "at least 1 draft"),
        ("verify:near_best=0.5,window=3", "entropy_gate alone"),
        ("verify:exact,window=-1", "entropy_gate alone"),
        ("verify:entropy_gate=1,window=wide", "not a number"),
        ("verify:exact,draft_len=many", "not a number"),
        ("replace:3", "unknown method"),
        ("verfy", "examples: replace"),
        (object(), "not a method"),
        (Verify, "not a method"),
    ],
)
def test_a_wrong_method_is_refused_with_what_exists(method: object, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_method(method)


def test_short_forms_name_themselves() -> None:
    for form in (
        "replace",
        "verify:exact",
        "verify:near_best=0.5",
        "verify:speculative,draft_len=8",
        "verify:entropy_gate=0.5,window=3",
        "verify:entropy_gate=2,window=6,draft_len=12",
    ):
        assert make_method(form).name == form
    assert make_method("verify:entropy_gate=2").name == "verify:entropy_gate=2,window=6"  # its authors' window
    assert make_method("verify") == Verify()
    assert make_method("replace") == Replace()
