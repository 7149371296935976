"""All synchronous schedules by name.

Each schedule, or each family, has a file in `named/`. The file opens with the schedule's picture:
one slot for each action. A test draws the picture again from the generator. Generators make one
pipeline, or two in opposite directions over the same ranks. Each replica runs its own microbatches.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from autopart.errors import ScheduleError
from autopart.schedules.actions import (
    Op,
    Order,
    Schedule,
    StageRanks,
    format_order,
    joined_pairs,
    order_of,
    paired_forwards,
)
from autopart.schedules.kind import Kind, replicas_together
from autopart.schedules.named.bpipe import BPIPE
from autopart.schedules.named.chimera import CHIMERA
from autopart.schedules.named.controllable import V_HALF, V_MIN
from autopart.schedules.named.dualpipev import DUALPIPEV
from autopart.schedules.named.gems import GEMS
from autopart.schedules.named.gpipe import GPIPE
from autopart.schedules.named.hanayo import HANAYO
from autopart.schedules.named.interleaved import INTERLEAVED
from autopart.schedules.named.looped_bfs import LOOPED_BFS
from autopart.schedules.named.one_f_one_b import EAGER_ONE_F_ONE_B, ONE_F_ONE_B
from autopart.schedules.named.paired import (
    PAIRED_DUALPIPEV,
    PAIRED_INTERLEAVED,
    PAIRED_ONE_F_ONE_B,
)
from autopart.schedules.named.zbv import ZBV
from autopart.schedules.named.zero_bubble import INTERLEAVED_ZERO_BUBBLE, ZB_H1, ZB_H2
from autopart.schedules.pipeline import Pipeline
from autopart.stopping.time_limit import check_room
from autopart.text import counted, known_names

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        GPIPE,
        ONE_F_ONE_B,
        EAGER_ONE_F_ONE_B,
        INTERLEAVED,
        LOOPED_BFS,
        ZB_H1,
        ZB_H2,
        INTERLEAVED_ZERO_BUBBLE,
        ZBV,
        V_HALF,
        V_MIN,
        DUALPIPEV,
        BPIPE,
        CHIMERA,
        GEMS,
        HANAYO,
        PAIRED_ONE_F_ONE_B,
        PAIRED_INTERLEAVED,
        PAIRED_DUALPIPEV,
    )
}


def kind_of(name: str) -> Kind:
    """The schedule called `name`; raises ScheduleError, listing all names, for any other."""
    if name not in KINDS:
        raise ScheduleError(f"unknown schedule '{name}'; {known_names(name, KINDS)}")
    return KINDS[name]


def make_schedule(
    name: str,
    stage_ranks: StageRanks,
    num_microbatches: int,
) -> Schedule:
    """The schedule called `name` for stages on `stage_ranks`, in a step with `num_microbatches`.

    A stage with r ranks runs microbatch m on its rank m mod r.

    Raises ScheduleError for an unknown name, or a number of microbatches that the schedule does not
    take. It also does so where the stages do not lie on ranks as the schedule needs. The message
    lists the values that fit. Raises OutOfTime in a search that has no room for so many actions.
    """
    kind, replicas = _checked(name, stage_ranks, num_microbatches)
    check_room(2 * len(stage_ranks) * num_microbatches)
    if replicas is None:
        assert kind.uneven is not None
        return kind.uneven(stage_ranks, num_microbatches)
    orders: list[Order] = [()] * (1 + max(rank for ranks in stage_ranks for rank in ranks))
    for pipeline in _replicated(kind, stage_ranks, num_microbatches, replicas):
        for rank, (stages, ops, turns, pairs) in zip(pipeline.ranks, pipeline.columns, strict=True):
            microbatches = [pipeline.microbatches[m] for m in turns]
            orders[rank] = order_of(stages, ops, microbatches, pairs)
    return tuple(orders)


def orders_by_name(name: str, stage_ranks: StageRanks, num_microbatches: int) -> tuple[str, ...]:
    """`make_schedule` as a plan writes it; faster, where a step has millions of actions."""
    kind, replicas = _checked(name, stage_ranks, num_microbatches)
    if replicas is None:
        made = make_schedule(name, stage_ranks, num_microbatches)
        return tuple(format_order(order) for order in made)
    orders = [""] * (1 + max(map(max, stage_ranks)))
    written: dict[int, tuple[str, list[int]]] = {}
    for pipeline in _replicated(kind, stage_ranks, num_microbatches, replicas):
        names = list(map(str, pipeline.microbatches))
        for rank, columns in zip(pipeline.ranks, pipeline.columns, strict=True):
            # Replicas differ in their microbatches alone: write the rest of an order once.
            if id(columns) not in written:
                written[id(columns)] = _pattern(columns), columns[2]
            pattern, turns = written[id(columns)]
            orders[rank] = pattern % tuple(map(names.__getitem__, turns))
    return tuple(orders)


def _checked(name: str, stage_ranks: StageRanks, num_microbatches: int) -> tuple[Kind, int | None]:
    """The kind of schedule, and the replicas of every stage; None where stages differ in them."""
    kind = kind_of(name)
    if num_microbatches < 1:
        raise ScheduleError(
            f"a step of {counted(num_microbatches, 'microbatch')}: it takes at least 1"
        )
    counts = {len(ranks) for ranks in stage_ranks}
    if len(counts) == 1:
        return kind, counts.pop()
    if kind.uneven is None:
        able = ", ".join(k.name for k in KINDS.values() if k.uneven)
        raise ScheduleError(
            f"schedule '{name}' needs as many ranks on every stage, and these have "
            f"{', '.join(str(len(r)) for r in stage_ranks)}; those that do not: {able}"
        )
    return kind, None


def fitting_counts(kind: Kind, num_ranks: int, stages_per_rank: int, near: int) -> tuple[int, ...]:
    """The numbers of microbatches next to `near` that the schedule takes.

    These are the largest number up to `near` and the smallest from `near` on, where they exist.
    """
    wanted = Pipeline(num_ranks, stages_per_rank, 0)
    span = 2 * num_ranks * stages_per_rank
    below = [
        n for n in range(near, 0, -1) if kind.takes(wanted._replace(microbatches_per_replica=n))
    ][:1]
    above = [
        n
        for n in range(near, near + span + 1)
        if kind.takes(wanted._replace(microbatches_per_replica=n))
    ]
    return tuple(sorted({*below, *above[:1]}))


_Columns = tuple[list[int], list[Op], list[int], list[int]]
"""Stages, ops and turns of an order's actions, and the places of its overlapped pairs.

Turn t is a replica's microbatch number t.
"""


class _Replica(NamedTuple):
    """Replicas that share their ranks: these ranks, the columns of their orders, the microbatches."""

    ranks: list[int]
    columns: list[_Columns]
    microbatches: list[int]


def _replicated(
    kind: Kind, stage_ranks: StageRanks, num_microbatches: int, replicas: int
) -> Iterator[_Replica]:
    """The replicas that have microbatches, two at a time where the kind is bidirectional."""
    made: dict[int, list[_Columns]] = {}
    together = replicas_together(kind)
    if replicas % together:
        raise ScheduleError(
            f"schedule '{kind.name}' runs two pipelines over the same ranks, so each stage needs an even "
            f"number of ranks, and these have {replicas}"
        )
    for first in range(0, replicas, together):
        own = range(first, first + together)
        mine = sorted(m for replica in own for m in range(replica, num_microbatches, replicas))
        if not mine:
            continue
        columns = [[ranks[replica] for ranks in stage_ranks] for replica in own]
        names, pipeline = _pipeline(kind, columns, len(mine), replicas // together)
        # Replicas with equally many microbatches have the same orders, each on its own ones.
        if len(mine) not in made:
            made[len(mine)] = [_columns(order) for order in kind.generate(pipeline)]
        yield _Replica(names, made[len(mine)], mine)


def _columns(order: Order) -> _Columns:
    ops: list[Op] = [a.op for a in order]
    return [a.stage for a in order], ops, [a.microbatch for a in order], paired_forwards(order)


def _pattern(columns: _Columns) -> str:
    """An order as text, with `%s` in place of each microbatch."""
    stages, ops, _, pairs = columns
    words = [f"{stage}{op}%s" for stage, op in zip(stages, ops, strict=True)]
    return " ".join(joined_pairs(words, pairs))


def _pipeline(
    kind: Kind, columns: Sequence[Sequence[int]], microbatches: int, times: int
) -> tuple[list[int], Pipeline]:
    """The ranks in the order of their first stages, and the shape of the pipeline.

    `columns` have the rank of each stage, once for each replica that shares these ranks. There are
    `times` such pipelines, apart from each other.
    """
    ranks = columns[0]
    names = list(dict.fromkeys(ranks))
    per_rank, rest = divmod(len(ranks), len(names))
    fits = not rest and kind.stages_per_rank in (None, per_rank)
    places = kind.placement(len(names), per_rank) if fits else ()
    if [names.index(rank) for rank in ranks] != list(places):
        each = kind.stages_per_rank
        runs = "equally many stages" if each is None else counted(each, "stage")
        raise ScheduleError(
            f"schedule '{kind.name}' runs {runs} on each "
            f"rank, and its stages cannot lie on ranks {', '.join(map(str, ranks))}"
            + (f"; they could on {', '.join(str(names[p]) for p in places)}" if places else "")
        )
    pipeline = Pipeline(len(names), per_rank, microbatches)
    if not kind.takes(pipeline):
        will = fitting_counts(kind, len(names), per_rank, microbatches)
        raise ScheduleError(
            f"schedule '{kind.name}' cannot run {counted(microbatches, 'microbatch')} in a pipeline "
            f"of {counted(len(names), 'rank')} with {counted(per_rank, 'stage')} each: it takes {kind.rule}; "
            + (
                f"next to it {' or '.join(str(n * times) for n in will)} in all would do"
                if will
                else "no number would do"
            )
        )
    if len(columns) > 1 and list(columns[1]) != names[::-1]:
        raise ScheduleError(
            f"schedule '{kind.name}' runs its second pipeline over the ranks of the first in the opposite "
            f"direction, and its stages cannot lie on ranks {', '.join(map(str, columns[1]))}; they could on "
            f"{', '.join(map(str, names[::-1]))}"
        )
    return names, pipeline
