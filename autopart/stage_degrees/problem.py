"""A problem in which each stage has its own tensor degree.

It is one problem for each degree (autopart/cost/tensor_groups.py), over the same layers in the same
order. A stage with degree t has the seconds and bytes that it has in the problem for t.
"""

from typing import NamedTuple

import msgspec

from autopart.cost.tensor_groups import problem_of_groups
from autopart.errors import AutopartError
from autopart.records.cluster import Cluster
from autopart.records.problem import Problem
from autopart.records.profile import Profile
from autopart.records.tensor_degree import (
    MaybeTensor,
    StageDegrees,
    Tensor,
    TensorDemand,
    degree_of,
    searched_degrees,
    variant_of,
)
from autopart.records.tensor_variants import degrees_listed
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
    profile: Profile, cluster: Cluster, demand: TensorDemand | msgspec.UnsetType
) -> tuple[StageDegrees, ...]:
    """The sets of degrees among which stages choose: with sequence parallelism, and without.

    Empty where the demand leaves one degree for all stages. Raises AutopartError where the profile or the
    nodes leave no second degree.
    """
    if not isinstance(demand, TensorDemand) or demand.per_stage is not True:
        return ()
    able = searched_degrees(profile, cluster, demand)
    found: list[StageDegrees] = []
    for split in (False, True):
        own = [
            degree_of(one)
            for one in able
            if not isinstance(one, Tensor) or one.sequence_parallel is split
        ]
        if len(own) > 1:
            found.append(StageDegrees(degrees=tuple(own), sequence_parallel=split))
    if not found:
        raise AutopartError(
            f"no stage can have a tensor degree above 1: none of {degrees_listed(profile.variants)} fills "
            f"nodes of {counted(cluster.gpus_per_node, 'GPU')}; leave --tensor out"
        )
    return tuple(found)


def problem_of_degrees(problem: Problem, profile: Profile, chosen: StageDegrees) -> DegreesProblem:
    """The problem whose stages choose among `chosen`; `problem` has one GPU per rank.

    Raises AutopartError where the profile has no such degree.
    """
    split = chosen.sequence_parallel
    groups = tuple(
        problem_of_groups(problem, variant_of(profile, tensor_at(degree, split=split)))
        for degree in chosen.degrees
    )
    return DegreesProblem(problem, chosen.degrees, groups, split)


def tensor_at(degree: int, *, split: bool) -> MaybeTensor:
    """A tensor degree as plans have it: unset for 1."""
    return Tensor(degree=degree, sequence_parallel=split) if degree > 1 else msgspec.UNSET
