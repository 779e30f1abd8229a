"""Policy files: what goes in comes out; what is no policy file is refused; the pair is checked."""

from __future__ import annotations

import errno
import json
import logging
import os
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from learned_cases import PAIR, card, features, full_policy, guarantee, logistic, mlp, monitor, positions, scorers
from safetensors import safe_open
from safetensors.numpy import save_file
from scripted_pairs import Pair, pair

from fsgen_router import Ledger, PolicyFileError, Router
from fsgen_router.policies import (
    Capped,
    Learned,
    Never,
    PolicyPairWarning,
    check_pair,
    files,
    fingerprint,
    guarantee_of,
    load_policy,
    make_policy,
    save_policy,
)
from fsgen_router.policies.cards import FORMAT, CurvePoint
from fsgen_router.policies.features import FEATURES

ROWS = features(200)
MARGIN = {"kind": "signal", "signal": "margin"}


def saved(path: Path, policy: Learned | None = None, **changes: object) -> Path:
    save_policy(path, policy or Learned(logistic(), 0.5), card(**changes))
    return path


def decisions(policy: Learned, count: int = 60) -> list[object]:
    state, found = policy.begin(Ledger()), []
    for signals, context in positions(count):
        state, decision = policy.decide(state, signals, context)
        found.append(decision)
    return found


# --- round trips ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", scorers())
def test_every_scorer_survives_bit_by_bit(tmp_path: Path, name: str) -> None:
    policy = Learned(scorers()[name], 0.1 + 0.2)
    loaded, _ = load_policy(saved(tmp_path / "p.safetensors", policy))
    assert loaded.threshold == policy.threshold
    assert loaded.name == policy.name
    assert loaded.digest == policy.digest
    assert np.array_equal(loaded.scorer.score(ROWS), policy.scorer.score(ROWS))
    assert [loaded.scorer.score_one(row) for row in ROWS.tolist()] == [
        policy.scorer.score_one(row) for row in ROWS.tolist()
    ]


@given(threshold=st.floats(allow_nan=False, allow_infinity=False), intercept=st.floats(-1e6, 1e6))
@settings(max_examples=40)
def test_numbers_survive_to_the_last_bit(
    tmp_path_factory: pytest.TempPathFactory, threshold: float, intercept: float
) -> None:
    policy = Learned(replace(logistic(), intercept=intercept), threshold)
    loaded, _ = load_policy(saved(tmp_path_factory.getbasetemp() / "numbers.safetensors", policy))
    assert (loaded.threshold, loaded.scorer.intercept) == (threshold, intercept)
    assert loaded.digest == policy.digest


def test_a_policy_with_every_part_decides_the_same(tmp_path: Path) -> None:
    policy = full_policy()
    loaded, _ = load_policy(saved(tmp_path / "p.safetensors", policy))
    assert (loaded.extent, loaded.span, loaded.hold, loaded.drift) == (
        policy.extent,
        policy.span,
        policy.hold,
        policy.drift,
    )
    assert decisions(loaded) == decisions(policy)
    assert {decision.reason for decision in decisions(loaded)} > {"span"}


def test_the_card_survives(tmp_path: Path) -> None:
    policy = Learned(logistic(), 0.5).certified(guarantee())
    loaded, read = load_policy(saved(tmp_path / "p.safetensors", policy))
    assert read == card(guarantee=policy.certificate)
    assert (loaded.method, read.method) == ("replace", "replace")
    assert loaded.certificate == policy.certificate
    assert loaded.pair == PAIR
    assert loaded.guarantee().holds


def test_a_curve_survives_where_older_versions_do_not_look(tmp_path: Path) -> None:
    points = (
        CurvePoint(threshold=0.25, n_prompts=7, escalation_rate=1 / 3, accuracy=1.0, risk=0.0),
        CurvePoint(threshold=0.5, n_prompts=7, escalation_rate=None, accuracy=6 / 7),
    )
    policy = Learned(logistic(), 0.5, curve=points).certified(guarantee())
    path = saved(tmp_path / "p.safetensors", policy)
    assert load_policy(path)[0].curve == points
    with safe_open(path, framework="np") as file:
        header = file.metadata()
    assert "curve" in header
    assert "curve" not in {**json.loads(header["policy"]), **json.loads(header["card"])}  # which refuse what is unknown
    assert load_policy(rewritten(path, curve=None))[0].curve == ()
    with pytest.raises(PolicyFileError, match="damaged"):
        load_policy(rewritten(path, curve='[{"threshold": 0.5}]'))


def test_the_guarantee_in_the_file_is_the_policys(tmp_path: Path) -> None:
    """A card cannot claim what the policy was not certified for."""
    loaded, read = load_policy(saved(tmp_path / "p.safetensors", guarantee=guarantee()))
    assert read.guarantee is None
    assert loaded.guarantee() is None


def test_the_header_is_readable_by_anyone(tmp_path: Path) -> None:
    with safe_open(saved(tmp_path / "p.safetensors"), framework="np") as file:
        header = file.metadata()
    assert json.loads(header["card"])["pair"]["slow"] == "large.gguf"
    assert json.loads(header["policy"])["scorer"]["kind"] == "logistic"
    assert header["fsgen_router.policy"] == "2"


@pytest.mark.parametrize("kind", [str, Path])
def test_a_file_is_a_short_form(tmp_path: Path, kind: type) -> None:
    path = saved(tmp_path / "calibrated.safetensors")
    assert make_policy(kind(path)).name == Learned(logistic(), 0.5).name
    with pytest.raises(PolicyFileError, match="there is no policy file"):
        make_policy(kind(tmp_path / "other.safetensors"))


# --- writing -------------------------------------------------------------------------------------


def test_an_old_file_stays_until_the_new_one_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "p.safetensors")
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(PolicyFileError, match="No space left"):
        saved(path, Learned(mlp(), 0.2))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["p.safetensors"]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PolicyFileError, match="cannot be written") as raised:
        saved(tmp_path / "nowhere" / "p.safetensors")
    assert raised.value.hint


def test_a_file_is_as_readable_as_others(tmp_path: Path) -> None:
    path, other = saved(tmp_path / "p.safetensors"), tmp_path / "other"
    other.write_text("")
    assert path.stat().st_mode == other.stat().st_mode


# --- what is no policy file ----------------------------------------------------------------------


def rewritten(path: Path, **header: object) -> Path:
    """The file with parts of its header replaced (None: left out)."""
    with safe_open(path, framework="np") as file:
        old, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    merged = {**old, **{name.replace("__", "."): value for name, value in header.items()}}
    save_file(tensors, path, {name: value for name, value in merged.items() if value is not None})
    return path


def changed_json(path: Path, part: str, **changes: object) -> Path:
    with safe_open(path, framework="np") as file:
        content = json.loads(file.metadata()[part])
    return rewritten(path, **{part: json.dumps({**content, **changes})})


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    for path in (tmp_path / "none.safetensors", tmp_path, tmp_path / "none" / "p.safetensors"):
        with pytest.raises(PolicyFileError) as raised:
            load_policy(path)
        assert raised.value.hint


def test_every_truncation_is_an_error(tmp_path: Path) -> None:
    path = saved(tmp_path / "p.safetensors")
    content = path.read_bytes()
    for size in [0, 1, 7, 8, 9, 100, len(content) // 2, len(content) - 1]:
        path.write_bytes(content[:size])
        with pytest.raises(PolicyFileError, match="cut off") as raised:
            load_policy(path)
        assert raised.value.hint


@pytest.mark.parametrize(
    "content",
    [
        b"hello world, this is text",
        b"\x80\x04\x95pickle",
        struct.pack("<Q", 2**60) + b"{}",
        struct.pack("<Q", 4) + b"{{{{",
    ],
)
def test_what_is_not_safetensors(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "p.safetensors"
    path.write_bytes(content)
    with pytest.raises(PolicyFileError):
        load_policy(path)


def test_random_damage_never_escapes_as_another_error(tmp_path: Path) -> None:
    path, rng = saved(tmp_path / "p.safetensors", full_policy()), np.random.default_rng(0)
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    refused = 0
    for _ in range(300):
        damaged = bytearray(content)
        for at in rng.integers(8, header, 3):
            damaged[at] = rng.integers(32, 127)
        path.write_bytes(damaged)
        try:
            load_policy(path)
        except PolicyFileError:
            refused += 1
    assert refused > 150


def test_a_file_of_the_first_format_is_read_as_it_was(tmp_path: Path) -> None:
    """It knows no check of prompts, and an older version would not know it either: hence the second format."""
    path = saved(tmp_path / "p.safetensors", Learned(logistic(), 0.5).certified(guarantee()), format=1)
    with safe_open(path, framework="np") as file:
        header = file.metadata()
    assert header["fsgen_router.policy"] == str(FORMAT) == str(json.loads(header["card"])["format"])
    settings = {k: value for k, value in json.loads(header["policy"]).items() if k != "inputs"}
    loaded, _ = load_policy(rewritten(path, fsgen_router__policy="1", policy=json.dumps(settings)))
    assert loaded.inputs is None
    assert loaded.guarantee().holds


def test_a_newer_format_asks_for_an_upgrade(tmp_path: Path) -> None:
    path = rewritten(saved(tmp_path / "p.safetensors"), fsgen_router__policy=str(FORMAT + 1))
    with pytest.raises(PolicyFileError, match=rf"format {FORMAT + 1}.*up to {FORMAT}.*upgrade"):
        load_policy(path)


def test_weights_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"weight": np.zeros(3)}, path)
    with pytest.raises(PolicyFileError, match="but no policy"):
        load_policy(path)


@pytest.mark.parametrize("part", ["policy", "card"])
def test_a_part_that_is_missing_or_damaged(tmp_path: Path, part: str) -> None:
    with pytest.raises(PolicyFileError, match=f"lacks its {part}"):
        load_policy(rewritten(saved(tmp_path / "p.safetensors"), **{part: None}))
    for damaged in ("", "{", "[]", '{"threshold": "high"}', "null"):
        with pytest.raises(PolicyFileError, match="is damaged"):
            load_policy(rewritten(saved(tmp_path / "p.safetensors"), **{part: damaged}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scorer": {"kind": "forest"}}, "unknown kind 'forest'.*this version knows"),
        ({"scorer": {}}, "unknown kind None"),
        ({"scorer": {"kind": "vmf"}}, "vmf lacks"),
        ({"scorer": {"kind": "logistic", "features": ["charm"], "intercept": 0.0}}, "unknown feature 'charm'"),
        ({"scorer": {"kind": "logistic", "features": list(FEATURES[:3]), "intercept": 0.0}}, "not of one shape"),
        ({"scorer": {"kind": "mlp", "features": ["margin"]}}, "mlp lacks"),
        ({"scorer": {"kind": "signal", "signal": ["entropy"]}}, "unknown signal|do not fit"),
        ({"scorer": {"kind": "logistic", "features": 5, "intercept": 0.0}}, "do not fit"),
        ({"scorer": {"kind": "platt", "inner": MARGIN, "slope": -1.0, "intercept": 0}}, "slope"),
        ({"guard": {"kind": "signal", "signal": "entropy"}}, "guard: .* is no OutlierGuard"),
            ({"inputs": {"kind": "signal", "signal": "entropy"}}, "inputs: .* is no PromptCheck"),
        ({"extent": 0}, "extent of 0"),
        ({"extent": "many"}, "damaged: extent"),
        ({"threshold": None}, "damaged: threshold"),
        ({"span": {"window": 0, "quantile": 0.5, "threshold": 0.5}}, "damaged: span"),
        ({"drift": {"edges": [0.5], "shares": [1.0]}}, "damaged: drift"),
        ({"surprise": 1}, "damaged: surprise"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = changed_json(saved(tmp_path / "p.safetensors"), "policy", **change)
    with pytest.raises(PolicyFileError, match=message) as raised:
        load_policy(path)
    assert raised.value.hint


def test_a_certificate_for_other_weights_is_suspended(tmp_path: Path) -> None:
    """Swapping the arrays under a header keeps the claim from holding, and the policy says so."""
    path = saved(tmp_path / "p.safetensors", Learned(logistic(), 0.5).certified(guarantee()))
    with safe_open(path, framework="np") as file:
        header, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors["scorer.weights"] = tensors["scorer.weights"] * 1.5
    save_file(tensors, path, header)
    assert load_policy(path)[0].guarantee().reasons == ("the policy is not the certified one",)


# --- another pair --------------------------------------------------------------------------------


def made_for(models: Pair, **changes: object) -> Learned:
    """A policy that was certified for this scripted pair, or for one with these differences."""
    made = fingerprint(models.fast, models.slow).model_copy(update=changes)
    return replace(Learned(logistic(), 0.5).certified(guarantee()), pair=made)


def test_the_pair_it_was_made_for_passes_without_a_word() -> None:
    models = pair(0)
    policy = made_for(models)
    assert check_pair(policy, models.fast, models.slow, method="replace") is policy
    assert check_pair(Never(), models.fast, models.slow, method="verify") == Never()
    nobodys = Learned(logistic(), 0.5)
    assert check_pair(nobodys, models.fast, models.slow, method="verify") is nobodys


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"vocabulary": "xyz"}, "another vocabulary"),
        ({"fast": "tiny.gguf"}, "fast is fast .* not tiny.gguf"),
        ({"slow_params": 7}, r"slow is slow \(10,000 parameters\), not slow \(7 parameters\)"),
    ],
)
def test_another_pair_warns_loudly_and_suspends(
    change: dict[str, object], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    models = pair(0)
    policy = made_for(models, **change)
    with (
        caplog.at_level(logging.WARNING, "fsgen_router"),
        pytest.warns(PolicyPairWarning, match=f"another pair .*{said}"),
    ):
        checked = check_pair(policy, models.fast, models.slow, method="replace")
    assert "policy_pair" in caplog.text
    assert isinstance(checked, Learned)
    assert checked.guarantee().reasons[0].startswith("made for another pair")
    assert decisions(checked) == decisions(policy)


def test_another_method_suspends_a_certificate_only() -> None:
    models = pair(0)
    policy = made_for(models)
    with pytest.warns(PolicyPairWarning, match="method replace, not verify"):
        checked = check_pair(policy, models.fast, models.slow, method="verify")
    assert guarantee_of(checked).reasons[0].startswith("certified with the method")
    uncertified = replace(policy, certificate=None)
    assert check_pair(uncertified, models.fast, models.slow, method="verify") is uncertified
    verified = replace(Learned(logistic(), 0.5).certified(guarantee(method="verify")), pair=policy.pair)
    # Short forms of one method.
    assert check_pair(verified, models.fast, models.slow, method="verify:exact") is verified


@pytest.mark.filterwarnings("ignore::fsgen_router.SwappedModelsWarning")
def test_a_router_runs_a_policy_with_its_method_and_warns_at_the_line_that_made_it(tmp_path: Path) -> None:
    models = pair(0)
    path = saved(tmp_path / "p.safetensors", made_for(models))
    for policy in (path, str(path), load_policy(path)[0]):
        with Router(models.fast, models.slow, policy=policy) as router:
            assert router.method.name == "replace"
            assert guarantee_of(router.policy, router.ledger).holds
    with pytest.warns(PolicyPairWarning) as warned, Router(models.fast, models.slow, policy=path, method="verify"):
        pass
    assert warned[0].filename == __file__
    other = pair(1)
    with pytest.warns(PolicyPairWarning), Router(other.slow, other.fast, policy=path) as router:
        assert guarantee_of(router.policy).reasons[0].startswith("made for another pair")


def test_a_cap_suspends() -> None:
    certified = Learned(logistic(), 0.5, drift=monitor()).certified(guarantee())
    assert guarantee_of(certified).holds
    assert guarantee_of(Capped(certified, max_calls=3)).reasons == ("a cap",)
    assert guarantee_of(Capped(certified.holding(0.1), 3)).reasons == ("a rate is held", "a cap")
    assert guarantee_of(Capped(Never(), 3)) is guarantee_of(Never()) is None
