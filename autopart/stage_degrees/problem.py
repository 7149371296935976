"""A problem in which each stage has its own tensor degree.

It is one problem for each degree (autopart/cost/groups_as_ranks.py), over the same layers in the same
order. A stage with degree t has the seconds and bytes that it has in the problem for t.
"""

from typing import NamedTuple

import msgspec

from autopart.cost.groups_as_ranks import problem_of_groups
from autopart.errors import AutopartError
from autopart.records.cluster import Cluster
from autopart.records.group_choice import GroupDemand, searched_groups, variant_of
from autopart.records.group_variants import groups_listed
from autopart.records.problem import Problem
from autopart.records.profile import Profile
from autopart.records.rank_group import Group, StageDegrees, group_size, tensor_group
from autopart.text import counted


class DegreesProblem(NamedTuple):
    """A problem whose stages choose among several tensor degrees."""

    of_gpus: Problem
    """The problem with one GPU per rank: its cluster, counts and demands are those of all stages."""
    degrees: tuple[int, ...]
    """The degrees, smallest first."""
    of_groups: tuple[Problem, ...]
    """For each degree the problem whose ranks are its tensor groups."""
    sequence_parallel: bool
    """Whether degrees above 1 have sequence parallelism."""

    def at(self, degree: int) -> Problem:
        """The problem in which all stages have one of the degrees."""
        return self.of_groups[self.degrees.index(degree)]


def searched_stage_degrees(
    profile: Profile, cluster: Cluster, demand: GroupDemand | msgspec.UnsetType
) -> tuple[StageDegrees, ...]:
    """The sets of degrees among which stages choose: with sequence parallelism, and without.

    Empty where the demand leaves one degree for all stages. Raises AutopartError where the profile or the
    nodes leave no second degree.
    """
    if not isinstance(demand, GroupDemand) or demand.per_stage is not True:
        return ()
    able = searched_groups(profile, cluster, demand)
    found: list[StageDegrees] = []
    for split in (False, True):
        own = [
            group_size(one)
            for one in able
            if not isinstance(one, Group) or one.sequence_parallel is split
        ]
        if len(own) > 1:
            found.append(StageDegrees(degrees=tuple(own), sequence_parallel=split))
    if not found:
        raise AutopartError(
            f"no stage can have a tensor degree above 1: none of {groups_listed(profile.variants)} fills "
            f"nodes of {counted(cluster.gpus_per_node, 'GPU')}; leave --tensor out"
        )
    return tuple(found)


def problem_of_degrees(problem: Problem, profile: Profile, chosen: StageDegrees) -> DegreesProblem:
    """The problem whose stages choose among `chosen`; `problem` has one GPU per rank.

    Raises AutopartError where the profile has no such degree.
    """
    split = chosen.sequence_parallel
    groups = tuple(
        problem_of_groups(
            problem, variant_of(profile, tensor_group(degree, sequence_parallel=split))
        )
        for degree in chosen.degrees
    )
    return DegreesProblem(problem, chosen.degrees, groups, split)
