"""The plan's schedule among those that torch, and what is built on it, have by name."""

from typing import NamedTuple

from autopart.errors import ExportRefused
from autopart.exporters.shape import Shape, csv_of, follows_its_name, orders_of_one_replica
from autopart.plan import Plan, schedule_of
from autopart.schedule import Schedule

CSV_FILE = "autopart_schedule.csv"
"""Where a plan's orders are written, for torch and for all that reads its schedules."""

CSV_NOTE = f"start the run in the folder of {CSV_FILE}, or name its whole path"
"""Where the name of the file is read as it stands."""

TORCH_NAMES = {
    "gpipe": "GPipe",
    "1f1b": "1F1B",
    "looped-bfs": "LoopedBFS",
    "interleaved-1f1b": "Interleaved1F1B",
    "interleaved-zb": "InterleavedZeroBubble",
    "zb-h1": "InterleavedZeroBubble",
    "zbv": "ZBVZeroBubble",
    "dualpipev": "DualPipeV",
}
"""Schedules of `autopart.schedules` whose orders torch makes too."""


class TorchSchedule(NamedTuple):
    """A schedule as torch's `get_schedule_class` and `_load_csv` take it."""

    name: str
    """With a file, the name decides the placement alone."""
    csv: str | None
    """The orders, where no name stands for them."""


def torch_schedule(plan: Plan, shape: Shape, framework: str) -> TorchSchedule:
    """The name that stands for the plan's orders, else the orders as a file.

    Raises ExportRefused for a V of more than two stages a rank, which torch does not place.
    """
    if shape.placement == "v" and shape.stages_per_rank != 2:
        raise ExportRefused(
            f"{framework} goes there and back with 2 stages a rank, and the plan has "
            f"{shape.stages_per_rank}; the nearest plan has 2 stages a rank"
        )
    name = TORCH_NAMES.get(plan.schedule)
    if (
        name
        and follows_its_name(plan)
        and takes(name, shape.num_ranks, shape.stages_per_rank, shape.num_microbatches)
    ):
        return TorchSchedule(name, None)
    orders = orders_of_one_replica(plan, shape, framework)
    _refuse_losses_out_of_order(orders, shape, framework)
    return TorchSchedule(
        "ZBVZeroBubble" if shape.placement == "v" else "PipelineScheduleMulti", csv_of(orders)
    )


def refuse_split_backwards(plan: Plan, framework: str) -> None:
    """Raise ExportRefused where a backward is split: torch's halves do not run the hooks by which FSDP2
    takes the gradients, and torch 2.13 gives some of them wrong or not at all."""
    if any(op in "IW" for order in schedule_of(plan) for _, op, _ in order):
        raise ExportRefused(
            f"the plan splits backwards, and {framework} wraps every stage in FSDP, which loses weights' "
            "gradients that come in a half of their own; the nearest plans have --schedule 1f1b or "
            "interleaved-1f1b; --to torch splits them"
        )


def _refuse_losses_out_of_order(orders: Schedule, shape: Shape, framework: str) -> None:
    last = shape.num_stages - 1
    (ran,) = [
        forwards
        for order in orders
        if (forwards := [a.microbatch for a in order if (a.stage, a.op) == (last, "F")])
    ]
    wrong = next((n for n, microbatch in enumerate(ran) if n != microbatch), None)
    if wrong is not None:
        raise ExportRefused(
            f"the last stage runs microbatch {ran[wrong]} as number {wrong}, and the runtime of "
            f"{framework} takes the losses for those of microbatches 0, 1, 2, …, which gives wrong "
            "gradients; the nearest plans have a schedule by name; --to torch takes any order"
        )


def takes(name: str, num_ranks: int, stages_per_rank: int, num_microbatches: int) -> bool:
    """Whether the constructor of torch's schedule `name` takes the numbers of one replica."""
    if name == "1F1B":
        return num_microbatches >= num_ranks * stages_per_rank
    if name.startswith("Interleaved"):
        return num_microbatches % max(1, num_microbatches // num_ranks) == 0
    return True
