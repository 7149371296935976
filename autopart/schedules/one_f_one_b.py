"""Warm up, then one forward and one backward in turn, then cool down
(Narayanan et al., PipeDream-Flush, ICML 2021; Fan et al., DAPPLE, PPoPP 2021).

    rank 0  0F0 0F1  .  0B0 0F2 0B1  .  0B2
    rank 1   .  1F0 1B0 1F1 1B1 1F2 1B2  .

How many forwards a rank runs before its first backward is a choice. Usual is `warmup`, the least
that keeps the last stage fed where sends cost nothing. Eager 1F1B takes nearly twice as many
(Zhuang et al., On Optimizing the Communication of Model Parallelism, MLSys 2023), which leaves
room for a send in each direction beside the compute:

    rank 0  0F0 0F1 0F2 0B0  .  0B1  .  0B2
    rank 1   .  1F0 1B0 1F1 1B1 1F2 1B2  .

Nothing waits in a circle: with R ranks from a stage on, r of its own and a warm-up of w, its
backward of microbatch b needs forwards up to b + (w - 1) r < b + R, and the stage ahead runs those
before its backward of b: its w r is not below its own R. The same holds of 2 w - 1, whose backward
needs forwards below b + 2 R, and the stage ahead runs 2 R and more. Other warm-ups, with as many
ranks on every stage, run where none is below the next stage's.
"""

from collections.abc import Callable, Sequence

from autopart.errors import ScheduleError
from autopart.schedule import Action, Order, Schedule, StageRanks, dealt, warmup
from autopart.schedules.kind import Kind
from autopart.schedules.pipeline import Pipeline


def one_f_one_b(
    stage_ranks: StageRanks, num_microbatches: int, warmups: Sequence[int] | None = None
) -> Schedule:
    """The orders of stages with any number of ranks each; `warmups` are the forwards of a rank of
    each stage before its first backward, `warmup` where None.

    Raises ScheduleError where warm-ups are too few in number or too short to run.
    """
    if warmups is None:
        warmups = usual_warmups(stage_ranks)
    elif len(warmups) != len(stage_ranks) or min(warmups) < 1:
        raise ScheduleError(
            f"warm-ups {', '.join(map(str, warmups))} do not fit {len(stage_ranks)} stages; "
            "give one of at least 1 for each"
        )
    return stage_orders(stage_ranks, num_microbatches, warmups.__getitem__)


def eager(stage_ranks: StageRanks, num_microbatches: int) -> Schedule:
    """1F1B whose warm-ups are as deep as helps: 2 (k - s) - 1 on stage s of k."""
    return one_f_one_b(stage_ranks, num_microbatches, eager_warmups(stage_ranks))


def usual_warmups(stage_ranks: StageRanks) -> tuple[int, ...]:
    """The forwards before the first backward that 1F1B has on each stage."""
    return tuple(warmup(stage_ranks, stage) for stage in range(len(stage_ranks)))


def eager_warmups(stage_ranks: StageRanks) -> tuple[int, ...]:
    """The forwards before the first backward that eager 1F1B has on each stage."""
    return tuple(2 * depth - 1 for depth in usual_warmups(stage_ranks))


def stage_orders(
    stage_ranks: StageRanks, num_microbatches: int, ahead: Callable[[int], int]
) -> Schedule:
    """One order for each rank: `ahead` of its stage forwards (or all), then backward and forward in
    turn, then the backwards that are left."""
    num_ranks = 1 + max(rank for ranks in stage_ranks for rank in ranks)
    orders: list[Order] = [()] * num_ranks
    for stage, ranks in enumerate(stage_ranks):
        for rank in ranks:
            mine = dealt(ranks, rank, num_microbatches)
            orders[rank] = _one_rank(stage, mine, min(ahead(stage), len(mine)))
    return tuple(orders)


def _one_rank(stage: int, mine: range, ahead: int) -> Order:
    order = [Action(stage, "F", m) for m in mine[:ahead]]
    for done, later in zip(mine, mine[ahead:], strict=False):
        order += [Action(stage, "B", done), Action(stage, "F", later)]
    order += [Action(stage, "B", m) for m in mine[len(mine) - ahead :]]
    return tuple(order)


def _line(pipeline: Pipeline) -> list[list[int]]:
    return [[rank] for rank in range(pipeline.num_ranks)]


def _generate(pipeline: Pipeline) -> Schedule:
    return one_f_one_b(_line(pipeline), pipeline.num_microbatches)


def _in_flight(pipeline: Pipeline) -> tuple[int, ...]:
    return tuple(min(d, pipeline.num_microbatches) for d in usual_warmups(_line(pipeline)))


def _generate_eager(pipeline: Pipeline) -> Schedule:
    return eager(_line(pipeline), pipeline.num_microbatches)


def _eager_in_flight(pipeline: Pipeline) -> tuple[int, ...]:
    return tuple(min(d, pipeline.num_microbatches) for d in eager_warmups(_line(pipeline)))


ONE_F_ONE_B = Kind(
    name="1f1b",
    generate=_generate,
    in_flight=_in_flight,
    source="Narayanan et al., PipeDream-Flush, ICML 2021; Fan et al., DAPPLE, PPoPP 2021",
    pictured=Pipeline(2, 1, 3),
    uneven=one_f_one_b,
)

EAGER_ONE_F_ONE_B = Kind(
    name="eager-1f1b",
    generate=_generate_eager,
    in_flight=_eager_in_flight,
    source="Zhuang et al., On Optimizing the Communication of Model Parallelism, MLSys 2023",
    pictured=Pipeline(2, 1, 3),
    uneven=eager,
)
