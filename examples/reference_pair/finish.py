"""Make models of what family.py trained: transformers folders, F32 GGUF files with their proof, and accuracies.

    python examples/reference_pair/finish.py build/family/run --out build/family
    python examples/reference_pair/finish.py build/family/tuned --out build/family --prefix tuned- --family ages_apart

``OUT`` gets ``NAME/`` (transformers) and ``NAME.gguf`` for each member, ``NAME.json`` with its accuracy on held-out
problems (and on those of ``--family``), and ``PREFIXfamily.json``, what the training wrote of itself.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from fsgen_router.reference import world

from export import export, prove
from family import SIZES, VOCABULARY, read_weights
from recipe import make_model, write_json
from tokenizer import build
from train import accuracy

TOLERANCE = 1e-3
"""Of logits in single precision, which grow as training goes on: these members saw more than the shipped pair."""


def finish(
    run: Path, name: str, out: Path, tokenizer: PreTrainedTokenizerFast, *, prefix: str, family: str | None, count: int
) -> None:
    """Write one member in both formats and measure it."""
    about = json.loads((run / "family.json").read_text())["members"][name]
    stored = {key: value.float() for key, value in read_weights(run).items() if key.startswith(f"{name}/")}
    model = make_model(SIZES[about["size"]], VOCABULARY, seed=about["seed"])
    model.model.load_state_dict({key.removeprefix(f"{name}/"): value for key, value in stored.items()})
    folder, target = out / f"{prefix}{name}", out / f"{prefix}{name}.gguf"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    export(folder, target, f"{prefix}{name}")
    decode, prefill = prove(folder, target, tolerance=TOLERANCE)
    about |= {"difference_decode": decode, "difference_prefill": prefill}
    if count:
        about["accuracy"] = accuracy(model, tokenizer, "test", count)
        if family is not None:
            about[f"accuracy_{family}"] = accuracy(model, tokenizer, "test", count, family)["all"]
    write_json(out / f"{prefix}{name}.json", about)
    print(json.dumps({"member": f"{prefix}{name}", **about}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder with family.json and its weights")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--members", nargs="+", help="as in family.json (default: all)")
    parser.add_argument("--prefix", default="", help="before each name")
    parser.add_argument("--family", choices=world.NEW_FAMILIES, help="measure on this new family as well")
    parser.add_argument("--count", type=int, default=500, help="problems to measure on; 0: none")
    args = parser.parse_args()
    tokenizer = build()
    for name in args.members or json.loads((args.run / "family.json").read_text())["members"]:
        finish(args.run, name, args.out, tokenizer, prefix=args.prefix, family=args.family, count=args.count)
    shutil.copy(args.run / "family.json", args.out / f"{args.prefix}family.json")


if __name__ == "__main__":
    main()
