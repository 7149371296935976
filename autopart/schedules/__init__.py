"""Every synchronous schedule of the field by its name.

One file a schedule, or a family of them; each opens with its picture, drawn with one slot for each
action, which a test holds against what the generator makes. Generators make one pipeline; replicas
of a pipeline each run it on their own microbatches.
"""

from collections.abc import Sequence

from autopart.errors import ScheduleError
from autopart.schedule import Action, Order, Schedule, StageRanks
from autopart.schedules.chimera import CHIMERA
from autopart.schedules.controllable import V_HALF, V_MIN
from autopart.schedules.dualpipev import DUALPIPEV
from autopart.schedules.gems import GEMS
from autopart.schedules.gpipe import GPIPE
from autopart.schedules.hanayo import HANAYO
from autopart.schedules.interleaved import INTERLEAVED
from autopart.schedules.kind import Kind, pipeline_starts, twin
from autopart.schedules.looped_bfs import LOOPED_BFS
from autopart.schedules.one_f_one_b import EAGER_ONE_F_ONE_B, ONE_F_ONE_B, one_f_one_b
from autopart.schedules.pipeline import Pipeline
from autopart.schedules.placements import Placement
from autopart.schedules.zbv import ZBV
from autopart.schedules.zero_bubble import INTERLEAVED_ZERO_BUBBLE, ZB_H1, ZB_H2

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
        CHIMERA,
        GEMS,
        HANAYO,
    )
}

__all__ = [
    "KINDS",
    "Kind",
    "Pipeline",
    "Placement",
    "fitting_counts",
    "kind_of",
    "make_schedule",
    "pipeline_starts",
    "place_stages",
    "twin",
]


def kind_of(name: str) -> Kind:
    """The schedule called `name`; raises ScheduleError listing the known ones."""
    if name not in KINDS:
        raise ScheduleError(f"unknown schedule '{name}'; known: {', '.join(KINDS)}")
    return KINDS[name]


def make_schedule(
    name: str,
    stage_ranks: StageRanks,
    num_microbatches: int,
    warmups: Sequence[int] | None = None,
) -> Schedule:
    """The schedule called `name` of stages on `stage_ranks`, of a step of `num_microbatches`.

    Microbatch m runs on the rank m mod r of a stage with r ranks. `warmups` are the forwards of a
    rank of each stage before its first backward, of 1F1B only.

    Raises ScheduleError where the schedule is unknown (listing the known), where it cannot take the
    number of microbatches (saying which it can), and where the stages do not lie as it needs them.
    """
    kind = kind_of(name)
    if num_microbatches < 1:
        raise ScheduleError(f"a step of {num_microbatches} microbatches: it takes at least 1")
    if warmups is not None:
        if kind is not ONE_F_ONE_B:
            raise ScheduleError(f"schedule '{name}' has no warm-ups to choose; 1f1b has")
        return one_f_one_b(stage_ranks, num_microbatches, warmups)
    counts = {len(ranks) for ranks in stage_ranks}
    if len(counts) > 1:
        if kind.uneven is None:
            able = ", ".join(k.name for k in KINDS.values() if k.uneven)
            raise ScheduleError(
                f"schedule '{name}' needs as many ranks on every stage, and these have "
                f"{', '.join(str(len(r)) for r in stage_ranks)}; those that do not: {able}"
            )
        return kind.uneven(stage_ranks, num_microbatches)
    return _replicated(kind, stage_ranks, num_microbatches, counts.pop())


def fitting_counts(kind: Kind, num_ranks: int, stages_per_rank: int, near: int) -> tuple[int, ...]:
    """The numbers of microbatches a pipeline can take that are next to `near`: the largest up to
    it and the smallest from it on, where there are such; empty where no number will do."""
    wanted = Pipeline(num_ranks, stages_per_rank, 0)
    span = 2 * num_ranks * stages_per_rank
    below = [n for n in range(near, 0, -1) if kind.takes(wanted._replace(num_microbatches=n))][:1]
    above = [
        n for n in range(near, near + span + 1) if kind.takes(wanted._replace(num_microbatches=n))
    ]
    return tuple(sorted({*below, *above[:1]}))


def place_stages(
    kind: Kind, num_ranks: int, stages_per_rank: int = 1
) -> tuple[tuple[int, ...], ...]:
    """The ranks of each stage of one pipeline on ranks 0 to `num_ranks` - 1."""
    return tuple((rank,) for rank in kind.placement(num_ranks, stages_per_rank))


def _replicated(
    kind: Kind, stage_ranks: StageRanks, num_microbatches: int, replicas: int
) -> Schedule:
    orders: list[Order] = [()] * (1 + max(rank for ranks in stage_ranks for rank in ranks))
    for replica in range(replicas):
        mine = range(replica, num_microbatches, replicas)
        if not mine:
            continue
        ranks = [ranks[replica] for ranks in stage_ranks]
        names, pipeline = _pipeline(kind, ranks, len(mine), replicas)
        for name, order in zip(names, kind.generate(pipeline), strict=True):
            orders[name] = tuple(Action(s, op, mine[m]) for s, op, m in order)
    return tuple(orders)


def _pipeline(
    kind: Kind, ranks: Sequence[int], num_microbatches: int, replicas: int
) -> tuple[list[int], Pipeline]:
    """The pipeline's ranks in its own order, and its shape."""
    names = list(dict.fromkeys(ranks))
    per_rank, rest = divmod(len(ranks), len(names))
    fits = not rest and kind.stages_per_rank in (None, per_rank)
    places = kind.placement(len(names), per_rank) if fits else ()
    if [names.index(rank) for rank in ranks] != list(places):
        raise ScheduleError(
            f"schedule '{kind.name}' runs {kind.stages_per_rank or 'equally many'} stages on each "
            f"rank, and its stages cannot lie on ranks {', '.join(map(str, ranks))}"
            + (f"; they could on {', '.join(str(names[p]) for p in places)}" if places else "")
        )
    pipeline = Pipeline(len(names), per_rank, num_microbatches)
    if not kind.takes(pipeline):
        will = fitting_counts(kind, len(names), per_rank, num_microbatches)
        raise ScheduleError(
            f"schedule '{kind.name}' cannot run {num_microbatches} microbatches in a pipeline of "
            f"{len(names)} ranks with {per_rank} stages each: it takes {kind.rule}; "
            + (
                f"next to it {' or '.join(str(n * replicas) for n in will)} in all would do"
                if will
                else "no number would do"
            )
        )
    return names, pipeline
