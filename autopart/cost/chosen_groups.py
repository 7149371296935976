"""The problem of one choice of rank group, from the problem with one GPU per rank."""

import msgspec

from autopart.cost.groups_as_ranks import problem_of_groups
from autopart.cost.sharded_state import sharded_variant
from autopart.records.group_choice import GroupChoice, has_sharding_choice, variant_of
from autopart.records.group_variants import GroupVariant
from autopart.records.problem import Problem
from autopart.records.profile import Profile
from autopart.records.rank_group import Group, MaybeGroup, without_shard
from autopart.records.training import Training


def problem_of_choice(problem: Problem, profile: Profile, choice: GroupChoice) -> Problem:
    """The problem whose ranks are groups; `problem` has one GPU per rank, and microbatches of the profile's size.

    Each GPU of a group with shard degree d has as many samples as the profile. So a microbatch has d times as many,
    and a step has 1 / d as many microbatches. Raises AutopartError where the profile has no such variant.
    """
    group = choice.group
    if has_sharding_choice(problem.demands.group):
        training = msgspec.structs.replace(problem.training, zero1=choice.zero1 is True)
        problem = msgspec.structs.replace(problem, training=training)
    if isinstance(group, Group):
        problem = msgspec.structs.replace(
            problem,
            microbatch_size=problem.microbatch_size * group.data,
            num_microbatches=problem.num_microbatches // group.data,
        )
    return problem_of_groups(problem, chosen_variant(profile, group, problem.training))


def chosen_variant(profile: Profile, group: MaybeGroup, training: Training) -> GroupVariant | None:
    """The layers of one GPU in a group, with sharded state computed; None for one GPU."""
    base = variant_of(profile, without_shard(group))
    if not isinstance(group, Group) or group.data == 1:
        return base
    if base is None:
        return sharded_variant(profile.graph, (), group, training)
    return sharded_variant(base.graph, base.collectives, group, training)
