"""Write the figures in the documents from measured results; ``--check`` only compares.

python benchmarks/readme.py [--check]

A document has them between ``<!-- figures: NAME -->`` and ``<!-- /figures -->``. docs/figures.md has all but the model
card's, and the README those that it picks.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path

from figures import engine, real_pair, reference_pair, remote, serving, study

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
PAGE = HERE.parent / "docs" / "figures.md"
PAIR = HERE.parent / "examples" / "reference_pair"
METHODS = HERE.parent / "docs" / "methods.md"
RECOMMEND = HERE.parent / "docs" / "recommend.md"
POLICIES = HERE.parent / "docs" / "policies.md"
CONSTRAINED = HERE.parent / "docs" / "constrained.md"
SERVER = HERE.parent / "docs" / "server.md"
STUDY = HERE.parent / "docs" / "study.md"
AGENTS = HERE.parent / "docs" / "agents.md"
PAIRS = HERE.parent / "docs" / "pairs.md"


BLOCKS: dict[str, tuple[Path, Callable[[], str]]] = {
    "best_of_k": (README, reference_pair.best_of_k),
    "reference_pair": (README, reference_pair.reference_pair),
    "speed": (README, engine.speed),
    "cost_model": (README, engine.cost_model),
    "verification": (README, engine.verification),
    "assisted": (README, engine.assisted),
    "many": (README, engine.many),
    "learned": (README, reference_pair.learned),
    "certified": (README, reference_pair.certified),
    "prompt_check": (README, reference_pair.prompt_check),
    "remote_money": (README, remote.remote_money),
    "card": (PAIR / "MODEL_CARD.md", reference_pair.card),
    "http_verify": (README, remote.http_verify),
    "real_pair": (README, real_pair.real_pair),
    "recommend": (RECOMMEND, real_pair.recommend),
    "drafts": (POLICIES, remote.drafts),
    "seams": (PAIRS, remote.seams),
    "method_step": (METHODS, engine.method_step),
    "constraints": (CONSTRAINED, serving.constraints),
    "serve": (SERVER, serving.serve),
    "agents": (AGENTS, serving.agents),
    "study_real_pair": (STUDY, study.real_pair),
}


def filled(path: Path, text: str) -> str:
    """The document with the figures in their blocks."""
    for name in set(re.findall(r"<!-- figures: (\w+) -->", text)) - set(BLOCKS):
        raise SystemExit(f"{path.name} has a block for {name}, which nothing makes")
    for name, (where, make) in BLOCKS.items():
        if path not in (where, PAGE) or (path == PAGE and where != README):
            continue
        pattern = re.compile(rf"(<!-- figures: {name} -->\n).*?(<!-- /figures -->)", re.DOTALL)
        body = make()
        if path == PAGE:  # pictures lie beside the page, where the site finds them
            body = body.replace("](benchmarks/results/", "](assets/")
        text, count = pattern.subn(lambda found, b=body: f"{found[1]}{b}\n{found[2]}", text)
        if count > 1 or (count == 0 and path != README):
            raise SystemExit(f"{path.name} has {count} blocks for {name}, not one")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if a figure differs from the results")
    args = parser.parse_args()
    for path in {PAGE, *(where for where, _ in BLOCKS.values())}:
        before = path.read_text()
        after = filled(path, before)
        if args.check and before != after:
            raise SystemExit(f"the figures in {path.name} are not the measured ones: run benchmarks/readme.py")
        if not args.check:
            path.write_text(after)


if __name__ == "__main__":
    main()
