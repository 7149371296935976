"""Measure how the simulator's processor time grows with stages and microbatches.

Usage: python scripts/bench_simulator.py [--schedule 1f1b|paired-1f1b|…] [--json]

`simulate` is one whole simulation from the plain schedule on, with compilation. `side by side` is
`step_times` over 1000 partitions with a compiled schedule, in actions over all partitions. `causes`
and `peaks` are divided by the time for `simulate`. Each figure is the fastest of three runs.
"""

import argparse
import json
import time
from collections.abc import Callable

import numpy as np

from autopart.records.peak_bytes import MicrobatchBytes, at_peak
from autopart.schedules.catalogue import make_schedule
from autopart.schedules.in_flight import in_flight_by_rank
from autopart.simulator.compiled import step_times
from autopart.simulator.costs import StageTimes
from autopart.simulator.idle import idle_times
from autopart.simulator.timeline import simulate
from autopart.simulator.working_order import compile_schedule

SIZES = ((4, 16), (4, 64), (8, 64), (16, 128), (32, 256), (64, 512), (128, 1024))
PARTITIONS = 1000
MOST_ENTRIES = 20_000_000
"""Actions times partitions, at most, in a simulation side by side."""
ASKED = {"action_overhead": 0.0, "sends_overlap": True}


def seconds(task: Callable[[], object], runs: int = 3) -> float:
    """Processor seconds in the fastest run."""
    fastest = float("inf")
    for _ in range(runs):
        start = time.process_time()
        task()
        fastest = min(fastest, time.process_time() - start)
    return fastest


def measure(name: str, num_stages: int, microbatches: int) -> dict[str, float | None]:
    """Figures for one line in the table, by their JSON keys. Overlapped pairs save 0.5 s."""
    rng = np.random.default_rng(0)
    line = [(s,) for s in range(num_stages)]
    stages = [StageTimes(*rng.uniform(1, 2, 5), pair_saving=0.5) for _ in line]
    schedule = make_schedule(name, line, microbatches)
    actions = 2 * num_stages * microbatches
    timeline = simulate(schedule, line, stages, (), **ASKED)
    whole = seconds(lambda: simulate(schedule, line, stages, (), **ASKED))
    program = compile_schedule(schedule, line)
    # Side by side: each field of a stage has an array with one entry per partition.
    many = [
        StageTimes(*rng.uniform(1, 2, (5, PARTITIONS)), pair_saving=np.full(PARTITIONS, 0.5))
        for _ in line
    ]
    beside = None
    if actions * PARTITIONS <= MOST_ENTRIES:
        spent = seconds(lambda: step_times(program, line, many, (), **ASKED))
        beside = actions * PARTITIONS / spent / 1e6
    # Peaks: random stash per microbatch; all other bytes are zero.
    nothing = np.zeros(PARTITIONS)
    sizes = [
        MicrobatchBytes(
            rng.uniform(1, 2, PARTITIONS), *[nothing] * (len(MicrobatchBytes._fields) - 1)
        )
        for _ in line
    ]

    def peaks() -> None:
        for rank, in_flight in enumerate(in_flight_by_rank(schedule, line)):
            at_peak(in_flight, [sizes[rank]])

    return {
        "stages": num_stages,
        "microbatches": microbatches,
        "actions": actions,
        "simulate_ms": whole * 1e3,
        "million_actions_per_s": actions / whole / 1e6,
        "side_by_side_million_per_s": beside,
        "causes": seconds(lambda: idle_times(timeline)) / whole,
        "peaks": seconds(peaks) / whole,
    }


def main() -> None:
    """Print one line for each size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON line for each size")
    parser.add_argument(
        "--most", type=int, default=10**9, help="skip sizes with more actions than this"
    )
    parser.add_argument(
        "--schedule", default="1f1b", help="a named schedule with one stage per rank"
    )
    asked = parser.parse_args()
    if not asked.json:
        print(
            "| stages x microbatches | actions | simulate | M actions/s | side by side, M/s | causes | peaks |"
        )
        print("|---|---|---|---|---|---|---|")
    for num_stages, microbatches in SIZES:
        if 2 * num_stages * microbatches > asked.most:
            continue
        found = measure(asked.schedule, num_stages, microbatches)
        if asked.json:
            print(json.dumps(found))
            continue
        beside = found["side_by_side_million_per_s"]
        print(
            f"| {num_stages} x {microbatches} | {found['actions']:,} | {found['simulate_ms']:.1f} ms "
            f"| {found['million_actions_per_s']:.2f} | {f'{beside:.0f}' if beside else '-'} "
            f"| {found['causes']:.1f} x | {found['peaks']:.1f} x |"
        )


if __name__ == "__main__":
    main()
