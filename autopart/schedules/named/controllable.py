"""Zero bubble on a V with a half or a third of 1F1B's stash
(Qi et al., Pipeline Parallelism with Controllable Memory, NeurIPS 2024).

V-Half:

    rank 0  0F0 0F1  .   .   .  5F0 5I0 5W0 5F1 5I1 5W1  .  0I0 0W0  .   .   .  0I1 0W1
    rank 1   .  1F0 1F1  .  4F0  .  4F1 4I0 4W0  .   .  1I0 4I1 4W1 1W0  .  1I1 1W1  .
    rank 2   .   .  2F0 3F0 2F1 3F1  .   .  3I0 3W0 2I0 2W0  .  3I1 3W1 2I1 2W1  .   .

V-Min:

    rank 0  0F0 0F1  .   .   .  5F0 5I0 5W0 5F1  .   .  0I0 5I1 5W1 0W0  .   .  0I1 0W1
    rank 1   .  1F0 1F1  .  4F0  .  4F1 4I0 4W0  .  1I0 1W0  .  4I1 4W1  .  1I1 1W1  .
    rank 2   .   .  2F0 3F0 2F1 3F1  .   .  3I0 2I0 3W0 2W0  .   .  3I1 2I1 3W1 2W1  .

Rank r has stages r and 2 k - 1 - r. Each microbatch repeats one block of F and I, 6 slots after the
microbatch before. In that time each rank runs 6 actions. In the block, the next rank down or up
starts later by so many slots:

            F down   F up   I down   I up
    V-Min      1       1       1       1      lifespans on a rank sum to 4 k: a third of 12 k
    V-Half     2       1       2       1      to 6 k: a half

At the turns a microbatch waits only as needed to keep each rank's four actions apart modulo 6:

    V-Min     2 slots before I turns down if 3 divides k, else none
    V-Half    3 slots before I turns down if k is even, else none; 1 slot before I turns up

autopart/schedules/squeezing.py makes the orders from the block.
"""

from autopart.schedules.actions import Schedule
from autopart.schedules.kind import Kind
from autopart.schedules.pipeline import Pipeline
from autopart.schedules.placements import wave
from autopart.schedules.squeezing import Block, squeezed


def v_half(pipeline: Pipeline) -> Schedule:
    """V-Half."""
    k = pipeline.num_ranks
    turn = 3 * k - 1 + (3 if k % 2 == 0 else 0)
    block = [(2 * r, 3 * k - 2 - r, turn + 2 * r, turn + 3 * k - 1 - r) for r in range(k)]
    return squeezed(block, pipeline.microbatches_per_replica)


def v_min(pipeline: Pipeline) -> Schedule:
    """V-Min."""
    k = pipeline.num_ranks
    turn = 2 * k + (2 if k % 3 == 0 else 0)
    block: Block = [(r, 2 * k - 1 - r, turn + r, turn + 2 * k - 1 - r) for r in range(k)]
    return squeezed(block, pipeline.microbatches_per_replica)


def _half_cap(num_ranks: int) -> int:
    return num_ranks + (2 if num_ranks % 2 == 0 else 1)


def _min_cap(num_ranks: int) -> int:
    return 2 * -(-(num_ranks + 2) // 3)


def _half_in_flight(pipeline: Pipeline) -> tuple[int, ...]:
    most = min(_half_cap(pipeline.num_ranks), 2 * pipeline.microbatches_per_replica)
    return (most,) * pipeline.num_ranks


def _min_in_flight(pipeline: Pipeline) -> tuple[int, ...]:
    most = min(_min_cap(pipeline.num_ranks), 2 * pipeline.microbatches_per_replica)
    return (most,) * pipeline.num_ranks


V_HALF = Kind(
    name="v-half",
    generate=v_half,
    in_flight=_half_in_flight,
    source="Qi et al., Pipeline Parallelism with Controllable Memory, NeurIPS 2024",
    pictured=Pipeline(3, 2, 2),
    stages_per_rank=2,
    placement=wave,
    splits_backward=True,
)

V_MIN = Kind(
    name="v-min",
    generate=v_min,
    in_flight=_min_in_flight,
    source="Qi et al., Pipeline Parallelism with Controllable Memory, NeurIPS 2024",
    pictured=Pipeline(3, 2, 2),
    stages_per_rank=2,
    placement=wave,
    splits_backward=True,
)
