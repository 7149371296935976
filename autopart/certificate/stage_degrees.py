"""The check for a lower bound over plans whose stages have tensor degrees of their own.

It needs the closed-form bounds (autopart/stage_degrees/bounds.py), the list of plans that they leave
open (autopart/stage_degrees/open.py), and the simulator. It uses no solver and no search.
"""

import itertools

from autopart.bounds.objectives import TOLERANCE
from autopart.cost.memory_limits import prediction_fits
from autopart.errors import PlanError
from autopart.records.layouts import Partition
from autopart.stage_degrees.bounds import DegreeBounds
from autopart.stage_degrees.completions import AllCompletions
from autopart.stage_degrees.least import least_step_of_degrees
from autopart.stage_degrees.open import OpenPlans, partition_at
from autopart.stage_degrees.placement import GroupPlaces, placements
from autopart.stage_degrees.pricing import DegreesPricer
from autopart.stage_degrees.problem import DegreesProblem
from autopart.text import counted


def check_bound_of_degrees(problem: DegreesProblem, value: float, simulated: int) -> None:
    """Raise PlanError unless no plan with several tensor degrees takes less than `value` seconds.

    An infinite value says that there is no plan. The check must price exactly `simulated` plans.
    """
    if not value >= 0:
        raise PlanError(f"a bound of {value} s is no number from 0 on")
    least, expected = least_step_of_degrees(problem), simulated
    if value <= least * (1 + TOLERANCE):
        if expected:
            raise PlanError(
                f"{least} s is proven without simulating, not with {counted(expected, 'plan')}"
            )
        return
    bounds = DegreeBounds(problem)
    if not bounds.complete:
        raise PlanError(f"only {least} s is proven for several tensor degrees, not {value} s")
    open_plans, count, pricer = OpenPlans(AllCompletions(bounds)), 0, DegreesPricer(problem)
    while (one := open_plans.next_below(value)) is not None:
        count += 1
        if count > expected:
            break
        partition = partition_at(bounds, one.path)
        for place in placements(bounds.gpus, one.degrees, one.replicas):
            made = pricer.price(place, one.schedule, partition).prediction
            if made.step_time < value * (1 - TOLERANCE) and prediction_fits(
                problem.of_gpus.cluster, made
            ):
                degrees = "/".join(map(str, one.degrees))
                raise PlanError(
                    f"the bound {value} is not proven: a plan with tensor degrees {degrees} takes "
                    f"{made.step_time} s"
                )
    if count != expected:
        more = "more" if count > expected else str(count)
        raise PlanError(
            f"{counted(expected, 'plan')} with several tensor degrees should need simulating, found {more}"
        )


def check_own_bounds_of_degrees(
    problem: DegreesProblem,
    places: GroupPlaces,
    schedule: str,
    partition: Partition,
    value: float,
) -> None:
    """Raise PlanError unless the bounds leave room for the plan itself, which takes `value` seconds.

    The plan is a witness against bounds that exclude a plan by mistake.
    """
    bounds = DegreeBounds(problem)
    if not bounds.complete:
        return
    replicas, count = len(places.stage_ranks[0]), len(partition)
    ahead = bounds.cuts[0].ahead.tolist()
    placed: set[int] = set()
    path = [0]
    for layers in partition:
        placed |= set(layers)
        path.append(ahead.index([at in placed for at in range(len(ahead[0]))]))
    for stage, (i, j) in enumerate(itertools.pairwise(path)):
        own = bounds.stage(schedule, replicas, places.degrees[stage], count - stage - 1).bound
        if own[i, j] > value * (1 + TOLERANCE):
            raise PlanError(
                f"stage {stage} alone has the bound {own[i, j]} s, above the plan's {value} s"
            )


def places_in_space(
    problem: DegreesProblem, degrees: tuple[int, ...], stage_ranks: tuple[tuple[int, ...], ...]
) -> GroupPlaces:
    """The placement that a plan's ranks are; raises PlanError where the bound covers no such placement."""
    gpus = problem.of_gpus.cluster.num_nodes * problem.of_gpus.cluster.gpus_per_node
    for one in placements(gpus, degrees, len(stage_ranks[0])):
        if one.stage_ranks == stage_ranks:
            return one
    raise PlanError(
        f"the bound covers stages or pipelines side by side, larger tensor groups first, and the stages "
        f"take ranks {', '.join(str(list(own)) for own in stage_ranks)}"
    )
