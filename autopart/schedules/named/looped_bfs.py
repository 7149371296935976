"""Breadth first over the stages on each rank: GPipe with several stages per rank
(Lamy-Poirier, Breadth-First Pipeline Parallelism, MLSys 2023).

    rank 0  0F0 0F1 0F2 2F0 2F1 2F2  .   .  2B2 2B1 2B0 0B2 0B1 0B0
    rank 1   .  1F0 1F1 1F2 3F0 3F1 3F2 3B2 3B1 3B0 1B2 1B1 1B0  .

Stage s lies on rank s mod k. Backwards run the last microbatch first, as in torch 2.13: the newest
stash is used first. Each rank has all microbatches in flight on all its stages.
"""

from autopart.schedules.actions import Action, Order, Schedule
from autopart.schedules.kind import Kind
from autopart.schedules.pipeline import Pipeline


def looped_bfs(pipeline: Pipeline) -> Schedule:
    """Run all microbatches on one stage before the next stage."""
    return tuple(_order(pipeline, rank) for rank in range(pipeline.num_ranks))


def _order(pipeline: Pipeline, rank: int) -> Order:
    mine = range(rank, pipeline.num_stages, pipeline.num_ranks)
    microbatches = range(pipeline.microbatches_per_replica)
    forwards = [Action(stage, "F", m) for stage in mine for m in microbatches]
    return (*forwards, *(Action(stage, "B", m) for stage, _, m in reversed(forwards)))


def _in_flight(pipeline: Pipeline) -> tuple[int, ...]:
    return (pipeline.microbatches_per_replica * pipeline.stages_per_rank,) * pipeline.num_ranks


LOOPED_BFS = Kind(
    name="looped-bfs",
    generate=looped_bfs,
    in_flight=_in_flight,
    source="Lamy-Poirier, Breadth-First Pipeline Parallelism, MLSys 2023",
    pictured=Pipeline(2, 2, 3),
    stages_per_rank=None,
)
