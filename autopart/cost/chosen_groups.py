"""The problem of one choice of rank group, from the problem with one GPU per rank."""

import msgspec

from autopart.cost.groups_as_ranks import problem_of_groups
from autopart.cost.paired_exchanges import parts_beneath
from autopart.cost.sharded_state import sharded_variant
from autopart.cost.uneven_experts import with_load
from autopart.records.expert_load import AssumedLoad
from autopart.records.group_choice import (
    GroupChoice,
    has_sharding_choice,
    load_of,
    variant_of,
)
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
    assumed = load_of(problem.demands.group, group)
    variant = chosen_variant(profile, group, problem.training, assumed)
    balanced = variant_of(profile, without_shard(group))
    return problem_of_groups(problem, variant, parts_beneath(balanced, assumed, problem.training))


def chosen_variant(
    profile: Profile,
    group: MaybeGroup,
    training: Training,
    assumed: AssumedLoad | msgspec.UnsetType,
) -> GroupVariant | None:
    """The layers of one GPU in a group, under the assumed load and with sharded state; None for one GPU."""
    base = unsharded_variant(profile, group, assumed)
    if not isinstance(group, Group) or group.data == 1:
        return base
    if base is None:
        return sharded_variant(profile.graph, (), group, training)
    return sharded_variant(base.graph, base.collectives, group, training)


def unsharded_variant(
    profile: Profile, group: MaybeGroup, assumed: AssumedLoad | msgspec.UnsetType
) -> GroupVariant | None:
    """The layers of one GPU in a group under the assumed load, with whole state; None for one GPU."""
    base = variant_of(profile, without_shard(group))
    return base and with_load(base, assumed)
