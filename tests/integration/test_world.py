"""The invented world as the reference pair reads it."""

from __future__ import annotations

import gguf
import pytest

from fsgen_router import reference
from fsgen_router.contracts.models import TokenModel
from fsgen_router.reference import world

COUNT = 1500


@pytest.fixture(scope="module")
def samples() -> dict[world.Split, list[world.Problem]]:
    return {split: list(world.problems(split, COUNT)) for split in world.SPLITS}


def test_the_shipped_weights_name_the_world_they_were_trained_on() -> None:
    """Golden: whoever changes the world has to train the pair again."""
    for which in ("fast", "slow"):
        fields = gguf.GGUFReader(reference.path(which)).fields
        assert fields["fsgen_router.world"].contents() == world.VERSION
        assert fields["fsgen_router.world_sha256"].contents() == world.fingerprint()


def test_solutions_have_the_length_they_were_designed_for(
    samples: dict[world.Split, list[world.Problem]], fast_model: TokenModel
) -> None:
    for split in ("train", "test", "fit", "calibration"):
        for problem in samples[split]:
            assert 36 <= len(fast_model.tokenizer.encode(problem.solution, add_bos=False)) <= 210, problem


def test_every_problem_fits_the_context(
    samples: dict[world.Split, list[world.Problem]], fast_model: TokenModel
) -> None:
    for found in samples.values():
        for problem in found:
            ids = fast_model.tokenizer.encode(f"{problem.prompt}\n{problem.solution}", add_bos=True)
            assert len(ids) < fast_model.n_ctx


def test_the_worlds_words_are_single_tokens(
    samples: dict[world.Split, list[world.Problem]], fast_model: TokenModel
) -> None:
    """Words whole, digits single: what is said of the tokenizer holds on every split."""
    tokenizer = fast_model.tokenizer
    for found in samples.values():
        for problem in found[:300]:
            for token in tokenizer.encode(f"{problem.prompt}\n{problem.solution}", add_bos=False):
                piece = tokenizer.piece(token)
                assert len(piece) > 1 or not piece.isalpha() or piece in (b"a", b"A"), (piece, problem.solution)
                assert not piece.strip().isdigit() or len(piece.strip()) == 1
