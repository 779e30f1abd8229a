"""The reference family's training in small: matched members, an order of rows, finished models that answer."""

from __future__ import annotations

import importlib
import json
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

pytest.importorskip("torch")
import itertools

import torch
from safetensors import safe_open
from safetensors.numpy import load_file

from fsgen_router import Router
from fsgen_router.adapters.llama_cpp import LlamaCppModel
from fsgen_router.reference import world

SCRIPTS = Path(__file__).parents[2] / "examples" / "reference_pair"
SIZES = ("43k", "157k")
ROWS = 300


def run(script: str, *arguments: str | Path) -> str:
    return run_python(str(SCRIPTS / script), *arguments)


def run_python(*arguments: str | Path) -> str:
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def train(rows: Path, out: Path, *arguments: str, sizes: Sequence[str] = SIZES) -> str:
    return run("family.py", rows, "--out", out, "--sizes", *sizes, "--batch", "4", "--tokens", "30e3", *arguments)


@pytest.fixture(scope="module")
def scripts() -> Iterator[None]:
    """The scripts' folder on the path, as it is when one of them is run."""
    sys.path.insert(0, str(SCRIPTS))
    yield
    sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="module")
def family(scripts: None) -> ModuleType:
    return importlib.import_module("family")


@pytest.fixture(scope="module")
def rows_of(scripts: None) -> ModuleType:
    return importlib.import_module("rows")


@pytest.fixture(scope="module")
def tokenizer(scripts: None):  # type: ignore[no-untyped-def]
    return importlib.import_module("tokenizer").build()


@pytest.fixture(scope="module")
def rows(rows_of: ModuleType, tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:  # type: ignore[no-untyped-def]
    path = tmp_path_factory.mktemp("rows") / "rows.npy.xz"
    block = importlib.import_module("train").chunk_of(tokenizer, 0, seed=1)[: 4 * ROWS]
    rows_of.write(path, rows_of.pack(block)[:ROWS])
    return path


@pytest.fixture(scope="module")
def trained(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("family")
    train(rows, out, "--seeds", "1", "2")
    return out


def test_rows_hold_every_example_whole(rows_of: ModuleType, tokenizer) -> None:  # type: ignore[no-untyped-def]
    block = importlib.import_module("train").chunk_of(tokenizer, 3, seed=1)[:200]
    packed = rows_of.pack(block)
    found = []
    for row in packed:
        ids = np.where(row < 0, ~row, row)
        starts = [*np.flatnonzero(ids == tokenizer.bos_token_id), len(row)]
        found += [(tuple(ids[a:b]), tuple(row[a:b] >= 0)) for a, b in itertools.pairwise(starts)]
    wanted = {(tuple(ids), tuple(trained)) for ids, trained in block}
    # The last example of a row is followed by padding, which nothing is learned from.
    assert len(found) == len(block)
    for ids, trained in found:
        assert any(ids[: len(i)] == i and trained[: len(t)] == t and not any(trained[len(t) :]) for i, t in wanted)
    assert packed.shape[1] == rows_of.ROW
    assert len(packed) < 0.5 * len(block)


def test_an_example_in_a_row_is_learned_as_if_alone(
    family: ModuleType,
    rows_of: ModuleType,
    tokenizer,  # type: ignore[no-untyped-def]
) -> None:
    block = importlib.import_module("train").chunk_of(tokenizer, 0, seed=1)[:40]
    model = importlib.import_module("recipe").make_model(family.SIZES["43k"], len(tokenizer), seed=3)
    with torch.no_grad():
        together = family.loss(model, torch.from_numpy(rows_of.pack(block))).item()
        total = count = 0.0
        for ids, trained in block:
            logits = model(torch.tensor([ids])).logits[0, :-1]
            labels = torch.tensor([t if on else -100 for t, on in zip(ids, trained, strict=True)])[1:]
            total += torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum").item()
            count += (labels != -100).sum().item()
    assert together == pytest.approx(total / count, abs=2e-5)


def test_each_epoch_shows_every_row_once_in_an_order_of_its_seed(family: ModuleType) -> None:
    device = torch.device("cpu")
    first, other = (family.Order(20, 4, seed, device) for seed in (1, 2))
    epochs = [torch.cat([first(step).clone() for step in range(start, start + 5)]) for start in (0, 5)]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(family.HELD_OUT, family.HELD_OUT + 20))
    assert epochs[0].tolist() != epochs[1].tolist()
    assert first(7).tolist() == family.Order(20, 4, 1, device)(7).tolist()
    assert first(0).tolist() != other(0).tolist()


def test_members_are_matched_and_learn(trained: Path) -> None:
    about = json.loads((trained / "family.json").read_text())
    assert set(about["members"]) == {"43k-1", "157k-1", "43k-2", "157k-2"}
    assert about["state"]["tokens"] >= 30e3
    assert about["state"]["progress"] == 1
    for name in about["members"]:
        losses = [row["held_out_loss"][name] for row in about["state"]["history"]]
        assert losses[-1] < losses[0]
    weights = load_file_bf16(trained / "family-1.safetensors")
    assert not torch.equal(weights["43k-1/norm.weight"], weights["43k-2/norm.weight"])


def load_file_bf16(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def test_a_paused_training_ends_with_the_same_weights(rows: Path, trained: Path, tmp_path: Path) -> None:
    command, sizes = ("--seeds", "1", "2"), SIZES[:1]  # a member's training does not depend on who else is trained
    said = train(rows, tmp_path, *command, "--pause-after", "0.01", sizes=sizes)
    assert "the same command goes on" in said
    train(rows, tmp_path, *command, sizes=sizes)
    whole, paused = (load_file_bf16(folder / "family-1.safetensors") for folder in (trained, tmp_path))
    assert paused
    assert paused.keys() == {name for name in whole if name.startswith(sizes[0])}
    assert all(torch.equal(whole[name], paused[name]) for name in paused)
    assert "finished" in train(rows, tmp_path, *command, sizes=sizes)


def test_a_training_that_the_clock_ends_has_come_down_to_its_floor(rows: Path, tmp_path: Path) -> None:
    """Of three seeds as many stay as the time allows, and the schedule still reaches its end."""
    # The time of a step is taken over few of them, so that a slow machine gets there, too.
    hurried = f"import sys; sys.path.insert(0, {str(SCRIPTS)!r}); import family; family._TRIAL = 3; family.main()"
    said = run_python(
        "-c", hurried, rows, "--out", tmp_path, "--sizes", "43k", "--seeds", "1", "2", "--batch", "1",
        "--tokens", "1e9", "--stop-after", "6", "--least", "1e9",
    )  # fmt: skip
    assert "2 members" in said
    assert "1 members" in said
    about = json.loads((tmp_path / "family.json").read_text())
    assert set(about["members"]) == {"43k-1"}
    assert about["state"]["progress"] == 1
    assert about["state"]["tokens"] < 1e8


def test_finished_members_answer_through_llama_cpp(rows: Path, trained: Path, tmp_path: Path) -> None:
    said = run("finish.py", trained, "--out", tmp_path, "--members", "43k-1", "157k-1", "--count", "4")
    for name in ("43k-1", "157k-1"):
        about = json.loads((tmp_path / f"{name}.json").read_text())
        assert about["difference_decode"] < 1e-4
        assert 0 <= about["accuracy"]["all"] <= 1
        assert f'"member": "{name}"' in said
    # What is kept is what is answered with: bfloat16 weights in a file of F32.
    stored = load_file_bf16(trained / "family-1.safetensors")["43k-1/layers.0.mlp.up_proj.weight"].float().numpy()
    assert (load_file(tmp_path / "43k-1" / "model.safetensors")["model.layers.0.mlp.up_proj.weight"] == stored).all()
    fast, slow = (LlamaCppModel(tmp_path / f"{name}.gguf", n_ctx=512) for name in ("43k-1", "157k-1"))
    with Router(fast, slow, policy="every:4") as router:
        answer = router.complete(world.problem("test", 0).prompt, max_tokens=12)
    assert {token.source for token in answer.tokens} == {"fast", "slow"}


def test_a_member_is_tuned_on_a_new_family(
    rows_of: ModuleType,
    tokenizer,
    trained: Path,
    tmp_path: Path,  # type: ignore[no-untyped-def]
) -> None:
    problems = world.problems("train", 800, 0, "ages_apart")
    examples = importlib.import_module("train").examples(tokenizer, problems, 400, random.Random(0))
    packed = rows_of.pack(examples)
    rows_of.write(tmp_path / "new.npy.xz", np.concatenate([packed, packed]))
    run(
        "family.py", tmp_path / "new.npy.xz", "--out", tmp_path / "tuned", "--sizes", "43k", "--start", trained,
        "--batch", "8", "--tokens", "30e3",
    )  # fmt: skip
    history = json.loads((tmp_path / "tuned" / "family.json").read_text())["state"]["history"]
    assert history[-1]["held_out_loss"]["43k-1"] < history[0]["held_out_loss"]["43k-1"]
