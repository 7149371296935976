"""What is known of a schedule besides its orders."""

from collections.abc import Callable
from typing import NamedTuple

from autopart.schedule import Schedule, StageRanks
from autopart.schedules.pipeline import Pipeline
from autopart.schedules.placements import Placement, loop


def any_number(pipeline: Pipeline) -> bool:
    """Every number of microbatches will do."""
    return pipeline.num_microbatches >= 1


class Kind(NamedTuple):
    """One schedule of the field.

    A bidirectional one runs two pipelines over the same ranks in opposite directions: stages 0 to
    k - 1 are the one, k to 2 k - 1 the other, and stages s and k + s hold the same layers. Their
    weights lie there twice, and their gradients need a sync.
    """

    name: str
    generate: Callable[[Pipeline], Schedule]
    """The orders of ranks 0 to k - 1 of one pipeline, microbatches counted from 0."""
    in_flight: Callable[[Pipeline], tuple[int, ...]]
    """For each rank the most microbatches past F and before the end of their backward (B or W) at
    one time, each counted once on each stage of the rank."""
    source: str
    pictured: Pipeline
    """What the picture in the generator's file shows."""
    stages_per_rank: int | None = 1
    """None where any number will do."""
    placement: Callable[[int, int], Placement] = loop
    """The rank of each stage, of ranks and stages a rank."""
    splits_backward: bool = False
    bidirectional: bool = False
    takes: Callable[[Pipeline], bool] = any_number
    """Whether the numbers of ranks, stages and microbatches fit."""
    rule: str = "any number of microbatches"
    """What `takes` asks for, in words."""
    uneven: Callable[[StageRanks, int], Schedule] | None = None
    """The orders where stages differ in their number of ranks; None where there are none."""


def pipeline_starts(kind: Kind, num_stages: int) -> tuple[int, ...]:
    """The stages that are the first of a pipeline, as `check_schedule` asks for them."""
    return (0, num_stages // 2) if kind.bidirectional else (0,)


def twin(kind: Kind, num_stages: int, stage: int) -> int | None:
    """The stage that holds the same layers for the other direction; None where there is none."""
    return (stage + num_stages // 2) % num_stages if kind.bidirectional else None
