"""Contrast and proxy: each step is what its formula says, in every setting that a Router runs it in."""

from __future__ import annotations

import asyncio
import math
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import pytest
from scripted_pairs import EOG, N_VOCAB, PIECES, pair, prompt, script, tokenizer

from fsgen_router import (
    ConfigurationError,
    Finished,
    Generation,
    InvalidRequest,
    Mask,
    Router,
    TextDelta,
    VocabularyMismatch,
)
from fsgen_router.adapters.scripted import ScriptedModel, ScriptedTextModel, ScriptedTokenizer
from fsgen_router.contracts.models import Role
from fsgen_router.methods import FSGEN_SETTINGS, Contrast, Proxy, make_method
from fsgen_router.policies import make_policy
from fsgen_router.rows.reading import FORBIDDEN, GREEDY, Read, Row, Scratch, Warp, choose_token, reduce_row

LIMIT = 16
SAMPLED = {"temperature": 0.9, "top_k": 12, "top_p": 0.95, "seed": 5}


def log_softmax(row: np.ndarray) -> np.ndarray:
    row = np.asarray(row, np.float64)
    return row - row.max() - math.log(np.exp(row - row.max()).sum())


def reference(method: str, fast: np.ndarray, slow: np.ndarray, tuned: np.ndarray, **numbers: float) -> np.ndarray:
    """The formulas of the papers, written down once more."""
    small, large, other = (np.asarray(row, np.float64) for row in (fast, slow, tuned))
    alpha, beta = numbers.get("alpha", 1.0 if method == "proxy" else 0.1), numbers.get("beta", 0.5)
    if method == "proxy":
        return large + alpha * (other - small)
    scores = {
        "contrast": small + beta * (large - small),
        "contrast:li": log_softmax(large) - log_softmax(small),
        "contrast:obrien": (1 + beta) * large - beta * small,
    }[method]
    return np.where(large >= math.log(alpha) + large.max() if alpha else large > -math.inf, scores, -math.inf)


def short_form(method: str, numbers: Mapping[str, float]) -> str:
    named = ",".join(f"{name}={value:g}" for name, value in numbers.items())
    return f"{method}{',' if ':' in method else ':'}{named}" if named else method


CASES = [
    ("contrast", {}),
    ("contrast", {"alpha": 0.1, "beta": 1.5}),
    ("contrast", {"alpha": 0.02, "beta": 0.0}),
    ("contrast", {"alpha": 0.0, "beta": 0.7}),
    ("contrast", {"alpha": 1.0}),
    ("contrast:li", {}),
    ("contrast:li", {"alpha": 0.3}),
    ("contrast:obrien", {}),
    ("contrast:obrien", {"alpha": 0.25, "beta": 2.0}),
    ("proxy", {}),
    ("proxy", {"alpha": 0.6}),
    ("proxy", {"alpha": 0.0}),
]
each_method = pytest.mark.parametrize(("method", "numbers"), CASES, ids=[short_form(*case) for case in CASES])


def step(method: str, rows: Sequence[np.ndarray], warp: Warp = GREEDY, uniform: float = 0.0) -> tuple[int, float]:
    """One step of a method on rows of logits, read as a backend reads them."""
    chosen, scratch = make_method(method), Scratch()
    names: tuple[Role, ...] = ("fast", "slow", "tuned")
    read = dict(zip(names, (reduce_row(row, Read(full=True), scratch) for row in rows), strict=True))
    return chosen.choose(
        0, {role: read[role] for role in chosen.roles}, lambda logits: choose_token(logits, warp, uniform)
    )


@each_method
@pytest.mark.parametrize("n_vocab", [21, 5_000, 151_936])
def test_a_step_is_what_the_formula_says(method: str, numbers: Mapping[str, float], n_vocab: int) -> None:
    """On random logits: the token, its log-probability, and what is drawn when sampling."""
    rng = np.random.default_rng(n_vocab)
    differs = 0
    for _ in range(5 if n_vocab > 50_000 else 40):
        shared = rng.normal(0, 3, n_vocab)
        rows = [(shared + rng.normal(0, 2, n_vocab)).astype(np.float32) for _ in range(3)]
        expected = reference(method, *rows, **numbers)
        token, logprob = step(short_form(method, numbers), rows)
        assert token == expected.argmax()
        assert logprob == pytest.approx(log_softmax(expected)[token], abs=1e-4)
        warp, uniform = Warp(temperature=1.3, top_k=50), float(rng.random())
        drawn, logprob = step(short_form(method, numbers), rows, warp, uniform)
        assert drawn == choose_token(expected, warp, uniform)[0]
        assert logprob == pytest.approx(log_softmax(expected)[drawn], abs=1e-4)
        differs += token != rows[1].argmax()
    assert differs or numbers.get("alpha") in (0.0, 1.0) or n_vocab > 50_000


def test_the_forms_are_one_family() -> None:
    """O'Brien's beta is FS-GEN's less 1; at FS-GEN's own half both models count alike."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        fast, slow = (rng.normal(0, 3, 300).astype(np.float32) for _ in range(2))
        first, second = (
            Contrast(form, 0.1, beta).scores(fast, slow) for form, beta in (("fsgen", 1.5), ("obrien", 0.5))
        )
        np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-5)
        half = Contrast().scores(fast, slow)
        likely = np.isfinite(half)
        np.testing.assert_allclose(half[likely], (fast + slow)[likely] / 2, rtol=1e-5, atol=1e-5)
        assert Contrast(beta=1.0).scores(fast, slow).argmax() == slow.argmax()
    assert Contrast() == Contrast(alpha=0.1, beta=0.5) == make_method("contrast")


def test_a_swapped_proxy_has_fs_gens_seats() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        fast, slow, tuned = (rng.normal(0, 3, 99).astype(np.float32) for _ in range(3))
        assert step("proxy:alpha=0.7", (fast, slow, tuned)) == step("proxy:fsgen,alpha=0.7", (tuned, slow, fast))


def test_what_a_backend_rules_out_stays_ruled_out() -> None:
    """-inf of any model's: no difference of two rows may make it the best."""
    rng = np.random.default_rng(2)
    for method in ("contrast", "contrast:li,alpha=0", "contrast:obrien,alpha=0", "proxy", "proxy:alpha=0.5"):
        for at in range(3 if "proxy" in method else 2):
            rows = [rng.normal(0, 3, 50).astype(np.float32) for _ in range(3)]
            rows[1][7] = 30.0
            rows[at][7] = -np.inf
            assert step(method, rows)[0] != 7


# --- through a Router ----------------------------------------------------------------------------


def three(case: int, **tuned: object) -> dict[Role, ScriptedModel]:
    """Three models that often agree, and whose sums of logits do not tie."""
    sizes = {"fast": 1000, "slow": 10_000, "tuned": 1000}
    made: dict[Role, ScriptedModel] = {}
    for number, (role, n_params) in enumerate(sizes.items()):
        options = {"n_seq": 2, "n_params": n_params, **(tuned if role == "tuned" else {})}
        logits = script(3 * case + number, shared=1000 + case, own=0.8, eog_bias=-3.0)
        made[role] = ScriptedModel(logits, tokenizer(), name=role, **options)
    return made


def make_router(models: Mapping[Role, ScriptedModel], **options: object) -> Router:
    return Router(models["fast"], models["slow"], tuned=models["tuned"], **options)


def by_hand(
    models: Mapping[Role, ScriptedModel],
    combine: Callable[..., np.ndarray],
    ids: Sequence[int],
    every: int,
    pick: Callable[[np.ndarray, int], int],
    extent: int = 1,
    allowed: np.ndarray | None = None,
) -> list[int]:
    """Every ``every``-th token and ``extent - 1`` more of the method's, in the plainest loop."""
    written: list[int] = []
    since = span = 0
    while len(written) < LIMIT and not (written and written[-1] in EOG):
        rows = [models[role].script([*ids, *written]) for role in ("fast", "slow", "tuned")]
        since, span = (since, span) if span else (since + 1, extent if since + 1 == every else 0)
        row = combine(*rows) if span else rows[0]
        row = row if allowed is None else np.where(allowed, row, FORBIDDEN)
        written.append(pick(np.asarray(row, np.float64), len(written)))
        since, span = (0, span - 1) if span else (since, 0)
    return written


def text_of(case: int) -> str:
    """A prompt whose text has the ids that the scripted tokenizer gives it again."""
    ids = [token for token in prompt(case) if token < 9]
    return b"".join(PIECES[token] for token in ids).decode() or "a"


def ids_of(answer: Generation) -> list[int]:
    return [token.id for token in answer.tokens]


def greedy(row: np.ndarray, _position: int) -> int:
    return int(row.argmax())


@each_method
@pytest.mark.parametrize(("every", "extent"), [(1, 1), (3, 1), (2, 3)])
def test_a_router_writes_what_the_formula_says(
    method: str, numbers: Mapping[str, float], every: int, extent: int
) -> None:
    """Streamed, in a coroutine, batching or not, with a twin, and asked in a request: one text."""
    policy, form = f"every:{every},span={extent}", short_form(method, numbers)
    for case in range(6):
        models, text = three(case), text_of(case)
        ids = tokenizer().encode(text, add_bos=True)
        wanted = by_hand(models, lambda *rows: reference(method, *rows, **numbers), ids, every, greedy, extent)
        for batching in (True, False):
            with make_router(models, policy=policy, method=form, batching=batching) as router:
                answer = router.complete(text, max_tokens=LIMIT)
                assert ids_of(answer) == wanted, case
                assert answer.method == make_method(form).name == router.method.name
                events = list(router.stream(text, max_tokens=LIMIT))
                assert isinstance(events[-1], Finished)
                assert ids_of(events[-1].generation) == wanted
                assert "".join(e.text for e in events if isinstance(e, TextDelta)) == answer.text
                assert ids_of(asyncio.run(router.acomplete(text, max_tokens=LIMIT))) == wanted
        with make_router(models, policy="never", method="replace") as router:
            twin = router.with_policy(policy, method=form)
            assert ids_of(twin.complete(text, max_tokens=LIMIT)) == wanted
            assert ids_of(router.complete(text, max_tokens=LIMIT, policy=policy, method=form)) == wanted
            # A policy that does not ask: the fast model's own token stands.
            alone = router.complete(text, max_tokens=LIMIT, policy="never", method=form)
            assert ids_of(alone) == by_hand(models, reference, ids, 999, greedy)
            assert alone.usage.slow.forwards == alone.usage.tuned.forwards == 0
            beside = router.complete(text, max_tokens=LIMIT, policy=policy, method=form, baseline=True)
            assert ids_of(beside) == wanted
            assert beside.baseline is not None
            assert ids_of(beside.baseline) == by_hand({**models, "fast": models["slow"]}, reference, ids, 999, greedy)


@pytest.mark.parametrize("method", ["contrast:alpha=0.05,beta=1.5", "contrast:li", "proxy"])
def test_sampling_draws_from_the_methods_own_distribution(method: str) -> None:
    """In distribution: of many seeds, each token comes as often as the method's logits say."""
    models = three(3)
    text = text_of(3)
    ids = tokenizer().encode(text, add_bos=True)
    name, _, rest = method.partition(":")
    numbers = {key: float(value) for key, _, value in (part.partition("=") for part in rest.split(",")) if value}
    form = f"{name}:li" if "li" in rest.split(",") else name
    rows = [models[role].script(ids) for role in ("fast", "slow", "tuned")]
    expected = np.exp(log_softmax(reference(form, *rows, **numbers)))
    with make_router(models, policy="always", method=method) as router:
        drawn = [router.complete(text, max_tokens=1, temperature=1.0, seed=seed).tokens[0].id for seed in range(2000)]
    share = np.bincount(drawn, minlength=N_VOCAB) / len(drawn)
    assert np.abs(share - expected).max() < 0.04
    assert (share > 0).sum() > 1
    assert not share[expected < 1e-12].any()


@each_method
def test_a_mask_holds_for_all_models(method: str, numbers: Mapping[str, float]) -> None:
    class Only:
        allowed = np.isin(np.arange(N_VOCAB), (0, 1, 5, 6))

        def mask(self, answer: Sequence[int]) -> Mask:
            return Mask(allowed=self.allowed)

    for case in range(8):
        models, text = three(case), text_of(case)
        ids = tokenizer().encode(text, add_bos=True)

        def combine(*rows: np.ndarray) -> np.ndarray:
            return reference(method, *(np.where(Only.allowed, row, FORBIDDEN) for row in rows), **numbers)

        with make_router(models, policy="every:2", method=short_form(method, numbers)) as router:
            answer = router.complete(text, max_tokens=LIMIT, constraint=Only())
        assert ids_of(answer) == by_hand(models, combine, ids, 2, greedy, allowed=Only.allowed)


# --- counters ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["replace", "contrast", "contrast:li", "contrast:obrien", "proxy"])
def test_corrections_are_the_papers_mismatches(method: str) -> None:
    """Under ``always`` each token is one escalation; the CoF is corrections / escalations, against the fast model's
    own choice, and for proxy against the tuned one's too."""
    mismatches = tuned_mismatches = tokens = 0
    for case in range(20):
        models, text = three(case), text_of(case)
        ids = tokenizer().encode(text, add_bos=True)

        def combine(fast: np.ndarray, slow: np.ndarray, tuned: np.ndarray) -> np.ndarray:
            return slow if method == "replace" else reference(method, fast, slow, tuned)

        wanted = by_hand(models, combine, ids, 1, greedy)
        own = {
            role: [int(models[role].script([*ids, *wanted[:k]]).argmax()) for k in range(len(wanted))]
            for role in models
        }
        with make_router(models, policy="always", method=method) as router:
            answer = router.complete(text, max_tokens=LIMIT)
        assert ids_of(answer) == wanted
        usage = answer.usage
        assert usage.escalations == usage.decisions == usage.tokens == len(wanted)
        assert usage.corrections == sum(a != b for a, b in zip(wanted, own["fast"], strict=True))
        assert [t.fast_choice for t in answer.tokens] == own["fast"]
        assert [t.slow_choice for t in answer.tokens] == own["slow"]
        # The pair's own disagreement is no method's.
        assert usage.disagreements == sum(a != b for a, b in zip(own["fast"], own["slow"], strict=True))
        if method == "proxy":
            assert usage.tuned_corrections == sum(a != b for a, b in zip(wanted, own["tuned"], strict=True))
            assert [t.tuned_choice for t in answer.tokens] == own["tuned"]
            assert usage.tuned.forwards == len(wanted)
        else:
            assert usage.tuned_corrections == usage.tuned.forwards == 0
            assert all(token.tuned_choice is None for token in answer.tokens)
        mismatches, tokens = mismatches + usage.corrections, tokens + usage.tokens
        tuned_mismatches += usage.tuned_corrections
    assert 0 < mismatches < tokens
    assert (0 < tuned_mismatches < tokens) == (method == "proxy")


def test_fs_gens_speculative_decoding_counts_its_mismatches() -> None:
    """K drafts, one slow forward, the slow model's token behind the accepted ones: its loop, written down plainly."""
    policy, method = FSGEN_SETTINGS["speculative"]
    drafts, mismatches = 5, 0
    for case in range(30):
        models, text = three(case), text_of(case)
        fast, slow = models["fast"].script, models["slow"].script
        ids = tokenizer().encode(text, add_bos=True)
        written: list[int] = []
        bad = 0
        while len(written) < LIMIT and not (written and written[-1] in EOG):
            draft: list[int] = []
            while len(draft) < min(drafts, LIMIT - len(written)) and not (draft and draft[-1] in EOG):
                draft.append(int(fast([*ids, *written, *draft]).argmax()))
            for token in draft:
                written.append(int(slow([*ids, *written]).argmax()))
                if written[-1] != token:
                    bad += 1
                    break
            else:
                if len(written) < LIMIT and written[-1] not in EOG:
                    written.append(int(slow([*ids, *written]).argmax()))
        with make_router(models, policy=policy, method=method) as router:
            answer = router.complete(text, max_tokens=LIMIT)
        assert ids_of(answer) == written
        assert answer.usage.corrections == bad
        mismatches += bad
    assert mismatches > 10


def test_fs_gens_settings_are_those_of_its_methods() -> None:
    for policy, method in FSGEN_SETTINGS.values():
        assert make_method(method).name == method
        assert make_policy(policy).asks
    assert make_method(FSGEN_SETTINGS["contrastive"][1]) == Contrast()
    assert make_method(FSGEN_SETTINGS["proxy"][1]) == Proxy()


def test_an_audit_labels_both_models_own_choices() -> None:
    """Whatever the method wrote: what disagrees is the two models, at every position of the answer."""
    for case in range(8):
        models, text = three(case), text_of(case)
        ids = tokenizer().encode(text, add_bos=True)
        with make_router(models, policy="every:3", method="contrast:beta=1.5", audit=1.0) as router:
            answer = router.complete(text, max_tokens=LIMIT)
        written = ids_of(answer)
        for role in ("fast", "slow"):
            own = [int(models[role].script([*ids, *written[:k]]).argmax()) for k in range(len(written))]
            assert [getattr(token, f"{role}_choice") for token in answer.tokens] == own
        assert answer.usage.audited
        assert answer.usage.disagreement_rate is not None


def test_each_models_rows_cost_one_forward() -> None:
    """Caught up as always: one forward of each model where the policy asks, and no whole row where it never does."""
    models, text = three(4), text_of(4)
    with make_router(models, policy="every:4", method="proxy") as router:
        usage = router.complete(text, max_tokens=LIMIT).usage
        assert usage.escalations == usage.slow.forwards == usage.tuned.forwards > 1
        assert usage.fast.forwards == usage.tokens
        assert usage.tuned.catchup == usage.slow.catchup > 0
        report = router.complete(text, max_tokens=LIMIT).report()
        three_models = report.flops.routed
        parts = [2.0 * model.n_params * getattr(report.usage, role).positions for role, model in models.items()]
        assert three_models == sum(parts)
        read: list[Read] = [read for work in models["fast"].works for _, read in work.reads]
        assert all(one.full for one in read)
        models["fast"].works.clear()
        router.complete(text, max_tokens=LIMIT, policy="never")
        assert not any(one.full for work in models["fast"].works for _, one in work.reads)


def test_a_row_that_was_masked_is_copied_once() -> None:
    """A row of 152,000 logits is 0.6 MB: the copy that a mask needs is handed on as it is."""
    logits = np.random.default_rng(0).normal(0, 1, 1 << 20).astype(np.float32)
    allowed, scratch = np.arange(len(logits)) % 2 == 0, Scratch()
    plain = reduce_row(logits, Read(full=True), scratch)
    assert plain.logits is not None
    assert not np.may_share_memory(plain.logits, logits)
    tracemalloc.start()
    try:
        masked = reduce_row(logits, Read(full=True, mask=Mask(allowed=allowed)), scratch)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert np.array_equal(masked.logits, np.where(allowed, logits, FORBIDDEN))
    assert peak < 1.6 * logits.nbytes


# --- what does not fit ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("contrast:alpha=1.5", "alpha=1.5.*between 0 and 1"),
        ("contrast:alpha=-0.1", "alpha=-0.1"),
        ("contrast:alpha=nan", "alpha=nan"),
        ("contrast:beta=-1", "beta=-1.*at least 0"),
        ("contrast:beta=inf", "beta=inf"),
        ("contrast:li,beta=0.5", "beta with the form li"),
        ("contrast:obrian", "unknown part 'obrian'.*did you mean 'obrien'.*forms: fsgen, li, obrien"),
        ("contrast:gamma=1", "unknown part 'gamma=1'.*each once: alpha=..., beta=..."),
        ("contrast:alpha", "unknown part 'alpha'"),
        ("contrast:alpha=0.1,alpha=0.2", "unknown part 'alpha=0.2'.*each once"),
        ("contrast:li,obrien", "unknown part 'obrien'"),
        ("contrast:alpha=much", "'much' in method"),
        ("contrast:", "examples: .*contrast:li"),
        ("contrst", "unknown method 'contrst'.*examples"),
        ("replace:alpha=1", "unknown method"),
        ("proxy:alpha=-1", "alpha=-1.*at least 0"),
        ("proxy:beta=1", "unknown part 'beta=1'.*forms: fsgen; each once: alpha="),
        ("proxy:alpha=inf", "alpha=inf"),
    ],
)
def test_wrong_numbers_and_names_are_refused_with_what_exists(method: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_method(method)


def test_a_method_is_made_again_of_its_name() -> None:
    for form in ("contrast", "contrast:beta=2", "contrast:li", "contrast:obrien,alpha=0.3", "proxy", "proxy:fsgen"):
        made = make_method(form)
        assert make_method(made.name) == made
    with pytest.raises(ConfigurationError, match=r"unknown form 'other' of contrast.*fsgen, li, obrien"):
        Contrast("other")
    with pytest.raises(ConfigurationError, match="alpha=2"):
        Contrast(alpha=2)
    with pytest.raises(ConfigurationError, match="alpha=-2"):
        Proxy(alpha=-2)


def test_a_tuned_model_that_is_missing_is_asked_for() -> None:
    models = pair(1)
    with pytest.raises(ConfigurationError, match=r"proxy:alpha=1 reads a tuned model.*tuned=\.\.\.\) or --tuned"):
        Router(models.fast, models.slow, method="proxy")
    with Router(models.fast, models.slow, policy="never", method="replace") as router:
        with pytest.raises(ConfigurationError, match="reads a tuned model"):
            router.with_policy("always", method="proxy")
        with pytest.raises(InvalidRequest, match="reads a tuned model"):
            router.complete("a", method="proxy")
        assert router.tuned is None


def test_a_tuned_model_brings_its_method() -> None:
    models = three(2)
    with make_router(models) as router:
        assert router.method.name == "proxy:alpha=1"
        assert router.policy.name == "budget:0.2"
        assert router.tuned is models["tuned"]
        assert "tuned='tuned'" in repr(router)
        with pytest.raises(AttributeError, match="tuned of a Router is fixed"):
            router.tuned = None
        # One that no method of the request reads is left alone.
        usage = router.complete("a", max_tokens=6, policy="always", method="replace").usage
        assert usage.tuned.forwards == 0
    with make_router(models, method="verify") as router:
        assert router.method.name == "verify:exact"


def test_a_tuned_model_that_cannot_sit_there_is_refused() -> None:
    models = three(1)
    endpoint = ScriptedTextModel(lambda request: ["a"])
    with pytest.raises(ConfigurationError, match=r"cannot be the tuned model.*no logits"):
        Router(models["fast"], models["slow"], tuned=endpoint)
    with pytest.raises(ConfigurationError, match=r"no method reads a tuned model beside it.*leave tuned out"):
        Router(models["fast"], endpoint, tuned=models["tuned"])
    with pytest.raises(ConfigurationError, match="load it twice"):
        Router(models["fast"], models["slow"], tuned=models["slow"])
    for method in ("contrast", "proxy"):
        with pytest.raises(ConfigurationError, match=f"scripted-text gives text, no logits.*{method}.*use the method"):
            Router(models["fast"], endpoint, method=method)
    with pytest.raises(ConfigurationError, match="unknown backend"):
        Router(models["fast"], models["slow"], tuned="lama_cpp:small.gguf")


def test_all_three_vocabularies_are_compared() -> None:
    models = three(1)
    mixed = list(PIECES)
    mixed[3], mixed[4] = mixed[4], mixed[3]
    other = ScriptedModel(script(1), ScriptedTokenizer(mixed, eog=EOG, special=[18]), name="mixed")
    with pytest.raises(VocabularyMismatch, match=r"fast and mixed have different vocabularies: id 3 is b' ' in fast"):
        Router(models["fast"], models["slow"], tuned=other)


@pytest.mark.parametrize("short", ["fast", "slow", "tuned"])
@pytest.mark.parametrize("method", ["contrast:beta=1.5", "proxy"])
def test_vocabularies_are_cut_to_the_shortest(method: str, short: Role) -> None:
    """FS-GEN's way, too: ids that one model lacks are never written, and every row is read up to where all have it."""
    longer = ScriptedTokenizer([*PIECES, b"x", b"y", b"z"], eog=EOG, special=[18])
    for case in range(6):
        wide = three(case)
        models: dict[Role, ScriptedModel] = {}
        for role, model in wide.items():
            own = model.script

            def stretched(ids: Sequence[int], own: Callable = own) -> np.ndarray:
                return np.concatenate([own(ids), np.full(3, 9.0, np.float32)])

            models[role] = (
                model if role == short else ScriptedModel(stretched, longer, name=role, n_params=model.n_params)
            )
        text = text_of(case)
        ids = tokenizer().encode(text, add_bos=True)
        numbers = {"beta": 1.5} if "beta" in method else {}
        combine = partial(reference, method.partition(":")[0], **numbers)
        wanted = by_hand(wide, combine, ids, 2, greedy)
        with pytest.warns(UserWarning, match="which no model will write"):
            router = make_router(models, policy="every:2", method=method)
        with router:
            assert ids_of(router.complete(text, max_tokens=LIMIT)) == wanted
            assert router.shared is not None
            assert router.shared.n_vocab == N_VOCAB < longer.n_vocab


def test_the_shortest_context_and_the_fewest_sequences_count() -> None:
    models = three(5, n_ctx=12, n_seq=1)
    with make_router(models, policy="always", method="proxy") as router:
        answer = router.complete("ab", max_tokens=LIMIT, logit_bias=dict.fromkeys(EOG, -100.0))
        assert answer.finish_reason == "context"
        assert answer.usage.prompt_tokens + answer.usage.tokens <= 12
        assert router._pair.n_seq == 1
        longer = router.complete("ab", max_tokens=LIMIT, method="replace", logit_bias=dict.fromkeys(EOG, -100.0))
        assert len(longer.tokens) == LIMIT


def test_a_tuned_model_that_fails_costs_quality_not_the_answer() -> None:
    models = three(6, fail_after=1)
    with make_router(models, policy="every:2", method="proxy") as router:
        answer = router.complete(text_of(6), max_tokens=LIMIT, logit_bias=dict.fromkeys(EOG, -100.0))
        assert "told to fail" in str(answer.degraded)
        assert len(answer.tokens) == LIMIT
        assert sum(token.source == "slow" for token in answer.tokens) == 1


def test_rows_that_share_no_token_fail_their_own_request() -> None:
    nothing = np.full(5, -np.inf, np.float32)
    row = Row(token=0, logprob=0.0, argmax=0, argmax_logprob=0.0, log_partition=0.0, logits=nothing)
    with pytest.raises(ConfigurationError, match="no distribution"):
        Contrast().choose(0, {"fast": row, "slow": row}, lambda logits: choose_token(logits, GREEDY, 0.0))
