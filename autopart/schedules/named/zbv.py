"""Zero bubble on a V (Qi et al., Zero Bubble Pipeline Parallelism, ICLR 2024, section 6).

    rank 0  0F0 0F1 0F2 3F0 3I0 3W0 3F1 3I1 3W1 0I0 0W0 3F2 3I2 3W2 0I1 0W1 0I2 0W2  .
    rank 1   .  1F0 2F0 1F1 2F1 2I0 2W0 1F2 1I0 1W0 2F2 2I1 2W1 1I1 2I2 1I2 1W1 2W2 1W2

Rank r has stages r and 2 k - 1 - r, so rank 0 computes the loss. If F, I and W take equally long,
no rank idles between its first action and its last. Each rank has at most 2 k microbatches in
flight, on stages half as large: no more stash than 1F1B's first rank. The order is made for at
least 2 k - 1 microbatches. With fewer, the missing microbatches are left out.
"""

from autopart.schedules.actions import Order, Schedule
from autopart.schedules.kind import Kind
from autopart.schedules.pipeline import Pipeline, Step, in_turn
from autopart.schedules.placements import wave


def zbv(pipeline: Pipeline) -> Schedule:
    """ZB-V."""
    return tuple(_order(pipeline, rank) for rank in range(pipeline.num_ranks))


def _order(pipeline: Pipeline, rank: int) -> Order:
    k, full = pipeline.num_ranks, max(2 * pipeline.num_ranks - 1, pipeline.microbatches_per_replica)
    begun = 2 * k - 1 - rank
    # Small letters are the rank's stage on the arm down, capitals its stage on the arm up.
    # Step 1: fill the V.
    letters = "f" * (begun - rank)
    letters += "Ff" * rank
    letters += "FIW" * (k - rank)
    # Step 2: all three ops on both stages, as long as microbatches begin.
    letters += "fiwFIW" * (full - begun)
    # Step 3: drain. Each W that waited fills a slot in which the rank would idle.
    letters += "iwFIW" * (begun - k)
    letters += "iI" * rank
    letters += "iw" * (k - rank)
    letters += "W" * rank + "w" * rank
    up = pipeline.num_stages - 1 - rank
    steps: dict[str, Step] = {"f": (rank, "F"), "i": (rank, "I"), "w": (rank, "W")}
    steps |= {"F": (up, "F"), "I": (up, "I"), "W": (up, "W")}
    return in_turn(map(steps.__getitem__, letters), pipeline.microbatches_per_replica)


def _in_flight(pipeline: Pipeline) -> tuple[int, ...]:
    return (2 * min(pipeline.num_ranks, pipeline.microbatches_per_replica),) * pipeline.num_ranks


ZBV = Kind(
    name="zbv",
    generate=zbv,
    in_flight=_in_flight,
    source="Qi et al., Zero Bubble Pipeline Parallelism, ICLR 2024",
    pictured=Pipeline(2, 2, 3),
    stages_per_rank=2,
    placement=wave,
    splits_backward=True,
)
