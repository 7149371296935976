"""Warm up, then one forward and one backward in turn, then cool down
(Narayanan et al., PipeDream-Flush, ICML 2021; Fan et al., DAPPLE, PPoPP 2021).

    rank 0  0F0 0F1  .  0B0 0F2 0B1  .  0B2
    rank 1   .  1F0 1B0 1F1 1B1 1F2 1B2  .

The warm-up is the number of forwards before the first backward on each rank. It is a choice. Usual
is `warmup`: with free sends, the least that keeps the last stage fed. Eager 1F1B takes nearly twice
as many (Zhuang et al., On Optimizing the Communication of Model Parallelism, MLSys 2023). This
leaves room for a send in each direction beside the compute:

    rank 0  0F0 0F1 0F2 0B0  .  0B1  .  0B2
    rank 1   .  1F0 1B0 1F1 1B1 1F2 1B2  .

No ranks wait in a circle. Let a stage have r ranks, a warm-up of w, and R ranks from itself on.

- Its backward on microbatch b needs forwards up to b + (w - 1) r < b + R. The stage before runs
  those before its own backward on b, as its own w r is at least its own R.
- With the warm-up 2 w - 1 a backward needs forwards below b + 2 R. The stage before runs at least 2
  R.
- Other warm-ups run if all stages have equally many ranks, and no warm-up is below the next
  stage's.
"""

from collections.abc import Callable, Sequence

from autopart.errors import ScheduleError
from autopart.schedules.actions import (
    Action,
    Order,
    Schedule,
    StageRanks,
    dealt,
    microbatches_per_replica,
)
from autopart.schedules.kind import Kind
from autopart.schedules.pipeline import Pipeline
from autopart.text import counted


def one_f_one_b(
    stage_ranks: StageRanks, num_microbatches: int, warmups: Sequence[int] | None = None
) -> Schedule:
    """1F1B for stages with any number of ranks each.

    `warmups` has an entry for each stage; None takes the usual ones. Raises ScheduleError unless
    there is one for each stage, each at least 1.
    """
    if warmups is None:
        warmups = usual_warmups(stage_ranks)
    elif len(warmups) != len(stage_ranks) or min(warmups) < 1:
        raise ScheduleError(
            f"warm-ups {', '.join(map(str, warmups))} do not fit {counted(len(stage_ranks), 'stage')}; "
            "give one of at least 1 for each"
        )
    return stage_orders(stage_ranks, num_microbatches, warmups.__getitem__)


def eager(stage_ranks: StageRanks, num_microbatches: int) -> Schedule:
    """1F1B with the deepest warm-ups that help: 2 (k - s) - 1 on stage s of k."""
    return one_f_one_b(stage_ranks, num_microbatches, eager_warmups(stage_ranks))


def warmup(ranks_behind: int, replicas: int) -> int:
    """Forwards on each rank before its first backward in 1F1B: ceil(ranks behind / replicas) + 1.

    `ranks_behind` are the ranks of all later stages, `replicas` the ranks of the stage itself. So
    many forwards keep every later rank fed (NOAM of Narayanan et al., PipeDream, SOSP 2019). Stage
    s of k stages with equal replicas has k - s.
    """
    return -(-ranks_behind // replicas) + 1


def in_flight_on_rank(num_microbatches: int, ranks_behind: int, replicas: int) -> int:
    """Most microbatches in flight on each rank under 1F1B: its warm-up, or all that it runs."""
    own = microbatches_per_replica(num_microbatches, replicas)
    return min(warmup(ranks_behind, replicas), own)


def usual_warmups(stage_ranks: StageRanks) -> tuple[int, ...]:
    """The warm-up that 1F1B has on each stage."""
    counts = [len(ranks) for ranks in stage_ranks]
    return tuple(warmup(sum(counts[s + 1 :]), count) for s, count in enumerate(counts))


def eager_warmups(stage_ranks: StageRanks) -> tuple[int, ...]:
    """The warm-up that eager 1F1B has on each stage."""
    return tuple(2 * depth - 1 for depth in usual_warmups(stage_ranks))


def stage_orders(
    stage_ranks: StageRanks, num_microbatches: int, ahead: Callable[[int], int]
) -> Schedule:
    """One order for each rank: a warm-up, then backward and forward in turn, then backwards.

    `ahead` gives the warm-up for a stage. A rank with fewer microbatches runs all forwards first.
    """
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
    return one_f_one_b(_line(pipeline), pipeline.microbatches_per_replica)


def _in_flight(pipeline: Pipeline) -> tuple[int, ...]:
    k, m = pipeline.num_ranks, pipeline.microbatches_per_replica
    return tuple(in_flight_on_rank(m, k - 1 - rank, 1) for rank in range(k))


def _generate_eager(pipeline: Pipeline) -> Schedule:
    return eager(_line(pipeline), pipeline.microbatches_per_replica)


def _eager_in_flight(pipeline: Pipeline) -> tuple[int, ...]:
    return tuple(min(d, pipeline.microbatches_per_replica) for d in eager_warmups(_line(pipeline)))


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
