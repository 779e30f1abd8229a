"""Verified best of K: whole answers of the fast model's, of which a verifier picks one, or escalates."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel
from scripted_pairs import EOG, N_VOCAB, PIECES, Pair, greedy, ids_of, pair, script

from fsgen_router import (
    ConfigurationError,
    Finished,
    Generation,
    InvalidRequest,
    Mask,
    Router,
    TextDelta,
    VerifierFailed,
)
from fsgen_router.adapters.scripted import ScriptedTextModel
from fsgen_router.contracts.verifier import Draft
from fsgen_router.policies import BestOf, Capped, Check, Score, Vote, make_policy
from fsgen_router.policies.best_of import final_answer
from fsgen_router.rows.reading import Warp, choose_token, hashed_uniform

PROMPT, LIMIT, SEED = "a, b", 16, 5
IDS = [0, 6, 3, 1]  # the prompt's


def brief(case: int, **options: Any) -> Pair:
    """A pair that often agrees, and whose answers end by themselves."""
    models = pair(case, **options)
    scripts = (script(2 * case + model, shared=case, own=0.5, eog_bias=2.0) for model in (0, 1))
    models.fast.script, models.slow.script = scripts
    return models


def router_of(models: Pair, **options: Any) -> Router:
    return Router(models.fast, models.slow, policy="never", method="replace", **options)


def ask(models: Pair, policy: Any, *, batching: bool = False, **options: Any) -> Generation:
    with router_of(models, batching=batching) as router:
        return router.complete(PROMPT, policy=policy, **{"max_tokens": LIMIT, "seed": SEED, **options})


def written(models: Pair, number: int, temperature: float = 0.8) -> list[int]:
    """An answer of the fast model's by the plainest loop: the first is greedy, the others are drawn."""
    key = hashlib.blake2b(repr(IDS).encode(), digest_size=8).hexdigest()
    warp = Warp(temperature=temperature if number else 0.0)
    ids: list[int] = []
    while len(ids) < LIMIT and not (ids and ids[-1] in EOG):
        uniform = hashed_uniform(SEED, f"{key}/{number}", len(ids), "token")
        ids.append(choose_token(models.fast.script([*IDS, *ids]), warp, uniform)[0])
    return ids


def text_of(ids: Sequence[int]) -> str:
    return b"".join(PIECES[token] for token in ids if token < 18).decode(errors="replace")


def score_of(models: Pair, ids: Sequence[int]) -> float | None:
    """The slow model's mean log-probability; None for what is no answer."""
    if ids[-1] not in EOG or not text_of(ids).strip():
        return None
    rows = [models.slow.script([*IDS, *ids[:at]]).astype(np.float64) for at in range(len(ids))]
    return float(np.mean([row[token] - np.logaddexp.reduce(row) for row, token in zip(rows, ids, strict=True)]))


def read_for(answers: Sequence[Sequence[int]]) -> tuple[int, int]:
    """The slow model's forwards, and positions, over answers one after the other."""
    forwards = positions = 0
    for number, ids in enumerate(answers):
        if any(list(other[: len(ids)]) == list(ids) for other in answers[:number]):
            continue
        last = next((a for a in reversed(answers[:number])), [])
        known = next((at for at, (x, y) in enumerate(zip(last, ids, strict=False)) if x != y), min(len(last), len(ids)))
        forwards += 1
        positions += len(IDS) + len(ids) - 1 if number == 0 else len(ids) - known
    return forwards, positions


def test_it_is_the_plain_loop_and_counts_all_that_it_reads() -> None:
    """Texts, scores, the verdict and every counter, of many random pairs, by ten plain lines each."""
    seen = {"picked": 0, "escalated": 0, "later": 0}
    for case in range(60):
        models = brief(case, n_seq=1)
        answers = [written(models, number) for number in range(3)]
        scores = [score_of(models, ids) for ids in answers]
        known = [score for score in scores if score is not None]
        threshold = -2.0 if case % 2 else -1.2
        answer = ask(models, BestOf(3, Score(threshold)))
        usage, selection = answer.usage, answer.selection
        assert selection is not None
        assert [c.text for c in selection.candidates] == [text_of(ids) for ids in answers]
        assert [c.score for c in selection.candidates] == pytest.approx(scores, abs=1e-5)
        assert [c.tokens for c in selection.candidates] == [len(ids) for ids in answers]
        assert answer.policy == f"best_of:3,score>{threshold:g}"
        written_by_fast = sum(map(len, answers))
        assert (usage.fast.prefill, usage.fast.decode + 3) == (len(IDS) + 2, written_by_fast)
        forwards, positions = read_for([ids for ids, s in zip(answers, scores, strict=True) if s is not None])
        if known and max(known) > threshold:
            best = scores.index(max(known))
            assert selection.chosen == best
            assert (ids_of(answer), answer.text) == (answers[best], text_of(answers[best]))
            assert (usage.slow_forwards, usage.slow_positions) == (forwards, positions)
            assert (usage.decisions, usage.escalations, usage.slow_tokens) == (1, 0, 0)
            assert (usage.tokens, usage.discarded_tokens) == (len(answers[best]), written_by_fast - len(answers[best]))
            assert {token.verdict for token in answer.tokens} == {"accepted"}
            slow_choices = [int(np.argmax(models.slow.script([*IDS, *answers[best][:n]]))) for n in range(usage.tokens)]
            assert [token.slow_choice for token in answer.tokens] == slow_choices
            assert usage.disagreement_rate is not None
            seen["picked"] += 1
            seen["later"] += best > 0
        else:
            alone = greedy(models.slow.script, IDS, LIMIT)
            assert (selection.chosen, ids_of(answer)) == (None, alone)
            assert usage.slow_forwards == forwards + len(alone)
            # The prompt is still there: its last token alone is read again, for a row.
            assert usage.slow_positions == positions + len(alone) - 1 + (1 if forwards else len(IDS))
            assert (usage.escalations, usage.slow_tokens) == (1, len(alone))
            assert usage.discarded_tokens == written_by_fast
            seen["escalated"] += 1
    assert min(seen.values()) >= 5, seen


def test_drivers_and_lanes_change_cost_alone() -> None:
    """One sequence or many, waited for in a thread or in a coroutine; and every sequence comes back."""

    async def awaited(router: Router, **options: Any) -> Generation:
        return await router.acomplete(PROMPT, **options)

    for case in range(12):
        policy = BestOf(4, (Score(-1.5), Vote(0.3), Check(lambda text: "b" in text))[case % 3])
        options = {"policy": policy, "max_tokens": LIMIT, "seed": SEED, "audit": None}
        del options["audit"]
        found = []
        for n_seq, batching in ((1, False), (1, True), (3, True), (8, True)):
            models = pair(case, n_seq=n_seq)
            with router_of(models, batching=batching) as router:
                found.append(router.complete(PROMPT, **options))
                found.append(asyncio.run(awaited(router, **options)))
                assert router._slots._free == n_seq
                assert router._slots._admitted == 0
            assert models.all_free
        for one, other in itertools.pairwise(found):
            assert (one.text, ids_of(one)) == (other.text, ids_of(other))
            assert one.selection is not None
            assert other.selection is not None
            assert one.selection.chosen == other.selection.chosen
        # Several at once: as many forwards as the longest answer needs, not as all of them do.
        with router_of(models := pair(case, n_seq=8), batching=True) as router:
            router.complete(PROMPT, **{**options, "policy": BestOf(4)})
            assert models.fast.forwards <= LIMIT + 2


def test_requests_at_once_share_the_sequences() -> None:
    models = pair(7, n_seq=3)
    with router_of(models, batching=True) as router:
        alone = router.complete(PROMPT, policy="best_of:4,score>-1.5", seed=SEED, max_tokens=LIMIT)
        found: list[Generation] = []

        def one() -> None:
            found.append(router.complete(PROMPT, policy="best_of:4,score>-1.5", seed=SEED, max_tokens=LIMIT))

        threads = [threading.Thread(target=one) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {answer.text for answer in found} == {alone.text}
        assert router._slots._free == 3
    assert models.all_free


def test_nothing_is_shown_before_the_verdict_and_a_stream_may_be_dropped() -> None:
    for batching, policy in itertools.product((False, True), ("best_of:3", "best_of:3,score>9")):
        models = pair(4, n_seq=2)
        with router_of(models, batching=batching) as router:
            *deltas, last = router.stream(PROMPT, policy=policy, max_tokens=LIMIT, seed=SEED)
            assert isinstance(last, Finished)
            answer = last.generation
            assert "".join(delta.text for delta in deltas if isinstance(delta, TextDelta)) == answer.text
            shown = [delta.token for delta in deltas if isinstance(delta, TextDelta) and delta.token]
            assert tuple(shown) == answer.tokens
            stream = router.stream(PROMPT, policy=policy, max_tokens=LIMIT)
            next(stream)
            stream.close()
            assert router._slots._admitted == 0
        assert models.all_free


def test_a_checker_is_enough_once_it_passes() -> None:
    """The first answer that passes stands, and those that need not be written are not."""
    models = pair(9, n_seq=1)
    answers = [text_of(written(models, number)) for number in range(5)]
    for wanted in range(5):
        asked: list[str] = []

        def check(text: str, wanted: int = wanted, asked: list[str] = asked) -> bool:
            asked.append(text)
            return len(asked) > wanted

        answer = ask(models, BestOf(5, check))
        assert answer.selection is not None
        assert (answer.selection.chosen, answer.text) == (wanted, answers[wanted])
        assert asked == answers[: wanted + 1]
        assert answer.usage.slow_positions == 0
        assert {token.verdict for token in answer.tokens} == {"unchecked"}
    answer = ask(models, BestOf(5, lambda _: False))
    assert ids_of(answer) == greedy(models.slow.script, IDS, LIMIT)
    assert "lambda" in answer.policy


class Weather(BaseModel):
    town: str
    degrees: float


def test_verifiers_score_as_they_say() -> None:
    good, cut, empty = Draft(text="x", finished=True), Draft(text="y", finished=False), Draft(text=" ", finished=True)
    read = Draft(text="x", finished=True, logprobs=(-1.0, -2.0))
    assert Score().score([read, good, cut, empty]) == [-1.5, None, None, None]
    assert [Score(-1.5).passes(score) for score in (-1.4, -1.5)] == [True, False]
    assert Score().passes(-1e9)
    texts = ["The answer is 7.", "so 1,000 and 7", "Answer: 8", "8 apples"]
    votes = Vote(0.4).score([*(Draft(text=text, finished=True) for text in texts), cut])
    assert [final_answer(text) for text in texts] == ["7", "7", "8", "8"]
    assert votes == [0.4, 0.4, 0.4, 0.4, None]
    assert not Vote(0.4).passes(0.4)
    json = Check(Weather)
    assert json.name == "Weather"
    drafts = [Draft(text=text, finished=True) for text in ('{"town": "Ayr", "degrees": 3}', '{"town": 3}', "no JSON")]
    assert json.score(drafts) == [1.0, 0.0, 0.0]


def test_equal_answers_are_read_once_and_empty_or_endless_ones_never() -> None:
    models = pair(3, n_seq=1)
    models.fast.script = lambda ids: np.eye(N_VOCAB, dtype=np.float32)[[0, 1, 5, 19][len(ids) - len(IDS)]] * 50
    answer = ask(models, BestOf(6, Score()))
    assert answer.text == "ab7"
    assert answer.usage.slow_forwards == 1
    assert answer.usage.slow_positions == len(IDS) + 3
    assert answer.selection is not None
    assert len({candidate.score for candidate in answer.selection.candidates}) == 1
    assert answer.usage.discarded_tokens == 5 * 4
    for choose, name in ((lambda _: 0, "length"), (lambda _: 19, "eog")):
        models.fast.script = lambda ids, choose=choose: np.eye(N_VOCAB, dtype=np.float32)[choose(ids)] * 50
        answer = ask(models, BestOf(3, Score()))
        assert answer.selection is not None
        assert answer.selection.chosen is None
        assert {candidate.finish_reason for candidate in answer.selection.candidates} == {name}
        assert answer.selection.reason == "each was empty, cut off or refused"
        # Nothing was read to score them.
        alone = greedy(models.slow.script, IDS, LIMIT)
        assert (ids_of(answer), answer.usage.slow_forwards) == (alone, len(alone))


def test_one_answer_is_the_greedy_one() -> None:
    models = brief(3, n_seq=2)
    answer = ask(models, "best_of:1")
    assert ids_of(answer) == greedy(models.fast.script, IDS, LIMIT)
    assert answer.usage.discarded_tokens == 0
    warm = ask(models, "best_of:1", temperature=0.9)
    assert ids_of(warm) == ids_of(ask(models, "never", temperature=0.9))


def test_the_fallback_may_be_token_routing() -> None:
    """Where none passes the request is answered as under the fallback alone; a cap is on that."""
    for case in range(8):
        models = pair(case, n_seq=2)
        routed = ask(models, "entropy>1.2")
        answer = ask(models, "best_of:2,score>9,else=entropy>1.2")
        assert (answer.text, answer.usage.escalations) == (routed.text, routed.usage.escalations)
        capped = ask(models, "best_of:2,score>9", max_slow_calls=0)
        assert ids_of(capped) == greedy(models.fast.script, IDS, LIMIT)
        assert ids_of(ask(models, Capped(BestOf(2, Score(9.0)), max_calls=0))) == ids_of(capped)


def test_masks_are_on_every_answer() -> None:
    class Only:
        def __init__(self, *tokens: int) -> None:
            self.allowed = np.isin(np.arange(N_VOCAB), tokens)

        def mask(self, answer: Sequence[int]) -> Mask:
            return Mask(allowed=self.allowed)

    for batching in (False, True):
        free = ask(pair(5, n_seq=4), BestOf(4, Score()), constraint=Only(0, 1, 19), batching=batching)
        assert free.selection is not None
        assert all(set(candidate.text) <= {"a", "b"} for candidate in free.selection.candidates)
        models = pair(5, n_seq=4)
        forced = ask(models, BestOf(3, lambda text: len(text) > 3), constraint=Only(0), batching=batching)
        assert (forced.text, models.fast.forwards) == ("a" * LIMIT, 0)
        assert models.all_free


@pytest.mark.parametrize("batching", [False, True], ids=["alone", "batching"])
def test_a_verifier_that_fails_fails_its_request_alone_and_keeps_the_answers(batching: bool) -> None:
    class Short(Vote):
        def score(self, drafts: Sequence[Draft]) -> list[float | None]:
            return [1.0]

    def broken(_text: str) -> bool:
        raise KeyError("no such field")

    def leaves(_text: str) -> bool:
        raise ConfigurationError("its own error")

    models = pair(2, n_seq=3)
    with router_of(models, batching=batching) as router:
        options: dict[str, Any] = {"max_tokens": LIMIT, "seed": SEED}
        with pytest.raises(VerifierFailed, match="the verifier broken raised KeyError: 'no such field'") as failed:
            router.complete(PROMPT, policy=BestOf(3, broken), **options)
        texts = {text_of(written(models, number)) for number in range(3)}
        assert set(failed.value.candidates) <= texts
        assert failed.value.candidates
        assert isinstance(failed.value.__cause__, KeyError)
        with pytest.raises(VerifierFailed, match="for 3 answers"):
            router.complete(PROMPT, policy=BestOf(3, Short()), **options)
        with pytest.raises(ConfigurationError, match="its own error"):
            router.complete(PROMPT, policy=BestOf(3, leaves), **options)
        assert router.complete(PROMPT, policy="best_of:2", **options).text
        assert (router._slots._free, router._slots._admitted) == (3, 0)
    assert models.all_free


@pytest.mark.parametrize("batching", [False, True], ids=["alone", "batching"])
def test_a_slow_model_that_fails_leaves_the_fast_ones_own_answer(batching: bool) -> None:
    models = brief(8, n_seq=2, slow_fails_after=0)
    answer = ask(models, BestOf(3, Score(9.0)), batching=batching)
    assert ids_of(answer) == greedy(models.fast.script, IDS, LIMIT)
    assert answer.degraded == "BackendError: slow was told to fail"
    assert answer.selection is not None
    assert (answer.selection.chosen, answer.usage.slow_tokens) == (0, 0)
    assert models.all_free


def test_an_audit_reads_what_stands() -> None:
    models = pair(6, n_seq=2)
    with router_of(models, audit=1.0) as router:
        answer = router.complete(PROMPT, policy=BestOf(3, lambda text: True), max_tokens=LIMIT, baseline=True)
    assert answer.usage.audited
    assert answer.usage.disagreement_rate is not None
    assert answer.baseline is not None
    assert ids_of(answer.baseline) == greedy(models.slow.script, IDS, LIMIT)


def test_what_an_answer_says_of_it() -> None:
    answer = ask(pair(1, n_seq=2), "best_of:2")
    record = answer.to_dict()["selection"]
    assert record is not None
    assert (len(record["candidates"]), record["chosen"]) == (2, answer.selection.chosen if answer.selection else None)
    assert "of the fast model's 2 answers stands" in " ".join(str(answer.report()).split())
    assert ask(pair(1), "never").to_dict()["selection"] is None


def test_an_endpoint_answers_where_no_candidate_passes_and_scores_nothing() -> None:
    endpoint = ScriptedTextModel(lambda request: ("b ", "a7"))
    fast = pair(1, n_seq=2).fast
    with contextlib.ExitStack() as stack:
        router = stack.enter_context(Router(fast, endpoint, policy=BestOf(3, lambda text: False)))
        answer = router.complete(PROMPT, max_tokens=LIMIT)
        assert (answer.text, answer.usage.round_trips) == ("b a7", 1)
        picked = router.complete(PROMPT, max_tokens=LIMIT, policy=BestOf(3, lambda text: True))
        assert picked.usage.round_trips == 0
        assert picked.selection is not None
        assert picked.selection.chosen == 0
        with pytest.raises(InvalidRequest, match=r"gives text, no logits, so it cannot score answers.*vote"):
            router.complete(PROMPT, policy="best_of:3,score>-0.3")
        with pytest.raises(ConfigurationError, match="cannot score answers"):
            Router(fast, endpoint, policy="best_of:3")


def test_what_is_refused() -> None:
    for wrong, message in (
        ({"k": 0}, "best_of:0.*at least 1"),
        ({"k": True}, "whole number"),
        ({"k": 2, "temperature": 0.0}, "greedy answers are all the same"),
        ({"k": 2, "verifier": "score"}, "is not a verifier"),
        ({"k": 2, "fallback": BestOf(2)}, "falls back on best_of"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            BestOf(**wrong)
    both = type("Both", (Score,), {"one_by_one": True})
    with pytest.raises(ConfigurationError, match="one of the two"):
        BestOf(2, both())
    for form, message in (
        ("best_of:0", "at least 1"),
        ("best_of:x", "not a whole number"),
        ("best_of:2.5", "not a whole number"),
        ("best_of", "unknown policy"),
        ("best_of:4,score<-1", "unknown policy"),
        ("best_of:4,score>much", "not a number"),
        ("best_of:4,vote>1.5", "from 0 to below 1"),
        ("best_of:4,check", "unknown policy"),
        ("best_of:4,else=nevr", "unknown policy 'nevr'"),
        ("best_of:4,else=best_of:2", "falls back on best_of"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            make_policy(form)
    long = "best_of:8,vote>0.6,temperature=1.2,else=entropy>1.2,span=8"
    assert make_policy(long).name == long
    assert make_policy(" best_of : 4 ").name == "best_of:4,score"
    assert make_policy(long) == make_policy(long)
