"""The bubble rates of zero bubble's paper, from the period of our own schedules and orders.

    python scripts/measure_zero_bubble.py DATA [--actions 3e6] [--models 1.5B 6.2B] [--columns ZB-2p]

DATA is a folder with `published/zero_bubble.json`: Tables 5 and 9 of Qi et al., Zero Bubble Pipeline Parallelism, ICLR
2024. A rate is 1 - m (F + I + W) / period, where stages are alike and updates take no time. With post-validation no
rank waits for another one's update, so the paper's rates are those of steps back to back.

1F1B, 1F1B-I, ZB-H1 and ZB-H2 are named schedules. ZB-1p and ZB-2p are orders that the paper's heuristic finds, with as
many microbatches in flight as 1F1B, or twice as many. A microbatch keeps 34 h + 5 a s bytes from F to I, and 32 h to W,
for h hidden sizes, a heads and a sequence of s = 1024 (its Table 1). Here our search for orders minimises the period
within the same memory. It simulates so many actions for each cell, so the orders do not depend on the machine.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from autopart.bounds.any_order_partition import OrderProblem, rank_starts
from autopart.schedules.actions import Schedule
from autopart.schedules.catalogue import KINDS, make_schedule
from autopart.simulator.costs import StageTimes
from autopart.simulator.period import period_of
from autopart.solvers.orders.optimizer import optimize_orders

NAMED = {"1F1B": "1f1b", "1F1B-I": "interleaved-1f1b", "ZB-H1": "zb-h1", "ZB-H2": "zb-h2"}
SEARCHED = {"ZB-1p": 1, "ZB-2p": 2}
"""Microbatches in flight, as multiples of the ranks."""


class Cell(NamedTuple):
    """One rate of the paper."""

    model: str
    column: str
    ranks: int
    stages_per_rank: int
    microbatches: int
    times: list[float]
    """F, I, W and a send, in milliseconds for all stages of a rank."""
    rate: float
    stash: int
    """Bytes per sample and token from F to I, for one layer."""
    waiting: int
    """The same from I to W."""


SEQUENCE = 1024


class Measured(NamedTuple):
    """One rate of ours, beside the paper's."""

    cell: Cell
    rate: float
    least: float
    """The rate of our lower bound on the period; 0 where none is computed."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--actions", type=float, default=3e6, help="simulated per searched cell")
    parser.add_argument("--models", nargs="+", default=(), help="only these models")
    parser.add_argument("--columns", nargs="+", default=(), help="only these columns")
    asked = parser.parse_args()
    for cell in cells(asked.data):
        if asked.models and cell.model not in asked.models:
            continue
        if asked.columns and cell.column not in asked.columns:
            continue
        print(line(measured(cell, asked.actions)), flush=True)


def cells(data: Path) -> Iterator[Cell]:
    """All cells of Table 5."""
    table = json.loads((data / "published" / "zero_bubble.json").read_text("utf-8"))
    rates: dict[str, Any] = table["table5_bubble_rate"]
    for model, shape in table["models"].items():
        for count, row in rates[model].items():
            for column, rate in zip(rates["columns"], row, strict=True):
                # Layers, embedding and head are dealt evenly, one block per stage.
                each = (shape["layers"] + 2) // shape["p"] if column == "1F1B-I" else 1
                times = table["table9_ms"][model][count]
                hidden, stash = (
                    shape["hidden"],
                    34 * shape["hidden"] + 5 * shape["heads"] * SEQUENCE,
                )
                of_layers = (times, rate, stash, 32 * hidden)
                yield Cell(model, column, shape["p"], each, int(count), *of_layers)


def measured(cell: Cell, actions: float) -> Measured:
    """Our rate of a cell."""
    each, work = cell.stages_per_rank, cell.microbatches * sum(cell.times[:3])
    name = NAMED.get(cell.column)
    placement = KINDS[name or "zb-h2"].placement(cell.ranks, each)
    ranks = tuple((rank,) for rank in placement)
    stages = [_stage(cell)] * len(ranks)
    if name is not None:
        schedule = make_schedule(name, ranks, cell.microbatches)
        return Measured(cell, 1 - work / _period(schedule, ranks, stages), 0.0)
    task = order_problem(cell, ranks)
    found = optimize_orders(task, actions=actions)
    period = _period(found.schedule, ranks, stages)
    return Measured(cell, 1 - work / period, max(0.0, 1 - work / found.lower_bound))


def order_problem(cell: Cell, ranks: tuple[tuple[int, ...], ...]) -> OrderProblem:
    """A cell whose period is to be minimised."""
    room = SEARCHED[cell.column] * cell.ranks * cell.stash
    task = OrderProblem(
        stages=[_stage(cell)] * len(ranks),
        stage_ranks=ranks,
        num_microbatches=cell.microbatches,
        split=True,
        stash_bytes=[cell.stash] * len(ranks),
        waiting_bytes=[cell.waiting] * len(ranks),
        room_bytes=[room] * cell.ranks,
    )
    return task._replace(rank_starts=rank_starts(task))


def _stage(cell: Cell) -> StageTimes[float]:
    each, (forward, gradient, weights, send) = cell.stages_per_rank, cell.times
    return StageTimes(
        forward_time=forward / each,
        backward_time=(gradient + weights) / each,
        send_time=send,
        send_back_time=send,
        update_time=0.0,
        weight_grad_time=weights / each,
    )


def _period(
    schedule: Schedule, ranks: tuple[tuple[int, ...], ...], stages: list[StageTimes[float]]
) -> float:
    return period_of(schedule, ranks, stages, (), action_overhead=0.0, sends_overlap=True)


def line(found: Measured) -> str:
    """The cell's model, microbatches and column; the paper's rate, ours, and that of our bound."""
    cell = found.cell
    return (
        f"{cell.model:>6} {cell.microbatches:>4} {cell.column:<7} paper {cell.rate:.4f}  "
        f"ours {found.rate:.4f}  difference {found.rate - cell.rate:+.4f}  bound {found.least:.4f}"
    )


if __name__ == "__main__":
    main()
