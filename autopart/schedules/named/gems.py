"""One microbatch at a time on two pipelines in opposite directions
(Jain et al., GEMS, SC 2020).

    rank 0  0F0  .   .  0B0 3F1 3B1 0F2  .   .  0B2 3F3 3B3  .
    rank 1   .  1F0 1B0 2F1  .   .  2B1 1F2 1B2 2F3  .   .  2B3

Rank r has stage r of the one pipeline and stage k + (k - 1 - r) of the other. The latter has the
same layers as stage k - 1 - r. Microbatches take turns between the directions. Each forward follows
right after the backward of the microbatch before. So each rank has one microbatch in flight, and
few actions overlap. Each weight lies on two ranks, and its gradient needs a sync.
"""

from autopart.schedules.actions import Action, Schedule
from autopart.schedules.kind import Kind
from autopart.schedules.pipeline import Pipeline
from autopart.schedules.placements import wave


def gems(pipeline: Pipeline) -> Schedule:
    """GEMS with one pipeline in each direction."""
    k, m = pipeline.num_ranks, pipeline.microbatches_per_replica
    stages = [(rank, 2 * k - 1 - rank) for rank in range(k)]
    return tuple(
        tuple(
            action
            for microbatch in range(m)
            for action in (
                Action(own[microbatch % 2], "F", microbatch),
                Action(own[microbatch % 2], "B", microbatch),
            )
        )
        for own in stages
    )


def _takes(pipeline: Pipeline) -> bool:
    return pipeline.microbatches_per_replica >= 2 and pipeline.microbatches_per_replica % 2 == 0


def _in_flight(pipeline: Pipeline) -> tuple[int, ...]:
    return (1,) * pipeline.num_ranks


GEMS = Kind(
    name="gems",
    generate=gems,
    in_flight=_in_flight,
    source="Jain et al., GEMS, SC 2020",
    pictured=Pipeline(2, 2, 4),
    stages_per_rank=2,
    placement=wave,
    bidirectional=True,
    takes=_takes,
    rule="an even number of microbatches",
)
