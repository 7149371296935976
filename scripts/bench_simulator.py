"""How the simulator grows: processor time by stages and microbatches, under 1F1B.

Usage: python scripts/bench_simulator.py [--json]

`simulate` is a whole simulation from the plain schedule on, compilation included; `side by side` is
`step_times` over 1000 partitions with a compiled schedule, in actions of all partitions; `causes`,
`memory` and `shared links` are shares of the time of `simulate`. The fastest of three runs counts.
"""

import argparse
import json
import time
from collections.abc import Callable

import numpy as np

from autopart.schedules import make_schedule
from autopart.simulator import StageTimes, compile_schedule, simulate, step_times
from autopart.simulator.contention import Shared
from autopart.simulator.holding import Sizes, at_peak, holdings
from autopart.simulator.idle import idle_times

SIZES = ((4, 16), (4, 64), (8, 64), (16, 128), (32, 256), (64, 512), (128, 1024))
PARTITIONS = 1000
MOST_ENTRIES = 20_000_000
"""Actions times partitions that are run side by side."""
ASKED = {"action_overhead": 0.0, "sends_overlap": True}


def seconds(deed: Callable[[], object], runs: int = 3) -> float:
    """Processor seconds of the fastest run."""
    fastest = float("inf")
    for _ in range(runs):
        start = time.process_time()
        deed()
        fastest = min(fastest, time.process_time() - start)
    return fastest


def measure(num_stages: int, microbatches: int) -> dict[str, float | None]:
    """One line of the table."""
    rng = np.random.default_rng(0)
    line = [(s,) for s in range(num_stages)]
    stages = [StageTimes(*rng.uniform(1, 2, 5)) for _ in line]
    schedule = make_schedule("1f1b", line, microbatches)
    actions = 2 * num_stages * microbatches
    timeline = simulate(schedule, line, stages, (), **ASKED)
    whole = seconds(lambda: simulate(schedule, line, stages, (), **ASKED))
    shared = seconds(lambda: simulate(schedule, line, stages, (), **ASKED, shared=Shared({})))
    program = compile_schedule(schedule, line)
    many = [StageTimes(*rng.uniform(1, 2, (5, PARTITIONS))) for _ in line]
    beside = None
    if actions * PARTITIONS <= MOST_ENTRIES:
        spent = seconds(lambda: step_times(program, line, many, (), **ASKED))
        beside = actions * PARTITIONS / spent / 1e6
    nothing = np.zeros(PARTITIONS)
    sizes = [
        Sizes(rng.uniform(1, 2, PARTITIONS), *[nothing] * (len(Sizes._fields) - 1)) for _ in line
    ]

    def peaks() -> None:
        for rank, held in enumerate(holdings(schedule, line)):
            at_peak(held, [sizes[rank]])

    return {
        "stages": num_stages,
        "microbatches": microbatches,
        "actions": actions,
        "simulate_ms": whole * 1e3,
        "million_actions_per_s": actions / whole / 1e6,
        "side_by_side_million_per_s": beside,
        "causes": seconds(lambda: idle_times(timeline)) / whole,
        "shared_links": shared / whole,
        "peaks": seconds(peaks) / whole,
    }


def main() -> None:
    """Print one line a size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON line a size")
    parser.add_argument("--most", type=int, default=10**9, help="leave out more actions than this")
    asked = parser.parse_args()
    if not asked.json:
        print(
            "| stages x microbatches | actions | simulate | M actions/s | side by side, M/s | causes | shared links | peaks |"
        )
        print("|---|---|---|---|---|---|---|---|")
    for num_stages, microbatches in SIZES:
        if 2 * num_stages * microbatches > asked.most:
            continue
        found = measure(num_stages, microbatches)
        if asked.json:
            print(json.dumps(found))
            continue
        beside = found["side_by_side_million_per_s"]
        print(
            f"| {num_stages} x {microbatches} | {found['actions']:,} | {found['simulate_ms']:.1f} ms "
            f"| {found['million_actions_per_s']:.2f} | {f'{beside:.0f}' if beside else '-'} "
            f"| {found['causes']:.1f} x | {found['shared_links']:.1f} x | {found['peaks']:.1f} x |"
        )


if __name__ == "__main__":
    main()
