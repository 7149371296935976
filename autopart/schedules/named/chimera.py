"""Two pipelines in opposite directions over the same ranks
(Li and Hoefler, Chimera, SC 2021).

    rank 0  0F0 0F1  .  7F2 7B2 7F3 7B3 0B0  .  0B1
    rank 1   .  1F0 6F2 1F1 6F3 6B2 1B0 6B3 1B1  .
    rank 2   .  5F2 2F0 5F3 2F1 2B0 5B2 2B1 5B3  .
    rank 3  4F2 4F3  .  3F0 3B0 3F1 3B1 4B2  .  4B3

Rank r has stage r of the one pipeline and stage k + (k - 1 - r) of the other. The latter has the
same layers as stage k - 1 - r. So each weight lies on two ranks, and its gradient needs a sync.
Half the microbatches run in each direction.

F and B take one slot each. Microbatch i in its direction runs on its s-th stage

    F in slot s + 2 i
    B in slot 2 k - 1 - s + 2 i

With k even, the two directions never need the same slot. Each further k microbatches form a unit
that follows 2 k slots later ("direct concatenation").
"""

from autopart.schedules.actions import Action, Op, Schedule
from autopart.schedules.kind import Kind
from autopart.schedules.pipeline import Pipeline
from autopart.schedules.placements import wave


def chimera(pipeline: Pipeline) -> Schedule:
    """Chimera with one pipeline in each direction."""
    k, m = pipeline.num_ranks, pipeline.microbatches_per_replica
    # For each rank, (slot, action) in any order; sorting by slot gives the rank's order.
    slots: list[list[tuple[int, Action]]] = [[] for _ in range(k)]
    for begin in range(0, m, k):
        half = min(k, m - begin) // 2
        for turn in range(half):
            for direction, start in enumerate((0, k)):
                microbatch = begin + direction * half + turn
                for depth in range(k):
                    rank = depth if direction == 0 else k - 1 - depth
                    now, later = depth + 2 * turn, 2 * k - 1 - depth + 2 * turn
                    ops: tuple[tuple[int, Op], ...] = ((now, "F"), (later, "B"))
                    slots[rank] += [
                        (2 * begin + slot, Action(start + depth, op, microbatch))
                        for slot, op in ops
                    ]
    return tuple(tuple(action for _, action in sorted(rank)) for rank in slots)


def _takes(pipeline: Pipeline) -> bool:
    m = pipeline.microbatches_per_replica
    return pipeline.num_ranks % 2 == 0 and m >= 2 and m % 2 == 0


def _in_flight(pipeline: Pipeline) -> tuple[int, ...]:
    k = pipeline.num_ranks
    deepest = (k // 2 + 1 + min(rank, k - 1 - rank) for rank in range(k))
    return tuple(min(pipeline.microbatches_per_replica, most) for most in deepest)


CHIMERA = Kind(
    name="chimera",
    generate=chimera,
    in_flight=_in_flight,
    source="Li and Hoefler, Chimera, SC 2021",
    pictured=Pipeline(4, 2, 4),
    stages_per_rank=2,
    placement=wave,
    bidirectional=True,
    takes=_takes,
    rule="an even number of ranks and of microbatches",
)
