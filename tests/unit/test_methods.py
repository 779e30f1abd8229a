"""The seam for methods: one that reads several models' rows, defined here alone, and exactly what it promises."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from scripted_pairs import EOG, N_VOCAB, Vocabulary, pair, prompt, script, tokenizer

import fsgen_router.decode
from fsgen_router import ConfigurationError, Generation, Ledger, Mask
from fsgen_router.adapters.scripted import ScriptedModel
from fsgen_router.contracts.methods import Draw
from fsgen_router.contracts.models import Role
from fsgen_router.decode import Engine, Request, TextPrompt
from fsgen_router.methods import Replace, Verify, make_method
from fsgen_router.policies import make_policy
from fsgen_router.rows.acceptance import Rule
from fsgen_router.rows.reading import GREEDY, Row, Warp, draw, hashed_uniform, warped
from fsgen_router.run import drivers
from fsgen_router.run.workers import Workers

MODES = ("alone", "batching")
LIMIT = 20
SAMPLED = Warp(temperature=0.9, top_k=12, top_p=0.95)


def logs(logits: np.ndarray) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


def contrast(fast: np.ndarray, slow: np.ndarray, beta: float = 1.5, alpha: float = 0.1) -> np.ndarray:
    """Contrastive decoding: s + beta (l - s) where the slow model finds a token likely at all."""
    small, large = logs(fast), logs(slow)
    return np.where(large >= np.log(alpha) + large.max(), small + beta * (large - small), -np.inf)


def proxy(fast: np.ndarray, slow: np.ndarray, tuned: np.ndarray) -> np.ndarray:
    """Proxy tuning: what tuning changed of the small model is added to the large one."""
    return slow + tuned - fast


@dataclass(frozen=True)
class Combined:
    """A method that makes new logits of all models' rows."""

    name: str
    roles: tuple[Role, ...]
    combine: Callable[..., np.ndarray]
    rule: Rule | None = None
    draft_len: int = 0

    @property
    def whole_rows(self) -> tuple[Role, ...]:
        return self.roles

    def choose(self, draft: int | None, rows: Mapping[Role, Row], draw: Draw) -> tuple[int, float]:
        assert set(rows) == set(self.roles)
        return draw(self.combine(*(rows[role].logits for role in self.roles)))


CONTRAST = Combined("contrast", ("fast", "slow"), contrast)
PROXY = Combined("proxy", ("fast", "slow", "tuned"), proxy)


def three(case: int, *, fails: int | None = None) -> dict[Role, ScriptedModel]:
    both = pair(case).models
    return {**both, "tuned": ScriptedModel(script(case + 7, own=0.5), tokenizer(), name="tuned", fail_after=fails)}


def run(
    models: Mapping[Role, ScriptedModel],
    method: object,
    policy: str,
    ids: Sequence[int],
    mode: str = "alone",
    **options,
) -> Generation:
    """One answer at the level of engine and driver, whichever models there are."""
    read_ahead = options.pop("read_ahead", 0)
    engine = Engine(
        Request(**{"prompts": dict.fromkeys(models, ids), "key": "case", "max_tokens": LIMIT, **options}),
        policy=make_policy(policy),
        method=make_method(method),
        vocabulary=Vocabulary(),
        contexts={role: model.n_ctx for role, model in models.items()},
        ledger=Ledger(),
        read_ahead=read_ahead,
    )
    if mode == "alone":
        list(drivers.run(engine, models))
    else:
        with_workers(engine, models)
    for model in models.values():  # every sequence was given back
        for sequence in [model.open([]).sequence for _ in range(model.n_seq)]:
            model.close(sequence)
    assert engine.generation is not None
    return engine.generation


def with_workers(engine: Engine, models: Mapping[Role, ScriptedModel]) -> None:
    workers = Workers(models)
    try:
        list(drivers.run_live(engine, models, {role: workers._of(role) for role in models}))
    finally:
        workers.close()


def by_hand(models: Mapping[Role, ScriptedModel], method: Combined, ids, every: int, extent: int, warp, seed, allowed):
    """Every ``every``-th token and ``extent - 1`` more of the method's, in the plainest loop."""
    written, since, span = [], 0, 0
    while len(written) < LIMIT and not (written and written[-1] in EOG):
        rows = {role: model.script([*ids, *written]) for role, model in models.items()}
        since, span = (since, span) if span else (since + 1, extent if since + 1 == every else 0)
        logits = np.asarray(method.combine(*(rows[role] for role in method.roles)) if span else rows["fast"])
        logits = np.where(allowed, logits, -np.inf)
        uniform = hashed_uniform(seed, "case", len(written), "token")
        written.append(int(logits.argmax()) if warp.greedy else draw(*warped(logits, warp), uniform))
        since, span = (0, span - 1) if span else (since, 0)
    return written


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("every", "extent"), [(1, 1), (2, 1), (3, 4)])
@pytest.mark.parametrize("warp", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("method", [CONTRAST, PROXY], ids=["contrast", "proxy"])
def test_a_method_of_several_rows_writes_what_its_formula_says(
    method: Combined, warp: Warp, every: int, extent: int, mode: str
) -> None:
    """Exactly: each role's row at each position that an escalation covers, drawn as the request draws."""
    differs = 0
    for case in range(30):
        models, ids = three(case), prompt(case)
        models = {role: models[role] for role in method.roles}
        policy = f"every:{every},span={extent}"
        found = run(models, method, policy, ids, mode, warp=warp, seed=case, read_ahead=case % 3)
        expected = by_hand(models, method, ids, every, extent, warp, case, np.ones(N_VOCAB, bool))
        assert [token.id for token in found.tokens] == expected, case
        assert found.degraded is None
        plain = run(three(case), Replace(), policy, ids, warp=warp, seed=case)
        differs += [token.id for token in plain.tokens] != expected
        for token in found.tokens:
            if token.source == "slow":  # both models were read there
                assert None not in (token.fast_choice, token.slow_choice)
                assert token.logprob is not None
                assert token.logprob <= 0
        # Nobody reads a position twice: the fast row of a proposal counts.
        assert found.usage.fast.forwards == len(found.tokens)
        assert (found.usage.tuned.forwards > 0) == ("tuned" in method.roles and found.usage.slow_tokens > 0)
    assert differs > 5


class Only:
    """Some tokens alone are allowed."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.allowed = np.isin(np.arange(N_VOCAB), ids)

    def mask(self, answer: Sequence[int]) -> Mask:
        return Mask(allowed=self.allowed)


def test_no_sum_of_rows_lifts_what_a_mask_forbids() -> None:
    """Weights that sum to -1 would make the forbidden tokens the best."""
    against = Combined("against", ("fast", "slow"), lambda fast, slow: fast - 2 * slow)
    only = Only((0, 1, 5, 6))
    for case in range(20):
        models = pair(case).models
        found = run(models, against, "every:2", prompt(case), constraint=only)
        assert [t.id for t in found.tokens] == by_hand(models, against, prompt(case), 2, 1, GREEDY, 0, only.allowed)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fails", [0, 1, 3])
def test_a_third_model_that_fails_costs_quality_not_the_answer(fails: int, mode: str) -> None:
    for case in range(10):
        whole = run(three(case), PROXY, "every:3,span=2", prompt(case), mode)
        found = run(three(case, fails=fails), PROXY, "every:3,span=2", prompt(case), mode)
        if whole.usage.tuned.forwards <= fails:
            assert found.degraded is None
            continue
        assert "told to fail" in str(found.degraded)
        at = [n for n, token in enumerate(whole.tokens) if token.source == "slow"][fails]
        assert [t.id for t in found.tokens[:at]] == [t.id for t in whole.tokens[:at]]
        assert {token.source for token in found.tokens[at:]} == {"fast"}
        assert found.tokens[-1].id in EOG or len(found.tokens) == LIMIT


def test_a_method_whose_rows_nobody_gives_is_refused() -> None:
    models, ids = pair(1).models, prompt(1)
    with pytest.raises(ConfigurationError, match="reads a tuned model, and there is none"):
        run(models, PROXY, "every:2", ids)
    assert run(models, PROXY, "never", ids).tokens  # nothing is asked of it
    with pytest.raises(ConfigurationError, match="has a rule and reads rows of fast and slow"):
        run(models, Combined("both", ("fast", "slow"), contrast, rule=Rule(), draft_len=3), "every:2", ids)
    with pytest.raises(ConfigurationError, match="gives text, no logits"):
        run(models, CONTRAST, "every:2", ids, text=TextPrompt(prompt="a"))
    with pytest.raises(ConfigurationError, match="no distribution"):
        run(models, Combined("nothing", ("slow",), lambda slow: slow * np.nan), "every:1", ids)


def test_the_methods_there_are_read_the_slow_model_alone() -> None:
    for method in (Replace(), Verify()):
        assert (method.roles, method.whole_rows) == (("slow",), ())
    with pytest.raises(ConfigurationError, match="roles"):
        make_method(type("Old", (), {"rule": None, "draft_len": 0, "choose": None})())


def test_an_act_imports_only_from_files_before_it() -> None:
    """The order that the room's docstring gives; nothing else is in the room."""
    order = re.findall(r"^(\w+)  +\S", fsgen_router.decode.__doc__ or "", re.MULTILINE)
    files = {path.stem: path for path in Path(fsgen_router.decode.__file__).parent.glob("*.py")}
    assert set(files) == {*order, "__init__"}
    for name in order:
        source = files[name].read_text()
        used = re.findall(r"^ *from \.(\w+) import", source, re.MULTILINE)
        used += [
            part for line in re.findall(r"^ *from \. import (.*)", source, re.MULTILINE) for part in line.split(", ")
        ]
        assert all(order.index(other) < order.index(name) for other in used), name
        assert len(source.splitlines()) <= 300
