"""Random cuts of texts of many scripts, by real tokenizers: is every byte where it belongs?

A fast model that copies texts token by token and an endpoint that says pieces of texts, from anywhere to anywhere, take
turns under random policies; see ``tests/support/seams.py`` for what is compared. Tokenizers: those of the GGUF files
under ``--models`` that are there, and some that are trained here with ``tokenizers``. Stops at the first wrong byte.

    python benchmarks/seams.py --cuts 100000 --models /path/to/gguf/files
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from seams import TEXTS, TRAINED, run_cuts, trained

from fsgen_router.contracts.tokenizer import Tokenizer

from common import save


def of_files(folder: Path | None) -> Iterator[tuple[str, Callable[[], AbstractContextManager[Tokenizer]]]]:
    for name in ("qwen-0.5b", "smollm2-135m", "gemma3-270m"):
        path = None if folder is None else folder / f"{name}.gguf"
        if path is None or not path.exists():
            print(f"{name}: left out, {'no --models' if path is None else f'{path} is not there'}", flush=True)
            continue
        yield name, lambda path=path: _of_file(path)  # type: ignore[misc]


@contextmanager
def _of_file(path: Path) -> Iterator[Tokenizer]:
    from fsgen_router.adapters.llama_cpp import LlamaCppModel

    model = LlamaCppModel(path, n_ctx=64)
    yield model.tokenizer
    model.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuts", type=int, default=100_000, help="in all (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", type=Path, help="a folder of GGUF files")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    makers = dict(of_files(args.models)) | {name: lambda name=name: nullcontext(trained(name)) for name in TRAINED}
    found: dict[str, Any] = {}
    for name, make in makers.items():
        began = time.perf_counter()
        # Raises at the first byte that is wrong, so what is recorded has none.
        with make() as tokenizer:
            made = run_cuts(tokenizer, -(-args.cuts // len(makers)), args.seed)
        found[name] = {"cuts": made.cuts, "in_words": made.in_words, "tokens": made.tokens, "wrong": 0}
        print(f"{name}: {found[name]} in {time.perf_counter() - began:.0f} s", flush=True)
    save("seams", {"seed": args.seed, "texts": len(TEXTS), "tokenizers": found})


if __name__ == "__main__":
    main()
