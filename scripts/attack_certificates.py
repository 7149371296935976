"""Attack the planner's claims with random problems: an exhaustive optimizer looks for a plan that breaks one.

    python scripts/attack_certificates.py 0 1000
    python scripts/attack_certificates.py 0 5000 --kinds "nodes" "every order" --failures failures/

Solves every kind of problem for each seed, verifies the plan, and compares with the best of all plans
(tests/support/witness/). Prints one JSON line for each kind: how many problems were solved, were infeasible or were
refused, how many gaps are 0, and how many claims broke. Each broken claim is one more line. `--failures` names a
folder for the problems behind them. The exit code is 1 where a claim broke.
"""

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.support.witness.cases import KINDS, Case, draw_case
from tests.support.witness.claims import Verdict, judge

ANY_ORDER_EVERY = 5
"""Every fifth problem compares the bound over every order with all named schedules."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("first", type=int, help="the first seed")
    parser.add_argument("last", type=int, help="the seed behind the last one")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--failures", type=Path, default=None)
    given = parser.parse_args()
    return sum(attack(kind, given.first, given.last, given.failures) for kind in given.kinds) > 0


def attack(kind: str, first: int, last: int, failures: Path | None) -> int:
    """Attack with one kind of problem; returns the number of broken claims."""
    counts, began = Counter[str](), time.process_time()
    for seed in range(first, last):
        case = draw_case(kind, seed)
        verdict = judge(case, any_order=seed % ANY_ORDER_EVERY == 0)
        counts["problems"] += 1
        counts[outcome(verdict)] += 1
        counts["gap 0"] += verdict.plan is not None and verdict.plan.certificate.gap == 0
        counts["broken"] += len(verdict.broken)
        for claim in verdict.broken:
            print(json.dumps({"kind": kind, "seed": seed, "broken": claim}), flush=True)
        if verdict.broken and failures is not None:
            write_failure(failures, case, verdict)
    seconds = round(time.process_time() - began, 1)
    print(json.dumps({"kind": kind, **counts, "processor_seconds": seconds}), flush=True)
    return counts["broken"]


def outcome(verdict: Verdict) -> str:
    """One word for the planner's answer."""
    if verdict.plan is not None:
        return "solved"
    return "refused" if verdict.refused else "infeasible"


def write_failure(folder: Path, case: Case, verdict: Verdict) -> None:
    """The problems, the broken claims and both plans as one JSON file."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "kind": case.kind,
        "seed": case.seed,
        "broken": verdict.broken,
        "problems": case.problems,
        "best_of_all": verdict.best.words if verdict.best else None,
        "plan": verdict.plan,
    }
    name = f"{case.kind.replace(' ', '-')}-{case.seed}.json"
    (folder / name).write_bytes(msgspec.json.format(msgspec.json.encode(content)))


if __name__ == "__main__":
    sys.exit(main())
