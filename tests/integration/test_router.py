"""The Router on the reference pair, and every way to ask it for something it cannot do."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scripted_pairs

from fsgen_router import (
    BackendError,
    ConfigurationError,
    Finished,
    FsgenError,
    Generation,
    InvalidRequest,
    Mask,
    ModelLoadError,
    NoFreeSequence,
    NotEnoughMemory,
    Prices,
    PromptTooLong,
    Router,
    RouterClosed,
    TextDelta,
    VocabularyMismatch,
    reference,
)
from fsgen_router.adapters.scripted import ScriptedModel, ScriptedTokenizer
from fsgen_router.contracts.models import TokenModel, Work
from fsgen_router.policies import PolicyPairWarning, cards, make_policy
from fsgen_router.reference import world
from fsgen_router.rows.reading import Read
from fsgen_router.support.machine import usable_physical_cores

LIMIT = 110
PROMPTS = [problem.prompt + "\n" for problem in world.problems("test", 100)]
QUESTION = [{"role": "user", "content": PROMPTS[0]}]


@pytest.fixture(scope="module")
def router(fast_model: TokenModel, slow_model: TokenModel) -> Iterator[Router]:
    with Router(fast_model, slow_model, policy="every:4") as made:
        yield made


@pytest.fixture
def make_router(fast_model: TokenModel, slow_model: TokenModel) -> Callable[..., Router]:
    """The policy is ``budget:0.2`` unless said otherwise: the default depends on what forwards take here."""
    return lambda **options: Router(fast_model, slow_model, **{"policy": "budget:0.2", **options})


def bare_greedy(model: TokenModel, prompt: str, limit: int = LIMIT) -> list[int]:
    """Greedy decoding with nothing but the adapter, and no prefix of an earlier prompt."""
    ids = model.tokenizer.encode(prompt, add_bos=True)
    sequence, held, written = model.open([]).sequence, 0, list[int]()
    try:
        while len(written) < limit:
            row = model.forward([Work(sequence, held, ids, [(len(ids) - 1, Read())])])[0][0]
            held += len(ids)
            written.append(row.token)
            ids = [row.token]
            if row.token in model.tokenizer.eog_ids:
                break
    finally:
        model.close(sequence)
    return written


def ids_of(answer: Generation) -> list[int]:
    return [token.id for token in answer.tokens]


# --- DESIGN's properties on real models, F32 weights and KV --------------------------------------


def test_never_is_the_fast_model_alone(make_router: Callable[..., Router], fast_model: TokenModel) -> None:
    router = make_router(policy="never")
    for prompt in PROMPTS:
        answer = router.complete(prompt, max_tokens=LIMIT)
        assert ids_of(answer) == bare_greedy(fast_model, prompt)
        assert (answer.usage.slow_forwards, answer.usage.slow_positions) == (0, 0)


def test_always_is_the_slow_model_alone(make_router: Callable[..., Router], slow_model: TokenModel) -> None:
    policies = ("always", "every:1", "always,span=5", "always,span=rest")
    routers = [make_router(policy=policy, method="replace") for policy in policies]
    for number, prompt in enumerate(PROMPTS):
        answer = routers[number % len(routers)].complete(prompt, max_tokens=LIMIT)
        assert ids_of(answer) == bare_greedy(slow_model, prompt)
        assert answer.usage.slow_token_share == 1.0


def test_sampled_always_is_the_slow_models_sampling(make_router: Callable[..., Router]) -> None:
    router = make_router(policy="always")
    for number, prompt in enumerate(PROMPTS[:15]):
        answer = router.complete(prompt, max_tokens=60, temperature=0.9, top_p=0.95, seed=number, baseline=True)
        assert ids_of(answer) == ids_of(answer.baseline)


@pytest.mark.parametrize("policy", ["every:5", "entropy>0.7,span=3", "random:0.2"])
async def test_sync_async_and_threads_give_one_text(make_router: Callable[..., Router], policy: str) -> None:
    router = make_router(policy=policy, seed=5)
    prompts = PROMPTS[:12]
    # Rows that a batch rounds differently are 1e-5 apart, and the best two tokens of these texts 5e-4 at least.
    texts = [router.complete(prompt, max_tokens=50).text for prompt in prompts]
    together = await asyncio.gather(*(router.acomplete(prompt, max_tokens=50) for prompt in prompts))
    assert [(answer.degraded, answer.text) for answer in together] == [(None, text) for text in texts]
    threaded: dict[str, Generation] = {}

    def work(prompt: str) -> None:
        threaded[prompt] = router.complete(prompt, max_tokens=50)

    run_threads([lambda prompt=prompt: work(prompt) for prompt in prompts])
    assert [(threaded[prompt].degraded, threaded[prompt].text) for prompt in prompts] == [
        (None, text) for text in texts
    ]


@pytest.mark.parametrize("policy", ["every:5", "entropy>0.7,span=3", "random:0.2"])
async def test_models_that_take_turns_give_the_same_text(make_router: Callable[..., Router], policy: str) -> None:
    """With threads for all cores each, so that they share one thread of this process."""
    prompts = PROMPTS[:12]
    expected = [make_router(policy=policy, seed=5).complete(prompt, max_tokens=50).text for prompt in prompts]
    models = [reference.load(role, n_threads=usable_physical_cores()) for role in ("fast", "slow")]
    with Router(*models, policy=policy, seed=5) as router:
        together = await asyncio.gather(*(router.acomplete(prompt, max_tokens=50) for prompt in prompts))
        assert [(answer.degraded, answer.text) for answer in together] == [(None, text) for text in expected]
        router.measure_steps(2)  # there, too
        assert len(router._steps["slow"]) >= 2
        assert router.run_forwards("fast", threading.current_thread).name == "fsgen-cpu"
        assert [thread.name for thread in threading.enumerate() if thread.name == "fsgen-cpu"] == ["fsgen-cpu"]
    for model in models:
        model.shutdown()


def run_threads(jobs: list[Callable[[], object]]) -> None:
    problems: list[BaseException] = []

    def guarded(job: Callable[[], object]) -> None:
        try:
            job()
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=guarded, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


def test_sixteen_threads_on_eight_sequences(make_router: Callable[..., Router]) -> None:
    """More callers than sequences: the others wait, none is refused or degraded."""
    router = make_router(policy="every:3")
    assert min(router.fast.n_seq, router.slow.n_seq) == 8
    expected = [router.complete(prompt, max_tokens=25).text for prompt in PROMPTS[:16]]
    answers: dict[int, list[Generation]] = {}

    def work(number: int) -> None:
        rng = random.Random(number)
        picked = [rng.randrange(16) for _ in range(3)]
        answers[number] = [router.complete(PROMPTS[at], max_tokens=25) for at in picked]
        assert [answer.text for answer in answers[number]] == [expected[at] for at in picked]

    run_threads([lambda number=number: work(number) for number in range(16)])
    assert all(answer.degraded is None for found in answers.values() for answer in found)
    totals = router.ledger
    assert totals.requests == 16 + 48
    assert totals.tokens >= sum(answer.usage.tokens for found in answers.values() for answer in found)


def test_prefix_reuse_changes_no_text(make_router: Callable[..., Router]) -> None:
    router = make_router(policy="every:3")
    for prompt in PROMPTS[:10]:
        first = router.complete(prompt, max_tokens=40)
        again = router.complete(prompt, max_tokens=40)
        assert again.text == first.text
        assert again.usage.fast.cached == again.usage.prompt_tokens - 1
        assert again.usage.slow.prefill <= 1


# --- chat ----------------------------------------------------------------------------------------


def test_a_conversation_keeps_both_caches(make_router: Callable[..., Router]) -> None:
    router = make_router(policy="every:3")
    messages = [{"role": "system", "content": "Answer."}, {"role": "user", "content": PROMPTS[3]}]
    before = 0
    for turn in range(4):
        answer = router.chat(messages, max_tokens=30)
        assert answer.usage.slow_forwards > 0
        for counters in (answer.usage.fast, answer.usage.slow):
            # Everything up to the last answer is still there.
            assert counters.cached >= before
            assert counters.cached + counters.prefill >= answer.usage.prompt_tokens
            if turn:
                assert counters.prefill < answer.usage.prompt_tokens / 2
        before = answer.usage.prompt_tokens
        assert answer.text.strip()
        messages += [{"role": "assistant", "content": answer.text}, {"role": "user", "content": PROMPTS[4 + turn]}]


async def test_chat_is_one_text_by_every_way(make_router: Callable[..., Router]) -> None:
    router = make_router(policy="every:3")
    answer = router.chat(QUESTION, max_tokens=30)
    assert (await router.achat(QUESTION, max_tokens=30)).text == answer.text
    streamed = [event.text for event in router.stream_chat(QUESTION, max_tokens=30) if isinstance(event, TextDelta)]
    assert "".join(streamed) == answer.text
    streamed = [
        event.text async for event in router.astream_chat(QUESTION, max_tokens=30) if isinstance(event, TextDelta)
    ]
    assert "".join(streamed) == answer.text


# --- events and options --------------------------------------------------------------------------


def test_a_stream_is_deltas_and_one_finished(router: Router) -> None:
    events = list(router.stream(PROMPTS[1], max_tokens=40))
    *deltas, last = events
    assert isinstance(last, Finished)
    assert all(isinstance(event, TextDelta) for event in deltas)
    assert "".join(event.text for event in deltas) == last.generation.text
    assert tuple(event.token for event in deltas if event.token) == last.generation.tokens


def test_a_stream_works_as_far_as_it_is_read(make_router: Callable[..., Router]) -> None:
    router = make_router(batching=False)
    stream = router.stream(PROMPTS[1], max_tokens=4)
    before = router.ledger.requests
    assert isinstance(next(stream), TextDelta)
    assert router.ledger.requests == before
    assert isinstance(list(stream)[-1], Finished)
    assert router.ledger.requests == before + 1


def test_seeds(make_router: Callable[..., Router]) -> None:
    sampling: dict[str, Any] = {"temperature": 1.2, "max_tokens": 30}
    router = make_router(policy="every:3")
    first = router.complete(PROMPTS[2], **sampling)
    # A drawn seed is told, and gives the same text again.
    assert router.complete(PROMPTS[2], **sampling, seed=first.seed).text == first.text
    assert len({router.complete(PROMPTS[2], **sampling).seed for _ in range(5)}) == 5
    free = next(p.prompt for p in world.problems("test", 100) if p.level == 2)  # many words would do there
    assert len({router.complete(free, **sampling, seed=seed).text for seed in range(8)}) > 1
    seeded = make_router(policy="every:3", seed=7)
    assert seeded.complete(PROMPTS[2], **sampling).seed == 7
    assert seeded.complete(PROMPTS[2], **sampling, seed=first.seed).text == first.text
    # Greedy text does not depend on it.
    assert len({router.complete(PROMPTS[2], max_tokens=30, seed=seed).text for seed in range(4)}) == 1


def test_logit_bias_binds_both_models(make_router: Callable[..., Router]) -> None:
    token = make_router().fast.tokenizer.encode("7", add_bos=False)[0]
    for policy in ("never", "always", "every:2"):
        router = make_router(policy=policy)
        plain = router.complete(PROMPTS[0], max_tokens=20)
        banned = dict.fromkeys(set(ids_of(plain)), -1000000.0)
        assert not set(ids_of(router.complete(PROMPTS[0], max_tokens=20, logit_bias=banned))) & set(banned)
        assert router.complete(PROMPTS[0], max_tokens=6, logit_bias={token: 1e4}).text == "777777"
        assert set(ids_of(router.complete(PROMPTS[0], max_tokens=20, logit_bias={token: float("-inf")}))) - {token}
        assert router.complete(PROMPTS[0], max_tokens=20).text == plain.text


class OnlyDigits:
    def __init__(self, router: Router) -> None:
        tokenizer = router.fast.tokenizer
        self.allowed = np.zeros(tokenizer.n_vocab, bool)
        self.allowed[[tokenizer.encode(digit, add_bos=False)[0] for digit in "0123456789"]] = True

    def mask(self, answer: object) -> Mask:
        return Mask(allowed=self.allowed)


def test_a_constraint_and_a_bias_together(router: Router) -> None:
    seven = router.fast.tokenizer.encode("7", add_bos=False)[0]
    free = router.complete(PROMPTS[0], max_tokens=12, constraint=OnlyDigits(router))
    assert free.text.isdigit()
    biased = router.complete(PROMPTS[0], max_tokens=12, constraint=OnlyDigits(router), logit_bias={seven: 1e4, 0: 1e5})
    assert biased.text == "7" * 12


def test_stop_strings_and_tokens(router: Router) -> None:
    plain = router.complete(PROMPTS[5], max_tokens=40)
    assert len(plain.text) > 20
    word = plain.text[12:15]
    stopped = router.complete(PROMPTS[5], max_tokens=40, stop=word)
    assert (stopped.text, stopped.finish_reason) == (plain.text[: plain.text.index(word)], "stop")
    assert (
        "".join(
            e.text
            for e in router.stream(PROMPTS[5], max_tokens=40, stop=[word, "no such text"])
            if isinstance(e, TextDelta)
        )
        == stopped.text
    )
    token = plain.tokens[6].id
    stopped = router.complete(PROMPTS[5], max_tokens=40, stop_tokens=[token])
    first = ids_of(plain).index(token)
    assert (ids_of(stopped), stopped.finish_reason) == (ids_of(plain)[: first + 1], "stop")
    assert stopped.text == b"".join(t.piece for t in plain.tokens[:first]).decode(errors="replace")


def test_caps_on_slow_calls_and_tokens(make_router: Callable[..., Router]) -> None:
    router = make_router(policy="always,span=4")
    assert router.complete(PROMPTS[0], max_tokens=30, max_slow_calls=0).usage.slow_forwards == 0
    found = router.complete(PROMPTS[0], max_tokens=30, max_slow_calls=2)
    assert found.usage.escalations == 2
    assert found.usage.slow_tokens <= 8
    assert router.complete(PROMPTS[0], max_tokens=30, max_slow_tokens=5).usage.slow_tokens <= 5
    rest = make_router(policy="always,span=rest")
    assert rest.complete(PROMPTS[0], max_tokens=30, max_slow_tokens=5).usage.slow_tokens <= 5


def test_a_baseline_is_the_slow_model_alone(make_router: Callable[..., Router], slow_model: TokenModel) -> None:
    router = make_router(policy="every:4")
    for prompt in PROMPTS[:5]:
        answer = router.complete(prompt, max_tokens=40, baseline=True)
        assert ids_of(answer.baseline) == bare_greedy(slow_model, prompt, 40)
        assert answer.text == router.complete(prompt, max_tokens=40).text
        assert answer.report().to_dict()["slow_forwards"]["baseline"] == "measured"
    # It is no request of the Router's.
    assert router.ledger.requests == 10


async def test_a_baseline_comes_by_the_async_driver_too(make_router: Callable[..., Router]) -> None:
    router = make_router(policy="every:4")
    answer = await router.acomplete(PROMPTS[0], max_tokens=40, baseline=True)
    assert answer.baseline.text == router.complete(PROMPTS[0], max_tokens=40, baseline=True).baseline.text


def test_a_baseline_reads_its_own_prompt(fast_model: TokenModel) -> None:
    """It stands for an application without a router: what routing has just cached is not its gain."""
    slow = reference.load("slow")
    with Router(fast_model, slow, policy="every:4") as router:
        answer = router.complete(PROMPTS[0], max_tokens=30, baseline=True)
    slow.shutdown()
    alone = answer.baseline.usage
    assert alone.fast.prefill == alone.prompt_tokens
    assert alone.fast.cached == 0


def test_audits(make_router: Callable[..., Router]) -> None:
    everything, nothing = make_router(policy="every:4", audit=1.0), make_router(policy="every:4")
    for prompt in PROMPTS[:8]:
        audited, plain = (r.complete(prompt, max_tokens=40) for r in (everything, nothing))
        assert (audited.text, audited.usage.audited, plain.usage.audited) == (plain.text, True, False)
        assert 0 <= audited.usage.disagreement_rate <= 1
        assert plain.usage.disagreement_rate is None
    assert (everything.ledger.audits, nothing.ledger.audits) == (8, 0)


def test_an_audit_labels_what_bare_loops_find(make_router: Callable[..., Router], fast_model, slow_model) -> None:
    answer = make_router(policy="never", audit=1.0).complete(PROMPTS[0], max_tokens=12)
    ids = fast_model.tokenizer.encode(PROMPTS[0], add_bos=True)
    for at, token in enumerate(answer.tokens):
        for model, choice in ((fast_model, token.fast_choice), (slow_model, token.slow_choice)):
            context = [*ids, *ids_of(answer)[:at]]
            sequence = model.open([]).sequence
            row = model.forward([Work(sequence, 0, context, [(len(context) - 1, Read())])])[0][0]
            model.close(sequence)
            assert row.token == choice


def test_a_share_of_answers_is_audited(make_router: Callable[..., Router]) -> None:
    router = make_router(policy="never", audit=0.3, seed=1)
    for number in range(200):
        router.complete(PROMPTS[number % 50], max_tokens=1)
    # Binomial(200, 0.3) has a standard deviation of 6.5.
    assert 60 - 4 * 6.5 < router.ledger.audits < 60 + 4 * 6.5


def test_the_default_policy_is_a_budget_and_holds_its_rate(make_router: Callable[..., Router]) -> None:
    router = make_router()
    start = router.ledger.recall(router.policy._key, router.policy.start)
    for prompt in PROMPTS[:40]:
        router.complete(prompt, max_tokens=60)
    totals = router.ledger
    rate = totals.escalations / totals.decisions
    end = totals.recall(router.policy._key, router.policy.start)
    assert router.policy.name == "budget:0.2"
    assert rate - 0.2 == pytest.approx((end - start) / (router.policy.step * totals.decisions), abs=1e-9)
    assert abs(rate - 0.2) < 0.1


def test_the_reference_pair_comes_with_a_certified_policy() -> None:
    """Also with other options of its models; whoever names a policy or a method gets what was named."""
    problem = world.problem("test", 0).prompt
    with Router() as router, Router("reference:fast?n_seq=2", "reference:slow?n_seq=2") as other:
        shipped = make_policy(reference.policy_path())
        assert {router.policy.digest, other.policy.digest} == {shipped.digest}
        assert router.method.name == "verify:exact"
        answer = router.chat([{"role": "user", "content": problem}])
        assert answer.claim.holds
        assert answer.guarantee == (
            "certified on prompts like the 1,199 of calibration: regret at most 5% at confidence 90%"
        )
        assert router.with_policy("never").policy.name == "never"
    with Router(method="replace") as named:
        assert named.policy.name == "budget:0.2"


def test_measured_steps_make_estimates_possible(make_router: Callable[..., Router]) -> None:
    router = make_router(policy="never")
    assert router.complete(PROMPTS[0], max_tokens=5).report().seconds.baseline == "unknown"
    router.measure_steps()
    seconds = router.complete(PROMPTS[0], max_tokens=5).report().seconds
    assert seconds.baseline == "estimated"
    assert seconds.slow_only > 0


def test_what_is_logged_names_no_prompt(make_router: Callable[..., Router], caplog: pytest.LogCaptureFixture) -> None:
    router = make_router(policy="every:4")
    with caplog.at_level(logging.DEBUG, logger="fsgen_router"):
        answer = router.complete("A secret lamp.", max_tokens=10)
    assert "answered" in caplog.text
    assert "secret" not in caplog.text
    assert not answer.text or answer.text not in caplog.text


def test_another_policy_on_the_same_models(router: Router) -> None:
    with router.with_policy("never") as twin:
        found = twin.complete(PROMPTS[0], max_tokens=10)
        assert found.usage.slow_forwards == 0
        assert (twin.ledger.requests, twin.fast) == (1, router.fast)
    with pytest.raises(RouterClosed):
        twin.complete(PROMPTS[0])
    assert router.complete(PROMPTS[0], max_tokens=10).usage.slow_forwards > 0


# --- the reference pair by name, opening and closing ---------------------------------------------


async def test_the_reference_pair_needs_no_argument() -> None:
    with Router(policy="every:3") as router:
        assert (router.fast.name, router.slow.name) == ("fast.gguf", "slow.gguf")
        assert router.slow.n_params > router.fast.n_params
        first = router.complete(PROMPTS[0], max_tokens=10)
        stream = router.stream(PROMPTS[0])
        next(stream)
    for call in (router.complete, router.stream, router.astream):
        with pytest.raises(RouterClosed, match="closed"):
            call(PROMPTS[0])
    for call in (router.chat, router.stream_chat, router.astream_chat):
        with pytest.raises(RouterClosed):
            call(QUESTION)
    with pytest.raises(RouterClosed):
        await router.acomplete(PROMPTS[0])
    with pytest.raises(RouterClosed):
        await router.achat(QUESTION)
    with pytest.raises(RouterClosed):
        router.measure_steps()
    with pytest.raises(RouterClosed):
        router.measure()
    with pytest.raises(RouterClosed):
        router.with_policy("never")
    # A stream that was under way ends with an error of ours, not with a crash.
    with pytest.raises(FsgenError):
        exhaust(stream)
    router.close()
    with Router("reference:fast", "reference:slow", policy="every:3") as router:
        assert router.complete(PROMPTS[0], max_tokens=10).text == first.text


def exhaust(stream: Iterator[object]) -> None:
    for _ in stream:
        pass


async def test_an_async_request_under_way_while_the_router_closes() -> None:
    router = Router(policy="every:3")
    stream = router.astream(PROMPTS[0])
    await anext(stream)
    router.close()
    with pytest.raises(FsgenError):
        async for _ in stream:
            pass


def test_models_that_were_handed_in_stay_open(fast_model: TokenModel, slow_model: TokenModel) -> None:
    with Router(fast_model, slow_model, policy="budget:0.2") as router:
        router.complete(PROMPTS[0], max_tokens=2)
    assert bare_greedy(fast_model, PROMPTS[0], 2)
    assert bare_greedy(slow_model, PROMPTS[0], 2)


def test_a_tokenizer_outlives_its_model() -> None:
    """A text that is tokenised while the model is being freed must not crash the process."""
    model = reference.load("fast")
    model.shutdown()
    with pytest.raises(BackendError, match="shut down"):
        model.tokenizer.encode("lamp", add_bos=True)
    with pytest.raises(BackendError, match="shut down"):
        model.open([1])


def test_a_twin_whose_models_were_freed() -> None:
    router = Router()
    twin = router.with_policy("never")
    router.close()
    with pytest.raises(FsgenError):
        twin.complete("lamp")


# --- bad input: a clear error with the way out, and the Router answers on -------------------------


@pytest.fixture
def still_answers(router: Router) -> Iterator[Router]:
    yield router
    answer = router.complete(PROMPTS[0], max_tokens=8)
    assert answer.usage.tokens > 0
    assert answer.degraded is None


BAD_PROMPTS = {
    "empty": ("", InvalidRequest, "empty.*at least one character"),
    "bytes": (b"text", InvalidRequest, "must be a str, not bytes"),
    "None": (None, InvalidRequest, "must be a str, not NoneType"),
    "a list": (["text"], InvalidRequest, "must be a str, not list"),
    "a lone surrogate": ("ab\ud800c", InvalidRequest, "character 2 is a lone surrogate.*UTF-8"),
    "over the context": ("lamp " * 1200, PromptTooLong, r"tokens.*holds 1024.*larger n_ctx"),
}


@pytest.mark.parametrize("bad", BAD_PROMPTS)
async def test_bad_prompts(still_answers: Router, bad: str) -> None:
    prompt, error, words = BAD_PROMPTS[bad]
    for call in (still_answers.complete, still_answers.stream, still_answers.astream):
        with pytest.raises(error, match=words):
            call(prompt)
    with pytest.raises(error, match=words):
        await still_answers.acomplete(prompt)


def user(content: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": content}]


BAD_MESSAGES = {
    "none": ([], "non-empty list"),
    "a string": ("hello", "non-empty list"),
    "bytes": (b"hello", "non-empty list"),
    "one message instead of a list": ({"role": "user", "content": "x"}, "non-empty list"),
    "an iterator": (iter(QUESTION), "non-empty list"),
    "a message that is a string": (["hello"], "message 0 is str"),
    "an unknown role": (
        [*QUESTION, {"role": "function", "content": "x"}],
        "message 1 has role 'function'.*developer, user",
    ),
    "no role": ([{"content": "x"}], "message 0 has role None"),
    "no content": ([{"role": "user"}], "content of message 0 must be a str"),
    "empty content": (user(""), "content of message 0 is empty"),
    "bytes as content": (user(b"x"), "content of message 0 must be a str"),
    "an image as content": (user([{"type": "image_url", "image_url": {}}]), "part of type 'image_url'.*only text"),
    "a part without text": (user([{"type": "text"}]), "part whose text is NoneType"),
    "a part that is none": (user(["x"]), "content of message 0 holds a str"),
    "no parts": (user([]), "content of message 0 is empty"),
    "parts with a lone surrogate": (user([{"type": "text", "text": "\ud800"}]), "is not valid text"),
    "a lone surrogate": (user("\udfff"), "content of message 0 is not valid text"),
    "tools": ([{"role": "user", "content": "x", "tool_calls": []}], "unsupported fields: tool_calls.*not"),
    "the assistant last": ([*QUESTION, {"role": "assistant", "content": "x"}], "end with a user message"),
    "over the context": (user("lamp " * 1200), "larger n_ctx"),
}


@pytest.mark.parametrize("bad", BAD_MESSAGES)
async def test_bad_messages(still_answers: Router, bad: str) -> None:
    messages, words = BAD_MESSAGES[bad]
    for call in (still_answers.chat, still_answers.stream_chat, still_answers.astream_chat):
        with pytest.raises(InvalidRequest, match=words):
            call(messages)
    with pytest.raises(InvalidRequest, match=words):
        await still_answers.achat(messages)


def test_messages_as_other_clients_write_them(still_answers: Router) -> None:
    plain = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "lamp rope"}]
    parts = [{"type": "text", "text": "lamp "}, {"type": "text", "text": "rope"}]
    newer = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    wanted = still_answers.chat(plain, max_tokens=8)
    found = still_answers.chat(newer, max_tokens=8)
    assert (found.text, found.usage.prompt_tokens) == (wanted.text, wanted.usage.prompt_tokens)


BAD_OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "a slip": ({"max_token": 5}, "unknown option 'max_token'.*did you mean 'max_tokens'"),
    "another slip": ({"temprature": 5}, "did you mean 'temperature'"),
    "not supported": ({"functions": []}, "unknown option 'functions'.*available: max_tokens, temperature"),
    "max_tokens=0": ({"max_tokens": 0}, "max_tokens=0"),
    "max_tokens in words": ({"max_tokens": "many"}, "max_tokens='many'"),
    "a negative temperature": ({"temperature": -0.1}, "temperature=-0.1"),
    "temperature nan": ({"temperature": float("nan")}, "temperature=nan"),
    "temperature inf": ({"temperature": float("inf")}, "temperature=inf"),
    "top_k=-1": ({"top_k": -1}, "top_k=-1"),
    "top_p=0": ({"top_p": 0}, "top_p=0"),
    "top_p=1.5": ({"top_p": 1.5}, "top_p=1.5"),
    "top_p nan": ({"top_p": float("nan")}, "top_p=nan"),
    "min_p=2": ({"min_p": 2}, "min_p=2"),
    "an empty stop string": ({"stop": ""}, "stop string is empty"),
    "one of several is empty": ({"stop": ["a", ""]}, "stop string is empty"),
    "stop is a number": ({"stop": 5}, "stop=5"),
    "stop tokens in words": ({"stop_tokens": ["x"]}, "stop_tokens"),
    "a stop token beyond": ({"stop_tokens": [3, 10**6]}, "stop_tokens names token 1000000, the vocabulary has 0 to"),
    "a negative stop token": ({"stop_tokens": [-1]}, "stop_tokens names token -1, the vocabulary has 0 to"),
    "a seed in words": ({"seed": "x"}, "seed='x'"),
    "a bias on no token": ({"logit_bias": {10**6: 1.0}}, "token 1000000, the vocabulary has 0 to"),
    "a bias on a negative token": ({"logit_bias": {-1: 1.0}}, "token -1, the vocabulary has 0 to"),
    "a bias of nan": ({"logit_bias": {3: float("nan")}}, "logit_bias"),
    "a bias of inf": ({"logit_bias": {3: float("inf")}}, "logit_bias"),
    "a bias beyond float32": ({"logit_bias": {3: 1e300}}, "logit_bias"),
    "a bias in words": ({"logit_bias": {3: "much"}}, "logit_bias"),
    "a constraint without mask": ({"constraint": object()}, r"has no mask\(\)"),
    "a negative cap": ({"max_slow_calls": -1}, "max_slow_calls=-1"),
    "another negative cap": ({"max_slow_tokens": -1}, "max_slow_tokens=-1"),
    "a name with spaces": ({"request_id": "a b"}, "request_id='a b'"),
    "a name that would break a log line": ({"request_id": "a\nb"}, "request_id="),
}


@pytest.mark.parametrize("bad", BAD_OPTIONS)
async def test_bad_options(still_answers: Router, bad: str) -> None:
    options, words = BAD_OPTIONS[bad]
    for call in (still_answers.complete, still_answers.stream, still_answers.astream):
        with pytest.raises(InvalidRequest, match=words):
            call(PROMPTS[0], **options)
    with pytest.raises(InvalidRequest, match=words):
        still_answers.chat(QUESTION, **options)


def test_extreme_but_valid_options(still_answers: Router) -> None:
    greedy = still_answers.complete(PROMPTS[0], max_tokens=5).text
    assert still_answers.complete(PROMPTS[0], max_tokens=5, temperature=1e-310).text == greedy
    assert still_answers.complete(PROMPTS[0], max_tokens=5, temperature=100.0, top_k=1).text == greedy
    assert still_answers.complete(PROMPTS[0], max_tokens=5, temperature=1.0, top_p=1e-9).text == greedy
    assert still_answers.complete(PROMPTS[0], max_tokens=5, temperature=1.0, min_p=1.0).text == greedy
    found = still_answers.complete(PROMPTS[0], max_tokens=5, temperature=1.0, top_k=10**9, seed=10**30)
    assert len(found.tokens) == 5 or found.finish_reason == "eog"
    assert still_answers.complete("\x00\x01 \U0010ffff", max_tokens=2).usage.prompt_tokens > 3
    assert still_answers.complete(" ", max_tokens=2).usage.prompt_tokens == 2


def test_an_answer_runs_into_the_context_and_ends(make_router: Callable[..., Router]) -> None:
    eog = dict.fromkeys(make_router().fast.tokenizer.eog_ids, -1000000.0)
    for policy in ("never", "every:7"):
        router = make_router(policy=policy, audit=1.0)
        prompt = "lamp " * 480
        answer = router.complete(prompt, max_tokens=5000, logit_bias=eog)
        assert answer.finish_reason == "context"
        assert answer.usage.prompt_tokens + answer.usage.tokens == 1024
        assert answer.usage.audited


def test_a_slow_model_that_fails_degrades_the_answer_and_the_router_goes_on() -> None:
    pair = scripted_pairs.pair(3, slow_fails_after=2)
    with Router(pair.fast, pair.slow, policy="every:2", method="replace") as router:
        first = router.complete("a", max_tokens=12)
        assert "was told to fail" in first.degraded
        assert "Degraded" in str(first.report())
        again = router.complete("b", max_tokens=12)
        assert again.degraded is not None
        assert again.usage.tokens > 0
    assert pair.all_free


def test_a_policy_and_a_method_for_one_request(make_router: Callable[..., Router]) -> None:
    router = make_router(policy="every:4", method="verify:exact")
    own = router.complete(PROMPTS[0], max_tokens=24)
    for policy, method in (
        ("never", None),
        ("always", None),
        (None, "replace"),
        ("random:0.5", "verify:near_best=0.9"),
    ):
        given = {name: value for name, value in (("policy", policy), ("method", method)) if value is not None}
        answer = router.complete(PROMPTS[0], max_tokens=24, seed=3, **given)
        wanted = make_router(policy=policy or "every:4", method=method or "verify:exact")
        assert (answer.policy, answer.method) == (wanted.policy.name, wanted.method.name)
        assert answer.text == wanted.complete(PROMPTS[0], max_tokens=24, seed=3).text
    again = router.complete(PROMPTS[0], max_tokens=24)
    assert (again.text, again.policy, again.method) == (own.text, own.policy, own.method)


def test_a_slow_model_that_is_not_asked_limits_nothing(make_router: Callable[..., Router]) -> None:
    router = make_router(policy="always")
    assert router.complete(PROMPTS[0], max_tokens=4, policy="never").usage.slow_forwards == 0


async def test_another_policy_in_coroutines_and_caps_around_it(make_router: Callable[..., Router]) -> None:
    router = make_router(policy="never")
    asked, capped, plain = await asyncio.gather(
        router.acomplete(PROMPTS[0], max_tokens=12, policy="always", method="replace"),
        router.acomplete(PROMPTS[0], max_tokens=12, policy="always", method="replace", max_slow_tokens=3),
        router.acomplete(PROMPTS[0], max_tokens=12),
    )
    assert asked.usage.slow_tokens == asked.usage.tokens
    assert (capped.usage.slow_tokens, plain.usage.slow_tokens) == (3, 0)


def test_a_certificate_follows_the_policy_and_method_of_its_request(make_router: Callable[..., Router]) -> None:
    path = reference.policy_path()
    router = make_router(policy="never", method="replace")
    asked = [{"role": "user", "content": next(iter(world.problems("calibration", 1))).prompt}]
    certified = router.chat(asked, policy=path)
    assert certified.method == "verify:exact"  # the file's own
    assert (certified.guarantee or "").startswith("certified")
    with pytest.warns(PolicyPairWarning, match="certified with the method verify:exact, not replace"):
        other = router.chat(asked, policy=path, method="replace")
    assert (other.guarantee or "").startswith("suspended: certified with the method verify:exact")
    assert router.complete(PROMPTS[0], max_tokens=4).guarantee is None


def test_a_certificate_does_not_speak_of_another_template(make_router: Callable[..., Router], tmp_path: Path) -> None:
    asked = [{"role": "user", "content": next(iter(world.problems("calibration", 1))).prompt}]
    router = make_router(policy=reference.policy_path())
    assert router.chat(asked).claim.holds
    said = router.chat(asked, chat_template_kwargs={"bos_token": ""}).claim
    assert said.reasons == ("variables of the chat template were set",)
    assert router.chat(asked).claim.holds
    other = "{% for message in messages %}{{ message.content }}{% endfor %}"
    models = [reference.load(which, chat_template=other) for which in ("fast", "slow")]
    with pytest.warns(PolicyPairWarning, match=r"fast has another chat template, slow has another chat template"):
        changed = Router(*models, policy=reference.policy_path())
    assert not changed.chat(asked).claim.holds
    for model in models:
        model.shutdown()


def test_prompts_that_claim_nothing_are_no_drift_of_the_rest(make_router: Callable[..., Router]) -> None:
    """Poems among the questions suspend their own claims, and nobody else's."""
    router = make_router(policy=reference.policy_path())
    problems = [problem.prompt for problem in world.problems("calibration", 40)]
    for number, problem in enumerate(problems):
        assert router.chat([{"role": "user", "content": problem}]).guarantee is not None
        if number % 4 == 0:
            poem = "O wild West Wind, thou breath of Autumn's being, thou, from whose unseen presence the leaves dead"
            assert not router.chat([{"role": "user", "content": poem}], max_tokens=60).claim.holds
    assert router.chat([{"role": "user", "content": problems[0]}]).claim.holds


def test_what_is_doubtful_is_said_once(make_router: Callable[..., Router], caplog: pytest.LogCaptureFixture) -> None:
    """Not at every request that names the same policy and method again."""
    router = make_router(policy="never")
    path = reference.policy_path()
    options = {"max_tokens": 2, "policy": path, "method": "replace"}
    with caplog.at_level(logging.WARNING, "fsgen_router"):
        with pytest.warns(PolicyPairWarning):
            router.complete("lamp", **options)
        router.complete("lamp", **options)  # a second warning would be an error
    assert [record.event for record in caplog.records] == ["policy_pair"]


def test_a_vocabulary_is_hashed_once_for_a_pair(
    make_router: Callable[..., Router], monkeypatch: pytest.MonkeyPatch
) -> None:
    """75 ms at 152k tokens: not at every request that names a policy file."""
    hashed: list[object] = []
    monkeypatch.setattr(cards, "vocabulary_hash", lambda tokenizer: hashed.append(tokenizer) or "")
    router = make_router(policy="never")
    with pytest.warns(PolicyPairWarning):
        router.complete("lamp", max_tokens=2, policy=reference.policy_path())
    router.complete("lamp", max_tokens=2, policy=reference.policy_path())
    assert len(hashed) == 1


def test_a_baseline_draws_the_numbers_of_its_answer_whatever_its_template() -> None:
    other = "{% for message in messages %}<|user|>{{ message.content }}<|assistant|>{% endfor %}"
    with Router(
        "reference:fast", reference.load("slow", chat_template=other), policy="always", method="replace"
    ) as made:
        answer = made.chat([{"role": "user", "content": "lamp"}], temperature=1.0, seed=3, max_tokens=20, baseline=True)
    assert answer.baseline.text == answer.text


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"policy": "sometimes"}, "unknown policy"),
        ({"policy": 5}, "is not a policy"),
        ({"method": "replce"}, "unknown method"),
        ({"policy": "nowhere.safetensors"}, "there is no policy file"),
    ],
)
async def test_a_request_with_a_policy_that_does_not_exist(
    still_answers: Router, given: dict[str, Any], words: str
) -> None:
    for call in (still_answers.complete, still_answers.stream, still_answers.astream):
        kind = FsgenError if "safetensors" in str(given) else InvalidRequest
        with pytest.raises(kind, match=words):
            call(PROMPTS[0], **given)


async def test_async_with_closes_and_frees(fast_model: TokenModel, slow_model: TokenModel) -> None:
    async with Router(fast_model, slow_model, policy="never") as router:
        assert (await router.acomplete(PROMPTS[0], max_tokens=2)).usage.tokens == 2
    with pytest.raises(RouterClosed):
        await router.acomplete(PROMPTS[0])
    await router.aclose()


def test_parts_that_do_not_exist_or_fit(fast_model: TokenModel, slow_model: TokenModel) -> None:
    for options, words in (
        ({"policy": "entropi>1"}, "unknown policy.*never"),
        ({"policy": 5}, "is not a policy"),
        ({"policy": object()}, "is not a policy"),
        ({"method": "replce"}, "unknown method.*replace"),
        ({"method": 5}, "is not a method"),
        ({"audit": 1.5}, "audit=1.5"),
        ({"audit": -0.1}, "audit=-0.1"),
        ({"audit": float("nan")}, "audit=nan"),
        ({"audit": "often"}, "audit"),
        ({"seed": "x"}, "seed"),
        ({"prices": 5}, "prices"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            Router(fast_model, slow_model, **options)
    with pytest.raises(ConfigurationError, match=r"slow is missing.*both"):
        Router(fast_model)
    with pytest.raises(ConfigurationError, match="fast is missing"):
        Router(slow=slow_model)
    with pytest.raises(ConfigurationError, match="one model object"):
        Router(fast_model, fast_model)
    with pytest.raises(ConfigurationError, match=r"unknown backend.*did you mean 'llama_cpp'"):
        Router("llama_cp:a.gguf", "llama_cpp:b.gguf")
    with pytest.raises(ConfigurationError, match="is not a model"):
        Router(5, slow_model)
    # The models that were handed in are none the worse for it.
    with Router(fast_model, slow_model) as router:
        assert router.complete(PROMPTS[0], max_tokens=3).usage.tokens > 0


def test_what_was_loaded_is_freed_when_the_other_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    freed = []
    plain = reference.load("fast").__class__.shutdown

    def shutdown(model: TokenModel) -> None:
        freed.append(model.name)
        plain(model)

    monkeypatch.setattr("fsgen_router.adapters.llama_cpp.LlamaCppModel.shutdown", shutdown)
    with pytest.raises(ModelLoadError):
        Router("reference:fast", "llama_cpp:/no/such/file.gguf")
    with pytest.raises(NotEnoughMemory):
        Router("reference:fast", "reference:slow?n_ctx=1000000000")
    assert freed == ["fast.gguf", "fast.gguf"]


def test_vocabularies_that_differ_are_refused_with_the_first_difference() -> None:
    pieces = list(scripted_pairs.PIECES)
    plain = scripted_pairs.pair(1).fast

    def other(changed: list[bytes], special: list[int], eog: frozenset[int] = scripted_pairs.EOG) -> ScriptedModel:
        return ScriptedModel(plain.script, ScriptedTokenizer(changed, eog=eog, special=special), name="other")

    swapped = [*pieces]
    swapped[4], swapped[5] = swapped[5], swapped[4]
    for model, words in (
        (other(swapped, [18]), r"id 4 is b'\\n' in fast and b'7' in other"),
        (other([*swapped, b"more"], [17, 18]), r"id 4 is b'\\n' in fast and b'7' in other"),
    ):
        with pytest.raises(VocabularyMismatch, match=words) as raised:
            Router(plain, model)
        assert "one family" in raised.value.hint
    assert Router(plain, other(pieces, [18])).complete("a", max_tokens=3).usage.tokens > 0


def test_an_answer_priced(make_router: Callable[..., Router]) -> None:
    router = make_router(policy="every:4", prices=Prices(input=3.0, output=15.0))
    money = router.complete(PROMPTS[0], max_tokens=20).report().money_usd
    assert money.routed > 0
    assert money.slow_only > 0
    assert make_router(policy="every:4").complete(PROMPTS[0], max_tokens=20).report().money_usd.routed is None


def test_streams_given_up_in_many_threads(make_router: Callable[..., Router]) -> None:
    router = make_router(policy="every:2")
    expected = router.complete(PROMPTS[0], max_tokens=10).text

    def work(number: int) -> None:
        for turn in range(4):
            with contextlib.closing(router.stream(PROMPTS[number], max_tokens=20)) as stream:
                for _ in range(turn):
                    next(stream, None)

    run_threads([lambda number=number: work(number) for number in range(12)])
    run_threads([lambda: router.complete(PROMPTS[0], max_tokens=10)] * 8)
    assert router.complete(PROMPTS[0], max_tokens=10).text == expected


def test_a_thread_that_holds_every_sequence_is_told_so_instead_of_waiting_for_itself() -> None:
    """Two open streams on one thread with room for one would wait for each other for ever."""
    fast, slow = (reference.load(which, n_seq=1) for which in ("fast", "slow"))
    with Router(fast=fast, slow=slow, policy="never") as router:
        first = router.stream("Ada has 3 shells.")
        next(first)
        with pytest.raises(NoFreeSequence, match="1 streams open"):
            router.complete("Eva has 4 shells.")
        first.close()
        assert router.complete("Eva has 4 shells.").tokens
    for model in (fast, slow):
        model.shutdown()


def test_an_empty_assistant_turn_does_not_end_a_conversation(router: Router) -> None:
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "hello"},
    ]
    assert router.chat(messages).tokens


@pytest.mark.parametrize(("allowed", "said"), [([False], "allows no token"), ([True, True], "has shape")])
def test_a_constraint_that_cannot_hold_is_refused(router: Router, allowed: list[bool], said: str) -> None:
    whole = allowed * router.fast.tokenizer.n_vocab if len(allowed) == 1 else allowed

    class Constraint:
        def mask(self, answer: Any) -> Mask:
            return Mask(allowed=np.array(whole))

    with pytest.raises(ConfigurationError, match=said):
        router.complete("Ada has 3 shells.", constraint=Constraint())
    assert router.complete("Ada has 3 shells.").tokens


def test_a_control_token_is_no_part_of_the_text(router: Router) -> None:
    """Forced to write a role marker, the answer shows nothing of it."""
    ids = router.fast.tokenizer.encode("<|user|>", add_bos=False, parse_special=True)
    assert len(ids) == 1
    answer = router.complete("Ada has 3 shells.", logit_bias={ids[0]: 1000.0}, max_tokens=3)
    assert [token.id for token in answer.tokens] == ids * 3
    assert answer.text == ""


def test_closing_the_router_ends_a_stream_of_the_callers_own_thread() -> None:
    models = scripted_pairs.pair(33)
    models.fast.script = lambda ids: np.eye(scripted_pairs.N_VOCAB, dtype=np.float32)[0]
    router = Router(models.fast, models.slow, policy="never", batching=False)
    stream = router.stream("a")
    next(stream)
    router.close()
    with pytest.raises(RouterClosed):
        next(stream)
    assert models.all_free


def test_tokens_are_counted_as_they_are_read(router: Router) -> None:
    for prompt in ("lamp", QUESTION, [{"role": "system", "content": "s"}, *QUESTION]):
        asked = router.complete if isinstance(prompt, str) else router.chat
        answer = asked(prompt, max_tokens=1)  # type: ignore[operator]
        assert router.count_tokens(prompt) == answer.usage.prompt_tokens  # type: ignore[arg-type]
    assert router.count_tokens("lamp " * 3000) > router.fast.n_ctx
    for wrong, options in (("", {}), ([], {}), ("lamp", {"chat_template_kwargs": {"a": 1}}), ("lamp", {"tool": []})):
        with pytest.raises(InvalidRequest):
            router.count_tokens(wrong, **options)  # type: ignore[arg-type]
