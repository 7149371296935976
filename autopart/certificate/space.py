"""Whether a plan's own layout is among the layouts that its bound covers.

A bound over layouts among which the plan is not, proves nothing about the plan. Where no layout is
covered at all, every bound would hold. So the plan itself is the witness that there is one.
"""

from autopart.errors import PlanError
from autopart.records.layouts import MOST_STAGES_PER_RANK, pipelines_together
from autopart.records.plan import Plan, stage_ranks
from autopart.records.problem import CUSTOM, Demands
from autopart.schedules.actions import StageRanks
from autopart.schedules.catalogue import KINDS
from autopart.schedules.kind import Kind
from autopart.schedules.pipeline import Pipeline
from autopart.schedules.placements import Placement
from autopart.text import counted


def check_covered(plan: Plan) -> None:
    """Raise PlanError unless the bound covers the plan's ranks, stages per rank and schedule.

    Counts and schedule names are checked already.
    """
    ranks = stage_ranks(plan)
    # Step 1: where GPUs and replicas differ, the bound is for consecutive ranks only.
    blocks = [rank for own in dict.fromkeys(ranks) for rank in own]
    in_order = plan.cluster.gpus and plan.demands.replicas_per_stage
    if in_order and blocks != list(range(blocks[0], blocks[0] + len(blocks))):
        raise PlanError(f"the bound covers GPUs in their order, and the stages take {blocks}")
    # Step 2: replicas of their own have one stage per rank.
    if plan.demands.replicas_per_stage:
        _check_apart([set(own) for own in ranks])
        return
    # Step 3: two pipelines in opposite directions share their ranks, and pairs of them are apart.
    if pipelines_together(plan.schedule) > 1:
        _check_both_ways(plan, ranks)
        return
    # Step 4: equal replicas are pipelines apart, which lie alike on their ranks.
    pipelines = list(zip(*ranks, strict=True))
    _check_apart([set(own) for own in pipelines])
    placements = {_placement(own) for own in pipelines}
    if len(placements) > 1:
        raise PlanError("the replicas differ in the stages that share a rank")
    # Step 5: a schedule that the demands allow lies so on its ranks.
    _check_placement(plan, placements.pop(), len(pipelines))


def _check_apart(parts: list[set[int]]) -> None:
    """Raise PlanError where two parts share some rank."""
    seen: set[int] = set()
    for part in parts:
        if seen & part:
            raise PlanError(f"rank {min(seen & part)} has several stages or replicas")
        seen |= part


def _check_both_ways(plan: Plan, ranks: StageRanks) -> None:
    """Raise PlanError unless each pair of replicas has the same ranks in opposite directions."""
    down, up = [list(zip(*ranks, strict=True))[first::2] for first in (0, 1)]
    if len(down) != len(up) or any(a != b[::-1] for a, b in zip(down, up, strict=True)):
        raise PlanError(
            f"under '{plan.schedule}' each two replicas have the same ranks in opposite directions, and "
            f"the stages are on ranks {', '.join(str(list(own)) for own in ranks)}"
        )
    if len(ranks) % 2 or any(len(set(own)) < len(own) for own in down):
        raise PlanError("a rank has a stage twice, or two stages of one direction")
    _check_apart([set(own) for own in down])
    asked = plan.demands.stages_per_rank
    if asked not in (None, 2):
        raise PlanError(f"{counted(asked, 'stage')} per rank demanded, the plan has 2")


def _placement(ranks: tuple[int, ...]) -> Placement:
    """The rank of each stage, numbered in the order of their first stages."""
    names = list(dict.fromkeys(ranks))
    return tuple(map(names.index, ranks))


def _check_placement(plan: Plan, placement: Placement, replicas: int) -> None:
    demands, num_ranks = plan.demands, 1 + max(placement)
    per_rank, rest = divmod(len(placement), num_ranks)
    if demands.stages_per_rank is not None and (rest or per_rank != demands.stages_per_rank):
        raise PlanError(
            f"{counted(demands.stages_per_rank, 'stage')} per rank demanded, the plan has {per_rank}"
            + (f" or {per_rank + 1}" if rest else "")
        )
    # Custom orders lie where one of the named schedules lies.
    own = plan.schedule
    names = [name for name in demands.schedules if name != CUSTOM and own in (name, CUSTOM)]
    shape = Pipeline(num_ranks, per_rank, plan.num_microbatches // replicas)
    if rest or not any(_lies(KINDS[name], demands, shape, placement) for name in names):
        raise PlanError(
            f"the bound does not cover the plan: no schedule of {', '.join(demands.schedules)} "
            f"lies as the stages do, on ranks {', '.join(map(str, placement))} of a pipeline"
        )


def _lies(kind: Kind, demands: Demands, shape: Pipeline, placement: Placement) -> bool:
    """Whether the bound covers a schedule on a placement, with the ranks and stages in `shape`."""
    per_rank = shape.stages_per_rank
    if kind.stages_per_rank is None:
        able = 2 <= per_rank <= (demands.stages_per_rank or MOST_STAGES_PER_RANK)
    else:
        able = per_rank == kind.stages_per_rank
    # A single rank gains nothing from several stages, so that none is listed.
    able = able and (per_rank == 1 or shape.num_ranks > 1)
    return able and kind.takes(shape) and kind.placement(shape.num_ranks, per_rank) == placement
