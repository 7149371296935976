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
from autopart.errors import AutopartError
from autopart.records.group_choice import (
    GroupChoice,
    GroupDemand,
    choice_name,
    has_sharding_choice,
    searched_groups,
)
from autopart.records.microbatch_sizes import Sized
from autopart.records.problem import Problem
from autopart.records.rank_group import MaybeGroup, StageDegrees
from autopart.records.sharded_choices import (
    able_to_share_samples,
    no_expert_degree,
    no_shard_degree,
    searched_choices,
)
from autopart.stage_degrees.problem import (
    DegreesProblem,
    problem_of_degrees,
    searched_stage_degrees,
)


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
