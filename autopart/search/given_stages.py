"""Stages that a user brings: their plan, and the best plans beside it.

The plan of given stages has the bound of the whole search, in which no layer is pinned. So its gap is the
distance from the optimum, and `verify` proves it as for any plan.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import msgspec

from autopart.certificate.certificate import certificate
from autopart.certificate.plan_problem import PlanProblem
from autopart.cost.stage_times import plan_minimised
from autopart.errors import InfeasibleError, UsageError
from autopart.pricing import minimised
from autopart.records.cluster import Cluster, num_gpus
from autopart.records.plan import Plan, stage_ranks
from autopart.records.problem import CLASSIC
from autopart.records.profile import Profile
from autopart.search.options import SolveOptions
from autopart.search.plan_comparison import moved_layers
from autopart.search.planner import solve_with_options
from autopart.text import counted

INTERLEAVED = "interleaved-1f1b"


class GivenPlan(NamedTuple):
    """The plan of given stages, and what the planner finds."""

    plan: Plan
    """The given stages. Its certificate has the bound of `best`."""
    same_shape: Plan
    """The best plan with as many stages and replicas."""
    best: Plan
    """The best plan found, under the same options."""

    @property
    def moved(self) -> tuple[str, ...]:
        """The layers that another stage has in `same_shape`."""
        return moved_layers(self.plan, self.same_shape) or ()


def plan_of_stages(
    profiles: Sequence[Profile],
    cluster: Cluster,
    options: SolveOptions,
    stages: Sequence[Sequence[str]],
) -> GivenPlan:
    """The plan whose stages have the given layers by name, beside the best plans.

    `options.stages_per_rank` says how many of the stages a rank has; without it, one. The schedule is 1F1B,
    or interleaved 1F1B with several stages per rank, unless `options.schedule` names it. The best plans may
    have GPipe and 1F1B too. The time limit counts for each of the three searches.

    Raises UsageError where the GPUs cannot hold the stages, and InfeasibleError where memory does not.
    """
    per_rank = options.stages_per_rank or 1
    replicas = _replicas(cluster, options, len(stages), per_rank)
    schedule = options.schedule or ("1f1b" if per_rank == 1 else INTERLEAVED)
    shape = replace(
        options,
        schedule=schedule,
        num_stages=len(stages),
        num_replicas=replicas,
        stages_per_rank=per_rank,
    )
    pins = {name: at for at, names in enumerate(stages) for name in names}
    try:
        given = solve_with_options(profiles, cluster, replace(shape, pins=pins))
    except InfeasibleError as error:
        raise InfeasibleError(f"the given stages do not fit: {error}") from None
    same_shape = _fastest(given, solve_with_options(profiles, cluster, shape), profiles)
    allowed = options.schedule or ",".join(dict.fromkeys((*CLASSIC, schedule)))
    best = solve_with_options(
        profiles, cluster, replace(options, schedule=allowed, stages_per_rank=None)
    )
    best = _fastest(same_shape, best, profiles)
    return GivenPlan(_bounded_by(given, best, profiles), same_shape, best)


def _fastest(plan: Plan, found: Plan, profiles: Sequence[Profile]) -> Plan:
    """`found`, unless `plan` is faster: a search that ran out of time knows nothing of `plan`."""
    faster = plan_minimised(plan) < plan_minimised(found)
    return _bounded_by(plan, found, profiles) if faster else found


def _replicas(cluster: Cluster, options: SolveOptions, stages: int, per_rank: int) -> int:
    """The replicas that the cluster's GPUs give; raises UsageError where they do not come out even."""
    if stages % per_rank:
        raise UsageError(
            f"{counted(per_rank, 'stage')} per rank cannot share the layout's {counted(stages, 'stage')}; "
            "--stages-per-rank takes a divisor"
        )
    if not isinstance(options.tensor, int) and not options.tensor.isdecimal():
        raise UsageError("a layout has one tensor degree; name it, such as --tensor 4")
    degree = int(options.tensor)
    gpus = stages // per_rank * degree
    total = num_gpus(cluster)
    if degree < 1 or total % gpus:
        raise UsageError(
            f"a pipeline of {counted(stages, 'stage')} takes {counted(gpus, 'GPU')}, which does not divide {counted(total, 'GPU')}; "
            f"take a multiple of {gpus}"
        )
    return total // gpus


def _bounded_by(given: Plan, best: Plan, profiles: Sequence[Profile]) -> Plan:
    """The given plan as an answer to the question that `best` answers, with its bounds."""
    plan = msgspec.structs.replace(given, demands=best.demands, sizes=best.sizes)
    problem = PlanProblem(plan, profiles)
    value = minimised(problem.problem, plan.prediction, stage_ranks(plan))
    every_size = [problem.degrees_at(size) or problem.problem_at(size) for size in plan.sizes]
    return msgspec.structs.replace(
        plan, certificate=certificate(problem.problem, value, plan.sizes, every_size)
    )
