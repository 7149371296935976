"""Measure the seconds that sends add to plain 1F1B, and the bytes for which other orders save them.

    python scripts/measure_schedules.py [--stages 8] [--microbatches 64] [--sends 0.1 0.3] [--json]

All stages are equal: 1 s forward, 2 s backward (1 s for the weight gradients), and 1 GiB of stash
per microbatch. A send takes the given share of a stage's 3 s in either direction, beside compute.

Room is every rank's memory for stash, divided by the stash that plain 1F1B keeps on its first rank.
The period is measured on the last stage's backwards over the middle half of the step.
"""

import argparse
import json
import time
from collections.abc import Iterator
from typing import NamedTuple

from autopart.bounds.any_order_partition import OrderProblem, least_step
from autopart.schedules.actions import Schedule
from autopart.schedules.catalogue import make_schedule
from autopart.simulator.costs import StageTimes
from autopart.simulator.timeline import simulate
from autopart.solvers.orders.evaluation import peak_stash
from autopart.solvers.orders.optimizer import optimize_orders

FORWARD, BACKWARD, WEIGHTS = 1.0, 2.0, 1.0
GIB = 1 << 30
ACTIONS = 3_000_000
"""Actions that each search for orders may simulate: some seconds."""
ROOMS = (1.0, 1.25, 1.5, 2.0, None)
OWN = "its own"
"""Room on each rank for plain 1F1B's stash there."""


class Row(NamedTuple):
    """One line in the table."""

    send: float
    backward: str
    room: float | str | None
    schedule: str
    step: float
    """Makespan divided by the busiest rank's work."""
    period: float
    """Seconds per microbatch divided by a stage's time."""
    bound: float
    """Lower bound on `step` over every order within the room."""
    most_gib: float
    """Peak stash on the fullest rank, in GiB."""
    all_gib: float
    """Sum of the peak stash over all ranks, in GiB."""
    seconds: float
    """Processor seconds of the search for orders."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--stages", type=int, default=8)
    parser.add_argument("--microbatches", type=int, default=64)
    parser.add_argument("--sends", type=float, nargs="+", default=[0.1, 0.3])
    parser.add_argument("--json", action="store_true", help="print one JSON line for each row")
    asked = parser.parse_args()
    if not asked.json:
        print(
            "| send | backward | room | schedule | step | period | bound | fullest rank | all ranks |"
        )
        print("|---|---|---|---|---|---|---|---|---|")
    for send in asked.sends:
        for row in rows(asked.stages, asked.microbatches, send):
            print(json.dumps(row._asdict()) if asked.json else _line(row), flush=True)


def rows(num_stages: int, num_microbatches: int, send: float) -> Iterator[Row]:
    """Plain 1F1B, then the best order found for each room."""
    task = equal_stages(num_stages, num_microbatches, send, split=False)
    plain = make_schedule("1f1b", task.stage_ranks, num_microbatches)
    bound = least_step(task._replace(room_bytes=peak_stash(task, plain)))
    yield _row(task, send, OWN, plain, "1f1b", bound, 0.0)
    for split in (False, True):
        for room in ROOMS:
            task = equal_stages(num_stages, num_microbatches, send, split=split)
            if room is not None:
                each = int(room * min(num_stages, num_microbatches)) * GIB
                task = task._replace(room_bytes=(each,) * num_stages)
            start = time.process_time()
            found = optimize_orders(task, actions=ACTIONS)
            seconds = time.process_time() - start
            name = found.name if found.name != "auto" else f"auto, {found.origin}"
            yield _row(task, send, room, found.schedule, name, found.lower_bound, seconds)


def equal_stages(
    num_stages: int, num_microbatches: int, send: float, *, split: bool
) -> OrderProblem:
    """One stage per rank; a send to a neighbour takes `send` times a stage's time."""
    moving = send * (FORWARD + BACKWARD)
    stages = [
        StageTimes(
            forward_time=FORWARD,
            backward_time=BACKWARD,
            send_time=moving if stage + 1 < num_stages else 0.0,
            send_back_time=moving if stage else 0.0,
            update_time=0.0,
            weight_grad_time=WEIGHTS,
        )
        for stage in range(num_stages)
    ]
    return OrderProblem(
        stages=stages,
        stage_ranks=tuple((stage,) for stage in range(num_stages)),
        num_microbatches=num_microbatches,
        split=split,
        stash_bytes=(GIB,) * num_stages,
    )


def _row(
    task: OrderProblem,
    send: float,
    room: float | str | None,
    schedule: Schedule,
    name: str,
    bound: float,
    seconds: float,
) -> Row:
    timeline = simulate(
        schedule, task.stage_ranks, task.stages, (), action_overhead=0.0, sends_overlap=True
    )
    last = [s.end for s in timeline.slices[-1] if s.action.op in "BI"]
    # The middle half of the step leaves warm-up and cool-down out.
    early, late = len(last) // 4, 3 * len(last) // 4
    busy = FORWARD + BACKWARD
    work = task.num_microbatches * busy
    peaks = peak_stash(task, schedule)
    return Row(
        send=send,
        backward="split" if task.split else "whole",
        room=room,
        schedule=name,
        step=timeline.makespan / work,
        period=(last[late] - last[early]) / (late - early) / busy,
        bound=bound / work,
        most_gib=max(peaks) / GIB,
        all_gib=sum(peaks) / GIB,
        seconds=seconds,
    )


def _line(row: Row) -> str:
    room = "no cap" if row.room is None else row.room
    room = f"{room:g}x" if isinstance(room, float) else room
    return (
        f"| {row.send:.0%} | {row.backward} | {room} | {row.schedule} | {row.step:.3f} | "
        f"{row.period:.3f} | {row.bound:.3f} | {row.most_gib:.0f} GiB | {row.all_gib:.0f} GiB |"
    )


if __name__ == "__main__":
    main()
