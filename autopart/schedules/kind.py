"""A named schedule: its generator, and the facts about it."""

from collections.abc import Callable
from typing import NamedTuple

from autopart.schedules.actions import Schedule, StageRanks
from autopart.schedules.pipeline import Pipeline
from autopart.schedules.placements import Placement, loop


def any_number(pipeline: Pipeline) -> bool:
    """Any number of microbatches fits, from 1 on."""
    return pipeline.microbatches_per_replica >= 1


class Kind(NamedTuple):
    """One named schedule.

    A bidirectional schedule runs two pipelines over the same k ranks in opposite directions. Stages
    0 to k - 1 are the one, stages k to 2 k - 1 the other. Stages s and k + s have the same layers,
    so their weights exist twice and their gradients need a sync.
    """

    name: str
    generate: Callable[[Pipeline], Schedule]
    """Makes the orders for ranks 0 to k - 1 of one pipeline, with microbatches counted from 0."""
    in_flight: Callable[[Pipeline], tuple[int, ...]]
    """The most microbatches in flight on each rank: past F and before the end of B or W.

    A microbatch counts once on each stage of the rank.
    """
    source: str
    """The paper or program that the schedule is from."""
    pictured: Pipeline
    """The pipeline in the picture that opens the generator's file."""
    stages_per_rank: int | None = 1
    """Stages on each rank; None where any number fits."""
    placement: Callable[[int, int], Placement] = loop
    """Gives the rank of each stage, for a number of ranks and of stages per rank."""
    splits_backward: bool = False
    """Whether some backwards are split into I and W."""
    bidirectional: bool = False
    """Whether two pipelines run in opposite directions."""
    takes: Callable[[Pipeline], bool] = any_number
    """Tells whether the numbers of ranks, stages and microbatches fit."""
    rule: str = "any number of microbatches"
    """The numbers that `takes` accepts, in words."""
    uneven: Callable[[StageRanks, int], Schedule] | None = None
    """Makes the orders where stages have different numbers of ranks; None where no order exists."""


def pipeline_starts(kind: Kind, num_stages: int) -> tuple[int, ...]:
    """The first stages of the pipelines, as `check_schedule` takes them."""
    return (0, num_stages // 2) if kind.bidirectional else (0,)


def twin(kind: Kind, num_stages: int, stage: int) -> int | None:
    """The stage with the same layers in the other direction; None if there is only one."""
    return (stage + num_stages // 2) % num_stages if kind.bidirectional else None
