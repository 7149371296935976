"""Split backwards: weight gradients run where ranks would otherwise idle
(Qi et al., Zero Bubble Pipeline Parallelism, ICLR 2024).

ZB-H1 (ZB1P) keeps no more stash than 1F1B's first rank. On rank r each W runs r microbatches after
its I, so the drain has work:

    rank 0  0F0 0F1  .  0I0 0W0 0F2 0I1 0W1 0I2 0W2
    rank 1   .  1F0 1I0 1F1 1I1 1W0 1F2 1I2 1W1 1W2

ZB-H2 (ZB2P) runs 2 (k - r) - 1 forwards ahead, and each W 2 r microbatches late. If F, I and W take
equally long, no rank idles between its first action and its last. It keeps nearly twice the stash:

    rank 0  0F0 0F1 0F2 0I0 0W0 0I1 0W1 0I2 0W2  .
    rank 1   .  1F0 1I0 1F1 1I1 1F2 1I2 1W0 1W1 1W2

Interleaved zero bubble is ZB-H1 in rounds over several stages per rank, stage s on rank s mod k:

    rank 0  0F0 0F1 2F0 2F1  .  2I0 2W0 2I1 2W1 0I0 0W0 0I1 0W1
    rank 1   .  1F0 1F1 3F0 3I0 3F1 3I1 3W0 1I0 3W1 1I1 1W0 1W1
"""

from autopart.schedules.actions import Schedule
from autopart.schedules.kind import Kind
from autopart.schedules.named.interleaved import (
    ROUNDS_RULE,
    fills_rounds,
    interleaved_order,
    round_size,
)
from autopart.schedules.pipeline import Pipeline


def zb_h1(pipeline: Pipeline) -> Schedule:
    """ZB-H1; interleaved zero bubble if ranks have several stages."""
    return tuple(
        interleaved_order(pipeline, r, _ahead(pipeline, r), weights_behind=r)
        for r in range(pipeline.num_ranks)
    )


def zb_h2(pipeline: Pipeline) -> Schedule:
    """ZB-H2."""
    return tuple(
        interleaved_order(pipeline, r, _deep(pipeline, r), weights_behind=2 * r)
        for r in range(pipeline.num_ranks)
    )


def _ahead(pipeline: Pipeline, rank: int) -> int:
    ahead = (pipeline.stages_per_rank - 1) * round_size(pipeline) + pipeline.num_ranks - 1 - rank
    return min(ahead, pipeline.microbatches_per_replica * pipeline.stages_per_rank)


def _deep(pipeline: Pipeline, rank: int) -> int:
    return min(2 * (pipeline.num_ranks - 1 - rank), pipeline.microbatches_per_replica)


def _h1_in_flight(pipeline: Pipeline) -> tuple[int, ...]:
    most = pipeline.microbatches_per_replica * pipeline.stages_per_rank
    return tuple(min(_ahead(pipeline, r) + 1 + r, most) for r in range(pipeline.num_ranks))


def _h2_in_flight(pipeline: Pipeline) -> tuple[int, ...]:
    most = min(2 * pipeline.num_ranks - 1, pipeline.microbatches_per_replica)
    return (most,) * pipeline.num_ranks


ZB_H1 = Kind(
    name="zb-h1",
    generate=zb_h1,
    in_flight=_h1_in_flight,
    source="Qi et al., Zero Bubble Pipeline Parallelism, ICLR 2024",
    pictured=Pipeline(2, 1, 3),
    splits_backward=True,
)

ZB_H2 = Kind(
    name="zb-h2",
    generate=zb_h2,
    in_flight=_h2_in_flight,
    source="Qi et al., Zero Bubble Pipeline Parallelism, ICLR 2024",
    pictured=Pipeline(2, 1, 3),
    splits_backward=True,
)

INTERLEAVED_ZERO_BUBBLE = Kind(
    name="interleaved-zb",
    generate=zb_h1,
    in_flight=_h1_in_flight,
    source="Qi et al., Zero Bubble Pipeline Parallelism, ICLR 2024; as torch 2.13 generates it",
    pictured=Pipeline(2, 2, 2),
    stages_per_rank=None,
    splits_backward=True,
    takes=fills_rounds,
    rule=ROUNDS_RULE,
)
