"""Attack predicted peaks with random plans: no rank may need more bytes than its plan says.

    python scripts/attack_peaks.py 0 200

Draws uneven cuts, a schedule, policies, an optimizer, a dtype and a group for each seed (tests/support/drawn_peaks.py). Each rank of
the plan then runs one step alone, and its tensor bytes are counted operation by operation. Neither the machine nor
its load changes a figure.

Prints one JSON line per seed: the problem, and per rank predicted over measured bytes - 1, or why there is no plan. The last
line counts plans, refusals, plans with a rank above its prediction, and ranks, with the smallest, the median and the
largest of these errors. The exit code is 1 where a rank needs more than predicted.
"""

import argparse
import json
import os
import statistics
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.support.drawn_peaks import draw, peaks


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("first", type=int, help="the first seed")
    parser.add_argument("last", type=int, help="the seed behind the last one")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    errors: list[float] = []
    refused = above = 0
    for seed in range(given.first, given.last):
        drawn = draw(seed)
        found = peaks(drawn)
        print(json.dumps({"seed": seed, **drawn._asdict(), **found._asdict()}), flush=True)
        errors += found.errors
        refused += bool(found.refused)
        above += found.above > 0
    counts = {
        "plans": given.last - given.first - refused,
        "refused": refused,
        "plans above their prediction": above,
        "ranks": len(errors),
    }
    if errors:
        spread = (min(errors), statistics.median(errors), max(errors))
        counts |= dict(zip(("smallest", "median", "largest"), spread, strict=True))
    print(json.dumps(counts), flush=True)
    return above > 0


if __name__ == "__main__":
    sys.exit(main())
