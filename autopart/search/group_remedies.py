"""Why no rank group has a plan that fits, and groups that the user has not asked for and that would do.

A group is named only where the same test says so that other remedies take (`some_plan_fits`).
"""

from collections.abc import Iterator, Sequence

import msgspec

from autopart.cost.cuts import all_cuts
from autopart.errors import AutopartError, InfeasibleError
from autopart.records.group_choice import (
    GroupChoice,
    GroupDemand,
    has_sharding_choice,
    searched_groups,
)
from autopart.records.layouts import check_num_stages, shapes
from autopart.records.plan import SolverName
from autopart.records.problem import Problem
from autopart.records.rank_group import Shard, group_name, group_size, is_tensor_only, without_shard
from autopart.records.sharded_choices import searched_choices
from autopart.search.candidates import SearchedProblem, candidate
from autopart.search.infeasible import why_infeasible
from autopart.search.remedies import some_plan_fits
from autopart.stopping.time_limit import OutOfTime
from autopart.text import counted


def why_none_fits(
    searched: Sequence[SearchedProblem],
    solver: SolverName,
    plain: Problem,
    kinds: Sequence[Shard],
) -> InfeasibleError:
    """The error where no candidate has a plan: that of the degree which needs the least memory.

    Only the first microbatch size is looked at. `plain` is its problem with one GPU per rank, and `kinds` are the
    kinds of sharded state that may be named.
    """
    first = [one for one in searched if one.sized is searched[0].sized and one.of_degrees is None]
    errors = [(one, _why(one, solver)) for one in first]
    known = [pair for pair in errors if pair[1].least_bytes is not None] or errors[-1:]
    best, error = min(known, key=lambda pair: pair[1].least_bytes or 0)
    others = " or ".join(_groups_that_would_do(best, plain, kinds)) if error.least_bytes else ""
    said = f"{error}; {others} would do" if others else str(error)
    if len(first) > 1:
        tried = ", ".join(dict.fromkeys(str(group_size(one.group)) for one in first))
        if not all(is_tensor_only(one.group) for one in first):
            tried = counted(len(first), "rank group")
        said = f"{group_name(best.group)}, which needs the least memory of {tried}: {said}"
    elif group_size(best.group) > 1:
        said = f"{group_name(best.group)}: {said}"
    return InfeasibleError(said, error.least_bytes)


def _groups_that_would_do(
    asked: SearchedProblem, plain: Problem, kinds: Sequence[Shard]
) -> Iterator[str]:
    """Options for other groups, as they are typed: the smallest tensor degree, and the first kind of sharded state."""
    if plain.cluster.gpus:
        return
    for options in (_tensor_degrees(asked, plain), _sharded_groups(asked, plain, kinds)):
        yield from next(([name] for name, problem in options if _fits(problem)), ())


def _tensor_degrees(asked: SearchedProblem, plain: Problem) -> Iterator[tuple[str, Problem]]:
    """The tensor degrees of the profile, where the user asked for no group."""
    if isinstance(plain.demands.group, GroupDemand) or not asked.sized.profile.variants:
        return
    for group in searched_groups(asked.sized.profile, plain.cluster, GroupDemand())[1:]:
        try:
            yield (
                f"--tensor {group_size(group)}",
                candidate(asked.sized, GroupChoice(group), plain).problem,
            )
        except AutopartError:
            continue


def _sharded_groups(
    asked: SearchedProblem, plain: Problem, kinds: Sequence[Shard]
) -> Iterator[tuple[str, Problem]]:
    """The same group with each kind of sharded state and each shard degree, where the user left both open."""
    demand = plain.demands.group
    if has_sharding_choice(demand):
        return
    base = demand if isinstance(demand, GroupDemand) else GroupDemand(tensor=1)
    instead = " in place of --zero1" * plain.training.zero1
    for kind in kinds:
        wanted = msgspec.structs.replace(base, shard=(kind,))
        demands = msgspec.structs.replace(plain.demands, group=wanted)
        problem = msgspec.structs.replace(plain, demands=demands)
        try:
            choices = searched_choices(
                asked.sized.profile, plain.cluster, wanted, plain.training, plain.num_microbatches
            )
            found = [
                candidate(asked.sized, choice, problem).problem
                for choice in choices
                if without_shard(choice.group) == asked.group
            ]
        except AutopartError:
            continue
        for one in found:
            yield f"--shard {kind}{instead}", one


def _fits(problem: Problem) -> bool:
    """Whether some plan fits; false too where the time is up."""
    try:
        return some_plan_fits(problem, all_cuts(problem.graph))
    except (AutopartError, OutOfTime):
        return False


def _why(searched: SearchedProblem, solver: SolverName) -> InfeasibleError:
    """The error where one problem has no plan: no shape, or too little memory."""
    problem = searched.problem
    try:
        (check_num_stages if problem.demands.replicas_per_stage else shapes)(problem)
    except InfeasibleError as error:
        return error
    return why_infeasible(problem, solver, group_size(searched.group))
