"""Write the token stream that the reference family is trained on, once, for every size and seed.

    python examples/reference_pair/rows.py build/family/rows.npy.xz --tokens 56e6
    python examples/reference_pair/rows.py build/family/ages_apart.npy.xz --tokens 4e6 --family ages_apart

The reference pair's examples (``train.examples``), several to a row of ``ROW`` tokens. A row is int16: an id where
the loss is taken, and ``~id`` (below zero) where the token is only read. Each example begins with the
first id, so a row can be cut up again; the end of a row is padded. The first ``HELD_OUT`` rows are of the
calibration split and not for training. With a new family half of the examples are of it.
"""

from __future__ import annotations

import argparse
import lzma
import multiprocessing
import os
import random
from functools import cache, partial
from pathlib import Path

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from fsgen_router.reference import world

from tokenizer import build
from train import Example, chunk_of, examples

ROW = 320  # an example is 309 tokens at most, or nearly so: what is longer is left out
HELD_OUT = 64  # rows
_PAD = ~1
_CHUNK = 4096  # examples
_LEAST = 300_000  # tokens in the rows of a chunk, at least


def pack(block: list[Example]) -> np.ndarray:
    """Examples as rows, shape (n, ROW), int16: the longest first, each into the first row with room for it."""
    rows: list[list[int]] = []
    by_room: dict[int, list[int]] = {}  # tokens free -> rows
    for ids, trained in sorted(block, key=lambda example: -len(example[0])):
        if len(ids) > ROW:
            continue
        room = next((free for free in range(len(ids), ROW) if by_room.get(free)), ROW)
        row = by_room[room].pop() if room < ROW else len(rows)
        if row == len(rows):
            rows.append([])
        rows[row] += [token if on else ~token for token, on in zip(ids, trained, strict=True)]
        by_room.setdefault(room - len(ids), []).append(row)
    return np.array([row + [_PAD] * (ROW - len(row)) for row in rows], np.int16)


def block_of(tokenizer: PreTrainedTokenizerFast, family: str | None, chunk: int, *, seed: int) -> list[Example]:
    """The ``chunk``-th block of training examples, with a ``family`` half of them of it."""
    block = chunk_of(tokenizer, chunk, seed=seed)
    if family is None:
        return block
    new = world.problems("train", _CHUNK, _CHUNK * chunk, family)
    return block[: _CHUNK // 2] + examples(tokenizer, new, _CHUNK // 2, random.Random(f"{seed}/{family}/{chunk}"))


def packed(chunk: int, family: str | None, seed: int) -> np.ndarray:
    """The rows of a block, in a worker process."""
    return pack(block_of(_tokenizer(), family, chunk, seed=seed))


@cache
def _tokenizer() -> PreTrainedTokenizerFast:
    return build()


def held_out(family: str | None, *, seed: int) -> np.ndarray:
    rng = random.Random(f"{seed}/held_out")
    problems = world.problems("calibration", _CHUNK, 0, family)
    return shuffled(pack(examples(_tokenizer(), problems, _CHUNK // 4, rng)), rng)[:HELD_OUT]


def shuffled(rows: np.ndarray, rng: random.Random) -> np.ndarray:
    """The rows in another order (they come by length)."""
    return rows[rng.sample(range(len(rows)), len(rows))]


def write(path: Path, rows: np.ndarray) -> None:
    """Write rows, compressed where the name ends in .xz, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".tmp")
    with lzma.open(unfinished, "wb") if path.suffix == ".xz" else unfinished.open("wb") as file:
        np.save(file, rows)
    os.replace(unfinished, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="file to write, .npy or .npy.xz")
    parser.add_argument("--tokens", type=float, default=52e6, help="at least so many (default: %(default).0f)")
    parser.add_argument("--family", choices=world.NEW_FAMILIES, help="a new family, for half of the examples")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="processes (default: %(default)s)")
    args = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads do not survive the fork of workers
    made = [held_out(args.family, seed=args.seed)]
    work = partial(packed, family=args.family, seed=args.seed)
    with (
        multiprocessing.Pool(args.workers) as pool,
        tqdm(total=int(args.tokens), unit="tok", unit_scale=True, mininterval=5) as bar,
    ):
        for block in pool.imap(work, range(-(-int(args.tokens) // _LEAST))):
            made.append(block)
            bar.update(made[-1].size)
            if bar.n >= args.tokens:
                break
    rows = np.concatenate(made)
    write(args.out, rows)
    used, size = 1 - (rows == _PAD).mean(), args.out.stat().st_size / 2**20
    print(f"{args.out}: {len(rows):,} rows of {ROW}, {used:.1%} of them tokens, {size:.1f} MiB")
    print(f"world {world.VERSION}, SHA-256 {world.fingerprint()}")


if __name__ == "__main__":
    main()
