"""Write problems of the reference world as JSON lines: prompt, answer, one solution, family, level.

python examples/reference_pair/generate.py test 1000 > problems.jsonl
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from fsgen_router.reference import world


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("split", choices=world.SPLITS, help="disjoint, but for shifted: harder than all others")
    parser.add_argument("count", type=int, nargs="?", default=1000)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--family", choices=[*world.FAMILIES, *world.NEW_FAMILIES], help="only problems of this one")
    args = parser.parse_args()
    for problem in world.problems(args.split, args.count, args.start, args.family):
        print(json.dumps(asdict(problem)))


if __name__ == "__main__":
    main()
