"""Schedules whose ranks run overlapped pairs: a forward beside the backward of another microbatch.

    rank 0    0F0     0F1     0F2   0F3;0B0   0B1     0B2     0B3
    rank 1     .      1F0   1F1;1B0 1F2;1B1 1F3;1B2   1B3      .

    rank 0    0F0     0F1     2F0     2F1     0F2   0F3;2B0 2F2;2B1 2F3;0B0   0B1     2B2     2B3     0B2     0B3
    rank 1     .      1F0     1F1     3F0   3F1;3B0 1F2;3B1 1F3;1B0 3F2;1B1 3F3;3B2   3B3     1B2     1B3      .

    rank 0    0F0     0F1     0F2     3F0     3I0     3W0     3F1   0F3;3B1 3F2;0B0   3B2   3F3;0B1   3B3     0I2     0W2     0I3     0W3
    rank 1     .      1F0     2F0     1F1     2F1     1F2     2B0   2F2;1B0 1F3;2B1 2F3;1B1   2B2     1B2     2I3     1I3     2W3     1W3

The backward's sends, such as a mixture-of-experts layer's all-to-all, hide beneath the forward's
compute, and the other way round (DeepSeek-AI, DeepSeek-V3 Technical Report, 2024). The last stage
has no backward to pair with a microbatch's own forward. So each warm-up is one forward longer than
without pairs, and each hop ahead takes two more, since a pair hands both results over at its end.

Behind the warm-up, each forward is paired with the whole backward of another microbatch that
follows it.
"""

from autopart.schedules.actions import Order, Schedule, with_pairs
from autopart.schedules.kind import Kind
from autopart.schedules.named.dualpipev import DUALPIPEV
from autopart.schedules.named.interleaved import (
    ROUNDS_RULE,
    fills_rounds,
    forwards_ahead,
    interleaved_order,
)
from autopart.schedules.pipeline import Pipeline


def _ahead(pipeline: Pipeline, rank: int) -> int:
    """Forwards on a rank before its first pair."""
    most = pipeline.microbatches_per_replica * pipeline.stages_per_rank
    return min(forwards_ahead(pipeline, rank) + 1, most)


def paired_rounds(pipeline: Pipeline) -> Schedule:
    """Interleaved 1F1B with one more forward ahead, in pairs; 1F1B where ranks have one stage."""
    orders: list[Order] = []
    for rank in range(pipeline.num_ranks):
        ahead = _ahead(pipeline, rank)
        orders.append(with_pairs(interleaved_order(pipeline, rank, ahead), ahead))
    return tuple(orders)


def paired_dualpipev(pipeline: Pipeline) -> Schedule:
    """DualPipeV with a forward on one arm beside a backward on the other.

    The last rank hands its first gradient to itself: it runs that backward right before the pair
    that needs it, and so not in a pair, as torch does.
    """
    orders = DUALPIPEV.generate(pipeline)
    return (*map(with_pairs, orders[:-1]), with_pairs(orders[-1], 2 * pipeline.num_ranks + 1))


def _in_flight(pipeline: Pipeline) -> tuple[int, ...]:
    most = pipeline.microbatches_per_replica * pipeline.stages_per_rank
    return tuple(min(_ahead(pipeline, r) + 1, most) for r in range(pipeline.num_ranks))


PAIRED_ONE_F_ONE_B = Kind(
    name="paired-1f1b",
    generate=paired_rounds,
    in_flight=_in_flight,
    source="NVIDIA, Megatron-Core, overlap_moe_expert_parallel_comm",
    pictured=Pipeline(2, 1, 4),
    pairs=True,
)

PAIRED_INTERLEAVED = Kind(
    name="paired-interleaved-1f1b",
    generate=paired_rounds,
    in_flight=_in_flight,
    source="NVIDIA, Megatron-Core, overlap_moe_expert_parallel_comm",
    pictured=Pipeline(2, 2, 4),
    stages_per_rank=None,
    pairs=True,
    takes=fills_rounds,
    rule=ROUNDS_RULE,
)

PAIRED_DUALPIPEV = DUALPIPEV._replace(
    name="paired-dualpipev", generate=paired_dualpipev, pairs=True
)
