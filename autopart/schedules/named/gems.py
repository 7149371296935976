"""One microbatch at a time on two pipelines in opposite directions
(Jain et al., GEMS, SC 2020).

    rank 0  0F0  .   .  0B0 1F1 1B1 0F2  .   .  0B2 1F3 1B3  .
    rank 1   .  1F0 1B0 0F1  .   .  0B1 1F2 1B2 0F3  .   .  0B3

Stage s is on the ranks s and k - 1 - s, as in Chimera. Microbatches take turns between the
directions. Each forward follows right after the backward of the microbatch before. So each rank has
one microbatch in flight, and few actions overlap. Each weight lies on two ranks, and its gradient
needs a sync. With k odd, one rank would have the stage in the middle twice.
"""

from autopart.schedules.actions import Action, Schedule
from autopart.schedules.kind import Kind
from autopart.schedules.pipeline import Pipeline


def gems(pipeline: Pipeline) -> Schedule:
    """GEMS with one pipeline in each direction."""
    k, m = pipeline.num_ranks, pipeline.microbatches_per_replica
    stages = [(rank, k - 1 - rank) for rank in range(k)]
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
    m = pipeline.microbatches_per_replica
    return pipeline.num_ranks % 2 == 0 and m >= 2 and m % 2 == 0


def _in_flight(pipeline: Pipeline) -> tuple[int, ...]:
    return (1,) * pipeline.num_ranks


GEMS = Kind(
    name="gems",
    generate=gems,
    in_flight=_in_flight,
    source="Jain et al., GEMS, SC 2020",
    pictured=Pipeline(2, 1, 4),
    bidirectional=True,
    takes=_takes,
    rule="an even number of ranks and of microbatches",
)
