"""Interleaved 1F1B: each rank runs several stages in rounds of microbatches
(Narayanan et al., Efficient Large-Scale Language Model Training, SC 2021).

    rank 0  0F0 0F1 2F0 2F1  .  2B0  .  2B1 0B0 0B1
    rank 1   .  1F0 1F1 3F0 3B0 3F1 3B1 1B0 1B1  .

Stage s lies on rank s mod k. A round has g microbatches, about k. A rank runs a round forward on
its first stage, then on its second, and so on. It runs the round backward on its last stage first.

Rank r runs (v - 1) g + 2 (k - 1 - r) forwards ahead, and then has one more in flight. With v stages
per rank the fill takes 1 / v of the time, and v times as many messages are sent.
"""

from collections.abc import Iterator

from autopart.schedules.actions import Op, Order, Schedule
from autopart.schedules.kind import Kind
from autopart.schedules.pipeline import Pipeline, Step, in_turn


def interleaved(pipeline: Pipeline) -> Schedule:
    """Interleaved 1F1B."""
    return tuple(
        interleaved_order(pipeline, rank, forwards_ahead(pipeline, rank))
        for rank in range(pipeline.num_ranks)
    )


def interleaved_order(
    pipeline: Pipeline, rank: int, ahead: int, weights_behind: int | None = None
) -> Order:
    """One rank's order: `ahead` forwards, then a forward and a backward in turn, then backwards.

    `weights_behind` splits the backwards: each W then comes that many backwards after its I.
    """
    forwards = list(_visits(pipeline, rank, forward=True))
    backwards = list(_visits(pipeline, rank, forward=False))
    split = weights_behind is not None
    # Step 1: warm up.
    steps = _doing("F", forwards[:ahead])
    # Step 2: a forward, while any is left; a backward; and the W of an earlier backward.
    for done, stage in enumerate(backwards):
        steps += _doing("F", forwards[ahead + done : ahead + done + 1])
        steps.append((stage, "I" if split else "B"))
        if weights_behind is not None and done >= weights_behind:
            steps.append((backwards[done - weights_behind], "W"))
    # Step 3: the last W's.
    if weights_behind:
        steps += _doing("W", backwards[-weights_behind:])
    return in_turn(steps, pipeline.microbatches_per_replica)


def _doing(op: Op, stages: list[int]) -> list[Step]:
    return [(stage, op) for stage in stages]


def round_size(pipeline: Pipeline) -> int:
    """Microbatches that each rank runs on one stage before its next; all if it has one."""
    if pipeline.stages_per_rank == 1:
        return pipeline.microbatches_per_replica
    return pipeline.microbatches_per_replica // max(
        1, pipeline.microbatches_per_replica // pipeline.num_ranks
    )


def fills_rounds(pipeline: Pipeline) -> bool:
    """Whether the microbatches form floor(m / k) rounds with the same size."""
    m, rounds = (
        pipeline.microbatches_per_replica,
        pipeline.microbatches_per_replica // pipeline.num_ranks,
    )
    return m >= 1 and (pipeline.stages_per_rank == 1 or m % max(1, rounds) == 0)


ROUNDS_RULE = "m a multiple of floor(m / k): any number below 2 k, every multiple of k"


def _visits(pipeline: Pipeline, rank: int, *, forward: bool) -> Iterator[int]:
    size, v = round_size(pipeline), pipeline.stages_per_rank
    for _ in range(pipeline.microbatches_per_replica // size):
        for turn in range(v) if forward else reversed(range(v)):
            yield from [turn * pipeline.num_ranks + rank] * size


def forwards_ahead(pipeline: Pipeline, rank: int) -> int:
    """Forwards on a rank before its first forward and backward in turn."""
    ahead = (pipeline.stages_per_rank - 1) * round_size(pipeline)
    ahead += 2 * (pipeline.num_ranks - 1 - rank)
    return min(ahead, pipeline.microbatches_per_replica * pipeline.stages_per_rank)


def _in_flight(pipeline: Pipeline) -> tuple[int, ...]:
    most = pipeline.microbatches_per_replica * pipeline.stages_per_rank
    return tuple(min(forwards_ahead(pipeline, r) + 1, most) for r in range(pipeline.num_ranks))


INTERLEAVED = Kind(
    name="interleaved-1f1b",
    generate=interleaved,
    in_flight=_in_flight,
    source="Narayanan et al., Efficient Large-Scale Language Model Training, SC 2021",
    pictured=Pipeline(2, 2, 2),
    stages_per_rank=None,
    takes=fills_rounds,
    rule=ROUNDS_RULE,
)
