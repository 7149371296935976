"""The plan's schedule among the named schedules in torch and its descendants."""

from collections.abc import Sequence
from typing import NamedTuple

from autopart.errors import ExportRefused
from autopart.exporters.model_units import (
    EMBEDDING,
    HEAD,
    UnitStage,
    refuse_elsewhere,
    refuse_other_recompute,
)
from autopart.exporters.pipeline_shape import (
    Shape,
    orders_of_one_replica,
    refuse_single_rank,
    refuse_split_tied,
    shape_of,
)
from autopart.records.plan import Plan, follows_its_name, schedule_of
from autopart.schedules.actions import Schedule
from autopart.schedules.torch_names import TORCH_NAMES, csv_of, takes

CSV_FILE = "autopart_schedule.csv"
"""The file name for a plan's orders."""

CSV_NOTE = f"start the run in the folder of {CSV_FILE}, or write its full path"
"""A note for frameworks that take the file name as it is."""


class TorchSchedule(NamedTuple):
    """A schedule for torch's `get_schedule_class` and `_load_csv`."""

    name: str
    """The schedule's name. With a file, the name decides the placement only."""
    csv: str | None
    """The orders' text; None where the name gives them."""

    @property
    def files(self) -> dict[str, str]:
        """The file with the orders, by its name; empty where the schedule's name gives them."""
        return {} if self.csv is None else {CSV_FILE: self.csv}


def torch_schedule(plan: Plan, shape: Shape, framework: str) -> TorchSchedule:
    """The name that gives the plan's orders, or else the orders as a file.

    Raises ExportRefused for a V with more than two stages per rank, which torch cannot place.
    """
    if shape.placement == "v" and shape.stages_per_rank != 2:
        raise ExportRefused(
            f"{framework} runs a V with 2 stages per rank, and the plan has "
            f"{shape.stages_per_rank}; the nearest plan has 2 stages per rank"
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


def shape_under_fsdp(plan: Plan, stages: Sequence[UnitStage], framework: str) -> Shape:
    """The plan's shape, for a framework that lists each stage's units and wraps stages in FSDP2.

    Raises ExportRefused where the embedding is not on the first stage, the head not on the last,
    other units than decoder layers are recomputed, a parameter is tied over stages, a backward is
    split, or one rank has all stages.
    """
    shape = shape_of(plan, framework)
    refuse_single_rank(shape, framework)
    refuse_split_tied(plan, framework)
    refuse_other_recompute(stages, framework)
    refuse_elsewhere(stages, EMBEDDING, 0, framework)
    refuse_elsewhere(stages, HEAD, len(stages) - 1, framework)
    _refuse_split_backwards(plan, framework)
    return shape


def _refuse_split_backwards(plan: Plan, framework: str) -> None:
    """Raise ExportRefused where a backward is split.

    torch's split backward skips the hooks through which FSDP2 takes gradients. torch 2.13 gives
    some gradients wrong or not at all.
    """
    if any(op in "IW" for order in schedule_of(plan) for _, op, _ in order):
        raise ExportRefused(
            f"the plan has split backwards, and {framework} wraps every stage in FSDP, which loses "
            "weight gradients after a split backward; the nearest plans have --schedule 1f1b or "
            "interleaved-1f1b; --to torch runs split backwards"
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
            f"the last stage runs microbatch {ran[wrong]} as number {wrong}, and the runtime in "
            f"{framework} expects losses in the order 0, 1, 2, …, so gradients would be wrong; "
            "the nearest plans have a named schedule; --to torch takes any order"
        )
