"""How long an import takes, beside what it cannot do without: whole processes, in turns, by their wall time.

python benchmarks/import_time.py
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

from common import save, timed

PROGRAMS = {
    "bare Python": "pass",
    "import numpy": "import numpy",
    "import numpy, pydantic": "import numpy, pydantic",
    "import fsgen_router": "import fsgen_router",
    "from fsgen_router import Router": "from fsgen_router import Router",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    times: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for number in range(args.rounds + 1):
        for name, program in PROGRAMS.items():
            seconds = timed(lambda p=program: subprocess.run([sys.executable, "-c", p], check=True, cwd="/"))
            if number:  # the first round also fills the disk's cache
                times[name].append(1e3 * seconds)
    save(
        "import_time",
        {
            "rounds": args.rounds,
            "median_ms": {name: round(statistics.median(found), 1) for name, found in times.items()},
            "least_ms": {name: round(min(found), 1) for name, found in times.items()},
        },
    )


if __name__ == "__main__":
    main()
