"""All forwards, then all backwards (Huang et al., GPipe, NeurIPS 2019).

    rank 0  0F0 0F1 0F2  .   .  0B0 0B1 0B2
    rank 1   .  1F0 1F1 1F2 1B0 1B1 1B2  .

Each rank has all its microbatches in flight at once.
"""

from autopart.schedules.actions import Schedule, StageRanks
from autopart.schedules.kind import Kind
from autopart.schedules.named.one_f_one_b import stage_orders
from autopart.schedules.pipeline import Pipeline


def gpipe(stage_ranks: StageRanks, num_microbatches: int) -> Schedule:
    """GPipe for stages with any number of ranks each."""
    return stage_orders(stage_ranks, num_microbatches, lambda stage: num_microbatches)


def _generate(pipeline: Pipeline) -> Schedule:
    return gpipe([[rank] for rank in range(pipeline.num_ranks)], pipeline.microbatches_per_replica)


def _in_flight(pipeline: Pipeline) -> tuple[int, ...]:
    return (pipeline.microbatches_per_replica,) * pipeline.num_ranks


GPIPE = Kind(
    name="gpipe",
    generate=_generate,
    in_flight=_in_flight,
    source="Huang et al., GPipe, NeurIPS 2019",
    pictured=Pipeline(2, 1, 3),
    uneven=gpipe,
)
