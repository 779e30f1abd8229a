"""What ``fsgen-router recommend`` finds for the reference pair: every mode, in turns, and the verdict.

python benchmarks/recommend.py --count 48
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fsgen_router.recommend import headline, recommend

from common import save


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=48, help="calibration problems (default: %(default)s)")
    parser.add_argument("--quality-loss", type=float, default=0.02)
    parser.add_argument("--work", type=Path, help="keeps what is finished")
    parser.add_argument("--note", default="", help="what else is to be known of the run")
    args = parser.parse_args()
    found = recommend(count=args.count, quality_loss=args.quality_loss, work=args.work)
    save("recommend", {"headline": headline(found.advice), "note": args.note, **found.to_dict()})


if __name__ == "__main__":
    main()
