"""The rank groups that are searched, with every kind of sharded state and every shard degree that a demand leaves."""

from collections.abc import Sequence

import msgspec

from autopart.errors import AutopartError
from autopart.records.cluster import Cluster
from autopart.records.group_choice import GroupChoice, GroupDemand, searched_groups
from autopart.records.groups_on_nodes import shard_degrees
from autopart.records.profile import Profile
from autopart.records.rank_group import (
    Group,
    MaybeGroup,
    Reduce,
    Shard,
    context_degree,
    expert_degree,
    group_size,
    tensor_degree,
)
from autopart.records.training import Training
from autopart.text import counted


def searched_choices(
    profile: Profile,
    cluster: Cluster,
    demand: GroupDemand | msgspec.UnsetType,
    training: Training,
    num_microbatches: int,
) -> tuple[GroupChoice, ...]:
    """The choices for microbatches of the profile's size, of which a step has `num_microbatches`.

    A group with shard degree d runs d such microbatches together. So d divides them, and d times the group without it
    fills a part of a node or whole nodes. An expert degree divides the profile's samples. Empty where the demand leaves no such degrees. Raises AutopartError as `searched_groups` does.
    """
    bases = able_to_share_samples(searched_groups(profile, cluster, demand), profile)
    if not isinstance(demand, GroupDemand) or not isinstance(demand.shard, tuple):
        return tuple(GroupChoice(base) for base in bases)
    found: list[GroupChoice] = []
    for base in bases:
        degrees = [
            d
            for d in shard_degrees(base, cluster)
            if demand.shard_degree in (msgspec.UNSET, d) and num_microbatches % d == 0
        ]
        for word in demand.shard:
            if word == "none":
                found.append(GroupChoice(base))
            elif word == "zero1":
                found.append(GroupChoice(base, zero1=True))
            else:
                found += [GroupChoice(_sharded(base, word, d, training)) for d in degrees]
    return tuple(found)


def able_to_share_samples(groups: Sequence[MaybeGroup], profile: Profile) -> tuple[MaybeGroup, ...]:
    """The groups whose expert degree divides the profile's samples: a profile may be scaled to fewer."""
    return tuple(one for one in groups if profile.microbatch_size % expert_degree(one) == 0)


def no_expert_degree(groups: Sequence[MaybeGroup], samples: int) -> AutopartError:
    """The error where no expert degree divides the samples of a microbatch."""
    degrees = sorted({expert_degree(one) for one in groups})
    listed = " or ".join(map(str, degrees))
    return AutopartError(
        f"expert degree {listed} does not divide a microbatch of {counted(samples, 'sample')}; take a --microbatch-size "
        f"that is a multiple of {degrees[0]}"
    )


def _sharded(base: MaybeGroup, shard: Shard, degree: int, training: Training) -> Group:
    """The group with sharded state over a shard degree."""
    # FSDP2 under a pipeline sums gradients behind the last backward.
    reduce: Reduce = "step" if training.sync == "fsdp2" else "microbatch"
    return Group(
        tensor=tensor_degree(base),
        sequence_parallel=isinstance(base, Group) and base.sequence_parallel,
        context=context_degree(base),
        exchange=base.exchange if isinstance(base, Group) else msgspec.UNSET,
        expert=expert_degree(base),
        data=degree,
        shard=shard,
        reduce=reduce,
    )


def no_shard_degree(
    bases: Sequence[MaybeGroup], cluster: Cluster, demand: GroupDemand, num_microbatches: int
) -> AutopartError:
    """The error where no shard degree is left, with those that fill nodes, or the batches that would do."""
    able = sorted({d for base in bases for d in shard_degrees(base, cluster)})
    asked, size = demand.shard_degree, min(map(group_size, bases))
    nodes = f"{counted(cluster.num_nodes, 'node')} of {counted(cluster.gpus_per_node, 'GPU')}"
    if not able:
        return AutopartError(
            f"sharded state needs at least 2 GPUs that share it; groups of {counted(size, 'GPU')} on {nodes} leave none"
        )
    listed = ", ".join(map(str, able))
    if isinstance(asked, int) and asked not in able:
        of_groups = "" if size == 1 else f" with groups of {counted(size, 'GPU')}"
        return AutopartError(
            f"shard degree {asked}{of_groups} fills no part of a node and no whole nodes of {nodes}; {listed} do"
        )
    wanted = (
        f"shard degree {asked} does not divide"
        if isinstance(asked, int)
        else f"none of {listed}, the shard degrees that fill {nodes}, divides"
    )
    return AutopartError(
        f"{wanted} the {counted(num_microbatches, 'microbatch')} of the profile's size in a step; take another "
        "--global-batch or a smaller --microbatch-size"
    )
