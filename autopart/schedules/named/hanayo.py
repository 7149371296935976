"""Waves: Chimera's two directions folded into one pipeline that runs down and up the ranks
(Liu et al., Hanayo, SC 2023).

    rank 0  0F0 0F1  .  3F0 3B0 3F1 3B1 0B0 0F2 0B1 0F3 3F2 3B2 3F3 3B3 0B2  .  0B3
    rank 1   .  1F0 2F0 1F1 2F1 2B0 1B0 2B1 1B1 1F2 2F2 1F3 2F3 2B2 1B2 2B3 1B3  .

For w waves each rank has 2 w stages: each wave passes the rank once down and once up. There are
S = 2 w k stages. F and B take one slot each. In a unit of k, microbatch i runs on stage s

    F in slot s + 2 i
    B in slot 2 S - 1 - s + 2 i

No rank needs a slot twice. The next unit follows 2 S slots later. Fill and drain take the time of
2 (k - 1) stages. More waves make stages shorter, and sends more frequent.
"""

from autopart.schedules.actions import Action, Schedule
from autopart.schedules.kind import Kind
from autopart.schedules.pipeline import Pipeline
from autopart.schedules.placements import wave


def hanayo(pipeline: Pipeline) -> Schedule:
    """Hanayo with one wave for each two stages per rank."""
    k, stages = pipeline.num_ranks, pipeline.num_stages
    place = wave(k, pipeline.stages_per_rank)
    # For each rank, (slot, action) in any order; sorting by slot gives the rank's order.
    slots: list[list[tuple[int, Action]]] = [[] for _ in range(k)]
    for microbatch in range(pipeline.microbatches_per_replica):
        unit, turn = divmod(microbatch, k)
        begin = 2 * stages * unit + 2 * turn
        for stage, rank in enumerate(place):
            slots[rank].append((begin + stage, Action(stage, "F", microbatch)))
            later = begin + 2 * stages - 1 - stage
            slots[rank].append((later, Action(stage, "B", microbatch)))
    return tuple(tuple(action for _, action in sorted(rank)) for rank in slots)


def _takes(pipeline: Pipeline) -> bool:
    m = pipeline.microbatches_per_replica
    return pipeline.stages_per_rank % 2 == 0 and m >= 1 and m % pipeline.num_ranks == 0


def _in_flight(pipeline: Pipeline) -> tuple[int, ...]:
    k = pipeline.num_ranks
    return tuple((pipeline.stages_per_rank - 1) * k + r + 1 for r in range(k))


HANAYO = Kind(
    name="hanayo",
    generate=hanayo,
    in_flight=_in_flight,
    source="Liu et al., Hanayo, SC 2023",
    pictured=Pipeline(2, 2, 4),
    stages_per_rank=None,
    placement=wave,
    takes=_takes,
    rule="an even number of stages per rank, and multiples of k microbatches",
)
