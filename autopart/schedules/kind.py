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

    A bidirectional schedule runs two pipelines over the same k ranks in opposite directions. Stage s
    has two replicas: rank s runs its even microbatches, rank k - 1 - s the odd ones. So each rank has
    two stages, and the weights of each stage exist twice.
    """

    name: str
    generate: Callable[[Pipeline], Schedule]
    """Makes the orders for ranks 0 to k - 1 of one pipeline, with microbatches counted from 0.

    A bidirectional schedule's are for both pipelines, with the microbatches of both.
    """
    in_flight: Callable[[Pipeline], tuple[int, ...]]
    """The most microbatches in flight on each rank: past F and before the end of B or W.

    A microbatch counts once on each stage of the rank.
    """
    source: str
    """The paper or program that the schedule is from."""
    pictured: Pipeline
    """The pipeline in the picture that opens the generator's file."""
    stages_per_rank: int | None = 1
    """Stages of one pipeline on each rank; None where any number fits."""
    placement: Callable[[int, int], Placement] = loop
    """Gives the rank of each stage in one pipeline, for a number of ranks and of stages per rank."""
    splits_backward: bool = False
    """Whether some backwards are split into I and W."""
    bidirectional: bool = False
    """Whether two pipelines run in opposite directions."""
    pairs: bool = False
    """Whether ranks run overlapped pairs: a forward beside a whole backward."""
    lends: bool = False
    """Whether ranks lend stash to other ranks: its orders have L and T."""
    takes: Callable[[Pipeline], bool] = any_number
    """Tells whether the numbers of ranks, stages and microbatches fit."""
    rule: str = "any number of microbatches"
    """The numbers that `takes` accepts, in words."""
    uneven: Callable[[StageRanks, int], Schedule] | None = None
    """Makes the orders where stages have different numbers of ranks; None where no order exists."""


def replicas_together(kind: Kind) -> int:
    """The replicas of a stage that share their ranks with other stages: 2 if bidirectional, else 1."""
    return 2 if kind.bidirectional else 1
