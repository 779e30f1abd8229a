"""Exact verification is lossless: on the reference pair (F32), text for text what the slow model writes alone.

Held-out problems at temperature 0, ``every:K`` with ``verify:exact`` against the slow model alone.

    python benchmarks/lossless.py --count 1000 --interval 8
"""

from __future__ import annotations

import argparse

from tqdm import tqdm

from fsgen_router import Router
from fsgen_router.evaluation import SLOW_ONLY, ask, reference_items
from fsgen_router.reference import world

from common import save


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="test problems (default: %(default)s)")
    parser.add_argument("--interval", type=int, default=8, help="drafts that one slow forward judges")
    args = parser.parse_args()
    tokens = forwards = different = 0
    with Router(policy=f"every:{args.interval}", method="verify:exact", batching=False) as router:
        alone = router.with_policy(SLOW_ONLY, method="replace")
        for item in tqdm(reference_items("test", args.count)):
            verified, expected = ask(router, item), ask(alone, item)
            different += [t.id for t in verified.tokens] != [t.id for t in expected.tokens]
            tokens += verified.usage.tokens
            forwards += verified.usage.slow_forwards
    save(
        "lossless",
        {
            "world": world.VERSION,
            "n": args.count,
            "interval": args.interval,
            "different": different,
            "tokens": tokens,
            "slow_forwards": forwards,
        },
    )


if __name__ == "__main__":
    main()
