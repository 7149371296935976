"""Candidates: each microbatch size with each rank group that is searched, as a problem of its own.

Where a plan has one group, a candidate is an ordinary problem, whose ranks are groups
(autopart/cost/chosen_groups.py). Plans whose stages have degrees of their own are one candidate more
(autopart/stage_degrees/problem.py). The smallest of their lower bounds is the bound over all.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import msgspec

from autopart.activations.demands import checked_policies
from autopart.cost.chosen_groups import problem_of_choice
from autopart.cost.cuts import all_cuts
from autopart.errors import AutopartError, InfeasibleError
from autopart.records.group_choice import (
    GroupChoice,
    GroupDemand,
    choice_name,
    has_sharding_choice,
    searched_groups,
)
from autopart.records.layouts import check_num_stages, shapes
from autopart.records.microbatch_sizes import Sized
from autopart.records.plan import SolverName
from autopart.records.problem import Problem
from autopart.records.rank_group import (
    MaybeGroup,
    StageDegrees,
    group_name,
    group_size,
    is_tensor_only,
)
from autopart.records.sharded_choices import (
    able_to_share_samples,
    no_expert_degree,
    no_shard_degree,
    searched_choices,
)
from autopart.search.infeasible import why_infeasible
from autopart.search.remedies import some_plan_fits
from autopart.stage_degrees.problem import (
    DegreesProblem,
    problem_of_degrees,
    searched_stage_degrees,
)
from autopart.stopping.time_limit import OutOfTime
from autopart.text import counted


class SearchedProblem(NamedTuple):
    """A model at one microbatch size and rank group."""

    sized: Sized
    """The model's profile at the samples of each GPU."""
    group: MaybeGroup
    """The rank group."""
    problem: Problem
    """The problem whose ranks are groups; with one GPU per rank where stages have their own degrees."""
    of_degrees: DegreesProblem | None = None
    """The problem whose stages have degrees of their own; None where all have `tensor`."""

    @property
    def zero1(self) -> Literal[True] | msgspec.UnsetType:
        """True where replicas share optimizer state, and those of other candidates may not."""
        chosen = has_sharding_choice(self.problem.demands.group) and self.problem.training.zero1
        return True if chosen else msgspec.UNSET

    @property
    def per_stage(self) -> StageDegrees | msgspec.UnsetType:
        """The degrees among which stages choose, as plans have it."""
        own = self.of_degrees
        if own is None:
            return msgspec.UNSET
        return StageDegrees(degrees=own.degrees, sequence_parallel=own.sequence_parallel)


def candidates(sized: Sequence[Sized], problems: Sequence[Problem]) -> list[SearchedProblem]:
    """Every candidate, by microbatch size and then by degree; `problems` have one GPU per rank.

    Raises AutopartError where a profile or a node does not have the degrees that are asked for, or where a variant's
    layers cannot have the demanded policies.
    """
    found: list[SearchedProblem] = []
    for one, problem in zip(sized, problems, strict=True):
        profile, cluster, demand = one.profile, problem.cluster, problem.demands.group
        choices = searched_choices(
            profile, cluster, demand, problem.training, problem.num_microbatches
        )
        found += [candidate(one, choice, problem) for choice in choices]
        found += [
            SearchedProblem(one, msgspec.UNSET, problem, problem_of_degrees(problem, profile, own))
            for own in searched_stage_degrees(profile, cluster, demand)
        ]
    first, demand = problems[0], problems[0].demands.group
    if not found and isinstance(demand, GroupDemand):
        bases = searched_groups(sized[0].profile, first.cluster, demand)
        if not able_to_share_samples(bases, sized[0].profile):
            raise no_expert_degree(bases, sized[0].profile.microbatch_size)
        raise no_shard_degree(bases, first.cluster, demand, first.num_microbatches)
    return found


def candidate(sized: Sized, choice: GroupChoice, problem: Problem) -> SearchedProblem:
    """The candidate with a rank group; `problem` has one GPU per rank. Raises AutopartError as above."""
    groups = problem_of_choice(problem, sized.profile, choice)
    try:
        checked_policies(groups.graph, groups.cluster, groups.demands)
    except AutopartError as error:
        raise AutopartError(f"{choice_name(choice)}: {error}") from None
    return SearchedProblem(sized, choice.group, groups)


def why_none_fits(searched: Sequence[SearchedProblem], solver: SolverName) -> InfeasibleError:
    """The error where no candidate has a plan: that of the degree which needs the least memory.

    Only the first microbatch size is looked at.
    """
    first = [one for one in searched if one.sized is searched[0].sized and one.of_degrees is None]
    errors = [(one, _why(one, solver)) for one in first]
    known = [pair for pair in errors if pair[1].least_bytes is not None] or errors[-1:]
    best, error = min(known, key=lambda pair: pair[1].least_bytes or 0)
    if len(first) == 1 and group_size(best.group) == 1:
        return _with_degree_to_try(best, error)
    tried = ", ".join(dict.fromkeys(str(group_size(one.group)) for one in first))
    if not all(is_tensor_only(one.group) for one in first):
        tried = counted(len(first), "rank group")
    return InfeasibleError(
        f"{group_name(best.group)}, which needs the least memory of {tried}: {error}"
        if len(first) > 1
        else f"{group_name(best.group)}: {error}",
        error.least_bytes,
    )


def _with_degree_to_try(asked: SearchedProblem, error: InfeasibleError) -> InfeasibleError:
    """The error, with the smallest tensor degree of the profile that would do, where the user asked for none."""
    problem = asked.problem
    asked_for = isinstance(problem.demands.group, GroupDemand)
    if asked_for or problem.cluster.gpus or not asked.sized.profile.variants:
        return error
    for tensor in searched_groups(asked.sized.profile, problem.cluster, GroupDemand())[1:]:
        try:
            other = candidate(asked.sized, GroupChoice(tensor), problem).problem
            would_do = some_plan_fits(other, all_cuts(other.graph))
        except (AutopartError, OutOfTime):
            continue
        if would_do:
            return InfeasibleError(
                f"{error}; --tensor {group_size(tensor)} would do", error.least_bytes
            )
    return error


def _why(searched: SearchedProblem, solver: SolverName) -> InfeasibleError:
    """The error where one problem has no plan: no shape, or too little memory."""
    problem = searched.problem
    try:
        (check_num_stages if problem.demands.replicas_per_stage else shapes)(problem)
    except InfeasibleError as error:
        return error
    return why_infeasible(problem, solver, group_size(searched.group))
