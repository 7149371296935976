"""Two pipelines in opposite directions over the same ranks
(Li and Hoefler, Chimera, SC 2021).

    rank 0  0F0 0F2  .  3F1 3B1 3F3 3B3 0B0  .  0B2
    rank 1   .  1F0 2F1 1F2 2F3 2B1 1B0 2B3 1B2  .
    rank 2   .  1F1 2F0 1F3 2F2 2B0 1B1 2B2 1B3  .
    rank 3  0F1 0F3  .  3F0 3B0 3F2 3B2 0B1  .  0B3

Stage s is on the ranks s and k - 1 - s. The former runs its even microbatches, which go down the
ranks. The latter runs the odd ones, which go up. So each weight lies on two ranks, and its gradient
needs a sync.

F and B take one slot each. Microbatch i in its direction runs on stage s

    F in slot s + 2 i
    B in slot 2 k - 1 - s + 2 i

With k even, the two directions never need the same slot. Each further k microbatches form a unit
that follows 2 k slots later ("direct concatenation").
"""

from autopart.schedules.actions import Action, Op, Schedule
from autopart.schedules.kind import Kind
from autopart.schedules.pipeline import Pipeline


def chimera(pipeline: Pipeline) -> Schedule:
    """Chimera with one pipeline in each direction."""
    k, m = pipeline.num_ranks, pipeline.microbatches_per_replica
    # For each rank, (slot, action) in any order; sorting by slot gives the rank's order.
    slots: list[list[tuple[int, Action]]] = [[] for _ in range(k)]
    for microbatch in range(m):
        begin, within = divmod(microbatch, k)
        turn, goes_up = divmod(within, 2)
        for stage in range(k):
            rank = k - 1 - stage if goes_up else stage
            now, later = stage + 2 * turn, 2 * k - 1 - stage + 2 * turn
            ops: tuple[tuple[int, Op], ...] = ((now, "F"), (later, "B"))
            slots[rank] += [
                (2 * k * begin + slot, Action(stage, op, microbatch)) for slot, op in ops
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
    pictured=Pipeline(4, 1, 4),
    bidirectional=True,
    takes=_takes,
    rule="an even number of ranks and of microbatches",
)
